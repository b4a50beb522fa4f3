"""Files of infilled images: what an infiller put into the holes that one map's order cuts, for each image of a split.

Only the removed pixels are kept, as bytes, in the order in which they stand in the image (row by row, channel by
channel): as many for each image, and never more than the whole image. What is kept of an image comes from the data set.
"""

import hashlib
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from heatproof import artefacts, checks
from heatproof.errors import MapError
from heatproof.store import layout
from heatproof.store.columns import Block, Column
from heatproof.store.hdf5 import row_checksums
from heatproof.store.reader import CheckedRows, RowReader
from heatproof.store.writer import RowWriter

FORMAT = "heatproof/infill"
FORMAT_VERSION = 1


class InfillWriter:
    """Writes a file of infilled images, block by block; see `RowWriter` for crashes, several writers and full disks.

    Args:
        path: `<split>.h5`.
        rows: number of images N.
        channels: of the images.
        removed: pixels that are removed of each.
        origin: what the values are computed from.
        attributes: further root attributes.
        rows_per_block: images of a block, which is lost in a kill.
    """

    def __init__(
        self,
        path: Path,
        *,
        rows: int,
        channels: int,
        removed: int,
        origin: artefacts.Origin,
        attributes: Mapping[str, Any],
        rows_per_block: int,
    ) -> None:
        self._shape = f"B {channels} {removed}"
        self._rows = RowWriter(
            path,
            (
                Column("infill", "uint8", (channels, removed)),
                Column("index", "int64", fill=-1),
                Column("valid", "uint8"),
                Column("crc", "uint32"),
            ),
            rows=rows,
            origin=origin,
            kind=FORMAT,
            version=FORMAT_VERSION,
            attributes={**attributes, "removed": removed},
            rows_per_shard=rows_per_block,
        )
        self.missing = self._rows.missing
        self.finish = self._rows.finish

    def write(
        self, block: Block, *, infill: NDArray[np.uint8], index: NDArray[np.int64], valid: NDArray[np.bool_]
    ) -> None:
        """Writes the B rows of one block; when it returns, they survive a kill.

        Args:
            block: one of `missing()`.
            infill: (B, C, R) the removed pixels' new values.
            index: (B,) position of each image in the split.
            valid: (B,) False where there is no valid map, and so no hole.

        Raises:
            OSError: the disk is full, for example; see `RowWriter.write`.
        """
        checks.shapes(self._shape, infill=infill)
        self._rows.write(
            block,
            {"infill": infill, "index": index, "valid": valid.astype(np.uint8), "crc": row_checksums(infill)},
        )


class InfillReader(RowReader):
    """A file of infilled images, opened for reading; each row is compared with its checksum when it is first read.

    Args:
        path: `<split>.h5`.

    Attributes:
        removed: pixels that are removed of each image.
        first: the end of the order that they come from, "most" or "least".

    Raises:
        MapError: as `RowReader`.
    """

    _checked_by_row = ("infill",)

    def __init__(self, path: Path) -> None:
        super().__init__(path, FORMAT, FORMAT_VERSION)

    def _start(self) -> None:
        super()._start()
        self.removed = int(self.attributes.get("removed", 0))
        self.first = str(self.attributes.get("first", ""))

    @cached_property
    def index(self) -> NDArray[np.int64]:
        """(N,), position of each image in its split."""
        return self.read("index")

    @cached_property
    def valid(self) -> NDArray[np.bool_]:
        """(N,), False where there is no valid map: the row means nothing."""
        found: NDArray[np.bool_] = self.read("valid") != 0
        return found

    def infill(self, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        """(B, C, R), the removed pixels' new values of some rows of the file."""
        return self.read("infill", rows)

    def damage(self) -> Iterator[str]:
        """One line for each damaged column, and for the first damaged row of each block of images."""
        yield from super().damage()
        written = np.flatnonzero(self.written)
        step = max(1, 2**24 // max(1, int(np.prod(self.shape("infill")[1:]))))
        for start in range(0, len(written), step):
            try:
                self.infill(written[start : start + step])
            except MapError as error:
                yield str(error)

    def content_id(self) -> str:
        """A hash that changes with the origin and with any row, as `MapReader.content_id`."""
        digest = hashlib.sha256(artefacts.canonical([FORMAT, self.origin, self.rows]).encode())
        for name in ("crc", "index", "valid"):
            values = self.read(name)
            digest.update(np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("<")).tobytes())
        return digest.hexdigest()

    def _read(self, name: str, rows: NDArray[np.int64]) -> NDArray[Any]:
        values = super()._read(name, rows)
        if name in self._checked_by_row:
            damaged = self._rows_checked.damaged(rows, values)
            if damaged.size:
                raise layout.damaged(
                    self.path,
                    f"the infill of row {damaged[0]} is damaged (checksum)",
                    "delete the file and run infill again",
                )
        return values

    @cached_property
    def _rows_checked(self) -> CheckedRows:
        return CheckedRows(self.read("crc"))
