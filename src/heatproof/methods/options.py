"""Values of options, checked when a method is built: before any image is loaded."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from heatproof.errors import InputError, PluginError, nearest
from heatproof.models.normalization import Normalization

Baseline = float | Sequence[float] | Literal["black"]


def one_of(method: object, option: str, value: object, known: Collection[str]) -> None:
    """Checks that an option has one of the known values.

    Raises:
        InputError: naming the nearest.
    """
    if value not in known:
        raise InputError(f"{type(method).__name__}: {option} {value!r} is unknown{nearest(str(value), known)}")


def at_least(method: object, minimum: float, **options: float | None) -> None:
    """Checks that each option is at least `minimum`; None is left alone.

    Raises:
        InputError: naming the first that is not.
    """
    for option, value in options.items():
        if value is not None and not (isinstance(value, int | float) and value >= minimum):
            raise InputError(f"{type(method).__name__}: {option} {value!r} must be a number, {minimum} or more")


@dataclass(frozen=True)
class BaselineImage:
    """The image without information, from which integrated gradients start and with which occlusion covers.

    Args:
        value: in units of normalised images: one number, one per channel, or "black" (a zero pixel, normalised).
        normalization: how the model's images were made from pixels; needed for "black".

    >>> BaselineImage([1.0, 2.0])(torch.zeros(5, 2, 4, 4)).shape
    torch.Size([1, 2, 1, 1])
    """

    value: Baseline
    normalization: Normalization | None = None

    def __post_init__(self) -> None:
        if self.value == "black" and self.normalization is None:
            raise PluginError("baseline 'black' needs the model's normalization; pass normalization=..., or a number")
        if isinstance(self.value, str) and self.value != "black":
            raise InputError(f"baseline {self.value!r} is unknown; use a number, one number per channel, or 'black'")

    def __call__(self, images: Tensor) -> Tensor:
        """The baseline, (1, C, 1, 1), with the dtype and device of `images` (N, C, H, W)."""
        value = self.value
        if value == "black" and self.normalization is not None:
            value = self.normalization.black
        channels = images.shape[1]
        values = [float(value)] * channels if isinstance(value, int | float) else [float(v) for v in value]
        if len(values) != channels:
            raise InputError(f"baseline: {len(values)} values for images of {channels} channels; give one per channel")
        return torch.tensor(values, dtype=images.dtype, device=images.device)[None, :, None, None]


def in_double(values: Tensor) -> Tensor:
    """The values in float64, for small exact linear algebra; on the CPU where the device has no float64."""
    return (values.cpu() if values.device.type == "mps" else values).double()
