"""Layer-wise relevance propagation: the target's logit, handed back layer by layer until it lies on the image.

Written as a mode (see `rules`): each torch function that the model calls gets, in place of its derivative, a rule that
says how the relevance of its output is shared out among its inputs. A function for which there is no rule is an
error, never a guess.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from heatproof.errors import ModelError
from heatproof.methods import options, rows
from heatproof.methods.folding import BatchNorm, merged
from heatproof.methods.graph import REARRANGEMENTS, SELECTIONS, Operation
from heatproof.methods.rules import CHOICES, ELEMENTWISE, Called, Rule, check_operations, named, replaced
from heatproof.models.targets import network_and_scalar

RESULTS_VERSION = 1  # to be raised when numbers change, also by a change in rows, rules, folding or variants


class Rules(NamedTuple):
    """Which rule the convolutions, the first of them and the fully connected layers follow."""

    convolution: str
    first: str
    linear: str


COMPOSITES: Mapping[str, Rules] = {
    "epsilon_plus_flat": Rules(convolution="plus", first="flat", linear="epsilon"),
    "epsilon_plus": Rules(convolution="plus", first="plus", linear="epsilon"),
    "epsilon": Rules(convolution="epsilon", first="epsilon", linear="epsilon"),
}


@dataclass(frozen=True)
class Lrp:
    """Layer-wise relevance propagation with one rule for each kind of layer.

    A layer z = sum_i z_i + b hands the relevance R of an output on to its inputs i in proportion to z_i:

    - epsilon: z_i = w_i x_i; R_i = z_i / (z + epsilon * sign(z)) * R. What falls to the bias is lost.
    - plus (z+): only what speaks for the output: z_i = max(w_i, 0) max(x_i, 0) + min(w_i, 0) min(x_i, 0), in the sum
      with max(b, 0).
    - flat: in equal parts, whatever weights and inputs are.

    A batch norm that follows a convolution or linear layer is merged with it; one that follows something else hands on
    all it gets, as do activations and constants that are added or multiplied. Max-pooling gives all to the maximum;
    mean pooling and sums of branches share out by epsilon. A product of two activations (attention, squeeze and
    excitation) or a layer norm has no rule here.

    Args:
        model: convolutional classifier, (N, C, H, W) -> (N, K) logits.
        composite: epsilon_plus_flat (flat for the first convolution, plus for the others, epsilon for linear layers),
            epsilon_plus (the same without flat) or epsilon everywhere.
        epsilon: keeps the denominators from zero.

    Raises:
        ModelError: on the call, where the model runs an operation that has no rule, or that cannot be seen (in a scripted module,
            in an autograd function).

    Reference:
        Bach et al.: "On pixel-wise explanations for non-linear classifier decisions by layer-wise relevance
        propagation", PLOS ONE 10(7), 2015; composites: Kohlbrenner et al., IJCNN 2020, arXiv:1910.09840.

    >>> model = nn.Sequential(nn.Flatten(), nn.Linear(2, 1, bias=False))
    >>> _ = nn.init.constant_(model[1].weight, 3.0)
    >>> maps = Lrp(model)(torch.tensor([[[[1.0, 2.0]]]]), torch.tensor([0]))
    >>> [round(value, 4) for value in maps.flatten().tolist()]
    [3.0, 6.0]
    """

    model: nn.Module
    composite: str = "epsilon_plus_flat"
    epsilon: float = 1e-6

    def __post_init__(self) -> None:
        options.one_of(self, "composite", self.composite, COMPOSITES)
        options.at_least(self, 0, epsilon=self.epsilon)

    def __call__(self, images: Tensor, targets: Tensor) -> Tensor:
        """Explains the logits of `targets` (N,) for `images` (N, C, H, W): maps (N, C, H, W), float32, signed."""
        rows.check_batch(images, targets)
        network, scalar = network_and_scalar(self.model)
        with rows.explaining(self.model):
            inputs = rows.leaf(images)
            with _Relevance(COMPOSITES[self.composite], self.epsilon):
                outputs = rows.logits_of(network, inputs.clone())
            explained = rows.chosen(scalar(outputs), targets)
            rows.check_reached(self.model, explained, inputs)
            check_operations("Lrp", network, outputs, inputs, hands_on)
            # Of one class, its logit; of a difference, both logits with their signs.
            (weights,) = torch.autograd.grad(explained.sum(), outputs, retain_graph=True)
            return torch.autograd.grad(outputs, inputs, grad_outputs=weights * outputs.detach())[0].float()


# Rearrangements and selections: the ordinary backward pass is right, each relevance goes where its value came from.
MOVES = (
    frozenset({"flatten", "unflatten", "view", "view_as", "reshape", "reshape_as", "squeeze", "unsqueeze", "expand"})
    | {"permute", "transpose", "movedim", "swapaxes", "contiguous", "clone", "to", "float", "requires_grad"}
    | {"narrow", "select", "__getitem__", "chunk", "split", "unbind", "cat", "concat", "stack", "pad"}
    | {"max_pool2d", "adaptive_max_pool2d", "amax", "dropout", "dropout2d", "feature_dropout", "alpha_dropout"}
    | {"channel_shuffle", "pixel_shuffle"}
)
MEANS = frozenset({"avg_pool2d", "adaptive_avg_pool2d", "mean", "sum"})
_WEIGHTED = frozenset({"conv2d", "linear"})
SUMS = frozenset({"add", "__add__", "__iadd__", "__radd__"})
# With a constant, each output has one input, which gets all of its relevance; of two activations there is no rule.
WITH_CONSTANT = SUMS | {
    "sub",
    "rsub",
    "__sub__",
    "__rsub__",
    "mul",
    "__mul__",
    "__rmul__",
    "div",
    "true_divide",
    "__truediv__",
}


class Term(NamedTuple):
    """A linear function and what it is applied to; a layer's output is thought of as a sum of such terms."""

    x: Tensor
    call: Callable[[Tensor], Tensor]


class _Layer(NamedTuple):
    """A convolution or linear layer as it was called: enough to call it again with other weights."""

    x: Tensor
    weight: Tensor
    bias: Tensor | None
    rule: str
    call: Callable[[Tensor, Tensor, Tensor | None], Tensor]

    def terms(self) -> list[Term]:
        """What the layer's rule shares out in proportion to."""
        x = self.x.detach()
        if self.rule == "flat":
            ones = torch.ones_like(self.weight)
            return [Term(torch.ones_like(x), lambda x: self.call(x, ones, None))]
        if self.rule == "plus":
            up, down = self.weight.clamp(min=0), self.weight.clamp(max=0)
            bias = None if self.bias is None else self.bias.clamp(min=0)
            return [
                Term(x.clamp(min=0), lambda x: self.call(x, up, bias)),
                Term(x.clamp(max=0), lambda x: self.call(x, down, None)),
            ]
        return [Term(x, lambda x: self.call(x, self.weight, self.bias))]


class _Relevance(TorchFunctionMode):
    """Gives each function its rule while the model runs inside."""

    def __init__(self, rules: Rules, epsilon: float) -> None:
        super().__init__()
        self.rules = rules
        self.epsilon = epsilon
        self.convolutions = 0
        self.last: tuple[Tensor, _Layer] | None = None  # output of the last layer with weights, and the layer

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Sees each torch function that the model calls."""
        call = named(func, args, kwargs)
        name, _, args, kwargs, attached = call
        if attached == [0] and name in _WEIGHTED:
            return self._weighted(func, name, *args, **kwargs)
        if attached == [0] and name == "batch_norm":
            return self._batch_norm(func, BatchNorm(*args, **kwargs))
        if attached == [0] and name in MEANS:
            return self._mean(lambda x: func(x, *args[1:], **kwargs), args[0])
        if attached == [0, 1] and name in SUMS:
            return Sum.apply(*args[:2], lambda a, b: func(a, b, *args[2:], **kwargs), self.epsilon)
        if len(attached) == 1 and name in ELEMENTWISE | CHOICES | WITH_CONSTANT:
            return one_to_one(call)
        output = func(*args, **kwargs)
        if name not in MOVES and isinstance(output, Tensor) and output.requires_grad:
            raise ModelError(f"Lrp: has no rule for {name!r}, which the model calls; use another method for this model")
        return output

    def _weighted(
        self, func: Any, name: str, x: Tensor, weight: Tensor, bias: Tensor | None = None, *rest: Any, **named: Any
    ) -> Tensor:
        rule = self.rules.linear
        if name == "conv2d":
            rule = self.rules.convolution if self.convolutions else self.rules.first
            self.convolutions += 1
        layer = _Layer(x, weight, bias, rule, lambda x, w, b: func(x, w, b, *rest, **named))
        output = shared_out(x, lambda x: layer.call(x, weight, bias), layer.terms, self.epsilon)
        self.last = output, layer
        return output

    def _batch_norm(self, func: Any, call: BatchNorm) -> Tensor:
        linear = call.factor_and_shift()
        if linear is None:
            raise ModelError("Lrp: has no rule for a batch norm without running statistics; use another method")
        if self.last is None or self.last[0] is not call.input:
            return replaced(call.input, lambda x: func(*call._replace(input=x)), lambda relevance: relevance)
        layer = self.last[1]
        weight, bias = merged(layer.weight, layer.bias, *linear)
        terms = layer._replace(weight=weight, bias=bias).terms
        return shared_out(layer.x, lambda _: func(*call._replace(input=call.input.detach())), terms, self.epsilon)

    def _mean(self, call: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        kept = x.detach().clone()  # legally changed in place later: its ordinary backward pass does not need it
        return shared_out(x, call, lambda: [Term(kept, call)], self.epsilon)


def hands_on(operation: Operation) -> bool:
    """Whether the ordinary backward pass hands relevance on as it should: each output is one of the inputs."""
    return operation.kind is None and operation.name in REARRANGEMENTS | SELECTIONS


def shared_out(x: Tensor, call: Callable[[Tensor], Tensor], terms: Callable[[], list[Term]], epsilon: float) -> Tensor:
    """`call(x)`, whose relevance is handed to x in proportion to the terms."""

    # The graph keeps this rule: it must not hold the mode, which holds outputs, or the two would never be freed.
    def rule(relevance: Tensor) -> Tensor:
        parts = terms()
        with torch.enable_grad():
            inputs = [part.x.detach().requires_grad_() for part in parts]
            outputs = [part.call(x) for part, x in zip(parts, inputs, strict=True)]
        ratio = relevance / away_from_zero(torch.stack(outputs).sum(dim=0).detach(), epsilon)
        shares = torch.autograd.grad(outputs, inputs, [ratio] * len(outputs))
        return torch.stack([x.detach() * share for x, share in zip(inputs, shares, strict=True)]).sum(dim=0)

    return replaced(x, call, rule)


class Sum(Rule):
    """a + b, whose relevance is shared out in proportion to a and b."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, call: Callable[[Tensor, Tensor], Tensor], epsilon: float) -> Tensor:
        """Takes the shares at once: what follows may change the sum in place."""
        before, shape_b = a.clone(), b.shape
        y = call(a, b)
        if y is a:
            ctx.mark_dirty(a)
        total = away_from_zero(y, epsilon)
        ctx.shares = before / total, (y - before) / total
        ctx.shapes = before.shape, shape_b
        return y

    @staticmethod
    def backward(ctx: Any, *relevances: Tensor) -> tuple[Tensor, Tensor, None, None]:
        """What arrives, times the shares."""
        a, b = ((relevances[0] * share).sum_to_size(shape) for share, shape in zip(ctx.shares, ctx.shapes, strict=True))
        return a, b, None, None


def one_to_one(call: Called) -> Tensor:
    """A function of one activation, which gets all the relevance of the output."""
    shape = call.x.shape  # the rule must not hold x, which is the output where the function is in-place
    return replaced(call.x, call.on, lambda relevance: relevance.sum_to_size(shape))


def away_from_zero(values: Tensor, epsilon: float) -> Tensor:
    """The values, moved away from zero by epsilon; zero moves up."""
    return values + torch.where(values >= 0, epsilon, -epsilon)
