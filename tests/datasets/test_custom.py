"""A user's own data set: its forms, and errors that name the class and the index."""

import sys

import numpy as np
import pytest
import torch
from PIL import Image

from heatproof.datasets import open_dataset
from heatproof.errors import DataError, PluginError

VALUES = np.random.default_rng(0).integers(0, 256, size=(6, 5, 4, 3), dtype=np.uint8)
FORMS = {
    "pillow": Image.fromarray,
    "array": lambda values: values,
    "tensor": lambda values: torch.from_numpy(values).permute(2, 0, 1),
}


class MyData:
    """Six pictures in a form of choice."""

    classes = ("cat", "dog")
    opened = 0

    def __init__(self, dataset_dir, split, form="array", count=6):
        MyData.opened += 1
        self.form, self.count = FORMS[form], count

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        return self.form(VALUES[index]), index % 2


class WithRegions(MyData):
    def regions(self, indices):
        return np.asarray(indices)[:, None, None] * np.ones((5, 4)) > 2


class Grey(MyData):
    class_names = np.array(["cat", "dog"])

    def __getitem__(self, index):
        return VALUES[index, ..., 0], np.int32(index % 2)


class Broken(MyData):
    """Picture 3 is wrong in one of many ways."""

    def __init__(self, dataset_dir, split, way):
        super().__init__(dataset_dir, split)
        self.way = way

    def __getitem__(self, index):
        image, label = super().__getitem__(index)
        if index != 3:
            return image, label
        return {
            "float": (image / 255, label),
            "size": (image[1:], label),
            "channels": (np.zeros((5, 4, 2), np.uint8), label),
            "label": (image, 2),
            "negative": (image, -1),
            "text": (image, "dog"),
            "alone": image,
        }[self.way]


class Raises(MyData):
    def __getitem__(self, index):
        raise OSError("the disk is gone")


class NoNames(MyData):
    classes = None


class StrangeRegions(MyData):
    def regions(self, indices):
        return np.zeros((len(indices), 2, 2), dtype=bool)


def opened(kind, **options):
    return open_dataset(f"{__name__}.{kind.__name__}", None, split_ratio=0.5, seed=0, options=options)


@pytest.mark.parametrize("form", FORMS)
def test_all_forms_give_the_same_pixels(form):
    data = opened(MyData, form=form)
    assert (data.class_names, data.size, data.channels) == (("cat", "dog"), (5, 4), 3)
    split = data.split("test")
    np.testing.assert_array_equal(split.pixels([4, 1]).permute(0, 2, 3, 1), VALUES[[4, 1]])
    np.testing.assert_array_equal(split.labels, [0, 1, 0, 1, 0, 1])
    assert data.fingerprint == opened(MyData).fingerprint
    assert split.regions([0]) is None


def test_grey_pictures_have_one_channel():
    data = opened(Grey)
    assert data.channels == 1
    np.testing.assert_array_equal(data.split("test").pixels([2])[0, 0], VALUES[2, ..., 0])


def test_a_part_is_opened_once_and_only_when_asked_for():
    MyData.opened = 0
    data = opened(MyData)
    assert MyData.opened == 0
    assert data.class_names
    assert data.size
    assert MyData.opened == 1
    data.split("train")
    data.split("validation")
    assert MyData.opened == 2


def test_more_than_fits_is_read_again(monkeypatch):
    monkeypatch.setattr(sys.modules["heatproof.datasets.custom"], "_HELD_BYTES", 0)
    split = opened(MyData).split("test")
    np.testing.assert_array_equal(split.pixels([5, 5, 0]).permute(0, 2, 3, 1), VALUES[[5, 5, 0]])


def test_regions_are_handed_on_and_checked():
    train = opened(WithRegions).split("validation")
    np.testing.assert_array_equal(train.rows, [2, 3, 4, 5])
    np.testing.assert_array_equal(train.regions([0, 1, 3])[:, 0, 0], [False, True, True])
    np.testing.assert_array_equal(train.boxes([1])[0], [[0, 0, 4, 5]])
    assert train.ignored([0]) is None
    with pytest.raises(DataError, match=r"regions: bool of shape \(1, 2, 2\); expected bool \(1, 5, 4\)"):
        opened(StrangeRegions).split("test").regions([0])


@pytest.mark.parametrize(
    ("way", "message"),
    [
        ("float", "the image is float64; expected uint8"),
        ("size", r"an image of shape \(3, 4, 4\) \(C, H, W\), the first one \(3, 5, 4\)"),
        ("channels", r"the image has shape \(5, 4, 2\)"),
        ("label", r"the label 2 names none of the 2 classes \(0 to 1\)"),
        ("negative", "the label -1 names none"),
        ("text", "the label 'dog' is no integer"),
        ("alone", r"is a ndarray; expected \(image, label\)"),
    ],
)
def test_a_bad_item_is_named(way, message):
    with pytest.raises(DataError, match=rf"test_custom\.Broken \(test\)\[3\]: {message}"):
        opened(Broken, way=way).split("test")


def test_what_the_class_raises_is_one_line():
    with pytest.raises(DataError, match=r"Raises \(test\)\[0\]: OSError: the disk is gone"):
        opened(Raises).split("test")
    with pytest.raises(DataError, match=r"MyData \(test\): KeyError: 'oil'"):
        opened(MyData, form="oil").split("test")
    with pytest.raises(DataError, match="has no pictures"):
        opened(MyData, count=0).split("test")
    with pytest.raises(DataError, match="has neither class_names nor classes"):
        opened(NoNames).split("test")
    with pytest.raises(PluginError, match="unknown option 'forn'; did you mean 'form'"):
        opened(MyData, forn="array")


class WithBoxes(MyData):
    """Names two boxes for each image, the second partly outside, and ignores the first row."""

    given = ([[0, 0, 2, 2], [-3, 1, 9, 4]],)

    def boxes(self, indices):
        return [self.given[0] for _ in indices]

    def ignored(self, indices):
        ignored = np.zeros((len(indices), 5, 4), dtype=bool)
        ignored[:, 0] = True
        return ignored


def test_boxes_and_ignored_pixels_of_a_users_object_are_handed_on(monkeypatch):
    split = opened(WithBoxes).split("test")
    np.testing.assert_array_equal(split.boxes([0, 1])[1], [[0, 0, 2, 2], [-3, 1, 9, 4]])
    assert split.regions([0])[0].sum() == 2 * 2 + 3 * 4 - 1 * 2
    assert split.ignored([0, 1]).sum() == 8
    monkeypatch.setattr(WithBoxes, "given", ([],))
    assert split.boxes([0])[0].shape == (0, 4)


@pytest.mark.parametrize(
    ("boxes", "message"),
    [
        ([[3, 0, 1, 2]], r"boxes: image 0: box \[3, 0, 1, 2\] is empty; expected x0 < x1"),
        ([[0.5, 0, 1, 2]], r"boxes: image 0: float64 of shape \(1, 4\); expected integers \(k, 4\)"),
        ([0, 0, 1, 2], r"boxes: image 0: int64 of shape \(4,\); expected integers \(k, 4\)"),
    ],
)
def test_wrong_boxes_of_a_users_object_are_named(monkeypatch, boxes, message):
    monkeypatch.setattr(WithBoxes, "given", (boxes,))
    with pytest.raises(DataError, match=message):
        opened(WithBoxes).split("test").boxes([0])


def test_a_users_object_that_names_too_few_boxes_is_refused(monkeypatch):
    monkeypatch.setattr(WithBoxes, "boxes", lambda self, indices: [])
    with pytest.raises(DataError, match=r"boxes: 0 entries for 2 images; expected one for each"):
        opened(WithBoxes).split("test").boxes([0, 1])
