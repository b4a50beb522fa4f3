"""What a row file holds: N rows of named columns, made in blocks of consecutive rows."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from heatproof import artefacts
from heatproof.errors import InputError

SHARD_BYTES = 8 * 2**20
"""A shard holds at least this much of `map` as float16, and less than four times as much."""


@dataclass(frozen=True)
class Column:
    """One dataset of a row file: a value of fixed shape for each row.

    Args:
        name: name of the dataset.
        dtype: NumPy name of its type, as "float16"; stored little-endian, whatever the machine.
        shape: shape of one row's value; () for a number.
        fill: what plain HDF5 readers see in rows that are not written yet.

    >>> Column("rank", "uint16", (32, 32), fill=65535).row_bytes
    2048
    """

    name: str
    dtype: str
    shape: tuple[int, ...] = ()
    fill: float = 0

    @property
    def stored_dtype(self) -> np.dtype[np.generic]:
        """The type on disk."""
        return np.dtype(self.dtype).newbyteorder("<")

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return int(self.stored_dtype.itemsize * np.prod(self.shape, dtype=np.int64))

    def checked(self, array: object, rows: int) -> NDArray[np.generic]:
        """`array` as it is stored; InputError where its shape or kind does not fit."""
        values = np.asarray(array)
        if values.shape != (rows, *self.shape):
            raise InputError(f"{self.name}: shape {values.shape}; expected {(rows, *self.shape)}")
        if not np.can_cast(values.dtype, self.stored_dtype, "same_kind"):
            raise InputError(f"{self.name}: {values.dtype} values; expected {self.dtype}")
        return np.ascontiguousarray(values, dtype=self.stored_dtype)

    def described(self) -> list[object]:
        """Name, type and shape, for comparing what was written with what is wanted."""
        return described(self.name, np.dtype(self.dtype), self.shape)


class Block(NamedTuple):
    """Consecutive rows start, ..., stop - 1: what one shard holds."""

    number: int
    start: int
    stop: int


def blocks(rows: int, rows_per_shard: int) -> list[Block]:
    """All blocks of a file of `rows` rows; only the last may be shorter.

    >>> blocks(10, 4)
    [Block(number=0, start=0, stop=4), Block(number=1, start=4, stop=8), Block(number=2, start=8, stop=10)]
    """
    starts = range(0, rows, rows_per_shard)
    return [Block(number, start, min(start + rows_per_shard, rows)) for number, start in enumerate(starts)]


def described(name: str, dtype: np.dtype[Any], shape: Sequence[int]) -> list[object]:
    """A column's name, type and shape of a row, as JSON."""
    return [name, dtype.name, list(shape)]


def shard_attributes(file: Mapping[str, Any], columns: Iterable[list[object]], start: int, stop: int) -> dict[str, Any]:
    """The root attributes of a shard: what makes it these rows of this file, and of no other.

    Args:
        file: root attributes of the file: `format`, `format_version`, `origin`.
        columns: the described columns, in any order.
        start: first row.
        stop: row behind the last.
    """
    return {
        "format": "heatproof/shard",
        "format_version": 1,
        "origin": file["origin"],
        "of": f"{file['format']} {file['format_version']}",
        "columns": artefacts.canonical(sorted(columns, key=str)),
        "start": start,
        "stop": stop,
    }


def identity(attributes: Mapping[str, Any]) -> str:
    """A hash of a shard's attributes: it can be compared without opening the shard as HDF5, which takes far longer."""
    return hashlib.sha256(artefacts.canonical(attributes).encode()).hexdigest()[:32]


def rows_per_shard(size: Sequence[int]) -> int:
    """Rows in a shard of maps of `size` (H, W): the smallest power of four that holds 8 MiB of float16 values.

    It depends on the size of the images only, never on dtype, batch size or number of writers, so that any writer
    agrees with any other about where a shard begins.

    >>> rows_per_shard((32, 32)), rows_per_shard((224, 224))
    (4096, 256)
    """
    rows = 1
    while rows * 2 * int(np.prod(size, dtype=np.int64)) < SHARD_BYTES:
        rows *= 4
    return rows
