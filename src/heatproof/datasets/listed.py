"""Pictures that a text or JSON file lists, with what it says about their objects."""

import functools
import hashlib
import json
import logging
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from heatproof.datasets.dataset import WITHOUT_TRAINING, Indices, Part, first_of_each_class
from heatproof.datasets.folders import FolderSamples
from heatproof.datasets.pictures import Framing
from heatproof.errors import DataError, InputError

logger = logging.getLogger(__name__)


class ListedSource:
    """The parts of a data set, each opened from its list when it is asked for.

    Args:
        class_names: name of each label.
        framing: size of the pictures.
        parts: opens each part that is there.
        missing: what to tell who asks for another one.
    """

    channels = 3

    def __init__(
        self,
        class_names: Sequence[str],
        framing: Framing,
        parts: Mapping[Part, Callable[[], FolderSamples]],
        missing: str,
    ):
        self.class_names, self.framing, self.missing = tuple(class_names), framing, missing
        self.parts: tuple[Part, ...] = tuple(parts)
        self._open = dict(parts)
        self._opened: dict[Part, FolderSamples] = {}

    @functools.cached_property
    def size(self) -> tuple[int, int]:
        """Height and width after framing: of the first picture where the frame depends on it."""
        if self.framing.size is not None:
            return self.framing.size
        return self.open(next(iter({**self._opened, **self._open}))).size

    @functools.cached_property
    def fingerprint(self) -> str:
        """Names the pictures and annotations of all parts that are there."""
        named = "\n".join(self.open(part).fingerprint for part in self.parts)
        return hashlib.sha256(named.encode()).hexdigest()

    def open(self, part: Part) -> FolderSamples:
        """Reads the list of a part."""
        if part not in self._opened:
            if part not in self.parts:
                raise DataError(self.missing)
            self._opened[part] = self._open[part]()
        return self._opened[part]


def parted(labels: Indices, train_share: float) -> dict[Part, Indices]:
    """Rows of the parts of a list that knows no parts: the first `train_share` of each class train, the others test.

    Raises:
        InputError: the share does not lie in [0, 1).

    >>> parted(np.array([0, 0, 1, 1]), 0.5)
    {'train': array([0, 2]), 'test': array([1, 3])}
    >>> parted(np.array([0, 0]), 0.0)
    {'test': array([0, 1])}
    """
    if not isinstance(train_share, int | float) or not 0.0 <= train_share < 1.0:
        raise InputError(f"train_share: {train_share!r} must lie in [0, 1)")
    trains = first_of_each_class(labels, train_share)
    parts: dict[Part, Indices] = {"train": trains.nonzero()[0]} if train_share else {}
    lacking = np.setdiff1d(labels, labels[trains])
    if train_share and lacking.size:
        logger.info(
            "train_share %g leaves no training picture of %d classes, the first of them %d: all theirs are in the test part",
            train_share, lacking.size, lacking[0],
        )  # fmt: skip
    return {**parts, "test": (~trains).nonzero()[0]}


def no_training_part(root: Path) -> str:
    """What to tell who asks for the training part of a list that knows no parts."""
    return (
        f"{root}: all pictures are in the test part; set the option train_share, say 0.5, to train on the first half of "
        f"each class; or {WITHOUT_TRAINING}"
    )


def records(path: Path) -> Iterator[tuple[str, str]]:
    """The lines of a text file that are not blank, each behind the words that name it in messages: "FILE line 3".

    Raises:
        DataError: the file is missing or is no text.
    """
    for number, line in enumerate(_text(path).split("\n"), start=1):
        if line.strip():
            yield f"{path} line {number}", line.strip()


def once(places: dict[str, str], key: str, where: str) -> None:
    """Notes where a list names something that it must name only once.

    Raises:
        DataError: it was named before.
    """
    if key in places:
        raise DataError(f"{where}: {key} stands in {places[key]} already; remove one of the two")
    places[key] = where


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        DataError: the file is missing, or holds something else.
    """
    try:
        content = json.loads(_text(path))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: cannot be read as JSON: {error}; restore the file") from error
    if not isinstance(content, dict):
        raise DataError(f"{path}: holds a {type(content).__name__}; expected an object with names")
    return content


def whole_number(where: str, field: str, text: str) -> int:
    """An integer in a text file.

    Raises:
        DataError: it is none.
    """
    try:
        return int(text)
    except ValueError as error:
        raise DataError(f"{where}: {field} is {text!r}; expected an integer") from error


def bytes_of(path: Path, where: str) -> int:
    """Size of a file that a list names.

    Raises:
        DataError: it is not there, or is a folder, a pipe or a device.
    """
    try:
        found = path.stat()
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        raise DataError(f"{where}: names {path}, which is not there; restore the file, or remove the entry") from error
    if not stat.S_ISREG(found.st_mode):
        raise DataError(f"{where}: names {path}, which is no regular file; restore the file, or remove the entry")
    return found.st_size


def _text(path: Path) -> str:
    """The text of a UTF-8 file, with or without a byte order mark; lines end in LF alone."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: cannot be read: {' '.join(str(error).split())}; save it as UTF-8 (it may be UTF-16 or Latin-1)"
        ) from error
    except OSError as error:
        reason = error.strerror or str(error)
        raise DataError(f"{path}: cannot be read: {reason}; put the list there, or correct the options") from error
    if "\0" in text:
        raise DataError(f"{path}: cannot be read: it holds zero bytes; save it as UTF-8 (it may be UTF-16)")
    return text
