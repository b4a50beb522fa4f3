"""How methods compare under a score: means with intervals, differences to controls, tests, ranks, and what follows.

Every table and the report take their numbers from here, whether the unit is a run (networks were retrained; equal runs are
pairs) or an image. All intervals over images come from one set of resamples, so that methods are compared on the same draws.
A score of all images that is no mean over them (`Pooled`) is resampled as a whole. What follows from the numbers is data:
which controls a method is not shown to beat, and which it cannot be tested against.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from heatproof.metrics import statistics
from heatproof.metrics.score import Direction, Pooled, Scored
from heatproof.metrics.statistics import Interval, Summary

REFERENCES = ("random", "centre", "sobel")
"""The controls that a method has to beat."""
ORACLE = "oracle"
DERIVED = "+"
"""Between the name of a method and that of a control which is derived from its maps."""

Unit = Literal["run", "image"]
Outcome = Literal["better", "worse", "undecided", "neutral"]
Values = Mapping[str, NDArray[np.float64]]
Pair = tuple[str, str]


@dataclass(frozen=True)
class Settings:
    """How intervals and tests are made, in all tables and in the report.

    Args:
        confidence: coverage of all intervals; tests are made at 1 - confidence.
        resamples: of the bootstrap over images.
        seed: root seed of the resamples.
    """

    confidence: float = 0.95
    resamples: int = statistics.RESAMPLES
    seed: int = 0

    def origin(self) -> dict[str, Any]:
        """What the origin of a table says of them; its seed is that of the scores."""
        return {"confidence": self.confidence, "resamples": self.resamples}


@dataclass(frozen=True)
class Sample:
    """One score of several methods on the same units.

    Args:
        values: for each method (units,), NaN where undefined; or what each image adds to a score of all images.
        better: direction of the score.
        chance: for each method the score of a map without information, where it is known.
        has_rank_ranges: whether the range of each rank is wanted.
    """

    values: Mapping[str, NDArray[np.float64] | Pooled]
    better: Direction
    chance: Mapping[str, float] = field(default_factory=dict)
    has_rank_ranges: bool = False

    @property
    def sign(self) -> int:
        """1 where higher is better or there is no direction, else -1."""
        return -1 if self.better == "lower" else 1

    @property
    def is_pooled(self) -> bool:
        """Whether it is a score of all images together."""
        return any(isinstance(values, Pooled) for values in self.values.values())


def sample_of(parts: Mapping[str, Scored | Pooled], better: Direction, *, has_rank_ranges: bool = False) -> Sample:
    """The sample of a test's score: what it yielded for each method."""
    values = {
        name: part.values.astype(np.float64) if isinstance(part, Scored) else part for name, part in parts.items()
    }
    chance = {
        name: float(np.nanmean(part.chance))
        for name, part in parts.items()
        if isinstance(part, Scored) and part.chance is not None and np.isfinite(part.chance).any()
    }
    return Sample(values, better, chance=chance, has_rank_ranges=has_rank_ranges)


@dataclass(frozen=True)
class Versus:
    """A method against a control on the same units.

    Args:
        n: pairs of units that both have.
        difference: mean of method minus control.
        low, high: its interval; NaN for fewer than two pairs.
        effect: Cohen's d of the pairs; NaN where they do not vary.
        p: of the paired t test (runs), Wilcoxon's test (images) or the share of resamples in which the sign turns (scores of
            all images), Holm-adjusted over the methods under test; NaN where there is none.
        wilcoxon_p: of Wilcoxon's test, not adjusted; NaN for fewer than `statistics.MIN_WILCOXON_PAIRS`.
        outcome: what interval and adjusted test show: "neutral" for a score without a direction.
        sign: 1 where higher is better, else -1.
    """

    n: int
    difference: float
    low: float
    high: float
    effect: float
    p: float
    wilcoxon_p: float
    outcome: Outcome
    sign: int

    @property
    def gain(self) -> float:
        """The difference, turned so that positive is better."""
        return self.sign * self.difference + 0.0  # never -0.0

    @property
    def gain_ends(self) -> tuple[float, float]:
        """The interval of the gain."""
        return (self.low, self.high) if self.sign > 0 else (0.0 - self.high, 0.0 - self.low)

    @property
    def gain_effect(self) -> float:
        """The effect size, turned so that positive is better."""
        return self.sign * self.effect + 0.0

    @property
    def is_testable(self) -> bool:
        """Whether there is an interval."""
        return math.isfinite(self.low)


@dataclass(frozen=True)
class Entry:
    """A method under one score.

    Args:
        method: its name.
        control: whether it is a control; controls have no rank and no marks.
        n, n_undefined: units with a value, and without: missing runs, images whose score is undefined.
        mean, sd, low, high: mean, deviation and interval; NaN where there is none.
        chance: score of a map without information; NaN where it is not known.
        versus: for each control that was measured.
        rank: 1 is best; among the methods under test.
        best_rank, worst_rank: range of the rank: over resampled images, or over all runs; None where there is none.
    """

    method: str
    control: bool
    n: int
    n_undefined: int
    mean: float
    sd: float
    low: float
    high: float
    chance: float = math.nan
    versus: Mapping[str, Versus] = field(default_factory=dict)
    rank: int | None = None
    best_rank: int | None = None
    worst_rank: int | None = None

    @property
    def beaten(self) -> tuple[str, ...]:
        """The controls that this method is shown to be better than."""
        return self._against(lambda versus: versus.outcome == "better")

    @property
    def not_better_than(self) -> tuple[str, ...]:
        """The controls that it is not shown to be better than."""
        return self._against(lambda versus: versus.is_testable and versus.outcome not in ("better", "neutral"))

    @property
    def not_testable_against(self) -> tuple[str, ...]:
        """The controls with which it has too few pairs of units to be compared."""
        return self._against(lambda versus: not versus.is_testable and versus.outcome != "neutral")

    @property
    def is_judged(self) -> bool:
        """Whether there are enough units to say anything: a comparison with an interval."""
        return any(versus.is_testable for versus in self.versus.values())

    def _against(self, condition: Callable[[Versus], bool]) -> tuple[str, ...]:
        if self.control:
            return ()
        return tuple(name for name, versus in self.versus.items() if name != ORACLE and condition(versus))

    def row(self) -> dict[str, Any]:
        """By the names of columns; None where there is nothing to say, NaN where it is undefined."""
        random = self.versus.get("random")
        named = ("n", "n_undefined", "mean", "sd", "low", "high")
        return {
            "method": self.method,
            "control": self.control,
            **{name: getattr(self, name) for name in named},
            "chance": None if math.isnan(self.chance) else self.chance,
            "difference_n": random and random.n,
            "difference_to_random": random and random.difference,
            "difference_low": random and random.low,
            "difference_high": random and random.high,
            "cohens_d": random and random.effect,
            "p_holm": random and random.p,
            "wilcoxon_p": random and random.wilcoxon_p,
            "not_better_than": ";".join(self.not_better_than),
            "not_testable_against": ";".join(self.not_testable_against),
        }


def compare(
    samples: Sequence[Sample], controls: Mapping[str, bool], settings: Settings, unit: Unit = "image"
) -> list[tuple[Entry, ...]]:
    """Every method under every score.

    Args:
        samples: scores of the same units; means over images are resampled together, which is far faster.
        controls: whether each method is a control, in the order of the entries; "random", "centre", "sobel" and "oracle"
            are those that all methods are compared with, and "x+..." are controls derived from the maps of x.
        settings: of the intervals and tests.
        unit: "run" or "image".

    Returns:
        For each sample an entry of each method that it has.

    >>> runs = {"mine": np.array([0.3, 0.4, 0.3]), "random": np.array([0.6, 0.8, 0.7])}
    >>> ((mine, random),) = compare([Sample(runs, "lower")], {"mine": False, "random": True}, Settings(), "run")
    >>> mine.rank, mine.beaten, mine.not_better_than, round(mine.versus["random"].gain, 3)
    (1, ('random',), (), 0.367)
    """
    means = iter(_means([sample for sample in samples if not sample.is_pooled], controls, settings, unit))
    made = []
    for sample in samples:
        own, versus, drawn = _pooled(sample, controls, settings) if sample.is_pooled else next(means)
        versus = _decided(versus, controls, sample.better, settings)
        tested = [name for name in own if not controls[name]] if sample.better != "neither" else []
        ranks = _ranks({name: sample.sign * own[name].mean for name in tested})
        ranges = _rank_ranges(sample, list(ranks), settings, unit, drawn)
        made.append(
            tuple(
                Entry(
                    name,
                    controls[name],
                    *summary,
                    chance=sample.chance.get(name, math.nan),
                    versus={pair[1]: found for pair, found in versus.items() if pair[0] == name},
                    rank=ranks.get(name),
                    best_rank=ranges.get(name, (None, None))[0],
                    worst_rank=ranges.get(name, (None, None))[1],
                )
                for name, summary in own.items()
            )
        )
    return made


Found = tuple[Mapping[str, Summary], Mapping[Pair, Versus], Values]
"""Summaries of methods, differences before their tests are adjusted, and (B,) resampled scores of all images, if they are that."""


def _pairs(sample: Sample, controls: Mapping[str, bool]) -> tuple[list[str], list[Pair]]:
    """The methods that a sample has, and each with the controls that it is compared with."""
    names = [name for name in controls if name in sample.values]

    def opponents(name: str) -> list[str]:
        derived = [other for other in names if other.startswith(f"{name}{DERIVED}")]
        return [*(other for other in (*REFERENCES, ORACLE) if other in names and other != name), *derived]

    return names, [(name, other) for name in names for other in opponents(name)]


def _decided(
    versus: Mapping[Pair, Versus], controls: Mapping[str, bool], better: Direction, settings: Settings
) -> dict[Pair, Versus]:
    """With p adjusted over the methods under test, and what follows; a control is no candidate, so its own p is not."""
    p = {pair: found.p for pair, found in versus.items()}
    for opponent in dict.fromkeys(opponent for _, opponent in versus):
        family = [pair for pair in versus if pair[1] == opponent and not controls[pair[0]]]
        p.update(zip(family, statistics.holm([p[pair] for pair in family]).tolist(), strict=True))

    def outcome(pair: Pair) -> Outcome:
        if better == "neither":
            return "neutral"
        low, high = versus[pair].gain_ends
        # Too few pairs for a test leave the interval alone to decide; there is none for a single pair.
        if p[pair] > 1 - settings.confidence:
            return "undecided"
        return "better" if low > 0 else "worse" if high < 0 else "undecided"

    return {pair: replace(found, p=p[pair], outcome=outcome(pair)) for pair, found in versus.items()}


# --- scores that are means over units


def _means(samples: Sequence[Sample], controls: Mapping[str, bool], settings: Settings, unit: Unit) -> Iterator[Found]:
    listed = [(sample, cast(Values, sample.values), *_pairs(sample, controls)) for sample in samples]
    rows = [
        row
        for _, values, names, pairs in listed
        for row in (*(values[name] for name in names), *(values[name] - values[other] for name, other in pairs))
    ]
    found = zip(rows, summaries(rows, unit, settings), strict=True)
    for sample, _, names, pairs in listed:
        own = {name: next(found)[1] for name in names}
        versus = {}
        for pair in pairs:
            gaps, summary = next(found)
            wilcoxon_p = _wilcoxon(gaps)
            p = statistics.paired_p(gaps) if unit == "run" else wilcoxon_p
            versus[pair] = _versus(sample, summary, statistics.cohens_d(gaps), p, wilcoxon_p)
        yield own, versus, {}


def _versus(sample: Sample, gap: Summary, effect: float, p: float, wilcoxon_p: float) -> Versus:
    return Versus(gap.n, gap.mean, gap.low, gap.high, effect, p, wilcoxon_p, "undecided", sample.sign)


def summaries(
    rows: Sequence[NDArray[np.float64]] | NDArray[np.float64], unit: Unit, settings: Settings
) -> list[Summary]:
    """Number, mean, deviation and interval of each row, as all tables have them.

    Args:
        rows: M of (units,), NaN where undefined.
        unit: "run" for t intervals, "image" for the percentile bootstrap, with the same resamples for every row.
        settings: of the intervals.

    Returns:
        M summaries; without an interval where fewer than two values are defined.
    """
    seed = None if unit == "run" or not len(rows) or not len(rows[0]) else settings.seed
    found = statistics.summarize_rows(rows, seed=seed, level=settings.confidence, resamples=settings.resamples)
    return [one if one.n > 1 else one._replace(low=math.nan, high=math.nan) for one in found]


def _wilcoxon(differences: NDArray[np.float64]) -> float:
    defined = differences[np.isfinite(differences)]
    return statistics.wilcoxon(defined).p if len(defined) >= statistics.MIN_WILCOXON_PAIRS else math.nan


# --- scores of all images together


def _pooled(sample: Sample, controls: Mapping[str, bool], settings: Settings) -> Found:
    names, pairs = _pairs(sample, controls)
    parts = cast(Mapping[str, Pooled], sample.values)

    def resampled(part: Pooled) -> NDArray[np.float64]:
        return statistics.resampled(part.sums, part.statistic, settings.seed, settings.resamples)

    used = {name: parts[name].used for name in names}
    drawn = {name: resampled(parts[name]) for name in names}
    own = {}
    for name in names:
        n = int(used[name].sum())
        own[name] = Summary(n, len(used[name]) - n, parts[name].value, *_spread(drawn[name], settings.confidence))
    versus = {}
    for pair in pairs:
        # Two methods are compared on the images that both use.
        both = used[pair[0]] & used[pair[1]]
        sides = [parts[name].among(both) for name in pair]
        first, second = (
            drawn[name] if (used[name] == both).all() else resampled(side)
            for name, side in zip(pair, sides, strict=True)
        )
        n, gap = int(both.sum()), sides[0].value - sides[1].value
        summary = Summary(n, len(both) - n, gap, *_spread(first - second, settings.confidence))
        versus[pair] = _versus(sample, summary, math.nan, _turning_sign(first - second), math.nan)
    return own, versus, drawn


def _spread(drawn: NDArray[np.float64], confidence: float) -> tuple[float, float, float]:
    """Standard deviation and interval of resampled scores; NaN where none is defined."""
    defined = drawn[np.isfinite(drawn)]
    if len(defined) < 2:
        return math.nan, math.nan, math.nan
    low, high = Interval.of_resamples(defined, confidence)
    return float(defined.std(ddof=1)), float(low), float(high)


def _turning_sign(differences: NDArray[np.float64]) -> float:
    """Two-sided p of no difference, from resampled differences: how often the sign turns."""
    defined = differences[np.isfinite(differences)]
    if len(defined) < 2:
        return math.nan
    fewer = min(int((defined <= 0).sum()), int((defined >= 0).sum()))
    return min(1.0, 2 * (1 + fewer) / (1 + len(defined)))


# --- ranks


def _ranks(goodness: Mapping[str, float]) -> dict[str, int]:
    finite = {name: mean for name, mean in goodness.items() if math.isfinite(mean)}
    return {name: 1 + sum(other > mean for other in finite.values()) for name, mean in finite.items()}


def _rank_ranges(
    sample: Sample, names: Sequence[str], settings: Settings, unit: Unit, drawn: Values
) -> dict[str, tuple[int, int]]:
    """Between which ranks each method lies: over all runs, or over resampled images with the confidence of the settings."""
    if drawn and names:
        scores = np.stack([drawn[name] for name in names])
    elif len(names) > 1 and sample.has_rank_ranges:
        scores = _resampled_means(np.stack([cast(Values, sample.values)[name] for name in names]), unit, settings)
    else:
        return {}
    if scores.shape[1] < (2 if unit == "run" else 1):
        return {}
    turned = -sample.sign * scores
    ranks = 1 + (turned[None] < turned[:, None]).sum(axis=1)  # (M, B)
    tail = 0.0 if unit == "run" else 50 * (1 - settings.confidence)
    low = np.percentile(ranks, tail, axis=1, method="lower")
    high = np.percentile(ranks, 100 - tail, axis=1, method="higher")
    return {name: (int(a), int(b)) for name, a, b in zip(names, low, high, strict=True)}


def _resampled_means(rows: NDArray[np.float64], unit: Unit, settings: Settings) -> NDArray[np.float64]:
    """Scores of methods (M, units) in each run, or their means over each resample of the images: (M, B), all defined."""
    defined = np.isfinite(rows)
    if unit == "run":
        return rows[:, defined.all(axis=0)]
    if (defined.sum(axis=1) < 2).any():
        return np.empty((len(rows), 0))

    def means(total: NDArray[np.float64]) -> NDArray[np.float64]:
        with np.errstate(invalid="ignore"):
            shares: NDArray[np.float64] = total[:, : len(rows)] / total[:, len(rows) :]
        return shares

    added = np.concatenate([np.where(defined, rows, 0.0), defined]).T
    drawn = statistics.resampled(added, means, settings.seed, settings.resamples).T
    kept: NDArray[np.float64] = drawn[:, np.isfinite(drawn).all(axis=0)]
    return kept
