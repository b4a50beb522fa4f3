"""CIFAR-10, MNIST and Fashion-MNIST: torchvision's files, downloaded by torchvision where they are missing."""

import contextlib
import functools
import gzip
import hashlib
import pickle
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from heatproof import downloads
from heatproof.datasets.arrays import ArraySamples
from heatproof.datasets.dataset import PARTS, Part
from heatproof.errors import DataError, MissingInputError

DIGITS = tuple("0123456789")
CLOTHES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
OBJECTS = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


class Cifar10Source:
    """CIFAR-10: 50,000 and 10,000 RGB pictures of 32 x 32.

    Args:
        folder: holds `cifar-10-batches-py`, or is that folder; the download goes into it otherwise.
    """

    class_names = OBJECTS
    size = (32, 32)
    channels = 3
    parts = PARTS

    def __init__(self, folder: Path):
        self._library = _torchvision("CIFAR10")
        base = self._library.base_folder
        self.folder = folder.parent if folder.name == base else folder
        if not (self.folder / base).is_dir():
            with _downloading("CIFAR10", self.folder / base, self._library.url, self.folder):
                self._library(str(self.folder), download=True)

    @functools.cached_property
    def fingerprint(self) -> str:
        """Names the published files by their MD5 sums, which torchvision compares whenever it opens them."""
        files = self._library.train_list + self._library.test_list
        return hashlib.sha256(repr(files).encode()).hexdigest()

    def open(self, part: Part) -> ArraySamples:
        """Reads a part."""
        try:
            opened = self._library(str(self.folder), train=part == "train", download=False)
        except (RuntimeError, OSError, EOFError, pickle.UnpicklingError) as error:
            raise DataError(
                f"{self.folder / self._library.base_folder}: a file is missing or damaged (its MD5 sum differs); "
                "delete the folder, and the next run downloads it again"
            ) from error
        pictures = torch.from_numpy(np.ascontiguousarray(opened.data.transpose(0, 3, 1, 2)))
        return ArraySamples(pictures, np.asarray(opened.targets, dtype=np.int64), f"{self.fingerprint}/{part}")


class MnistSource:
    """MNIST or Fashion-MNIST: 60,000 and 10,000 grey pictures of 28 x 28.

    Args:
        name: `MNIST` or `FashionMNIST`.
        folder: holds `<name>/raw/train-images-idx3-ubyte` and the three other files, or the files themselves, plain or
            as `.gz`; the download goes into `<name>/raw` otherwise.
    """

    size = (28, 28)
    channels = 1
    parts = PARTS

    def __init__(self, name: str, folder: Path):
        self.name, self.folder = name, folder
        self.class_names = DIGITS if name == "MNIST" else CLOTHES
        if any(self._find(part, kind) is None for part in _PREFIXES for kind in ("images", "labels")):
            library, raw = _torchvision(name), folder / name / "raw"
            with _downloading(name, raw / "train-images-idx3-ubyte", library.mirrors[0], raw):
                library(str(folder), download=True)

    @functools.cached_property
    def fingerprint(self) -> str:
        """Names the content of all files: a hash of the pictures and labels that were read."""
        return hashlib.sha256("\n".join(self.open(part).fingerprint for part in _PREFIXES).encode()).hexdigest()

    def open(self, part: Part) -> ArraySamples:
        """Reads and checks a part."""
        return self._opened[part] if part in self._opened else self._opened.setdefault(part, self._read(part))

    @functools.cached_property
    def _opened(self) -> dict[Part, ArraySamples]:
        return {}

    def _read(self, part: Part) -> ArraySamples:
        images, labels = self._array(part, "images"), self._array(part, "labels")
        if images.shape[1:] != self.size or len(labels) != len(images):
            raise DataError(
                f"{self._find(part, 'images')}: images of shape {images.shape} and {len(labels)} labels; "
                f"expected 28 x 28 pixels, and one label for each image"
            )
        if labels.max(initial=0) >= len(self.class_names):
            raise DataError(f"{self._find(part, 'labels')}: label {labels.max()} is none of the ten classes")
        digest = hashlib.sha256(images.tobytes() + labels.tobytes()).hexdigest()
        return ArraySamples(torch.from_numpy(images)[:, None], labels.astype(np.int64), f"{self.name}/{part}/{digest}")

    def _array(self, part: Part, kind: str) -> NDArray[np.uint8]:
        path = self._find(part, kind)
        if path is None:
            raise DataError(
                f"{self.folder}: {_PREFIXES[part]}-{kind} is missing; delete {self.name}/raw to download it again"
            )
        try:
            with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
                return _idx(file.read())
        except (OSError, EOFError, ValueError, zlib.error) as error:
            raise DataError(
                f"{path}: is damaged ({' '.join(str(error).split())}); delete it, and the next run downloads it again"
            ) from error

    def _find(self, part: Part, kind: str) -> Path | None:
        name = f"{_PREFIXES[part]}-{kind}-idx{3 if kind == 'images' else 1}-ubyte"
        folders = (self.folder / self.name / "raw", self.folder / "raw", self.folder)
        found = (folder / f"{name}{suffix}" for suffix in ("", ".gz") for folder in folders)
        return next((path for path in found if path.is_file()), None)


_PREFIXES: dict[Part, str] = {"train": "train", "test": "t10k"}


def _idx(raw: bytes) -> NDArray[np.uint8]:
    """The array in an IDX file of bytes: two zeros, type 8, number of axes, their lengths (big-endian), the values."""
    if len(raw) < 4 or raw[:3] != b"\0\0\x08":
        raise ValueError("it does not begin as an IDX file of bytes")
    start = 4 + 4 * raw[3]
    shape = tuple(int.from_bytes(raw[at : at + 4], "big") for at in range(4, start, 4))
    if len(raw) - start != int(np.prod(shape)):
        raise ValueError(f"it should hold {int(np.prod(shape))} values and holds {max(0, len(raw) - start)}")
    return np.frombuffer(raw, np.uint8, offset=start).reshape(shape).copy()


def _torchvision(name: str) -> Any:
    """One of torchvision's data sets. The import takes seconds, so it waits until somebody wants one."""
    from torchvision import datasets

    return getattr(datasets, name)


@contextlib.contextmanager
def _downloading(name: str, missing: Path, url: str, into: Path) -> Iterator[None]:
    try:
        downloads.announce(url)
        with downloads.bounded_wait():
            yield
    except downloads.NotNowError as error:
        raise MissingInputError(f"{missing}: is missing, and a dry run does not fetch {error}") from error
    except (
        OSError,
        RuntimeError,
        EOFError,
    ) as error:  # URLError is an OSError; RuntimeError: all mirrors failed, or a bad sum
        reason = " ".join(str(error).split())
        raise DataError(
            f"{missing}: is missing, and {name} could not be downloaded ({reason}); "
            f"get it from {url} on a machine with network and unpack it into {into}, or mend dataset_dir"
        ) from error
