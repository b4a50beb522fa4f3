"""What a model says of images from which growing parts are removed: the forward passes behind LeRF, MoRF and ROAD.

The untouched image is scored once and shared by both ends; all steps of several images travel in one stream of
forward batches; nothing is recorded for gradients. What a pixel would be replaced by is computed once for each image
and, like the image, normalised once: a step is then one selection between two tensors.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from heatproof import checks
from heatproof.errors import InputError, nearest
from heatproof.models.probabilities import Kind, kind_of, margins, probabilities
from heatproof.removal.orders import First, count, rank_tensor
from heatproof.removal.pixels import as_float
from heatproof.removal.protocol import ByRemoval, Fill, Replacing

RESULTS_VERSION = 1


@dataclass(frozen=True)
class DegradedScores:
    """The model's output for the target of each image, after each step from each end.

    Attributes:
        firsts: the ends, in the order of the second axis.
        fractions: (S,) removed fractions, the order of the last axis; the first is 0, the untouched image.
        logit: (N, len(firsts), S) float64.
        probability: the same shape; of the target, in [0, 1]; see `models.probabilities`.
        logit_margin: the same shape; logit of the target minus the best other logit: above 0 where the target wins. Of
            labels that can be true together, the logit.
        prediction: the same shape, int64; the class of the highest logit.
    """

    firsts: tuple[First, ...]
    fractions: NDArray[np.float64]
    logit: NDArray[np.float64]
    probability: NDArray[np.float64]
    logit_margin: NDArray[np.float64]
    prediction: NDArray[np.int64]

    def accuracy(self, classes: ArrayLike) -> NDArray[np.float64]:
        """1 where the prediction is the image's class (N,), else 0; the shape of the scores."""
        correct: NDArray[np.bool_] = self.prediction == np.asarray(classes)[:, None, None]
        return correct.astype(np.float64)


def degraded_scores(
    model: Callable[[Tensor], Tensor],
    pixels: Tensor,
    ranks: Tensor | NDArray[Any],
    targets: Tensor | NDArray[np.int64],
    *,
    normalize: Callable[[Tensor], Tensor],
    fractions: Sequence[float],
    fill: Fill | ByRemoval,
    firsts: Sequence[First] = ("most", "least"),
    rows_per_forward: int = 64,
    indices: ArrayLike | None = None,
) -> DegradedScores:
    """Scores each image untouched and with each fraction removed from each end.

    Args:
        model: classifier in eval mode on the device of `pixels`, images (B, C, H, W) -> logits (B, K).
        pixels: (N, C, H, W), float in [0, 1] or uint8 in [0, 255].
        ranks: (N, H, W), 0 = most important; `orders.rank_tensor` gives the form that needs no conversion.
        targets: (N,) the class whose scores are wanted.
        normalize: pixels -> images, pixel by pixel: filling before or after it must be the same.
        fractions: removed fractions, growing; 0 is always scored and need not be given.
        fill: what replaces removed pixels, the same for all removals or one for each.
        firsts: the ends to remove from: "most" is MoRF, "least" is LeRF.
        rows_per_forward: bounds the memory; no score depends on it beyond the model's own rounding.
        indices: (N,) index of each image in its split, for fills that draw.

    Raises:
        InputError: a wrong shape or value, a model in training mode, or one that does not return (B, K) logits.
    """
    images, _, height, width = checks.shapes("N C H W", pixels=pixels).values()
    checks.shapes(f"{images} {height} {width}", ranks=ranks)
    ends, steps = _checked_ends(firsts), _checked_fractions(fractions)
    classes, span, positions = _checked_rows(model, pixels, targets, rows_per_forward, indices)
    kept = _kept_ranks(ends, steps, height * width).to(pixels.device)
    chosen: Fill | list[Fill | None] = fill if not isinstance(fill, ByRemoval) else _fills(fill, ends, steps)
    scores = [torch.empty(4, 0, len(kept), device=pixels.device)]
    with torch.no_grad():
        for block in _blocks(images, max(1, rows_per_forward // len(kept))):
            degrade = _degrader(as_float(pixels[block]), normalize, chosen, positions[block])
            block_ranks = _comparable(ranks[block], pixels.device)
            rows = [
                _target_scores(
                    model(degrade(_removed(block_ranks, part), start)), classes[block], len(part), span, kind_of(model)
                )
                for start, part in _parts(kept, rows_per_forward)
            ]
            scores.append(torch.cat(rows, dim=2))
    return _assembled(torch.cat(scores, dim=1).cpu().numpy(), ends, steps)


@dataclass(frozen=True)
class SubsetScores:
    """The model's output for the target of each image, untouched and without each of R subsets of its pixels.

    Attributes:
        logit: (N, 1 + R) float64; the first is the untouched image.
        probability: the same shape; of the target, in [0, 1]; see `models.probabilities`.
        logit_margin: the same shape; logit of the target minus the best other logit.
        prediction: the same shape, int64; the class of the highest logit.
    """

    logit: NDArray[np.float64]
    probability: NDArray[np.float64]
    logit_margin: NDArray[np.float64]
    prediction: NDArray[np.int64]


def subset_scores(
    model: Callable[[Tensor], Tensor],
    pixels: Tensor,
    subsets: Tensor,
    targets: Tensor | NDArray[np.int64],
    *,
    normalize: Callable[[Tensor], Tensor],
    fill: Fill,
    rows_per_forward: int = 64,
    indices: ArrayLike | None = None,
) -> SubsetScores:
    """Scores each image untouched and without each of its subsets; each removal starts from the untouched image.

    What follows an order of pixels from one of its ends is `degraded_scores`, which needs no masks.

    Args:
        model: classifier in eval mode on the device of `pixels`, images (B, C, H, W) -> logits (B, K).
        pixels: (N, C, H, W), float in [0, 1] or uint8 in [0, 255].
        subsets: (N, R, H, W), all channels of a pixel go, or (N, R, C, H, W); True where removed.
        targets: (N,) the class whose scores are wanted.
        normalize: pixels -> images, pixel by pixel: filling before or after it must be the same.
        fill: what replaces removed pixels.
        rows_per_forward: bounds the memory; no score depends on it beyond the model's own rounding.
        indices: (N,) index of each image in its split, for fills that draw.

    Raises:
        InputError: a wrong shape or value, a model in training mode, or one that does not return (B, K) logits.
    """
    images, channels, height, width = checks.shapes("N C H W", pixels=pixels).values()
    if subsets.dtype != torch.bool or tuple(subsets.shape[2:]) not in ((height, width), (channels, height, width)):
        raise InputError(
            f"subsets: {subsets.dtype} of shape {tuple(subsets.shape)}; expected bool, (N, R, H, W) or (N, R, C, H, W), "
            f"for pixels {tuple(pixels.shape)}"
        )
    checks.shapes(f"{images} R " + " ".join(map(str, subsets.shape[2:])), subsets=subsets)
    classes, span, positions = _checked_rows(model, pixels, targets, rows_per_forward, indices)
    scores = [torch.empty(4, 0, 1 + subsets.shape[1], device=pixels.device)]
    with torch.no_grad():
        for block in _blocks(images, max(1, rows_per_forward // (1 + subsets.shape[1]))):
            degrade = _degrader(as_float(pixels[block]), normalize, fill, positions[block])
            given = subsets[block].to(pixels.device)
            nothing = given.new_zeros((len(given), 1, *given.shape[2:]))
            removed = torch.cat((nothing, given), dim=1)
            rows = [
                _target_scores(model(degrade(part, 0)), classes[block], part.shape[1], span, kind_of(model))
                for part in removed.split(rows_per_forward, dim=1)
            ]
            scores.append(torch.cat(rows, dim=2))
    logit, probability, margin, prediction = torch.cat(scores, dim=1).cpu().numpy().astype(np.float64)
    return SubsetScores(logit, probability, margin, prediction.astype(np.int64))


def _checked_rows(
    model: Callable[[Tensor], Tensor],
    pixels: Tensor,
    targets: Tensor | NDArray[np.int64],
    rows_per_forward: int,
    indices: ArrayLike | None,
) -> tuple[Tensor, tuple[int, int], NDArray[np.int64]]:
    """Targets on the device, the lowest and highest of them, and the indices."""
    images = len(pixels)
    checks.shapes(f"{images}", targets=targets)
    if rows_per_forward < 1:
        raise InputError(f"rows_per_forward: {rows_per_forward} must be at least 1")
    if getattr(model, "training", False):
        raise InputError("model: is in training mode, where images influence each other; call model.eval() first")
    classes = torch.as_tensor(targets, dtype=torch.int64).to(pixels.device)
    span = (int(classes.min()), int(classes.max())) if images else (0, 0)
    positions = np.zeros(images, dtype=np.int64) if indices is None else np.asarray(indices, dtype=np.int64)
    checks.shapes(f"{images}", indices=positions)
    return classes, span, positions


def _checked_ends(firsts: Sequence[First]) -> tuple[First, ...]:
    for first in firsts:
        if first not in ("most", "least"):
            raise InputError(f"firsts: {first!r}{nearest(str(first), ('most', 'least'))}")
    return tuple(firsts)


def _checked_fractions(fractions: Sequence[float]) -> NDArray[np.float64]:
    steps = np.asarray([0.0, *(f for f in fractions if f != 0)], dtype=np.float64)
    if not ((np.diff(steps) > 0).all() and steps[-1] <= 1):
        raise InputError(f"fractions: {list(fractions)} must grow, from 0 to 1 at most")
    return steps


def _kept_ranks(ends: tuple[First, ...], steps: NDArray[np.float64], pixels: int) -> Tensor:
    """(R, 2): the lowest rank that stays, and the lowest above it that goes; the first row is the untouched image."""
    counts = [count(step, pixels) for step in steps[1:].tolist()]
    cuts = [(number, pixels) if first == "most" else (0, pixels - number) for first in ends for number in counts]
    return torch.tensor([(0, pixels), *cuts], dtype=torch.int32)


def _parts(rows: Tensor, size: int) -> Iterator[tuple[int, Tensor]]:
    """The rows in parts, each with the number of its first."""
    return zip(range(0, len(rows), size), rows.split(size), strict=True)


def _blocks(images: int, size: int) -> Iterator[slice]:
    return (slice(start, start + size) for start in range(0, images, size))


def _comparable(ranks: Tensor | NDArray[Any], device: torch.device) -> Tensor:
    if not isinstance(ranks, Tensor):
        return rank_tensor(ranks, device)
    return (ranks.to(torch.int32) if ranks.dtype in (torch.uint16, torch.uint32) else ranks).to(device)


def _removed(ranks: Tensor, kept: Tensor) -> Tensor:
    """(images, rows, H, W) bool."""
    lowest, beyond = kept[:, :, None, None].to(ranks.dtype).unbind(dim=1)
    return (ranks[:, None] < lowest) | (ranks[:, None] >= beyond)


def _fills(fill: ByRemoval, ends: tuple[First, ...], steps: NDArray[np.float64]) -> list[Fill | None]:
    """The fill of each row of `_kept_ranks`; the untouched image has none."""
    return [None, *(fill.at(step, first) for first in ends for step in steps[1:].tolist())]


def _degrader(
    pixels: Tensor,
    normalize: Callable[[Tensor], Tensor],
    fill: Fill | list[Fill | None],
    indices: NDArray[np.int64],
) -> Callable[[Tensor, int], Tensor]:
    """From removed (images, rows, H, W) or (images, rows, C, H, W), and the number of its first row, to normalised images.

    They are (images * rows, C, H, W); the number tells which of several fills serves a row.
    """
    if isinstance(fill, list):

        def fill_by_row(removed: Tensor, start: int) -> Tensor:
            fills = fill[start : start + removed.shape[1]]
            rows = zip(fills, removed.unbind(dim=1), strict=True)
            filled = [pixels if one is None else one(pixels, row, indices) for one, row in rows]
            images: Tensor = normalize(torch.stack(filled, dim=1).flatten(0, 1))
            return images

        return fill_by_row
    if isinstance(fill, Replacing):
        images = normalize(pixels)[:, None]
        replacement = normalize(fill.replacement(pixels, indices))[:, None]

        def select(removed: Tensor, start: int) -> Tensor:
            by_channel = removed if removed.ndim == 5 else removed[:, :, None]
            return torch.where(by_channel, replacement, images).flatten(0, 1)

        return select

    def fill_each(removed: Tensor, start: int) -> Tensor:
        rows = removed.shape[1]
        repeated = pixels.repeat_interleave(rows, dim=0)
        filled = fill(repeated, removed.flatten(0, 1), indices.repeat(rows))
        images: Tensor = normalize(filled)
        return images

    return fill_each


def _target_scores(logits: Tensor, classes: Tensor, rows: int, span: tuple[int, int], kind: Kind) -> Tensor:
    """(4, images, rows): logit, probability, margin and prediction; `span` holds all classes asked about."""
    if logits.ndim != 2 or len(logits) != len(classes) * rows:
        raise InputError(
            f"model: returned shape {tuple(logits.shape)} for {len(classes) * rows} images; expected (images, classes)"
        )
    if span[0] < 0 or span[1] >= logits.shape[1]:
        raise InputError(f"targets: from {span[0]} to {span[1]}; the model has {logits.shape[1]} classes")
    logits = logits.to(torch.float32 if logits.device.type == "mps" else torch.float64)
    targets = classes.repeat_interleave(rows)
    logit = logits.gather(1, targets[:, None])[:, 0]
    probability = probabilities(logits, kind).gather(1, targets[:, None])[:, 0]
    prediction = logits.argmax(dim=1).to(logits.dtype)
    scores = torch.stack((logit, probability, margins(logits, targets, kind), prediction))
    return scores.view(4, len(classes), rows)


def _assembled(scores: NDArray[Any], ends: tuple[First, ...], steps: NDArray[np.float64]) -> DegradedScores:
    """Gives each end its own copy of the untouched image's scores, in front."""
    images = scores.shape[1]
    untouched = np.broadcast_to(scores[:, :, None, :1], (4, images, len(ends), 1))
    degraded = scores[:, :, 1:].reshape(4, images, len(ends), len(steps) - 1)
    logit, probability, margin, prediction = np.concatenate((untouched, degraded), axis=3).astype(np.float64)
    return DegradedScores(ends, steps, logit, probability, margin, prediction.astype(np.int64))
