"""Tables of scores, and figures with their files: what the sections of the page are made of."""

import base64
import csv
import io
import math
import re
import urllib.parse
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from heatproof.metrics.comparison import ORACLE, REFERENCES, Entry
from heatproof.report import charts, drawing, wording
from heatproof.report.charts import Chart
from heatproof.report.drawing import Drawing
from heatproof.report.records import Method
from heatproof.report.scores import Scored

WIDEST = 5
"""Columns of scores in one table."""
LARGEST_LINK = 200_000
"""Characters of a file inside the page; a larger one lies beside it only."""


@dataclass(frozen=True)
class Table:
    """Scores of one kind of unit, side by side.

    Args:
        key: name of its place in the page.
        title: of the table.
        scored: its columns.
        tested: the methods' rows, the best first, each followed by its twins.
        controls: the other controls' rows.
        unit: "run" or "image".
    """

    key: str
    title: str
    scored: tuple[Scored, ...]
    tested: tuple[Method, ...]
    controls: tuple[Method, ...]
    unit: str

    @classmethod
    def of(
        cls, key: str, title: str, scored: Sequence[Scored], methods: Sequence[Method], order: Sequence[str]
    ) -> "Table":
        """A table of the methods that have any of the scores.

        Args:
            key: name of its place in the page.
            title: of the table.
            scored: at least one.
            methods: of the configuration.
            order: names of methods under test, the best first.
        """
        present = {entry.method for part in scored for entry in part.entries}
        listed = [method for method in methods if method.name in present]
        tested, controls = arranged(listed, order)
        return cls(key, title, tuple(scored), tuple(tested), tuple(controls), scored[0].score.unit)

    @property
    def names_tests(self) -> bool:
        """Whether its scores are of several tests, so that each column has to say of which."""
        return len({part.score.test for part in self.scored}) > 1

    def entry(self, column: int, name: str) -> Entry | None:
        """The cell of a method."""
        return self.scored[column].entry(name)

    def span(self, name: str, what: Literal["n", "n_undefined"]) -> str:
        """How many units a method's scores rest on, or miss; from the fewest to the most where scores differ."""
        found = [getattr(entry, what) for part in self.scored if (entry := part.entry(name))]
        if not found:
            return wording.MISSING
        few, many = min(found), max(found)
        return f"{few:,}" if few == many else f"{few:,}–{many:,}"

    def is_short(self, name: str, column: int) -> bool:
        """Whether a score rests on fewer units than another one of the same method."""
        entry = self.entry(column, name)
        most = max((e.n for part in self.scored if (e := part.entry(name))), default=0)
        return entry is not None and 0 < entry.n < most


@dataclass(frozen=True)
class Figure:
    """Something drawn, with its downloads, which are inside the page too, so that it can travel alone.

    Args:
        key: name of its files.
        title: what is shown.
        csv: its numbers.
        drawing: as pictures.
        chart: its lines, where it has lines: then the page draws it anew.
    """

    key: str
    title: str
    csv: str
    drawing: Drawing
    chart: Chart | None = None

    @property
    def csv_link(self) -> str:
        """The numbers as a data URI; empty where they are too many for the page."""
        link = csv_link(self.csv)
        return link if len(link) <= LARGEST_LINK else ""

    @property
    def svg_link(self) -> str:
        """The picture as a data URI; empty where it is too large for the page."""
        link = self.picture
        return link if len(link) <= LARGEST_LINK else ""

    @property
    def picture(self) -> str:
        """The picture as a data URI, whatever its size."""
        return "data:image/svg+xml;base64," + base64.b64encode(self.drawing.svg.encode()).decode()

    @property
    def files(self) -> dict[str, str | bytes]:
        """What lies beside the page."""
        return {f"{self.key}.csv": self.csv, f"{self.key}.svg": self.drawing.svg, f"{self.key}.png": self.drawing.png}


def line_figure(chart: Chart) -> Figure:
    """A chart of lines and its files."""
    return Figure(chart.key, chart.title, csv_text(chart.columns, charts.rows(chart)), drawing.line_chart(chart), chart)


def arranged(listed: Sequence[Method], order: Sequence[str]) -> tuple[list[Method], list[Method]]:
    """Methods under test in an order, each followed by its twins; and the other controls."""
    places = {name: place for place, name in enumerate(order)}
    tested = [method for method in listed if not method.control]
    tested.sort(key=lambda method: places.get(method.name, len(places)))
    rows: list[Method] = []
    for method in tested:
        rows += [method, *(other for other in listed if other.control and other.twin_of == method.name)]
    return rows, [method for method in listed if method not in rows]


SUMMARY = (
    "test", "score", "setting", "direction", "method", "control", "unit", "n", "n_undefined", "mean", "low", "high",
    "chance", "rank", "best_rank", "worst_rank",
)  # fmt: skip


def summary(scored: Iterable[Scored]) -> str:
    """All scores as CSV, with the comparisons with the controls."""
    opponents = (*REFERENCES, ORACLE)
    of_each = ("gain", "gain_low", "gain_high", "effect", "p_holm", "against")
    columns = [*SUMMARY, *(f"{what}_{name}" for name in opponents for what in of_each)]
    return csv_text(columns, (_row(part, entry, opponents) for part in scored for entry in part.entries))


def _row(part: Scored, entry: Entry, opponents: Sequence[str]) -> list[Any]:
    score = part.score
    row: list[Any] = [score.test, score.name, score.setting, score.direction, entry.method, entry.control, score.unit]
    row += [entry.n, entry.n_undefined, *map(csv_number, (entry.mean, entry.low, entry.high, entry.chance))]
    row += ["" if rank is None else rank for rank in (entry.rank, entry.best_rank, entry.worst_rank)]
    for name in opponents:
        row += list(_versus(entry, name))
    return row


def _versus(entry: Entry, name: str) -> Iterator[Any]:
    versus = entry.versus.get(name)
    if versus is None:
        yield from [""] * 6
    else:
        yield from map(csv_number, (versus.gain, *versus.gain_ends, versus.gain_effect, versus.p))
        yield versus.outcome


def slug(words: str) -> str:
    """Words as part of a file's name.

    >>> slug("squares, MoRF")
    'squares-morf'
    """
    return "-".join(re.findall(r"[\w.=+]+", words.lower()))


def csv_text(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table as the text of a CSV file."""
    written = io.StringIO()
    writer = csv.writer(written, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    return written.getvalue()


def csv_number(value: float) -> float | str:
    """A number as it stands in a CSV file; nothing where it is undefined."""
    return round(value, 6) if math.isfinite(value) else ""


def csv_link(text: str) -> str:
    """The text of a CSV file as a data URI."""
    return "data:text/csv;charset=utf-8," + urllib.parse.quote(text)


def matrix_csv(names: Sequence[str], tables: Mapping[str, Any]) -> str:
    """Square matrices as CSV: a line for each pair of names, a column for each matrix.

    >>> matrix_csv(["a", "b"], {"tau": [[1.0, 0.5], [0.5, 1.0]]}).splitlines()[:3]
    ['first,second,tau', 'a,a,1.0', 'a,b,0.5']
    """
    rows = (
        (first, second, *(csv_number(float(table[i][j])) for table in tables.values()))
        for i, first in enumerate(names)
        for j, second in enumerate(names)
    )
    return csv_text(("first", "second", *tables), rows)
