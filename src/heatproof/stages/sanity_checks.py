"""sanity-checks: test whether maps change when the classifier's weights are randomised.

Of the sampled images, each method's maps of the intact classifier are compared with its maps of
- classifiers with randomised layers (MPRT): cascading from the top or the bottom, or one layer at a time;
- a network of the same architecture trained on permuted labels (DRT);
- the intact classifier, for a random other class (random logit).
All explain the same images, and all but the last the same classes. Their maps go to the store like all others:
sanity_checks/<check>/<step>_<layer>/<method>/test.h5. Beside them: sanity_checks/<check>/<method>.h5, per image and step the
similarities (Spearman, Spearman of the absolute values, SSIM, HOG correlation), and results.csv.

Neither direction is better. Low similarity after full randomisation, and to the network with permuted labels, is *required*;
how low it is beyond that says nothing. The controls look at no classifier and so must fail: `sobel` shows how a map can look
convincing and yet pass none of this.
"""

import dataclasses
import hashlib
import itertools
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from heatproof import artefacts, config, runtime, seeding, store
from heatproof.datasets import Split
from heatproof.errors import ConfigError, HeatproofError
from heatproof.methods.explainer import Explainer
from heatproof.metrics import agreement, statistics
from heatproof.metrics.comparison import Settings, summaries
from heatproof.models import LoadedModel, randomisation
from heatproof.models.weights import read_weights, state_sha256
from heatproof.stages.evaluate import SampledMaps
from heatproof.stages.extract import Extraction, IntactImages, Source
from heatproof.stages.kept_maps import content_of
from heatproof.stages.permuted_labels import SECTION, permuted_labels, train_on_permuted_labels
from heatproof.stages.plan import Artefact
from heatproof.stages.robustness import name_left_out
from heatproof.stages.run import Run, model_origin

logger = logging.getLogger(__name__)

FORMAT = "heatproof/similarity"
LINE = (
    "method", "control", "model_independent", "check", "step", "layer", "score", "better", "n", "n_undefined", "mean",
    "sd", "low", "high", "verdict",
)  # fmt: skip
SCORES = ("spearman", "abs_spearman", "ssim", "hog")
CASCADES = ("top_down", "bottom_up")
CONTROLS = "heatproof.methods.controls."  # what is there looks at no classifier

Similarity = Callable[[NDArray[np.float64], NDArray[np.float64]], NDArray[np.float64]]


@dataclass(frozen=True)
class Step:
    """One thing that the intact maps are compared with: another network, or other classes.

    Args:
        name: of its folder.
        maps: each method's maps of it, by the method's name.
        build: makes what computes the maps.
    """

    name: str
    maps: Mapping[str, Artefact[Source]]
    build: Callable[[], "GivenTargets"]

    @property
    def layer(self) -> str:
        """The layer that is new; the whole name where it is no layer."""
        return self.name.partition("_")[2] or self.name


@dataclass(frozen=True)
class Check:
    """A check and its steps.

    Args:
        name: of its folder.
        steps: what the intact maps are compared with; unknown where the classifier is not there, whose layers they are.
        complete: whether after the last step nothing that was learnt is left.
        origin: what its similarities depend on beside the maps.
        informative: whether the step can tell anything.
    """

    name: str
    steps: Sequence[Step] | artefacts.Unknown
    complete: bool
    origin: Mapping[str, Any] = field(default_factory=dict)
    informative: bool | artefacts.Unknown = True

    @property
    def known(self) -> Sequence[Step]:
        """The steps that are known."""
        return () if isinstance(self.steps, artefacts.Unknown) else self.steps


@dataclass(frozen=True)
class GivenTargets(Extraction):
    """An extraction that explains given classes, whatever its classifier predicts.

    Args:
        targets: (len(split),) the class of each image; -1 where none is asked for; unknown before the intact maps are there.
        unmade: what has to be made before the classifier is known that is explained; empty where that is the intact one.
        is_there: whether nothing is missing to make it: a randomised classifier is never kept.
    """

    targets: NDArray[np.int64] | artefacts.Unknown
    unmade: str = ""
    is_there: bool = True

    @classmethod
    def beside(cls, intact: Extraction, targets: NDArray[np.int64] | artefacts.Unknown, **other: Any) -> "GivenTargets":
        """The same extraction for other classes, and perhaps of another classifier."""
        known = {part.name: getattr(intact, part.name) for part in dataclasses.fields(Extraction)}
        return cls(**known, targets=targets, **other)

    def explaining(self, loaded: LoadedModel) -> "GivenTargets":
        """The same of a classifier that has been made."""
        return dataclasses.replace(self, given=loaded, unmade="")

    def identity(self) -> dict[str, Any]:
        """The classifier, as an origin says it; unknown before it is made."""
        if not self.unmade:
            return super().identity()
        unmade = artefacts.Unknown(self.unmade, self.is_there)
        return model_origin(self.model) | dict.fromkeys(("weights", "normalization", "probabilities"), unmade)

    def origin(
        self,
        method: Explainer,
        split: str,
        rows: NDArray[np.int64] | artefacts.Unknown | None = None,
        source: Path | None = None,
    ) -> dict[str, Any]:
        """As of any extraction; the classes by their hash."""
        given: Any = self.targets
        if isinstance(self.targets, np.ndarray):
            chosen = self.targets[rows] if isinstance(rows, np.ndarray) else self.targets
            given = hashlib.sha256(chosen.astype("<i8").tobytes()).hexdigest()
        return super().origin(method, split, rows, source) | {"target": {"given": given}}

    def provided(self, split: Split) -> dict[str, Any]:
        """As of any extraction; a method that was trained for the intact classifier meets another one on purpose."""
        return {name: value for name, value in super().provided(split).items() if name != "classifier_sha256"}

    def intact(self, split: Split, indices: NDArray[np.int64]) -> IntactImages:
        """Reads and classifies some images; what is explained of them is given."""
        assert isinstance(self.targets, np.ndarray)
        return dataclasses.replace(super().intact(split, indices), target=self.targets[indices])


def plan(run: Run) -> list[Artefact[Any]]:
    """The maps of all steps, their similarities to the intact ones, and the summary."""
    section = config.section(run.config, SECTION, config.SanityChecks)
    sampled = SampledMaps.of(run, section)
    checks = _checks(run, section, sampled)
    trained = [] if section.data_randomisation is None else [permuted_labels(run, section, section.data_randomisation)]
    maps = [file for check in checks for step in check.known for file in step.maps.values()]
    similarities = _similarities(run, checks, sampled)
    return [*trained, *maps, *similarities, _summary(run, section, checks, similarities)]


def run(run: Run) -> None:
    """Computes what is missing or stale of the maps and similarities, and summarises them."""
    section = config.section(run.config, SECTION, config.SanityChecks)
    name_left_out(SECTION, section)
    sampled = SampledMaps.of(run, section)
    intact = sampled.make()
    split = run.dataset.split("test")
    if section.data_randomisation is not None:
        train_on_permuted_labels(run, section, section.data_randomisation)
    checks = _checks(run, section, sampled)
    for check in checks:
        files: list[Artefact[Any]] = [
            *_similarities(run, [check], sampled),
            *(file for step in check.known for file in step.maps.values()),
        ]
        if all(file.status().is_complete for file in files):
            for file in files:
                file.remove_leftovers()
            continue
        for step in check.known:  # one randomised classifier at a time is held
            extraction = step.build()
            paths = {name: file.path for name, file in step.maps.items()}
            rows = next(iter(step.maps.values())).job.rows
            extraction.extract(split, extraction.plan("test", paths, rows), run.config.outdir / SECTION)
        for file in _similarities(run, [check], sampled):
            if not file.is_complete():
                others = [step.maps[file.path.stem].path for step in check.known]
                _compare(section, sampled.chosen, intact[file.path.stem], others, file)
    similarities = _similarities(run, checks, sampled)
    summary = _summary(run, section, checks, similarities)
    if not summary.is_complete():
        _write_results(section, run.intervals, checks, summary)


# --- what the intact maps are compared with


def _checks(run: Run, section: config.SanityChecks, sampled: SampledMaps) -> list[Check]:
    intact, targets = sampled.extraction, _targets(sampled)
    names = _layers(run, section)
    origin = {
        "model": intact.identity(),
        "initialisation": section.initialisation,
        "keep_statistics": section.keep_statistics,
        "randomisation": randomisation.RESULTS_VERSION,
    }
    checks = []
    for order in section.orders:
        steps: list[Step] | artefacts.Unknown = artefacts.Unknown("the classifier")
        if names is not None:
            steps = [
                _randomised(run, section, sampled, targets, Path(order) / f"{number:02d}_{step.layer}", step)
                for number, step in enumerate(randomisation.steps(names, order), start=1)
            ]
        checks.append(Check(order, steps, order in CASCADES, origin))
    if section.random_logit:
        extraction = GivenTargets.beside(intact, _other_classes(run, sampled, targets))
        step = _step(run, sampled, Path("random_logit") / "other-class", extraction, lambda: extraction)
        checks.append(Check("random_logit", [step], complete=False))
    if section.data_randomisation is not None:
        checks.append(_data_randomisation(run, section, section.data_randomisation, sampled, targets))
    return checks


def _layers(run: Run, section: config.SanityChecks) -> list[str] | None:
    try:
        module = run.classifier(section.model).module
    except HeatproofError:
        if not run.dry_run:
            raise
        return None
    return randomisation.layers(module, section.layer_depth)


def _targets(sampled: SampledMaps) -> NDArray[np.int64] | artefacts.Unknown:
    """The classes that the intact maps explain, by index in the split; -1 for images that are not sampled."""
    file = next(iter(sampled.maps.values()))
    if isinstance(sampled.rows, artefacts.Unknown) or not file.status().is_complete:
        return artefacts.Unknown(str(file.path))
    reader = store.MapReader(file.path)
    targets = np.full(len(sampled.extraction.run.dataset.split("test")), -1)
    targets[sampled.rows] = reader.targets[reader.rows_of(sampled.rows)]
    return targets


def _step(
    run: Run, sampled: SampledMaps, name: Path, extraction: GivenTargets, build: Callable[[], GivenTargets]
) -> Step:
    folder = run.config.outdir / SECTION / name
    paths = {method.name: folder / method.name / "test.h5" for method in extraction.methods}
    rows: NDArray[np.int64] | artefacts.Unknown | None = sampled.rows
    if isinstance(rows, np.ndarray) and len(rows) == len(run.dataset.split("test")):
        rows = None
    files = extraction.plan("test", paths, rows)
    return Step(name.name, {file.job.method.name: file for file in files}, build)


def _randomised(
    run: Run,
    section: config.SanityChecks,
    sampled: SampledMaps,
    targets: NDArray[np.int64] | artefacts.Unknown,
    name: Path,
    step: randomisation.Step,
) -> Step:
    extraction = GivenTargets.beside(sampled.extraction, targets, unmade=f"the classifier of {name}")

    def build() -> GivenTargets:
        loaded = sampled.extraction.loaded
        module = randomisation.randomised(
            loaded.module,
            step.randomised,
            run.config.seed,
            initialisation=section.initialisation,
            keep_statistics=section.keep_statistics,
        )
        return extraction.explaining(dataclasses.replace(loaded, module=module, weights_sha256=state_sha256(module)))

    return _step(run, sampled, name, extraction, build)


def _other_classes(
    run: Run, sampled: SampledMaps, targets: NDArray[np.int64] | artefacts.Unknown
) -> NDArray[np.int64] | artefacts.Unknown:
    """For each image a class other than the one that is explained."""
    if isinstance(targets, artefacts.Unknown):
        return targets
    classes = store.MapReader(next(iter(sampled.maps.values())).path).classes
    if classes < 2:
        raise ConfigError("sanity_checks.random_logit: the classifier has one class only; set it to false")
    others = targets.copy()
    for index in sampled.chosen.tolist():
        drawn = int(seeding.generator(run.config.seed, "random_logit", index).integers(classes - 1))
        others[index] = drawn + (drawn >= targets[index])
    return others


def _data_randomisation(
    run: Run,
    section: config.SanityChecks,
    asked: config.DataRandomisation,
    sampled: SampledMaps,
    targets: NDArray[np.int64] | artefacts.Unknown,
) -> Check:
    place = permuted_labels(run, section, asked)
    kept = place.status().content
    extraction = GivenTargets.beside(sampled.extraction, targets, unmade=str(place.path), is_there=bool(kept))

    def build() -> GivenTargets:
        loaded = run.fresh(config.section(run.config, "train_cls", config.TrainCls).model, SECTION)
        loaded.module.load_state_dict(read_weights(place.path))
        loaded.module.eval()
        return extraction.explaining(dataclasses.replace(loaded, weights_sha256=artefacts.sha256(place.path)))

    informative: bool | artefacts.Unknown = artefacts.Unknown(str(place.path))
    weights: Any = informative
    if kept:
        informative = float(kept["train_accuracy"]) >= asked.until_accuracy
        weights = artefacts.sha256(place.path)
    step = _step(run, sampled, Path("data_randomisation") / "permuted-labels", extraction, build)
    return Check("data_randomisation", [step], True, {"weights": weights}, informative)


# --- maps and similarities


def similarities(size: tuple[int, int]) -> dict[str, Similarity]:
    """The scores for maps of `size` (H, W), in [-1, 1]; SSIM and HOG of maps divided by their largest absolute value."""
    cell = agreement.cell_for(size)

    def ssim(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
        return agreement.ssim(agreement.unit_scaled(a), agreement.unit_scaled(b))

    def hog(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
        return agreement.hog_correlation(agreement.unit_scaled(a), agreement.unit_scaled(b), cell)

    return dict(zip(SCORES, (agreement.spearman, agreement.abs_spearman, ssim, hog), strict=True))


def _similarities(run: Run, checks: Sequence[Check], sampled: SampledMaps) -> list[Artefact[None]]:
    """One file of similarities for each check and method: every image and step."""
    contents = sampled.contents()
    files = []
    for check in checks:
        is_known = not isinstance(check.steps, artefacts.Unknown)
        for method, content in contents.items():
            origin = {
                "intact": content,
                "others": [content_of(step.maps[method]) for step in check.known] if is_known else check.steps,
                "layers": [step.layer for step in check.known] if is_known else check.steps,
                "rows": sampled.named_rows(),
                "code": agreement.RESULTS_VERSION,
                **check.origin,
            }
            files.append(Artefact(run.config.outdir / SECTION / check.name / f"{method}.h5", origin, None))
    return files


def _compare(
    section: config.SanityChecks,
    rows: NDArray[np.int64],
    intact: store.MapReader,
    others: Sequence[Path],
    file: Artefact[None],
) -> None:
    """Makes one method's file of similarities."""
    path = file.path
    readers = [store.MapReader(other) for other in others]
    scores = similarities(intact.size)
    columns = [store.Column("index", "int64")]
    columns += [store.Column(score, "float64", (len(readers),)) for score in scores]
    writer = store.RowWriter(
        path, columns, rows=len(rows), origin=file.origin, kind=FORMAT, rows_per_shard=section.batch_size
    )
    missing = writer.missing()
    with runtime.progress(sum(b.stop - b.start for b in missing), f"{path.parent.name} {path.stem}") as bar:
        for block in missing:
            index = rows[block.start : block.stop]
            before = intact.maps(intact.rows_of(index)).astype(np.float64)
            found: dict[str, list[NDArray[np.float64]]] = {score: [] for score in scores}
            for reader in readers:
                after = reader.maps(reader.rows_of(index)).astype(np.float64)
                for score, similarity in scores.items():
                    found[score].append(similarity(before, after))
            writer.write(block, {"index": index, **{score: np.stack(parts, axis=1) for score, parts in found.items()}})
            bar.update(len(index))
    writer.finish()


# --- the summary


def _summary(
    run: Run, section: config.SanityChecks, checks: Sequence[Check], similarities: Sequence[Artefact[None]]
) -> Artefact[None]:
    origin = {
        "origins": {f"{file.path.parent.name}/{file.path.stem}": file.origin for file in similarities},
        "methods": {method.name: [method.control, method.method] for method in section.methods()},
        "low_similarity": section.low_similarity,
        "informative": {check.name: check.informative for check in checks},
        "intervals": run.intervals.origin(),
        "code": statistics.RESULTS_VERSION,
    }
    return Artefact(run.config.outdir / SECTION / "results.csv", origin, None)


def _write_results(
    section: config.SanityChecks, settings: Settings, checks: Sequence[Check], summary: Artefact[None]
) -> None:
    folder = summary.path.parent
    lines = []
    for check, method in itertools.product(checks, section.methods()):
        independent = method.method.startswith(CONTROLS)
        for step, layer, score, found in _summaries(folder / check.name / f"{method.name}.h5", settings):
            said = ""
            if check.complete and step == len(check.known):
                said = verdict(found, section.low_similarity) if check.informative else "not testable"
            lines.append(
                [method.name, method.control, independent, check.name, step, layer, score, "neither", *found, said]
            )
    artefacts.write_csv(summary.path, LINE, lines)
    summary.write(summary.path)


def _summaries(path: Path, settings: Settings) -> Iterator[tuple[int, str, str, statistics.Summary]]:
    """Step (from 1), its layer, score and summary."""
    reader = store.RowReader(path)
    layers = reader.origin["layers"]
    for score in SCORES:
        found = summaries(reader.read(score).T, "image", settings)
        for step, (layer, summary) in enumerate(zip(layers, found, strict=True), start=1):
            yield step, layer, score, summary


def verdict(summary: statistics.Summary, low: float) -> str:
    """What the similarity to the maps of a classifier that knows nothing says of a method.

    "passes" where the whole interval lies in [-low, low]; "fails" where it lies outside: the map stays much the same (or
    turns into its opposite), whatever the classifier knows; "undecided" between; "undefined" without a defined similarity.

    >>> verdict(statistics.Summary(9, 0, 0.1, 0.1, 0.0, 0.2), low=0.5)
    'passes'
    >>> verdict(statistics.Summary(9, 0, 1.0, 0.0, 1.0, 1.0), low=0.5)
    'fails'
    """
    if summary.n == 0:
        return "undefined"
    if -low <= summary.low and summary.high <= low:
        return "passes"
    return "fails" if summary.low > low or summary.high < -low else "undecided"
