"""Labelled pixels of a split, with the ranks of one method's maps beside them, in batches of any order.

Data small enough are one uint8 tensor on the device; larger ones stream through worker processes. Ranks come from
the attribution file by index in either case, so images and ranks cannot be paired wrongly.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from heatproof import seeding, threads
from heatproof.removal import rank_tensor

Indices = NDArray[np.int64]


class Pixels(Protocol):
    """What is asked of a split: pixels by index."""

    @property
    def labels(self) -> Indices:
        """The true classes (N,)."""
        ...

    @property
    def nbytes(self) -> int:
        """Size of all pixels as uint8."""
        ...

    def __len__(self) -> int: ...

    def pixels(self, indices: Sequence[int] | Indices) -> Tensor:
        """The pixels (B, C, H, W), uint8."""
        ...


@dataclass(frozen=True)
class Relabelled:
    """A split with other labels.

    Args:
        split: the images.
        labels: (N,) in place of its own.
    """

    split: Pixels
    labels: Indices

    @property
    def nbytes(self) -> int:
        """Size of all pixels as uint8."""
        return self.split.nbytes

    def __len__(self) -> int:
        return len(self.split)

    def pixels(self, indices: Sequence[int] | Indices) -> Tensor:
        """The images as they are (B, C, H, W), uint8."""
        return self.split.pixels(np.asarray(indices))


def permuted(split: Pixels, seed: int) -> Relabelled:
    """A split whose labels have changed places: each class is as frequent as before, and no image tells it."""
    order = seeding.generator(seed, "data_randomisation", "labels").permutation(len(split))
    return Relabelled(split, split.labels[order])


class Degrade(Protocol):
    """Removes pixels of a batch."""

    def __call__(self, pixels: Tensor, ranks: Tensor, indices: Tensor) -> Tensor:
        """Takes pixels in [0, 1] (B, C, H, W), ranks (B, H, W) and indices (B,); returns new pixels."""
        ...


def in_batches(order: Tensor, batch_size: int, *, pairs: bool = False) -> list[Tensor]:
    """The order (N,) in parts of `batch_size`; the last may be shorter. With `pairs`, a last part of one joins the one before.

    >>> [len(part) for part in in_batches(torch.arange(5), 2)], [len(part) for part in in_batches(torch.arange(5), 2, pairs=True)]
    ([2, 2, 1], [2, 3])
    """
    parts = list(order.split(batch_size))
    if pairs and len(parts) > 1 and len(parts[-1]) == 1:
        parts[-2:] = [torch.cat(parts[-2:])]
    return parts


RanksOf = Callable[[Indices], NDArray[np.unsignedinteger]]


@dataclass(frozen=True)
class Batch:
    """Some examples: pixels in [0, 1] (B, C, H, W), labels (B,), and where they stand in their split (B,)."""

    pixels: Tensor
    labels: Tensor
    indices: Tensor


@dataclass(frozen=True)
class Removal:
    """Which pixels go, and how.

    Args:
        ranks: ranks (B, H, W) of the images at some indices.
        degrade: what is done with them.
        invalid: (N,) True for images without a valid map; they are left out.
    """

    ranks: RanksOf
    degrade: Degrade
    invalid: NDArray[np.bool_] | None = None


@dataclass
class Examples:
    """The examples of one split.

    Args:
        split: pixels and labels by index.
        device: where batches shall be.
        memory_bytes: splits up to this size are held as one uint8 tensor on the device.
        workers: processes that decode what is streamed.
        removal: what is removed from each image; None leaves all intact.
    """

    split: Pixels
    device: torch.device
    memory_bytes: int = 4 * 2**30
    workers: int = 2
    removal: Removal | None = None
    _held: Tensor | None = field(default=None, init=False, repr=False)
    _ranks: Tensor | None = field(default=None, init=False, repr=False)
    _labels: Tensor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._labels = torch.as_tensor(self.split.labels, dtype=torch.int64, device=self.device)
        if self.split.nbytes <= self.memory_bytes:
            everything = np.arange(len(self.split))
            self._held = self.split.pixels(everything).to(self.device)
            if self.removal is not None:
                self._ranks = rank_tensor(self.removal.ranks(everything), self.device)

    def __len__(self) -> int:
        return len(self.split)

    @property
    def valid(self) -> NDArray[np.bool_]:
        """Which examples take part (N,): all, but those without a valid map."""
        if self.removal is None or self.removal.invalid is None:
            return np.ones(len(self), dtype=np.bool_)
        return ~self.removal.invalid

    def batches(self, order: Tensor, batch_size: int, *, pairs: bool = False) -> Iterator[Batch]:
        """Examples in the given order (int64, on the CPU), `batch_size` at a time; the last batch may be smaller.

        With `pairs`, as in `in_batches`.
        """
        valid = self.valid
        if not valid.all():
            order = order[torch.from_numpy(valid)[order]]
        parts = in_batches(order if self._held is None else order.to(self.device), batch_size, pairs=pairs)
        for indices, raw, ranks in self._held_batches(parts) if self._held is not None else self._streamed(parts):
            pixels = raw.float().div_(255.0)
            if self.removal is not None and ranks is not None:
                pixels = self.removal.degrade(pixels, ranks, indices)
            yield Batch(pixels, self._labels[indices], indices)

    def first(self, count: int) -> Batch:
        """The first `count` examples, or as many as there are."""
        return next(self.batches(torch.arange(min(count, len(self))), count))

    def _held_batches(self, parts: Sequence[Tensor]) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
        assert self._held is not None
        for chunk in parts:
            yield chunk, self._held[chunk], None if self._ranks is None else self._ranks[chunk]

    def _streamed(self, parts: Sequence[Tensor]) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
        ranks = None if self.removal is None else self.removal.ranks
        chunks = [part.numpy() for part in parts]
        loader = DataLoader(
            _Chunks(self.split, ranks, chunks),
            batch_size=None,
            num_workers=self.workers,
            multiprocessing_context="spawn" if self.workers else None,
            worker_init_fn=_start_worker if self.workers else None,
            pin_memory=self.device.type == "cuda",
        )
        for indices, raw, chunk_ranks in loader:
            yield (
                indices.to(self.device, non_blocking=True),
                raw.to(self.device, non_blocking=True),
                None if ranks is None else chunk_ranks.to(self.device, non_blocking=True),
            )


def _start_worker(_: int) -> None:
    threads.fix(1)


class _Chunks(Dataset[tuple[Tensor, Tensor, Tensor]]):
    """Whole batches as items, so that one gather reads what one step needs."""

    def __init__(self, split: Pixels, ranks: RanksOf | None, chunks: list[Indices]):
        self.split, self.ranks, self.chunks = split, ranks, chunks

    def __len__(self) -> int:
        return len(self.chunks)

    def __getitem__(self, position: int) -> tuple[Tensor, Tensor, Tensor]:
        chunk = self.chunks[position]
        ranks = torch.empty(0) if self.ranks is None else rank_tensor(self.ranks(chunk))
        return torch.from_numpy(chunk), self.split.pixels(chunk), ranks
