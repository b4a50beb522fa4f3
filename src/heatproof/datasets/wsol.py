"""Folders in the format of wsolevaluation: text files that name pictures, labels, and boxes or masks."""

import functools
import hashlib
import logging
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from heatproof.datasets import listed, pictures
from heatproof.datasets.dataset import WITHOUT_TRAINING, Boxes, Indices, Part
from heatproof.datasets.folders import FolderSamples
from heatproof.datasets.listed import ListedSource
from heatproof.datasets.pictures import INCLUSIVE, Exif, Framing, check_box, reaches_beyond
from heatproof.errors import DataError

logger = logging.getLogger(__name__)


_MOST_CLASSES = 10**6  # of which each gets a name; more are no labels


@dataclass(frozen=True)
class Located:
    """The boxes of a picture as the list gives them.

    Args:
        corners: (k, 4) x0, y0, x1, y1, all inclusive.
        size: width and height of the picture that they refer to; None: the list of sizes is missing.
        where: the list that says to which picture they refer, for messages.
    """

    corners: list[tuple[int, int, int, int]]
    size: tuple[int, int] | None
    where: Path


@dataclass(frozen=True)
class Masks:
    """The mask files of a picture.

    Args:
        objects: one for each object; their union is the region.
        ignored: what counts neither way, apart from the region; None: nothing.
    """

    objects: tuple[Path, ...]
    ignored: Path | None


def wsol(
    root: Path,
    metadata: str = "metadata",
    masks: str = ".",
    train_split: str = "train",
    test_split: str | None = None,
    class_names: str | None = None,
    resize: int | None = 224,
    crop: int | None = None,
    squash: bool = True,
    exif: Exif = "turn",
) -> ListedSource:
    """CUB, ILSVRC or OpenImages as wsolevaluation lays them out, or any set of pictures in that format.

    Each split has a folder with `image_ids.txt` (a path below `root` in each line), `class_labels.txt` (id,label), and,
    where the objects are known, `localization.txt`: boxes (id,x0,y0,x1,y1, with inclusive corners; `image_sizes.txt` says
    id,width,height; where this file is missing, the pictures say it) or masks (id,mask file,ignore file; several lines for several objects, the ignore file in the first).
    A picture without a line there has no object: its region is empty.

    Boxes are scaled as there, by multiplication and truncation, and become half-open: x1 is one more than the number
    there. (In a picture smaller than its frame, truncation thus ends a box up to a scaled pixel too early.) Masks of any mode are read (1 bit, grey, colours: all that is not black), united, and brought to the frame by
    nearest neighbour, as the picture is; what the ignore file marks counts neither way, apart from the objects.

    Args:
        root: what the ids are relative to, such as `dataset/CUB`.
        metadata: folder of the splits' folders, below `root` or absolute, such as `../../metadata/CUB`.
        masks: folder of the mask files, below `root` or absolute.
        train_split: name of the training pictures' split.
        test_split: name of the test pictures' split; None: `test`, or `val` where there is no `test`.
        class_names: file with a name in each line, in the order of the labels, below `root` or absolute; None: numbers.
        resize: length of both sides after scaling (of the shorter one without `squash`).
        crop: side of a square that is cut from the centre.
        squash: all pictures become squares.
        exif: `turn`: pictures are turned as their cameras say; boxes and masks that refer to the stored rows, as their
            sizes show, are turned with them. `ignore`: all are taken as they are stored.

    Reference:
        Choe, Oh, Lee, Chun, Akata, Shim: "Evaluating Weakly Supervised Object Localization Methods Right", CVPR 2020.
    """
    folder, framing = root / metadata, Framing(resize, crop, squash, exif)
    tested = test_split or ("test" if (folder / "test").is_dir() else "val")
    folders: dict[Part, Path] = {"train": folder / train_split, "test": folder / tested}
    there = {part: place for part, place in folders.items() if (place / "image_ids.txt").is_file()}
    if not there:
        raise DataError(
            f"{folder}: has neither {train_split}/image_ids.txt nor {tested}/image_ids.txt; the option metadata names the "
            "folder of the splits, below dataset_dir or absolute"
        )
    labels = {part: _labels(place) for part, place in there.items()}
    names = _class_names(None if class_names is None else root / class_names, labels)
    parts = {
        part: functools.partial(_opened, root, place, root / masks, labels[part], framing)
        for part, place in there.items()
    }
    lacking = next((place for part, place in folders.items() if part not in there), folder)
    return ListedSource(
        names,
        framing,
        parts,
        f"{lacking / 'image_ids.txt'}: no such file; there is no such split; add it, or {WITHOUT_TRAINING}",
    )


class WsolSamples(FolderSamples):
    """Picture files with boxes, or with mask files; with neither where the split has no localisation."""

    def __init__(
        self,
        root: Path,
        files: Sequence[str],
        labels: Indices,
        framing: Framing,
        fingerprint: str,
        located: Sequence[Located | None] | None,
        masks: Sequence[Masks] | None,
    ):
        super().__init__(root, files, labels, framing, fingerprint)
        self._located, self._masks = located, masks

    def boxes(self, indices: Indices) -> list[Boxes] | None:
        """Boxes (k, 4), half-open and unclipped, for each picture."""
        return None if self._located is None else pictures.each(self._framed_boxes, indices.tolist())

    def _framed_boxes(self, row: int) -> Boxes:
        assert self._located is not None
        own = self._located[row]
        if own is None:
            return np.empty((0, 4), dtype=np.int64)
        boxes, (width, height) = self.upright(row, np.array(own.corners) + INCLUSIVE, own.size, own.where)
        scaled_width, scaled_height = self.framing.scaled(width, height)
        left, top = self.framing.origin(width, height)
        # The order of the published code, which truncates; its corners are inclusive.
        scale = np.array([scaled_width, scaled_height] * 2)
        scaled = np.trunc((boxes - INCLUSIVE) * scale / np.array([width, height] * 2)).astype(np.int64)
        framed: Boxes = scaled + INCLUSIVE - np.array([left, top] * 2)
        return framed

    def regions(self, indices: Indices) -> NDArray[np.bool_] | None:
        """The union of each picture's masks (B, H, W)."""
        return None if self._masks is None else self.masks(self._region, indices)

    def ignored(self, indices: Indices) -> NDArray[np.bool_] | None:
        """What the ignore masks mark, apart from the objects (B, H, W)."""
        if self._masks is None or not any(own.ignored for own in self._masks):
            return None
        return self.masks(self._ignored, indices)

    def _region(self, row: int) -> NDArray[np.bool_]:
        assert self._masks is not None
        return self._united(row, self._masks[row].objects)

    def _ignored(self, row: int) -> NDArray[np.bool_]:
        assert self._masks is not None
        ignored = self._masks[row].ignored
        if ignored is None:
            return np.zeros(self.size, dtype=np.bool_)
        marked: NDArray[np.bool_] = self._united(row, (ignored,)) & ~self._region(row)
        return marked

    def _united(self, row: int, files: Sequence[Path]) -> NDArray[np.bool_]:
        if not files:
            return np.zeros(self.size, dtype=np.bool_)
        view, masks = self.view(row), []
        for file in files:
            mask = pictures.read_marked(file, f"mask of image {row}", self.framing.exif)
            # OpenImages has masks that are larger or smaller than their pictures, of the same shape.
            rescaled = self.framing.squash
            hint = "" if rescaled else ", or set squash, where only the scale differs"
            upright = view.mask(mask, f"{file}: mask", self.files[row], rescaled=rescaled, hint=hint)
            masks.append(self.framing.mask(upright.astype(np.uint8)) > 0)
        union: NDArray[np.bool_] = np.any(masks, axis=0)
        return union


def _opened(root: Path, folder: Path, mask_root: Path, labels: dict[str, int], framing: Framing) -> WsolSamples:
    ids, localization = folder / "image_ids.txt", folder / "localization.txt"
    digest = hashlib.sha256(repr(framing).encode())
    files: list[str] = []
    places: dict[str, str] = {}
    for where, name in listed.records(ids):
        listed.once(places, name, where)
        if name not in labels:
            raise DataError(f"{where}: {name} has no line in {folder / 'class_labels.txt'}; add its label there")
        files.append(name)
        digest.update(f"{name}\0{labels[name]}\0{listed.bytes_of(root / name, where)}\n".encode())
    if not files:
        raise DataError(f"{ids}: names no pictures")
    lines = list(listed.records(localization)) if localization.is_file() else []
    digest.update("\n".join(line for _, line in lines).encode())
    located: list[Located | None] | None = None
    masks: list[Masks] | None = None
    known: Mapping[str, object] = {}
    if lines and _names_a_box(lines[0][1]):
        sizes = _sizes(folder / "image_sizes.txt")
        named_by = localization if sizes is None else folder / "image_sizes.txt"
        digest.update(repr(sizes and sorted(sizes.items())).encode())
        known = located_of = _located(lines, sizes, named_by)
        located = [located_of.get(name) for name in files]
    elif lines:
        known = masks_of = _masks(lines, mask_root)
        masks = [masks_of.get(name, Masks((), None)) for name in files]
        for name, own in zip(files, masks, strict=True):
            for path in (*own.objects, *([own.ignored] if own.ignored else [])):
                digest.update(f"{listed.bytes_of(path, f'{localization}: {name}')}\n".encode())
    if lines:
        _compare(localization, known.keys(), ids, places.keys())
    numbers = np.array([labels[name] for name in files], dtype=np.int64)
    return WsolSamples(root, files, numbers, framing, digest.hexdigest(), located, masks)


def _compare(localization: Path, located: Set[str], ids: Path, files: Set[str]) -> None:
    """Logs which lines of a localisation are of no picture, and how many pictures are without a line.

    Raises:
        DataError: no line is of a picture.
    """
    if located.isdisjoint(files):
        raise DataError(f"{localization}: names none of the pictures of {ids}; the ids must be the same in both")
    if strange := sorted(located - files):
        logger.warning("%s: %d ids are not in %s, such as %s", localization, len(strange), ids, strange[0])
    if bare := sorted(files - located):
        logger.info(
            "%s: has no line for %d of %d pictures, such as %s; these have no object",
            localization, len(bare), len(files), bare[0],
        )  # fmt: skip


def _labels(folder: Path) -> dict[str, int]:
    """The label of each id."""
    labels, places = {}, dict[str, str]()
    for where, line in listed.records(folder / "class_labels.txt"):
        name, text = _fields(where, line, "id,label")
        listed.once(places, name, where)
        labels[name] = listed.whole_number(where, "the label", text)
        if not 0 <= labels[name] < _MOST_CLASSES:
            raise DataError(
                f"{where}: the label is {labels[name]}; labels are numbers of classes, from 0, below {_MOST_CLASSES}"
            )
    if not labels:
        raise DataError(f"{folder / 'class_labels.txt'}: holds no labels")
    return labels


def _class_names(path: Path | None, labels: Mapping[Part, dict[str, int]]) -> tuple[str, ...]:
    """The names in a file, or as many numbers as there are labels in all parts."""
    highest = max(max(of_part.values()) for of_part in labels.values())
    if path is None:
        return tuple(map(str, range(highest + 1)))
    names = tuple(line for _, line in listed.records(path))
    if highest >= len(names):
        raise DataError(
            f"{path}: names {len(names)} classes, and the highest label is {highest}; one line for each class"
        )
    return names


def _sizes(path: Path) -> dict[str, tuple[int, int]] | None:
    """Width and height of each id; None where the file is missing."""
    if not path.is_file():
        return None
    sizes, places = {}, dict[str, str]()
    for where, line in listed.records(path):
        name, *texts = _fields(where, line, "id,width,height")
        listed.once(places, name, where)
        width, height = (
            listed.whole_number(where, side, text) for side, text in zip(("width", "height"), texts, strict=True)
        )
        if width < 1 or height < 1:
            raise DataError(f"{where}: {name} is said to be {width} x {height} pixels; correct the sizes")
        sizes[name] = (width, height)
    return sizes


def _located(
    lines: Sequence[tuple[str, str]], sizes: Mapping[str, tuple[int, int]] | None, named_by: Path
) -> dict[str, Located]:
    """The boxes of each id."""
    located: dict[str, Located] = {}
    beyond: list[str] = []
    for where, line in lines:
        name, *texts = _fields(where, line, "id,x0,y0,x1,y1")
        x0, y0, x1, y1 = (
            listed.whole_number(where, edge, text) for edge, text in zip(("x0", "y0", "x1", "y1"), texts, strict=True)
        )
        if sizes is not None and name not in sizes:
            raise DataError(f"{where}: {name} has a box and no line in image_sizes.txt; add id,width,height there")
        if x1 < x0 or y1 < y0:
            raise DataError(
                f"{where}: box {x0},{y0},{x1},{y1} is empty; expected x0 <= x1 and y0 <= y1, both inclusive"
            )
        size = None if sizes is None else sizes[name]
        if size is not None:
            check_box((x0, y0, x1 + 1, y1 + 1), size, where)
            if reaches_beyond((x0, y0, x1 + 1, y1 + 1), size):
                beyond.append(where)
        located.setdefault(name, Located([], size, named_by)).corners.append((x0, y0, x1, y1))
    if beyond:
        logger.warning(
            "%s: %d boxes reach beyond their pictures, the first one in this line; boxes are x0,y0,x1,y1, not width and height",
            beyond[0], len(beyond),
        )  # fmt: skip
    return located


def _masks(lines: Sequence[tuple[str, str]], mask_root: Path) -> dict[str, Masks]:
    """The mask files of each id; an ignore file stands in its first line."""
    masks: dict[str, Masks] = {}
    for where, line in lines:
        name, of_object, of_ignored = _fields(where, line, "id,mask file,ignore file")
        if not of_object:
            raise DataError(f"{where}: names no mask file; expected id,mask file,ignore file, the last possibly empty")
        before = masks.get(name, Masks((), None))
        ignored = before.ignored or (mask_root / of_ignored if of_ignored else None)
        masks[name] = Masks((*before.objects, mask_root / of_object), ignored)
    return masks


def _names_a_box(line: str) -> bool:
    """Whether a line of a localisation ends in four numbers, of which some may not be those of pixels."""
    try:
        return len([float(text) for text in line.rsplit(",", 4)[1:]]) == 4
    except ValueError:
        return False


def _fields(where: str, line: str, form: str) -> list[str]:
    """A line cut at its last commas, since ids may hold commas themselves."""
    fields = [field.strip() for field in line.rsplit(",", form.count(","))]
    if len(fields) != form.count(",") + 1 or not fields[0]:
        raise DataError(f"{where}: {line!r}; expected {form}")
    return fields
