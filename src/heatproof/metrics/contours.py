"""The contours of a map at many thresholds, without OpenCV and equal to OpenCV's."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage

from heatproof import checks
from heatproof.errors import InputError
from heatproof.metrics import masks

_EIGHT = masks.in_plane(np.ones((3, 3)))
_FOUR = masks.in_plane(ndimage.generate_binary_structure(2, 1))

_PIXELS_AT_ONCE = 1 << 20  # thresholds are labelled together up to so many pixels: bounds the memory


@dataclass(frozen=True)
class Contours:
    """The contours of one map at all thresholds.

    Attributes:
        boxes: (M, 4) bounding boxes of all outer and hole borders, tight, half-open.
        steps: (M,) index of the threshold that each belongs to, ascending.
        holes: (M,) whether it is the border of a hole.
        largest: (T, 4) at each threshold the box of the contour of largest polygon area; zeros where there is no contour.
    """

    boxes: NDArray[np.int64]
    steps: NDArray[np.int64]
    holes: NDArray[np.bool_]
    largest: NDArray[np.int64]


def contours(scores: NDArray[Any], taus: ArrayLike) -> Contours:
    """What a map's foreground looks like at each threshold.

    The map is cut to 8 bits; foreground is what lies strictly above floor(tau * maximum). Outer borders are those of
    8-connected foreground parts. Borders of holes are those of 4-connected background parts that do not touch the frame,
    one pixel larger on each side. The polygon through the pixel centres of an outer border has as area the number of 2 x 2
    blocks inside, plus half for each block with three pixels inside; of equal areas the last in raster order counts.

    Args:
        scores: (H, W), in [0, 1].
        taus: (T,), in [0, 1).

    Reference:
        Suzuki and Abe (1985), as in OpenCV's findContours and contourArea.

    >>> block = np.zeros((10, 10))
    >>> block[3, 2] = 1.0
    >>> contours(block, [0.5]).largest.tolist()
    [[2, 3, 3, 4]]
    """
    checks.shapes("H W", scores=scores)
    if scores.size and not (np.min(scores) >= 0 and np.max(scores) <= 1):
        raise InputError(f"scores: values from {np.min(scores):g} to {np.max(scores):g}; bring them to [0, 1] first")
    grey = (255 * np.asarray(scores)).astype(np.uint8)
    cuts = (np.asarray(taus, dtype=np.float64) * int(grey.max(initial=0))).astype(np.int64)
    levels, level_of = np.unique(cuts, return_inverse=True)
    found = [_labelled(grey, levels[part], part.start, corner) for part, corner in _parts(grey, levels)]
    largest = np.zeros((len(levels), 4), dtype=np.int64)
    for part in found:
        largest[part.largest_steps] = part.largest
    boxes = np.concatenate([np.zeros((0, 4), dtype=np.int64), *(part.boxes for part in found)])
    steps = np.concatenate([np.zeros(0, dtype=np.int64), *(part.steps for part in found)])
    holes = np.concatenate([np.zeros(0, dtype=np.bool_), *(part.holes for part in found)])
    order = np.argsort(steps, kind="stable")
    boxes, steps, holes = boxes[order], steps[order], holes[order]
    # Thresholds that cut at the same level of grey share their contours.
    starts = np.searchsorted(steps, np.arange(len(levels) + 1))
    counts = np.diff(starts)[level_of]
    chosen = np.repeat(starts[level_of] - np.concatenate([[0], counts.cumsum()[:-1]]), counts) + np.arange(counts.sum())
    return Contours(boxes[chosen], np.repeat(np.arange(len(cuts)), counts), holes[chosen], largest[level_of])


@dataclass(frozen=True)
class _Part:
    """The contours of some consecutive levels of grey."""

    boxes: NDArray[np.int64]
    steps: NDArray[np.int64]
    holes: NDArray[np.bool_]
    largest: NDArray[np.int64]
    largest_steps: NDArray[np.int64]


def _parts(grey: NDArray[np.uint8], levels: NDArray[np.int64]) -> Iterator[tuple[slice, tuple[slice, slice]]]:
    """Levels that are labelled together, and the part of the image that holds all their foreground."""
    start = 0
    while start < len(levels) and (grey > levels[start]).any():
        rows, columns = ((grey > levels[start]).any(axis=axis) for axis in (1, 0))
        (top, bottom), (left, right) = (np.flatnonzero(filled)[[0, -1]] for filled in (rows, columns))
        corner = slice(int(top), int(bottom) + 1), slice(int(left), int(right) + 1)
        stop = start + max(1, _PIXELS_AT_ONCE // int((bottom - top + 1) * (right - left + 1)))
        yield slice(start, min(stop, len(levels))), corner
        start = stop


def _labelled(grey: NDArray[np.uint8], levels: NDArray[np.int64], first: int, corner: tuple[slice, slice]) -> _Part:
    foreground = grey[corner][None] > levels[:, None, None]
    labels, count = ndimage.label(foreground, structure=_EIGHT)
    outer, outer_steps = _bounds(labels, count)
    gaps, count = ndimage.label(~foreground, structure=_FOUR)
    holes, hole_steps = _bounds(gaps, count)
    height, width = foreground.shape[1:]
    # Beyond the corner there is background only, up to the frame: what touches its border is no hole.
    closed = (holes[:, :2] > 0).all(axis=1) & (holes[:, 2] < width) & (holes[:, 3] < height)
    filled, filled_boxes, filled_steps = labels, outer, outer_steps
    if closed.any():
        filled, count = ndimage.label(foreground | np.append(False, closed)[gaps], structure=_EIGHT)
        filled_boxes, filled_steps = _bounds(filled, count)
    # The last of the largest of each level: sorted by level, area and raster order, it stands before the next level.
    order = np.lexsort((_polygon_areas(filled, len(filled_boxes)), filled_steps))
    last = order[np.flatnonzero(np.diff(filled_steps[order], append=len(levels)))]
    at = np.array([corner[1].start, corner[0].start] * 2)
    return _Part(
        boxes=np.concatenate([outer, holes[closed] + np.array([-1, -1, 1, 1])]) + at,
        steps=np.concatenate([outer_steps, hole_steps[closed]]) + first,
        holes=np.repeat([False, True], [len(outer), int(closed.sum())]),
        largest=filled_boxes[last] + at,
        largest_steps=filled_steps[last] + first,
    )


def _bounds(labels: NDArray[Any], count: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Box and level of each label 1, 2, ..., count, from its runs along rows; labels do not touch within a row."""
    _, height, width = labels.shape
    first, last = _runs(labels > 0)
    owner = labels.reshape(-1)[first]
    rows, left = np.divmod(first, width)
    level, top = np.divmod(rows, height)
    boxes = np.zeros((count + 1, 4), dtype=np.int64)
    boxes[:, :2] = width
    np.minimum.at(boxes[:, 0], owner, left)
    np.maximum.at(boxes[:, 2], owner, last - rows * width + 1)
    # Runs come from top to bottom: the last to write a row wins.
    boxes[owner, 3] = top + 1
    boxes[owner[::-1], 1] = top[::-1]
    levels = np.zeros(count + 1, dtype=np.int64)
    levels[owner] = level
    return boxes[1:], levels[1:]


def _polygon_areas(labels: NDArray[Any], count: int) -> NDArray[np.float64]:
    """Area of the polygon through the pixel centres around each label; no label has a hole."""
    if min(labels.shape[1:]) < 2:
        return np.zeros(count)
    filled = labels > 0
    both, one = filled[:, :-1] & filled[:, 1:], filled[:, :-1] | filled[:, 1:]  # of a pixel and the one below it
    # A 2 x 2 block, at its upper left pixel: all four set, or three, which are neighbours and carry the same label.
    first, last = _runs(both[:, :, :-1] & both[:, :, 1:])
    three = np.nonzero((both[:, :, :-1] ^ both[:, :, 1:]) & one[:, :, :-1] & one[:, :, 1:])
    upper, lower = labels[:, :-1, :-1], labels[:, 1:, 1:]
    owners = np.concatenate([upper[np.unravel_index(first, upper.shape)], np.maximum(upper[three], lower[three])])
    weights = np.concatenate([last - first + 1.0, np.full(len(three[0]), 0.5)])
    return np.bincount(owners, weights=weights, minlength=count + 1)[1:].astype(np.float64)


def _runs(filled: NDArray[np.bool_]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """First and last position, in the flattened array, of each run along the last axis."""
    starts, ends = filled.copy(), filled.copy()
    starts[..., 1:] &= ~filled[..., :-1]
    ends[..., :-1] &= ~filled[..., 1:]
    return np.flatnonzero(starts), np.flatnonzero(ends)
