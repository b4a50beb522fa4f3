"""Maps as masks: where a map is high, and how such a mask looks (size, sharpness, smoothness).

A mask is a map in [0, 1]. The statistics are those that the masking-based methods publish beside their scores; they
describe a mask, and none of them is better high or low.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage

from heatproof import checks
from heatproof.errors import InputError


def unit_range(maps: NDArray[Any]) -> NDArray[np.float64]:
    """Each map moved and scaled to [0, 1]: (a - min) / (max - min). A constant map, or one with NaN, becomes zeros.

    Args:
        maps: (N, H, W), any real numbers.

    Returns:
        (N, H, W).

    >>> unit_range(np.array([[[-1.0, 1.0, 3.0]], [[7.0, 7.0, 7.0]]])).tolist()
    [[[0.0, 0.5, 1.0]], [[0.0, 0.0, 0.0]]]
    """
    checks.shapes("N H W", maps=maps)
    values = np.array(maps, dtype=np.float64)
    values[~np.isfinite(values).all(axis=(1, 2))] = 0.0
    low, high = values.min(axis=(1, 2), keepdims=True), values.max(axis=(1, 2), keepdims=True)
    # Dividing by the range itself, and not by a rounded reciprocal, makes the maximum exactly 1.
    scaled: NDArray[np.float64] = (values - low) / np.where(high > low, high - low, 1.0)
    return scaled


def binarized(masks: NDArray[Any]) -> NDArray[np.bool_]:
    """Where each mask is strictly above its own mean; nowhere for a constant mask.

    Args:
        masks: (N, H, W).

    Returns:
        (N, H, W).

    Reference:
        Phang, Park, Geras, arXiv:2010.09750.

    >>> binarized(np.array([[[0.0, 0.25, 0.75]], [[0.5, 0.5, 0.5]]])).astype(int).tolist()
    [[[0, 0, 1]], [[0, 0, 0]]]
    """
    checks.shapes("N H W", masks=masks)
    values = np.asarray(masks, dtype=np.float64)
    # The mean of equal values can come out below them; then everything would be "above the mean".
    varies = values.max(axis=(1, 2), keepdims=True) > values.min(axis=(1, 2), keepdims=True)
    above: NDArray[np.bool_] = (values > values.mean(axis=(1, 2), keepdims=True)) & varies
    return above


def largest_component(regions: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The largest 4-connected part of each region; of equal ones, the first in raster order. Empty stays empty.

    Args:
        regions: (N, H, W).

    Returns:
        (N, H, W).

    >>> largest_component(np.array([[[True, False, True], [False, True, True]]])).astype(int).tolist()
    [[[0, 0, 1], [0, 1, 1]]]
    """
    images, _, _ = checks.shapes("N H W", regions=regions).values()
    checks.boolean(regions=regions)
    # All images at once: parts of different images are not neighbours, and labels count up image by image.
    labels, count = ndimage.label(regions, structure=in_plane(ndimage.generate_binary_structure(2, 1)))
    if not count:
        return np.zeros(regions.shape, dtype=np.bool_)
    sizes = np.bincount(labels.ravel(), minlength=count + 1)
    sizes[0] = 0
    image_of = np.zeros(count + 1, dtype=np.int64)
    image_of[labels.reshape(-1)] = np.repeat(np.arange(images), labels[0].size)
    image_of[0] = images
    # Sorted by image, then size descending; the sort is stable, so the first of equal parts stays in front.
    order = np.lexsort((-sizes, image_of))
    _, first = np.unique(image_of[order], return_index=True)
    chosen = np.zeros(count + 1, dtype=np.bool_)
    chosen[order[first]] = True
    chosen[0] = False
    return np.asarray(chosen[labels])


def in_plane(structure: NDArray[Any]) -> NDArray[np.bool_]:
    """A 2-D neighbourhood (3, 3) for a stack of images: within each image, never from one to the next.

    >>> in_plane(np.ones((3, 3))).sum(axis=(1, 2)).tolist()
    [0, 9, 0]
    """
    stacked = np.zeros((3, 3, 3), dtype=np.bool_)
    stacked[1] = structure
    return stacked


def saliency_points(masks: NDArray[Any]) -> NDArray[np.float64]:
    """The centre of mass of each mask within its largest part above the mean, rounded: a point for pointing games.

    Args:
        masks: (N, H, W), in [0, 1].

    Returns:
        (N, 2): column and row; NaN for a constant mask, which points nowhere.

    Reference:
        Phang, Park, Geras, arXiv:2010.09750 (their code gives row and column).

    >>> saliency_points(np.array([[[0.0, 0.0, 0.0, 1.0, 1.0, 1.0]]]))
    array([[4., 0.]])
    """
    checks.shapes("N H W", masks=masks)
    points = np.full((len(masks), 2), np.nan)
    for row, (mask, part) in enumerate(zip(masks, largest_component(binarized(masks)), strict=True)):
        if part.any():
            points[row] = ndimage.center_of_mass(np.where(part, mask, 0))[::-1]
    rounded: NDArray[np.float64] = np.rint(points)
    return rounded


def binarized_share(masks: NDArray[Any]) -> NDArray[np.float64]:
    """Share of each image's pixels at which the mask is above its own mean; neither direction is better.

    Args:
        masks: (N, H, W).

    Returns:
        (N,), in [0, 1]; 0 for a constant mask.

    >>> binarized_share(np.array([[[0.0, 0.0, 0.0, 1.0]]]))
    array([0.25])
    """
    shares: NDArray[np.float64] = binarized(masks).mean(axis=(1, 2), dtype=np.float64)
    return shares


def average(masks: NDArray[Any]) -> NDArray[np.float64]:
    """Mean value of each mask: how much of the image it keeps; neither direction is better.

    Args:
        masks: (N, H, W), in [0, 1].

    Returns:
        (N,), in [0, 1].

    >>> average(np.array([[[0.0, 0.5, 1.0]]]))
    array([0.5])
    """
    checks.shapes("N H W", masks=masks)
    means: NDArray[np.float64] = np.asarray(masks, dtype=np.float64).mean(axis=(1, 2))
    return means


def soft_entropy(masks: NDArray[Any]) -> NDArray[np.float64]:
    """Mean over the pixels of -m log2(m), 0 for m = 0 and m = 1: how far a mask is from black and white.

    One side of the binary entropy only, as published (and there called the prediction's entropy, which it is not). Neither
    direction is better.

    Args:
        masks: (N, H, W), in [0, 1].

    Returns:
        (N,), in bits, between 0 and 0.531 (a mask of 1/e everywhere).

    >>> soft_entropy(np.array([[[0.0, 0.5, 1.0, 0.5]]]))
    array([0.25])
    """
    checks.shapes("N H W", masks=masks)
    values = np.asarray(masks, dtype=np.float64)
    soft = (values > 0) & (values < 1)
    bits = -values * np.log2(np.where(soft, values, 1.0))
    return np.asarray(np.where(soft, bits, 0.0).mean(axis=(1, 2)))


def total_variation(masks: NDArray[Any]) -> NDArray[np.float64]:
    """Mean squared difference of horizontal neighbours plus that of vertical ones; neither direction is better.

    Args:
        masks: (N, H, W).

    Returns:
        (N,), 0 for a constant mask; a direction in which the image is one pixel wide adds nothing.

    >>> total_variation(np.array([[[0.0, 1.0], [0.0, 1.0]]]))
    array([1.])
    """
    checks.shapes("N H W", masks=masks)
    values = np.asarray(masks, dtype=np.float64)
    total = np.zeros(len(values))
    for axis in (1, 2):
        if values.shape[axis] > 1:
            total += np.square(np.diff(values, axis=axis)).mean(axis=(1, 2))
    return total


def spread_of_averages(averages: ArrayLike, batches: Sequence[int] | None = None) -> float:
    """Standard deviation (n - 1) over images of the masks' mean values; neither direction is better.

    Args:
        averages: (N,) from `average`; NaN is left out.
        batches: sizes of consecutive batches that cover the images: then the deviation within each batch, averaged by size, as
            published. It depends on the size of the batch.

    Returns:
        One number; NaN for fewer than two images.

    >>> round(spread_of_averages([0.1, 0.2, 0.3]), 6)
    0.1
    """
    values = np.asarray(averages, dtype=np.float64)
    checks.shapes("N", averages=values)
    if batches is None:
        values = values[np.isfinite(values)]
        return float(values.std(ddof=1)) if len(values) > 1 else float("nan")
    if sum(batches) != len(values):
        raise InputError(f"batches: {list(batches)} hold {sum(batches)} images; there are {len(values)}")
    parts = np.split(values, np.cumsum(batches)[:-1])
    return float(np.average([part.std(ddof=1) for part in parts], weights=batches))
