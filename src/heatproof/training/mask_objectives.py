"""What a masker is rewarded for: two terms, of the image masked in and of the image masked out.

Let y be an image's label, a the mean of its mask m, q the classifier's probabilities for the masked image, H their entropy in
nats, c = 1 where the clean image is classified right, k = 1 where the masked one is. Each term is

    mean(objective) - lambda_r * mean(relu(goal - a)) + smoothness

- `classification`: -ln q_y of every image; `entropy`: H of the images with c = 1, 0 for the others. `maximize` asks for right
  answers, and for high entropy; `minimize` for the opposite.
- goal is k for the image masked in and c (1 - k) for the image masked out: a mask that already does what it should is
  rewarded for being small, all others are left alone. The goal carries no gradient.
- smoothness is lambda_tv / 2 times the sum of squared differences of neighbours, averaged over images, plus 0.3 times the
  squares at the frame, which pull the mask off it. Both terms have their own: with the same lambda_tv in both, as published,
  its weight is doubled.

Functions return one value for each image unless they say otherwise.

Reference:
    Phang, Park, Geras, arXiv:2010.09750; Zolna, Geras, Cho, arXiv:1805.08249.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from heatproof.errors import InputError
from heatproof.models.probabilities import Kind, cross_entropy, entropy, probabilities

Side = Literal["in", "out"]
Objective = Literal["classification", "entropy"]
Direction = Literal["maximize", "minimize"]
BORDER = 0.3


@dataclass(frozen=True)
class Prior:
    """Uncertainty as nearness to a prior over classes, in place of entropy.

    Args:
        kl: "forward": -sum(prior * ln q), "backward": sum(q (ln q - ln prior)).
        compare: what the answer is the largest of: q "subtract" the prior, or q "divide" by it.
        class_weights: w, one for each class; the prior is 1/w, normalised. None: uniform.
        only_right: the divergence of images that are wrong when clean counts as zero.
        weigh_classes: each image counts times the weight of its label.
        always_small: every mask pays lambda_r * a, instead of rewards for some.
        nothing_class: label of images without an object: no divergence, and `nothing_weight` times the size term.
        nothing_weight: see there.
    """

    kl: Literal["forward", "backward"] = "forward"
    compare: Literal["subtract", "divide"] = "subtract"
    class_weights: tuple[float, ...] | None = None
    only_right: bool = False
    weigh_classes: bool = False
    always_small: bool = False
    nothing_class: int | None = None
    nothing_weight: float = 1.0


@dataclass(frozen=True)
class Term:
    """One of the two terms of the loss.

    Args:
        objective: "classification" or "entropy"; of no meaning with a prior.
        direction: "maximize" or "minimize".
        weight: of the whole term.
        lambda_r: reward for small masks.
        lambda_tv: price of rough masks; 0 for none, and none with a prior.
        area_distance: where images have a wanted area p, a is replaced by |a - p| ("l1") or its square ("l2").
        prior: None for the objective.
    """

    objective: Objective
    direction: Direction = "maximize"
    weight: float = 1.0
    lambda_r: float = 10.0
    lambda_tv: float = 0.0
    area_distance: Literal["l1", "l2"] = "l1"
    prior: Prior | None = None


@dataclass(frozen=True)
class TermLoss:
    """A term's parts: objective and size (N,), smoothness (), and whether the goal is reached (N,)."""

    objective: Tensor
    size: Tensor
    smoothness: Tensor
    reached: Tensor

    @property
    def total(self) -> Tensor:
        """The term, without its weight."""
        return self.objective.mean() + self.size.mean() + self.smoothness


def term_loss(
    term: Term,
    side: Side,
    masks: Tensor,
    logits: Tensor,
    labels: Tensor,
    clean_right: Tensor,
    areas: Tensor | None = None,
    kind: Kind = "softmax",
) -> TermLoss:
    """A term of the loss.

    Args:
        term: what is asked for.
        side: which image the logits belong to: masked "in" or masked "out".
        masks: (N, H, W).
        logits: (N, K), of the masked images.
        labels: (N,).
        clean_right: (N,) True where the clean image is classified right.
        areas: (N,) wanted share of the image; None where none is wanted.
        kind: how the logits become probabilities.

    Raises:
        InputError: a prior over classes, and labels that can be true together.
    """
    clean = clean_right.to(logits.dtype)
    if term.prior is None:
        reached = goal(side, logits.argmax(dim=1) == labels, clean_right)
        value = objective(term.objective, term.direction, logits, labels, clean, kind)
        size = -term.lambda_r * functional.relu(reached - _distance(masks, areas, term.area_distance))
        return TermLoss(value, size, smoothness(masks, term.lambda_tv), reached)
    if kind != "softmax":
        raise InputError(
            "prior: is one over classes that exclude one another, and the classifier's can be true together"
        )
    prior = term.prior
    pi, weights = _prior(prior, logits)
    compared = probabilities(logits.detach())
    compared = compared - pi if prior.compare == "subtract" else compared / pi
    reached = goal(side, compared.argmax(dim=1) == labels, clean_right)
    distance = _distance(masks, areas, term.area_distance)
    size = term.lambda_r * distance if prior.always_small else -term.lambda_r * functional.relu(reached - distance)
    value = divergence(prior.kl, logits, pi)
    if prior.only_right:
        value = value * clean
    if prior.weigh_classes:
        value, size = value * weights[labels], size * weights[labels]
    if prior.nothing_class is not None:
        nothing = labels == prior.nothing_class
        value, size = value.masked_fill(nothing, 0.0), torch.where(nothing, prior.nothing_weight * size, size)
    return TermLoss(value, size, masks.new_zeros(()), reached)


def objective(
    wanted: Objective, direction: Direction, logits: Tensor, labels: Tensor, clean: Tensor, kind: Kind = "softmax"
) -> Tensor:
    """What falls as the term's aim is met.

    >>> logits = torch.zeros(1, 2)
    >>> objective("entropy", "maximize", logits, torch.tensor([0]), torch.ones(1))
    tensor([-0.6931])
    """
    if wanted == "classification":
        loss = cross_entropy(logits, labels, kind, "none")
        return loss if direction == "maximize" else -loss
    certainty = clean * -entropy(logits, kind)
    return certainty if direction == "maximize" else -certainty


def divergence(kl: Literal["forward", "backward"], logits: Tensor, prior: Tensor) -> Tensor:
    """How far the softmax is from a prior (K,): cross-entropy of the prior ("forward"), or KL divergence from it.

    >>> divergence("backward", torch.zeros(1, 2), torch.tensor([0.5, 0.5]))
    tensor([0.])
    """
    logarithms = logits.log_softmax(dim=1)
    if kl == "forward":
        return -(prior * logarithms).sum(dim=1)
    return (logarithms.exp() * (logarithms - prior.log())).sum(dim=1)


def goal(side: Side, masked_right: Tensor, clean_right: Tensor) -> Tensor:
    """1 where the mask already does what it should, else 0: right when masked in; lost when masked out.

    What was wrong when clean cannot be lost.

    >>> goal("out", torch.tensor([True, False, False]), torch.tensor([True, True, False]))
    tensor([0., 1., 0.])
    """
    reached = masked_right if side == "in" else clean_right & ~masked_right
    return reached.float()


def smoothness(masks: Tensor, weight: float, border: float = BORDER) -> Tensor:
    """Squared differences of neighbours, and squares at the frame times `border`; weight / 2 times their sum, mean over images.

    Args:
        masks: (N, H, W).
        weight: 0 switches it off.
        border: of the four edges.

    Returns:
        One number.

    >>> float(smoothness(torch.tensor([[[0.0, 1.0, 0.0]]]), weight=1.0, border=0.0))
    1.0
    """
    if not weight:
        return masks.new_zeros(())
    total = masks.diff(dim=1).square().sum() + masks.diff(dim=2).square().sum()
    edges = (masks[:, 0], masks[:, -1], masks[:, :, 0], masks[:, :, -1])
    total = total + border * sum(edge.square().sum() for edge in edges)
    return weight / (2 * len(masks)) * total


def _distance(masks: Tensor, areas: Tensor | None, how: Literal["l1", "l2"]) -> Tensor:
    means = masks.mean(dim=(1, 2))
    if areas is None:
        return means
    return (means - areas).abs() if how == "l1" else (means - areas).square()


def _prior(prior: Prior, logits: Tensor) -> tuple[Tensor, Tensor]:
    classes = logits.shape[1]
    if prior.class_weights is None:
        return logits.new_full((classes,), 1 / classes), logits.new_ones(classes)
    weights = logits.new_tensor(prior.class_weights)
    if len(weights) != classes or bool((weights <= 0).any()):
        raise InputError(
            f"class_weights: {len(weights)} of them, all above 0 wanted; the classifier has {classes} classes"
        )
    inverse = 1 / weights
    return inverse / inverse.sum(), weights
