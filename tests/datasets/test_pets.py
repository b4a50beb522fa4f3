"""Oxford pets: two layouts, trimaps and boxes in the frame of the picture, and files that cannot be used."""

import numpy as np
import pytest
from PIL import Image

from heatproof import threads
from heatproof.datasets import open_dataset
from heatproof.datasets.dataset import tight_boxes
from heatproof.errors import DataError, InputError, PluginError
from tests.datasets.annotated import FRAMINGS, lies_on, rectangle, voc_xml, white

NAMES = [f"{breed}_{i}" for breed in ("Abyssinian", "pug") for i in (1, 2)]


def trimap_of(mask, border=0):
    """1 on the animal, 3 on so many of its outer columns, 2 elsewhere."""
    trimap = np.where(mask, 1, 2).astype(np.uint8)
    columns = np.flatnonzero(mask.any(axis=0))
    trimap[np.ix_(mask.any(axis=1), columns[:border])] = 3
    return trimap


def flat(root, border=0):
    for name in NAMES:
        mask = rectangle(root / "images" / f"{name}.jpg")
        (root / "trimaps").mkdir(exist_ok=True)
        Image.fromarray(trimap_of(mask, border)).save(root / "trimaps" / f"{name}.png")
    (root / "class_labels.txt").write_text("".join(f"{name}.jpg,{i // 2}\n" for i, name in enumerate(NAMES)))
    (root / "class_names.txt").write_text("Abyssinian\npug\n")
    return root


def published(root):
    flat(root)
    (root / "annotations").mkdir()
    (root / "trimaps").rename(root / "annotations" / "trimaps")
    for name in ("class_labels.txt", "class_names.txt"):
        (root / name).unlink()
    lines = [f"{name} {1 + i // 2} 1 1\n" for i, name in enumerate(NAMES)]
    (root / "annotations" / "list.txt").write_text("#Image CLASS-ID SPECIES BREED ID\n" + "".join(lines))
    (root / "annotations" / "trainval.txt").write_text("".join(lines[::2]))
    (root / "annotations" / "test.txt").write_text("".join(lines[1::2]))
    return root


def opened(root, **options):
    return open_dataset("OxfordPets", root, split_ratio=0.5, seed=0, options=options)


@pytest.mark.parametrize("layout", [flat, published])
@pytest.mark.parametrize("framing", FRAMINGS)
def test_trimap_and_box_lie_on_the_white_rectangle(tmp_path, layout, framing):
    resize, crop, squash = framing
    data = opened(layout(tmp_path), resize=resize, crop=crop, squash=squash)
    split = data.split("test")
    np.testing.assert_array_equal(split.labels, [0, 0, 1, 1])
    assert data.class_names == ("Abyssinian", "pug")
    regions = split.regions(range(4))
    assert lies_on(regions[1], white(split, 1))
    clipped = [np.clip(boxes[0], 0, np.tile(data.size[::-1], 2)) for boxes in split.boxes(range(4))]
    np.testing.assert_array_equal(clipped, tight_boxes(regions))
    assert not split.ignored(range(4)).any()


def test_the_border_counts_neither_way_and_belongs_to_the_box(tmp_path):
    split = opened(flat(tmp_path, border=6), resize=None, crop=None).split("test")
    region, ignored = split.regions([0])[0], split.ignored([0])[0]
    np.testing.assert_array_equal(region.any(axis=0).nonzero()[0], np.arange(36, 75))
    np.testing.assert_array_equal(ignored.any(axis=0).nonzero()[0], np.arange(30, 36))
    np.testing.assert_array_equal(split.boxes([0])[0], [[30, 20, 75, 60]])


def test_what_a_crop_pads_is_background(tmp_path):
    split = opened(flat(tmp_path, border=6), resize=None, crop=200).split("test")
    assert split.regions([0]).sum() == 39 * 40
    assert split.ignored([0]).sum() == 6 * 40


def test_the_boxes_of_heads_are_inclusive_and_only_some_have_one(tmp_path):
    flat(tmp_path)
    (tmp_path / "head_xml").mkdir()
    (tmp_path / "head_xml" / "pug_1.xml").write_text(voc_xml(120, 90, ("dog", 30, 20, 49, 39)))
    split = opened(tmp_path, boxes="head", resize=180, crop=None).split("test")
    assert [len(boxes) for boxes in split.boxes(range(4))] == [0, 0, 1, 0]
    np.testing.assert_array_equal(split.boxes([2])[0], [[60, 40, 100, 80]])
    first = split.fingerprint
    (tmp_path / "head_xml" / "pug_1.xml").write_text(voc_xml(120, 90, ("dog", 30, 20, 49, 38)))
    assert opened(tmp_path, boxes="head", resize=180, crop=None).split("test").fingerprint != first


def test_a_batch_equals_its_pictures_one_by_one_and_may_be_empty(tmp_path, monkeypatch):
    flat(tmp_path, border=6)
    for i, name in enumerate(NAMES):
        mask = rectangle(tmp_path / "images" / f"{name}.jpg", box=(10 * i, 5 * i, 60 + 10 * i, 60))
        Image.fromarray(trimap_of(mask, border=6)).save(tmp_path / "trimaps" / f"{name}.png")
    split = opened(tmp_path).split("test")
    rows = [3, 0, 2, 2]
    for workers in (1, 3):
        monkeypatch.setattr(threads, "limit", lambda workers=workers: workers)
        for read in (split.regions, split.ignored, split.boxes):
            np.testing.assert_array_equal(
                read(rows), np.concatenate([read([row]) for row in rows]).reshape(4, *read([0])[0].shape)
            )
    assert split.regions([]).shape == split.ignored([]).shape == (0, 224, 224)
    assert split.boxes([]) == []


def test_an_animal_that_is_nowhere_has_an_empty_region_and_no_box(tmp_path):
    flat(tmp_path)
    Image.new("L", (120, 90), 2).save(tmp_path / "trimaps" / "pug_2.png")
    split = opened(tmp_path).split("test")
    assert not split.regions([3]).any()
    assert split.boxes([3])[0].shape == (0, 4)


def test_parts_are_the_test_alone_a_share_or_the_published_ones(tmp_path):
    published(tmp_path)
    assert len(opened(tmp_path).split("test")) == 4
    assert opened(tmp_path).splits == ("test",)
    with pytest.raises(DataError, match="all pictures are in the test part; set the option train_share") as error:
        opened(tmp_path).split("train")
    assert "\n" not in str(error.value)
    data = opened(tmp_path, train_share=0.5)
    assert [len(data.split(name).samples.files) for name in ("test", "validation")] == [2, 2]
    assert list(data.split("test").samples.files) == ["Abyssinian_2.jpg", "pug_2.jpg"]
    data = opened(tmp_path, official_parts=True)
    assert data.splits == ("train", "validation", "test")
    assert list(data.split("validation").samples.files) == ["Abyssinian_1.jpg", "pug_1.jpg"]
    assert len({data.fingerprint, opened(tmp_path).fingerprint}) == 2
    with pytest.raises(InputError, match="train_share: cannot be set together with official_parts"):
        opened(tmp_path, official_parts=True, train_share=0.5)
    for share in (1.0, -0.1):
        with pytest.raises(InputError, match=r"train_share: .* must lie in"):
            opened(tmp_path, train_share=share)
    with pytest.raises(PluginError, match="option 'train_share': 'half' should be a number"):
        opened(tmp_path, train_share="half")
    with pytest.raises(InputError, match="boxes: 'tail' must be 'animal' or 'head'"):
        opened(tmp_path, boxes="tail")


def test_trimaps_that_do_not_belong_to_their_picture_are_named(tmp_path):
    flat(tmp_path)
    split = opened(tmp_path).split("test")
    path = tmp_path / "trimaps" / "pug_1.png"
    Image.new("L", (90, 120), 2).save(path)
    with pytest.raises(DataError, match=r"pug_1\.png: trimap of 90 x 120 pixels for pug_1\.jpg of 120 x 90; restore"):
        split.regions([2])
    Image.new("L", (120, 90), 255).save(path)
    with pytest.raises(DataError, match=r"pug_1\.png: holds the value 255; a trimap has 1"):
        split.ignored([2])
    path.write_bytes(b"none")
    with pytest.raises(DataError, match=r"pug_1\.png: trimap of image 2 cannot be read"):
        split.boxes([2])
    assert split.regions([0]).any()
    path.unlink()
    with pytest.raises(DataError, match=r"class_labels\.txt line 3: names .*pug_1\.png, which is not there"):
        opened(tmp_path).split("test")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("class_labels.txt", "gone.jpg,0\n", r"class_labels\.txt line 1: names .*gone\.jpg, which is not there"),
        ("class_labels.txt", "pug_1.jpg,2\n", r"line 1: the label 2 names none of the 2 lines of .*class_names\.txt"),
        ("class_labels.txt", "pug_1.jpg,1\npug_1.jpg ,0\n", r"line 2: pug_1\.jpg stands in .* line 1 already"),
        ("annotations/list.txt", "pug_1 2 1 1\npug_1 2 1 1\n", r"line 2: pug_1 stands in .* line 1 already"),
        ("class_labels.txt", "pug_1.jpg\n", r"line 1: 'pug_1\.jpg'; expected file,label"),
        ("class_labels.txt", "pug_1.jpg,one\n", r"line 1: the label is 'one'; expected an integer"),
        ("class_labels.txt", "\n", r"class_labels\.txt: names no pictures"),
        ("annotations/list.txt", "pug_1 2\n", r"list\.txt line 1: 'pug_1 2'; expected name, class, species and breed"),
        ("annotations/list.txt", "pug_1 0 1 1\n", r"list\.txt line 1: the class is 0; classes count from 1"),
        ("annotations/list.txt", "# nothing\n", r"list\.txt: names no pictures"),
    ],
)
def test_lists_that_cannot_be_used_are_named(tmp_path, name, text, message):
    flat(tmp_path)
    (tmp_path / "annotations").mkdir()
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=message) as error:
        opened(tmp_path).split("test")
    assert "\n" not in str(error.value)


def test_a_folder_without_pets_is_named(tmp_path):
    with pytest.raises(
        DataError, match=r"has neither annotations/list\.txt nor class_labels\.txt; get images\.tar\.gz"
    ):
        opened(tmp_path)


def test_the_real_pets_have_the_boxes_that_are_told_of_them(shared_data):
    data = opened(shared_data / "pets", resize=None, crop=None)
    lines = (shared_data / "pets" / "localization.txt").read_text().split()
    heads = (shared_data / "pets" / "localization_head.txt").read_text().split()
    assert data.class_names == ("Abyssinian", "american_bulldog", "Bengal")
    samples = data.split("test").samples
    rows = np.arange(0, 60, 7)
    for told, box in ((lines, "animal"), (heads, "head")):
        own = opened(shared_data / "pets", resize=None, crop=None, boxes=box).split("test")
        expected = [[int(text) for text in told[row].split(",")[1:]] for row in rows]
        assert [told[row].split(",")[0] for row in rows] == [samples.files[row] for row in rows]
        np.testing.assert_array_equal(np.concatenate(own.boxes(rows)) - [0, 0, 1, 1], expected)
    framed = opened(shared_data / "pets").split("test")
    assert framed.regions(rows).shape == framed.ignored(rows).shape == (9, 224, 224)
    assert framed.regions(rows).any(axis=(1, 2)).all()
    assert not (framed.regions(rows) & framed.ignored(rows)).any()
