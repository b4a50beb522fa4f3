"""Charts as SVG files, for papers and slides: the same lines as on the page, drawn by matplotlib."""

import io
import math
from typing import Any

from heatproof.report.charts import Chart, Line
from heatproof.report.wording import percent

_STYLE: Any = {
    "svg.fonttype": "none",  # text stays text: small files, and it can be edited
    "svg.hashsalt": "heatproof",  # same numbers, same bytes
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e3e5e8",
    "grid.linewidth": 0.6,
}


def svg(chart: Chart) -> str:
    """The chart as a self-contained SVG picture, the same bytes for the same numbers."""
    # Slow to import, and needed only when a page is made.
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(6.4, 3.9), layout="constrained")
        axes = figure.add_subplot()
        for position, line in enumerate(chart.lines):
            _draw(axes, chart, line, zorder=2 + len(chart.lines) - position)
        axes.set_xlabel(f"removed, {'most' if chart.first == 'most' else 'least'} important first")
        axes.set_ylabel(chart.y_label)
        axes.set_title(chart.title, loc="left", fontsize=10, fontweight="bold")
        axes.xaxis.set_major_formatter(lambda value, _: percent(value))
        figure.legend(loc="outside right upper", frameon=False)
        written = io.StringIO()
        figure.savefig(written, format="svg", metadata={"Date": None, "Creator": "heatproof", "Title": chart.title})
    return written.getvalue()


def _draw(axes: Any, chart: Chart, line: Line, zorder: int) -> None:
    drawn = [point for point in line.points if point.n]
    x, mean = [p.fraction for p in drawn], [p.mean for p in drawn]
    look = {"color": line.style.light, "zorder": zorder}
    width = 1.2 if line.style.is_control else 1.8
    axes.plot(
        x,
        mean,
        linestyle=line.style.pattern,
        marker=line.style.marker,
        markersize=4,
        linewidth=width,
        label=line.name,
        **look,
    )
    bounded = [p for p in drawn if math.isfinite(p.low)]
    if chart.intervals == "bands":
        low, high = [p.low for p in bounded], [p.high for p in bounded]
        axes.fill_between([p.fraction for p in bounded], low, high, alpha=0.14, linewidth=0, **look)
    elif bounded:
        spans = [[p.mean - p.low for p in bounded], [p.high - p.mean for p in bounded]]
        axes.errorbar(
            [p.fraction for p in bounded],
            [p.mean for p in bounded],
            yerr=spans,
            fmt="none",
            capsize=2,
            elinewidth=0.9,
            **look,
        )
