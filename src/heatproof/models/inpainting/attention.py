"""Contextual attention: what is missing is put together from patches of what is there, by their likeness."""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

NormGuard = Literal["sum", "floor"]

FUSED = 3  # neighbours along a diagonal that vote together
SHARPNESS = 10.0
TINY = 1e-4


def contextual_attention(
    features: Tensor,
    background: Tensor,
    holes: Tensor | None,
    *,
    fuse: bool = True,
    guard: NormGuard = "sum",
    shared_mask: bool = False,
) -> Tensor:
    """Rebuilds `features` from patches of `background`, each weighted by its likeness to the place that it goes to.

    Both are looked at on every second row and column: w_l, the 3 x 3 patch around place l of the background, against
    the patch p_i around place i of the features, score = p_i . w_l / |w_l|. Scores of neighbouring places that come
    from neighbouring places are added up. softmax over l of 10 x score says how much of the 4 x 4 patch l of the full
    background goes to place i. Patches that touch a hole take no part.

    Args:
        features: (N, C, H, W), even sides.
        background: the same shape.
        holes: (N, 1, 4H, 4W), above 0 in a hole; None for none.
        fuse: add up scores of neighbours.
        guard: what keeps |w_l| from 0: "sum" adds 1e-4 to each square (since July 2020), "floor" is max(|w_l|, 1e-4).
        shared_mask: the published code's fault: the first image's holes serve the whole batch.

    Returns:
        (N, C, H, W).

    Reference:
        Yu et al., "Generative Image Inpainting with Contextual Attention", CVPR 2018, arXiv:1801.07892, section 4.1.
    """
    places = (features.shape[2] // 2, features.shape[3] // 2)
    queries = same_patches(features[..., ::2, ::2], 3, 1)  # (N, 9C, hw)
    keys = same_patches(background[..., ::2, ::2], 3, 1)  # (N, 9C, L)
    scores = torch.bmm(_normalised(keys, guard).transpose(1, 2), queries)  # (N, L, hw)
    if fuse:
        scores = _fused(scores, places)
    usable = _usable(holes, shared_mask) if holes is not None else scores.new_ones(1, 1, 1)
    weights = torch.softmax(scores * usable * SHARPNESS, dim=1) * usable
    pasted = torch.bmm(same_patches(background, 4, 2), weights)  # (N, 16C, hw)
    # Each pixel is pasted by four patches that overlap there.
    return functional.fold(pasted, features.shape[2:], kernel_size=4, stride=2, padding=1) / 4


def same_patches(images: Tensor, side: int, stride: int) -> Tensor:
    """All patches (N, C * side * side, L) of zero-padded images, ceil(H / stride) x ceil(W / stride) of them.

    Where the padding is odd, the smaller half comes first.

    >>> same_patches(torch.ones(1, 2, 7, 9), 4, 2).shape
    torch.Size([1, 32, 20])
    """
    down, along = (max(0, (-(-size // stride) - 1) * stride + side - size) for size in images.shape[2:])
    padded = functional.pad(images, (along // 2, along - along // 2, down // 2, down - down // 2))
    return functional.unfold(padded, side, stride=stride)


def _normalised(patches: Tensor, guard: NormGuard) -> Tensor:
    if guard == "sum":
        return patches / (patches.square() + TINY).sum(dim=1, keepdim=True).sqrt()
    return patches / patches.square().sum(dim=1, keepdim=True).sqrt().clamp(min=TINY)


def _usable(holes: Tensor, shared_mask: bool) -> Tensor:
    """(N, L, 1): 1 for patches of the background without a hole."""
    if shared_mask:
        holes = holes[:1]
    touched = same_patches(holes[..., ::8, ::8], 3, 1).amax(dim=1)
    return (touched == 0).to(holes.dtype)[:, :, None]


def _fused(scores: Tensor, places: tuple[int, int]) -> Tensor:
    """Adds up scores along diagonals, row by row and then column by column."""
    height, width = places
    across = _diagonal_sums(scores).view(-1, height, width, height, width)
    down = _diagonal_sums(across.permute(0, 2, 1, 4, 3).reshape(scores.shape))
    return down.view(-1, width, height, width, height).permute(0, 2, 1, 4, 3).reshape(scores.shape)


def _diagonal_sums(scores: Tensor) -> Tensor:
    """Each score plus its neighbours up left and down right, nothing beyond the edge."""
    reach = FUSED // 2
    padded = functional.pad(scores, (reach, reach, reach, reach))
    rows, columns = scores.shape[1:]
    return padded[:, :rows, :columns] + scores + padded[:, 2 * reach :, 2 * reach :]
