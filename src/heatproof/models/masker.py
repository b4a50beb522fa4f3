"""Maskers: small networks that read a classifier's activations and say, in one pass, which pixels count.

A masker looks at named layers of a classifier, the taps, as (N, C, h, w), whatever their layout (`models.layout`). Each tap goes through a 1 x 1 convolution, batch norm and ReLU, is enlarged to the mask's own grid, and a
3 x 3 convolution over all of them gives one logit for each cell:

    taps -> conv 1x1, BN, ReLU -> enlarge -> concatenate -> conv 3x3 -> sigmoid -> enlarge to the image

    form = discovered(classifier, images, MaskerForm(taps=("layer3", "layer4")))
    masker = Masker(form)
    with tapped(form.layouts_in(classifier), images) as activations:
        classifier(images)
    masks = masker(activations(), images.shape[2:])                     # (N, H, W), in (0, 1)

Names of parameters are those of the published maskers, so that their checkpoints fit as they are.

Reference:
    Phang, Park, Geras, "Investigating and Simplifying Masking-based Saliency Methods for Model Interpretability",
    arXiv:2010.09750.
"""

import dataclasses
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from heatproof import checks
from heatproof.errors import InputError, ModelError
from heatproof.models.hooks import frozen_eval, recorded, recorded_output
from heatproof.models.layout import Layouts, check_layout

logger = logging.getLogger(__name__)

RESULTS_VERSION = 2

CLASS_CHANNELS = 64
_TINY = 1e-8

Upsample = Literal["nearest", "bilinear"]
Gumbel = Literal["hard", "soft", "sigmoid", "logits"]
Activations = Callable[[], list[Tensor]]


@dataclass(frozen=True)
class MaskerForm:
    """All that a masker is built from.

    Args:
        taps: names of the classifier's layers.
        channels: of each tap; `discovered` finds them.
        indices: of each tap's branch in the names of parameters, `conv1x1_<index>`; 0 is a tap that goes in as it is,
            unless it is the only one. Empty: 1, 2, ...
        width: channels of each branch.
        stride: pixels of the image for one cell of the mask, along each axis.
        upsample: from cells to pixels, "nearest" or "bilinear".
        takes_area: whether a wanted area, a number for each image, is one more channel of each tap.
        classes: number of classes of a masker that is told the class; None for one that is not.
        gumbel: how a head with Gumbel noise works: "hard" and "soft" draw binary masks in training and cut the logits at 0
            afterwards, "sigmoid" and "logits" draw nothing; None for the plain sigmoid.
        temperature: of the Gumbel noise.
        layouts: of each tap, for where it is not found, see `models.layout.Layouts`. Empty: all are found.

    Raises:
        InputError: naming the option.
    """

    taps: tuple[str, ...]
    channels: tuple[int, ...] = ()
    indices: tuple[int, ...] = ()
    width: int = 64
    stride: int = 4
    upsample: Upsample = "nearest"
    takes_area: bool = False
    classes: int | None = None
    gumbel: Gumbel | None = None
    temperature: float = 0.1
    layouts: tuple[str | None, ...] = ()

    def __post_init__(self) -> None:
        for name in ("taps", "channels", "indices", "layouts"):  # lists, from a file
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if not self.indices:
            object.__setattr__(self, "indices", tuple(range(1, len(self.taps) + 1)))
        if not self.layouts:
            object.__setattr__(self, "layouts", (None,) * len(self.taps))
        if not self.taps or len(set(self.taps)) < len(self.taps):
            raise InputError(f"masker: taps {list(self.taps)}: name one layer or more, each once")
        if len(self.indices) != len(self.taps) or len(self.channels) not in (0, len(self.taps)):
            raise InputError(
                f"masker: {len(self.taps)} taps, {len(self.channels)} channels, {len(self.indices)} indices; one each"
            )
        if len(self.layouts) != len(self.taps):
            raise InputError(f"masker: {len(self.taps)} taps, {len(self.layouts)} layouts; one each")
        for tap, layout in zip(self.taps, self.layouts, strict=True):
            check_layout(f"masker: tap {tap!r}", layout)
        for name, known in (
            ("upsample", ("nearest", "bilinear")),
            ("gumbel", (None, "hard", "soft", "sigmoid", "logits")),
        ):
            if getattr(self, name) not in known:
                raise InputError(f"masker: {name} {getattr(self, name)!r}: must be one of {', '.join(map(str, known))}")
        checks.integer("masker: width", self.width, 1, 10**6)
        checks.integer("masker: stride", self.stride, 1, 10**6)
        if self.temperature <= 0:
            raise InputError(f"masker: temperature {self.temperature!r}: must be above 0")

    @property
    def draws_noise(self) -> bool:
        """Whether training needs uniform noise for each cell."""
        return self.gumbel in ("hard", "soft")

    def layouts_in(self, classifier: nn.Module) -> Layouts:
        """The layouts of the taps in a classifier.

        Raises:
            ModelError: there is no such layer (naming the nearest).
        """
        return Layouts(classifier, dict(zip(self.taps, self.layouts, strict=True)))

    def grid(self, size: Sequence[int]) -> tuple[int, int]:
        """Rows and columns of cells for an image of `size` (H, W).

        >>> MaskerForm(taps=("a",)).grid((224, 30))
        (56, 8)
        """
        height, width = size
        return math.ceil(height / self.stride), math.ceil(width / self.stride)


class Masker(nn.Module):
    """The network: activations in, masks out.

    Args:
        form: what it is built from; its channels are known.

    >>> masker = Masker(MaskerForm(taps=("a", "b"), channels=(8, 4))).eval()
    >>> masker([torch.zeros(2, 8, 4, 4), torch.zeros(2, 4, 2, 2)], (16, 16)).shape
    torch.Size([2, 16, 16])
    """

    class_module: nn.Module | None

    def __init__(self, form: MaskerForm):
        super().__init__()
        if not form.channels:
            raise InputError("masker: the channels of its taps are not known; use models.masker.discovered")
        self.form = form
        told = form.takes_area + (CLASS_CHANNELS if form.classes is not None else 0)
        inputs = 0
        for index, channels in zip(form.indices, form.channels, strict=True):
            if self._is_raw(index):
                inputs += channels + told
            else:
                self.add_module(f"conv1x1_{index}", _branch(channels + told, form.width))
                inputs += form.width
        conv = _conv(inputs, 1, 3)
        self.final = nn.Sequential(conv) if form.gumbel is None else nn.ModuleDict({"conv": conv})
        self.class_module = None if form.classes is None else _ClassChannels(form.classes)

    def forward(
        self,
        activations: Sequence[Tensor],
        size: Sequence[int],
        *,
        areas: Tensor | None = None,
        classes: Tensor | None = None,
        noise: Tensor | None = None,
    ) -> Tensor:
        """Masks (N, H, W) of images of `size` (H, W); in [0, 1] unless the Gumbel head gives logits.

        Args:
            activations: of each tap, (N, C, h, w).
            size: height and width of the images.
            areas: (N,) wanted shares of the image, where the form takes them.
            classes: (N,) where the form takes them.
            noise: uniform in [0, 1), (N, h, w) as `form.grid(size)`; in training of a form that draws noise.
        """
        logits = self.logits(activations, size, areas=areas, classes=classes)
        return self.enlarged(self.masked(logits, noise), size)

    def logits(
        self,
        activations: Sequence[Tensor],
        size: Sequence[int],
        *,
        areas: Tensor | None = None,
        classes: Tensor | None = None,
    ) -> Tensor:
        """The logit of each cell, (N, h, w)."""
        grid = self.form.grid(size)
        told = self._told(len(activations[0]), areas, classes)
        head, first = self._head, 0
        total: Tensor | None = None
        for index, values in zip(self.form.indices, self._checked(activations), strict=True):
            if told is not None:
                values = torch.cat([values, told.to(values.dtype).expand(-1, -1, *values.shape[2:])], dim=1)
            if not self._is_raw(index):
                values = self.get_submodule(f"conv1x1_{index}")(values)
            # Enlarging is linear: the 3 x 3 kernel's nine products come first, so that nine maps are enlarged, not all channels.
            kernel = head.weight[0, first : first + values.shape[1]].flatten(1).T[:, :, None, None]  # (9, C, 1, 1)
            first += values.shape[1]
            products = functional.conv2d(values, kernel)
            if products.shape[2:] != grid:
                products = functional.interpolate(products, size=grid, mode="bilinear", align_corners=False)
            total = products if total is None else total + products
        assert total is not None
        shifts = torch.eye(9, dtype=total.dtype, device=total.device).reshape(1, 9, 3, 3)
        logits = functional.conv2d(total, shifts, padding=1)
        return (logits if head.bias is None else logits + head.bias)[:, 0]

    def masked(self, logits: Tensor, noise: Tensor | None = None) -> Tensor:
        """What the head makes of logits (N, h, w)."""
        if self.form.gumbel in (None, "sigmoid"):
            return logits.sigmoid()
        if self.form.gumbel == "logits":
            return logits
        if not self.training:
            return (logits > 0).to(logits.dtype)
        if noise is None:
            raise InputError("masker: a Gumbel head needs noise while it is trained")
        return binary_gumbel(logits, noise, self.form.temperature, hard=self.form.gumbel == "hard")

    def enlarged(self, cells: Tensor, size: Sequence[int]) -> Tensor:
        """Cells (N, h, w) at the size of the image, (N, H, W)."""
        height, width = size
        corners = False if self.form.upsample == "bilinear" else None
        # Cells that reach over the frame are cut off, so that a cell is as large at the border as elsewhere.
        full = tuple(side * self.form.stride for side in cells.shape[1:])
        large = functional.interpolate(cells[:, None], size=full, mode=self.form.upsample, align_corners=corners)
        return large[:, 0, :height, :width]

    @property
    def _head(self) -> nn.Conv2d:
        conv = self.final["conv"] if isinstance(self.final, nn.ModuleDict) else self.final[0]
        assert isinstance(conv, nn.Conv2d)
        return conv

    def _checked(self, activations: Sequence[Tensor]) -> Sequence[Tensor]:
        for name, wanted, values in zip(self.form.taps, self.form.channels, activations, strict=True):
            if values.shape[1] != wanted:
                raise ModelError(
                    f"masker: it reads {wanted} channels of layer {name!r}, which gives {values.shape[1]}: it is of another classifier"
                )
        if torch.is_autocast_enabled(activations[0].device.type):
            return activations
        return [values.to(self._head.weight.dtype) for values in activations]  # a classifier of half precision

    def _is_raw(self, index: int) -> bool:
        return index == 0 and len(self.form.taps) > 1

    def _told(self, count: int, areas: Tensor | None, classes: Tensor | None) -> Tensor | None:
        """Constant channels (N, k, 1, 1): the area, then the class."""
        channels = []
        if self.form.takes_area:
            if areas is None:
                raise InputError("masker: it was trained with a wanted area; give one (use_p)")
            channels.append(areas.reshape(-1, 1).expand(count, 1))
        if self.class_module is not None and self.form.classes is not None:
            if classes is None:
                raise InputError("masker: it was trained with the class; give one for each image")
            if len(classes) and not 0 <= int(classes.min()) <= int(classes.max()) < self.form.classes:
                wrong = next(int(label) for label in classes if not 0 <= label < self.form.classes)
                raise InputError(f"masker: class {wrong}: it knows {self.form.classes} (0 to {self.form.classes - 1})")
            channels.append(self.class_module(classes))
        return torch.cat(channels, dim=1)[:, :, None, None] if channels else None


def binary_gumbel(logits: Tensor, noise: Tensor, temperature: float, *, hard: bool) -> Tensor:
    """Draws from a binary distribution, with a gradient: sigmoid((logit + ln u - ln(1 - u)) / temperature).

    Args:
        logits: any shape.
        noise: u, uniform in [0, 1), of the same shape.
        temperature: the lower, the closer to 0 and 1.
        hard: rounds to 0 or 1; the gradient is that of the unrounded value (straight-through).

    Reference:
        Jang, Gu, Poole, arXiv:1611.01144; Maddison, Mnih, Teh, arXiv:1611.00712.

    >>> binary_gumbel(torch.tensor([2.0, -2.0]), torch.tensor([0.5, 0.5]), 0.1, hard=True)
    tensor([1., 0.])
    """
    soft = ((logits + (noise + _TINY).log() - (1 - noise + _TINY).log()) / temperature).sigmoid()
    if not hard:
        return soft
    return (soft > 0.5).to(soft.dtype) + soft - soft.detach()


class _ClassChannels(nn.Module):
    def __init__(self, classes: int):
        super().__init__()
        self.embedding = nn.Embedding(classes, CLASS_CHANNELS)

    def forward(self, classes: Tensor) -> Tensor:
        return self.embedding(classes)  # type: ignore[no-any-return]


def _branch(inputs: int, width: int) -> nn.Sequential:
    return nn.Sequential(_conv(inputs, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU())


def _conv(inputs: int, outputs: int, side: int, *, bias: bool = True) -> nn.Conv2d:
    conv = nn.Conv2d(inputs, outputs, side, padding=side // 2, bias=bias)
    nn.init.normal_(conv.weight, std=math.sqrt(2 / (side * side * outputs)))
    return conv


# --- what it reads


@contextmanager
def tapped(layouts: Layouts, images: Tensor) -> Iterator[Activations]:
    """Records what layers give while a classifier runs inside the block.

    Args:
        layouts: the classifier and its layers.
        images: (N, C, H, W), of the size that it runs on.

    Yields:
        A function that returns, after a forward pass, each tap's activations (N, C, h, w), detached.

    Raises:
        ModelError: a layer does not run, or what it gives is no grid.
    """
    layout_of = layouts(images)
    with ExitStack() as stack:
        outputs = {tap: stack.enter_context(recorded(layouts.model, tap)) for tap in layouts.layers}
        yield lambda: [layout_of[tap](recorded_output(tap, found).detach()) for tap, found in outputs.items()]


def discovered(classifier: nn.Module, images: Tensor, form: MaskerForm) -> MaskerForm:
    """The form with the channels of its taps, found by a forward pass of `images` (N, C, H, W)."""
    taps = tapped(form.layouts_in(classifier), images)
    with frozen_eval(classifier), torch.no_grad(), taps as activations:
        classifier(images)
        return dataclasses.replace(form, channels=tuple(values.shape[1] for values in activations()))


# --- files


# --- published checkpoints
