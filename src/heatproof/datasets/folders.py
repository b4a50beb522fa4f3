"""Pictures in folders, one folder for each class: any such set, and ImageNet as torchvision lays it out."""

import functools
import hashlib
import logging
from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from heatproof.datasets import pictures, trees, voc
from heatproof.datasets.dataset import WITHOUT_TRAINING, Boxes, Indices, Part
from heatproof.datasets.pictures import Exif, Framing, View
from heatproof.datasets.voc import Annotated
from heatproof.errors import DataError

logger = logging.getLogger(__name__)


class FolderSamples:
    """Picture files, decoded when they are asked for."""

    def __init__(self, root: Path, files: Sequence[str], labels: Indices, framing: Framing, fingerprint: str):
        self.root, self.files, self.labels, self.framing = root, files, labels, framing
        self.fingerprint = f"{fingerprint}/exif {framing.exif}"

    @functools.cached_property
    def size(self) -> tuple[int, int]:
        """Height and width: of the frame, or of the first picture, which all others must have."""
        if self.framing.size is not None:
            return self.framing.size
        _, height, width = self._read(0).shape
        return height, width

    def pixels(self, indices: Indices) -> Tensor:
        """Pictures (B, 3, H, W), uint8."""
        rows = indices.tolist()
        if not rows:
            return torch.empty((0, 3, *self.size), dtype=torch.uint8)
        return torch.stack(pictures.each(self._checked, rows))

    def regions(self, indices: Indices) -> NDArray[np.bool_] | None:
        """Unknown."""
        return None

    def boxes(self, indices: Indices) -> list[Boxes] | None:
        """Unknown."""
        return None

    def ignored(self, indices: Indices) -> NDArray[np.bool_] | None:
        """None."""
        return None

    def masks(self, read_one: Callable[[int], NDArray[np.bool_]], indices: Indices) -> NDArray[np.bool_]:
        """The masks (B, H, W) of what is known about each picture: how subclasses read regions and ignored pixels."""
        rows = indices.tolist()
        masks = np.zeros((len(rows), *self.size), dtype=np.bool_)
        for place, (row, mask) in enumerate(zip(rows, pictures.each(read_one, rows), strict=True)):
            if mask.shape != self.size:
                raise DataError(self._of_another_size(row, *mask.shape))
            masks[place] = mask
        return masks

    def view(self, row: int) -> View:
        """How a picture is shown, for the annotations of it."""
        return pictures.view(self.root / self.files[row], f"image {row}", self.framing.exif)

    def upright(
        self, row: int, boxes: NDArray[np.number], listed: tuple[int, int] | None, where: object
    ) -> tuple[NDArray[np.float64], tuple[int, int]]:
        """Boxes (k, 4) of a picture as an annotation gives them, upright, and the size of their frame (`View.boxes`)."""
        return self.view(row).boxes(boxes, listed, where, f"{self.root / self.files[row]}: image {row}")

    def _read(self, row: int) -> Tensor:
        return pictures.read(self.root / self.files[row], row, self.framing)

    def _checked(self, row: int) -> Tensor:
        picture = self._read(row)
        height, width = picture.shape[1:]
        if (height, width) != self.size:
            raise DataError(self._of_another_size(row, height, width))
        return picture

    def _of_another_size(self, row: int, height: int, width: int) -> str:
        return (
            f"{self.root / self.files[row]}: image {row} is {width} x {height} pixels, the first one {self.size[1]} x "
            f"{self.size[0]}; set the options resize and crop, so that all get one size"
        )


class FolderSource:
    """A folder for each part, in it a folder for each class, in these the pictures; deeper folders are read as well.

    The order is that of the sorted paths. What is no picture, or belongs to a system (`trees`), is left out and logged. The fingerprint covers paths, sizes in bytes and options; the files are not read for it.

    Args:
        root: holds the parts.
        folders: name of each part's folder below `root`.
        class_folders: name of each class's folder, in the order of the labels.
        class_names: the same as users read them.
        framing: size of the pictures.
        boxes: folder with an XML file for each picture of the test part, as ImageNet has it; None: no boxes.
    """

    channels = 3

    def __init__(
        self,
        root: Path,
        folders: dict[Part, str],
        class_folders: Sequence[str],
        class_names: Sequence[str],
        framing: Framing,
        boxes: Path | None = None,
    ):
        self.root, self.folders, self.framing, self.boxes = root, folders, framing, boxes
        self.class_folders, self.class_names = tuple(class_folders), tuple(class_names)
        self._opened: dict[Part, FolderSamples] = {}

    @functools.cached_property
    def size(self) -> tuple[int, int]:
        """Height and width after framing: of the first picture where the frame depends on it."""
        if self.framing.size is not None:
            return self.framing.size
        part = next(iter(self._opened), None) or self.parts[0]
        return self.open(part).size

    @functools.cached_property
    def fingerprint(self) -> str:
        """Names the files of all parts that are there."""
        named = "\n".join(self.open(part).fingerprint for part in self.parts)
        return hashlib.sha256(named.encode()).hexdigest()

    @property
    def parts(self) -> list[Part]:
        """The parts whose folder is there."""
        return [part for part, folder in self.folders.items() if (self.root / folder).is_dir()]

    def open(self, part: Part) -> FolderSamples:
        """Lists the files of a part."""
        if part not in self._opened:
            self._opened[part] = self._listed(part)
        return self._opened[part]

    def _listed(self, part: Part) -> FolderSamples:
        folder = self.root / self.folders[part]
        if not folder.is_dir():
            instead = f", or {WITHOUT_TRAINING}" if part == "train" else ""
            raise DataError(
                f"{folder}: no such folder; put the {part} pictures there, in a folder for each class{instead}"
            )
        files: list[str] = []
        labels: list[int] = []
        digest = hashlib.sha256(repr((self.framing, self.class_folders)).encode())
        left_out = trees.LeftOut()
        for label, name in enumerate(self.class_folders):
            for path, size in trees.pictures_below(folder / name, left_out):
                files.append(path.relative_to(folder).as_posix())
                labels.append(label)
                digest.update(f"{files[-1]}\0{size}\n".encode(errors="surrogateescape"))
        left_out.log(folder)
        if not files:
            raise DataError(f"{folder}: holds no pictures ({', '.join(pictures.SUFFIXES)}) in folders for each class")
        numbers = np.array(labels, dtype=np.int64)
        lacking = np.setdiff1d(np.arange(len(self.class_names)), numbers)
        if lacking.size:
            logger.info(
                "%s: has no pictures of %d of the %d classes, such as %r",
                folder, lacking.size, len(self.class_names), self.class_names[lacking[0]],
            )  # fmt: skip
        if part == "train" or self.boxes is None:
            return FolderSamples(folder, files, numbers, self.framing, digest.hexdigest())
        annotated: list[Annotated] = []
        for file, label in zip(files, labels, strict=True):
            name = self.class_folders[label]
            annotated.append(voc.read(voc.annotation_of(self.boxes, Path(file), name)).only(name))
            digest.update(repr((annotated[-1].size, annotated[-1].objects)).encode())
        return AnnotatedSamples(folder, files, numbers, self.framing, digest.hexdigest(), annotated)


class AnnotatedSamples(FolderSamples):
    """Picture files, and what an XML file says about each: the objects of its class alone."""

    def __init__(
        self,
        root: Path,
        files: Sequence[str],
        labels: Indices,
        framing: Framing,
        fingerprint: str,
        annotated: Sequence[Annotated],
    ):
        super().__init__(root, files, labels, framing, fingerprint)
        self._annotated = annotated

    def boxes(self, indices: Indices) -> list[Boxes]:
        """Boxes (k, 4), half-open and unclipped, for each picture (`evaluation_boxes`)."""
        return pictures.each(self._framed_boxes, indices.tolist())

    def _framed_boxes(self, row: int) -> Boxes:
        own = self._annotated[row]
        boxes, (width, height) = self.upright(row, own.boxes, own.size, own.path)
        return evaluation_boxes(boxes, width, height, self.framing)


class BoxedSamples(FolderSamples):
    """Picture files, and the boxes of each in the frame."""

    def __init__(
        self,
        root: Path,
        files: Sequence[str],
        labels: Indices,
        framing: Framing,
        fingerprint: str,
        boxes: Sequence[Boxes],
    ):
        super().__init__(root, files, labels, framing, fingerprint)
        self._boxes = boxes

    def boxes(self, indices: Indices) -> list[Boxes]:
        """Boxes (k, 4), half-open and unclipped, for each picture."""
        return [self._boxes[row].copy() for row in indices.tolist()]


def evaluation_boxes(boxes: NDArray[np.number], width: int, height: int, framing: Framing) -> Boxes:
    """An XML file's boxes in the frame as masking-based saliency was scored with them: (k, 4) integers, unclipped.

    The shorter side becomes `resize`, so x' = r x - max(0, (r width - crop) / 2) with r = resize / min(width, height), and y
    likewise; where the picture is squashed, each axis has its own r; where it is padded, nothing is cut at 0. Each value is truncated toward zero. The corners are
    taken as they stand: xmin and ymin belong to the box, xmax and ymax do not, so that its area is the product of their
    differences. This differs from `Framing.boxes` by rounding, by at most two pixels.

    Args:
        boxes: (k, 4) xmin, ymin, xmax, ymax.
        width: of the picture that the boxes refer to.
        height: of the picture that the boxes refer to.
        framing: the frame.

    Reference:
        Phang, Park, Geras: "Investigating and Simplifying Masking-based Saliency Methods", arXiv:2010.09750, code.

    >>> evaluation_boxes(np.array([[113, 7, 179, 162]]), 375, 500, Framing(224, 224))
    array([[ 67, -33, 106,  59]])
    """
    edges = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
    for axis, side in enumerate((width, height)):
        length = side if framing.squash else min(width, height)
        ratio = 1.0 if framing.resize is None else framing.resize / length
        offset = 0.0 if framing.crop is None else (side * ratio - framing.crop) / 2
        if framing.resize is not None and framing.crop is not None and framing.resize >= framing.crop:
            offset = max(0.0, offset)  # nothing is padded, whatever rounding says
        edges[:, axis::2] = ratio * edges[:, axis::2] - offset
    return np.trunc(edges).astype(np.int64)


def image_folder(
    root: Path, resize: int | None = None, crop: int | None = None, squash: bool = False, exif: Exif = "turn"
) -> FolderSource:
    """Any set of pictures: `root/train/<class>/` and `root/test/<class>/` (or `root/val/` where there is no `test`).

    The classes are the folders with pictures of all parts together, sorted, so that a class which one part lacks shifts no
    label.

    Args:
        root: the folder.
        resize: shorter side after scaling.
        crop: side of the centre square; this or `squash` is needed where the pictures differ in shape.
        squash: both sides become `resize` long.
        exif: `turn`: pictures are turned as their cameras say; `ignore`: they are taken as they are stored.
    """
    framing = Framing(resize, crop, squash, exif)
    folders: dict[Part, str] = {"train": "train", "test": "test" if (root / "test").is_dir() else "val"}
    there = [root / folder for folder in folders.values() if (root / folder).is_dir()]
    if not there:
        raise DataError(
            f"{root}: has no folder train, test or val; expected {root}/train/<class>/<picture>.png and the like"
        )
    classes = trees.class_folders(there)
    if not classes:
        raise DataError(f"{there[0]}: holds no pictures ({', '.join(pictures.SUFFIXES)}) in folders for each class")
    return FolderSource(root, folders, classes, classes, framing)


def imagenet(
    root: Path,
    resize: int | None = 256,
    crop: int | None = 224,
    squash: bool = False,
    boxes: str | None = None,
    exif: Exif = "turn",
) -> FolderSource:
    """ImageNet (ILSVRC 2012): `root/val/<wnid>/*.JPEG` is the test part, `root/train/<wnid>/*.JPEG` the training part.

    Labels are those of the 1,000 classes even where some of the folders are missing.

    Args:
        root: the folder.
        resize: shorter side after scaling.
        crop: side of the centre square.
        squash: both sides become `resize` long before the cut.
        boxes: folder, below `root` or absolute, with `<file stem>.xml` or `<wnid>/<file stem>.xml` for each test picture, as
            ILSVRC publishes them; the objects that have the picture's class count (`evaluation_boxes`). All are read when
            the part is opened.
        exif: `turn`: pictures are turned as their cameras say; `ignore`: they are taken as they are stored.
    """
    framing = Framing(resize, crop, squash, exif)
    folders: dict[Part, str] = {"train": "train", "test": "val"}
    wnids = imagenet_wnids()
    for folder in folders.values():
        strange = sorted(set(trees.class_folders([root / folder], declared=wnids)) - set(wnids))
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
    return FolderSource(root, folders, wnids, names, framing, None if boxes is None else root / boxes)


@functools.cache
def imagenet_wnids() -> tuple[str, ...]:
    """The WordNet ids of ImageNet's 1,000 classes, in the order of the labels.

    >>> imagenet_wnids()[:2], len(imagenet_wnids())
    (('n01440764', 'n01443537'), 1000)
    """
    return tuple(resources.files(__package__).joinpath("imagenet_wnids.txt").read_text(encoding="ascii").split())
