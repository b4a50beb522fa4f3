"""What a fill is: `fills` says what all of them have in common."""

from typing import Protocol, runtime_checkable

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from heatproof.removal.orders import First
from heatproof.removal.pixels import as_float, by_channel


class Fill(Protocol):
    """Replaces removed pixels."""

    def __call__(self, pixels: Tensor, removed: Tensor, indices: ArrayLike | None = None) -> Tensor:
        """Pixels (N, C, H, W) float, removed (N, H, W) or (N, C, H, W) bool, indices (N,): pixels, filled."""
        ...


@runtime_checkable
class ByRemoval(Protocol):
    """In the place of a fill: one for each removed fraction and end of the order, such as images that were stored."""

    def at(self, fraction: float, first: First) -> Fill:
        """The fill where this fraction goes, from this end."""
        ...


@runtime_checkable
class Replacing(Protocol):
    """A fill whose new value of a pixel does not depend on which pixels are removed."""

    def replacement(self, pixels: Tensor, indices: ArrayLike | None = None) -> Tensor:
        """What each pixel (N, C, H, W) would become; axes of N, H and W may have size 1."""
        ...


def replace(self: Replacing, pixels: Tensor, removed: Tensor, indices: ArrayLike | None = None) -> Tensor:
    """Replaces the removed pixels; the others stay as they are."""
    pixels = as_float(pixels)
    return torch.where(by_channel(removed, pixels), self.replacement(pixels, indices), pixels)
