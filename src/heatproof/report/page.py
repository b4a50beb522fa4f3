"""The page: scores, findings, charts and pictures, put into one self-contained HTML file."""

import base64
import csv
import io
import math
import urllib.parse
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any, Literal

import jinja2

from heatproof.report import charts, drawing, findings, pictures, scores, wording
from heatproof.report.charts import Chart
from heatproof.report.records import Material, Method, Picture
from heatproof.report.scores import Entry, Scored

RESULTS_VERSION = 1
"""Raised when the page says something else about the same results."""

SOURCES = ("page.html.j2", "page.css", "page.js")


@dataclass(frozen=True)
class Report:
    """A page, and the files that go beside it.

    Args:
        html: the page.
        files: name and text of figures and tables.
    """

    html: str
    files: Mapping[str, str]


@dataclass(frozen=True)
class Table:
    """Scores of one kind of unit, side by side.

    Args:
        title: of the table.
        scored: its columns.
        tested: the methods' rows, the best first.
        controls: the controls' rows.
        unit: "run" or "image".
    """

    title: str
    scored: tuple[Scored, ...]
    tested: tuple[Method, ...]
    controls: tuple[Method, ...]
    unit: str

    def entry(self, column: int, name: str) -> Entry | None:
        """The cell of a method."""
        return self.scored[column].entry(name)

    def span(self, name: str, what: Literal["n", "undefined"]) -> str:
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
    """A chart with its downloads, which are inside the page too, so that it can travel alone."""

    chart: Chart
    csv: str
    svg: str

    @property
    def csv_link(self) -> str:
        """The numbers as a data URI."""
        return _csv_link(self.csv)

    @property
    def svg_link(self) -> str:
        """The picture as a data URI."""
        return "data:image/svg+xml;base64," + base64.b64encode(self.svg.encode()).decode()


@dataclass(frozen=True)
class Shown:
    """A picture of the gallery, ready for the page."""

    picture: Picture
    image: str
    outline: str
    maps: tuple[tuple[str, str, bool], ...]

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of the image."""
        height, width = self.picture.pixels.shape[:2]
        return height, width


def compose(material: Material) -> Report:
    """The page and its files; the same bytes for the same material."""
    scored = [*_all_scores(material)]
    figures = [_figure(chart) for chart in _charts(material)]
    verdict = findings.verdict(scored, material.methods, material.settings.confidence)
    order = [row.method for row in verdict.rows]
    view = {
        "material": material,
        "verdict": verdict,
        "findings": findings.findings(
            scored, material.curves, material.health, material.methods, label_targets=material.label_targets
        ),
        "tables": [*_tables(scored, material.methods, order)],
        "agreement": findings.agreement(scored, material.retraining, material.curves),
        "figures": figures,
        "gallery": [*_gallery(material)],
        "signed": _signed(material),
        "scales": {"sequential": pictures.gradient(signed=False), "diverging": pictures.gradient(signed=True)},
        "training": None if material.training is None else charts.training_chart(material.training),
        "charts": _plotly(figures, material),
        "references": scores.REFERENCES,
        "oracle": scores.ORACLE,
    }
    summary = _summary(scored)
    view["summary_link"] = _csv_link(summary)
    files = {"summary.csv": summary} | {f"{figure.chart.key}.csv": figure.csv for figure in figures}
    files |= {f"{figure.chart.key}.svg": figure.svg for figure in figures}
    return Report(_rendered(view, with_plotly=bool(view["charts"])), files)


def source_texts() -> dict[str, str]:
    """Template, style sheet and script of the page, by name: what else than the numbers decides about its bytes."""
    folder = resources.files("heatproof.report")
    return {name: folder.joinpath(name).read_text(encoding="utf-8") for name in SOURCES}


def _all_scores(material: Material) -> Iterator[Scored]:
    yield from scores.retraining_scores(material.retraining, material.methods, material.settings)
    if material.curves is not None:
        yield from scores.curve_scores(material.curves, material.methods, material.settings)


def _tables(scored: Sequence[Scored], methods: Sequence[Method], order: Sequence[str]) -> Iterator[Table]:
    for unit, title in (("run", "With retraining: ROAR and KAR"), ("image", "Without retraining: MoRF and LeRF")):
        columns = tuple(part for part in scored if part.score.unit == unit)
        present = {entry.method.name for part in columns for entry in part.entries}
        by_name = {method.name: method for method in methods if method.name in present}
        if columns:
            yield Table(
                title,
                columns,
                tuple(by_name[name] for name in order if name in by_name),
                tuple(method for method in by_name.values() if method.control),
                unit,
            )


_LEADS = {
    "roar": "The most important pixels are removed from all images and a fresh network is trained. A good map takes the "
    "evidence away at once: the lower the curve, the better.",
    "kar": "The least important pixels are removed, so the most important ones are kept. A good map keeps the evidence: "
    "the higher the curve, the better.",
    "morf": "The classifier as it is sees images without their most important pixels. The faster its probability for the "
    "explained class falls, the better.",
    "lerf": "The classifier as it is sees images without their least important pixels. The longer its probability stays "
    "high, the better.",
}


def _charts(material: Material) -> Iterator[Chart]:
    for part in material.retraining:
        points = scores.run_points(part, material.settings.confidence)
        lines = charts.lines(points, material.methods)
        if lines:
            name = part.metric.upper()
            first = "most" if part.metric == "roar" else "least"
            title = f"{name}: accuracy after retraining"
            yield Chart(part.metric, title, _LEADS[part.metric], "test accuracy", lines, first, "bars", "runs")
    if material.curves is not None:
        for end, (key, name, first) in enumerate((("morf", "MoRF", "most"), ("lerf", "LeRF", "least"))):
            points = scores.image_points(material.curves, end, material.settings)
            lines = charts.lines(points, material.methods)
            title = f"{name}: probability of the explained class"
            yield Chart(key, title, _LEADS[key], "probability", lines, first, "bands", "images")


def _figure(chart: Chart) -> Figure:
    return Figure(chart, _csv(charts.COLUMNS, charts.rows(chart)), drawing.svg(chart))


def _summary(scored: Sequence[Scored]) -> str:
    opponents = (*scores.REFERENCES, scores.ORACLE)
    columns = [
        "test",
        "score",
        "direction",
        "method",
        "control",
        "unit",
        "n",
        "n_undefined",
        "mean",
        "low",
        "high",
        "rank",
    ]
    columns += [
        f"{what}_{name}" for name in opponents for what in ("gain", "gain_low", "gain_high", "p_holm", "against")
    ]
    return _csv(columns, (_summary_row(part, entry, opponents) for part in scored for entry in part.entries))


def _summary_row(part: Scored, entry: Entry, opponents: Sequence[str]) -> list[Any]:
    score, method = part.score, entry.method
    row = [score.test, score.name, score.direction, method.name, method.control, score.unit, entry.n, entry.undefined]
    row += [_csv_number(value) for value in (entry.mean, entry.low, entry.high)]
    row.append("" if entry.rank is None else entry.rank)
    for name in opponents:
        versus = entry.versus.get(name)
        if versus is None:
            row += [""] * 5
        else:
            row += [_csv_number(value) for value in (versus.gain, versus.low, versus.high, versus.p)]
            row.append(versus.outcome)
    return row


def _csv(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    written = io.StringIO()
    writer = csv.writer(written, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    return written.getvalue()


def _csv_number(value: float) -> float | str:
    return round(value, 6) if math.isfinite(value) else ""


def _csv_link(text: str) -> str:
    return "data:text/csv;charset=utf-8," + urllib.parse.quote(text)


def _plotly(figures: Sequence[Figure], material: Material) -> dict[str, Any]:
    drawn = {figure.chart.key: charts.plotly(figure.chart) for figure in figures}
    if material.training is not None:
        drawn["training"] = charts.training_chart(material.training)
    return drawn


def _gallery(material: Material) -> Iterator[Shown]:
    signed = _signed(material)
    for picture in material.pictures:
        maps = tuple(
            (name, pictures.map_picture(values, signed=signed.get(name, False)), signed.get(name, False))
            for name, values in picture.maps.items()
        )
        outline = "" if picture.region is None else pictures.outline(picture.region)
        yield Shown(picture, pictures.photograph(picture.pixels), outline, maps)


def _signed(material: Material) -> dict[str, bool]:
    return {found.method: found.signed for found in material.health}


def _rendered(view: Mapping[str, Any], *, with_plotly: bool) -> str:
    sources = source_texts()
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    for name in ("number", "signed", "percent", "probability", "count", "listed", "duration"):
        environment.filters[name] = getattr(wording, name)
    environment.filters["interval_to"] = wording.interval
    environment.filters["isfinite"] = math.isfinite
    environment.globals["nan"] = math.nan
    template = environment.from_string(sources["page.html.j2"])
    script = _plotly_script() if with_plotly else ""
    return template.render(view, css=sources["page.css"], js=sources["page.js"], plotly=script)


def _plotly_script() -> str:
    # Slow to import, and needed only when a page is made.
    from plotly.offline import get_plotlyjs

    return str(get_plotlyjs())
