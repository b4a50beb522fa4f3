"""How logits become probabilities, margins and losses: the one place for classes that compete and for labels that do not.

Classes that exclude one another share a softmax. Labels that can be true together each have a logistic function of
their own ("sigmoid"). A network with one output z is read as two labels with the logits (-z, z): these are the probabilities,
margins, losses and divergences of two classes with the logits (0, z), and each class has a logit of its own to explain. For
that, what is summed over classes that compete is averaged over labels.

Under both, the predicted class is the one with the largest logit.
"""

from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

Kind = Literal["softmax", "sigmoid"]

ATTRIBUTE = "heatproof_outputs"
"""Attribute of a network whose outputs are read by `outputs.Outputs`."""


def kind_of(model: Any) -> Kind:
    """How the logits of a network become probabilities; a softmax unless its outputs were read otherwise."""
    kind: Kind = getattr(getattr(model, ATTRIBUTE, None), "kind", "softmax")
    return kind


def probabilities(logits: Tensor, kind: Kind = "softmax") -> Tensor:
    """Probability of each class, in [0, 1]; the shape of `logits` (N, K).

    >>> probabilities(torch.tensor([[-2.0, 2.0]]), "sigmoid")
    tensor([[0.1192, 0.8808]])
    >>> probabilities(torch.tensor([[0.0, 2.0]]))
    tensor([[0.1192, 0.8808]])
    """
    return logits.softmax(dim=1) if kind == "softmax" else logits.sigmoid()


def log_probability_of_any(logits: Tensor, classes: Tensor, kind: Kind = "softmax") -> Tensor:
    """Logarithm (N,) of the probability that one of the `classes` (N, K, bool) is the case; -inf where none is named.

    Independent labels are all absent with the product of their probabilities of absence.

    >>> log_probability_of_any(torch.zeros(1, 4), torch.tensor([[True, True, False, False]])).exp()
    tensor([0.5000])
    >>> log_probability_of_any(torch.zeros(1, 4), torch.tensor([[True, True, False, False]]), "sigmoid").exp()
    tensor([0.7500])
    """
    if kind == "softmax":
        # The logarithm of a softmax that underflows would be minus infinity; the logarithm of its sums is not.
        return logits.log_softmax(dim=1).masked_fill(~classes, float("-inf")).logsumexp(dim=1)
    absent = functional.logsigmoid(-logits).masked_fill(~classes, 0.0).sum(dim=1)
    of_one = functional.logsigmoid(logits).masked_fill(~classes, 0.0).sum(dim=1)
    return torch.where(classes.sum(dim=1) == 1, of_one, torch.log(-torch.expm1(absent)))


def margins(logits: Tensor, targets: Tensor, kind: Kind = "softmax") -> Tensor:
    """By how much the target (N,) wins, (N,): its logit minus the best other one; of a label, its logit (0 is p = 1/2).

    >>> margins(torch.tensor([[1.0, 3.0, 2.0]]), torch.tensor([1]))
    tensor([1.])
    >>> margins(torch.tensor([[1.0, 3.0, 2.0]]), torch.tensor([1]), "sigmoid")
    tensor([3.])
    """
    logit = logits.gather(1, targets[:, None])[:, 0]
    if kind == "sigmoid":
        return logit
    return logit - logits.scatter(1, targets[:, None], float("-inf")).amax(dim=1)


def cross_entropy(
    logits: Tensor, labels: Tensor, kind: Kind = "softmax", reduction: Literal["mean", "none"] = "mean"
) -> Tensor:
    """Cross-entropy of the true classes `labels` (N,), in nats; of labels, the mean of their binary cross-entropies.

    >>> label = torch.tensor([1])
    >>> cross_entropy(torch.tensor([[0.0, 2.0]]), label), cross_entropy(torch.tensor([[-2.0, 2.0]]), label, "sigmoid")
    (tensor(0.1269), tensor(0.1269))
    """
    if kind == "softmax":
        return functional.cross_entropy(logits, labels, reduction=reduction)
    losses = functional.binary_cross_entropy_with_logits(logits, one_hot(labels, logits), reduction="none").mean(dim=1)
    return losses if reduction == "none" else losses.mean()


def one_hot(labels: Tensor, logits: Tensor) -> Tensor:
    """1 at the true class of each image (N,), else 0; shape, type and device of `logits` (N, K)."""
    return torch.zeros_like(logits).scatter(1, labels[:, None], 1.0)


def divergences(intact: Tensor, masked: Tensor, kind: Kind = "softmax") -> Tensor:
    """KL divergence (N,) in nats of the probabilities of `masked` (N, K) from those of `intact`.

    >>> divergences(torch.zeros(1, 2), torch.tensor([[0.0, 2.0]]))
    tensor([0.4338])
    >>> divergences(torch.zeros(1, 2), torch.tensor([[-2.0, 2.0]]), "sigmoid")
    tensor([0.4338])
    """
    if kind == "softmax":
        target, found = intact.log_softmax(dim=1), masked.log_softmax(dim=1)
        return functional.kl_div(found, target, reduction="none", log_target=True).sum(dim=1)
    parts = []
    for sign in (1, -1):
        target, found = functional.logsigmoid(sign * intact), functional.logsigmoid(sign * masked)
        parts.append(target.exp() * (target - found))
    return (parts[0] + parts[1]).mean(dim=1)


def entropy(logits: Tensor, kind: Kind = "softmax") -> Tensor:
    """Entropy (N,) of the probabilities, in nats.

    >>> entropy(torch.zeros(1, 2)), entropy(torch.zeros(1, 2), "sigmoid")
    (tensor([0.6931]), tensor([0.6931]))
    """
    if kind == "softmax":
        logarithms = logits.log_softmax(dim=1)
        return -(logarithms.exp() * logarithms).sum(dim=1)
    logarithms = functional.logsigmoid(torch.stack((logits, -logits)))
    return -(logarithms.exp() * logarithms).sum(dim=0).mean(dim=1)
