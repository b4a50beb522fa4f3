"""What the page shows of each score: the entries of all methods under it, and the points of curves.

The numbers come from `metrics.comparison`, as those of every table do.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from heatproof.metrics import comparison, perturbation, roar, statistics
from heatproof.metrics.comparison import Entry, Sample, Settings, Unit, Values
from heatproof.metrics.score import Direction, Pooled
from heatproof.metrics.score import Scored as Measured
from heatproof.report.records import Method, Retraining, TestResult

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
    (entries,) = comparison.compare([sample], controls, settings, score.unit)
    return Scored(score, entries, {name: own for name, own in sample.values.items() if not isinstance(own, Pooled)})


def retraining_scores(found: Sequence[Retraining], methods: Sequence[Method], settings: Settings) -> Iterator[Scored]:
    """Scores of ROAR and KAR, unit: the run."""

    def of_runs(score: Score, values: Values) -> Scored:
        sample = Sample(values, score.better, has_rank_ranges=score.is_primary)
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


def points(columns: Values, x: NDArray[np.float64], unit: Unit, settings: Settings) -> dict[str, list[Point]]:
    """Each method's mean curve, and its differences to the random control, with intervals.

    Args:
        columns: for each method (units, S).
        x: (S,) places of the points.
        unit: "run" or "image".
        settings: of the intervals.
    """
    none = np.full_like(next(iter(columns.values())), np.nan)
    gaps = {name: values - columns.get("random", none) for name, values in columns.items()}
    rows = [row for part in (columns, gaps) for values in part.values() for row in values.T.astype(np.float64)]
    found = comparison.summaries(rows, unit, settings)
    own, own_gaps = (iter(part) for part in (found[: len(found) // 2], found[len(found) // 2 :]))
    return {name: [_point(place, next(own), next(own_gaps)) for place in x.tolist()] for name in columns}


def _point(x: float, own: statistics.Summary, gap: statistics.Summary) -> Point:
    return Point(x, own.n, own.mean, own.sd, own.low, own.high, gap.mean, gap.low, gap.high)


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
