"""train-masker: train masking networks (FIX, CA), used as attribution methods.

Reads the data set and the classifier; writes for each form, train_masker/<form>/:
- masker.pth: the masker, and with CA the weights of the classifier that it reads (tensors and plain values), masker.json with
  its origin;
- with CA also classifier.pth and classifier.json, the classifier as it has become, for stages that explain it;
- history.csv, TensorBoard scalars and masks, masks.png.

`permuted_labels` adds train_masker/<form>_permuted/. Killed, a training goes on from its last epoch.
"""

import inspect
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from heatproof import artefacts, config, plugins, records, removal, runtime, seeding
from heatproof.errors import ConfigError, DataError, PluginError, nearest
from heatproof.models import LoadedModel
from heatproof.models import masker as masker_models
from heatproof.models.hooks import frozen_eval
from heatproof.models.masker import Masker, MaskerForm, discovered, tapped
from heatproof.models.masker_files import SavedMasker
from heatproof.models.weights import State
from heatproof.report.masks import masks_sheet
from heatproof.stages import infill, infilled
from heatproof.stages.run import Run, augmentation, build_fill, fill_origin, means_origin, model_origin
from heatproof.stages.scalars import Scalars, as_pictures
from heatproof.stages.trained import Trained
from heatproof.training import classifier, masker
from heatproof.training.checkpoints import save_tensors
from heatproof.training.examples import Examples, Pixels, Relabelled, permuted
from heatproof.training.mask_objectives import Prior, Term
from heatproof.training.masker_steps import MaskerRecipe

logger = logging.getLogger(__name__)

SECTION = "train_masker"
PUBLISHED_REWARD = {"fix": 10.0, "ca": 15.0}  # lambda_r of the image masked out


@dataclass(frozen=True)
class Job:
    """One masker to be trained.

    Args:
        form: "fix" or "ca".
        is_permuted: whether its labels are.
    """

    form: config.MaskerFormName
    is_permuted: bool

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"{self.form}_permuted" if self.is_permuted else self.form


def plan(run: Run) -> list[Trained]:
    """The maskers of all forms; a trained classifier belongs to its masker."""
    section = config.section(run.config, SECTION, config.TrainMasker)
    return [_place(run, section, job) for job in _jobs(section)]


def _jobs(section: config.TrainMasker) -> list[Job]:
    return [
        Job(form, is_permuted) for is_permuted in (False, True)[: 1 + section.permuted_labels] for form in section.form
    ]


def _place(run: Run, section: config.TrainMasker, job: Job) -> Trained:
    return Trained(run.config.outdir / SECTION / job.name / "masker.pth", _origin(run, section, job))


def run(run: Run) -> None:
    """Trains each masker unless one of the same origin is there."""
    section = config.section(run.config, SECTION, config.TrainMasker)
    form = _form(run, section, run.classifier(section.model))
    for job in _jobs(section):
        place = _place(run, section, job)
        if not place.is_complete():
            _train(run, section, job, form, place)


def _form(run: Run, section: config.TrainMasker, loaded: LoadedModel) -> MaskerForm:
    """The masker's form, its channels found by a forward pass; refuses labels that the classifier does not know."""
    count = _classes(run, loaded)
    if section.target == "label":
        largest = max(int(run.dataset.split(name).labels.max(initial=0)) for name in ("train", "validation"))
        if largest >= count:
            raise DataError(
                f"train_masker: label {largest} ({run.dataset.class_names[largest]}) is no class of the classifier, which has {count}; "
                "mend model, or set train_masker.target: predicted to explain the classifier's own answers"
            )
        run.require_labels(section.model, loaded, "train_masker", "set train_masker.target: predicted")
    for name in section.layouts:
        if name not in section.taps:
            raise ConfigError(f"train_masker.layouts: {name!r} is none of taps{nearest(name, section.taps)}")
    form = MaskerForm(
        taps=tuple(section.taps),
        width=section.width,
        stride=section.mask_stride,
        upsample=section.upsample,
        takes_area=section.takes_area,
        classes=count if section.takes_class else None,
        gumbel=section.gumbel,
        temperature=section.temperature,
        layouts=tuple(section.layouts.get(tap) for tap in section.taps),
    )
    return discovered(loaded.module, _blank(run, loaded), form)


def _blank(run: Run, loaded: LoadedModel) -> torch.Tensor:
    blank = torch.zeros(1, run.dataset.channels, *run.dataset.size, device=run.device)
    images: torch.Tensor = loaded.normalization(blank)
    return images


def _classes(run: Run, loaded: LoadedModel) -> int:
    with torch.no_grad():
        return int(loaded.module(_blank(run, loaded)).shape[1])


def _train(run: Run, section: config.TrainMasker, job: Job, form: MaskerForm, place: Trained) -> None:
    loaded = run.trained(section.model)  # CA changes it: each masker begins with a classifier of its own
    recipe = _recipe(run, section, job, loaded)
    torch.manual_seed(seeding.derive(run.config.seed, SECTION, "weights"))
    network = Masker(form).to(run.device)
    train, validation = (_examples(run, section, job, loaded, name) for name in ("train", "validation"))
    folder = place.path.parent
    started = time.monotonic()
    with Scalars(folder) as scalars:

        def told(history: Sequence[masker.MaskerEpoch]) -> None:
            scalars.add(history)
            if section.sample_images:
                shown = _sheet(section, loaded, network, validation)
                scalars.show("masks", shown, len(history))

        fitted = masker.fit(
            loaded.module,
            network,
            loaded.normalization,
            train,
            validation,
            recipe,
            seed=run.config.seed,
            purpose=(SECTION,),
            checkpoint=place.checkpoint,
            identity=place.identity,
            on_epoch=told,
            describe=f"train-masker {job.name}",
        )
    saved = _kept(place, form, fitted, loaded)
    files = [folder / "history.csv"]
    if fitted.classifier is not None:
        files.append(folder / "classifier.pth")
    if section.sample_images:
        files.append(folder / "masks.png")
        with artefacts.whole_file(files[-1]) as temporary:
            _sheet(section, loaded, network, validation).save(temporary, format="PNG")
    last = fitted.history[-1]
    place.leave(saved.content(), *files, form=saved.content()["form"], last=last)
    logger.info(
        "%s: validation: masks cover %.1f %%, right when clean %.1f %%, masked in %.1f %%, masked out %.1f %%",
        place.path, 100 * last["validation_area"], 100 * last["validation_accuracy"],
        100 * last.get("validation_in_accuracy", float("nan")), 100 * last.get("validation_out_accuracy", float("nan")),
    )  # fmt: skip
    runtime.record_time(
        folder.parent, f"train-masker {job.name}", recipe.epochs * round(recipe.share * len(train)), started
    )


def _kept(place: Trained, form: MaskerForm, fitted: masker.FittedMasker, loaded: LoadedModel) -> SavedMasker:
    """What goes into the masker's file; a trained classifier gets a file of its own as well."""
    trained: State | None = fitted.classifier
    if trained is None:
        return SavedMasker(form, fitted.masker, loaded.weights_sha256, loaded.weights_sha256)
    path = place.path.with_name("classifier.pth")
    save_tensors(path, trained)
    records.write(path.with_suffix(".json"), place.origin, [path], normalization=loaded.normalization.plain)
    return SavedMasker(form, fitted.masker, loaded.weights_sha256, artefacts.sha256(path), trained)


def _sheet(section: config.TrainMasker, loaded: LoadedModel, network: Masker, validation: Examples) -> Image.Image:
    """Masks of the first validation images."""
    batch = validation.first(section.sample_images)
    images, form = loaded.normalization(batch.pixels), network.form
    areas = batch.pixels.new_full((len(images),), sum(section.areas) / 2) if form.takes_area else None
    was_training = network.training
    network.eval()
    taps = tapped(form.layouts_in(loaded.module), images)
    with frozen_eval(loaded.module), torch.no_grad(), taps as activations:
        loaded.module(images)
        classes = None if form.classes is None else batch.labels
        masks = network(activations(), images.shape[2:], areas=areas, classes=classes)
    network.train(was_training)
    # One mean serves all three colours of a grey picture.
    return masks_sheet(as_pictures(batch.pixels), masks.float().cpu().numpy(), loaded.normalization.mean)


def _examples(run: Run, section: config.TrainMasker, job: Job, loaded: LoadedModel, name: str) -> Examples:
    split: Pixels = run.dataset.split(name)
    if section.target == "predicted":
        intact = run.examples(split)
        answers = classifier.predict(loaded.module, loaded.normalization, intact, batch_size=section.batch_size)
        split = Relabelled(split, answers.astype(np.int64))
    if job.is_permuted and name == "train":
        split = permuted(split, run.config.seed)
    return run.examples(split)


def _recipe(run: Run, section: config.TrainMasker, job: Job, loaded: LoadedModel) -> MaskerRecipe:
    return MaskerRecipe(
        form=job.form,
        mask_in=_term(section, section.mask_in, job.form),
        mask_out=_term(section, section.mask_out, job.form),
        epochs=section.nb_epochs,
        batch_size=section.batch_size,
        share=section.share,
        masker_rate=section.masker_lr,
        classifier_rate=section.classifier_lr,
        decay_every=section.lr_decay_epochs,
        momentum=section.momentum,
        weight_decay=section.weight_decay,
        historic=section.historic,
        historic_probability=section.historic_probability if job.form == "ca" else 0.0,
        zoo_every=section.zoo_every,
        zoo_size=section.zoo_size,
        areas=section.areas,
        infiller=_infiller(run, section, loaded),
        infill=tuple(section.infill),
        # What a masked image has in removed places surrounds it too.
        augmentation=augmentation(section.augmentation, lambda: loaded.normalization.mean),
        precision=section.precision,
    )


def _term(
    section: config.TrainMasker, asked: config.MaskInTerm | config.MaskOutTerm, form: config.MaskerFormName
) -> Term | None:
    if asked.criterion == "none":
        return None
    prior = None
    if asked.criterion == "kldivergence":
        weights = asked.prior.class_weights
        values = asked.prior.model_dump() | {"class_weights": None if weights is None else tuple(weights)}
        prior = Prior(**values)
    lambda_r = asked.lambda_r if asked.lambda_r is not None else PUBLISHED_REWARD[form]
    return Term(asked.objective, asked.direction, asked.weight, lambda_r, asked.lambda_tv, section.area_distance, prior)


def _infiller(run: Run, section: config.TrainMasker, loaded: LoadedModel) -> removal.Generating | None:
    asked = _asked_infiller(run, section)
    if asked is None:
        return None
    target = removal.named_fill(asked.name)
    if isinstance(target, type) and not (hasattr(target, "generate") or _is_fill(target)):
        raise PluginError(f"train_masker.infiller: {asked.name} has no generate(images, hole), and is no fill")
    if plugins.wants(target, "normalization"):
        raise PluginError(
            f"train_masker.infiller: {asked.name} takes a normalization, but infillers get pixels in [0, 1]; leave it out"
        )
    return removal.generating(build_fill(run, asked, lambda: loaded.normalization, "train", or_generates=True))


def _asked_infiller(run: Run, section: config.TrainMasker) -> config.Plugin | None:
    """The infiller that the section names, which may be one of the section infill."""
    asked = section.infiller
    if asked is None:
        return None
    plugin = config.Plugin(name=asked) if isinstance(asked, str) else asked
    entries = {} if run.config.infill is None else {entry.name: entry for entry in run.config.infill.infillers}
    if (entry := entries.get(plugin.name.removeprefix(infilled.PREFIX))) is not None:
        if plugin.options:
            raise ConfigError(
                f"train_masker.infiller: {plugin.name} is one of infill.infillers, which has its options; give none here"
            )
        within = infill.plugin_of(entry)
        if removal.fill_name(plugin.name) not in (None, removal.fill_name(within.name)):
            raise ConfigError(
                f"train_masker.infiller: {plugin.name} is a fill, and in infill.infillers the name of another, {within.name}; "
                f"write {infilled.PREFIX}{plugin.name} for the latter, or rename it"
            )
        return within
    if (infiller := infilled.name_of(plugin)) is not None:
        raise ConfigError(f"train_masker.infiller: infill.infillers has no {infiller!r}{nearest(infiller, entries)}")
    if removal.named_fill(plugin.name) in (removal.normalised_infill, removal.NormalisedInfill):
        # It normalises what the training would normalise again: the fill within is meant.
        options = plugin.options
        return config.Plugin.model_validate({"name": str(options.pop("infill", "")), **options})
    return plugin


def _is_fill(target: type) -> bool:
    """Whether instances are called with pixels and what is removed."""
    call = next((vars(part)["__call__"] for part in target.__mro__ if "__call__" in vars(part)), None)
    return inspect.isfunction(call) and len(inspect.signature(call).parameters) > 2


def _origin(run: Run, section: config.TrainMasker, job: Job) -> dict[str, Any]:
    if section.mask_in.criterion == section.mask_out.criterion == "none":
        raise ConfigError("train_masker: mask_in.criterion and mask_out.criterion are both none; one term is needed")
    left_out = {"model", "form", "permuted_labels", "sample_images"}
    if job.form == "fix":
        left_out |= {"classifier_lr", "momentum", "historic", "historic_probability", "zoo_every", "zoo_size"}
    if not section.layouts:
        left_out.add("layouts")
    code: dict[str, Any] = {"training": masker.RESULTS_VERSION, "network": masker_models.RESULTS_VERSION}
    filled: dict[str, Any] = {}
    if (asked := _asked_infiller(run, section)) is not None:
        code["infiller"] = plugins.code_version(removal.named_fill(asked.name))
        means = means_origin(run, asked.name, lambda: run.classifier(section.model).normalization)
        filled = {"infiller": {"fill": fill_origin(asked), "means": means, "gets": "pixels"}}
        left_out.add("infiller")
    known = run.identity(section.model)
    return filled | {
        "data": {name: run.fingerprint(name) for name in ("train", "validation")},
        "model": model_origin(section.model) | {"weights": known["weights"]},
        "normalization": known["normalization"],
        "form": job.form,
        "labels": "permuted" if job.is_permuted else "own",
        "training": section.model_dump(mode="json", exclude=left_out),
        "seed": run.config.seed,
        "code": code,
    }
