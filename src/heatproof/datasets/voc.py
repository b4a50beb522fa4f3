"""Boxes in PASCAL-VOC's XML form, as ImageNet and the Oxford pets have them."""

import logging
import math
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from heatproof.datasets.pictures import check_box
from heatproof.errors import DataError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Annotated:
    """What an XML file says about a picture.

    Args:
        path: the file.
        size: width and height of the picture, in pixels; None where the file does not say.
        objects: name and xmin, ymin, xmax, ymax of each object; whether the maxima belong to the box is for the data set
            to say.
        flat: for the message, the first object whose box has no area; such boxes are no objects.
    """

    path: Path
    size: tuple[int, int] | None
    objects: tuple[tuple[str, tuple[float, float, float, float]], ...]
    flat: str | None = None

    @property
    def boxes(self) -> NDArray[np.float64]:
        """The boxes (k, 4) of all objects."""
        return np.array([box for _, box in self.objects], dtype=np.float64).reshape(-1, 4)

    def only(self, name: str) -> "Annotated":
        """The same with the objects of one name, at least one.

        Raises:
            DataError: no object has the name.
        """
        found = tuple(item for item in self.objects if item[0] == name)
        if not found:
            others = ", ".join(sorted({own for own, _ in self.objects})) or "none"
            raise DataError(
                self.flat
                or f"{self.path}: holds no object {name!r}, the class of its picture; its objects: {others}; "
                "move the picture to its class's folder, or correct the annotation"
            )
        return replace(self, objects=found)


def annotation_of(folder: Path, picture: Path, class_folder: str) -> Path:
    """The XML file of a picture: in the folder itself, or in one named after the class below it.

    >>> annotation_of(Path("xml"), Path("cat/my.photo.jpg"), "cat").as_posix()
    'xml/my.photo.xml'
    """
    name = f"{picture.stem}.xml"
    nested = folder / class_folder / name
    return nested if nested.is_file() else folder / name


def read(path: Path) -> Annotated:
    """Reads and checks an XML file. A box without area is left out, which is logged.

    Raises:
        DataError: it is missing or no such file; a box has its corners exchanged, or lies outside the picture altogether.
    """
    try:
        # Expat refuses what would grow without bound, and no entity outside the file is ever fetched.
        tree = ElementTree.parse(path).getroot()  # noqa: S314
    except FileNotFoundError as error:
        raise DataError(
            f"{path}: no such annotation; put the picture's XML file there, or remove the picture"
        ) from error
    except (OSError, ElementTree.ParseError, ValueError, LookupError) as error:  # LookupError: an unknown encoding
        raise DataError(f"{path}: cannot be read as XML: {' '.join(str(error).split())}; restore the file") from error
    size, objects, flat = _size(path, tree), [], []
    for place, item in enumerate(tree.iter("object")):
        where = f"{path}: object {place}"
        x0, y0, x1, y1 = (_number(where, item, f"bndbox/{edge}") for edge in ("xmin", "ymin", "xmax", "ymax"))
        empty = f"{where}: box {x0:g}, {y0:g}, {x1:g}, {y1:g} is empty; expected xmin < xmax and ymin < ymax"
        if x1 < x0 or y1 < y0:
            raise DataError(empty)
        if x1 == x0 or y1 == y0:
            flat.append(empty)
            continue
        if size is not None:
            check_box((x0, y0, x1, y1), size, where)
        objects.append(((item.findtext("name") or "").strip(), (x0, y0, x1, y1)))
    if flat and objects:
        logger.info("%s: %d of %d boxes have no area and are left out", path, len(flat), len(flat) + len(objects))
    return Annotated(path, size, tuple(objects), flat[0] if flat else None)


def _size(path: Path, tree: ElementTree.Element) -> tuple[int, int] | None:
    """Width and height; None where the file has neither, or 0 for both, as some programs write for unknown."""
    if all((tree.findtext(f"size/{side}") or "").strip() in ("", "0") for side in ("width", "height")):
        return None
    width, height = (_number(path, tree, f"size/{side}") for side in ("width", "height"))
    if width < 1 or height < 1 or width % 1 or height % 1:
        raise DataError(
            f"{path}: the picture is said to be {width:g} x {height:g} pixels; correct size/width and size/height, or remove both"
        )
    return int(width), int(height)


def _number(where: object, item: ElementTree.Element, field: str) -> float:
    text = item.findtext(field)
    try:
        number = float(text or "")
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise DataError(f"{where}: {field} is {text!r}; expected a number of pixels")
    return number
