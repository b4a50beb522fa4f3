"""Stored infilled images in the place of a fill: `fill: infill:NAME` in retrain_cls, lerf, insertion-deletion and road."""

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from heatproof import artefacts, config, removal, store
from heatproof.errors import ConfigError, InputError, MapError, MissingInputError, nearest
from heatproof.removal.pixels import as_float, by_channel
from heatproof.stages import infill
from heatproof.stages.run import Run

PREFIX = "infill:"
Removal = tuple[float, removal.First]
"""A removed fraction, and the end of the order that goes first."""


def name_of(fill: str | config.Plugin) -> str | None:
    """The infiller that a fill names; None for all other fills."""
    asked = fill if isinstance(fill, str) else fill.name
    return asked.removeprefix(PREFIX) if asked.startswith(PREFIX) else None


def asked_by(section: config.Section) -> dict[str, str]:
    """The infillers that a section asks for, by the key that names them."""
    values = {key: getattr(section, key) for key in type(section).model_fields}
    fills = {key: value for key, value in values.items() if isinstance(value, str | config.Plugin)}
    return {key: name for key, fill in fills.items() if (name := name_of(fill)) is not None}


@dataclass(frozen=True)
class StoredInfill:
    """One infiller's images of a split, for the holes of one method's maps; `removal.degraded_scores` takes it as a fill.

    Args:
        folder: of the infiller and method.
        split: name of the split.
        pixels: of an image.
        files: by the number of removed pixels and the end of the order.
    """

    folder: Path
    split: str
    pixels: int
    files: Mapping[tuple[int, str], Path]

    def at(self, fraction: float, first: removal.First) -> "InfillFill":
        """The fill where this fraction goes, from this end."""
        self.need([(fraction, first)])
        return InfillFill(_reader(self.files[removal.count(fraction, self.pixels), first]))

    def content_ids(self, removals: Iterable[Removal]) -> dict[str, str]:
        """What is in the files for some removals, by their folders' names: part of the origin of what is made with them."""
        wanted = list(removals)
        self.need(wanted)
        paths = [self.files[removal.count(fraction, self.pixels), first] for fraction, first in wanted]
        return {path.parent.name: _reader(path).content_id() for path in paths}

    def need(self, removals: Iterable[Removal]) -> None:
        """Checks that some removals are stored.

        Raises:
            MissingInputError: some are not; it names all of these.
        """
        missing = [r for r in removals if (removal.count(r[0], self.pixels), r[1]) not in self.files]
        if missing:
            raise MissingInputError(
                f"{self.folder}: holds no images of {self.split} with {_listed(missing)} removed; "
                "add them to infill.percentiles and infill.orders, and run infill"
            )


@dataclass(frozen=True)
class InfillFill:
    """The stored images of one removed fraction; the kept pixels are the caller's, bit for bit."""

    reader: store.InfillReader

    def __call__(self, pixels: Tensor, removed: Tensor, indices: ArrayLike | None = None) -> Tensor:
        """Replaces the removed pixels: those of the images at `indices` of the split, by this fraction of their order."""
        pixels = as_float(pixels)
        if indices is None:
            raise InputError("indices: stored images are found by their index in the split; give it")
        rows = np.asarray(torch.as_tensor(indices).cpu(), dtype=np.int64)
        valid = torch.from_numpy(self.reader.valid[rows]).to(pixels.device)
        holes = by_channel(removed, pixels) & valid[:, None, None, None]
        stored = torch.from_numpy(self.reader.infill(rows)).to(pixels.device)[valid]
        if int(holes.sum()) != stored[:, 0].numel():
            raise InputError(
                f"{self.reader.path}: has {self.reader.removed} removed pixels in each image; these are others"
            )
        return pixels.masked_scatter(holes.expand_as(pixels), stored.to(pixels.dtype).div_(255.0))


def opened(run: Run, infiller: str, method: str, split: str, maps: Any) -> StoredInfill:
    """The infilled images that are there for maps of this content; what is stale or incomplete counts as not there.

    Raises:
        ConfigError: the configuration's section infill has no such infiller.
        MissingInputError: nothing is there.
        MapError: all that is there belongs to other maps, images, or another infiller.
    """
    folder = infill.folder_of(run, infiller, method)
    wanted = {"data": run.fingerprint(split), "maps": maps, **_made_by(run, infiller, split)}
    files: dict[tuple[int, str], Path] = {}
    stale = ""
    for path in sorted(folder.glob(f"*/{split}.h5")):
        state = store.read_state(path)
        if state is None or state.damage or not state.complete or state.origin is None:
            continue
        found = {key: state.origin.get(key) for key in wanted}
        if changed := artefacts.differences(found, wanted):
            stale = stale or f"{path}: {'; '.join(changed[:3])}"
            continue
        reader = _reader(path)
        files[reader.removed, reader.first] = path
    if not files and stale:
        raise MapError(f"{stale}: infilled images of something else; run infill again")
    if not files:
        raise MissingInputError(f"{folder}: no infilled images of {split}; run infill first")
    height, width = run.dataset.size
    return StoredInfill(folder, split, height * width, files)


def check_known(run: Run, infiller: str) -> None:
    """Raises ConfigError where the configuration has a section infill without this infiller."""
    section = run.config.infill
    if section is not None and infiller not in [entry.name for entry in section.infillers]:
        raise ConfigError(
            f"fill: {PREFIX}{infiller}: infill.infillers has no {infiller!r}{nearest(infiller, [e.name for e in section.infillers])}"
        )


def _made_by(run: Run, infiller: str, split: str) -> dict[str, Any]:
    """The part of an origin that says which infiller; nothing where the configuration does not tell."""
    check_known(run, infiller)
    if run.config.infill is None:
        return {}
    entry = next(entry for entry in run.config.infill.infillers if entry.name == infiller)
    return {"infiller": infill.infiller_origin(run, entry, split)}


def _listed(removals: Sequence[Removal]) -> str:
    percents = {
        first: ", ".join(f"{100 * fraction:g}" for fraction, end in sorted(set(removals)) if end == first)
        for first in ("most", "least")
    }
    return " and ".join(f"{p} percent ({first} important first)" for first, p in percents.items() if p)


@functools.lru_cache(maxsize=256)
def _opened(path: Path, stamp: tuple[int, int]) -> store.InfillReader:
    return store.InfillReader(path)


def _reader(path: Path) -> store.InfillReader:
    """A reader, kept open in the process as long as the file is the same."""
    status = path.stat()
    return _opened(path, (status.st_ino, status.st_mtime_ns))
