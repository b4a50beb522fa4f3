"""Photographs are turned as their cameras say, and annotations of the stored or of the turned picture with them."""

import json
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from PIL import Image, ImageOps

from heatproof.datasets import open_dataset, pictures
from heatproof.datasets.pictures import View
from heatproof.errors import DataError, InputError
from tests.datasets.annotated import lies_on, voc_xml, white
from tests.end_to_end.conftest import heatproof

# A white box, half-open, in a picture of 120 x 90 as its rows are stored, and in the picture of 90 x 120 that is seen where
# the camera was held upright (6: turned by 90 degrees clockwise).
STORED, SEEN = (120, 90, [30, 20, 75, 60]), (90, 120, [30, 30, 70, 75])
WNID = "n01440764"


def values(width, height, box):
    x0, y0, x1, y1 = box
    array = np.zeros((height, width, 3), dtype=np.uint8)
    array[y0:y1, x0:x1] = 255
    return array


def photograph(path, orientation=6, array=None, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    exif[0x0112] = orientation
    form = {".jpg": "PNG", ".JPEG": "PNG"}.get(path.suffix)  # lossless under the name that the data set gives it
    Image.fromarray(values(*STORED) if array is None else array).save(path, format=form, exif=exif, **options)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(
    ("name", "options"),
    [("0.png", {}), ("0.webp", {"lossless": True}), ("0.tif", {}), ("0.tiff", {"compression": "tiff_lzw"})],
)
def test_pictures_are_turned_in_all_eight_ways(tmp_path, orientation, name, options):
    array = np.random.default_rng(0).integers(0, 256, (7, 5, 3), dtype=np.uint8)
    photograph(tmp_path / name, orientation, array, **options)
    with Image.open(tmp_path / name) as picture:
        seen = np.asarray(ImageOps.exif_transpose(picture))
    np.testing.assert_array_equal(np.asarray(pictures.read_rgb(tmp_path / name, "it")), seen)
    np.testing.assert_array_equal(np.asarray(pictures.read_rgb(tmp_path / name, "it", "ignore")), array)
    view = pictures.view(tmp_path / name, "it")
    assert view == View((5, 7), orientation)
    assert view.size == seen.shape[1::-1]
    assert pictures.view(tmp_path / name, "it", "ignore") == View((5, 7))
    if orientation > 4:
        np.testing.assert_array_equal(view.mask(array[..., 0], "mask", "picture"), seen[..., 0])


@pytest.mark.parametrize("orientation", range(5, 9))
def test_boxes_of_the_stored_rows_are_turned_with_them(tmp_path, orientation):
    photograph(tmp_path / "0.png", orientation)
    shown = np.asarray(pictures.read_rgb(tmp_path / "0.png", "it"))[..., 0] > 0
    rows, columns = shown.nonzero()
    expected = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    view = pictures.view(tmp_path / "0.png", "it")
    for scale in (1, 3):  # of a larger copy as well
        stored = np.array([STORED[2]]) * scale
        boxes, size = view.boxes(stored, (120 * scale, 90 * scale), "list")
        np.testing.assert_array_equal(boxes, np.array([expected]) * scale)
        assert size == (90 * scale, 120 * scale)
    boxes, size = view.boxes(np.array([expected]), (90, 120), "list")
    np.testing.assert_array_equal(boxes, [expected])


@pytest.mark.parametrize("listed", [(90, 120), (119, 120), (120, 120), (240, 90)])
def test_a_list_that_contradicts_the_picture_is_refused(listed):
    with pytest.raises(DataError, match=rf"picture is 120 x 90 pixels, and {listed[0]} x {listed[1]} in list"):
        View((120, 90)).boxes(np.array([[1, 1, 2, 2]]), listed, "list")
    # Nearly square sides that are exchanged are no copy of another scale.
    with pytest.raises(DataError, match="is 1000 x 1001 pixels, and 1001 x 1000"):
        View((1000, 1001)).boxes(np.array([[1, 1, 2, 2]]), (1001, 1000), "list")


@pytest.mark.parametrize(
    ("box", "message"),
    [
        ([0, 0, np.nan, 9], "no finite number"),
        ([-np.inf, 0, 9, 9], "no finite number"),
        ([0, 0, 241, 9], "reaches far beyond the picture of 120 x 90"),
        ([0, -91, 9, 9], "reaches far beyond"),
        ([120, 0, 130, 9], "lies outside"),
    ],
)
def test_boxes_that_cannot_be_of_the_picture_are_refused(box, message):
    for listed in ((120, 90), None):
        with pytest.raises(DataError, match=f"list: box .* {message}"):
            View((120, 90)).boxes(np.array([box]), listed, "list")


def coco(root, width, height, box, sized=True):
    photograph(root / "images" / "a.jpg")
    x0, y0, x1, y1 = box
    size = {"width": width, "height": height} if sized else {}
    item = {
        "id": 1, "image_id": 1, "category_id": 1, "bbox": [x0, y0, x1 - x0, y1 - y0],
        "segmentation": [[x0, y0, x1, y0, x1, y1, x0, y1]],
    }  # fmt: skip
    content = {
        "images": [{"id": 1, "file_name": "a.jpg", **size}], "annotations": [item], "categories": [{"id": 1, "name": "x"}]
    }  # fmt: skip
    (root / "instances.json").write_text(json.dumps(content))
    return "Coco"


def wsol(root, width, height, box, sized=True):
    photograph(root / "a.jpg")
    folder = root / "metadata" / "test"
    folder.mkdir(parents=True)
    lines = {"image_ids": "a.jpg", "class_labels": "a.jpg,0"} | (
        {"image_sizes": f"a.jpg,{width},{height}"} if sized else {}
    )
    lines["localization"] = "a.jpg,{},{},{},{}".format(*(np.array(box) - [0, 0, 1, 1]))
    for name, line in lines.items():
        (folder / f"{name}.txt").write_text(f"{line}\n")
    return "Wsol"


def wsol_masks(root, width, height, box):
    wsol(root, width, height, box)
    (root / "metadata" / "test" / "localization.txt").write_text("a.jpg,m.png,\n")
    Image.fromarray(values(width, height, box)).save(root / "m.png")
    return "Wsol"


def pets(root, width, height, box):
    photograph(root / "images" / "a.jpg")
    (root / "trimaps").mkdir()
    Image.fromarray(np.where(values(width, height, box)[..., 0], 1, 2).astype(np.uint8)).save(
        root / "trimaps" / "a.png"
    )
    (root / "class_labels.txt").write_text("a.jpg,0\n")
    (root / "class_names.txt").write_text("x\n")
    return "OxfordPets"


def unsized(text):
    tree = ElementTree.fromstring(text)
    tree.remove(tree.find("size"))
    return ElementTree.tostring(tree, encoding="unicode")


def imagenet(root, width, height, box, sized=True):
    photograph(root / "val" / WNID / "a.JPEG")
    (root / "boxes").mkdir()
    text = voc_xml(width, height, (WNID, *box))
    (root / "boxes" / "a.xml").write_text(text if sized else unsized(text))
    return "ImageNet", {"boxes": "boxes"}


def prepared(root, width, height, box, sized=True):
    for part in ("train", "val"):
        photograph(root / part / "x" / "my.a.jpg")
    (root / "xml").mkdir()
    text = voc_xml(width, height, ("x", *box))
    (root / "xml" / "my.a.xml").write_text(text if sized else unsized(text))
    arguments = ["--train-path", root / "train", "--val-path", root / "val", "--val-annotation-path", root / "xml"]
    assert heatproof("prepare-data", *arguments, "--output-base-path", root, "--size", "64") == 0
    return "Prepared"


def opened(name, root, **options):
    name, more = name if isinstance(name, tuple) else (name, {})
    size = {"size": 64} if name == "Prepared" else {"resize": 64, "crop": 64, "squash": False}
    return open_dataset(name, root, split_ratio=0.5, seed=0, options={**size, **more, **options}).split("test")


@pytest.mark.parametrize("annotated", [STORED, SEEN], ids=["stored", "seen"])
@pytest.mark.parametrize("make", [coco, wsol, wsol_masks, pets, imagenet, prepared])
def test_annotations_of_the_stored_and_of_the_seen_picture_lie_on_the_turned_one(tmp_path, make, annotated):
    split = opened(make(tmp_path, *annotated), tmp_path)
    shown = white(split)
    rows, columns = shown.nonzero()
    assert rows.max() - rows.min() > columns.max() - columns.min()  # upright
    assert lies_on(split.regions([0])[0], shown)
    box = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    assert abs(split.boxes([0])[0] - box).max() <= 1


@pytest.mark.parametrize("make", [coco, wsol, imagenet, prepared])
def test_a_size_that_is_not_listed_is_that_of_the_picture_as_it_is_seen(tmp_path, make):
    split = opened(make(tmp_path, *SEEN, sized=False), tmp_path)
    assert lies_on(split.regions([0])[0], white(split))


@pytest.mark.parametrize("make", [coco, wsol, wsol_masks, pets, imagenet])
def test_orientation_can_be_ignored_and_then_annotations_are_of_the_stored_rows(tmp_path, make):
    name = make(tmp_path, *STORED)
    split = opened(name, tmp_path, exif="ignore")
    shown = white(split)
    rows, columns = shown.nonzero()
    assert rows.max() - rows.min() < columns.max() - columns.min()
    assert lies_on(split.regions([0])[0], shown)
    assert split.fingerprint != opened(name, tmp_path).fingerprint


def test_prepared_boxes_and_pictures_are_of_one_kind(tmp_path):
    prepared(tmp_path, *STORED)
    with pytest.raises(InputError, match=r"exif: ignore; the boxes of .* were made for turn"):
        opened("Prepared", tmp_path, exif="ignore")
    (tmp_path / "prepared.json").unlink()  # as the published code leaves its lists
    split = opened("Prepared", tmp_path)
    with pytest.raises(DataError, match=r"my\.a\.jpg: its camera turned it .* set exif: ignore"):
        split.boxes([0])
    assert len(opened("Prepared", tmp_path, exif="ignore").boxes([0])[0]) == 1
    with pytest.raises(InputError, match="ImageFolder: exif: 'no' must be 'turn' or 'ignore'"):
        opened("ImageFolder", tmp_path, exif="no")


def test_unreadable_orientation_and_unknown_values_leave_a_picture_as_it_is(tmp_path):
    array = values(*STORED)
    photograph(tmp_path / "0.png", 9)
    Image.fromarray(array).save(tmp_path / "1.png", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\xff\x01\x12")
    for name in ("0.png", "1.png"):
        np.testing.assert_array_equal(np.asarray(pictures.read_rgb(tmp_path / name, "it")), array)


class Photos:
    """A user's data set of Pillow pictures."""

    classes = ("x",)

    def __init__(self, folder, part):
        self.folder = folder

    def __len__(self):
        return 1

    def __getitem__(self, index):
        with Image.open(self.folder / "0.png") as picture:
            picture.load()
        return picture, 0


class AnnotatedPhotos(Photos):
    def boxes(self, indices):
        return [np.array([SEEN[2]])] * len(indices)


def test_a_user_s_photographs_are_turned_or_asked_about(tmp_path):
    photograph(tmp_path / "0.png")
    data = open_dataset(f"{__name__}.Photos", tmp_path, split_ratio=0.5, seed=0, options={})
    assert data.size == (120, 90)
    np.testing.assert_array_equal(data.split("test").pixels([0])[0].permute(1, 2, 0), values(*SEEN))
    with pytest.raises(DataError, match=r"AnnotatedPhotos \(test\)\[0\]: .*exif_transpose"):
        open_dataset(f"{__name__}.AnnotatedPhotos", tmp_path, split_ratio=0.5, seed=0, options={}).split("test")
