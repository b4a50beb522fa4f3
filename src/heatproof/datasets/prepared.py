"""Lists of pictures, labels and boxes that `heatproof prepare-data` left, or masking-based saliency's own code."""

import functools
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from heatproof.datasets import listed
from heatproof.datasets.dataset import WITHOUT_TRAINING, Boxes, Indices, Part
from heatproof.datasets.folders import BoxedSamples, FolderSamples
from heatproof.datasets.listed import ListedSource
from heatproof.datasets.pictures import Exif, Framing
from heatproof.errors import DataError, InputError


def prepared(
    root: Path,
    train: str = "train.json",
    test: str = "val.json",
    size: int = 224,
    squash: bool = False,
    exif: Exif = "turn",
) -> ListedSource:
    """Pictures that JSON lists name, with the boxes of `<list>_bboxes.json` where that file is there.

    Boxes were scaled to a frame when they were written, and pictures are brought to the same one: the shorter side becomes
    `size` and the centre is cut out, or both sides become `size`.

    Args:
        root: folder of the lists.
        train: list of the training part, such as `train_train.json`, or `train_shuffle.json` for permuted labels.
        test: list of the test part, such as `train_val.json`.
        size: side of the frame.
        squash: as `prepare-data --break-ratio`.
        exif: as `prepare-data --exif`: whether pictures are turned as their cameras say.
    """
    framing = Framing(size, None if squash else size, squash, exif)
    made = root / "prepared.json"
    recorded = None
    if made.is_file():
        frame = listed.read_json(made)
        recorded = frame.get("exif")
        if recorded not in (None, exif):
            raise InputError(
                f"exif: {exif}; the boxes of {root} were made for {recorded}; set this, or run prepare-data again"
            )
        if (frame.get("size"), frame.get("squash")) != (size, squash):
            raise InputError(
                f"size, squash: {size}, {str(squash).lower()}; the boxes of {root} were made for "
                f"{frame.get('size')}, {str(frame.get('squash')).lower()}; set these, or run prepare-data again"
            )
    files: dict[Part, Path] = {"train": root / train, "test": root / test}
    there = {part: path for part, path in files.items() if path.is_file()}
    if not there:
        raise DataError(
            f"{files['test']}: no such list, nor {files['train'].name}; make them with heatproof prepare-data"
        )
    classes = {path: _classes(path) for path in there.values()}
    names = next(iter(classes.values()))
    for path, own in classes.items():
        if own != names:
            raise DataError(f"{path}: its classes differ from those of {next(iter(classes))}; prepare both together")
    parts = {part: functools.partial(_opened, path, framing, recorded is not None) for part, path in there.items()}
    lacking = next((path for part, path in files.items() if part not in there), root)
    return ListedSource(
        names, framing, parts, f"{lacking}: no such list; make it with heatproof prepare-data, or {WITHOUT_TRAINING}"
    )


def _classes(path: Path) -> tuple[str, ...]:
    names = listed.read_json(path).get("classes")
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise DataError(f"{path}: classes: {str(names)[:60]}; expected a list with the name of each class")
    return tuple(names)


class UnrecordedSamples(BoxedSamples):
    """Pictures whose boxes were made by code that does not say whether it turned pictures as their cameras say."""

    def boxes(self, indices: Indices) -> list[Boxes]:
        """Boxes (k, 4), half-open and unclipped, for each picture.

        Raises:
            DataError: a camera turned the picture, so that it is open which way its boxes were made.
        """
        for row in indices.tolist():
            if self.view(row).orientation != 1:
                raise DataError(
                    f"{self.root / self.files[row]}: its camera turned it (EXIF), and the lists do not say whether its boxes "
                    "are of the turned picture; run heatproof prepare-data again, or set exif: ignore where they are of the "
                    "stored one"
                )
        return super().boxes(indices)


def _opened(path: Path, framing: Framing, recorded: bool) -> FolderSamples:
    content = listed.read_json(path)
    root, classes = Path(str(content.get("root", ""))), _classes(path)
    samples = content.get("samples")
    if not isinstance(samples, list) or not samples:
        raise DataError(f"{path}: samples: is no list of [path, label], or an empty one; run prepare-data again")
    files, labels = [], np.empty(len(samples), dtype=np.int64)
    places: dict[str, str] = {}
    digest = hashlib.sha256(repr((framing, classes)).encode())
    for place, sample in enumerate(samples):
        file, labels[place] = _sample(f"{path}: samples[{place}]", sample, len(classes))
        listed.once(places, file, f"{path}: samples[{place}]")
        size = listed.bytes_of(root / file, f"{path}: samples[{place}]")
        # Where a tree lies says nothing about its pictures.
        files.append(Path(file).relative_to(root).as_posix() if Path(file).is_relative_to(root) else file)
        digest.update(f"{files[-1]}\0{labels[place]}\0{size}\n".encode(errors="surrogateescape"))
    boxes_path = path.with_name(f"{path.stem}_bboxes.json")
    if not boxes_path.is_file():
        return FolderSamples(root, files, labels, framing, digest.hexdigest())
    named = listed.read_json(boxes_path)
    keys = _keys(boxes_path, named, files)
    boxes = [_boxes(boxes_path, named, key) for key in keys]
    digest.update(repr([own.tolist() for own in boxes]).encode())
    made = BoxedSamples if recorded else UnrecordedSamples
    return made(root, files, labels, framing, digest.hexdigest(), boxes)


def _sample(where: str, sample: Any, classes: int) -> tuple[str, int]:
    if not isinstance(sample, list) or len(sample) != 2 or not isinstance(sample[0], str):
        raise DataError(f"{where}: {str(sample)[:60]}; expected [path, label]")
    file, label = sample
    if not isinstance(label, int) or isinstance(label, bool) or not 0 <= label < classes:
        raise DataError(f"{where}: {file}: label {label!r} names none of the {classes} classes (0 to {classes - 1})")
    return file, label


def _keys(path: Path, named: dict[str, Any], files: Sequence[str]) -> list[str]:
    """The name of each file in the file of boxes: without its ending, or, as the published code has it, up to its first dot."""
    keys, places = [], dict[str, str]()
    for file in files:
        whole = Path(file).stem
        keys.append(whole if whole in named else whole.partition(".")[0])
        listed.once(places, keys[-1], f"{path}: {file}")
    return keys


def _boxes(path: Path, named: dict[str, Any], key: str) -> Boxes:
    if key not in named:
        raise DataError(f"{path}: has no boxes of {key!r}, which the list names; run prepare-data again")
    try:
        corners = [[box[edge] for edge in ("xmin", "ymin", "xmax", "ymax")] for box in named[key]]
        boxes = np.array(corners, dtype=np.float64).reshape(-1, 4)
    except (TypeError, KeyError, ValueError) as error:
        raise DataError(f"{path}: {key}: expected a list of boxes with xmin, ymin, xmax and ymax") from error
    if not np.array_equal(boxes, np.trunc(boxes)):
        raise DataError(f"{path}: {key}: boxes must be whole numbers of pixels")
    return boxes.astype(np.int64)
