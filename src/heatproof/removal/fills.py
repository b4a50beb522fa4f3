"""What replaces removed pixels.

A fill is a frozen dataclass, called with pixels, a mask and, where it draws, the images' indices; it returns a new
tensor on the same device, in which kept pixels are bit for bit what they were. All fills work in [0, 1] pixel space,
before normalisation, for training, validation and test alike, and nothing is rounded to 8 bits.

Most fills know what a pixel would become before they know which ones go: they have a method `replacement`, and
whoever removes many fractions of one image asks for it once.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from heatproof import plugins, seeding
from heatproof.errors import InputError, PluginError, nearest
from heatproof.models import Normalization
from heatproof.removal.blurs import Blur, KeptBlur, MaskingBlur, RiseBlur
from heatproof.removal.inpainting import CaGan, Cnn, DfNet, Generating, LearnedInfill, NormalisedInfill, PartialConv
from heatproof.removal.linear import impute_linear
from heatproof.removal.pixels import as_float, by_channel, colour_like, drawn
from heatproof.removal.protocol import Fill, Replacing, replace
from heatproof.removal.telea import Telea

RESULTS_VERSION = 2  # to be raised when numbers change, also by a change in linear or pixels


@dataclass(frozen=True)
class Mean:
    """The mean colour of the data set's training split: ROAR's fill.

    Args:
        mean: one value for each channel, in [0, 1] units.

    Reference:
        Hooker et al., arXiv:1806.10758.

    >>> pixels, removed = torch.zeros(1, 1, 1, 2), torch.tensor([[[True, False]]])
    >>> Mean((0.5,))(pixels, removed)
    tensor([[[[0.5000, 0.0000]]]])
    """

    mean: tuple[float, ...]

    def replacement(self, pixels: Tensor, indices: ArrayLike | None = None) -> Tensor:
        """The mean colour, (1, C, 1, 1)."""
        return colour_like(self.mean, pixels)

    __call__ = replace


@dataclass(frozen=True)
class Black:
    """Zero in pixel space."""

    def replacement(self, pixels: Tensor, indices: ArrayLike | None = None) -> Tensor:
        """Zero, (1, 1, 1, 1)."""
        return colour_like((0.0,), pixels)

    __call__ = replace


@dataclass(frozen=True)
class ZeroNormalised:
    """Zero in the model's normalised space: the mean of its normalisation. The fill of the ROAR code's LeRF and MoRF.

    Args:
        normalization_mean: the mean that the model's normalisation subtracts, one value for each channel.
    """

    normalization_mean: tuple[float, ...]

    def replacement(self, pixels: Tensor, indices: ArrayLike | None = None) -> Tensor:
        """The normalisation's mean, (1, C, 1, 1)."""
        return colour_like(self.normalization_mean, pixels)

    __call__ = replace


@dataclass(frozen=True)
class ImageMean:
    """The mean colour of each image, its removed pixels included, as in ROAD's fixed fill.

    It gives away a little of what is removed; in exchange, the fill of an image is the same at all fractions.

    Reference:
        Rong et al., arXiv:2202.00449: the channel mean imputer of the authors' code.
    """

    def replacement(self, pixels: Tensor, indices: ArrayLike | None = None) -> Tensor:
        """The mean of each image's channels, (N, C, 1, 1)."""
        return as_float(pixels).mean(dim=(2, 3), keepdim=True)

    __call__ = replace


@dataclass(frozen=True)
class Noise:
    """Uniform noise in [0, 1), drawn once for each image: at every fraction a pixel gets the same noise.

    Args:
        seed: root seed; an image's noise depends on it and on the image's index alone.
    """

    seed: int = 0

    def replacement(self, pixels: Tensor, indices: ArrayLike | None = None) -> Tensor:
        """The noise of each image, (N, C, H, W)."""
        return drawn(pixels, indices, lambda index, size: seeding.generator(self.seed, "noise", index).random(size))

    __call__ = replace


@dataclass(frozen=True)
class NoisyLinear:
    """ROAD's imputation: neighbours' weighted mean, solved for all removed pixels at once, plus a little noise.

    Unlike a constant it does not draw the outline of what was removed, so that the mask's shape leaks less.

    Args:
        mean: one value for each channel, used where nothing is left of an image.
        noise: standard deviation of the noise, in [0, 1] units.
        seed: root seed; an image's noise depends on it and on the image's index alone.

    Reference:
        Rong et al., arXiv:2202.00449. The system is in `heatproof.removal.linear`.
    """

    mean: tuple[float, ...]
    noise: float = 0.01
    seed: int = 0

    def __call__(self, pixels: Tensor, removed: Tensor, indices: ArrayLike | None = None) -> Tensor:
        """Replaces the removed pixels; the others stay as they are."""
        return impute_linear(pixels, removed, self.noise, mean=self.mean, seed=self.seed, indices=indices)


@dataclass(frozen=True)
class FunctionFill:
    """A user's function `(pixels, removed, **options) -> pixels`, which may ask for `indices` by name.

    What it returns is used for the removed pixels only.
    """

    function: Callable[..., Tensor]
    options: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self, pixels: Tensor, removed: Tensor, indices: ArrayLike | None = None) -> Tensor:
        """Replaces the removed pixels; the others stay as they are."""
        pixels = as_float(pixels)
        asked = plugins.given(self.function, {"indices": indices})
        # The function gets copies: the caller's tensors stay untouched whatever it does to them.
        filled = self.function(pixels.clone(), removed.clone(), **self.options, **asked)
        return torch.where(by_channel(removed, pixels), filled, pixels)


@dataclass(frozen=True)
class WholePictures:
    """Gives any fill the `generate` that fills by networks have: what each pixel becomes, for holes that may be soft.

    A fill that does not look at the hole is asked for all pixels at once. One that does look at it, such as `Telea`, takes
    as removed what the mask removes by more than half; elsewhere it leaves the pixels as they are.

    Args:
        fill: which.
    """

    fill: Fill

    def generate(self, pixels: Tensor, holes: Tensor, indices: ArrayLike | None = None) -> Tensor:
        """Pictures of the shape of the pixels (N, C, H, W), for holes (N, 1, H, W) in [0, 1], 1 in a hole."""
        if isinstance(self.fill, Replacing):
            return self.fill.replacement(pixels, indices).expand_as(pixels)
        return self.fill(pixels, holes[:, 0] > 0.5, indices)


FILLS: dict[str, Callable[..., Fill]] = {
    "mean": Mean,
    "zero_normalised": ZeroNormalised,
    "black": Black,
    "image_mean": ImageMean,
    "blur": Blur,
    "kept_blur": KeptBlur,
    "rise_blur": RiseBlur,
    "masking_blur": MaskingBlur,
    "noise": Noise,
    "noisy_linear": NoisyLinear,
    "telea": Telea,
}
GENERATIVE: dict[str, Callable[..., Fill]] = {
    "CaGan": CaGan,
    "DfNet": DfNet,
    "PartialConv": PartialConv,
    "Cnn": Cnn,
    "LearnedInfill": LearnedInfill,
}
"""Fills by networks."""
_SPELLINGS = {plugins.plain(name): name for name in FILLS | GENERATIVE} | {"learned": "LearnedInfill"}


def fill_name(how: str) -> str | None:
    """The name in `FILLS` or `GENERATIVE` of a fill that is named in any of its spellings; None for a fill of the user's own.

    >>> fill_name("ca_gan"), fill_name("rise-blur"), fill_name("heatproof.removal.fills.Mean"), fill_name("mine.Fill")
    ('CaGan', 'rise_blur', 'mean', None)
    """
    if how.startswith("heatproof."):
        target = plugins.resolve(how)
        return next((name for name, fill in (FILLS | GENERATIVE).items() if fill is target), None)
    return _SPELLINGS.get(plugins.plain(how))


def named_fill(how: str) -> Callable[..., Any]:
    """The class or function behind a fill's name or dotted path.

    Raises:
        PluginError: the name is not known (naming the nearest), or the path leads nowhere.
    """
    known = FILLS | GENERATIVE
    if (name := fill_name(how)) is not None:
        return known[name]
    if "." not in how:
        raise PluginError(f"fill: there is no {how!r}{nearest(how, known)}")
    target = plugins.resolve(how)
    if not callable(target):
        raise PluginError(f"{how}: is not callable; expected a class or a function")
    return target  # type: ignore[no-any-return]


def build_fill(
    how: str,
    *,
    mean: tuple[float, ...] | None = None,
    normalization_mean: tuple[float, ...] | None = None,
    seed: int | None = None,
    or_generates: bool = False,
    **options: Any,
) -> Fill:
    """The fill of a name or of a dotted path, its options checked.

    Args:
        how: a name of `FILLS` or `GENERATIVE`, with or without dashes or underscores, or the dotted path of a class or function that returns a fill, or of a function
            `(pixels, removed, **options) -> pixels`.
        mean: mean colour of the data set's training split, for fills that take it.
        normalization_mean: mean of the model's normalisation, for fills that take it.
        seed: root seed, for fills that draw.
        or_generates: whether an infiller will do as well, which has `generate(images, hole)` and cannot be called.
        options: further options of the fill.

    Raises:
        PluginError: the name is not known (naming the nearest), or the options do not fit.

    >>> build_fill("mean", mean=(0.5,), seed=3)
    Mean(mean=(0.5,))
    >>> build_fill("blurr")
    Traceback (most recent call last):
    heatproof.errors.PluginError: fill: there is no 'blurr'; did you mean 'blur'?
    """
    target: Any = named_fill(how)
    given = {"mean": _plain(mean), "normalization_mean": _plain(normalization_mean), "seed": seed}
    provided = {name: value for name, value in given.items() if value is not None}
    is_function = callable(target) and not isinstance(target, type) and plugins.wants(target, "pixels")
    if is_function:
        plugins.check_options(how, target, options, positional=2, provided=(*provided, "indices"))
        return FunctionFill(target, options | plugins.given(target, provided))
    try:
        made: Any = plugins.build(how, target, options, provided=provided)
    except TypeError as error:
        raise PluginError(f"{how}: cannot be made with {options}: {error}") from error
    if not callable(made) and not (or_generates and hasattr(made, "generate")):
        raise PluginError(
            f"{how}: is no fill, as it cannot be called with (pixels, removed, indices); name one of {', '.join(FILLS | GENERATIVE)}"
        )
    fill: Fill = made
    return fill


def fill(
    pixels: Tensor | NDArray[Any],
    removed: Tensor | NDArray[np.bool_],
    how: str | Fill,
    *,
    indices: ArrayLike | None = None,
    **options: Any,
) -> Tensor:
    """Replaces removed pixels, in one call.

    Args:
        pixels: (N, C, H, W), float in [0, 1] or uint8 in [0, 255].
        removed: (N, H, W), all channels of a pixel go; or (N, C, H, W).
        how: a fill, or what `build_fill` takes, with its options.
        indices: (N,) index of each image in its split, for fills that draw.
        options: options of the fill, where `how` is a name.

    Returns:
        (N, C, H, W) float, a new tensor on the same device.

    >>> fill(np.float32([[[[0.2, 0.4]]]]), np.array([[[True, False]]]), "black")
    tensor([[[[0.0000, 0.4000]]]])
    """
    pixels = torch.as_tensor(pixels)
    if isinstance(how, str):
        how = build_fill(how, **options)
    elif options:
        raise InputError(f"fill: options {sorted(options)} given beside a finished fill; set them in the fill itself")
    return how(pixels, torch.as_tensor(removed, device=pixels.device), indices)


def generating(fill: Fill | Generating) -> Generating:
    """A fill as something that makes whole pictures: itself where it has `generate`, else in `WholePictures`."""
    return fill if isinstance(fill, Generating) else WholePictures(fill)


def normalised_infill(infill: str, normalization: Normalization, **options: Any) -> NormalisedInfill:
    """A fill by a network, by its name in `GENERATIVE`, with `generate(images, hole)` for normalised images.

    Raises:
        PluginError: the name is not known, or the options do not fit.
    """
    if fill_name(infill) not in GENERATIVE:
        raise PluginError(f"infill: there is no {infill!r}{nearest(infill, GENERATIVE)}")
    built: Any = build_fill(infill, **options)
    return NormalisedInfill(built, normalization)


def _plain(colour: ArrayLike | None) -> tuple[float, ...] | None:
    return None if colour is None else tuple(np.asarray(colour, dtype=np.float64).reshape(-1).tolist())
