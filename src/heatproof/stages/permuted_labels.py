"""The network that knows permuted training labels by heart, for the data randomisation test (Adebayo et al., arXiv:1810.03292)."""

import dataclasses
import logging
import time
from typing import Any

from heatproof import config, runtime
from heatproof.errors import ConfigError
from heatproof.stages.run import Run, model_origin, training_origin
from heatproof.stages.trained import Trained
from heatproof.training import classifier
from heatproof.training.examples import permuted

logger = logging.getLogger(__name__)
SECTION = "sanity_checks"


def permuted_labels(run: Run, section: config.SanityChecks, asked: config.DataRandomisation) -> Trained:
    """The network that knows permuted training labels by heart."""
    training = config.section(run.config, "train_cls", config.TrainCls)
    if model_origin(training.model) != model_origin(section.model):
        raise ConfigError(
            f"sanity_checks.data_randomisation: trains {training.model.arch} of train_cls.model, but the maps explain "
            f"{section.model.arch}; name one network in both, or leave data_randomisation out"
        )
    origin = {
        "data": run.fingerprint("train"),
        "model": model_origin(training.model),
        "training": training_origin(training) | asked.model_dump() | {"augmentation": None, "scheduler": None},
        "seed": run.config.seed,
        "code": classifier.RESULTS_VERSION,
    }
    return Trained(run.config.outdir / SECTION / "data_randomisation" / "permuted_labels.pth", origin)


def train_on_permuted_labels(run: Run, section: config.SanityChecks, asked: config.DataRandomisation) -> None:
    """Trains the network where it is not there; warns where it knows too little."""
    place = permuted_labels(run, section, asked)
    kept = place.kept()
    if kept is None:
        kept = _train(run, config.section(run.config, "train_cls", config.TrainCls), asked, place)
    if float(kept["train_accuracy"]) < asked.until_accuracy:
        logger.warning(
            "%s: knows %.1f %% of the permuted labels, less than until_accuracy: what its maps look like tells nothing; "
            "raise sanity_checks.data_randomisation.nb_epochs", place.path, 100 * float(kept["train_accuracy"]),
        )  # fmt: skip


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
    kept = place.leave(fitted.state, train_accuracy=fitted.best.validation_accuracy, epochs=len(fitted.history))
    runtime.record_time(place.path.parent.parent, "permuted labels", len(split) * len(fitted.history), started)
    return kept
