"""One interface to all data sets: images by index, in an order that never changes."""

import functools
import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from heatproof import checks, seeding
from heatproof.errors import DataError, InputError, nearest

logger = logging.getLogger(__name__)

Indices = NDArray[np.int64]
Boxes = NDArray[np.int64]  # (k, 4) of one picture: x0, y0, x1, y1 in pixels of the frame, half-open
Part = Literal["train", "test"]

PARTS: tuple[Part, ...] = ("train", "test")
# For errors that say a training part is missing.
WITHOUT_TRAINING = "set what is otherwise taken from training pictures: model.normalization, and a fill without their mean (zero_normalised)"
SPLITS: dict[str, Part] = {"train": "train", "validation": "train", "test": "test"}


class Samples(Protocol):
    """The labelled pictures of one part of a data set, in the order of the files."""

    labels: Indices
    fingerprint: str

    def pixels(self, indices: Indices) -> Tensor:
        """Pictures (B, C, H, W), uint8; raises DataError, naming the file, for one that cannot be read."""
        ...

    def regions(self, indices: Indices) -> NDArray[np.bool_] | None:
        """The objects' pixels (B, H, W); None where the data set does not know them, or knows boxes alone."""
        ...

    def boxes(self, indices: Indices) -> list[Boxes] | None:
        """The boxes that the data set names, (k, 4) for each picture; None where it names none."""
        ...

    def ignored(self, indices: Indices) -> NDArray[np.bool_] | None:
        """Pixels (B, H, W) that count neither as object nor as background; None where there are none."""
        ...


class Source(Protocol):
    """Where the pictures come from; tells about them without opening them."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """Name of each label, in the order of the labels."""
        ...

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of all pictures."""
        ...

    @property
    def channels(self) -> int:
        """3 for RGB, 1 for grey pictures."""
        ...

    @property
    def fingerprint(self) -> str:
        """Names the content of all parts."""
        ...

    @property
    def parts(self) -> Sequence[Part]:
        """Those that are there, told without opening them."""
        ...

    def open(self, part: Part) -> Samples:
        """Opens a part; raises DataError where it is missing."""
        ...


@dataclass(frozen=True)
class Split:
    """Some rows of a part: what is trained on, what chooses the epoch, or what is tested on.

    Args:
        name: `train`, `validation` or `test`.
        samples: the part.
        rows: (N,) which pictures of the part, ascending.
        size: height and width of the pictures.
        channels: 3 for RGB, 1 for grey pictures.
    """

    name: str
    samples: Samples
    rows: Indices
    size: tuple[int, int]
    channels: int

    def __len__(self) -> int:
        return len(self.rows)

    @functools.cached_property
    def labels(self) -> Indices:
        """The true classes (N,)."""
        return self.samples.labels[self.rows]

    @functools.cached_property
    def fingerprint(self) -> str:
        """Names the pictures and labels of the split, and their order: a SHA-256."""
        named = f"{self.samples.fingerprint}\n".encode() + self.rows.astype("<i8").tobytes()
        return hashlib.sha256(named).hexdigest()

    @property
    def nbytes(self) -> int:
        """Size of all pixels as uint8."""
        return len(self) * self.channels * self.size[0] * self.size[1]

    def pixels(self, indices: Sequence[int] | NDArray[np.integer]) -> Tensor:
        """Pictures (B, C, H, W), uint8, after the data set's test-time preprocessing.

        Args:
            indices: (B,) positions in this split.

        Raises:
            DataError: a picture cannot be read; it is named, and never replaced by another.
            InputError: an index lies outside the split.
        """
        return self.samples.pixels(self._rows(indices))

    def regions(self, indices: Sequence[int] | NDArray[np.integer]) -> NDArray[np.bool_] | None:
        """The objects' pixels (B, H, W); None where the data set does not know them.

        Where it knows boxes alone, a region is what its boxes cover of the picture. A picture without an object has an
        empty region.
        """
        rows = self._rows(indices)
        regions = self.samples.regions(rows)
        if regions is not None:
            return regions
        boxes = self.samples.boxes(rows)
        return None if boxes is None else covered(boxes, self.size)

    def boxes(self, indices: Sequence[int] | NDArray[np.integer]) -> list[Boxes] | None:
        """The objects' boxes (x0, y0, x1, y1) in pixels of the picture, half-open: (k, 4) for each of B pictures.

        They are never clipped: where a centre was cut out of the picture that was annotated, a box may lie partly or
        wholly outside, with negative corners and corners beyond the size. Where the data set names no boxes, there is one
        around the whole region (none where the region is empty); None where it does not know the objects at all.
        """
        rows = self._rows(indices)
        boxes = self.samples.boxes(rows)
        if boxes is not None:
            return boxes
        regions = self.samples.regions(rows)
        if regions is None:
            return None
        filled: NDArray[np.bool_] = np.any(regions, axis=(1, 2))
        return [box[None] if there else box[None][:0] for box, there in zip(tight_boxes(regions), filled, strict=True)]

    def ignored(self, indices: Sequence[int] | NDArray[np.integer]) -> NDArray[np.bool_] | None:
        """Pixels (B, H, W) that count neither as object nor as background; None where the data set has none."""
        return self.samples.ignored(self._rows(indices))

    def _rows(self, indices: Sequence[int] | NDArray[np.integer]) -> Indices:
        chosen = np.asarray(indices, dtype=np.int64).reshape(-1)
        if chosen.size and not 0 <= chosen.min() <= chosen.max() < len(self):
            wrong = chosen[(chosen < 0) | (chosen >= len(self))][0]
            raise InputError(f"{self.name}: index {wrong} lies outside the split of {len(self)} images")
        return self.rows[chosen]


@dataclass(frozen=True)
class Dataset:
    """A data set: what is known about it, and its splits.

    Args:
        name: as in the configuration.
        source: where the pictures come from.
        split_ratio: share of each class's training pictures, the first in the order of the file, that is trained on; the
            rest validates.
        examples_per_class: cut `train` to so many pictures of each class; None: all.
        classes: cut `train` to so many classes; None: all. Labels, `validation` and `test` stay as they are.
        seed: root seed, which draws these pictures and classes; fewer are among more.
    """

    name: str
    source: Source
    split_ratio: float
    examples_per_class: int | None = None
    classes: int | None = None
    seed: int = 0
    _parts: dict[str, Samples] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not 0.0 < self.split_ratio <= 1.0:
            raise InputError(f"split_ratio: {self.split_ratio!r} must lie above 0 and not above 1")
        for name in ("examples_per_class", "classes"):
            if getattr(self, name) is not None:
                checks.integer(name, getattr(self, name), 1, 10**9)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Name of each label, in the order of the labels."""
        return self.source.class_names

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the pictures."""
        return self.source.size

    @property
    def channels(self) -> int:
        """3 for RGB, 1 for grey pictures."""
        return self.source.channels

    @property
    def fingerprint(self) -> str:
        """Names the content of the whole data set; that of a split changes only with the split."""
        return self.source.fingerprint

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits whose part is there: `("test",)` for a data set that is for testing alone."""
        there = self.source.parts
        return tuple(name for name, part in SPLITS.items() if part in there)

    def split(self, name: str) -> Split:
        """The split `train`, `validation` or `test`; its files are opened now, those of others are not.

        Raises:
            DataError: files are missing or damaged, or no picture falls into the split.
            InputError: there is no split of this name.
        """
        if name not in SPLITS:
            raise InputError(f"there is no split {name!r}{nearest(name, SPLITS)}")
        part = SPLITS[name]
        if part not in self._parts:
            self._parts[part] = self.source.open(part)
        samples = self._parts[part]
        rows = np.arange(len(samples.labels))
        if part == "train":
            trains = first_of_each_class(samples.labels, self.split_ratio)
            rows = rows[trains if name == "train" else ~trains]
        if name == "train":
            self._log_untrained(samples.labels, rows)
        if name == "test":
            self._log_single_class(samples.labels)
        if name == "train" and (self.examples_per_class or self.classes):
            rows = self._few(samples.labels, rows)
        if not len(rows):
            raise DataError(
                f"{self.name}: no picture falls into {name!r}: "
                f"{len(samples.labels)} pictures in {part!r}, split_ratio {self.split_ratio:g}"
            )
        return Split(name, samples, rows, self.size, self.channels)

    def _log_untrained(self, labels: Indices, rows: Indices) -> None:
        lacking = np.setdiff1d(labels, labels[rows])
        if lacking.size:
            logger.warning(
                "%s: split_ratio %g leaves no picture to train on of %d classes, such as %r, which has %d in all; add pictures, "
                "raise split_ratio, or remove these classes",
                self.name, self.split_ratio, lacking.size, self.class_names[lacking[0]], (labels == lacking[0]).sum(),
            )  # fmt: skip

    def _log_single_class(self, labels: Indices) -> None:
        if len(labels) > 1 and (labels == labels[0]).all():
            logger.info(
                "%s: all %d test pictures are of class %r; accuracies then say nothing about telling classes apart",
                self.name, len(labels), self.class_names[labels[0]],
            )  # fmt: skip

    def _few(self, labels: Indices, rows: Indices) -> Indices:
        """Some of the rows: of the classes that are drawn, as many pictures as are asked for."""
        present = np.unique(labels[rows]).tolist()
        kept = []
        for label in (present[place] for place in drawn_classes(len(present), self.classes, self.seed)):
            own, wanted = rows[labels[rows] == label], self.examples_per_class
            if wanted is not None and len(own) < wanted:
                raise DataError(
                    f"{self.name}: class {self.class_names[label]!r} has {len(own)} training pictures; "
                    f"examples_per_class asks for {wanted}"
                )
            order = seeding.generator(self.seed, "examples_per_class", label).permutation(len(own))
            kept.append(own[order[:wanted]])
        return np.sort(np.concatenate(kept))


def first_of_each_class(labels: Indices, share: float) -> NDArray[np.bool_]:
    """True for the first `int(share * count)` pictures of each class, in their order: (N,).

    >>> first_of_each_class(np.array([0, 1, 0, 0, 1, 0]), 0.5)
    array([ True,  True,  True, False, False, False])
    """
    first = np.zeros(len(labels), dtype=np.bool_)
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        first[rows[: int(share * len(rows))]] = True
    return first


def drawn_classes(count: int, wanted: int | None, seed: int) -> list[int]:
    """So many labels of `count`, drawn from the seed, ascending; None: all. Fewer are among more.

    Raises:
        DataError: there are fewer classes.

    >>> set(drawn_classes(9, 3, seed=0)) < set(drawn_classes(9, 4, seed=0))
    True
    """
    if wanted is None:
        return list(range(count))
    if wanted > count:
        raise DataError(f"{wanted} classes were asked for, and there are {count}")
    return sorted(seeding.generator(seed, "classes").permutation(count)[:wanted].tolist())


def training_statistics(split: Split, block: int = 1024) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and standard deviation (n) of each channel over all pixels, in [0, 1]: two arrays (C,).

    Sums are exact integers, so neither the block size nor the machine changes a bit. Only one block of pictures is in
    memory at a time.
    """
    sums, squares = np.zeros(split.channels, dtype=object), np.zeros(split.channels, dtype=object)
    for start in range(0, len(split), block):
        pixels = split.pixels(np.arange(start, min(start + block, len(split)))).to(torch.int32)
        sums += pixels.sum(dim=(0, 2, 3), dtype=torch.int64).numpy()
        squares += (pixels * pixels).sum(dim=(0, 2, 3), dtype=torch.int64).numpy()
    count = len(split) * split.size[0] * split.size[1]
    mean = np.array([total / (255 * count) for total in sums], dtype=np.float64)
    variances = [(count * square - total**2) / (255 * count) ** 2 for total, square in zip(sums, squares, strict=True)]
    return mean, np.sqrt(np.array(variances, dtype=np.float64))


def tight_boxes(regions: NDArray[np.bool_]) -> NDArray[np.int64]:
    """The smallest box (x0, y0, x1, y1), half-open, around each region: (N, 4); zeros for an empty one.

    Args:
        regions: (N, H, W).

    >>> tight_boxes(np.array([[[False, True, True], [False, True, False]]]))
    array([[1, 0, 3, 2]])
    """
    edges = []
    for across in (1, 2):  # is there anything in this column, in this row?
        filled: NDArray[np.bool_] = np.any(regions, axis=across)
        edges.append((filled.argmax(axis=1), filled.shape[1] - filled[:, ::-1].argmax(axis=1)))
    (x0, x1), (y0, y1) = edges
    boxes = np.stack([x0, y0, x1, y1], axis=1).astype(np.int64)
    boxes[~regions.any(axis=(1, 2))] = 0
    return boxes


def covered(boxes: Sequence[Boxes], size: tuple[int, int]) -> NDArray[np.bool_]:
    """The pixels of a frame that lie in any of a picture's boxes: (B, H, W).

    Args:
        boxes: (k, 4) for each picture: x0, y0, x1, y1, half-open; what lies outside the frame covers nothing.
        size: height and width of the frame.

    >>> covered([np.array([[-5, 0, 2, 1], [1, 1, 9, 9]])], (2, 3)).astype(int)
    array([[[1, 1, 0],
            [0, 1, 1]]])
    """
    regions = np.zeros((len(boxes), *size), dtype=np.bool_)
    for region, own in zip(regions, boxes, strict=True):
        for x0, y0, x1, y1 in np.maximum(own, 0).tolist():
            region[y0:y1, x0:x1] = True
    return regions
