"""Fills that blur."""

import functools
import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage
from torch import Tensor

from heatproof.errors import InputError
from heatproof.removal.pixels import as_float, by_channel, colour_like
from heatproof.removal.protocol import replace

RESULTS_VERSION = 2  # to be raised when numbers change, also by a change in pixels


@dataclass(frozen=True)
class Blur:
    """The image, blurred by a Gaussian; beyond the border it is mirrored, the edge sample repeated.

    Args:
        sigma: standard deviation as a share of the longer side: 0.05 is 11 pixels at 224, 1.6 at 32.

    Reference:
        Fong and Vedaldi, arXiv:1704.03296: blur as the deletion of detail (there, 10 pixels at 224).
    """

    sigma: float = 0.05

    def __post_init__(self) -> None:
        if not self.sigma > 0:
            raise InputError(f"sigma: {self.sigma} must be above 0, a share of the image's longer side")

    def replacement(self, pixels: Tensor, indices: ArrayLike | None = None) -> Tensor:
        """The blurred images, (N, C, H, W)."""
        pixels = as_float(pixels)
        height, width = pixels.shape[2:]
        sigma = self.sigma * max(height, width)
        rows = torch.from_numpy(_gaussian_matrix(height, sigma)).to(pixels)
        columns = torch.from_numpy(_gaussian_matrix(width, sigma)).to(pixels)
        return rows @ pixels @ columns.T

    __call__ = replace


@dataclass(frozen=True)
class KeptBlur:
    """The Gaussian mean of the pixels that are kept: a blur that, unlike `Blur`, does not see what is removed.

    (G x k + e mean) / (G k + e) with the Gaussian G of `Blur`, k 1 where a pixel x is kept, and e = 0.001: the mean colour
    stands where nothing near is kept.

    Args:
        mean: one value for each channel, in [0, 1] units.
        sigma: standard deviation as a share of the longer side.
    """

    mean: tuple[float, ...]
    sigma: float = 0.05

    def __call__(self, pixels: Tensor, removed: Tensor, indices: ArrayLike | None = None) -> Tensor:
        """Replaces the removed pixels; the others stay as they are."""
        pixels = as_float(pixels)
        holes = by_channel(removed, pixels)
        kept, blur, little = (~holes).to(pixels.dtype), Blur(self.sigma), 1e-3
        near = blur.replacement(pixels * kept) + little * colour_like(self.mean, pixels)
        return torch.where(holes, near / (blur.replacement(kept) + little), pixels)


@dataclass(frozen=True)
class RiseBlur:
    """The image, blurred as by RISE: the exact start image of its insertion curves.

    A small kernel, nearly flat since its tails are folded back into it, slides over the image; beyond the border lies
    the normalisation's mean (RISE blurs the normalised image and pads it with zeros, which comes to the same).

    Args:
        normalization_mean: the mean that the model's normalisation subtracts, one value for each channel.
        size: side of the kernel in pixels, odd; RISE's 11 was made for images of 224.
        sigma: standard deviation of the Gaussian in pixels, before its tails are folded back.

    Reference:
        Petsiuk, Das, Saenko: "RISE", arXiv:1806.07421: the authors' `gkern(11, 5)`.

    >>> pixels = torch.zeros(1, 1, 11, 11)
    >>> pixels[0, 0, 5, 5] = 1.0
    >>> blurred = RiseBlur((0.0,)).replacement(pixels)
    >>> round(blurred.sum().item(), 6), round(blurred.min().item(), 4), round(blurred.max().item(), 4)
    (1.0, 0.0077, 0.0088)
    """

    normalization_mean: tuple[float, ...]
    size: int = 11
    sigma: float = 5.0

    def __post_init__(self) -> None:
        if self.size < 1 or self.size % 2 == 0:
            raise InputError(f"size: {self.size} must be an odd number of pixels")
        if not self.sigma > 0:
            raise InputError(f"sigma: {self.sigma} must be above 0, in pixels")

    def replacement(self, pixels: Tensor, indices: ArrayLike | None = None) -> Tensor:
        """The blurred images, (N, C, H, W)."""
        pixels = as_float(pixels)
        mean = colour_like(self.normalization_mean, pixels)
        height, width = pixels.shape[2:]
        rows = torch.from_numpy(_rise_matrix(height, self.size, self.sigma)).to(pixels)
        columns = torch.from_numpy(_rise_matrix(width, self.size, self.sigma)).to(pixels)
        return rows @ (pixels - mean) @ columns.T + mean

    __call__ = replace


@dataclass(frozen=True)
class MaskingBlur:
    """The image, blurred as by the masking-based saliency code: a wide Gaussian, the normalisation's mean beyond the border.

    The whole image is blurred, what is removed included; towards the border it fades to the mean colour.

    Args:
        normalization_mean: the mean that the model's normalisation subtracts, one value for each channel.
        sigma: standard deviation in pixels; cut off at four of them.

    Reference:
        Phang, Park, Geras, arXiv:2010.09750: the authors' `blur` infiller, for images of 224.
    """

    normalization_mean: tuple[float, ...]
    sigma: float = 20.0

    def __post_init__(self) -> None:
        if not self.sigma > 0:
            raise InputError(f"sigma: {self.sigma} must be above 0, in pixels")

    def replacement(self, pixels: Tensor, indices: ArrayLike | None = None) -> Tensor:
        """The blurred images, (N, C, H, W)."""
        pixels = as_float(pixels)
        mean = colour_like(self.normalization_mean, pixels)
        rows, columns = (torch.from_numpy(_cut_gaussian_matrix(n, self.sigma)).to(pixels) for n in pixels.shape[2:])
        return rows @ (pixels - mean) @ columns.T + mean

    __call__ = replace


@functools.lru_cache(maxsize=16)
def _gaussian_matrix(size: int, sigma: float) -> NDArray[np.float64]:
    """(size, size); times a column of samples, it is the blurred column."""
    matrix: NDArray[np.float64] = ndimage.gaussian_filter1d(np.eye(size), sigma, axis=0, mode="reflect")
    return matrix


@functools.lru_cache(maxsize=16)
def _rise_matrix(image: int, size: int, sigma: float) -> NDArray[np.float64]:
    """(image, image); times a column of samples, it is the column blurred by RISE's kernel, zeros beyond the ends.

    The kernel is what a unit impulse becomes in the middle of an array no larger than the kernel; in two dimensions it
    is the product of this one with itself.
    """
    kernel = _gaussian_matrix(size, sigma)[:, size // 2]
    matrix: NDArray[np.float64] = ndimage.correlate1d(np.eye(image), kernel, axis=0, mode="constant")
    return matrix


@functools.lru_cache(maxsize=16)
def _cut_gaussian_matrix(size: int, sigma: float) -> NDArray[np.float64]:
    """(size, size); times a column of samples, it is the column blurred by a Gaussian of four sigmas, zeros beyond."""
    taps = np.arange(-math.ceil(4 * sigma), math.ceil(4 * sigma) + 1)
    kernel = np.exp(-(taps**2) / (2 * sigma**2))
    matrix: NDArray[np.float64] = ndimage.correlate1d(np.eye(size), kernel / kernel.sum(), axis=0, mode="constant")
    return matrix
