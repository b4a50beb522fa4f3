"""Training of a network that fills holes.

Order and holes of epoch e come from (seed, e). The learning rate falls to zero along half a cosine, a function of the step
alone.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Unpack

import torch
from torch import Tensor

from heatproof import seeding
from heatproof.errors import DivergedError
from heatproof.models.inpainting import GatedUNet
from heatproof.training.examples import Batch, Examples
from heatproof.training.holes import holes
from heatproof.training.loop import Fitted, Learner, LoopOptions, train_epochs

RESULTS_VERSION = 1
PURPOSE = "train_infiller"


@dataclass(frozen=True)
class InfillerRecipe:
    """How to train.

    Args:
        epochs: passes over the training images.
        batch_size: images in a step.
        lr: of Adam, at the start.
    """

    epochs: int
    batch_size: int
    lr: float


@dataclass(frozen=True)
class InfillerEpoch:
    """One line of a training's history; errors are mean absolute differences in the holes, in [0, 1] units."""

    epoch: int
    learning_rate: float
    train_error: float
    validation_error: float


def fit(
    network: GatedUNet,
    train: Examples,
    validation: Examples,
    recipe: InfillerRecipe,
    *,
    seed: int,
    **options: Unpack[LoopOptions[InfillerEpoch]],
) -> Fitted[InfillerEpoch]:
    """Trains `network` in place on L1 in the holes; the best epoch is the one with the smallest validation error.

    Args:
        network: freshly initialised, on the device of the examples.
        train: images that are learnt.
        validation: images that choose the epoch; their holes are the same in all epochs.
        recipe: how.
        seed: root seed.
        options: of the loop, see `loop.LoopOptions`.

    Raises:
        DivergedError: the error is no longer finite.
    """
    return train_epochs(InfillerLearner(network, train, validation, recipe, seed), **options)


def error_in_holes(network: GatedUNet, pixels: Tensor, removed: Tensor) -> Tensor:
    """Mean absolute difference over the removed pixels (N, H, W) of a batch; 0 where there are none."""
    mask = removed[:, None].to(pixels.dtype)
    filled: Tensor = network(pixels, mask)
    return ((filled - pixels).abs() * mask).sum() / (mask.sum() * pixels.shape[1]).clamp(min=1)


@dataclass
class InfillerLearner(Learner[InfillerEpoch]):
    """A network and its optimizer; arguments as for `fit`."""

    network: GatedUNet
    train: Examples
    validation: Examples
    recipe: InfillerRecipe
    seed: int

    line = InfillerEpoch
    shown = "validation {validation_error:.4f}"

    def __post_init__(self) -> None:
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=self.recipe.lr)
        self.epochs, self.steps = self.recipe.epochs, math.ceil(len(self.train) / self.recipe.batch_size)
        self.parts = {"network": self.network, "optimizer": self.optimizer}

    def epoch(self, number: int, after_step: Callable[[], object]) -> InfillerEpoch:
        """One pass over the training images, and one over the validation images."""
        order = torch.from_numpy(seeding.generator(self.seed, PURPOSE, number, "order").permutation(len(self.train)))
        total = 0.0
        self.network.train()
        for step, batch in enumerate(self.train.batches(order, self.recipe.batch_size)):
            for group in self.optimizer.param_groups:
                group["lr"] = self._rate(number * self.steps + step)
            error = error_in_holes(self.network, batch.pixels, self._holes(batch, "epoch", number))
            self.optimizer.zero_grad(set_to_none=True)
            error.backward()
            self.optimizer.step()
            total += error.item() * len(batch.indices)
            after_step()
        if not math.isfinite(total):
            raise DivergedError(f"training diverged in epoch {number + 1}; try a smaller train_infiller.lr")
        return InfillerEpoch(number + 1, self._rate(number * self.steps), total / len(self.train), self._validate())

    def rank(self, line: InfillerEpoch) -> float:
        """The smaller the validation error, the better."""
        return line.validation_error if math.isfinite(line.validation_error) else math.inf

    def _rate(self, step: int) -> float:
        return self.recipe.lr * 0.5 * (1 + math.cos(math.pi * step / (self.recipe.epochs * self.steps)))

    def _holes(self, batch: Batch, *purpose: str | int) -> Tensor:
        return holes(batch.pixels, batch.indices.cpu().numpy(), self.seed, PURPOSE, *purpose)

    def _validate(self) -> float:
        self.network.eval()
        with torch.inference_mode():
            total = sum(
                error_in_holes(self.network, batch.pixels, self._holes(batch, "validation")).item() * len(batch.indices)
                for batch in self.validation.batches(torch.arange(len(self.validation)), 256)
            )
        return total / len(self.validation)
