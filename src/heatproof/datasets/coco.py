"""COCO: photographs with several objects, as detection or panoptic annotations tell them."""

import functools
import hashlib
import logging
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

from heatproof.datasets import listed, pictures
from heatproof.datasets.dataset import Boxes, Indices, covered
from heatproof.datasets.folders import FolderSamples
from heatproof.datasets.listed import ListedSource
from heatproof.datasets.pictures import Exif, Framing, check_box
from heatproof.errors import DataError, InputError

logger = logging.getLogger(__name__)

Objects = Literal["thing_class", "largest_class", "all"]


@dataclass(frozen=True)
class Object:
    """One annotation.

    Args:
        category: COCO's number.
        area: in pixels.
        crowd: many objects at once, which count neither way.
        box: (4,) x0, y0, x1, y1 in the photograph, half-open, real numbers.
        shape: number of a panoptic segment; polygons; run lengths; None: the box is all that is known.
    """

    category: int
    area: float
    crowd: bool
    box: NDArray[np.float64]
    shape: int | list[list[float]] | dict[str, Any] | None


@dataclass(frozen=True)
class Photograph:
    """A picture's entry: its file, its size where that is given, the file of its panoptic mask, and its objects."""

    file: str
    size: tuple[int, int] | None
    mask: Path | None
    objects: tuple[Object, ...]


def coco(
    root: Path,
    images: str = "images",
    annotations: str = "instances.json",
    masks: str = "panoptic_masks",
    objects: Objects = "thing_class",
    resize: int | None = 256,
    crop: int | None = 224,
    squash: bool = False,
    train_share: float = 0.0,
    exif: Exif = "turn",
) -> ListedSource:
    """Photographs of COCO; the label is the category of the largest object, by COCO's area.

    The annotations are COCO's detection JSON (boxes, with polygons or run lengths where they are given) or its panoptic
    JSON with a folder of PNG files (segment = R + 256 G + 65536 B): the file itself tells which. Crowds never count as
    objects; their pixels count neither way where the objects do not cover them. Boxes without area are left out, and so are
    photographs without an object, since nothing could be their label; the numbers of both are logged. LVIS's `coco_url` stands
    in for a missing `file_name`: `images` then holds the files, or the folders train2017 and val2017.

    All pictures are in the test part unless `train_share` says otherwise.

    Args:
        root: the folder.
        images: folder of the photographs, below `root` or absolute: `val2017`.
        annotations: the JSON file, likewise: `annotations/panoptic_val2017.json`.
        masks: folder of the panoptic masks, likewise: `annotations/panoptic_val2017`.
        objects: what the region and the boxes hold. `thing_class`: all objects of the category of the largest thing.
            `largest_class`: the same with stuff (sky, road) as well, which only panoptic annotations have. `all`: all things.
        resize: shorter side after scaling.
        crop: side of the centre square.
        squash: both sides become `resize` long before the cut.
        train_share: this share of each class, the first in the order of the file, is the training part.
        exif: `turn`: photographs are turned as their cameras say; annotations that refer to the stored rows, as the listed
            width and height show, are turned with them. `ignore`: all are taken as they are stored.

    Reference:
        Lin et al.: "Microsoft COCO", ECCV 2014. Kirillov et al.: "Panoptic Segmentation", CVPR 2019.
    """
    if objects not in ("thing_class", "largest_class", "all"):
        raise InputError(f"objects: {objects!r} must be 'thing_class', 'largest_class' or 'all'")
    framing, path = Framing(resize, crop, squash, exif), root / annotations
    content = listed.read_json(path)
    with _in_form(path):
        categories, photographs, flat = _read(path, content, root, images, masks, objects)
    labelled = [photograph for photograph in photographs if any(not item.crowd for item in photograph.objects)]
    if not labelled:
        left_out = f"; left out: {flat[0]}" if flat else ""
        raise DataError(
            f"{path}: no picture has an object; with objects: {objects}, nothing could be a label{left_out}"
        )
    if flat:
        logger.info("%s: %d boxes without area are left out, the first: %s", path, len(flat), flat[0])
    if len(labelled) < len(photographs):
        logger.info("%s: %d pictures have no object and are left out", path, len(photographs) - len(labelled))
    numbers = sorted(categories)
    chosen = [max((item for item in own.objects if not item.crowd), key=_area).category for own in labelled]
    labels = np.searchsorted(numbers, chosen).astype(np.int64)
    parts = {
        part: functools.partial(
            CocoSamples, root / images, path, [labelled[row] for row in rows], labels[rows], framing, numbers, objects
        )
        for part, rows in listed.parted(labels, train_share).items()
    }
    names = [categories[number] for number in numbers]
    return ListedSource(names, framing, parts, listed.no_training_part(root))


class CocoSamples(FolderSamples):
    """Photographs and their objects.

    Args:
        root: folder of the photographs.
        annotations: the JSON file, for messages.
        photographs: their entries.
        labels: (N,) the class of each.
        framing: their frame.
        categories: COCO's number of each label.
        objects: which of them count.
    """

    def __init__(
        self,
        root: Path,
        annotations: Path,
        photographs: Sequence[Photograph],
        labels: Indices,
        framing: Framing,
        categories: Sequence[int],
        objects: Objects,
    ):
        digest = hashlib.sha256(repr((framing, objects, list(categories))).encode())
        for own in photographs:
            where = f"{annotations}: {own.file}"
            sizes = [listed.bytes_of(path, where) for path in (root / own.file, own.mask) if path is not None]
            told = [(o.category, o.area, o.crowd, o.box.tolist(), o.shape) for o in own.objects]
            digest.update(repr((own.file, own.size, sizes, told)).encode())
        super().__init__(root, [own.file for own in photographs], labels, framing, digest.hexdigest())
        self._annotations, self._photographs = annotations, photographs
        self._categories, self._objects = categories, objects

    def regions(self, indices: Indices) -> NDArray[np.bool_]:
        """The union of the chosen objects (B, H, W)."""
        return self.masks(functools.partial(self._united, False), indices)

    def ignored(self, indices: Indices) -> NDArray[np.bool_] | None:
        """The crowds of the chosen categories, apart from the objects (B, H, W); None where the part has no crowd."""
        if not any(item.crowd for own in self._photographs for item in own.objects):
            return None
        crowds: NDArray[np.bool_] = self.masks(functools.partial(self._united, True), indices)
        crowds &= ~self.regions(indices)
        return crowds

    def boxes(self, indices: Indices) -> list[Boxes]:
        """The boxes (k, 4) of the chosen objects, half-open and unclipped."""
        return pictures.each(lambda row: self._framed_boxes(row, self._chosen(row, crowds=False)), indices.tolist())

    def _chosen(self, row: int, *, crowds: bool) -> list[Object]:
        wanted = self._categories[self.labels[row]]
        items = [item for item in self._photographs[row].objects if item.crowd == crowds]
        return items if self._objects == "all" else [item for item in items if item.category == wanted]

    def _framed_boxes(self, row: int, items: Sequence[Object]) -> Boxes:
        boxes = np.array([item.box for item in items]).reshape(-1, 4)
        upright, size = self.upright(row, boxes, self._photographs[row].size, self._annotations)
        return self.framing.boxes(upright, *size)

    def _united(self, crowds: bool, row: int) -> NDArray[np.bool_]:
        """Objects or crowds of a photograph in its frame: their shapes, or their boxes where no shapes are given."""
        items, own, view = self._chosen(row, crowds=crowds), self._photographs[row], self.view(row)
        bare = [item for item in items if item.shape is None]
        region: NDArray[np.bool_] = covered([self._framed_boxes(row, bare)], self.framing.frame(*view.size))[0]
        shaped = [item.shape for item in items if item.shape is not None]
        if not shaped:
            return region
        if own.mask is not None:
            masks = [self._segments(row, own.mask, [shape for shape in shaped if isinstance(shape, int)])]
            what = f"{own.mask}: mask"
        else:
            what = f"{self._annotations}: {own.file}"
            width, height = own.size or view.size
            with _in_form(what):
                masks = [_drawn(shape, width, height) for shape in shaped]
            what += ": shape"
        union = np.any([view.mask(mask, what, own.file) for mask in masks], axis=0)
        region |= self.framing.mask(union.astype(np.uint8)) > 0
        return region

    def _segments(self, row: int, path: Path, wanted: Sequence[int]) -> NDArray[np.bool_]:
        colours = pictures.read_colours(path, f"mask of image {row}", self.framing.exif).astype(np.int64)
        segments = colours @ np.array([1, 256, 65536])
        missing = np.setdiff1d(wanted, segments)
        if missing.size:
            raise DataError(f"{path}: has no pixel of segment {missing[0]}, which {self._annotations} names")
        return np.isin(segments, wanted)


def _area(item: Object) -> float:
    return item.area


def _read(
    path: Path, content: dict[str, Any], root: Path, images: str, masks: str, objects: Objects
) -> tuple[dict[int, str], list[Photograph], list[str]]:
    """The categories that count, the photographs with their objects of these, and the objects that have no area."""
    counts, known, places = dict[int, str](), set[int](), dict[str, str]()
    for place, entry in enumerate(content["categories"]):
        where = f"{path}: categories[{place}]"
        with _in_form(where):
            number, name = _integer(entry["id"]), str(entry["name"])
        listed.once(places, f"id {number}", where)
        known.add(number)
        if objects == "largest_class" or entry.get("isthing", 1):
            counts[number] = name
    found: dict[int, list[Object]] = defaultdict(list)
    files: dict[int, Path] = {}
    flat: list[str] = []
    pictured, sizes = _pictured(path, content["images"], root / images)
    for place, annotation in enumerate(content["annotations"]):
        with _in_form(f"{path}: annotations[{place}]"):
            image = _integer(annotation["image_id"])
        if image not in pictured:
            raise DataError(
                f"{path}: an annotation is of picture {image}, which is not among its images; correct the file"
            )
        if "segments_info" in annotation:
            files[image] = root / masks / annotation["file_name"]
            items = [{**segment, "segmentation": int(segment["id"])} for segment in annotation["segments_info"]]
        else:
            items = [annotation]
        for item in items:
            where = f"{path}: picture {image}: object {item.get('id', f'annotations[{place}]')}"
            with _in_form(where):
                category = _integer(item["category_id"])
            if category not in known:
                raise DataError(f"{path}: picture {image}: category {category} is not among its categories")
            if category in counts:
                with _in_form(where):
                    own = _object(where, item, flat)
                if own is not None:
                    found[image].append(own)
    beyond: list[str] = []
    for image, size in sizes.items():
        if size is not None:
            for placed in found[image]:
                check_box(placed.box.tolist(), size, f"{path}: {pictured[image]}")
                if pictures.reaches_beyond(placed.box.tolist(), size):
                    beyond.append(pictured[image])
    if beyond:
        logger.warning(
            "%s: %d boxes reach beyond their pictures, the first one that of %s; COCO's boxes are left, top, width and height, "
            "not corners", path, len(beyond), beyond[0],
        )  # fmt: skip
    photographs = [
        Photograph(file, sizes[image], files.get(image), tuple(found[image])) for image, file in pictured.items()
    ]
    return counts, photographs, flat


def _pictured(
    path: Path, entries: Sequence[dict[str, Any]], folder: Path
) -> tuple[dict[int, str], dict[int, tuple[int, int] | None]]:
    """The file of each picture, and its width and height where they are given, by its number."""
    files: dict[int, str] = {}
    sizes: dict[int, tuple[int, int] | None] = {}
    places: dict[str, str] = {}
    for place, entry in enumerate(entries):
        where = f"{path}: images[{place}]"
        with _in_form(where):
            image, file, size = _integer(entry["id"]), _file(entry, folder), _size(entry)
        listed.once(places, f"id {image}", where)
        listed.once(places, f"file {file}", where)
        files[image], sizes[image] = file, size
        if size is not None and min(size) < 1:
            raise DataError(f"{where}: {file} is said to be {size[0]} x {size[1]} pixels; correct or remove both")
    return files, sizes


def _file(entry: dict[str, Any], folder: Path) -> str:
    """The file of a photograph, below the folder of all."""
    if not entry.get("file_name") and entry.get("coco_url"):
        return _file_of(entry["coco_url"], folder)
    if not isinstance(entry["file_name"], str):
        raise TypeError(f"file_name is {entry['file_name']!r}; expected text")
    return entry["file_name"]


def _size(entry: dict[str, Any]) -> tuple[int, int] | None:
    """Width and height of a photograph; None where neither is given, or both are 0."""
    if not entry.get("width") and not entry.get("height"):
        return None
    return _integer(entry["width"]), _integer(entry["height"])


def _file_of(url: str, folder: Path) -> str:
    """The file of a photograph that is known by its address at COCO: in a folder for COCO's part, or without one.

    >>> _file_of("http://images.cocodataset.org/val2017/000000397133.jpg", Path("."))
    '000000397133.jpg'
    """
    *_, part, name = urlsplit(url).path.split("/")
    return f"{part}/{name}" if (folder / part / name).is_file() else name


def _object(where: str, entry: dict[str, Any], flat: list[str]) -> Object | None:
    """An annotation; None, noted among the flat ones, where its box has no area."""
    left, top, width, height = (float(value) for value in entry["bbox"])
    empty = f"{where}: box of {width:g} x {height:g} pixels is empty"
    if width < 0 or height < 0:
        raise DataError(f"{empty}; correct or remove the annotation")
    if width == 0 or height == 0:
        flat.append(empty)
        return None
    area = width * height if entry.get("area") is None else float(entry["area"])
    if not np.isfinite((left, top, width, height, area)).all():
        raise DataError(
            f"{where}: box {left:g}, {top:g}, {width:g}, {height:g} of area {area:g} has a value that is no finite number; "
            "correct or remove the annotation"
        )
    return Object(
        category=_integer(entry["category_id"]),
        area=area,
        crowd=bool(_integer(entry.get("iscrowd") or 0)),
        box=np.array([left, top, left + width, top + height]),
        shape=_shape(entry.get("segmentation")),
    )


def _shape(given: Any) -> Any:
    """The shape of an object; None where polygons are given that have no corners."""
    return given if isinstance(given, dict | int) or (given and any(given)) else None


def _integer(value: Any) -> int:
    """A whole number, which may be written as 3, 3.0 or "3"."""
    if (number := float(value)) % 1:
        raise ValueError(f"{number:g} is no whole number")
    return int(value)


def _drawn(shape: Any, width: int, height: int) -> NDArray[np.bool_]:
    """Polygons or run lengths as a mask (height, width)."""
    if isinstance(shape, dict):
        size = [_integer(side) for side in shape["size"]]
        if sorted(size) != sorted((height, width)):
            raise ValueError(f"run lengths for {size[-1]} x {size[0]} pixels; the picture has {width} x {height}")
        return run_lengths(shape["counts"], *size)
    if not all(np.isfinite(polygon).all() for polygon in shape):
        raise ValueError("a polygon has a corner that is no finite number")
    filled: NDArray[np.bool_] = np.any([inside(np.array(polygon), height, width) for polygon in shape], axis=0)
    return filled


def inside(polygon: NDArray[np.floating], height: int, width: int) -> NDArray[np.bool_]:
    """The pixels (height, width) whose centres lie inside a polygon, by counting how many edges lie to their left.

    COCO's own code draws outlines on a finer grid; the two differ along the outline, by less than a pixel.

    Args:
        polygon: (2 V,) x and y of the corners in turn, counted from the upper left corner of the first pixel.
        height: of the mask.
        width: of the mask.

    >>> inside(np.array([1.0, 0.0, 3.0, 0.0, 3.0, 2.0, 1.0, 2.0]), 3, 4).astype(int)
    array([[0, 1, 1, 0],
           [0, 1, 1, 0],
           [0, 0, 0, 0]])
    """
    corners = polygon.reshape(-1, 2)
    centres = np.arange(height) + 0.5
    turns = np.zeros((height, width + 1), dtype=np.int64)
    for (x0, y0), (x1, y1) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        rows = np.flatnonzero((y0 <= centres) != (y1 <= centres))
        at = x0 + (centres[rows] - y0) * (x1 - x0) / (y1 - y0 if y1 != y0 else 1.0)
        np.add.at(turns, (rows, np.clip(np.ceil(at - 0.5), 0, width).astype(np.int64)), 1)
    odd: NDArray[np.bool_] = turns.cumsum(axis=1)[:, :width] % 2 == 1
    return odd


def run_lengths(counts: str | Sequence[int], height: int, width: int) -> NDArray[np.bool_]:
    """The mask (height, width) that COCO's run lengths tell: of zeros and ones in turn, down one column after another.

    Args:
        counts: the lengths, or the string that COCO packs them into.
        height: of the mask.
        width: of the mask.

    Raises:
        ValueError: the lengths do not add up to the mask.

    >>> run_lengths([1, 2, 3], 2, 3).astype(int)
    array([[0, 1, 0],
           [1, 0, 0]])
    """
    lengths = _unpacked(counts) if isinstance(counts, str) else list(counts)
    total = sum(lengths)
    if total != height * width or min(lengths) < 0:
        shown = total if abs(total) < 10**12 else "far too many"  # of a damaged string, longer than Python prints
        raise ValueError(f"run lengths add up to {shown} pixels; expected {height} x {width}")
    values = np.repeat(np.arange(len(lengths)) % 2 == 1, lengths)
    return values.reshape(width, height).T


def _unpacked(text: str) -> list[int]:
    """Five bits a character, the sixth says that more follow; from the third length on, the difference to the last but one."""
    lengths: list[int] = []
    number = shift = 0
    for character in text:
        bits = ord(character) - 48
        number |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            number -= 1 << shift
        lengths.append(number + (lengths[-2] if len(lengths) > 2 else 0))
        number = shift = 0
    return lengths


@contextmanager
def _in_form(where: object) -> Iterator[None]:
    """While a JSON file's content is read; what it lacks becomes one line."""
    try:
        yield
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else " ".join(str(error).split())
        raise DataError(f"{where}: is not in COCO's form: {reason}; restore the file") from error
