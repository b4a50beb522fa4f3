"""Folders in the format of wsolevaluation: text files that name pictures, labels, and boxes or masks."""

import functools
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from heatproof.datasets import listed, pictures
from heatproof.datasets.dataset import Boxes, Indices, Part
from heatproof.datasets.folders import FolderSamples
from heatproof.datasets.listed import ListedSource
from heatproof.datasets.pictures import Framing
from heatproof.errors import DataError

_ASPECT = 0.05  # how much the shape of an OpenImages mask may differ from that of its picture: rounding of small ones


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
) -> ListedSource:
    """CUB, ILSVRC or OpenImages as wsolevaluation lays them out, or any set of pictures in that format.

    Each split has a folder with `image_ids.txt` (a path below `root` in each line), `class_labels.txt` (id,label), and,
    where the objects are known, `localization.txt`: boxes (id,x0,y0,x1,y1, with inclusive corners; `image_sizes.txt` says
    id,width,height) or masks (id,mask file,ignore file; several lines for several objects, the ignore file in the first).
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

    Reference:
        Choe, Oh, Lee, Chun, Akata, Shim: "Evaluating Weakly Supervised Object Localization Methods Right", CVPR 2020.
    """
    folder, framing = root / metadata, Framing(resize, crop, squash)
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
    return ListedSource(names, framing, parts, f"{lacking / 'image_ids.txt'}: no such file; there is no such split")


class WsolSamples(FolderSamples):
    """Picture files with boxes in the frame, or with mask files; with neither where the split has no localisation."""

    def __init__(
        self,
        root: Path,
        files: Sequence[str],
        labels: Indices,
        framing: Framing,
        fingerprint: str,
        boxes: Sequence[Boxes] | None,
        masks: Sequence[Masks] | None,
    ):
        super().__init__(root, files, labels, framing, fingerprint)
        self._boxes, self._masks = boxes, masks

    def boxes(self, indices: Indices) -> list[Boxes] | None:
        """Boxes (k, 4), half-open and unclipped, for each picture."""
        return None if self._boxes is None else [self._boxes[row].copy() for row in indices.tolist()]

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
        width, height = self.source_size(row)
        masks = []
        for file in files:
            mask: NDArray[np.bool_] = np.any(pictures.read_colours(file, f"mask of image {row}"), axis=2)
            # OpenImages has masks that are larger or smaller than their pictures, of the same shape.
            ratio = (mask.shape[1] * height) / (mask.shape[0] * width)
            fits = self.framing.squash or mask.shape == (height, width)
            if not fits or not 1 - _ASPECT < ratio < 1 + _ASPECT:
                raise DataError(
                    f"{file}: mask of {mask.shape[1]} x {mask.shape[0]} pixels for {self.files[row]} of {width} x {height}; "
                    "restore the picture that was annotated"
                    + ("" if self.framing.squash else ", or set squash, where only the scale differs")
                )
            masks.append(self.framing.mask(mask.astype(np.uint8)) > 0)
        union: NDArray[np.bool_] = np.any(masks, axis=0)
        return union


def _opened(root: Path, folder: Path, mask_root: Path, labels: dict[str, int], framing: Framing) -> WsolSamples:
    ids, localization = folder / "image_ids.txt", folder / "localization.txt"
    digest = hashlib.sha256(repr(framing).encode())
    files: list[str] = []
    for where, name in listed.records(ids):
        if name not in labels:
            raise DataError(f"{where}: {name} has no line in {folder / 'class_labels.txt'}; add its label there")
        files.append(name)
        digest.update(f"{name}\0{labels[name]}\0{listed.bytes_of(root / name, where)}\n".encode())
    if not files:
        raise DataError(f"{ids}: names no pictures")
    lines = list(listed.records(localization)) if localization.is_file() else []
    digest.update("\n".join(line for _, line in lines).encode())
    boxes: list[Boxes] | None = None
    masks: list[Masks] | None = None
    known: Mapping[str, object] = {}
    if lines and _names_a_box(lines[0][1]):
        sizes = _sizes(folder / "image_sizes.txt")
        digest.update(repr(sorted(sizes.items())).encode())
        known = boxes_of = _boxes(lines, sizes, framing)
        boxes = [np.array(boxes_of.get(name, []), dtype=np.int64).reshape(-1, 4) for name in files]
    elif lines:
        known = masks_of = _masks(lines, mask_root)
        masks = [masks_of.get(name, Masks((), None)) for name in files]
        for name, own in zip(files, masks, strict=True):
            for path in (*own.objects, *([own.ignored] if own.ignored else [])):
                digest.update(f"{listed.bytes_of(path, f'{localization}: {name}')}\n".encode())
    if lines and known.keys().isdisjoint(files):
        raise DataError(f"{localization}: names none of the pictures of {ids}; the ids must be the same in both")
    numbers = np.array([labels[name] for name in files], dtype=np.int64)
    return WsolSamples(root, files, numbers, framing, digest.hexdigest(), boxes, masks)


def _labels(folder: Path) -> dict[str, int]:
    """The label of each id."""
    labels = {}
    for where, line in listed.records(folder / "class_labels.txt"):
        name, text = _fields(where, line, "id,label")
        labels[name] = listed.whole_number(where, "the label", text)
        if labels[name] < 0:
            raise DataError(f"{where}: the label is {labels[name]}; labels count from 0")
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


def _sizes(path: Path) -> dict[str, tuple[int, int]]:
    """Width and height of each id."""
    sizes = {}
    for where, line in listed.records(path):
        name, *texts = _fields(where, line, "id,width,height")
        width, height = (
            listed.whole_number(where, side, text) for side, text in zip(("width", "height"), texts, strict=True)
        )
        if width < 1 or height < 1:
            raise DataError(f"{where}: {name} is said to be {width} x {height} pixels; mend the sizes")
        sizes[name] = (width, height)
    return sizes


def _boxes(
    lines: Sequence[tuple[str, str]], sizes: Mapping[str, tuple[int, int]], framing: Framing
) -> dict[str, list[tuple[int, int, int, int]]]:
    """The boxes of each id in the frame, half-open."""
    boxes: dict[str, list[tuple[int, int, int, int]]] = {}
    for where, line in lines:
        name, *texts = _fields(where, line, "id,x0,y0,x1,y1")
        x0, y0, x1, y1 = (
            listed.whole_number(where, edge, text) for edge, text in zip(("x0", "y0", "x1", "y1"), texts, strict=True)
        )
        if name not in sizes:
            raise DataError(f"{where}: {name} has a box and no line in image_sizes.txt; add id,width,height there")
        width, height = sizes[name]
        if x1 < x0 or y1 < y0:
            raise DataError(
                f"{where}: box {x0},{y0},{x1},{y1} is empty; expected x0 <= x1 and y0 <= y1, both inclusive"
            )
        if x0 >= width or y0 >= height or x1 < 0 or y1 < 0:
            raise DataError(f"{where}: box {x0},{y0},{x1},{y1} lies outside the picture of {width} x {height} pixels")
        scaled_width, scaled_height = framing.scaled(width, height)
        left, top = framing.origin(width, height)
        # The order of the published code, which truncates; its corners are inclusive.
        boxes.setdefault(name, []).append(
            (
                int(x0 * scaled_width / width) - left,
                int(y0 * scaled_height / height) - top,
                int(x1 * scaled_width / width) + 1 - left,
                int(y1 * scaled_height / height) + 1 - top,
            )
        )
    return boxes


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
    """Whether a line of a localisation ends in four integers."""
    return all(text.strip().lstrip("-").isdigit() for text in line.rsplit(",", 4)[1:]) and line.count(",") >= 4


def _fields(where: str, line: str, form: str) -> list[str]:
    """A line cut at its last commas, since ids may hold commas themselves."""
    fields = [field.strip() for field in line.rsplit(",", form.count(","))]
    if len(fields) != form.count(",") + 1 or not fields[0]:
        raise DataError(f"{where}: {line!r}; expected {form}")
    return fields
