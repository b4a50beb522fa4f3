"""The page: scores, findings, charts and pictures, put into one self-contained HTML file."""

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

import jinja2
import markupsafe

from heatproof.metrics import comparison
from heatproof.report import charts, findings, overview, pictures, retraining, scores, sections, similarity, wording
from heatproof.report.charts import Chart
from heatproof.report.figures import Figure, Table, csv_link, line_figure, summary
from heatproof.report.overview import Note
from heatproof.report.records import Material, Picture
from heatproof.report.scores import Scored
from heatproof.report.sections import PERTURBATION, Section
from heatproof.report.wording import percent

RESULTS_VERSION = 4
"""Raised when the page says something else about the same results."""

SOURCES = ("page.html.j2", "page.css", "page.js")
MOST_SINGLE_IMAGES = 12
"""Images of the gallery whose own curves are in the page."""


@dataclass(frozen=True)
class Report:
    """A page, and the files that go beside it.

    Args:
        html: the page.
        files: name and content of figures and tables.
    """

    html: str
    files: Mapping[str, str | bytes]


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
    methods, settings = material.methods, material.settings
    removal = [*_removal_scores(material)]
    tests = [sections.section(test, material) for test in material.tests]
    headlines = [part for test in tests for part in test.primary if test.key != PERTURBATION or not material.curves]
    # Without any removal test the headline scores of the others are all that there is to judge by.
    judged = removal or [part for part in headlines if part.score.is_ranked and part.score.oracle_best]
    leaking = findings.leaking(material.retraining_lines)
    verdict = findings.verdict(judged, methods, settings.confidence, leaking)
    order = [row.method for row in verdict.rows]
    tests = [test.in_order(methods, order) for test in tests]
    primary = [part for part in removal if part.score.is_primary] + headlines
    figures = [line_figure(chart) for chart in _removal_charts(material)]
    said = similarity.statements(material.sanity, methods)
    rankings = [*overview.rankings(primary, methods, settings)]
    agreement = overview.agreement(primary)
    alike = [*similarity.likenesses(material.similarity, settings)] if material.similarity else []
    steps = [*similarity.step_figures(material.sanity, methods)]
    drawn = [ranking.figure for ranking in rankings if ranking.figure] + ([agreement.figure] if agreement else [])
    every = [*figures, *(f for test in tests for f in (*test.curves, *test.settings)), *steps]
    matrix = overview.matrix(primary, _anchors(primary, tests), methods, leaking, _notes(material, leaking, said))
    view = {
        "material": material,
        "verdict": verdict,
        "findings": findings.findings(
            judged,
            material.curves,
            material.health,
            methods,
            others=headlines if removal else (),
            lines=material.retraining_lines,
            label_targets=material.label_targets,
        ),
        "matrix": matrix,
        "rankings": rankings,
        "agreement": agreement,
        "orders": findings.orders(methods, material.curves),
        "tables": [*_tables(removal, material, order)],
        "figures": figures,
        "retraining_tables": retraining.tables(material.retraining_lines, methods, order),
        "retraining_orders": retraining.orders(material.retraining_lines),
        "retraining_marks": retraining.marks(material.retraining_lines),
        "tests": tests,
        "sanity": {
            "statements": said,
            "tables": similarity.check_tables(material.sanity, methods),
            "figures": steps,
        },
        "likenesses": alike,
        "gallery": [*_gallery(material)],
        "signed": _signed(material),
        "scales": {"sequential": pictures.gradient(signed=False), "diverging": pictures.gradient(signed=True)},
        "charts": _plotly(every, material),
        "singles": sections.singles(material.tests, tests, [p.index for p in material.pictures][:MOST_SINGLE_IMAGES]),
        "perturbation": PERTURBATION,
        "references": comparison.REFERENCES,
        "oracle": comparison.ORACLE,
    }
    files: dict[str, str | bytes] = {"summary.csv": summary([*removal, *(p for test in tests for p in test.scored)])}
    view["summary_link"] = csv_link(str(files["summary.csv"]))
    if matrix is not None:
        files["matrix.csv"] = matrix.csv
    if material.retraining_lines:
        files["retraining.csv"] = retraining.as_csv(material.retraining_lines)
    for figure in (*every, *drawn, *(one.figure for one in alike)):
        files |= figure.files
    return Report(_rendered(view, with_plotly=bool(view["charts"])), files)


def source_texts() -> dict[str, str]:
    """Template, style sheet and script of the page, by name: what else than the numbers decides about its bytes."""
    folder = resources.files("heatproof.report")
    return {name: folder.joinpath(name).read_text(encoding="utf-8") for name in SOURCES}


def _removal_scores(material: Material) -> Iterator[Scored]:
    yield from scores.retraining_scores(material.retraining, material.methods, material.settings)
    if material.curves is not None:
        for test in material.tests:
            if test.name == PERTURBATION:
                yield from scores.perturbation_scores(test, material.methods, material.settings)


def _tables(scored: Sequence[Scored], material: Material, order: Sequence[str]) -> Iterator[Table]:
    for unit, title in (("run", "With retraining: ROAR and KAR"), ("image", "Without retraining: MoRF and LeRF")):
        columns = [part for part in scored if part.score.unit == unit]
        if columns:
            yield Table.of(f"scores-{unit}", title, columns, material.methods, order)


def _anchors(primary: Sequence[Scored], tests: Sequence[Section]) -> list[str]:
    """Where the page says more of each score."""
    where = {id(part): f"test-{test.key}" for test in tests for part in test.primary}
    return [where.get(id(part), "scores") for part in primary]


def _notes(
    material: Material, leaking: Collection[str], said: Sequence[similarity.Statement]
) -> dict[str, dict[str, Note]]:
    """What tests without a rank say of each method."""
    notes: dict[str, dict[str, Note]] = {}
    masks = [line for line in material.retraining_lines if line.metric == "mask_only"]
    if masks:
        highest = {line.method: line for line in sorted(masks, key=lambda line: line.mean)}
        notes["masks alone"] = {
            name: Note(
                "bad" if name in leaking else "good",
                f"{'reveal' if name in leaking else 'do not reveal'} the class ({percent(line.mean)}, "
                f"chance {percent(line.chance)})",
            )
            for name, line in highest.items()
        }
    if said:
        short = {"good": "pass", "bad": "do not pass", "open": "undecided"}
        notes["sanity checks"] = {one.method: Note(one.level, short[one.level]) for one in said}
    return notes


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


def _removal_charts(material: Material) -> Iterator[Chart]:
    for part in material.retraining:
        points = scores.points(part.accuracy, part.fractions, "run", material.settings)
        lines = charts.lines(points, material.methods)
        if lines:
            name = part.metric.upper()
            first = "most" if part.metric == "roar" else "least"
            title = f"{name}: accuracy after retraining"
            yield Chart(part.metric, title, _LEADS[part.metric], "test accuracy", lines, first, "bars", "runs")
    if material.curves is not None:
        for end, (key, name, first) in enumerate((("morf", "MoRF", "most"), ("lerf", "LeRF", "least"))):
            columns = {name: probability[:, end] for name, probability in material.curves.probability.items()}
            points = scores.points(columns, material.curves.fractions, "image", material.settings)
            lines = charts.lines(points, material.methods)
            title = f"{name}: probability of the explained class"
            lead = _LEADS[key]
            yield Chart(key, title, lead, "probability", lines, first, "bands", "images", test=PERTURBATION, curve=name)


def _plotly(figures: Sequence[Figure], material: Material) -> dict[str, Any]:
    drawn = {figure.key: charts.plotly(figure.chart) for figure in figures if figure.chart is not None}
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
    for name in ("number", "signed", "percent", "probability", "count", "listed", "duration", "marks"):
        environment.filters[name] = getattr(wording, name)
    environment.filters["interval_to"] = wording.interval
    environment.filters["isfinite"] = math.isfinite
    environment.filters["breakable"] = _breakable
    environment.filters["heat"] = _heat
    environment.filters["as_link"] = csv_link
    environment.globals |= {"nan": math.nan, "LEAKS": wording.LEAKS}
    template = environment.from_string(sources["page.html.j2"])
    script = _plotly_script() if with_plotly else ""
    return template.render(view, css=sources["page.css"], js=sources["page.js"], plotly=script)


def _breakable(name: str) -> markupsafe.Markup:
    """A name that may be broken after each underscore."""
    return markupsafe.Markup("_<wbr>").join(name.split("_"))


def _heat(value: float) -> str:
    """The background of a correlation, in [-1, 1]."""
    colour = "--warm-heat" if value < 0 else "--cool-heat"
    return f"background:color-mix(in srgb, var({colour}) {round(70 * min(1.0, abs(value)))}%, transparent)"


def _plotly_script() -> str:
    # Slow to import, and needed only when a page is made.
    from plotly.offline import get_plotlyjs

    return str(get_plotlyjs())
