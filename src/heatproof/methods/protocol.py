"""What an attribution method is: the types, for readers and for the type checker."""

from collections.abc import Callable
from typing import Any, Protocol

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


def attribute_of(target: Any) -> Callable[..., Any] | None:
    """The function `attribute(inputs, target=..., **options)` of a class or object in Captum's form; None of any other.

    >>> class Saliency:
    ...     def attribute(self, inputs, target=None): ...
    >>> attribute_of(Saliency).__name__
    'attribute'
    """
    if not isinstance(target, type) and callable(target):
        return None
    attribute = getattr(target, "attribute", None)
    return attribute if callable(attribute) and "__call__" not in dir(target) else None
