"""Faithfulness: do the values of a map say how far the score falls when pixels are removed?

The model's scores come in as arrays: what was removed in each of R trials, and by how much the score fell. Whoever calls
decides what a trial is (random subsets, the steps of an order, squares), what replaces the pixels and which score is
meant. Curves of a growing removal are scored in `heatproof.metrics.perturbation`.

A map is read as contributions: the sum over some pixels claims how far the score falls without them. Nothing here takes
an absolute value of a map. All functions but the last three return one float64 for each image, and NaN where undefined.
"""

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from heatproof import checks
from heatproof.errors import InputError
from heatproof.metrics import statistics

# Values that differ by less, relative to the largest, count as equal: it is what rounding leaves of equal sums.
_SAME = 1e-9


# --- what a map claims


def sum_in_steps(maps: NDArray[np.floating], ranks: NDArray[np.integer], cuts: ArrayLike) -> NDArray[np.float64]:
    """Sum of each map over the pixels of each step of its order: ranks cuts[k] to cuts[k + 1] - 1.

    Args:
        maps: (N, H, W), or (N, C, H, W) with as many ranks.
        ranks: the shape of `maps`; 0 is the most important pixel.
        cuts: (S + 1,) growing numbers of pixels, from 0 to at most H * W.

    Returns:
        (N, S), in the map's units; for a map of equal values and steps of equal size all sums are equal.

    >>> sum_in_steps(np.array([[[5.0, 1.0, 3.0, 2.0]]]), np.array([[[0, 3, 1, 2]]]), [0, 2, 4])
    array([[8., 3.]])
    """
    values, places = _flat(maps), _flat(ranks).astype(np.int64)
    if values.shape != places.shape:
        raise InputError(f"ranks: shape {ranks.shape}; expected that of the maps, {maps.shape}")
    ends = np.asarray(cuts, dtype=np.int64)
    if ends.ndim != 1 or len(ends) < 2 or ends[0] < 0 or ends[-1] > values.shape[1] or (np.diff(ends) < 1).any():
        raise InputError(f"cuts: {ends.tolist()} must grow, from 0 to {values.shape[1]} at most")
    by_rank = np.empty(values.shape)
    np.put_along_axis(by_rank, places, values, axis=1)
    sums: NDArray[np.float64] = np.add.reduceat(by_rank[:, : ends[-1]], ends[:-1], axis=1)
    return sums


def sum_in_subsets(maps: NDArray[np.floating], subsets: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Sum of each map over each of its R subsets of pixels.

    Args:
        maps: (N, ...), for instance (N, H, W).
        subsets: (N, R, ...), True for the pixels of a subset.

    Returns:
        (N, R), in the map's units.

    >>> sum_in_subsets(np.array([[[5.0, 1.0, 3.0]]]), np.array([[[[True, False, True]], [[False, True, False]]]]))
    array([[8., 1.]])
    """
    if subsets.shape[:1] + subsets.shape[2:] != maps.shape:
        raise InputError(f"subsets: shape {subsets.shape}; expected (N, R, ...) for maps {maps.shape}")
    checks.boolean(subsets=subsets)
    values = _flat(maps).astype(np.float64)
    members = subsets.reshape(*subsets.shape[:2], values.shape[1])
    # Image by image: as one product, all subsets of a batch would stand in memory as float64.
    # Not a matrix product, whose last digit depends on the processor's BLAS.
    sums = [np.where(chosen, value, 0.0).sum(axis=1) for chosen, value in zip(members, values, strict=True)]
    return np.stack(sums) if sums else np.empty(subsets.shape[:2])


def sum_in_patches(maps: NDArray[np.floating], patches: NDArray[np.integer]) -> NDArray[np.float64]:
    """Sum of each map over each patch of the image, as region perturbation and selectivity rank patches.

    Args:
        maps: (N, H, W).
        patches: (H, W) number of the patch that each pixel lies in, 0 to P - 1.

    Returns:
        (N, P), in the map's units.

    Reference:
        Samek et al., arXiv:1509.06321, section III: the sum of the relevance inside a region.

    >>> sum_in_patches(np.array([[[5.0, 1.0, 3.0]]]), np.array([[0, 0, 1]]))
    array([[6., 3.]])
    """
    sizes = checks.shapes("N H W", maps=maps)
    checks.shapes(f"{sizes['H']} {sizes['W']}", patches=patches)
    number = int(patches.max()) + 1
    sums = [np.bincount(patches.ravel(), weights=values, minlength=number) for values in _flat(maps)]
    return np.stack(sums) if sums else np.empty((0, number))


# --- what a map claims against what the score does


def correlation(sums: ArrayLike, drops: ArrayLike) -> NDArray[np.float64]:
    """Pearson's correlation between what a map claims of R removals and what they did; higher is better.

    With random subsets of one size it is Faithfulness Correlation; over several sizes, Sensitivity-n within an image; with
    the consecutive steps of the map's own order, each removed alone, Faithfulness Estimate.

    Args:
        sums: (N, R) sum of the map over what was removed.
        drops: (N, R) score of the untouched image minus the score without it.

    Returns:
        (N,), in [-1, 1]: 1 where the drops are the sums but for a positive factor and a constant, -1 for the reversed
        map, 0 on average for a random one. NaN where all sums or all drops of an image are equal (to a relative 1e-9,
        so that rounding is no variance), such as for a map of equal values: nothing was claimed there.

    Reference:
        Bhatt, Weller, Moura, arXiv:2005.00631, equation 2; Alvarez-Melis and Jaakkola, arXiv:1806.07538, section 5;
        Ancona et al., arXiv:1711.06104, section 4 (Sensitivity-n).

    >>> correlation([[1.0, 2.0, 3.0], [3.0, 2.0, 1.0], [1.0, 1.0, 1.0]], [[0.2, 0.3, 0.4]] * 3).round(12)
    array([ 1., -1., nan])
    """
    claimed, found = _paired(sums, drops)
    x = claimed - claimed.mean(axis=1, keepdims=True)
    y = found - found.mean(axis=1, keepdims=True)
    scale = np.sqrt((x * x).sum(axis=1) * (y * y).sum(axis=1))
    defined = _varies(claimed) & _varies(found) & (scale > 0)
    result: NDArray[np.float64] = np.divide((x * y).sum(axis=1), scale, out=np.full(len(x), np.nan), where=defined)
    return np.clip(result, -1.0, 1.0)


def monotonicity_correlation(sums: ArrayLike, intact: ArrayLike, filled: ArrayLike) -> NDArray[np.float64]:
    """Do the steps of a map's order that claim more move the score more? Spearman's correlation; higher is better.

    The movement of a step is the mean over D random fills of (score with the step filled - f)^2, divided by f^2. It has no
    sign, and the map has: a pixel that speaks against the class moves the score and has a low value. The metric asks the
    right question of maps without negative values (methods reduced by `abs_max`, `abs_sum` or `l2`).

    Args:
        sums: (N, S) sum of the map over each step.
        intact: (N,) score f of the untouched image.
        filled: (N, S, D) score with one step filled, for each of D fills.

    Returns:
        (N,), in [-1, 1]; 0 on average for a random map. NaN where f is 0, or all sums or all movements are equal.

    Reference:
        Nguyen and Martinez, arXiv:2007.07584, section 4.3.

    >>> monotonicity_correlation([[1.0, 2.0, 3.0]], [0.5], [[[0.5, 0.4], [0.3, 0.6], [0.1, 0.2]]]).round(12)
    array([1.])
    """
    before, after = np.asarray(intact, dtype=np.float64), np.asarray(filled, dtype=np.float64)
    sizes = checks.shapes("N S D", filled=after)
    checks.shapes(f"{sizes['N']} {sizes['S']}", sums=np.asarray(sums))
    checks.shapes(f"{sizes['N']}", intact=before)
    squares = ((after - before[:, None, None]) ** 2).mean(axis=2)
    normaliser = np.where(before == 0, np.nan, before)[:, None] ** 2
    result: NDArray[np.float64] = statistics.spearman(sums, squares / normaliser)
    return result


def infidelity(claims: ArrayLike, drops: ArrayLike, scaled: bool = True) -> NDArray[np.float64]:
    """Mean squared difference between what a map claims of R perturbations and what they did; lower is better.

    Each perturbation starts from the untouched image. The claim is the sum of the map over what was removed, where the map
    holds contributions; for sensitivities such as a plain gradient, the sum of map times change of the pixels.

    Raw, it depends on the unit of a map, which most methods do not mean to say. Scaled, each image's claims are multiplied
    by the factor that serves them best, sum(claim * drop) / sum(claim^2), but never by a negative one: a map that is
    upside down is not forgiven.

    Args:
        claims: (N, R).
        drops: (N, R) score of the untouched image minus the score after each perturbation.
        scaled: with the best factor for each image, or raw.

    Returns:
        (N,), at least 0, in squared score units. A map of zeros scores the mean squared drop; scaled, no map scores more
        than that, and a reversed one exactly that.

    Reference:
        Yeh et al., arXiv:1901.09392, definition 2.1; the optimal scaling factor is that of their section 3.

    >>> infidelity([[2.0, 4.0], [-2.0, -4.0]], [[1.0, 2.0], [1.0, 2.0]])
    array([0. , 2.5])
    >>> infidelity([[2.0, 4.0]], [[1.0, 2.0]], scaled=False)
    array([2.5])
    """
    claimed, found = _paired(claims, drops)
    if scaled:
        agreement, size = (claimed * found).sum(axis=1), (claimed * claimed).sum(axis=1)
        factor = np.divide(agreement, size, out=np.zeros_like(size), where=size > 0)
        claimed = claimed * np.maximum(factor, 0.0)[:, None]
    result: NDArray[np.float64] = ((claimed - found) ** 2).mean(axis=1)
    return result


def monotonicity(curve: ArrayLike, tolerance: float = 0.0) -> NDArray[np.float64]:
    """1 where the score never falls while pixels are added to an empty image, the least important first; else 0.

    Pixels are added to the fill and stay; the curve is that of MoRF read from its end. Evidence against the class comes
    first and lets the score fall, so a right map with negative values may score 0. All or nothing: with many steps hardly
    any image of a real classifier passes, whatever the map.

    Args:
        curve: (N, S) scores while pixels are added, from the empty to the untouched image.
        tolerance: what may be lost in a step, for rounding.

    Returns:
        (N,), 0 or 1; higher is better; NaN where a score is NaN.

    Reference:
        Arya et al., arXiv:1909.03012, section 6 (monotonicity).

    >>> monotonicity([[0.1, 0.1, 0.5], [0.1, 0.6, 0.5]])
    array([1., 0.])
    """
    scores = np.asarray(curve, dtype=np.float64)
    if scores.ndim != 2 or scores.shape[1] < 2:
        raise InputError(f"curve: shape {scores.shape}; expected (N, S) with at least two steps")
    changes = np.diff(scores, axis=1)
    return np.where(np.isnan(changes).any(axis=1), np.nan, (changes >= -tolerance).all(axis=1))


# --- over images: Sensitivity-n


def moments(sums: ArrayLike, drops: ArrayLike) -> NDArray[np.float64]:
    """What each image adds to the correlation across images at each step: see `correlation_of_moments`.

    Values are taken relative to the first image with a score, which changes no correlation, and makes sums that are the
    same for all images exactly 0.

    Args:
        sums: (N, S) sum of each image's map over what is removed after each step.
        drops: (N, S) what the score has fallen.

    Returns:
        (N, S, 6): 1, sum, drop, sum^2, drop^2, sum * drop; zeros where either is NaN.

    >>> moments([[1.0], [3.0]], [[0.5], [1.5]])[1]
    array([[1., 2., 1., 4., 1., 2.]])
    """
    claimed, found = _paired(sums, drops)
    defined = ~(np.isnan(claimed) | np.isnan(found))
    x, y = _beside_the_first(claimed, defined), _beside_the_first(found, defined)
    return np.stack((defined.astype(np.float64), x, y, x * x, y * y, x * y), axis=2)


def correlation_of_moments(totals: NDArray[np.float64]) -> NDArray[np.float64]:
    """Pearson's correlation across images at each step, from sums of `moments` over images.

    Args:
        totals: (B, S, 6) sums over the images of B samples.

    Returns:
        (B, S), in [-1, 1]; NaN where sums or drops of all images are equal, or fewer than two are defined.

    >>> totals = moments([[1.0], [2.0], [3.0]], [[3.0], [2.0], [2.5]]).sum(axis=0)
    >>> correlation_of_moments(totals[None]).round(12)
    array([[-0.5]])
    """
    number, x, y, xx, yy, xy = np.moveaxis(np.asarray(totals, dtype=np.float64), -1, 0)
    x_spread, y_spread = number * xx - x * x, number * yy - y * y
    # Of a sample that holds one image many times, rounding leaves about 1e-16 of the sum of squares.
    varies = (x_spread > 1e-12 * number * xx) & (y_spread > 1e-12 * number * yy)
    scale = np.sqrt(np.where(varies, x_spread * y_spread, 1.0))
    return np.where(varies, np.clip((number * xy - x * y) / scale, -1.0, 1.0), np.nan)


def sensitivity_n(totals: NDArray[np.float64]) -> NDArray[np.float64]:
    """Sensitivity-n across images: the mean over steps of the correlation of claimed and found drops; higher is better.

    At each step of a cumulative removal, most important first, one number claims an image's drop (the sum of its map over
    all that is removed) and one is found; the correlation runs over images. It asks for maps whose units mean the same in
    all images, and an explanation that is right in each image but for an image's own factor fails it.

    Args:
        totals: (B, S, 6) sums of `moments` over the images of B samples; the reference keeps the first 80 % of steps.

    Returns:
        (B,), in [-1, 1]; steps whose correlation is undefined are left out; NaN where all are.

    Reference:
        Ancona et al., arXiv:1711.06104, section 4, in the form over images of the Quantus toolbox. There, a step's own sum
        is set against the cumulative drop; here both are cumulative, as the definition says.

    >>> sensitivity_n(moments([[1.0], [2.0], [3.0]], [[0.1], [0.2], [0.3]]).sum(axis=0)[None]).round(12)
    array([1.])
    """
    steps = correlation_of_moments(totals)
    defined = ~np.isnan(steps)
    number = defined.sum(axis=1)
    total = np.where(defined, steps, 0.0).sum(axis=1)
    means: NDArray[np.float64] = np.divide(total, number, out=np.full(len(steps), np.nan), where=number > 0)
    return means


# --- shared pieces


def _flat(values: NDArray[np.generic]) -> NDArray[np.generic]:
    return values.reshape(len(values), math.prod(values.shape[1:]))


def _paired(a: ArrayLike, b: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    claimed, found = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if claimed.ndim != 2 or claimed.shape != found.shape or claimed.shape[1] == 0:
        raise InputError(f"drops: shape {found.shape} beside sums {claimed.shape}; expected (N, R) of both")
    return claimed, found


def _varies(values: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which rows (N, R) hold values that differ by more than rounding."""
    differs: NDArray[np.bool_] = np.ptp(values, axis=1) > _SAME * np.abs(values).max(axis=1)
    return differs


def _beside_the_first(values: NDArray[np.float64], defined: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Differences of each column (N, S) to its first defined value; 0 where they are rounding or not defined."""
    if not len(values):
        return values
    first = np.take_along_axis(values, defined.argmax(axis=0)[None], axis=0)
    differences = values - first
    return np.where(defined & (np.abs(differences) > _SAME * np.abs(first)), differences, 0.0)
