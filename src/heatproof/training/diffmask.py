"""Training of Vision DiffMask; `diffmask_steps` has the loss, and where it differs from what was published.

The order of epoch e comes from (seed, purpose, e), the draws of step s from (seed, purpose, s).
"""

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Unpack

import torch
from torch import nn

from heatproof import seeding
from heatproof.errors import DivergedError
from heatproof.models.diffmask import DiffMaskNetwork
from heatproof.models.hooks import frozen_eval
from heatproof.models.masking import Masking, Pass
from heatproof.models.probabilities import divergences, kind_of
from heatproof.training.classifier import Normalize
from heatproof.training.diffmask_steps import DiffMaskDraws, DiffMaskRecipe, DiffMaskTraining, drawn
from heatproof.training.examples import Examples
from heatproof.training.loop import Fitted, Learner, LoopOptions, train_epochs

RESULTS_VERSION = 2

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class DiffMaskEpoch:
    """One line of a training's history.

    Divergences are means in nats, `agreement` is the share of images whose predicted class stays, `kept` the mean share of
    patches. Training values are of sampled masks; of the validation images, `soft_*` is of the mask P(kept) and `hard_*` of
    the patches with P(kept) > 1/2. `alpha` is the multiplier of the masks of all gates.
    """

    epoch: int
    steps: int
    loss: float
    divergence: float
    agreement: float
    kept: float
    alpha: float
    soft_divergence: float
    soft_agreement: float
    soft_kept: float
    hard_divergence: float
    hard_agreement: float
    hard_kept: float

    def is_within(self, eps: float) -> bool:
        """Whether both masks of the validation images keep the prediction as well as is asked."""
        return max(self.soft_divergence, self.hard_divergence) <= eps

    def rank(self, eps: float) -> tuple[float, ...]:
        """What epochs are compared by, the smaller the better: those within the tolerance by what they keep, others by divergence."""
        if self.is_within(eps):
            return (0.0, self.hard_kept, self.soft_kept)
        return (1.0, max(self.soft_divergence, self.hard_divergence), self.hard_kept)


def fit(
    explainer: DiffMaskNetwork,
    masking: Masking,
    model: nn.Module,
    normalize: Normalize,
    train: Examples,
    validation: Examples,
    recipe: DiffMaskRecipe,
    *,
    seed: int,
    purpose: tuple[str | int, ...],
    **options: Unpack[LoopOptions[DiffMaskEpoch]],
) -> Fitted[DiffMaskEpoch]:
    """Trains `explainer` in place for a frozen classifier.

    The best is, of the epochs whose masks of the validation images stay within the tolerance (deterministic, and cut at 1/2),
    the one that keeps the fewest patches; where none does, that with the smallest divergence, and the log says so.

    Args:
        explainer: freshly drawn, on the device of the examples.
        masking: of the classifier.
        model: the classifier.
        normalize: pixels in [0, 1] -> what the classifier expects.
        train: images that are learnt; labels are not looked at.
        validation: images that choose the epoch.
        recipe: how.
        seed: root seed.
        purpose: names this training; two trainings with equal purpose see the same batches and noise.
        options: of the loop, see `loop.LoopOptions`.

    Raises:
        DivergedError: the loss is no longer finite; the last checkpoint stays.
    """
    checkpoint = options.get("checkpoint")
    learner = DiffMaskLearner(explainer, masking, normalize, train, validation, recipe, seed, purpose, checkpoint)
    with frozen_eval(model):
        fitted = train_epochs(learner, **options)
    best = fitted.best
    if not best.is_within(recipe.eps):
        logger.warning(
            "no epoch keeps the divergence of validation images within eps = %g: the best, epoch %d, has %.3g (masks as "
            "they are) and %.3g (cut at 1/2) and is kept; train longer, or raise eps",
            recipe.eps, best.epoch, best.soft_divergence, best.hard_divergence,
        )  # fmt: skip
    return fitted


@torch.no_grad()
def validate(
    explainer: DiffMaskNetwork, masking: Masking, normalize: Normalize, examples: Examples, batch_size: int = 256
) -> dict[str, float]:
    """Scores of the mask P(kept) of all gates ("soft_") and of the patches with P(kept) > 1/2 ("hard_").

    Means over images: `divergence` in nats, `agreement` of the predicted class, and `kept`, the mask's mean over patches. The
    classifier must be in evaluation mode.
    """
    totals = torch.zeros(6, dtype=torch.float64)
    for batch in examples.batches(torch.arange(len(examples)), batch_size):
        images = normalize(batch.pixels)
        passed = masking.intact(images)
        count = passed.grid[0] * passed.grid[1]
        soft = explainer.log_kept(passed.hidden)[:, :, -1].exp()
        scores = []
        for mask in (soft, (soft > 0.5).to(soft.dtype)):
            masked = masking.masked(images, passed, mask, explainer.placeholder)
            agrees = masked.argmax(dim=1) == passed.logits.argmax(dim=1)
            kept = mask[:, -count:].mean(dim=1)
            divergence = divergences(passed.logits, masked, kind_of(masking.model))
            scores += [divergence.sum(), agrees.sum(), kept.sum()]
        totals += torch.stack([score.double().cpu() for score in scores])
    names = [f"{kind}_{name}" for kind in ("soft", "hard") for name in ("divergence", "agreement", "kept")]
    return dict(zip(names, (totals / int(examples.valid.sum())).tolist(), strict=True))


@dataclass
class DiffMaskLearner(Learner[DiffMaskEpoch]):
    """Gates, placeholder and multipliers; it can resume after any step. Arguments as for `fit`."""

    network: DiffMaskNetwork
    masking: Masking
    normalize: Normalize
    train: Examples
    validation: Examples
    recipe: DiffMaskRecipe
    seed: int
    purpose: tuple[str | int, ...]
    checkpoint: Path | None

    line = DiffMaskEpoch
    shown = "divergence {hard_divergence:.3f}, kept {hard_kept:.1%}"
    step_checkpoint_every_s = 60.0

    def __post_init__(self) -> None:
        self.epochs, self.patience = self.recipe.epochs, self.recipe.patience
        self.steps = math.ceil(len(self.train) / self.recipe.batch_size)
        self.training = DiffMaskTraining(self.network, self.masking, self.recipe, self.epochs * self.steps)
        self.parts = {"training": self.training}

    def epoch(self, number: int, after_step: Callable[[], object]) -> DiffMaskEpoch:
        """The steps of an epoch that are not done yet, and the scores of the validation images."""
        training, batch_size = self.training, self.recipe.batch_size
        order = seeding.generator(self.seed, *self.purpose, "epoch", number, "order").permutation(len(self.train))
        remaining = torch.from_numpy(order)[(training.step_number - number * self.steps) * batch_size :]
        for batch in self.train.batches(remaining, batch_size) if len(remaining) else ():
            self._check(float(training.step(self.normalize(batch.pixels), self._draw).loss.detach()))
            after_step()
        means = (training.sums / self.steps).tolist()
        training.sums.zero_()
        scores = validate(self.network, self.masking, self.normalize, self.validation)
        return DiffMaskEpoch(number + 1, training.step_number, *means, **scores)

    def rank(self, line: DiffMaskEpoch) -> tuple[float, ...]:
        """Epochs within the tolerance first."""
        return line.rank(self.recipe.eps)

    def _draw(self, passed: Pass) -> DiffMaskDraws:
        training, recipe = self.training, self.recipe
        B, T, _ = passed.hidden[0].shape
        gates = len(passed.hidden)
        if recipe.weighted_layer_distribution:
            depths = training.depths.probabilities()
        else:
            depths = torch.ones(gates) if recipe.draws_depths else torch.eye(gates)[-1]
        return drawn(self.seed, self.purpose, training.step_number, (B, T, gates), depths, shared=recipe.compat)

    def _check(self, loss: float) -> None:
        if not math.isfinite(loss):
            recipe = self.recipe
            has_checkpoint = self.checkpoint is not None and self.checkpoint.is_file()
            raise DivergedError(
                f"training of DiffMask diverged in step {self.training.step_number + 1}: the loss is {loss}; last good "
                f"checkpoint: {self.checkpoint if has_checkpoint else 'none'}; try a smaller lr than {recipe.lr:g} or "
                f"lr_placeholder than {recipe.lr_placeholder:g}"
            )
