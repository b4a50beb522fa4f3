"""train-diffmask: learns which patches the classifier needs, for the attribution method DiffMask.

Reads the data set and the classifier; writes train_diffmask/best_model.pth (tensors only), best_model.json (origin, scores),
history.csv, TensorBoard scalars and pictures of masks. Killed, it goes on from the last checkpoint.
"""

import logging
import time
from collections.abc import Sequence
from dataclasses import asdict, astuple, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from heatproof import artefacts, config, runtime, seeding
from heatproof.errors import MissingInputError
from heatproof.models import LoadedModel, frozen_eval
from heatproof.models.diffmask import Explainer, Masking, explainer_for, explainer_from, masking_of
from heatproof.models.loading import put_weights, read_weights
from heatproof.report.masks import mask_panels
from heatproof.stages.run import Run, model_origin, why_stale
from heatproof.training import diffmask
from heatproof.training.classifier import save_tensors

logger = logging.getLogger(__name__)


def run(run: Run) -> None:
    """Trains unless an explainer of the same origin is there."""
    section = config.section(run.config, "train_diffmask", config.TrainDiffmask)
    folder = run.config.outdir / "train_diffmask"
    recipe = recipe_of(section)
    loaded = run.trained(section.model)
    origin = _origin(run, section, loaded)
    if _is_done(folder, origin) or run.dry_run:
        return
    masking = masking_of(loaded.module, section.form, patch=section.patch, compat=section.compat)
    explainer = _fresh(run, section, loaded, masking)
    train, validation, test = (run.examples(run.dataset.split(name)) for name in ("train", "validation", "test"))
    started = time.monotonic()
    checkpoint = folder / "checkpoint.pt"
    with _Log(folder, section, explainer, masking, _Pictures.first(run, loaded, section.sample_images)) as log:
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
            checkpoint=checkpoint,
            identity=artefacts.canonical(origin),
            on_epoch=log.add,
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
    save_tensors(folder / "best_model.pth", fitted.state)
    artefacts.write_json(
        folder / "best_model.json",
        {
            "origin": origin,
            "weights_sha256": artefacts.sha256(folder / "best_model.pth"),
            "classifier_sha256": loaded.weights_sha256,
            "epochs": len(fitted.history),
            "best_epoch": fitted.best.epoch,
            "is_within_tolerance": fitted.best.is_within(recipe.eps),
            "validation": asdict(fitted.best),
            "test": scores,
        },
    )
    runtime.record_time(folder, "train-diffmask", len(train) * len(fitted.history), started)
    checkpoint.unlink(missing_ok=True)


def recipe_of(section: config.TrainDiffmask) -> diffmask.Recipe:
    """How the section says to train."""
    names = {field.name for field in fields(diffmask.Recipe)} - {"epochs"}
    return diffmask.Recipe(epochs=section.nb_epochs, **section.model_dump(include=names))


def _origin(run: Run, section: config.TrainDiffmask, loaded: LoadedModel) -> dict[str, Any]:
    start = section.diffmask_checkpoint
    if start is not None and not start.is_file():
        raise MissingInputError(
            f"{start}: no such file; train-diffmask makes it, or mend train_diffmask.diffmask_checkpoint"
        )
    return {
        "data": {name: run.dataset.split(name).fingerprint for name in ("train", "validation", "test")},
        "model": model_origin(section.model),
        "weights": loaded.weights_sha256,
        "normalization": {"mean": list(loaded.normalization.mean), "std": list(loaded.normalization.std)},
        "training": section.model_dump(
            mode="json", exclude={"model", "sample_images", "pictures_every", "diffmask_checkpoint"}
        ),
        "start": None if start is None else artefacts.sha256(start),
        "seed": run.config.seed,
        "code": diffmask.RESULTS_VERSION,
    }


def _is_done(folder: Path, origin: dict[str, Any]) -> bool:
    path = folder / "best_model.pth"
    kept = artefacts.read_json(path.with_suffix(".json"))
    if kept is None:
        going_on = " (an interrupted training goes on)" if (folder / "checkpoint.pt").is_file() else ""
        logger.info("%s: to be trained%s", path, going_on)
        return False
    if kept["origin"] != origin:
        logger.info("%s: stale, to be trained again: %s", path, why_stale(kept["origin"], origin))
        return False
    if not path.is_file() or artefacts.sha256(path) != kept["weights_sha256"]:
        logger.info("%s: missing or not the file that was trained, to be trained again", path)
        return False
    test = kept["test"]
    logger.info(
        "%s: complete, %.2f %% of the predictions stay with %.1f %% of the patches",
        path, 100 * test["hard_agreement"], 100 * test["hard_kept"],
    )  # fmt: skip
    return True


def _fresh(run: Run, section: config.TrainDiffmask, loaded: LoadedModel, masking: Masking) -> Explainer:
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
            compat=section.compat,
        )
    start = section.diffmask_checkpoint
    if start is not None:
        found = explainer_from(read_weights(start), where=str(start))
        # The options of the section count, not those that the file was trained with.
        put_weights(explainer.gate, found.gate.state_dict(), where=str(start), arch="the gates of this section")
    explainer.put_classifier(loaded.weights_sha256)
    return explainer


@dataclass(frozen=True)
class _Pictures:
    """Validation images that are shown with their masks: pixels (N, H, W, 3), images (N, C, H, W), and labels' names."""

    pixels: Any
    images: Tensor
    labels: list[str]

    @classmethod
    def first(cls, run: Run, loaded: LoadedModel, count: int) -> "_Pictures":
        """Those of the first indices."""
        split = run.dataset.split("validation")
        indices = np.arange(min(count, len(split)))
        raw = split.pixels(indices)
        images = loaded.normalization(raw.to(run.device).float() / 255)
        names = run.dataset.class_names
        return cls(
            raw.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).numpy(), images, [names[k] for k in split.labels[indices]]
        )


class _Log:
    """history.csv and TensorBoard, after each epoch."""

    def __init__(
        self, folder: Path, section: config.TrainDiffmask, explainer: Explainer, masking: Masking, shown: _Pictures
    ):
        self.folder, self.every = folder, section.pictures_every
        self.explainer, self.masking, self.shown = explainer, masking, shown

    def __enter__(self) -> "_Log":
        self.writer: SummaryWriter | None = None
        return self

    def __exit__(self, *_: object) -> None:
        if self.writer is not None:
            self.writer.close()

    def add(self, line: diffmask.Epoch, history: Sequence[diffmask.Epoch]) -> None:
        """Writes one epoch's line, and pictures; what a killed run wrote beyond its checkpoint is superseded."""
        if self.writer is None:
            self.writer = SummaryWriter(str(self.folder / "tensorboard"), purge_step=line.epoch)
        columns = [field.name for field in fields(diffmask.Epoch)]
        artefacts.write_csv(self.folder / "history.csv", columns, [astuple(past) for past in history])
        for name, value in zip(columns[1:], astuple(line)[1:], strict=True):
            self.writer.add_scalar(name, value, line.epoch)
        if len(self.shown.labels) and line.epoch % self.every == 0:
            self._draw(self.writer, line.epoch)

    @torch.no_grad()
    def _draw(self, writer: SummaryWriter, epoch: int) -> None:
        """Each picture above its masked form above its mask in colours; and what the classifier says of them."""
        images = self.shown.images
        passed = self.masking.intact(images)
        keep = self.explainer.log_kept(passed.hidden)[:, :, -1].exp()
        masked = self.masking.masked(images, passed, keep, self.explainer.placeholder)
        divergence = diffmask.divergences(passed.logits, masked).tolist()
        masks = keep[:, -passed.grid[0] * passed.grid[1] :].unflatten(1, passed.grid)
        panels = mask_panels(self.shown.pixels, masks.cpu().numpy())
        writer.add_image("masks", np.concatenate(panels, axis=1), epoch, dataformats="HWC")
        told = zip(
            masks.mean(dim=(1, 2)).tolist(),
            divergence,
            self.shown.labels,
            masked.argmax(1),
            passed.logits.argmax(1),
            strict=True,
        )
        rows = [
            f"| {100 * (1 - kept):.1f} | {kl:.3f} | {label} | {int(m)} | {int(i)} |" for kept, kl, label, m, i in told
        ]
        head = "| masked % | divergence | label | class masked | class intact |\n|---|---|---|---|---|"
        writer.add_text("masks", "\n".join([head, *rows]), epoch)
