"""The attention of a vision transformer, whoever wrote it, recomputed from what its attention modules take and give.

Fused kernels never make the attention probabilities that the methods ask for. So the model runs as it is; each attention
module's input X and, after a backward pass, the gradient Y' of its output are kept, and the rest follows in closed form,
block by block, when it is asked for (B images, A heads, T tokens of which the first P are no patches, d features in a head):

    Q, K, V = heads(X W' + b)              P  = softmax(Q K' / sqrt(d))     O' = heads(Y' W_o)
    dP      = O' V'                        dS = P * (dP - rowsum(P * dP))
    dQ      = dS K / sqrt(d)               dK = dS' Q / sqrt(d)             dV = P' O'

    with attention(model) as record:
        logits = model(images)                                  # the last forward pass counts
        record.backward(logits.gather(1, targets[:, None]))
        for block in reversed(record):                          # from the head to the image
            block.probabilities, block.gradient                 # (B, A, T, T)
            block.query_gradient                                # (B, A, T, d), likewise key and value
        record.grid, record.prefix, record.readout()            # (h, w), P, (B, T)

A block's tensors live as long as the block: walking over the record holds those of one block at a time. Known are
torchvision's, timm's and Hugging Face's vision transformers and what is derived from them or wraps them. No library is
imported to recognise its models.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from heatproof.errors import InputError, ModelError
from heatproof.models.hooks import frozen_eval
from heatproof.models.outputs import outputs_of
from heatproof.models.targets import Retargeted

Pooled = Literal["class", "patches", "all"]

HALF_PRECISION_SCALE = 2.0**10
"""Scores of float16 models are scaled by this on the way back, else small gradients vanish; a power of two is exact."""


@dataclass(frozen=True)
class Projection:
    """A linear layer (A * d, D) from tokens to heads, with the norm over d that follows it where the model has one."""

    weight: Tensor
    bias: Tensor | None
    norm: nn.Module | None = None

    def __call__(self, tokens: Tensor, heads: int) -> Tensor:
        """Tokens (B, T, D) -> (B, A, T, d), in the dtype of the tokens."""
        split = _split(_linear(self.weight, self.bias, tokens), heads)
        return split if self.norm is None else _applied(self.norm, split)


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


class Block:
    """One layer of attention in one forward pass; each quantity is computed when first asked for, in float32.

    float64 models stay in float64.

    Args:
        layer: where it stands in the model.
        tokens: X, (B, T, D).
        output_gradient: Y' (B, T, D) times `scale`; None before a backward pass.
        scale: what the explained scores were multiplied with.
    """

    def __init__(self, layer: AttentionLayer, tokens: Tensor, output_gradient: Tensor | None, scale: float) -> None:
        self.layer = layer
        self._tokens = tokens
        self._output_gradient = output_gradient
        self._scale = scale

    @cached_property
    def probabilities(self) -> Tensor:
        """Attention (B, A, T, T): how much of each token (column) a token (row) takes; rows sum to 1."""
        with _exactly(self._tokens):
            return (self.query @ self.key.transpose(-2, -1)).mul_(self.layer.scale).softmax(dim=-1)

    @cached_property
    def query(self) -> Tensor:
        """Q (B, A, T, d), after its norm where it has one."""
        asking = self._x if self.layer.latent is None else self.layer.latent.to(self._x).expand(len(self._x), -1, -1)
        with _exactly(self._tokens):
            return self.layer.query(asking, self.layer.heads)

    @cached_property
    def key(self) -> Tensor:
        """K (B, A, T, d), after its norm where it has one."""
        with _exactly(self._tokens):
            return self.layer.key(self._x, self.layer.heads)

    @cached_property
    def value(self) -> Tensor:
        """V (B, A, T, d)."""
        with _exactly(self._tokens):
            return self.layer.value(self._x, self.layer.heads)

    @cached_property
    def gradient(self) -> Tensor:
        """Gradient of the score with respect to the attention probabilities, (B, A, T, T)."""
        with _exactly(self._tokens):
            return self._head_gradient @ self.value.transpose(-2, -1)

    @cached_property
    def score_gradient(self) -> Tensor:
        """Gradient with respect to what the softmax takes, (B, A, T, T); its rows sum to 0."""
        with _exactly(self._tokens):
            products = self.probabilities * self.gradient
            return products - self.probabilities * products.sum(dim=-1, keepdim=True)

    @property
    def query_gradient(self) -> Tensor:
        """Gradient with respect to Q, (B, A, T, d)."""
        with _exactly(self._tokens):
            return self.score_gradient @ self.key * self.layer.scale

    @property
    def key_gradient(self) -> Tensor:
        """Gradient with respect to K, (B, A, T, d)."""
        with _exactly(self._tokens):
            return self.score_gradient.transpose(-2, -1) @ self.query * self.layer.scale

    @property
    def value_gradient(self) -> Tensor:
        """Gradient with respect to V, (B, A, T, d)."""
        with _exactly(self._tokens):
            return self.probabilities.transpose(-2, -1) @ self._head_gradient

    @property
    def _x(self) -> Tensor:
        return self._tokens.to(torch.promote_types(self._tokens.dtype, torch.float32))

    @cached_property
    def _head_gradient(self) -> Tensor:
        """O' (B, A, T, d): gradient of what each head gives, P V."""
        if self._output_gradient is None:
            raise InputError("attention: gradients are there after record.backward(scores) only")
        x, layer = self._x, self.layer
        with _exactly(self._tokens):
            merged = self._output_gradient.to(x.dtype).div(self._scale) @ layer.output.to(x.dtype)  # (B, T, A * d)
            if layer.gate is not None:
                merged = merged * _linear(layer.gate.weight, layer.gate.bias, x).sigmoid()
            if layer.norm is not None:
                given = (self.probabilities @ self.value).transpose(1, 2).flatten(2)
                merged = _gradient_through(layer.norm, given, merged)
            return _split(merged, layer.heads)


class Record(Sequence[Block]):
    """The attention of a model in its last forward pass: a sequence of blocks, the first at the image.

    Each access makes a new `Block`, so that none is kept longer than it is used.
    """

    def __init__(self, architecture: Architecture) -> None:
        self.architecture = architecture
        self._projected: Tensor | None = None  # its shape is what counts; without storage
        self._tokens: dict[str, Tensor] = {}
        self._outputs: dict[str, Tensor] = {}
        self._gradients: dict[str, Tensor] = {}
        self._scale = 1.0

    def __len__(self) -> int:
        return len(self.architecture.layers)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return self._block(self.architecture.layers[index])

    @property
    def pool(self) -> Block | None:
        """The attention pool behind the last block, where the model has one: one row (B, A, 1, T or T - P)."""
        layer = self.architecture.pool
        return None if layer is None else self._block(layer)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches (h, w)."""
        if self._projected is None:
            raise InputError("attention: the model has not run inside the block")
        height, width = self._projected.shape[2:]
        return height, width

    @property
    def prefix(self) -> int:
        """How many tokens stand in front of the patches: class, distillation, registers.

        Raises:
            ModelError: where the tokens are no grid of patches behind a prefix.
        """
        height, width = self.grid
        tokens = self._x(self.architecture.layers[0]).shape[1]
        if tokens < height * width:
            raise ModelError(
                f"attention: {tokens} tokens for {height} x {width} patches; a model that drops or merges tokens has no map"
            )
        return tokens - height * width

    def readout(self) -> Tensor:
        """The rows that the head reads, as weights (B, T) that sum to 1: the first token, or the mean of those pooled.

        With an attention pool: its probabilities, mean over its heads.
        """
        x, prefix = self._x(self.architecture.layers[0]), self.prefix
        weights = torch.zeros(x.shape[:2], dtype=torch.promote_types(x.dtype, torch.float32), device=x.device)
        pool = self.pool
        if pool is not None:
            asked = pool.probabilities.mean(dim=(1, 2))
            weights[:, weights.shape[1] - asked.shape[1] :] = asked
        elif self.architecture.pooled == "class":
            weights[:, 0] = 1
        else:
            first = prefix if self.architecture.pooled == "patches" else 0
            weights[:, first:] = 1 / (weights.shape[1] - first)
        return weights

    def backward(self, scores: Tensor) -> None:
        """Takes the gradient of the sum of `scores` with respect to what each layer of attention gives.

        In evaluation mode no image influences another: with one score for an image, the gradients are each image's own.

        Raises:
            ModelError: where the scores do not depend on the attention.
        """
        wanted = self._outputs
        _check_gradients(scores)
        self._scale = HALF_PRECISION_SCALE if any(y.dtype == torch.float16 for y in wanted.values()) else 1.0
        found = torch.autograd.grad(scores.sum() * self._scale, list(wanted.values()), allow_unused=True)
        for name, gradient in zip(wanted, found, strict=True):
            self._gradients[name] = torch.zeros_like(wanted[name]) if gradient is None else gradient
        self._outputs = {}

    def under(self, index: int, scores: Tensor) -> Block:
        """A block with the gradient of the sum of `scores` at its own output, for scores that were read off early.

        To be asked for after the forward pass, in place of `backward`.
        """
        layer = self.architecture.layers[index]
        y = self._outputs[layer.name]
        _check_gradients(scores)
        scale = HALF_PRECISION_SCALE if y.dtype == torch.float16 else 1.0
        (gradient,) = torch.autograd.grad(scores.sum() * scale, y)
        return Block(layer, self._x(layer), gradient, scale)

    def _block(self, layer: AttentionLayer) -> Block:
        return Block(layer, self._x(layer), self._gradients.get(layer.name), self._scale)

    def _x(self, layer: AttentionLayer) -> Tensor:
        if layer.name not in self._tokens:
            raise InputError(f"attention: layer {layer.name!r} has not run inside the block")
        return self._tokens[layer.name]

    def _begin(self, module: nn.Module, arguments: Any, output: Tensor) -> None:
        """A new forward pass: nothing of the one before is mixed with it."""
        self._projected = output.detach().to("meta")
        for kept in (self._tokens, self._outputs, self._gradients):
            kept.clear()

    def _keep_input(
        self, layer: AttentionLayer, module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]
    ) -> None:
        x, *others = (*arguments, *named.values())
        masked = any(isinstance(other, Tensor) and other is not x for other in others)
        if masked or named.get("is_causal"):
            raise ModelError(
                f"attention: {layer.name!r} gets a mask, or keys that are not its queries; only plain self-attention is known"
            )
        self._tokens[layer.name] = x.detach()

    def _keep_output(self, layer: AttentionLayer, module: nn.Module, arguments: Any, output: Any) -> Any:
        if not torch.is_grad_enabled():
            return None
        y, *rest = output if isinstance(output, tuple) else (output,)
        if not y.requires_grad:
            y = y.detach().requires_grad_()  # the graph begins here: no memory goes to what lies before the first block
        self._outputs[layer.name] = y
        copy = y.clone()  # what follows may work in place
        return (copy, *rest) if isinstance(output, tuple) else copy


@contextmanager
def attention(model: nn.Module, *, gradients: bool = True) -> Iterator[Record]:
    """Records the attention of a vision transformer that runs inside the block; see the module's text for an example.

    The model is in evaluation mode with frozen parameters inside; its modes, flags and hooks are as before afterwards, also
    after an error, and no parameter has got a gradient.

    Args:
        model: torchvision's `VisionTransformer`, timm's, `models.vit.ViTTiny`, Hugging Face's ViT, DeiT, DINOv2 (with registers), ViT-MSN or
            I-JEPA for image classification, or a module that holds one of these.
        gradients: whether gradients are on inside the block, for `Record.backward`.

    Raises:
        ModelError: where the model is no vision transformer that is known; it says which methods fit others.
    """
    architecture = architecture_of(model)
    record = Record(architecture)
    with ExitStack() as stack:
        stack.enter_context(frozen_eval(model))
        stack.enter_context(torch.inference_mode(mode=False))
        stack.enter_context(torch.set_grad_enabled(gradients))
        stack.callback(architecture.projection.register_forward_hook(record._begin).remove)
        for layer in (*architecture.layers, *([architecture.pool] if architecture.pool else [])):
            stack.callback(
                layer.source.register_forward_pre_hook(_bound(record._keep_input, layer), with_kwargs=True).remove
            )
            stack.callback(layer.sink.register_forward_hook(_bound(record._keep_output, layer)).remove)
        yield record


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


def _check_gradients(scores: Tensor) -> None:
    if not scores.requires_grad:
        raise ModelError("attention: the scores do not depend on it; do gradients reach the model's blocks?")


def _names(model: nn.Module) -> dict[nn.Module, str]:
    return {module: name for name, module in model.named_modules()}


def _norm(module: nn.Module | None) -> nn.Module | None:
    return None if isinstance(module, nn.Identity) else module


def _bound(keep: Callable[..., Any], layer: AttentionLayer) -> Callable[..., Any]:
    return lambda *arguments: keep(layer, *arguments)


def _split(merged: Tensor, heads: int) -> Tensor:
    """(B, T, A * d) -> (B, A, T, d)."""
    split: Tensor = merged.unflatten(2, (heads, -1))
    return split.transpose(1, 2)


def _linear(weight: Tensor, bias: Tensor | None, x: Tensor) -> Tensor:
    return functional.linear(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype))


def _applied(module: nn.Module, x: Tensor) -> Tensor:
    """The module's value at x with its parameters in the dtype of x."""
    state = {name: value.to(x.dtype) for name, value in module.state_dict().items() if value.is_floating_point()}
    output: Tensor = torch.func.functional_call(module, state, (x,))
    return output


def _gradient_through(module: nn.Module, x: Tensor, gradient: Tensor) -> Tensor:
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        found: Tensor = torch.autograd.grad(_applied(module, x), x, gradient)[0]
        return found


@contextmanager
def _exactly(like: Tensor) -> Iterator[None]:
    """No gradients, and no autocast to fewer bits."""
    with torch.no_grad(), torch.autocast(like.device.type, enabled=False):
        yield
