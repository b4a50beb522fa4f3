"""Pictures in folders, one folder for each class: any such set, and ImageNet as torchvision lays it out."""

import functools
import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import resources
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from heatproof.datasets import pictures
from heatproof.datasets.dataset import Indices, Part
from heatproof.datasets.pictures import Framing
from heatproof.errors import DataError


class FolderSamples:
    """Picture files, decoded when they are asked for."""

    def __init__(self, root: Path, files: Sequence[str], labels: Indices, framing: Framing, fingerprint: str):
        self.root, self.files, self.labels, self.framing = root, files, labels, framing
        self.fingerprint = fingerprint

    @functools.cached_property
    def size(self) -> tuple[int, int]:
        """Height and width of the first picture, which all others must have."""
        _, height, width = self._read(0).shape
        return height, width

    def pixels(self, indices: Indices) -> Tensor:
        """Pictures (B, 3, H, W), uint8."""
        rows = indices.tolist()
        if not rows:
            return torch.empty((0, 3, *self.size), dtype=torch.uint8)
        # Decoding releases Python's lock; a process that was given one torch thread decodes with one.
        workers = min(torch.get_num_threads(), len(rows))
        if workers == 1:
            return torch.stack([self._checked(row) for row in rows])
        with ThreadPoolExecutor(workers) as pool:
            return torch.stack(list(pool.map(self._checked, rows)))

    def regions(self, indices: Indices) -> None:
        """Unknown."""
        return

    def boxes(self, indices: Indices) -> None:
        """Unknown."""
        return

    def ignored(self, indices: Indices) -> None:
        """None."""
        return

    def _read(self, row: int) -> Tensor:
        return pictures.read(self.root / self.files[row], row, self.framing)

    def _checked(self, row: int) -> Tensor:
        picture = self._read(row)
        height, width = picture.shape[1:]
        if (height, width) != self.size:
            raise DataError(
                f"{self.root / self.files[row]}: image {row} is {width} x {height} pixels, the first one {self.size[1]} x "
                f"{self.size[0]}; set the options resize and crop, so that all get one size"
            )
        return picture


class FolderSource:
    """A folder for each part, in it a folder for each class, in these the pictures; deeper folders are read as well.

    The order is that of the sorted paths. Names that begin with a dot, and files that are no pictures by their suffix,
    are left aside. The fingerprint covers paths, sizes in bytes and options; the files are not read for it.

    Args:
        root: holds the parts.
        folders: name of each part's folder below `root`.
        class_folders: name of each class's folder, in the order of the labels.
        class_names: the same as users read them.
        framing: size of the pictures.
    """

    channels = 3

    def __init__(
        self,
        root: Path,
        folders: dict[Part, str],
        class_folders: Sequence[str],
        class_names: Sequence[str],
        framing: Framing,
    ):
        self.root, self.folders, self.framing = root, folders, framing
        self.class_folders, self.class_names = tuple(class_folders), tuple(class_names)
        self._opened: dict[Part, FolderSamples] = {}

    @functools.cached_property
    def size(self) -> tuple[int, int]:
        """Height and width after framing: of the first picture where no crop is set."""
        if self.framing.crop is not None:
            return self.framing.crop, self.framing.crop
        part = next(iter(self._opened), None) or self._parts_there[0]
        return self.open(part).size

    @functools.cached_property
    def fingerprint(self) -> str:
        """Names the files of all parts that are there."""
        named = "\n".join(self.open(part).fingerprint for part in self._parts_there)
        return hashlib.sha256(named.encode()).hexdigest()

    @property
    def _parts_there(self) -> list[Part]:
        return [part for part, folder in self.folders.items() if (self.root / folder).is_dir()]

    def open(self, part: Part) -> FolderSamples:
        """Lists the files of a part."""
        if part not in self._opened:
            self._opened[part] = self._listed(part)
        return self._opened[part]

    def _listed(self, part: Part) -> FolderSamples:
        folder = self.root / self.folders[part]
        if not folder.is_dir():
            raise DataError(f"{folder}: no such folder; put the {part} pictures there, in a folder for each class")
        files: list[str] = []
        labels: list[int] = []
        digest = hashlib.sha256(repr((self.framing, self.class_folders)).encode())
        for label, name in enumerate(self.class_folders):
            for path, size in _pictures_below(folder / name):
                files.append(path.relative_to(folder).as_posix())
                labels.append(label)
                digest.update(f"{files[-1]}\0{size}\n".encode(errors="surrogateescape"))
        if not files:
            raise DataError(f"{folder}: holds no pictures ({', '.join(pictures.SUFFIXES)}) in folders for each class")
        return FolderSamples(folder, files, np.array(labels, dtype=np.int64), self.framing, digest.hexdigest())


def image_folder(root: Path, resize: int | None = None, crop: int | None = None) -> FolderSource:
    """Any set of pictures: `root/train/<class>/` and `root/test/<class>/` (or `root/val/` where there is no `test`).

    The classes are the folders of all parts together, sorted, so that a class which one part lacks shifts no label.

    Args:
        root: the folder.
        resize: shorter side after scaling.
        crop: side of the centre square; needed where the pictures differ in shape.
    """
    folders: dict[Part, str] = {"train": "train", "test": "test" if (root / "test").is_dir() else "val"}
    there = [root / folder for folder in folders.values() if (root / folder).is_dir()]
    if not there:
        raise DataError(
            f"{root}: has no folder train, test or val; expected {root}/train/<class>/<picture>.png and the like"
        )
    classes = sorted({name for folder in there for name in _subfolders(folder)})
    if not classes:
        raise DataError(f"{there[0]}: holds no folders; expected one for each class, with its pictures")
    return FolderSource(root, folders, classes, classes, Framing(resize, crop))


def imagenet(root: Path, resize: int | None = 256, crop: int | None = 224) -> FolderSource:
    """ImageNet (ILSVRC 2012): `root/val/<wnid>/*.JPEG` is the test part, `root/train/<wnid>/*.JPEG` the training part.

    Labels are those of the 1,000 classes even where some of the folders are missing.

    Args:
        root: the folder.
        resize: shorter side after scaling.
        crop: side of the centre square.
    """
    folders: dict[Part, str] = {"train": "train", "test": "val"}
    wnids = imagenet_wnids()
    for folder in folders.values():
        strange = sorted(set(_subfolders(root / folder)) - set(wnids))
        if strange:
            raise DataError(
                f"{root / folder / strange[0]}: is not one of ImageNet's 1000 classes, whose folders are named as n01440764; "
                "take ImageFolder for other data"
            )
    if not any((root / folder).is_dir() for folder in folders.values()):
        raise DataError(
            f"{root / 'val'}: no such folder; get ILSVRC2012_img_val.tar from https://image-net.org (it wants an account) and "
            "sort it into val/<wnid>/*.JPEG, as torchvision.datasets.ImageNet does"
        )
    from torchvision.models import ResNet50_Weights  # slow to import, and the class names are all that is wanted

    names = ResNet50_Weights.IMAGENET1K_V2.meta["categories"]
    return FolderSource(root, folders, wnids, names, Framing(resize, crop))


@functools.cache
def imagenet_wnids() -> tuple[str, ...]:
    """The WordNet ids of ImageNet's 1,000 classes, in the order of the labels.

    >>> imagenet_wnids()[:2], len(imagenet_wnids())
    (('n01440764', 'n01443537'), 1000)
    """
    return tuple(resources.files(__package__).joinpath("imagenet_wnids.txt").read_text(encoding="ascii").split())


def _subfolders(folder: Path) -> list[str]:
    if not folder.is_dir():
        return []
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))


def _pictures_below(folder: Path) -> list[tuple[Path, int]]:
    """Picture files in a folder and those below it, with their sizes in bytes, sorted by path."""
    if not folder.is_dir():
        return []
    found: list[tuple[Path, int]] = []
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                found += _pictures_below(folder / entry.name)
            elif entry.name.lower().endswith(pictures.SUFFIXES):
                found.append((folder / entry.name, _bytes_of(entry)))
    return found


def _bytes_of(entry: "os.DirEntry[str]") -> int:
    try:
        return entry.stat().st_size
    except OSError as error:  # a link that leads nowhere
        raise DataError(f"{entry.path}: cannot be read: {error.strerror}; restore or remove it") from error
