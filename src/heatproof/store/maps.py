"""Attribution files (format 1): maps, the ranks of their pixels, and what the model said of each image."""

import hashlib
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from heatproof import artefacts, checks
from heatproof.errors import InputError, MapError
from heatproof.store import layout
from heatproof.store.columns import Block, Column, rows_per_shard
from heatproof.store.hdf5 import row_checksums
from heatproof.store.layout import Layout
from heatproof.store.reader import CheckedRows, RowReader
from heatproof.store.writer import Consolidate, RowWriter

FORMAT = "heatproof/attribution"
FORMAT_VERSION = 1

CONSTANT = 1
"""Bit of `flag`: all values of the map are equal."""
INVALID = 2
"""Bit of `flag`: the method gave no valid map for this image; the row is NaN, and every metric leaves it out."""

MapDtype = Literal["float16", "float32"]


def rank_dtype(size: tuple[int, int]) -> str:
    """Type of ranks for maps of `size` (H, W): the smallest that holds every rank.

    >>> rank_dtype((256, 256)), rank_dtype((256, 257))
    ('uint16', 'uint32')
    """
    return "uint16" if size[0] * size[1] <= 65_536 else "uint32"


def map_columns(size: tuple[int, int], classes: int, dtype: MapDtype) -> tuple[Column, ...]:
    """The columns of an attribution file for maps of `size` (H, W) and a model of `classes` outputs."""
    nan = float("nan")
    ranks = rank_dtype(size)
    return (
        Column("map", dtype, size, fill=nan),
        Column("scale", "float32", fill=nan),
        Column("rank", ranks, size, fill=int(np.iinfo(ranks).max)),
        Column("index", "int64", fill=-1),
        Column("label", "int64", fill=-1),
        Column("target", "int64", fill=-1),
        Column("prediction", "int64", fill=-1),
        Column("logits", "float32", (classes,), fill=nan),
        Column("flag", "uint8"),
        Column("crc", "uint32", (2,)),
    )


class MapWriter:
    """Writes an attribution file, block by block; see `RowWriter` for crashes, several processes and full disks.

    Args:
        path: `<split>.h5`.
        rows: number of images N.
        size: (H, W) of the maps.
        classes: number of the model's outputs K.
        origin: what the maps are computed from.
        method, split: their names.
        label_classes: number of classes of the labels where these are not the model's outputs; None where they are.
        dtype: type of the stored maps.
        consolidate: one file at the end, or shards; see `RowWriter`.
        rows_per_block: images of a block, which is lost in a kill; None for `rows_per_shard(size)`, right for fast
            methods. It does not change the finished file.
    """

    def __init__(
        self,
        path: Path | str,
        *,
        rows: int,
        size: tuple[int, int],
        classes: int,
        origin: artefacts.Origin,
        method: str,
        split: str,
        label_classes: int | None = None,
        dtype: MapDtype = "float16",
        consolidate: Consolidate = "auto",
        rows_per_block: int | None = None,
    ) -> None:
        self.size = (int(size[0]), int(size[1]))
        self.classes = classes
        self.dtype: MapDtype = dtype
        self._rows = RowWriter(
            path,
            map_columns(self.size, classes, dtype),
            rows=rows,
            origin=origin,
            kind=FORMAT,
            version=FORMAT_VERSION,
            attributes={"method": method, "split": split}
            | ({} if label_classes is None else {"label_classes": label_classes}),
            rows_per_shard=rows_per_block or rows_per_shard(self.size),
            consolidate=consolidate,
        )
        self.path = self._rows.path
        self.rows = rows
        self.blocks = self._rows.blocks

    @property
    def rows_done(self) -> int:
        """Rows that need not be computed again."""
        return self._rows.rows_done

    def missing(self) -> list[Block]:
        """The blocks that are still to be written, in order."""
        return self._rows.missing()

    def write(
        self,
        block: Block,
        *,
        maps: ArrayLike,
        ranks: ArrayLike,
        index: ArrayLike,
        label: ArrayLike,
        target: ArrayLike,
        prediction: ArrayLike,
        logits: ArrayLike,
        invalid: ArrayLike | None = None,
    ) -> None:
        """Writes the B rows of one block; when it returns, they survive a kill.

        Args:
            block: one of `missing()`.
            maps: (B, H, W) float32, the attributions as the method gave them, finite where valid.
            ranks: (B, H, W) integers, each map's a permutation of 0, ..., H*W - 1; 0 = most important.
            index: (B,) position of each image in the split.
            label: (B,) true class.
            target: (B,) class explained.
            prediction: (B,) the model's class.
            logits: (B, K) the model's outputs on the intact images.
            invalid: (B,) True where the method gave no valid map: the row is stored as NaN, whatever stands in it.

        Raises:
            MapError: a map that is not called invalid has a NaN or an infinity, or ranks are no permutation; the
                message names the image.
            InputError: an array has the wrong shape or type.
            OSError: the disk is full, for example; see `RowWriter.write`.
        """
        maps, ranks, index = np.asarray(maps, dtype=np.float32), np.asarray(ranks), np.asarray(index)
        checks.shapes(f"{block.stop - block.start} {self.size[0]} {self.size[1]}", maps=maps, ranks=ranks)
        checks.shapes(f"{block.stop - block.start}", index=index)
        skipped = np.zeros(len(maps), dtype=np.bool_) if invalid is None else np.asarray(invalid, dtype=np.bool_)
        checks.shapes(f"{block.stop - block.start}", invalid=skipped)
        low, high = maps.min(axis=(1, 2)), maps.max(axis=(1, 2))
        self._need_finite(np.isfinite(low) & np.isfinite(high), index, skipped)
        if skipped.any():
            maps = np.where(skipped[:, None, None], np.float32("nan"), maps)
        stored, scale = scaled(maps, self.dtype)
        stored_ranks = self._stored_ranks(ranks, index, skipped)
        self._rows.write(
            block,
            {
                "map": stored,
                "scale": scale,
                "rank": stored_ranks,
                "index": index,
                "label": label,
                "target": target,
                "prediction": prediction,
                "logits": logits,
                "flag": np.where(skipped, INVALID, np.where(low == high, CONSTANT, 0)).astype(np.uint8),
                "crc": np.stack([row_checksums(stored), row_checksums(stored_ranks)], axis=1),
            },
        )

    def finish(self) -> Path:
        """Completes the file; see `RowWriter.finish`."""
        return self._rows.finish()

    def _need_finite(self, finite: NDArray[np.bool_], index: NDArray[Any], skipped: NDArray[np.bool_]) -> None:
        broken = ~finite & ~skipped
        if broken.any():
            raise MapError(
                f"{self.path}: the map of image {index[broken][0]} has NaN or infinite values; mend the method, or set "
                "on_invalid: skip to leave such images out"
            )

    def _stored_ranks(
        self, ranks: NDArray[Any], index: NDArray[Any], skipped: NDArray[np.bool_]
    ) -> NDArray[np.unsignedinteger]:
        """`ranks` in the file's type; the type's largest value in skipped rows."""
        if ranks.dtype.kind not in "iu":
            raise InputError(f"ranks: {ranks.dtype} values; expected integers")
        for row in np.flatnonzero(~skipped):
            if not is_permutation(ranks[row].reshape(-1)):
                raise MapError(
                    f"{self.path}: the ranks of image {index[row]} are no permutation of 0 to {ranks[row].size - 1}"
                )
        dtype = np.dtype(rank_dtype(self.size))
        if skipped.any():
            ranks = np.where(skipped[:, None, None], np.iinfo(dtype).max, ranks)
        stored: NDArray[np.unsignedinteger] = ranks.astype(dtype, copy=False)
        return stored


def is_permutation(values: NDArray[np.integer]) -> bool:
    """Whether integers (P,) are 0, ..., P - 1 in any order.

    >>> is_permutation(np.array([2, 0, 1])), is_permutation(np.array([1, 1, 0]))
    (True, False)
    """
    if values.min() < 0 or values.max() >= len(values):
        return False
    seen = np.zeros(len(values), dtype=np.bool_)
    seen[values] = True
    return bool(seen.all())


def scaled(maps: NDArray[np.float32], dtype: MapDtype) -> tuple[NDArray[np.floating], NDArray[np.float32]]:
    """Maps as they are stored, and the factors that give them back: `stored * scale` is the attribution.

    For float16 each map is divided by its largest absolute value first, so that it uses the type's whole range: without
    it, maps smaller than about 1e-7 would become zero. What is then below 6e-8 of the largest value becomes zero, and
    the rest keeps three decimal digits. For float32 the maps stay as they are.

    Args:
        maps: (N, H, W).
        dtype: type to store.

    Returns:
        (N, H, W) of type `dtype`, and (N,) float32: 1 for float32, for maps of zeros, and for maps with NaN.

    >>> stored, scale = scaled(np.array([[[1e-20, -4e-20]]], dtype=np.float32), "float16")
    >>> stored
    array([[[ 0.25, -1.  ]]], dtype=float16)
    >>> scale
    array([4.e-20], dtype=float32)
    """
    scale = np.ones(len(maps), dtype=np.float32)
    if dtype == "float32":
        return maps, scale
    largest = np.maximum(maps.max(axis=(1, 2)), -maps.min(axis=(1, 2)))
    np.copyto(scale, largest, where=largest > 0)
    stored = np.empty(maps.shape, dtype=np.float16)
    np.divide(maps, scale[:, None, None], out=stored, casting="unsafe")  # divides in float32, then rounds once
    return stored, scale


class MapReader(RowReader):
    """An attribution file, opened for reading; see `RowReader` for pickling, fork, shards and damage.

    Each row of `map` and `rank` is compared with its checksum the first time that it is read.

    Args:
        path: `<split>.h5`, of any form: being made, in shards, in one piece, archived.

    Attributes:
        size: (H, W).
        classes: number of the model's outputs K.
        label_classes: number of classes of the labels where these are not the model's outputs, else None.
        method, split: names.

    Raises:
        MapError: as `RowReader`, or a dataset of format 1 is missing or has the wrong shape.
    """

    _checked_by_row = ("map", "rank")  # in the order of the columns of `crc`

    def __init__(self, path: Path | str) -> None:
        super().__init__(path, FORMAT, FORMAT_VERSION)
        self._need_columns()

    def _start(self) -> None:
        super()._start()
        self.method = str(self.attributes.get("method", ""))
        self.split = str(self.attributes.get("split", ""))
        self.label_classes: int | None = self.attributes.get("label_classes")
        self._rows_checked: dict[str, CheckedRows] = {}

    def __setstate__(self, state: Layout) -> None:
        super().__setstate__(state)
        self._need_columns()

    def _need_columns(self) -> None:
        height, width = self.shape("rank")[1:] if len(self.shape("rank")) == 3 else (0, 0)
        self.size: tuple[int, int] = (height, width)
        self.classes = int(self.shape("logits")[-1])
        dtype: MapDtype = "float32" if self.dtype("map") == np.float32 else "float16"
        for column in map_columns(self.size, self.classes, dtype):
            found = (self.dtype(column.name), self.shape(column.name)[1:])
            if found != (np.dtype(column.dtype), column.shape):
                raise MapError(
                    f"{self.path}: dataset {column.name!r} holds {found[0]} {found[1]}; expected {column.dtype} "
                    f"{column.shape}"
                )

    @cached_property
    def index(self) -> NDArray[np.int64]:
        """(N,), position of each image in its split; -1 in rows that are not written, here and in the following."""
        return self._whole("index")

    @cached_property
    def labels(self) -> NDArray[np.int64]:
        """(N,), true class."""
        return self._whole("label")

    @cached_property
    def targets(self) -> NDArray[np.int64]:
        """(N,), the class explained."""
        return self._whole("target")

    @cached_property
    def predictions(self) -> NDArray[np.int64]:
        """(N,), the model's class."""
        return self._whole("prediction")

    @cached_property
    def logits(self) -> NDArray[np.float32]:
        """(N, K), the model's outputs on the intact images; NaN in rows that are not written."""
        return self._whole("logits")

    @cached_property
    def flags(self) -> NDArray[np.uint8]:
        """(N,), bits `CONSTANT` and `INVALID`; 0 in rows that are not written."""
        return self._whole("flag")

    @cached_property
    def scales(self) -> NDArray[np.float32]:
        """(N,), the factor that turns a stored map into the attribution."""
        return self._whole("scale")

    @property
    def invalid(self) -> NDArray[np.bool_]:
        """(N,), True where there is no valid map: leave these rows out, and count them."""
        found: NDArray[np.bool_] = (self.flags & INVALID) != 0
        return found

    def maps(self, rows: ArrayLike | None = None) -> NDArray[np.float32]:
        """Attributions, in the units of the method.

        Args:
            rows: (B,) rows of the file, in any order; None for all.

        Returns:
            (B, H, W) float32; NaN in invalid rows.
        """
        wanted = self._rows(rows)
        maps = self._read("map", wanted).astype(np.float32)
        maps *= self.scales[wanted][:, None, None]
        return maps

    def rows_of(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """The rows that hold the maps of some images of the split.

        Raises:
            MapError: an image has no map here.
        """
        order = np.argsort(self.index, kind="stable")
        places = np.searchsorted(self.index, indices, sorter=order)
        rows: NDArray[np.int64] = order[np.minimum(places, len(order) - 1)]
        missing = self.index[rows] != indices
        if missing.any():
            raise MapError(f"{self.path}: holds no map of image {indices[missing][0]}; run extract-attribution-maps")
        return rows

    def ranks(self, rows: ArrayLike | None = None) -> NDArray[np.unsignedinteger]:
        """Ranks of the pixels, 0 = most important.

        Args:
            rows: (B,) rows of the file, in any order; None for all.

        Returns:
            (B, H, W) uint16, or uint32 above 65,536 pixels; the type's largest value in invalid rows.
        """
        return self.read("rank", rows)

    def _read(self, name: str, rows: NDArray[np.int64]) -> NDArray[Any]:
        values = super()._read(name, rows)
        if name in self._checked_by_row:
            damaged = self._checked_rows(name).damaged(rows, values)
            if damaged.size:
                raise self._damage_of(name, int(damaged[0]))
        return values

    def verify(self, progress: Callable[[int], object] | None = None) -> None:
        """Compares everything with its checksums; raises MapError for the first difference.

        Args:
            progress: called with the number of rows done since the last call, as `tqdm.update`.
        """
        for line in self.damage(progress):
            raise MapError(line)

    def damage(self, progress: Callable[[int], object] | None = None) -> Iterator[str]:
        """One line for each damaged row of `map` and `rank`, and for each other column that is damaged."""
        broken = list(super().damage())
        yield from broken
        if any(f"{name!r}" in line for line in broken for name in ("crc", "index")):
            return  # without them no row can be checked, or named
        for rows in self.row_blocks():
            for name in self._checked_by_row:
                try:
                    values = super()._read(name, rows)
                except MapError as error:
                    yield str(error)
                    continue
                for row in self._checked_rows(name).damaged(rows, values):
                    yield str(self._damage_of(name, int(row)))
            if progress is not None:
                progress(len(rows))

    def row_blocks(self) -> Iterator[NDArray[np.int64]]:
        """All written rows, in blocks of some megabytes."""
        written = np.flatnonzero(self.written)
        step = rows_per_shard(self.size)
        for start in range(0, len(written), step):
            yield written[start : start + step]

    def content_id(self) -> str:
        """A hash that changes with the origin and with any row: for the origin of results computed from this file.

        It reads the checksums instead of the maps, so it is cheap, and it is the same for shards, one file, and an
        archive of it.
        """
        digest = hashlib.sha256(artefacts.canonical([FORMAT, self.origin, self.rows]).encode())
        for name in ("crc", "scale", "index", "label", "target", "prediction", "flag"):
            values = self._whole(name)
            digest.update(np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("<")).tobytes())
        return digest.hexdigest()

    def _whole(self, name: str) -> NDArray[Any]:
        """A small column for all rows; the fill value where rows are not written."""
        written = self.written
        if written.all():
            return self.read(name)
        dtype: MapDtype = "float32" if self.dtype("map") == np.float32 else "float16"
        (column,) = (c for c in map_columns(self.size, self.classes, dtype) if c.name == name)
        values = np.full(self.shape(name), column.fill, dtype=self.dtype(name))
        values[written] = self.read(name, np.flatnonzero(written))
        return values

    def _checked_rows(self, name: str) -> CheckedRows:
        if name not in self._rows_checked:
            self._rows_checked[name] = CheckedRows(self._whole("crc")[:, self._checked_by_row.index(name)])
        return self._rows_checked[name]

    def _damage_of(self, name: str, row: int) -> MapError:
        extent = self._stored(name).extents[int(self._stored(name).numbers(np.array([row]))[0])]
        return layout.damaged(
            self.path,
            f"{name} of row {row} (image {self.index[row]}) is damaged (checksum)",
            f"delete {extent.path} and run the task that makes it again",
        )
