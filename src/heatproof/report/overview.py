"""All tests at a glance: ranks of the methods in each, which differences hold over images, and whether tests agree."""

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import scipy

from heatproof.metrics import ranking, statistics
from heatproof.metrics.comparison import REFERENCES, Entry, Settings, summaries
from heatproof.report import drawing
from heatproof.report.figures import Figure, arranged, csv_number, csv_text, matrix_csv, slug
from heatproof.report.records import Method
from heatproof.report.scores import Score, Scored
from heatproof.report.wording import count

FEWEST_METHODS = 3
"""Methods from which ranks over blocks and correlations of rankings are shown."""
TONES = 5
"""Steps of the colour of a cell, from the best rank to the worst."""


@dataclass(frozen=True)
class Cell:
    """A method under one score.

    Args:
        entry: its numbers.
        tone: 0 for the best rank to `TONES` - 1 for the worst; None without a rank.
        leaks: whether the masks alone reveal the class, so that the number cannot be read.
    """

    entry: Entry
    tone: int | None
    leaks: bool


@dataclass(frozen=True)
class Row:
    """A method and its cells; None where it has no value."""

    method: Method
    cells: tuple[Cell | None, ...]
    mean_rank: float
    ranks: int
    notes: tuple["Note | None", ...] = ()


@dataclass(frozen=True)
class Note:
    """What else a test says of a method, in words.

    Args:
        level: good, bad or open.
        text: in a few words.
    """

    level: Literal["good", "bad", "open"]
    text: str


@dataclass(frozen=True)
class Matrix:
    """Methods x tests.

    Args:
        columns: scores, one or two for each test.
        notes: titles of the columns of notes.
        anchors: the part of the page that says more of each.
        rows: methods under test, the best mean rank first, each followed by its twins.
        controls: rows of the other controls.
        csv: its numbers.
    """

    columns: tuple[Score, ...]
    notes: tuple[str, ...]
    anchors: tuple[str, ...]
    rows: tuple[Row, ...]
    controls: tuple[Row, ...]
    csv: str


@dataclass(frozen=True)
class Ranking:
    """Ranks of methods within the images, compared for all methods at once.

    Args:
        score: by which they are ranked.
        reason: why nothing can be tested; empty where it can.
        names: of the methods, the best average rank first.
        ranks: average ranks, with the ends of their bootstrap intervals.
        low, high: these ends.
        blocks: images with a value for every method.
        left_out: images without.
        chi2, f, p: Friedman's statistic, and Iman and Davenport's with its p.
        concordance: Kendall's W, in [0, 1]: the effect size.
        difference: Nemenyi's critical one.
        figure: the diagram, where the methods differ at all.
    """

    score: Score
    reason: str
    names: tuple[str, ...] = ()
    ranks: tuple[float, ...] = ()
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()
    blocks: int = 0
    left_out: int = 0
    chi2: float = math.nan
    f: float = math.nan
    p: float = math.nan
    concordance: float = math.nan
    difference: float = math.nan
    figure: Figure | None = None


@dataclass(frozen=True)
class Agreement:
    """How alike the tests rank the methods under test.

    Args:
        tests: of the rows and columns.
        kendall: (T, T) tau-b; NaN with fewer than three methods, and where a side is constant.
        spearman: (T, T) the same of Spearman's correlation.
        methods: (T, T) how many methods are ranked.
        figure: the matrix of Kendall's.
    """

    tests: tuple[str, ...]
    kendall: tuple[tuple[float, ...], ...]
    spearman: tuple[tuple[float, ...], ...]
    methods: tuple[tuple[int, ...], ...]
    figure: Figure

    @property
    def fewest(self) -> int:
        """Methods of the pair of tests that has the fewest of them, of those with a correlation."""
        return min(n for row in self.methods for n in row if n >= FEWEST_METHODS)


def matrix(
    primary: Sequence[Scored],
    anchors: Sequence[str],
    methods: Sequence[Method],
    leaking: Collection[str],
    notes: Mapping[str, Mapping[str, Note]],
) -> Matrix | None:
    """The summary of all tests; None where there is none.

    Args:
        primary: one score of all methods for each column.
        anchors: for each of them the id of its section.
        methods: of the configuration.
        leaking: methods whose ROAR cannot be read, since their masks alone reveal the class.
        notes: for further columns what is said of each method.
    """
    if not primary:
        return None
    present = {entry.method for part in primary for entry in part.entries}
    listed = [method for method in methods if method.name in present]
    made = {method.name: _row(method, primary, leaking, notes) for method in listed}
    order = sorted(made, key=lambda name: made[name].mean_rank)
    tested, controls = arranged(listed, order)
    columns = tuple(part.score for part in primary)
    rows = tuple(made[method.name] for method in tested)
    others = tuple(made[method.name] for method in controls)
    return Matrix(columns, tuple(notes), tuple(anchors), rows, others, _matrix_csv(columns, (*rows, *others)))


def _row(
    method: Method, primary: Sequence[Scored], leaking: Collection[str], notes: Mapping[str, Mapping[str, Note]]
) -> Row:
    cells: list[Cell | None] = []
    for part in primary:
        entry = part.entry(method.name)
        if entry is None or not math.isfinite(entry.mean):
            cells.append(None)
            continue
        last = max((e.rank for e in part.entries if e.rank), default=1)
        tone = None if entry.rank is None else round((entry.rank - 1) / max(1, last - 1) * (TONES - 1))
        cells.append(Cell(entry, tone, part.score.test == "ROAR" and method.name in leaking))
    ranks = [cell.entry.rank for cell in cells if cell is not None and cell.entry.rank is not None]
    said = tuple(found.get(method.name) for found in notes.values())
    return Row(method, tuple(cells), float(np.mean(ranks)) if ranks else math.inf, len(ranks), said)


def _matrix_csv(columns: Sequence[Score], rows: Sequence[Row]) -> str:
    names = ("method", "control", "test", "score", "better", "n", "n_undefined", "mean", "low", "high", "rank",
             "best_rank", "worst_rank", "not_better_than", "leaks")  # fmt: skip
    lines = []
    for row in rows:
        for score, cell in zip(columns, row.cells, strict=True):
            if cell is not None:
                entry = cell.entry
                numbers = map(csv_number, (entry.mean, entry.low, entry.high))
                ranks = ("" if rank is None else rank for rank in (entry.rank, entry.best_rank, entry.worst_rank))
                what = (row.method.name, row.method.control, score.test, score.label, score.better)
                lines.append(
                    (*what, entry.n, entry.n_undefined, *numbers, *ranks, ";".join(entry.not_better_than), cell.leaks)
                )
    return csv_text(names, lines)


# --- many methods over blocks


def rankings(primary: Sequence[Scored], methods: Sequence[Method], settings: Settings) -> Iterator[Ranking]:
    """Friedman's test and Nemenyi's critical difference for each score; or why there is nothing to test."""
    for part in primary:
        if part.score.is_ranked:
            yield _ranking(part, methods, settings)


def _ranking(part: Scored, methods: Sequence[Method], settings: Settings) -> Ranking:
    score = part.score
    if score.unit == "run":
        return Ranking(
            score,
            f"not testable: 1 block, {ranking.MIN_BLOCKS} needed. A block is a data set with a classifier; runs and "
            "fractions of one are no independent blocks.",
        )
    if not part.values:
        return Ranking(score, "not testable: a score of all images together, so images are no blocks.")
    names = [m.name for m in methods if m.name in part.values and (not m.control or m.name in REFERENCES)]
    if len(names) < FEWEST_METHODS:
        return Ranking(score, f"not testable: {count(len(names), 'method')}, {FEWEST_METHODS} needed.")
    table = np.stack([part.values[name] for name in names])
    whole = np.isfinite(table).all(axis=0)
    blocks = int(whole.sum())
    if blocks < ranking.MIN_BLOCKS:
        return Ranking(score, f"not testable: {count(blocks, 'image')}, {ranking.MIN_BLOCKS} needed.")
    table = table[:, whole]
    chi2, f = ranking.friedman(table), ranking.iman_davenport(table)
    if math.isnan(chi2.statistic):
        return Ranking(score, "not testable: all methods are tied in every image.")
    ranks = scipy.stats.rankdata(-table if score.higher_is_better else table, axis=0)
    means = ranks.mean(axis=1)
    ends = [(found.low, found.high) for found in summaries(ranks, "image", settings)]
    order = np.argsort(means, kind="stable")
    difference = ranking.critical_difference(len(names), blocks, round(1 - settings.confidence, 9))
    sorted_names = tuple(names[place] for place in order)
    lines = [(n, float(means[i]), *ends[i]) for n, i in zip(sorted_names, order, strict=True)]
    figure = None
    if f.p <= 1 - settings.confidence:
        key = f"critical-difference-{slug(score.test)}-{slug(score.label)}"
        title = f"Average ranks within {count(blocks, 'image')}: {score.title}"
        drawn = drawing.critical_difference(
            title, sorted_names, means[order].tolist(), difference, ranking.groups(means[order], difference)
        )
        text = csv_text(
            ("method", "average_rank", "low", "high", "blocks", "critical_difference", "kendalls_w", "chi2", "f", "p"),
            [(*line, blocks, difference, chi2.statistic / (blocks * (len(names) - 1)), chi2.statistic, f.statistic, f.p)
             for line in lines],
        )  # fmt: skip
        figure = Figure(key, title, text, drawn)
    return Ranking(
        score,
        "",
        sorted_names,
        tuple(line[1] for line in lines),
        tuple(line[2] for line in lines),
        tuple(line[3] for line in lines),
        blocks,
        int((~whole).sum()),
        chi2.statistic,
        f.statistic,
        f.p,
        chi2.statistic / (blocks * (len(names) - 1)),
        difference,
        figure,
    )


# --- agreement of the tests


def agreement(primary: Sequence[Scored]) -> Agreement | None:
    """Rank correlations between tests over the methods under test; None where no two tests share three of them."""
    parts = [part for part in primary if part.score.is_ranked]
    names = list(dict.fromkeys(e.method for part in parts for e in part.entries if not e.control))
    goodness = np.array([[_goodness(part, name) for name in names] for part in parts]).reshape(len(parts), len(names))
    defined = np.isfinite(goodness).astype(int)
    shared = defined @ defined.T
    kept = [place for place in range(len(parts)) if shared[place, place] >= FEWEST_METHODS]
    if len(kept) < 2:
        return None
    goodness, shared = goodness[kept], shared[np.ix_(kept, kept)]
    first, second = np.repeat(goodness, len(kept), axis=0), np.tile(goodness, (len(kept), 1))
    kendall, spearman = (
        np.where(shared >= FEWEST_METHODS, measure(first, second).reshape(shared.shape), np.nan)
        for measure in (statistics.kendall, statistics.spearman)
    )
    tests = tuple(parts[place].score.title for place in kept)
    title = "Agreement of the tests about the methods: Kendall's tau-b"
    tables = {"kendall_tau_b": kendall, "spearman": spearman, "methods": shared}
    figure = Figure("agreement-of-tests", title, matrix_csv(tests, tables), drawing.heat_map(title, kendall, tests))
    return Agreement(
        tests,
        tuple(map(tuple, kendall.tolist())),
        tuple(map(tuple, spearman.tolist())),
        tuple(map(tuple, shared.tolist())),
        figure,
    )


def _goodness(part: Scored, name: str) -> float:
    entry = part.entry(name)
    if entry is None:
        return math.nan
    return entry.mean if part.score.higher_is_better else -entry.mean
