"""Attribution by changing the image and looking at the output. No gradients, so any model will do.

Each class is a factory: built with a model and options, called with `(images, targets)`; maps are (N, H, W). All
variants of all images of the batch run in one stream of forward batches of `rows_per_forward` rows.
"""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from heatproof import seeding
from heatproof.errors import InputError
from heatproof.methods import options, rows
from heatproof.methods.options import Baseline, BaselineImage
from heatproof.methods.superpixels import (
    Superpixels,
    drawn_coalitions,
    lime_coefficients,
    painted,
    shapley_values,
    superpixels_of,
)
from heatproof.methods.variants import scores_of_variants
from heatproof.models.normalization import Normalization

RESULTS_VERSION = 1  # to be raised when numbers change, also in rows, rules, folding, variants or superpixels


class Window(NamedTuple):
    """A rectangle of pixels."""

    rows: slice
    columns: slice


def windows(size: tuple[int, int], window: tuple[int, int], stride: tuple[int, int]) -> list[Window]:
    """Sliding windows that cover an image: ceil((size - window) / stride) + 1 on each axis, the last cut at the border.

    >>> [w.columns for w in windows((1, 10), (1, 4), (1, 4))]
    [slice(0, 4, None), slice(4, 8, None), slice(8, 10, None)]
    """
    starts = [
        [step * stride[axis] for step in range(math.ceil((size[axis] - window[axis]) / stride[axis]) + 1)]
        for axis in (0, 1)
    ]
    return [
        Window(slice(top, min(top + window[0], size[0])), slice(left, min(left + window[1], size[1])))
        for top in starts[0]
        for left in starts[1]
    ]


@dataclass(frozen=True)
class Occlusion:
    """How much the target's logit falls when a window is covered: the mean over the windows that hold a pixel.

    Args:
        model: classifier, (N, C, H, W) -> (N, K) logits.
        window: height and width of the window in pixels, one number or two; None: an eighth of each side.
        stride: step of the window in pixels, one number or two; None: half the window.
        baseline: what covers, in units of normalised images: one number (0 is the mean colour), one per channel,
            or "black".
        normalization: the model's; needed for the black baseline, provided by the stage.
        rows_per_forward: covered images in one forward pass; the memory knob.

    Reference:
        Zeiler, Fergus: "Visualizing and understanding convolutional networks", ECCV 2014, arXiv:1311.2901.

    >>> model = nn.Flatten()  # logit k is pixel k
    >>> Occlusion(model, window=1, stride=1)(torch.tensor([[[[5.0, 7.0]]]]), torch.tensor([1])).tolist()
    [[[0.0, 7.0]]]
    """

    model: nn.Module
    window: int | Sequence[int] | None = None
    stride: int | Sequence[int] | None = None
    baseline: Baseline = 0.0
    normalization: Normalization | None = None
    rows_per_forward: int | None = None

    def __post_init__(self) -> None:
        BaselineImage(self.baseline, self.normalization)
        options.at_least(self, 1, rows_per_forward=self.rows_per_forward)
        for option in ("window", "stride"):
            for length in _pair(getattr(self, option), (1, 1)):
                options.at_least(self, 1, **{option: length})

    def __call__(self, images: Tensor, targets: Tensor) -> Tensor:
        """Explains the logits of `targets` (N,) for `images` (N, C, H, W): maps (N, H, W), float32, signed."""
        rows.check_batch(images, targets)
        places = self._windows((images.shape[2], images.shape[3]))
        baseline = BaselineImage(self.baseline, self.normalization)(images)[0]

        def make(sample: int, chosen: slice, out: Tensor) -> None:
            out.copy_(images[chosen])
            if sample > 0:  # sample 0 is the image as it is
                out[:, :, places[sample - 1].rows, places[sample - 1].columns] = baseline

        scores = scores_of_variants(self.model, images, targets, 1 + len(places), make, self.rows_per_forward)
        falls = scores[:, :1] - scores[:, 1:]  # (N, windows)
        maps = images.new_zeros((len(images), *images.shape[2:]))
        covers = maps.new_zeros(images.shape[2:])
        for number, place in enumerate(places):
            maps[:, place.rows, place.columns] += falls[:, number, None, None]
            covers[place.rows, place.columns] += 1
        # A stride above the window leaves gaps, of which nothing is known: 0.
        return (maps / covers.clamp(min=1)).float()

    def _windows(self, size: tuple[int, int]) -> list[Window]:
        window = _pair(self.window, (max(1, size[0] // 8), max(1, size[1] // 8)))
        if window[0] > size[0] or window[1] > size[1]:
            raise InputError(f"Occlusion: window {window} is larger than the image, {size}")
        return windows(size, window, _pair(self.stride, (max(1, window[0] // 2), max(1, window[1] // 2))))


def _pair(value: int | Sequence[int] | None, default: tuple[int, int]) -> tuple[int, int]:
    if value is None:
        return default
    if isinstance(value, int):
        return value, value
    if len(value) != 2:
        raise InputError(f"{value!r}: expected one number, or two (height, width)")
    return value[0], value[1]


def rise_cell(size: tuple[int, int], cells: int) -> tuple[int, int]:
    """Height and width in pixels of a RISE cell: the side divided by the number of cells, rounded up.

    >>> rise_cell((224, 224), 7)
    (32, 32)
    """
    return math.ceil(size[0] / cells), math.ceil(size[1] / cells)


def rise_masks(grids: Tensor, shifts: Tensor, size: tuple[int, int]) -> Tensor:
    """RISE's smooth masks: grids of cells, enlarged bilinearly, cut out at a shift.

    A grid is enlarged to (cells + 1) * cell pixels a side, with half-pixel centres; within half a cell of the
    border it mirrors about the centre of the outermost cell, as the published code does.

    Args:
        grids: (M, s, s) bool, True where the image shows.
        shifts: (M, 2) int64, row and column at which the mask begins, at least 0 and below the cell's size.
        size: (H, W) of the masks.

    Returns:
        (M, H, W) float32, in [0, 1].

    >>> rise_masks(torch.tensor([[[True, False], [True, False]]]), torch.tensor([[0, 0]]), (1, 4))
    tensor([[[0.6667, 1.0000, 0.6667, 0.3333]]])
    """
    cells = grids.shape[1]
    sides = [
        _enlarging(cells, (cells + 1) * cell, grids.device)[
            shifts[:, axis, None] + torch.arange(length, device=grids.device)
        ]
        for axis, (cell, length) in enumerate(zip(rise_cell(size, cells), size, strict=True))
    ]
    return sides[0] @ grids.float() @ sides[1].mT  # (M, H, s) (M, s, s) (M, s, W)


def _enlarging(cells: int, length: int, device: torch.device) -> Tensor:
    """The matrix (length, cells) of a linear interpolation from cells to pixels, mirrored at the outermost centres."""
    centres = np.abs((np.arange(length) + 0.5) * cells / length - 0.5)
    centres = (cells - 1) - np.abs((cells - 1) - centres)
    weights = np.clip(1 - np.abs(centres[:, None] - np.arange(cells)), 0, None)
    return torch.from_numpy(weights.astype(np.float32)).to(device)


def rise_map(masks: Tensor, probabilities: Tensor, shown: float) -> Tensor:
    """RISE: the masks, weighted by the target's probability behind them: sum_i p_i * mask_i / (M * shown).

    Args:
        masks: (M, H, W).
        probabilities: (N, M), of the target for the image times each mask.
        shown: the probability with which a cell shows the image.

    Returns:
        (N, H, W).
    """
    weighted = probabilities @ masks.flatten(1)
    return weighted.reshape(len(probabilities), *masks.shape[1:]) / (len(masks) * shown)


@dataclass(frozen=True)
class Rise:
    """RISE: the mean of random masks, each weighted by the target's probability for the image behind it.

    The masks are drawn once, from the seed: the same for all images, whatever the batch. Masked pixels have the mean
    colour (0 in normalised images). Unlike the other methods it explains the probability.

    Args:
        model: classifier, (N, C, H, W) -> (N, K) logits.
        masks: how many.
        cells: a mask's grid has cells x cells cells.
        shown: probability with which a cell shows the image.
        seed: the root seed; provided by the stage.
        rows_per_forward: masked images in one forward pass; the memory knob.

    Reference:
        Petsiuk, Das, Saenko: "RISE", BMVC 2018, arXiv:1806.07421, equation 6.
    """

    model: nn.Module
    masks: int = 4000
    cells: int = 7
    shown: float = 0.5
    seed: int = 0
    rows_per_forward: int | None = None

    def __post_init__(self) -> None:
        options.at_least(self, 1, masks=self.masks, cells=self.cells, rows_per_forward=self.rows_per_forward)
        if not 0 < self.shown <= 1:
            raise InputError(f"Rise: shown {self.shown!r} must lie above 0 and not above 1")

    def __call__(self, images: Tensor, targets: Tensor) -> Tensor:
        """Explains the probability of `targets` (N,) for `images` (N, C, H, W): maps (N, H, W), float32, >= 0."""
        rows.check_batch(images, targets)
        block = self._blocks(images)

        def make(sample: int, chosen: slice, out: Tensor) -> None:
            torch.mul(images[chosen], block(sample // _BLOCK)[sample % _BLOCK], out=out)

        scores = scores_of_variants(
            self.model, images, targets, self.masks, make, self.rows_per_forward, output="probability"
        )
        maps = images.new_zeros((len(images), *images.shape[2:]))
        for number, part in enumerate(scores.split(_BLOCK, dim=1)):
            maps += rise_map(block(number), part, self.shown) * (part.shape[1] / self.masks)
        return maps.float()

    def _blocks(self, images: Tensor) -> Callable[[int], Tensor]:
        """The masks, _BLOCK at a time: thousands of them at full size would not fit into memory."""
        size = (images.shape[2], images.shape[3])
        rng = seeding.generator(self.seed, "rise")
        grids = torch.from_numpy(rng.random((self.masks, self.cells, self.cells)) < self.shown)
        shifts = torch.from_numpy(rng.integers(rise_cell(size, self.cells), size=(self.masks, 2)))

        @functools.lru_cache(maxsize=1)
        def block(number: int) -> Tensor:
            part = slice(number * _BLOCK, (number + 1) * _BLOCK)
            return rise_masks(grids[part].to(images.device), shifts[part].to(images.device), size).to(images.dtype)

        return block


_BLOCK = 128


def _coalition_scores(
    method: "KernelShap | Lime", images: Tensor, targets: Tensor, superpixels: Superpixels, shown: Tensor
) -> Tensor:
    """The target's logits (N, S) where only the superpixels of each sample show and the others are baseline."""
    baseline = BaselineImage(method.baseline, method.normalization)(images)

    def make(sample: int, chosen: slice, out: Tensor) -> None:
        numbers = superpixels.of_pixels[chosen]  # (n, H, W)
        shows = shown[chosen, sample].gather(1, numbers.flatten(1)).view_as(numbers)
        torch.where(shows[:, None], images[chosen], baseline, out=out)

    return scores_of_variants(method.model, images, targets, shown.shape[1], make, method.rows_per_forward)


@dataclass(frozen=True)
class KernelShap:
    """KernelSHAP: the superpixels' Shapley values of the target's logit, estimated by weighted least squares.

    Coalitions of superpixels are drawn with the Shapley kernel's probabilities, each with its complement; the values are
    the least-squares solution that sums to logit(image) - logit(baseline). Where the logit is a sum over superpixels,
    the result is exact. What is drawn for an image depends on (seed, index) only.

    Args:
        model: classifier, (N, C, H, W) -> (N, K) logits.
        samples: coalitions for each image; more than twice the superpixels.
        cells: the superpixels are a grid of cells x cells.
        segmentation: dotted path of a function from one image, an array (C, H, W), to labels (H, W), in place of the
            grid (for instance a call of scikit-image's slic).
        baseline: what hides, in units of normalised images: one number (0 is the mean colour), one per channel, "black".
        seed: the root seed; provided by the stage.
        normalization: the model's; needed for the black baseline, provided by the stage.
        rows_per_forward: variants in one forward pass; the memory knob.

    Reference:
        Lundberg, Lee: "A unified approach to interpreting model predictions", NeurIPS 2017, arXiv:1705.07874; pairs and
        constraint as in Covert, Lee: "Improving KernelSHAP", AISTATS 2021, arXiv:2012.01536.
    """

    model: nn.Module
    samples: int = 1000
    cells: int = 7
    segmentation: str | None = None
    baseline: Baseline = 0.0
    seed: int = 0
    normalization: Normalization | None = None
    rows_per_forward: int | None = None

    def __post_init__(self) -> None:
        options.at_least(self, 2, samples=self.samples)
        options.at_least(self, 1, cells=self.cells, rows_per_forward=self.rows_per_forward)
        BaselineImage(self.baseline, self.normalization)

    def __call__(self, images: Tensor, targets: Tensor, *, indices: Tensor | None = None) -> Tensor:
        """Explains the logits of `targets` (N,) for `images` (N, C, H, W): maps (N, H, W), float32, signed."""
        rows.check_batch(images, targets)
        superpixels = superpixels_of(images, self.cells, self.segmentation)
        drawn = drawn_coalitions("kernel_shap", self.seed, indices, superpixels.counts, self._draw)
        shown = torch.from_numpy(drawn).to(images.device)
        scores = options.in_double(_coalition_scores(self, images, targets, superpixels, shown))
        values = shapley_values(options.in_double(shown[:, 2:]), scores[:, 2:], scores[:, 0], scores[:, 1])
        return painted(values, superpixels, images)

    def _draw(self, rng: np.random.Generator, count: int) -> NDArray[np.bool_]:
        """Samples (2 + S, count): nothing shown, all shown, then coalitions, each followed by its complement."""
        ends = np.zeros((2, count), dtype=bool)
        ends[1] = True
        if count == 1:
            return np.concatenate([ends, np.zeros((self.samples, 1), dtype=bool)])
        sizes = np.arange(1, count)
        kernel = 1 / (sizes * (count - sizes))
        pairs = math.ceil(self.samples / 2)
        chosen_sizes = rng.choice(sizes, size=pairs, p=kernel / kernel.sum())
        places = np.argsort(rng.random((pairs, count)), axis=1).argsort(axis=1)
        coalitions = places < chosen_sizes[:, None]
        paired = np.stack([coalitions, ~coalitions], axis=1).reshape(-1, count)
        return np.concatenate([ends, paired[: self.samples]])


@dataclass(frozen=True)
class Lime:
    """LIME: a ridge regression of the target's logit on which superpixels show, near the whole image.

    Each sample shows each superpixel with probability 1/2; it counts with exp(-d^2 / width^2), d being the cosine
    distance of what it shows from showing everything. What is drawn for an image depends on (seed, index) only.

    Args:
        model: classifier, (N, C, H, W) -> (N, K) logits.
        samples: variants for each image, the whole image among them.
        cells: the superpixels are a grid of cells x cells.
        segmentation: dotted path of a function from one image, an array (C, H, W), to labels (H, W), in place of the grid.
        width: width of the kernel.
        ridge: weight of the sum of the coefficients' squares (not of the intercept's).
        baseline: what hides, in units of normalised images: one number (0 is the mean colour), one per channel, "black".
        seed: the root seed; provided by the stage.
        normalization: the model's; needed for the black baseline, provided by the stage.
        rows_per_forward: variants in one forward pass; the memory knob.

    Reference:
        Ribeiro, Singh, Guestrin: "Why should I trust you?", KDD 2016, arXiv:1602.04938; kernel, width and ridge as in the
        authors' package for images.
    """

    model: nn.Module
    samples: int = 1000
    cells: int = 7
    segmentation: str | None = None
    width: float = 0.25
    ridge: float = 1.0
    baseline: Baseline = 0.0
    seed: int = 0
    normalization: Normalization | None = None
    rows_per_forward: int | None = None

    def __post_init__(self) -> None:
        options.at_least(self, 2, samples=self.samples)
        options.at_least(self, 1, cells=self.cells, rows_per_forward=self.rows_per_forward)
        options.at_least(self, 0, ridge=self.ridge, width=self.width)
        BaselineImage(self.baseline, self.normalization)

    def __call__(self, images: Tensor, targets: Tensor, *, indices: Tensor | None = None) -> Tensor:
        """Explains the logits of `targets` (N,) for `images` (N, C, H, W): maps (N, H, W), float32, signed."""
        rows.check_batch(images, targets)
        superpixels = superpixels_of(images, self.cells, self.segmentation)
        drawn = drawn_coalitions("lime", self.seed, indices, superpixels.counts, self._draw)
        shown = torch.from_numpy(drawn).to(images.device)
        scores = _coalition_scores(self, images, targets, superpixels, shown)
        counts = torch.tensor(superpixels.counts, device=images.device)
        values = lime_coefficients(options.in_double(shown), options.in_double(scores), counts, self.width, self.ridge)
        return painted(values, superpixels, images)

    def _draw(self, rng: np.random.Generator, count: int) -> NDArray[np.bool_]:
        shown = rng.random((self.samples, count)) < 0.5
        shown[0] = True
        return shown
