"""Training of maskers, FIX and CA; `masker_steps` has one step.

Batches and augmentation come from (seed, purpose, epoch), draws from (seed, purpose, step).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Unpack

import numpy as np
import torch
from torch import Tensor, nn

from heatproof import seeding
from heatproof.errors import InputError
from heatproof.models import Normalization
from heatproof.models.masker import Masker
from heatproof.models.outputs import norms_single_values
from heatproof.models.weights import State
from heatproof.training.checkpoints import copied
from heatproof.training.classifier import Normalize
from heatproof.training.examples import Examples
from heatproof.training.loop import Learner, LoopOptions, train_epochs
from heatproof.training.masker_steps import MaskerDraws, MaskerRecipe, MaskerTraining

RESULTS_VERSION = 1

MaskerEpoch = dict[str, float]


@dataclass(frozen=True)
class FittedMasker:
    """The masker's weights after the last epoch, the classifier's where it was trained, and how it went."""

    masker: State
    classifier: State | None
    history: tuple[MaskerEpoch, ...]


def fit(
    classifier: nn.Module,
    masker: Masker,
    normalize: Normalize,
    train: Examples,
    validation: Examples,
    recipe: MaskerRecipe,
    *,
    seed: int,
    purpose: tuple[str | int, ...],
    **options: Unpack[LoopOptions[MaskerEpoch]],
) -> FittedMasker:
    """Trains a masker in place, and with CA the classifier.

    Args:
        classifier: trained; with FIX it is left bit by bit as it was.
        masker: freshly initialised, on the device of the examples.
        normalize: pixels in [0, 1] -> what the classifier expects.
        train: what is learnt from.
        validation: what each epoch's line tells of.
        recipe: how.
        seed: root seed.
        purpose: names this training.
        options: of the loop, see `loop.LoopOptions`.

    Raises:
        DivergedError: loss or gradient is no longer finite; it names the step.
        InputError: a label is no class of the classifier, or there are fewer images than one batch has.
    """
    if recipe.infiller is not None and not isinstance(normalize, Normalization):
        raise InputError("normalize: an infiller works on pixels; expected a Normalization, which can be undone")
    normalization = normalize if isinstance(normalize, Normalization) else None
    with MaskerTraining(classifier, masker, recipe, normalization).at_work() as training:
        fitted = train_epochs(MaskerLearner(training, normalize, train, validation, seed, purpose), **options)
    return FittedMasker(fitted.state, copied(classifier) if recipe.form == "ca" else None, fitted.history)


@dataclass
class MaskerLearner(Learner[MaskerEpoch]):
    """A masker and its classifier, epoch by epoch; the last epoch is the best.

    Args:
        training: everything that a step changes.
        normalize, train, validation, seed, purpose: as for `fit`.
    """

    training: MaskerTraining
    normalize: Normalize
    train: Examples
    validation: Examples
    seed: int
    purpose: tuple[str | int, ...]

    line = dict
    shown = "loss {validation_loss:.3f}, area {validation_area:.2f}"

    def __post_init__(self) -> None:
        recipe, train = self.training.recipe, self.train
        self.network, self.parts, self.epochs = self.training.masker, {"training": self.training}, recipe.epochs
        if recipe.form == "ca" and recipe.batch_size == 1 and norms_single_values(self.training.classifier):
            raise InputError(
                "train_masker: batch_size is 1, and a batch norm of the classifier has one value of each channel for an image; "
                "it needs two images"
            )
        self.steps = round(recipe.share * len(train)) // recipe.batch_size  # what does not fill a batch is left out
        if self.steps == 0:
            raise InputError(
                f"train_masker: {round(recipe.share * len(train))} images for an epoch do not fill a batch of "
                f"{recipe.batch_size}; take a smaller batch_size, or a larger share"
            )

    def epoch(self, number: int, after_step: Callable[[], object]) -> MaskerEpoch:
        """One share of the training images, and all validation images."""
        recipe, training = self.training.recipe, self.training
        purpose = (*self.purpose, "epoch", number)
        torch.manual_seed(seeding.derive(self.seed, *purpose, "torch"))
        training.set_rates(number)
        rng = seeding.generator(self.seed, *purpose, "order")
        order = np.concatenate([rng.permutation(len(self.train)) for _ in range(math.ceil(recipe.share))])
        chosen = torch.from_numpy(order[: self.steps * recipe.batch_size])
        moved = None if recipe.augmentation is None else recipe.augmentation.draw(self.seed, purpose, len(self.train))
        wanted = self._areas(self.train, purpose)
        learnt = []
        for batch in self.train.batches(chosen, recipe.batch_size):
            pixels = batch.pixels if moved is None else moved.apply(batch.pixels, batch.indices)
            images = self.normalize(pixels)
            if moved is not None:
                images = moved.disturb(images, batch.indices)
            draws = self._draws(images, None if wanted is None else wanted[batch.indices], batch.indices)
            learnt.append((len(images), training.step(images, batch.labels, draws)))
            after_step()
        wanted = self._areas(self.validation, (*self.purpose, "validation"))
        seen = []
        for batch in self.validation.batches(torch.arange(len(self.validation)), recipe.batch_size):
            areas = None if wanted is None else wanted[batch.indices]
            found = training.evaluate(self.normalize(batch.pixels), batch.labels, areas, batch.indices)
            seen.append((len(batch.labels), found))
        line: MaskerEpoch = {"epoch": number + 1, "learning_rate": training.of_masker.param_groups[0]["lr"]}
        line |= {f"train_{name}": value for name, value in _means(learnt).items()}
        line |= {f"validation_{name}": value for name, value in _means(seen).items()}
        return line

    def rank(self, line: MaskerEpoch) -> float:
        """The later, the better."""
        return -line["epoch"]

    def _draws(self, images: Tensor, areas: Tensor | None, indices: Tensor) -> MaskerDraws:
        recipe, step = self.training.recipe, self.training.step_count
        rng = seeding.generator(self.seed, *self.purpose, "step", step)
        historic, member, slot = rng.random(3).tolist()
        return MaskerDraws(
            historic >= recipe.historic_probability, member, slot, areas, self._noise(images, rng), indices
        )

    def _areas(self, examples: Examples, purpose: tuple[str | int, ...]) -> Tensor | None:
        """A wanted area for each image of a split, by index."""
        if not self.training.masker.form.takes_area:
            return None
        drawn = seeding.generator(self.seed, *purpose, "areas").uniform(*self.training.recipe.areas, len(examples))
        return torch.from_numpy(drawn.astype(np.float32)).to(examples.device)

    def _noise(self, images: Tensor, rng: np.random.Generator) -> Tensor | None:
        form = self.training.masker.form
        if not form.draws_noise:
            return None
        return torch.from_numpy(rng.random((len(images), *form.grid(images.shape[2:])))).to(images)


def _means(batches: Sequence[tuple[int, dict[str, Tensor]]]) -> MaskerEpoch:
    """Means over images of the batches' means."""
    names = list(batches[0][1])
    table = torch.stack([torch.stack([found[name] for name in names]) for _, found in batches]).double().cpu()
    weights = torch.tensor([count for count, _ in batches], dtype=torch.float64)
    return dict(zip(names, (table * weights[:, None]).sum(dim=0).div(weights.sum()).tolist(), strict=True))
