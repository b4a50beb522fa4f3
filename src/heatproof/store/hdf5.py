"""Writing HDF5 files whose datasets lie in one piece each, or whose datasets are views of such files.

HDF5 itself writes only the few kilobytes that describe the datasets; the values are written with plain file calls at
the places that it names. So a full disk is an ordinary OSError, and equal data give equal bytes. The files use the
format of HDF5 1.8 (its metadata have checksums, every reader of the last fifteen years knows it); views need 1.10.
"""

import contextlib
import errno
import os
import shutil
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from heatproof import artefacts
from heatproof.store import seals
from heatproof.store.columns import Block, Column
from heatproof.store.seals import Sealed

Values = Callable[[Column], Iterable[NDArray[np.generic]]]
"""Gives the rows of a column, in order, in pieces of any length."""

VERSIONS = ("v108", "v110")
ALIGNMENT = 64  # bytes: a dataset begins at a cache line, so that a mapped array is aligned for any type


def write_contiguous(
    path: Path,
    columns: Sequence[Column],
    rows: int,
    attributes: Mapping[str, Any],
    values: Values,
    identity: str = "",
) -> None:
    """Writes a whole, sealed file: each column one contiguous dataset.

    Raises:
        OSError: where the disk is full or the folder cannot be written; nothing is left behind then.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _need_space(path.parent, rows * sum(column.row_bytes for column in columns))
    with artefacts.whole_file(path) as temporary:
        offsets = _allocate(temporary, columns, rows, attributes)
        sealed = {}
        with temporary.open("r+b") as file:
            for column in columns:
                file.seek(offsets[column.name])
                crc = 0
                for piece in values(column):
                    data = _little_endian(piece.astype(column.stored_dtype, copy=False))
                    crc = zlib.crc32(data, crc)
                    file.write(data)
                sealed[column.name] = Sealed(offsets[column.name], rows * column.row_bytes, crc)
                assert file.tell() == offsets[column.name] + rows * column.row_bytes
        seals.append(temporary, sealed, identity)


def write_views(
    path: Path,
    columns: Sequence[Column],
    rows: int,
    attributes: Mapping[str, Any],
    shards: Sequence[tuple[Block, Path]],
) -> None:
    """Writes a whole, sealed, small file: each column a virtual dataset over the columns of the same name in the shards.

    Rows that no shard holds read as the column's fill value. The shards are named relative to the file's folder.
    """
    with artefacts.whole_file(path) as temporary:
        with _recorded(temporary) as file:
            for column in columns:
                selections = [view_of_rows(block, shard, column) for block, shard in shards]
                create_view(file, column, rows, selections, path.parent)
            set_attributes(file, attributes)
        seals.append(temporary, {})


Selection = tuple[tuple[int, ...], tuple[int, ...], Path, str, tuple[int, ...]]
"""Where a view shows a dataset: start, count, file, name of the dataset, its shape."""


def view_of_rows(block: Block, shard: Path, column: Column) -> Selection:
    """The view that shows a shard's rows at their place in the split."""
    count = (block.stop - block.start, *column.shape)
    return (block.start, *[0] * len(column.shape)), count, shard, column.name, count


def create_view(file: Any, column: Column, rows: int, selections: Sequence[Selection], folder: Path) -> None:
    """Creates one virtual dataset in an open file that will lie in `folder`."""
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_obj_track_times(False)
    properties.set_fill_value(np.asarray(column.fill, dtype=column.stored_dtype))
    for start, count, source, name, shape in selections:
        place = h5py.h5s.create_simple((rows, *column.shape))
        place.select_hyperslab(start, count)
        relative = os.path.relpath(source.absolute(), folder.absolute())
        properties.set_virtual(place, os.fsencode(relative), name.encode(), h5py.h5s.create_simple(shape))
    _create(file, column, rows, properties)


def set_attributes(file: Any, attributes: Mapping[str, Any]) -> None:
    """Sets root attributes, in the order given; integers as int64."""
    for name, value in attributes.items():
        is_integer = isinstance(value, int) and not isinstance(value, bool)
        file.attrs[name] = np.int64(value) if is_integer else value


def checksum(array: NDArray[np.generic], start: int = 0) -> int:
    """CRC-32 of an array's bytes in little-endian order, going on from `start`."""
    return zlib.crc32(_little_endian(array), start)


def row_checksums(array: NDArray[np.generic]) -> NDArray[np.uint32]:
    """(N,), the CRC-32 of each row's bytes in little-endian order.

    >>> row_checksums(np.array([[1, 2], [0, 0]], dtype=np.uint16))
    array([2882460411,  558161692], dtype=uint32)
    """
    data = _little_endian(array)
    step = len(data) // len(array) if len(array) else 1
    return np.array([zlib.crc32(data[start : start + step]) for start in range(0, len(data), step)], dtype=np.uint32)


def _little_endian(array: NDArray[np.generic]) -> memoryview:
    little = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
    return little.reshape(-1).view(np.uint8).data


def _allocate(path: Path, columns: Sequence[Column], rows: int, attributes: Mapping[str, Any]) -> dict[str, int]:
    """Makes the file, with HDF5's tables and room for all values; returns where each column's values begin."""
    offsets = {}
    with _recorded(path) as file:
        for column in columns:
            properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
            properties.set_layout(h5py.h5d.CONTIGUOUS)
            properties.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
            properties.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
            properties.set_obj_track_times(False)
            offsets[column.name] = _create(file, column, rows, properties).get_offset()
        set_attributes(file, attributes)
    return offsets


@contextlib.contextmanager
def _recorded(path: Path) -> Iterator[Any]:
    """An HDF5 file to fill with tables; only when HDF5 is done with it are they written to `path`.

    HDF5 does not recover from a write that fails, not even by closing the file; so it never sees the disk.
    """
    tables = _Recording()
    with h5py.File(tables, "w", libver=VERSIONS, alignment_threshold=1, alignment_interval=ALIGNMENT) as file:
        yield file
    with path.open("wb") as disk:
        disk.truncate(tables.size)
        for offset, data in tables.pieces:
            disk.seek(offset)
            disk.write(data)


class _Recording:
    """A file, as HDF5 wants it, that remembers what is written to it; the rooms for values stay unwritten."""

    def __init__(self) -> None:
        self.pieces: list[tuple[int, bytes]] = []
        self.size = 0
        self._position = 0

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._position = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self.size}[whence]
        return self._position

    def tell(self) -> int:
        return self._position

    def write(self, data: Any) -> int:
        piece = bytes(data)
        self.pieces.append((self._position, piece))
        self._position += len(piece)
        self.size = max(self.size, self._position)
        return len(piece)

    def read(self, size: int) -> bytes:
        """The next bytes; h5py asks for it only to tell a file from a name."""
        data = bytearray(size)
        self.readinto(data)
        return bytes(data)

    def readinto(self, buffer: Any) -> int:
        """What was written last at each place of the next bytes; zero where nothing was."""
        begin, view = self._position, memoryview(buffer).cast("B")
        view[:] = bytes(len(view))
        for offset, data in self.pieces:
            low, high = max(begin, offset), min(begin + len(view), offset + len(data))
            if low < high:
                view[low - begin : high - begin] = data[low - offset : high - offset]
        self._position += len(view)
        return len(view)

    def truncate(self, size: int | None = None) -> int:
        self.size = self._position if size is None else size
        return self.size

    def flush(self) -> None:
        """Everything is in memory anyway."""


def _create(file: Any, column: Column, rows: int, properties: Any) -> Any:
    kind = h5py.h5t.py_create(column.stored_dtype, logical=True)
    space = h5py.h5s.create_simple((rows, *column.shape))
    return h5py.h5d.create(file.id, column.name.encode(), kind, space, properties)


def _need_space(folder: Path, needed: int) -> None:
    """Fails before the first byte where the disk cannot hold the values."""
    if shutil.disk_usage(folder).free < needed:
        raise OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)}: {needed / 1e6:,.1f} MB are needed", str(folder))
