"""evaluate-cls: measure the classifier's accuracy, overall and for each class.

Reads the classifier and the splits; writes evaluate_cls/results.csv (a line for each split: accuracy with its interval,
and the plain means over classes of precision, recall and F1), classes.csv (a line for each split and class),
confusion_<split>.csv (a line for each true class, a column for each predicted one) and results.json (the origin).
"""

import logging
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from heatproof import artefacts, config, runtime
from heatproof.errors import ConfigError, ModelError
from heatproof.metrics import classification, statistics
from heatproof.models import LoadedModel
from heatproof.stages.run import Run, model_origin, why_stale
from heatproof.training import classifier

logger = logging.getLogger(__name__)

LINE = ("split", "images", "accuracy", "low", "high", "precision", "recall", "f1")
CLASS_LINE = ("split", "label", "class", "images", "predicted", "precision", "recall", "f1")


def run(run: Run) -> None:
    """Evaluates each split, unless results of the same origin are there."""
    section = run.config.evaluate_cls or config.EvaluateCls()
    model = section.model or _trained_here(run)
    loaded = run.trained(model)
    run.require_labels(model, loaded, "evaluate_cls", "take a classifier of these classes")
    folder = run.config.outdir / "evaluate_cls"
    origin = {
        "data": {name: run.dataset.split(name).fingerprint for name in section.splits},
        "model": model_origin(model) | {"weights": loaded.weights_sha256},
        "normalization": loaded.normalization.plain,
        "code": [classification.RESULTS_VERSION, classifier.RESULTS_VERSION],
    }
    if _is_done(folder, origin) or run.dry_run:
        return
    started = time.monotonic()
    splits: list[str] = [*section.splits]
    confusions = {name: _confusion(run, loaded, name, section.batch_size) for name in splits}
    _write(folder, confusions, run.dataset.class_names)
    artefacts.write_json(folder / "results.json", {"origin": origin})
    count = sum(int(confusion.sum()) for confusion in confusions.values())
    runtime.record_time(folder, "evaluate-cls", count, started)


def _trained_here(run: Run) -> config.Model:
    """The classifier of train_cls with the weights that it left."""
    training = run.config.train_cls
    if training is None:
        raise ConfigError("evaluate_cls.model is not set, and there is no section train_cls; name the classifier")
    weights = run.config.outdir / "train_cls" / "best_model.pth"
    return training.model.model_copy(update={"pretrained_weights": str(weights)})


def _is_done(folder: Path, origin: dict[str, Any]) -> bool:
    kept = artefacts.read_json(folder / "results.json")
    names = ("results.csv", "classes.csv", *(f"confusion_{split}.csv" for split in origin["data"]))
    if kept is None or not all((folder / name).is_file() for name in names):
        logger.info("%s: to be computed", folder / "results.csv")
        return False
    if kept["origin"] != origin:
        why = why_stale(kept["origin"], origin)
        logger.info("%s: stale, to be computed again: %s", folder / "results.csv", why)
        return False
    logger.info("%s: complete", folder / "results.csv")
    return True


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


def _write(folder: Path, confusions: dict[str, NDArray[np.int64]], class_names: tuple[str, ...]) -> None:
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
        artefacts.write_csv(folder / f"confusion_{split}.csv", ("true", *class_names), rows)
    artefacts.write_csv(folder / "classes.csv", CLASS_LINE, class_lines)
    artefacts.write_csv(folder / "results.csv", LINE, lines)
