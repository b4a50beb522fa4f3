"""infill: fill the holes that maps cut into images, once for all tests that remove the same pixels.

Reads the data set and extract_cams/<method>/<split>.h5; writes infill/<infiller>/<method>/<percentile>/<split>.h5 (with
`_least` behind the percentile where the least important pixels go first): the removed pixels' new values, as bytes. A
stage with `fill: infill:NAME` reads them in place of a fill. Killed, it goes on from the last block.
"""

import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from heatproof import artefacts, config, plugins, removal, runtime, seeding, store, threads
from heatproof.datasets import Split
from heatproof.errors import ConfigError
from heatproof.models import Normalization
from heatproof.stages.kept_maps import content_of, kept_files, maps_of
from heatproof.stages.plan import Artefact
from heatproof.stages.run import Run, build_fill, means_origin

logger = logging.getLogger(__name__)
RESULTS_VERSION = 1
ROWS_PER_BLOCK = 256  # what a kill costs at most, for each file


@dataclass(frozen=True)
class Holes:
    """What one file holds: whose maps cut which holes into the images of a split, and what fills them."""

    entry: config.Infiller
    method: str
    split: str
    percentile: float
    first: removal.First


def plan(run: Run) -> list[Artefact[Holes]]:
    """The infilled images of every split, infiller, method, end of the order and percentile."""
    section = config.section(run.config, "infill", config.Infill)
    return [file for split in run.splits if split in section.splits for file in _plan(run, section, split)]


def run(run: Run) -> None:
    """Computes what is missing or stale, split by split."""
    section = config.section(run.config, "infill", config.Infill)
    _check(run, section)
    for name in run.splits:
        if name in section.splits:
            _fill_split(run, section, run.dataset.split(name))


def _plan(run: Run, section: config.Infill, split: str) -> Iterator[Artefact[Holes]]:
    maps = kept_files(run, section.methods())
    for entry in section.infillers:
        made_by = infiller_origin(run, entry, split)
        for method in section.methods():
            shared = {
                "data": run.fingerprint(split),
                "maps": content_of(maps[method.name, split]),
                "infiller": made_by,
                "orders": plugins.code_version(removal.ranks),
            }
            for first in section.orders:
                for percentile in section.percentiles:
                    name = f"{percentile:g}" if first == "most" else f"{percentile:g}_least"
                    path = folder_of(run, entry.name, method.name) / name / f"{split}.h5"
                    holes = Holes(entry, method.name, split, percentile, first)
                    yield Artefact(path, shared | {"percentile": percentile, "first": first}, holes)


def folder_of(run: Run, infiller: str, method: str) -> Path:
    """Where the infilled images of one method's maps are, by percentile."""
    return run.config.outdir / "infill" / infiller / method


def infiller_origin(run: Run, entry: config.Infiller, split: str) -> dict[str, Any]:
    """What an infiller's answers depend on, apart from images and holes."""
    target = removal.named_fill(entry.infiller)
    return {
        "infiller": removal.fill_name(entry.infiller) or entry.infiller,
        "kwargs": artefacts.with_content(entry.kwargs),
        "means": means_origin(run, entry.infiller, lambda: _normalization(run)),
        "seed": seeding.of_split(run.config.seed, split) if plugins.wants(target, "seed") else None,
        "code": [RESULTS_VERSION, plugins.code_version(target)],
    }


@dataclass(frozen=True, eq=False)
class _File:
    """One file to be made: whose maps, which holes, filled by what."""

    path: Path
    maps: store.MapReader
    fill: removal.Fill
    fraction: float
    first: removal.First
    writer: store.InfillWriter
    todo: Sequence[store.Block]

    def write(self, block: store.Block, pixels: Tensor, index: NDArray[np.int64], batch_size: int) -> None:
        """Fills the holes of a block's images."""
        valid = ~self.maps.invalid[index]
        ranks = removal.rank_tensor(self.maps.ranks(index), pixels.device)
        count = removal.count(self.fraction, ranks[0].numel())
        values = np.zeros((len(index), pixels.shape[1], count), dtype=np.uint8)
        for rows in torch.from_numpy(np.flatnonzero(valid)).split(batch_size):
            place = rows.to(pixels.device)
            holes = removal.removed(ranks[place], self.fraction, self.first)
            filled = self.fill(pixels[place].float().div_(255.0), holes, index[rows.numpy()])
            values[rows.numpy()] = _cut(filled, holes, count).cpu().numpy()
        self.writer.write(block, infill=values, index=index, valid=valid)


def _cut(filled: Tensor, holes: Tensor, count: int) -> Tensor:
    """The holes' values (B, C, R) as bytes, row by row of the image."""
    taken = filled.masked_select(holes[:, None]).view(len(filled), filled.shape[1], count)
    return taken.clamp(0, 1).mul(255).round().to(torch.uint8)


def _fill_split(run: Run, section: config.Infill, split: Split) -> None:
    files = list(_files(run, section, split))
    total = sum(block.stop - block.start for file in files for block in file.todo)
    started = time.monotonic()
    if files:
        with runtime.progress(total, f"infill {split.name}") as bar:
            for block in sorted({block for file in files for block in file.todo}):
                # Read once for all files that want it.
                index = np.arange(block.start, block.stop)
                pixels = split.pixels(index).to(run.device)
                for file in (file for file in files if block in file.todo):
                    bar.set_postfix_str("/".join(file.path.parts[-4:-1]), refresh=False)
                    file.write(block, pixels, index, section.batch_size)
                    bar.update(len(index))
        for file in files:
            file.writer.finish()
        runtime.record_time(run.config.outdir / "infill", f"infill/{split.name}", total, started)


def _files(run: Run, section: config.Infill, split: Split) -> Iterator[_File]:
    """What is missing or stale of a split."""
    fills: dict[str, removal.Fill] = {}
    files = kept_files(run, section.methods())
    for file in _plan(run, section, split.name):
        holes = file.job
        maps = maps_of(files[holes.method, split.name], split)
        if file.is_complete():
            continue
        if holes.entry.name not in fills:
            fills[holes.entry.name] = _built(run, holes.entry, split.name)
        fraction = holes.percentile / 100
        writer = store.InfillWriter(
            file.path,
            rows=len(split),
            channels=run.dataset.channels,
            removed=removal.count(fraction, maps.size[0] * maps.size[1]),
            origin=file.origin,
            attributes={
                "infiller": holes.entry.name,
                "method": holes.method,
                "split": split.name,
                "first": holes.first,
            },
            rows_per_block=min(store.rows_per_shard(maps.size), ROWS_PER_BLOCK),
        )
        yield _File(file.path, maps, fills[holes.entry.name], fraction, holes.first, writer, writer.missing())


def _check(run: Run, section: config.Infill) -> None:
    """Everything that can be wrong with the section, before any work."""
    pixels = run.dataset.size[0] * run.dataset.size[1]
    for percentile in section.percentiles:
        if removal.count(percentile / 100, pixels) == 0:
            raise ConfigError(
                f"infill.percentiles: {percentile:g} percent of {run.dataset.size[0]} x {run.dataset.size[1]} pixels is none"
            )
    for entry in section.infillers:
        fill = _built(run, entry, "test")
        if isinstance(network := getattr(fill, "network", None), nn.Module):
            threads.raise_for(network, run.dataset.size)


def plugin_of(entry: config.Infiller) -> config.Plugin:
    """An infiller as other sections spell a fill."""
    if "name" in entry.kwargs:
        raise ConfigError(f"infill.infillers: {entry.name}: {entry.infiller} has no option 'name'")
    return config.Plugin.model_validate({**entry.kwargs, "name": entry.infiller})


def _built(run: Run, entry: config.Infiller, split: str) -> removal.Fill:
    return build_fill(run, plugin_of(entry), lambda: _normalization(run), split)


def _normalization(run: Run) -> Normalization:
    """Of the classifier that is explained, where the configuration says which; else of the data."""
    extraction = run.config.extract_cams
    return run.statistics if extraction is None else run.classifier(extraction.model).normalization
