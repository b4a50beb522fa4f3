"""GradMask: binary masks from the gradients of queries, keys and values, weighted by what the model says of what they leave."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from heatproof.errors import InputError, ModelError
from heatproof.methods import options, rows
from heatproof.methods.cam import INTERPOLATIONS, to_image_size
from heatproof.models.attention import Block, attention
from heatproof.models.probabilities import kind_of, probabilities
from heatproof.models.transformers import architecture_of

RESULTS_VERSION = 1  # to be raised when numbers change, also by a change in rows or models.attention


class Masks(NamedTuple):
    """The binary masks of a batch, and how sure the model is of the target behind each."""

    kept: Tensor
    """(N, S, h, w) bool, True where the patch stays; S = 3 x blocks x `masks_layer`: queries, keys, values, each from the
    head of the model towards the image."""
    confidence: Tensor
    """(N, S) probability of the target where only these patches are left."""


@dataclass(frozen=True)
class GradMask:
    """GradMask: the sum of masks made from the gradients of Q, K and V, each times the target's probability behind it.

    For each block but the last, for each of queries, keys and values, the gradient of the target's logit is summed over each
    of M groups of channels and clipped at zero; where a patch's value reaches the mean of its row, the patch is kept. The
    model sees each masked image (removed patches are 0 in the normalised image) once; equal masks of an image are evaluated
    once, and a mask that keeps everything is known from the intact image. Masks of several images share forward batches.

    Maps (N, H, W), >= 0, in units of probability (up to S, the number of masks). A map of equal values tells nothing.

    Args:
        model: a vision transformer that `models.attention` knows, with two blocks or more.
        masks_layer: M, the number of groups of channels, and of masks, of each block and kind; divides the width of Q.
        last_block: takes the last block's masks too. Where a class token is read, the gradient of its queries is zero for
            every patch.
        by_coverage: divides each patch's sum by the number of masks that keep it, so that being kept often is no merit.
        interpolation: from patches to pixels, "bilinear" or "nearest".
        rows_per_forward: masked images in a forward batch; None chooses by size and device.
        compat: as published: masks that keep everything (all-zero rows give them) add their constant too. By default
            they are left out, as they say nothing of any place.

    Raises:
        InputError: an option is out of range, or `masks_layer` does not divide the width.
        ModelError: the model is no vision transformer that is known, or has one block.

    Reference:
        Traini et al., "GradMask", IJCNN 2025, 10.1109/IJCNN64981.2025.11228361.
    """

    model: nn.Module
    masks_layer: int = 4
    last_block: bool = False
    by_coverage: bool = False
    interpolation: str = "bilinear"
    rows_per_forward: int | None = None
    compat: bool = False

    def __post_init__(self) -> None:
        options.at_least(self, 1, masks_layer=self.masks_layer, rows_per_forward=self.rows_per_forward)
        options.one_of(self, "interpolation", self.interpolation, INTERPOLATIONS)
        if self.compat and (self.by_coverage or self.last_block):
            raise InputError("GradMask: compat is the published form; it has neither by_coverage nor last_block")
        architecture_of(self.model)

    def __call__(self, images: Tensor, targets: Tensor) -> Tensor:
        """Explains the logits of `targets` (N,) for `images` (N, C, H, W): maps (N, H, W), >= 0."""
        return to_image_size(self.relevance(images, targets), images, self.interpolation)

    def relevance(self, images: Tensor, targets: Tensor) -> Tensor:
        """The maps at the size of the grid of patches, (N, h, w)."""
        kept, confidence = self.masks(images, targets)
        if not self.compat:
            confidence = confidence.where(~kept.all(dim=(2, 3)), 0)
            kept = kept & ~kept.all(dim=(2, 3), keepdim=True)
        relevance: Tensor = torch.einsum("nshw,ns->nhw", kept.to(confidence.dtype), confidence)
        return relevance / kept.sum(dim=1).clamp(min=1) if self.by_coverage else relevance

    def masks(self, images: Tensor, targets: Tensor) -> Masks:
        """The masks of `images` (N, C, H, W) and their confidences for `targets` (N,)."""
        rows.check_batch(images, targets)
        kept, intact = self._kept(images, targets)
        confidence = intact[:, None].repeat(1, kept.shape[1])
        which, distinct, places = _distinct(kept)
        with rows.explaining(self.model), torch.no_grad():
            found = torch.empty(len(distinct), dtype=intact.dtype, device=images.device)
            for part in _parts(len(distinct), rows.rows_of(images, self.rows_per_forward)):
                found[part] = self._probability(images, targets, which[part], distinct[part])
        masked = places >= 0
        confidence[masked] = found[places[masked]]
        return Masks(kept, confidence)

    def _kept(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """The masks (N, S, h, w), and the target's probability for the intact image, (N,)."""
        with attention(self.model) as record:
            logits = rows.logits_of(self.model, images.detach().clone())
            record.backward(rows.chosen(logits, targets))
            blocks = len(record) - (not self.last_block)
            if blocks < 1:
                raise ModelError(f"GradMask: {type(self.model).__name__} has one block; it needs two, or last_block")
            gradients = [self._of_block(record[index], record.prefix) for index in reversed(range(blocks))]
            grid = record.grid
        sums = torch.cat([torch.stack(kind, dim=1).flatten(1, 2) for kind in zip(*gradients, strict=True)], dim=1)
        kept = sums >= sums.mean(dim=2, keepdim=True)
        return kept.unflatten(2, grid), rows.chosen(self._probabilities(logits.detach()), targets)

    def _of_block(self, block: Block, prefix: int) -> list[Tensor]:
        """For queries, keys and values, the clipped sums (N, M, h * w) of the gradients over groups of channels."""
        kinds = (block.query_gradient, block.key_gradient, block.value_gradient)
        return [self._grouped(gradient)[:, :, prefix:].clamp(min=0) for gradient in kinds]

    def _grouped(self, gradient: Tensor) -> Tensor:
        """The sums (N, M, T) over groups of channels of a gradient (N, A, T, d); a group is consecutive channels of all heads."""
        channels = gradient.transpose(1, 2).flatten(2)  # (N, T, A * d)
        if channels.shape[2] % self.masks_layer:
            width, asked = channels.shape[2], self.masks_layer
            near = min((m for m in range(1, width + 1) if width % m == 0), key=lambda m: abs(m - asked))
            raise InputError(f"GradMask: masks_layer {asked} does not divide the width {width}; did you mean {near}?")
        grouped: Tensor = channels.unflatten(2, (self.masks_layer, -1)).sum(dim=3)
        return grouped.transpose(1, 2)

    def _probability(self, images: Tensor, targets: Tensor, which: Tensor, kept: Tensor) -> Tensor:
        """The target's probability (R,) for images[which] (R,) of which the patches `kept` (R, h, w) are left."""
        enlarged = to_image_size(kept.to(torch.float32), images, "nearest").to(images.dtype)
        logits = rows.logits_of(self.model, images[which] * enlarged[:, None])
        return rows.chosen(self._probabilities(logits), targets[which])

    def _probabilities(self, logits: Tensor) -> Tensor:
        exact = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return probabilities(exact, kind_of(self.model))


def _distinct(kept: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The masks that have to be evaluated.

    Args:
        kept: (N, S, h, w).

    Returns:
        Of each distinct mask that removes something, its image (R,) and itself (R, h, w); and of each mask its place
        among them (N, S), -1 where it removes nothing.
    """
    N, S = kept.shape[:2]
    flat = kept.flatten(2)
    packed = np.packbits(flat.cpu().numpy(), axis=2)
    # The image in front of the bits: masks of two images are never the same.
    numbers = np.arange(N, dtype=np.int32).repeat(S).view(np.uint8).reshape(N * S, 4)
    keys = np.concatenate([numbers, packed.reshape(N * S, -1)], axis=1)
    _, first, inverse = np.unique(keys, axis=0, return_index=True, return_inverse=True)
    partial = ~flat.all(dim=2).flatten().cpu().numpy()[first]
    place = np.where(partial, np.cumsum(partial) - 1, -1)
    wanted = torch.from_numpy(first[partial]).to(kept.device)
    places = torch.from_numpy(place[inverse.reshape(-1)].reshape(N, S)).to(kept.device)
    return wanted // S, kept.flatten(0, 1)[wanted], places


def _parts(total: int, length: int) -> Iterator[slice]:
    for start in range(0, total, length):
        yield slice(start, min(start + length, total))
