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
import functools
import hashlib
import itertools
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from heatproof import artefacts, config, runtime, seeding, store
from heatproof.datasets import Split
from heatproof.errors import ConfigError
from heatproof.methods.explainer import Explainer
from heatproof.metrics import agreement, statistics
from heatproof.models import LoadedModel, randomisation
from heatproof.models.weights import state_sha256
from heatproof.stages.evaluate import StoredMaps, stored_maps
from heatproof.stages.extract import Extraction, IntactImages, is_complete
from heatproof.stages.robustness import name_left_out
from heatproof.stages.run import Run, model_origin, training_origin
from heatproof.stages.trained import Trained
from heatproof.training import classifier
from heatproof.training.examples import permuted

logger = logging.getLogger(__name__)

FORMAT = "heatproof/similarity"
SECTION = "sanity_checks"
LINE = (
    "method", "control", "model_independent", "check", "step", "layer", "score", "better", "n", "n_undefined", "mean",
    "sd", "low", "high", "verdict",
)  # fmt: skip
SCORES = ("spearman", "abs_spearman", "ssim", "hog")
CASCADES = ("top_down", "bottom_up")
CONTROLS = "heatproof.methods.controls."  # what is there looks at no classifier

Similarity = Callable[[NDArray[np.float64], NDArray[np.float64]], NDArray[np.float64]]


@dataclass(frozen=True)
class Other:
    """One thing that the intact maps are compared with.

    Args:
        name: of its folder, and of its layer in the results.
        plan: makes the maps.
    """

    name: str
    plan: Extraction

    @property
    def layer(self) -> str:
        """The layer that is new; the whole name where it is no layer."""
        return self.name.partition("_")[2] or self.name


@dataclass(frozen=True)
class Check:
    """A check, and its steps; `complete` where after the last one nothing that was learnt is left."""

    name: str
    others: Sequence[Callable[[], Other]]
    complete: bool
    informative: bool = True


@dataclass(frozen=True)
class GivenTargets(Extraction):
    """An extraction that explains given classes, whatever its classifier predicts.

    Args:
        targets: (len(split),) the class of each image; -1 where none is asked for.
    """

    targets: NDArray[np.int64]

    @classmethod
    def beside(cls, plan: Extraction, targets: NDArray[np.int64], loaded: LoadedModel | None = None) -> "GivenTargets":
        """The same extraction for other classes, and perhaps of another classifier."""
        known = {field.name: getattr(plan, field.name) for field in dataclasses.fields(Extraction)}
        if loaded is not None:
            known["loaded"] = loaded
        return cls(**known, targets=targets)

    def origin(
        self, method: Explainer, split: Split, rows: NDArray[np.int64] | None = None, source: Path | None = None
    ) -> dict[str, Any]:
        """As of any extraction; the classes by their hash."""
        chosen = self.targets if rows is None else self.targets[rows]
        given = hashlib.sha256(chosen.astype("<i8").tobytes()).hexdigest()
        return super().origin(method, split, rows, source) | {"target": {"given": given}}

    def provided(self, split: Split) -> dict[str, Any]:
        """As of any extraction; a method that was trained for the intact classifier meets another one on purpose."""
        return {name: value for name, value in super().provided(split).items() if name != "classifier_sha256"}

    def intact(self, split: Split, indices: NDArray[np.int64]) -> IntactImages:
        """Reads and classifies some images; what is explained of them is given."""
        return dataclasses.replace(super().intact(split, indices), target=self.targets[indices])


def run(run: Run) -> None:
    """Computes what is missing or stale of the maps and similarities, and summarises them."""
    section = config.section(run.config, SECTION, config.SanityChecks)
    name_left_out(SECTION, section)
    stored = stored_maps(run, section)
    if run.dry_run and not all(path.is_file() for path in stored.files.values()):
        return
    folder = run.config.outdir / SECTION
    intact = {name: store.MapReader(path) for name, path in stored.files.items()}
    origins: dict[str, Any] = {}
    checks = _checks(run, section, stored, next(iter(intact.values())))
    for check in checks:
        names, files = _maps(check, stored, folder / check.name)
        for method, reader in intact.items():
            others = [paths[method] for paths in files]
            if all(path.is_file() for path in others):
                path = folder / check.name / f"{method}.h5"
                origin = _compare(section, stored, reader, names, others, path)
                origins[f"{check.name}/{method}"] = origin
    if not run.dry_run:
        _write_results(section, run, checks, origins)


# --- what the intact maps are compared with


def _checks(run: Run, section: config.SanityChecks, stored: StoredMaps, intact: store.MapReader) -> list[Check]:
    plan = stored.plan
    targets = np.full(len(stored.split), -1)
    targets[stored.rows] = intact.targets[intact.rows_of(stored.rows)]
    names = randomisation.layers(plan.loaded.module, section.layer_depth)
    checks = []
    for order in section.orders:
        steps = randomisation.steps(names, order)
        others = [
            functools.partial(_randomised, run, section, plan, targets, f"{number:02d}_{step.layer}", step)
            for number, step in enumerate(steps, start=1)
        ]
        checks.append(Check(order, others, complete=order in CASCADES))
    if section.random_logit:
        other = functools.partial(_other_class, run, plan, targets, stored.rows)
        checks.append(Check("random_logit", [other], complete=False))
    if section.data_randomisation is not None:
        trained, accuracy = _trained_on_permuted_labels(run, section, section.data_randomisation)
        if trained is not None:
            other = functools.partial(Other, "permuted-labels", GivenTargets.beside(plan, targets, trained))
            enough = accuracy >= section.data_randomisation.until_accuracy
            checks.append(Check("data_randomisation", [other], complete=True, informative=enough))
    return checks


def _randomised(
    run: Run,
    section: config.SanityChecks,
    plan: Extraction,
    targets: NDArray[np.int64],
    name: str,
    step: randomisation.Step,
) -> Other:
    module = randomisation.randomised(
        plan.loaded.module,
        step.randomised,
        run.config.seed,
        initialisation=section.initialisation,
        keep_statistics=section.keep_statistics,
    )
    loaded = dataclasses.replace(plan.loaded, module=module, weights_sha256=state_sha256(module))
    return Other(name, GivenTargets.beside(plan, targets, loaded))


def _other_class(run: Run, plan: Extraction, targets: NDArray[np.int64], rows: NDArray[np.int64]) -> Other:
    """The intact classifier, and for each image a class other than the one that is explained."""
    if plan.class_count < 2:
        raise ConfigError("sanity_checks.random_logit: the classifier has one class only; set it to false")
    others = targets.copy()
    for index in rows.tolist():
        drawn = int(seeding.generator(run.config.seed, "random_logit", index).integers(plan.class_count - 1))
        others[index] = drawn + (drawn >= targets[index])
    return Other("other-class", GivenTargets.beside(plan, others))


def _trained_on_permuted_labels(
    run: Run, section: config.SanityChecks, asked: config.DataRandomisation
) -> tuple[LoadedModel | None, float]:
    """The network and its accuracy on the permuted training labels; trained where it is not there, but in a dry run."""
    training = config.section(run.config, "train_cls", config.TrainCls)
    if model_origin(training.model) != model_origin(section.model):
        raise ConfigError(
            f"sanity_checks.data_randomisation: trains {training.model.arch} of train_cls.model, but the maps explain "
            f"{section.model.arch}; name one network in both, or leave data_randomisation out"
        )
    folder = run.config.outdir / SECTION / "data_randomisation"
    origin = {
        "data": run.dataset.split("train").fingerprint,
        "model": model_origin(training.model),
        "training": training_origin(training) | asked.model_dump() | {"augmentation": None, "scheduler": None},
        "seed": run.config.seed,
        "code": classifier.RESULTS_VERSION,
    }
    place = Trained(folder / "permuted_labels.pth", origin)
    kept = place.kept()
    if kept is not None:
        logger.info("%s: complete", place.weights)
    elif run.dry_run:
        return None, 0.0
    else:
        kept = _train(run, training, asked, place)
    accuracy = float(kept["train_accuracy"])
    if accuracy < asked.until_accuracy:
        logger.warning(
            "%s: knows %.1f %% of the permuted labels, less than until_accuracy: what its maps look like tells nothing; "
            "raise sanity_checks.data_randomisation.nb_epochs", place.weights, 100 * accuracy,
        )  # fmt: skip
    loaded = run.fresh(training.model, SECTION)
    loaded.module.load_state_dict(torch.load(place.weights, weights_only=True))
    loaded.module.eval()
    return dataclasses.replace(loaded, weights_sha256=kept["weights_sha256"]), accuracy


def _train(run: Run, training: config.TrainCls, asked: config.DataRandomisation, place: Trained) -> dict[str, Any]:
    loaded = run.fresh(training.model, SECTION)
    # What helps to generalise hinders to learn by heart: images that are never the same twice, rates that fade early.
    recipe = dataclasses.replace(
        run.recipe(training), epochs=asked.nb_epochs, augmentation=None, scheduler=None, patience=None
    )
    split = run.dataset.split("train")
    examples = run.examples(permuted(split, run.config.seed))
    started = time.monotonic()
    # What is to be learnt is the training labels themselves, so they choose the epoch too.
    fitted = classifier.fit(
        loaded.module,
        loaded.normalization,
        examples,
        examples,
        recipe,
        seed=run.config.seed,
        purpose=("data_randomisation",),
        checkpoint=place.checkpoint,
        identity=place.identity,
        checkpoint_every_s=60.0,
        is_enough=lambda line: line.validation_accuracy >= asked.until_accuracy,
        describe="permuted labels",
    )
    kept = place.leave(fitted.state, train_accuracy=fitted.validation_accuracy, epochs=len(fitted.history))
    runtime.record_time(place.weights.parent.parent, "permuted labels", len(split) * len(fitted.history), started)
    return kept


# --- maps and similarities


def _maps(check: Check, stored: StoredMaps, folder: Path) -> tuple[list[str], list[dict[str, Path]]]:
    """Names of the check's steps, and for each a file of maps for every method."""
    split = stored.split
    rows = None if len(stored.rows) == len(split) else stored.rows
    names, files = [], []
    for build in check.others:  # one randomised classifier at a time is held
        other = build()
        paths = {m.name: folder / other.name / m.name / f"{split.name}.h5" for m in other.plan.methods}
        other.plan.extract(split, paths, folder.parent, rows=rows)
        names.append(other.layer)
        files.append(paths)
    return names, files


def similarities(size: tuple[int, int]) -> dict[str, Similarity]:
    """The scores for maps of `size` (H, W), in [-1, 1]; SSIM and HOG of maps divided by their largest absolute value."""
    cell = agreement.cell_for(size)

    def ssim(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
        return agreement.ssim(agreement.unit_scaled(a), agreement.unit_scaled(b))

    def hog(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
        return agreement.hog_correlation(agreement.unit_scaled(a), agreement.unit_scaled(b), cell)

    return dict(zip(SCORES, (agreement.spearman, agreement.abs_spearman, ssim, hog), strict=True))


def _compare(
    section: config.SanityChecks,
    stored: StoredMaps,
    intact: store.MapReader,
    layers: Sequence[str],
    others: Sequence[Path],
    path: Path,
) -> dict[str, Any]:
    """Makes one method's file of similarities complete: every image and step; returns its origin."""
    readers = [store.MapReader(other) for other in others]
    origin = {
        "intact": intact.content_id(),
        "others": [reader.content_id() for reader in readers],
        "layers": list(layers),
        "rows": stored.rows.tolist(),
        "code": agreement.RESULTS_VERSION,
    }
    if is_complete(path, origin) or stored.plan.run.dry_run:
        return origin
    scores = similarities(intact.size)
    columns = [store.Column("index", "int64")]
    columns += [store.Column(score, "float64", (len(readers),)) for score in scores]
    writer = store.RowWriter(
        path, columns, rows=len(stored.rows), origin=origin, kind=FORMAT, rows_per_shard=section.batch_size
    )
    missing = writer.missing()
    with runtime.progress(sum(b.stop - b.start for b in missing), f"{path.parent.name} {path.stem}") as bar:
        for block in missing:
            index = stored.rows[block.start : block.stop]
            before = intact.maps(intact.rows_of(index)).astype(np.float64)
            found: dict[str, list[NDArray[np.float64]]] = {score: [] for score in scores}
            for reader in readers:
                after = reader.maps(reader.rows_of(index)).astype(np.float64)
                for score, similarity in scores.items():
                    found[score].append(similarity(before, after))
            writer.write(block, {"index": index, **{score: np.stack(parts, axis=1) for score, parts in found.items()}})
            bar.update(len(index))
    writer.finish()
    return origin


# --- the summary


def _write_results(
    section: config.SanityChecks, run: Run, checks: Sequence[Check], origins: Mapping[str, Mapping[str, Any]]
) -> None:
    folder = run.config.outdir / SECTION
    origin = {
        "origins": origins,
        "low_similarity": section.low_similarity,
        "informative": {c.name: c.informative for c in checks},
    }
    if artefacts.read_json(folder / "results.json") == {"origin": origin} and (folder / "results.csv").is_file():
        return
    lines = []
    for check, method in itertools.product(checks, section.methods()):
        independent = method.method.startswith(CONTROLS)
        for step, layer, score, summary in _summaries(folder / check.name / f"{method.name}.h5", run.config.seed):
            said = ""
            if check.complete and step == len(check.others):
                said = verdict(summary, section.low_similarity) if check.informative else "not testable"
            lines.append(
                [method.name, method.control, independent, check.name, step, layer, score, "neither", *summary, said]
            )
    artefacts.write_csv(folder / "results.csv", LINE, lines)
    artefacts.write_json(folder / "results.json", {"origin": origin})


def _summaries(path: Path, seed: int) -> Iterator[tuple[int, str, str, statistics.Summary]]:
    """Step (from 1), its layer, score and summary."""
    reader = store.RowReader(path)
    layers = reader.origin["layers"]
    for score in SCORES:
        found = statistics.summarize_rows(reader.read(score).T, seed=seed)
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
