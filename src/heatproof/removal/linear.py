"""ROAD's imputation: each removed pixel becomes the weighted mean of its eight neighbours, removed or not.

A linear system for each image. On a CPU it is solved directly, image by image, by sparse elimination; on other devices
for a whole batch at once by conjugate gradients, without a matrix. Both give the same values to about 1e-6.
"""

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy import sparse
from scipy.sparse.linalg import splu
from torch import Tensor
from torch.nn import functional

from heatproof import seeding
from heatproof.errors import InputError
from heatproof.removal.pixels import as_float, by_channel, colour_like, drawn

TOLERANCE = 1e-6  # of the residual's norm, relative to the right side's
_CHECK_EVERY = 8  # iterations between two looks at the residuals; each look waits for the device
_BLOCK = 1 << 22  # values solved for at a time
# Twelve times the weights: whole numbers, so that products with them are exact.
_WEIGHTS = tuple(
    (down, along, 1.0 if down and along else 2.0) for down in (-1, 0, 1) for along in (-1, 0, 1) if down or along
)
_GRID = 2.0**-40  # of a first solution, so that its residual is exact
_COARSE_FROM = 64  # pixels of the shorter side; in smaller images the few iterations saved do not pay for the levels


def impute_linear(
    pixels: Tensor,
    removed: Tensor,
    noise: float = 0.0,
    *,
    mean: tuple[float, ...] | None = None,
    seed: int = 0,
    indices: ArrayLike | None = None,
    draws: Tensor | None = None,
) -> Tensor:
    """Replaces removed pixels by the solution of ROAD's linear system, plus noise.

    For each removed pixel i with neighbours V(i) inside the image: the sum over j in V(i) of w_ij (u_i - x_j) is 0,
    where x_j is the neighbour's own unknown if it is removed too; w is 1/6 for the four sides and 1/12 for the four
    corners. Then independent N(0, noise) is added to each channel of each removed pixel. Nothing is clamped.

    Args:
        pixels: (N, C, H, W), float in [0, 1] or uint8 in [0, 255].
        removed: (N, H, W) or (N, C, H, W), bool.
        noise: standard deviation in [0, 1] units; ROAD's is 0.01.
        mean: (C) colour of an image of which nothing is left: there, every constant solves the system.
        seed: root seed of the noise.
        indices: (N,) index of each image in its split, on which its noise depends; without it, all draw as image 0.
        draws: (N, C, H, W) standard normal values to use instead of our own.

    Returns:
        (N, C, H, W) float; kept pixels are what they were.

    Raises:
        InputError: nothing is left of an image, and no `mean` is given.

    Reference:
        Rong et al., arXiv:2202.00449 (ROAD): noisy linear imputation.

    The image 1 to 9: first its centre goes, then a corner, then the centre and the middle of the right edge.

    >>> image = torch.arange(1.0, 10.0).reshape(1, 1, 3, 3)
    >>> for holes in ([4], [0], [4, 5]):
    ...     removed = torch.zeros(1, 9, dtype=torch.bool)
    ...     removed[0, holes] = True
    ...     print([f"{value:.6f}" for value in impute_linear(image, removed.view(1, 3, 3)).flatten()[holes]])
    ['5.000000']
    ['3.400000']
    ['4.913043', '5.478261']
    """
    pixels = as_float(pixels)
    holes = by_channel(removed, pixels)
    if mean is None and bool(holes.flatten(2).all(dim=2).any()):
        raise InputError("mean: an image is removed as a whole, which leaves nothing to impute from; give its colour")
    fallback = colour_like(mean or (0.0,), pixels)
    solve = by_elimination if pixels.device.type == "cpu" else by_conjugate_gradients
    imputed = solve(pixels, holes, fallback)
    if noise > 0:
        if draws is None:
            draws = drawn(pixels, indices, lambda i, size: seeding.generator(seed, "impute", i).standard_normal(size))
        imputed = imputed + noise * draws
    return torch.where(holes, imputed, pixels)


def by_elimination(pixels: Tensor, holes: Tensor, fallback: Tensor) -> Tensor:
    """The holes' values (N, C, H, W) by sparse LU; channels with the same holes share one factorisation.

    Args:
        pixels: (N, C, H, W) float, on a CPU.
        holes: the same shape, bool.
        fallback: colour of what is removed as a whole, in a shape that broadcasts to `pixels`.
    """
    found = fallback.to(pixels.dtype).expand_as(pixels).clone()
    for image, image_holes, result in zip(pixels.double().numpy(), holes.numpy(), found.numpy(), strict=True):
        shared = bool((image_holes == image_holes[:1]).all())
        for channels in [slice(None)] if shared else [slice(c, c + 1) for c in range(len(image))]:
            hole = image_holes[channels][0]
            if hole.any() and not hole.all():
                result[channels, hole] = _eliminated(image[channels], hole)
    return found


def _eliminated(image: NDArray[np.float64], hole: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Values (C, U) of the U holes of an image (C, H, W).

    The elimination calls a BLAS, whose roundings depend on the processor. So a first solution is rounded to a grid, on
    which its residual has no rounding, and corrected once: what is left of the roundings lies far below a float64's.
    """
    rows, columns = np.nonzero(np.pad(hole, 1))
    unknowns = len(rows)
    number = np.full((hole.shape[0] + 2, hole.shape[1] + 2), -1)
    number[rows, columns] = np.arange(unknowns)
    inside = np.pad(np.ones(hole.shape), 1)
    known = np.pad(np.where(hole, 0.0, image), ((0, 0), (1, 1), (1, 1)))
    degree, right = np.zeros(unknowns), np.zeros((unknowns, len(image)))
    entries = []
    for down, along, weight in _WEIGHTS:
        at = (rows + down, columns + along)
        degree += weight * inside[at]
        right += weight * known[:, at[0], at[1]].T
        beside = number[at]
        (both,) = np.nonzero(beside >= 0)
        entries.append((both, beside[both], np.full(len(both), -weight)))
    entries.append((np.arange(unknowns), np.arange(unknowns), degree))
    i, j, values = (np.concatenate(part) for part in zip(*entries, strict=True))
    matrix = sparse.csc_matrix((values, (i, j)), shape=(unknowns, unknowns))
    # The matrix is symmetric and diagonally dominant, so no pivoting is needed.
    factors = splu(matrix, permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0.0, options={"SymmetricMode": True})
    near = np.rint(factors.solve(right) / _GRID) * _GRID
    solution: NDArray[np.float64] = (near + factors.solve(right - matrix @ near)).T
    return solution


def by_conjugate_gradients(pixels: Tensor, holes: Tensor, fallback: Tensor) -> Tensor:
    """The same for a whole batch at once, on any device; arguments as for `by_elimination`."""
    images = max(1, _BLOCK // max(1, pixels[0].numel())) if len(pixels) else 1
    parts = zip(pixels.split(images), holes.split(images), strict=True)
    return torch.cat([_solution(part, part_holes, fallback) for part, part_holes in parts])


def _solution(pixels: Tensor, holes: Tensor, fallback: Tensor) -> Tensor:
    """Solves for the holes' values; elsewhere the result is the image."""
    # MPS has no float64; float32 keeps four digits, enough for pixels.
    exact = pixels.to(torch.float32 if pixels.device.type == "mps" else torch.float64)
    known = (~holes).to(exact.dtype)
    kept = known.sum(dim=(2, 3), keepdim=True)
    # Constants solve the system, so the image may be centred: the residual is then relative to its contrast.
    centre = torch.where(kept > 0, (exact * known).sum(dim=(2, 3), keepdim=True) / kept.clamp(min=1), fallback)
    centred = (exact - centre) * known
    return (centred + _conjugate_gradients(centred, 1 - known) + centre).to(pixels.dtype)


def _conjugate_gradients(known: Tensor, holes: Tensor) -> Tensor:
    """Solves `holes * (degree * u - neighbours(u)) = holes * neighbours(known)` for u, zero outside the holes.

    An image that has converged leaves the batch: what the others need costs it nothing and changes nothing in it.
    """
    result = torch.zeros_like(known)
    rows = torch.arange(len(known), device=known.device)
    degree = _neighbours(torch.ones_like(known[:1, :1]))  # 1 but at the border
    residual = holes * _neighbours(known)
    limit = TOLERANCE * _norm(residual)
    unknown = torch.zeros_like(known)
    levels = _levels(holes)
    preconditioned = _precondition(residual, levels, degree)
    direction = preconditioned
    energy = _dot(residual, preconditioned)
    for iteration in range(1, 20 * sum(known.shape[2:]) + 1):
        image = holes * (degree * direction - _neighbours(direction))
        step = _ratio(energy, _dot(direction, image))
        unknown = unknown + step * direction
        residual = residual - step * image
        if iteration % _CHECK_EVERY == 0:
            open_ = (_norm(residual) > limit).flatten(1).any(dim=1)
            result[rows[~open_]] = unknown[~open_]
            if not bool(open_.any()):
                return result
            rows, limit, unknown, residual = rows[open_], limit[open_], unknown[open_], residual[open_]
            direction, energy = direction[open_], energy[open_]
            holes, levels = holes[open_], [level[open_] for level in levels]
        preconditioned = _precondition(residual, levels, degree)
        energy, before = _dot(residual, preconditioned), energy
        direction = preconditioned + _ratio(energy, before) * direction
    raise RuntimeError(f"the imputation of {len(rows)} images has not converged; this is a bug")


def _neighbours(values: Tensor) -> Tensor:
    """Weighted sum of the eight neighbours of each pixel; what lies outside counts 0."""
    padded = functional.pad(values, (1, 1, 1, 1))
    rows = padded[..., :-2, :] + 2 * padded[..., 1:-1, :] + padded[..., 2:, :]
    blocks = rows[..., :-2] + 2 * rows[..., 1:-1] + rows[..., 2:]
    return (blocks - 4 * values) / 12


def _levels(holes: Tensor) -> list[Tensor]:
    """The holes at full size and, for large images, at each half size where something is left of them.

    A coarse pixel counts as a hole if all fine ones that it spreads to are: a correction must not touch known pixels.
    """
    levels = [holes]
    while min(holes.shape[2:]) >= _COARSE_FROM and min(levels[-1].shape[2:]) > 3:
        coarse = (_coarser(1 - levels[-1]) == 0).to(holes.dtype)
        if not bool(coarse.any()):
            break
        levels.append(coarse)
    return levels


def _precondition(residual: Tensor, levels: list[Tensor], degree: Tensor) -> Tensor:
    """Sum of the corrections at all scales (Bramble, Pasciak, Xu 1990): iterations no longer grow with the holes."""
    scales = [residual]
    for level in levels[1:]:
        scales.append(level * _coarser(scales[-1]))
    scales[0] = residual / degree
    correction = scales.pop()
    for level, scale in zip(reversed(levels[:-1]), reversed(scales), strict=True):
        correction = scale + level * _finer(correction, level)
    return correction


def _coarser(values: Tensor) -> Tensor:
    """Half the size, the adjoint of `_finer`: weights 1/4, 3/4, 3/4, 1/4 along each axis."""
    return _halved(_halved(values).transpose(2, 3)).transpose(2, 3)


def _halved(values: Tensor) -> Tensor:
    padded = functional.pad(values, (1, 1 + values.shape[3] % 2))
    inner = padded[..., 1:-1:2] + padded[..., 2::2][..., : padded.shape[3] // 2 - 1]
    outer = padded[..., :-2:2] + padded[..., 3::2]
    return 0.75 * inner + 0.25 * outer


def _finer(values: Tensor, like: Tensor) -> Tensor:
    """Bilinear interpolation to the size of `like`, zero beyond the border."""
    return _doubled(_doubled(values, like.shape[3]).transpose(2, 3), like.shape[2]).transpose(2, 3)


def _doubled(values: Tensor, size: int) -> Tensor:
    padded = functional.pad(values, (1, 1))
    left = 0.75 * values + 0.25 * padded[..., :-2]
    right = 0.75 * values + 0.25 * padded[..., 2:]
    return torch.stack((left, right), dim=-1).flatten(3)[..., :size]


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(dim=(2, 3), keepdim=True)


def _norm(values: Tensor) -> Tensor:
    return _dot(values, values).sqrt()


def _ratio(a: Tensor, b: Tensor) -> Tensor:
    """The quotient, and 0 where b is 0: there the system is solved exactly and must stay as it is."""
    return torch.where(b > 0, a / b.clamp(min=torch.finfo(b.dtype).tiny), 0.0)
