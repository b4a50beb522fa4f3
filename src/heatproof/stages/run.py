"""What all stages of one configuration share: its data, device, models and folders."""

import dataclasses
import functools
import logging
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from heatproof import artefacts, plugins, records, removal, runtime, seeding, threads
from heatproof.config import Augmentation as AugmentationSection
from heatproof.config import Config, ExtractCams, MapTest, Model, Plugin, TrainCls
from heatproof.datasets import Dataset, open_dataset, training_statistics
from heatproof.errors import ConfigError, DamagedError, HeatproofError, MissingInputError, ModelError
from heatproof.metrics.comparison import Settings
from heatproof.models import LoadedModel, Normalization, load, outputs
from heatproof.models.probabilities import kind_of
from heatproof.models.targets import Retargeted
from heatproof.stages import names
from heatproof.stages.plan import Artefact
from heatproof.training.augmentation import Augmentation
from heatproof.training.classifier import ClassifierRecipe, Named
from heatproof.training.examples import Examples, Pixels, Removal

logger = logging.getLogger(__name__)
SPLITS = ("train", "validation", "test")
IMAGES = artefacts.Unknown("the images", is_there=True)
"""For what only the images tell, where a report is made without them."""


@dataclass(frozen=True)
class Run:
    """A configuration at work.

    Args:
        config: the checked configuration; the run has it with dotted paths in the place of short names.
        dry_run: stages say what they would compute, and compute nothing: no network is loaded.
        is_reading: what is there is read, for a report; images that are not there are no error.
    """

    config: Config
    dry_run: bool = False
    is_reading: bool = False
    device: torch.device = field(init=False)
    _classifiers: dict[str, LoadedModel] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "config", names.with_paths(self.config))
        object.__setattr__(self, "device", runtime.resolve_device(self.config.device))

    @functools.cached_property
    def dataset(self) -> Dataset:
        """The configured data set; opened once, its splits when they are asked for."""
        data = self.config.data
        return open_dataset(
            data.dataset,
            data.dataset_dir,
            split_ratio=data.split_ratio,
            seed=self.config.seed,
            options=data.options,
            examples_per_class=data.examples_per_class,
            classes=data.classes,
        )

    def view(self, *, is_reading: bool = False) -> "Run":
        """The same run, looked at without loading or computing anything; it shares what is open already."""
        seen = dataclasses.replace(self, dry_run=True, is_reading=is_reading)
        object.__setattr__(seen, "_classifiers", self._classifiers)
        for name in ("dataset", "statistics"):
            if name in self.__dict__:
                seen.__dict__[name] = self.__dict__[name]
        return seen

    @functools.cached_property
    def statistics(self) -> Normalization:
        """Mean and standard deviation of the training split for each channel, in [0, 1]; computed once and kept."""
        path = self.config.outdir / "data" / "statistics.json"
        split = self.dataset.split("train")
        place = Artefact(path, {"data": split.fingerprint}, None)
        content = place.status().content
        if not content:
            mean, std = training_statistics(split)
            content = {"mean": mean.tolist(), "std": std.tolist()}
            if not self.dry_run:
                content = place.write(**content)
        return Normalization(tuple(content["mean"]), tuple(content["std"]))

    @property
    def intervals(self) -> Settings:
        """How the intervals and tests of all tables and of the report are made."""
        return Settings(self.config.report.confidence, self.config.report.resamples, self.config.seed)

    @functools.cached_property
    def has_images(self) -> bool:
        """Whether the images are there; a report can do without them, a stage that computes cannot.

        Raises:
            HeatproofError: why they are not, unless this run is for reading.
        """
        try:
            for name in self.dataset.splits:
                self.dataset.split(name)
        except HeatproofError as error:
            if not self.is_reading:
                raise
            logger.info("the images are not there, so results are not compared with them: %s", error)
            return False
        return True

    @property
    def splits(self) -> tuple[str, ...]:
        """The data set's splits, in the order of `SPLITS`; all three where the images are not there."""
        return tuple(self.dataset.splits) if self.has_images else SPLITS

    def fingerprint(self, split: str) -> Any:
        """What identifies a split's images and labels in an origin."""
        return self.dataset.split(split).fingerprint if self.has_images else IMAGES

    def examples(self, split: Pixels, removal: Removal | None = None) -> Examples:
        """A split's examples on this run's device, in memory where they fit."""
        data = self.config.data
        return Examples(
            split,
            self.device,
            memory_bytes=int(data.memory_gb * 2**30),
            workers=data.loader_workers,
            removal=removal,
        )

    def trained(self, model: Model) -> LoadedModel:
        """A classifier with the weights that its section names, on the device, in eval mode.

        Raises:
            ModelError: where the section names no weights, or they do not fit.
            MissingInputError: where they are not there yet; ConfigError where no stage of this configuration makes them.
        """
        weights = _named_weights(model)
        trained = _of_training(model).get("origin", {}).get("model", {})
        if trained and trained.get("arch") == model.arch and trained.get("output", "softmax") != model.output:
            raise ModelError(
                f"{weights}: was trained with model.output: {trained.get('output', 'softmax')}, and the section that reads it says "
                f"{model.output}; set both to the same"
            )
        loaded = self._load(model)
        loaded.module.to(self.device).eval()
        self._read_outputs(model, loaded)
        return loaded

    def classifier(self, model: Model) -> LoadedModel:
        """As `trained`, and kept: for stages that leave it as it is."""
        key = model.model_dump_json()
        if key not in self._classifiers:
            with torch.inference_mode(False):  # tensors that are made in inference mode have no gradients later
                self._classifiers[key] = self.trained(model)
        return self._classifiers[key]

    def identity(self, model: Model) -> dict[str, Any]:
        """What identifies a trained classifier in an origin, beside how it is built: weights, normalisation, kind of outputs.

        What cannot be known without loading it is unknown in a dry run.
        """
        if not self.dry_run:
            return identity_of(self.classifier(model))
        weights, section = Path(_named_weights(model)), model.normalization
        unread = artefacts.Unknown(f"the classifier {model.arch}", is_there=True)
        found: dict[str, Any] = {"weights": unread, "normalization": unread, "probabilities": unread}
        if str(weights) == "DEFAULT" and not self.is_reading:
            try:
                return identity_of(self.classifier(model))
            except MissingInputError as error:  # a dry run does not fetch them
                logger.info("%s", error)
        elif str(weights) != "DEFAULT":
            try:
                kept = records.beside(weights)
            except DamagedError:
                return dict.fromkeys(found, artefacts.Unknown(str(weights)))
            if not weights.is_file():
                missing = self._missing(model, weights)
                if not isinstance(missing, MissingInputError) and not self.is_reading:
                    raise missing
                return dict.fromkeys(found, artefacts.Unknown(str(weights)))
            found["weights"] = artefacts.sha256(weights)
            if section is None and "normalization" in kept:
                found["normalization"] = kept["normalization"]
        if section is not None:
            found["normalization"] = Normalization(tuple(section.mean), tuple(section.std)).plain
        return found

    def comparability(self, model: Model) -> dict[str, Any]:
        """What an origin says where class k of the data set need not be output k of the classifier.

        Nothing where it is: scores that do not compare labels with outputs have the same origin for good.
        """
        if self.dry_run:
            return {"labels_are_outputs": artefacts.Unknown(f"the classifier {model.arch}", is_there=True)}
        return {} if self.labels_are_outputs(model, self.classifier(model)) else {"labels_are_outputs": False}

    def _missing(self, model: Model, weights: Path) -> MissingInputError | ConfigError:
        if self.config.outdir.absolute() in weights.absolute().parents:
            stage = "train-cls" if weights.parent.name == "train_cls" else "the stage that makes it"
            return MissingInputError(f"{weights}: no such file of weights yet; run {stage} first")
        sections = (
            f"{name}.model" for name, section in self.config.sections() if getattr(section, "model", None) == model
        )
        return ConfigError(f"{next(sections, 'model')}.pretrained_weights: {weights}: no such file; correct the path")

    def class_names(self, classes: int) -> tuple[str, ...]:
        """Names of the explained classifier's classes: of its file, else the data set's, else numbers.

        Raises:
            ConfigError: the file is not there, or has another number of names.
        """
        sections = (section for _, section in self.config.sections() if isinstance(section, ExtractCams | MapTest))
        path = next((section.model.class_names for section in sections), None)
        if path is None:
            names = tuple(self.dataset.class_names)
            return names if len(names) == classes else tuple(map(str, range(classes)))
        return _names_in(path, classes)

    def labels_are_outputs(self, model: Model, loaded: LoadedModel) -> bool:
        """Whether class k of the data set is output k of a classifier that its section names.

        It is where names or numbers of classes are the same, and where the classifier was trained on these classes by train-cls.
        """
        names, reading = tuple(self.dataset.class_names), outputs.outputs_of(loaded.module)
        if reading is None or isinstance(loaded.module, Retargeted):
            return False
        if model.class_names is not None:
            return _names_in(model.class_names, reading.classes) == names
        if reading.classes == len(names):
            return True
        return reading.classes > len(names) and _of_training(model).get("class_names") == list(names)

    def require_labels(self, model: Model, loaded: LoadedModel, where: str, way_out: str) -> None:
        """Checks that class k of the data set is output k of the classifier.

        Raises:
            ModelError: it need not be; the line begins with `where` and ends with `way_out`.
        """
        if not self.labels_are_outputs(model, loaded):
            reading = outputs.outputs_of(loaded.module)
            raise ModelError(
                f"{where}: a label need not name the right output, because {model.arch} has {0 if reading is None else reading.classes} "
                f"outputs, and {self.config.data.dataset} has {len(self.dataset.class_names)} classes; {way_out}"
            )

    def fresh(self, model: Model, *purpose: str | int) -> LoadedModel:
        """A classifier with initial weights drawn for one purpose from the root seed, on the device."""
        torch.manual_seed(seeding.derive(self.config.seed, *purpose, "weights"))
        loaded = self._load(model)
        loaded.module.to(self.device)
        self._read_outputs(model, loaded)
        return loaded

    def _read_outputs(self, model: Model, loaded: LoadedModel) -> None:
        """Makes the classifier give logits (N, K), and compares K with the number of classes.

        Raises:
            ModelError: its outputs cannot be read, or are fewer than the data set's classes.
        """
        size, channels = self.dataset.size, self.dataset.channels
        noise = torch.rand(1, channels, *size, generator=torch.Generator().manual_seed(0))
        pixels = torch.cat((torch.full_like(noise, 0.5), noise)).to(self.device)
        classes = len(self.dataset.class_names)
        images = self._normalized(model, loaded, pixels)
        if isinstance(loaded.module, Retargeted):  # a scalar of the outputs in place of the classes
            outputs.read(loaded.module.network, images, name=model.arch, output=model.output, binary=False)
            outputs.read(loaded.module, images, name=model.arch)
            return
        reading = outputs.read(loaded.module, images, name=model.arch, output=model.output, classes=classes)
        if reading.classes < classes and model.class_names is None:
            what = "1 output, for 2 classes" if reading.is_pair else f"{reading.classes} outputs"
            raise ModelError(
                f"{model.arch}: gives {what}, and {self.config.data.dataset} has {classes} classes; take a classifier of these "
                "classes, or name its own classes in model.class_names"
            )

    def _normalized(self, model: Model, loaded: LoadedModel, pixels: torch.Tensor) -> torch.Tensor:
        channels, expected = self.dataset.channels, len(loaded.normalization.mean)
        if channels != expected:
            colour = "grey" if channels == 1 else "coloured"
            raise ModelError(
                f"{model.arch}: the pictures of {self.config.data.dataset} are {colour} ({channels} channels), and its normalisation is "
                f"for {expected}; set model.normalization to {channels} means and stds, and build the network for {channels} channels "
                "with constructor_args, or with a model.transformer that changes the number of channels"
            )
        return loaded.normalization(pixels)

    def _load(self, model: Model) -> LoadedModel:
        section, weights = model.normalization, model.pretrained_weights
        if weights not in (None, "DEFAULT") and not Path(weights).is_file():
            raise self._missing(model, Path(weights))
        loaded = load(
            model.arch,
            num_classes=len(self.dataset.class_names),
            channels=self.dataset.channels,
            constructor_args=model.constructor_args,
            pretrained_weights=weights,
            transformer=model.transformer,
            normalization=None if section is None else Normalization(tuple(section.mean), tuple(section.std)),
            default_normalization=lambda: self.statistics,
        )
        threads.raise_for(loaded.module, self.dataset.size)
        return loaded

    def recipe(self, section: TrainCls) -> ClassifierRecipe:
        """How a section says to train, checked."""
        recipe = ClassifierRecipe(
            optimizer=_named(section.optimizer),
            scheduler=None if section.scheduler is None else _named(section.scheduler),
            loss=_named(section.loss),
            epochs=section.nb_epochs,
            batch_size=section.batch_size,
            augmentation=augmentation(section.augmentation, lambda: self.statistics.mean),
            precision=section.precision,
            channels_last=section.channels_last,
            scheduler_per_batch=section.scheduler_per_batch,
            patience=section.patience,
        )
        recipe.check()
        return recipe


def identity_of(loaded: LoadedModel) -> dict[str, Any]:
    """What identifies a classifier that is loaded in an origin."""
    kind = kind_of(loaded.module)
    known = {"weights": loaded.weights_sha256, "normalization": loaded.normalization.plain}
    return known if kind == "softmax" else known | {"probabilities": kind}


def _named_weights(model: Model) -> str:
    if model.pretrained_weights is None:
        raise ModelError(f"{model.arch}: pretrained_weights is not set; name a file of weights, or DEFAULT")
    return model.pretrained_weights


def _of_training(model: Model) -> dict[str, Any]:
    """What train-cls left beside the weights that a section names; empty where it did not make them."""
    return records.beside(Path(model.pretrained_weights)) if model.pretrained_weights else {}


def _names_in(path: Path, classes: int) -> tuple[str, ...]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: class_names cannot be read: {error}") from error
    # ImageNet's lists put the WordNet id first and synonyms behind commas.
    names = tuple(re.sub(r"^n\d{8}\s+", "", line).split(",")[0].strip() for line in lines if line.strip())
    if len(names) != classes:
        raise ConfigError(f"{path}: {len(names)} class names; the classifier has {classes} classes")
    return names


def augmentation(asked: AugmentationSection, fill: Callable[[], tuple[float, ...]]) -> Augmentation | None:
    """What a section says is done to training images; None for nothing. The colour of a `fill` is looked up only where it is used."""
    if not (asked.crop_padding or asked.flip or asked.noise or asked.rotation or asked.blur):
        return None
    colour = fill() if asked.padding == "fill" else tuple(0.0 for _ in fill())
    return Augmentation(asked.crop_padding, colour, asked.flip, asked.noise, asked.rotation, asked.blur)


def build_fill(
    run: Run,
    asked: str | Plugin,
    normalization: Callable[[], Normalization],
    split: str = "test",
    *,
    or_generates: bool = False,
) -> removal.Fill:
    """The fill that a section asks for, in units of pixels in [0, 1]; means are looked up only where it takes them."""
    name, options = (asked, {}) if isinstance(asked, str) else (asked.name, asked.options)
    taken = sorted({"how", "mean", "normalization_mean", "or_generates", "seed"} & options.keys())
    if taken:
        raise ConfigError(f"{name}: option {taken[0]!r} is set by the run, not by its configuration; leave it out")
    means = means_for(run, name, normalization)
    seed = seeding.of_split(run.config.seed, split)
    return removal.build_fill(name, seed=seed, or_generates=or_generates, **means, **options)


def means_for(run: Run, name: str, normalization: Callable[[], Normalization]) -> dict[str, tuple[float, ...]]:
    """The mean colours that a fill takes, by the names of its parameters."""

    def training_mean() -> tuple[float, ...]:
        # Data without a training part: the classifier's own normalisation tells the mean of what it was trained on.
        return run.statistics.mean if "train" in run.dataset.splits else normalization().mean

    means = {"mean": training_mean, "normalization_mean": lambda: normalization().mean}
    return {key: mean() for key, mean in plugins.given(removal.named_fill(name), means).items()}


def means_origin(run: Run, name: str, normalization: Callable[[], Normalization]) -> Any:
    """The mean colours that a fill takes, for an origin; a dry run neither reads images nor loads a network to know them."""
    target = removal.named_fill(name)
    if run.dry_run and any(plugins.wants(target, mean) for mean in ("mean", "normalization_mean")):
        return artefacts.Unknown("the mean colours", is_there=True)
    return means_for(run, name, normalization)


def content_of_file(path: Path) -> Any:
    """A file's SHA-256 for an origin; unknown before it is there."""
    return artefacts.sha256(path) if path.is_file() else artefacts.Unknown(str(path))


def fill_origin(asked: str | Plugin) -> Any:
    """What a fill adds to an origin: its name, in one spelling, and options, files by their content."""
    if isinstance(asked, str):
        return removal.fill_name(asked) or asked
    return {**artefacts.with_content(asked.options), "name": removal.fill_name(asked.name) or asked.name}


def training_origin(section: TrainCls) -> dict[str, Any]:
    """What a training depends on, apart from data, weights and seed."""
    origin = section.model_dump(mode="json", include=set(TrainCls.model_fields) - {"model"})
    # What came later is named only where it is used: the same training has the same origin for good.
    for part, later in (
        (origin, ("scheduler_per_batch", "patience")),
        (origin["augmentation"], ("noise", "rotation", "blur")),
    ):
        for option in later:
            if not part[option]:
                del part[option]
    return origin


def model_origin(model: Model) -> dict[str, Any]:
    """Which network is built; the weights are named by their hash elsewhere."""
    origin = model.model_dump(mode="json", include={"arch", "constructor_args", "transformer"})
    # What came later is named only where it is used: the same network has the same origin for good.
    return origin if model.output == "softmax" else origin | {"output": model.output}


def _named(plugin: Plugin) -> Named:
    return Named(plugin.name, plugin.options)
