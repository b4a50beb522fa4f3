"""Folders in wsolevaluation's format: its boxes, its masks, and lists that cannot be used."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from heatproof.datasets import open_dataset
from heatproof.errors import DataError
from tests.datasets.annotated import FRAMINGS, lies_on, rectangle, white

GOLDEN = Path(__file__).parents[1] / "golden" / "casme"


def metadata(root, *, split="test", ids="a.jpg\n", labels="a.jpg,0\n", sizes=None, localization=None):
    folder = root / "metadata" / split
    folder.mkdir(parents=True, exist_ok=True)
    texts = {"image_ids": ids, "class_labels": labels, "image_sizes": sizes, "localization": localization}
    for name, text in texts.items():
        if text is not None:
            (folder / f"{name}.txt").write_text(text)


def opened(root, **options):
    return open_dataset("Wsol", root, split_ratio=0.5, seed=0, options=options)


def with_box(root, box="30,20,74,59", **options):
    """One picture with a white rectangle (half-open 30, 20, 75, 60)."""
    rectangle(root / "a.jpg")
    metadata(root, sizes="a.jpg,120,90\n", localization=f"a.jpg,{box}\n")
    return opened(root, **options).split("test")


def with_masks(root, masks, localization, **options):
    rectangle(root / "a.jpg")
    for name, values in masks.items():
        Image.fromarray(values).save(root / name)
    metadata(root, localization=localization)
    return opened(root, **options).split("test")


def test_boxes_are_scaled_as_the_published_code_does(tmp_path):
    golden = json.loads((GOLDEN / "wsol.json").read_text())
    raw, expected = golden["raw_boxes"], golden["resized_gt_boxes"]
    for name, told in raw.items():
        rectangle(tmp_path / name, (told["width"], told["height"]))
    lines = [",".join(map(str, (name, *box))) for name, told in raw.items() for box in told["boxes"]]
    metadata(
        tmp_path,
        ids="\n".join(raw),
        labels="".join(f"{name},0\n" for name in raw),
        sizes="".join(f"{name},{told['width']},{told['height']}\n" for name, told in raw.items()),
        localization="\n".join(lines),
    )
    split = opened(tmp_path).split("test")
    assert split.size == (224, 224)
    assert max(map(len, split.boxes(range(len(split))))) > 1
    for name, boxes in zip(raw, split.boxes(range(len(split))), strict=True):
        np.testing.assert_array_equal(boxes - [0, 0, 1, 1], expected[name])  # inclusive there, half-open here


@pytest.mark.parametrize("framing", [framing for framing in FRAMINGS if framing[0] != 160])
def test_a_box_lies_on_the_white_rectangle(tmp_path, framing):
    resize, crop, squash = framing  # none that enlarges: there, truncation loses more than a pixel
    split = with_box(tmp_path, resize=resize, crop=crop, squash=squash)
    assert lies_on(split.regions([0])[0], white(split))
    assert split.ignored([0]) is None


@pytest.mark.parametrize("framing", FRAMINGS)
@pytest.mark.parametrize("form", ["1", "L", "RGB", "RGBA", "P"])
def test_masks_of_every_mode_lie_on_the_white_rectangle(tmp_path, framing, form):
    resize, crop, squash = framing
    mask = rectangle(tmp_path / "a.jpg")
    grey = Image.fromarray(mask.astype(np.uint8) * 255)
    (grey.convert("RGB").convert("P") if form == "P" else grey.convert(form)).save(tmp_path / "m.png")
    metadata(tmp_path, localization="a.jpg,m.png,\n")
    split = opened(tmp_path, resize=resize, crop=crop, squash=squash).split("test")
    region = split.regions([0])[0]
    assert region.any()
    assert lies_on(region, white(split))
    assert split.ignored([0]) is None


def test_masks_are_united_and_what_is_ignored_gives_way_to_them(tmp_path):
    left, right, ignored = np.zeros((3, 90, 120), dtype=np.uint8)
    left[:, :30] = right[:, 90:] = ignored[:, 20:60] = 255
    split = with_masks(
        tmp_path,
        {"l.png": left, "r.png": right, "i.png": ignored},
        "a.jpg,l.png,i.png\na.jpg,r.png,\n",
        resize=90,
        squash=False,
    )
    region, marked = split.regions([0])[0], split.ignored([0])[0]
    np.testing.assert_array_equal(region, (left > 0) | (right > 0))
    np.testing.assert_array_equal(marked.any(axis=0).nonzero()[0], np.arange(30, 60))
    np.testing.assert_array_equal(split.boxes([0])[0], [[0, 0, 120, 90]])


def test_a_mask_of_another_scale_is_squashed_and_one_of_another_shape_is_refused(tmp_path):
    large = np.zeros((180, 240), dtype=np.uint8)
    large[40:120, 60:150] = 255
    split = with_masks(tmp_path, {"m.png": large}, "a.jpg,m.png,\n")
    assert lies_on(split.regions([0])[0], white(split))
    with pytest.raises(DataError, match=r"m\.png: mask of 240 x 180 pixels for a\.jpg of 120 x 90; .*set squash"):
        opened(tmp_path, squash=False).split("test").regions([0])
    Image.fromarray(large.T.copy()).save(tmp_path / "m.png")
    with pytest.raises(
        DataError, match=r"m\.png: mask of 180 x 240 pixels for a\.jpg of 120 x 90; restore the picture"
    ):
        opened(tmp_path).split("test").regions([0])


def test_a_picture_without_localisation_has_an_empty_region(tmp_path):
    for name in ("a.jpg", "b,1.jpg"):
        rectangle(tmp_path / name)
    common = {"ids": "a.jpg\nb,1.jpg\n", "labels": "a.jpg,0\nb,1.jpg,2\n"}
    metadata(tmp_path, **common, sizes="b,1.jpg,120,90\n", localization="b,1.jpg,0,0,119,89\n")
    split = opened(tmp_path, resize=60).split("test")
    assert [len(boxes) for boxes in split.boxes([0, 1])] == [0, 1]
    np.testing.assert_array_equal(split.regions([0, 1]).all(axis=(1, 2)), [False, True])
    assert not split.regions([0]).any()
    Image.new("1", (120, 90), 1).save(tmp_path / "m.png")
    metadata(tmp_path, **common, localization="b,1.jpg,m.png,m.png\n")
    split = opened(tmp_path).split("test")
    np.testing.assert_array_equal(split.regions([0, 1]).mean(axis=(1, 2)), [0, 1])
    assert not split.ignored([0, 1]).any()
    assert [len(boxes) for boxes in split.boxes([0, 1])] == [0, 1]


def test_splits_and_class_names(tmp_path):
    rectangle(tmp_path / "a.jpg")
    metadata(tmp_path, split="val", labels="a.jpg,3\n")
    data = opened(tmp_path)
    assert data.class_names == ("0", "1", "2", "3")
    split = data.split("test")
    assert (split.regions([0]), split.boxes([0]), split.ignored([0])) == (None, None, None)
    with pytest.raises(DataError, match=r"metadata/train/image_ids\.txt: no such file; there is no such split"):
        data.split("train")
    metadata(tmp_path, split="train", labels="a.jpg,4\n")
    assert len(opened(tmp_path).class_names) == 5
    assert len(opened(tmp_path).split("validation")) == 1
    assert len(opened(tmp_path, metadata=str(tmp_path / "metadata"), test_split="train").split("test")) == 1
    (tmp_path / "names.txt").write_text("\n".join("abcde"))
    assert opened(tmp_path, class_names="names.txt").class_names == tuple("abcde")
    (tmp_path / "names.txt").write_text("a\nb")
    with pytest.raises(DataError, match=r"names\.txt: names 2 classes, and the highest label is 4"):
        opened(tmp_path, class_names="names.txt")


def test_the_fingerprint_covers_the_localisation(tmp_path):
    prints = {with_box(tmp_path, box).fingerprint for box in ("30,20,74,59", "30,20,74,58")}
    prints.add(with_box(tmp_path, resize=64).fingerprint)
    mask = np.zeros((90, 120), dtype=np.uint8)
    for _ in range(2):
        prints.add(with_masks(tmp_path, {"m.png": mask}, "a.jpg,m.png,\n").fingerprint)
        mask[::7, ::3] = 255
    assert len(prints) == 5


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"ids": "gone.jpg\n", "labels": "gone.jpg,0\n"},
            r"image_ids\.txt line 1: names .*gone\.jpg, which is not there",
        ),
        ({"ids": "\n"}, r"image_ids\.txt: names no pictures"),
        ({"labels": "b.jpg,0\n"}, r"image_ids\.txt line 1: a\.jpg has no line in .*class_labels\.txt"),
        ({"labels": "\n"}, r"class_labels\.txt: holds no labels"),
        ({"labels": "a.jpg,cat\n"}, r"class_labels\.txt line 1: the label is 'cat'; expected an integer"),
        ({"labels": "a.jpg,-1\n"}, r"class_labels\.txt line 1: the label is -1; labels are numbers of classes, from 0"),
        ({"labels": "a.jpg,99999999999\n"}, r"class_labels\.txt line 1: the label is 99999999999"),
        ({"ids": ".\n", "labels": ".,0\n"}, r"image_ids\.txt line 1: names .*, which is no regular file"),
        ({"localization": "a.jpg,0.5,0,4,9\n"}, r"localization\.txt line 1: x0 is '0\.5'; expected an integer"),
        ({"localization": "a.jpg,nan,0,4,9\n"}, r"localization\.txt line 1: x0 is 'nan'; expected an integer"),
        ({"localization": f"a.jpg,0,0,{10**20},9\n"}, r"box 0, 0, 1e\+20, 10 reaches far beyond the picture"),
        ({"labels": "a.jpg\n"}, r"class_labels\.txt line 1: 'a\.jpg'; expected id,label"),
        ({"localization": "a.jpg,5,0,4,9\n"}, r"localization\.txt line 1: box 5,0,4,9 is empty"),
        ({"localization": "a.jpg,0,5,9,4\n"}, r"localization\.txt line 1: box 0,5,9,4 is empty"),
        ({"localization": "a.jpg,120,0,130,9\n"}, r"box 120, 0, 131, 10 lies outside the picture of 120 x 90 pixels"),
        ({"localization": "a.jpg,-9,-9,-1,9\n"}, r"box -9, -9, 0, 10 lies outside the picture"),
        (
            {"localization": "a.jpg,0,0,9,9\na.jpg,0,0,x,9\n"},
            r"localization\.txt line 2: x1 is 'x'; expected an integer",
        ),
        ({"localization": "b.jpg,0,0,9,9\n", "sizes": "b.jpg,9,9\n"}, r"localization\.txt: names none of the pictures"),
        ({"sizes": "\n"}, r"localization\.txt line 1: a\.jpg has a box and no line in image_sizes\.txt"),
        ({"sizes": "a.jpg,0,90\n"}, r"image_sizes\.txt line 1: a\.jpg is said to be 0 x 90 pixels"),
        ({"localization": "a.jpg,gone.png,\n"}, r"localization\.txt: a\.jpg: names .*gone\.png, which is not there"),
        ({"localization": "a.jpg,,\n"}, r"localization\.txt line 1: names no mask file"),
        ({"localization": "nonsense\n"}, r"localization\.txt line 1: 'nonsense'; expected id,mask file,ignore file"),
    ],
)
def test_lists_that_cannot_be_used_are_named(tmp_path, changed, message):
    rectangle(tmp_path / "a.jpg")
    metadata(tmp_path, **{"sizes": "a.jpg,120,90\n", "localization": "a.jpg,0,0,9,9\n", **changed})
    with pytest.raises(DataError, match=message) as error:
        opened(tmp_path).split("test")
    assert "\n" not in str(error.value)


def test_lines_of_no_picture_and_pictures_without_a_line_are_logged(tmp_path, caplog):
    for name in "ab":
        rectangle(tmp_path / f"{name}.jpg")
    metadata(tmp_path, ids="a.jpg\nb.jpg\n", labels="a.jpg,0\nb.jpg,0\n", localization="a.jpg,0,0,9,9\nB.jpg,0,0,9,9\n")
    caplog.set_level("INFO")
    opened(tmp_path).split("test")
    assert "localization.txt: 1 ids are not in" in caplog.text
    assert "such as B.jpg" in caplog.text
    assert "has no line for 1 of 2 pictures, such as b.jpg" in caplog.text


def test_boxes_that_seem_to_hold_width_and_height_are_logged(tmp_path, caplog):
    with_box(tmp_path, "100,80,121,91")
    assert not caplog.text
    with_box(tmp_path, "100,80,130,91")
    assert "localization.txt line 1: 1 boxes reach beyond their pictures" in caplog.text


@pytest.mark.parametrize("sizes", ["a.jpg,90,120\n", "a.jpg,121,120\n"])
def test_sizes_that_contradict_the_picture_are_named(tmp_path, sizes):
    rectangle(tmp_path / "a.jpg")
    metadata(tmp_path, sizes=sizes, localization="a.jpg,30,20,74,59\n")
    with pytest.raises(DataError, match=r"a\.jpg: image 0 is 120 x 90 pixels, and .* in .*image_sizes\.txt"):
        opened(tmp_path).split("test").boxes([0])


def test_without_a_list_of_sizes_they_are_those_of_the_pictures(tmp_path):
    with_box(tmp_path)
    (tmp_path / "metadata" / "test" / "image_sizes.txt").unlink()
    split = opened(tmp_path, resize=60).split("test")
    assert lies_on(split.regions([0])[0], white(split))


@pytest.mark.parametrize(
    ("name", "line"), [("image_ids", "a.jpg"), ("class_labels", "a.jpg,1"), ("image_sizes", "a.jpg,9,9")]
)
def test_what_a_list_names_twice_is_named(tmp_path, name, line):
    with_box(tmp_path)
    with (tmp_path / "metadata" / "test" / f"{name}.txt").open("a") as file:
        file.write(f"{line}\n")
    with pytest.raises(DataError, match=rf"{name}\.txt line 2: a\.jpg stands in .*{name}\.txt line 1 already"):
        opened(tmp_path).split("test")


@pytest.mark.parametrize("mark", ["\ufeff", ""])
@pytest.mark.parametrize("end", ["\n", "\r\n", "  \r\n"])
def test_lists_of_other_systems_are_read(tmp_path, mark, end):
    expected = with_box(tmp_path).boxes([0])[0]
    (tmp_path / "names.txt").write_text("a cat\n")
    for path in (*(tmp_path / "metadata" / "test").iterdir(), tmp_path / "names.txt"):
        path.write_bytes((mark + path.read_text().replace("\n", end)).encode())
    data = opened(tmp_path, class_names="names.txt")
    assert data.class_names == ("a cat",)
    np.testing.assert_array_equal(data.split("test").boxes([0])[0], expected)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
def test_lists_in_another_encoding_are_named(tmp_path, encoding):
    with_box(tmp_path)
    path = tmp_path / "metadata" / "test" / "class_labels.txt"
    path.write_bytes(path.read_text().encode(encoding))
    with pytest.raises(DataError, match=r"class_labels\.txt: cannot be read: .*; save it as UTF-8"):
        opened(tmp_path)


@pytest.mark.parametrize("depth", [np.uint16, np.int32])
def test_masks_of_more_than_8_bits_mark_what_is_not_0(tmp_path, depth):
    mask = rectangle(tmp_path / "a.jpg")
    split = with_masks(tmp_path, {"m.tif": mask.astype(depth)}, "a.jpg,m.tif,\n")
    assert lies_on(split.regions([0])[0], white(split))


def test_missing_metadata_and_damaged_files_are_named(tmp_path):
    with pytest.raises(DataError, match=r"metadata: has neither train/image_ids\.txt nor val/image_ids\.txt"):
        opened(tmp_path)
    with_masks(tmp_path, {"m.png": np.zeros((90, 120), dtype=np.uint8)}, "a.jpg,m.png,\n")
    (tmp_path / "m.png").write_bytes(b"no mask")
    with pytest.raises(DataError, match=r"m\.png: mask of image 0 cannot be read"):
        opened(tmp_path).split("test").regions([0])
    (tmp_path / "metadata/test/class_labels.txt").unlink()
    with pytest.raises(DataError, match=r"class_labels\.txt: cannot be read: No such file"):
        opened(tmp_path)
    (tmp_path / "metadata/test/class_labels.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match=r"class_labels\.txt: cannot be read: .*utf-8"):
        opened(tmp_path)


@pytest.mark.parametrize(("name", "count", "classes"), [("CUB", 25, 200), ("ILSVRC", 25, 1000), ("OpenImages", 5, 100)])
def test_the_published_metadata_are_read(tmp_path, shared_data, name, count, classes):
    sample = shared_data / "wsol_metadata_example"
    folder = sample / "metadata" / name
    ids = (folder / "val" / "image_ids.txt").read_text().split()
    masks = sample / "masks" / name
    lines = (folder / "val" / "image_sizes.txt").read_text().split() if name != "OpenImages" else []
    sizes = {line.split(",")[0]: tuple(map(int, line.split(",")[1:])) for line in lines}
    for file in ids:
        found = list(masks.glob(f"**/{Path(file).stem}_*.png"))
        size = sizes.get(file, (120, 90))
        if found:
            with Image.open(found[0]) as mask:
                size = mask.size
        rectangle(tmp_path / file, size)
    names = tmp_path / "names.txt"
    names.write_text("\n".join(map(str, range(classes))))
    options = {"metadata": str(folder), "masks": str(masks), "class_names": "names.txt"}
    split = opened(tmp_path, **options).split("test")
    assert (len(split), len(opened(tmp_path, **options).class_names)) == (count, classes)
    regions, boxes = split.regions(range(count)), split.boxes(range(count))
    if name == "ILSVRC":
        assert sum(map(len, boxes)) == 29
        np.testing.assert_array_equal(boxes[0], [[69, 97, 143, 138]])  # 156,163,318,230 of 500 x 375
    if name == "OpenImages":
        # The two placeholders: one mask is all black, the other all white.
        np.testing.assert_array_equal(regions.mean(axis=(1, 2))[3:], [0, 1])
        assert [len(own) for own in boxes] == [1, 1, 1, 0, 1]
        ignored = split.ignored(range(count))
        np.testing.assert_array_equal(ignored.any(axis=(1, 2)), [True, False, False, False, False])
        assert not (ignored & regions).any()
    assert regions[0].any()
