"""A section for each test of stored maps: tables of its scores, its curves, and both for single images."""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from heatproof.metrics.comparison import Settings, sample_of
from heatproof.metrics.score import Curve, Pooled, Scored
from heatproof.report import charts, scores
from heatproof.report.charts import Chart
from heatproof.report.figures import WIDEST, Figure, Table, line_figure, slug
from heatproof.report.records import Material, Method, TestResult
from heatproof.report.scores import Score

PERTURBATION = "pixel_perturbation_analysis"
"""The test whose main scores and curves are shown together with those of retraining."""
SHOWN_ABOVE = (*scores.PERTURBATION_SCORES, "lerf_aopc", "morf_probability", "lerf_probability")
FEW_SETTINGS = 3
"""Settings of a score that become columns of a table; more become a chart."""
POINTS = 41
"""Points of a curve that are drawn."""
CURVE_RESAMPLES = 1000
"""Resamples of the bands around mean curves, which are many more intervals than those of the tables."""

Found = Mapping[str, Scored | Pooled]
"""For each method its values of one score and setting."""


@dataclass(frozen=True)
class Section:
    """What the page says of one test.

    Args:
        key: name of the test's section of the configuration, and of its place in the page.
        title: what it is called.
        lead: what it does.
        images: that were looked at.
        curves: of each method, the mean over images.
        settings: scores that have many settings, over these.
        primary: its headline scores.
        scored: all scores that are in tables, the headline ones first.
        tables: of these.
        is_above: whether its main scores and curves are shown elsewhere.
    """

    key: str
    title: str
    lead: str
    images: int
    curves: tuple[Figure, ...]
    settings: tuple[Figure, ...]
    primary: tuple[scores.Scored, ...]
    scored: tuple[scores.Scored, ...]
    tables: tuple[Table, ...] = ()
    is_above: bool = False

    def in_order(self, methods: Sequence[Method], order: Sequence[str]) -> "Section":
        """The same with tables, whose rows are in an order: names of the methods under test, the best first."""
        blocks = [self.scored[start : start + WIDEST] for start in range(0, len(self.scored), WIDEST)]
        tables = [
            Table.of(f"scores-{self.key}-{place}" if place else f"scores-{self.key}", self.title, block, methods, order)
            for place, block in enumerate(blocks)
        ]
        return replace(self, tables=tuple(tables))


def section(test: TestResult, material: Material) -> Section:
    """All of one test, but for its tables.

    Args:
        test: its results.
        material: methods and settings of the page.
    """
    is_above = test.name == PERTURBATION and material.curves is not None
    if is_above:
        test = replace(test, scores=[score for score in test.scores if score.name not in SHOWN_ABOVE])
    grouped = _grouped(test)
    columns, figures = [], []
    for score, by_setting in grouped:
        if _is_chart(by_setting):
            figures.append(_over_settings(test, score, by_setting, material))
        else:
            columns += [_column(score, found, material) for score, found in _with_settings(score, by_setting)]
    columns.sort(key=lambda part: not part.score.is_primary)
    return Section(
        key=test.name,
        title=_title(test),
        lead=test.summary,
        images=len(test.index),
        curves=() if is_above else tuple(_curves(test, material)),
        settings=tuple(figures),
        primary=tuple(part for part in columns if part.score.is_primary),
        scored=tuple(columns),
        is_above=is_above,
    )


def singles(tests: Sequence[TestResult], sections: Sequence[Section], pictures: Sequence[int]) -> dict[str, Any]:
    """Curves and scores of the images of the gallery, for the page's script.

    Args:
        tests: results.
        sections: what is shown of them.
        pictures: positions of the gallery's images in the test split; those that a test did not see are left out.

    Returns:
        For each test its `images`, its `methods` and `names` of scores in their order, `curves` (name -> x and, for each method, a list of values for each image) and
        `scores` (name -> for each method a value for each image); an undefined value is None.
    """
    made = {}
    for test, shown in zip(tests, sections, strict=True):
        where = {int(index): row for row, index in enumerate(test.index)}
        rows = [where[index] for index in pictures if index in where]
        if rows:
            made[test.name] = {
                "images": [int(test.index[row]) for row in rows],
                "methods": list(test.values),
                "names": [part.score.label for part in shown.scored if part.values],
                "curves": {name: _single_curve(found, rows) for name, found in _curve_parts(test).items()},
                "scores": {
                    part.score.label: {name: _short(values[rows]) for name, values in part.values.items()}
                    for part in shown.scored
                    if part.values
                },
            }
    return made


# --- scores


def _title(test: TestResult) -> str:
    words = test.label.replace("-", " ")
    return words[:1].upper() + words[1:] if words.islower() and len(words) > len("lerf") else test.label


def _grouped(test: TestResult) -> Iterator[tuple[Score, dict[str, Found]]]:
    """Each score with what was found, by setting and method."""
    for score in test.scores:
        by_setting: dict[str, dict[str, Scored | Pooled]] = {}
        for method, parts in test.values.items():
            for part in parts:
                if not isinstance(part, Curve) and part.name == score.name:
                    by_setting.setdefault(part.setting, {})[method] = part
        if by_setting:
            own = Score(
                test.label,
                score.name,
                "image",
                score.better,
                score.meaning,
                is_primary=score.headline,
                oracle_best=score.oracle_best,
            )
            yield own, dict(by_setting)


def _with_settings(score: Score, by_setting: Mapping[str, Found]) -> Iterator[tuple[Score, Found]]:
    """A column for each setting; the first one of a headline score stands for it."""
    for place, (setting, found) in enumerate(by_setting.items()):
        yield replace(score, setting=setting, is_primary=score.is_primary and not place), found


def _column(score: Score, found: Found, material: Material) -> scores.Scored:
    sample = sample_of(found, score.better, has_rank_ranges=score.is_primary)
    return scores.compared(score, sample, material.methods, material.settings)


# --- charts


_PLACE = re.compile(r"^(?P<name>[^=,]+)=(?P<x>[-+.\deE]+)$")


def _is_chart(by_setting: Mapping[str, Found]) -> bool:
    """Whether there are many settings, all of one number."""
    names = {match["name"] if (match := _PLACE.match(setting)) else "" for setting in by_setting}
    is_mean = all(isinstance(part, Scored) for found in by_setting.values() for part in found.values())
    return len(by_setting) > FEW_SETTINGS and len(names) == 1 and names != {""} and is_mean


def _over_settings(test: TestResult, score: Score, by_setting: Mapping[str, Found], material: Material) -> Figure:
    places = {setting: float(match["x"]) for setting in by_setting if (match := _PLACE.match(setting))}
    ordered = sorted(by_setting, key=lambda setting: places[setting])
    label = next(iter(by_setting)).partition("=")[0]
    methods = [method.name for method in material.methods if all(method.name in found for found in by_setting.values())]
    values = {name: np.stack([_values(by_setting[s][name]) for s in ordered], axis=1) for name in methods}
    x = np.array([places[setting] for setting in ordered])
    points = scores.points(values, x, "image", _fast(material.settings))
    lead = f"{score.meaning[:1].upper()}{score.meaning[1:]}; {score.direction}."
    return line_figure(
        Chart(
            f"{test.name}-{score.name}",
            f"{_title(test)}: {score.name}",
            lead,
            score.name,
            charts.lines(points, material.methods),
            "",
            "bands",
            "images",
            x_label=label,
            arrow=score.arrow,
        )
    )


def _values(part: Scored | Pooled) -> NDArray[np.float64]:
    assert isinstance(part, Scored)
    return np.asarray(part.values, dtype=np.float64)


def _curve_parts(test: TestResult) -> dict[str, dict[str, Curve]]:
    """For each name of a curve that of each method; those over other places than the first are left out."""
    found: dict[str, dict[str, Curve]] = {}
    for method, parts in test.values.items():
        for part in parts:
            if isinstance(part, Curve):
                same = found.setdefault(part.name, {})
                if not same or np.array_equal(next(iter(same.values())).x, part.x):
                    same[method] = part
    return found


def _curves(test: TestResult, material: Material) -> Iterator[Figure]:
    for name, found in _curve_parts(test).items():
        first = next(iter(found.values()))
        chosen = charts.thinned(len(first.x), POINTS)
        columns = {name: curve.values[:, chosen] for name, curve in found.items()}
        points = scores.points(columns, first.x[chosen], "image", _fast(material.settings))
        words = {
            "higher": "The higher the better",
            "lower": "The lower the better",
            "neither": "No direction is better",
        }
        yield line_figure(
            Chart(
                f"{test.name}-{slug(name)}",
                f"{_title(test)}: {name}",
                f"Mean over images of the {first.y_label}. {words[first.better]}.",
                first.y_label,
                charts.lines(points, material.methods),
                "",
                "bands",
                "images",
                x_label=first.x_label,
                test=test.name,
                curve=name,
                arrow={"higher": "↑", "lower": "↓", "neither": ""}[first.better],
            )
        )


def _fast(settings: Settings) -> Settings:
    return replace(settings, resamples=min(settings.resamples, CURVE_RESAMPLES))


# --- single images


def _single_curve(found: Mapping[str, Curve], rows: Sequence[int]) -> dict[str, Any]:
    first = next(iter(found.values()))
    chosen = charts.thinned(len(first.x), POINTS)
    methods = {name: [_short(curve.values[row, chosen]) for row in rows] for name, curve in found.items()}
    return {"x": _short(first.x[chosen]), "methods": methods}


def _short(values: NDArray[Any]) -> list[float | None]:
    return [round(float(value), 4) if math.isfinite(value) else None for value in values]
