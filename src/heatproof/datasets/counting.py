"""Counting: grids of tiles in which the label says how many tiles show the class that is asked for.

Which tiles were counted is known, so the right answer of an explanation is: these, and no others. A grid has a random
stream of its own, so a seed gives the same grids on every machine, whichever are asked for and in whatever order.
"""

import hashlib
from dataclasses import asdict, dataclass
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from heatproof import artefacts, checks, seeding
from heatproof.datasets.dataset import PARTS, Indices, Part, Source, first_of_each_class
from heatproof.errors import DataError

Value = TypeVar("Value", bound=np.generic)

GENERATOR_VERSION = 1  # raised whenever a byte of any grid changes

# The corners of the RGB cube that are neither black nor white; a colour's number is its binary number less one.
COLOURS: dict[str, tuple[int, int, int]] = {
    "blue": (0, 0, 1),
    "green": (0, 1, 0),
    "cyan": (0, 1, 1),
    "red": (1, 0, 0),
    "magenta": (1, 0, 1),
    "yellow": (1, 1, 0),
}


@dataclass(frozen=True)
class Counting:
    """The options of the toy task: tiles of one colour each, and the question how many have the colour `class_idx`.

    Grid i of a part has i % (grid_size^2 + 1) tiles of that colour, at random places; each of the others has one of the
    five other colours, all equally likely. With a tile as large as a vision transformer's patch, the tile is the unit of
    truth of a patch mask.

    Args:
        grid_size: tiles along each side.
        class_idx: the colour that is counted: 0 blue, 1 green, 2 cyan, 3 red, 4 magenta, 5 yellow.
        tile: side of a tile, in pixels.
        train_images: grids of the training set, validation included.
        test_images: grids of the test set.

    Raises:
        InputError: naming the option and the values that it may have.

    Reference:
        Nalmpantis, Panagiotopoulos, Gkountouras, Papakostas, Aziz: "Vision DiffMask", CVPRW 2023, arXiv:2304.06391.

    >>> Counting(class_idx=6)
    Traceback (most recent call last):
    heatproof.errors.InputError: Counting: class_idx: 6 must lie between 0 and 5
    """

    grid_size: int = 3
    class_idx: int = 3
    tile: int = 16
    train_images: int = 4000
    test_images: int = 1000

    def __post_init__(self) -> None:
        checks.integers(
            self,
            grid_size=(1, 64),
            class_idx=(0, len(COLOURS) - 1),
            tile=(1, 1024),
            train_images=(1, 10**7),
            test_images=(1, 10**7),
        )


class CountingSource:
    """A Counting data set as source of pictures: its options and the root seed."""

    channels = 3
    parts = PARTS

    def __init__(self, options: Counting, seed: int):
        self.options, self.seed = options, seed
        self.class_names = counts(options.grid_size)
        side = options.grid_size * options.tile
        self.size = (side, side)
        named = {"counting": GENERATOR_VERSION, "seed": seed, **asdict(options)}
        self.fingerprint = hashlib.sha256(artefacts.canonical(named).encode()).hexdigest()

    def open(self, part: str) -> "CountingSamples":
        """The grids of "train" or "test"."""
        return CountingSamples(self, part)


class CountingSamples:
    """The grids of one part, made when they are asked for."""

    def __init__(self, source: CountingSource, part: str):
        self.options, self.seed, self.part = source.options, source.seed, part
        self._tile = (source.options.tile, source.options.tile)
        count = self.options.train_images if part == "train" else self.options.test_images
        self.labels: Indices = np.arange(count, dtype=np.int64) % len(source.class_names)
        self.fingerprint = f"{source.fingerprint}/{part}"

    def colours(self, indices: Indices) -> NDArray[np.int64]:
        """The number of each tile's colour: (B, grid_size, grid_size)."""
        tiles = self.options.grid_size**2
        words = seeding.words(2 * tiles, indices, self.seed, "counting", self.part)
        others = seeding.below(len(COLOURS) - 1, words[:, :tiles])
        others += others >= self.options.class_idx
        counted = chosen(self.labels[indices], words[:, tiles:])
        numbers = np.where(counted, self.options.class_idx, others)
        return numbers.reshape(-1, self.options.grid_size, self.options.grid_size)

    def pixels(self, indices: Indices) -> Tensor:
        """Pictures (B, 3, H, W), uint8."""
        return coloured(self.colours(indices), self.options.tile)

    def regions(self, indices: Indices) -> NDArray[np.bool_]:
        """The counted tiles' pixels (B, H, W)."""
        return enlarged(self.colours(indices) == self.options.class_idx, self._tile)

    def boxes(self, indices: Indices) -> None:
        """None beside the regions, which tell all; one box lies around all counted tiles."""
        return

    def ignored(self, indices: Indices) -> None:
        """None: each pixel belongs to a counted tile, or to none."""
        return


def counts(grid_size: int) -> tuple[str, ...]:
    """Names of the labels: all numbers of counted tiles."""
    return tuple(map(str, range(grid_size**2 + 1)))


def chosen(numbers: Indices, words: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """True at `numbers[b]` of the P places of row b, all choices equally likely: (B, P).

    Args:
        numbers: (B,), from 0 to P.
        words: (B, P) random.

    >>> chosen(np.array([2]), np.array([[7, 1, 5]], dtype=np.uint64))
    array([[False,  True,  True]])
    """
    order = words.argsort(axis=1, kind="stable").argsort(axis=1, kind="stable")
    few: NDArray[np.bool_] = order < numbers[:, None]
    return few


def coloured(numbers: NDArray[np.int64], tile: int) -> Tensor:
    """Grids of one-colour tiles as pictures: uint8 (B, 3, rows * tile, columns * tile), of 0 and 255 only.

    Args:
        numbers: (B, rows, columns), each a colour's number in `COLOURS`.
        tile: side of a tile, in pixels.

    >>> coloured(np.array([[[3, 5]]]), tile=1).flatten().tolist()  # red and yellow: red, green, blue values of both
    [255, 255, 0, 255, 0, 0]
    """
    palette = 255 * np.array(list(COLOURS.values()), dtype=np.uint8)
    return torch.from_numpy(enlarged(palette[numbers].transpose(0, 3, 1, 2), (tile, tile)))


def enlarged(values: NDArray[Value], tile: tuple[int, int]) -> NDArray[Value]:
    """Each value of (..., rows, columns) as a tile of this height and width."""
    return values.repeat(tile[0], axis=-2).repeat(tile[1], axis=-1)


class CountingPictures:
    """Grids of another source's pictures; the label says how many of them show the class `class_idx`.

    Grid i of a part has i % (grid_size^2 + 1) pictures of that class, at random places; the rest is drawn from all other
    classes. No picture occurs twice in a grid. Grids of different splits share no picture: those of the training split
    are made of its pictures, those of the validation split of the others of the training part.

    Args:
        source: the pictures.
        seed: root seed.
        split_ratio: share of each class's training pictures that is trained on; the same share of each count's grids is.
        grid_size: pictures along each side.
        class_idx: the class that is counted.
        train_images: grids of the training set, validation included.
        test_images: grids of the test set.

    Raises:
        InputError: naming the option and the values that it may have.
    """

    parts = PARTS

    def __init__(
        self,
        source: Source,
        seed: int,
        split_ratio: float,
        grid_size: int = 3,
        class_idx: int = 3,
        train_images: int = 4000,
        test_images: int = 1000,
    ):
        checks.integer("grid_size", grid_size, 1, 64)
        checks.integer("class_idx", class_idx, 0, len(source.class_names) - 1)
        checks.integer("train_images", train_images, 1, 10**7)
        checks.integer("test_images", test_images, 1, 10**7)
        self.source, self.seed, self.split_ratio = source, seed, split_ratio
        self.grid_size, self.class_idx = grid_size, class_idx
        self.images: dict[Part, int] = {"train": train_images, "test": test_images}
        self.class_names = counts(grid_size)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of a grid."""
        height, width = self.source.size
        return self.grid_size * height, self.grid_size * width

    @property
    def channels(self) -> int:
        """3 for RGB, 1 for grey pictures."""
        return self.source.channels

    @property
    def fingerprint(self) -> str:
        """Names the pictures and what is made of them."""
        named = {
            "counting_pictures": GENERATOR_VERSION,
            "pictures": self.source.fingerprint,
            "seed": self.seed,
            "split_ratio": self.split_ratio,
            "grid_size": self.grid_size,
            "class_idx": self.class_idx,
            "images": self.images,
        }
        return hashlib.sha256(artefacts.canonical(named).encode()).hexdigest()

    def open(self, part: Part) -> "CountingPicturesSamples":
        """The grids of a part.

        Raises:
            DataError: there are fewer pictures to draw from than a grid may need.
        """
        return CountingPicturesSamples(self, part)


class CountingPicturesSamples:
    """The grids of one part, made when they are asked for."""

    def __init__(self, source: CountingPictures, part: Part):
        self.source, self.part, self.pictures = source, part, source.source.open(part)
        self.labels: Indices = np.arange(source.images[part], dtype=np.int64) % len(source.class_names)
        self.fingerprint = f"{source.fingerprint}/{part}"
        grids, theirs = (np.ones(len(labels), dtype=np.bool_) for labels in (self.labels, self.pictures.labels))
        if part == "train":
            grids = first_of_each_class(self.labels, source.split_ratio)
            theirs = first_of_each_class(self.pictures.labels, source.split_ratio)
        # Each grid belongs to a split, and so does each picture: True for train (and test), False for validation.
        self._split_of_grid = grids
        self._pools = {split: self._pool(theirs == split) for split in np.unique(grids).tolist()}

    def _pool(self, own: NDArray[np.bool_]) -> tuple[Indices, Indices]:
        """Rows of a split's pictures: of the class that is counted, and of others."""
        shows: NDArray[np.bool_] = self.pictures.labels == self.source.class_idx
        pool = np.flatnonzero(own & shows), np.flatnonzero(own & ~shows)
        needed = self.source.grid_size**2
        for rows, which in zip(pool, ("of class", "of classes other than"), strict=True):
            if len(rows) < needed:
                raise DataError(
                    f"{self.part}: a split has {len(rows)} pictures {which} {self.source.class_idx} "
                    f"({self.source.source.class_names[self.source.class_idx]}), and a grid may need {needed}; "
                    "take a smaller grid_size, another split_ratio, or more pictures"
                )
        return pool

    def drawn(self, indices: Indices) -> tuple[Indices, NDArray[np.bool_]]:
        """Rows (B, grid_size, grid_size) of the pictures in each grid, and which of them show the counted class."""
        side, tiles = self.source.grid_size, self.source.grid_size**2
        words = seeding.words(3 * tiles, indices, self.source.seed, "counting_pictures", self.part)
        counted = chosen(self.labels[indices], words[:, :tiles])
        rows = np.empty((len(indices), tiles), dtype=np.int64)
        for split, (showing, others) in self._pools.items():
            own = self._split_of_grid[indices] == split
            rows[own] = np.where(
                counted[own],
                showing[distinct(len(showing), words[own, tiles : 2 * tiles])],
                others[distinct(len(others), words[own, 2 * tiles :])],
            )
        return rows.reshape(-1, side, side), counted.reshape(-1, side, side)

    def pixels(self, indices: Indices) -> Tensor:
        """Pictures (B, C, H, W), uint8."""
        rows, _ = self.drawn(indices)
        pixels = self.pictures.pixels(rows.reshape(-1))
        return laid_out(pixels.reshape(*rows.shape, *pixels.shape[1:]))

    def regions(self, indices: Indices) -> NDArray[np.bool_]:
        """The pixels of the counted pictures (B, H, W)."""
        return enlarged(self.drawn(indices)[1], self.source.source.size)

    def boxes(self, indices: Indices) -> None:
        """None beside the regions, which tell all; one box lies around all counted tiles."""
        return

    def ignored(self, indices: Indices) -> None:
        """None: each pixel belongs to a counted picture, or to none."""
        return


def distinct(limit: int, words: NDArray[np.uint64]) -> Indices:
    """As many different integers in [0, limit) as there are words in each row, all choices equally likely: (B, P).

    >>> distinct(4, np.zeros((1, 3), dtype=np.uint64))
    array([[0, 1, 2]])
    """
    drawn = np.empty(words.shape, dtype=np.int64)
    for place in range(words.shape[1]):
        number = seeding.below(limit - place, words[:, place])  # among those that are left
        for taken in np.sort(drawn[:, :place], axis=1).T:
            number += number >= taken
        drawn[:, place] = number
    return drawn


def laid_out(pictures: Tensor) -> Tensor:
    """Grids of pictures (B, rows, columns, C, h, w) as one picture each: (B, C, rows * h, columns * w)."""
    count, rows, columns, channels, height, width = pictures.shape
    return pictures.permute(0, 3, 1, 4, 2, 5).reshape(count, channels, rows * height, columns * width)
