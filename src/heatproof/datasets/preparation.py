"""Lists of pictures, labels and boxes as masking-based saliency reads them; made from trees of pictures and XML files.

A list is `{"root", "samples": [[path, label], ...], "classes", "class_to_idx"}`; a file of boxes names, for each picture by
the stem of its file (its name without the ending; the published code cuts it at the first dot), `[{"xmin", "ymin", "xmax",
"ymax"}, ...]` in the frame. The draws are those of the published code,
from NumPy's old generator, so that the same seed gives the published lists.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from heatproof.datasets import trees
from heatproof.datasets.dataset import Boxes, drawn_classes
from heatproof.errors import DataError

Sample = tuple[Path, int]


@dataclass(frozen=True)
class Listing:
    """Pictures and their labels.

    Args:
        root: folder of the tree.
        samples: absolute path and label of each picture.
        classes: name of each label's folder, sorted.
    """

    root: Path
    samples: tuple[Sample, ...]
    classes: tuple[str, ...]

    def json(self) -> dict[str, Any]:
        """As it stands in the file."""
        return {
            "root": str(self.root),
            "samples": [[str(path), label] for path, label in self.samples],
            "classes": list(self.classes),
            "class_to_idx": {name: label for label, name in enumerate(self.classes)},
        }


def tree(root: Path, declared: Collection[str] = ()) -> Listing:
    """The pictures of a tree with a folder for each class, class by class; in a class, folder by folder.

    Args:
        root: the tree. What is no picture, and folders without pictures, are left out and logged.
        declared: folders of these names are classes even where they are empty.

    Raises:
        DataError: the folder is missing, or holds no classes or no pictures.
    """
    root = root.absolute()
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; expected one that holds a folder for each class, with its pictures")
    classes = trees.class_folders([root], declared)
    if not classes:
        raise DataError(f"{root}: holds no folders with pictures; expected one for each class")
    samples: list[Sample] = []
    left_out = trees.LeftOut()
    for label, name in enumerate(classes):
        found = (path for path, _ in trees.pictures_below(root / name, left_out))
        samples += [(path, label) for path in sorted(found, key=lambda path: (str(path.parent), path.name))]
    left_out.log(root)
    if not samples:
        raise DataError(f"{root}: its folders hold no pictures")
    return Listing(root, tuple(samples), tuple(classes))


def shuffled(listing: Listing, generator: np.random.RandomState) -> Listing:
    """The same pictures in random order: the first ones are a random subset."""
    return replace(listing, samples=tuple(_shuffled(listing.samples, generator)))


def parted(listing: Listing, per_class: int, generator: np.random.RandomState) -> tuple[Listing, Listing]:
    """Parts a shuffled training list in two: train-train, and train-val with `per_class` random pictures of each class.

    Both go class by class, in the order of the list.

    Args:
        listing: shuffled; each class has more pictures than that.
        per_class: pictures of each class in train-val.
        generator: that has shuffled the list.
    """
    of_class: list[list[Sample]] = [[] for _ in listing.classes]
    for sample in listing.samples:
        of_class[sample[1]].append(sample)
    trained: list[Sample] = []
    validated: list[Sample] = []
    for own in of_class:
        drawn = set(_permutation(len(own), generator)[:per_class])
        for place, sample in enumerate(own):
            (validated if place in drawn else trained).append(sample)
    return replace(listing, samples=tuple(trained)), replace(listing, samples=tuple(validated))


def parted_by_annotations(
    listing: Listing, annotations: Path, per_class: int, generator: np.random.RandomState
) -> tuple[Listing, Listing]:
    """Parts a shuffled training list in two: train-train, and train-val, whose pictures all have boxes.

    Of the pictures with an XML file, those of a class are shuffled, and the first `per_class` go to train-val. The classes
    take their turns in the order in which the list first has a picture of theirs, annotated or not, as in the published
    code; all draws after the first class depend on it.

    Args:
        listing: shuffled.
        annotations: holds `<class>/<file stem>.xml` for a part of the pictures.
        per_class: pictures of each class in train-val, at most.
        generator: that has shuffled the list.

    Raises:
        DataError: no picture has such a file.
    """
    annotated: dict[int, list[Sample]] = {label: [] for _, label in listing.samples}
    trained: list[Sample] = []
    for path, label in listing.samples:
        there = (annotations / listing.classes[label] / f"{path.stem}.xml").is_file()
        (annotated[label] if there else trained).append((path, label))
    if not any(annotated.values()):
        raise DataError(
            f"{annotations}: holds no <class>/<file stem>.xml of a training picture; "
            f"{annotations / listing.classes[0]}/*.xml were looked for first"
        )
    validated: list[Sample] = []
    for samples in annotated.values():
        mixed = _shuffled(samples, generator)
        validated += mixed[:per_class]
        trained += mixed[per_class:]
    validated = _shuffled(validated, generator)
    trained = _shuffled(trained, generator)
    return replace(listing, samples=tuple(trained)), replace(listing, samples=tuple(validated))


def relabelled(listing: Listing, classes: int, generator: np.random.RandomState) -> Listing:
    """The same pictures with labels that say nothing: each one of `classes`, all equally likely."""
    return replace(listing, samples=tuple((path, int(generator.randint(classes))) for path, _ in listing.samples))


def few(listing: Listing, examples_per_class: int | None, classes: int | None, seed: int) -> Listing:
    """A balanced part of a shuffled list, in its order; labels and class names stay as they are.

    Args:
        listing: shuffled.
        examples_per_class: the first so many of each class; None: all.
        classes: pictures of so many classes, drawn from the seed; None: of all. Fewer are among more.
        seed: root seed.

    Raises:
        DataError: there are fewer.
    """
    if examples_per_class is None and classes is None:
        return listing
    kept = drawn_classes(len(listing.classes), classes, seed)
    taken = dict.fromkeys(kept, 0)
    samples = []
    for path, label in listing.samples:
        if label in taken and (examples_per_class is None or taken[label] < examples_per_class):
            taken[label] += 1
            samples.append((path, label))
    short = next((label for label, count in taken.items() if count < (examples_per_class or 1)), None)
    if short is not None:
        raise DataError(
            f"{listing.root / listing.classes[short]}: has {taken[short]} training pictures; "
            f"{examples_per_class or 1} of each class were asked for"
        )
    return replace(listing, samples=tuple(samples))


def boxes_json(boxes: Mapping[str, Boxes]) -> dict[str, list[dict[str, int]]]:
    """Boxes by the stem of their picture, as they stand in the file.

    >>> boxes_json({"cat": np.array([[1, 2, 3, 4]])})
    {'cat': [{'xmin': 1, 'ymin': 2, 'xmax': 3, 'ymax': 4}]}
    """
    names = ("xmin", "ymin", "xmax", "ymax")
    return {key: [dict(zip(names, box, strict=True)) for box in own.tolist()] for key, own in boxes.items()}


def _shuffled(samples: Sequence[Sample], generator: np.random.RandomState) -> list[Sample]:
    return [samples[place] for place in _permutation(len(samples), generator)]


def _permutation(count: int, generator: np.random.RandomState) -> list[int]:
    order = list(range(count))
    generator.shuffle(order)
    return order
