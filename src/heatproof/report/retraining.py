"""What has to be known before ROAR and KAR are read: leakage of the masks, twins, and whether the two orders agree."""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from heatproof.metrics.comparison import REFERENCES
from heatproof.report import wording
from heatproof.report.figures import arranged, csv_number, csv_text
from heatproof.report.records import Method, RetrainingLine
from heatproof.report.wording import percent


@dataclass(frozen=True)
class LineTable:
    """Lines of one subject, a row for each method and a column for each removed fraction.

    Args:
        key: name of its place in the page.
        title: of the table.
        note: how to read it.
        columns: what the columns are called.
        rows: for each method its lines; None where there is none.
        kind: what a cell shows: "mask", "difference" or "mean".
    """

    key: str
    title: str
    note: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Method, tuple[RetrainingLine | None, ...]], ...]
    kind: str

    @property
    def chance(self) -> float:
        """The accuracy that is reached without looking, of masks."""
        known = [line.chance for _, lines in self.rows for line in lines if line is not None]
        return known[0] if known and self.kind == "mask" else math.nan


@dataclass(frozen=True)
class OrderLine:
    """How alike ROAR and KAR rank the methods, at one removed fraction or over all."""

    where: str
    kendall: float
    spearman: float
    methods: int


def tables(lines: Sequence[RetrainingLine], methods: Sequence[Method], order: Sequence[str]) -> list[LineTable]:
    """All tables of what retraining amounts to; those without a line are left out."""
    made = [
        _table(
            "mask-only",
            "Masks alone",
            "Accuracy of networks that see only which pixels are removed, with the interval over runs and, below, over test "
            "images. Above chance the mask itself reveals the class, and ROAR cannot be read as faithfulness. "
            "p: no better than chance, Holm-adjusted.",
            [line for line in lines if line.metric == "mask_only"],
            methods,
            order,
            "mask",
        )
    ]
    for metric in ("roar", "kar", "recursive"):
        better = "below" if metric != "kar" else "above"
        made.append(
            _table(
                f"{metric}-differences",
                f"{'Recursive ROAR' if metric == 'recursive' else metric.upper()}: difference to random",
                f"Difference of accuracies over pairs of runs ({better} 0 is better) with its t interval; below it the "
                "interval of the two-level bootstrap, over runs and the same test images for both; d: Cohen's, p: paired t "
                "test, Holm-adjusted over the methods under test.",
                [line for line in lines if (line.score, line.metric) == ("accuracy", metric)],
                methods,
                order,
                "difference",
            )
        )
    made.append(
        _table(
            "diff-roar",
            "DiffROAR at each removed fraction",
            "Accuracy of KAR minus accuracy of ROAR, pairs of equal runs; higher is better, a random map has 0.",
            [line for line in lines if line.score == "diff_roar"],
            methods,
            order,
            "mean",
        )
    )
    if any(line.metric == "recursive" for line in lines):
        areas = [line for line in lines if line.metric == "recursive" and line.score in ("area_to_random", "racu")]
        made.append(
            _table("recursive-areas", "Recursive ROAR: areas", "Higher is better.", areas, methods, order, "mean")
        )
    return [table for table in made if table.rows]


def orders(lines: Sequence[RetrainingLine]) -> list[OrderLine]:
    """How alike ROAR and KAR rank the methods."""
    found: dict[float | None, dict[str, RetrainingLine]] = {}
    for line in lines:
        if line.score in ("order_kendall", "order_spearman"):
            where = None if math.isnan(line.removed_fraction) else line.removed_fraction
            found.setdefault(where, {})[line.score] = line
    return [
        OrderLine(
            "all fractions" if where is None else f"{percent(where)} removed",
            pair["order_kendall"].mean if "order_kendall" in pair else math.nan,
            pair["order_spearman"].mean if "order_spearman" in pair else math.nan,
            max(line.n for line in pair.values()),
        )
        for where, pair in found.items()
    ]


def marks(lines: Sequence[RetrainingLine]) -> list[str]:
    """What the tables of scores do not show, one sentence each: leaks, and controls that are derived from a method.

    The same of several fractions is said once.
    """
    where_of: dict[tuple[str, str, str], list[str]] = {}
    for line in lines:
        if not line.control and line.score in ("accuracy", "area_to_random") and line.metric != "mask_only":
            where = "area to random" if math.isnan(line.removed_fraction) else percent(line.removed_fraction)
            derived = [
                [name for name in names if name not in REFERENCES]
                for names in (line.not_better_than, line.not_testable_against)
            ]
            for words in wording.marks(derived[0], derived[1], line.leaks):
                where_of.setdefault((line.method, line.metric, words), []).append(where)
    return [
        f"{method}, {metric.upper() if metric != 'recursive' else 'recursive ROAR'} ({', '.join(where)}): {words}."
        for (method, metric, words), where in where_of.items()
    ]


def as_csv(lines: Sequence[RetrainingLine]) -> str:
    """All lines."""
    names = [field.name for field in dataclasses.fields(RetrainingLine)]

    def written(value: Any) -> Any:
        if isinstance(value, float):
            return csv_number(value)
        return ";".join(value) if isinstance(value, tuple) else value

    return csv_text(names, ([written(getattr(line, name)) for name in names] for line in lines))


def _table(
    key: str,
    title: str,
    note: str,
    lines: Sequence[RetrainingLine],
    methods: Sequence[Method],
    order: Sequence[str],
    kind: str,
) -> LineTable:
    places = list(dict.fromkeys(_place(line) for line in lines))
    by_place = {(line.method, _place(line)): line for line in lines}
    present = [method for method in methods if any((method.name, place) in by_place for place in places)]
    tested, controls = arranged(present, order)
    rows = tuple(
        (method, tuple(by_place.get((method.name, place)) for place in places)) for method in (*tested, *controls)
    )
    columns = tuple(
        score.replace("_", " ") if where is None else f"{percent(where)} removed" for where, score in places
    )
    return LineTable(key, title, note, columns, rows, kind)


def _place(line: RetrainingLine) -> tuple[float | None, str]:
    return (None if math.isnan(line.removed_fraction) else line.removed_fraction, line.score)
