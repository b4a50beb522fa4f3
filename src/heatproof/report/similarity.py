"""How alike maps are: those of two methods, and those of one method before and after the classifier was randomised."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from heatproof.metrics.comparison import Settings, summaries
from heatproof.report import charts, drawing
from heatproof.report.charts import Chart
from heatproof.report.figures import Figure, csv_number, csv_text, line_figure
from heatproof.report.records import Method, SanityStep, Similarity
from heatproof.report.scores import Point
from heatproof.report.wording import interval, listed, number

MEASURES = {
    "spearman": "Rank correlation (Spearman) of all pixels, in [−1, 1]",
    "abs_spearman": "Rank correlation (Spearman) of the absolute values, in [−1, 1]",
    "top_k_overlap": "Share of the most important pixels in common, in [0, 1]",
    "ssim": "Structural similarity (SSIM), in [−1, 1]",
    "hog": "Correlation of histograms of oriented gradients, in [−1, 1]",
}
"""What the similarities are."""
CHECKS = {
    "top_down": "randomised layer by layer, from the last to the first",
    "bottom_up": "randomised layer by layer, from the first to the last",
    "independent": "one layer randomised, all others as learnt",
    "random_logit": "a random other class explained",
    "data_randomisation": "trained on permuted labels",
}
"""What the checks do."""


@dataclass(frozen=True)
class Likeness:
    """One similarity of every two methods.

    Args:
        name: of the similarity.
        meaning: what it is.
        methods: in the order of the dendrogram.
        mean, low, high: (M, M) over images, with intervals.
        n: (M, M) images with a value.
        figure: the matrix, with the dendrogram where there is one.
    """

    name: str
    meaning: str
    methods: tuple[str, ...]
    mean: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    n: NDArray[np.int64]
    figure: Figure


def likenesses(found: Similarity, settings: Settings) -> Iterator[Likeness]:
    """The mean of each similarity over images, methods that are alike beside one another."""
    names = [*found.leaf_order, *(name for name in found.methods if name not in found.leaf_order)]
    places = [found.methods.index(name) for name in names]
    for name, values in found.matrices.items():
        table = values[:, places][:, :, places]
        flat = table.reshape(len(table), -1).T
        found_of = summaries(flat, "image", settings)
        mean, low, high, n = (
            np.array([getattr(one, what) for one in found_of]).reshape(len(names), len(names))
            for what in ("mean", "low", "high", "n")
        )
        title = f"Agreement of the methods: {name.replace('_', ' ')}"
        pairs = [(first, second) for first in names for second in names]
        rows = [
            (*pair, one.n, one.n_undefined, *map(csv_number, (one.mean, one.low, one.high)))
            for pair, one in zip(pairs, found_of, strict=True)
        ]
        text = csv_text(("first", "second", "n", "n_undefined", "mean", "low", "high"), rows)
        has_tree = len(found.linkage) > 0 and list(found.leaf_order) == names
        drawn = drawing.heat_map(
            title,
            mean,
            names,
            low=0.0 if name == "top_k_overlap" else -1.0,
            linkage=found.linkage if has_tree else None,
        )
        yield Likeness(
            name,
            MEASURES.get(name, name),
            tuple(names),
            mean,
            low,
            high,
            n,
            Figure(f"agreement-of-methods-{name}", title, text, drawn),
        )


# --- randomisation


@dataclass(frozen=True)
class Statement:
    """What the checks say of a method.

    Args:
        method: its name.
        control: whether it is a baseline.
        level: good, bad or open.
        text: in words, with the numbers.
    """

    method: str
    control: bool
    level: Literal["good", "bad", "open"]
    text: str


@dataclass(frozen=True)
class CheckTable:
    """The similarities after a check's last step.

    Args:
        check: its name.
        meaning: what it does.
        scores: columns.
        rows: for each method its cells; None where there is none.
        required: whether a low similarity is required.
    """

    check: str
    meaning: str
    scores: tuple[str, ...]
    rows: tuple[tuple[Method, tuple[SanityStep | None, ...]], ...]
    required: bool


def statements(steps: Sequence[SanityStep], methods: Sequence[Method]) -> list[Statement]:
    """Whether each method's maps depend on what the classifier learnt; methods without a verdict are left out."""
    said = []
    for method in methods:
        judged = [step for step in steps if step.method == method.name and step.verdict]
        if judged:
            said.append(Statement(method.name, method.control, *_worded(judged)))
    return said


def _worded(judged: Sequence[SanityStep]) -> tuple[Literal["good", "bad", "open"], str]:
    failed = [step for step in judged if step.verdict == "fails"]
    passed = [step for step in judged if step.verdict == "passes"]
    n = max(step.n for step in judged)
    if failed:
        what = "; ".join(f"{_name(step)} {number(step.mean)} {interval(step.low, step.high)}" for step in failed)
        why = " It does not look at the classifier, so it has to fail." if judged[0].model_independent else ""
        return (
            "bad",
            f"does not pass: nothing learnt is left, and the maps stay much the same ({what}, n = {n:,}).{why}",
        )
    if len(passed) == len(judged):
        checks = listed(list(dict.fromkeys(step.check.replace("_", " ") for step in judged)))
        largest = max(judged, key=lambda step: abs(step.mean))
        return "good", (
            f"passes {checks} in every similarity (largest: {_name(largest)} {number(largest.mean)} "
            f"{interval(largest.low, largest.high)}, n = {n:,})."
        )
    open_ = [step for step in judged if step.verdict != "passes"]
    what = "; ".join(
        f"{_name(step)} {number(step.mean)} {interval(step.low, step.high)}: {step.verdict}" for step in open_
    )
    return "open", f"is not shown to pass ({what}, n = {n:,})."


def _name(step: SanityStep) -> str:
    return f"{step.score.replace('_', ' ')} after {step.check.replace('_', ' ')}"


def check_tables(steps: Sequence[SanityStep], methods: Sequence[Method]) -> list[CheckTable]:
    """For each check the similarities after its last step."""
    tables = []
    for check in dict.fromkeys(step.check for step in steps):
        own = [step for step in steps if step.check == check]
        last = max(step.step for step in own)
        final = {(step.method, step.score): step for step in own if step.step == last}
        names = tuple(dict.fromkeys(step.score for step in own))
        rows = tuple(
            (method, tuple(final.get((method.name, name)) for name in names))
            for method in methods
            if any((method.name, name) in final for name in names)
        )
        if check != "independent":
            required = any(step.verdict for step in own)
            tables.append(CheckTable(check, CHECKS.get(check, check), names, rows, required))
    return tables


def step_figures(steps: Sequence[SanityStep], methods: Sequence[Method]) -> Iterator[Figure]:
    """A chart for each similarity and check that has several steps; Spearman's first."""
    pairs = dict.fromkeys((step.score, step.check) for step in steps)
    for score, check in sorted(pairs, key=lambda pair: pair[0] != "spearman"):
        own = [step for step in steps if (step.score, step.check) == (score, check)]
        names = {step.step: step.layer for step in own}
        if len(names) < 2:
            continue
        points = {method.name: _points(own, method.name, names) for method in methods}
        lines = charts.lines({name: found for name, found in points.items() if found}, methods)
        yield line_figure(
            Chart(
                f"sanity-{check}-{score}",
                f"{check.replace('_', ' ').capitalize()}: {score.replace('_', ' ')}",
                f"{MEASURES.get(score, score)}, of each map with that of the intact classifier. Here: {CHECKS.get(check, check)}.",
                "similarity",
                lines,
                "",
                "bands",
                "images",
                x_label="layer",
                ticks=tuple(names[step] for step in sorted(names)),
            )
        )


def _points(steps: Sequence[SanityStep], method: str, names: Mapping[int, str]) -> list[Point]:
    own = {step.step: step for step in steps if step.method == method}
    none = float("nan")
    return (
        [
            Point(float(place), step.n, step.mean, step.sd, step.low, step.high, none, none, none)
            if (step := own.get(place))
            else Point(float(place), 0, none, none, none, none, none, none, none)
            for place in sorted(names)
        ]
        if own
        else []
    )
