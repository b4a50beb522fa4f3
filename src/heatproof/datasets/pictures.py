"""Picture files: decoded, brought to RGB and to one size, or refused by name."""

import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from heatproof import threads
from heatproof.datasets.dataset import Boxes
from heatproof.errors import DataError, InputError

T = TypeVar("T")

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".pbm", ".pgm", ".ppm", ".tif", ".tiff", ".webp")

# What Pillow's decoders raise on damaged files; `Image.UnidentifiedImageError` is an OSError.
DAMAGED = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    struct.error,
    zlib.error,
)


@dataclass(frozen=True)
class Framing:
    """Brings pictures to one size as classifiers for photographs were tested: scaled, then the centre cut out.

    The pixels are those of torchvision's `Resize` and `CenterCrop` on Pillow pictures. Masks and boxes go through the same
    scaling and the same cut.

    Args:
        resize: length of the shorter side after scaling (bilinear, antialiased); None does not scale.
        crop: side of the square cut from the centre; None cuts nothing. A smaller picture is padded with black.
        squash: both sides become `resize` long, whatever the shape of the picture.

    >>> Framing(100, 50).boxes(np.array([[0, 0, 400, 200]]), width=400, height=200)
    array([[-75, -25, 125,  75]])
    >>> Framing(100, squash=True).boxes(np.array([[0, 0, 400, 200]]), width=400, height=200)
    array([[  0,   0, 100, 100]])
    """

    resize: int | None = None
    crop: int | None = None
    squash: bool = False

    def __post_init__(self) -> None:
        for option in ("resize", "crop"):
            value = getattr(self, option)
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
                raise InputError(f"{option}: {value!r} must be a number of pixels above 0, or null")
        if not isinstance(self.squash, bool):
            raise InputError(f"squash: {self.squash!r} must be true or false")
        if self.squash and self.resize is None:
            raise InputError("squash: needs resize, the length of both sides")

    def __call__(self, picture: Image.Image) -> Image.Image:
        """The picture in its frame."""
        # Pillow's bilinear filter widens with the scale, so it smooths before it shrinks.
        return self._framed(picture, Image.Resampling.BILINEAR)

    def mask(self, values: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Values (h, w) of a picture's pixels, in its frame (H, W): each pixel takes the nearest; zeros where it is padded.

        A pixel of the frame takes the value in which its centre lies. (OpenCV's nearest neighbour takes the one in which
        its upper left corner lies.)
        """
        return np.array(self._framed(Image.fromarray(values), Image.Resampling.NEAREST))

    def boxes(self, boxes: NDArray[np.number], width: int, height: int) -> Boxes:
        """Boxes (k, 4) of a picture, half-open and in its pixels, in its frame: unclipped integers (k, 4).

        An edge goes to where the mask of the box would have it, so that a box stays tight around its mask. One that
        becomes thinner than a pixel may become empty.

        Args:
            boxes: x0, y0, x1, y1.
            width: of the picture.
            height: of the picture.
        """
        scaled_width, scaled_height = self.scaled(width, height)
        # The pixels i are covered whose centre lies inside: x0 <= (i + 0.5) / scale < x1.
        scale = np.array([scaled_width / width, scaled_height / height] * 2)
        edges: Boxes = np.ceil(np.asarray(boxes, dtype=np.float64).reshape(-1, 4) * scale - 0.5).astype(np.int64)
        edges -= np.array(self.origin(width, height) * 2)
        return edges

    @property
    def size(self) -> tuple[int, int] | None:
        """Height and width of all frames; None where they depend on the picture."""
        side = self.crop if self.crop is not None else self.resize if self.squash else None
        return None if side is None else (side, side)

    def frame(self, width: int, height: int) -> tuple[int, int]:
        """Height and width of the frame of a picture of this size."""
        return self.size or self.scaled(width, height)[::-1]

    def scaled(self, width: int, height: int) -> tuple[int, int]:
        """Width and height of a picture after scaling, before the cut."""
        if self.resize is None:
            return width, height
        if self.squash:
            return self.resize, self.resize
        shorter = min(width, height)
        return int(self.resize * width / shorter), int(self.resize * height / shorter)

    def origin(self, width: int, height: int) -> tuple[int, int]:
        """Where in the scaled picture the frame begins: (left, top)."""
        if self.crop is None:
            return 0, 0
        scaled_width, scaled_height = self.scaled(width, height)
        return _centred(scaled_width, self.crop), _centred(scaled_height, self.crop)

    def _framed(self, picture: Image.Image, resampling: Image.Resampling) -> Image.Image:
        (left, top), scaled = self.origin(*picture.size), self.scaled(*picture.size)
        if self.resize is not None:
            picture = picture.resize(scaled, resampling)
        if self.crop is not None:
            # What lies beyond the picture's edges becomes black.
            picture = picture.crop((left, top, left + self.crop, top + self.crop))
        return picture


def _centred(side: int, crop: int) -> int:
    """Where a centred cut begins; torchvision pads half of what lacks, rounded down, and rounds half a pixel to even."""
    return round((side - crop) / 2) if side >= crop else -((crop - side) // 2)


def read(path: Path, index: int, framing: Framing) -> Tensor:
    """The picture in a file as uint8 (3, H, W).

    Args:
        path: the file.
        index: where it stands in its part, for the message.
        framing: its size.

    Raises:
        DataError: naming file and index, where the file is missing, damaged or truncated.
    """
    return torch.from_numpy(np.array(framing(read_rgb(path, f"image {index}")))).permute(2, 0, 1).contiguous()


def read_rgb(path: Path, what: str) -> Image.Image:
    """The picture in a file, of any mode, with three channels of 8 bits (`to_rgb`).

    Args:
        path: the file.
        what: what it is, for the message.

    Raises:
        DataError: naming the file, where it is missing, damaged, truncated or of 32 bits a pixel.
    """
    with _opened(path, what) as picture:
        return to_rgb(picture)


def read_size(path: Path, index: int) -> tuple[int, int]:
    """Width and height of the picture in a file, from its header.

    Raises:
        DataError: naming file and index, where the file is missing or damaged.
    """
    with _opened(path, f"image {index}") as picture:
        return picture.size


def read_values(path: Path, what: str) -> NDArray[np.uint8]:
    """A mask file whose values are numbers, such as a trimap's 1, 2 and 3, as one channel (H, W).

    Args:
        path: the file.
        what: whose mask it is, for the message.

    Raises:
        DataError: naming the file, where it is missing, damaged or truncated.
    """
    with _opened(path, what) as picture:
        # Of a picture with a palette, the index is the number.
        return np.array(picture if picture.mode in ("L", "P") else to_rgb(picture).convert("L"))


def read_colours(path: Path, what: str) -> NDArray[np.uint8]:
    """A mask file of any mode as colours (H, W, 3); an alpha channel is dropped, 1 bit becomes 0 and 255.

    Raises:
        DataError: naming the file, where it is missing, damaged or truncated.
    """
    return np.array(read_rgb(path, what))


def each(read_one: Callable[[int], T], rows: Sequence[int]) -> list[T]:
    """What is read for each row, in their order; several at a time where this process may use several threads."""
    workers = min(threads.limit(), len(rows))  # decoding releases Python's lock
    if workers <= 1:
        return [read_one(row) for row in rows]
    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(read_one, rows))


@contextmanager
def _opened(path: Path, what: str) -> Iterator[Image.Image]:
    try:
        with Image.open(path) as picture:
            yield picture
    except Image.DecompressionBombError as error:
        size = str(error).partition(",")[0]
        raise DataError(f"{path}: {what} is too large: {size}; scale it down") from error
    except DAMAGED as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{path}: {what} cannot be read: {reason}; restore or remove the file") from error


def to_rgb(picture: Image.Image) -> Image.Image:
    """The picture with three channels of 8 bits.

    Grey values are repeated, palettes looked up, CMYK is converted, 16 bits are cut to the upper 8; an alpha channel is
    dropped, so the colours stay that lie under it.
    """
    if picture.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8)).convert("RGB")
    if picture.mode in ("I", "F"):
        raise ValueError(f"mode {picture.mode} (32 bits a pixel) has no agreed white; convert it to 8 bits")
    if picture.mode == "P" and "transparency" in picture.info:
        picture = picture.convert("RGBA")  # straight to RGB, Pillow would warn
    return picture.convert("RGB")
