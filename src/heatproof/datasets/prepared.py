"""Lists of pictures, labels and boxes that `heatproof prepare-data` left, or masking-based saliency's own code."""

import functools
import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from heatproof.datasets import listed
from heatproof.datasets.dataset import Boxes, Part
from heatproof.datasets.folders import BoxedSamples, FolderSamples
from heatproof.datasets.listed import ListedSource
from heatproof.datasets.pictures import Framing
from heatproof.datasets.preparation import stem
from heatproof.errors import DataError, InputError


def prepared(
    root: Path, train: str = "train.json", test: str = "val.json", size: int = 224, squash: bool = False
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
    """
    framing = Framing(size, None if squash else size, squash)
    made = root / "prepared.json"
    if made.is_file():
        frame = listed.read_json(made)
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
    parts = {part: functools.partial(_opened, path, framing) for part, path in there.items()}
    lacking = next((path for part, path in files.items() if part not in there), root)
    return ListedSource(names, framing, parts, f"{lacking}: no such list; make it with heatproof prepare-data")


def _classes(path: Path) -> tuple[str, ...]:
    names = listed.read_json(path).get("classes")
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise DataError(f"{path}: classes: {str(names)[:60]}; expected a list with the name of each class")
    return tuple(names)


def _opened(path: Path, framing: Framing) -> FolderSamples:
    content = listed.read_json(path)
    root, classes = Path(str(content.get("root", ""))), _classes(path)
    samples = content.get("samples")
    if not isinstance(samples, list) or not samples:
        raise DataError(f"{path}: samples: is no list of [path, label], or an empty one; run prepare-data again")
    files, labels = [], np.empty(len(samples), dtype=np.int64)
    digest = hashlib.sha256(repr((framing, classes)).encode())
    for place, sample in enumerate(samples):
        file, labels[place] = _sample(f"{path}: samples[{place}]", sample, len(classes))
        size = listed.bytes_of(root / file, f"{path}: samples[{place}]")
        # Where a tree lies says nothing about its pictures.
        files.append(Path(file).relative_to(root).as_posix() if Path(file).is_relative_to(root) else file)
        digest.update(f"{files[-1]}\0{labels[place]}\0{size}\n".encode())
    boxes_path = path.with_name(f"{path.stem}_bboxes.json")
    if not boxes_path.is_file():
        return FolderSamples(root, files, labels, framing, digest.hexdigest())
    named = listed.read_json(boxes_path)
    boxes = [_boxes(boxes_path, named, stem(Path(file))) for file in files]
    digest.update(repr([own.tolist() for own in boxes]).encode())
    return BoxedSamples(root, files, labels, framing, digest.hexdigest(), boxes)


def _sample(where: str, sample: Any, classes: int) -> tuple[str, int]:
    if not isinstance(sample, list) or len(sample) != 2 or not isinstance(sample[0], str):
        raise DataError(f"{where}: {str(sample)[:60]}; expected [path, label]")
    file, label = sample
    if not isinstance(label, int) or isinstance(label, bool) or not 0 <= label < classes:
        raise DataError(f"{where}: {file}: label {label!r} names none of the {classes} classes (0 to {classes - 1})")
    return file, label


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
