"""Planted: generated pictures whose right answer is known.

The class is told by the texture inside a small object at a random place; the background and some distractors tell
nothing. All arithmetic is on integers and every picture has a random stream of its own, so a seed gives the same bytes
on every machine, whichever pictures are asked for and in whatever order.
"""

import functools
import hashlib
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from heatproof import artefacts, checks, seeding
from heatproof.datasets.dataset import PARTS
from heatproof.errors import InputError

GENERATOR_VERSION = 1  # raised whenever a byte of any picture changes

GRID = 32  # places and textures are laid out on a grid of 32 x 32, whatever the size of the picture
SIZES = (32, 64, 224)

_ATTEMPTS = 16  # at placing all discs of a picture without touching
_SAME_TEXTURE = 4  # of every class where the outline tells it: the checkerboard
_TILE = 12  # a multiple of every texture's period
_ONE = _TILE**2  # unit of patterns, so that their means are integers
_BLOCK_BYTES = 2 * 2**20
_HELD_BYTES = 256 * 2**20

Integers = NDArray[np.int64]
Pattern = Callable[[Integers, Integers], NDArray[np.bool_]]

TEXTURES: dict[str, Pattern] = {
    "horizontal": lambda y, x: y % 4 < 2,
    "vertical": lambda y, x: x % 4 < 2,
    "falling": lambda y, x: (y - x) % 4 < 2,
    "rising": lambda y, x: (y + x) % 4 < 2,
    "checkerboard": lambda y, x: (y // 2 + x // 2) % 2 == 0,
    "dots": lambda y, x: (y % 4 < 2) & (x % 4 < 2),
    "rings": lambda y, x: np.isin(np.maximum(abs(2 * (y % 6) - 5), abs(2 * (x % 6) - 5)), (1, 5)),
    "lattice": lambda y, x: (y % 4 == 0) | (x % 4 == 0),
    "fine_horizontal": lambda y, x: y % 2 == 0,
    "fine_vertical": lambda y, x: x % 2 == 0,
    "fine_checkerboard": lambda y, x: (y + x) % 2 == 0,
    "zigzag": lambda y, x: (y + abs(x % 6 - 3)) % 4 < 2,
    "wide_horizontal": lambda y, x: y % 6 < 3,
    "wide_vertical": lambda y, x: x % 6 < 3,
}

# Outlines of `evidence: shape`, on coordinates v, u in (-1, 1) times the diameter d, so that integers suffice.
Outline = Callable[[Integers, Integers, int], NDArray[np.bool_]]
OUTLINES: dict[str, Outline] = {
    "disc": lambda v, u, d: v * v + u * u <= d * d,
    "square": lambda v, u, d: np.maximum(abs(v), abs(u)) < d,
    "diamond": lambda v, u, d: abs(v) + abs(u) < d,
    "plus": lambda v, u, d: np.minimum(abs(v), abs(u)) * 3 < d,
    "cross": lambda v, u, d: np.minimum(abs(v - u), abs(v + u)) * 3 < d,
    "ring": lambda v, u, d: (v * v + u * u <= d * d) & (4 * (v * v + u * u) > d * d),
    "bar": lambda v, u, d: abs(v) * 5 < 2 * d,
    "column": lambda v, u, d: abs(u) * 5 < 2 * d,
    "pyramid": lambda v, u, d: 2 * abs(u) <= v + d,
    "funnel": lambda v, u, d: 2 * abs(u) <= d - v,
    "corner": lambda v, u, d: (v > 0) | (u < 0),
    "frame": lambda v, u, d: np.maximum(abs(v), abs(u)) * 2 > d,
}


@dataclass(frozen=True)
class Planted:
    """The options of the generated data set.

    A picture is blurred noise around a random colour. On it lie discs that do not touch: the objects, whose two-coloured
    texture (random phase, random colours) tells the class, and distractors of one noisy colour. Label i % classes belongs
    to picture i.

    Args:
        size: side of the pictures: 32, 64 or 224. The layout is that of the 32 x 32 grid at every size.
        classes: number of classes, 2 to 14 (12 with `evidence: shape`).
        train_images: pictures of the training set, validation included.
        test_images: pictures of the test set.
        objects: discs that carry the evidence, all of one class in a picture.
        distractors: discs that carry none.
        diameter: of the discs, in 32ths of the picture, 5 to 15; 11 covers 9.5 % of a picture.
        difficulty: 0 to 1. Lowers the texture's contrast from 64 to 16 grey levels either side of its mean,
            raises the noise in the discs from 8 to 24, puts the texture of a random class faintly over the
            background (up to 24 grey levels), and gives the distractors a random pattern (up to the contrast).
        evidence: `texture`: all outlines are the same disc, so the shape of a hole left by removal tells nothing.
            `shape`: leaks on purpose; the outline tells the class and the texture is the same for all. It serves to
            test the leakage control.

    Raises:
        InputError: naming the option and the values that it may have.

    >>> Planted(classes=99)
    Traceback (most recent call last):
    heatproof.errors.InputError: Planted: classes: 99 must lie between 2 and 14
    """

    size: int = 32
    classes: int = 8
    train_images: int = 4000
    test_images: int = 1000
    objects: int = 1
    distractors: int = 2
    diameter: int = 11
    difficulty: float = 0.0
    evidence: Literal["texture", "shape"] = "texture"

    def __post_init__(self) -> None:
        if self.size not in SIZES:
            raise InputError(f"Planted: size: {self.size!r} must be one of {', '.join(map(str, SIZES))}")
        if self.evidence not in ("texture", "shape"):
            raise InputError(f"Planted: evidence: {self.evidence!r} must be 'texture' or 'shape'")
        checks.integers(
            self,
            classes=(2, len(TEXTURES if self.evidence == "texture" else OUTLINES)),
            train_images=(1, 10**7),
            test_images=(1, 10**7),
            objects=(1, 4),
            distractors=(0, 4),
            diameter=(5, 15),
        )
        if not isinstance(self.difficulty, int | float) or not 0.0 <= self.difficulty <= 1.0:
            raise InputError(f"Planted: difficulty: {self.difficulty!r} must lie between 0 and 1")

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of the textures, or of the outlines."""
        return tuple(TEXTURES if self.evidence == "texture" else OUTLINES)[: self.classes]

    @property
    def scale(self) -> int:
        """Pixels for each cell of the grid along an axis."""
        return self.size // GRID

    @property
    def discs(self) -> int:
        """Objects and distractors of a picture."""
        return self.objects + self.distractors

    @property
    def contrast(self) -> int:
        """Grey levels of a texture either side of its mean."""
        return self.between(64, 16)

    def between(self, easy: int, hard: int) -> int:
        """The value for this difficulty, given those at 0 and at 1."""
        return easy + (hard - easy) * round(1024 * self.difficulty) // 1024

    def fingerprint(self, seed: int) -> str:
        """Names the bytes of all pictures without making one: a hash of options, seed and generator version."""
        named = {"planted": GENERATOR_VERSION, "seed": seed, **asdict(self)}
        named["difficulty"] = round(1024 * self.difficulty)
        return hashlib.sha256(artefacts.canonical(named).encode()).hexdigest()


class PlantedSource:
    """A Planted data set as source of pictures: its options and the root seed."""

    channels = 3
    parts = PARTS

    def __init__(self, options: Planted, seed: int):
        self.options, self.seed = options, seed
        self.class_names = options.class_names
        self.size = (options.size, options.size)
        self.fingerprint = options.fingerprint(seed)

    def open(self, part: str) -> "PlantedSamples":
        """The pictures of "train" or "test"."""
        return PlantedSamples(self, part)


class PlantedSamples:
    """The pictures of one part; small parts are made once and held, large ones made when they are asked for."""

    def __init__(self, source: PlantedSource, part: str):
        options = source.options
        count = options.train_images if part == "train" else options.test_images
        self.options, self.seed, self.part = options, source.seed, part
        self.labels: Integers = np.arange(count, dtype=np.int64) % options.classes
        self.fingerprint = f"{source.fingerprint}/{part}"
        self.size, self.channels = source.size, source.channels
        self._holds = count * 3 * options.size**2 <= _HELD_BYTES
        self._held: Tensor | None = None

    def pixels(self, indices: Integers) -> Tensor:
        """Pictures (B, 3, H, W), uint8."""
        if not self._holds:
            return self._made(indices)
        if self._held is None:
            self._held = self._made(np.arange(len(self.labels)))
        return self._held[torch.from_numpy(indices)]

    def regions(self, indices: Integers) -> NDArray[np.bool_]:
        """The objects' pixels (B, H, W)."""
        regions = np.zeros((len(indices), *self.size), dtype=np.bool_)
        corners = _corners(self.options, _Stream(self._words(indices, _place_words(self.options))))
        outlines = _outlines(self.options, self.labels[indices])
        for corner in corners[: self.options.objects]:
            regions[_window(self.options, corner)] |= outlines
        return regions

    def boxes(self, indices: Integers) -> None:
        """None beside the regions, which tell all."""
        return

    def ignored(self, indices: Integers) -> None:
        """None: each pixel belongs to an object, or to none."""
        return

    def _made(self, indices: Integers) -> Tensor:
        block = max(1, _BLOCK_BYTES // (3 * self.options.size**2))
        pixels = torch.empty((len(indices), 3, *self.size), dtype=torch.uint8)
        for start in range(0, len(indices), block):
            chosen = indices[start : start + block]
            words = self._words(chosen, _picture_words(self.options))
            made = _pictures(self.options, self.labels[chosen], words)
            pixels[start : start + block] = torch.from_numpy(made).permute(0, 3, 1, 2)
        return pixels

    def _words(self, indices: Integers, count: int) -> NDArray[np.uint64]:
        return seeding.words(count, indices, self.seed, "planted", self.part)


class _Stream:
    """Random integers from words (B, W), taken from left to right."""

    def __init__(self, words: NDArray[np.uint64]):
        self._words, self._taken = words, 0

    def below(self, limit: int, *shape: int) -> Integers:
        """Integers (B, *shape), uniform in [0, limit)."""
        return seeding.below(limit, self._next(math.prod(shape))).reshape(-1, *shape)

    def bytes(self, *shape: int) -> NDArray[np.int32]:
        """Integers (B, *shape), uniform in [0, 256)."""
        count = math.prod(shape)
        words = np.ascontiguousarray(self._next(_noise_words(count)), dtype="<u8")
        return words.view(np.uint8)[:, :count].astype(np.int32).reshape(-1, *shape)

    def _next(self, count: int) -> NDArray[np.uint64]:
        self._taken += count
        return self._words[:, self._taken - count : self._taken]


def _place_words(options: Planted) -> int:
    return _ATTEMPTS * options.discs


def _picture_words(options: Planted) -> int:
    # The background's colour, contrast, texture, phase (10) and noise, the colour, contrast, phase (9) and noise of each disc.
    background, disc = 10 + _noise_words(3 * options.size**2), 9 + _noise_words((options.diameter * options.scale) ** 2)
    return _place_words(options) + background + disc * options.discs


def _noise_words(count: int) -> int:
    return -(-count // 8)


def _pictures(options: Planted, labels: Integers, words: NDArray[np.uint64]) -> NDArray[np.uint8]:
    """Pictures (B, H, W, 3) from the random words (B, W) of each."""
    stream = _Stream(words)
    corners = _corners(options, stream)
    canvas = _background(options, stream)
    for corner, (outline, patch) in zip(corners, _discs(options, labels, stream), strict=True):
        window = _window(options, corner)
        canvas[window] = np.where(outline[..., None], patch, canvas[window])
    return np.clip(canvas, 0, 255).astype(np.uint8)


def _background(options: Planted, stream: _Stream) -> NDArray[np.int32]:
    """Blurred noise around a random colour, with the texture of a random class faintly over it: (B, H, W, 3)."""
    colour, eighths = _colour(options, stream, 64)
    texture, phase = stream.below(options.classes, 1)[:, 0], stream.below(_TILE, 2)
    cells = np.arange(options.size) // options.scale
    clutter = options.between(0, 24) * eighths * _pattern(texture, phase, cells)[..., None] // (8 * _ONE)
    sums, width = stream.bytes(options.size, options.size, 3) - 128, 2 * options.scale + 1
    for axis in (1, 2, 1, 2):
        sums = _box_sums(sums, width, axis)
    # Two box means along each axis leave a spread of about 49 / width grey levels; the gain makes it about 33.
    blurred = sums * (2 * width) // (3 * width**4)
    return colour + clutter + blurred


def _colour(options: Planted, stream: _Stream, margin: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """A colour that stays `margin` away from black and white, and the contrast of each channel: 4 to 8 eighths, signed."""
    colour, eighths = margin + stream.below(256 - 2 * margin, 1, 1, 3), 4 + stream.below(5, 1, 1, 3)
    sign = np.where(stream.below(2048, 1, 1, 1) < options.between(0, 1024), -1, 1)
    return colour.astype(np.int32), (sign * eighths).astype(np.int32)


def _discs(
    options: Planted, labels: Integers, stream: _Stream
) -> Iterator[tuple[NDArray[np.bool_], NDArray[np.int32]]]:
    """Outline (B or 1, D, D) and pixels (B, D, D, 3) of each disc: the objects first, then the distractors."""
    side = options.diameter * options.scale
    cells = np.arange(side) // options.scale
    textures = labels if options.evidence == "texture" else np.full_like(labels, _SAME_TEXTURE)
    outlines = _outlines(options, labels)
    for k in range(options.discs):
        is_object = k < options.objects
        colour, eighths = _colour(options, stream, 80)
        phase, noise = stream.below(_TILE, 2), stream.bytes(side, side)
        if is_object:
            pattern, contrast = _pattern(textures, phase, cells), options.contrast
        else:
            one_per_cell = noise[:, cells[:, None] * options.scale, cells * options.scale]
            pattern, contrast = _ONE * (2 * (one_per_cell & 1) - 1), options.between(0, options.contrast)
        grain = options.between(8, 24)
        noise = (noise * (2 * grain + 1) >> 8) - grain
        outline = outlines if is_object else _outline("disc", options)[None]
        yield outline, colour + contrast * eighths * pattern[..., None] // (8 * _ONE) + noise[..., None]


def _pattern(textures: Integers, phases: Integers, cells: Integers) -> NDArray[np.int32]:
    """The textures (B,) shifted by their phases (B, 2), for each pair of cells: (B, len(cells), len(cells)).

    Light and dark lie `2 * _ONE` apart, with mean 0 for every texture: brightness tells nothing.
    """
    rows, columns = ((cells + phases[:, axis, None]) % _TILE for axis in (0, 1))
    pattern: NDArray[np.int32] = _tiles()[textures[:, None, None], rows[:, :, None], columns[:, None, :]]
    return pattern


@functools.cache
def _tiles() -> NDArray[np.int32]:
    y, x = np.mgrid[:_TILE, :_TILE]
    tiles = np.stack([pattern(y, x) for pattern in TEXTURES.values()]).astype(np.int32)
    centred: NDArray[np.int32] = 2 * (_ONE * tiles - tiles.sum(axis=(1, 2), keepdims=True, dtype=np.int32))
    return centred


def _outlines(options: Planted, labels: Integers) -> NDArray[np.bool_]:
    """The objects' outlines (B or 1, D, D)."""
    if options.evidence == "texture":
        return _outline("disc", options)[None]
    return np.stack([_outline(name, options) for name in options.class_names])[labels]


def _outline(name: str, options: Planted) -> NDArray[np.bool_]:
    side = options.diameter * options.scale
    v, u = 2 * np.mgrid[:side, :side] + 1 - side
    return OUTLINES[name](v, u, side)


def _corners(options: Planted, stream: _Stream) -> Integers:
    """The upper left corners (discs, B, 2) of all discs on the grid as (y, x); drawn anew where not all found room."""
    picks = stream.below(2**32, _ATTEMPTS, options.discs)
    corners = np.empty((options.discs, len(picks), 2), dtype=np.int64)
    missing = np.arange(len(picks))
    for attempt in range(_ATTEMPTS):
        corners[:, missing], fits = _placed(options, picks[missing, attempt])
        missing = missing[~fits]
        if not len(missing):
            return corners
    raise InputError(
        f"Planted: {options.discs} discs of diameter {options.diameter} do not fit on {GRID} x {GRID} without touching; "
        "take fewer objects and distractors, or a smaller diameter"
    )


def _placed(options: Planted, picks: Integers) -> tuple[Integers, NDArray[np.bool_]]:
    """One disc after the other, each uniform over the free places: corners (discs, B, 2), and whether all fitted (B,)."""
    side = GRID - options.diameter + 1
    y, x = np.divmod(np.arange(side * side, dtype=np.int32), side)
    free = np.ones((len(picks), side * side), dtype=np.bool_)
    fits = np.ones(len(picks), dtype=np.bool_)
    corners = []
    for pick in picks.T:
        count = free.sum(axis=1)
        fits &= count > 0
        nth = (pick * count) >> 32  # of the free places, counted from 0
        place = np.minimum((free.cumsum(axis=1, dtype=np.int32) <= nth[:, None]).sum(axis=1), side * side - 1)
        corners.append(np.stack([y[place], x[place]], axis=1))
        dy, dx = abs(y - y[place, None]), abs(x - x[place, None])
        # Discs stay apart by their centres' distance; other outlines by the boxes around them.
        apart = dy**2 + dx**2 if options.evidence == "texture" else np.maximum(dy, dx) ** 2
        free &= apart > options.diameter**2
    return np.stack(corners), fits


def _window(options: Planted, corner: Integers) -> tuple[Integers, Integers, Integers]:
    """Index of the pixels (B, D, D) of the discs at `corner` (B, 2) in an array (B, H, W)."""
    steps = np.arange(options.diameter * options.scale)
    rows, columns = (corner[:, axis, None] * options.scale + steps for axis in (0, 1))
    return np.arange(len(corner))[:, None, None], rows[:, :, None], columns[:, None, :]


def _box_sums(values: NDArray[np.int32], width: int, axis: int) -> NDArray[np.int32]:
    """Sums over `width` neighbours along an axis whose ends meet."""
    lines = values.swapaxes(0, axis)
    sums = np.concatenate([np.zeros_like(lines[:1]), lines, lines[: width - 1]])
    np.cumsum(sums, axis=0, out=sums)
    boxes: NDArray[np.int32] = sums[width:] - sums[: len(lines)]
    return boxes.swapaxes(0, axis)
