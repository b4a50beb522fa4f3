"""Figures as SVG and PNG files, for papers and slides: the same numbers as on the page, drawn by matplotlib."""

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from heatproof.report.charts import Chart, Line
from heatproof.report.wording import number, percent

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
_DPI = 160
_FEW_CELLS = 14  # rows and columns of a heat map whose cells have room for their number


@dataclass(frozen=True)
class Drawing:
    """A picture in both formats; the same bytes for the same numbers."""

    svg: str
    png: bytes


def line_chart(chart: Chart) -> Drawing:
    """The chart as a self-contained picture."""
    with _styled():
        figure, axes = _figure(6.4, 3.9)
        for position, line in enumerate(chart.lines):
            _draw(axes, chart, line, zorder=2 + len(chart.lines) - position)
        axes.set_xlabel(
            f"removed, {'most' if chart.first == 'most' else 'least'} important first" if chart.first else chart.x_label
        )
        axes.set_ylabel(chart.y_label)
        axes.set_title(chart.title, loc="left", fontsize=10, fontweight="bold")
        if chart.first:
            axes.xaxis.set_major_formatter(lambda value, _: percent(value))
        if chart.ticks:
            axes.set_xticks(chart.xs, chart.ticks, rotation=30, ha="right")
        figure.legend(loc="outside right upper", frameon=False)
        return _saved(figure, chart.title)


def heat_map(
    title: str,
    values: NDArray[np.float64],
    names: Sequence[str],
    columns: Sequence[str] | None = None,
    *,
    low: float = -1.0,
    high: float = 1.0,
    linkage: NDArray[np.float64] | None = None,
) -> Drawing:
    """A matrix in colours, its numbers in the cells where there is room.

    Args:
        title: above it.
        values: (R, C), NaN where undefined.
        names: of the rows.
        columns: names of the columns; those of the rows where left out.
        low: lower end of the colour scale.
        high: its upper end.
        linkage: SciPy's, of the rows in the order given; drawn as a dendrogram above.
    """
    across = list(columns if columns is not None else names)
    with _styled():
        side = 0.52 if len(across) <= _FEW_CELLS else 0.3
        width, height = 2.6 + side * len(across), 1.5 + 0.62 * side * len(names)
        figure, axes = _figure(max(width, 4.2), height + (0.9 if linkage is not None else 0.0))
        if linkage is not None:
            tree, axes = _above(figure, axes)
            _dendrogram(tree, linkage)
            tree.set_title(title, loc="left", fontsize=10, fontweight="bold")
        else:
            axes.set_title(title, loc="left", fontsize=10, fontweight="bold")
        mesh = axes.pcolormesh(
            np.ma.masked_invalid(values), cmap="PuOr_r" if low < 0 else "viridis", vmin=low, vmax=high
        )
        axes.invert_yaxis()
        axes.grid(visible=False)
        axes.set_xticks(np.arange(len(across)) + 0.5, across, rotation=45, ha="right")
        axes.set_yticks(np.arange(len(names)) + 0.5, names)
        if len(across) <= _FEW_CELLS:
            for (row, column), value in np.ndenumerate(values):
                if math.isfinite(value):
                    red, green, blue, _ = mesh.cmap(mesh.norm(value))
                    colour = "black" if 0.3 * red + 0.59 * green + 0.11 * blue > 0.5 else "white"
                    where = (column + 0.5, row + 0.5)
                    axes.text(*where, number(value, 2), ha="center", va="center", color=colour, fontsize=7)
        figure.colorbar(mesh, ax=axes, shrink=0.8)
        return _saved(figure, title)


def critical_difference(
    title: str, names: Sequence[str], ranks: Sequence[float], difference: float, groups: Sequence[Sequence[int]]
) -> Drawing:
    """Average ranks on a line, best at the left; a bar joins methods that do not differ.

    Args:
        title: above it.
        names: of the methods.
        ranks: their average ranks.
        difference: the critical one.
        groups: positions of methods that do not differ by more.

    Reference:
        Demsar, JMLR 7 (2006), figure 1.
    """
    order = np.argsort(ranks, kind="stable")
    half = math.ceil(len(order) / 2)
    with _styled():
        figure, axes = _figure(6.6, 1.25 + 0.24 * half + 0.13 * len(groups))
        top = len(names)
        axes.set_xlim(0.55, top + 0.45)
        depth = 0.55 * len(groups)
        axes.set_ylim(-(depth + half + 0.6), 2.4)
        axes.axis("off")
        ink = {"color": "black", "linewidth": 1.1}
        axes.plot([1, top], [0, 0], **ink)
        for tick in range(1, top + 1):
            axes.plot([tick, tick], [0, 0.25], **ink)
            axes.text(tick, 0.35, str(tick), ha="center", va="bottom", fontsize=8)
        axes.plot([1, 1 + difference], [1.7, 1.7], color="black", linewidth=1.8)
        axes.text(1 + difference + 0.06, 1.7, f"critical difference {number(difference, 2)}", va="center", fontsize=8)
        for place, method in enumerate(order.tolist()):
            rank, is_left = float(ranks[method]), place < half
            row = place if is_left else len(order) - 1 - place
            level, end = -(depth + 0.6 + row), (0.95 if is_left else top + 0.05)
            axes.plot([rank, rank, end], [0, level, level], color="black", linewidth=0.7)
            text = f"{names[method]}  {number(rank, 2)}"
            axes.text(end + (-0.04 if is_left else 0.04), level, text, ha="right" if is_left else "left", va="center")
        for level, group in enumerate(groups):
            ends = [float(ranks[method]) for method in group]
            height = -(0.45 + 0.5 * level)
            axes.plot([min(ends) - 0.04, max(ends) + 0.04], [height, height], color="black", linewidth=2.8)
        axes.set_title(title, loc="left", fontsize=10, fontweight="bold")
        return _saved(figure, title)


def _styled() -> Any:
    # Slow to import, and needed only when a page is made.
    import matplotlib as mpl

    return mpl.rc_context(_STYLE)


def _figure(width: float, height: float) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.add_subplot()


def _saved(figure: Any, title: str) -> Drawing:
    text, picture = io.StringIO(), io.BytesIO()
    # Laid out once, not again for each of the two files.
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    figure.savefig(
        text, format="svg", metadata={"Date": None, "Creator": "heatproof", "Title": title}, bbox_inches="tight"
    )
    figure.savefig(picture, format="png", dpi=_DPI, metadata={"Software": None}, bbox_inches="tight")
    return Drawing(text.getvalue(), picture.getvalue())


def _above(figure: Any, axes: Any) -> tuple[Any, Any]:
    """Two axes over one another in the place of one, the lower one taller."""
    axes.remove()
    grid = figure.add_gridspec(2, 1, height_ratios=(1, 4), hspace=0.02)
    return figure.add_subplot(grid[0]), figure.add_subplot(grid[1])


def _dendrogram(axes: Any, linkage: NDArray[np.float64]) -> None:
    """Clusters over the columns of a heat map, whose leaves are in the linkage's order."""
    from scipy.cluster import hierarchy

    tree = hierarchy.dendrogram(linkage, no_plot=True)
    for x, y in zip(tree["icoord"], tree["dcoord"], strict=True):
        axes.plot([place / 10 for place in x], y, color="#55595f", linewidth=1.0)  # leaves lie at 5, 15, 25, ...
    axes.set_xlim(0, len(linkage) + 1)
    axes.set_ylim(0, max(float(linkage[:, 2].max()), 1e-9) * 1.05)
    axes.axis("off")


def _draw(axes: Any, chart: Chart, line: Line, zorder: int) -> None:
    drawn = [point for point in line.points if point.n]
    x, mean = [p.x for p in drawn], [p.mean for p in drawn]
    look = {"color": line.style.light, "zorder": zorder}
    width = 1.2 if line.style.is_control else 1.8
    axes.plot(
        x,
        mean,
        linestyle=line.style.pattern,
        marker=line.style.marker,
        markersize=4,
        markevery=max(1, len(drawn) // 12),
        linewidth=width,
        label=line.name,
        **look,
    )
    bounded = [p for p in drawn if math.isfinite(p.low)]
    if chart.intervals == "bands":
        low, high = [p.low for p in bounded], [p.high for p in bounded]
        axes.fill_between([p.x for p in bounded], low, high, alpha=0.14, linewidth=0, **look)
    elif bounded:
        spans = [[p.mean - p.low for p in bounded], [p.high - p.mean for p in bounded]]
        axes.errorbar(
            [p.x for p in bounded],
            [p.mean for p in bounded],
            yerr=spans,
            fmt="none",
            capsize=2,
            elinewidth=0.9,
            **look,
        )
