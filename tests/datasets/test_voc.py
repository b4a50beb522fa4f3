"""ImageNet's boxes: those of the published code, and the files that cannot be used."""

import json
from pathlib import Path

import numpy as np
import pytest

from heatproof.datasets import Dataset, open_dataset, voc
from heatproof.datasets.folders import FolderSource, evaluation_boxes
from heatproof.datasets.pictures import Framing
from heatproof.errors import DataError
from tests.datasets.annotated import FRAMINGS, rectangle, voc_xml, white

GOLDEN = Path(__file__).parents[1] / "golden" / "casme"
WNID = "n01440764"


def imagenet(root, xml, *, size=(120, 90), boxes="boxes", **options):
    """One picture of the first class with this XML text (None: no file)."""
    rectangle(root / "val" / WNID / "ILSVRC2012_val_00000001.JPEG", size)
    (root / "boxes").mkdir(exist_ok=True)
    if xml is not None:
        (root / "boxes" / "ILSVRC2012_val_00000001.xml").write_text(xml)
    return open_dataset("ImageNet", root, split_ratio=0.5, seed=0, options={"boxes": boxes, **options}).split("test")


@pytest.mark.parametrize(("mode", "squash"), [("keep_ratio", False), ("break_ratio", True)])
def test_boxes_in_the_frame_are_those_of_the_published_code(mode, squash):
    framing = Framing(224, 224, squash)
    cases = json.loads((GOLDEN / "resize_pos.json").read_text())
    assert len(cases) > 15
    for case in cases:
        boxes = evaluation_boxes(np.array([case["box"]]), case["width"], case["height"], framing)
        np.testing.assert_array_equal(boxes, [case[mode]])
        # Our own rule, which follows the picture's whole pixels, stays near.
        ours = framing.boxes(np.array([case["box"]]), case["width"], case["height"])
        assert abs(ours - boxes).max() <= 2


def test_a_tree_of_pictures_and_xml_files_gives_the_published_boxes(tmp_path):
    golden = json.loads((GOLDEN / "preproc.json").read_text())
    (tmp_path / "vann").mkdir()
    for name, text in golden["annotations"].items():
        if name.startswith("vann/"):
            (tmp_path / name).write_text(text)
    for name in golden["files"]:
        if name.startswith("val/"):
            rectangle(tmp_path / name, voc.read(tmp_path / "vann" / f"{Path(name).stem}.xml").size)
    classes = sorted(path.name for path in (tmp_path / "val").iterdir())
    source = FolderSource(tmp_path, {"test": "val"}, classes, classes, Framing(224, 224), boxes=tmp_path / "vann")
    split = Dataset("Tree", source, 0.5).split("test")
    expected = golden["outputs"]["val_bboxes.json"]
    assert len(split) == len(expected) == 9
    for file, boxes in zip(split.samples.files, split.boxes(range(9)), strict=True):
        given = [[box["xmin"], box["ymin"], box["xmax"], box["ymax"]] for box in expected[Path(file).stem]]
        np.testing.assert_array_equal(boxes, given)


@pytest.mark.parametrize("framing", FRAMINGS)
def test_a_box_lies_on_the_white_rectangle(tmp_path, framing):
    resize, crop, squash = framing
    split = imagenet(tmp_path, voc_xml(120, 90, (WNID, 30, 20, 75, 60)), resize=resize, crop=crop, squash=squash)
    ((box,),) = split.boxes([0])
    rows, columns = white(split).nonzero()
    shown = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    assert abs(np.clip(box, 0, np.tile(split.size[::-1], 2)) - shown).max() <= 1
    assert (split.regions([0])[0] ^ white(split)).sum() <= 2 * (rows.size**0.5) * 4
    assert split.ignored([0]) is None


def test_only_objects_of_the_pictures_class_count_and_no_box_is_clipped(tmp_path):
    xml = voc_xml(120, 90, ("n02124075", 0, 0, 5, 5), (WNID, 0, 0, 120, 90), (WNID, 10, 10, 130, 80))
    split = imagenet(tmp_path, xml, resize=90, crop=90)
    np.testing.assert_array_equal(split.boxes([0])[0], [[-15, 0, 105, 90], [-5, 10, 115, 80]])
    split.boxes([0])[0][:] = 7  # what is handed out is the caller's
    assert split.boxes([0])[0].max() == 115


def test_a_folder_for_each_class_is_read_as_well_and_training_needs_no_boxes(tmp_path):
    imagenet(tmp_path, None, boxes=None)
    (tmp_path / "boxes" / WNID).mkdir()
    (tmp_path / "boxes" / WNID / "ILSVRC2012_val_00000001.xml").write_text(voc_xml(120, 90, (WNID, 1, 2, 3, 4)))
    rectangle(tmp_path / "train" / WNID / "0.JPEG")
    options = {"boxes": str(tmp_path / "boxes"), "resize": 90, "crop": None}
    data = open_dataset("ImageNet", tmp_path, split_ratio=1.0, seed=0, options=options)
    np.testing.assert_array_equal(data.split("test").boxes([0])[0], [[1, 2, 3, 4]])
    assert data.split("train").boxes([0]) is None


def test_the_fingerprint_covers_the_boxes(tmp_path):
    prints = {imagenet(tmp_path, voc_xml(120, 90, (WNID, 30, 20, edge, 60))).fingerprint for edge in (75, 76)} | {
        imagenet(tmp_path, None, boxes=None).fingerprint
    }
    assert len(prints) == 3


def test_a_box_without_area_is_left_out_alone(tmp_path, caplog):
    caplog.set_level("INFO")
    split = imagenet(tmp_path, voc_xml(120, 90, (WNID, 7, 0, 7, 5), (WNID, 1, 2, 30, 40)), resize=90, crop=None)
    np.testing.assert_array_equal(split.boxes([0])[0], [[1, 2, 30, 40]])
    assert "1.xml: 1 of 2 boxes have no area and are left out" in caplog.text


@pytest.mark.parametrize("size", ["<size><width>0</width><height>0</height></size>", "<size/>", ""])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_the_picture_has_the_size_that_an_xml_file_lacks(tmp_path, size, encoding):
    body = voc_xml(1, 1, (WNID, 30, 20, 75, 60)).partition("</size>")[2]
    imagenet(tmp_path, None, boxes=None)
    xml = tmp_path / "boxes" / "ILSVRC2012_val_00000001.xml"
    header = '<?xml version="1.0" encoding="UTF-16"?>' if encoding == "utf-16" else ""
    xml.write_bytes(f"{header}<annotation>{size}\r\n{body}".encode(encoding))
    data = open_dataset(
        "ImageNet", tmp_path, split_ratio=0.5, seed=0, options={"boxes": "boxes", "resize": 90, "crop": None}
    )
    np.testing.assert_array_equal(data.split("test").boxes([0])[0], [[30, 20, 75, 60]])


def test_sizes_of_a_larger_copy_scale_the_boxes_and_those_of_another_shape_are_refused(tmp_path):
    split = imagenet(tmp_path, voc_xml(240, 180, (WNID, 60, 40, 150, 120)), resize=90, crop=None)
    np.testing.assert_array_equal(split.boxes([0])[0], [[30, 20, 75, 60]])
    split = imagenet(tmp_path, voc_xml(90, 120, (WNID, 30, 20, 75, 60)))
    with pytest.raises(DataError, match=r"1\.JPEG: image 0 is 120 x 90 pixels, and 90 x 120 in .*1\.xml"):
        split.boxes([0])


def test_names_may_have_dots(tmp_path):
    for name in ("my", "my.photo.v2"):
        rectangle(tmp_path / "val" / WNID / f"{name}.JPEG")
        (tmp_path / "boxes").mkdir(exist_ok=True)
        (tmp_path / "boxes" / f"{name}.xml").write_text(voc_xml(120, 90, (WNID, 1, 2, 30 + len(name), 40)))
    options = {"boxes": "boxes", "resize": 90, "crop": None}
    split = open_dataset("ImageNet", tmp_path, split_ratio=0.5, seed=0, options=options).split("test")
    assert [boxes[0, 2] for boxes in split.boxes([0, 1])] == [32, 41]


@pytest.mark.parametrize(
    ("xml", "message"),
    [
        (None, r"00000001\.xml: no such annotation; put the picture's XML file there"),
        ("<annotation><size>", r"00000001\.xml: cannot be read as XML: .*; restore the file"),
        ("", r"cannot be read as XML: no element found"),
        (voc_xml(120, 90), rf"holds no object '{WNID}', the class of its picture; its objects: none"),
        (voc_xml(120, 90, ("n02124075", 0, 0, 5, 5)), rf"holds no object '{WNID}'.*; its objects: n02124075"),
        (voc_xml(120, 90, (WNID, 7, 0, 7, 5)), r"object 0: box 7, 0, 7, 5 is empty; expected xmin < xmax"),
        (voc_xml(120, 90, (WNID, 0, 9, 7, 5)), r"object 0: box 0, 9, 7, 5 is empty"),
        (voc_xml(120, 90, (WNID, 120, 0, 130, 5)), r"box 120, 0, 130, 5 lies outside the picture of 120 x 90 pixels"),
        (voc_xml(120, 90, (WNID, -9, 0, 0, 5)), r"lies outside the picture"),
        (voc_xml(0, 90, (WNID, 1, 1, 2, 2)), r"the picture is said to be 0 x 90 pixels"),
        (voc_xml("x", 90), r"size/width is 'x'; expected a number of pixels"),
        (voc_xml(120.5, 90), r"the picture is said to be 120\.5 x 90 pixels"),
        ('<?xml version="1.0" encoding="klingon"?><annotation/>', r"cannot be read as XML: unknown encoding: klingon"),
        (voc_xml("nan", 90), r"size/width is 'nan'; expected a number of pixels"),
        (voc_xml(120, 90, (WNID, 1, 1, "", 2)), r"object 0: bndbox/xmax is ''; expected a number"),
    ],
)
def test_annotations_that_cannot_be_used_are_named(tmp_path, xml, message):
    with pytest.raises(DataError, match=message) as error:
        imagenet(tmp_path, xml)
    assert "\n" not in str(error.value)
