"""Superpixels, and coalitions of them: what `perturbation.KernelShap` and `perturbation.Lime` share."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from heatproof import plugins, seeding
from heatproof.errors import InputError


def grid_superpixels(size: tuple[int, int], cells: int) -> NDArray[np.int64]:
    """Superpixels as a regular grid: (H, W), numbered from 0 row by row.

    >>> grid_superpixels((2, 4), 2)
    array([[0, 0, 1, 1],
           [2, 2, 3, 3]])
    """
    down = np.arange(size[0]) * cells // size[0]
    across = np.arange(size[1]) * cells // size[1]
    return down[:, None] * cells + across


class Superpixels(NamedTuple):
    """The superpixels of a batch: which one each pixel belongs to, (N, H, W), and how many each image has."""

    of_pixels: Tensor
    counts: list[int]


def superpixels_of(images: Tensor, cells: int, segmentation: str | Callable[..., Any] | None) -> Superpixels:
    """Superpixels of images (N, C, H, W): those of a segmentation (or its dotted path), or a regular grid.

    Raises:
        InputError: the segmentation gives another shape than the image's.
    """
    size = (images.shape[2], images.shape[3])
    if segmentation is None:
        numbers = torch.from_numpy(grid_superpixels(size, min(cells, *size))).to(images.device)
        return Superpixels(numbers.expand(len(images), *size), [int(numbers.max()) + 1] * len(images))
    segment = plugins.resolve(segmentation) if isinstance(segmentation, str) else segmentation
    found = [np.asarray(segment(image.cpu().numpy())) for image in images.detach()]
    for labels in found:
        if labels.shape != size:
            raise InputError(
                f"segmentation: gave shape {labels.shape} for an image of {size}; expected (H, W) integers"
            )
    # Numbered from 0 without gaps, whatever the labels are.
    renumbered = [np.unique(labels, return_inverse=True)[1].reshape(size) for labels in found]
    numbers = torch.from_numpy(np.stack(renumbered).astype(np.int64)).to(images.device)
    return Superpixels(numbers, [int(labels.max()) + 1 for labels in renumbered])


def drawn_coalitions(
    purpose: str,
    seed: int,
    indices: Tensor | None,
    counts: list[int],
    draw: Callable[[np.random.Generator, int], NDArray[np.bool_]],
) -> NDArray[np.bool_]:
    """For each image which superpixels each sample shows, (N, S, D); beyond an image's own number of them, False."""
    drawn = indices.tolist() if indices is not None else [0] * len(counts)
    each = [draw(seeding.generator(seed, purpose, i), count) for i, count in zip(drawn, counts, strict=True)]
    widest = max(counts, default=0)
    return np.stack([np.pad(shown, ((0, 0), (0, widest - shown.shape[1]))) for shown in each])


def painted(values: Tensor, superpixels: Superpixels, images: Tensor) -> Tensor:
    """Maps (N, H, W) in which each pixel has the value of its superpixel; values (N, D)."""
    numbers = superpixels.of_pixels
    return values.to(device=images.device, dtype=torch.float32).gather(1, numbers.flatten(1)).view_as(numbers)


def shapley_values(shown: Tensor, scores: Tensor, nothing: Tensor, everything: Tensor) -> Tensor:
    """Least-squares Shapley values from coalitions drawn with the Shapley kernel's probabilities.

    The values v minimise the mean of (score - nothing - shown . v)^2 under the constraint that they sum to
    everything - nothing. Where the coalitions do not determine them, the smallest solution is taken.

    Args:
        shown: (N, S, D), 1 where a coalition shows a superpixel; float64. Columns that are never 1 get the value 0,
            but column 0 must belong to a superpixel.
        scores: (N, S).
        nothing: (N,), the score with nothing shown.
        everything: (N,), the score with all shown.

    Returns:
        (N, D).

    >>> shown = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]], dtype=torch.float64)
    >>> scores, nothing, everything = (torch.tensor(v, dtype=torch.float64) for v in ([[3.0, 2.0]], [1.0], [4.0]))
    >>> shapley_values(shown, scores, nothing, everything).round(decimals=6).tolist()
    [[2.0, 1.0]]
    """
    gain = everything - nothing
    # The constraint, solved for the first value: v_0 = gain - sum of the others. Columns that never show stay at zero.
    used = shown.any(dim=1, keepdim=True)
    others = torch.where(used, shown - shown[..., :1], 0.0)[..., 1:]
    rest = scores - nothing[:, None] - shown[..., 0] * gain[:, None]
    values = _least_squares(others, rest, ridge=0.0)
    return torch.cat([(gain - values.sum(dim=1))[:, None], values], dim=1)


def lime_coefficients(shown: Tensor, scores: Tensor, counts: Tensor, width: float, ridge: float) -> Tensor:
    """Coefficients of the weighted ridge regression of scores on what is shown.

    Args:
        shown: (N, S, D), 1 where a sample shows a superpixel; float64. Columns that are never 1 get 0.
        scores: (N, S).
        counts: (N,), how many superpixels each image has.
        width: of the kernel exp(-d^2 / width^2).
        ridge: weight of the sum of squared coefficients.

    Returns:
        (N, D).
    """
    # Cosine of the angle to the vector of ones; nothing shown has none and counts as the right angle.
    cosines = (shown.sum(dim=2) / counts[:, None].to(shown)).sqrt()
    weights = torch.exp(-(((1 - cosines) / width) ** 2))
    shares = weights / weights.sum(dim=1, keepdim=True)
    # Centred by the weighted means, so that the intercept drops out.
    centred = shown - (shares[:, :, None] * shown).sum(dim=1, keepdim=True)
    targets = scores - (shares * scores).sum(dim=1, keepdim=True)
    roots = weights.sqrt()
    return _least_squares(centred * roots[:, :, None], targets * roots, ridge)


def _least_squares(features: Tensor, targets: Tensor, ridge: float) -> Tensor:
    """Minimises |features v - targets|^2 + ridge |v|^2 for each image; the smallest v where several do."""
    gram = features.mT @ features + ridge * torch.eye(features.shape[2], dtype=features.dtype, device=features.device)
    solution = torch.linalg.pinv(gram, hermitian=True) @ (features.mT @ targets[:, :, None])
    values: Tensor = solution[:, :, 0]
    return values
