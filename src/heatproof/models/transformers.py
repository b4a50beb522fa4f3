"""What the methods must know of a vision transformer: where its attention stands, and how its head reads the tokens.

Known are torchvision's, timm's and Hugging Face's vision transformers and what is derived from them or wraps them. No library
is imported to recognise its models.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from heatproof.errors import ModelError
from heatproof.models.outputs import outputs_of
from heatproof.models.targets import Retargeted

Pooled = Literal["class", "patches", "all"]


@dataclass(frozen=True)
class Projection:
    """A linear layer (A * d, D) from tokens to heads, with the norm over d that follows it where the model has one."""

    weight: Tensor
    bias: Tensor | None
    norm: nn.Module | None = None

    def __call__(self, tokens: Tensor, heads: int) -> Tensor:
        """Tokens (B, T, D) -> (B, A, T, d), in the dtype of the tokens."""
        split = split_heads(linear(self.weight, self.bias, tokens), heads)
        return split if self.norm is None else applied(self.norm, split)


@dataclass(frozen=True)
class AttentionLayer:
    """Where a model keeps one layer of attention.

    Args:
        name: of the module, as in `model.named_modules()`.
        source: the module whose first argument is X (B, T, D).
        sink: the module whose output is Y (B, T, D), or a tuple that begins with it; often the same one.
        query: the projection to Q.
        key: the projection to K.
        value: the projection to V.
        output: W_o (D, A * d) of the projection behind the heads.
        heads: A.
        scale: factor of Q K', 1 / sqrt(d).
        norm: over A * d, between the heads and W_o, where the model has one.
        gate: linear layer of X whose sigmoid multiplies what goes into W_o, where the model has one.
        latent: (1, L, D), the tokens that ask in place of X, in an attention pool.
    """

    name: str
    source: nn.Module
    sink: nn.Module
    query: Projection
    key: Projection
    value: Projection
    output: Tensor
    heads: int
    scale: float
    norm: nn.Module | None = None
    gate: nn.Linear | None = None
    latent: Tensor | None = None


@dataclass(frozen=True)
class Architecture:
    """What the methods must know of a vision transformer.

    Args:
        projection: the module that makes patches: (B, C, H, W) -> (B, D, h, w).
        layers: the blocks' attention, the first at the image.
        blocks: the blocks themselves, whose outputs are the tokens (B, T, D).
        head: tokens (B, T, D) of a block -> logits (B, K): final norm, pooling, classifier.
        pooled: which rows the head reads: the first token, or the mean of the patches or of all tokens.
        pool: the attention pool that the head reads with, where it has one.
    """

    projection: nn.Module
    layers: tuple[AttentionLayer, ...]
    blocks: tuple[nn.Module, ...]
    head: Callable[[Tensor], Tensor]
    pooled: Pooled
    pool: AttentionLayer | None = None


def architecture_of(model: nn.Module) -> Architecture:
    """Finds the vision transformer in a model.

    Raises:
        ModelError: where there is none that is known, or its attention is of another kind.
    """
    if isinstance(model, Retargeted):
        inside = architecture_of(model.model)
        return replace(inside, head=lambda tokens: model.of_outputs(inside.head(tokens)))
    reading = outputs_of(model)
    if reading is not None and reading.changes:
        inside = _architecture_of(model)
        return replace(inside, head=lambda tokens: reading.logits(inside.head(tokens)))
    return _architecture_of(model)


def _architecture_of(model: nn.Module) -> Architecture:
    for module in model.modules():
        kinds = {f"{kind.__module__}.{kind.__qualname__}" for kind in type(module).__mro__}
        for known, read in _FAMILIES.items():
            if known in kinds:
                return read(module, _names(model))
        if any(_is_hugging_face(kind) for kind in type(module).__mro__):
            return _hugging_face(module, _names(model))
    raise ModelError(
        f"{type(model).__name__}: is no vision transformer that is known (torchvision's and timm's VisionTransformer; "
        f"Hugging Face's {', '.join(_HUGGING_FACE)} for image classification), so it has no attention to explain; "
        "methods.cam, methods.gradient and methods.perturbation fit any network"
    )


def _torchvision(vit: Any, names: dict[nn.Module, str]) -> Architecture:
    blocks = tuple(vit.encoder.layers)
    return Architecture(
        projection=vit.conv_proj,
        layers=tuple(_multihead(block.self_attention, names) for block in blocks),
        blocks=blocks,
        head=lambda tokens: vit.heads(vit.encoder.ln(tokens)[:, 0]),
        pooled="class",
    )


def _multihead(module: nn.Module, names: dict[nn.Module, str]) -> AttentionLayer:
    if type(module) is not nn.MultiheadAttention or not module.batch_first or module.in_proj_weight is None:
        raise _unknown_attention(module, names)
    if module.bias_k is not None or module.add_zero_attn:
        raise _unknown_attention(module, names)
    biases = (None,) * 3 if module.in_proj_bias is None else module.in_proj_bias.chunk(3)
    query, key, value = map(Projection, module.in_proj_weight.chunk(3), biases)
    return AttentionLayer(
        names[module], module, module, query, key, value,
        output=module.out_proj.weight, heads=module.num_heads, scale=module.head_dim**-0.5,
    )  # fmt: skip


def _timm(vit: Any, names: dict[nn.Module, str]) -> Architecture:
    blocks = tuple(vit.blocks)
    pool = None
    if getattr(vit, "attn_pool", None) is not None:
        pool = _timm_pool(vit.attn_pool, names)
    elif vit.global_pool not in ("token", "avg"):
        raise ModelError(
            f"{type(vit).__name__}: pools by {vit.global_pool!r}; known are 'token', 'avg' and 'map', whose rows can be told"
        )
    pooled: Pooled = (
        "class" if vit.global_pool == "token" else "all" if getattr(vit, "pool_include_prefix", False) else "patches"
    )
    return Architecture(
        projection=vit.patch_embed.proj,
        layers=tuple(_timm_attention(getattr(block, "attn", block), names) for block in blocks),
        blocks=blocks,
        head=lambda tokens: vit.forward_head(vit.norm(tokens)),
        pooled=pooled,
        pool=pool,
    )


def _ours(vit: Any, names: dict[nn.Module, str]) -> Architecture:
    blocks = tuple(vit.blocks)
    return Architecture(
        projection=vit.patch_embed.proj,
        layers=tuple(_timm_attention(block.attn, names) for block in blocks),
        blocks=blocks,
        head=lambda tokens: vit.head(vit.norm(tokens)[:, 0]),
        pooled="class",
    )


# Before timm 1.0.18 the class stood beside the model. Ours has timm's names.
_TIMM_ATTENTION = (
    "timm.layers.attention.Attention", "timm.models.vision_transformer.Attention", "heatproof.models.vit.Attention"
)  # fmt: skip


def _timm_attention(module: Any, names: dict[nn.Module, str]) -> AttentionLayer:
    if f"{type(module).__module__}.{type(module).__qualname__}" not in _TIMM_ATTENTION:
        raise _unknown_attention(module, names)
    weights = module.qkv.weight.chunk(3)
    biases = (None,) * 3 if module.qkv.bias is None else module.qkv.bias.chunk(3)
    norms = (_norm(getattr(module, "q_norm", None)), _norm(getattr(module, "k_norm", None)), None)
    query, key, value = map(Projection, weights, biases, norms)
    return AttentionLayer(
        names[module], module, module, query, key, value,
        output=module.proj.weight, heads=module.num_heads, scale=module.scale,
        norm=_norm(getattr(module, "norm", None)), gate=getattr(module, "gate", None),
    )  # fmt: skip


def _timm_pool(module: Any, names: dict[nn.Module, str]) -> AttentionLayer:
    if type(module).__name__ != "AttentionPoolLatent" or not isinstance(module.proj, nn.Linear):
        raise _unknown_attention(module, names)
    if module.latent_len != 1 or not isinstance(module.q, nn.Linear):
        raise _unknown_attention(module, names)
    weights = module.kv.weight.chunk(2)
    biases = (None,) * 2 if module.kv.bias is None else module.kv.bias.chunk(2)
    return AttentionLayer(
        names[module], module.kv, module.proj,
        query=Projection(module.q.weight, module.q.bias, _norm(module.q_norm)),
        key=Projection(weights[0], biases[0], _norm(module.k_norm)), value=Projection(weights[1], biases[1]),
        output=module.proj.weight, heads=module.num_heads, scale=module.scale, latent=module.latent,
    )  # fmt: skip


_FAMILIES: dict[str, Callable[[Any, dict[nn.Module, str]], Architecture]] = {
    "torchvision.models.vision_transformer.VisionTransformer": _torchvision,
    "timm.models.vision_transformer.VisionTransformer": _timm,
    "heatproof.models.vit.ViTTiny": _ours,
}


_HUGGING_FACE = ("ViT", "DeiT", "Dinov2", "Dinov2WithRegisters", "ViTMSN", "IJepa")


def _is_hugging_face(kind: type) -> bool:
    known = {
        f"{name}For{task}"
        for name in _HUGGING_FACE
        for task in ("ImageClassification", "ImageClassificationWithTeacher")
    }
    return kind.__module__.startswith("transformers.models.") and kind.__name__ in known


def _hugging_face(vit: Any, names: dict[nn.Module, str]) -> Architecture:
    base = getattr(vit, vit.base_model_prefix)
    # The encoder went from encoder.layer (4.x) to layers (5.x) in most models, not in DINOv2.
    blocks = tuple(base.layers if hasattr(base, "layers") else base.encoder.layer)
    return Architecture(
        projection=base.embeddings.patch_embeddings.projection,
        layers=tuple(_hugging_face_attention(block.attention, names) for block in blocks),
        blocks=blocks,
        head=_hugging_face_head(vit, base.layernorm),
        pooled="class" if hasattr(base.embeddings, "cls_token") and type(vit).__name__[:5] != "IJepa" else "all",
    )


def _hugging_face_attention(module: Any, names: dict[nn.Module, str]) -> AttentionLayer:
    if hasattr(module, "q_proj"):  # 5.x
        parts, out, heads, scale = (module.q_proj, module.k_proj, module.v_proj), module.o_proj, module, module.scaling
    elif hasattr(module, "attention") and hasattr(module.attention, "query"):  # 4.x
        heads = module.attention
        parts, out = (heads.query, heads.key, heads.value), module.output.dense
        scale = heads.attention_head_size**-0.5
    else:
        raise _unknown_attention(module, names)
    query, key, value = (Projection(part.weight, part.bias) for part in parts)
    return AttentionLayer(
        names[module], module, module, query, key, value,
        output=out.weight, heads=heads.num_attention_heads, scale=scale,
    )  # fmt: skip


def _hugging_face_head(vit: Any, norm: nn.Module) -> Callable[[Tensor], Tensor]:
    def head(tokens: Tensor) -> Tensor:
        tokens = norm(tokens)
        if hasattr(vit, "distillation_classifier"):
            logits: Tensor = (vit.cls_classifier(tokens[:, 0]) + vit.distillation_classifier(tokens[:, 1])) / 2
            return logits
        if type(vit).__name__.startswith("Dinov2"):
            first = 1 + getattr(vit.config, "num_register_tokens", 0)
            return vit.classifier(torch.cat((tokens[:, 0], tokens[:, first:].mean(dim=1)), dim=1))  # type: ignore[no-any-return]
        pooled = tokens.mean(dim=1) if type(vit).__name__.startswith("IJepa") else tokens[:, 0]
        return vit.classifier(pooled)  # type: ignore[no-any-return]

    return head


def _unknown_attention(module: nn.Module, names: dict[nn.Module, str]) -> ModelError:
    return ModelError(
        f"attention: {names.get(module, '?')!r} is a {type(module).__module__}.{type(module).__qualname__}, whose attention "
        "is computed in a way that is not known here; methods.cam, methods.gradient and methods.perturbation fit any network"
    )


def _names(model: nn.Module) -> dict[nn.Module, str]:
    return {module: name for name, module in model.named_modules()}


def _norm(module: nn.Module | None) -> nn.Module | None:
    return None if isinstance(module, nn.Identity) else module


def split_heads(merged: Tensor, heads: int) -> Tensor:
    """(B, T, A * d) -> (B, A, T, d)."""
    split: Tensor = merged.unflatten(2, (heads, -1))
    return split.transpose(1, 2)


def linear(weight: Tensor, bias: Tensor | None, x: Tensor) -> Tensor:
    """The linear layer's value at x in the dtype of x."""
    return functional.linear(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype))


def applied(module: nn.Module, x: Tensor) -> Tensor:
    """The module's value at x with its parameters in the dtype of x."""
    state = {name: value.to(x.dtype) for name, value in module.state_dict().items() if value.is_floating_point()}
    output: Tensor = torch.func.functional_call(module, state, (x,))
    return output
