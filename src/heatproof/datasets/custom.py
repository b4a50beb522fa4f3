"""A user's own data set, named by a dotted path."""

import functools
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from heatproof import plugins
from heatproof.datasets import pictures
from heatproof.datasets.dataset import PARTS, Boxes, Indices, Part
from heatproof.errors import DataError, HeatproofError

_HELD_BYTES = 2**30


class CustomSource:
    """Pictures from `MyData(dataset_dir, part, **options)`, with part "train" or "test".

    What is asked of the object: `len(data)`; `data[i]` -> (image, label) with a Pillow picture or uint8 values (H, W),
    (H, W, C) or (C, H, W) as array or tensor; `classes` or `class_names`; and, if it knows the objects, any of
    `regions(indices)` -> (B, H, W) boolean, `boxes(indices)` -> for each image (k, 4) integers (x0, y0, x1, y1), half-open
    and unclipped, and `ignored(indices)` -> (B, H, W) boolean: pixels that count neither as object nor as background. Each
    may return None. An image must be the same whenever it is asked for. A Pillow picture is turned as its EXIF data say; where
    the object has annotations, it must do so itself, since these could refer to either.

    Args:
        path: dotted path of the class.
        folder: handed on.
        options: handed on.

    Raises:
        PluginError: the path leads nowhere, or the options do not fit.
    """

    parts = PARTS

    def __init__(self, path: str, folder: Path | None, options: Mapping[str, Any]):
        self.path, self.folder, self.options = path, folder, dict(options)
        self._make = plugins.resolve(path)
        plugins.check_options(path, self._make, self.options, positional=2)
        self._opened: dict[Part, CustomSamples] = {}

    @property
    def class_names(self) -> tuple[str, ...]:
        """As the object tells them."""
        return self._any_part.class_names

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the first picture."""
        return self._any_part.shape[1:]

    @property
    def channels(self) -> int:
        """3 for RGB, 1 for grey pictures."""
        return self._any_part.shape[0]

    @functools.cached_property
    def fingerprint(self) -> str:
        """Names the pictures and labels of both parts, which are read for it."""
        parts: tuple[Part, Part] = ("train", "test")
        return hashlib.sha256("\n".join(self.open(part).fingerprint for part in parts).encode()).hexdigest()

    @property
    def _any_part(self) -> "CustomSamples":
        return next(iter(self._opened.values()), None) or self.open("test")

    def open(self, part: Part) -> "CustomSamples":
        """Makes the object of a part and reads all its pictures once."""
        if part not in self._opened:
            where = f"{self.path} ({part})"
            items = _called(where, lambda: self._make(self.folder, part, **self.options))
            self._opened[part] = CustomSamples(where, items)
        return self._opened[part]


class CustomSamples:
    """The pictures of a user's object.

    They are all read once when the part is opened: for the labels, to see that they have one size, and for the hash that
    is the fingerprint. Up to 1 GiB of them are kept; more are read again when they are asked for.
    """

    def __init__(self, where: str, items: Any):
        self.where, self._items = where, items
        self.class_names = _class_names(where, items)
        count = _called(where, lambda: len(items))
        if count == 0:
            raise DataError(f"{where}: has no pictures")
        self.shape = _three(tuple(self._read(0)[0].shape))
        self.labels: Indices = np.empty(count, dtype=np.int64)
        self._held: Tensor | None = None
        if count * int(np.prod(self.shape)) <= _HELD_BYTES:
            self._held = torch.empty((count, *self.shape), dtype=torch.uint8)
        digest = hashlib.sha256(repr((self.shape, self.class_names)).encode())
        for row in range(count):
            picture, self.labels[row] = self._item(row)
            digest.update(picture.numpy().tobytes() + b"%d;" % self.labels[row])
            if self._held is not None:
                self._held[row] = picture
        self.fingerprint = digest.hexdigest()

    def pixels(self, indices: Indices) -> Tensor:
        """Pictures (B, C, H, W), uint8."""
        if self._held is not None:
            return self._held[torch.from_numpy(indices)]
        pixels = torch.empty((len(indices), *self.shape), dtype=torch.uint8)
        for place, row in enumerate(indices.tolist()):
            pixels[place] = self._item(row)[0]
        return pixels

    def regions(self, indices: Indices) -> NDArray[np.bool_] | None:
        """The objects' pixels (B, H, W), where the object tells them."""
        return self._masks("regions", indices)

    def boxes(self, indices: Indices) -> list[Boxes] | None:
        """The objects' boxes (k, 4) for each image, where the object tells them."""
        found = self._told("boxes", indices)
        if found is None:
            return None
        where = f"{self.where}.boxes"
        boxes = _called(where, lambda: [np.asarray(own) for own in found])
        if len(boxes) != len(indices):
            raise DataError(f"{where}: {len(boxes)} entries for {len(indices)} images; expected one for each")
        return [_boxes(f"{where}: image {index}", own) for index, own in zip(indices.tolist(), boxes, strict=True)]

    def ignored(self, indices: Indices) -> NDArray[np.bool_] | None:
        """Pixels that count neither way (B, H, W), where the object tells them."""
        return self._masks("ignored", indices)

    def _told(self, name: str, indices: Indices) -> Any:
        """What a method that the object may lack says about these images; None where it lacks it."""
        if not hasattr(self._items, name):
            return None
        return _called(f"{self.where}.{name}", lambda: getattr(self._items, name)(indices))

    def _masks(self, name: str, indices: Indices) -> NDArray[np.bool_] | None:
        found = self._told(name, indices)
        if found is None:
            return None
        masks = np.asarray(found)
        expected = (len(indices), *self.shape[1:])
        if masks.dtype != np.bool_ or masks.shape != expected:
            raise DataError(f"{self.where}.{name}: {masks.dtype} of shape {masks.shape}; expected bool {expected}")
        return masks

    def _read(self, row: int) -> tuple[Tensor, int]:
        where = f"{self.where}[{row}]"
        item = _called(where, lambda: self._items[row])
        if not isinstance(item, tuple | list) or len(item) != 2:
            raise DataError(f"{where}: is a {type(item).__name__}; expected (image, label)")
        return _picture(where, self._upright(where, item[0])), _label(where, item[1], len(self.class_names))

    def _upright(self, where: str, image: Any) -> Any:
        """A Pillow picture as its camera held it; all else as it is."""
        if not isinstance(image, Image.Image) or not pictures.is_turned(image):
            return image
        if any(hasattr(self._items, name) for name in ("regions", "boxes", "ignored")):
            raise DataError(
                f"{where}: the picture's EXIF data ask for it to be turned, and its annotations may be of the turned or of the "
                "stored one; return PIL.ImageOps.exif_transpose(image), or an array"
            )
        return _called(where, lambda: pictures.upright(image))

    def _item(self, row: int) -> tuple[Tensor, int]:
        picture, label = self._read(row)
        if tuple(picture.shape) != self.shape:
            raise DataError(
                f"{self.where}[{row}]: an image of shape {tuple(picture.shape)} (C, H, W), the first one {self.shape}; "
                "all must have one size"
            )
        return picture, label


def _picture(where: str, image: Any) -> Tensor:
    """A user's image as uint8 (C, H, W)."""
    if isinstance(image, Image.Image):
        image = np.array(image if image.mode == "L" else _called(where, lambda: pictures.to_rgb(image)))
    array = np.asarray(image)
    if array.dtype != np.uint8:
        raise DataError(
            f"{where}: the image is {array.dtype}; expected uint8 values from 0 to 255, or a Pillow picture"
        )
    if array.ndim == 2:
        array = array[None]
    elif array.ndim == 3 and array.shape[2] in (1, 3):
        array = array.transpose(2, 0, 1)
    if array.ndim != 3 or array.shape[0] not in (1, 3):
        raise DataError(
            f"{where}: the image has shape {array.shape}; expected (H, W), (H, W, C) or (C, H, W) with 1 or 3 channels"
        )
    return torch.from_numpy(np.array(array))


def _boxes(where: str, boxes: NDArray[Any]) -> Boxes:
    """A user's boxes of one image as (k, 4) integers."""
    if boxes.size == 0:
        return np.empty((0, 4), dtype=np.int64)
    if boxes.dtype.kind not in "iu" or boxes.ndim != 2 or boxes.shape[1] != 4:
        raise DataError(f"{where}: {boxes.dtype} of shape {boxes.shape}; expected integers (k, 4): x0, y0, x1, y1")
    wrong = boxes[(boxes[:, 2] <= boxes[:, 0]) | (boxes[:, 3] <= boxes[:, 1])]
    if len(wrong):
        raise DataError(f"{where}: box {wrong[0].tolist()} is empty; expected x0 < x1 and y0 < y1, half-open")
    return boxes.astype(np.int64)


def _label(where: str, label: Any, count: int) -> int:
    try:
        number = int(label)
    except (TypeError, ValueError) as error:
        raise DataError(f"{where}: the label {label!r} is no integer") from error
    if not 0 <= number < count or number != label:
        raise DataError(f"{where}: the label {label!r} names none of the {count} classes (0 to {count - 1})")
    return number


def _class_names(where: str, items: Any) -> tuple[str, ...]:
    names = getattr(items, "class_names", None)
    names = getattr(items, "classes", None) if names is None else names
    if names is None or isinstance(names, str) or not len(names):
        raise DataError(f"{where}: has neither class_names nor classes; give it a list with the name of each label")
    return tuple(map(str, names))


def _three(shape: tuple[int, ...]) -> tuple[int, int, int]:
    channels, height, width = shape
    return channels, height, width


def _called(where: str, call: Any) -> Any:
    """What a user's code returns; whatever it raises becomes one line that says where."""
    try:
        return call()
    except HeatproofError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{where}: {type(error).__name__}: {reason}") from error
