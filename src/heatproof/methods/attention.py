"""Attribution from the attention of vision transformers.

Each class is a factory: built with a model (`models.attention` says which are known) and options, called with
`(images, targets)`. Each has `patch_maps`, the map at one value for each patch (N, h, w), and enlarges it to (N, H, W):
bilinear with half-pixel centres, or each patch's value repeated (`interpolation="nearest"`).

Below, A is the attention of a block (row: the token that asks; column: the one that is asked), G the gradient of the target's
logit with respect to it, I the identity; the read-out row is that of the class token, or the mean of the rows that the head
pools. Only this row of a product of blocks is ever made, from the last block to the first, so a batch needs memory for one
block's matrices. A map that is zero everywhere is a legal map.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from heatproof.errors import InputError, ModelError
from heatproof.methods import options, rows
from heatproof.methods.attention_matrices import discarded, maximum_flows, mixed
from heatproof.methods.cam import INTERPOLATIONS, to_image_size
from heatproof.methods.graph import SELECTIONS, Operation
from heatproof.methods.rules import check_operations, named
from heatproof.models.attention import Block, Record, attention
from heatproof.models.targets import network_and_scalar
from heatproof.models.transformers import architecture_of

RESULTS_VERSION = (
    2  # to be raised when numbers change, also in rows, attention_matrices, models.attention or models.transformers
)

HEAD_FUSIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "mean": lambda heads: heads.mean(dim=1),
    "max": lambda heads: heads.amax(dim=1),
    "min": lambda heads: heads.amin(dim=1),
}
"""(B, A, T, T) -> (B, T, T)."""


@dataclass(frozen=True)
class AttentionRollout:
    """Attention rollout: the blocks' attention with its skip connections, multiplied from the last block to the first.

    For each block: the heads are fused to F; the `discard_ratio` smallest entries of F are set to 0 (never that of the class
    token for itself); the rows of F + I are scaled to sum to 1. The read-out row of the product, without the tokens that are
    no patches, divided by its maximum: in [0, 1]. It knows no class.

    Args:
        model: vision transformer, (N, C, H, W) -> (N, K) logits.
        head_fusion: mean, max or min over the heads.
        discard_ratio: in [0, 1), share of a block's entries that are discarded; 0.9 as in the published code, 0 as in the
            paper. Of equal entries, the first in reading order goes first.
        interpolation: "bilinear" or "nearest", from patches to pixels.
        compat: as vit-explain has it: each entry divided by the sum of the row of its column's number. That is no other map
            for mean fusion without discarding. A map that is zero everywhere becomes NaN.

    Raises:
        ModelError: where the model is no vision transformer that is known.

    Reference:
        Abnar, Zuidema: "Quantifying attention flow in transformers", ACL 2020, arXiv:2005.00928; with fusion and discarding:
        https://github.com/jacobgil/vit-explain.
    """

    model: nn.Module
    head_fusion: str = "mean"
    discard_ratio: float = 0.9
    interpolation: str = "bilinear"
    compat: bool = False

    def __post_init__(self) -> None:
        _check(self, head_fusion=self.head_fusion, discard_ratio=self.discard_ratio)

    def patch_maps(self, images: Tensor, targets: Tensor) -> Tensor:
        """Maps (N, h, w), one value for each patch; `targets` make no difference."""

        def fused(block: Block) -> Tensor:
            return discarded(HEAD_FUSIONS[self.head_fusion](block.probabilities), self.discard_ratio, keep_first=True)

        with _running(self.model, images, targets, gradients=False) as record:
            row = first_row(record, lambda pool: HEAD_FUSIONS[self.head_fusion](pool.probabilities))
            for block in reversed(record):
                row = row @ mixed(fused(block), by_column=self.compat)
            return _over_maximum(patches(row, record), compat=self.compat)

    def __call__(self, images: Tensor, targets: Tensor) -> Tensor:
        """Maps (N, H, W), float32, in [0, 1], for `images` (N, C, H, W); `targets` (N,) make no difference."""
        return to_image_size(self.patch_maps(images, targets), images, self.interpolation)


@dataclass(frozen=True)
class GradientRollout:
    """Attention rollout in which each entry counts by its gradient: what speaks for the target.

    As `AttentionRollout`, with F the fused heads of A * G, of which only what is positive stays, and with nothing kept from
    being discarded. The map's scale is lost, but how much the blocks count against their skip connections grows with the
    gradient.

    Args:
        model: vision transformer, (N, C, H, W) -> (N, K) logits.
        head_fusion: mean, max or min over the heads, before the clip at zero.
        discard_ratio: in [0, 1), share of a block's entries that are discarded, the zeros first.
        interpolation: "bilinear" or "nearest", from patches to pixels.
        compat: as vit-explain has it: gradients before the softmax in place of those behind it, the last block's at the
            first block and so on, and sums of the wrong rows. A map that is zero everywhere becomes NaN.

    Raises:
        ModelError: where the model is no vision transformer that is known.

    Reference:
        https://github.com/jacobgil/vit-explain ("Gradient Attention Rollout").
    """

    model: nn.Module
    head_fusion: str = "mean"
    discard_ratio: float = 0.9
    interpolation: str = "bilinear"
    compat: bool = False

    def __post_init__(self) -> None:
        _check(self, head_fusion=self.head_fusion, discard_ratio=self.discard_ratio)

    def patch_maps(self, images: Tensor, targets: Tensor) -> Tensor:
        """Explains the logits of `targets` (N,): maps (N, h, w), one value for each patch."""

        def fused(probabilities: Tensor, weights: Tensor) -> Tensor:
            return HEAD_FUSIONS[self.head_fusion](probabilities * weights).clamp(min=0)

        with _running(self.model, images, targets, gradients=True) as record:
            row = first_row(record, lambda pool: fused(pool.probabilities, pool.gradient))
            for number in reversed(range(len(record))):
                block = record[number]
                # The published code zips the gradients, which arrive from the last block on, with the blocks from the first.
                weights = record[-1 - number].score_gradient if self.compat else block.gradient
                positive = discarded(fused(block.probabilities, weights), self.discard_ratio, keep_first=False)
                row = row @ mixed(positive, by_column=self.compat)
            return _over_maximum(patches(row, record), compat=self.compat)

    def __call__(self, images: Tensor, targets: Tensor) -> Tensor:
        """Explains the logits of `targets` (N,) for `images` (N, C, H, W): maps (N, H, W), float32, in [0, 1]."""
        return to_image_size(self.patch_maps(images, targets), images, self.interpolation)


class Flow(NamedTuple):
    """Maps of attention flow (N, h, w), and for each image the share (N,) of patches whose flow the first block alone limits."""

    maps: Tensor
    saturated: Tensor


@dataclass(frozen=True)
class AttentionFlow:
    """Attention flow: how much can flow from the read-out to a patch when attention is the capacity of each connection.

    Capacities are the rows of F + I, scaled to sum to 1, F the fused heads. One maximum-flow problem for each patch, on a graph
    with as many layers as the model has blocks; then each map is divided by its maximum: in [0, 1]. It knows no class.

    In deep models most patches get all that the first block lets through, min(1, sum of its column): `flow` tells the share of
    these. Near 1, the map is about the first block alone. Seconds for an image of 197 tokens and 12 blocks, on one CPU core.

    Args:
        model: vision transformer, (N, C, H, W) -> (N, K) logits.
        head_fusion: mean, max or min over the heads.
        interpolation: "bilinear" or "nearest", from patches to pixels.

    Raises:
        ModelError: where the model is no vision transformer that is known.

    Reference:
        Abnar, Zuidema: "Quantifying attention flow in transformers", ACL 2020, arXiv:2005.00928, section 3.
    """

    model: nn.Module
    head_fusion: str = "mean"
    interpolation: str = "bilinear"

    def __post_init__(self) -> None:
        _check(self, head_fusion=self.head_fusion)

    def flow(self, images: Tensor, targets: Tensor) -> Flow:
        """Maps at one value for each patch, and the share of saturated patches; `targets` make no difference."""
        fuse = HEAD_FUSIONS[self.head_fusion]
        with _running(self.model, images, targets, gradients=False) as record:
            capacities = torch.stack([mixed(fuse(block.probabilities)) for block in record], dim=1).cpu().double()
            row = first_row(record, lambda pool: fuse(pool.probabilities))[:, 0].cpu().double()
            shape, prefix = (len(images), *record.grid), record.prefix
        pairs = list(zip(capacities.numpy(), row.numpy(), strict=True))
        sinks = range(prefix, row.shape[1])
        flows = torch.tensor(np.array([maximum_flows(each, source, sinks) for each, source in pairs]))
        # Neither the rounding of capacities nor that of their sums makes a patch unsaturated.
        limits = capacities[:, 0, :, prefix:].sum(dim=1).clamp(max=1)
        saturated = (flows >= limits - 1e-6).double().mean(dim=1)
        maps = _over_maximum(flows.reshape(shape)).float()
        return Flow(maps.to(images.device), saturated.float().to(images.device))

    def patch_maps(self, images: Tensor, targets: Tensor) -> Tensor:
        """Maps (N, h, w), one value for each patch; `targets` make no difference."""
        return self.flow(images, targets).maps

    def __call__(self, images: Tensor, targets: Tensor) -> Tensor:
        """Maps (N, H, W), float32, in [0, 1], for `images` (N, C, H, W); `targets` (N,) make no difference."""
        return to_image_size(self.patch_maps(images, targets), images, self.interpolation)


@dataclass(frozen=True)
class Chefer:
    """Generic attention explainability: positive gradient times attention, gathered through the skip connections.

    For each block C = mean over the heads of max(G * A, 0); the map is the read-out row of (I + C_L) ... (I + C_1), not scaled.

    Args:
        model: vision transformer, (N, C, H, W) -> (N, K) logits.
        interpolation: "bilinear" or "nearest", from patches to pixels.

    Raises:
        ModelError: where the model is no vision transformer that is known.

    Reference:
        Chefer, Gur, Wolf: "Generic attention-model explainability for interpreting bi-modal and encoder-decoder
        transformers", ICCV 2021, arXiv:2103.15679, equations 5 and 6.
    """

    model: nn.Module
    interpolation: str = "bilinear"

    def __post_init__(self) -> None:
        _check(self)

    def patch_maps(self, images: Tensor, targets: Tensor) -> Tensor:
        """Explains the logits of `targets` (N,): maps (N, h, w), one value for each patch."""

        def positive(block: Block) -> Tensor:
            return (block.gradient * block.probabilities).clamp_(min=0).mean(dim=1)

        with _running(self.model, images, targets, gradients=True) as record:
            row = first_row(record, positive)
            for block in reversed(record):
                row = row + row @ positive(block)
            return patches(row, record)

    def __call__(self, images: Tensor, targets: Tensor) -> Tensor:
        """Explains the logits of `targets` (N,) for `images` (N, C, H, W): maps (N, H, W), float32, >= 0."""
        return to_image_size(self.patch_maps(images, targets), images, self.interpolation)


@dataclass(frozen=True)
class LeGrad:
    """LeGrad: how sensitive the logit that the head would read behind each block is to that block's attention.

    For each of the last blocks: the head (final norm, pooling, classifier) is put on the block's tokens; the positive
    gradient of the target's logit there with respect to this block's attention, mean over heads and rows. The sum over the
    blocks, enlarged, is brought to [0, 1] by its minimum and maximum.

    Args:
        model: vision transformer, (N, C, H, W) -> (N, K) logits.
        blocks: how many blocks count, from the last; None: all.
        interpolation: "bilinear" or "nearest", from patches to pixels.

    Raises:
        ModelError: where the model is no vision transformer that is known.

    Reference:
        Bousselham et al.: "LeGrad: An explainability method for vision transformers via feature formation sensitivity",
        ICCV 2025, arXiv:2404.03214, equations 4 to 8.
    """

    model: nn.Module
    blocks: int | None = None
    interpolation: str = "bilinear"

    def __post_init__(self) -> None:
        _check(self)
        options.at_least(self, 1, blocks=self.blocks)

    def patch_maps(self, images: Tensor, targets: Tensor) -> Tensor:
        """Explains the logits of `targets` (N,): maps (N, h, w), one value for each patch, not scaled."""
        rows.check_batch(images, targets)
        with attention(self.model) as record, ExitStack() as hooks:
            found, outputs = record.architecture, []
            for module in found.blocks:
                handle = module.register_forward_hook(lambda _, __, output: outputs.append(output))
                hooks.callback(handle.remove)
            rows.chosen(rows.logits_of(self.model, images.detach().clone()), targets)
            first = 0 if self.blocks is None else max(0, len(record) - self.blocks)
            relevance = torch.zeros_like(record.readout()[:, None])
            for number in range(first, len(record)):
                tokens = outputs[number][0] if isinstance(outputs[number], tuple) else outputs[number]
                block = record.under(number, rows.chosen(found.head(tokens), targets))
                relevance += block.gradient.clamp(min=0).mean(dim=(1, 2))[:, None]
            return patches(relevance, record)

    def __call__(self, images: Tensor, targets: Tensor) -> Tensor:
        """Explains the logits of `targets` (N,) for `images` (N, C, H, W): maps (N, H, W), float32, in [0, 1]."""
        maps = to_image_size(self.patch_maps(images, targets), images, self.interpolation)
        low, high = maps.amin(dim=(1, 2), keepdim=True), maps.amax(dim=(1, 2), keepdim=True)
        return (maps - low) / torch.where(high > low, high - low, 1.0)


@dataclass(frozen=True)
class StopGradient:
    """Input times gradient, with the gradient stopped where transformers are not linear: conservative propagation (CP-LRP).

    The forward pass is as ever. On the way back, attention probabilities, the standard deviations of layer norms, and the ratio
    gelu(u) / u (or silu) count as constants; so each value's share is handed on. The sum over channels of image times this
    gradient; signed.

    Args:
        model: classifier that calls attention, (N, C, H, W) -> (N, K) logits; it need not be one that `models.attention` knows.

    Raises:
        ModelError: on the call, where the model calls no attention, or runs an operation for which this is not right (a product
            of activations, another activation function), or that cannot be seen (in a scripted module).

    Reference:
        Ali et al.: "XAI for transformers: Better explanations through conservative propagation", ICML 2022,
        arXiv:2202.07304; Achtibat et al.: "AttnLRP", ICML 2024, arXiv:2402.05602.
    """

    model: nn.Module

    def __call__(self, images: Tensor, targets: Tensor) -> Tensor:
        """Explains the logits of `targets` (N,) for `images` (N, C, H, W): maps (N, H, W), float32, signed."""
        rows.check_batch(images, targets)
        network, scalar = network_and_scalar(self.model)
        with rows.explaining(self.model):
            inputs = rows.leaf(images)
            with _ConstantWeights() as mode:
                outputs = rows.logits_of(network, inputs.clone())
            if not mode.attended:
                raise ModelError(
                    f"{type(self.model).__name__}: calls no attention, so nothing would be stopped; "
                    "methods.gradient.InputXGradient fits any network"
                )
            scores = rows.chosen(scalar(outputs), targets)
            rows.check_reached(self.model, scores, inputs)
            check_operations("StopGradient", network, outputs, inputs, _shares_out)
            (gradients,) = torch.autograd.grad(scores.sum(), inputs)
        return (images.detach() * gradients).float().sum(dim=1)


def _shares_out(operation: Operation) -> bool:
    """Whether input times gradient is the output's share: of linear functions without their shifts, of ReLUs and maxima."""
    if operation.name.startswith("ScaledDotProduct"):
        return operation.attached == (2,)
    if operation.kind is not None:
        return False
    return operation.is_linear or operation.may_be_relu or operation.name in SELECTIONS | {"LeakyRelu", "PreluKernel"}


class _ConstantWeights(TorchFunctionMode):
    """What a transformer weighs its values with counts as a constant on the way back."""

    def __init__(self) -> None:
        super().__init__()
        self.attended = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Sees each torch function that the model calls."""
        name, _, args, kwargs, _ = named(func, args, kwargs)
        if name in ("scaled_dot_product_attention", "multi_head_attention_forward"):
            self.attended = True
            others = {key: value.detach() if key in ("query", "key") else value for key, value in kwargs.items()}
            return func(*(arg.detach() for arg in args[:2]), *args[2:], **others)
        if name == "softmax":
            self.attended = True
            return func(*args, **kwargs).detach()
        if name == "layer_norm":
            return _layer_norm(*args, **kwargs)
        if name in ("gelu", "silu"):
            u = args[0]
            y = func(*args, **kwargs).detach()
            return u * torch.where(u == 0, 0.5, y / torch.where(u == 0, 1.0, u)).detach()
        return func(*args, **kwargs)


def _layer_norm(
    x: Tensor, shape: tuple[int, ...], weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Tensor:
    """Layer norm whose standard deviation is a constant for the gradient."""
    axes = tuple(range(-len(shape), 0))
    centred = x - x.mean(dim=axes, keepdim=True)
    y = centred / (centred.square().mean(dim=axes, keepdim=True) + eps).sqrt().detach()
    y = y if weight is None else y * weight
    return y if bias is None else y + bias


@contextmanager
def _running(model: nn.Module, images: Tensor, targets: Tensor, *, gradients: bool) -> Iterator[Record]:
    """The attention of a pass over the images; with the gradients of the targets' logits if asked for."""
    rows.check_batch(images, targets)
    with attention(model, gradients=gradients) as record:
        scores = rows.chosen(rows.logits_of(model, images.detach().clone()), targets)
        if gradients:
            record.backward(scores)
        yield record


def first_row(record: Record, fused: Callable[[Block], Tensor]) -> Tensor:
    """Where the way down begins (B, 1, T): the rows that the head reads; an attention pool's own row as `fused` tells."""
    row, pool = record.readout()[:, None], record.pool
    if pool is not None:
        asked = fused(pool)
        row = torch.zeros_like(row)
        row[:, :, row.shape[2] - asked.shape[2] :] = asked
    return row


def patches(row: Tensor, record: Record) -> Tensor:
    """The patches' part of a row (B, 1, T), as a grid (B, h, w)."""
    return row[:, 0, record.prefix :].reshape(len(row), *record.grid)


def _over_maximum(maps: Tensor, *, compat: bool = False) -> Tensor:
    """Maps (B, h, w) >= 0, each divided by its maximum; those that are zero everywhere stay, or are NaN with `compat`."""
    most = maps.amax(dim=(1, 2), keepdim=True)
    return maps / (most if compat else torch.where(most > 0, most, 1.0))


def _check(method: Any, head_fusion: str = "mean", discard_ratio: float = 0.0) -> None:
    options.one_of(method, "head_fusion", head_fusion, HEAD_FUSIONS)
    options.one_of(method, "interpolation", method.interpolation, INTERPOLATIONS)
    if not (isinstance(discard_ratio, int | float) and 0 <= discard_ratio < 1):
        raise InputError(f"{type(method).__name__}: discard_ratio {discard_ratio!r} must lie in [0, 1)")
    architecture_of(method.model)
