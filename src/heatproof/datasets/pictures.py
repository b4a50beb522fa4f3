"""Picture files: decoded, turned upright, brought to RGB and to one size, or refused by name."""

import functools
import logging
import math
import struct
import warnings
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from heatproof import threads
from heatproof.datasets.dataset import Boxes
from heatproof.errors import DataError, InputError

logger = logging.getLogger(__name__)

T = TypeVar("T")

Exif = Literal["turn", "ignore"]

INCLUSIVE = np.array([0, 0, 1, 1])  # what makes inclusive corners half-open

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
    Warning,  # where warnings are errors
)

# Telephones take photographs of 90 to 180 megapixels; Pillow warns of these, and refuses larger ones.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)

_ORIENTATION = 0x0112  # number of the EXIF tag
# How stored rows become the picture that was seen, for each value of the tag: whether the axes are exchanged; whether
# the columns, then the rows are reversed after that.
_TURNS = {
    1: (False, False, False),
    2: (False, True, False),
    3: (False, True, True),
    4: (False, False, True),
    5: (True, False, False),
    6: (True, True, False),
    7: (True, True, True),
    8: (True, False, True),
}
_BACK = {6: 8, 8: 6}  # all others undo themselves
_ASPECT = 0.05  # how much the shape of an OpenImages mask may differ from that of its picture: rounding of small ones


@dataclass(frozen=True)
class Framing:
    """Brings pictures to one size as classifiers for photographs were tested: scaled, then the centre cut out.

    The pixels are those of torchvision's `Resize` and `CenterCrop` on Pillow pictures. Masks and boxes go through the same
    scaling and the same cut.

    Args:
        resize: length of the shorter side after scaling (bilinear, antialiased); None does not scale.
        crop: side of the square cut from the centre; None cuts nothing. A smaller picture is padded with black.
        squash: both sides become `resize` long, whatever the shape of the picture.
        exif: `turn`: pictures are first turned as the orientation in their EXIF data says, as all viewers show them;
            `ignore`: they are taken as their rows are stored.

    >>> Framing(100, 50).boxes(np.array([[0, 0, 400, 200]]), width=400, height=200)
    array([[-75, -25, 125,  75]])
    >>> Framing(100, squash=True).boxes(np.array([[0, 0, 400, 200]]), width=400, height=200)
    array([[  0,   0, 100, 100]])
    """

    resize: int | None = None
    crop: int | None = None
    squash: bool = False
    exif: Exif = field(default="turn", repr=False)  # the repr names the geometry, in fingerprints

    def __post_init__(self) -> None:
        if self.exif not in ("turn", "ignore"):
            raise InputError(f"exif: {self.exif!r} must be 'turn' or 'ignore'")
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


@dataclass(frozen=True)
class View:
    """How a picture file is shown, for annotations of it.

    Args:
        stored: width and height of the stored rows.
        orientation: how they are turned before they are shown: the value of EXIF's tag; 1: not at all.

    >>> View((60, 40), 6).size
    (40, 60)
    >>> View((60, 40), 6).boxes(np.array([[0, 0, 10, 20]]), (60, 40), "list")
    (array([[20.,  0., 40., 10.]]), (40, 60))
    """

    stored: tuple[int, int]
    orientation: int = 1

    @property
    def size(self) -> tuple[int, int]:
        """Width and height as shown."""
        return self.stored[::-1] if _TURNS[self.orientation][0] else self.stored

    def boxes(
        self, boxes: NDArray[np.number], listed: tuple[int, int] | None, where: object, what: str = "the picture"
    ) -> tuple[NDArray[np.float64], tuple[int, int]]:
        """Boxes as an annotation gives them, upright, and the width and height of the frame that they are in.

        The size that the annotation lists says what its boxes refer to: the picture as shown, or, where only that fits, its
        stored rows, whose boxes are turned. The boxes may refer to a larger or smaller copy of the same shape; its size is
        then the frame's, so that what scales them to another frame is right.

        Args:
            boxes: (k, 4) x0, y0, x1, y1, half-open.
            listed: width and height that the annotation lists; None: those of the picture as shown.
            where: the annotation, for messages.
            what: the picture, for messages.

        Raises:
            DataError: the picture has another shape than the list says, or a box is not where the picture is.
        """
        found = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
        frame = self.size if listed is None else listed
        if frame != self.size and not _same_shape(frame, self.size):
            if not _same_shape(frame, self.stored):
                width, height = self.size
                raise DataError(
                    f"{what} is {width} x {height} pixels, and {frame[0]} x {frame[1]} in {where}; restore the picture that "
                    "was annotated, or correct the size there"
                )
            found, frame = _turned_boxes(found, frame, self.orientation), self._turned_size(frame)
        for box in found.tolist():
            check_box(box, frame, where)
        return found, frame

    def mask(
        self, values: NDArray[Any], what: str, picture: str, *, rescaled: bool = False, hint: str = ""
    ) -> NDArray[Any]:
        """A mask (h, w) of the picture as shown, or of its stored rows, upright.

        Args:
            values: of each pixel.
            what: the mask, for messages.
            picture: the picture, for messages.
            rescaled: whether masks of another size and nearly the same shape are taken as well.
            hint: what else could be done, for the message.

        Raises:
            DataError: the mask has another size.
        """
        size = (values.shape[1], values.shape[0])
        if size == self.size:
            return values
        if size == self.stored:
            return _turned(values, self.orientation)
        for whole in (self.size, self.stored) if rescaled else ():
            ratio = (size[0] * whole[1]) / (size[1] * whole[0])
            if 1 - _ASPECT < ratio < 1 + _ASPECT and size != whole[::-1]:
                return values if whole == self.size else _turned(values, self.orientation)
        width, height = self.size
        raise DataError(
            f"{what} of {size[0]} x {size[1]} pixels for {picture} of {width} x {height}; restore the picture that was annotated{hint}"
        )

    def _turned_size(self, size: tuple[int, int]) -> tuple[int, int]:
        return size[::-1] if _TURNS[self.orientation][0] else size


def check_box(box: Sequence[float], size: tuple[int, int], where: object) -> None:
    """Refuses a box that cannot be of a picture.

    Args:
        box: x0, y0, x1, y1, half-open.
        size: width and height of the picture.
        where: the annotation, for the message.

    Raises:
        DataError: a corner is no finite number, or the box lies outside the picture, or reaches beyond it by more than
            the picture's own side, as boxes do that were given for another size.
    """
    (x0, y0, x1, y1), (width, height) = box, size
    if not all(-math.inf < corner < math.inf for corner in box):  # NumPy has no integers of any length
        wrong = "has a corner that is no finite number"
    elif x0 >= width or y0 >= height or x1 <= 0 or y1 <= 0:
        wrong = f"lies outside the picture of {width} x {height} pixels"
    elif x0 < -width or y0 < -height or x1 > 2 * width or y1 > 2 * height:
        wrong = f"reaches far beyond the picture of {width} x {height} pixels"
    else:
        return
    raise DataError(f"{where}: box {x0:g}, {y0:g}, {x1:g}, {y1:g} {wrong}; correct or remove the annotation")


def reaches_beyond(box: Sequence[float], size: tuple[int, int]) -> bool:
    """Whether a box x0, y0, x1, y1 reaches beyond a picture of this width and height by more than rounding explains.

    >>> reaches_beyond((-1, 0, 10, 11), (10, 10)), reaches_beyond((5, 5, 13, 8), (10, 10))
    (False, True)
    """
    return min(box[0], box[1]) < -2 or box[2] > size[0] + 2 or box[3] > size[1] + 2


def read(path: Path, index: int, framing: Framing) -> Tensor:
    """The picture in a file as uint8 (3, H, W).

    Args:
        path: the file.
        index: where it stands in its part, for the message.
        framing: its size, and whether it is turned.

    Raises:
        DataError: naming file and index, where the file is missing, damaged or truncated.
    """
    picture = framing(read_rgb(path, f"image {index}", framing.exif))
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous()


def read_rgb(path: Path, what: str, exif: Exif = "turn") -> Image.Image:
    """The picture in a file, of any mode, upright, with three channels of 8 bits (`to_rgb`).

    Of an animation or a file with several pages, it is the first one, which is logged.

    Args:
        path: the file.
        what: what it is, for the message.
        exif: whether the picture is turned as its EXIF data say.

    Raises:
        DataError: naming the file, where it is missing, damaged, truncated or of 32 bits a pixel.
    """
    with _opened(path, what) as picture:
        # Telephones store further pictures, such as depth, in a JPEG file: these are no pages.
        if picture.format in ("GIF", "TIFF", "WEBP", "PNG") and getattr(picture, "is_animated", False):
            _log_first_page(path)
        turn = _still_to_turn(picture, exif)
        return _transposed(to_rgb(picture), turn)


def view(path: Path, what: str, exif: Exif = "turn") -> View:
    """How the picture in a file is shown: from its header, where the format has the orientation there.

    Raises:
        DataError: naming the file, where it is missing or damaged.
    """
    with _opened(path, what) as picture:
        orientation = _orientation(picture)
        # Pillow gives the size of a TIFF file after turning, which it does itself.
        sideways = picture.format == "TIFF" and _TURNS[orientation][0]
        stored = picture.size[::-1] if sideways else picture.size
        return View(stored, orientation if exif == "turn" else 1)


def read_values(path: Path, what: str, exif: Exif = "turn") -> NDArray[np.uint8]:
    """A mask file whose values are numbers, such as a trimap's 1, 2 and 3, as one channel (H, W).

    Args:
        path: the file.
        what: whose mask it is, for the message.
        exif: whether it is turned as its EXIF data say.

    Raises:
        DataError: naming the file, where it is missing, damaged, truncated, or holds numbers above 255.
    """
    with _opened(path, what) as picture:
        turn = _still_to_turn(picture, exif)
        if picture.mode == "I" or picture.mode.startswith("I;16"):
            numbers = np.asarray(picture)
            if numbers.max(initial=0) > 255 or numbers.min(initial=0) < 0:
                raise ValueError(f"it holds the number {numbers.max()}; expected 0 to 255")
            values = numbers.astype(np.uint8)
        else:
            # Of a picture with a palette, the index is the number.
            values = np.array(picture if picture.mode in ("L", "P") else to_rgb(picture).convert("L"))
        return _turned(values, turn)


def read_colours(path: Path, what: str, exif: Exif = "turn") -> NDArray[np.uint8]:
    """A mask file of any mode as colours (H, W, 3); an alpha channel is dropped, 1 bit becomes 0 and 255.

    Raises:
        DataError: naming the file, where it is missing, damaged or truncated.
    """
    return np.array(read_rgb(path, what, exif))


def read_marked(path: Path, what: str, exif: Exif = "turn") -> NDArray[np.bool_]:
    """The pixels (H, W) of a mask file of any mode that are not black, whatever its bits; an alpha channel is dropped.

    Raises:
        DataError: naming the file, where it is missing, damaged or truncated.
    """
    with _opened(path, what) as picture:
        turn = _still_to_turn(picture, exif)
        deep = picture.mode in ("I", "F") or picture.mode.startswith("I;16")
        values = np.asarray(picture if deep else to_rgb(picture))
        marked: NDArray[np.bool_] = values != 0 if deep else np.any(values, axis=2)
        return _turned(marked, turn)


def each(read_one: Callable[[int], T], rows: Sequence[int]) -> list[T]:
    """What is read for each row, in their order; several at a time where this process may use several threads."""
    workers = min(threads.limit(), len(rows))  # decoding releases Python's lock
    if workers <= 1:
        return [read_one(row) for row in rows]
    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(read_one, rows))


def upright(picture: Image.Image) -> Image.Image:
    """A picture in memory, turned as its EXIF data say; the same one where they say nothing."""
    return _transposed(picture, _still_to_turn(picture, "turn"))


def is_turned(picture: Image.Image) -> bool:
    """Whether the EXIF data of a picture in memory ask for it to be turned."""
    return _still_to_turn(picture, "turn") != 1


@contextmanager
def _opened(path: Path, what: str) -> Iterator[Image.Image]:
    try:
        if not path.is_file() and path.exists() and not path.is_dir():
            raise OSError("it is a pipe or a device")  # of which the first byte might never come
        with Image.open(path) as picture:
            yield picture
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
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


def _orientation(picture: Image.Image) -> int:
    """The value of EXIF's tag, before the picture is decoded; 1 where it is missing, unknown or unreadable."""
    try:
        value = picture.getexif().get(_ORIENTATION, 1)
    except DAMAGED:  # the picture itself may be whole, and viewers show it as it is stored
        return 1
    return value if value in _TURNS else 1


def _still_to_turn(picture: Image.Image, exif: Exif) -> int:
    """How the decoded rows of a picture that is not decoded yet have to be turned: a value of EXIF's tag."""
    orientation = _orientation(picture)
    if picture.format == "TIFF":  # Pillow turns these while it decodes
        return 1 if exif == "turn" else _BACK.get(orientation, orientation)
    return orientation if exif == "turn" else 1


def _transposed(picture: Image.Image, orientation: int) -> Image.Image:
    exchanged, columns, rows = _TURNS[orientation]
    if exchanged:
        picture = picture.transpose(Image.Transpose.TRANSPOSE)
    if columns:
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return picture.transpose(Image.Transpose.FLIP_TOP_BOTTOM) if rows else picture


def _turned(values: NDArray[Any], orientation: int) -> NDArray[Any]:
    """Values (h, w) of stored pixels, turned."""
    exchanged, columns, rows = _TURNS[orientation]
    turned = values.T if exchanged else values
    turned = turned[:, ::-1] if columns else turned
    return np.ascontiguousarray(turned[::-1] if rows else turned)


def _turned_boxes(boxes: NDArray[np.float64], size: tuple[int, int], orientation: int) -> NDArray[np.float64]:
    """Boxes (k, 4) of the stored rows of this width and height, turned."""
    exchanged, *reversed_axes = _TURNS[orientation]
    if exchanged:
        boxes, size = boxes[:, [1, 0, 3, 2]], size[::-1]
    turned = boxes.copy()
    for axis, is_reversed in enumerate(reversed_axes):
        if is_reversed:
            turned[:, [axis, axis + 2]] = size[axis] - turned[:, [axis + 2, axis]]
    return turned


def _same_shape(one: tuple[int, int], other: tuple[int, int]) -> bool:
    """Whether a picture of one size, scaled to the width (or height) of the other, has its height within a pixel."""
    difference = abs(one[0] * other[1] - one[1] * other[0])
    return difference <= max(one[0], other[0]) and difference <= max(one[1], other[1])


@functools.cache
def _log_first_page(path: Path) -> None:
    logger.info("%s: holds several pictures; the first one is taken", path)
