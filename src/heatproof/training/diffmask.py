"""Training of Vision DiffMask: as few patches as possible, as long as the classifier's prediction stays what it was.

With o the classifier's probabilities for the intact image, q those for the masked one (`models.diffmask`, gates 0 to m, sampled;
m is the last gate, or drawn for each image), the gates and the placeholder go down on, and the multiplier alpha_m goes up on,

    alpha_m (KL(o || q) - eps) + penalty,    penalty = mean over patches of P(kept)

so alpha_m rises while the divergence exceeds the tolerance. No labels are used.

Where this differs from what was published, and why (`compat` brings back the published form, all of it):

- The published penalty is the mean of ln P(kept). Its slope over a gate's logit is P(replaced): it lets go where a gate is open,
  so that patches that nobody needs stay open, and pushes a closed one on for ever, past where a sample could open it again.
  P(kept) itself counts the patches that are kept, as is meant (the expected L0 norm of the mask), and is linear: what a patch
  costs does not depend on how far it is open, so that masks end at 0 and 1. With -ln P(replaced), which costs the more the
  nearer a patch is to 1, masks stay soft wherever many patches help a little, as on real images.
- alpha_m is a price, and its right size may lie orders of magnitude from its start: it grows or shrinks by a share of itself,
  `lr_alpha` at most, as the running mean of its depth's divergence lies above or below the tolerance. An optimizer that is
  led by single divergences, which are mostly small and sometimes huge, goes up at once and takes thousands of steps down.
- Early divergences are the largest; Adam's memory of squared gradients is therefore a hundred steps, not a thousand.
- The placeholder learns in units of the spread of state 0: one that is far too small for the classifier makes every patch
  seem needed.
- All gates vote in every step. Votes multiply, so that where the masks of the first gates alone are held to the tolerance too,
  these spend it before the deeper ones, which see more, have their say: on real images masks keep a third as much again.
  `every_layer` draws depths nevertheless, for each image one in place of one for the batch.
- Gates start open, rows that are never masked are left out, and rates fall in the last third, so that masks come to rest.

One step is one pass over the intact images, one over the masked ones, and one backward pass. All that is drawn in step s comes
from (seed, purpose, s), so that a checkpoint needs no generator states.
"""

import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from heatproof import runtime, seeding
from heatproof.errors import DivergedError, InputError
from heatproof.methods.rows import check_reached
from heatproof.models.diffmask import Explainer, Masking, Pass
from heatproof.models.hooks import frozen_eval
from heatproof.models.probabilities import divergences, kind_of
from heatproof.models.weights import State
from heatproof.training.checkpoints import copied, read_checkpoint, save_tensors
from heatproof.training.classifier import Normalize
from heatproof.training.examples import Examples
from heatproof.training.lookahead import Lookahead

RESULTS_VERSION = 2
LARGEST_ALPHA = 200.0
SMALLEST_ALPHA = 0.01  # what changes by a share of itself could not leave zero

logger = logging.getLogger(__name__)

Optimizer = Literal["adam", "radam", "rmsprop"]


def optimizer(name: Optimizer, parameters: Any, lr: float, *, memory: float = 0.999) -> Lookahead:
    """An optimizer by its name, within `Lookahead`.

    Args:
        name: "adam", "radam", or "rmsprop" (centred).
        parameters: what it changes, or groups of them.
        lr: learning rate.
        memory: how much of the mean of squared gradients stays in a step; RMSprop has 0.99 always.
    """
    if name == "rmsprop":
        return Lookahead(torch.optim.RMSprop(parameters, lr=lr, centered=True, foreach=True))
    build = torch.optim.Adam if name == "adam" else torch.optim.RAdam
    return Lookahead(build(parameters, lr=lr, betas=(0.9, memory), foreach=True))


@dataclass(frozen=True)
class Recipe:
    """How an explainer is trained.

    Args:
        epochs: passes over the training images.
        batch_size: images in a step.
        eps: tolerance of the divergence, in nats, > 0.
        alpha: start of each depth's multiplier, in [0, 200].
        lr: learning rate of the gates.
        lr_placeholder: learning rate of the placeholder, in units of the spread of state 0.
        lr_alpha: the largest share by which a multiplier changes in a step.
        warmup_steps: in which the first two rates grow from 0; the multipliers' is constant.
        optimizer: "adam", "radam" or "rmsprop" (centred), within `Lookahead`.
        every_layer: draw a depth for each image, so that what the first gates alone would keep means something too; False: all
            gates vote in every step.
        weighted_layer_distribution: likewise, and a depth is drawn ten times less often while its masks are small and faithful.
        patience: epochs without a better state after which training stops; None: never.
        compat: as published: the penalty is the mean of ln P(kept), the class token's included; a batch draws one depth; rates
            stay; the multipliers have `optimizer` too, with the rate `lr_alpha`; `lr_placeholder` is taken as it is.

    Raises:
        InputError: a value is out of range.
    """

    epochs: int
    batch_size: int
    eps: float
    alpha: float
    lr: float
    lr_placeholder: float
    lr_alpha: float
    warmup_steps: int
    optimizer: Optimizer = "adam"
    every_layer: bool = False
    weighted_layer_distribution: bool = False
    patience: int | None = None
    compat: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.eps < math.inf:
            raise InputError(f"eps {self.eps!r} must be a number above 0: the divergence, in nats, that is tolerated")
        if not 0 <= self.alpha <= LARGEST_ALPHA:
            raise InputError(f"alpha {self.alpha!r} must lie between 0 and {LARGEST_ALPHA:g}")

    @property
    def draws_depths(self) -> bool:
        """Whether the masks of the first gates alone are learnt too."""
        return self.every_layer or self.weighted_layer_distribution or self.compat


@dataclass(frozen=True)
class Epoch:
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


@dataclass(frozen=True)
class Fitted:
    """The weights of the best epoch, its line, and all lines."""

    state: State
    best: Epoch
    history: tuple[Epoch, ...]


class Draws(NamedTuple):
    """What is random in one step: each image's depth (B,), and u (B, T, G) in [0, 1)."""

    depths: Tensor
    u: Tensor


class Objective(NamedTuple):
    """The loss of a step, and what it is made of, for each image (B,)."""

    loss: Tensor
    divergence: Tensor
    penalty: Tensor
    kept: Tensor
    agrees: Tensor
    masked_logits: Tensor


def objective(
    explainer: Explainer, masking: Masking, images: Tensor, passed: Pass, draws: Draws, alphas: Tensor, recipe: Recipe
) -> Objective:
    """The Lagrangian of some images, with gradients for gates and placeholder.

    Args:
        explainer: gates and placeholder.
        masking: of the classifier.
        images: (B, C, H, W), normalised.
        passed: the classifier's pass over them.
        draws: depths, and noise for each image, patch and gate up to the deepest.
        alphas: (G,), constants.
        recipe: how.
    """
    gates = int(draws.depths.max()) + 1
    votes = explainer.votes(passed.hidden[:gates])
    takes_part = (torch.arange(gates, device=images.device) <= draws.depths[:, None])[:, None]  # (B, 1, g)
    samples = torch.where(takes_part, votes.sample(draws.u[:, :, :gates]), 1.0)
    keep = samples[:, :, 0]
    for number in range(1, gates):
        keep = keep * samples[:, :, number]
    masked = masking.masked(images, passed, keep, explainer.placeholder)
    divergence = divergences(passed.logits, masked, kind_of(masking.model))
    log_kept = torch.where(takes_part, votes.log_probability_open(), 0.0).sum(dim=2)
    penalty = (log_kept if recipe.compat else log_kept.exp()).mean(dim=1)
    loss = (alphas[draws.depths] * (divergence - recipe.eps) + penalty).mean()
    agrees = masked.argmax(dim=1) == passed.logits.argmax(dim=1)
    return Objective(loss, divergence.detach(), penalty.detach(), log_kept.detach().exp().mean(dim=1), agrees, masked)


def fit(
    explainer: Explainer,
    masking: Masking,
    model: nn.Module,
    normalize: Normalize,
    train: Examples,
    validation: Examples,
    recipe: Recipe,
    *,
    seed: int,
    purpose: tuple[str | int, ...],
    checkpoint: Path | None = None,
    identity: str = "",
    checkpoint_every_s: float = 60.0,
    on_epoch: Callable[[Sequence[Epoch]], None] | None = None,
    describe: str | None = None,
) -> Fitted:
    """Trains `explainer` in place for a frozen classifier and returns the best epoch's weights.

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
        checkpoint: file that holds the state after a step; found there, the training goes on from it. The caller deletes it
            once the result is safe.
        identity: what the training depends on; a checkpoint of another identity is not used.
        checkpoint_every_s: least time between two checkpoints within an epoch; there is one after each epoch.
        on_epoch: called after each epoch with all lines so far.
        describe: text of a progress bar on stderr; None shows none.

    Raises:
        DivergedError: the loss is no longer finite; the last checkpoint stays.
        ModelError: the checkpoint is damaged.
    """
    steps = recipe.epochs * _steps(train, recipe.batch_size)
    run = _Run(Trainer(explainer, masking, recipe, steps), normalize, seed, purpose, checkpoint, identity)
    run.resume()
    with runtime.progress(steps, describe, "step", run.step) as bar, frozen_eval(model):
        while len(run.history) < recipe.epochs and not run.is_enough():
            run.learn(train, checkpoint_every_s, bar.update)
            line = run.close_epoch(train, validation)
            told = f"epoch {line.epoch}, divergence {line.hard_divergence:.3f}, kept {line.hard_kept:.1%}"
            bar.set_postfix_str(told, refresh=False)
            if on_epoch is not None:
                on_epoch(run.history)
            run.save()
    assert run.best is not None
    best = run.history[run.best_epoch - 1]
    if not best.is_within(recipe.eps):
        logger.warning(
            "no epoch keeps the divergence of validation images within eps = %g: the best, epoch %d, has %.3g (masks as "
            "they are) and %.3g (cut at 1/2) and is kept; train longer, or raise eps",
            recipe.eps, best.epoch, best.soft_divergence, best.hard_divergence,
        )  # fmt: skip
    return Fitted(run.best, best, tuple(run.history))


@torch.no_grad()
def validate(
    explainer: Explainer, masking: Masking, normalize: Normalize, examples: Examples, batch_size: int = 256
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


class Depths:
    """How the masks of each depth do, and how often it is therefore drawn.

    A depth weighs 0.1 instead of 1 while more than 0.75 of the predictions stay and less than 0.1 of the patches are kept
    (running means of its own steps), after more than 100 steps of its own.

    Args:
        count: G.
        eps: what the running mean of the divergence starts from.
    """

    def __init__(self, count: int, eps: float = 0.0):
        self.agreement, self.kept = torch.ones(count), torch.ones(count)
        self.divergence = torch.full((count,), eps)
        self.steps = torch.zeros(count)

    def update(self, depths: Tensor, agrees: Tensor, kept: Tensor, divergence: Tensor) -> None:
        """Takes in a step: depth, agreement, kept share and divergence of each image (B,)."""
        new = torch.stack([agrees.float(), kept, divergence]).cpu()
        for depth in depths.unique().tolist():
            mean = new[:, depths.cpu() == depth].mean(dim=1)
            for running, value in zip((self.agreement, self.kept, self.divergence), mean, strict=True):
                running[depth] = 0.9 * running[depth] + 0.1 * value
            self.steps[depth] += 1

    def probabilities(self) -> Tensor:
        """Of each depth under the weighted distribution (G,)."""
        does_well = (self.agreement > 0.75) & (self.kept < 0.1) & (self.steps > 100)
        weights = torch.where(does_well, 0.1, 1.0)
        return weights / weights.sum()

    def state_dict(self) -> dict[str, Tensor]:
        """The running values."""
        return {"agreement": self.agreement, "kept": self.kept, "divergence": self.divergence, "steps": self.steps}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Takes up such values."""
        self.agreement, self.kept = state["agreement"], state["kept"]
        self.divergence, self.steps = state["divergence"], state["steps"]


class Trainer:
    """What changes from step to step: the weights, the multipliers and their optimizers, and how the depths do.

    Args:
        explainer: gates and placeholder.
        masking: of the classifier.
        recipe: how.
        steps: of the whole training, in whose last third the rates fall to zero; None: they stay. compat: they stay.
    """

    def __init__(self, explainer: Explainer, masking: Masking, recipe: Recipe, steps: int | None = None):
        self.explainer, self.masking, self.recipe = explainer, masking, recipe
        self.steps = None if recipe.compat else steps
        gates = len(explainer.gate.g_hat)
        device = explainer.placeholder.device
        self.alphas = [nn.Parameter(torch.tensor(float(recipe.alpha), device=device)) for _ in range(gates)]
        placeholder = [explainer.placeholder] if explainer.placeholder.requires_grad else []
        groups = [{"params": list(explainer.gate.g_hat.parameters())}, {"params": placeholder}]
        self.weights = optimizer(recipe.optimizer, groups, recipe.lr, memory=0.999 if recipe.compat else 0.99)
        self.multipliers = optimizer(recipe.optimizer, self.alphas, recipe.lr_alpha)
        self.depths = Depths(gates, recipe.eps)
        spread = 1.0 if recipe.compat else float(explainer.spread)
        self.rates = (recipe.lr, recipe.lr_placeholder * spread)
        self.step_number = 0

    def step(self, images: Tensor, draw: Callable[[Pass], Draws]) -> Objective:
        """One step on normalised images (B, C, H, W), random as `draw` says; nothing changes where its loss is not finite.

        Raises:
            ModelError: in the first step, no gradient of the classifier's logits comes to the gates.
        """
        passed = self.masking.intact(images)
        depths, u = draw(passed)
        draws = Draws(depths.to(images.device), u.to(images.device))
        alphas = torch.stack(list(self.alphas)).detach()
        found = objective(self.explainer, self.masking, images, passed, draws, alphas, self.recipe)
        if self.step_number == 0:
            gate = next(self.explainer.gate.g_hat.parameters())
            check_reached(self.masking.model, found.masked_logits, gate, "no masks can be learnt from it")
        if not math.isfinite(float(found.loss.detach())):
            return found
        self.weights.zero_grad()
        found.loss.backward()
        warmth = min(1.0, self.step_number / max(1, self.recipe.warmup_steps))
        if self.steps is not None:
            warmth *= min(1.0, 3 * (1 - self.step_number / self.steps))
        self.weights.set_rates([warmth * rate for rate in self.rates])
        self.weights.step()
        self.depths.update(draws.depths, found.agrees, found.kept, found.divergence)
        self.price(draws.depths, found.divergence)
        self.step_number += 1
        return found

    def price(self, depths: Tensor, divergence: Tensor) -> None:
        """Ascent: the multiplier of each depth that was drawn rises where its masks diverge by more than eps, else it falls."""
        drawn = set(depths.tolist())
        if self.recipe.compat:
            # The optimizer goes down, so it is given the negative.
            violation = divergence - self.recipe.eps
            for depth, alpha in enumerate(self.alphas):
                alpha.grad = -violation[depths == depth].sum() / len(depths) if depth in drawn else None
            self.multipliers.step()
        else:
            for depth in drawn:
                violation = (self.depths.divergence[depth] / self.recipe.eps - 1).clamp(-1, 1)
                self.alphas[depth].data.mul_(math.exp(self.recipe.lr_alpha * float(violation)))
        for alpha in self.alphas:
            alpha.data.clamp_(0.0 if self.recipe.compat else SMALLEST_ALPHA, LARGEST_ALPHA)

    def state_dict(self) -> dict[str, Any]:
        """All that the next step depends on."""
        return {
            "explainer": self.explainer.state_dict(),
            "weights": self.weights.state_dict(),
            "multipliers": self.multipliers.state_dict(),
            "alphas": [alpha.detach() for alpha in self.alphas],
            "depths": self.depths.state_dict(),
            "step": self.step_number,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes up such a state."""
        self.explainer.load_state_dict(state["explainer"])
        self.weights.load_state_dict(state["weights"])
        self.multipliers.load_state_dict(state["multipliers"])
        for alpha, value in zip(self.alphas, state["alphas"], strict=True):
            alpha.data.copy_(value)
        self.depths.load_state_dict(state["depths"])
        self.step_number = state["step"]


def drawn(
    seed: int, purpose: tuple[str | int, ...], step: int, shape: tuple[int, int, int], depths: Tensor, *, shared: bool
) -> Draws:
    """The draws of a step, on the CPU.

    Args:
        seed: root seed.
        purpose: names the training.
        step: number of the step, from 0.
        shape: images, rows and gates (B, T, G).
        depths: probability of each depth (G,).
        shared: all images have one depth.
    """
    rng = seeding.generator(seed, *purpose, "step", step)
    images, _, gates = shape
    weights = depths.double().numpy()
    chosen = rng.choice(gates, size=1 if shared else images, p=weights / weights.sum())
    u = rng.random(shape, dtype=np.float32)
    return Draws(torch.from_numpy(np.broadcast_to(chosen, images).copy()), torch.from_numpy(u))


class _Run:
    """A training under way: the trainer, the sums of the epoch that is going on, and the best state so far."""

    def __init__(
        self, trainer: Trainer, normalize: Normalize, seed: int, purpose: tuple[str | int, ...],
        checkpoint: Path | None, identity: str,
    ):  # fmt: skip
        self.trainer, self.normalize, self.seed, self.purpose = trainer, normalize, seed, purpose
        self.checkpoint, self.identity = checkpoint, identity
        self.history: list[Epoch] = []
        self.best: State | None = None
        self.best_epoch = 0
        self.sums = torch.zeros(5, dtype=torch.float64)
        self.saved = "none"

    @property
    def step(self) -> int:
        """How many steps are done."""
        return self.trainer.step_number

    def is_enough(self) -> bool:
        """Whether the best epoch lies further back than patience goes."""
        patience = self.trainer.recipe.patience
        return patience is not None and len(self.history) - self.best_epoch >= patience

    def learn(self, train: Examples, save_every_s: float, after_step: Callable[[], object]) -> None:
        """The steps of the current epoch that are not done yet."""
        batch_size, epoch = self.trainer.recipe.batch_size, len(self.history)
        order = seeding.generator(self.seed, *self.purpose, "epoch", epoch, "order").permutation(len(train))
        done = self.step - epoch * _steps(train, batch_size)
        saved_at = time.monotonic()
        for batch in train.batches(torch.from_numpy(order)[done * batch_size :], batch_size):
            found = self.trainer.step(self.normalize(batch.pixels), self._draw)
            self._check(found)
            values = (found.loss, found.divergence.mean(), found.agrees.float().mean(), found.kept.mean())
            self.sums += torch.stack([value.detach() for value in (*values, self.trainer.alphas[-1])]).double().cpu()
            after_step()
            if time.monotonic() - saved_at >= save_every_s:
                self.save()
                saved_at = time.monotonic()

    def _draw(self, passed: Pass) -> Draws:
        trainer, recipe = self.trainer, self.trainer.recipe
        B, T, _ = passed.hidden[0].shape
        gates = len(passed.hidden)
        if recipe.weighted_layer_distribution:
            depths = trainer.depths.probabilities()
        else:
            depths = torch.ones(gates) if recipe.draws_depths else torch.eye(gates)[-1]
        return drawn(self.seed, self.purpose, self.step, (B, T, gates), depths, shared=recipe.compat)

    def _check(self, found: Objective) -> None:
        loss = float(found.loss.detach())
        if not math.isfinite(loss):
            recipe = self.trainer.recipe
            raise DivergedError(
                f"training of DiffMask diverged in step {self.step + 1}: the loss is {loss}; last good checkpoint: "
                f"{self.saved}; try a smaller lr than {recipe.lr:g} or lr_placeholder than {recipe.lr_placeholder:g}"
            )

    def close_epoch(self, train: Examples, validation: Examples) -> Epoch:
        """Scores the validation images, and keeps the weights where they are the best so far."""
        recipe, explainer = self.trainer.recipe, self.trainer.explainer
        loss, divergence, agreement, kept, alpha = (self.sums / _steps(train, recipe.batch_size)).tolist()
        self.sums.zero_()
        scores = validate(explainer, self.trainer.masking, self.normalize, validation)
        line = Epoch(len(self.history) + 1, self.step, loss, divergence, agreement, kept, alpha, **scores)
        self.history.append(line)
        if self.best is None or line.rank(recipe.eps) < self.history[self.best_epoch - 1].rank(recipe.eps):
            self.best, self.best_epoch = copied(explainer), line.epoch
        return line

    def save(self) -> None:
        """Writes all that the next step depends on."""
        if self.checkpoint is None:
            return
        state = {
            "identity": self.identity,
            "trainer": self.trainer.state_dict(),
            "sums": self.sums,
            "history": [asdict(line) for line in self.history],
            "best": self.best,
            "best_epoch": self.best_epoch,
        }
        save_tensors(self.checkpoint, state)
        self.saved = f"{self.checkpoint}, after step {self.step}"

    def resume(self) -> None:
        """Takes up a checkpoint of the same identity."""
        state = read_checkpoint(self.checkpoint, self.identity)
        if state is None:
            return
        self.trainer.load_state_dict(state["trainer"])
        self.sums = state["sums"]
        self.history = [Epoch(**line) for line in state["history"]]
        self.best, self.best_epoch = state["best"], state["best_epoch"]
        self.saved = f"{self.checkpoint}, after step {self.step}"


def _steps(train: Examples, batch_size: int) -> int:
    """In one epoch."""
    return math.ceil(len(train) / batch_size)
