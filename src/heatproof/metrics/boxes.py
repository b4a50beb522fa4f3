"""Localisation by boxes: does a box around the high part of a map overlap the object's box?

Two families. *Weakly supervised localisation* (MaxBoxAcc, MaxBoxAccV2) draws boxes at many thresholds and reports the best
threshold for the data set. *Masking-based saliency* (LE, OM, F1, SM) draws one box, at the map's own mean.

Boxes are (x0, y0, x1, y1), half-open: x1 - x0 is the width. Boxes of objects may lie partly outside the image; their area is
not cut, so what lies outside can be missed but not found.
"""

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage

from heatproof import checks
from heatproof.errors import InputError, nearest
from heatproof.metrics import masks
from heatproof.metrics.contours import Contours, contours

Boxes = NDArray[np.int64]

_SMALLEST_AREA = 0.05  # below, SM does not reward smaller boxes


def thresholds(interval: float = 0.01) -> NDArray[np.float64]:
    """The thresholds 0, d, 2d, ... below 1, as shares of a map's maximum.

    >>> thresholds(0.25).tolist()
    [0.0, 0.25, 0.5, 0.75]
    """
    if not 0 < interval < 1:
        raise InputError(f"interval: {interval!r} must lie between 0 and 1")
    return np.arange(0.0, 1.0, interval)


def iou(first: ArrayLike, second: ArrayLike, *, inclusive: bool = False) -> NDArray[np.float64]:
    """Intersection over union of every box with every other; higher is better.

    Args:
        first: (M, 4).
        second: (K, 4).
        inclusive: x1 and y1 belong to the box, as in WSOL's evaluation: every side is longer by one.

    Returns:
        (M, K), in [0, 1]; 0 where both boxes are empty.

    >>> iou([[1, 2, 5, 6]], [[3, 1, 4, 5]], inclusive=True) * 27
    array([[8.]])
    >>> iou([[1, 2, 6, 7]], [[3, 1, 5, 6]]) * 27  # the same boxes, half-open
    array([[8.]])
    """
    a, b = (np.asarray(boxes, dtype=np.float64).reshape(-1, 4) for boxes in (first, second))
    extra = 1.0 if inclusive else 0.0
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    common = np.maximum(high - low + extra, 0.0).prod(axis=2)
    areas_a, areas_b = ((boxes[:, 2:] - boxes[:, :2] + extra).prod(axis=1) for boxes in (a, b))
    union = areas_a[:, None] + areas_b[None, :] - common
    overlaps: NDArray[np.float64] = np.divide(common, union, out=np.zeros_like(common), where=union > 0)
    return overlaps


# Boxes at many thresholds


def boxes_from_map(
    scores: NDArray[Any], taus: ArrayLike, all_contours: bool = False, *, reference: bool = False
) -> list[Boxes]:
    """The boxes that a map predicts at each threshold.

    Args:
        scores: (H, W), in [0, 1].
        taus: (T,), in [0, 1): shares of the map's maximum.
        all_contours: all boxes (MaxBoxAccV2) instead of that of the largest contour (MaxBoxAcc).
        reference: as published. Corners are (x, y, min(x + w, W - 1), min(y + h, H - 1)), read as inclusive: one pixel too
            large except at the far edge. All contours are those of holes as well, so that a map which is low on the
            object and high elsewhere finds it; without `reference` they are left out.

    Returns:
        For each threshold (k, 4), k >= 1; where nothing lies above it, the one box (0, 0, 0, 0).

    Reference:
        Choe et al., arXiv:2007.04178; Russakovsky et al. for the single box.

    >>> cross = np.zeros((10, 10))
    >>> cross[3, 2] = 1.0
    >>> boxes_from_map(cross, [0.5])[0].tolist(), boxes_from_map(cross, [0.5], reference=True)[0].tolist()
    ([[2, 3, 3, 4]], [[2, 3, 3, 4]])
    >>> boxes_from_map(np.ones((4, 4)), [0.0])[0].tolist(), boxes_from_map(np.ones((4, 4)), [0.0], reference=True)[0].tolist()
    ([[0, 0, 4, 4]], [[0, 0, 3, 3]])
    """
    found = contours(scores, taus)
    if all_contours:
        boxes, steps = _candidates(found, reference)
        per_step = np.split(boxes, np.searchsorted(steps, np.arange(1, len(found.largest))))
    else:
        per_step = np.split(found.largest, len(found.largest))
    per_step = [part if len(part) else np.zeros((1, 4), dtype=np.int64) for part in per_step]
    return [_as_published(part, scores.shape) for part in per_step] if reference else per_step


def box_overlaps(
    maps: NDArray[Any], truths: Sequence[NDArray[Any]], taus: ArrayLike, *, reference: bool = False
) -> NDArray[np.float64]:
    """The best overlap of a predicted with a true box, at each threshold, for the largest contour and for all of them.

    Args:
        maps: (N, H, W), in [0, 1].
        truths: for each image (k, 4), half-open, possibly partly outside the image.
        taus: (T,), in [0, 1): shares of the map's maximum.
        reference: as published: predicted boxes of `boxes_from_map(reference=True)`, `truths` with inclusive corners,
            overlaps of inclusive boxes.

    Returns:
        (N, 2, T): largest contour, all contours; NaN for an image without a box of positive area.

    >>> box_overlaps(np.array([[[1.0, 1.0, 0.0, 0.0]]]), [np.array([[0, 0, 1, 1]])], [0.0])
    array([[[0.5],
            [0.5]]])
    """
    checks.shapes("N H W", maps=maps)
    steps = np.asarray(taus, dtype=np.float64)
    overlaps = np.full((len(maps), 2, len(steps)), np.nan)
    for row, (scores, given) in enumerate(zip(maps, truths, strict=True)):
        truth = given if reference else _with_area(given)
        if not len(truth):
            continue
        found = contours(scores, steps)
        boxes, step_of = _candidates(found, reference)
        predicted = np.concatenate([found.largest, boxes])
        predicted = _as_published(predicted, scores.shape) if reference else predicted
        best = iou(predicted, truth, inclusive=reference).max(axis=1)
        overlaps[row] = best[: len(steps)]  # where there is no contour, both hold the overlap of the box (0, 0, 0, 0)
        has, first = np.unique(step_of, return_index=True)
        if len(has):
            overlaps[row, 1, has] = np.maximum.reduceat(best[len(steps) :], first)
    return overlaps


def hits_at(overlaps: NDArray[np.float64], theta: float) -> NDArray[np.float64]:
    """1 where the overlap reaches theta, else 0; NaN stays NaN.

    >>> hits_at(np.array([0.5, 0.49, np.nan]), 0.5)
    array([ 1.,  0., nan])
    """
    return np.where(np.isnan(overlaps), np.nan, (overlaps >= theta).astype(np.float64))


def max_box_accuracy(hits: NDArray[np.float64], counts: ArrayLike) -> NDArray[np.float64]:
    """The highest accuracy over thresholds, averaged over the required overlaps; higher is better.

    The threshold is the best one for these very images: an oracle. `held_out_accuracy` is free of that.

    Args:
        hits: (..., C, T) number of images right at each required overlap and threshold. C = 1 with overlap 0.5 of the
            largest contour is MaxBoxAcc; C = 3 with 0.3, 0.5, 0.7 of all contours is MaxBoxAccV2.
        counts: (...) number of images.

    Returns:
        (...), in [0, 1]; NaN for no image.

    Reference:
        Choe et al., arXiv:2001.07437 and 2007.04178.

    >>> float(max_box_accuracy(np.array([[1, 3, 2], [1, 0, 1]]), 4))  # (3/4 + 1/4) / 2
    0.5
    """
    best = np.asarray(hits, dtype=np.float64).max(axis=-1).mean(axis=-1)
    total = np.asarray(counts, dtype=np.float64)
    shares: NDArray[np.float64] = np.divide(best, total, out=np.full_like(best, np.nan), where=total > 0)
    return shares


def held_out_accuracy(hits: NDArray[np.float64], halves: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Each image's result at the threshold that is best for the other half of the images; higher is better.

    Args:
        hits: (N, C, T) 1, 0 or NaN at each required overlap and threshold.
        halves: (N,) which half an image belongs to.

    Returns:
        (N,), in [0, 1], mean over the required overlaps; NaN where undefined, or where the other half has no image.

    >>> held_out_accuracy(np.array([[[1.0, 0.0]], [[1.0, 0.0]], [[0.0, 1.0]]]), np.array([False, True, True]))
    array([1., 1., 0.])
    """
    images, _, _ = checks.shapes("N C T", hits=hits).values()
    checks.shapes(f"{images}", halves=halves)
    result = np.full(images, np.nan)
    defined = ~np.isnan(hits).any(axis=(1, 2))
    for half in (False, True):
        here, other = defined & (halves == half), defined & (halves != half)
        if other.any():
            best = hits[other].sum(axis=0).argmax(axis=-1)  # (C,): of equally good thresholds the lowest
            result[here] = np.take_along_axis(hits[here], best[None, :, None], axis=2).mean(axis=(1, 2))
    return result


def resized_boxes(boxes: ArrayLike, size: tuple[int, int], to: tuple[int, int]) -> Boxes:
    """Corners for an image resized from `size` to `to`, multiplied and truncated toward zero, as WSOL's evaluation does.

    Args:
        boxes: (k, 4).
        size: height and width that the boxes belong to.
        to: new height and width.

    >>> resized_boxes([[21, 75, 223, 219]], (376, 267), (224, 224)).tolist()
    [[17, 44, 187, 130]]
    """
    y, x = to[0] / size[0], to[1] / size[1]
    resized: Boxes = (np.asarray(boxes).reshape(-1, 4) * np.array([x, y, x, y])).astype(np.int64)
    return resized


def seen_truths(truths: Sequence[NDArray[Any]], size: tuple[int, int]) -> list[Boxes]:
    """Each image's true boxes; none for an image into which no box reaches: its object was cut away, and cannot be found.

    Args:
        truths: for each image (k, 4), half-open.
        size: height and width.

    >>> [len(boxes) for boxes in seen_truths([np.array([[-3, 0, 1, 4]]), np.array([[-3, 0, 0, 4]])], (4, 4))]
    [1, 0]
    """
    found = []
    for truth in truths:
        boxes = np.asarray(truth, dtype=np.int64).reshape(-1, 4)
        reaches = len(_with_area(np.clip(boxes, 0, [size[1], size[0], size[1], size[0]]))) > 0
        found.append(boxes if reaches else boxes[:0])
    return found


# One box, at the map's own mean


def mean_boxes(
    maps: NDArray[Any],
    convention: Literal["exact", "as_published"] = "exact",
    *,
    erode: int = 0,
    dilate: int = 0,
) -> Boxes:
    """The box around the largest 4-connected part that lies above the map's own mean.

    Args:
        maps: (N, H, W), any real numbers.
        convention: "exact": the tight box. "as_published": one row and one column short, so that one pixel has no area.
        erode: so many pixels are taken off the foreground's border first (not at the frame).
        dilate: so many are added after that.

    Returns:
        (N, 4); zeros for a constant map, a mask of ones as well: nothing lies above its mean.

    Reference:
        Phang, Park, Geras, arXiv:2010.09750.

    >>> mean_boxes(np.array([[[0.0, 0.9, 0.8, 0.0], [0.0, 0.7, 0.0, 0.9]]])).tolist()
    [[1, 0, 3, 2]]
    """
    if convention not in (known := ("exact", "as_published")):
        raise InputError(f"convention: {convention!r}{nearest(convention, known)}")
    foreground = masks.binarized(maps)
    cross = masks.in_plane(ndimage.generate_binary_structure(2, 1))
    if erode:
        foreground = ndimage.binary_erosion(foreground, cross, iterations=erode, border_value=1)
    if dilate:
        foreground = ndimage.binary_dilation(foreground, cross, iterations=dilate)
    parts = masks.largest_component(foreground)
    boxes = np.zeros((len(parts), 4), dtype=np.int64)
    for row, part in enumerate(parts):
        found = ndimage.find_objects(part.view(np.uint8))
        if found:
            y, x = found[0]
            boxes[row] = x.start, y.start, x.stop, y.stop
    if convention == "as_published":
        boxes[:, 2:] = np.maximum(boxes[:, 2:] - 1, 0)
    return boxes


def best_overlap(boxes: ArrayLike, truths: Sequence[NDArray[Any]]) -> NDArray[np.float64]:
    """Each predicted box's overlap with the true box that it overlaps most; higher is better.

    Args:
        boxes: (N, 4), half-open, within the image; an empty box overlaps nothing.
        truths: for each image (k, 4), half-open, possibly partly outside the image.

    Returns:
        (N,), in [0, 1]; NaN for an image without a box of positive area.

    >>> best_overlap([[0, 0, 2, 2], [0, 0, 2, 2]], [np.array([[-2, 0, 2, 2]]), np.zeros((0, 4), dtype=int)])
    array([0.5, nan])
    """
    predicted = checks.pixel_corners(boxes)
    if len(truths) != len(predicted):
        raise InputError(f"truths: of {len(truths)} images; expected {len(predicted)}, as there are boxes")
    result = np.full(len(predicted), np.nan)
    for row, (box, truth) in enumerate(zip(predicted, truths, strict=True)):
        if len(_with_area(truth)):
            result[row] = iou(box, truth).max()
    return result


def reachable_overlap(truths: Sequence[NDArray[Any]], size: tuple[int, int]) -> NDArray[np.float64]:
    """The overlap that a box within the image can have at most: below 1 where every true box is cut off by the frame.

    The ceiling of `best_overlap`. An image where it is 0.5 or less errs, whatever box is drawn.

    Args:
        truths: for each image (k, 4), half-open, possibly partly outside the image.
        size: height and width.

    Returns:
        (N,), in [0, 1]; NaN for an image without a box of positive area.

    >>> reachable_overlap([np.array([[-2, 0, 2, 2]]), np.array([[0, 0, 2, 2]])], (4, 4))
    array([0.5, 1. ])
    """
    frame = np.array([[0, 0, size[1], size[0]]])
    result = np.full(len(truths), np.nan)
    for row, given in enumerate(truths):
        truth = _with_area(given)
        if len(truth):
            # What of a true box lies within the frame is the best box for it, and no other overlaps it more.
            inside = np.maximum(np.minimum(truth[:, 2:], frame[:, 2:]) - np.maximum(truth[:, :2], 0), 0).prod(axis=1)
            result[row] = (inside / (truth[:, 2:] - truth[:, :2]).prod(axis=1)).max()
    return result


def localisation_error(boxes: ArrayLike, truths: Sequence[NDArray[Any]]) -> NDArray[np.float64]:
    """LE: 1 where no true box is overlapped by more than half, else 0; lower is better.

    A box that covers the whole image errs where the object covers at most half of it.

    Args:
        boxes: (N, 4), half-open, within the image; an empty box always errs.
        truths: for each image (k, 4), half-open, possibly partly outside the image.

    Returns:
        (N,), 0 or 1; NaN for an image without a box of positive area.

    Reference:
        Cao et al., arXiv:1507.08104; Phang, Park, Geras, arXiv:2010.09750.

    >>> localisation_error([[0, 0, 2, 2], [0, 0, 2, 2]], [np.array([[0, 0, 2, 4]]), np.array([[0, 0, 2, 3]])])
    array([1., 0.])
    """
    overlaps = best_overlap(boxes, truths)
    return np.where(np.isnan(overlaps), np.nan, (overlaps <= 0.5).astype(np.float64))


def official_metric(errors: ArrayLike, correct: ArrayLike) -> NDArray[np.float64]:
    """OM: 1 where the box or the class is wrong, else 0; lower is better; never below LE.

    Args:
        errors: (N,) from `localisation_error`.
        correct: (N,) whether the classifier's first answer is right.

    Returns:
        (N,), 0 or 1; NaN where the error is undefined.

    Reference:
        Russakovsky et al., arXiv:1409.0575: the localisation task's error.

    >>> official_metric([0, 0, 1], [True, False, True])
    array([0., 1., 1.])
    """
    missed = np.asarray(errors, dtype=np.float64)
    right = np.asarray(correct, dtype=np.bool_)
    checks.shapes("N", errors=missed, correct=right)
    return np.where(np.isnan(missed) | right, missed, 1.0)


def f1(masks: NDArray[Any], truths: Sequence[NDArray[Any]]) -> NDArray[np.float64]:
    """F1 of a soft mask against the true box that suits it best; higher is better.

    With m inside a box of area A (the part outside the image included): precision = m inside / all of m, recall = m inside / A.

    Args:
        masks: (N, H, W), in [0, 1]: recall depends on the scale.
        truths: for each image (k, 4), half-open, possibly partly outside the image.

    Returns:
        (N,), in [0, 1]; a mask of ones scores 2s / (1 + s) for a box that covers a share s of the image; NaN for an image
        without a box of positive area.

    Reference:
        Phang, Park, Geras, arXiv:2010.09750.

    >>> f1(np.array([[[1.0, 1.0, 0.0, 0.0]]]), [np.array([[0, 0, 1, 1]])]).round(4)
    array([0.6667])
    """
    return np.array(
        [scores.max() if len(scores) else np.nan for scores in _f1_of_boxes(masks, truths)], dtype=np.float64
    )


def f1a(masks: NDArray[Any], truths: Sequence[NDArray[Any]]) -> NDArray[np.float64]:
    """F1 of a soft mask as in `f1`, averaged over the image's true boxes; higher is better.

    Args:
        masks: (N, H, W), in [0, 1].
        truths: for each image (k, 4), half-open, possibly partly outside the image; one of no area scores 0.

    Returns:
        (N,), in [0, 1]; NaN for an image without a box of positive area.

    Reference:
        Phang, Park, Geras, arXiv:2010.09750.

    >>> f1a(np.array([[[1.0, 1.0, 0.0, 0.0]]]), [np.array([[0, 0, 1, 1], [3, 0, 4, 1]])]).round(4)
    array([0.3333])
    """
    return np.array(
        [scores.mean() if len(scores) else np.nan for scores in _f1_of_boxes(masks, truths)], dtype=np.float64
    )


def log_area(boxes: ArrayLike, size: tuple[int, int]) -> NDArray[np.float64]:
    """SM1: the logarithm of the share of the image that the box covers, at least 0.05; lower is better.

    Args:
        boxes: (N, 4), half-open, within the image.
        size: height and width of the image.

    Returns:
        (N,), from ln 0.05 = -2.996 (an empty box as well) to 0, the whole image.

    Reference:
        Dabkowski and Gal, arXiv:1705.07857.

    >>> log_area([[0, 0, 2, 4], [0, 0, 4, 4]], (4, 4)).round(4)
    array([-0.6931,  0.    ])
    """
    corners = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
    share = np.maximum(corners[:, 2:] - corners[:, :2], 0.0).prod(axis=1) / (size[0] * size[1])
    logarithms: NDArray[np.float64] = np.log(np.clip(share, _SMALLEST_AREA, 1.0))
    return logarithms


def saliency_metric(sm1: ArrayLike, sm2: ArrayLike) -> NDArray[np.float64]:
    """SM = SM1 - SM2: a small box whose content is still classified well; lower is better.

    Args:
        sm1: (N,) from `log_area`.
        sm2: (N,) ln p of the true class, of the classifier on what the box holds, enlarged to the size of the image.

    Returns:
        (N,), unbounded above; the whole image scores -ln p, the loss on the intact image.

    Reference:
        Dabkowski and Gal, arXiv:1705.07857.

    >>> saliency_metric([-2.0], [-0.5])
    array([-1.5])
    """
    area, probability = np.asarray(sm1, dtype=np.float64), np.asarray(sm2, dtype=np.float64)
    checks.shapes("N", sm1=area, sm2=probability)
    return area - probability


def _f1_of_boxes(given: NDArray[Any], truths: Sequence[NDArray[Any]]) -> Iterator[NDArray[np.float64]]:
    """For each image the F1 of all its boxes; none where no box has an area."""
    _, height, width = checks.shapes("N H W", masks=given).values()
    if len(truths) != len(given):
        raise InputError(f"truths: of {len(truths)} images; expected {len(given)}, as there are masks")
    for mask, truth in zip(np.asarray(given, dtype=np.float64), truths, strict=True):
        if mask.size and (mask.min() < 0 or mask.max() > 1):
            raise InputError(f"masks: values from {mask.min():g} to {mask.max():g}; bring them to [0, 1] first")
        corners = checks.pixel_corners(truth) if len(_with_area(truth)) else np.zeros((0, 4), np.int64)
        clipped = np.clip(corners, 0, np.array([width, height, width, height]))
        inside = np.array([mask[y0:y1, x0:x1].sum() for x0, y0, x1, y1 in clipped])
        areas = (corners[:, 2:] - corners[:, :2]).prod(axis=1)
        precision = inside / (mask.sum() + 1e-6)
        recall = np.divide(inside, areas, out=np.zeros(len(corners)), where=areas > 0)
        yield 2 * precision * recall / (precision + recall + 1e-6)


def _with_area(truth: NDArray[Any]) -> NDArray[Any]:
    boxes = np.asarray(truth).reshape(-1, 4)
    return boxes[(boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])]


def _candidates(found: Contours, reference: bool) -> tuple[Boxes, NDArray[np.int64]]:
    """Boxes of all contours and their thresholds; a hole is a place where the map is low, and counts as published only."""
    return (found.boxes, found.steps) if reference else (found.boxes[~found.holes], found.steps[~found.holes])


def _as_published(boxes: Boxes, size: tuple[int, ...]) -> Boxes:
    """Tight half-open boxes with WSOL's corners; an empty box stays (0, 0, 0, 0)."""
    corners: Boxes = np.minimum(boxes, np.array([size[1] - 1, size[0] - 1, size[1] - 1, size[0] - 1]))
    return corners
