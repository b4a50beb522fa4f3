"""Holes as removal metrics cut them: single pixels, blobs, and what a map of edges puts first or last.

An infiller that is trained and tested on them meets the masks that attribution methods make.
"""

from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from heatproof import seeding
from heatproof.removal import Blur

Kind = Literal["pixels", "blobs", "edges"]
KINDS: tuple[Kind, ...] = ("pixels", "blobs", "edges")

FRACTIONS = (0.05, 0.95)  # removed share of an image, drawn evenly
BLOBS = (0.04, 0.12)  # sigma of a blob's edge, as a share of the longer side


def holes(
    pixels: Tensor, indices: NDArray[np.int64], seed: int, *purpose: str | int, kind: Kind | None = None
) -> Tensor:
    """One hole for each image, drawn from (seed, purpose, index).

    A random fraction of each image goes, by one of three orders: "pixels" is random; "blobs" is smooth noise, as maps of
    coarse layers; "edges" is the size of the image's own gradient, smallest or largest first, as maps that follow edges.

    Args:
        pixels: (N, C, H, W) float.
        indices: (N,) index of each image in its split.
        seed: root seed.
        purpose: what the holes are for.
        kind: the order; None draws one for each image.

    Returns:
        (N, H, W) bool on the device of the pixels, True in a hole.

    >>> found = holes(torch.zeros(2, 1, 8, 8), np.arange(2), 0, "doctest", kind="pixels")
    >>> found.shape, bool(torch.equal(found, holes(torch.zeros(2, 1, 8, 8), np.arange(2), 0, "doctest", kind="pixels")))
    (torch.Size([2, 8, 8]), True)
    """
    images, _, height, width = pixels.shape
    noise = np.empty((images, height, width), dtype=np.float32)
    fractions, kinds, signs, sigmas = (np.empty(images) for _ in range(4))
    for row, index in enumerate(indices.tolist()):
        rng = seeding.generator(seed, *purpose, index)
        noise[row] = rng.random((height, width), dtype=np.float32)
        fractions[row] = rng.uniform(*FRACTIONS)
        kinds[row], signs[row], sigmas[row] = rng.integers(len(KINDS)), rng.choice((-1, 1)), rng.integers(len(BLOBS))
    drawn = torch.from_numpy(noise).to(pixels)[:, None]
    wanted = torch.from_numpy(kinds if kind is None else np.full(images, KINDS.index(kind))).to(pixels.device)
    sigma = torch.from_numpy(sigmas).to(pixels.device)[:, None, None, None]
    blobs = torch.where(sigma == 0, Blur(BLOBS[0]).replacement(drawn), Blur(BLOBS[1]).replacement(drawn))
    # A little noise decides between pixels of plain regions.
    edges = (_edges(pixels) + 1e-3 * drawn) * torch.from_numpy(signs).to(pixels)[:, None, None, None]
    maps = torch.stack((drawn, blobs, edges))[wanted.long(), torch.arange(images, device=pixels.device), 0]
    counts = torch.from_numpy((fractions * height * width).astype(np.int64)).to(pixels.device)
    order = maps.flatten(1).argsort(dim=1, descending=True, stable=True)
    ranks = torch.empty_like(order).scatter_(
        1, order, torch.arange(height * width, device=pixels.device).expand_as(order)
    )
    return (ranks < counts[:, None]).view(images, height, width)


def _edges(pixels: Tensor) -> Tensor:
    """(N, 1, H, W), the size of the brightness's gradient, a little smoothed."""
    grey = functional.pad(pixels.mean(dim=1, keepdim=True), (1, 1, 1, 1), mode="replicate")
    along, down = grey[:, :, 1:-1, 2:] - grey[:, :, 1:-1, :-2], grey[:, :, 2:, 1:-1] - grey[:, :, :-2, 1:-1]
    return functional.avg_pool2d(torch.hypot(along, down), 3, stride=1, padding=1)
