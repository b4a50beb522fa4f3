"""The pointing game: does the map's highest point lie on the object?

A point is (u, v) = column, row. The distance from a point to an object is Euclidean, between pixel centres, and computed
in integers where points are: a distance of exactly the tolerance is a miss on every machine.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage

from heatproof import checks
from heatproof.errors import InputError

PHOTOGRAPH = 128
"""Images whose shorter side has at least so many pixels are photographs, to which the published tolerance belongs."""


def top_points(ranks: NDArray[Any]) -> NDArray[np.int64]:
    """The point (u, v) of each map's most important pixel, ties broken as in every other metric.

    Args:
        ranks: (N, H, W), 0 = most important, as stored with the maps.

    Returns:
        (N, 2): column and row of the pixel with rank 0.

    >>> top_points(np.array([[[2, 1, 3], [4, 5, 0]]])).tolist()
    [[2, 1]]
    """
    images, _, width = checks.shapes("N H W", ranks=ranks).values()
    checks.whole(ranks=np.asarray(ranks))
    rows, columns = np.divmod(np.asarray(ranks).reshape(images, -1).argmin(axis=1), width)
    return np.stack([columns, rows], axis=1).astype(np.int64)


def hit(maps_or_points: ArrayLike, regions: NDArray[np.bool_], tolerance: float) -> NDArray[np.float64]:
    """1 where an object pixel lies strictly closer to the map's highest point than the tolerance, else 0; higher is better.

    A map that points anywhere at random hits with the share of the image that is closer than `tolerance` to the object.
    Tolerance 1 means "the point itself lies on the object"; 0 never hits.

    Args:
        maps_or_points: (N, H, W) maps, whose first maximum in row-major order is taken; or (N, 2) points (u, v), such as
            `top_points` gives, which break ties without favouring the top of the image.
        regions: (N, H, W), True on the object.
        tolerance: in pixels.

    Returns:
        (N,), 0 or 1; NaN where the region is empty: there is nothing to point at.

    Reference:
        Zhang et al., arXiv:1608.00507; TorchRay's PointingGame (its documentation says "at most", its code "below").

    >>> region = np.zeros((1, 50, 50), dtype=bool)
    >>> region[0, 20, 20] = True
    >>> points = [[34, 20], [35, 20], [29, 32], [29, 31]]  # at distance 14, 15, 15 and 14.2
    >>> hit(points, region.repeat(4, axis=0), tolerance=15)
    array([1., 0., 0., 1.])
    """
    images, height, width = checks.shapes("N H W", regions=regions).values()
    checks.boolean(regions=regions)
    _check_tolerance(tolerance)
    points = _points(np.asarray(maps_or_points), images, height, width)
    rows = np.arange(height)[None, :, None] - points[:, 1, None, None]
    columns = np.arange(width)[None, None, :] - points[:, 0, None, None]
    near = rows**2 + columns**2 < tolerance**2
    hits: NDArray[np.float64] = (near & regions).any(axis=(1, 2)).astype(np.float64)
    hits[~regions.any(axis=(1, 2))] = np.nan
    return hits


def chance(regions: NDArray[np.bool_], tolerance: float) -> NDArray[np.float64]:
    """The hit rate of a point drawn evenly from the image: the share of pixels closer than `tolerance` to the object.

    Args:
        regions: (N, H, W), True on the object.
        tolerance: in pixels.

    Returns:
        (N,), in [0, 1]; NaN where the region is empty.

    >>> region = np.zeros((1, 4, 4), dtype=bool)
    >>> region[0, 0, 0] = True
    >>> chance(region, 1), chance(region, 2)
    (array([0.0625]), array([0.25]))
    """
    checks.shapes("N H W", regions=regions)
    checks.boolean(regions=regions)
    _check_tolerance(tolerance)
    shares = np.full(len(regions), np.nan)
    for row, region in enumerate(regions):
        if region.any():
            # Squared distances are integers: a distance of exactly the tolerance stays a miss after rounding.
            squared = np.rint(ndimage.distance_transform_edt(~region) ** 2)
            shares[row] = (squared < tolerance**2).mean()
    return shares


def _check_tolerance(tolerance: float) -> None:
    if not tolerance >= 0:
        raise InputError(f"tolerance: {tolerance!r} pixels; it must be at least 0")


def checked_tolerance(
    size: tuple[int, int], tolerance: float | None = None, *, relative: bool = False, force: bool = False
) -> float:
    """The tolerance in pixels for images of a size; one that makes the game meaningless is refused.

    Args:
        size: height and width.
        tolerance: None: 15 pixels, the published value, for photographs (shorter side of at least 128 pixels), 1 for
            smaller ones.
        relative: `tolerance` is a share of the image's diagonal.
        force: accept a tolerance of a quarter of the shorter side or more, with which a point in the middle nearly always
            hits.

    Raises:
        InputError: the tolerance hits never, or nearly always.

    >>> checked_tolerance((224, 224)), checked_tolerance((32, 32)), checked_tolerance((300, 400), 0.05, relative=True)
    (15.0, 1.0, 25.0)
    """
    side = min(size)
    if tolerance is None:
        return 15.0 if side >= PHOTOGRAPH else 1.0
    if not tolerance > 0:
        raise InputError(f"tolerance: {tolerance!r} never hits; 1 means that the point itself lies on the object")
    distance = tolerance * math.hypot(*size) if relative else float(tolerance)
    if distance >= side / 4 and not force:
        raise InputError(
            f"tolerance: {distance:g} pixels mean nothing on images of {size[1]} x {size[0]}; "
            f"take less than {side / 4:g} (1: the point itself lies on the object), or force it"
        )
    return distance


def class_accuracy(
    hits: ArrayLike, classes: ArrayLike, count: int
) -> tuple[NDArray[np.float64], NDArray[np.int64], float]:
    """Hits of each class divided by its tests, and their mean over the classes that were tested; higher is better.

    Args:
        hits: (N,) 1, 0, or NaN for a test that was not made; one test for each image and class present.
        classes: (N,) class of each test.
        count: number of classes.

    Returns:
        (count,) accuracies, NaN for a class without a test (TorchRay counts it as 0); (count,) number of tests; the mean.

    >>> class_accuracy([1, 0, 1, np.nan], [0, 0, 2, 1], 3)
    (array([0.5, nan, 1. ]), array([2, 0, 1]), 0.75)
    """
    values, labels = np.asarray(hits, dtype=np.float64), np.asarray(classes)
    checks.shapes("N", hits=values, classes=labels)
    if len(labels):
        checks.whole(classes=labels)
        if labels.min() < 0 or labels.max() >= count:
            raise InputError(f"classes: from {labels.min()} to {labels.max()}; expected 0 to {count - 1}")
    labels = labels.astype(np.int64)
    made = np.isfinite(values)
    tests = np.bincount(labels[made], minlength=count)
    sums = np.bincount(labels[made], weights=values[made], minlength=count)
    accuracy: NDArray[np.float64] = np.divide(sums, tests, out=np.full(count, np.nan), where=tests > 0)
    return accuracy, tests, float(accuracy[tests > 0].mean()) if made.any() else float("nan")


def box_regions(boxes: Sequence[NDArray[np.integer]], size: tuple[int, int]) -> NDArray[np.bool_]:
    """The union of each image's boxes: (N, H, W).

    Args:
        boxes: for each image (k, 4), half-open; parts outside the image are left out. VOC's corners are 1-based and
            inclusive: (xmin - 1, ymin - 1, xmax, ymax) is half-open.
        size: height and width.

    >>> box_regions([np.array([[1, -3, 3, 1]])], (2, 4)).astype(int).tolist()
    [[[0, 1, 1, 0], [0, 0, 0, 0]]]
    """
    regions = np.zeros((len(boxes), *size), dtype=np.bool_)
    for region, image_boxes in zip(regions, boxes, strict=True):
        for x0, y0, x1, y1 in np.maximum(checks.pixel_corners(image_boxes), 0):
            region[y0:y1, x0:x1] = True
    return regions


def _points(given: NDArray[Any], images: int, height: int, width: int) -> NDArray[Any]:
    if given.ndim == 2:
        checks.shapes(f"{images} 2", points=given)
        return given
    checks.shapes(f"{images} {height} {width}", maps=given)
    rows, columns = np.divmod(given.reshape(images, -1).argmax(axis=1), width)
    return np.stack([columns, rows], axis=1)
