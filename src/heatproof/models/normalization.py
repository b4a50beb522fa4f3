"""How pixels become the images that a classifier was trained on. It belongs to the model, not to the data."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from heatproof import checks
from heatproof.errors import InputError, ModelError


@dataclass(frozen=True)
class Normalization:
    """Channel-wise `(pixels - mean) / std`, with pixels in [0, 1].

    Args:
        mean: one value per channel, in units of pixels in [0, 1].
        std: likewise, above 0.

    Raises:
        ModelError: where the lengths differ, or a value is not finite, or a std is not above 0.

    >>> halves = Normalization(mean=(0.5,), std=(0.25,))
    >>> halves(torch.tensor([[[[0.0, 0.5, 1.0]]]]))
    tensor([[[[-2.,  0.,  2.]]]])
    >>> halves.black
    (-2.0,)
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        # Lists and arrays (from YAML, JSON, NumPy) are taken too; stored as tuples of floats, so that equality and hash work.
        object.__setattr__(self, "mean", tuple(float(value) for value in self.mean))
        object.__setattr__(self, "std", tuple(float(value) for value in self.std))
        if len(self.mean) != len(self.std) or not self.mean:
            raise ModelError(
                f"normalization: {len(self.mean)} means and {len(self.std)} stds; give one of each per channel"
            )
        if not all(math.isfinite(value) for value in self.mean + self.std) or min(self.std) <= 0:
            raise ModelError(f"normalization: mean {self.mean}, std {self.std}: must be finite, each std above 0")

    @property
    def black(self) -> tuple[float, ...]:
        """What a black pixel (0 in every channel) becomes: one value per channel."""
        return tuple(-mean / std for mean, std in zip(self.mean, self.std, strict=True))

    @property
    def plain(self) -> dict[str, list[float]]:
        """As JSON files hold it."""
        return {"mean": list(self.mean), "std": list(self.std)}

    def __call__(self, pixels: Tensor) -> Tensor:
        """Images for the model, (N, C, H, W), from float pixels in [0, 1] of the same shape; dtype and device stay."""
        checks.shapes(f"N {len(self.mean)} H W", pixels=pixels)
        if not pixels.is_floating_point():
            raise InputError(f"pixels: dtype {pixels.dtype}; expected floating point in [0, 1] (divide uint8 by 255)")
        return (pixels - self._per_channel(self.mean, pixels)) / self._per_channel(self.std, pixels)

    def pixels(self, images: Tensor) -> Tensor:
        """The pixels that these images, (N, C, H, W), were made from: undoes `__call__`, up to rounding.

        >>> Normalization(mean=(0.5,), std=(0.25,)).pixels(torch.tensor([[[[-2.0, 0.0, 2.0]]]]))
        tensor([[[[0.0000, 0.5000, 1.0000]]]])
        """
        checks.shapes(f"N {len(self.mean)} H W", images=images)
        return images * self._per_channel(self.std, images) + self._per_channel(self.mean, images)

    @staticmethod
    def _per_channel(values: tuple[float, ...], like: Tensor) -> Tensor:
        return torch.tensor(values, dtype=like.dtype, device=like.device)[:, None, None]
