"""How sure a number is: intervals, paired tests, ranks over many methods, agreement of two orders.

An undefined score is NaN; it is left out and counted, never taken as 0. Functions that compare leave out a pair or a
block as a whole as soon as one of its values is NaN.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal, NamedTuple

import numpy as np
import scipy
from numpy.typing import ArrayLike, NDArray

from heatproof import seeding
from heatproof.errors import InputError, nearest
from heatproof.metrics.ranking import (  # noqa: F401 - names of this module for those who rank with it
    MIN_BLOCKS,
    Significance,
    average_ranks,
    critical_difference,
    friedman,
    groups,
    iman_davenport,
)

RESULTS_VERSION = 2  # to be raised when numbers change that tables hold
MIN_WILCOXON_PAIRS = 6  # the smallest two-sided exact p of five pairs is 0.0625: they can never reach 0.05
EXACT_UP_TO = 25  # pairs, for Wilcoxon's exact distribution
RESAMPLES = 10_000

_EPSILON = 1e-12  # spread of differences that is rounding, not variation


class Interval(NamedTuple):
    """Two ends; numbers, or arrays of one shape."""

    low: Any
    high: Any

    @classmethod
    def of_resamples(cls, means: NDArray[np.float64], level: float) -> "Interval":
        """The percentile interval of resampled means, along the last axis."""
        tail = 50 * (1 - level)
        low, high = np.percentile(means, [tail, 100 - tail], axis=-1)
        return cls(low, high)


class Summary(NamedTuple):
    """One line of a table: how many scores, how many undefined ones left out, mean, sample deviation, interval."""

    n: int
    n_undefined: int
    mean: float
    sd: float
    low: float
    high: float


# --- one method


def summarize(values: ArrayLike, *, seed: int | None = None, level: float = 0.95) -> Summary:
    """Number, mean, sample standard deviation and interval of the mean of the scores that are defined.

    Args:
        values: (N,) scores, NaN where undefined.
        seed: with it, the percentile bootstrap (units: images; the same resamples for every method with N images);
            without it, the t interval (units: runs).
        level: coverage of the interval.

    >>> summarize([1.0, 2.0, 3.0, float("nan")])._replace(low=0, high=0)
    Summary(n=3, n_undefined=1, mean=2.0, sd=1.0, low=0, high=0)
    """
    return summarize_rows(np.asarray(values, dtype=np.float64)[None], seed=seed, level=level)[0]


def summarize_rows(
    values: ArrayLike, *, seed: int | None = None, level: float = 0.95, resamples: int = RESAMPLES
) -> list[Summary]:
    """`summarize` for each row: with a seed all rows are resampled together, which is far faster than one by one.

    Args:
        values: (M, N) scores, NaN where undefined.
        seed: with it, the percentile bootstrap; without it, the t interval.
        level: coverage of the intervals.
        resamples: of the bootstrap.

    >>> [summary.mean for summary in summarize_rows([[1.0, 3.0], [5.0, float("nan")]], seed=0)]
    [2.0, 5.0]
    """
    rows = np.asarray(values, dtype=np.float64)
    low, high = t_interval(rows, level) if seed is None else seeded_bootstrap(rows, seed, resamples, level)
    summaries = []
    for row, *ends in zip(rows, low, high, strict=True):
        defined = row[~np.isnan(row)]
        mean = float(defined.mean()) if len(defined) else math.nan
        sd = float(defined.std(ddof=1)) if len(defined) > 1 else math.nan
        summaries.append(Summary(len(defined), len(row) - len(defined), mean, sd, *map(float, ends)))
    return summaries


def t_interval(values: ArrayLike, level: float = 0.95) -> Interval:
    """Student's t interval of the mean, along the last axis: for few units, such as runs.

    Args:
        values: (..., R); NaN is left out.
        level: coverage.

    Returns:
        Ends of shape (...); NaN where fewer than two values are defined.

    >>> low, high = t_interval([68.181, 65.885, 67.098, 65.526, 66.025])
    >>> round(float(low), 5), round(float(high), 5)
    (65.19326, 67.89274)
    """
    scores = np.asarray(values, dtype=np.float64)
    defined = ~np.isnan(scores)
    number = defined.sum(axis=-1)
    enough = number > 1
    divisor = np.where(enough, number, 2)
    mean = np.where(defined, scores, 0.0).sum(axis=-1) / divisor
    squares = (np.where(defined, scores - mean[..., None], 0.0) ** 2).sum(axis=-1)
    half = scipy.stats.t.ppf(0.5 + level / 2, divisor - 1) * np.sqrt(squares / (divisor - 1) / divisor)
    half = np.where(enough, half, np.nan)
    return Interval(mean - half, mean + half)


def wilson_interval(successes: int, trials: int, level: float = 0.95) -> Interval:
    """Interval of a share, such as an accuracy: Wilson's score interval, without continuity correction.

    All shares p whose z test against `successes` in `trials` is not significant. It keeps within [0, 1] and stays honest
    for shares near its ends, where the interval around the mean does not.

    Args:
        successes: from 0 to `trials`.
        trials: at least 1.
        level: coverage.

    Raises:
        InputError: the counts are impossible.

    Reference:
        Wilson: "Probable inference, the law of succession, and statistical inference", JASA 22 (1927).

    >>> low, high = wilson_interval(8, 10)
    >>> round(low, 3), round(high, 3)
    (0.49, 0.943)
    """
    if trials < 1 or not 0 <= successes <= trials:
        raise InputError(f"successes: {successes} of {trials} trials; expected 0 <= successes <= trials, and a trial")
    found = scipy.stats.binomtest(successes, trials).proportion_ci(level, method="wilson")
    return Interval(float(found.low), float(found.high))


def bootstrap_index(generator: np.random.Generator, units: int, resamples: int = RESAMPLES) -> NDArray[np.int32]:
    """Positions drawn with replacement: one matrix for all methods, which are so compared on the same resamples.

    Args:
        generator: where they come from.
        units: number of scores, N.
        resamples: number of rows, B.

    Returns:
        (B, N), in 0 .. N - 1.

    >>> bootstrap_index(np.random.default_rng(0), 7, resamples=3).shape
    (3, 7)
    """
    return generator.integers(units, size=(resamples, units), dtype=np.int32)


def bootstrap_interval(values: ArrayLike, index: NDArray[Any], level: float = 0.95) -> Interval:
    """Percentile bootstrap interval of the mean: for many units, such as images.

    Args:
        values: (N,), or (M, N) for several methods; NaN is left out of each resample.
        index: (B, N) from `bootstrap_index`, the same for all methods.
        level: coverage.

    Returns:
        Ends of shape () or (M,); NaN where no value is defined.

    >>> index = np.array([[0, 0], [0, 1], [1, 1]])
    >>> low, high = bootstrap_interval([1.0, 3.0], index, level=0.5)
    >>> float(low), float(high)
    (1.5, 2.5)
    """
    scores = np.asarray(values, dtype=np.float64)
    if index.ndim != 2 or scores.shape[-1:] != index.shape[1:]:
        raise InputError(f"index: shape {index.shape}; expected (resamples, {scores.shape[-1]})")
    rows = scores.reshape(-1, scores.shape[-1])
    step = _resamples_at_once(index.shape[1])
    low, high = _intervals(rows, (index[start : start + step] for start in range(0, len(index), step)), level)
    return Interval(low.reshape(scores.shape[:-1]), high.reshape(scores.shape[:-1]))


def seeded_bootstrap(values: ArrayLike, seed: int, resamples: int = RESAMPLES, level: float = 0.95) -> Interval:
    """`bootstrap_interval` with resamples drawn from a root seed: the same for all scores of N units, whenever asked.

    The index matrix is never held as a whole, so N may be large.

    Args:
        values: (M, N) scores of several methods; NaN is left out of each resample.
        seed: root seed.
        resamples: how many.
        level: coverage of the interval.

    Returns:
        Ends of shape (M,); NaN where no value is defined.

    >>> low, high = seeded_bootstrap([[1.0, 1.0, 1.0]], seed=0)
    >>> float(low[0]), float(high[0])
    (1.0, 1.0)
    """
    rows = np.asarray(values, dtype=np.float64)
    return _intervals(rows, _seeded_index(seed, rows.shape[-1], resamples), level)


def resampled(
    sums: ArrayLike,
    statistic: Callable[[NDArray[np.float64]], NDArray[np.float64]],
    seed: int,
    resamples: int = RESAMPLES,
) -> NDArray[np.float64]:
    """A statistic of sums over images, on the resamples of `seeded_bootstrap`: for scores that are no mean over images.

    Args:
        sums: (N, ...) what each image adds; NaN counts as 0.
        statistic: sums (B, ...) over B resamples -> (B,).
        seed: root seed.
        resamples: how many.

    Returns:
        (resamples,); two methods with the same N are paired, so differences may be taken.

    >>> hits_and_images = np.array([[1.0, 1.0], [1.0, 1.0]])
    >>> set(resampled(hits_and_images, lambda total: total[:, 0] / total[:, 1], seed=0).tolist())
    {1.0}
    """
    added = np.nan_to_num(np.asarray(sums, dtype=np.float64), nan=0.0)
    terms = _exact_terms(added.reshape(len(added), -1).T)
    drawn = []
    for index in _seeded_index(seed, len(added), resamples):
        totals = np.ascontiguousarray(_totals(terms, _counts(index)).T)
        drawn.append(statistic(totals.reshape(len(index), *added.shape[1:])))
    return np.concatenate(drawn)


# --- two methods on the same units


def paired_t(a: ArrayLike, b: ArrayLike | None = None) -> Significance:
    """Student's t test of paired differences; `a` alone is taken as the differences.

    >>> round(paired_t([1.0, 2.0, 3.0]).statistic, 6)
    3.464102
    """
    result = scipy.stats.ttest_1samp(_differences(a, b), 0.0)
    return Significance(float(result.statistic), float(result.pvalue))


def paired_p(differences: ArrayLike) -> float:
    """P of `paired_t`, also of differences that do not vary: 1 where they are all 0, else 0; NaN where fewer than two are defined.

    >>> paired_p([0.0, 0.0]), paired_p([0.5, 0.5, float("nan")])
    (1.0, 0.0)
    """
    values = np.asarray(differences, dtype=np.float64)
    defined = values[np.isfinite(values)]
    if len(defined) < 2:
        return math.nan
    if np.ptp(defined) <= _EPSILON:  # the t test divides by the variation
        return 1.0 if abs(defined.mean()) <= _EPSILON else 0.0
    return paired_t(defined).p


def wilcoxon(
    a: ArrayLike,
    b: ArrayLike | None = None,
    *,
    zeros: Literal["wilcox", "pratt"] = "wilcox",
    method: Literal["auto", "exact", "approx"] = "auto",
    correction: bool = False,
) -> Significance:
    """Wilcoxon's signed-rank test: are paired differences centred at 0?

    The differences' sizes are ranked, ties by mid-ranks; the statistic is the smaller of the rank sums of positive
    and negative ones.

    Args:
        a: (N,) scores of one method, or the differences themselves.
        b: (N,) scores of the other.
        zeros: differences of 0 are dropped before ranking ("wilcox"), or ranked and then dropped ("pratt").
        method: "exact" distribution, "approx" (normal, with tie correction), or "auto": exact for up to 25 pairs
            without ties and zeros.
        correction: continuity correction of the normal approximation.

    Returns:
        Statistic and two-sided p; NaN where no difference is left.

    Reference:
        Wilcoxon, Biometrics Bulletin 1 (1945); Pratt, JASA 54 (1959); tie correction as in SciPy, whose own function
        names the approximation differently in each version.

    >>> wilcoxon([1, 2, 3, 4, 5])
    Significance(statistic=0.0, p=0.0625)
    """
    for name, value, known in (("zeros", zeros, ("wilcox", "pratt")), ("method", method, ("auto", "exact", "approx"))):
        if value not in known:
            raise InputError(f"{name}: {value!r}{nearest(value, known)}")
    differences = _differences(a, b)
    if zeros == "wilcox":
        differences = differences[differences != 0]
    sizes = scipy.stats.rankdata(np.abs(differences))
    positive, negative = float(sizes[differences > 0].sum()), float(sizes[differences < 0].sum())
    statistic, total = min(positive, negative), positive + negative
    if total == 0:
        return Significance(math.nan, math.nan)
    distinct = len(np.unique(sizes)) == len(sizes) and bool((differences != 0).all())
    if method == "exact" and not distinct:
        raise InputError("method: 'exact' asked for, but there are ties or zeros; use 'approx' or 'auto'")
    if method == "exact" or (method == "auto" and distinct and len(sizes) <= EXACT_UP_TO):
        return Significance(statistic, _exact_signed_rank_p(int(statistic), len(sizes)))
    variance = float((sizes[differences != 0] ** 2).sum()) / 4  # of the sum of ranks with random signs, ties or not
    distance = total / 2 - statistic - (0.5 if correction else 0.0)
    return Significance(statistic, min(1.0, 2 * float(scipy.stats.norm.sf(distance / math.sqrt(variance)))))


def cohens_d(differences: ArrayLike) -> float:
    """Mean of paired differences in units of their standard deviation; NaN where that is 0 or unknown.

    >>> cohens_d([1.0, 2.0, 3.0])
    2.0
    """
    defined = _differences(differences, None)
    sd = float(defined.std(ddof=1)) if len(defined) > 1 else 0.0
    return float(defined.mean()) / sd if sd > 0 else math.nan


def holm(p: ArrayLike) -> NDArray[np.float64]:
    """P values adjusted for testing several methods against one control (Holm); NaN is no test and is not counted.

    Reference:
        Holm, Scandinavian Journal of Statistics 6 (1979).

    >>> holm([0.001, 0.04, 0.03, 0.012, 0.5])
    array([0.005, 0.09 , 0.09 , 0.048, 0.5  ])
    """
    values = np.asarray(p, dtype=np.float64)
    adjusted = np.full(values.shape, np.nan)
    tests = np.flatnonzero(~np.isnan(values))
    rising = tests[np.argsort(values[tests], kind="stable")]
    factors = len(tests) - np.arange(len(tests))
    adjusted[rising] = np.minimum(1.0, np.maximum.accumulate(values[rising] * factors))
    return adjusted


# --- many methods over blocks


# --- agreement of two orders


def spearman(a: ArrayLike, b: ArrayLike) -> NDArray[np.float64]:
    """Spearman's rank correlation along the last axis, ties by mid-ranks.

    Args:
        a: (..., D) values.
        b: (..., D) others for the same things; a pair with NaN is left out.

    Returns:
        (...), in [-1, 1]; NaN where either side is constant.

    >>> spearman([1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 4.0, 3.0]).round(12).item()
    0.8
    """
    return _row_by_row(_spearman_of_row, a, b)


def kendall(a: ArrayLike, b: ArrayLike) -> NDArray[np.float64]:
    """Kendall's tau-b along the last axis: concordant minus discordant pairs, corrected for ties.

    Args:
        a: (..., D) values.
        b: (..., D) others for the same things; a pair with NaN is left out.

    Returns:
        (...), in [-1, 1]; NaN where either side is constant.

    >>> kendall([1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 4.0, 3.0]).round(12).item()
    0.666666666667
    """
    return _row_by_row(lambda x, y: float(scipy.stats.kendalltau(x, y).statistic), a, b)


# --- shared pieces


def _resamples_at_once(units: int) -> int:
    """How many resamples are counted in one go, so that memory stays small for any number of units."""
    return max(1, 2**21 // max(1, units))


def _seeded_index(seed: int, units: int, resamples: int) -> Iterator[NDArray[np.int32]]:
    """The resamples that a root seed gives N units, in parts, so that N may be large."""
    generator = seeding.generator(seed, "bootstrap", units)
    step = _resamples_at_once(units)
    return (bootstrap_index(generator, units, min(step, resamples - n)) for n in range(0, resamples, step))


def _counts(index: NDArray[Any]) -> NDArray[np.float64]:
    """How often each resample (B, N) holds each unit: (B, N)."""
    resamples, units = index.shape
    flat = (index + units * np.arange(resamples)[:, None]).reshape(-1)
    return np.bincount(flat, minlength=resamples * units).reshape(resamples, units).astype(np.float64)


def _exact_terms(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rows (M, N) as sums of two terms (2, M, N) that a matrix product with counts adds up without rounding.

    How a BLAS orders and fuses additions depends on the processor and on its number of threads. Sums of multiples of one
    power of two that stay below 2^53 of it have nothing to round, so that every order gives the same bits. The first term
    is the nearest such multiple, the second one the nearest of what is left: together more digits than a float64 has.
    """
    terms, rest = [], rows
    for _ in range(2):
        _, exponent = np.frexp(rows.shape[1] * np.abs(rest).max(axis=1, initial=0.0, keepdims=True))
        unit = np.ldexp(1.0, np.maximum(exponent, -900) - 52)
        terms.append(np.rint(rest / unit) * unit)
        rest = rest - terms[-1]
    return np.stack(terms)


def _totals(terms: NDArray[np.float64], counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """Sums (M, B) of the rows of `_exact_terms` over resamples, given as counts (B, N); rounded once."""
    first, second = (terms.reshape(-1, terms.shape[2]) @ counts.T).reshape(2, -1, len(counts))
    totals: NDArray[np.float64] = first + second
    return totals


def _intervals(rows: NDArray[np.float64], parts: Iterable[NDArray[Any]], level: float) -> Interval:
    """Percentile intervals of the means of rows (M, N) over resamples, which come as index matrices (b, N).

    A resample is a vector of counts, so that all rows are one matrix product. A resample in which a row has no defined value
    is left out for that row.
    """
    defined = ~np.isnan(rows)
    terms = _exact_terms(np.where(defined, rows, 0.0))
    means = []
    for index in parts:
        counts = _counts(index)
        present = np.float64(index.shape[1]) if defined.all() else defined @ counts.T
        with np.errstate(invalid="ignore"):
            means.append(_totals(terms, counts) / present)
    low, high = (np.full(len(rows), np.nan) for _ in range(2))
    for row, drawn in enumerate(np.concatenate(means, axis=1)):
        if defined[row].any():
            low[row], high[row] = Interval.of_resamples(drawn[np.isfinite(drawn)], level)
    return Interval(low, high)


def _differences(a: ArrayLike, b: ArrayLike | None) -> NDArray[np.float64]:
    first = np.asarray(a, dtype=np.float64)
    differences = first if b is None else first - np.asarray(b, dtype=np.float64)
    if differences.ndim != 1:
        raise InputError(f"differences: shape {differences.shape}; expected one number for each pair")
    return differences[~np.isnan(differences)]


def _exact_signed_rank_p(statistic: int, pairs: int) -> float:
    """Two-sided: twice the share of all sign patterns whose positive rank sum is at most `statistic`."""
    ways = np.ones(1)  # ways[s]: how many sets of ranks 1 .. k sum to s
    for rank in range(1, pairs + 1):
        ways = np.pad(ways, (0, rank)) + np.pad(ways, (rank, 0))
    return min(1.0, 2 * float(ways[: statistic + 1].sum() / ways.sum()))


def _spearman_of_row(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    x, y = scipy.stats.rankdata(a), scipy.stats.rankdata(b)
    x, y = x - x.mean(), y - y.mean()
    scale = math.sqrt(float(x @ x) * float(y @ y))
    return float(x @ y) / scale if scale > 0 else math.nan


def _row_by_row(correlation: Any, a: ArrayLike, b: ArrayLike) -> NDArray[np.float64]:
    left, right = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if left.shape != right.shape or left.ndim < 1:
        raise InputError(f"b: shape {right.shape}; expected that of a, {left.shape}")
    result = np.full(left.shape[:-1], np.nan)
    for place in np.ndindex(result.shape):
        defined = ~(np.isnan(left[place]) | np.isnan(right[place]))
        x, y = left[place][defined], right[place][defined]
        if len(x) > 1 and x.min() < x.max() and y.min() < y.max():
            result[place] = correlation(x, y)
    return result
