"""train-cls: train the classifier that is explained.

Reads the data set; writes train_cls/best_model.pth (tensors only), best_model.json (normalisation, accuracies,
origin), history.csv and TensorBoard scalars. Killed, it goes on from the last epoch.
"""

import logging
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from heatproof import artefacts, config, runtime
from heatproof.stages.run import Run, model_origin, training_origin
from heatproof.stages.scalars import Scalars
from heatproof.stages.trained import Trained
from heatproof.training import classifier

logger = logging.getLogger(__name__)


def plan(run: Run) -> list[Trained]:
    """The classifier."""
    section = config.section(run.config, "train_cls", config.TrainCls)
    return [Trained(run.config.outdir / "train_cls" / "best_model.pth", _origin(run, section))]


def run(run: Run) -> None:
    """Trains unless a model of the same origin is there."""
    section = config.section(run.config, "train_cls", config.TrainCls)
    (place,) = plan(run)
    folder = place.path.parent
    kept = place.kept()
    if kept is not None:
        logger.info("%s: test accuracy %.2f %%", place.path, 100 * kept["test_accuracy"])
        return
    loaded = run.fresh(section.model, "train")
    recipe = run.recipe(section)
    started = time.monotonic()
    with Scalars(folder) as scalars:
        fitted = classifier.fit(
            loaded.module,
            loaded.normalization,
            run.examples(run.dataset.split("train")),
            run.examples(run.dataset.split("validation")),
            recipe,
            seed=run.config.seed,
            purpose=("train",),
            checkpoint=place.checkpoint,
            identity=place.identity,
            on_epoch=lambda history: scalars.add([asdict(line) for line in history]),
            describe="train-cls",
        )
    loaded.module.load_state_dict(fitted.state)
    test = run.examples(run.dataset.split("test"))
    test_accuracy = classifier.accuracy(loaded.module, loaded.normalization, test, batch_size=1024)
    logger.info(
        "best epoch %d of %d: validation %.2f %%, test %.2f %%",
        fitted.best_epoch, len(fitted.history), 100 * fitted.best.validation_accuracy, 100 * test_accuracy,
    )  # fmt: skip
    place.leave(
        fitted.state,
        folder / "history.csv",
        normalization=loaded.normalization.plain,
        class_names=run.dataset.class_names,
        epochs=len(fitted.history),
        best_epoch=fitted.best_epoch,
        validation_accuracy=fitted.best.validation_accuracy,
        test_accuracy=test_accuracy,
    )
    runtime.record_time(folder, "train-cls", len(run.dataset.split("train")) * len(fitted.history), started)


def _origin(run: Run, section: config.TrainCls) -> dict[str, Any]:
    weights = section.model.pretrained_weights
    return {
        "data": {name: run.fingerprint(name) for name in ("train", "validation")},
        "model": model_origin(section.model),
        "start": artefacts.sha256(Path(weights)) if weights and Path(weights).is_file() else weights,
        "normalization": None if section.model.normalization is None else section.model.normalization.model_dump(),
        "training": training_origin(section),
        "seed": run.config.seed,
        "code": classifier.RESULTS_VERSION,
    }
