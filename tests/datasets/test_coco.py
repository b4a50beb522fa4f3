"""COCO: whose category is the label, what its objects cover, and files that cannot be used."""

import json

import numpy as np
import pytest
from PIL import Image

from heatproof.datasets import open_dataset
from heatproof.datasets.coco import inside, run_lengths
from heatproof.datasets.dataset import tight_boxes
from heatproof.errors import DataError, InputError
from tests.datasets.annotated import FRAMINGS, lies_on, rectangle, white

CATEGORIES = [
    {"id": 90, "name": "toothbrush", "isthing": 1},
    {"id": 1, "name": "person", "isthing": 1},
    {"id": 187, "name": "sky", "isthing": 0},
]
IMAGE = {"id": 5, "file_name": "a.jpg", "width": 120, "height": 90}


def thing(number, category, box, *, crowd=0, area=None, **further):
    _, _, across, down = box
    area = across * down if area is None else area
    return {
        "id": number, "image_id": 5, "category_id": category, "bbox": box, "area": area, "iscrowd": crowd, **further
    }  # fmt: skip


def detection(root, *annotations, images=(IMAGE,), categories=CATEGORIES, **options):
    rectangle(root / "images" / "a.jpg")
    content = {"images": list(images), "annotations": list(annotations), "categories": categories}
    (root / "instances.json").write_text(json.dumps(content))
    return opened(root, **options)


def panoptic(root, segments, mask, **options):
    """Segments of one picture; the mask holds their numbers."""
    rectangle(root / "images" / "a.jpg")
    (root / "panoptic_masks").mkdir(exist_ok=True)
    colours = np.stack([mask % 256, mask // 256 % 256, mask // 65536], axis=-1).astype(np.uint8)
    Image.fromarray(colours).save(root / "panoptic_masks" / "a.png")
    annotation = {"image_id": 5, "file_name": "a.png", "segments_info": segments}
    content = {"images": [IMAGE], "annotations": [annotation], "categories": CATEGORIES}
    (root / "panoptic.json").write_text(json.dumps(content))
    return opened(root, annotations="panoptic.json", **options)


def opened(root, **options):
    return open_dataset("Coco", root, split_ratio=0.5, seed=0, options=options)


POLYGON = [[30, 20, 75, 20, 75, 60, 30, 60]]
# The white rectangle down its columns.
RUNS = {"size": [90, 120], "counts": [30 * 90 + 20, *([40, 50] * 44), 40, 30 + 45 * 90]}


@pytest.mark.parametrize("segmentation", [None, POLYGON, RUNS], ids=["box", "polygon", "run lengths"])
@pytest.mark.parametrize("framing", FRAMINGS)
def test_every_form_of_annotation_lies_on_the_white_rectangle(tmp_path, framing, segmentation):
    resize, crop, squash = framing
    item = thing(1, 90, [30, 20, 45, 40], segmentation=segmentation)
    data = detection(tmp_path, item, resize=resize, crop=crop, squash=squash)
    split = data.split("test")
    region = split.regions([0])
    assert lies_on(region[0], white(split))
    clipped = np.clip(split.boxes([0])[0], 0, np.tile(data.size[::-1], 2))
    np.testing.assert_array_equal(clipped, tight_boxes(region))
    assert split.ignored([0]) is None


@pytest.mark.parametrize("framing", FRAMINGS)
def test_a_panoptic_segment_lies_on_the_white_rectangle(tmp_path, framing):
    resize, crop, squash = framing
    number = 7 + 256 * 8 + 65536 * 9
    mask = rectangle(tmp_path / "images" / "a.jpg").astype(np.int64) * number
    segment = thing(number, 1, [30, 20, 45, 40])
    split = panoptic(tmp_path, [segment], mask, resize=resize, crop=crop, squash=squash).split("test")
    assert lies_on(split.regions([0])[0], white(split))


def panoptic_scene(tmp_path, objects):
    """A sky, two persons (left and right), a larger toothbrush between them, a crowd of toothbrushes and one of persons."""
    mask = np.full((90, 120), 4)
    mask[:, :10], mask[:, 110:], mask[:, 40:70] = 1, 2, 3
    mask[:5, :40], mask[85:] = 5, 6
    boxes = {1: [0, 0, 10, 90], 2: [110, 0, 10, 90], 3: [40, 0, 30, 90], 5: [0, 0, 40, 5], 6: [0, 85, 120, 5]}
    segments = [
        thing(1, 1, boxes[1]),
        thing(2, 1, boxes[2]),
        thing(3, 90, boxes[3]),
        thing(4, 187, [0, 0, 120, 90]),
        thing(5, 90, boxes[5], crowd=1, area=10**6),
        thing(6, 1, boxes[6], crowd=1, area=10**6),
    ]
    data = panoptic(tmp_path, segments, mask, objects=objects, resize=None, crop=None)
    return data, data.split("test"), mask


@pytest.mark.parametrize(
    ("objects", "label", "numbers", "crowds"),
    [
        ("thing_class", "toothbrush", [3], [5]),
        ("largest_class", "sky", [4], []),
        ("all", "toothbrush", [1, 2, 3], [5, 6]),
    ],
)
def test_the_largest_object_is_the_label_and_crowds_count_neither_way(tmp_path, objects, label, numbers, crowds):
    data, split, mask = panoptic_scene(tmp_path, objects)
    assert data.class_names[split.labels[0]] == label
    assert data.class_names == (
        ("person", "toothbrush", "sky") if objects == "largest_class" else ("person", "toothbrush")
    )
    np.testing.assert_array_equal(split.regions([0])[0], np.isin(mask, numbers))
    np.testing.assert_array_equal(split.ignored([0])[0], np.isin(mask, crowds))
    assert len(split.boxes([0])[0]) == len(numbers)


def test_all_objects_of_the_label_are_united_and_other_ones_left_out(tmp_path):
    items = [
        thing(1, 1, [0, 0, 10, 10]),
        thing(2, 90, [20, 0, 9, 10]),
        thing(3, 1, [50.5, 0, 5.25, 10]),
        thing(4, 1, [100, 80, 40, 40], area=1),
    ]
    split = detection(tmp_path, *items, resize=None, crop=None).split("test")
    np.testing.assert_array_equal(split.boxes([0])[0], [[0, 0, 10, 10], [50, 0, 56, 10], [100, 80, 140, 120]])
    assert split.regions([0]).sum() == 100 + 60 + 200


def test_a_crowd_is_ignored_where_no_object_lies(tmp_path):
    items = [thing(1, 1, [0, 0, 10, 10]), thing(2, 1, [0, 0, 20, 10], crowd=1)]
    split = detection(tmp_path, *items, resize=None, crop=None).split("test")
    np.testing.assert_array_equal(split.ignored([0])[0].any(axis=0).nonzero()[0], np.arange(10, 20))


def test_pictures_without_an_object_are_left_out_and_counted(tmp_path, caplog):
    images = [{**IMAGE, "id": 4, "file_name": "none.jpg"}, IMAGE]
    caplog.set_level("INFO")
    split = detection(tmp_path, thing(1, 1, [0, 0, 10, 10]), images=images).split("test")
    assert list(split.samples.files) == ["a.jpg"]
    assert "1 pictures have no object and are left out" in caplog.text


def test_packed_run_lengths_are_those_of_pycocotools():
    y, x = np.mgrid[:23, :31]
    shape = ((x - 14) ** 2 + (y - 9) ** 2 < 70) | (x > 27)
    # pycocotools 2.0.11, mask.encode and mask.merge of frPyObjects.
    np.testing.assert_array_equal(run_lengths("a45`04M2N2N2O0O2O00000001N101N2N2N3L^3P2", 23, 31), shape)
    drawn = run_lengths("n23d04L4M1N001O00001O00001O00001O01O0N2M3M3M3Mb3", 23, 31)
    ours = inside(np.array([3.5, 2.25, 26.0, 4.0, 20.75, 19.5, 7.0, 15.0]), 23, 31)
    assert (ours ^ drawn).sum() <= 2


def test_the_fingerprint_covers_annotations_and_options(tmp_path):
    item = thing(1, 1, [0, 0, 10, 10])
    prints = {
        detection(tmp_path, item).fingerprint,
        detection(tmp_path, {**item, "bbox": [0, 0, 10, 11]}).fingerprint,
        detection(tmp_path, {**item, "segmentation": POLYGON}).fingerprint,
        detection(tmp_path, item, objects="all").fingerprint,
        detection(tmp_path, item, squash=True).fingerprint,
    }
    assert len(prints) == 5


def test_a_share_of_each_class_trains(tmp_path):
    rectangle(tmp_path / "images" / "b.jpg")
    images = [IMAGE, {**IMAGE, "id": 6, "file_name": "b.jpg"}]
    items = [thing(1, 1, [0, 0, 9, 9]), {**thing(2, 1, [0, 0, 9, 9]), "image_id": 6}]
    data = detection(tmp_path, *items, images=images, train_share=0.5)
    assert list(data.split("validation").samples.files) == ["a.jpg"]
    assert list(data.split("test").samples.files) == ["b.jpg"]
    with pytest.raises(DataError, match="all pictures are in the test part; set the option train_share"):
        detection(tmp_path, *items, images=images).split("train")


def test_boxes_without_area_are_left_out_alone_and_counted(tmp_path, caplog):
    caplog.set_level("INFO")
    flat = [
        thing(2, 1, [3, 3, 8, 0]),
        thing(3, 90, [3, 3, 0, 8], segmentation=POLYGON),
        thing(4, 1, [3, 3, 0, 0], crowd=1),
    ]
    split = detection(tmp_path, *flat, thing(1, 1, [0, 0, 10, 10])).split("test")
    assert len(split.boxes([0])[0]) == 1
    assert split.ignored([0]) is None
    assert "3 boxes without area are left out, the first: " in caplog.text
    assert "picture 5: object 2: box of 8 x 0 pixels is empty" in caplog.text


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", "1e999", "1e30", "-1e30"])
@pytest.mark.parametrize("place", range(4))
def test_boxes_with_values_that_no_picture_has_are_refused(tmp_path, value, place):
    box = [10, 10, 10, 10]
    box[place] = float(value)
    with pytest.raises(DataError, match=r"instances\.json: .*(finite|outside|beyond|empty)"):
        detection(tmp_path, thing(1, 1, box, area=4)).split("test").boxes([0])
    item = thing(1, 1, [0, 0, 9, 9], segmentation=[[1, 1, 9, 1, float("nan"), 9]])
    with pytest.raises(DataError, match="not in COCO's form: a polygon has a corner that is no finite number"):
        detection(tmp_path, item).split("test").regions([0])


@pytest.mark.parametrize("size", [{"width": None, "height": None}, {"width": 0, "height": 0}, {}])
@pytest.mark.parametrize(
    "segmentation", [None, POLYGON, RUNS, [[]]], ids=["box", "polygon", "run lengths", "no corners"]
)
def test_the_picture_has_the_size_that_is_not_listed(tmp_path, size, segmentation):
    image = {"id": 5, "file_name": "a.jpg", **size}
    item = thing(1, 90, [30, 20, 45, 40], segmentation=segmentation)
    split = detection(tmp_path, item, images=[image], resize=64, crop=48).split("test")
    assert lies_on(split.regions([0])[0], white(split))


@pytest.mark.parametrize("folder", ["images", "images/val2017"])
def test_addresses_stand_in_for_file_names(tmp_path, folder):
    url = "http://images.cocodataset.org/val2017/000000000005.jpg"
    rectangle(tmp_path / folder / "000000000005.jpg")
    image = {"id": 5, "coco_url": url, "width": 120, "height": 90}
    split = detection(tmp_path, thing(1, 1, [30, 20, 45, 40]), images=[image]).split("test")
    assert lies_on(split.regions([0])[0], white(split))


@pytest.mark.parametrize("second", [POLYGON, None], ids=["polygon", "alone"])
@pytest.mark.parametrize("size", [[120, 90], [45, 60]])
def test_run_lengths_of_another_size_are_named(tmp_path, size, second):
    shape = {"size": size, "counts": [0, 9, size[0] * size[1] - 9]}
    items = [thing(1, 90, [30, 20, 45, 40], segmentation=shape)]
    items += [thing(2, 90, [30, 20, 45, 40], segmentation=second)] * (second is not None)
    with pytest.raises(DataError, match=rf"a\.jpg: .*{size[1]} x {size[0]} pixels.* 120 x 90"):
        detection(tmp_path, *items).split("test").regions([0])


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ({"id": 5, "file_name": "b.jpg"}, r"images\[1\]: id 5 stands in .*images\[0\] already"),
        ({"id": 6, "file_name": "a.jpg"}, r"images\[1\]: file a\.jpg stands in .*images\[0\] already"),
        ({"id": 6, "file_name": "b.jpg", "width": -4, "height": 3}, r"images\[1\]: b\.jpg is said to be -4 x 3 pixels"),
        ({"id": 6, "file_name": "b.jpg", "width": 4}, r"is not in COCO's form"),
        ({"id": 6}, r"images\[1\]: is not in COCO's form: 'file_name' is missing"),
        ({"id": 6, "file_name": 12}, r"images\[1\]: is not in COCO's form: file_name is 12; expected text"),
        ({"id": 5.5, "file_name": "b.jpg"}, r"images\[1\]: is not in COCO's form: 5\.5 is no whole number"),
    ],
)
def test_pictures_that_share_a_name_or_have_no_size_are_named(tmp_path, second, message):
    with pytest.raises(DataError, match=message):
        detection(tmp_path, thing(1, 1, [0, 0, 9, 9]), images=[IMAGE, second])


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ([], r"instances\.json: no picture has an object"),
        ([thing(1, 1, [0, 0, 9, 9], crowd=1)], r"instances\.json: no picture has an object"),
        ([thing(1, 1, [3, 3, 0, 9])], r"picture 5: object 1: box of 0 x 9 pixels is empty"),
        ([thing(1, 1, [3, 3, 9, -1])], r"picture 5: object 1: box of 9 x -1 pixels is empty"),
        ([thing(1, 1, [120, 3, 9, 9])], r"a\.jpg: box 120, 3, 129, 12 lies outside the picture of 120 x 90 pixels"),
        ([thing(1, 2, [3, 3, 9, 9])], r"picture 5: category 2 is not among its categories"),
        (
            [{**thing(1, 1, [3, 3, 9, 9]), "image_id": 8}],
            r"an annotation is of picture 8, which is not among its images",
        ),
        (
            [{**thing(1, 1, [3, 3, 9, 9]), "image_id": 5.5}],
            r"annotations\[0\]: is not in COCO's form: 5\.5 is no whole",
        ),
        ([{**thing(1, 1, [3, 3, 9, 9]), "bbox": []}], r"object 1: is not in COCO's form: not enough values"),
        ([{"id": 1, "image_id": 5, "category_id": 1}], r"object 1: is not in COCO's form: 'bbox' is missing"),
        ([thing(1, 1, ["x", 3, 9, 9], area=9)], r"is not in COCO's form: could not convert string"),
    ],
)
def test_annotations_that_cannot_be_used_are_named(tmp_path, items, message):
    with pytest.raises(DataError, match=message) as error:
        detection(tmp_path, *items)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, r"instances\.json: cannot be read: No such file"),
        ("{", r"instances\.json: cannot be read as JSON: .*restore the file"),
        ("[]", r"instances\.json: holds a list; expected an object"),
        ("[" * 100_000, r"instances\.json: cannot be read as JSON: maximum recursion depth"),
        ("{}", r"instances\.json: is not in COCO's form: 'categories' is missing"),
    ],
)
def test_files_that_are_no_annotations_are_named(tmp_path, text, message):
    if text is not None:
        (tmp_path / "instances.json").write_text(text)
    with pytest.raises(DataError, match=message):
        opened(tmp_path)


def test_a_category_that_is_named_twice_is_refused(tmp_path):
    twice = [*CATEGORIES, {"id": 1, "name": "cat"}]
    with pytest.raises(DataError, match=r"categories\[3\]: id 1 stands in .*categories\[1\] already"):
        detection(tmp_path, thing(1, 1, [0, 0, 9, 9]), categories=twice)


@pytest.mark.parametrize("crowd", ["0", None, 0.0, False])
def test_no_crowd_is_no_crowd_however_it_is_written(tmp_path, crowd):
    split = detection(tmp_path, {**thing(1, 1, [0, 0, 9, 9]), "iscrowd": crowd, "area": None}).split("test")
    assert len(split.boxes([0])[0]) == 1
    assert split.ignored([0]) is None


def test_boxes_that_seem_to_hold_corners_are_logged(tmp_path, caplog):
    detection(tmp_path, thing(1, 1, [100, 80, 21.5, 11]))
    assert not caplog.text
    detection(tmp_path, thing(1, 1, [60, 40, 110, 80]))
    assert (
        "1 boxes reach beyond their pictures, the first one that of a.jpg; COCO's boxes are left, top, width"
        in caplog.text
    )


def test_run_lengths_without_measure_are_refused_before_they_are_drawn(tmp_path):
    runs = {"size": [10**9, 10**9], "counts": [10**18]}
    with pytest.raises(DataError, match="run lengths for 1000000000 x 1000000000 pixels; the picture has 120 x 90"):
        detection(tmp_path, thing(1, 1, [0, 0, 9, 9], segmentation=runs)).split("test").regions([0])


def test_pictures_and_masks_that_do_not_fit_are_named(tmp_path):
    item = thing(1, 1, [0, 0, 9, 9])
    with pytest.raises(DataError, match=r"instances\.json: b\.jpg: names .*b\.jpg, which is not there"):
        detection(tmp_path, item, images=[{**IMAGE, "file_name": "b.jpg"}]).split("test")
    with pytest.raises(DataError, match=r"a\.jpg: image 0 is 120 x 90 pixels, and 100 x 90 in .*instances\.json"):
        detection(tmp_path, item, images=[{**IMAGE, "width": 100}]).split("test").boxes([0])
    broken = thing(1, 1, [0, 0, 9, 9], segmentation={"size": [90, 120], "counts": [3, 4]})
    with pytest.raises(DataError, match=r"a\.jpg: is not in COCO's form: run lengths add up to 7 pixels"):
        detection(tmp_path, broken).split("test").regions([0])
    with pytest.raises(DataError, match=r"a\.png: mask of 90 x 120 pixels for a\.jpg of 120 x 90"):
        panoptic(tmp_path, [item], np.ones((120, 90), dtype=np.int64)).split("test").regions([0])
    with pytest.raises(DataError, match=r"a\.png: has no pixel of segment 1, which .*panoptic\.json names"):
        panoptic(tmp_path, [item], np.zeros((90, 120), dtype=np.int64)).split("test").regions([0])
    split = panoptic(tmp_path, [item], np.ones((90, 120), dtype=np.int64))
    (tmp_path / "panoptic_masks" / "a.png").unlink()
    with pytest.raises(DataError, match=r"panoptic\.json: a\.jpg: names .*a\.png, which is not there"):
        split.split("test")
    with pytest.raises(InputError, match="objects: 'some' must be 'thing_class'"):
        opened(tmp_path, objects="some")


def test_photographs_of_several_sizes_need_a_frame(tmp_path):
    rectangle(tmp_path / "images" / "b.jpg", (90, 120))
    images = [IMAGE, {**IMAGE, "id": 6, "file_name": "b.jpg", "width": 90, "height": 120}]
    items = [thing(1, 1, [0, 0, 9, 9], segmentation=POLYGON), thing(2, 1, [0, 0, 9, 9], segmentation=POLYGON)]
    items[1]["image_id"] = 6
    split = detection(tmp_path, *items, images=images, resize=None, crop=None).split("test")
    for read in (split.pixels, split.regions):
        with pytest.raises(
            DataError, match=r"b\.jpg: image 1 is 90 x 120 pixels, the first one 120 x 90; set the option"
        ):
            read([0, 1])


def test_the_real_photographs_have_the_areas_that_are_told_of_them(tmp_path, shared_data):
    root = shared_data / "coco_cc"
    content, told = (json.loads((root / name).read_text()) for name in ("panoptic.json", "instances.json"))
    names = {entry["id"]: entry["name"] for entry in told["categories"]}
    for image in content["images"][::4]:
        # Alone, and in its own size.
        mine = [entry for entry in content["annotations"] if entry["image_id"] == image["id"]]
        (tmp_path / "one.json").write_text(json.dumps({**content, "images": [image], "annotations": mine}))
        data = opened(root, annotations=str(tmp_path / "one.json"), resize=None, crop=None)
        split = data.split("test")
        things = [item for item in told["annotations"] if item["image_id"] == image["id"]]
        largest = max(things, key=lambda item: item["area"])["category_id"]
        assert data.class_names[split.labels[0]] == names[largest]
        own = [item for item in things if item["category_id"] == largest]
        assert split.regions([0]).sum() == sum(item["area"] for item in own)
        boxes = split.boxes([0])[0]
        np.testing.assert_array_equal(boxes[:, 2:] - boxes[:, :2], [item["bbox"][2:] for item in own])
    framed = opened(root, annotations="panoptic.json")
    assert len(framed.class_names) == 80
    assert framed.split("test").regions(range(12)).shape == (12, 224, 224)
