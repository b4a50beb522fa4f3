"""What all fills need from the tensors they get: float pixels, a mask that fits them, colours, draws by image."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from heatproof import checks
from heatproof.errors import InputError


def as_float(pixels: Tensor) -> Tensor:
    """Pixels in [0, 1]: uint8 becomes float32 divided by 255, floats stay as they are."""
    checks.shapes("N C H W", pixels=pixels)
    if pixels.dtype == torch.uint8:
        return pixels.to(torch.float32) / 255
    if not pixels.is_floating_point():
        raise InputError(f"pixels: {pixels.dtype}; expected float in [0, 1] or uint8 in [0, 255]")
    return pixels


def by_channel(removed: Tensor, pixels: Tensor) -> Tensor:
    """The mask as (N, 1, H, W) or (N, C, H, W), checked against the pixels."""
    if removed.dtype != torch.bool:
        raise InputError(f"removed: {removed.dtype}; expected bool, True where a pixel is removed")
    if removed.ndim == 3:
        removed = removed[:, None]
    expected = (len(pixels), *pixels.shape[2:])
    if removed.ndim != 4 or removed.shape[1] not in (1, pixels.shape[1]) or removed[:, 0].shape != expected:
        raise InputError(
            f"removed: shape {tuple(removed.shape)}; expected (N, H, W) or (N, C, H, W) for pixels {tuple(pixels.shape)}"
        )
    return removed


def colour_like(colour: tuple[float, ...], pixels: Tensor) -> Tensor:
    """(1, C, 1, 1) with the type and device of the pixels; one value serves all channels."""
    if len(colour) not in (1, pixels.shape[1]):
        raise InputError(f"colour {colour} has {len(colour)} values; the pixels have {pixels.shape[1]} channels")
    values = torch.tensor(colour, dtype=pixels.dtype, device=pixels.device)
    return values.expand(pixels.shape[1]).view(1, -1, 1, 1)


def drawn(pixels: Tensor, indices: ArrayLike | None, draw: Callable[[int, tuple[int, ...]], NDArray[Any]]) -> Tensor:
    """One draw for each image, of the shape of its pixels; an image that comes several times is drawn once."""
    positions = np.zeros(len(pixels), dtype=np.int64) if indices is None else np.asarray(indices, dtype=np.int64)
    if positions.shape != (len(pixels),):
        raise InputError(f"indices: shape {positions.shape}; expected ({len(pixels)},), one for each image")
    different, places = np.unique(positions, return_inverse=True)
    size = tuple(pixels.shape[1:])
    values = np.stack([draw(index, size) for index in different.tolist()]) if len(different) else np.empty((0, *size))
    return torch.from_numpy(values).to(pixels.dtype).to(pixels.device)[torch.from_numpy(places).to(pixels.device)]
