"""Pictures that lie in memory as one array, and the `.npz` files that hold them."""

import functools
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from heatproof import artefacts
from heatproof.datasets import trees
from heatproof.datasets.dataset import PARTS, Indices, Part
from heatproof.errors import DataError


class ArraySamples:
    """Pictures held as one uint8 tensor (N, C, H, W)."""

    def __init__(self, pictures: Tensor, labels: Indices, fingerprint: str):
        self.pictures, self.labels, self.fingerprint = pictures, labels, fingerprint

    def pixels(self, indices: Indices) -> Tensor:
        """Pictures (B, C, H, W), uint8."""
        return self.pictures[torch.from_numpy(indices)]

    def regions(self, indices: Indices) -> None:
        """Unknown."""
        return

    def boxes(self, indices: Indices) -> None:
        """Unknown."""
        return

    def ignored(self, indices: Indices) -> None:
        """None."""
        return


class NpzSource:
    """An array file: `train_images`, `train_labels`, `test_images`, `test_labels`, `class_names`; other keys are not read.

    Images are uint8, (N, H, W, 3), (N, H, W, 1) or (N, H, W); labels are integers from 0; class names are strings. A part
    that is asked for must be there. The file is read with `allow_pickle=False`.

    Args:
        path: the file, or a folder with one `.npz` in it.
    """

    def __init__(self, path: Path):
        self.path = _file(path)

    @functools.cached_property
    def class_names(self) -> tuple[str, ...]:
        """Name of each label."""
        names = self._array("class_names")
        if names.ndim != 1 or names.dtype.kind != "U" or not len(names):
            raise DataError(
                f"{self.path}: class_names: {_form(names)}; expected a one-dimensional array of strings, one for each class"
            )
        return tuple(map(str, names))

    @functools.cached_property
    def size(self) -> tuple[int, int]:
        """Height and width, from the header alone."""
        height, width = self._picture_shape[:2]
        return height, width

    @property
    def channels(self) -> int:
        """3 for RGB, 1 for grey pictures."""
        return self._picture_shape[2]

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the file."""
        return artefacts.sha256(self.path)

    @functools.cached_property
    def parts(self) -> tuple[Part, ...]:
        """The parts whose pictures the file holds."""
        with _reading(self.path), zipfile.ZipFile(self.path) as archive:
            names = archive.namelist()
        return tuple(part for part in PARTS if f"{part}_images.npy" in names)

    def open(self, part: Part) -> ArraySamples:
        """Reads and checks the pictures and labels of a part."""
        key = f"{part}_images"
        images, labels = self._array(key), self._array(f"{part}_labels")
        shape = _picture_shape(self.path, key, images.shape, images.dtype)
        if shape != self._picture_shape:
            raise DataError(f"{self.path}: {key}: pictures of shape {shape}, others of {self._picture_shape}")
        if labels.ndim != 1 or labels.dtype.kind not in "iu" or len(labels) != len(images):
            raise DataError(
                f"{self.path}: {part}_labels: {_form(labels)}; expected integers of shape ({len(images)},), one for each image"
            )
        outside = np.flatnonzero((labels < 0) | (labels >= len(self.class_names)))
        if outside.size:
            raise DataError(
                f"{self.path}: {part}_labels[{outside[0]}]: {labels[outside[0]]} names none of the "
                f"{len(self.class_names)} class_names (0 to {len(self.class_names) - 1})"
            )
        pictures = torch.from_numpy(images.reshape(len(images), *shape)).permute(0, 3, 1, 2).contiguous()
        return ArraySamples(pictures, labels.astype(np.int64), f"{self.fingerprint}/{part}")

    @functools.cached_property
    def _picture_shape(self) -> tuple[int, int, int]:
        with _reading(self.path), zipfile.ZipFile(self.path) as archive:
            names = {name.removesuffix(".npy") for name in archive.namelist()}
            key = next((key for key in ("train_images", "test_images") if key in names), None)
            if key is None:
                raise DataError(f"{self.path}: has neither train_images nor test_images; its keys: {_listed(names)}")
            with archive.open(f"{key}.npy") as file:
                version = np.lib.format.read_magic(file)
                read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
                shape, _, dtype = read(file)
        return _picture_shape(self.path, key, shape, dtype)

    def _array(self, key: str) -> NDArray[Any]:
        with _reading(self.path), self.path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            if key not in arrays:
                raise DataError(f"{self.path}: {key} is missing; its keys: {_listed(set(arrays))}")
            try:
                array: NDArray[Any] = arrays[key]
            except ValueError as error:
                if "allow_pickle" not in str(error):
                    raise
                raise DataError(
                    f"{self.path}: {key} holds Python objects, which are never unpickled; save it as an array of numbers or strings"
                ) from error
        return array


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{path}: cannot be read as an .npz file: {reason}") from error


def _file(path: Path) -> Path:
    if path.is_file():
        return path
    if not path.is_dir():
        raise DataError(f"{path}: no such file; Arrays reads an .npz file, or a folder with one .npz in it")
    found = sorted(file for file in path.glob("*.npz") if not trees.is_hidden(file.name))
    if len(found) != 1:
        listed = ", ".join(file.name for file in found[:5]) or "none"
        raise DataError(
            f"{path}: Arrays wants one .npz file in this folder, found {listed}; name the file in dataset_dir"
        )
    return found[0]


def _picture_shape(path: Path, key: str, shape: tuple[int, ...], dtype: "np.dtype[Any]") -> tuple[int, int, int]:
    grey = len(shape) == 3
    if dtype != np.uint8 or not (grey or (len(shape) == 4 and shape[3] in (1, 3))) or 0 in shape:
        raise DataError(
            f"{path}: {key}: {dtype} of shape {shape}; expected uint8 (N, H, W, 3), (N, H, W, 1) or (N, H, W)"
        )
    return shape[1], shape[2], 1 if grey else shape[3]


def _form(array: NDArray[Any]) -> str:
    return f"{array.dtype} of shape {array.shape}"


def _listed(keys: set[str]) -> str:
    return ", ".join(sorted(keys)) or "none"
