"""DeepLift's rules: backwards, each nonlinearity counts with what changed in it from the baseline to the image.

The model runs twice: on the baseline inside `Record`, on the images inside `Rescale`. Multipliers m, the gradients under these
rules, are such that for each function the sum of m (x - x0) over its inputs is the sum of m (y - y0) over its outputs:

- a function of one number: the secant (y - y0) / (x - x0), the rescale rule; below a difference of 1e-6, the derivative;
- a product of two activations (also of matrices): each factor with the other's mean of image and baseline, since
  a b - a0 b0 = (a - a0) (b + b0) / 2 + (b - b0) (a + a0) / 2;
- softmax: the secants of its exponential and of the logarithm of their sum (`_softmax`);
- layer norm: the same two rules for the mean, reciprocal and square root that it is made of;
- a max-pool: see `_MaxPool`. Only here the two sums may differ; what is lost is counted.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from heatproof.errors import ModelError
from heatproof.methods.options import in_double
from heatproof.methods.rules import OF_ONE_NUMBER, Called, Rule, multi_head, named, replaced

SMALLEST_DIFFERENCE = 1e-6
"""Below this difference of its inputs, a nonlinearity's secant is lost in rounding: DeepLift takes the tangent."""

_BILINEAR = frozenset({"mul", "__mul__", "matmul", "__matmul__", "bmm", "mm", "einsum", "baddbmm", "conv2d"})
_FACTORS = frozenset({"mul", "__mul__", "__rmul__", "div", "true_divide", "__truediv__"})


class Reference(NamedTuple):
    """What a nonlinearity was given and gave for the baseline."""

    name: str
    inputs: tuple[Tensor, ...]
    constants: list[Any]
    y: Tensor


class _Ruled(TorchFunctionMode):
    """Sees each torch function that the model calls, and which rule it follows."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Hands the calls that have a rule to `ruled`."""
        call = named(func, args, kwargs)
        if call.name == "scaled_dot_product_attention" and call.attached:
            with self:
                return _attention(*call.args, **call.kwargs)
        if call.name == "multi_head_attention_forward" and call.attached:
            with self:
                return multi_head(_attention, functional.linear, *call.args, **call.kwargs)
        if call.name in ("div", "true_divide", "__truediv__") and 1 in call.attached and not _is_in_place(func):
            with self:  # each step has its rule
                return torch.mul(torch.reciprocal(call.args[1]), call.args[0])
        if _rule_of(call) is None:
            return call.run()
        return self.ruled(call)

    def ruled(self, call: Called) -> Tensor:
        """Runs a call that has a rule."""
        raise NotImplementedError


def _rule_of(call: Called) -> str | None:
    name, attached = call.name, call.attached
    if len(attached) == 2 and name in _BILINEAR:
        return "bilinear"
    if len(attached) != 1:
        return None
    if name in ("max_pool2d", "softmax", "layer_norm"):
        return name if attached == [0] else None
    if name in _FACTORS:
        return "factor" if any(isinstance(v, Tensor) or type(v) is float for v in call.constants) else None
    return "secant" if name in OF_ONE_NUMBER else None


class Record(_Ruled):
    """Notes, in order, what each nonlinearity does while the model runs on the baseline."""

    def __init__(self) -> None:
        super().__init__()
        self.references: list[Reference] = []

    def ruled(self, call: Called) -> Tensor:
        """Runs the call and notes it."""
        inputs = tuple(call.args[position].detach().clone() for position in call.attached)  # calls may be in-place
        y: Tensor = call.run()
        self.references.append(Reference(call.name, inputs, call.constants, y.detach().clone()))
        return y


class Rescale(_Ruled):
    """Gives each function its rule while the model runs on the images.

    Args:
        references: from `Record`; of batch size 1 or that of the images.
        exact_pools: whether max-pools follow the exact rule; else the ordinary backward pass.
    """

    def __init__(self, references: Iterable[Reference], *, exact_pools: bool) -> None:
        super().__init__()
        self.references: Iterator[Reference] = iter(references)
        self.exact_pools = exact_pools
        self.lost: list[Tensor] = []
        """After the backward pass, what each max-pool lost: sum m (y - y0) - sum m (x - x0), (N,)."""

    def ruled(self, call: Called) -> Tensor:
        """Runs the call with its rule for the backward pass."""
        reference = next(self.references, None)
        shapes = [tuple(call.args[position].shape[1:]) for position in call.attached]
        if reference is None or (reference.name, shapes) != (call.name, [tuple(x.shape[1:]) for x in reference.inputs]):
            raise ModelError(f"DeepLift: the model took another path ({call.name}) for the image than for the baseline")
        match _rule_of(call):
            case "bilinear":
                return _bilinear(call, reference)
            case "factor" if _are_equal(call.constants, reference.constants):
                return call.run()  # type: ignore[no-any-return]
            case "max_pool2d":
                return replaced(call.x, call.on, _MaxPool(call, reference, self.lost, exact=self.exact_pools))
            case "softmax":
                return replaced(call.x, call.on, _softmax(call, reference))
            case "layer_norm":
                return replaced(call.x, call.on, _layer_norm(reference.inputs[0], *call.args, **call.kwargs))
        multipliers = _secants(call, reference)
        return replaced(call.x, call.on, lambda gradient: gradient * multipliers)


def _is_in_place(function: Any) -> bool:
    name = getattr(function, "__name__", "")
    return name.startswith("__i") or (name.endswith("_") and not name.startswith("__"))


def _are_equal(ours: list[Any], theirs: list[Any]) -> bool:
    """Whether constants are: a mask that is made from the image is none."""
    return len(ours) == len(theirs) and all(_is_same(a, b) for a, b in zip(ours, theirs, strict=True))


def _is_same(a: Any, b: Any) -> bool:
    if a is b:
        return True
    if not isinstance(a, Tensor) or not isinstance(b, Tensor):
        return type(a) is type(b) and bool(a == b)
    return a.shape[1:] == b.shape[1:] and bool((a == b).all())


def _secants(call: Called, reference: Reference) -> Tensor:
    """(y - y0) / (x - x0) of a function of one number; its derivative where x and x0 are as good as equal."""
    x = call.x.detach().clone().requires_grad_()
    y = call.on(x.clone())
    if y.shape != x.shape:
        raise ModelError(f"DeepLift: has no rule for {call.name!r} that enlarges {tuple(x.shape)} to {tuple(y.shape)}")
    tangents = torch.autograd.grad(y.sum(), x)[0] if y.requires_grad else torch.zeros_like(x)
    x, y = x.detach(), y.detach()
    run = x - reference.inputs[0]
    secants = torch.where(y == reference.y, 0.0, (y - reference.y) / run)  # equal: also where both are infinite
    return torch.where(run.abs() < SMALLEST_DIFFERENCE, tangents, secants)


class _Bilinear(Rule):
    """A product of two activations, whose gradient is taken half-way between baseline and image."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, call: Callable[..., Tensor], means: tuple[Tensor, Tensor]) -> Tensor:
        """Keeps the means."""
        ctx.call, ctx.means = call, means
        y = call(a, b)
        if y is a:
            ctx.mark_dirty(a)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None]:
        """The gradient at the means."""
        with torch.enable_grad():
            a, b = (mean.detach().requires_grad_() for mean in ctx.means)
            y = ctx.call(a.clone(), b)  # the call may be in-place
        to_a, to_b = torch.autograd.grad(y, (a, b), gradients[0])
        return to_a, to_b, None, None


def _bilinear(call: Called, reference: Reference) -> Tensor:
    a, b = (call.args[position] for position in call.attached)
    means = tuple((x.detach() + x0) / 2 for x, x0 in zip((a, b), reference.inputs, strict=True))
    y: Tensor = _Bilinear.apply(a, b, call.on, means)
    return y


def _softmax(call: Called, reference: Reference) -> Callable[[Tensor], Tensor]:
    """The backward rule of p = exp(x - l) with l = log(sum(exp(x))) along an axis.

    With the logarithmic mean L(a, b) = (a - b) / (log(a) - log(b)): p - p0 = L(p, p0) ((x - x0) - (l - l0)), and l - l0 is the sum
    of w (x - x0) with w = L(exp(x), exp(x0)) / L(exp(l), exp(l0)), which sum to at most 1. So no factor exceeds 1, however far the
    scores of image and baseline lie apart.
    """
    axis = call.kwargs.get("dim", call.args[1] if len(call.args) > 1 else None)
    axis = axis if isinstance(axis, int) else -1
    x, x0 = call.x.detach().clone(), reference.inputs[0]

    def rule(gradient: Tensor) -> Tensor:
        wide, wide0 = in_double(x), in_double(x0)
        total, total0 = wide.logsumexp(dim=axis, keepdim=True), wide0.logsumexp(dim=axis, keepdim=True)
        most = torch.maximum(total, total0)
        to_difference = in_double(gradient) * _log_mean(wide - total, wide0 - total0)
        weights = _log_mean(wide - most, wide0 - most) / _log_mean(total - most, total0 - most)
        return (to_difference - weights * to_difference.sum(dim=axis, keepdim=True)).to(gradient)

    return rule


def _log_mean(log_a: Tensor, log_b: Tensor) -> Tensor:
    """The logarithmic mean (a - b) / (log(a) - log(b)) of exp(log_a) and exp(log_b); a where they are equal, 0 where one is 0."""
    apart = (log_a - log_b).abs()  # NaN where both are 0, as under a mask
    return torch.maximum(log_a, log_b).exp() * torch.where(apart > 0, -torch.expm1(-apart) / apart, 1.0)


def _layer_norm(
    x0: Tensor, x: Tensor, shape: tuple[int, ...], weight: Tensor | None = None, bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Callable[[Tensor], Tensor]:  # fmt: skip
    """The backward rule of c r weight + bias with c = x - mean(x), v = mean(c^2) and r = 1 / sqrt(v + eps)."""
    axes = tuple(range(-len(shape), 0))

    def parts(x: Tensor) -> tuple[Tensor, Tensor]:
        c = x - x.mean(dim=axes, keepdim=True)
        return c, torch.rsqrt(c.square().mean(dim=axes, keepdim=True) + eps)

    (c, r), (c0, r0) = parts(x.detach()), parts(x0)

    def rule(gradient: Tensor) -> Tensor:
        gradient = gradient if weight is None else gradient * weight
        to_r = (gradient * (c + c0) / 2).sum(dim=axes, keepdim=True)
        to_v = -to_r * (r * r0) ** 2 / (r + r0)  # (r - r0) / (v - v0)
        to_c = gradient * (r + r0) / 2 + to_v * (c + c0) / math.prod(shape)
        return to_c - to_c.mean(dim=axes, keepdim=True)

    return rule


def _attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0,
    is_causal: bool = False, *, scale: float | None = None, enable_gqa: bool = False,
) -> Tensor:  # fmt: skip
    """`scaled_dot_product_attention` in steps that have rules."""
    if is_causal or enable_gqa or (attn_mask is not None and attn_mask.dtype == torch.bool):
        raise ModelError("DeepLift: has no rule for attention with a boolean mask or shared keys; use another method")
    scores = torch.matmul(query, key.transpose(-2, -1)) * (scale or query.shape[-1] ** -0.5)
    return torch.matmul(torch.softmax(scores if attn_mask is None else scores + attn_mask, dim=-1), value)


class _MaxPool:
    """Backward rule of a max-pool.

    Exact: the difference of an output goes to the place of the larger of the two maxima, the image's or the baseline's:
    there the inputs differ by at least as much, so that no multiplier exceeds 1. Overlapping windows add up. Else the
    ordinary backward pass, to the image's own maximum.
    """

    def __init__(self, call: Called, reference: Reference, lost: list[Tensor], *, exact: bool) -> None:
        options = {**dict(zip(_POOL_OPTIONS, call.args[1:], strict=False)), **call.kwargs, "return_indices": True}
        x, x0 = call.x.detach(), reference.inputs[0]
        y, self.places = functional.max_pool2d(x, **options)
        y0, places0 = functional.max_pool2d(x0, **options)
        self.places0 = places0.expand_as(y)
        self.run = x - x0
        self.rise = y - y0
        self.lost = lost
        self.exact = exact

    def __call__(self, gradient: Tensor) -> Tensor:
        tangents = self._spread(gradient, self.places)
        found = tangents
        if self.exact:
            rise = self._spread(gradient * self.rise.clamp(min=0), self.places)  # the image's maximum is the larger one
            fall = self._spread(gradient * self.rise.clamp(max=0), self.places0)
            found = torch.where(self.run.abs() < SMALLEST_DIFFERENCE, tangents, (rise + fall) / self.run)
        self.lost.append((gradient * self.rise).flatten(1).sum(dim=1) - (found * self.run).flatten(1).sum(dim=1))
        return found

    def _spread(self, values: Tensor, places: Tensor) -> Tensor:
        flat = values.new_zeros(self.run.shape).flatten(2)
        return flat.scatter_add_(2, places.flatten(2), values.flatten(2)).view(self.run.shape)


_POOL_OPTIONS = ("kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices")
