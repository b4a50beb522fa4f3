"""Any scalar as what is explained: a set of classes, the difference of two, an output of a regression, a function of one's own.

Methods explain one logit of a classifier and some ask for its probability. `Retargeted` turns a model into one of two logits,
the scalar that is asked for and what it competes with, so that every method explains it as class 0, unchanged:

    model = Retargeted(network, Difference(243, 281))
    maps = Chefer(model)(images, torch.zeros(len(images), dtype=torch.int64))

In a configuration, `model.transformer` names a function `(model, num_classes) -> Retargeted(...)`.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from heatproof.errors import InputError, ModelError
from heatproof.models.outputs import own_outputs

Scalar = Callable[[Tensor], Tensor]
"""From outputs (N, K) to one score for each image, (N,), or to two logits, (N, 2): the score and what it competes with."""


@dataclass(frozen=True)
class AnyOf:
    """That the image shows one of several classes: the logarithm of the sum of their exponentiated logits.

    It competes with the same of all other classes, so its probability is the sum of theirs. For one class it is the logit.

    >>> AnyOf((0, 2))(torch.log(torch.tensor([[1.0, 3.0, 2.0]]))).exp()
    tensor([[3., 3.]])
    """

    classes: tuple[int, ...]

    def __call__(self, outputs: Tensor) -> Tensor:
        """Two logits (N, 2) of outputs (N, K)."""
        _check_classes(outputs, self.classes)
        inside = torch.zeros(outputs.shape[1], dtype=torch.bool, device=outputs.device)
        inside[list(self.classes)] = True
        if bool(inside.all()):
            raise InputError("target: all classes of the model are named, so nothing is left to compete with them")
        return torch.stack([outputs[:, which].logsumexp(dim=1) for which in (inside, ~inside)], dim=1)


@dataclass(frozen=True)
class Difference:
    """What speaks for one class rather than another: the difference of their logits.

    Its probability is that of the first class where only these two come into question.

    >>> Difference(2, 0)(torch.tensor([[1.0, 0.0, 5.0]]))
    tensor([[4., 0.]])
    """

    first: int
    second: int

    def __call__(self, outputs: Tensor) -> Tensor:
        """Two logits (N, 2) of outputs (N, K)."""
        _check_classes(outputs, (self.first, self.second))
        if self.first == self.second:
            raise InputError(f"target: the difference of class {self.first} and itself is 0 everywhere")
        return _against_nothing(outputs[:, self.first] - outputs[:, self.second])


@dataclass(frozen=True)
class Output:
    """One output as it is, for regression and for networks whose outputs do not exclude one another.

    Methods that want a probability get its logistic function, which grows with it.
    """

    index: int = 0

    def __call__(self, outputs: Tensor) -> Tensor:
        """Two logits (N, 2) of outputs (N, K)."""
        _check_classes(outputs, (self.index,))
        return _against_nothing(outputs[:, self.index])


class Retargeted(nn.Module):
    """A model of two logits, of which the first is a scalar of another model's outputs; to be explained as class 0.

    Its layers are named as those of the other model (`hooks.module_named`), and its attention is found
    (`attention.architecture_of`).

    Args:
        model: (N, C, H, W) -> outputs (N, K).
        scalar: `AnyOf`, `Difference`, `Output`, or a function of one's own.

    >>> Retargeted(nn.Flatten(), lambda outputs: outputs.sum(dim=1))(torch.ones(2, 1, 2, 2))
    tensor([[4., 0.],
            [4., 0.]])
    """

    def __init__(self, model: nn.Module, scalar: Scalar):
        super().__init__()
        self.model = model
        self.scalar = scalar

    @property
    def network(self) -> nn.Module:
        """The innermost model."""
        return self.model.network if isinstance(self.model, Retargeted) else self.model

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, 2)."""
        return self.of_outputs(self.model(images))

    def of_outputs(self, outputs: Tensor) -> Tensor:
        """Logits (N, 2) of the other model's outputs (N, K).

        Raises:
            ModelError: where the scalar has another form.
        """
        found = self.scalar(outputs)
        if found.shape == outputs.shape[:1]:
            found = _against_nothing(found)
        if found.shape != (len(outputs), 2):
            raise ModelError(
                f"target: the scalar gives {tuple(found.shape)} for outputs {tuple(outputs.shape)}; expected (N,) or (N, 2)"
            )
        return found


def network_and_scalar(model: nn.Module) -> tuple[nn.Module, Callable[[Tensor], Tensor]]:
    """What is inside a `Retargeted` and what makes logits of its outputs; any other model, and outputs as they are.

    For methods with rules of their own for what a network calls: the scalar is the question and follows the ordinary ones,
    and so does the way from a network's outputs to its logits.
    """
    if not isinstance(model, Retargeted):
        return own_outputs(model)
    network, logits = own_outputs(model.model)
    return network, lambda outputs: model.of_outputs(logits(outputs))


def _against_nothing(scores: Tensor) -> Tensor:
    return torch.stack([scores, torch.zeros_like(scores)], dim=1)


def _check_classes(outputs: Tensor, classes: tuple[int, ...]) -> None:
    wrong = [k for k in classes if not 0 <= k < outputs.shape[1]]
    if wrong or not classes:
        named = f"class {wrong[0]}" if wrong else "no class is named"
        raise InputError(f"target: {named}; the model has {outputs.shape[1]} classes (0 to {outputs.shape[1] - 1})")
