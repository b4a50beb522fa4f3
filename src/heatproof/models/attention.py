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

A block's tensors live as long as the block: walking over the record holds those of one block at a time. `transformers`
says which models are known.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from heatproof.errors import InputError, ModelError
from heatproof.models.hooks import frozen_eval
from heatproof.models.transformers import Architecture, AttentionLayer, applied, architecture_of, linear, split_heads

HALF_PRECISION_SCALE = 2.0**10
"""Scores of float16 models are scaled by this on the way back, else small gradients vanish; a power of two is exact."""


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
                merged = merged * linear(layer.gate.weight, layer.gate.bias, x).sigmoid()
            if layer.norm is not None:
                given = (self.probabilities @ self.value).transpose(1, 2).flatten(2)
                merged = _gradient_through(layer.norm, given, merged)
            return split_heads(merged, layer.heads)


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


def _check_gradients(scores: Tensor) -> None:
    if not scores.requires_grad:
        raise ModelError("attention: the scores do not depend on it; do gradients reach the model's blocks?")


def _bound(keep: Callable[..., Any], layer: AttentionLayer) -> Callable[..., Any]:
    return lambda *arguments: keep(layer, *arguments)


def _gradient_through(module: nn.Module, x: Tensor, gradient: Tensor) -> Tensor:
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        found: Tensor = torch.autograd.grad(applied(module, x), x, gradient)[0]
        return found


@contextmanager
def _exactly(like: Tensor) -> Iterator[None]:
    """No gradients, and no autocast to fewer bits."""
    with torch.no_grad(), torch.autocast(like.device.type, enabled=False):
        yield
