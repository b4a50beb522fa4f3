"""Ranks of methods over many blocks (images, runs): do they differ at all, and which from which?"""

import functools
import math
from typing import NamedTuple

import numpy as np
import scipy
from numpy.typing import ArrayLike, NDArray

from heatproof.errors import InputError

MIN_BLOCKS = 5  # below, ranks over blocks are not testable


class Significance(NamedTuple):
    """A test's statistic and its two-sided p value."""

    statistic: float
    p: float


def average_ranks(table: ArrayLike, higher_is_better: bool = True) -> NDArray[np.float64]:
    """Mean rank of each method over the blocks; 1 is best, ties share their mean rank.

    Args:
        table: (M, B) one score for each method and block; a block with NaN is left out.
        higher_is_better: direction of the score.

    Returns:
        (M,), in [1, M].

    >>> average_ranks([[0.9, 0.8], [0.7, 0.8], [0.1, 0.2]])
    array([1.25, 1.75, 3.  ])
    """
    scores = _blocks(table)
    means: NDArray[np.float64] = scipy.stats.rankdata(-scores if higher_is_better else scores, axis=0).mean(axis=1)
    return means


def friedman(table: ArrayLike) -> Significance:
    """Friedman's test: do methods differ, judged by their ranks within blocks? Corrected for ties.

    Args:
        table: (M, B), as in `average_ranks`; at least three methods.

    Returns:
        chi2 with M - 1 degrees of freedom, and p; NaN where all scores of all blocks are tied.

    Reference:
        Friedman, JASA 32 (1937); Demsar, JMLR 7 (2006).

    >>> round(friedman([[3, 3, 3], [2, 2, 2], [1, 1, 1]]).statistic, 12)
    6.0
    """
    scores = _blocks(table)
    methods = len(scores)
    ranks = scipy.stats.rankdata(scores, axis=0)
    sums = ranks.sum(axis=1)
    spread = float(((sums - sums.mean()) ** 2).sum())
    within = float(((ranks - ranks.mean(axis=0)) ** 2).sum())
    if methods < 2 or within == 0:
        return Significance(math.nan, math.nan)
    chi2 = spread * (methods - 1) / within
    return Significance(chi2, float(scipy.stats.chi2.sf(chi2, methods - 1)))


def iman_davenport(table: ArrayLike) -> Significance:
    """Iman and Davenport's F, less timid than Friedman's chi2: (B - 1) chi2 / (B (M - 1) - chi2).

    Args:
        table: (M, B), as in `average_ranks`.

    Returns:
        F with M - 1 and (M - 1)(B - 1) degrees of freedom, and p; infinite and 0 where all blocks agree.

    Reference:
        Iman and Davenport, Communications in Statistics A9 (1980).

    >>> result = iman_davenport([[3, 3, 2], [2, 2, 3], [1, 1, 1]])
    >>> round(result.statistic, 9)
    7.0
    """
    methods, blocks = _blocks(table).shape
    chi2 = friedman(table).statistic
    rest = blocks * (methods - 1) - chi2
    if math.isnan(chi2) or rest <= 0:
        return Significance(math.nan, math.nan) if math.isnan(chi2) else Significance(math.inf, 0.0)
    f = (blocks - 1) * chi2 / rest
    return Significance(f, float(scipy.stats.f.sf(f, methods - 1, (methods - 1) * (blocks - 1))))


@functools.lru_cache(maxsize=64)
def critical_difference(methods: int, blocks: int, alpha: float = 0.05) -> float:
    """Nemenyi: how far two average ranks must lie apart to differ; q * sqrt(M (M + 1) / (6 B)).

    q is the quantile of the studentised range for M methods and infinitely many degrees of freedom, over sqrt(2).

    Reference:
        Demsar, JMLR 7 (2006).

    >>> round(critical_difference(5, 7), 6)
    2.30539
    """
    q = float(scipy.stats.studentized_range.isf(alpha, methods, math.inf)) / math.sqrt(2)
    return q * math.sqrt(methods * (methods + 1) / (6 * blocks))


def groups(ranks: ArrayLike, difference: float) -> list[list[int]]:
    """The largest groups of methods whose average ranks do not differ by more than the critical difference.

    Args:
        ranks: (M,) average ranks.
        difference: from `critical_difference`.

    Returns:
        Positions of the methods in each group, best first; a method without company is in none.

    >>> groups([1.0, 3.5, 2.0, 2.5], difference=1.5)
    [[0, 2, 3], [2, 3, 1]]
    """
    values = np.asarray(ranks, dtype=np.float64)
    best = np.argsort(values, kind="stable")
    ends = np.searchsorted(values[best], values[best] + difference, side="right")
    found: list[list[int]] = []
    reached = 0
    for start, end in enumerate(ends.tolist()):
        if end > max(reached, start + 1):
            found.append(best[start:end].tolist())
        reached = max(reached, end)
    return found


def _blocks(table: ArrayLike) -> NDArray[np.float64]:
    scores = np.asarray(table, dtype=np.float64)
    if scores.ndim != 2:
        raise InputError(f"table: shape {scores.shape}; expected (methods, blocks)")
    return scores[:, ~np.isnan(scores).any(axis=0)]
