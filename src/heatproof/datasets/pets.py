"""The Oxford-IIIT pets: photographs of cats and dogs with trimaps."""

import functools
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from heatproof.datasets import listed, pictures, voc
from heatproof.datasets.dataset import Boxes, Indices, Part, tight_boxes
from heatproof.datasets.folders import FolderSamples
from heatproof.datasets.listed import ListedSource
from heatproof.datasets.pictures import INCLUSIVE, Exif, Framing
from heatproof.errors import DataError, InputError

ANIMAL, BACKGROUND, BORDER = 1, 2, 3

Box = Literal["animal", "head"]


@dataclass(frozen=True)
class Pet:
    """Where the files of a photograph lie.

    Args:
        picture: file below the folder of the pictures.
        label: number of the breed.
        trimap: file of the trimap.
        head: XML file with the box of the head, which only some have.
        where: the entry that names it, for messages.
    """

    picture: str
    label: int
    trimap: Path
    head: Path
    where: str


def oxford_pets(
    root: Path,
    resize: int | None = 256,
    crop: int | None = 224,
    squash: bool = False,
    boxes: Box = "animal",
    train_share: float = 0.0,
    official_parts: bool = False,
    exif: Exif = "turn",
) -> ListedSource:
    """The pets in their published layout, or in a flat one; the trimap tells the animal's pixels.

    Published: `images/*.jpg`, `annotations/list.txt`, `annotations/trimaps/*.png` and `annotations/xmls/*.xml`. Flat:
    `images/*.jpg`, `class_labels.txt` (file,label), `class_names.txt` (one a line), `trimaps/*.png` and `head_xml/*.xml`. In
    a trimap, 1 is the animal: the region; 2 is background; 3 is the border, which counts neither way.

    All pictures are in the test part unless an option says otherwise, so the set serves classifiers that were trained on
    other data.

    Args:
        root: the folder.
        resize: shorter side after scaling.
        crop: side of the centre square.
        squash: both sides become `resize` long before the cut.
        boxes: `animal`: the tight box around all that is not background, border included, in the whole photograph;
            `head`: the published boxes of heads, whose corners are inclusive; none where there is no XML file.
        train_share: this share of each class, the first in the order of the list, is the training part.
        official_parts: `annotations/trainval.txt` lists the training part, `annotations/test.txt` the test part.
        exif: `turn`: pictures are turned as their cameras say; trimaps and boxes that refer to the stored rows, as their
            sizes show, are turned with them. `ignore`: all are taken as they are stored.

    Reference:
        Parkhi, Vedaldi, Zisserman, Jawahar: "Cats and Dogs", CVPR 2012.
    """
    framing = Framing(resize, crop, squash, exif)
    if boxes not in ("animal", "head"):
        raise InputError(f"boxes: {boxes!r} must be 'animal' or 'head'")
    if official_parts and train_share:
        raise InputError("train_share: cannot be set together with official_parts, which names the training pictures")
    if official_parts:
        lists: dict[Part, Path] = {"train": root / "annotations/trainval.txt", "test": root / "annotations/test.txt"}
        pets = {part: _published(root, path) for part, path in lists.items()}
        names = _breeds([*pets["train"], *pets["test"]])
    else:
        published = root / "annotations" / "list.txt"
        every = _published(root, published) if published.is_file() else _flat(root)
        names = _breeds(every) if published.is_file() else _names(root / "class_names.txt", every)
        rows = listed.parted(np.array([pet.label for pet in every], dtype=np.int64), train_share)
        pets = {part: [every[row] for row in own.tolist()] for part, own in rows.items()}
    parts = {part: functools.partial(PetSamples, root / "images", own, framing, boxes) for part, own in pets.items()}
    return ListedSource(names, framing, parts, listed.no_training_part(root))


class PetSamples(FolderSamples):
    """Photographs with their trimaps.

    Args:
        root: folder of the pictures.
        pets: the photographs.
        framing: their frame.
        box: which box is meant.
    """

    def __init__(self, root: Path, pets: Sequence[Pet], framing: Framing, box: Box):
        digest = hashlib.sha256(repr((framing, box)).encode())
        for pet in pets:
            sizes = (listed.bytes_of(root / pet.picture, pet.where), listed.bytes_of(pet.trimap, pet.where))
            digest.update(repr((pet.picture, pet.label, sizes)).encode())
            if box == "head" and pet.head.is_file():
                digest.update(pet.head.read_bytes())
        labels = np.array([pet.label for pet in pets], dtype=np.int64)
        super().__init__(root, [pet.picture for pet in pets], labels, framing, digest.hexdigest())
        self._pets, self._box = pets, box

    def regions(self, indices: Indices) -> NDArray[np.bool_]:
        """The animals' pixels (B, H, W), without their border."""
        return self.masks(functools.partial(self._framed, ANIMAL), indices)

    def ignored(self, indices: Indices) -> NDArray[np.bool_]:
        """The border's pixels (B, H, W)."""
        return self.masks(functools.partial(self._framed, BORDER), indices)

    def boxes(self, indices: Indices) -> list[Boxes]:
        """The box (1, 4) of the animal or of its head; (0, 4) where it is unknown, or the trimap is all background."""
        return pictures.each(self._animal if self._box == "animal" else self._head, indices.tolist())

    def _framed(self, value: int, row: int) -> NDArray[np.bool_]:
        chosen: NDArray[np.bool_] = self.framing.mask(self._trimap(row)) == value
        return chosen

    def _animal(self, row: int) -> Boxes:
        trimap = self._trimap(row)
        filled = trimap != BACKGROUND
        box = tight_boxes(filled[None])[: int(filled.any())]
        return self.framing.boxes(box, trimap.shape[1], trimap.shape[0])

    def _head(self, row: int) -> Boxes:
        path = self._pets[row].head
        if not path.is_file():
            return np.empty((0, 4), dtype=np.int64)
        annotated = voc.read(path)
        boxes, size = self.upright(row, annotated.boxes + INCLUSIVE, annotated.size, path)
        return self.framing.boxes(boxes, *size)

    def _trimap(self, row: int) -> NDArray[np.uint8]:
        path = self._pets[row].trimap
        stored = pictures.read_values(path, f"trimap of image {row}", self.framing.exif)
        trimap: NDArray[np.uint8] = self.view(row).mask(stored, f"{path}: trimap", self.files[row])
        strange = np.setdiff1d(trimap, (ANIMAL, BACKGROUND, BORDER))
        if strange.size:
            raise DataError(
                f"{path}: holds the value {strange[0]}; a trimap has 1 (animal), 2 (background) and 3 (border)"
            )
        return trimap


def _published(root: Path, path: Path) -> list[Pet]:
    """Lines as `Abyssinian_100 1 1 1`: name, class from 1, species, breed of the species."""
    annotations, pets, places = root / "annotations", [], dict[str, str]()
    for where, line in listed.records(path):
        if line.startswith("#"):
            continue
        fields = line.split()
        if len(fields) != 4:
            raise DataError(f"{where}: {line!r}; expected name, class, species and breed")
        listed.once(places, fields[0], where)
        label = listed.whole_number(where, "the class", fields[1]) - 1
        if label < 0:
            raise DataError(f"{where}: the class is {fields[1]}; classes count from 1")
        trimap, head = annotations / "trimaps" / f"{fields[0]}.png", annotations / "xmls" / f"{fields[0]}.xml"
        pets.append(Pet(f"{fields[0]}.jpg", label, trimap, head, where))
    if not pets:
        raise DataError(f"{path}: names no pictures")
    return pets


def _breeds(pets: Sequence[Pet]) -> tuple[str, ...]:
    """The breeds' names, which the files' names begin with."""
    names = {pet.label: Path(pet.picture).stem.rpartition("_")[0] for pet in pets}
    return tuple(names.get(label, f"class {label + 1}") for label in range(max(names) + 1))


def _flat(root: Path) -> list[Pet]:
    path, pets, places = root / "class_labels.txt", [], dict[str, str]()
    if not path.is_file():
        raise DataError(
            f"{root}: has neither annotations/list.txt nor class_labels.txt; get images.tar.gz and annotations.tar.gz from "
            "https://www.robots.ox.ac.uk/~vgg/data/pets and unpack both there"
        )
    for where, line in listed.records(path):
        name, comma, text = line.rpartition(",")
        if not comma:
            raise DataError(f"{where}: {line!r}; expected file,label")
        name = name.strip()
        listed.once(places, name, where)
        stem = Path(name).stem
        label = listed.whole_number(where, "the label", text)
        pets.append(Pet(name, label, root / "trimaps" / f"{stem}.png", root / "head_xml" / f"{stem}.xml", where))
    if not pets:
        raise DataError(f"{path}: names no pictures")
    return pets


def _names(path: Path, pets: Sequence[Pet]) -> tuple[str, ...]:
    names = tuple(line for _, line in listed.records(path))
    for pet in pets:
        if not 0 <= pet.label < len(names):
            raise DataError(f"{pet.where}: the label {pet.label} names none of the {len(names)} lines of {path}")
    return names
