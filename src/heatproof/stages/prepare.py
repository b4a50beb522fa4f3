"""prepare-data: lists of a tree's pictures, labels and boxes, as masking-based saliency reads them.

Reads folders of pictures and XML files; writes train.json (shuffled), its two parts train_train.json and train_val.json,
train_shuffle.json (labels that say nothing), val.json, where there are annotations val_bboxes.json and
train_val_bboxes.json, and at last prepared.json, which says how they were made. The data set `Prepared` reads them.
"""

import json
import logging
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from heatproof import artefacts, checks, runtime
from heatproof.datasets import pictures, preparation, voc
from heatproof.datasets.dataset import Boxes
from heatproof.datasets.folders import evaluation_boxes
from heatproof.datasets.pictures import Exif, Framing, View
from heatproof.datasets.preparation import Listing, Sample
from heatproof.errors import DataError

logger = logging.getLogger(__name__)

# What not every request makes.
SOMETIMES = ("train_train.json", "train_val.json", "train_val_bboxes.json", "val_bboxes.json")


@dataclass(frozen=True)
class Request:
    """What is asked for.

    Args:
        train: folder with a folder of training pictures for each class.
        val: the same for the pictures that are tested on.
        out: folder for the lists.
        val_annotations: XML files of all val pictures, `<file stem>.xml` or `<class>/<file stem>.xml`; None: no boxes.
        train_annotations: `<class>/<file stem>.xml` for a part of the training pictures, from which train-val is then
            taken; None: it is taken from all.
        per_class: pictures of each class in train-val.
        seed: of all draws.
        size: side of the frame that boxes are scaled to.
        squash: pictures become squares (published: break-ratio); else the shorter side is scaled, the centre cut.
        exif: `turn`: boxes are those of the pictures turned as their cameras say; `ignore`: of their stored rows.
        examples_per_class: cut the training lists to so many pictures of each class.
        classes: cut the training lists to so many classes; labels stay.
        shuffled_classes: labels that train_shuffle.json draws from; None: as many as there are classes (published: 1000).
        shuffle_seed: of these labels; None: the seed.
        dry_run: say what would be written.
    """

    train: Path
    val: Path
    out: Path
    val_annotations: Path | None = None
    train_annotations: Path | None = None
    per_class: int = 50
    seed: int = 1234
    size: int = 224
    squash: bool = False
    exif: Exif = "turn"
    examples_per_class: int | None = None
    classes: int | None = None
    shuffled_classes: int | None = None
    shuffle_seed: int | None = None
    dry_run: bool = False

    def __post_init__(self) -> None:
        for name, value, high in (
            ("seed", self.seed, 2**32 - 1),
            ("num-per-class-in-train-val", self.per_class, 10**9),
            ("size", self.size, 2**16),
            ("examples-per-class", self.examples_per_class, 10**9),
            ("num-classes", self.classes, 10**9),
        ):
            if value is not None:
                checks.integer(f"--{name}", value, 0 if name == "seed" else 1, high)


def run(request: Request) -> None:
    """Makes all lists, then writes those that are not there as they should be; removes those of another request."""
    contents = prepared(request)
    texts = {name: json.dumps(content, indent=2) for name, content in contents.items()}
    changed = [name for name, text in texts.items() if not _holds(request.out / name, text)]
    for name in texts:
        what = "complete" if name not in changed else "to be written" if request.dry_run else "written"
        logger.info("%s: %s, %s", request.out / name, what, _counted(name, contents[name]))
    foreign = [request.out / name for name in SOMETIMES if name not in texts and (request.out / name).is_file()]
    for path in foreign:
        logger.info("%s: %s, it is of another request", path, "to be removed" if request.dry_run else "removed")
    if request.dry_run:
        return
    if changed:
        # While lists of two requests may stand side by side, nothing says how they were made.
        (request.out / "prepared.json").unlink(missing_ok=True)
    for path in foreign:
        path.unlink()
    for name in changed:
        artefacts.write_text(request.out / name, texts[name])


def prepared(request: Request) -> dict[str, Any]:
    """The content of each file, in the order in which they are written."""
    generator = np.random.RandomState(request.seed)
    framing = Framing(request.size, None if request.squash else request.size, request.squash, request.exif)
    listed = preparation.tree(request.train)
    tested = preparation.tree(request.val, declared=listed.classes)
    _check_classes(listed, tested)
    train = preparation.shuffled(listed, generator)
    lists, boxes = {"train": train}, {}
    folder = request.train_annotations
    if folder is not None:
        trained, validated = preparation.parted_by_annotations(train, folder, request.per_class, generator)
        lists |= {"train_train": trained, "train_val": validated}
        boxes["train_val_bboxes"] = _boxes(validated, framing, folder)
    elif _can_be_parted(train, request.per_class):
        trained, validated = preparation.parted(train, request.per_class, generator)
        lists |= {"train_train": trained, "train_val": validated}
    for name in ("train", "train_train"):
        if name in lists:
            lists[name] = preparation.few(lists[name], request.examples_per_class, request.classes, request.seed)
    seed = request.seed if request.shuffle_seed is None else request.shuffle_seed
    labels = np.random.RandomState(seed)
    classes = len(train.classes) if request.shuffled_classes is None else request.shuffled_classes
    lists["train_shuffle"] = preparation.relabelled(lists["train"], classes, labels)
    lists["val"] = tested
    if request.val_annotations is not None:
        boxes["val_bboxes"] = _boxes(tested, framing, request.val_annotations)
    made = {
        "format": "heatproof/prepared",
        "size": request.size,
        "squash": request.squash,
        "exif": request.exif,
        "seed": request.seed,
        "num_per_class_in_train_val": request.per_class,
        "examples_per_class": request.examples_per_class,
        "num_classes": request.classes,
    }
    contents = {f"{name}.json": listing.json() for name, listing in lists.items()}
    contents |= {f"{name}.json": preparation.boxes_json(own) for name, own in boxes.items()}
    return contents | {"prepared.json": made}


def _can_be_parted(train: Listing, per_class: int) -> bool:
    counts = Counter(label for _, label in train.samples)
    short = next((label for label in range(len(train.classes)) if counts[label] <= per_class), None)
    if short is not None:
        logger.info(
            "%s: has %d pictures, no more than train_val.json would take: the training list is not parted; a smaller "
            "--num-per-class-in-train-val does it", train.root / train.classes[short], counts[short],
        )  # fmt: skip
    return short is None


def _check_classes(train: Listing, val: Listing) -> None:
    strange = sorted(set(val.classes) - set(train.classes))
    if strange:
        raise DataError(
            f"{val.root / strange[0]}: {strange[0]!r} is no class of the training pictures ({len(train.classes)} classes in "
            f"{train.root}); name the folders alike, or remove it"
        )
    if train.classes != val.classes:
        lacking = sorted(set(train.classes) - set(val.classes))[0]
        raise DataError(
            f"{val.root}: has no folder {lacking!r}, a class of the training pictures, so that the labels of the two trees "
            "would differ; make it, if need be empty"
        )


def _boxes(listing: Listing, framing: Framing, annotations: Path) -> dict[str, Boxes]:
    """The boxes of each picture by its stem."""
    boxes: dict[str, Boxes] = {}
    of_stem: dict[str, Sample] = {}
    outside: Counter[str] = Counter()
    unread: list[DataError] = []
    with runtime.progress(len(listing.samples), "prepare-data", "xml") as bar:
        for sample in listing.samples:
            key = sample[0].stem
            if key in boxes:
                raise DataError(
                    f"{sample[0]}: has the name of {of_stem[key][0]}, and boxes are known by names; rename one of them"
                )
            found = _annotated_boxes(annotations, listing, sample, framing, unread)
            boxes[key], of_stem[key] = found, sample
            outside.update(_where(box, framing) for box in found.tolist())
            bar.update()
    if outside["outside"] or outside["partly"]:
        logger.info(
            "%s: of %d objects, %d lie outside the frame and %d partly; their boxes are kept as they are",
            listing.root, outside.total(), outside["outside"], outside["partly"],
        )  # fmt: skip
    if unread:
        logger.warning(
            "%d pictures of %s cannot be read, and their boxes are scaled by the sizes in the XML files; the first: %s",
            len(unread), listing.root, unread[0],
        )  # fmt: skip
    return boxes


def _annotated_boxes(
    annotations: Path, listing: Listing, sample: Sample, framing: Framing, unread: list[DataError]
) -> Boxes:
    """The boxes (k, 4) that an XML file names for a picture, in the frame, unclipped."""
    picture, name = sample[0], listing.classes[sample[1]]
    annotated = voc.read(voc.annotation_of(annotations, picture, name)).only(name)
    try:
        view = pictures.view(picture, "picture", framing.exif)
    except DataError as error:
        if annotated.size is None:
            raise
        unread.append(error)
        view = View(annotated.size)
    found, (width, height) = view.boxes(annotated.boxes, annotated.size, annotated.path, f"{picture}: the picture")
    return evaluation_boxes(found, width, height, framing)


def _where(box: list[int], framing: Framing) -> str:
    assert framing.size is not None
    (height, width), (x0, y0, x1, y1) = framing.size, box
    if x1 <= 0 or y1 <= 0 or x0 >= width or y0 >= height:
        return "outside"
    return "inside" if x0 >= 0 and y0 >= 0 and x1 <= width and y1 <= height else "partly"


def _holds(path: Path, text: str) -> bool:
    return path.is_file() and path.read_text(encoding="utf-8") == text


def _counted(name: str, content: dict[str, Any]) -> str:
    if "samples" in content:
        return f"{len(content['samples'])} pictures"
    return "how it was made" if name == "prepared.json" else f"boxes of {len(content)} pictures"
