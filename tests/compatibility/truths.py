"""True maps by other ways than Heatproof's: autograd, differences of logits, formulas of the papers in plain torch.

Nothing here imports Heatproof's methods or models.
"""

import contextlib
import itertools
from collections.abc import Callable, Iterator
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

STEPS = 8


def logit(model: nn.Module, images: Tensor, target: int) -> Tensor:
    return model(images)[:, target]


def gradient(model: nn.Module, images: Tensor, target: int) -> Tensor:
    """One image twice: in a batch of one, torch's gradient of batch norms is wrong (`NormOfTokens` in tests/models/test_hooks.py)."""
    inputs = (images.clone() if len(images) > 1 else torch.cat([images, images])).requires_grad_()
    return torch.autograd.grad(logit(model, inputs.clone(), target).sum(), inputs)[0][: len(images)]


def difference(model: nn.Module, image: Tensor, target: int) -> float:
    """Logit of the image without that of the mean colour."""
    with torch.no_grad():
        return float(logit(model, image, target) - logit(model, torch.zeros_like(image), target))


def integrated(model: nn.Module, image: Tensor, target: int) -> Tensor:
    points, weights = np.polynomial.legendre.leggauss(STEPS)
    line = torch.cat([image * float((1 + point) / 2) for point in points])
    return image * (gradient(model, line, target) * torch.tensor(weights / 2).float()[:, None, None, None]).sum(dim=0)


class _Cut(torch.autograd.Function):
    """A function whose gradient is cut by a rule."""

    @staticmethod
    def forward(ctx, x, call, rule):
        y = call(x.clone())
        ctx.save_for_backward(x, y)
        ctx.rule = rule
        return y

    @staticmethod
    def backward(ctx, gradient):
        return ctx.rule(gradient, *ctx.saved_tensors), None, None


RELUS = {"relu": functional.relu, "relu6": functional.relu6, "hardtanh": functional.hardtanh}
SMOOTH = {
    name: getattr(functional, name) for name in ("silu", "gelu", "hardswish", "hardsigmoid", "sigmoid", "softplus")
}


@contextlib.contextmanager
def with_rule(rule: Callable[..., Tensor], functions: dict[str, Callable[..., Tensor]]) -> Iterator[None]:
    """Functions of `torch.nn.functional` with another backward pass."""

    def changed(function):
        return lambda x, *args, **kwargs: _Cut.apply(
            x, lambda y: function(y, *args, **{**kwargs, "inplace": False} if "inplace" in kwargs else kwargs), rule
        )

    with contextlib.ExitStack() as stack:
        for name, function in functions.items():
            stack.enter_context(mock.patch.object(functional, name, changed(function)))
        if "relu" in functions:
            stack.enter_context(mock.patch.object(torch, "relu", changed(torch.relu)))
            stack.enter_context(mock.patch.object(Tensor, "relu", changed(torch.relu)))
        yield


def guided(model: nn.Module, image: Tensor, target: int) -> Tensor:
    def rule(g, x, y):
        return g.clamp(min=0) * (x > 0) * (y == x)

    with with_rule(rule, RELUS):
        return gradient(model, image, target)


def deconvolution(model: nn.Module, image: Tensor, target: int) -> Tensor:
    with with_rule(lambda g, x, y: g.clamp(min=0), RELUS):
        return gradient(model, image, target)


def _share(g: Tensor, x: Tensor, y: Tensor) -> Tensor:
    return g * torch.where(x == 0, 0.5, y / torch.where(x == 0, 1.0, x))


def lrp_zero(model: nn.Module, image: Tensor, target: int) -> Tensor | None:
    """LRP-0 is image times gradient, with y / x in place of each activation's derivative.

    None where a batch norm follows no convolution: there relevance is handed on, which is no multiplier where the input is 0.
    """
    plain, alone = functional.batch_norm, []

    def norm(x, *args, **kwargs):
        alone.append("Convolution" not in x.grad_fn.name())
        return plain(x, *args, **kwargs)

    with mock.patch.object(functional, "batch_norm", norm):
        gradient(model, image, target)
    if any(alone):
        return None
    with with_rule(_share, RELUS | SMOOTH):
        return image * gradient(model, image, target)


def stop_gradient(model: nn.Module, image: Tensor, target: int) -> Tensor:
    """Image times gradient with attention, the deviations of layer norms and activation over input as constants."""
    attend, softmax = functional.scaled_dot_product_attention, Tensor.softmax

    def norm(x, shape, weight=None, bias=None, eps=1e-5):
        axes = tuple(range(-len(shape), 0))
        x = x - x.mean(dim=axes, keepdim=True)
        y = x / (x.detach().square().mean(dim=axes, keepdim=True) + eps).sqrt()
        return (y if weight is None else y * weight) + (0 if bias is None else bias)

    with contextlib.ExitStack() as stack:
        stack.enter_context(with_rule(_share, {name: SMOOTH[name] for name in ("silu", "gelu")}))
        for place, name, function in (
            (functional, "layer_norm", norm),
            (
                functional,
                "scaled_dot_product_attention",
                lambda q, k, v, *a, **o: attend(q.detach(), k.detach(), v, *a, **o),
            ),
            (Tensor, "softmax", lambda x, *a, **o: softmax(x, *a, **o).detach()),
        ):
            stack.enter_context(mock.patch.object(place, name, function))
        return image * gradient(model, image, target)


# --- layers


def at_layer(model: nn.Module, image: Tensor, target: int, layer: str, layout: str) -> tuple[Tensor, Tensor]:
    """Activations and gradients of a layer, (C, h, w)."""
    kept = []

    def keep(module, arguments, output):
        output = output[0] if isinstance(output, tuple) else output
        kept.append(output.clone())
        return kept[-1].view_as(kept[-1])

    handle = dict(model.named_modules())[layer].register_forward_hook(keep)
    score = logit(model, torch.cat([image, image]), target)
    handle.remove()
    gradients = torch.autograd.grad(score.sum(), kept[-1])[0]
    return as_grid(kept[-1].detach(), layout), as_grid(gradients, layout)


def as_grid(values: Tensor, layout: str) -> Tensor:
    values = values[0]
    if layout == "NHWC":
        return values.permute(2, 0, 1)
    if layout.startswith("tokens"):
        values = values[int(layout.partition(":")[2]) :]
        side = round(len(values) ** 0.5)
        return values.T.reshape(-1, side, side)
    return values


def enlarged(map_: Tensor, image: Tensor, mode: str = "bilinear") -> Tensor:
    return functional.interpolate(map_[None, None], size=image.shape[2:], mode=mode)[0, 0]


def grad_cam(a: Tensor, g: Tensor) -> Tensor:
    """Without the clip at zero, which leaves nothing of some drawn networks' maps."""
    return torch.einsum("c,chw->hw", g.mean(dim=(1, 2)), a)


def grad_cam_plus_plus(a: Tensor, g: Tensor) -> Tensor:
    a, g = a.double(), g.double()
    below = 2 * g**2 + g**3 * a.sum(dim=(1, 2), keepdim=True)
    alpha = torch.where(below == 0, 0.0, g**2 / torch.where(below == 0, 1.0, below))
    return torch.einsum("c,chw->hw", (alpha * g.clamp(min=0)).sum(dim=(1, 2)), a).clamp(min=0).float()


def layer_cam(a: Tensor, g: Tensor) -> Tensor:
    return (a * g.clamp(min=0)).sum(dim=0).clamp(min=0)


def eigen_cam(a: Tensor, g: Tensor) -> Tensor:
    matrix = a.flatten(1).T.double()
    projected = matrix @ torch.linalg.svd(matrix, full_matrices=False)[2][0]
    return (projected * projected.sum().sign()).reshape(a.shape[1:]).float()


# --- perturbation


def quarters(side: int) -> list[tuple[slice, slice]]:
    halves = slice(0, -(-side // 2)), slice(-(-side // 2), side)
    return list(itertools.product(halves, halves))


def occlusion(model: nn.Module, image: Tensor, target: int) -> Tensor:
    """How much the logit falls where a quarter has the mean colour."""
    found = torch.zeros(image.shape[2:])
    with torch.no_grad():
        whole = logit(model, image, target)
        for rows, columns in quarters(image.shape[2]):
            covered = image.clone()
            covered[:, :, rows, columns] = 0
            found[rows, columns] = whole - logit(model, covered, target)
    return found


# --- attention


@contextlib.contextmanager
def seen_attention() -> Iterator[list[Tensor]]:
    """The attention (1, A, T, T) of each call of fused attention, on autograd's graph."""
    kept: list[Tensor] = []

    def attend(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, **_):
        scores = query @ key.mT * (query.shape[-1] ** -0.5 if scale is None else scale)
        kept.append((scores if attn_mask is None else scores + attn_mask).softmax(dim=-1))
        return kept[-1] @ value

    with mock.patch.object(functional, "scaled_dot_product_attention", attend):
        yield kept


def attention(model: nn.Module, image: Tensor, target: int) -> tuple[list[Tensor], list[Tensor]]:
    """Attention and its gradients, (A, T, T) of each block."""
    with seen_attention() as kept:
        score = logit(model, torch.cat([image, image]).requires_grad_(), target)
    gradients = torch.autograd.grad(score.sum(), kept)
    return [each[0].detach() for each in kept], [each[0] for each in gradients]


def read_out(product: Tensor, layout: str) -> Tensor:
    """The row that the head reads, as a grid of patches: an attention pool's, the class token's, or the mean of the patches'."""
    prefix = int(layout.partition(":")[2])
    row = product[0] if prefix or len(product) == 1 else product.mean(dim=0)
    side = round(len(row[prefix:]) ** 0.5)
    return row[prefix:].reshape(side, side)


def rolled(weights: list[Tensor], *, scaled: bool) -> Tensor:
    """The product of I + W over the blocks' weights W (T, T), with rows scaled to sum to 1; an attention pool's W (1, T) has no I."""
    product = torch.eye(weights[0].shape[-1])
    for each in weights:
        if len(each) == len(product):
            each = each + torch.eye(len(each))
            each = each / each.sum(dim=-1, keepdim=True) if scaled else each
        product = each @ product
    return product


def rollout(a: list[Tensor], g: list[Tensor]) -> Tensor:
    return rolled([each.mean(dim=0) for each in a], scaled=True)


def gradient_rollout(a: list[Tensor], g: list[Tensor]) -> Tensor:
    return rolled([(each * weight).mean(dim=0).clamp(min=0) for each, weight in zip(a, g, strict=True)], scaled=True)


def chefer(a: list[Tensor], g: list[Tensor]) -> Tensor:
    return rolled([(each * weight).clamp(min=0).mean(dim=0) for each, weight in zip(a, g, strict=True)], scaled=False)
