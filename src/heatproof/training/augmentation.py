"""Random crop and mirror of whole batches, on the device."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from heatproof import seeding


@dataclass(frozen=True)
class Augmentation:
    """Pad, crop at a random place, mirror half of the images.

    Args:
        padding: pixels added on each side before the crop; 0 switches the crop off.
        colour: value of the padding for each channel, in [0, 1].
        flip: mirror left to right with probability 1/2.
    """

    padding: int = 4
    colour: tuple[float, ...] = (0.0, 0.0, 0.0)
    flip: bool = True

    def draw(self, seed: int, purpose: tuple[str | int, ...], count: int) -> "Draws":
        """What happens to each of `count` images in one epoch; depends on nothing but seed and purpose."""
        rng = seeding.generator(seed, *purpose, "augmentation")
        offsets = rng.integers(0, 2 * self.padding + 1, size=(count, 2))
        mirrored = rng.integers(0, 2, size=count).astype(bool) & self.flip
        return Draws(self, offsets, mirrored)


@dataclass(frozen=True)
class Draws:
    """One epoch's random numbers, by image index: offsets (N, 2) as (row, column), mirrored (N,)."""

    augmentation: Augmentation
    offsets: NDArray[np.int64]
    mirrored: NDArray[np.bool_]

    def apply(self, pixels: Tensor, indices: Tensor) -> Tensor:
        """Crops and mirrors pixels (B, C, H, W) of the images `indices`; the result has the same shape."""
        height, width = pixels.shape[2:]
        chosen = indices.cpu().numpy()
        rows = self.offsets[chosen, :1] + np.arange(height)  # (B, H)
        columns = self.offsets[chosen, 1:] + np.arange(width)
        columns = np.where(self.mirrored[chosen, None], columns[:, ::-1], columns)
        padding = self.augmentation.padding
        # One gather does both; its result is channels-last in memory.
        padded = self._padded(pixels, padding).permute(0, 2, 3, 1)
        images = torch.arange(len(pixels), device=pixels.device)[:, None, None]
        row_index = torch.from_numpy(rows).to(pixels.device)[:, :, None]
        column_index = torch.from_numpy(np.ascontiguousarray(columns)).to(pixels.device)[:, None, :]
        return padded[images, row_index, column_index].permute(0, 3, 1, 2)

    def _padded(self, pixels: Tensor, padding: int) -> Tensor:
        if padding == 0:
            return pixels
        count, channels, height, width = pixels.shape
        colour = torch.tensor(self.augmentation.colour, device=pixels.device, dtype=pixels.dtype)
        shape = (count, channels, height + 2 * padding, width + 2 * padding)
        padded = colour[None, :, None, None].expand(shape).clone()
        padded[:, :, padding:-padding, padding:-padding] = pixels
        return padded
