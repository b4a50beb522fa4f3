"""Random changes of whole batches, on the device: crop and mirror of pixels; noise, rotation and blur of images."""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - the customary name
from numpy.typing import NDArray
from torch import Tensor

from heatproof import seeding

BLUR = (0.1, 2.0)


@dataclass(frozen=True)
class Augmentation:
    """Pad, crop at a random place, mirror half of the pixels; add noise to the normalised images, turn and blur them.

    Args:
        padding: pixels added on each side before the crop; 0 switches the crop off.
        colour: value of the padding for each channel, in [0, 1].
        flip: mirror left to right with probability 1/2.
        noise: standard deviation of Gaussian noise, in units of the normalised image.
        rotation: images are turned about their centre by up to so many degrees, to either side.
        blur: Gaussian kernel of 3 x 3, its standard deviation uniform between `BLUR[0]` and `BLUR[1]` pixels.
    """

    padding: int = 4
    colour: tuple[float, ...] = (0.0, 0.0, 0.0)
    flip: bool = True
    noise: float = 0.0
    rotation: float = 0.0
    blur: bool = False

    def draw(self, seed: int, purpose: tuple[str | int, ...], count: int) -> "AugmentationDraws":
        """What happens to each of `count` images in one epoch; depends on nothing but seed and purpose."""
        rng = seeding.generator(seed, *purpose, "augmentation")
        offsets = rng.integers(0, 2 * self.padding + 1, size=(count, 2))
        mirrored = rng.integers(0, 2, size=count).astype(bool) & self.flip
        angles = seeding.generator(seed, *purpose, "rotation").uniform(-self.rotation, self.rotation, count)
        sigmas = seeding.generator(seed, *purpose, "blur").uniform(*BLUR, count)
        return AugmentationDraws(self, offsets, mirrored, angles, sigmas, seed, (*purpose, "noise"))


@dataclass(frozen=True)
class AugmentationDraws:
    """One epoch's random numbers, by image index.

    Args:
        augmentation: what is done with them.
        offsets: (N, 2) as (row, column).
        mirrored: (N,).
        angles: (N,), in degrees, counter-clockwise.
        sigmas: (N,), of the blur.
        seed: root seed.
        purpose: of the noise, which is drawn when it is added.
    """

    augmentation: Augmentation
    offsets: NDArray[np.int64]
    mirrored: NDArray[np.bool_]
    angles: NDArray[np.float64]
    sigmas: NDArray[np.float64]
    seed: int
    purpose: tuple[str | int, ...]

    def apply(self, pixels: Tensor, indices: Tensor) -> Tensor:
        """Crops and mirrors pixels (B, C, H, W) of the images `indices`; the result has the same shape."""
        if self.augmentation.padding == 0 and not self.augmentation.flip:
            return pixels
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

    def disturb(self, images: Tensor, indices: Tensor) -> Tensor:
        """Adds noise to normalised images (B, C, H, W), turns them and blurs them, in this order."""
        chosen = indices.cpu().numpy()
        if self.augmentation.noise:
            images = images + self.augmentation.noise * self._noise(chosen, images)
        if self.augmentation.rotation:
            images = turned(images, torch.from_numpy(self.angles[chosen]).to(images))
        if self.augmentation.blur:
            images = blurred(images, torch.from_numpy(self.sigmas[chosen]).to(images))
        return images

    def _noise(self, chosen: NDArray[np.int64], images: Tensor) -> Tensor:
        shape = tuple(images.shape[1:])
        drawn = [
            seeding.generator(self.seed, *self.purpose, index).standard_normal(shape, dtype=np.float32)
            for index in chosen.tolist()
        ]
        return torch.from_numpy(np.stack(drawn)).to(images)

    def _padded(self, pixels: Tensor, padding: int) -> Tensor:
        if padding == 0:
            return pixels
        count, channels, height, width = pixels.shape
        colour = torch.tensor(self.augmentation.colour, device=pixels.device, dtype=pixels.dtype)
        shape = (count, channels, height + 2 * padding, width + 2 * padding)
        padded = colour[None, :, None, None].expand(shape).clone()
        padded[:, :, padding:-padding, padding:-padding] = pixels
        return padded


def turned(images: Tensor, angles: Tensor) -> Tensor:
    """Images (B, C, H, W) turned about their centres by angles (B,), in degrees and counter-clockwise.

    Each pixel takes the nearest of the old ones; where there is none, it becomes 0.

    >>> turned(torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]]), torch.tensor([90.0]))
    tensor([[[[2., 4.],
              [1., 3.]]]])
    """
    radians = angles.deg2rad()
    cosine, sine, zero = radians.cos(), radians.sin(), torch.zeros_like(radians)
    # The grid's axes run from -1 to 1 whatever the shape, so what mixes them needs the ratio of the sides.
    ratio = images.shape[2] / images.shape[3]
    rows = [torch.stack([cosine, -sine * ratio, zero], dim=1), torch.stack([sine / ratio, cosine, zero], dim=1)]
    grid = F.affine_grid(torch.stack(rows, dim=1), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="nearest", padding_mode="zeros", align_corners=False)


def blurred(images: Tensor, sigmas: Tensor) -> Tensor:
    """Images (B, C, H, W) under a Gaussian kernel of 3 x 3 whose standard deviations are sigmas (B,); edges mirror.

    >>> blurred(torch.tensor([[[[0.0, 0.0, 0.0], [0.0, 9.0, 0.0], [0.0, 0.0, 0.0]]]]), torch.tensor([1e6])).sum()
    tensor(25.)
    """
    side = torch.exp(-0.5 / sigmas**2)
    centre = (1 / (1 + 2 * side))[:, None, None, None]
    side = side[:, None, None, None] * centre
    padded = F.pad(images, (1, 1, 1, 1), mode="reflect")
    across = centre * padded[..., 1:-1] + side * (padded[..., :-2] + padded[..., 2:])
    return centre * across[..., 1:-1, :] + side * (across[..., :-2, :] + across[..., 2:, :])
