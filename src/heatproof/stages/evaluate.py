"""What all tests have in common that score stored maps, image by image.

A test says which columns it keeps of an image, how it measures them, and which scores they give. Here is the rest: the
maps are taken from the store, or computed into it where they are not there; what is done is left as it is, what is partial
is continued; <section>/<method>.h5 gets one row for each image, <section>/results.csv one line for each score.
"""

import dataclasses
import functools
import itertools
import logging
import math
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
from heatproof.errors import ConfigError
from heatproof.methods.explainer import Explained, Explainer
from heatproof.metrics import statistics
from heatproof.metrics.score import Curve, Pooled, Score, Scored
from heatproof.models import LoadedModel
from heatproof.stages import infilled
from heatproof.stages.extract import Extraction, is_complete
from heatproof.stages.run import Run, build_fill

logger = logging.getLogger(__name__)

FORMAT = "heatproof/scores"
KNOWN = ("index", "label", "target", "prediction")  # columns that every test keeps
LINE = (
    "method", "control", "score", "setting", "better", "n", "n_undefined", "mean", "sd", "low", "high", "useless",
    "difference_n", "difference_to_random", "difference_low", "difference_high", "cohens_d",
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
        plan: the classifier and the methods.
        split: the images.
        method: one of the methods.
        infills: stored images in the place of fills, by the name of the infiller.
    """

    plan: Extraction
    split: Split
    method: Explainer
    infills: Mapping[str, infilled.StoredInfill] = dataclasses.field(default_factory=dict)

    @property
    def run(self) -> Run:
        """The configuration at work."""
        return self.plan.run

    @property
    def loaded(self) -> LoadedModel:
        """The classifier, in eval mode on the run's device."""
        return self.plan.loaded

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
        return self.plan.bind(self.method, self.split)


class MapTest(Protocol):
    """What a test has to say; `evaluate` does the rest."""

    @property
    def section(self) -> str:
        """Name of the configuration's section, and of the folder."""
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
class StoredMaps:
    """Where the maps of the images that a test asks for are.

    Args:
        plan: the classifier and the methods.
        split: the images.
        rows: (N,) the sampled ones, ascending.
        files: an attribution file for each method that holds these images, in the order of the methods.
    """

    plan: Extraction
    split: Split
    rows: NDArray[np.int64]
    files: Mapping[str, Path]


def evaluate(run: Run, section: config.MapTest, test: MapTest) -> dict[str, Path]:
    """Computes what is missing or stale of every method's scores, and summarises them.

    Returns:
        The file of scores of each method; those that are there only, in a dry run.
    """
    folder = run.config.outdir / test.section
    stored = stored_maps(run, section)
    files, origins = {}, {}
    for method in stored.plan.methods:
        maps = stored.files[method.name]
        if not run.dry_run or maps.is_file():
            path = folder / f"{method.name}.h5"
            reader = store.MapReader(maps)
            infills = _infills(run, section, test, method.name, stored.split, reader)
            subject = Subject(stored.plan, stored.split, method, infills.found)
            origins[method.name] = _score(section, test, subject, stored.rows, reader, path, infills.origin)
            files[method.name] = path
    if run.dry_run:
        return {name: path for name, path in files.items() if path.is_file()}
    _write_results(folder, section, test, run.config.seed, files, origins)
    return files


@dataclass(frozen=True)
class _Infills:
    """Stored images by the name of their infiller, and what they add to an origin."""

    found: Mapping[str, infilled.StoredInfill]
    origin: Mapping[str, Any]


def _infills(
    run: Run, section: config.MapTest, test: MapTest, method: str, split: Split, maps: store.MapReader
) -> _Infills:
    """The stored images that a section asks for in the place of fills."""
    asked = infilled.asked_by(section)
    if not asked:
        return _Infills({}, {})
    if not isinstance(test, RemovesByOrder):
        raise ConfigError(
            f"{test.section}.{next(iter(asked))}: this test removes other pixels than the first of a map's order, which are not "
            "stored; name the fill itself"
        )
    removals = test.removals(run.dataset.size)
    found = {name: infilled.opened(run, name, method, split, maps) for name in set(asked.values())}
    for name, one in found.items():
        # All that is missing is told at once, not one key after the other.
        one.need([removal for key in removals if asked.get(key) == name for removal in removals[key]])
    return _Infills(found, {"infills": {key: found[name].content_ids(removals[key]) for key, name in asked.items()}})


def stored_maps(run: Run, section: config.MapTest) -> StoredMaps:
    """The maps of the sampled test images: from extract-attribution-maps where they are there, else computed and kept."""
    plan = Extraction.of(run, section)
    split = run.dataset.split("test")
    rows = sample(run.config.seed, len(split), section.test_samples)
    folder = run.config.outdir / "extract_cams"
    files, missing = {}, []
    for method in plan.methods:
        path = folder / method.name / f"{split.name}.h5"
        state = store.read_state(path)
        if method.path == config.IMPORTED:
            plan.require_imported(method, split, path)
        elif state is None or not state.is_done(plan.origin(method, split)):
            missing.append(method)
            path = sampled_file(path, rows, len(split))
        files[method.name] = path
    if missing:
        plan.only(missing).extract(split, files, folder, rows=None if len(rows) == len(split) else rows)
    _log_accuracy(run, next(iter(files.values())), rows)
    return StoredMaps(plan, split, rows, files)


def sample(seed: int, count: int, wanted: int | None) -> NDArray[np.int64]:
    """Which images of a split are looked at: the same for all tests, and a smaller sample is part of a larger one."""
    if wanted is None or wanted >= count:
        return np.arange(count)
    return np.sort(seeding.generator(seed, "sample").permutation(count)[:wanted])


def sampled_file(path: Path, rows: NDArray[np.int64], count: int) -> Path:
    """Where the maps of some images only are kept, beside the file of all."""
    return path if len(rows) == count else path.with_name(f"{path.stem}-{len(rows)}.h5")


def _log_accuracy(run: Run, path: Path, rows: NDArray[np.int64]) -> None:
    """Says how good the classifier is on the images: scores of the maps of a bad one explain nothing."""
    reader = store.MapReader(path) if path.is_file() else None
    if reader is not None and run.class_names(reader.classes) == tuple(run.dataset.class_names):
        chosen = np.isin(reader.index, rows)
        right = int((reader.predictions[chosen] == reader.labels[chosen]).sum())
        logger.info("the classifier is right on %d of %d images", right, len(rows))
    elif reader is not None:
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
    path: Path,
    infills: Mapping[str, Any],
) -> dict[str, Any]:
    """Makes one method's file of scores complete; returns its origin."""
    run, split = subject.run, subject.split
    origin = {
        "maps": maps.content_id(),
        "model": maps.origin["model"],
        "data": split.fingerprint,
        "rows": rows.tolist(),
        "seed": run.config.seed,
        **test.origin(),
        **infills,
        # Named only where it is so: scores that do not compare labels with outputs have the same origin for good.
        **({} if subject.plan.labels_are_outputs else {"labels_are_outputs": False}),
    }
    if is_complete(path, origin) or run.dry_run:
        return origin
    known = [store.Column(name, "int64") for name in KNOWN]
    columns = [*known, *test.columns(run.dataset.size)]
    started = time.monotonic()
    writer = store.RowWriter(
        path, columns, rows=len(rows), origin=origin, kind=FORMAT, rows_per_shard=section.batch_size
    )
    missing = writer.missing()
    where = maps.rows_of(rows)
    with runtime.progress(sum(b.stop - b.start for b in missing), f"{test.section} {path.stem}") as bar:
        for block in missing:
            images = _images(run, split, maps, where[block.start : block.stop])
            values = {name: np.array(array) for name, array in test.measure(images, subject).items()}
            for array in values.values():
                if np.issubdtype(array.dtype, np.floating):
                    array[images.invalid] = np.nan
            writer.write(block, {name: getattr(images, name) for name in KNOWN} | values)
            bar.update(len(images))
    writer.finish()
    runtime.record_time(path.parent, path.stem, len(rows), started)
    return origin


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
    folder: Path,
    section: config.MapTest,
    test: MapTest,
    seed: int,
    files: Mapping[str, Path],
    origins: Mapping[str, Mapping[str, Any]],
) -> None:
    """One line for each method, score and setting, with its difference to the random control."""
    origin = {"origins": origins, "columns": list(LINE)}
    if artefacts.read_json(folder / "results.json") == {"origin": origin} and (folder / "results.csv").is_file():
        return
    controls = {method.name: method.control for method in section.methods()}
    found = {name: list(_scores(test, path)) for name, path in files.items()}
    random = {(score.name, score.setting): score for score in found.get("random", ())}
    better = {score.name: score.better for score in test.scores}
    lines = []
    for name, scores in found.items():
        for score, summary, difference in _summaries(scores, {} if name == "random" else random, seed):
            useless = getattr(score, "useless", None)
            chance = "" if useless is None else float(np.nanmean(useless)) if np.isfinite(useless).any() else ""
            line = [name, controls[name], score.name, score.setting, better[score.name], *summary, chance, *difference]
            lines.append(line)
    artefacts.write_csv(folder / "results.csv", LINE, lines)
    artefacts.write_json(folder / "results.json", {"origin": origin})


def _scores(test: MapTest, path: Path) -> Iterator[Scored | Pooled]:
    reader = store.RowReader(path)
    return (part for part in test.read(reader.read) if not isinstance(part, Curve))


Difference = tuple[float | str, float | str, float | str, float | str, float | str]
NO_DIFFERENCE: Difference = ("", "", "", "", "")


def _summaries(
    scores: Sequence[Scored | Pooled], random: Mapping[tuple[str, str], Scored | Pooled], seed: int
) -> Iterator[tuple[Scored | Pooled, statistics.Summary, Difference]]:
    """Each score with its summary and its difference to the random control; means of images are resampled together."""
    means = [score for score in scores if isinstance(score, Scored)]
    others = [random.get((score.name, score.setting)) for score in means]
    rows = [score.values for score in means]
    rows += [s.values - o.values for s, o in zip(means, others, strict=True) if isinstance(o, Scored)]
    summaries = iter(statistics.summarize_rows(rows, seed=seed) if rows else [])
    own = dict(zip((id(score) for score in means), itertools.islice(summaries, len(means)), strict=True))
    for score in scores:
        other = random.get((score.name, score.setting))
        if isinstance(score, Pooled):
            yield score, *pooled(score, other if isinstance(other, Pooled) else None, seed)
        elif isinstance(other, Scored):
            difference = next(summaries)
            effect = statistics.cohens_d(score.values - other.values)
            yield score, own[id(score)], (difference.n, difference.mean, difference.low, difference.high, effect)
        else:
            yield score, own[id(score)], NO_DIFFERENCE


def pooled(score: Pooled, other: Pooled | None, seed: int) -> tuple[statistics.Summary, Difference]:
    """A pooled score with its bootstrap interval, and its difference to another on the same resamples.

    The difference is that of both scores on the images that both use. Resamples in which a score is undefined are left out.
    """
    used = score.used
    drawn = _resampled(score, seed)
    n = int(used.sum())
    summary = statistics.Summary(n, len(used) - n, score.value, *_spread(drawn))
    if other is None:
        return summary, NO_DIFFERENCE
    both = used & other.used
    mine, theirs = score.among(both), other.among(both)
    gaps = (drawn if both.sum() == n else _resampled(mine, seed)) - _resampled(theirs, seed)
    _, low, high = _spread(gaps)
    return summary, (int(both.sum()), mine.value - theirs.value, low, high, "")


def _resampled(score: Pooled, seed: int) -> NDArray[np.float64]:
    return statistics.resampled(score.sums, score.statistic, seed)


def _spread(drawn: NDArray[np.float64]) -> tuple[float, float, float]:
    """Standard deviation and interval of resampled scores; NaN where none is defined."""
    defined = drawn[np.isfinite(drawn)]
    if len(defined) < 2:
        return math.nan, math.nan, math.nan
    low, high = statistics.Interval.of_resamples(defined, 0.95)
    return float(defined.std(ddof=1)), float(low), float(high)
