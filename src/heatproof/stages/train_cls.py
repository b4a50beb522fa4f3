"""train-cls: trains the classifier whose maps are tested.

Reads the data set; writes train_cls/best_model.pth (tensors only), best_model.json (normalisation, accuracies,
origin), history.csv and TensorBoard scalars. Killed, it goes on from the last epoch.
"""

import logging
import time
from dataclasses import astuple, fields
from pathlib import Path
from typing import Any

from heatproof import artefacts, config, runtime
from heatproof.stages.run import Run, model_origin, training_origin, why_stale
from heatproof.stages.scalars import Scalars
from heatproof.training import classifier

logger = logging.getLogger(__name__)


def run(run: Run) -> None:
    """Trains unless a model of the same origin is there."""
    section = config.section(run.config, "train_cls", config.Training)
    folder = run.config.outdir / "train_cls"
    origin = _origin(run, section)
    if _is_done(folder, origin) or run.dry_run:
        return
    loaded = run.fresh(section.model, "train")
    recipe = run.recipe(section)
    started = time.monotonic()
    checkpoint = folder / "checkpoint.pt"
    columns = [field.name for field in fields(classifier.Epoch)]
    with Scalars(folder) as scalars:
        fitted = classifier.fit(
            loaded.module,
            loaded.normalization,
            run.examples(run.dataset.split("train")),
            run.examples(run.dataset.split("validation")),
            recipe,
            seed=run.config.seed,
            purpose=("train",),
            checkpoint=checkpoint,
            identity=artefacts.canonical(origin),
            on_epoch=lambda _, history: scalars.add(columns, [astuple(line) for line in history]),
            describe="train-cls",
        )
    loaded.module.load_state_dict(fitted.state)
    test = run.examples(run.dataset.split("test"))
    test_accuracy = classifier.accuracy(loaded.module, loaded.normalization, test, batch_size=1024)
    logger.info(
        "best epoch %d of %d: validation %.2f %%, test %.2f %%",
        fitted.best_epoch, len(fitted.history), 100 * fitted.validation_accuracy, 100 * test_accuracy,
    )  # fmt: skip
    classifier.save_tensors(folder / "best_model.pth", fitted.state)
    artefacts.write_json(
        folder / "best_model.json",
        {
            "origin": origin,
            "weights_sha256": artefacts.sha256(folder / "best_model.pth"),
            "normalization": {"mean": loaded.normalization.mean, "std": loaded.normalization.std},
            "class_names": run.dataset.class_names,
            "epochs": len(fitted.history),
            "best_epoch": fitted.best_epoch,
            "validation_accuracy": fitted.validation_accuracy,
            "test_accuracy": test_accuracy,
        },
    )
    runtime.record_time(folder, "train-cls", len(run.dataset.split("train")) * len(fitted.history), started)
    checkpoint.unlink(missing_ok=True)


def _origin(run: Run, section: config.Training) -> dict[str, Any]:
    weights = section.model.pretrained_weights
    return {
        "data": {name: run.dataset.split(name).fingerprint for name in ("train", "validation")},
        "model": model_origin(section.model),
        "start": artefacts.sha256(Path(weights)) if weights and Path(weights).is_file() else weights,
        "normalization": None if section.model.normalization is None else section.model.normalization.model_dump(),
        "training": training_origin(section),
        "seed": run.config.seed,
        "code": classifier.RESULTS_VERSION,
    }


def _is_done(folder: Path, origin: dict[str, Any]) -> bool:
    path = folder / "best_model.json"
    kept = artefacts.read_json(path)
    if kept is None:
        going_on = " (an interrupted training goes on)" if (folder / "checkpoint.pt").is_file() else ""
        logger.info("%s: to be trained%s", folder / "best_model.pth", going_on)
        return False
    if kept["origin"] != origin:
        logger.info("%s: stale, to be trained again: %s", folder / "best_model.pth", why_stale(kept["origin"], origin))
        return False
    if (
        not (folder / "best_model.pth").is_file()
        or artefacts.sha256(folder / "best_model.pth") != kept["weights_sha256"]
    ):
        logger.info("%s: missing or not the file that was trained, to be trained again", folder / "best_model.pth")
        return False
    logger.info("%s: complete, test accuracy %.2f %%", folder / "best_model.pth", 100 * kept["test_accuracy"])
    return True
