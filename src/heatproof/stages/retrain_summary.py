"""What the accuracies of retrained networks amount to: retrain_cls/summary.csv.

One line for each score, method and removed fraction. The unit is the run: means have t intervals over runs, differences
are paired. What too few runs or methods cannot tell is "not testable", never a number. Accuracies are compared with the
random control's once more on the single test images (two-level bootstrap: runs, then images).

Scores:
    accuracy: of ROAR (lower is better), of KAR (higher), recursive (lower), and of the masks alone (neither: the mark
        says whether they tell the class; `useless` is the chance level).
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
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from heatproof import artefacts, config, seeding
from heatproof.metrics import roar, statistics
from heatproof.stages.run import Run

logger = logging.getLogger(__name__)

NOT_TESTABLE = "not testable"
REFERENCES = ("random", "sobel", "centre")
LEAKS = "the masks alone tell the class: not to be read as faithfulness"
SUMMARY_VERSION = 1
Better = Literal["higher", "lower", "neither"]
Values = Mapping[str, NDArray[np.float64]]

BETTER: dict[str, Better] = {"roar": "lower", "kar": "higher", "recursive": "lower", "mask_only": "neither"}
COLUMNS = (
    "score", "metric", "method", "control", "removed_fraction", "better", "n", "n_undefined", "mean", "sd", "low", "high",
    "useless", "difference_to_random", "difference_low", "difference_high", "cohens_d", "p_holm", "wilcoxon_p",
    "images_low", "images_high", "marks",
)  # fmt: skip


@dataclass(frozen=True)
class Line:
    """One line of the table; None where there is nothing to say, NaN where the runs do not suffice."""

    score: str
    metric: str
    method: str
    control: bool | None
    removed_fraction: float | None
    better: Better
    n: int
    n_undefined: int = 0
    mean: float = math.nan
    sd: float | None = math.nan
    low: float | None = math.nan
    high: float | None = math.nan
    useless: float | None = None
    difference_to_random: float | None = None
    difference_low: float | None = None
    difference_high: float | None = None
    cohens_d: float | None = None
    p_holm: float | None = None
    wilcoxon_p: float | None = None
    images_low: float | None = None
    images_high: float | None = None
    marks: str = ""

    def row(self) -> list[Any]:
        """As it is written."""
        return [_written(getattr(self, name)) for name in COLUMNS]


@dataclass(frozen=True)
class Grid:
    """The results of all cells, by what they measure.

    Args:
        results: as the cells' files have them.
        settings: confidence, number of resamples.
        seed: root seed.
        labels: (N,) of the test images.
    """

    results: Sequence[Mapping[str, Any]]
    settings: config.Report
    seed: int
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
    labels = run.dataset.split("test").labels
    lines = list(summary(Grid(results, run.config.report, run.config.seed, labels)))
    artefacts.write_csv(path, COLUMNS, [line.row() for line in lines])
    for line in lines:
        if line.marks and not line.control:
            where = "" if line.removed_fraction is None else f" at {line.removed_fraction:.0%}"
            logger.info("%s, %s of %s%s: %s", line.method, line.score, line.metric, where, line.marks)


def summary(grid: Grid) -> Iterator[Line]:
    """All lines, score by score. A method whose masks tell the class is marked under each score that reads ROAR."""
    masks = list(_masks(grid)) if grid.methods("mask_only") else []
    leaking = {line.method for line in masks if line.marks}
    for line in _scores(grid):
        if line.method in leaking and line.metric != "kar":
            line = replace(line, marks="; ".join(filter(None, (LEAKS, line.marks))))
        yield line
    yield from masks


def _scores(grid: Grid) -> Iterator[Line]:
    for metric in ("roar", "kar", "recursive"):
        if grid.methods(metric):
            yield from _accuracies(grid, metric)
            yield from _areas(grid, metric)
    if grid.methods("roar") and grid.methods("kar"):
        yield from _both_orders(grid)


def _accuracies(grid: Grid, metric: str) -> Iterator[Line]:
    for fraction in grid.fractions(metric):
        values = {name: grid.accuracy(metric, name, fraction) for name in _compared(grid, metric)}
        # Recursion changes nothing for a random map, so its control is ROAR's.
        if metric == "recursive":
            values |= {name: grid.accuracy("roar", name, fraction) for name in _references(grid)}
        for line in _lines(grid, "accuracy", metric, fraction, BETTER[metric], values):
            yield _with_images(grid, line) if line.method != "random" else line


def _areas(grid: Grid, metric: str) -> Iterator[Line]:
    if "random" not in (grid.methods("roar") if metric == "recursive" else grid.methods(metric)):
        return
    fractions = np.array([0.0, *grid.fractions(metric)])
    curves = {name: grid.curve(metric, name) for name in _compared(grid, metric)}
    if metric == "recursive":
        curves |= {name: grid.curve("roar", name) for name in _references(grid)}
    random = curves["random"]
    # ROAR is good below the random control, KAR above it.
    sign = -1.0 if metric == "kar" else 1.0
    areas = {name: sign * roar.area_to_random(curve, random, fractions) for name, curve in curves.items()}
    yield from _lines(grid, "area_to_random", metric, None, "higher", areas, useless=0.0)
    if metric != "kar":
        total = None if fractions[-1] == 1 else np.full(len(random), roar.chance_level(grid.labels))
        shares = {name: roar.racu(curve, random, fractions, total) for name, curve in curves.items()}
        yield from _lines(grid, "racu", metric, None, "higher", shares, useless=0.0)


def _both_orders(grid: Grid) -> Iterator[Line]:
    names = [name for name in grid.methods("roar") if name in grid.methods("kar")]
    steps = [fraction for fraction in grid.fractions("roar") if fraction in grid.fractions("kar")]
    for fraction in steps:
        most, least = ({name: grid.accuracy(m, name, fraction) for name in names} for m in ("roar", "kar"))
        gaps = {name: least[name] - most[name] for name in names}
        yield from _lines(grid, "diff_roar", "roar, kar", fraction, "higher", gaps, useless=0.0)
        for name in names:
            pairs = roar.diff_roar(most[name][:, None], least[name][:, None])[:, 0]
            found = statistics.summarize(pairs)
            # Pairs of runs are not independent: their spread is told, but no interval.
            yield replace(
                _line(grid, "diff_roar_pairs", "roar, kar", name, fraction, "higher", pairs, 0.0),
                low=None, high=None, n=found.n, sd=found.sd,
            )  # fmt: skip
    tested = [name for name in names if not grid.methods("roar")[name]]
    means = [
        np.array([[_mean(grid.accuracy(metric, name, fraction)) for fraction in steps] for name in tested])
        for metric in ("roar", "kar")
    ]
    columns = [np.column_stack([table, table.mean(axis=1)]) for table in means if table.size]
    if columns:
        agreement = roar.order_agreement(*columns)
        where: list[float | None] = [*steps, None]
        for score, values in (("order_kendall", agreement.kendall), ("order_spearman", agreement.spearman)):
            for step, value in zip(where, values.tolist(), strict=True):
                yield Line(
                    score, "roar, kar", "", None, step, "higher", len(tested), mean=value, sd=None, low=None, high=None
                )


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
        mark = LEAKS if p <= 1 - grid.settings.confidence else ""
        for step, fraction in enumerate(steps):
            values = grid.accuracy("mask_only", name, fraction)
            yield replace(
                _line(grid, "accuracy", "mask_only", name, fraction, "neither", values, chances[name]),
                p_holm=float(max(p, leakage.p[step])),
                images_low=float(leakage.images_low[step]),
                images_high=float(leakage.images_high[step]),
                marks=mark,
            )


# --- lines of a table, and what they are compared with


def _lines(
    grid: Grid,
    score: str,
    metric: str,
    fraction: float | None,
    better: Better,
    values: Values,
    useless: float | None = None,
) -> Iterator[Line]:
    controls = grid.methods("roar") | grid.methods(metric.split(",")[0])
    listed = [name for name in values if name in grid.methods(metric.split(",")[0])]
    sign = 1.0 if better == "higher" else -1.0
    p = {other: _adjusted(values, controls, listed, other) for other in REFERENCES if other in values}
    for name in listed:
        line = _line(grid, score, metric, name, fraction, better, values[name], useless)
        if "random" in values and name != "random":
            versus = statistics.compare(values[name], values["random"], level=grid.settings.confidence)
            line = replace(
                line,
                difference_to_random=versus.mean,
                difference_low=versus.low,
                difference_high=versus.high,
                cohens_d=versus.cohens_d,
                p_holm=p["random"][name],
                wilcoxon_p=versus.wilcoxon_p,
            )
        if not controls[name]:
            against = [(other, sign * (values[name] - values[other]), p[other][name]) for other in p]
            for twin in (other for other in values if other.startswith(f"{name}+")):
                gains = sign * (values[name] - values[twin])
                against.append((twin, gains, statistics.paired_p(gains)))
            line = replace(line, marks="; ".join(filter(None, (_mark(grid, *one) for one in against))))
        yield line


def _line(
    grid: Grid,
    score: str,
    metric: str,
    name: str,
    fraction: float | None,
    better: Better,
    values: NDArray[np.float64],
    useless: float | None,
) -> Line:
    found = statistics.summarize(values, level=grid.settings.confidence)
    control = grid.methods(metric.split(",")[0])[name]
    return Line(score, metric, name, control, fraction, better, *found, useless=useless)


def _mark(grid: Grid, opponent: str, gains: NDArray[np.float64], p: float) -> str:
    """What has to be said of a method against a control; nothing where it is better."""
    low, _ = statistics.t_interval(gains, grid.settings.confidence)
    if math.isnan(p):
        return f"better than {opponent}: {NOT_TESTABLE}"
    return "" if low > 0 and p <= 1 - grid.settings.confidence else f"not better than {opponent}"


def _adjusted(values: Values, controls: Mapping[str, bool], listed: Sequence[str], other: str) -> dict[str, float]:
    """P of the paired t test against a control; Holm-adjusted over the methods under test, a control's own as it is."""
    found = {name: statistics.paired_p(values[name] - values[other]) for name in listed if name != other}
    family = [name for name in found if not controls[name]]
    return found | dict(zip(family, statistics.holm([found[name] for name in family]).tolist(), strict=True))


def _with_images(grid: Grid, line: Line) -> Line:
    """With the two-level bootstrap interval of the difference to random, over the images that both have."""
    fraction = line.removed_fraction
    if fraction is None or line.difference_to_random is None:
        return line
    own = grid.correct(line.metric, line.method, fraction)
    random = grid.correct("roar" if line.metric == "recursive" else line.metric, "random", fraction)
    if own.shape != random.shape:  # a run is missing on one side: no pairs
        return line
    both = ~(np.isnan(own) | np.isnan(random)).any(axis=0)
    if not both.any():
        return line
    _, low, high = roar.correctness_difference(
        own[:, both],
        random[:, both],
        seeding.generator(grid.seed, "roar", "bootstrap"),
        grid.settings.resamples,
        grid.settings.confidence,
    )
    return replace(line, images_low=float(low), images_high=float(high))


def _compared(grid: Grid, metric: str) -> list[str]:
    return list(grid.methods(metric))


def _references(grid: Grid) -> list[str]:
    return [name for name in REFERENCES if name in grid.methods("roar")]


def _mean(values: NDArray[np.float64]) -> float:
    defined = values[np.isfinite(values)]
    return float(defined.mean()) if len(defined) else math.nan


def _written(value: Any) -> Any:
    if value is None:
        return ""
    return NOT_TESTABLE if isinstance(value, float) and math.isnan(value) else value
