"""Layer-wise relevance propagation through transformers: the target's logit, handed back until it lies on attention or image.

Written as a mode (see `rules`): each torch function that the model calls gets, in place of its derivative, a rule that says
how the relevance of its output is shared out among its inputs. A function for which there is no rule is an error, never a
guess. All sums are taken image by image, so that a batch gives the maps of its images one by one.

Relevance is divided by sums that may nearly cancel, a + b where a branch undoes the other, or Q K': there, single precision
shows in the map, for some pictures of a trained network as a third of its maximum. So weights and images are brought to
double precision for the pass that hands relevance down, on devices that have it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from heatproof.errors import ModelError
from heatproof.methods import options, rows
from heatproof.methods.attention import first_row, patches
from heatproof.methods.cam import INTERPOLATIONS, to_image_size
from heatproof.methods.lrp import (
    MEANS,
    MOVES,
    SUMS,
    WITH_CONSTANT,
    Sum,
    Term,
    away_from_zero,
    hands_on,
    one_to_one,
    shared_out,
)
from heatproof.methods.rules import CHOICES, ELEMENTWISE, Rule, check_operations, multi_head, named, replaced
from heatproof.models.attention import Block, attention
from heatproof.models.targets import network_and_scalar
from heatproof.models.transformers import architecture_of

RESULTS_VERSION = 1  # to be raised when numbers change, also by a change in rows, rules, lrp or models.attention

EPSILON = 1e-9
"""Keeps denominators from zero."""

FORMS = ("attribution", "rollout", "last_layer", "last_layer_attention")

Visit = Callable[[Tensor], None]
"""Is told the relevance (B, A, T, T) of each layer of attention, from the last to the first."""


@dataclass(frozen=True)
class TransformerAttribution:
    """Transformer attribution: relevance of attention times its positive gradient, gathered through the skip connections.

    R, the relevance of a block's attention probabilities, comes from a logit of relevance 1, handed down by these rules:

    - linear: in proportion to what speaks for the output, max(w, 0) max(x, 0) + min(w, 0) min(x, 0); no bias;
    - sum of branches a + b: in proportion to a and b, then each branch scaled so that the totals of both keep the whole
      and stand as their amounts do;
    - product (P V, Q K'): to each factor half, in proportion to the terms;
    - activations, layer norm, softmax and constant factors hand on all they get.

    For each block C = mean over the heads of max(G * R, 0); the map is the read-out row of (I + C_L) ... (I + C_1), not scaled.

    Args:
        model: vision transformer, (N, C, H, W) -> (N, K) logits.
        form: "attribution", or what the paper compares it with: "rollout" (the same with C = mean of max(R, 0)), "last_layer"
            (the read-out row of the last block's C of rollout) or "last_layer_attention" (that of its attention, which
            knows no class).
        interpolation: "bilinear" or "nearest", from patches to pixels.
        compat: in the model's own precision, as published (half precision in single).

    Raises:
        ModelError: where the model is no vision transformer that is known; on the call, where it calls a function that has
            no rule.

    Reference:
        Chefer, Gur, Wolf: "Transformer interpretability beyond attention visualization", CVPR 2021, arXiv:2012.09838.
    """

    model: nn.Module
    form: str = "attribution"
    interpolation: str = "bilinear"
    compat: bool = False

    def __post_init__(self) -> None:
        options.one_of(self, "form", self.form, FORMS)
        options.one_of(self, "interpolation", self.interpolation, INTERPOLATIONS)
        architecture_of(self.model)

    def patch_maps(self, images: Tensor, targets: Tensor) -> Tensor:
        """Explains the logits of `targets` (N,): maps (N, h, w), one value for each patch."""
        rows.check_batch(images, targets)
        with attention(self.model, gradients=self.form == "attribution") as record:
            scores = rows.chosen(rows.logits_of(self.model, images.detach().clone()), targets)
            if self.form == "attribution":
                record.backward(scores)
        row, pool = record.readout()[:, None], record.pool
        if self.form == "last_layer_attention":
            return patches(row if pool else row @ record[-1].probabilities.mean(dim=1), record)
        layers: list[Block] = [*record, pool] if pool else list(record)
        last = layers[-1]

        def visit(relevance: Tensor) -> None:
            nonlocal row
            layer = layers.pop()
            if layer is pool:
                row = first_row(record, lambda _: self._fused(layer, relevance).to(row))
            elif self.form != "last_layer":
                row = row + row @ self._fused(layer, relevance).to(row)
            elif layer is last:
                row = row @ self._fused(layer, relevance).to(row)

        propagated(self.model, images, targets, visit, layers=len(layers), double=not self.compat)
        return patches(row, record)

    def _fused(self, layer: Block, relevance: Tensor) -> Tensor:
        """C, (B, T, T)."""
        weighted = layer.gradient * relevance if self.form == "attribution" else relevance
        return weighted.clamp(min=0).mean(dim=1)

    def __call__(self, images: Tensor, targets: Tensor) -> Tensor:
        """Explains the logits of `targets` (N,) for `images` (N, C, H, W): maps (N, H, W), float32, >= 0."""
        return to_image_size(self.patch_maps(images, targets), images, self.interpolation)


@dataclass(frozen=True)
class TransformerLrp:
    """Layer-wise relevance propagation through a transformer down to the pixels.

    The rules of `TransformerAttribution`; positions and the class token take their share and keep it. The patches' projection
    follows the rule for bounded inputs: a pixel x counts with w x - max(w, 0) l - min(w, 0) h, where l and h are the image's
    smallest and largest value. The sum over channels; signed.

    Args:
        model: classifier that calls attention, (N, C, H, W) -> (N, K) logits; it need not be one that `models.attention` knows.
        compat: in the model's own precision, as published (half precision in single).

    Raises:
        ModelError: on the call, where the model calls no attention, or a function that has no rule.

    Reference:
        Chefer, Gur, Wolf: "Transformer interpretability beyond attention visualization", CVPR 2021, arXiv:2012.09838;
        bounded inputs: Montavon et al., Pattern Recognition 65 (2017), arXiv:1512.02479.
    """

    model: nn.Module
    compat: bool = False

    def __call__(self, images: Tensor, targets: Tensor) -> Tensor:
        """Explains the logits of `targets` (N,) for `images` (N, C, H, W): maps (N, H, W), float32, signed."""
        rows.check_batch(images, targets)
        relevance = propagated(self.model, images, targets, lambda _: None, double=not self.compat)
        return relevance.sum(dim=1).float()


def propagated(
    model: nn.Module, images: Tensor, targets: Tensor, visit: Visit, *, layers: int | None = None, double: bool = True
) -> Tensor:
    """Hands relevance 1 of the targets' logits down.

    Of a `Retargeted` model, what begins is the gradient of its scalar at the outputs where it is positive: of a difference,
    the first class. (Gradients of attention are those of the difference all the same.)

    Args:
        model: (N, C, H, W) -> (N, K) logits.
        images: (N, C, H, W).
        targets: (N,).
        visit: called on the way; memory for one layer's matrices is needed at once.
        layers: how many layers of attention are to be visited, which is all that is wanted; None: relevance of the pixels is.
        double: in double precision, where the device has it; else in single where the images have less.

    Returns:
        Relevance (N, C, H, W) of the pixels; with `layers`, (N, D, h, w) of what the patches' projection gives.

    Raises:
        ModelError: where the model calls no attention, or another number of times than `layers`, or a function without rule.
    """
    wanted = torch.float64 if double and images.device.type != "mps" else torch.float32
    dtype = torch.promote_types(images.dtype, wanted)
    network, scalar = network_and_scalar(model)
    with rows.explaining(model):
        inputs = images.detach().to(dtype)
        inputs = rows.leaf(inputs) if layers is None else inputs
        with _Relevance(visit) as mode:
            outputs = rows.logits_of(_InPrecision(network, dtype), inputs.clone())
        if not mode.attended:
            raise ModelError(
                f"{type(model).__name__}: calls no attention to explain; methods.gradient.Lrp fits convolutional networks"
            )
        start = inputs if layers is None else mode.start
        if layers not in (None, mode.attended) or start is None:
            raise ModelError(f"{type(model).__name__}: calls attention {mode.attended} times; {layers} are known")
        scores = rows.chosen(scalar(outputs), targets)
        rows.check_reached(model, scores, start)
        check_operations("transformer LRP", network, outputs, start, hands_on)
        (weights,) = torch.autograd.grad(scores.sum(), outputs, retain_graph=True)
        # With both signs the totals would cancel, and with them, where branches meet, all relevance.
        return torch.autograd.grad(outputs, start, grad_outputs=weights.clamp(min=0))[0]


class _InPrecision(nn.Module):
    """A model that runs with its weights in another precision and stays as it is."""

    def __init__(self, model: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.model = model
        self.dtype = dtype
        state = chain(model.named_parameters(), model.named_buffers())
        self.state = {
            name: value.to(dtype) for name, value in state if value.is_floating_point() and value.dtype != dtype
        }

    def forward(self, images: Tensor) -> Any:
        """What the model gives."""
        return torch.func.functional_call(self.model, self.state, (images,))


_PRODUCTS = frozenset({"matmul", "__matmul__", "bmm"})
_FACTORS = frozenset({"mul", "__mul__"})
_PASSED_ON = ELEMENTWISE | CHOICES | {"layer_norm", "rms_norm"}


class _Relevance(TorchFunctionMode):
    """Gives each function its rule while the model runs inside."""

    def __init__(self, visit: Visit) -> None:
        super().__init__()
        self.visit = visit
        self.attended = 0
        self.start: Tensor | None = None  # what the first convolution gave, where no relevance is handed to the images

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Sees each torch function that the model calls."""
        call = named(func, args, kwargs)
        name, _, args, kwargs, attached = call
        if name == "multi_head_attention_forward":
            return multi_head(lambda *split: self._attention(None, *split), _linear, *args, **kwargs)
        if name == "scaled_dot_product_attention":
            return self._attention(func, *args, **kwargs)
        if name == "conv2d" and self.start is None:
            return self._patches(func, *args, **kwargs)
        if attached == [0] and name == "linear":
            return _linear(*args, **kwargs)
        if attached == [0] and name == "softmax":
            self.attended += 1
            return replaced(args[0], lambda x: func(x, *args[1:], **kwargs), _telling(self.visit))
        if attached == [0, 1] and name in _PRODUCTS | _FACTORS:
            return _Product.apply(*args, func)
        if attached == [0] and name in MEANS:
            return _mean(lambda x: func(x, *args[1:], **kwargs), args[0])
        if attached and name in SUMS and isinstance(args[1 - attached[0]], Tensor):
            return _Branches.apply(*args[:2], lambda a, b: func(a, b, *args[2:], **kwargs), EPSILON)
        if len(attached) == 1 and name in _PASSED_ON | WITH_CONSTANT:
            return one_to_one(call)
        output = func(*args, **kwargs)
        if name not in MOVES and isinstance(output, Tensor) and output.requires_grad:
            raise ModelError(
                f"transformer LRP: has no rule for {name!r}, which the model calls; methods.gradient.Lrp fits convolutional "
                "networks, methods.attention.StopGradient and Chefer other transformers"
            )
        return output

    def _patches(
        self, func: Any, x: Tensor, weight: Tensor, bias: Tensor | None = None, *rest: Any, **named: Any
    ) -> Tensor:
        def call(x: Tensor, weight: Tensor) -> Tensor:
            output: Tensor = func(x, weight, None, *rest, **named)
            return output

        def terms() -> list[Term]:
            pixels = x.detach()
            low, high = (
                extreme(pixels, (1, 2, 3), keepdim=True).expand_as(pixels) for extreme in (torch.amin, torch.amax)
            )
            return [
                Term(pixels, lambda x: call(x, weight)),
                Term(low, lambda x: -call(x, weight.clamp(min=0))),
                Term(high, lambda x: -call(x, weight.clamp(max=0))),
            ]

        if x.requires_grad:
            self.start = x
            return shared_out(x, lambda x: func(x, weight, bias, *rest, **named), terms, EPSILON)
        self.start = func(x, weight, bias, *rest, **named).requires_grad_()
        return self.start.clone()  # what follows may work in place

    def _attention(
        self, func: Any, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None,
        dropout_p: float = 0.0, is_causal: bool = False, **named: Any,
    ) -> Tensor:  # fmt: skip
        if attn_mask is not None or is_causal or named.get("enable_gqa"):
            raise ModelError(
                "transformer LRP: has no rule for attention with a mask or shared keys; use another method"
            )
        self.attended += 1
        scale = named.get("scale") or query.shape[-1] ** -0.5
        output: Tensor = _Attention.apply(query, key, value, scale, self.visit)
        return output


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    kept = x.detach()

    def rule(relevance: Tensor) -> Tensor:
        tokens = kept.flatten(0, -2)
        up, down = weight.clamp(min=0), weight.clamp(max=0)
        above, below = tokens.clamp(min=0), tokens.clamp(max=0)
        ratio = relevance.flatten(0, -2) / away_from_zero(above @ up.T + below @ down.T, EPSILON)
        return (above * (ratio @ up) + below * (ratio @ down)).view(kept.shape)

    return replaced(x, lambda x: functional.linear(x, weight, bias), rule)


def _mean(call: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    kept = x.detach().clone()
    return shared_out(x, call, lambda: [Term(kept, call)], EPSILON)


def _telling(visit: Visit) -> Callable[[Tensor], Tensor]:
    def rule(relevance: Tensor) -> Tensor:
        visit(relevance)
        return relevance

    return rule


class _Branches(Sum):
    """a + b, whose relevance is shared out in proportion to a and b, so that large amounts may cancel.

    Then each part is scaled as a whole, image by image: together they hold what arrived, and stand to each other as the
    amounts of their sums do.
    """

    @staticmethod
    def backward(ctx: Any, *relevances: Tensor) -> tuple[Tensor, Tensor, None, None]:
        """What arrives, times the shares, each scaled as a whole."""
        (relevance,) = relevances
        parts = [relevance * share for share in ctx.shares]
        totals = [_total(part) for part in parts]
        factor = _total(relevance) / away_from_zero(totals[0].abs() + totals[1].abs(), EPSILON)
        scaled = (part * total.sign() * factor for part, total in zip(parts, totals, strict=True))
        a, b = (part.sum_to_size(shape) for part, shape in zip(scaled, ctx.shapes, strict=True))
        return a, b, None, None


def _total(values: Tensor) -> Tensor:
    """Each image's sum, with as many axes as the values."""
    return values.sum(dim=tuple(range(1, values.ndim)), keepdim=True)


class _Product(Rule):
    """A product of two activations, each of which gets half of the relevance, in proportion to the terms."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, call: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """Keeps the factors."""
        ctx.save_for_backward(a, b)
        ctx.call = call
        return call(a, b)

    @staticmethod
    def backward(ctx: Any, *relevances: Tensor) -> tuple[Tensor, Tensor, None]:
        """Multiplies once more."""
        a, b = ctx.saved_tensors
        return *_halves(ctx.call, a, b, relevances[0]), None


class _Attention(Rule):
    """softmax(Q K' scale) V, whose matrices are there for one layer at a time.

    No fused kernel: relevance is divided by what the layers give, and where that nearly cancels, another order of rounding
    would show in the map.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, scale: float, visit: Visit) -> Tensor:
        """Keeps what attention is computed from."""
        ctx.save_for_backward(query, key, value)
        ctx.scale, ctx.visit = scale, visit
        return _probabilities(query, key, scale) @ value

    @staticmethod
    def backward(ctx: Any, *relevances: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        """Tells the relevance of the probabilities."""
        query, key, value = ctx.saved_tensors
        of_probabilities, of_value = _halves(torch.matmul, _probabilities(query, key, ctx.scale), value, relevances[0])
        ctx.visit(of_probabilities)
        of_query, of_key = _halves(torch.matmul, query, key.transpose(-2, -1), of_probabilities)
        if not ctx.needs_input_grad[0]:  # what asks is a constant: the keys get all
            of_key = 2 * of_key
        return of_query, of_key.transpose(-2, -1), of_value, None, None


def _probabilities(query: Tensor, key: Tensor, scale: float) -> Tensor:
    return (query @ key.transpose(-2, -1)).mul_(scale).softmax(dim=-1)


def _halves(call: Callable[[Tensor, Tensor], Tensor], a: Tensor, b: Tensor, relevance: Tensor) -> tuple[Tensor, Tensor]:
    """The relevance of the factors of `call(a, b)`."""
    with torch.enable_grad():
        a, b = a.detach().requires_grad_(), b.detach().requires_grad_()
        y = call(a, b)
    shares = torch.autograd.grad(y, (a, b), relevance / away_from_zero(y.detach(), EPSILON))
    return a.detach() * shares[0] / 2, b.detach() * shares[1] / 2
