"""What the page shows of each score: the entries of all methods under it, and the points of curves.

The numbers come from `metrics.comparison`, as those of every table do.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from heatproof.metrics import comparison, perturbation, roar, statistics
from heatproof.metrics.comparison import Entry, Sample, Settings, Values
from heatproof.metrics.score import Curve, Direction, Pooled
from heatproof.metrics.score import Scored as Measured
from heatproof.report.records import Curves, Method, Retraining, TestResult

_OWN_TESTS = ("ROAR", "KAR", "MoRF", "LeRF")  # have one primary score each, which goes by the test's name


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
        return next((entry for entry in self.entries if entry.method == name), None)

    @property
    def units(self) -> int:
        """Units of the best covered method, defined or not."""
        return max((entry.n + entry.n_undefined for entry in self.entries), default=0)

    @property
    def chance(self) -> float:
        """The score of a map without information, if that is the same whatever the method; else NaN."""
        known = {round(entry.chance, 9) for entry in self.entries if math.isfinite(entry.chance)}
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


def compared(score: Score, sample: Sample, methods: Sequence[Method], settings: Settings) -> Scored:
    """A score of all methods."""
    controls = {method.name: method.control for method in methods}
    (entries,) = comparison.compare([sample], controls, settings)
    return Scored(score, entries, {name: own for name, own in sample.values.items() if not isinstance(own, Pooled)})


def retraining_scores(found: Sequence[Retraining], methods: Sequence[Method], settings: Settings) -> Iterator[Scored]:
    """Scores of ROAR and KAR, unit: the run."""

    def of_runs(score: Score, values: Values) -> Scored:
        sample = Sample(values, score.better, "run", has_rank_ranges=score.is_primary)
        return compared(score, sample, methods, settings)

    by_metric = {part.metric: part for part in found}
    for metric, part in by_metric.items():
        better = _DIRECTIONS[metric]
        areas = roar.areas(part.accuracy, part.fractions, better, part.nothing_left)
        for name, values in areas.items():
            yield of_runs(_AREAS[metric, name], values)
        if not areas:
            means = {name: perturbation.area(value, part.fractions) for name, value in part.accuracy.items()}
            yield of_runs(_mean_accuracy(metric), means)
    if {"roar", "kar"} <= by_metric.keys():
        most, least = by_metric["roar"], by_metric["kar"]
        if np.array_equal(most.fractions, least.fractions) and most.runs == least.runs:
            gaps = {
                name: perturbation.area(least.accuracy[name] - most.accuracy[name], most.fractions)
                for name in most.accuracy
                if name in least.accuracy
            }
            yield of_runs(_DIFF_ROAR, gaps)


def perturbation_scores(test: TestResult, methods: Sequence[Method], settings: Settings) -> Iterator[Scored]:
    """The main scores of MoRF and LeRF, which are shown beside those of ROAR and KAR."""
    for name, score in PERTURBATION_SCORES.items():
        parts = {
            method: part
            for method, found in test.values.items()
            for part in found
            if isinstance(part, Measured) and part.name == name
        }
        if parts:
            sample = comparison.sample_of(parts, score.better, has_rank_ranges=score.is_primary)
            yield compared(score, sample, methods, settings)


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


def _point(fraction: float, values: NDArray[np.float64], low: NDArray[np.float64], high: NDArray[np.float64]) -> Point:
    """A point from the values (2, units) of a method and its differences to random, and their intervals (2,)."""
    defined = values[0][np.isfinite(values[0])]
    sd = float(defined.std(ddof=1)) if len(defined) > 1 else math.nan
    mean, gap = _mean(values[0]), _mean(values[1])
    return Point(fraction, len(defined), mean, sd, float(low[0]), float(high[0]), gap, float(low[1]), float(high[1]))


def _mean(values: NDArray[np.float64]) -> float:
    defined = values[np.isfinite(values)]
    return float(defined.mean()) if len(defined) else math.nan


_DIRECTIONS: dict[str, Direction] = {"roar": "lower", "kar": "higher"}
_AREAS = {
    ("roar", "area_to_random"): Score(
        "ROAR",
        "area to random",
        "run",
        better="higher",
        meaning="How far the accuracy lies below the random control's, averaged over the removed fractions.",
        is_primary=True,
        is_against_random=True,
    ),
    ("roar", "racu"): Score(
        "ROAR",
        "RACU",
        "run",
        better="higher",
        meaning="Area to random as a share of what a perfect map could reach: 1 is perfect, 0 random.",
        is_against_random=True,
    ),
    ("kar", "area_to_random"): Score(
        "KAR",
        "area above random",
        "run",
        better="higher",
        meaning="How far the accuracy lies above the random control's, averaged over the removed fractions.",
        is_primary=True,
        is_against_random=True,
    ),
}
_DIFF_ROAR = Score(
    "ROAR & KAR",
    "DiffROAR",
    "run",
    better="higher",
    meaning="Accuracy with the least important pixels removed minus with the most important.",
)
PERTURBATION_SCORES = {
    "morf_aopc": Score(
        "MoRF",
        "AOPC",
        "image",
        better="higher",
        meaning="Mean drop of the target's probability over all steps.",
        is_primary=True,
    ),
    "morf_area": Score("MoRF", "area", "image", better="lower", meaning="Mean height of the probability curve."),
    "lerf_area": Score(
        "LeRF", "area", "image", better="higher", meaning="Mean height of the probability curve.", is_primary=True
    ),
    "abpc": Score(
        "MoRF & LeRF",
        "ABPC",
        "image",
        better="higher",
        meaning="Area between the two curves: AOPC of MoRF minus AOPC of LeRF.",
    ),
}
"""The scores of pixel_perturbation_analysis that are shown beside those of ROAR and KAR."""


def _mean_accuracy(metric: str) -> Score:
    meaning = "Accuracy averaged over the removed fractions."
    return Score(metric.upper(), "mean accuracy", "run", _DIRECTIONS[metric], meaning, is_primary=True)
