"""Removal with retraining (ROAR, KAR): what accuracies at growing removed fractions amount to.

Accuracies are means over a test set, one for each run; runs of two methods with the same number are pairs, since they
share weights, batch order and augmentation. A run without a result is NaN.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from heatproof.errors import InputError
from heatproof.metrics.perturbation import area
from heatproof.metrics.statistics import Interval


class Difference(NamedTuple):
    """Differences of two methods, with their intervals; arrays of one shape."""

    mean: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]


def area_to_random(method: ArrayLike, random: ArrayLike, fractions: ArrayLike) -> NDArray[np.float64]:
    """Mean height by which a method's accuracies lie below the random control's, over all removed fractions.

    The trapezoidal rule over fractions from 0 of (random - method), divided by the fractions' range. For ROAR, higher
    is better: 0 for a random map, below 0 for one that does worse.

    Args:
        method: (R, S) accuracies, or any (..., S).
        random: those of the random control, the same shape or one that broadcasts.
        fractions: (S,) removed fractions, growing from 0.

    Returns:
        (R,), or (...), in units of accuracy; NaN where an accuracy is.

    Reference:
        Madsen et al., arXiv:2110.08412.

    >>> area_to_random([0.9, 0.4, 0.1], [0.9, 0.7, 0.1], [0, 0.5, 1]).round(12).item()
    0.15
    """
    steps = np.asarray(fractions, dtype=np.float64)
    if steps.size and steps[0] != 0:
        raise InputError(f"fractions: {steps.tolist()} must begin with 0, the untouched images")
    return area(np.asarray(random, dtype=np.float64) - np.asarray(method, dtype=np.float64), steps)


def racu(
    method: ArrayLike, random: ArrayLike, fractions: ArrayLike, total: ArrayLike | None = None
) -> NDArray[np.float64]:
    """Relative area between the curves: `area_to_random`, as a share of what a perfect map could reach.

    Divided by the area between the random control and the accuracy when everything is removed. Higher is better; 1
    for a map whose first pixels carry all information, 0 for a random one, negative for worse.

    Args:
        method: (R, S) accuracies, or any (..., S).
        random: those of the random control, the same shape or one that broadcasts.
        fractions: (S,) removed fractions, growing from 0.
        total: accuracy when everything is removed; without it the control's at fraction 1, which must be there.

    Returns:
        (R,), or (...); NaN where the control never does better than total removal.

    Reference:
        Madsen et al., arXiv:2110.08412.

    >>> racu([0.9, 0.4, 0.1], [0.9, 0.7, 0.1], [0, 0.5, 1]).round(12).item()
    0.3
    """
    control = np.asarray(random, dtype=np.float64)
    if total is None:
        if np.asarray(fractions)[-1] != 1:
            raise InputError("total: the accuracy at total removal is needed, since the fractions do not reach 1")
        floor = control[..., -1:]
    else:
        floor = np.asarray(total, dtype=np.float64)[..., None]
    reached = area_to_random(method, control, fractions)
    reachable = np.broadcast_to(area_to_random(floor, control, fractions), reached.shape)
    shares: NDArray[np.float64] = np.divide(reached, reachable, out=np.full(reached.shape, np.nan), where=reachable > 0)
    return shares


def diff_roar(most: ArrayLike, least: ArrayLike) -> NDArray[np.float64]:
    """Accuracy with the least important pixels removed minus accuracy with the most important ones, all pairs of runs.

    Both retrained, at the same removed fraction: KAR minus ROAR. Higher is better; 0 for a random map.

    Args:
        most: (R, S) accuracies of ROAR.
        least: (Q, S) accuracies of KAR at the same removed fractions.

    Returns:
        (R * Q, S); the published figures are its mean and standard deviation over the first axis.

    Reference:
        Shah, Jain, Netrapalli: arXiv:2102.12781 (DiffROAR).

    >>> diff_roar([[0.5], [0.4]], [[0.75]])
    array([[0.25],
           [0.35]])
    """
    worst, best = np.asarray(most, dtype=np.float64), np.asarray(least, dtype=np.float64)
    pairs: NDArray[np.float64] = best[None] - worst[:, None]
    return pairs.reshape(-1, *pairs.shape[2:])


def correctness_difference(
    a: ArrayLike, b: ArrayLike, generator: np.random.Generator, resamples: int = 10_000, level: float = 0.95
) -> Difference:
    """Difference of two methods' accuracies, with a two-level bootstrap interval: runs, then test images.

    Each resample draws runs with replacement, then test images with replacement, the same for both methods and for
    all its runs. So the interval holds for other seeds and for other test images, and both pairings count. The same
    seed gives the same resamples for every pair of methods.

    Args:
        a: (R, N) whether each run classified each test image correctly; or (R, S, N) for S removed fractions.
        b: the same of another method: the same runs, the same images.
        generator: where the resamples come from.
        resamples: how many.
        level: coverage of the percentile interval.

    Returns:
        Mean of a - b, and the interval; of shape () or (S,).

    Raises:
        InputError: the shapes differ, or a value is missing.

    >>> a, b = np.ones((2, 50)), np.tile([1, 0], (2, 25))
    >>> mean, low, high = correctness_difference(a, b, np.random.default_rng(0), resamples=2000)
    >>> mean.item(), bool(0.3 < low < 0.5 < high < 0.7)
    (0.5, True)
    """
    shapes = np.shape(a), np.shape(b)
    if shapes[0] != shapes[1] or len(shapes[0]) < 2:
        raise InputError(f"a, b: shapes {shapes[0]}, {shapes[1]}; expected the same runs and images")
    # Differences are -1, 0 or 1, so that their sums are exact in float32.
    gains = np.asarray(a, dtype=np.float32) - np.asarray(b, dtype=np.float32)
    if not gains.size or not np.isfinite(gains).all():
        raise InputError("a, b: a value is missing; leave out the whole run or image")
    runs, images = gains.shape[0], gains.shape[-1]
    means = np.empty((*gains.shape[1:-1], resamples))
    for sample in range(resamples):
        chosen_runs = np.bincount(generator.integers(runs, size=runs), minlength=runs)
        chosen_images = np.bincount(generator.integers(images, size=images, dtype=np.int32), minlength=images)
        means[..., sample] = np.tensordot(chosen_runs, gains @ chosen_images.astype(np.float32), axes=1)
    low, high = Interval.of_resamples(means / (runs * images), level)
    return Difference(gains.mean(axis=(0, -1), dtype=np.float64), low, high)
