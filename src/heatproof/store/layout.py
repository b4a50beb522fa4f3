"""Where the values of a row file lie: read once from its HDF5 metadata, checked against the disk, kept as numbers.

A layout holds no open file, so it can be pickled and survives fork and spawn.
"""

import contextlib
import fcntl
import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from heatproof.errors import MapError
from heatproof.store import seals
from heatproof.store.columns import described, identity, shard_attributes
from heatproof.store.seals import Seal

TRIES = 10
"""How often a file is looked at that is being replaced all the time."""

BROKEN = (OSError, LookupError, RuntimeError, ValueError, TypeError, OverflowError)
"""What h5py raises for damaged metadata; the kind depends on which byte is wrong."""


class InUseError(MapError):
    """Another program has the file open for writing, or has not closed it: it may be whole when that is done."""


@dataclass(frozen=True)
class Stamp:
    """What tells that a file is still the one whose layout was read."""

    inode: int
    size: int
    modified_ns: int

    @classmethod
    def of(cls, path: Path) -> "Stamp":
        """The stamp of the file at `path` now."""
        status = path.stat()
        return cls(status.st_ino, status.st_size, status.st_mtime_ns)


@dataclass(frozen=True)
class Extent:
    """Rows start, ..., stop - 1 of a column: where their bytes lie.

    Args:
        start, stop: rows of the split.
        path: file that holds them.
        dataset: name of the dataset in that file; its first row is row `start`.
        offset: position of the first byte in that file; None where only HDF5 can read it (chunked, foreign order).
        checksum: CRC-32 of all these bytes; None where there is none.
        stamp: of `path` when this was read.
    """

    start: int
    stop: int
    path: Path
    dataset: str
    offset: int | None
    checksum: int | None
    stamp: Stamp


@dataclass(frozen=True)
class Stored:
    """A column as it lies on disk: native type, shape of a row, extents in order of rows."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    extents: tuple[Extent, ...]

    @property
    def is_mapped(self) -> bool:
        """Whether all rows can be read through a memory map."""
        return all(extent.offset is not None for extent in self.extents)

    def is_whole(self, rows: int) -> bool:
        """Whether all `rows` rows lie in one extent."""
        return len(self.extents) == 1 and (self.extents[0].start, self.extents[0].stop) == (0, rows)

    def numbers(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """(B,), the extent that holds each row; -1 where none does."""
        starts, stops = self._bounds
        found = np.searchsorted(stops, rows, side="right")
        holds = (found < len(stops)) & (starts[np.minimum(found, len(stops) - 1)] <= rows)
        return np.where(holds, found, -1)

    @functools.cached_property
    def _bounds(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        return np.array([e.start for e in self.extents]), np.array([e.stop for e in self.extents])


@dataclass(frozen=True)
class Layout:
    """Everything that is known of a file without reading its values."""

    path: Path
    attributes: Mapping[str, Any]
    rows: int
    columns: Mapping[str, Stored] = field(repr=False)
    form: str = "contiguous"  # or "shards", or "chunked": an archive or a foreign file


def read_attributes(path: Path, kind: str | None = None, version: int = 1) -> dict[str, Any]:
    """Root attributes of a file, as plain Python values, checked.

    Args:
        path: any file.
        kind: the wanted `format`; None takes any of ours.
        version: newest `format_version` that the caller reads.

    Raises:
        MapError: no such file, not HDF5, truncated, damaged, another format, or a newer version; `InUseError` where
            another program is writing it.
    """
    with _opened(path) as (file, _):
        return _attributes(file, path, kind, version)


def read_layout(path: Path, kind: str | None = None, version: int = 1) -> Layout:
    """The layout of a file; raises MapError as `read_attributes`, and where a shard is missing or damaged."""
    asked = (path, kind, version)
    for tries_left in reversed(range(TRIES)):
        before = _stamp(path)
        if asked in _KNOWN and _KNOWN[asked][0] == before:
            return _KNOWN[asked][1]
        try:
            found = _read_layout(path, kind, version)
        except MapError:
            if _stamp(path) == before or not tries_left:
                raise
            continue
        if _stamp(path) == before:
            break
        # A writer put a newer view or the whole file there, and perhaps removed the shards, while we looked at them.
    if before is not None and found.form == "contiguous":
        _KNOWN[asked] = (before, found)
    return found


_KNOWN: dict[tuple[Path, str | None, int], tuple[Stamp, Layout]] = {}
"""Layouts of whole files by their stamps: a plan asks many times about one file. What a view shows may go while the view stays."""


def _stamp(path: Path) -> Stamp | None:
    try:
        return Stamp.of(path)
    except FileNotFoundError:
        return None


def _read_layout(path: Path, kind: str | None, version: int) -> Layout:
    with _opened(path) as (file, seal):
        attributes = _attributes(file, path, kind, version)
        datasets = {name: file[name] for name in file if isinstance(file[name], h5py.Dataset)}
        lengths = {dataset.shape[0] for dataset in datasets.values()}
        if len(lengths) != 1:
            raise damaged(path, "its datasets have different numbers of rows")
        columns = [described(name, dataset.dtype, dataset.shape[1:]) for name, dataset in datasets.items()]
        shards = _Shards(path, attributes, columns) if seal is not None else None
        stored = {name: _stored(dataset, path, seal, shards) for name, dataset in datasets.items()}
    form = (
        "shards"
        if any(len(column.extents) != 1 or column.extents[0].path != path for column in stored.values())
        else "contiguous"
    )
    if not all(column.is_mapped for column in stored.values()):
        form = "chunked"
    return Layout(path, attributes, lengths.pop(), stored, form)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, Seal | None]]:
    """An HDF5 file, open for reading, and its seal; all that can be wrong becomes a MapError."""
    if not path.exists():
        raise MapError(f"{path}: no such file; run the task that makes it")
    try:
        seal = seals.compared(path) if path.is_file() else None
        with open_hdf5(path) as file:
            yield file, seal
    except seals.BrokenSealError as error:
        raise damaged(path, str(error)) from error
    except BROKEN as error:
        reason = "truncated" if "truncated" in str(error) else f"not readable as HDF5: {first_line(error)}"
        if "already open for write" in str(error) and not _is_written(path):
            raise InUseError(
                f"{path}: the program that writes it has not closed it; close it there, and where that program is gone, "
                "h5clear -s FILE opens it again"
            ) from error
        if path.is_file() and not h5py.is_hdf5(path):
            reason = "not an HDF5 file"
        raise damaged(path, reason) from error


def damaged(path: Path, reason: str, advice: str | None = None) -> MapError:
    """The error for a file that cannot be read, with the advice to make it again, unless somebody is just writing it."""
    if _is_written(path):
        return InUseError(f"{path}: another program has it open for writing; close it there and run the command again")
    return MapError(f"{path}: {reason}; {advice or _again(path)}")


def _is_written(path: Path) -> bool:
    """Whether a program holds the lock that HDF5 takes on a file that it writes."""
    with contextlib.suppress(OSError), path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def open_hdf5(path: Path, **options: Any) -> Any:
    """Opens an HDF5 file for reading, without HDF5's own locking.

    On network file systems that can fail, and a file of ours never changes under its name. Only where this very process
    has the file open with it, HDF5 insists on it.
    """
    try:
        return h5py.File(path, "r", locking=False, **options)
    except OSError as error:
        if "locking flag" not in str(error):
            raise
        return h5py.File(path, "r", **options)


def first_line(error: BaseException) -> str:
    """The first line of an error's text, or its type where it has none."""
    return str(error).strip('"').splitlines()[0] if str(error) else type(error).__name__


def _again(path: Path) -> str:
    if path.suffix != ".h5":  # not of our making: nobody shall delete it on our word
        return "name a file that a stage wrote, such as extract_cams/<method>/test.h5"
    return f"delete {path.name} and run the task that makes it again"


def _attributes(file: Any, path: Path, kind: str | None, version: int) -> dict[str, Any]:
    attributes = {name: _plain(value) for name, value in file.attrs.items()}
    found = attributes.get("format")
    if not isinstance(found, str) or not (found == kind if kind else found.startswith("heatproof/")):
        said = "it has no attribute 'format'" if found is None else f"its format is {found!r}"
        raise MapError(f"{path}: not a file of format {kind or 'heatproof/...'!r}: {said}")
    if not isinstance(attributes.get("format_version"), int) or attributes["format_version"] > version:
        raise MapError(
            f"{path}: format_version {attributes.get('format_version')} is newer than {version}, the newest known here; "
            "update heatproof"
        )
    return attributes


def _plain(value: Any) -> Any:
    """An attribute's value as h5py gives it, as JSON would hold it."""
    if isinstance(value, bytes):
        return value.decode()
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value


def _stored(dataset: Any, path: Path, seal: Seal | None, shards: "_Shards | None") -> Stored:
    native, shape = dataset.dtype.newbyteorder("="), dataset.shape[1:]
    name = dataset.name.lstrip("/")
    if dataset.is_virtual and shards is not None:
        return Stored(native, shape, shards.extents(dataset, name))
    if dataset.is_virtual:
        for source in dataset.virtual_sources():
            _need_source(path, source.file_name)
    stamp = Stamp.of(path)
    is_plain = dataset.chunks is None and dataset.dtype == native and not dataset.external and not dataset.is_virtual
    offset = dataset.id.get_offset() if is_plain else None
    if offset is not None and offset + dataset.nbytes > stamp.size:
        raise damaged(path, f"dataset {name!r} reaches beyond the end of the file")
    sealed = seal.columns.get(name) if seal is not None else None
    checksum = None if sealed is None else sealed.checksum
    return Stored(native, shape, (Extent(0, len(dataset), path, name, offset, checksum, stamp),))


def _need_source(path: Path, name: str) -> None:
    """A missing source, of which HDF5 says nothing, is an error."""
    if not (path.parent / name).exists():
        raise MapError(f"{path}: its shard {name} is missing; put it back or run the same task again")


class _Shards:
    """The shards of one view, found by their seals: opening thousands of them as HDF5 would take a minute."""

    def __init__(self, path: Path, attributes: Mapping[str, Any], columns: Sequence[list[object]]) -> None:
        self._path = path
        self._attributes = attributes
        self._columns = columns
        self._seals: dict[str, tuple[Seal, Stamp]] = {}

    def extents(self, dataset: Any, name: str) -> tuple[Extent, ...]:
        """Where the rows of one virtual dataset lie."""
        row_bytes = dataset.dtype.itemsize * int(np.prod(dataset.shape[1:], dtype=np.int64))
        extents = []
        for source in dataset.virtual_sources():
            low, high = source.vspace.get_select_bounds()
            start, stop = int(low[0]), int(high[0]) + 1
            seal, stamp = self._sealed(source.file_name, start, stop)
            sealed = seal.columns.get(name)
            if sealed is None or sealed.size != (stop - start) * row_bytes:
                raise self._foreign(source.file_name)
            shard = self._path.parent / source.file_name
            extents.append(Extent(start, stop, shard, name, sealed.offset, sealed.checksum, stamp))
        return tuple(sorted(extents, key=lambda extent: extent.start))

    def _sealed(self, name: str, start: int, stop: int) -> tuple[Seal, Stamp]:
        """The seal of a shard that holds rows start, ..., stop - 1 of this very file."""
        if name not in self._seals:
            _need_source(self._path, name)
            shard = self._path.parent / name
            stamp = Stamp.of(shard)
            try:
                seal = seals.compared(shard)
            except seals.BrokenSealError as error:
                raise damaged(shard, str(error)) from error
            if seal is None or seal.identity != identity(
                shard_attributes(self._attributes, self._columns, start, stop)
            ):
                raise self._foreign(name)
            self._seals[name] = seal, stamp
        return self._seals[name]

    def _foreign(self, name: str) -> MapError:
        return MapError(
            f"{self._path}: its shard {name} is truncated, edited, or of another file; {_again(self._path.parent / name)}"
        )
