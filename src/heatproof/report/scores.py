"""What the tests say of each method: means with intervals, ranks, and comparisons with the controls.

Every score is a table of one value for each method and unit. The unit is the run where networks were retrained (equal
runs are pairs) and the image where they were not. All intervals over images come from one set of resamples, so that
methods are compared on the same draws. A score of all images that is no mean over them is resampled as a whole.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from heatproof.metrics import perturbation, roar, statistics
from heatproof.metrics.score import Curve, Direction, Pooled
from heatproof.report.records import Curves, Method, Retraining, Settings

REFERENCES = ("random", "centre", "sobel")
"""The controls that a method has to beat."""
ORACLE = "oracle"
_OPPONENTS = (*REFERENCES, ORACLE)
_OWN_TESTS = ("ROAR", "KAR", "MoRF", "LeRF")  # have one primary score each, which goes by the test's name

Values = Mapping[str, NDArray[np.float64]]
Outcome = Literal["better", "worse", "undecided", "neutral"]


@dataclass(frozen=True)
class Score:
    """One column of a table.

    Args:
        test: ROAR, KAR, MoRF or LeRF, or both names of a pair; or the name of a test of stored maps.
        name: of the score.
        unit: "run" or "image".
        better: its direction; "neither" has no ranks, and nobody is better or worse.
        meaning: one line for the reader.
        is_primary: whether it stands for its test: in the summary, and where a verdict is read off.
        is_against_random: whether the random control's own score is 0 by definition.
        setting: which of several.
        oracle_best: whether a map of the true object has to beat the random control.
    """

    test: str
    name: str
    unit: Literal["run", "image"]
    better: Direction
    meaning: str
    is_primary: bool = False
    is_against_random: bool = False
    setting: str = ""
    oracle_best: bool = True

    @property
    def higher_is_better(self) -> bool:
        """Whether more of it speaks for a method; so are differences turned where there is no direction."""
        return self.better != "lower"

    @property
    def is_ranked(self) -> bool:
        """Whether it says who is better."""
        return self.better != "neither"

    @property
    def arrow(self) -> str:
        """The better direction."""
        return {"higher": "↑", "lower": "↓", "neither": "·"}[self.better]

    @property
    def direction(self) -> str:
        """The better direction in words."""
        return "no direction" if self.better == "neither" else f"{self.better} is better"

    @property
    def label(self) -> str:
        """Name and setting."""
        return f"{self.name}, {self.setting}" if self.setting else self.name

    @property
    def title(self) -> str:
        """What it is called among the scores of all tests."""
        if self.test in (*_OWN_TESTS, self.label):
            return self.test
        return f"{self.label} ({self.test})"


@dataclass(frozen=True)
class Versus:
    """A method against a control on the same units.

    Args:
        gain: mean difference, turned so that positive is better.
        low, high: its interval.
        n: pairs of units that both have.
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
        best_rank, worst_rank: ends of the rank's interval: over resampled images, or over all runs; None where there is
            none.
        useless: what a map that knows nothing would score; NaN where that cannot be said.
    """

    method: Method
    n: int
    undefined: int
    mean: float
    low: float
    high: float
    rank: int | None
    versus: Mapping[str, Versus]
    best_rank: int | None = None
    worst_rank: int | None = None
    useless: float = math.nan

    def beaten(self) -> tuple[str, ...]:
        """The reference controls that this method is better than."""
        return tuple(name for name in REFERENCES if name in self.versus and self.versus[name].outcome == "better")

    def not_beaten(self) -> tuple[str, ...]:
        """The reference controls that it is not shown to be better than."""
        return tuple(
            name
            for name in REFERENCES
            if name in self.versus and self.versus[name].outcome not in ("better", "neutral")
        )

    @property
    def is_judged(self) -> bool:
        """Whether there are enough units to say anything: a comparison with an interval."""
        return any(math.isfinite(v.low) for v in self.versus.values())


@dataclass(frozen=True)
class Scored:
    """One score of all methods, in the order of the configuration.

    Args:
        score: which.
        entries: one for each method.
        values: for each method (units,); empty where the score is no mean over units.
    """

    score: Score
    entries: tuple[Entry, ...]
    values: Values = field(default_factory=dict)

    def entry(self, name: str) -> Entry | None:
        """A method's row; None where it has none."""
        return next((entry for entry in self.entries if entry.method.name == name), None)

    @property
    def units(self) -> int:
        """Units of the best covered method, defined or not."""
        return max((entry.n + entry.undefined for entry in self.entries), default=0)

    @property
    def useless(self) -> float:
        """What a map that knows nothing would score, if that is the same whatever the method; else NaN."""
        known = {round(entry.useless, 9) for entry in self.entries if math.isfinite(entry.useless)}
        return known.pop() if len(known) == 1 else math.nan


@dataclass(frozen=True)
class Point:
    """One point of a curve.

    Args:
        x: where: the removed fraction, or whatever the curve runs over.
        n: units with a value.
        mean, sd, low, high: over these units, with the mean's interval; NaN where there is none.
        gap, gap_low, gap_high: mean difference to the random control over pairs, and its interval.
    """

    x: float
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
            yield mean_scores(_AREAS[test], _area_to_random(part, random), methods, settings)
            if test == "ROAR":
                yield mean_scores(_RACU, _racu(part, random), methods, settings)
        else:
            means = {name: perturbation.area(value, part.fractions) for name, value in part.accuracy.items()}
            yield mean_scores(_MEANS[test], means, methods, settings)
    if {"roar", "kar"} <= by_metric.keys():
        most, least = by_metric["roar"], by_metric["kar"]
        if np.array_equal(most.fractions, least.fractions) and most.runs == least.runs:
            gaps = {
                name: perturbation.area(least.accuracy[name] - most.accuracy[name], most.fractions)
                for name in most.accuracy
                if name in least.accuracy
            }
            yield mean_scores(_DIFF_ROAR, gaps, methods, settings)


def curve_scores(curves: Curves, methods: Sequence[Method], settings: Settings) -> Iterator[Scored]:
    """Scores of MoRF and LeRF, unit: the image."""
    most = {name: p[:, 0] for name, p in curves.probability.items()}
    least = {name: p[:, 1] for name, p in curves.probability.items()}
    yield mean_scores(_MORF_AOPC, {n: perturbation.aopc(c) for n, c in most.items()}, methods, settings)
    yield mean_scores(
        _MORF_AREA, {n: perturbation.area(c, curves.fractions) for n, c in most.items()}, methods, settings
    )
    yield mean_scores(
        _LERF_AREA, {n: perturbation.area(c, curves.fractions) for n, c in least.items()}, methods, settings
    )
    yield mean_scores(_ABPC, {n: perturbation.abpc(most[n], least[n]) for n in most}, methods, settings)


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


def mean_scores(
    score: Score,
    values: Values,
    methods: Sequence[Method],
    settings: Settings,
    useless: Mapping[str, float] | None = None,
) -> Scored:
    """A score that is a mean over units.

    Args:
        score: what it is.
        values: for each method (units,), NaN where undefined; equal positions are pairs.
        methods: of the configuration.
        settings: of the intervals.
        useless: for each method the score of a map that knows nothing, where that can be said.
    """
    listed = [method for method in methods if method.name in values]
    sign = 1.0 if score.higher_is_better else -1.0
    gains = {pair: sign * (values[pair[0]] - values[pair[1]]) for pair in _pairs(listed)}
    rows = [values[method.name] for method in listed] + list(gains.values())
    low, high = _intervals(score, np.stack(rows), settings) if rows else ((), ())
    ends = dict(zip([m.name for m in listed] + list(gains), zip(low, high, strict=True), strict=True))
    tests = _adjusted(score, gains, listed)
    means = {method.name: _mean(values[method.name]) for method in listed}
    ranked = [method.name for method in listed if not method.control] if score.is_ranked else []
    ranks = _ranks({name: means[name] for name in ranked}, score.higher_is_better)
    spans = _rank_spans(score, {name: values[name] for name in ranks}, settings) if score.is_primary else {}
    entries = []
    for method in listed:
        name = method.name
        n = int(np.isfinite(values[name]).sum())
        versus = {
            pair[1]: _versus(score, gains[pair], *ends[pair], tests[pair], settings.confidence)
            for pair in gains
            if pair[0] == name
        }
        bottom, top = (float(end) for end in ends[name])
        lost, known = len(values[name]) - n, (useless or {}).get(name, math.nan)
        span = spans.get(name, (None, None))
        entries.append(Entry(method, n, lost, means[name], bottom, top, ranks.get(name), versus, *span, known))
    return Scored(score, tuple(entries), values)


def pooled_scores(score: Score, parts: Mapping[str, Pooled], methods: Sequence[Method], settings: Settings) -> Scored:
    """A score of all images together; intervals, tests and ranks come from resampled images, the same for all methods."""
    listed = [method for method in methods if method.name in parts]

    def resampled(part: Pooled) -> NDArray[np.float64]:
        return statistics.resampled(part.sums, part.statistic, settings.seed, settings.resamples)

    used = {method.name: parts[method.name].used for method in listed}
    drawn = {name: resampled(parts[name]) for name in used}
    means = {name: parts[name].value for name in drawn}
    sign = 1.0 if score.higher_is_better else -1.0
    gain, gains, number = {}, {}, {}
    for pair in _pairs(listed):
        # Two methods are compared on the images that both use.
        both = used[pair[0]] & used[pair[1]]
        same = [bool((used[name] == both).all()) for name in pair]
        sides = [parts[name] if whole else parts[name].among(both) for name, whole in zip(pair, same, strict=True)]
        first, second = (
            drawn[name] if whole else resampled(side) for name, whole, side in zip(pair, same, sides, strict=True)
        )
        gain[pair], gains[pair] = sign * (sides[0].value - sides[1].value), sign * (first - second)
        number[pair] = int(both.sum())
    tests = _holm({pair: _resampled_test(values) for pair, values in gains.items()}, listed)
    ranked = [method.name for method in listed if not method.control] if score.is_ranked else []
    ranks = _ranks({name: means[name] for name in ranked}, score.higher_is_better)
    spans = _spans(np.stack([drawn[name] for name in ranks]), list(ranks), score, settings) if ranks else {}
    entries = []
    for method in listed:
        name = method.name
        n, images = int(used[name].sum()), len(used[name])
        versus = {}
        for pair, values in gains.items():
            if pair[0] == name:
                low, high = _percentiles(values, settings.confidence)
                outcome = _outcome(score, low, high, tests[pair], settings.confidence)
                versus[pair[1]] = Versus(gain[pair], low, high, number[pair], tests[pair], math.nan, outcome)
        ends = _percentiles(drawn[name], settings.confidence)
        span = spans.get(name, (None, None))
        entries.append(Entry(method, n, images - n, means[name], *ends, ranks.get(name), versus, *span))
    return Scored(score, tuple(entries))


def curve_points(curves: Mapping[str, Curve], chosen: NDArray[np.int64], settings: Settings) -> dict[str, list[Point]]:
    """Each method's mean curve of a test of stored maps, with bootstrap intervals.

    Args:
        curves: one for each method, over the same x and images.
        chosen: positions of the points that are shown.
        settings: of the intervals.
    """
    steps = next(iter(curves.values())).x[chosen]
    columns = {name: curve.values[:, chosen].astype(np.float64) for name, curve in curves.items()}
    return _points(columns, steps, lambda values: bootstrap_intervals(values, settings))


def setting_points(
    values: Mapping[str, NDArray[np.float64]], x: NDArray[np.float64], settings: Settings
) -> dict[str, list[Point]]:
    """Each method's score over its settings: values (N, S) of images at S settings with the places x (S,)."""
    return _points(values, x, lambda rows: bootstrap_intervals(rows, settings))


def _pairs(listed: Sequence[Method]) -> list[tuple[str, str]]:
    """Each method with each control that it is compared with."""
    names = [method.name for method in listed]
    return [(name, other) for name in names for other in _OPPONENTS if other in names and other != name]


def _rank_spans(score: Score, values: Values, settings: Settings) -> dict[str, tuple[int | None, int | None]]:
    """Between which ranks each method lies: over all runs, or over resampled images."""
    if len(values) < 2:
        return {}
    rows = np.stack(list(values.values()))
    if score.unit == "run":
        whole = np.isfinite(rows).all(axis=0)
        return _spans(rows[:, whole], list(values), score, None) if whole.sum() > 1 else {}
    defined = np.isfinite(rows)
    if (defined.sum(axis=1) < 2).any():
        return {}
    added = np.concatenate([np.where(defined, rows, 0.0), defined]).T

    def means(total: NDArray[np.float64]) -> NDArray[np.float64]:
        with np.errstate(invalid="ignore"):
            shares: NDArray[np.float64] = total[:, : len(rows)] / total[:, len(rows) :]
        return shares

    drawn = statistics.resampled(added, means, settings.seed, settings.resamples).T
    return _spans(drawn[:, np.isfinite(drawn).all(axis=0)], list(values), score, settings)


def _spans(
    drawn: NDArray[np.float64], names: Sequence[str], score: Score, settings: Settings | None
) -> dict[str, tuple[int | None, int | None]]:
    """Ranks of methods (M, B) in each of B draws: the interval with the confidence of the settings; without, all."""
    if not drawn.shape[1]:
        return {}
    turned = -drawn if score.higher_is_better else drawn
    ranks = 1 + (turned[None] < turned[:, None]).sum(axis=1)  # (M, B)
    tail = 0.0 if settings is None else 50 * (1 - settings.confidence)
    low = np.percentile(ranks, tail, axis=1, method="lower")
    high = np.percentile(ranks, 100 - tail, axis=1, method="higher")
    return {name: (int(a), int(b)) for name, a, b in zip(names, low, high, strict=True)}


def _percentiles(drawn: NDArray[np.float64], confidence: float) -> tuple[float, float]:
    defined = drawn[np.isfinite(drawn)]
    if len(defined) < 2:
        return math.nan, math.nan
    low, high = statistics.Interval.of_resamples(defined, confidence)
    return float(low), float(high)


def _resampled_test(gains: NDArray[np.float64]) -> float:
    """Two-sided p of no difference, from resampled differences: how often the sign turns."""
    defined = gains[np.isfinite(gains)]
    if len(defined) < 2:
        return math.nan
    fewer = min(int((defined <= 0).sum()), int((defined >= 0).sum()))
    return min(1.0, 2 * (1 + fewer) / (1 + len(defined)))


def _intervals(score: Score, values: NDArray[np.float64], settings: Settings) -> statistics.Interval:
    if score.unit == "run":
        return statistics.t_interval(values, settings.confidence)
    return bootstrap_intervals(values, settings)


def _adjusted(
    score: Score, gains: Mapping[tuple[str, str], NDArray[np.float64]], methods: Sequence[Method]
) -> dict[tuple[str, str], float]:
    """P values for each pair, adjusted over the methods under test; a control is no candidate, so its own are not."""
    test: Callable[[NDArray[np.float64]], float] = statistics.paired_p if score.unit == "run" else _image_test
    return _holm({pair: test(values) for pair, values in gains.items()}, methods)


def _holm(p: Mapping[tuple[str, str], float], methods: Sequence[Method]) -> dict[tuple[str, str], float]:
    found = dict(p)
    tested = [method.name for method in methods if not method.control]
    for opponent in dict.fromkeys(opponent for _, opponent in p):
        family = [(name, opponent) for name in tested if (name, opponent) in p]
        found.update(zip(family, statistics.holm([p[pair] for pair in family]).tolist(), strict=True))
    return found


def _image_test(gains: NDArray[np.float64]) -> float:
    defined = gains[np.isfinite(gains)]
    return statistics.wilcoxon(defined).p if len(defined) >= statistics.MIN_WILCOXON_PAIRS else math.nan


def _versus(score: Score, gains: NDArray[np.float64], low: float, high: float, p: float, confidence: float) -> Versus:
    n = int(np.isfinite(gains).sum())
    outcome = _outcome(score, low, high, p, confidence) if n > 1 or not score.is_ranked else "undecided"
    return Versus(_mean(gains), float(low), float(high), n, p, statistics.rank_biserial(gains), outcome)


def _outcome(score: Score, low: float, high: float, p: float, confidence: float) -> Outcome:
    if not score.is_ranked:
        return "neutral"
    # Too few pairs for a test leave the interval alone to decide; there is none for a single pair.
    if math.isnan(p) or p <= 1 - confidence:
        return "better" if low > 0 else "worse" if high < 0 else "undecided"
    return "undecided"


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
        better="higher",
        meaning="How far the accuracy lies below the random control's, averaged over the removed fractions.",
        is_primary=True,
        is_against_random=True,
    ),
    "KAR": Score(
        "KAR",
        "area above random",
        "run",
        better="higher",
        meaning="How far the accuracy lies above the random control's, averaged over the removed fractions.",
        is_primary=True,
        is_against_random=True,
    ),
}
_DIRECTIONS: dict[str, Direction] = {"ROAR": "lower", "KAR": "higher"}
_MEANS = {
    test: Score(test, "mean accuracy", "run", better, "Accuracy averaged over the removed fractions.", is_primary=True)
    for test, better in _DIRECTIONS.items()
}
_RACU = Score(
    "ROAR",
    "RACU",
    "run",
    better="higher",
    meaning="Area to random as a share of what a perfect map could reach: 1 is perfect, 0 random.",
    is_against_random=True,
)
_DIFF_ROAR = Score(
    "ROAR & KAR",
    "DiffROAR",
    "run",
    better="higher",
    meaning="Accuracy with the least important pixels removed minus with the most important.",
)
_MORF_AOPC = Score(
    "MoRF",
    "AOPC",
    "image",
    better="higher",
    meaning="Mean drop of the target's probability over all steps.",
    is_primary=True,
)
_MORF_AREA = Score("MoRF", "area", "image", better="lower", meaning="Mean height of the probability curve.")
_LERF_AREA = Score(
    "LeRF", "area", "image", better="higher", meaning="Mean height of the probability curve.", is_primary=True
)
_ABPC = Score(
    "MoRF & LeRF",
    "ABPC",
    "image",
    better="higher",
    meaning="Area between the two curves: AOPC of MoRF minus AOPC of LeRF.",
)
