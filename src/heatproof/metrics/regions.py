"""Localisation by weight and order: how much of a map, or of its highest pixels, lies on the object?

Each function takes a whole batch and returns one float64 for each image. An image without an object has no score (NaN), and
`ignored` pixels, the uncertain border of an object for instance, count neither as object nor as background.
"""

from typing import Any

import numpy as np
import scipy
from numpy.typing import NDArray

from heatproof import checks
from heatproof.errors import InputError

Mask = NDArray[np.bool_]


def region_share(regions: Mask, ignored: Mask | None = None) -> NDArray[np.float64]:
    """Share of the image that the object covers: what mass, rank and top-k in region are for a map that knows nothing.

    Args:
        regions: (N, H, W), True on the object.
        ignored: (N, H, W), pixels that count neither way.

    Returns:
        (N,), in (0, 1]; NaN for an image without object.

    >>> region_share(np.array([[[True, False, False, False]]]))
    array([0.25])
    """
    inside, counted = _counted(regions, ignored)
    return _ratio(inside.sum(axis=(1, 2)), counted.sum(axis=(1, 2)), inside)


def mass_in_region(
    maps: NDArray[Any], regions: Mask, ignored: Mask | None = None, *, signed: bool = False
) -> NDArray[np.float64]:
    """Share of each map's positive mass that lies inside its region; higher is better.

    For a map a and a region R: the sum of max(a, 0) over R, divided by the same sum over the whole image. A map of equal
    values scores the share of the image that R covers.

    Args:
        maps: (N, H, W), any real numbers.
        regions: (N, H, W), True on the object.
        ignored: (N, H, W), pixels that count neither way.
        signed: do not clip negative values, as Quantus does; the score then has no range.

    Returns:
        (N,), in [0, 1]; NaN where no value of the map is positive, and for an image without object.

    Reference:
        Arras, Osman, Samek: "CLEVR-XAI", Information Fusion 81 (2022): relevance mass accuracy.

    >>> maps = np.array([[[3.0, 1.0], [0.0, -5.0]]])
    >>> regions = np.array([[[True, False], [False, True]]])
    >>> mass_in_region(maps, regions)
    array([0.75])
    """
    checks.shapes("N H W", maps=maps, regions=regions)
    inside, counted = _counted(regions, ignored)
    values = np.asarray(maps, dtype=np.float64)
    mass = values if signed else np.maximum(values, 0.0)
    return _ratio(mass.sum(axis=(1, 2), where=inside), mass.sum(axis=(1, 2), where=counted), inside)


def absolute_mass_in_region(maps: NDArray[Any], regions: Mask, ignored: Mask | None = None) -> NDArray[np.float64]:
    """Share of the mass of |a| that lies inside the region; higher is better. A constant map scores the region's share.

    Args:
        maps: (N, H, W), any real numbers.
        regions: (N, H, W), True on the object.
        ignored: (N, H, W), pixels that count neither way.

    Returns:
        (N,), in [0, 1]; NaN for an all-zero map, and for an image without object.

    Reference:
        Kohlbrenner et al., arXiv:1910.09840: attribution localisation, inside-total relevance ratio.

    >>> absolute_mass_in_region(np.array([[[3.0, 0.0], [0.0, -1.0]]]), np.array([[[True, True], [False, False]]]))
    array([0.75])
    """
    return mass_in_region(np.abs(np.asarray(maps)), regions, ignored)


def rank_in_region(ranks: NDArray[Any], regions: Mask, ignored: Mask | None = None) -> NDArray[np.float64]:
    """Of as many highest pixels as the object has, the share that lies on it; higher is better.

    A map that knows nothing scores the share of the image that the object covers.

    Args:
        ranks: (N, H, W), 0 = most important.
        regions: (N, H, W), True on the object.
        ignored: (N, H, W), pixels that count neither way.

    Returns:
        (N,), in [0, 1]; NaN for an image without object.

    Reference:
        Arras, Osman, Samek: "CLEVR-XAI", Information Fusion 81 (2022): relevance rank accuracy.

    >>> rank_in_region(np.array([[[0, 2, 1, 3]]]), np.array([[[True, True, False, False]]]))
    array([0.5])
    """
    checks.shapes("N H W", ranks=ranks, regions=regions)
    checks.whole(ranks=ranks)
    inside, counted = _counted(regions, ignored)
    return _share_of_highest(ranks, inside, counted, inside.sum(axis=(1, 2)))


def top_k_in_region(
    ranks: NDArray[Any], regions: Mask, ignored: Mask | None = None, *, k: int = 1000
) -> NDArray[np.float64]:
    """Share of the k highest pixels that lies on the object; higher is better.

    A map that knows nothing scores the share of the image that the object covers. An object of fewer than k pixels cannot
    reach 1.

    Args:
        ranks: (N, H, W), 0 = most important.
        regions: (N, H, W), True on the object.
        ignored: (N, H, W), pixels that count neither way.
        k: how many; on an image of fewer pixels, all of them.

    Returns:
        (N,), in [0, 1]; NaN for an image without object.

    Reference:
        Theiner et al., arXiv:2104.14995 (top-k intersection).

    >>> top_k_in_region(np.array([[[0, 2, 1, 3]]]), np.array([[[True, True, False, False]]]), k=3)
    array([0.66666667])
    """
    checks.shapes("N H W", ranks=ranks, regions=regions)
    if k < 1:
        raise InputError(f"k: {k} must be at least 1")
    checks.whole(ranks=ranks)
    inside, counted = _counted(regions, ignored)
    return _share_of_highest(ranks, inside, counted, np.minimum(k, counted.sum(axis=(1, 2))))


def roc_area_in_region(maps: NDArray[Any], regions: Mask, ignored: Mask | None = None) -> NDArray[np.float64]:
    """Chance that a pixel of the object has a higher value than one beside it, ties counted half; higher is better.

    The area under the ROC curve of the values against the region. 0.5 for a map that knows nothing.

    Args:
        maps: (N, H, W), any real numbers.
        regions: (N, H, W), True on the object.
        ignored: (N, H, W), pixels that count neither way.

    Returns:
        (N,), in [0, 1]; NaN for an image without object, and for one without anything else.

    Reference:
        Fawcett, Pattern Recognition Letters 27 (2006); as used in Quantus.

    >>> roc_area_in_region(np.array([[[2.0, 1.0, 1.0, 0.0]]]), np.array([[[True, True, False, False]]]))
    array([0.875])
    """
    checks.shapes("N H W", maps=maps, regions=regions)
    inside, counted = _counted(regions, ignored)
    scores = np.full(len(maps), np.nan)
    for row in np.flatnonzero(inside.any(axis=(1, 2)) & (counted & ~inside).any(axis=(1, 2))):
        positive = inside[row][counted[row]]
        places = scipy.stats.rankdata(np.asarray(maps[row], dtype=np.float64)[counted[row]])
        objects, others = int(positive.sum()), int((~positive).sum())
        scores[row] = (places[positive].sum() - objects * (objects + 1) / 2) / (objects * others)
    return scores


def focus(maps: NDArray[Any], quadrants: Mask) -> NDArray[np.float64]:
    """Share of a mosaic's positive mass that lies in the tiles of the target class; higher is better.

    A map that knows nothing scores the share of the tiles that show the class, half as a rule.

    Args:
        maps: (N, H, W), maps of mosaics of 2 x 2 pictures of equal size; H and W even.
        quadrants: (N, 2, 2), True for the tiles that show the target class.

    Returns:
        (N,), in [0, 1]; NaN where no value of the map is positive, and where no tile shows the class.

    Reference:
        Arias-Duart et al., arXiv:2109.15035.

    >>> focus(np.array([[[3.0, -1.0], [0.0, 1.0]]]), np.array([[[True, False], [True, False]]]))
    array([0.75])
    """
    images, height, width = checks.shapes("N H W", maps=maps).values()
    checks.shapes(f"{images} 2 2", quadrants=quadrants)
    if height % 2 or width % 2:
        raise InputError(f"maps: {width} x {height} pixels cannot be cut into 2 x 2 equal tiles")
    return mass_in_region(maps, quadrants.repeat(height // 2, axis=1).repeat(width // 2, axis=2))


def _counted(regions: Mask, ignored: Mask | None) -> tuple[Mask, Mask]:
    """The object's pixels and all pixels that count; where both claim a pixel, the object has it."""
    checks.boolean(regions=regions, ignored=ignored)
    checks.shapes("N H W", regions=regions)
    if ignored is None:
        return regions, np.ones(regions.shape, dtype=np.bool_)
    checks.shapes("N H W", regions=regions, ignored=ignored)
    return regions, regions | ~ignored


def _ratio(part: NDArray[Any], whole: NDArray[Any], inside: Mask) -> NDArray[np.float64]:
    defined = inside.any(axis=(1, 2)) & (whole != 0)
    shares: NDArray[np.float64] = np.divide(part, whole, out=np.full(len(part), np.nan), where=defined)
    return shares


def _share_of_highest(ranks: NDArray[Any], inside: Mask, counted: Mask, numbers: NDArray[Any]) -> NDArray[np.float64]:
    """Of the `numbers` (N,) highest pixels among those that count, the share inside."""
    images = len(ranks)
    order = np.argsort(np.asarray(ranks).reshape(images, -1), axis=1)
    counts = np.take_along_axis(counted.reshape(images, -1), order, axis=1)
    chosen = counts & (counts.cumsum(axis=1) <= numbers[:, None])
    hits = (np.take_along_axis(inside.reshape(images, -1), order, axis=1) & chosen).sum(axis=1)
    return _ratio(hits, numbers, inside)
