"""Parts of an image that are removed together: squares, steps of an order, random subsets.

A square grid turns a map into an order of squares, and that into ranks of pixels, so that `degraded_scores` removes squares
as it removes pixels. Subsets that follow no order are masks for `subset_scores`.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from heatproof import checks, seeding
from heatproof.errors import InputError
from heatproof.removal.orders import count

RESULTS_VERSION = 1


def square_patches(size: tuple[int, int], side: int) -> NDArray[np.int64]:
    """The number of the square that each pixel lies in, row by row; the squares do not overlap.

    Where a side of the image is no multiple of `side`, the grid reaches over both borders: floor(missing / 2) before the
    first pixel, the rest behind the last, so that squares at the border are cut.

    Args:
        size: (H, W).
        side: of a square, in pixels.

    Returns:
        (H, W), from 0 to P - 1.

    Reference:
        Samek et al., arXiv:1509.06321; the rule for the border is that of the Quantus toolbox.

    >>> square_patches((3, 4), 2)
    array([[0, 0, 1, 1],
           [0, 0, 1, 1],
           [2, 2, 3, 3]])
    """
    height, width = size
    if not 1 <= side <= min(height, width):
        raise InputError(f"side: {side} must lie between 1 and {min(height, width)}, the shorter side of the image")
    rows, columns = _cells(height, side), _cells(width, side)
    numbers: NDArray[np.int64] = rows[:, None] * (columns[-1] + 1) + columns
    return numbers


def patch_ranks(orders: NDArray[np.int64], patches: NDArray[np.int64]) -> NDArray[Any]:
    """Ranks of pixels that let `removed` and `degraded_scores` cut between patches: all pixels of a patch share one.

    At the fraction k / P of P patches, the k patches at the chosen end of the order go, whole and no others.

    Args:
        orders: (N, P) the patches of each image, the most important first: `orders` of the patches' sums.
        patches: (H, W) number of the patch that each pixel lies in.

    Returns:
        (N, H, W), int32; no permutation: a pixel's rank is the number of pixels that have gone before its patch, were all
        patches equally large.

    >>> patch_ranks(np.array([[1, 0]]), np.array([[0, 0, 1, 1]])).tolist()
    [[[2, 2, 0, 0]]]
    """
    checks.shapes("H W", patches=patches)
    images, number = checks.shapes("N P", orders=orders).values()
    if int(patches.max()) != number - 1:
        raise InputError(f"orders: {number} patches; the image has {int(patches.max()) + 1}")
    # Rounded up, a patch's rank lies behind the cut before it from either end: see `count`, which rounds down.
    starts = [patches.size - count((number - place) / number, patches.size) for place in range(number)]
    by_patch = np.empty((images, number), dtype=np.int32)
    np.put_along_axis(by_patch, orders, np.asarray(starts, dtype=np.int32)[None], axis=1)
    return by_patch[:, patches]


def equal_cuts(number: int, steps: int) -> NDArray[np.int64]:
    """Cuts of an order of things into steps of equal size; a rest that fills no step is left out.

    Args:
        number: of the things: pixels, or squares.
        steps: how many are wanted; there are at most as many as things, and more where the rest fills further ones.

    Returns:
        (S + 1,) things before each step, from 0.

    >>> equal_cuts(10, 3), equal_cuts(2, 5)
    (array([0, 3, 6, 9]), array([0, 1, 2]))
    """
    size = max(1, number // steps)
    return np.arange(0, number + 1, size)


def step_subsets(ranks: Tensor, cuts: ArrayLike) -> Tensor:
    """Each step of an order by itself: the pixels of rank cuts[k] to cuts[k + 1] - 1.

    Args:
        ranks: (N, H, W), or (N, C, H, W) where every channel of a pixel has a rank of its own.
        cuts: (S + 1,) growing numbers of pixels.

    Returns:
        (N, S, H, W), or (N, S, C, H, W), bool.

    >>> step_subsets(torch.tensor([[[0, 3, 1, 2]]]), [0, 2, 4]).int().tolist()
    [[[[1, 0, 1, 0]], [[0, 1, 0, 1]]]]
    """
    ends = torch.as_tensor(np.asarray(cuts), dtype=torch.int32, device=ranks.device)
    ends = ends.view(-1, *(1 for _ in ranks.shape[1:]))
    places = ranks[:, None].to(torch.int32)
    return (places >= ends[:-1]) & (places < ends[1:])


def random_subsets(seed: int, purpose: str, index: int, pixels: int, number: int, members: int) -> NDArray[np.bool_]:
    """Subsets of equal size of an image's pixels, drawn without replacement from (seed, purpose, index) alone.

    Args:
        seed: the root seed.
        purpose: what they are drawn for.
        index: of the image in its split.
        pixels: number of pixels, H * W.
        number: how many subsets.
        members: pixels in each.

    Returns:
        (number, pixels), with `members` True in each row.

    >>> random_subsets(0, "example", 7, pixels=6, number=2, members=3).sum(axis=1)
    array([3, 3])
    """
    if not 1 <= members <= pixels:
        raise InputError(f"members: {members} must lie between 1 and {pixels}, the number of pixels")
    generator = seeding.generator(seed, purpose, index)
    subsets = np.zeros((number, pixels), dtype=np.bool_)
    for subset in subsets:
        subset[generator.choice(pixels, members, replace=False, shuffle=False)] = True
    return subsets


def _cells(length: int, side: int) -> NDArray[np.int64]:
    """The cell of each place along an axis."""
    before = -length % side // 2
    return (np.arange(length) + before) // side
