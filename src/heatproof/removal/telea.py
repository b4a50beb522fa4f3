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
    known = functional.pad(~holes, edges).flatten()
    front = functional.pad(distance, edges, value=-1.0)
    width, shape = front.shape[2], front.shape
    front = front.flatten()
    values = functional.pad(torch.where(holes[:, None], fallback, pixels), edges)
    values = values.movedim(1, 0).reshape(pixels.shape[1], -1)
    # An image without a known pixel has an infinite distance everywhere, and keeps the fallback.
    reached = torch.nonzero((front > 0) & front.isfinite()).flatten()
    reached = reached[torch.argsort(front[reached], stable=True)]
    _, sizes = torch.unique_consecutive(front[reached], return_counts=True)
    for places in reached.split(sizes.tolist()):
        values[:, places] = _extrapolated(values, known, front, normal, places, radius, width)
        known[places] = True
    closed = values.view(len(values), *shape).movedim(0, 1)
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


def _extrapolated(
    values: Tensor, known: Tensor, front: Tensor, normal: Tensor, places: Tensor, radius: int, width: int
) -> Tensor:
    """New values (C, M) of the M pixels at `places`, all at one distance."""
    total = values.new_zeros(len(values), len(places))
    weights = values.new_zeros(len(places))
    reach = range(-radius, radius + 1)
    for down, along in ((d, a) for d in reach for a in reach if 0 < d * d + a * a <= radius * radius):
        others = places + down * width + along
        square = down * down + along * along
        # (p - q) is minus the offset; only the size of the product counts.
        direction = (down * normal[0, places] + along * normal[1, places]).abs() / math.sqrt(square)
        level = 1 / (1 + (front[places] - front[others]).abs())
        weight = known[others] * direction.clamp(min=LEAST_DIRECTION) * level / square
        slope = _slope(values, known, others, width) * down + _slope(values, known, others, 1) * along
        total = total + torch.where(known[others], weight * (values[:, others] - slope), 0.0)
        weights = weights + weight
    return (total / weights).clamp(0, 1)


def _slope(values: Tensor, known: Tensor, places: Tensor, step: int) -> Tensor:
    """Difference of neighbours at `places` (C, M), of those that are known; 0 where none is."""
    after, before = known[places + step], known[places - step]
    rise = torch.where(after, values[:, places + step] - values[:, places], 0.0)
    rise = rise + torch.where(before, values[:, places] - values[:, places - step], 0.0)
    return rise / (after.to(values.dtype) + before).clamp(min=1)
