"""Reading row files: whole batches gathered from memory maps, each byte checked before it is first used."""

import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import ArrayLike, NDArray

from heatproof import artefacts
from heatproof.errors import InputError, MapError
from heatproof.store import layout
from heatproof.store.hdf5 import checksum, row_checksums
from heatproof.store.layout import Extent, Layout, Stamp, Stored

logger = logging.getLogger(__name__)

CHUNK_CACHE_BYTES = 256 * 2**20
"""Most memory that HDF5 may keep of a compressed dataset, where a file cannot be mapped."""


class RowReader:
    """A row file, opened for reading.

    The file is opened once, its layout kept, and closed again; rows are then gathered from memory maps. So a reader
    can be pickled and used after fork and spawn, and holds no lock. A file in shards and the same file in one piece
    read alike. What cannot be mapped (compressed, foreign byte order) is read through h5py, and the log says so once.

    Args:
        path: the file.
        kind: its `format`; None takes any of ours.
        version: newest `format_version` that the caller reads.

    Attributes:
        path: the file.
        rows: rows of the split; `rows_done` of them are written, all where `complete`.
        origin: what the file was computed from.
        attributes: all root attributes.

    Raises:
        MapError: naming the file: missing, truncated, damaged, not ours, newer than this code, or without a shard.
    """

    _checked_by_row: tuple[str, ...] = ()
    """Columns with a checksum for each row: too large to be read as a whole before the first row can be trusted."""

    def __init__(self, path: Path | str, kind: str | None = None, version: int = 1) -> None:
        self._layout = layout.read_layout(Path(path), kind, version)
        self._start()
        if self._layout.form == "chunked":
            logger.info("%s is not contiguous; it is read through HDF5, which is much slower", self.path)

    def _start(self) -> None:
        attributes = self._layout.attributes
        self.path = self._layout.path
        self.rows = self._layout.rows
        self.rows_done = int(attributes.get("rows_done", self.rows))
        self.complete = bool(attributes.get("complete", True))
        try:
            self.origin: dict[str, Any] = json.loads(attributes.get("origin", "{}"))
        except (TypeError, json.JSONDecodeError) as error:
            raise MapError(f"{self.path}: attribute 'origin' is not JSON; delete the file and make it again") from error
        self.attributes = dict(attributes)
        self._maps: dict[tuple[Path, str], NDArray[Any]] = {}
        self._files: dict[tuple[int, Path], Any] = {}
        self._checked: set[tuple[Path, str]] = set()

    def __getstate__(self) -> Layout:
        return self._layout

    def __setstate__(self, state: Layout) -> None:
        self._layout = state
        self._start()

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the columns."""
        return tuple(self._layout.columns)

    @property
    def form(self) -> str:
        """How the values lie: "contiguous" (one file), "shards", or "chunked" (read through HDF5)."""
        return self._layout.form

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a column, the rows first."""
        return (self.rows, *self._stored(name).shape)

    def dtype(self, name: str) -> np.dtype[Any]:
        """Type of a column, in the machine's byte order."""
        return self._stored(name).dtype

    def nbytes(self, name: str) -> int:
        """Memory that the whole column takes, to decide whether it can be kept there."""
        return int(np.prod(self.shape(name), dtype=np.int64)) * self.dtype(name).itemsize

    def extents(self, name: str) -> tuple[Extent, ...]:
        """Where the values of a column lie: file, dataset, rows, position."""
        return self._stored(name).extents

    @property
    def written(self) -> NDArray[np.bool_]:
        """(N,), True where a row is written."""
        done = np.zeros(self.rows, dtype=np.bool_)
        for extent in next(iter(self._layout.columns.values())).extents:
            done[extent.start : extent.stop] = True
        return done

    def read(self, name: str, rows: ArrayLike | None = None) -> NDArray[Any]:
        """Values of a column.

        Args:
            name: the column.
            rows: (B,) rows of the file, in any order, also repeated; None for all.

        Returns:
            (B, ...) a new array.

        Raises:
            MapError: a row is not written yet, or damaged (checksum), named with its file.
            InputError: a row that the file does not have.
        """
        return self._read(name, self._rows(rows))

    def _read(self, name: str, rows: NDArray[np.int64]) -> NDArray[Any]:
        stored = self._stored(name)
        gathered = np.empty((len(rows), *stored.shape), dtype=stored.dtype)
        try:
            for number, places in self._groups(stored, rows):
                self._gather(stored, stored.extents[number], rows, gathered, places)
        except layout.BROKEN as error:
            raise MapError(
                f"{self.path}: dataset {name!r} cannot be read: {layout.first_line(error)}; get or make the file again"
            ) from error
        return gathered

    def _groups(self, stored: Stored, rows: NDArray[np.int64]) -> Iterator[tuple[int, NDArray[np.intp] | None]]:
        """For each extent in use: its number and the places of its rows, in order of the file; None where it has all."""
        if not len(rows):
            return
        if stored.is_whole(self.rows):
            yield 0, None
            return
        numbers = stored.numbers(rows)
        if (numbers < 0).any():
            row = rows[numbers < 0][0]
            raise MapError(f"{self.path}: row {row} is not written yet; run the same task again to go on")
        if (numbers == numbers[0]).all():
            yield int(numbers[0]), None
            return
        order = np.argsort(rows, kind="stable")
        cuts = np.flatnonzero(np.diff(numbers[order])) + 1
        for places in np.split(order, cuts):
            yield int(numbers[places[0]]), places

    def require_complete(self) -> None:
        """Raises MapError where rows are still missing."""
        if not self.complete:
            raise MapError(
                f"{self.path}: {self.rows_done} of {self.rows} rows written; run the same task again to go on"
            )

    def expect(self, origin: artefacts.Origin) -> None:
        """Raises MapError where a key of `origin` has another value in the file's origin, saying which and how."""
        differences = artefacts.differences({key: self.origin.get(key) for key in origin}, origin)
        if differences:
            raise MapError(
                f"{self.path}: made from something else: {'; '.join(differences)}; run the task that makes it again"
            )

    def damage(self) -> Iterator[str]:
        """One line for each damaged column of those that are checked as a whole."""
        for name, stored in self._layout.columns.items():
            if name not in self._checked_by_row:
                try:
                    self.read(name, [extent.start for extent in stored.extents])
                except MapError as error:
                    yield str(error)

    def _stored(self, name: str) -> Stored:
        if name not in self._layout.columns:
            raise MapError(f"{self.path}: has no dataset {name!r}; it has {', '.join(self.names)}")
        return self._layout.columns[name]

    def _rows(self, rows: ArrayLike | None) -> NDArray[np.int64]:
        if rows is None:
            return np.arange(self.rows)
        wanted = np.asarray(rows)
        if wanted.ndim != 1 or (wanted.size and wanted.dtype.kind not in "iu"):
            raise InputError(f"rows: shape {wanted.shape}, {wanted.dtype}; expected (B,) integers")
        if wanted.size and (wanted.min() < 0 or wanted.max() >= self.rows):
            outside = wanted[(wanted < 0) | (wanted >= self.rows)]
            raise InputError(f"rows: {outside[0]} is not a row of {self.path}, which has {self.rows}")
        numbers: NDArray[np.int64] = wanted.astype(np.int64, copy=False)
        return numbers

    def _gather(
        self,
        stored: Stored,
        extent: Extent,
        rows: NDArray[np.int64],
        out: NDArray[Any],
        places: NDArray[np.intp] | None,
    ) -> None:
        """Puts rows[places], which the extent holds, to out[places]; None stands for all places."""
        source = self._source(stored, extent)
        self._check(extent, source)
        inside = (rows if places is None else rows[places]) - extent.start
        if isinstance(source, h5py.Dataset):
            out[... if places is None else places] = _through_hdf5(source, inside)
        elif places is None:
            np.take(source, inside, axis=0, out=out, mode="clip")  # "raise" would copy once more
        else:
            out[places] = source[inside]

    def _source(self, stored: Stored, extent: Extent) -> Any:
        """The rows of an extent's dataset: an array over the mapped file, or an open HDF5 dataset."""
        if extent.offset is None:
            return self._file(extent)[extent.dataset]
        key = (extent.path, extent.dataset)
        if key not in self._maps:
            self._need_unchanged(extent)
            shape = (extent.stop - extent.start, *stored.shape)
            # The plain array over the map: np.memmap's own indexing costs a few microseconds each time.
            self._maps[key] = np.asarray(np.memmap(extent.path, stored.dtype, "r", extent.offset, shape))
        return self._maps[key]

    def _need_unchanged(self, extent: Extent) -> None:
        if not extent.path.exists() or Stamp.of(extent.path) != extent.stamp:
            raise MapError(f"{extent.path}: changed while it was being read; start the task again")

    def _file(self, extent: Extent) -> Any:
        key = (os.getpid(), extent.path)  # an HDF5 handle must not be used after a fork
        if key not in self._files:
            self._need_unchanged(extent)
            self._files[key] = layout.open_hdf5(extent.path, rdcc_nbytes=CHUNK_CACHE_BYTES)
        return self._files[key]

    def _check(self, extent: Extent, source: Any) -> None:
        """Compares the checksum over all bytes of an extent, the first time that one of them is wanted."""
        key = (extent.path, extent.dataset)
        if extent.checksum is None or extent.dataset in self._checked_by_row or key in self._checked:
            return
        if checksum(source[...]) != extent.checksum:
            raise layout.damaged(
                self.path,
                f"dataset {extent.dataset!r}, rows {extent.start} to {extent.stop - 1}: damaged (checksum)",
                f"delete {extent.path} and run the same task again",
            )
        self._checked.add(key)


class CheckedRows:
    """Remembers which rows of a column have been compared with their checksums, and compares the others."""

    def __init__(self, expected: NDArray[np.uint32]) -> None:
        self._expected = expected
        self._fresh = np.ones(len(expected), dtype=np.bool_)
        self._is_done = False

    def damaged(self, rows: NDArray[np.int64], values: NDArray[Any]) -> NDArray[np.int64]:
        """Those of `rows` (B,) whose `values` (B, ...) differ from what was written; one found right is not checked again."""
        if self._is_done:
            return rows[:0]
        fresh = self._fresh[rows]
        if not fresh.any():
            return rows[:0]
        found = rows if fresh.all() else rows[fresh]
        right = row_checksums(values if fresh.all() else values[fresh]) == self._expected[found]
        self._fresh[found[right]] = False
        self._is_done = not self._fresh.any()
        damaged: NDArray[np.int64] = found[~right]
        return damaged


def _through_hdf5(dataset: Any, rows: NDArray[np.int64]) -> NDArray[Any]:
    """(B, ...) rows of an HDF5 dataset, read chunk by chunk: HDF5's own fancy indexing is a hundred times slower."""
    step = dataset.chunks[0] if dataset.chunks else 256
    values = np.empty((len(rows), *dataset.shape[1:]), dtype=dataset.dtype.newbyteorder("="))
    chunks = rows // step
    for chunk in np.unique(chunks):
        places = np.flatnonzero(chunks == chunk)
        values[places] = dataset[chunk * step : (chunk + 1) * step][rows[places] - chunk * step]
    return values
