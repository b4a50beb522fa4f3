"""extract-attribution-maps: compute the maps of every attribution method, once.

Reads the data set and the trained classifier; writes extract_cams/<method>/<split>.h5. The images of a block are
read and classified once for all methods. Killed, it goes on from the last block.
"""

import dataclasses
import functools
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from heatproof import artefacts, config, removal, runtime, seeding, store
from heatproof.config import IMPORTED
from heatproof.datasets import Split
from heatproof.errors import DataError, MapError, MissingInputError, ModelError
from heatproof.methods.explainer import Explained, Explainer
from heatproof.models import LoadedModel
from heatproof.models.probabilities import kind_of
from heatproof.stages import twins
from heatproof.stages.run import Run, model_origin
from heatproof.store.maps import MapDtype
from heatproof.store.writer import Consolidate

logger = logging.getLogger(__name__)
SPLITS = ("train", "validation", "test")
Explain = Callable[[Tensor, Tensor, Tensor], Explained]
ROWS_PER_BLOCK = 1024  # what a kill costs at most, for each method


def run(run: Run) -> None:
    """Computes what is missing or stale of every method's maps, for all splits that are there."""
    section = config.section(run.config, "extract_cams", config.ExtractCams)
    plan = Extraction.of(run, section)
    for name in run.dataset.splits:
        folder = run.config.outdir / "extract_cams"
        plan.extract(run.dataset.split(name), {m.name: folder / m.name / f"{name}.h5" for m in plan.methods}, folder)


@dataclass(frozen=True)
class Extraction:
    """A classifier, the methods that explain it, and how their maps are kept.

    Stages that need maps of some images only (LeRF of a sample) use it with their own `rows`.
    """

    run: Run
    loaded: LoadedModel
    model: config.Model
    methods: Sequence[Explainer]
    target: str
    dtype: MapDtype
    ties: Literal["random", "index"]
    batch_size: int
    consolidate: Consolidate

    @classmethod
    def of(cls, run: Run, section: config.ExtractCams | config.MapTest) -> "Extraction":
        """What a section asks for, checked before any work is done."""
        methods = [explainer(method) for method in section.methods()]
        for method in methods:
            if is_called(method):
                method.check()
        loaded = run.trained(section.model)
        if section.target == "label":
            run.require_labels(section.model, loaded, "target: label", "set target: predicted")
        consolidate: Consolidate = section.consolidate if isinstance(section, config.ExtractCams) else "auto"
        return cls(
            run,
            loaded,
            section.model,
            methods,
            section.target,
            section.dtype,
            section.ties,
            section.batch_size,
            consolidate,
        )

    def origin(
        self, method: Explainer, split: Split, rows: NDArray[np.int64] | None = None, source: Path | None = None
    ) -> dict[str, Any]:
        """What a method's maps of a split depend on; a twin's depend on the `source`, by default extract_cams' file."""
        normalization, kind = self.loaded.normalization, kind_of(self.loaded.module)
        made_from = {}
        if twins.is_twin(method.path):
            folder = self.run.config.outdir / "extract_cams" / twins.source_of(method).name
            made_from["source"] = twins.content_of(source or folder / f"{split.name}.h5")
        return made_from | {
            "data": split.fingerprint,
            "rows": "all" if rows is None else rows.tolist(),
            "model": model_origin(self.model)
            | {
                "weights": self.loaded.weights_sha256,
                "normalization": normalization.plain,
                **({} if kind == "softmax" else {"probabilities": kind}),
            },
            "method": {
                "path": method.path,
                "kwargs": artefacts.with_content(method.options),
                "channel_reduction": method.channel_reduction,
                "on_invalid": method.on_invalid,
                "code": _code(method),
            },
            "target": self.target,
            "dtype": self.dtype,
            "ties": self.ties,
            "seed": seeding.of_split(self.run.config.seed, split.name),
        }

    def only(self, methods: Sequence[Explainer]) -> "Extraction":
        """The same for some of the methods."""
        return dataclasses.replace(self, methods=methods)

    @functools.cached_property
    def labels_are_outputs(self) -> bool:
        """Whether class k of the data set is output k of the classifier."""
        return self.run.labels_are_outputs(self.model, self.loaded)

    @functools.cached_property
    def class_count(self) -> int:
        """How many logits the classifier gives."""
        blank = torch.zeros(1, self.run.dataset.channels, *self.run.dataset.size, dtype=torch.uint8)
        with torch.inference_mode():
            return int(self.loaded.module(self._images(blank)).shape[1])

    def extract(
        self, split: Split, paths: Mapping[str, Path], timing: Path, rows: NDArray[np.int64] | None = None
    ) -> None:
        """Makes the files of `paths` (one for each method) complete.

        Args:
            split: the images.
            paths: where each method's file goes.
            timing: folder of timing.csv.
            rows: indices of the images that are wanted; None means all.
        """
        own = [m for m in self.methods if not twins.is_twin(m.path)]
        missing = [m for m in own if not self._is_there(m, split, paths[m.name], rows)]
        if missing and not self.run.dry_run:
            self._compute(missing, split, paths, timing, rows)
        for twin in (m for m in self.methods if twins.is_twin(m.path)):
            self._derive(twin, split, paths[twin.name], paths[twins.source_of(twin).name], timing, rows)

    def _compute(
        self,
        missing: Sequence[Explainer],
        split: Split,
        paths: Mapping[str, Path],
        timing: Path,
        rows: NDArray[np.int64] | None,
    ) -> None:
        indices = np.arange(len(split)) if rows is None else rows
        writers = [self.writer(m, split, paths[m.name], self.origin(m, split, rows), len(indices)) for m in missing]
        explains = [self.bind(method, split) for method in missing]
        todo = sorted({block for writer in writers for block in writer.missing()})
        total = sum(block.stop - block.start for writer in writers for block in writer.missing())
        with runtime.progress(total, f"maps of {split.name}") as bar:
            for block in todo:
                shared = self.intact(split, indices[block.start : block.stop])
                for method, writer, explain in zip(missing, writers, explains, strict=True):
                    if block in writer.missing():
                        started = time.monotonic()
                        bar.set_postfix_str(method.name, refresh=False)
                        maps, invalid = self._explain(shared, explain, bar)
                        self.write(writer, split.name, block, shared, maps, invalid)
                        runtime.record_time(timing, f"{method.name}/{split.name}", len(shared.index), started)
        for writer in writers:
            writer.finish()

    def _derive(
        self, twin: Explainer, split: Split, path: Path, source: Path, timing: Path, rows: NDArray[np.int64] | None
    ) -> None:
        """Makes a twin's file complete from its source's, which the methods before it have made."""
        origin = self.origin(twin, split, rows, source)
        if is_complete(path, origin) or self.run.dry_run:
            return
        started = time.monotonic()
        reader = store.MapReader(source)
        derived = twins.Twin(twins.kind_of(twin.path), reader)
        taken = reader.rows_of(np.arange(len(split)) if rows is None else rows)
        writer = self.writer(twin, split, path, origin, len(taken))
        with runtime.progress(len(taken), f"{twin.name} of {split.name}") as bar:
            for block in writer.missing():
                chosen = taken[block.start : block.stop]
                maps, ranks = derived.maps(chosen), derived.ranks(chosen)
                invalid = reader.invalid[chosen]
                writer.write(
                    block,
                    maps=maps,
                    ranks=self.ranks(split.name, reader.index[chosen], maps, invalid) if ranks is None else ranks,
                    invalid=invalid,
                    index=reader.index[chosen],
                    label=reader.labels[chosen],
                    target=reader.targets[chosen],
                    prediction=reader.predictions[chosen],
                    logits=reader.logits[chosen],
                )
                bar.update(len(chosen))
        writer.finish()
        runtime.record_time(timing, f"{twin.name}/{split.name}", len(taken), started)

    def bind(self, method: Explainer, split: Split) -> Explain:
        """A method at work on the classifier: normalised images, targets and indices in the split -> maps."""
        return method.bind(self.loaded.module, self.provided(split))

    def provided(self, split: Split) -> dict[str, Any]:
        """What a method is given that asks for it by name."""
        return {
            "seed": seeding.of_split(self.run.config.seed, split.name),
            "regions": regions_of(split),
            "normalization": self.loaded.normalization,
            "classifier_sha256": self.loaded.weights_sha256,
        }

    def _is_there(self, method: Explainer, split: Split, path: Path, rows: NDArray[np.int64] | None) -> bool:
        if method.path != IMPORTED:
            return is_complete(path, self.origin(method, split, rows))
        self.require_imported(method, split, path)
        return True

    def require_imported(self, method: Explainer, split: Split, path: Path) -> None:
        """Checks that the maps of an imported method are there, for these images and this classifier.

        Raises:
            MapError: they are not, and only `heatproof import-maps` can make them.
        """
        state = store.read_state(path)
        if state is None or not state.complete or state.origin is None:
            raise MapError(f"{path}: not there, or not complete; make it with heatproof import-maps")
        wanted = self.origin(method, split) | {"imported": state.origin.get("imported")}
        if not state.is_done(wanted):
            changed = "; ".join(state.differences(wanted)[:3])
            raise MapError(f"{path}: stale ({changed}); make it again with heatproof import-maps")

    def writer(
        self, method: Explainer, split: Split, path: Path, origin: dict[str, Any], rows: int | None = None
    ) -> store.MapWriter:
        """Opens a method's file for writing; what was written of it before is kept."""
        names = tuple(self.run.dataset.class_names)
        return store.MapWriter(
            path,
            origin=origin,
            method=method.name,
            split=split.name,
            rows=len(split) if rows is None else rows,
            size=self.run.dataset.size,
            classes=self.class_count,
            label_classes=None if self.run.class_names(self.class_count) == names else len(names),
            dtype=self.dtype,
            consolidate=self.consolidate,
            rows_per_block=min(store.rows_per_shard(self.run.dataset.size), ROWS_PER_BLOCK),
        )

    def intact(self, split: Split, indices: NDArray[np.int64]) -> "IntactImages":
        """Reads and classifies some images."""
        pixels = split.pixels(indices)
        with torch.inference_mode():
            batches = [self.loaded.module(self._images(chunk)).float().cpu() for chunk in pixels.split(self.batch_size)]
        logits = torch.cat(batches).numpy()
        label = split.labels[indices]
        self._check_answers(split, indices, label, logits)
        prediction = logits.argmax(1).astype(np.int64)
        target = prediction if self.target == "predicted" else label
        return IntactImages(pixels, indices, label, target, prediction, logits)

    def _check_answers(
        self, split: Split, indices: NDArray[np.int64], label: NDArray[np.int64], logits: NDArray[np.float32]
    ) -> None:
        """Raises an error that names the first image without a class that could be explained."""
        broken = ~np.isfinite(logits).all(axis=1)
        if broken.any():
            raise ModelError(
                f"{self.model.arch}: gives NaN or infinity for image {indices[broken.argmax()]} of {split.name}; check its weights "
                "and its normalization"
            )
        if self.target == "label" and (label >= logits.shape[1]).any():
            row = int((label >= logits.shape[1]).argmax())
            raise DataError(
                f"target: label: image {indices[row]} of {split.name} is of class {label[row]}, but the classifier has "
                f"{logits.shape[1]} classes; take target: predicted, or another classifier"
            )

    def write(
        self,
        writer: store.MapWriter,
        split: str,
        block: store.Block,
        images: "IntactImages",
        maps: NDArray[np.float32],
        invalid: NDArray[np.bool_],
    ) -> None:
        """Ranks the maps (N, H, W) of a block and writes them beside what the classifier says of the images."""
        writer.write(
            block,
            maps=maps,
            ranks=self.ranks(split, images.index, maps, invalid),
            invalid=invalid,
            index=images.index,
            label=images.label,
            target=images.target,
            prediction=images.prediction,
            logits=images.logits,
        )

    def ranks(
        self, split: str, index: NDArray[np.int64], maps: NDArray[np.float32], invalid: NDArray[np.bool_]
    ) -> NDArray[np.integer]:
        """Ranks (N, H, W) of the pixels of maps (N, H, W), ties by the keys of the images `index` (N,) of a split."""
        return ranked(index, maps, invalid, self.ties, seeding.of_split(self.run.config.seed, split))

    def _explain(
        self, images: "IntactImages", explain: Explain, bar: "tqdm[Any]"
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        maps, invalid = [], []
        for start in range(0, len(images.index), self.batch_size):
            chosen = slice(start, start + self.batch_size)
            targets = torch.from_numpy(images.target[chosen]).to(self.run.device)
            indices = torch.from_numpy(images.index[chosen])
            found = explain(self._images(images.pixels[chosen]), targets, indices)
            maps.append(found.maps.cpu().numpy())
            invalid.append(found.invalid.cpu().numpy())
            bar.update(len(indices))
        return np.concatenate(maps), np.concatenate(invalid)

    def _images(self, pixels: Tensor) -> Tensor:
        images: Tensor = self.loaded.normalization(pixels.to(self.run.device).float().div_(255.0))
        return images


@dataclass(frozen=True)
class IntactImages:
    """Some images of a split, and what the classifier says of them: pixels (N, C, H, W) uint8, logits (N, K)."""

    pixels: Tensor
    index: NDArray[np.int64]
    label: NDArray[np.int64]
    target: NDArray[np.int64]
    prediction: NDArray[np.int64]
    logits: NDArray[np.float32]


def maps_of(run: Run, method: str, split: Split) -> store.MapReader:
    """A method's maps of a whole split, in its order.

    Raises:
        MissingInputError: they are not there.
        MapError: they are not complete, or of other images.
    """
    path = run.config.outdir / "extract_cams" / method / f"{split.name}.h5"
    if not path.is_file():
        raise MissingInputError(f"{path}: no such file of maps; run extract-attribution-maps first")
    reader = store.MapReader(path)
    reader.require_complete()
    rows = len(split)
    if reader.origin.get("data") != split.fingerprint:
        raise MapError(f"{path}: maps of other data than the configuration's; run extract-attribution-maps")
    if reader.rows != rows or not np.array_equal(reader.index, np.arange(rows)):
        raise MapError(f"{path}: {reader.rows} rows that are not the split's {rows} images in order")
    return reader


def explainer(method: config.AttributionMethod) -> Explainer:
    """The method of a configuration's entry."""
    return Explainer(method.name, method.method, method.kwargs, method.channel_reduction, method.on_invalid)


def is_called(method: Explainer) -> bool:
    """Whether a method can be called on images: not if its maps are imported, or derived from those of another."""
    return method.path != IMPORTED and not twins.is_twin(method.path)


def ranked(
    index: NDArray[np.int64],
    maps: NDArray[np.float32],
    invalid: NDArray[np.bool_],
    ties: Literal["random", "index"],
    seed: int,
) -> NDArray[np.integer]:
    """Ranks (N, H, W) of the pixels of maps (N, H, W); in `invalid` rows (N,) they mean nothing."""
    keys = removal.tie_keys(seed, index, maps[0].size) if ties == "random" else None
    # The writer marks invalid rows; here they only must not stop the others.
    clean = np.where(invalid[:, None, None], np.float32(0), maps)
    return removal.ranks(removal.orders(clean, ties=ties, keys=keys), size=maps.shape[1:])


def is_complete(path: Path, wanted: Mapping[str, Any]) -> bool:
    """Whether a row file needs nothing more; what it needs goes to the log."""
    state = store.read_state(path)
    if state is None:
        logger.info("%s: to be computed", path)
    elif state.damage:
        logger.info("%s; to be computed again", state.damage)
    elif state.differences(wanted):
        logger.info("%s: stale, to be computed again: %s", path, "; ".join(state.differences(wanted)[:3]))
    elif not state.complete:
        logger.info("%s: %d of %d rows; to be continued", path, state.rows_done, state.rows)
    else:
        logger.info("%s: complete", path)
        return True
    return False


def _code(method: Explainer) -> Any:
    if method.path == IMPORTED:
        return None
    if twins.is_twin(method.path):
        return [twins.RESULTS_VERSION, _code(twins.source_of(method))]
    return method.code_version()


def regions_of(split: Split) -> Any:
    """The split's function of known regions; None where the data set knows none."""
    return None if split.regions(np.zeros(1, dtype=np.int64)) is None else split.regions
