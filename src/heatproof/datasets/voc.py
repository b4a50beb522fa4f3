"""Boxes in PASCAL-VOC's XML form, as ImageNet and the Oxford pets have them."""

import math
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from heatproof.errors import DataError


@dataclass(frozen=True)
class Annotated:
    """What an XML file says about a picture.

    Args:
        path: the file.
        width: of the picture, in pixels.
        height: of the picture, in pixels.
        objects: name and xmin, ymin, xmax, ymax of each object; whether the maxima belong to the box is for the data set
            to say.
    """

    path: Path
    width: int
    height: int
    objects: tuple[tuple[str, tuple[float, float, float, float]], ...]

    def boxes_of(self, name: str) -> NDArray[np.float64]:
        """The boxes (k, 4) of the objects of one name, at least one.

        Raises:
            DataError: no object has the name.
        """
        found = [box for own, box in self.objects if own == name]
        if not found:
            others = ", ".join(sorted({own for own, _ in self.objects})) or "none"
            raise DataError(
                f"{self.path}: holds no object {name!r}, the class of its picture; its objects: {others}; "
                "move the picture to its class's folder, or mend the annotation"
            )
        return np.array(found, dtype=np.float64)


def read(path: Path) -> Annotated:
    """Reads and checks an XML file.

    Raises:
        DataError: it is missing or no such file; a box is empty, or lies outside the picture altogether.
    """
    try:
        # Expat refuses what would grow without bound, and no entity outside the file is ever fetched.
        tree = ElementTree.parse(path).getroot()  # noqa: S314
    except FileNotFoundError as error:
        raise DataError(
            f"{path}: no such annotation; put the picture's XML file there, or remove the picture"
        ) from error
    except (OSError, ElementTree.ParseError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as XML: {' '.join(str(error).split())}; restore the file") from error
    width, height = (int(_number(path, tree, f"size/{side}")) for side in ("width", "height"))
    if width < 1 or height < 1:
        raise DataError(f"{path}: the picture is said to be {width} x {height} pixels; mend size/width and size/height")
    objects = []
    for place, item in enumerate(tree.iter("object")):
        where = f"{path}: object {place}"
        x0, y0, x1, y1 = (_number(where, item, f"bndbox/{edge}") for edge in ("xmin", "ymin", "xmax", "ymax"))
        if x1 <= x0 or y1 <= y0:
            raise DataError(
                f"{where}: box {x0:g}, {y0:g}, {x1:g}, {y1:g} is empty; expected xmin < xmax and ymin < ymax"
            )
        if x0 >= width or y0 >= height or x1 <= 0 or y1 <= 0:
            raise DataError(
                f"{where}: box {x0:g}, {y0:g}, {x1:g}, {y1:g} lies outside the picture of {width} x {height} pixels"
            )
        objects.append(((item.findtext("name") or "").strip(), (x0, y0, x1, y1)))
    return Annotated(path, width, height, tuple(objects))


def _number(where: object, item: ElementTree.Element, field: str) -> float:
    text = item.findtext(field)
    try:
        number = float(text or "")
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise DataError(f"{where}: {field} is {text!r}; expected a number of pixels")
    return number
