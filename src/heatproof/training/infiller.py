"""Training of a network that fills holes, continued exactly after a kill.

As in the training of classifiers, nothing random outlives an epoch: order and holes of epoch e come from (seed, e). The
learning rate falls to zero along half a cosine, a function of the step alone.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from heatproof import runtime, seeding
from heatproof.errors import DivergedError
from heatproof.models.inpainting import GatedUNet
from heatproof.models.weights import State
from heatproof.training.checkpoints import copied, read_checkpoint, save_tensors
from heatproof.training.examples import Batch, Examples
from heatproof.training.holes import holes

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


@dataclass(frozen=True)
class FittedInfiller:
    """The weights of the epoch with the smallest validation error (the earliest of equals), and how it went."""

    state: State
    best_epoch: int
    validation_error: float
    history: tuple[InfillerEpoch, ...]


def fit_infiller(
    network: GatedUNet,
    train: Examples,
    validation: Examples,
    recipe: InfillerRecipe,
    *,
    seed: int,
    checkpoint: Path,
    identity: str,
    checkpoint_every_s: float = 0.0,
    on_epoch: Callable[[Sequence[InfillerEpoch]], None] | None = None,
    describe: str = "train-infiller",
) -> FittedInfiller:
    """Trains `network` in place on L1 in the holes and returns the best epoch's weights.

    Args:
        network: freshly initialised, on the device of the examples.
        train: images that are learnt.
        validation: images that choose the epoch; their holes are the same in all epochs.
        recipe: how.
        seed: root seed.
        checkpoint: file that holds the state after an epoch; found there, the training goes on from it.
        identity: what the training depends on; a checkpoint of another identity is not used.
        checkpoint_every_s: least time between two checkpoints.
        on_epoch: called after each epoch with all lines so far.
        describe: text of the progress bar.

    Raises:
        DivergedError: the error is no longer finite.
        ModelError: the checkpoint is damaged.
    """
    run = _Run(network, recipe, seed)
    first = run.resume(checkpoint, identity)
    steps = math.ceil(len(train) / recipe.batch_size)
    saved_at = time.monotonic()
    with runtime.progress(recipe.epochs * steps, describe, "step", first * steps) as bar:
        for epoch in range(first, recipe.epochs):
            line = run.epoch(epoch, steps, train, validation, bar.update)
            bar.set_postfix_str(f"epoch {epoch + 1}, validation {line.validation_error:.4f}", refresh=False)
            if on_epoch is not None:
                on_epoch(run.history)
            if time.monotonic() - saved_at >= checkpoint_every_s:
                run.save(checkpoint, identity)
                saved_at = time.monotonic()
    assert run.best is not None
    return FittedInfiller(run.best, run.best_epoch, run.best_error, tuple(run.history))


def error_in_holes(network: GatedUNet, pixels: Tensor, removed: Tensor) -> Tensor:
    """Mean absolute difference over the removed pixels (N, H, W) of a batch; 0 where there are none."""
    mask = removed[:, None].to(pixels.dtype)
    filled: Tensor = network(pixels, mask)
    return ((filled - pixels).abs() * mask).sum() / (mask.sum() * pixels.shape[1]).clamp(min=1)


class _Run:
    """A training under way."""

    def __init__(self, network: GatedUNet, recipe: InfillerRecipe, seed: int):
        self.network, self.recipe, self.seed = network, recipe, seed
        self.optimizer = torch.optim.Adam(network.parameters(), lr=recipe.lr)
        self.history: list[InfillerEpoch] = []
        self.best: State | None = None
        self.best_epoch, self.best_error = 0, math.inf

    def epoch(
        self, number: int, steps: int, train: Examples, validation: Examples, after_step: Callable[[], object]
    ) -> InfillerEpoch:
        """One pass over the training images, and one over the validation images."""
        order = torch.from_numpy(seeding.generator(self.seed, PURPOSE, number, "order").permutation(len(train)))
        total = 0.0
        self.network.train()
        for step, batch in enumerate(train.batches(order, self.recipe.batch_size)):
            for group in self.optimizer.param_groups:
                group["lr"] = self._rate(number * steps + step, self.recipe.epochs * steps)
            error = error_in_holes(self.network, batch.pixels, self._holes(batch, "epoch", number))
            self.optimizer.zero_grad(set_to_none=True)
            error.backward()
            self.optimizer.step()
            total += error.item() * len(batch.indices)
            after_step()
        if not math.isfinite(total):
            raise DivergedError(f"training diverged in epoch {number + 1}; try a smaller train_infiller.lr")
        rate = self._rate(number * steps, self.recipe.epochs * steps)
        line = InfillerEpoch(number + 1, rate, total / len(train), self._validate(validation))
        self.history.append(line)
        if line.validation_error < self.best_error:
            self.best, self.best_epoch, self.best_error = copied(self.network), number + 1, line.validation_error
        return line

    def _rate(self, step: int, steps: int) -> float:
        return self.recipe.lr * 0.5 * (1 + math.cos(math.pi * step / steps))

    def _holes(self, batch: Batch, *purpose: str | int) -> Tensor:
        return holes(batch.pixels, batch.indices.cpu().numpy(), self.seed, PURPOSE, *purpose)

    def _validate(self, validation: Examples) -> float:
        self.network.eval()
        with torch.inference_mode():
            total = sum(
                error_in_holes(self.network, batch.pixels, self._holes(batch, "validation")).item() * len(batch.indices)
                for batch in _in_order(validation)
            )
        return total / len(validation)

    def save(self, path: Path, identity: str) -> None:
        """Writes all that the next epoch depends on."""
        state = {
            "identity": identity,
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "history": [asdict(line) for line in self.history],
            "best": self.best,
            "best_epoch": self.best_epoch,
            "best_error": self.best_error,
        }
        save_tensors(path, state)

    def resume(self, path: Path, identity: str) -> int:
        """Takes up a checkpoint of the same identity; returns the number of epochs that are done."""
        state = read_checkpoint(path, identity)
        if state is None:
            return 0
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.history = [InfillerEpoch(**line) for line in state["history"]]
        self.best, self.best_epoch, self.best_error = state["best"], state["best_epoch"], state["best_error"]
        return len(self.history)


def _in_order(examples: Examples) -> Iterator[Batch]:
    return examples.batches(torch.arange(len(examples)), 256)
