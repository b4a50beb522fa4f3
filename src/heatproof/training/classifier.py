"""Training of a classifier by the protocol of the ROAR code.

Batch order, augmentation and torch's own draws (dropout) of epoch e come from (seed, purpose, e).
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Unpack

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from heatproof import plugins, runtime, seeding
from heatproof.errors import ConfigError, DivergedError, ModelError, PluginError
from heatproof.models.outputs import norms_single_values
from heatproof.models.probabilities import Kind, kind_of, one_hot
from heatproof.training.augmentation import Augmentation
from heatproof.training.examples import Examples, in_batches
from heatproof.training.loop import Fitted, Learner, LoopOptions, train_epochs

RESULTS_VERSION = 1


LABEL_LOSSES = (nn.BCEWithLogitsLoss, nn.MultiLabelSoftMarginLoss)
"""Losses of labels that can be true together, each with a logistic function of its own."""
CLASS_LOSSES = (nn.CrossEntropyLoss, nn.NLLLoss, nn.MultiMarginLoss)
"""Losses of classes that exclude one another; no other loss of torch takes classes."""
_NOT_GIVEN = ("closure", "metrics")  # arguments of a step, as of LBFGS and ReduceLROnPlateau


@dataclass(frozen=True)
class Named:
    """A class by its dotted path, and its keyword arguments."""

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ClassifierRecipe:
    """How to train a classifier.

    Args:
        optimizer: called with the parameters.
        scheduler: called with the optimizer, stepped after each epoch; None keeps the rate. One that must be told
            `total_steps`, and has no such option set, is told how many steps the training has.
        loss: called as loss(logits, labels); one of `LABEL_LOSSES` as loss(logits, targets), where the targets (N, K) are 1 at
            the label and 0 elsewhere.
        epochs: passes over the training examples.
        batch_size: examples in a step; the last step of an epoch may have fewer. A single one that is left over joins the step
            before it where a batch norm of the network cannot be trained with one.
        augmentation: of the training examples; None for none.
        precision: "float32", or "bfloat16" for autocast of the forward pass.
        channels_last: memory layout of activations and weights.
        scheduler_per_batch: the scheduler is stepped after each batch instead.
        patience: training ends when the validation accuracy has not risen for so many epochs; None: never.
    """

    optimizer: Named
    scheduler: Named | None
    loss: Named
    epochs: int
    batch_size: int
    augmentation: Augmentation | None
    precision: str = "float32"
    channels_last: bool = False
    scheduler_per_batch: bool = False
    patience: int | None = None

    def check(self) -> None:
        """Checks the options of optimizer, scheduler and loss against their signatures.

        Raises:
            PluginError: naming what does not fit.
        """
        scheduler = None if self.scheduler is None else told_total_steps(self.scheduler, 1)
        for named, positional in ((self.optimizer, 1), (scheduler, 1), (self.loss, 0)):
            if named is None:
                continue
            target = plugins.resolve(named.name)
            plugins.check_options(named.name, target, named.options, positional=positional)
            argument = next((name for name in _NOT_GIVEN if plugins.needs(getattr(target, "step", None), name)), None)
            if argument is not None:
                raise PluginError(
                    f"{named.name}: each step needs {argument}, which training does not give; take another"
                )


def told_total_steps(scheduler: Named, steps: int) -> Named:
    """The scheduler with the option `total_steps`, where it must have it and it is not set."""
    target = plugins.resolve(scheduler.name)
    if not plugins.needs(target, "total_steps"):
        return scheduler
    return Named(scheduler.name, {"total_steps": steps, **scheduler.options})


@dataclass(frozen=True)
class ClassifierEpoch:
    """One line of a training's history; losses are means over examples, accuracies shares in [0, 1]."""

    epoch: int
    learning_rate: float
    train_loss: float
    train_accuracy: float
    validation_loss: float
    validation_accuracy: float


Normalize = Callable[[Tensor], Tensor]


def fit(
    module: nn.Module,
    normalize: Normalize,
    train: Examples,
    validation: Examples,
    recipe: ClassifierRecipe,
    *,
    seed: int,
    purpose: tuple[str | int, ...],
    **options: Unpack[LoopOptions[ClassifierEpoch]],
) -> Fitted[ClassifierEpoch]:
    """Trains `module` in place; the best epoch is the one with the highest validation accuracy, the earliest of equals.

    Args:
        module: freshly initialised, on the device of the examples.
        normalize: pixels in [0, 1] -> what the module expects.
        train: examples that are augmented and learnt.
        validation: examples that choose the epoch.
        recipe: how.
        seed: root seed.
        purpose: names this training, such as ("retrain", run); two trainings with equal purpose see the same
            batches and augmentations.
        options: of the loop, see `loop.LoopOptions`.

    Raises:
        ConfigError: the loss does not fit the network's outputs, or batches of one image do not fit its batch norm.
        DivergedError: the loss is no longer finite.
        ModelError: the network passes no gradient.
    """
    return train_epochs(ClassifierLearner(module, normalize, train, validation, recipe, seed, purpose), **options)


def predict(
    module: nn.Module,
    normalize: Normalize,
    examples: Examples,
    *,
    batch_size: int,
    recipe: ClassifierRecipe | None = None,
    describe: str | None = None,
) -> NDArray[np.int64]:
    """The class with the largest logit for each example that takes part, in the split's order.

    `describe` is the text of a progress bar on stderr; None shows none.
    """
    found = []
    with runtime.progress(int(examples.valid.sum()), describe) as bar:
        for logits, _ in _logits(module, normalize, examples, batch_size, recipe):
            found.append(logits.argmax(1).cpu().numpy())
            bar.update(len(logits))
    return np.concatenate(found)


def accuracy(module: nn.Module, normalize: Normalize, examples: Examples, *, batch_size: int) -> float:
    """Share of examples that are classified right, in [0, 1]."""
    predictions = predict(module, normalize, examples, batch_size=batch_size)
    return float((predictions == examples.split.labels[examples.valid]).mean())


def _logits(
    module: nn.Module, normalize: Normalize, examples: Examples, batch_size: int, recipe: ClassifierRecipe | None
) -> Iterator[tuple[Tensor, Tensor]]:
    was_training = module.training
    module.eval()
    try:
        with torch.inference_mode():
            for batch in examples.batches(torch.arange(len(examples)), batch_size):
                yield _forward(module, normalize(batch.pixels), recipe), batch.labels
    finally:
        module.train(was_training)


def _forward(module: nn.Module, images: Tensor, recipe: ClassifierRecipe | None) -> Tensor:
    if recipe is not None and recipe.channels_last:
        images = images.contiguous(memory_format=torch.channels_last)
    if recipe is None or recipe.precision == "float32":
        logits: Tensor = module(images)
        return logits
    with torch.autocast(images.device.type, dtype=torch.bfloat16):
        logits = module(images)
    return logits.float()


@dataclass
class ClassifierLearner(Learner[ClassifierEpoch]):
    """A classifier, its optimizer and its schedule; arguments as for `fit`."""

    network: nn.Module
    normalize: Normalize
    train: Examples
    validation: Examples
    recipe: ClassifierRecipe
    seed: int
    purpose: tuple[str | int, ...]

    line = ClassifierEpoch
    shown = "validation {validation_accuracy:.1%}"

    def __post_init__(self) -> None:
        count, pairs = int(self.train.valid.sum()), norms_single_values(self.network)
        if pairs and min(count, self.recipe.batch_size) == 1:
            what = "batch_size is 1" if self.recipe.batch_size == 1 else "there is one training image"
            raise ConfigError(
                f"training: {what}, and a batch norm of the network has one value of each channel for an image; it needs two images"
            )
        recipe, self.epochs, self.patience = self.recipe, self.recipe.epochs, self.recipe.patience
        self.steps = len(in_batches(torch.arange(count), recipe.batch_size, pairs=pairs))
        if recipe.channels_last:
            self.network.to(memory_format=torch.channels_last)
        self.optimizer: torch.optim.Optimizer = _build(recipe.optimizer, self.network.parameters())
        self.scheduler = None
        if recipe.scheduler is not None:
            total_steps = recipe.epochs * (self.steps if recipe.scheduler_per_batch else 1)
            self.scheduler = _build(told_total_steps(recipe.scheduler, total_steps), self.optimizer)
        self.loss = _loss(recipe.loss, kind_of(self.network))
        self.parts = {"module": self.network, "optimizer": self.optimizer, "scheduler": self.scheduler}

    def epoch(self, number: int, after_step: Callable[[], object]) -> ClassifierEpoch:
        """One pass over the training examples, and one over the validation examples."""
        rate = float(self.optimizer.param_groups[0]["lr"])
        train_loss, train_accuracy = self._learn(number, after_step)
        if not math.isfinite(train_loss):
            raise DivergedError(
                f"training diverged in epoch {number + 1}: the mean loss is {train_loss}; try a smaller optimizer.lr than {rate:g}"
            )
        if self.scheduler is not None and not self.recipe.scheduler_per_batch:
            self.scheduler.step()
        return ClassifierEpoch(number + 1, rate, train_loss, train_accuracy, *self._validate())

    def rank(self, line: ClassifierEpoch) -> float:
        """The higher the validation accuracy, the better."""
        return -line.validation_accuracy

    def _learn(self, number: int, after_step: Callable[[], object]) -> tuple[float, float]:
        train = self.train
        purpose = (*self.purpose, "epoch", number)
        torch.manual_seed(seeding.derive(self.seed, *purpose, "torch"))
        order = torch.from_numpy(seeding.generator(self.seed, *purpose, "order").permutation(len(train)))
        augmentation = self.recipe.augmentation
        draws = None if augmentation is None else augmentation.draw(self.seed, purpose, len(train))
        totals = torch.zeros(2, dtype=torch.float64, device="cpu" if train.device.type == "mps" else train.device)
        self.network.train()
        for batch in train.batches(order, self.recipe.batch_size, pairs=norms_single_values(self.network)):
            images = self.normalize(batch.pixels if draws is None else draws.apply(batch.pixels, batch.indices))
            if draws is not None:
                images = draws.disturb(images, batch.indices)
            logits = _forward(self.network, images, self.recipe)
            loss = self.loss(logits, batch.labels)
            if not loss.requires_grad:
                raise ModelError(
                    f"{type(self.network).__name__}: cannot be trained, because the loss has no gradient (torch.no_grad or detach inside "
                    "the model, or all parameters are frozen)"
                )
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            self.optimizer.step()
            if self.scheduler is not None and self.recipe.scheduler_per_batch:
                self.scheduler.step()
            right = (logits.detach().argmax(1) == batch.labels).sum()
            totals += torch.stack([loss.detach().double() * len(batch.labels), right.double()]).to(totals.device)
            after_step()
        mean_loss, share = (totals / int(train.valid.sum())).tolist()
        return mean_loss, share

    def _validate(self) -> tuple[float, float]:
        loss, right = 0.0, 0
        for logits, labels in _logits(self.network, self.normalize, self.validation, 1024, self.recipe):
            loss += float(self.loss(logits, labels)) * len(labels)
            right += int((logits.argmax(1) == labels).sum())
        count = int(self.validation.valid.sum())
        return loss / count, right / count


def _loss(named: Named, kind: Kind) -> Callable[[Tensor, Tensor], Tensor]:
    """The loss of logits and labels.

    Raises:
        ConfigError: it is not one of classes, or of another kind than the network's outputs; on the call, it gives no single
            number.
    """
    target = plugins.resolve(named.name)
    if target is nn.BCELoss:
        raise ConfigError(f"loss: {named.name} takes probabilities; set loss: torch.nn.BCEWithLogitsLoss")
    if getattr(target, "__module__", "") == nn.modules.loss.__name__ and target not in LABEL_LOSSES + CLASS_LOSSES:
        known = ", ".join(f"torch.nn.{one.__name__}" for one in CLASS_LOSSES + LABEL_LOSSES)
        raise ConfigError(f"loss: {named.name} does not compare logits with classes; known are {known}")
    if kind == "softmax" and target in LABEL_LOSSES:
        raise ConfigError(
            f"loss: {named.name} is for labels that can be true together, but the network's outputs are read with a softmax; set "
            "model.output: sigmoid in each section that names the network, or loss: torch.nn.CrossEntropyLoss"
        )
    if kind == "sigmoid" and target in CLASS_LOSSES:
        raise ConfigError(
            f"loss: {named.name} is for classes that share a softmax, but the network has one output, or model.output is sigmoid; "
            "set loss: torch.nn.BCEWithLogitsLoss"
        )
    loss: Callable[[Tensor, Tensor], Any] = _build(named)

    def checked(logits: Tensor, labels: Tensor) -> Tensor:
        if target is nn.NLLLoss and bool(((logits.detach().exp().sum(dim=1) - 1).abs() > 1e-2).any()):
            raise ConfigError(
                f"loss: {named.name} takes logarithms of probabilities, as of a log_softmax, and the network gives other logits; "
                "set loss: torch.nn.CrossEntropyLoss"
            )
        value = loss(logits, one_hot(labels, logits) if target in LABEL_LOSSES else labels)
        if not isinstance(value, Tensor) or value.numel() != 1:
            shape = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
            raise ConfigError(
                f"loss: {named.name} gives {shape} for a batch; it must give one number, as with reduction: mean"
            )
        return value

    return checked


def _build(named: Named, *arguments: Any) -> Any:
    try:
        return plugins.resolve(named.name)(*arguments, **named.options)
    except (TypeError, ValueError) as error:
        raise PluginError(f"{named.name}: {error}; options were {dict(named.options)}") from error
