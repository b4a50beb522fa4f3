"""What an attribution method is: the types, for readers and for the type checker."""

from typing import Protocol

from torch import Tensor


class Method(Protocol):
    """What a factory `Name(model, **options)` gives back: maps for a batch of images.

    The model and the caller's tensors are left as they were, and a batch gives the same maps as its images one by one.
    """

    def __call__(self, images: Tensor, targets: Tensor) -> Tensor:
        """Explains the logit of `targets` (N,) int64 for `images` (N, C, H, W), normalised for the model.

        Returns:
            (N, H, W) or (N, C, H, W), float32, detached, on the device of the images.
        """


class IndexedMethod(Protocol):
    """A method whose map depends on which image it is, because it draws for it or looks something up."""

    def __call__(self, images: Tensor, targets: Tensor, *, indices: Tensor | None = None) -> Tensor:
        """As `Method`; `indices` (N,) int64 are the images' positions in their split.

        Where they are None, each image draws as image 0 does, so that a batch still equals its images one by one.
        """
