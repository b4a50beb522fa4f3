"""Writing row files so that a kill costs one block and loses nothing.

While a file is being made, each block of rows is a shard of its own in `<stem>.parts/`, written beside its name, synced
and renamed: it is there whole or not at all, and never opened for writing again. The file itself is a small view over
the shards, replaced after each one. At the end one process writes everything into one contiguous file, puts it in the
view's place, and removes the shards.

Any number of processes may write blocks of one file at the same time. Shards need no lock: a block written twice has
the same bytes, and either of two equal files may win. The file itself is replaced only under a lock on
`<stem>.parts/lock`, and only while it is not finished, so a slow writer cannot put an old view over the finished file.
"""

import contextlib
import errno
import fcntl
import logging
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from heatproof import artefacts
from heatproof.errors import InputError, MapError, nearest
from heatproof.store import layout, seals
from heatproof.store.columns import Block, Column, blocks, identity, shard_attributes
from heatproof.store.hdf5 import checksum, write_contiguous, write_views
from heatproof.store.layout import Layout, Stamp

logger = logging.getLogger(__name__)

Consolidate = Literal["auto", "always", "never"]

AUTO_BYTES = 20 * 10**9
"""Most bytes of values that `consolidate="auto"` writes into one file."""

VIEW_INTERVAL_S = 1.0
VIEW_SHARE = 20  # a view of thousands of shards takes long to write; it may take a twentieth of the time


class RowWriter:
    """Writes a file of N rows, block by block, in any order and from any number of processes.

    A writer opened on what a killed one left behind goes on from there; what was made from another origin, or with
    other columns, is never taken up. Nothing is written before the first block.

    Args:
        path: the file; its shards go to `<stem>.parts/` beside it.
        columns: its datasets, in the order in which they shall lie in the file.
        rows: number of rows N.
        origin: what the values are computed from; anything JSON.
        kind: the root attribute `format`.
        version: the root attribute `format_version`.
        attributes: further root attributes (text, numbers).
        rows_per_shard: rows of a block; equal for all writers of the file.
        consolidate: whether `finish` makes one contiguous file ("always"), keeps the shards ("never"), or makes one
            file of up to 20 GB where the disk has room for it ("auto").
    """

    def __init__(
        self,
        path: Path | str,
        columns: Sequence[Column],
        *,
        rows: int,
        origin: artefacts.Origin,
        kind: str,
        rows_per_shard: int,
        version: int = 1,
        attributes: Mapping[str, Any] | None = None,
        consolidate: Consolidate = "auto",
    ) -> None:
        if rows < 1 or rows_per_shard < 1:
            raise InputError(f"{path}: rows {rows} and rows_per_shard {rows_per_shard} must be at least 1")
        self.path = Path(path)
        self.parts = self.path.with_suffix(".parts")
        self.rows = rows
        self.blocks = blocks(rows, rows_per_shard)
        self._columns = tuple(columns)
        self._consolidate: Consolidate = consolidate
        self._identity = {"format": kind, "format_version": version, "origin": artefacts.canonical(origin)}
        self._attributes = dict(attributes or {})
        self._known: dict[Block, Stamp] = {}
        self._next_view = 0.0
        self._tidy()

    @property
    def rows_done(self) -> int:
        """Rows that need not be computed again."""
        return self.rows - sum(block.stop - block.start for block in self.missing())

    def missing(self) -> list[Block]:
        """The blocks that are still to be written, in order; none where the file is finished."""
        if self._finished() is not None:
            return []
        return [block for block in self.blocks if not self._has(block)]

    def write(self, block: Block, arrays: Mapping[str, ArrayLike]) -> None:
        """Writes the rows of one block; when it returns, they survive a kill.

        Args:
            block: one of `blocks`; a block that is already there is replaced.
            arrays: for each column its values, (B, ...) for the B rows of the block.

        Raises:
            InputError: a column is missing, unknown, or has the wrong shape or kind.
            OSError: the disk is full, for example; what was there before is untouched.
        """
        values = self._checked(block, arrays)
        attributes = self._shard_attributes(block)
        rows = block.stop - block.start
        try:
            write_contiguous(
                self._shard(block), self._columns, rows, attributes, lambda c: [values[c.name]], identity(attributes)
            )
        except OSError:
            # Perhaps another writer finished this block, or the file, and took our temporary file for a leftover.
            if not self._has(block) and self._finished() is None:
                raise
        artefacts.remove_leftovers_of(self._shard(block))
        self._refresh_view()

    def finish(self) -> Path:
        """Completes the file once all blocks are there; calling it again, or from several processes, does no harm.

        Returns:
            The file's path.

        Raises:
            MapError: blocks are missing, or one was damaged since (it is removed, so that it is computed again).
            OSError: the disk is full; the shards stay, and the same call goes on later.
        """
        if self._finished() is not None and not self.parts.exists():
            return self.path
        with _locked(self.parts, wait=True) as lock:
            finished = self._finished()
            if finished is None or finished.form == "shards":
                self._need_all_blocks()
                if self._wants_one_file():
                    self._write_whole()
                elif finished is None:
                    self._write_view(complete=True)
            self._clear(lock)
        return self.path

    def _checked(self, block: Block, arrays: Mapping[str, ArrayLike]) -> dict[str, NDArray[np.generic]]:
        if block not in self.blocks:
            raise InputError(f"{self.path}: {block} is not one of its blocks")
        names = [column.name for column in self._columns]
        for name in arrays:
            if name not in names:
                raise InputError(f"{self.path}: unknown column {name!r}{nearest(name, names)}")
        absent = [name for name in names if name not in arrays]
        if absent:
            raise InputError(f"{self.path}: column {absent[0]!r} is missing from block {block.number}")
        return {column.name: column.checked(arrays[column.name], block.stop - block.start) for column in self._columns}

    def _shard(self, block: Block) -> Path:
        return self.parts / f"{block.number:05d}.h5"

    def _shard_attributes(self, block: Block) -> dict[str, Any]:
        return shard_attributes(
            self._identity, [column.described() for column in self._columns], block.start, block.stop
        )

    def _has(self, block: Block) -> bool:
        """Whether the block's shard is there, whole, and made from the same origin."""
        path = self._shard(block)
        try:
            stamp = Stamp.of(path)
            if self._known.get(block) == stamp:
                return True
            seal = seals.compared(path)
        except (FileNotFoundError, seals.BrokenSealError):
            return False
        if seal is None or seal.identity != identity(self._shard_attributes(block)):
            return False
        self._known[block] = stamp
        return True

    def _finished(self) -> Layout | None:
        """The layout of the file where it is complete, sound and made from the same origin."""
        try:
            found = layout.read_attributes(self.path, str(self._identity["format"]))
            wanted = {**self._identity, **self._attributes, "complete": True, "rows_done": self.rows}
            if any(found.get(name) != value for name, value in wanted.items()):
                return None
            whole = layout.read_layout(self.path)
        except layout.InUseError:
            raise
        except (FileNotFoundError, MapError):
            return None
        columns = {name: (stored.dtype, stored.shape) for name, stored in whole.columns.items()}
        return whole if columns == {c.name: (np.dtype(c.dtype), c.shape) for c in self._columns} else None

    def _wants_one_file(self) -> bool:
        if self._consolidate != "auto":
            return self._consolidate == "always"
        size = self.rows * sum(column.row_bytes for column in self._columns)
        if size > AUTO_BYTES:
            return False
        has_room = shutil.disk_usage(self.path.parent).free > size
        if not has_room:
            logger.warning("%s: no room for one file of %.1f GB; the shards are kept", self.path, size / 1e9)
        return has_room

    def _need_all_blocks(self) -> None:
        if any(not self._has(block) for block in self.blocks):
            self._write_view(complete=False)
            raise MapError(
                f"{self.path}: {self.rows_done} of {self.rows} rows written; run the same task again to go on"
            )

    def _root_attributes(self, rows_done: int, *, complete: bool) -> dict[str, Any]:
        return {**self._identity, **self._attributes, "complete": complete, "rows_done": rows_done}

    def _refresh_view(self) -> None:
        """Replaces the view after a new shard: at once for the first one, then now and then."""
        begin = time.monotonic()
        if begin < self._next_view:
            return
        with _locked(self.parts, wait=False) as lock:
            if lock.is_busy:  # somebody else is just doing it
                return
            if self._finished() is None:
                self._write_view(complete=False)
            else:
                self._clear(lock)
        end = time.monotonic()
        self._next_view = end + max(VIEW_INTERVAL_S, VIEW_SHARE * (end - begin))

    def _write_view(self, *, complete: bool) -> None:
        present = [(block, self._shard(block)) for block in self.blocks if self._has(block)]
        if not present:
            return
        attributes = self._root_attributes(sum(b.stop - b.start for b, _ in present), complete=complete)
        write_views(self.path, self._columns, self.rows, attributes, present)

    def _write_whole(self) -> None:
        logger.info("%s: joining %d shards", self.path, len(self.blocks))
        shards = [self._shard(block) for block in self.blocks]
        attributes = self._root_attributes(self.rows, complete=True)
        write_contiguous(
            self.path, self._columns, self.rows, attributes, lambda column: (_values(shard, column) for shard in shards)
        )

    def _tidy(self) -> None:
        """Removes what a killed writer left: half-written views, and the shards of a finished file."""
        finished = self._finished()
        is_joined = finished is not None and finished.form != "shards"
        if (is_joined and self.parts.exists()) or artefacts.leftovers_of(self.path):
            with _locked(self.parts, wait=True) as lock:
                self._clear(lock)

    def _clear(self, lock: "_Lock") -> None:
        """Removes what is not needed (any more); only the holder of the lock may."""
        if not lock.is_exclusive:
            return
        artefacts.remove_leftovers_of(self.path)
        finished = self._finished()
        if finished is None:
            return
        if finished.form != "shards":
            shutil.rmtree(self.parts, ignore_errors=True)
            return
        wanted = {self._shard(block) for block in self.blocks}
        for path in self.parts.glob("*.h5"):
            if path not in wanted:
                path.unlink(missing_ok=True)


def _inode(path: Path) -> int | None:
    try:
        return path.stat().st_ino
    except FileNotFoundError:
        return None


@dataclass(frozen=True)
class _Lock:
    """What came of asking for the lock. Where the file system has no locks, one may go on, but remove nothing."""

    is_exclusive: bool
    is_busy: bool = False

    @classmethod
    def taken(cls, descriptor: int, *, wait: bool) -> "_Lock":
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return cls(is_exclusive=False, is_busy=True)
        except OSError as error:
            if error.errno not in (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK, errno.EINVAL):
                raise
            logger.info("no file locks here: shards of finished files stay until you delete them")
            return cls(is_exclusive=False)
        return cls(is_exclusive=True)


def remove_parts(path: Path) -> None:
    """Removes what a kill left beside a file that is whole: the shards that were joined into it, and temporary files."""
    artefacts.remove_leftovers_of(path)
    parts = path.with_suffix(".parts")
    if not parts.is_dir():
        return
    try:
        joined = layout.read_layout(path).form != "shards"
    except (FileNotFoundError, MapError):
        return
    if joined:
        with _locked(parts, wait=False) as lock:
            if lock.is_exclusive:
                shutil.rmtree(parts, ignore_errors=True)


@contextlib.contextmanager
def _locked(parts: Path, *, wait: bool) -> Iterator["_Lock"]:
    """The right to replace the file whose shards lie in `parts`. The lock ends with the process that holds it, however that ends."""
    path = parts / "lock"
    while True:
        try:
            parts.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except (FileNotFoundError, FileExistsError):
            if parts.exists() and not parts.is_dir():
                raise
            continue  # the folder was just removed by the process that finished the file
        try:
            lock = _Lock.taken(descriptor, wait=wait)
            # Whoever held it before may have removed the folder, and this lock with it.
            if _inode(path) == os.fstat(descriptor).st_ino:
                yield lock
                return
        finally:
            os.close(descriptor)


def _values(shard: Path, column: Column) -> NDArray[np.generic]:
    """All values of a column of a shard, compared with their checksum once more before they are copied."""
    seal = seals.compared(shard)
    assert seal is not None, shard
    sealed = seal.columns[column.name]
    count = sealed.size // column.stored_dtype.itemsize
    values = np.fromfile(shard, column.stored_dtype, count=count, offset=sealed.offset or 0)
    if checksum(values) != sealed.checksum:
        shard.unlink()
        raise MapError(
            f"{shard}: {column.name!r} was damaged on disk (checksum) and the shard is removed; "
            "run the same task again to compute its rows"
        )
    return values
