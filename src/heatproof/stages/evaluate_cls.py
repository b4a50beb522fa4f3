"""evaluate-cls: measure the classifier's accuracy, overall and for each class.

Reads the classifier and the splits; writes evaluate_cls/results.csv (a line for each split: accuracy with its interval,
and the plain means over classes of precision, recall and F1), classes.csv (a line for each split and class),
confusion_<split>.csv (a line for each true class, a column for each predicted one) and results.json (the origin).
"""

import logging
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from heatproof import artefacts, config, runtime
from heatproof.errors import ConfigError, ModelError
from heatproof.metrics import classification, statistics
from heatproof.models import LoadedModel
from heatproof.stages.plan import Artefact
from heatproof.stages.run import Run, model_origin
from heatproof.training import classifier

logger = logging.getLogger(__name__)

LINE = ("split", "images", "accuracy", "low", "high", "precision", "recall", "f1")
CLASS_LINE = ("split", "label", "class", "images", "predicted", "precision", "recall", "f1")


def plan(run: Run) -> list[Artefact[config.EvaluateCls]]:
    """The tables of all splits."""
    section = run.config.evaluate_cls or config.EvaluateCls()
    model = section.model or _trained_here(run)
    known = run.identity(model)
    origin = {
        "data": {name: run.fingerprint(name) for name in section.splits},
        "model": model_origin(model) | {"weights": known["weights"]},
        "normalization": known["normalization"],
        "code": [classification.RESULTS_VERSION, classifier.RESULTS_VERSION],
    }
    return [Artefact(run.config.outdir / "evaluate_cls" / "results.csv", origin, section)]


def run(run: Run) -> None:
    """Evaluates each split, unless results of the same origin are there."""
    (tables,) = plan(run)
    section = tables.job
    model = section.model or _trained_here(run)
    loaded = run.classifier(model)
    run.require_labels(model, loaded, "evaluate_cls", "take a classifier of these classes")
    if tables.is_complete():
        return
    folder = tables.path.parent
    started = time.monotonic()
    splits: list[str] = [*section.splits]
    confusions = {name: _confusion(run, loaded, name, section.batch_size) for name in splits}
    tables.write(*_write(folder, confusions, run.dataset.class_names))
    count = sum(int(confusion.sum()) for confusion in confusions.values())
    runtime.record_time(folder, "evaluate-cls", count, started)


def _trained_here(run: Run) -> config.Model:
    """The classifier of train_cls with the weights that it left."""
    training = run.config.train_cls
    if training is None:
        raise ConfigError("evaluate_cls.model is not set, and there is no section train_cls; name the classifier")
    weights = run.config.outdir / "train_cls" / "best_model.pth"
    return training.model.model_copy(update={"pretrained_weights": str(weights)})


def _confusion(run: Run, loaded: LoadedModel, split: str, batch_size: int) -> NDArray[np.int64]:
    examples, classes = run.examples(run.dataset.split(split)), len(run.dataset.class_names)
    predictions = classifier.predict(
        loaded.module, loaded.normalization, examples, batch_size=batch_size, describe=f"evaluate-cls {split}"
    )
    if predictions.max() >= classes:
        raise ModelError(
            f"evaluate_cls.model predicts class {predictions.max()}, and {run.config.data.dataset} has {classes} classes; "
            "take a classifier of these classes"
        )
    return classification.confusion_matrix(examples.split.labels, predictions, classes)


def _write(folder: Path, confusions: dict[str, NDArray[np.int64]], class_names: tuple[str, ...]) -> list[Path]:
    """Writes all tables; returns their files."""
    files = [folder / "results.csv", folder / "classes.csv"]
    lines, class_lines = [], []
    for split, confusion in confusions.items():
        images, right = int(confusion.sum()), int(np.trace(confusion))
        scores, interval = classification.class_scores(confusion), statistics.wilson_interval(right, images)
        accuracy = classification.accuracy(confusion)
        logger.info("%s: accuracy %.2f %% of %d images", split, 100 * accuracy, images)
        lines.append([split, images, accuracy, *interval, *(float(score.mean()) for score in scores)])
        counts = zip(confusion.sum(axis=1).tolist(), confusion.sum(axis=0).tolist(), strict=True)
        for label, (name, own, each) in enumerate(
            zip(class_names, counts, zip(*(score.tolist() for score in scores), strict=True), strict=True)
        ):
            class_lines.append([split, label, name, *own, *each])
        rows = ([name, *row] for name, row in zip(class_names, confusion.tolist(), strict=True))
        files.append(folder / f"confusion_{split}.csv")
        artefacts.write_csv(files[-1], ("true", *class_names), rows)
    artefacts.write_csv(folder / "classes.csv", CLASS_LINE, class_lines)
    artefacts.write_csv(folder / "results.csv", LINE, lines)
    return files
