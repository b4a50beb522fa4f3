"""PxAP: how well a map's values separate the object's pixels from the others, at all thresholds at once.

Counts of pixels come first: histograms of the values on the object and off it, one pair for each image. They add up, so
the pooled score of any set of images, a bootstrap resample for instance, needs no map again.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from heatproof import checks
from heatproof.errors import InputError

INTERVAL = 0.01


def bin_edges(interval: float = INTERVAL) -> NDArray[np.float64]:
    """Edges 0, d, ..., 1 - d, 1, 2, 3 of the histograms; values equal to 1 fall into [1, 2).

    >>> bin_edges(0.25).tolist()
    [0.0, 0.25, 0.5, 0.75, 1.0, 2.0, 3.0]
    """
    if not 0 < interval < 1:
        raise InputError(f"interval: {interval!r} must lie between 0 and 1")
    return np.append(np.arange(0.0, 1.0, interval), [1.0, 2.0, 3.0])


def pixel_histograms(
    maps: NDArray[Any], regions: NDArray[np.bool_], ignored: NDArray[np.bool_] | None = None, interval: float = INTERVAL
) -> NDArray[np.int64]:
    """How many pixels have which value, on the object and off it.

    Args:
        maps: (N, H, W), in [0, 1].
        regions: (N, H, W), True on the object.
        ignored: (N, H, W), pixels that count neither way; object pixels among them count.
        interval: width of the bins.

    Returns:
        (N, 2, B): object, background; bins in ascending order of the value.

    >>> pixel_histograms(np.array([[[1.0, 0.3, 0.1]]]), np.array([[[True, False, False]]]), interval=0.5).tolist()
    [[[0, 0, 1, 0], [2, 0, 0, 0]]]
    """
    images, height, width = checks.shapes("N H W", maps=maps, regions=regions).values()
    checks.boolean(regions=regions, ignored=ignored)
    edges = bin_edges(interval)
    if maps.size and not (np.min(maps) >= 0 and np.max(maps) <= 1):
        raise InputError(f"maps: values from {np.min(maps):g} to {np.max(maps):g}; bring them to [0, 1] first")
    bins = len(edges) - 1
    places = np.searchsorted(edges, np.asarray(maps, dtype=np.float64).ravel(), side="right") - 1
    rows = 2 * np.arange(images)[:, None, None] + ~regions
    keys = (rows.ravel() * bins + places).reshape(images, height, width)
    if ignored is not None:
        checks.shapes(f"{images} {height} {width}", ignored=ignored)
        keys = keys[regions | ~ignored]
    return np.bincount(keys.ravel(), minlength=images * 2 * bins).reshape(images, 2, bins).astype(np.int64)


def pixel_average_precision(histograms: NDArray[Any]) -> NDArray[np.float64]:
    """Area under precision over recall, as the threshold falls from the highest bin to the lowest; higher is better.

    The sum over bins of precision times the recall gained there; a map that knows nothing scores the share of object pixels.

    Args:
        histograms: (N, 2, B) of the images one by one, or (2, B), the sum of them: then all pixels are pooled, which is
            the published PxAP (times 100). Any (..., 2, B) will do. The highest bin is a stop and must be empty.

    Returns:
        (N,) or (...), in [0, 1]; NaN where there is no object pixel.

    Reference:
        Choe et al., arXiv:2007.04178 (PxAP).

    >>> maps, regions = np.array([[[0.9, 0.4, 0.5, 0.1]]]), np.array([[[True, True, False, False]]])
    >>> float(round(100 * pixel_average_precision(pixel_histograms(maps, regions).sum(axis=0)), 4))
    83.3333
    """
    if histograms.ndim < 2 or histograms.shape[-2] != 2:
        raise InputError(f"histograms: shape {histograms.shape}; expected (..., 2, bins)")
    falling = np.asarray(histograms, dtype=np.float64)[..., ::-1].cumsum(axis=-1)
    true, false = falling[..., 0, :], falling[..., 1, :]
    predicted, objects = true + false, true[..., -1]
    precision = np.divide(true, predicted, out=np.zeros_like(true), where=predicted > 0)
    area = (precision[..., 1:] * np.diff(true, axis=-1)).sum(axis=-1)
    scores: NDArray[np.float64] = np.divide(area, objects, out=np.full_like(area, np.nan), where=objects > 0)
    return scores


def pooled_average_precision(histograms: NDArray[Any]) -> float:
    """`pixel_average_precision` of all pixels of all images together.

    Args:
        histograms: (N, 2, B).

    Raises:
        InputError: no image has an object pixel.

    >>> pooled_average_precision(np.array([[[0, 1, 0], [1, 0, 0]], [[1, 0, 0], [0, 0, 0]]]))
    0.8333333333333333
    """
    checks.shapes("N 2 B", histograms=histograms)
    if not histograms[:, 0].any():
        raise InputError("histograms: no image has an object pixel; PxAP is not defined")
    return float(pixel_average_precision(histograms.sum(axis=0)))


def object_share(histograms: NDArray[Any]) -> NDArray[np.float64]:
    """The score of a map that knows nothing: the share of object pixels among those that count.

    Args:
        histograms: (N, 2, B), or any (..., 2, B).

    Returns:
        (N,) or (...), in [0, 1]; NaN where there is no object pixel.

    >>> object_share(np.array([[[0, 1], [3, 0]]]))
    array([0.25])
    """
    counts = np.asarray(histograms, dtype=np.float64).sum(axis=-1)
    objects, total = counts[..., 0], counts.sum(axis=-1)
    shares: NDArray[np.float64] = np.divide(objects, total, out=np.full_like(total, np.nan), where=objects > 0)
    return shares
