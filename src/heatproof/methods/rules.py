"""Other backward rules for a network's nonlinearities, without touching the network.

Each rule is a mode that sees every torch function while the model runs inside it. So it finds a ReLU whether it is a
module, a function or a tensor's method, in-place or not, and one module that is called several times is as many
nonlinearities. There are no hooks on modules, so none can be left behind. The backward pass belongs outside the mode. What a
mode cannot see, autograd's graph shows (`check_operations`).
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakIdKeyDictionary

from heatproof.errors import ModelError
from heatproof.methods import graph

ELEMENTWISE = frozenset(
    {
        "relu",
        "relu6",
        "hardtanh",
        "leaky_relu",
        "prelu",
        "elu",
        "selu",
        "celu",
        "gelu",
        "silu",
        "mish",
        "rrelu",
        "threshold",
    }
) | {
    "softplus",
    "softsign",
    "sigmoid",
    "logsigmoid",
    "log_sigmoid",
    "tanh",
    "hardswish",
    "hardsigmoid",
    "hardshrink",
    "softshrink",
}
"""Activation functions: functions of one number, by their plain names (`named`)."""

CHOICES = frozenset({"clamp", "clamp_min", "clamp_max", "maximum", "minimum", "fmax", "fmin", "where", "masked_fill"})
"""With constants beside one activation, other spellings of ReLU and its kin."""

OF_ONE_NUMBER = (
    ELEMENTWISE
    | CHOICES
    | {
        "abs",
        "square",
        "pow",
        "__pow__",
        "sqrt",
        "rsqrt",
        "reciprocal",
        "exp",
        "expm1",
        "log",
        "log1p",
        "erf",
        "sin",
        "cos",
    }
)
"""All functions of one activation, with constants beside it, that DeepLift counts with their secants."""

_STEPS = frozenset(name.lower() for name in graph.STEPS)


class Rule(torch.autograd.Function):
    """A function whose backward pass is a method's rule."""


class Replaced(Rule):
    """y = call(x) forwards; backwards, whatever `rule` makes of the gradient that arrives."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, call: Callable[[Tensor], Tensor], rule: Callable[[Tensor], Tensor]) -> Tensor:
        """Gradients are off in here. A call that works in place stays in place."""
        ctx.rule = rule
        y = call(x)
        if y is x:
            ctx.mark_dirty(x)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        """The rule decides."""
        return ctx.rule(gradients[0]), None, None


def replaced(x: Tensor, call: Callable[[Tensor], Tensor], rule: Callable[[Tensor], Tensor]) -> Tensor:
    """`call(x)`, with `rule` in place of its backward pass."""
    y: Tensor = Replaced.apply(x, call, rule)
    return y


def named(function: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any] | None) -> "Called":
    """A torch function under its plain name, however it was called.

    Without the underscore of the in-place form; a first argument that was given by name stands first; `max` of two tensors is
    `maximum`, `clip` is `clamp`.

    >>> named(torch.Tensor.clip_, (torch.zeros(1), 0), None).name
    'clamp'
    """
    kwargs = dict(kwargs or {})
    name = str(getattr(function, "__name__", function))
    if not name.startswith("__"):
        name = name.strip("_")
    if not args and "input" in kwargs:
        args = (kwargs.pop("input"),)
    if name in ("max", "min") and len(args) > 1 and isinstance(args[1], Tensor):
        name += "imum"
    name = {"clip": "clamp", "multiply": "mul", "__imul__": "mul", "concatenate": "cat"}.get(name, name)
    attached = [i for i, value in enumerate(args) if isinstance(value, Tensor) and value.requires_grad]
    return Called(name, function, args, kwargs, attached)


class Called(NamedTuple):
    """A torch function as it was called.

    Args:
        name: its plain name.
        function: what was called.
        args: positional arguments.
        kwargs: named arguments.
        attached: positions of the tensors that depend on the image, as far as gradients tell.
    """

    name: str
    function: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    attached: list[int]

    @property
    def x(self) -> Tensor:
        """The first activation."""
        x: Tensor = self.args[self.attached[0]]
        return x

    @property
    def constants(self) -> list[Any]:
        """All other arguments."""
        return [value for i, value in enumerate(self.args) if i not in self.attached] + list(self.kwargs.values())

    def on(self, *activations: Tensor) -> Any:
        """The function of other activations in the place of its own."""
        args = list(self.args)
        for position, activation in zip(self.attached, activations, strict=True):
            args[position] = activation
        return self.function(*args, **self.kwargs)

    def run(self) -> Any:
        """The call as it was made."""
        return self.function(*self.args, **self.kwargs)


def check_operations(
    method: str, model: object, outputs: Tensor, inputs: Tensor, is_right: Callable[[graph.Operation], bool]
) -> None:
    """Checks, after the model has run, that a method's rules cover all that the backward pass will do.

    Raises:
        ModelError: naming the first operation, from the image on, for which there is no rule, or whose call was hidden.
    """
    wrong = [op for op in graph.operations(outputs, inputs) if not _is_ours(op) and not is_right(op)]
    if wrong:
        raise ModelError(
            f"{method}: has no rule for {wrong[-1].described}, which {type(model).__name__} runs (or runs where it cannot be "
            "seen: inside a scripted or traced module or an autograd function), so the map would be the plain gradient there; "
            "use the network as plain modules and functions of torch, or another method, such as IntegratedGradients"
        )


def _is_ours(operation: graph.Operation) -> bool:
    return operation.kind is not None and issubclass(operation.kind, Rule)


class PositiveGradients(TorchFunctionMode):
    """Only positive gradients pass a ReLU backwards.

    Args:
        rule: "guided" also asks, as the ordinary backward pass does, that the ReLU was active: max(g, 0) where the
            input was positive. "deconvolution" does not: max(g, 0).
    """

    def __init__(self, rule: Literal["guided", "deconvolution"]) -> None:
        super().__init__()
        self.rule = rule
        self.seen = 0
        self._of_the_image = WeakIdKeyDictionary()  # tensors that depend on the image and pass no gradient on

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Sees each torch function that the model calls."""
        call = named(func, args, kwargs)
        call = call._replace(attached=[i for i in call.attached if call.args[i] not in self._of_the_image])
        bounds = self._relu(call)
        if bounds is not None:
            self.seen += 1
            if self.rule == "deconvolution":
                return replaced(call.x, call.on, _positive)
            low, high = bounds
            x = call.x.detach()
            passes = (x > low) & (x < high)
            return replaced(call.x, call.on, lambda gradient: _positive(gradient) * passes)
        output = call.run()
        is_step = not call.attached or call.name in _STEPS
        is_cut_off = isinstance(output, Tensor) and (is_step or not output.requires_grad)
        if is_cut_off and (call.attached or any(isinstance(v, Tensor) and v in self._of_the_image for v in call.args)):
            self._of_the_image[output] = True
        return output

    def _relu(self, call: Called) -> tuple[float, float] | None:
        """Where a call is a ReLU or ReLU6, the interval in which it lets its input through."""
        if len(call.attached) != 1:
            return None
        if call.name == "relu":
            return 0.0, math.inf
        if call.name == "relu6":
            return 0.0, 6.0
        low, high = _bounds(call)
        if low is not None and _is_zero(low):
            return (0.0, math.inf) if high is None else (0.0, float(high)) if _is_number(high) else None
        masked = [v for v in call.args if isinstance(v, Tensor) and v in self._of_the_image]
        if masked and call.name in ("mul", "__mul__", "__rmul__", "where", "masked_fill"):
            x = call.x.detach()
            y = (
                named(call.function, tuple(v.clone() if v is call.x else v for v in call.args), call.kwargs)
                .run()
                .detach()
            )
            if torch.equal(y, x.clamp(min=0)):
                return 0.0, math.inf
            raise ModelError(
                f"the model calls {call.name!r} with a mask that it makes from the image, so it cannot be seen whether this is a "
                "ReLU, and guided backprop and deconvolution have no rule for it; use another method"
            )
        return None

    def check(self, model: object, outputs: Tensor, inputs: Tensor) -> None:
        """Checks, after the model has run, that the rule had something to change and that no ReLU was hidden.

        Raises:
            ModelError: where the model called no ReLU, or calls one where it cannot be seen.
        """
        if self.seen == 0:
            raise ModelError(
                f"{type(model).__name__}: called no ReLU that can be seen (GELU and SiLU are none, and a scripted model "
                "hides them), so guided backprop and deconvolution would be the plain gradient; use another method"
            )
        name = {"guided": "GuidedBackprop", "deconvolution": "Deconvolution"}[self.rule]
        check_operations(name, model, outputs, inputs, lambda op: op.kind is None and not op.may_be_relu)


def _bounds(call: Called) -> tuple[Any, Any]:
    """Lower and upper bound of a call that only cuts its input off; None where it does not."""
    low = high = None
    args = [*call.args[1:], None, None]
    match call.name:
        case "hardtanh":
            low, high = call.kwargs.get("min_val", args[0]), call.kwargs.get("max_val", args[1])
        case "clamp":
            low, high = call.kwargs.get("min", args[0]), call.kwargs.get("max", args[1])
        case "clamp_min":
            low = call.kwargs.get("min", args[0])
        case "maximum" | "fmax":
            low = call.kwargs.get("other", call.args[1 - call.attached[0]] if len(call.args) > 1 else None)
        case "threshold":
            threshold, value = call.kwargs.get("threshold", args[0]), call.kwargs.get("value", args[1])
            low = threshold if _is_zero(threshold) and _is_zero(value) else None
    return low, high


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) or (isinstance(value, Tensor) and value.numel() == 1)


def _is_zero(value: Any) -> bool:
    return not bool(value.any()) if isinstance(value, Tensor) else isinstance(value, int | float) and value == 0


def _positive(gradient: Tensor) -> Tensor:
    return gradient.clamp(min=0)


def multi_head(
    attend: Callable[[Tensor, Tensor, Tensor], Tensor], linear: Callable[[Tensor, Tensor, Tensor | None], Tensor],
    query: Tensor, key: Tensor, value: Tensor, width: int, heads: int, weight: Tensor, bias: Tensor | None,
    bias_k: Any, bias_v: Any, zero: bool, dropout: float, out_weight: Tensor, out_bias: Tensor | None, **named: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """`torch.nn.functional.multi_head_attention_forward` in steps that have rules; it takes and gives (T, B, D).

    Raises:
        ModelError: where attention has masks, or keys of its own.
    """
    masks = [name for name in ("key_padding_mask", "attn_mask") if named.get(name) is not None]
    if masks or bias_k is not None or zero or weight is None:
        raise ModelError("there is no rule for multi-head attention with a mask or keys of its own; use another method")
    biases = (None,) * 3 if bias is None else bias.chunk(3)
    projected = [linear(x, w, b) for x, w, b in zip((query, key, value), weight.chunk(3), biases, strict=True)]
    mixed = attend(*(x.unflatten(2, (heads, -1)).permute(1, 2, 0, 3) for x in projected))  # (B, A, T, d)
    return linear(mixed.permute(2, 0, 1, 3).flatten(2), out_weight, out_bias), None
