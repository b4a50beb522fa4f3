"""Picture files: decoded, brought to RGB and to one size, or refused by name."""

import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from heatproof.errors import DataError, InputError

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
    Image.DecompressionBombError,
)


@dataclass(frozen=True)
class Framing:
    """Brings pictures to one size as classifiers for photographs were tested: the short side scaled, the centre cut out.

    The pixels are those of torchvision's `Resize` and `CenterCrop` on Pillow pictures.

    Args:
        resize: length of the shorter side after scaling (bilinear, antialiased); None does not scale.
        crop: side of the square cut from the centre; None cuts nothing. A smaller picture is padded with black.
    """

    resize: int | None = None
    crop: int | None = None

    def __post_init__(self) -> None:
        for option in ("resize", "crop"):
            value = getattr(self, option)
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
                raise InputError(f"{option}: {value!r} must be a number of pixels above 0, or null")

    def __call__(self, picture: Image.Image) -> Image.Image:
        """The picture in its frame."""
        if self.resize is not None:
            shorter = min(picture.size)
            width, height = (int(self.resize * side / shorter) for side in picture.size)
            # Pillow's bilinear filter widens with the scale, so it smooths before it shrinks.
            picture = picture.resize((width, height), Image.Resampling.BILINEAR)
        if self.crop is not None:
            # What lies beyond the picture's edges becomes black.
            left, top = (_centred(side, self.crop) for side in picture.size)
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
    try:
        with Image.open(path) as picture:
            rgb = to_rgb(picture)
    except DAMAGED as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{path}: image {index} cannot be read: {reason}; restore or remove the file") from error
    return torch.from_numpy(np.array(framing(rgb))).permute(2, 0, 1).contiguous()


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
