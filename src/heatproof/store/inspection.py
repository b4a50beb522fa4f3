"""What a file holds, how far it got, whether it is sound: for `heatproof inspect FILE`."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from heatproof.store import layout
from heatproof.store.maps import CONSTANT, FORMAT, FORMAT_VERSION, MapReader
from heatproof.store.reader import RowReader

CUTS = (0.1, 0.5, 0.9)
TIES_SAMPLE = 2000
"""Sorting is slow: ties are counted in at most this many maps, evenly spread over the file."""

Progress = Callable[[int], object]


@dataclass(frozen=True)
class Ties:
    """How often pixels of a map share their value, so that their order is drawn: in the values as stored.

    Args:
        maps: number of maps looked at.
        share: mean over maps of the share of pixels whose value another pixel has too.
        at_cut: for each removed fraction, the mean over maps of the share of pixels whose value stands on both sides
            of the cut: which of them are removed is chance.
    """

    maps: int
    share: float
    at_cut: Mapping[float, float]


@dataclass(frozen=True)
class MapStatistics:
    """Numbers over all valid maps of an attribution file, in the units of the method; NaN where there is none.

    `correct` is None where the labels are of other classes than the classifier's outputs.
    """

    minimum: float
    maximum: float
    mean: float
    zero_pixels: float
    zero_maps: int
    constant_maps: int
    invalid_maps: int
    correct: float | None
    ties: Ties


@dataclass(frozen=True)
class Report:
    """What `inspect` finds in a file.

    Args:
        path: the file.
        kind: its `format`, with the version.
        form: "contiguous", "shards" or "chunked".
        size_bytes: on disk, shards included.
        rows, rows_done, complete: how far it got.
        attributes: further root attributes, as method and split.
        origin: what it was computed from.
        columns: for each dataset its type and the shape of a row.
        damage: one line for each damaged place.
        ranges: for each column of a file that is not of maps: minimum, maximum and mean of its finite values.
        maps: statistics of an attribution file; None for other files, and where the values are damaged.
    """

    path: Path
    kind: str
    form: str
    size_bytes: int
    rows: int
    rows_done: int
    complete: bool
    attributes: Mapping[str, Any]
    origin: Mapping[str, Any]
    columns: Mapping[str, tuple[str, tuple[int, ...]]]
    damage: tuple[str, ...]
    ranges: Mapping[str, tuple[float, float, float]] = field(default_factory=dict)
    maps: MapStatistics | None = None


def inspect(path: Path | str, progress: Progress | None = None) -> Report:
    """Reads a whole file of ours, checks it, and reports.

    Args:
        path: an attribution file, or any other row file.
        progress: called with the number of rows done since the last call, as `tqdm.update`.

    Raises:
        MapError: the file cannot be opened at all; damaged values are part of the report.
    """
    attributes = layout.read_attributes(Path(path), version=FORMAT_VERSION)
    if attributes["format"] != FORMAT:
        reader = RowReader(path, version=FORMAT_VERSION)
        damage = tuple(reader.damage())
        return _report(reader, damage, ranges={} if damage else _ranges(reader))
    maps = MapReader(path)
    damage = tuple(maps.damage(progress))
    return _report(maps, damage, maps=None if damage else _statistics(maps))


def render(report: Report) -> str:
    """The report as lines of text for a terminal."""
    return "\n".join([str(report.path), *(f"  {name:<11}{text}" for name, text in _lines(report))])


def _report(reader: RowReader, damage: tuple[str, ...], **found: Any) -> Report:
    known = {"format", "format_version", "origin", "complete", "rows_done"}
    attributes = reader.attributes
    parts = reader.path.with_suffix(".parts") if reader.form == "shards" else None
    shards = parts.glob("*.h5") if parts else ()
    return Report(
        path=reader.path,
        kind=f"{attributes['format']} {attributes['format_version']}",
        form=reader.form,
        size_bytes=reader.path.stat().st_size + sum(shard.stat().st_size for shard in shards),
        rows=reader.rows,
        rows_done=reader.rows_done,
        complete=reader.complete,
        attributes={name: value for name, value in attributes.items() if name not in known},
        origin=reader.origin,
        columns={name: (str(reader.dtype(name)), reader.shape(name)[1:]) for name in reader.names},
        damage=damage,
        **found,
    )


def _ranges(reader: RowReader) -> dict[str, tuple[float, float, float]]:
    written = np.flatnonzero(reader.written)
    ranges = {}
    for name in reader.names:
        values = reader.read(name, written).astype(np.float64)
        finite = values[np.isfinite(values)]
        if finite.size:
            ranges[name] = (float(finite.min()), float(finite.max()), float(finite.mean()))
    return ranges


def _statistics(reader: MapReader) -> MapStatistics:
    total = zeros = zero_maps = maps = 0.0
    low, high = np.inf, -np.inf
    for rows in reader.row_blocks():
        valid = rows[~reader.invalid[rows]]
        values = reader.maps(valid)
        if len(valid):
            low, high = min(low, float(values.min())), max(high, float(values.max()))
            total += float(values.sum(dtype=np.float64))
            is_zero = values == 0
            zeros += float(is_zero.sum())
            zero_maps += float(is_zero.all(axis=(1, 2)).sum())
            maps += len(valid)
    pixels = maps * reader.size[0] * reader.size[1]
    written = reader.written
    right = (reader.predictions == reader.labels)[written]
    return MapStatistics(
        minimum=low if maps else np.nan,
        maximum=high if maps else np.nan,
        mean=total / pixels if maps else np.nan,
        zero_pixels=zeros / pixels if maps else np.nan,
        zero_maps=int(zero_maps),
        constant_maps=int(((reader.flags & CONSTANT) != 0).sum()),
        invalid_maps=int(reader.invalid.sum()),
        correct=None if reader.label_classes is not None else float(right.mean()) if len(right) else np.nan,
        ties=_ties(reader),
    )


def _ties(reader: MapReader) -> Ties:
    """Ties among the stored values of a sample of the valid maps."""
    valid = np.flatnonzero(reader.written & ~reader.invalid)
    sample = valid[np.unique(np.linspace(0, len(valid) - 1, min(len(valid), TIES_SAMPLE)).astype(np.int64))]
    if not len(sample):
        return Ties(0, np.nan, dict.fromkeys(CUTS, np.nan))
    shares, at_cut = [], []
    for rows in np.array_split(sample, -(-len(sample) // 64)):
        values = np.sort(reader.read("map", rows).reshape(len(rows), -1).astype(np.float32), axis=1)[:, ::-1]
        shares.append(tied(values))
        at_cut.append(np.stack([tied_at_cut(values, fraction) for fraction in CUTS], axis=1))
    means = np.concatenate(at_cut).mean(axis=0)
    return Ties(len(sample), float(np.concatenate(shares).mean()), dict(zip(CUTS, means.tolist(), strict=True)))


def tied(values: NDArray[np.floating]) -> NDArray[np.float64]:
    """Share of values that occur more than once in their row.

    Args:
        values: (N, P), each row sorted.

    Returns:
        (N,), in [0, 1].

    >>> tied(np.array([[3.0, 2.0, 2.0, 1.0]]))
    array([0.5])
    """
    equal = values[:, 1:] == values[:, :-1]
    has_twin = np.zeros(values.shape, dtype=np.bool_)
    has_twin[:, 1:] |= equal
    has_twin[:, :-1] |= equal
    shares: NDArray[np.float64] = has_twin.mean(axis=1)
    return shares


def tied_at_cut(values: NDArray[np.floating], fraction: float) -> NDArray[np.float64]:
    """Share of values that stand on both sides of a cut after the first floor(fraction * P).

    Args:
        values: (N, P), each row sorted, most important first.
        fraction: share of each row before the cut, in [0, 1].

    Returns:
        (N,), in [0, 1]; 0 where the cut falls between two different values.

    >>> tied_at_cut(np.array([[3.0, 2.0, 2.0, 1.0], [4.0, 3.0, 2.0, 1.0]]), 0.5)
    array([0.5, 0. ])
    """
    pixels = values.shape[1]
    count = int(fraction * pixels + 1e-9)
    if not 0 < count < pixels:
        return np.zeros(len(values))
    last = values[:, count - 1 : count]
    shares = (values == last).mean(axis=1)
    return np.where(last[:, 0] == values[:, count], shares, 0.0)


def _lines(report: Report) -> Iterator[tuple[str, str]]:
    form = {"contiguous": "one file", "shards": "shards", "chunked": "compressed or foreign layout"}[report.form]
    yield "what", f"{report.kind}; {form}; {report.size_bytes / 1e6:,.1f} MB"
    for name, value in sorted(report.attributes.items()):
        yield name, str(value)
    rest = "complete" if report.complete else "not complete: run the same task again to go on"
    yield "rows", f"{report.rows_done} of {report.rows} written, {rest}"
    for position, (name, (dtype, shape)) in enumerate(report.columns.items()):
        low_high = ""
        if name in report.ranges:
            low, high, mean = report.ranges[name]
            low_high = f"; {low:.6g} to {high:.6g}, mean {mean:.6g}"
        size = f" {' x '.join(map(str, shape))}" if shape else ""
        yield "" if position else "datasets", f"{name}: {dtype}{size}{low_high}"
    yield "checksums", f"{len(report.damage)} damaged:" if report.damage else "all right"
    for line in report.damage[:10]:
        yield "", line
    if len(report.damage) > 10:
        yield "", f"and {len(report.damage) - 10} more"
    if report.maps is not None:
        yield from _map_lines(report.maps, report.rows_done, report.columns["map"][0])
    for position, line in enumerate(_flat(report.origin)):
        yield "" if position else "origin", line


def _map_lines(found: MapStatistics, rows: int, dtype: str) -> Iterator[tuple[str, str]]:
    def of_all(count: int) -> str:
        return f"{count} maps ({count / rows:.2%})" if rows else "0 maps"

    yield "values", f"{found.minimum:.6g} to {found.maximum:.6g}, mean {found.mean:.6g}"
    yield "zeros", f"{found.zero_pixels:.2%} of all pixels; {of_all(found.zero_maps)} zero everywhere"
    yield "constant", of_all(found.constant_maps)
    yield "invalid", of_all(found.invalid_maps)
    yield "ties", f"{found.ties.share:.2%} of a map's pixels share their value ({dtype}, {found.ties.maps} maps)"
    cuts = ", ".join(f"{share:.2%} at {fraction:.0%}" for fraction, share in found.ties.at_cut.items())
    yield "", f"tied with both sides of the cut: {cuts}"
    if found.correct is None:
        yield "classifier", "its outputs and the labels are of different sets of classes, so it has no accuracy here"
    else:
        yield "classifier", f"{found.correct:.2%} of the images right"


def _flat(value: Any, where: str = "") -> Iterator[str]:
    """Lines "a.b: value" of a nested origin."""
    if isinstance(value, Mapping) and value:
        for key in sorted(value):
            yield from _flat(value[key], f"{where}.{key}" if where else str(key))
    else:
        yield f"{where}: {value}"
