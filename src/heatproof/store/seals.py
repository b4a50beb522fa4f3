"""A seal after the last byte that HDF5 knows of: checksums of everything that HDF5 itself has none for.

HDF5 ignores what stands behind its end of file, and cuts it off when somebody opens the file for writing; such a file
is read like one made elsewhere. Without the seal, a wrong bit in HDF5's own tables can crash the process, and one in a
label goes unnoticed. So the seal is compared before HDF5 sees the file.

    values and tables of HDF5 | JSON text | its length and CRC-32, each 4 bytes, little-endian | MAGIC
"""

import json
import os
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from heatproof import artefacts

MAGIC = b"HEATSEAL"
DAMAGED = "damaged (checksum of its tables)"
_TAIL = struct.Struct("<II8s")


class BrokenSealError(Exception):
    """The file's tables, or the seal itself, are not as they were written; the text says which."""


@dataclass(frozen=True)
class Sealed:
    """The values of one column: where they lie (None: only HDF5 knows), how many bytes, their CRC-32."""

    offset: int | None
    size: int
    checksum: int


@dataclass(frozen=True)
class Seal:
    """What stands in a seal.

    Args:
        identity: what a shard belongs to; empty for other files.
        columns: the values; everything else before the seal is HDF5's tables.
    """

    identity: str
    columns: Mapping[str, Sealed]


def append(path: Path, columns: Mapping[str, Sealed], identity: str = "") -> None:
    """Seals a file that HDF5 has closed."""
    with path.open("r+b") as file:  # not "ab": where another process removed the file, it must not come back
        end = file.seek(0, os.SEEK_END)
        content = {
            "columns": {name: [sealed.offset, sealed.size, sealed.checksum] for name, sealed in columns.items()},
            "identity": identity,
            "tables": _tables(file, columns, end),
        }
        text = artefacts.canonical(content).encode()
        file.seek(end)
        file.write(text + _TAIL.pack(len(text), zlib.crc32(text), MAGIC))


def compared(path: Path) -> Seal | None:
    """The seal of a file, after comparing the tables with it; None where there is none.

    Raises:
        BrokenSealError: the tables or the seal are damaged, or the file was cut within the seal.
    """
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - _TAIL.size))
        tail = file.read(_TAIL.size)
        if not tail.endswith(MAGIC) or len(tail) < _TAIL.size:
            if _hdf5_end(file) < size:
                raise BrokenSealError("truncated or damaged at its end")
            return None
        length, crc, _ = _TAIL.unpack(tail)
        end = size - _TAIL.size - length
        file.seek(max(0, end))
        text = file.read(length)
        if end < 0 or zlib.crc32(text) != crc:
            raise BrokenSealError(DAMAGED)
        found = json.loads(text)
        seal = Seal(found["identity"], {name: Sealed(*values) for name, values in found["columns"].items()})
        if _tables(file, seal.columns, end) != found["tables"]:
            raise BrokenSealError(DAMAGED)
    return seal


def _tables(file: BinaryIO, columns: Mapping[str, Sealed], end: int) -> int | None:
    """CRC-32 of all bytes before `end` that are not values; None where nobody knows which these are."""
    values = [(sealed.offset, sealed.size) for sealed in columns.values() if sealed.offset is not None]
    if len(values) < len(columns):
        return None
    crc = position = 0
    for offset, size in [*sorted(values), (end, 0)]:
        file.seek(position)
        crc = zlib.crc32(file.read(offset - position), crc)
        position = offset + size
    return crc


def _hdf5_end(file: BinaryIO) -> float:
    """Where HDF5's part of a file of ours ends, from its superblock; infinity for files of another making."""
    file.seek(0)
    head = file.read(36)
    is_ours = len(head) == 36 and head.startswith(b"\x89HDF\r\n\x1a\n\x02\x08\x08")  # version 2, 8-byte addresses
    return int.from_bytes(head[28:], "little") if is_ours else float("inf")
