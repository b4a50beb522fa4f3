"""Other backward rules for a network's nonlinearities, without touching the network.

Each rule is a mode that sees every torch function while the model runs inside it. So it finds a ReLU whether it is a
module, a function or a tensor's method, in-place or not, and one module that is called several times is as many
nonlinearities. There are no hooks on modules, so none can be left behind. The backward pass belongs outside the mode.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from heatproof.errors import ModelError

ELEMENTWISE = frozenset(
    {"relu", "relu6", "hardtanh", "leaky_relu", "prelu", "elu", "selu", "celu", "gelu", "silu", "mish"}
) | {"softplus", "softsign", "sigmoid", "logsigmoid", "tanh", "hardswish", "hardsigmoid"}
"""Functions of one number, by the name that torch gives them (without the underscore of the in-place form)."""

SMALLEST_DIFFERENCE = 1e-6
"""Below this difference of its inputs, a nonlinearity's secant is lost in rounding: DeepLift takes the tangent."""


class Replaced(torch.autograd.Function):
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


class Call(NamedTuple):
    """A torch function as it was called on a tensor: its plain name, and what to call on another tensor."""

    name: str
    on: Callable[[Tensor], Tensor]
    x: Tensor
    is_relu: bool

    @classmethod
    def read(cls, function: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> "Call | None":
        """The call of a function on a tensor; None for other things that a mode sees, such as attributes."""
        if not args or not isinstance(args[0], Tensor):
            return None
        name = str(getattr(function, "__name__", "")).removesuffix("_")
        is_relu = name in ("relu", "relu6") or (name == "hardtanh" and kwargs.get("min_val") == 0)
        return cls(name, lambda x: function(x, *args[1:], **kwargs), args[0], is_relu)


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

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Sees each torch function that the model calls."""
        kwargs = kwargs or {}
        call = Call.read(func, args, kwargs)
        if call is None or not call.is_relu or not call.x.requires_grad:
            return func(*args, **kwargs)
        self.seen += 1
        if self.rule == "deconvolution":
            return replaced(call.x, call.on, _positive)
        output = call.on(call.x)
        output.register_hook(_positive)  # the hook belongs to this pass's graph and goes with it
        return output

    def check(self, model: object) -> None:
        """Checks, after the model has run, that the rule had something to change.

        Raises:
            ModelError: where the model called no ReLU.
        """
        if self.seen == 0:
            raise ModelError(
                f"{type(model).__name__}: called no ReLU that can be seen (GELU and SiLU are none, and a scripted model "
                "hides them), so guided backprop and deconvolution would be the plain gradient; use another method"
            )


def _positive(gradient: Tensor) -> Tensor:
    return gradient.clamp(min=0)


class Reference(NamedTuple):
    """What a nonlinearity was given and gave for the baseline."""

    name: str
    x: Tensor
    y: Tensor


class RecordReferences(TorchFunctionMode):
    """Notes, in order, what each nonlinearity does while the model runs on the baseline.

    Args:
        names: the functions to note.
    """

    def __init__(self, names: Iterable[str]) -> None:
        super().__init__()
        self.names = frozenset(names)
        self.references: list[Reference] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Sees each torch function that the model calls."""
        kwargs = kwargs or {}
        call = Call.read(func, args, kwargs)
        if call is None or call.name not in self.names:
            return func(*args, **kwargs)
        x = call.x.clone()  # the call, or a later one, may be in-place
        y = call.on(call.x)
        self.references.append(Reference(call.name, x, y.clone()))
        return y


class Rescale(TorchFunctionMode):
    """DeepLift's rescale rule: backwards, a nonlinearity counts with its secant from the baseline to the image.

    Args:
        names: the functions that follow the rule; the others keep their ordinary backward pass.
        references: of the same functions, from `RecordReferences`; of batch size 1 or that of the images.
    """

    def __init__(self, names: Iterable[str], references: Iterable[Reference]) -> None:
        super().__init__()
        self.names = frozenset(names)
        self.references: Iterator[Reference] = iter(references)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Sees each torch function that the model calls."""
        kwargs = kwargs or {}
        call = Call.read(func, args, kwargs)
        if call is None or call.name not in self.names:
            return func(*args, **kwargs)
        reference = next(self.references, None)
        if reference is None or reference.name != call.name or reference.x.shape[1:] != call.x.shape[1:]:
            raise ModelError(f"DeepLift: the model took another path ({call.name}) for the image than for the baseline")
        if not call.x.requires_grad:
            return call.on(call.x)
        if call.name == "max_pool2d":
            return replaced(call.x, call.on, _MaxPoolSecant(call, reference, args[1:], kwargs))
        multipliers = _secants(call, reference)
        return replaced(call.x, call.on, lambda gradient: gradient * multipliers)


def _secants(call: Call, reference: Reference) -> Tensor:
    """(y - y_ref) / (x - x_ref) of a function of one number; its derivative where x and x_ref are as good as equal."""
    x = call.x.detach().clone().requires_grad_()
    y = call.on(x.clone())
    (tangents,) = torch.autograd.grad(y.sum(), x)
    x, y = x.detach(), y.detach()
    run = x - reference.x
    return torch.where(run.abs() < SMALLEST_DIFFERENCE, tangents, (y - reference.y) / run)


class _MaxPoolSecant:
    """Backward rule of a max-pool whose outputs' differences are all accounted for.

    The difference of an output goes to the place of the larger of the two maxima, the image's or the baseline's:
    there the inputs differ by at least as much, so that no multiplier exceeds 1. Overlapping windows add up.
    """

    def __init__(self, call: Call, reference: Reference, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        options = {**dict(zip(_POOL_OPTIONS, args, strict=False)), **kwargs, "return_indices": True}
        x = call.x.detach()
        y, self.places = functional.max_pool2d(x, **options)
        y_ref, places_ref = functional.max_pool2d(reference.x, **options)
        self.places_ref = places_ref.expand_as(y)
        self.run = x - reference.x
        self.rise = (y - y_ref).clamp(min=0)  # where the image's maximum is the larger one
        self.fall = (y - y_ref).clamp(max=0)

    def __call__(self, gradient: Tensor) -> Tensor:
        contributions = self._spread(gradient * self.rise, self.places) + self._spread(
            gradient * self.fall, self.places_ref
        )
        tangents = self._spread(gradient, self.places)
        return torch.where(self.run.abs() < SMALLEST_DIFFERENCE, tangents, contributions / self.run)

    def _spread(self, values: Tensor, places: Tensor) -> Tensor:
        flat = values.new_zeros(self.run.shape).flatten(2)
        return flat.scatter_add_(2, places.flatten(2), values.flatten(2)).view(self.run.shape)


_POOL_OPTIONS = ("kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices")
