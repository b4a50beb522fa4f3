"""What the accuracies of retrained networks amount to: retrain_cls/summary.csv.

One line for each score, method and removed fraction. The unit is the run: means have t intervals over runs, differences
are paired. What too few runs or methods cannot show is "not testable", never a number. Accuracies are compared with the
random control's once more on the single test images (two-level bootstrap: runs, then images). `not_better_than` and
`not_testable_against` name controls; `leaks` is set where a method's masks alone reveal the class, under each score that
reads ROAR.

Scores:
    accuracy: of ROAR (lower is better), of KAR (higher), recursive (lower), and of the masks alone (neither; `chance` is the
        chance level).
    area_to_random, racu: of ROAR and recursive ROAR, area_to_random of KAR too; higher is better, 0 for a random map.
    diff_roar: KAR minus ROAR at equal fractions, n counts pairs of equal runs; diff_roar_pairs: mean and deviation over
        all pairs of runs, as published. Higher is better, 0 for a random map.
    order_kendall, order_spearman: agreement of ROAR's and KAR's rankings of the methods, controls left out; n counts methods.
"""

import base64
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from heatproof import artefacts, seeding
from heatproof.metrics import roar, statistics
from heatproof.metrics.comparison import REFERENCES, Entry, Sample, Settings, Values, compare
from heatproof.metrics.score import Direction
from heatproof.stages.run import Run

logger = logging.getLogger(__name__)

NOT_TESTABLE = "not testable"
SUMMARY_VERSION = 2

BETTER: dict[str, Direction] = {"roar": "lower", "kar": "higher", "recursive": "lower", "mask_only": "neither"}
COLUMNS = (
    "score", "metric", "method", "control", "removed_fraction", "better", "n", "n_undefined", "mean", "sd", "low", "high",
    "chance", "difference_to_random", "difference_low", "difference_high", "cohens_d", "p_holm", "wilcoxon_p",
    "images_low", "images_high", "not_better_than", "not_testable_against", "leaks",
)  # fmt: skip


@dataclass(frozen=True)
class Line:
    """One line of the table.

    Args:
        score, metric: what was measured.
        removed_fraction: None where it is about all of them.
        better: direction.
        entry: the method's numbers.
        leaks: whether the masks alone reveal the class, so that the score cannot be read as faithfulness.
        changed: values of columns that differ from those of the entry; None where there is nothing to say.
    """

    score: str
    metric: str
    removed_fraction: float | None
    better: Direction
    entry: Entry
    leaks: bool = False
    changed: Mapping[str, Any] = field(default_factory=dict)

    def row(self) -> list[Any]:
        """As it is written."""
        own = {name: getattr(self, name) for name in ("score", "metric", "removed_fraction", "better", "leaks")}
        values = {"images_low": None, "images_high": None, **self.entry.row(), **own, **self.changed}
        return [_written(values[name]) for name in COLUMNS]


@dataclass(frozen=True)
class Grid:
    """The results of all cells, by what they measure.

    Args:
        results: as the cells' files have them.
        settings: of the intervals and tests.
        labels: (N,) of the test images.
    """

    results: Sequence[Mapping[str, Any]]
    settings: Settings
    labels: NDArray[np.int64]
    _cells: dict[tuple[str, str, float, int], Mapping[str, Any]] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        cells = {(r["metric"], r["method"], r["removed_fraction"], r["run"]): r for r in self.results}
        object.__setattr__(self, "_cells", cells)

    @property
    def runs(self) -> list[int]:
        """Their numbers."""
        return sorted({key[3] for key in self._cells})

    def methods(self, metric: str) -> dict[str, bool]:
        """Methods of a metric in the order of the configuration, and whether each is a control."""
        return {r["method"]: r["control"] for r in self.results if r["metric"] == metric}

    def fractions(self, metric: str) -> list[float]:
        """Removed fractions of a metric, growing, without 0."""
        return sorted({key[2] for key in self._cells if key[0] == metric})

    def accuracy(self, metric: str, method: str, fraction: float) -> NDArray[np.float64]:
        """Test accuracies (R,); NaN for a run without a result."""
        found = [self._cells.get((metric, method, fraction, run)) for run in self.runs]
        return np.array([math.nan if cell is None else float(cell["test_accuracy"]) for cell in found])

    def curve(self, metric: str, method: str) -> NDArray[np.float64]:
        """Test accuracies (R, S), at fraction 0 first."""
        steps = [self.accuracy(metric, method, fraction) for fraction in self.fractions(metric)]
        return np.stack([self.accuracy("intact", "intact", 0.0), *steps], axis=1)

    def correct(self, metric: str, method: str, fraction: float) -> NDArray[np.float64]:
        """Right answers (R, N) of the runs that are there; NaN for images that were left out."""
        found = (self._cells.get((metric, method, fraction, run)) for run in self.runs)
        return np.array([self._answers(cell) for cell in found if cell is not None]).reshape(-1, len(self.labels))

    def _answers(self, cell: Mapping[str, Any]) -> NDArray[np.float64]:
        answers = np.full(len(self.labels), np.nan)
        answers[np.delete(np.arange(len(self.labels)), cell["left_out"])] = correct_images(cell)
        return answers


def correct_images(result: Mapping[str, Any]) -> NDArray[np.bool_]:
    """Which test images a cell's network classified right, in order and without those `left_out`, from the cell's file."""
    packed = np.frombuffer(base64.b64decode(result["correct"]), dtype=np.uint8)
    return np.unpackbits(packed, count=result["test_images"]).astype(bool)


def write(run: Run, path: Path, results: Sequence[Mapping[str, Any]]) -> None:
    """Writes the summary of all cells' results."""
    # Slow to import, and needed only here.
    from heatproof.report import wording

    lines = list(summary(Grid(results, run.intervals, run.dataset.split("test").labels)))
    artefacts.write_csv(path, COLUMNS, [line.row() for line in lines])
    for line in lines:
        entry = line.entry
        if not entry.control and (said := wording.marks(entry.not_better_than, entry.not_testable_against, line.leaks)):
            where = "" if line.removed_fraction is None else f" at {line.removed_fraction:.0%}"
            logger.info("%s, %s of %s%s: %s", entry.method, line.score, line.metric, where, "; ".join(said))


def summary(grid: Grid) -> Iterator[Line]:
    """All lines, score by score."""
    masks = list(_masks(grid)) if grid.methods("mask_only") else []
    leaking = {line.entry.method for line in masks if line.leaks}
    for line in _scores(grid):
        yield replace(line, leaks=line.entry.method in leaking and line.metric != "kar")
    yield from masks


def _scores(grid: Grid) -> Iterator[Line]:
    for metric in ("roar", "kar", "recursive"):
        if grid.methods(metric):
            for fraction in grid.fractions(metric):
                values = {name: grid.accuracy(own, name, fraction) for name, own in _compared(grid, metric)}
                for line in _lines(grid, "accuracy", metric, fraction, BETTER[metric], values):
                    yield replace(line, changed=_over_images(grid, line))
            yield from _areas(grid, metric)
    if grid.methods("roar") and grid.methods("kar"):
        yield from _both_orders(grid)


def _compared(grid: Grid, metric: str) -> list[tuple[str, str]]:
    """The methods of a metric, each with the metric whose networks are its own.

    Recursion changes nothing for a random map, so the controls of recursive ROAR are those of ROAR.
    """
    own = [(name, metric) for name in grid.methods(metric)]
    return own + [(name, "roar") for name in REFERENCES if metric == "recursive" and name in grid.methods("roar")]


def _areas(grid: Grid, metric: str) -> Iterator[Line]:
    fractions = np.array([0.0, *grid.fractions(metric)])
    curves = {name: grid.curve(own, name) for name, own in _compared(grid, metric)}
    nothing_left = roar.chance_level(grid.labels)
    for score, values in roar.areas(curves, fractions, BETTER[metric], nothing_left).items():
        yield from _lines(grid, score, metric, None, "higher", values, chance=0.0)


def _both_orders(grid: Grid) -> Iterator[Line]:
    both = "roar, kar"
    names = [name for name in grid.methods("roar") if name in grid.methods("kar")]
    steps = [fraction for fraction in grid.fractions("roar") if fraction in grid.fractions("kar")]
    for fraction in steps:
        most, least = ({name: grid.accuracy(m, name, fraction) for name in names} for m in ("roar", "kar"))
        gaps = {name: least[name] - most[name] for name in names}
        yield from _lines(grid, "diff_roar", both, fraction, "higher", gaps, chance=0.0)
        for name in names:
            pairs = roar.diff_roar(most[name][:, None], least[name][:, None])[:, 0]
            # Pairs of runs are not independent: their spread is given, but no interval.
            yield Line(
                "diff_roar_pairs", both, fraction, "higher", _alone(grid, "roar", name, pairs, 0.0),
                changed={"low": None, "high": None},
            )  # fmt: skip
    tested = [name for name in names if not grid.methods("roar")[name]]
    means = [
        np.array([[_mean(grid.accuracy(metric, name, fraction)) for fraction in steps] for name in tested])
        for metric in ("roar", "kar")
    ]
    columns = [np.column_stack([table, table.mean(axis=1)]) for table in means if table.size]
    if columns:
        agreement = roar.order_agreement(*columns)
        nothing = dict.fromkeys(("control", "sd", "low", "high", "leaks"))
        for score, values in (("order_kendall", agreement.kendall), ("order_spearman", agreement.spearman)):
            for step, value in zip([*steps, None], values.tolist(), strict=True):
                entry = Entry("", True, len(tested), 0, value, math.nan, math.nan, math.nan)
                yield Line(score, both, step, "higher", entry, changed=nothing)


def _masks(grid: Grid) -> Iterator[Line]:
    controls, steps = grid.methods("mask_only"), grid.fractions("mask_only")
    found, chances = {}, {}
    for name in controls:
        answers = np.stack([grid.correct("mask_only", name, fraction) for fraction in steps], axis=1)
        taken = ~np.isnan(answers).any(axis=(0, 1))
        chances[name] = roar.chance_level(grid.labels[taken])
        found[name] = roar.mask_leakage(answers[:, :, taken], chances[name], grid.settings.confidence)
    # Over methods again, so that one among many is not flagged by luck; within a method p is adjusted over fractions.
    smallest = statistics.holm([found[name].p.min() for name in controls])
    for (name, leakage), p in zip(found.items(), smallest.tolist(), strict=True):
        for step, fraction in enumerate(steps):
            entry = _alone(grid, "mask_only", name, grid.accuracy("mask_only", name, fraction), chances[name])
            changed = {
                "p_holm": float(max(p, leakage.p[step])),
                "images_low": float(leakage.images_low[step]),
                "images_high": float(leakage.images_high[step]),
            }
            leaks = p <= 1 - grid.settings.confidence
            yield Line("accuracy", "mask_only", fraction, BETTER["mask_only"], entry, leaks, changed)


# --- lines of a table


def _lines(
    grid: Grid,
    score: str,
    metric: str,
    fraction: float | None,
    better: Direction,
    values: Values,
    chance: float = math.nan,
) -> Iterator[Line]:
    """A line for each method of a metric, compared with the controls."""
    listed = grid.methods(metric.split(",")[0])
    sample = Sample(values, better, dict.fromkeys(values, chance))
    (entries,) = compare([sample], listed | grid.methods("roar"), grid.settings, "run")
    for entry in entries:
        if entry.method in listed:
            yield Line(score, metric, fraction, better, entry)


def _alone(grid: Grid, metric: str, name: str, values: NDArray[np.float64], chance: float) -> Entry:
    """A method that is compared with no other."""
    found = statistics.summarize(values, level=grid.settings.confidence)
    return Entry(name, grid.methods(metric)[name], *found, chance=chance)


def _over_images(grid: Grid, line: Line) -> dict[str, float]:
    """The two-level bootstrap interval of the difference to random, over the images that both have; empty without one."""
    fraction, name = line.removed_fraction, line.entry.method
    if fraction is None or "random" not in line.entry.versus:
        return {}
    own = grid.correct(line.metric, name, fraction)
    random = grid.correct("roar" if line.metric == "recursive" else line.metric, "random", fraction)
    if own.shape != random.shape:  # a run is missing on one side: no pairs
        return {}
    both = ~(np.isnan(own) | np.isnan(random)).any(axis=0)
    if not both.any():
        return {}
    settings = grid.settings
    _, low, high = roar.correctness_difference(
        own[:, both],
        random[:, both],
        seeding.generator(settings.seed, "roar", "bootstrap"),
        settings.resamples,
        settings.confidence,
    )
    return {"images_low": float(low), "images_high": float(high)}


def _mean(values: NDArray[np.float64]) -> float:
    defined = values[np.isfinite(values)]
    return float(defined.mean()) if len(defined) else math.nan


def _written(value: Any) -> Any:
    if value is None:
        return ""
    return NOT_TESTABLE if isinstance(value, float) and math.isnan(value) else value
