"""One step of the training of Vision DiffMask: as few patches as possible, while the classifier's prediction stays the same.

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
from (seed, purpose, s).
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from heatproof import seeding
from heatproof.errors import InputError
from heatproof.methods.rows import check_reached
from heatproof.models.diffmask import DiffMaskNetwork
from heatproof.models.masking import Masking, Pass
from heatproof.models.probabilities import divergences, kind_of
from heatproof.training.lookahead import Lookahead

LARGEST_ALPHA = 200.0
SMALLEST_ALPHA = 0.01  # what changes by a share of itself could not leave zero

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
class DiffMaskRecipe:
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


class DiffMaskDraws(NamedTuple):
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
    explainer: DiffMaskNetwork,
    masking: Masking,
    images: Tensor,
    passed: Pass,
    draws: DiffMaskDraws,
    alphas: Tensor,
    recipe: DiffMaskRecipe,
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


class DiffMaskTraining:
    """What changes from step to step: the weights, the multipliers and their optimizers, and how the depths do.

    Args:
        explainer: gates and placeholder.
        masking: of the classifier.
        recipe: how.
        steps: of the whole training, in whose last third the rates fall to zero; None: they stay. compat: they stay.
    """

    def __init__(self, explainer: DiffMaskNetwork, masking: Masking, recipe: DiffMaskRecipe, steps: int | None = None):
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
        self.sums = torch.zeros(
            5, dtype=torch.float64
        )  # of the current epoch: loss, divergence, agreement, kept, last alpha

    def step(self, images: Tensor, draw: Callable[[Pass], DiffMaskDraws]) -> Objective:
        """One step on normalised images (B, C, H, W), random as `draw` says; nothing changes where its loss is not finite.

        Raises:
            ModelError: in the first step, no gradient of the classifier's logits comes to the gates.
        """
        passed = self.masking.intact(images)
        depths, u = draw(passed)
        draws = DiffMaskDraws(depths.to(images.device), u.to(images.device))
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
        values = (found.loss, found.divergence.mean(), found.agrees.float().mean(), found.kept.mean(), self.alphas[-1])
        self.sums += torch.stack([value.detach() for value in values]).double().cpu()
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
            "sums": self.sums,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes up such a state."""
        self.explainer.load_state_dict(state["explainer"])
        self.weights.load_state_dict(state["weights"])
        self.multipliers.load_state_dict(state["multipliers"])
        for alpha, value in zip(self.alphas, state["alphas"], strict=True):
            alpha.data.copy_(value)
        self.depths.load_state_dict(state["depths"])
        self.step_number, self.sums = state["step"], state["sums"]


def drawn(
    seed: int, purpose: tuple[str | int, ...], step: int, shape: tuple[int, int, int], depths: Tensor, *, shared: bool
) -> DiffMaskDraws:
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
    return DiffMaskDraws(torch.from_numpy(np.broadcast_to(chosen, images).copy()), torch.from_numpy(u))
