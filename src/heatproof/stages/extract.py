"""extract-attribution-maps: compute the maps of every attribution method, once.

Reads the data set and the trained classifier; writes extract_cams/<method>/<split>.h5. The images of a block are
read and classified once for all methods. Killed, it goes on from the last block.
"""

import dataclasses
import functools
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
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
from heatproof.errors import DataError, MapError, ModelError
from heatproof.methods.explainer import Explained, Explainer
from heatproof.models import LoadedModel
from heatproof.stages import twins
from heatproof.stages.plan import Artefact
from heatproof.stages.run import Run, identity_of, model_origin
from heatproof.store.maps import MapDtype
from heatproof.store.writer import Consolidate

logger = logging.getLogger(__name__)
Explain = Callable[[Tensor, Tensor, Tensor], Explained]
ROWS_PER_BLOCK = 1024  # what a kill costs at most, for each method


def plan(run: Run) -> list[Artefact["Source"]]:
    """Every method's maps of every split that is there."""
    section = config.section(run.config, "extract_cams", config.ExtractCams)
    extraction = Extraction.of(run, section)
    return [artefact for split in run.splits for artefact in extraction.plan(split, extraction.files(split))]


def run(run: Run) -> None:
    """Computes what is missing or stale of every method's maps, for all splits that are there."""
    extraction = Extraction.of(run, config.section(run.config, "extract_cams", config.ExtractCams))
    for name in run.splits:
        extraction.extract(run.dataset.split(name), extraction.plan(name, extraction.files(name)), folder_of(run))


def folder_of(run: Run) -> Path:
    """Where maps are kept, and their times."""
    return run.config.outdir / "extract_cams"


def file_of(run: Run, method: str, split: str) -> Path:
    """Where a method's maps of a whole split are kept."""
    return folder_of(run) / method / f"{split}.h5"


@dataclass(frozen=True)
class Source:
    """Where an artefact's maps come from: a method, for some images of a split.

    Args:
        method: the method.
        split: name of the split.
        rows: indices of the images; None means all, also where they are not known.
    """

    method: Explainer
    split: str
    rows: NDArray[np.int64] | None = None


@dataclass(frozen=True)
class Extraction:
    """A classifier, the methods that explain it, and how their maps are kept.

    Stages that need maps of some images only (LeRF of a sample) use it with their own `rows`.

    Args:
        given: another classifier than the section's, which may have been made from it.
    """

    run: Run
    model: config.Model
    methods: Sequence[Explainer]
    target: str
    dtype: MapDtype
    ties: Literal["random", "index"]
    batch_size: int
    consolidate: Consolidate
    given: LoadedModel | None = field(default=None, kw_only=True)

    @classmethod
    def of(cls, run: Run, section: config.ExtractCams | config.MapTest) -> "Extraction":
        """What a section asks for, checked before any work is done."""
        methods = [explainer(method) for method in section.methods()]
        for method in methods:
            if is_called(method) and not run.is_reading:
                method.check()
        consolidate: Consolidate = section.consolidate if isinstance(section, config.ExtractCams) else "auto"
        found = cls(
            run, section.model, methods, section.target, section.dtype, section.ties, section.batch_size, consolidate
        )
        if not run.dry_run:
            _ = found.loaded  # what is wrong with it shows before anything is computed
        return found

    @functools.cached_property
    def loaded(self) -> LoadedModel:
        """The classifier, in eval mode on the run's device; its labels are checked where they are explained."""
        if self.given is not None:
            return self.given
        loaded = self.run.classifier(self.model)
        if self.target == "label":
            self.run.require_labels(self.model, loaded, "target: label", "set target: predicted")
        return loaded

    def identity(self) -> dict[str, Any]:
        """The classifier, as an origin says it."""
        if self.given is None:
            return model_origin(self.model) | self.run.identity(self.model)
        return model_origin(self.model) | identity_of(self.given)

    def files(self, split: str) -> dict[str, Path]:
        """Where each method's maps of a whole split are kept."""
        return {method.name: file_of(self.run, method.name, split) for method in self.methods}

    def plan(
        self, split: str, paths: Mapping[str, Path], rows: NDArray[np.int64] | artefacts.Unknown | None = None
    ) -> list[Artefact[Source]]:
        """The maps of a split, for each method.

        Args:
            split: its name.
            paths: where each method's file goes.
            rows: indices of the images that are wanted; None means all.
        """
        chosen = rows if isinstance(rows, np.ndarray) else None
        return [
            Artefact(
                paths[method.name],
                self.origin(method, split, rows, self._source(method, split, paths)),
                Source(method, split, chosen),
                "imported" if method.path == IMPORTED else "computed",
            )
            for method in self.methods
        ]

    def _source(self, method: Explainer, split: str, paths: Mapping[str, Path]) -> Path | None:
        """The file that a twin is derived from."""
        if not twins.is_twin(method.path):
            return None
        name = twins.source_of(method).name
        return paths.get(name) or file_of(self.run, name, split)

    def origin(
        self,
        method: Explainer,
        split: str,
        rows: NDArray[np.int64] | artefacts.Unknown | None = None,
        source: Path | None = None,
    ) -> dict[str, Any]:
        """What a method's maps of a split depend on; a twin's depend on the file `source`."""
        made_from: dict[str, Any] = {}
        if source is not None:
            made_from["source"] = _content_id(source)
        if method.path == IMPORTED:
            made_from["imported"] = artefacts.Unknown(f"heatproof import-maps for {method.name}", is_there=True)
        return made_from | {
            "data": self.run.fingerprint(split),
            "rows": "all" if rows is None else rows if isinstance(rows, artefacts.Unknown) else rows.tolist(),
            "model": self.identity(),
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
            "seed": seeding.of_split(self.run.config.seed, split),
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
        self, split: Split, files: Sequence[Artefact[Source]], timing: Path, others: Mapping[str, Path] | None = None
    ) -> None:
        """Makes the files of maps of a split complete; twins last, from their sources.

        Args:
            split: the images.
            files: as `plan` lists them; they have the same rows.
            timing: folder of timing.csv.
            others: files of methods that are not among these, from which twins may be derived.
        """
        own = [file for file in files if not twins.is_twin(file.job.method.path)]
        missing = [file for file in own if not self._is_there(file)]
        if missing:
            self._compute(missing, split, timing)
        paths = {**(others or {}), **{file.job.method.name: file.path for file in files}}
        for twin in (file for file in files if twins.is_twin(file.job.method.path)):
            method, rows = twin.job.method, twin.job.rows
            source = self._source(method, split.name, paths)
            # Its source may just have been made.
            known = dataclasses.replace(twin, origin=self.origin(method, split.name, rows, source))
            if source is not None and not known.is_complete():
                self._derive(known, split, source, timing)

    def _compute(self, missing: Sequence[Artefact[Source]], split: Split, timing: Path) -> None:
        rows = missing[0].job.rows
        indices = np.arange(len(split)) if rows is None else rows
        writers = [self.writer(file, split, len(indices)) for file in missing]
        methods = [file.job.method for file in missing]
        explains = [self.bind(method, split) for method in methods]
        todo = sorted({block for writer in writers for block in writer.missing()})
        total = sum(block.stop - block.start for writer in writers for block in writer.missing())
        with runtime.progress(total, f"maps of {split.name}") as bar:
            for block in todo:
                shared = self.intact(split, indices[block.start : block.stop])
                for method, writer, explain in zip(methods, writers, explains, strict=True):
                    if block in writer.missing():
                        started = time.monotonic()
                        bar.set_postfix_str(method.name, refresh=False)
                        maps, invalid = self._explain(shared, explain, bar)
                        self.write(writer, split.name, block, shared, maps, invalid)
                        runtime.record_time(timing, f"{method.name}/{split.name}", len(shared.index), started)
        for writer in writers:
            writer.finish()

    def _derive(self, twin: Artefact[Source], split: Split, source: Path, timing: Path) -> None:
        """Makes a twin's file from its source's."""
        started = time.monotonic()
        method, rows = twin.job.method, twin.job.rows
        reader = store.MapReader(source)
        derived = twins.Twin(twins.kind_of(method.path), reader)
        taken = reader.rows_of(np.arange(len(split)) if rows is None else rows)
        writer = self.writer(twin, split, len(taken))
        with runtime.progress(len(taken), f"{method.name} of {split.name}") as bar:
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
        runtime.record_time(timing, f"{method.name}/{split.name}", len(taken), started)

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

    def _is_there(self, file: Artefact[Source]) -> bool:
        if file.job.method.path == IMPORTED:
            require_imported(file)
            return True
        return file.is_complete()

    def writer(self, file: Artefact[Source], split: Split, rows: int) -> store.MapWriter:
        """Opens a method's file for writing; what was written of it before is kept."""
        names = tuple(self.run.dataset.class_names)
        return store.MapWriter(
            file.path,
            origin=file.origin,
            method=file.job.method.name,
            split=split.name,
            rows=rows,
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


def require_imported(file: Artefact[Source]) -> None:
    """Checks that the maps of an imported method are there, for these images and this classifier.

    Raises:
        MapError: they are not, and only `heatproof import-maps` can make them.
    """
    found = file.status()
    if found.state == "stale":
        raise MapError(f"{file.path}: stale ({found.why}); make it again with heatproof import-maps")
    if not found.is_complete:
        raise MapError(f"{file.path}: not there, or not complete; make it with heatproof import-maps")


def _content_id(path: Path) -> Any:
    """What is in a complete file of maps, whatever it was made from; unknown before it is there."""
    state = store.read_state(path, store.FORMAT)
    if state is None or state.damage or not state.complete or store.damage_of(path):
        return artefacts.Unknown(str(path))
    return store.content_id(path)


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


def _code(method: Explainer) -> Any:
    if method.path == IMPORTED:
        return None
    if twins.is_twin(method.path):
        return [twins.RESULTS_VERSION, _code(twins.source_of(method))]
    return method.code_version()


def regions_of(split: Split) -> Any:
    """The split's function of known regions; None where the data set knows none."""
    return None if split.regions(np.zeros(1, dtype=np.int64)) is None else split.regions
