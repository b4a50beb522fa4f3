"""What the tests say of each method: means with intervals, ranks, and comparisons with the controls.

Every score is a table of one value for each method and unit. The unit is the run where networks were retrained (equal
runs are pairs) and the image where they were not. All intervals over images come from one set of resamples, so that
methods are compared on the same draws.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from heatproof.metrics import perturbation, roar, statistics
from heatproof.report.records import Curves, Method, Retraining, Settings

REFERENCES = ("random", "centre", "sobel")
"""The controls that a method has to beat."""
ORACLE = "oracle"
_OPPONENTS = (*REFERENCES, ORACLE)
_EPSILON = 1e-12  # spread of differences that is rounding, not variation

Values = Mapping[str, NDArray[np.float64]]
Outcome = Literal["better", "worse", "undecided"]


@dataclass(frozen=True)
class Score:
    """One column of a table.

    Args:
        test: ROAR, KAR, MoRF or LeRF; or both names of a pair.
        name: of the score.
        unit: "run" or "image".
        higher_is_better: its direction.
        is_primary: whether the verdict of its test is read off this score.
        meaning: one line for the reader.
        is_against_random: whether the random control's own score is 0 by definition.
    """

    test: str
    name: str
    unit: Literal["run", "image"]
    higher_is_better: bool
    meaning: str
    is_primary: bool = False
    is_against_random: bool = False

    @property
    def arrow(self) -> str:
        """The better direction."""
        return "↑" if self.higher_is_better else "↓"

    @property
    def direction(self) -> str:
        """The better direction in words."""
        return "higher is better" if self.higher_is_better else "lower is better"


@dataclass(frozen=True)
class Versus:
    """A method against a control on the same units.

    Args:
        gain: mean difference, turned so that positive is better.
        low, high: its interval.
        n: pairs.
        p: of the paired t test (runs) or Wilcoxon's (images), Holm-adjusted over the methods under test; NaN where
            there is none.
        effect: rank-biserial correlation of the pairs, in [-1, 1].
        outcome: what the interval and the adjusted test allow to say.
    """

    gain: float
    low: float
    high: float
    n: int
    p: float
    effect: float
    outcome: Outcome


@dataclass(frozen=True)
class Entry:
    """A method's row under one score.

    Args:
        method: which.
        n: units with a value.
        undefined: units without one: runs that are missing, images whose score is undefined.
        mean, low, high: mean and its interval; NaN where there is none.
        rank: 1 is best; among the methods under test only.
        versus: for each control that was measured.
    """

    method: Method
    n: int
    undefined: int
    mean: float
    low: float
    high: float
    rank: int | None
    versus: Mapping[str, Versus]

    def beaten(self) -> tuple[str, ...]:
        """The reference controls that this method is better than."""
        return tuple(name for name in REFERENCES if name in self.versus and self.versus[name].outcome == "better")

    def not_beaten(self) -> tuple[str, ...]:
        """The reference controls that it is not shown to be better than."""
        return tuple(name for name in REFERENCES if name in self.versus and self.versus[name].outcome != "better")

    @property
    def is_judged(self) -> bool:
        """Whether there are enough units to say anything: a comparison with an interval."""
        return any(math.isfinite(v.low) for v in self.versus.values())


@dataclass(frozen=True)
class Scored:
    """One score of all methods, in the order of the configuration."""

    score: Score
    entries: tuple[Entry, ...]

    def entry(self, name: str) -> Entry | None:
        """A method's row; None where it has none."""
        return next((entry for entry in self.entries if entry.method.name == name), None)

    @property
    def units(self) -> int:
        """Units of the best covered method, defined or not."""
        return max((entry.n + entry.undefined for entry in self.entries), default=0)


@dataclass(frozen=True)
class Point:
    """One point of a curve.

    Args:
        fraction: removed.
        n: units with a value.
        mean, sd, low, high: over these units, with the mean's interval; NaN where there is none.
        gap, gap_low, gap_high: mean difference to the random control over pairs, and its interval.
    """

    fraction: float
    n: int
    mean: float
    sd: float
    low: float
    high: float
    gap: float
    gap_low: float
    gap_high: float


def retraining_scores(found: Sequence[Retraining], methods: Sequence[Method], settings: Settings) -> Iterator[Scored]:
    """Scores of ROAR and KAR, unit: the run."""
    by_metric = {part.metric: part for part in found}
    for metric, part in by_metric.items():
        test = metric.upper()
        if "random" in part.accuracy:
            random = part.accuracy["random"]
            yield _scored(_AREAS[test], _area_to_random(part, random), methods, settings)
            if test == "ROAR":
                yield _scored(_RACU, _racu(part, random), methods, settings)
        else:
            means = {name: perturbation.area(value, part.fractions) for name, value in part.accuracy.items()}
            yield _scored(_MEANS[test], means, methods, settings)
    if {"roar", "kar"} <= by_metric.keys():
        most, least = by_metric["roar"], by_metric["kar"]
        if np.array_equal(most.fractions, least.fractions) and most.runs == least.runs:
            gaps = {
                name: perturbation.area(least.accuracy[name] - most.accuracy[name], most.fractions)
                for name in most.accuracy
                if name in least.accuracy
            }
            yield _scored(_DIFF_ROAR, gaps, methods, settings)


def curve_scores(curves: Curves, methods: Sequence[Method], settings: Settings) -> Iterator[Scored]:
    """Scores of MoRF and LeRF, unit: the image."""
    most = {name: p[:, 0] for name, p in curves.probability.items()}
    least = {name: p[:, 1] for name, p in curves.probability.items()}
    yield _scored(_MORF_AOPC, {n: perturbation.aopc(c) for n, c in most.items()}, methods, settings)
    yield _scored(_MORF_AREA, {n: perturbation.area(c, curves.fractions) for n, c in most.items()}, methods, settings)
    yield _scored(_LERF_AREA, {n: perturbation.area(c, curves.fractions) for n, c in least.items()}, methods, settings)
    yield _scored(_ABPC, {n: perturbation.abpc(most[n], least[n]) for n in most}, methods, settings)


def run_points(part: Retraining, confidence: float) -> dict[str, list[Point]]:
    """Each method's accuracies over removed fractions: means over runs with t intervals."""
    return _points(part.accuracy, part.fractions, lambda values: statistics.t_interval(values, confidence))


def image_points(curves: Curves, end: int, settings: Settings) -> dict[str, list[Point]]:
    """Each method's probabilities over removed fractions from one end: means over images with bootstrap intervals."""
    columns = {name: probability[:, end] for name, probability in curves.probability.items()}
    return _points(columns, curves.fractions, lambda values: bootstrap_intervals(values, settings))


def _points(
    columns: Values, fractions: NDArray[np.float64], intervals: Callable[[NDArray[np.float64]], statistics.Interval]
) -> dict[str, list[Point]]:
    """Points of each method from its values (units, S)."""
    values = np.stack(list(columns.values())).transpose(0, 2, 1)  # (M, S, units)
    random = columns["random"].T if "random" in columns else np.full(values.shape[1:], np.nan)
    both = np.concatenate([values, values - random])
    low, high = (ends.reshape(both.shape[:2]) for ends in intervals(both.reshape(-1, both.shape[2])))
    found = {}
    for row, name in enumerate(columns):
        pair = [row, row + len(columns)]
        found[name] = [
            _point(fraction, both[pair, step], low[pair, step], high[pair, step])
            for step, fraction in enumerate(fractions.tolist())
        ]
    return found


def bootstrap_intervals(values: NDArray[np.float64], settings: Settings) -> statistics.Interval:
    """Percentile bootstrap intervals of the means of rows (K, N): ends (K,), NaN where fewer than two are defined."""
    low, high = statistics.seeded_bootstrap(values, settings.seed, settings.resamples, settings.confidence)
    enough = np.isfinite(values).sum(axis=1) > 1
    return statistics.Interval(np.where(enough, low, np.nan), np.where(enough, high, np.nan))


def _area_to_random(part: Retraining, random: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
    # ROAR is good below the random control, KAR above it: there the roles are exchanged.
    if part.metric == "roar":
        return {name: roar.area_to_random(value, random, part.fractions) for name, value in part.accuracy.items()}
    return {name: roar.area_to_random(random, value, part.fractions) for name, value in part.accuracy.items()}


def _racu(part: Retraining, random: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
    total = None if part.measures_nothing_left else np.full(len(part.runs), part.nothing_left)
    return {name: roar.racu(value, random, part.fractions, total) for name, value in part.accuracy.items()}


def _scored(score: Score, values: Values, methods: Sequence[Method], settings: Settings) -> Scored:
    listed = [method for method in methods if method.name in values]
    opponents = [name for name in _OPPONENTS if name in values]
    sign = 1.0 if score.higher_is_better else -1.0
    gains = {
        (method.name, opponent): sign * (values[method.name] - values[opponent])
        for method in listed
        for opponent in opponents
        if method.name != opponent
    }
    rows = [values[method.name] for method in listed] + list(gains.values())
    low, high = _intervals(score, np.stack(rows), settings) if rows else ((), ())
    against = dict(zip(gains, zip(low[len(listed) :], high[len(listed) :], strict=True), strict=True))
    tests = _adjusted(score, gains, listed)
    means = {method.name: _mean(values[method.name]) for method in listed}
    ranks = _ranks({m.name: means[m.name] for m in listed if not m.control}, score.higher_is_better)
    entries = []
    for row, method in enumerate(listed):
        own = values[method.name]
        versus = {
            opponent: _versus(gains[name, opponent], *ends, tests[name, opponent], settings.confidence)
            for (name, opponent), ends in against.items()
            if name == method.name
        }
        n = int(np.isfinite(own).sum())
        entries.append(
            Entry(
                method,
                n,
                len(own) - n,
                means[method.name],
                float(low[row]),
                float(high[row]),
                ranks.get(method.name),
                versus,
            )
        )
    return Scored(score, tuple(entries))


def _intervals(score: Score, values: NDArray[np.float64], settings: Settings) -> statistics.Interval:
    if score.unit == "run":
        return statistics.t_interval(values, settings.confidence)
    return bootstrap_intervals(values, settings)


def _adjusted(
    score: Score, gains: Mapping[tuple[str, str], NDArray[np.float64]], methods: Sequence[Method]
) -> dict[tuple[str, str], float]:
    """P values for each pair, adjusted over the methods under test; a control is no candidate, so its own are not."""
    test: Callable[[NDArray[np.float64]], float] = _run_test if score.unit == "run" else _image_test
    found = {pair: test(values) for pair, values in gains.items()}
    tested = [method.name for method in methods if not method.control]
    for opponent in dict.fromkeys(opponent for _, opponent in gains):
        family = [(name, opponent) for name in tested if (name, opponent) in gains]
        found.update(zip(family, statistics.holm([found[pair] for pair in family]).tolist(), strict=True))
    return found


def _run_test(gains: NDArray[np.float64]) -> float:
    defined = gains[np.isfinite(gains)]
    if len(defined) < 2:
        return math.nan
    if np.ptp(defined) <= _EPSILON:  # no variation: the t test divides by it
        return 1.0 if abs(defined.mean()) <= _EPSILON else 0.0
    return statistics.paired_t(defined).p


def _image_test(gains: NDArray[np.float64]) -> float:
    defined = gains[np.isfinite(gains)]
    return statistics.wilcoxon(defined).p if len(defined) >= statistics.MIN_WILCOXON_PAIRS else math.nan


def _versus(gains: NDArray[np.float64], low: float, high: float, p: float, confidence: float) -> Versus:
    n = int(np.isfinite(gains).sum())
    outcome: Outcome = "undecided"
    # Too few pairs for a test leave the interval alone to decide; there is none for a single pair.
    if math.isnan(p) or p <= 1 - confidence:
        outcome = "better" if low > 0 else "worse" if high < 0 else "undecided"
    return Versus(
        _mean(gains), float(low), float(high), n, p, statistics.rank_biserial(gains), outcome if n > 1 else "undecided"
    )


def _ranks(means: Mapping[str, float], higher_is_better: bool) -> dict[str, int]:
    finite = {name: mean for name, mean in means.items() if math.isfinite(mean)}
    return {
        name: 1 + sum((other > mean) if higher_is_better else (other < mean) for other in finite.values())
        for name, mean in finite.items()
    }


def _point(fraction: float, values: NDArray[np.float64], low: NDArray[np.float64], high: NDArray[np.float64]) -> Point:
    """A point from the values (2, units) of a method and its differences to random, and their intervals (2,)."""
    defined = values[0][np.isfinite(values[0])]
    sd = float(defined.std(ddof=1)) if len(defined) > 1 else math.nan
    mean, gap = _mean(values[0]), _mean(values[1])
    return Point(fraction, len(defined), mean, sd, float(low[0]), float(high[0]), gap, float(low[1]), float(high[1]))


def _mean(values: NDArray[np.float64]) -> float:
    defined = values[np.isfinite(values)]
    return float(defined.mean()) if len(defined) else math.nan


_AREAS = {
    "ROAR": Score(
        "ROAR",
        "area to random",
        "run",
        higher_is_better=True,
        meaning="How far the accuracy lies below the random control's, averaged over the removed fractions.",
        is_primary=True,
        is_against_random=True,
    ),
    "KAR": Score(
        "KAR",
        "area above random",
        "run",
        higher_is_better=True,
        meaning="How far the accuracy lies above the random control's, averaged over the removed fractions.",
        is_primary=True,
        is_against_random=True,
    ),
}
_MEANS = {
    test: Score(
        test, "mean accuracy", "run", better_high, "Accuracy averaged over the removed fractions.", is_primary=True
    )
    for test, better_high in (("ROAR", False), ("KAR", True))
}
_RACU = Score(
    "ROAR",
    "RACU",
    "run",
    higher_is_better=True,
    meaning="Area to random as a share of what a perfect map could reach: 1 is perfect, 0 random.",
    is_against_random=True,
)
_DIFF_ROAR = Score(
    "ROAR & KAR",
    "DiffROAR",
    "run",
    higher_is_better=True,
    meaning="Accuracy with the least important pixels removed minus with the most important.",
)
_MORF_AOPC = Score(
    "MoRF",
    "AOPC",
    "image",
    higher_is_better=True,
    meaning="Mean drop of the target's probability over all steps.",
    is_primary=True,
)
_MORF_AREA = Score("MoRF", "area", "image", higher_is_better=False, meaning="Mean height of the probability curve.")
_LERF_AREA = Score(
    "LeRF", "area", "image", higher_is_better=True, meaning="Mean height of the probability curve.", is_primary=True
)
_ABPC = Score(
    "MoRF & LeRF",
    "ABPC",
    "image",
    higher_is_better=True,
    meaning="Area between the two curves: AOPC of MoRF minus AOPC of LeRF.",
)
