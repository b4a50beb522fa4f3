"""What all tests have in common that score stored maps, image by image.

A test says which columns it keeps of an image, how it measures them, and which scores they give. Here is the rest: the
maps are taken from the store, or computed into it where they are not there; what is done is left as it is, what is partial
is continued; <section>/<method>.h5 gets one row for each image, <section>/results.csv one line for each score.
"""

import dataclasses
import functools
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from heatproof import artefacts, config, removal, runtime, seeding, store
from heatproof.datasets import Split
from heatproof.errors import ConfigError, DataError, MapError, MissingInputError
from heatproof.methods.explainer import Explained, Explainer
from heatproof.metrics import statistics
from heatproof.metrics.comparison import Settings, compare, sample_of
from heatproof.metrics.score import Curve, Pooled, Score, Scored
from heatproof.models import LoadedModel
from heatproof.stages import infilled
from heatproof.stages.extract import Extraction, Source, folder_of
from heatproof.stages.kept_maps import content_of
from heatproof.stages.plan import Artefact
from heatproof.stages.run import IMAGES, Run, build_fill

logger = logging.getLogger(__name__)

FORMAT = "heatproof/scores"
KNOWN = ("index", "label", "target", "prediction")  # columns that every test keeps
LINE = (
    "method", "control", "score", "setting", "better", "n", "n_undefined", "mean", "sd", "low", "high", "chance",
    "difference_n", "difference_to_random", "difference_low", "difference_high", "cohens_d", "p_holm",
    "not_better_than", "not_testable_against",
)  # fmt: skip


@dataclass(frozen=True)
class Images:
    """Some images of a split, and one method's maps of them.

    Args:
        index: (B,) positions in the split.
        label, target, prediction: (B,) the true class, the one that is explained, the classifier's.
        logits: (B, K) of the intact images.
        pixels: (B, C, H, W) uint8, on the run's device.
        maps: (B, H, W) float32; zeros where `invalid`.
        ranks: (B, H, W) on the run's device, 0 = most important.
        invalid: (B,) maps with NaN or infinity; their scores become NaN.
        regions: (B, H, W) the object; None where the data set does not know it.
        boxes: for each image (k, 4) half-open (x0, y0, x1, y1), perhaps partly outside the frame; None as above.
        ignored: (B, H, W) pixels that count neither way; None where there are none.
    """

    index: NDArray[np.int64]
    label: NDArray[np.int64]
    target: NDArray[np.int64]
    prediction: NDArray[np.int64]
    logits: NDArray[np.float32]
    pixels: Tensor
    maps: NDArray[np.float32]
    ranks: Tensor
    invalid: NDArray[np.bool_]
    regions: NDArray[np.bool_] | None
    boxes: Sequence[NDArray[np.int64]] | None
    ignored: NDArray[np.bool_] | None

    def __len__(self) -> int:
        return len(self.index)


@dataclass(frozen=True)
class Subject:
    """The classifier that is explained, by which method, on which images.

    Args:
        extraction: the classifier and the methods.
        split: the images.
        method: one of the methods.
        infills: stored images in the place of fills, by the name of the infiller.
    """

    extraction: Extraction
    split: Split
    method: Explainer
    infills: Mapping[str, infilled.StoredInfill] = dataclasses.field(default_factory=dict)

    @property
    def run(self) -> Run:
        """The configuration at work."""
        return self.extraction.run

    @property
    def loaded(self) -> LoadedModel:
        """The classifier, in eval mode on the run's device."""
        return self.extraction.loaded

    def fill(self, asked: str | config.Plugin) -> removal.Fill | removal.ByRemoval:
        """The fill that a section asks for."""
        if (name := infilled.name_of(asked)) is not None:
            return self.infills[name]
        return build_fill(self.run, asked, lambda: self.loaded.normalization)

    def degraded(
        self,
        images: "Images",
        ranks: Tensor | NDArray[Any],
        fractions: Sequence[float],
        firsts: Sequence[removal.First],
        fill: removal.Fill | removal.ByRemoval,
        rows_per_forward: int,
    ) -> removal.DegradedScores:
        """What the classifier says of the images without growing parts of them; see `removal.degraded_scores`."""
        return removal.degraded_scores(
            self.loaded.module,
            images.pixels,
            ranks,
            images.target,
            normalize=self.loaded.normalization,
            fractions=fractions,
            fill=fill,
            firsts=firsts,
            rows_per_forward=rows_per_forward,
            indices=images.index,
        )

    @functools.cached_property
    def explain(self) -> Callable[[Tensor, Tensor, Tensor], Explained]:
        """The method at work: normalised images, targets and indices in the split -> maps."""
        return self.extraction.bind(self.method, self.split)


class MapTest(Protocol):
    """What a test has to say; `evaluate` does the rest."""

    @property
    def settings(self) -> config.MapTest:
        """Its section of the configuration."""
        ...

    @property
    def section(self) -> str:
        """Name of that section, and of the folder."""
        ...

    @property
    def scores(self) -> Sequence[Score]:
        """All that `read` may yield."""
        ...

    def columns(self, size: tuple[int, int]) -> Sequence[store.Column]:
        """What is kept of each image of height and width `size`, beside index, label, target and prediction."""
        ...

    def origin(self) -> dict[str, Any]:
        """Settings and version of the code that the values depend on, apart from maps, classifier, images and seed."""
        ...

    def measure(self, images: Images, subject: Subject) -> Mapping[str, NDArray[Any]]:
        """One row for each image in every column."""
        ...

    def read(self, column: Callable[[str], NDArray[Any]]) -> Iterator[Scored | Pooled | Curve]:
        """The scores of all images, from the stored columns."""
        ...


@runtime_checkable
class RemovesByOrder(Protocol):
    """A test that removes the first or last pixels of a map's order, so that stored images can stand in for its fill."""

    def removals(self, size: tuple[int, int]) -> Mapping[str, Sequence[infilled.Removal]]:
        """What is removed from images of height and width `size`, for each key of a fill."""
        ...


@dataclass(frozen=True)
class SampledMaps:
    """The maps of the images that a test asks for.

    Args:
        extraction: the classifier and the methods.
        rows: (N,) the sampled images, ascending; unknown where the images are not there.
        maps: a file for each method that holds these images, by the method's name: that of extract-attribution-maps where it
            is complete, else one of the sample.
    """

    extraction: Extraction
    rows: NDArray[np.int64] | artefacts.Unknown
    maps: Mapping[str, Artefact[Source]]

    @classmethod
    def of(cls, run: Run, section: config.MapTest) -> "SampledMaps":
        """What a section asks for."""
        extraction = Extraction.of(run, section)
        whole = {file.job.method.name: file for file in extraction.plan("test", extraction.files("test"))}
        if not run.has_images:
            return cls(extraction, IMAGES, whole)
        count = len(run.dataset.split("test"))
        rows = sample(run.config.seed, count, section.test_samples)
        if len(rows) == count:
            return cls(extraction, rows, whole)
        is_whole = {
            name: file.job.method.path == config.IMPORTED or file.status().is_complete for name, file in whole.items()
        }
        paths = {
            name: file.path if is_whole[name] else file.path.with_name(f"test-{len(rows)}.h5")
            for name, file in whole.items()
        }
        sampled = {file.job.method.name: file for file in extraction.plan("test", paths, rows)}
        return cls(extraction, rows, {name: whole[name] if is_whole[name] else sampled[name] for name in whole})

    @property
    def chosen(self) -> NDArray[np.int64]:
        """The rows, where they are known."""
        assert isinstance(self.rows, np.ndarray)
        return self.rows

    def named_rows(self) -> Any:
        """The rows, as an origin says them."""
        return self.rows if isinstance(self.rows, artefacts.Unknown) else self.rows.tolist()

    def contents(self) -> dict[str, Any]:
        """What is in each method's file, for an origin."""
        return {name: content_of(file) for name, file in self.maps.items()}

    def make(self) -> dict[str, store.MapReader]:
        """Computes the maps that are missing or stale, and opens all."""
        run, split = self.extraction.run, self.extraction.run.dataset.split("test")
        groups: dict[bool, list[Artefact[Source]]] = {}
        for file in self.maps.values():
            groups.setdefault(file.job.rows is None, []).append(file)
        paths = {name: file.path for name, file in self.maps.items()}
        # Whole files that are complete come first: twins of the sample may be derived from them.
        for is_whole in (True, False):
            if is_whole in groups:
                self.extraction.extract(split, groups[is_whole], folder_of(run), paths)
        readers = {name: store.MapReader(file.path) for name, file in self.maps.items()}
        _log_accuracy(run, next(iter(readers.values())), self.chosen)
        return readers


def plan(run: Run, section: config.MapTest, test: MapTest) -> list[Artefact[SampledMaps]]:
    """Every method's scores of a test; `table` summarises them."""
    sampled = SampledMaps.of(run, section)
    contents, identity = sampled.contents(), sampled.extraction.identity()
    shared = {
        "model": identity,
        "data": run.fingerprint("test"),
        "rows": sampled.named_rows(),
        "seed": run.config.seed,
        **test.origin(),
        **run.comparability(section.model),
    }
    folder = run.config.outdir / test.section
    return [
        Artefact(
            folder / f"{name}.h5",
            {"maps": content, **shared, **_infills(run, section, test, name, content).origin},
            sampled,
        )
        for name, content in contents.items()
    ]


def table(run: Run, section: config.MapTest, test: MapTest, files: Sequence[Artefact[Any]]) -> Artefact[None]:
    """The summary of a test's scores, results.csv."""
    return Artefact(
        run.config.outdir / test.section / "results.csv",
        {
            "origins": {file.path.stem: file.origin for file in files},
            "controls": {method.name: method.control for method in section.methods()},
            "scores": [[score.name, score.better] for score in test.scores],
            "columns": list(LINE),
            "intervals": run.intervals.origin(),
            "code": statistics.RESULTS_VERSION,
        },
        None,
    )


def evaluate(run: Run, section: config.MapTest, test: MapTest) -> list[Artefact[SampledMaps]]:
    """Makes what is missing or stale of every method's scores, and summarises them.

    Returns:
        The files of scores.
    """
    sampled = SampledMaps.of(run, section)
    readers = sampled.make()
    split = run.dataset.split("test")
    methods = {method.name: method for method in sampled.extraction.methods}
    files = plan(run, section, test)
    for file in files:
        file.require_inputs()
    for file in files:
        if not file.is_complete():
            name = file.path.stem
            infills = _infills(run, section, test, name, file.origin["maps"]).found
            subject = Subject(sampled.extraction, split, methods[name], infills)
            _score(section, test, subject, sampled.chosen, readers[name], file)
    summary = table(run, section, test, files)
    if not summary.is_complete():
        _write_results(summary, section, test, run.intervals, {file.path.stem: file.path for file in files})
    return files


@dataclass(frozen=True)
class _Infills:
    """Stored images by the name of their infiller, and what they add to an origin."""

    found: Mapping[str, infilled.StoredInfill]
    origin: Mapping[str, Any]


def _infills(run: Run, section: config.MapTest, test: MapTest, method: str, maps: Any) -> _Infills:
    """For maps of this content, the stored images that a section asks for in the place of fills; unknown in a dry run where they are not there."""
    asked = infilled.asked_by(section)
    if not asked:
        return _Infills({}, {})
    if not isinstance(test, RemovesByOrder):
        raise ConfigError(
            f"{test.section}.{next(iter(asked))}: this test removes other pixels than the first of a map's order, which are not "
            "stored; name the fill itself"
        )
    try:
        removals = test.removals(run.dataset.size)
        found = {name: infilled.opened(run, name, method, "test", maps) for name in set(asked.values())}
        for name, one in found.items():
            # All that is missing is told at once, not one key after the other.
            one.need([removal for key in removals if asked.get(key) == name for removal in removals[key]])
    except (MissingInputError, MapError, DataError) as error:
        if not run.dry_run:
            raise
        return _Infills({}, {"infills": artefacts.Unknown(str(error))})
    return _Infills(found, {"infills": {key: found[name].content_ids(removals[key]) for key, name in asked.items()}})


def sample(seed: int, count: int, wanted: int | None) -> NDArray[np.int64]:
    """Which images of a split are looked at: the same for all tests, and a smaller sample is part of a larger one."""
    if wanted is None or wanted >= count:
        return np.arange(count)
    return np.sort(seeding.generator(seed, "sample").permutation(count)[:wanted])


def _log_accuracy(run: Run, reader: store.MapReader, rows: NDArray[np.int64]) -> None:
    """Says how good the classifier is on the images: scores of the maps of a bad one explain nothing."""
    if run.class_names(reader.classes) == tuple(run.dataset.class_names):
        chosen = np.isin(reader.index, rows)
        right = int((reader.predictions[chosen] == reader.labels[chosen]).sum())
        logger.info("the classifier is right on %d of %d images", right, len(rows))
    else:
        logger.info(
            "the classifier has %d classes of its own, the data set %d: no label says whether it is right",
            reader.classes, len(run.dataset.class_names),
        )  # fmt: skip


def _score(
    section: config.MapTest,
    test: MapTest,
    subject: Subject,
    rows: NDArray[np.int64],
    maps: store.MapReader,
    file: Artefact[Any],
) -> None:
    """Makes one method's file of scores."""
    run, split = subject.run, subject.split
    known = [store.Column(name, "int64") for name in KNOWN]
    columns = [*known, *test.columns(run.dataset.size)]
    started = time.monotonic()
    writer = store.RowWriter(
        file.path, columns, rows=len(rows), origin=file.origin, kind=FORMAT, rows_per_shard=section.batch_size
    )
    missing = writer.missing()
    where = maps.rows_of(rows)
    with runtime.progress(sum(b.stop - b.start for b in missing), f"{test.section} {file.path.stem}") as bar:
        for block in missing:
            images = _images(run, split, maps, where[block.start : block.stop])
            values = {name: np.array(array) for name, array in test.measure(images, subject).items()}
            for array in values.values():
                if np.issubdtype(array.dtype, np.floating):
                    array[images.invalid] = np.nan
            writer.write(block, {name: getattr(images, name) for name in KNOWN} | values)
            bar.update(len(images))
    writer.finish()
    runtime.record_time(file.path.parent, file.path.stem, len(rows), started)


def _images(run: Run, split: Split, maps: store.MapReader, rows: NDArray[np.int64]) -> Images:
    index, invalid = maps.index[rows], maps.invalid[rows]
    return Images(
        index=index,
        label=maps.labels[rows],
        target=maps.targets[rows],
        prediction=maps.predictions[rows],
        logits=maps.logits[rows],
        pixels=split.pixels(index).to(run.device),
        maps=np.where(invalid[:, None, None], np.float32(0), maps.maps(rows)),
        ranks=removal.rank_tensor(maps.ranks(rows), run.device),
        invalid=invalid,
        regions=split.regions(index),
        boxes=split.boxes(index),
        ignored=split.ignored(index),
    )


def _write_results(
    table: Artefact[None], section: config.MapTest, test: MapTest, settings: Settings, files: Mapping[str, Path]
) -> None:
    """One line for each method, score and setting, compared with the controls."""
    found: dict[tuple[str, str], dict[str, Scored | Pooled]] = {}
    for name, path in files.items():
        for part in test.read(store.RowReader(path).read):
            if not isinstance(part, Curve):
                found.setdefault((part.name, part.setting), {})[name] = part
    better = {score.name: score.better for score in test.scores}
    samples = [sample_of(parts, better[name]) for (name, _), parts in found.items()]
    controls = {method.name: method.control for method in section.methods()}
    lines: dict[str, list[list[Any]]] = {name: [] for name in files}
    for (score, setting), entries in zip(found, compare(samples, controls, settings), strict=True):
        for entry in entries:
            row = {"score": score, "setting": setting, "better": better[score], **entry.row()}
            lines[entry.method].append([row[name] for name in LINE])
    artefacts.write_csv(table.path, LINE, [line for of_method in lines.values() for line in of_method])
    table.write(table.path)
