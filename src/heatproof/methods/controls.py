"""Maps that look at no model: what an attribution method has to beat, and (with known regions) what it cannot beat.

Factories like the methods, so that they run and are stored in the same way; the model is taken and not used.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from heatproof import seeding
from heatproof.errors import InputError, PluginError
from heatproof.methods import options, rows

RESULTS_VERSION = 1

Regions = Callable[[Any], NDArray[np.bool_] | None]
"""From indices (N,) to the images' known regions (N, H, W), or None where the data set knows none."""


@dataclass(frozen=True)
class Random:
    """Independent uniform values in [0, 1), drawn once for each image from (seed, index).

    Args:
        model: not used.
        seed: the root seed; provided by the stage.
    """

    model: nn.Module
    seed: int = 0

    def __call__(self, images: Tensor, targets: Tensor, *, indices: Tensor | None = None) -> Tensor:
        """Maps (N, H, W), float32, for `images` (N, C, H, W); `targets` (N,) make no difference."""
        rows.check_batch(images, targets)
        drawn = indices.tolist() if indices is not None else [0] * len(images)
        size = images.shape[2:]
        maps = [seeding.generator(self.seed, "random", index).random(size, dtype=np.float32) for index in drawn]
        return torch.from_numpy(np.stack(maps)).to(images.device)


@dataclass(frozen=True)
class Sobel:
    """Edges of the image: responses of the 3 x 3 Sobel kernel (1, 2, 1) x (-1, 0, 1), the edge sample repeated.

    Args:
        model: not used.
        mode: "magnitude": length of the vector of vertical and horizontal response of the mean over channels; maps
            (N, H, W), >= 0. "sia": its horizontal response only, signed. "hooker": the vertical response, smoothed over
            columns and over channels too, as in ROAR's own code; maps (N, C, H, W), signed.

    Reference:
        Hooker, Erhan, Kindermans, Kim: "A benchmark for interpretability methods in deep neural networks",
        NeurIPS 2019, arXiv:1806.10758, section 4.1 ("Sobel edge filter").

    >>> Sobel(nn.Identity())(torch.tensor([[[[0.0, 0.0, 1.0, 1.0]]]]), torch.tensor([0])).tolist()
    [[[0.0, 4.0, 4.0, 0.0]]]
    """

    model: nn.Module
    mode: str = "magnitude"

    def __post_init__(self) -> None:
        options.one_of(self, "mode", self.mode, ("magnitude", "hooker", "sia"))

    def __call__(self, images: Tensor, targets: Tensor) -> Tensor:
        """Maps, float32, of `images` (N, C, H, W), in the units of these; `targets` (N,) make no difference."""
        rows.check_batch(images, targets)
        images = images.detach().float()
        if self.mode == "hooker":
            return _smoothed(_smoothed(_difference(images, 2), 3), 1)
        grey = images.mean(dim=1)
        horizontal = _smoothed(_difference(grey, 2), 1)
        if self.mode == "sia":
            return horizontal
        return torch.hypot(_smoothed(_difference(grey, 1), 2), horizontal)


def _neighbours(values: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    """The value before and the value after each place along an axis; beyond the border the edge is repeated."""
    places = torch.arange(values.shape[axis], device=values.device)
    before, after = (places - 1).clamp(min=0), (places + 1).clamp(max=values.shape[axis] - 1)
    return values.index_select(axis, before), values.index_select(axis, after)


def _difference(values: Tensor, axis: int) -> Tensor:
    before, after = _neighbours(values, axis)
    return after - before


def _smoothed(values: Tensor, axis: int) -> Tensor:
    before, after = _neighbours(values, axis)
    return before + 2 * values + after


@dataclass(frozen=True)
class CentreGaussian:
    """A Gaussian in the middle: where objects tend to be, without looking at the image.

    exp(-((y - (H-1)/2)^2 / (2 (sigma H)^2) + (x - (W-1)/2)^2 / (2 (sigma W)^2))).

    Args:
        model: not used.
        sigma: standard deviation, as a share of each side.

    >>> maps = CentreGaussian(nn.Identity())(torch.zeros(1, 3, 1, 3), torch.tensor([0]))
    >>> [round(value, 4) for value in maps.flatten().tolist()]
    [0.4111, 1.0, 0.4111]
    """

    model: nn.Module
    sigma: float = 0.25

    def __post_init__(self) -> None:
        if not self.sigma > 0:
            raise InputError(f"CentreGaussian: sigma {self.sigma!r} must be above 0")

    def __call__(self, images: Tensor, targets: Tensor) -> Tensor:
        """Maps (N, H, W), float32, in (0, 1], the same for all `images` (N, C, H, W) and `targets` (N,)."""
        rows.check_batch(images, targets)
        down, across = (self._bell(length) for length in images.shape[2:])
        bell = torch.from_numpy(np.outer(down, across).astype(np.float32)).to(images.device)
        return bell.repeat(len(images), 1, 1)

    def _bell(self, length: int) -> NDArray[np.float64]:
        distances = np.arange(length) - (length - 1) / 2
        bell: NDArray[np.float64] = np.exp(-0.5 * (distances / (self.sigma * length)) ** 2)
        return bell


@dataclass(frozen=True)
class Uniform:
    """A constant map of ones: its order is that of the ties alone.

    Args:
        model: not used.
    """

    model: nn.Module

    def __call__(self, images: Tensor, targets: Tensor) -> Tensor:
        """Maps (N, H, W), float32, for `images` (N, C, H, W); `targets` (N,) make no difference."""
        rows.check_batch(images, targets)
        return torch.ones((len(images), *images.shape[2:]), device=images.device)


@dataclass(frozen=True)
class Oracle:
    """The right answer, where a data set knows it: 1 inside the image's region, 0 outside.

    Args:
        model: not used.
        regions: the known regions by index; provided by the stage.

    Raises:
        PluginError: where the data set knows no regions.
    """

    model: nn.Module
    regions: Regions | None = None

    def __post_init__(self) -> None:
        _known(self, self.regions)

    def __call__(self, images: Tensor, targets: Tensor, *, indices: Tensor) -> Tensor:
        """Maps (N, H, W), float32, for `images` (N, C, H, W) at `indices` (N,) of their split."""
        return _regions(self, self.regions, images, targets, indices)


@dataclass(frozen=True)
class AntiOracle:
    """The wrong answer, where a data set knows the right one: 0 inside the image's region, 1 outside.

    Args:
        model: not used.
        regions: the known regions by index; provided by the stage.

    Raises:
        PluginError: where the data set knows no regions.
    """

    model: nn.Module
    regions: Regions | None = None

    def __post_init__(self) -> None:
        _known(self, self.regions)

    def __call__(self, images: Tensor, targets: Tensor, *, indices: Tensor) -> Tensor:
        """Maps (N, H, W), float32, for `images` (N, C, H, W) at `indices` (N,) of their split."""
        return 1 - _regions(self, self.regions, images, targets, indices)


_NO_REGIONS = "{}: the data set knows no regions; leave this control out, or use a data set that does (Planted)"


def _known(control: Oracle | AntiOracle, regions: Regions | None) -> Regions:
    if regions is None:
        raise PluginError(_NO_REGIONS.format(type(control).__name__))
    return regions


def _regions(
    control: Oracle | AntiOracle, regions: Regions | None, images: Tensor, targets: Tensor, indices: Tensor
) -> Tensor:
    rows.check_batch(images, targets)
    found = _known(control, regions)(indices.cpu().numpy())
    if found is None:
        raise PluginError(_NO_REGIONS.format(type(control).__name__))
    maps = torch.from_numpy(np.asarray(found)).to(device=images.device, dtype=torch.float32)
    if maps.shape != (len(images), *images.shape[2:]):
        raise InputError(
            f"{type(control).__name__}: regions of shape {tuple(maps.shape)} for images {tuple(images.shape)}"
        )
    return maps
