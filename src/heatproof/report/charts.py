"""Charts as plain values: for plotly as a dictionary, for a CSV file as rows, for a reader as a table.

The drawing itself is plotly's on the page, and matplotlib's (`drawing.py`) beside it.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from heatproof.report.records import Method, Training
from heatproof.report.scores import Point
from heatproof.report.wording import interval, number, percent

_NUMBERS = ("n", "mean", "sd", "low", "high", "difference_to_random", "difference_low", "difference_high")

# Colours after Okabe and Ito, darker on white and lighter on black so that lines keep a contrast of 3:1. Symbols and
# dashes differ as well: colour is never the only cue.
LIGHT = ("#0072b2", "#d55e00", "#00855f", "#b0508c", "#8a6d00", "#2f8fbd", "#6a4fb3")
DARK = ("#4aa8e8", "#f2894c", "#2fc79a", "#e394c2", "#dcb93c", "#9bd3f3", "#b7a5f5")
SYMBOLS = (("circle", "o"), ("square", "s"), ("diamond", "D"), ("triangle-up", "^"), ("triangle-down", "v"),
           ("pentagon", "p"), ("hexagon", "h"), ("star", "*"))  # fmt: skip
ROUNDS: tuple[tuple[str, Any], ...] = (
    ("solid", "-"),
    ("12px,3px", (0, (9, 2))),
)  # a second round of the same colours has gaps
CONTROL_LIGHT = ("#6b7076", "#85898f", "#777b82", "#2f3237", "#5a5e64", "#8a8f96")
CONTROL_DARK = ("#a9aeb6", "#8c9199", "#9aa0a8", "#eceef1", "#b9bec6", "#868b93")
CONTROL_SYMBOLS = (
    ("x", "x"),
    ("cross", "P"),
    ("triangle-left", "<"),
    ("triangle-right", ">"),
    ("star", "*"),
    ("hourglass", "d"),
)
DASHES: tuple[tuple[str, Any], ...] = (("dot", (0, (1, 1.6))), ("dash", (0, (4, 2))), ("dashdot", (0, (5, 2, 1, 2))), ("7px,3px", (0, (7, 3))),
          ("7px,2px,2px,2px", (0, (7, 2, 2, 2))), ("4px,2px", (0, (3, 1))))  # fmt: skip

_MARKED = 16  # points of a line that still have room for a marker each
_ROOM = 11  # columns of a table
_FEW = 7  # labels that fit below a chart
_DODGE = 0.16  # of the smallest step: how far apart the error bars of all methods lie at one fraction


@dataclass(frozen=True)
class Style:
    """How a method's line looks, in all charts the same."""

    light: str
    dark: str
    symbol: str
    dash: str
    marker: str
    pattern: Any
    is_control: bool


@dataclass(frozen=True)
class Line:
    """One method's curve."""

    name: str
    style: Style
    points: tuple[Point, ...]


@dataclass(frozen=True)
class Chart:
    """Curves over the removed fraction, or over anything else that grows.

    Args:
        key: name of its files.
        title: what is shown.
        lead: how to read it, one or two sentences.
        y_label: of the vertical axis.
        lines: one for each method, controls last.
        first: which end is removed: "most" or "least"; empty where the axis is not the removed fraction.
        intervals: as error bars (few units) or as bands.
        unit: what n counts.
        x_label: of the horizontal axis, where that is not the removed fraction.
        test, curve: whose curves of single images can be shown in the place of the means; empty: none.
        arrow: which direction is better.
        ticks: what the places are called, where they are no numbers.
    """

    key: str
    title: str
    lead: str
    y_label: str
    lines: tuple[Line, ...]
    first: str
    intervals: Literal["bars", "bands"]
    unit: str
    x_label: str = ""
    test: str = ""
    curve: str = ""
    arrow: str = ""
    ticks: tuple[str, ...] = ()

    @property
    def xs(self) -> list[float]:
        """Where the points are: removed fractions or other numbers, growing."""
        return [point.x for point in self.lines[0].points] if self.lines else []

    @property
    def listed(self) -> list[int]:
        """Positions of the points that a table has room for: all of a few, else spread evenly."""
        return [int(place) for place in thinned(len(self.xs), _ROOM)]

    def place(self, x: float) -> str:
        """Where a point is, as it is written in a table."""
        if self.ticks:
            return self.ticks[self.xs.index(x)]
        return percent(x) if self.first else f"{x:g}"

    @property
    def columns(self) -> tuple[str, ...]:
        """Of the file of numbers."""
        where = ("removed_fraction", "kept_fraction") if self.first else (self.x_label.replace(" ", "_"),)
        return ("method", "control", *where, *_NUMBERS)

    @property
    def alternative(self) -> str:
        """The chart in words, for who cannot see it."""
        ends = "; ".join(
            f"{line.name} {number(drawn[0].mean)} to {number(drawn[-1].mean)}"
            for line in self.lines
            if (drawn := [point for point in line.points if point.n])
        )
        if not self.lines:
            return f"Line chart. {self.title}: no values."
        span = f"from {self.place(self.xs[0])} to {self.place(self.xs[-1])}"
        where = f"{span} of the pixels removed" if self.first else f"over {self.x_label} {span}"
        return f"Line chart. {self.title}: {self.y_label} {where}. {ends}."


def thinned(count: int, most: int) -> NDArray[np.int64]:
    """Positions of at most so many of `count` points, the first and the last among them.

    >>> thinned(5, 3).tolist(), thinned(3, 9).tolist()
    ([0, 2, 4], [0, 1, 2])
    """
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(np.int64))


def styles(methods: Sequence[Method]) -> dict[str, Style]:
    """A style for each method: colours for those under test, dashed greys for the controls."""
    found = {}
    tested = controls = 0
    for method in methods:
        if method.control:
            symbol, marker = CONTROL_SYMBOLS[controls % len(CONTROL_SYMBOLS)]
            dash, pattern = DASHES[controls % len(DASHES)]
            place = controls % len(CONTROL_LIGHT)
            found[method.name] = Style(
                CONTROL_LIGHT[place], CONTROL_DARK[place], symbol, dash, marker, pattern, is_control=True
            )
            controls += 1
        else:
            symbol, marker = SYMBOLS[tested % len(SYMBOLS)]
            place = tested % len(LIGHT)
            dash, pattern = ROUNDS[min(tested // len(LIGHT), 1)]
            found[method.name] = Style(LIGHT[place], DARK[place], symbol, dash, marker, pattern, is_control=False)
            tested += 1
    return found


def lines(points: Mapping[str, Sequence[Point]], methods: Sequence[Method]) -> tuple[Line, ...]:
    """A line for each method that has a point, in the order of the methods."""
    looks = styles(methods)
    return tuple(
        Line(method.name, looks[method.name], tuple(points[method.name]))
        for method in methods
        if method.name in points and any(point.n for point in points[method.name])
    )


def rows(chart: Chart) -> Iterator[tuple[Any, ...]]:
    """The chart's numbers, a row for each point, as its `columns`; empty where there is no value."""
    for line in chart.lines:
        for point in line.points:
            values = (point.mean, point.sd, point.low, point.high, point.gap, point.gap_low, point.gap_high)
            numbers = ("" if math.isnan(value) else round(value, 6) for value in values)
            x = round(point.x, 6)
            where = (x, round(1 - x, 6)) if chart.first else (x,)
            yield (line.name, line.style.is_control, *where, point.n, *numbers)


def cell(point: Point) -> tuple[str, str]:
    """A point as it stands in a table: mean, and interval or nothing."""
    return number(point.mean), interval(point.low, point.high)


def plotly(chart: Chart) -> dict[str, Any]:
    """Traces and layout for plotly; colours of both schemes travel along in `meta`."""
    traces = []
    for position, line in enumerate(chart.lines):
        drawn = [point for point in line.points if point.n]
        if chart.intervals == "bands":
            traces.append(_band(line, drawn))
        traces.append(_curve(chart, line, drawn, _dodge(chart, position)))
    return {"data": traces, "layout": _layout(chart)}


def _curve(chart: Chart, line: Line, drawn: Sequence[Point], shift: float) -> dict[str, Any]:
    style = line.style
    trace: dict[str, Any] = {
        "type": "scatter",
        "mode": "lines+markers" if len(drawn) <= _MARKED else "lines",
        "name": line.name,
        "legendgroup": line.name,
        "x": [round(point.x + (shift if point.x else 0), 6) for point in drawn],
        "y": [round(point.mean, 6) for point in drawn],
        "line": {"color": style.light, "dash": style.dash, "width": 1.6 if style.is_control else 2.4},
        "marker": {"symbol": style.symbol, "size": 6 if style.is_control else 8, "color": style.light},
        "meta": {"light": style.light, "dark": style.dark},
        "customdata": [_hover(chart, point) for point in drawn],
        "hovertemplate": "<b>%{fullData.name}</b><br>%{customdata[0]}<br>%{customdata[1]}<extra></extra>",
    }
    if chart.intervals == "bars" and any(math.isfinite(point.low) for point in drawn):
        trace["error_y"] = {
            "type": "data",
            "symmetric": False,
            "array": [_length(point.high - point.mean) for point in drawn],
            "arrayminus": [_length(point.mean - point.low) for point in drawn],
            "thickness": 1.2,
            "width": 3,
            "color": style.light,
        }
    return trace


def _band(line: Line, drawn: Sequence[Point]) -> dict[str, Any]:
    bounded = [point for point in drawn if math.isfinite(point.low)]
    forth = [(point.x, point.high) for point in bounded]
    back = [(point.x, point.low) for point in reversed(bounded)]
    return {
        "type": "scatter",
        "mode": "lines",
        "fill": "toself",
        "x": [x for x, _ in forth + back],
        "y": [round(y, 6) for _, y in forth + back],
        "line": {"width": 0, "color": line.style.light},
        "fillcolor": line.style.light,
        "opacity": 0.14,
        "hoverinfo": "skip",
        "showlegend": False,
        "legendgroup": line.name,
        "meta": {"light": line.style.light, "dark": line.style.dark},
    }


def _hover(chart: Chart, point: Point) -> list[str]:
    mean, ends = cell(point)
    where = (
        f"{percent(point.x)} removed, {percent(1 - point.x)} kept"
        if chart.first
        else f"{chart.x_label} {chart.place(point.x)}"
    )
    return [where, f"{mean} {ends}".strip() + f", n = {point.n:,} {chart.unit}"]


def _length(value: float) -> float:
    return round(value, 6) if math.isfinite(value) else 0.0


def _dodge(chart: Chart, position: int) -> float:
    """Error bars at the same fraction are set a little apart, or they would hide each other."""
    if chart.intervals == "bands" or len(chart.lines) < 2:
        return 0.0
    steps = [b - a for a, b in zip(chart.xs, chart.xs[1:], strict=False)] or [0.1]
    return min(steps) * _DODGE * (position / (len(chart.lines) - 1) - 0.5)


_AXES = {"most": "removed, most important first", "least": "removed, least important first (below: <i>kept</i>)"}


def _layout(chart: Chart) -> dict[str, Any]:
    if not chart.first:
        axis: dict[str, Any] = {"title": {"text": chart.x_label}, "range": _padded(chart.xs[0], chart.xs[-1], 0.03)}
        if chart.ticks:
            axis |= {"tickvals": chart.xs, "ticktext": list(chart.ticks)}
        return {"xaxis": axis, "yaxis": {"title": {"text": chart.y_label}, "range": _height(chart)}}
    ticks = _ticks(chart)
    text = [percent(f) if chart.first == "most" else f"{percent(f)}<br><i>{percent(1 - f)}</i>" for f in ticks]
    return {
        "xaxis": {
            "title": {"text": _AXES[chart.first]},
            "tickvals": ticks,
            "ticktext": text,
            "range": _padded(chart.xs[0], chart.xs[-1], 0.03),
        },
        "yaxis": {"title": {"text": chart.y_label}, "range": _height(chart)},
    }


def _ticks(chart: Chart) -> list[float]:
    """Fractions that are labelled: all of a few, round ones of many."""
    last = chart.xs[-1]
    if len(chart.xs) <= _FEW:
        return chart.xs
    step = next((step for step in (0.01, 0.02, 0.05, 0.1) if last / step <= _FEW), 0.2)
    return [round(place * step, 6) for place in range(int(last / step + 1e-9) + 1)]


def _height(chart: Chart) -> list[float]:
    values = [v for line in chart.lines for p in line.points for v in (p.mean, p.low, p.high) if math.isfinite(v)]
    low, high = min(values, default=0.0), max(values, default=1.0)
    if chart.first:  # accuracies and probabilities
        low, high = max(0.0, low), min(1.0, high)
    return _padded(low, high, 0.04)


def _padded(low: float, high: float, share: float) -> list[float]:
    margin = share * ((high - low) or 1.0)
    return [round(low - margin, 6), round(high + margin, 6)]


def training_chart(training: Training) -> dict[str, Any]:
    """Accuracies over epochs, for plotly."""
    epochs = [int(epoch) for epoch in training.history["epoch"]]
    traces = []
    for column, name, look in (("train_accuracy", "training", 1), ("validation_accuracy", "validation", 0)):
        traces.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "name": name,
                "x": epochs,
                "y": [round(float(value), 6) for value in training.history[column]],
                "line": {"color": LIGHT[look], "dash": "dot" if look else "solid", "width": 2},
                "marker": {"symbol": SYMBOLS[look][0], "size": 6, "color": LIGHT[look]},
                "meta": {"light": LIGHT[look], "dark": DARK[look]},
                "hovertemplate": "<b>%{fullData.name}</b><br>epoch %{x}: %{y:.3f}<extra></extra>",
            }
        )
    layout = {
        "xaxis": {"title": {"text": "epoch"}},
        "yaxis": {"title": {"text": "accuracy"}},
        "shapes": [
            {"type": "line", "x0": training.best_epoch, "x1": training.best_epoch, "yref": "paper", "y0": 0, "y1": 1,
             "line": {"dash": "dot", "width": 1, "color": "#888"}}
        ],
    }  # fmt: skip
    return {"data": traces, "layout": layout}
