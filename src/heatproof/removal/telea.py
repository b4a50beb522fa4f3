"""Telea's inpainting: holes close from their edge inwards, each pixel from what is known within a few pixels.

The order in which pixels are reached is that of their distance from the known region, which is taken exactly instead of
marched. Pixels at equal distance are reached at once and do not see each other, so that the answer has no preferred
direction and a whole batch goes through in as many steps as there are distances.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage
from torch import Tensor
from torch.nn import functional

from heatproof.errors import InputError
from heatproof.removal.pixels import as_float, by_channel, colour_like

RESULTS_VERSION = 1

LEAST_DIRECTION = 1e-6  # a neighbour at a right angle to the front still counts a little


@dataclass(frozen=True)
class Telea:
    """Each pixel of a hole becomes the weighted mean of what its known neighbours extrapolate to it.

    For a pixel p reached at distance T(p), over all q with |p - q| <= radius that are known by then:
    I(p) = sum w (I(q) + grad I(q) . (p - q)) / sum w, with w = direction x nearness x level, where
    direction = |(p - q) . grad T(p)| / |p - q|, nearness = 1 / |p - q|^2, level = 1 / (1 + |T(p) - T(q)|).
    T is the distance from the hole's edge, negative outside; gradients are differences of known neighbours.

    Args:
        mean: colour of an image of which nothing is left, one value for each channel.
        radius: in pixels.

    Reference:
        Telea, "An image inpainting technique based on the fast marching method", Journal of Graphics Tools 9 (2004).

    A slope goes on into the hole:

    >>> pixels = torch.arange(0.0, 0.7, 0.1).expand(1, 1, 5, 7)
    >>> removed = torch.zeros(1, 5, 7, dtype=torch.bool)
    >>> removed[:, :, 5:] = True
    >>> [round(value, 4) for value in Telea((0.5,))(pixels, removed)[0, 0, 2].tolist()]
    [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6]
    """

    mean: tuple[float, ...]
    radius: int = 3

    def __post_init__(self) -> None:
        if self.radius < 1:
            raise InputError(f"radius: {self.radius} must be at least 1 pixel")

    def __call__(self, pixels: Tensor, removed: Tensor, indices: ArrayLike | None = None) -> Tensor:
        """Replaces the removed pixels; the others stay as they are."""
        pixels = as_float(pixels)
        holes = by_channel(removed, pixels)
        if holes.shape[1] == 1:
            return torch.where(holes, _closed(pixels, holes[:, 0], self.radius, colour_like(self.mean, pixels)), pixels)
        colour = colour_like(self.mean, pixels)
        closed = [
            _closed(pixels[:, c : c + 1], holes[:, c], self.radius, colour[:, c : c + 1]) for c in range(holes.shape[1])
        ]
        return torch.where(holes, torch.cat(closed, dim=1), pixels)


def _closed(pixels: Tensor, holes: Tensor, radius: int, fallback: Tensor) -> Tensor:
    """The pixels (N, C, H, W) without their holes (N, H, W)."""
    margin = radius + 1
    edges = (margin, margin, margin, margin)
    distance = torch.from_numpy(_distances(holes.cpu().numpy())).to(pixels)
    normal = torch.stack(torch.gradient(distance, dim=(1, 2)) if min(distance.shape[1:]) > 1 else [distance * 0] * 2)
    normal = functional.pad(normal / normal.square().sum(0).sqrt().clamp(min=1e-6), edges).flatten(1)
    front = functional.pad(distance, edges, value=-1.0)
    shape = front.shape
    front = front.flatten()
    values = functional.pad(torch.where(holes[:, None], fallback, pixels), edges).movedim(1, 3).flatten(0, 2)
    plane = _Plane(values, functional.pad(~holes, edges).flatten(), front, normal, shape[2])
    # An image without a known pixel has an infinite distance everywhere, and keeps the fallback.
    reached = torch.nonzero((front > 0) & front.isfinite()).flatten()
    reached = reached[torch.argsort(front[reached], stable=True)]
    _, sizes = torch.unique_consecutive(front[reached], return_counts=True)
    for places in reached.split(sizes.tolist()):
        plane.reach(places, radius)
    closed = plane.values.view(*shape, pixels.shape[1]).movedim(3, 1)
    return closed[:, :, margin:-margin, margin:-margin]


def _distances(holes: NDArray[np.bool_]) -> NDArray[np.float64]:
    """(N, H, W): distance of each pixel from the nearest on the other side of the edge; negative outside the holes."""
    found = np.empty(holes.shape)
    for distance, hole in zip(found, holes, strict=True):
        if hole.all() or not hole.any():
            distance[:] = math.inf if hole.all() else -math.inf
        else:
            distance[:] = np.where(hole, ndimage.distance_transform_edt(hole), -ndimage.distance_transform_edt(~hole))
    return found


class _Plane:
    """All images of a batch behind each other, with a margin that is never known.

    Args:
        values: (P, C), of each pixel.
        known: (P,).
        front: (P,), the distance at which each is reached.
        normal: (2, P), in which direction the distance grows, down and along.
        width: of a row.
    """

    def __init__(self, values: Tensor, known: Tensor, front: Tensor, normal: Tensor, width: int):
        self.values, self.known, self.front, self.normal, self.width = values, known, front, normal, width
        self.steps = (width, 1)  # from a pixel to the one below it, and to the next
        self.slopes = values.new_zeros(len(values), 2, values.shape[1])
        self._measure(torch.arange(len(values), device=values.device)[width:-width])

    def reach(self, places: Tensor, radius: int) -> None:
        """Gives the pixels at `places` (M,), all at one distance, their values, and makes them known."""
        self.values[places] = self._extrapolated(places, radius)
        self.known[places] = True
        self._measure(torch.cat([places, *(places + sign * step for step in self.steps for sign in (-1, 1))]))

    def _extrapolated(self, places: Tensor, radius: int) -> Tensor:
        total = self.values.new_zeros(len(places), self.values.shape[1])
        weights = self.values.new_zeros(len(places))
        front, (normal_down, normal_along) = self.front[places], self.normal[:, places]
        reach = range(-radius, radius + 1)
        for down, along in ((d, a) for d in reach for a in reach if 0 < d * d + a * a <= radius * radius):
            others = places + down * self.width + along
            square = down * down + along * along
            # (p - q) is minus the offset; of the product with the normal only the size counts.
            direction = (down * normal_down + along * normal_along).abs() / math.sqrt(square)
            level = 1 / (1 + (front - self.front[others]).abs())
            weight = self.known[others] * direction.clamp(min=LEAST_DIRECTION) * level / square
            slopes = self.slopes[others]
            total += weight[:, None] * (self.values[others] - down * slopes[:, 0] - along * slopes[:, 1])
            weights += weight
        return (total / weights[:, None]).clamp(0, 1)

    def _measure(self, places: Tensor) -> None:
        """Takes the gradient at `places` from the neighbours that are known; 0 where none is."""
        here = self.values[places]
        for axis, step in enumerate(self.steps):
            after, before = self.known[places + step, None], self.known[places - step, None]
            rise = torch.where(after, self.values[places + step] - here, 0.0)
            rise += torch.where(before, here - self.values[places - step], 0.0)
            self.slopes[places, axis] = rise / (after.to(here.dtype) + before).clamp(min=1)
