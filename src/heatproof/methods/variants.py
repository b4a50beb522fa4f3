"""The target's score for many variants of each image: what perturbation methods and Score-CAM ask of a model."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from heatproof.methods import rows
from heatproof.methods.folding import quickened
from heatproof.models.hooks import frozen_eval
from heatproof.models.probabilities import kind_of, probabilities


def scores_of_variants(
    model: nn.Module,
    images: Tensor,
    targets: Tensor,
    samples: int,
    make: Callable[[int, slice, Tensor], object],
    rows_per_forward: int | None,
    output: Literal["logit", "probability"] = "logit",
) -> Tensor:
    """Scores (N, S) of the target for S variants of each image; no gradients.

    Args:
        model: classifier; it runs in evaluation mode.
        images: (N, C, H, W).
        targets: (N,).
        samples: S.
        make: as in `rows.streamed`.
        rows_per_forward: as in `rows.rows_of`.
        output: the logit, or the probability.
    """
    images = images.detach()
    scores = images.new_empty((len(images), samples))
    with frozen_eval(model), torch.no_grad(), quickened(model, images) as layout:
        images = images.contiguous(memory_format=layout)
        size = rows.rows_of(images, rows_per_forward)
        for batch, batch_targets, pieces in rows.streamed(images, targets, samples, size, make):
            logits = rows.logits_of(model, batch)
            wanted = probabilities(logits, kind_of(model)) if output == "probability" else logits
            values = rows.chosen(wanted, batch_targets)
            for piece in pieces:
                scores[piece.images, piece.sample] = values[piece.rows]
    return scores
