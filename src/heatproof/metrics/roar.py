"""Removal with retraining (ROAR, KAR): what accuracies at growing removed fractions amount to.

Accuracies are means over a test set, one for each run; runs of two methods with the same number are pairs, since they
share weights, batch order and augmentation. A run without a result is NaN.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import scipy
from numpy.typing import ArrayLike, NDArray

from heatproof.errors import InputError
from heatproof.metrics.perturbation import area
from heatproof.metrics.score import Direction
from heatproof.metrics.statistics import Interval, holm, kendall, spearman, t_interval

MIN_RUNS = 3  # below, the spread between runs is not known; the test images alone decide
MIN_METHODS = 3  # two orders of two methods agree or not: that is no correlation


class Difference(NamedTuple):
    """Differences of two methods, with their intervals; arrays of one shape."""

    mean: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]


class Leakage(NamedTuple):
    """What networks reach that see the masks alone: arrays (S,), one for each removed fraction, and the verdict.

    Args:
        accuracy: mean over runs.
        runs_low, runs_high: t interval over runs; NaN for a single run.
        images_low, images_high: Clopper and Pearson's interval over test images, of the mean accuracy.
        p: of an accuracy no better than chance, one-sided; the larger one of the two tests, Holm-adjusted over fractions.
        is_flagged: whether the masks of any fraction tell the class; None where nothing can be tested.
    """

    accuracy: NDArray[np.float64]
    runs_low: NDArray[np.float64]
    runs_high: NDArray[np.float64]
    images_low: NDArray[np.float64]
    images_high: NDArray[np.float64]
    p: NDArray[np.float64]
    is_flagged: bool | None


class OrderAgreement(NamedTuple):
    """Rank correlations of two orders of the methods, (S,) each, in [-1, 1]."""

    kendall: NDArray[np.float64]
    spearman: NDArray[np.float64]


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


def areas(
    curves: Mapping[str, NDArray[np.float64]], fractions: ArrayLike, better: Direction, nothing_left: float
) -> dict[str, dict[str, NDArray[np.float64]]]:
    """What each method's accuracies are worth beside those of the random control: higher is better, 0 for a random map.

    Args:
        curves: for each method (R, S) accuracies.
        fractions: (S,) removed fractions, growing from 0.
        better: "lower" where the most important pixels are removed (ROAR), "higher" where the least important ones are (KAR).
        nothing_left: accuracy to be expected when everything is removed; used where the fractions do not reach 1.

    Returns:
        "area_to_random" and, of ROAR, "racu": for each method (R,). Empty without the method "random".

    >>> found = areas({"mine": np.array([[0.9, 0.8]]), "random": np.array([[0.9, 0.6]])}, [0, 1], "higher", 0.25)
    >>> found["area_to_random"]["mine"].round(12).item()
    0.1
    """
    if "random" not in curves:
        return {}
    random = curves["random"]
    if better == "higher":  # the roles are exchanged
        return {"area_to_random": {name: area_to_random(random, curve, fractions) for name, curve in curves.items()}}
    total = None if np.asarray(fractions)[-1] == 1 else np.full(len(random), nothing_left)
    return {
        "area_to_random": {name: area_to_random(curve, random, fractions) for name, curve in curves.items()},
        "racu": {name: racu(curve, random, fractions, total) for name, curve in curves.items()},
    }


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


# --- what the masks tell


def chance_level(labels: ArrayLike) -> float:
    """Share of the most frequent class: the accuracy that is reached without looking, in (0, 1]; NaN without labels.

    >>> chance_level([0, 1, 1, 2])
    0.5
    """
    _, counts = np.unique(np.asarray(labels), return_counts=True)
    return float(counts.max() / counts.sum()) if len(counts) else math.nan


def mask_leakage(correct: ArrayLike, chance: float, level: float = 0.95) -> Leakage:
    """Do the masks alone tell the class? Then ROAR may measure the shape of the hole instead of what was in it.

    Networks were trained and tested on binary masks of the removed pixels. Their accuracy is compared with `chance` in
    two ways, and has to hold in both: over runs (one-sided t test, from `MIN_RUNS` runs on; other seeds) and over test
    images (one-sided binomial test of the mean number of right answers; other images). A ROAR score of a flagged
    method cannot be read as faithfulness. Accuracy is neither better high nor low; that of a map that knows nothing, such
    as random, is `chance`.

    Args:
        correct: (R, S, N) whether each run's network classified each test image rightly, at S removed fractions.
        chance: accuracy without looking; see `chance_level`.
        level: coverage of the intervals; the verdict is made at 1 - level.

    Returns:
        One entry for each fraction; NaN, and no verdict, without runs or images.

    Raises:
        InputError: another shape, values other than 0 and 1, or `chance` outside (0, 1).

    Reference:
        Rong et al., ICML 2022, arXiv:2202.00449, section 3 (class information leakage). They train on masks too, and
        compare accuracies without a test.

    >>> found = mask_leakage(np.ones((2, 1, 50)), chance=0.25)
    >>> found.is_flagged, found.accuracy, found.images_low.round(3)
    (True, array([1.]), array([0.929]))
    """
    answers = np.asarray(correct, dtype=np.float64)
    if answers.ndim != 3 or not np.isin(answers, (0, 1)).all():
        raise InputError(f"correct: shape {answers.shape}; expected (runs, fractions, images) of 0 and 1")
    if not 0 < chance < 1:
        raise InputError(f"chance: {chance!r} must lie between 0 and 1")
    runs, steps, images = answers.shape
    if not (runs and images):
        nothing = np.full(steps, np.nan)
        return Leakage(nothing, nothing, nothing, nothing, nothing, nothing, None)
    by_run = answers.mean(axis=2).T  # (S, R)
    right = np.rint(by_run.mean(axis=1) * images)
    p = scipy.stats.binom.sf(right - 1, images, chance)
    if runs >= MIN_RUNS:
        p = np.maximum(p, [_above(row, chance) for row in by_run])
    tail = (1 - level) / 2
    adjusted = holm(p)
    return Leakage(
        by_run.mean(axis=1),
        *t_interval(by_run, level),
        np.where(right > 0, scipy.stats.beta.ppf(tail, right, images - right + 1), 0.0),
        np.where(right < images, scipy.stats.beta.ppf(1 - tail, right + 1, images - right), 1.0),
        adjusted,
        bool((adjusted <= 1 - level).any()) if steps else None,
    )


def _above(values: NDArray[np.float64], chance: float) -> float:
    """One-sided p of the t test that the mean of values (R,) is above chance."""
    if np.ptp(values) == 0:  # no variation: the t test divides by it
        return 0.0 if values[0] > chance else 1.0
    return float(scipy.stats.ttest_1samp(values, chance, alternative="greater").pvalue)


# --- the two orders


def order_agreement(most: ArrayLike, least: ArrayLike) -> OrderAgreement:
    """Do ROAR and KAR rank the methods alike? Low correlation is ROAD's order conflict.

    ROAR ranks by low accuracy, KAR by high accuracy. 1: the same ranking; 0: none has to do with the other (as for methods
    that differ by chance only); -1: the opposite.

    Args:
        most: (M, S) mean accuracies of M methods at S removed fractions, the most important pixels removed.
        least: (M, S) the same with the least important ones removed.

    Returns:
        Kendall's tau-b and Spearman's correlation; NaN for fewer than `MIN_METHODS` methods with both values, and where all
        methods are tied.

    Reference:
        Rong et al., ICML 2022, arXiv:2202.00449 (consistency of MoRF and LeRF).

    >>> order_agreement([[0.2], [0.5], [0.9]], [[0.9], [0.6], [0.3]]).kendall
    array([1.])
    """
    low, high = -np.asarray(most, dtype=np.float64).T, np.asarray(least, dtype=np.float64).T
    if low.shape != high.shape or low.ndim != 2:
        raise InputError(f"most, least: shapes {low.T.shape}, {high.T.shape}; expected the same (methods, fractions)")
    enough = (np.isfinite(low) & np.isfinite(high)).sum(axis=1) >= MIN_METHODS
    return OrderAgreement(*(np.where(enough, measure(low, high), np.nan) for measure in (kendall, spearman)))
