"""train-diffmask: train the gates of Vision DiffMask, which select the patches that the classifier needs.

Reads the data set and the classifier; writes train_diffmask/best_model.pth (tensors only), best_model.json (origin, scores),
history.csv, TensorBoard scalars and pictures of masks. Killed, it goes on from the last checkpoint.
"""

import logging
import time
from collections.abc import Sequence
from dataclasses import asdict, fields
from typing import Any

import numpy as np
import torch
from PIL import Image

from heatproof import config, runtime, seeding
from heatproof.errors import MissingInputError
from heatproof.models import LoadedModel, frozen_eval
from heatproof.models.diffmask import DiffMaskNetwork, explainer_for, read_explainer
from heatproof.models.masking import Masking, masking_of
from heatproof.models.probabilities import divergences, kind_of
from heatproof.models.weights import put_weights
from heatproof.report.masks import mask_panels
from heatproof.stages.run import Run, content_of_file, model_origin
from heatproof.stages.scalars import Scalars, as_pictures
from heatproof.stages.trained import Trained
from heatproof.training import diffmask
from heatproof.training.diffmask_steps import DiffMaskRecipe
from heatproof.training.examples import Batch

logger = logging.getLogger(__name__)


def plan(run: Run) -> list[Trained]:
    """The gates."""
    section = config.section(run.config, "train_diffmask", config.TrainDiffmask)
    return [Trained(run.config.outdir / "train_diffmask" / "best_model.pth", _origin(run, section))]


def run(run: Run) -> None:
    """Trains unless an explainer of the same origin is there."""
    section = config.section(run.config, "train_diffmask", config.TrainDiffmask)
    recipe = recipe_of(section)
    (place,) = plan(run)
    folder = place.path.parent
    kept = place.kept()
    if kept is not None:
        logger.info(
            "%s: %.2f %% of the predictions stay with %.1f %% of the patches",
            place.path, 100 * kept["test"]["hard_agreement"], 100 * kept["test"]["hard_kept"],
        )  # fmt: skip
        return
    loaded = run.classifier(section.model)
    masking = masking_of(loaded.module, section.form, patch=section.patch, compat=section.compat)
    explainer = _fresh(run, section, loaded, masking)
    train, validation, test = (run.examples(run.dataset.split(name)) for name in ("train", "validation", "test"))
    started = time.monotonic()
    with Scalars(folder) as scalars:

        def told(history: Sequence[diffmask.DiffMaskEpoch]) -> None:
            scalars.add([asdict(line) for line in history])
            epoch = history[-1].epoch
            if section.sample_images and epoch % section.pictures_every == 0:
                shown = validation.first(section.sample_images)
                picture, table = _masks(explainer, masking, loaded, shown, run.dataset.class_names)
                scalars.show("masks", picture, epoch)
                scalars.tell("masks", table, epoch)

        fitted = diffmask.fit(
            explainer,
            masking,
            loaded.module,
            loaded.normalization,
            train,
            validation,
            recipe,
            seed=run.config.seed,
            purpose=("train-diffmask",),
            checkpoint=place.checkpoint,
            identity=place.identity,
            on_epoch=told,
            describe="train-diffmask",
        )
    explainer.load_state_dict(fitted.state)
    with frozen_eval(loaded.module):
        scores = diffmask.validate(explainer, masking, loaded.normalization, test)
    logger.info(
        "best epoch %d of %d; test images: divergence %.3g, %.2f %% of the predictions stay with %.1f %% of the patches",
        fitted.best.epoch, len(fitted.history), scores["hard_divergence"], 100 * scores["hard_agreement"],
        100 * scores["hard_kept"],
    )  # fmt: skip
    place.leave(
        fitted.state,
        folder / "history.csv",
        classifier_sha256=loaded.weights_sha256,
        epochs=len(fitted.history),
        best_epoch=fitted.best.epoch,
        is_within_tolerance=fitted.best.is_within(recipe.eps),
        validation=asdict(fitted.best),
        test=scores,
    )
    runtime.record_time(folder, "train-diffmask", len(train) * len(fitted.history), started)


def recipe_of(section: config.TrainDiffmask) -> DiffMaskRecipe:
    """How the section says to train."""
    names = {field.name for field in fields(DiffMaskRecipe)} - {"epochs"}
    return DiffMaskRecipe(epochs=section.nb_epochs, **section.model_dump(include=names))


def _origin(run: Run, section: config.TrainDiffmask) -> dict[str, Any]:
    start, known = section.diffmask_checkpoint, run.identity(section.model)
    if start is not None and not start.is_file() and not run.dry_run:
        raise MissingInputError(
            f"{start}: no such file; train-diffmask makes it, or mend train_diffmask.diffmask_checkpoint"
        )
    return {
        "data": {name: run.fingerprint(name) for name in ("train", "validation", "test")},
        "model": model_origin(section.model),
        "weights": known["weights"],
        "normalization": known["normalization"],
        "training": section.model_dump(
            mode="json", exclude={"model", "sample_images", "pictures_every", "diffmask_checkpoint"}
        ),
        "start": None if start is None else content_of_file(start),
        "seed": run.config.seed,
        "code": diffmask.RESULTS_VERSION,
    }


def _fresh(run: Run, section: config.TrainDiffmask, loaded: LoadedModel, masking: Masking) -> DiffMaskNetwork:
    """An explainer with drawn weights, or those of `diffmask_checkpoint`, that fits the classifier's states."""
    split = run.dataset.split("train")
    pixels = split.pixels(range(min(32, len(split)))).to(run.device).float() / 255
    torch.manual_seed(seeding.derive(run.config.seed, "train-diffmask", "weights"))
    with frozen_eval(loaded.module):
        explainer = explainer_for(
            masking,
            loaded.normalization(pixels),
            hidden=section.hidden,
            mul_activation=section.mul_activation,
            add_activation=section.add_activation,
            no_placeholder=section.no_placeholder,
            every_layer=recipe_of(section).draws_depths,
            compat=section.compat,
        )
    start = section.diffmask_checkpoint
    if start is not None:
        found = read_explainer(start)
        # The options of the section count, not those that the file was trained with: its gates now mean something else.
        for name in ("mul_activation", "compat"):
            before, now = getattr(found, name).item(), getattr(explainer, name).item()
            if before != now:
                logger.warning("%s: its gates were trained with %s %s; they go on with %s", start, name, before, now)
        put_weights(explainer.gate, found.gate.state_dict(), where=str(start), arch="the gates of this section")
    explainer.put_classifier(loaded.weights_sha256)
    return explainer


@torch.no_grad()
def _masks(
    explainer: DiffMaskNetwork, masking: Masking, loaded: LoadedModel, batch: Batch, class_names: Sequence[str]
) -> tuple[Image.Image, str]:
    """Each picture above its masked form above its mask in colours; and what the classifier says of them."""
    images = loaded.normalization(batch.pixels)
    passed = masking.intact(images)
    keep = explainer.log_kept(passed.hidden)[:, :, -1].exp()
    masked = masking.masked(images, passed, keep, explainer.placeholder)
    masks = keep[:, -passed.grid[0] * passed.grid[1] :].unflatten(1, passed.grid)
    panels = mask_panels(as_pictures(batch.pixels), masks.cpu().numpy())
    columns = (
        masks.mean(dim=(1, 2)), divergences(passed.logits, masked, kind_of(masking.model)), batch.labels, masked.argmax(1),
        passed.logits.argmax(1),
    )  # fmt: skip
    rows = [
        f"| {100 * (1 - kept):.1f} | {divergence:.3f} | {class_names[label]} | {other} | {intact} |"
        for kept, divergence, label, other, intact in zip(*(column.tolist() for column in columns), strict=True)
    ]
    head = "| masked % | divergence | label | class masked | class intact |\n|---|---|---|---|---|"
    return Image.fromarray(np.concatenate(panels, axis=1)), "\n".join([head, *rows])
