"""Splits, statistics and boxes, on data whose answers are known."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from heatproof.datasets import Dataset, open_dataset, training_statistics
from heatproof.datasets.arrays import ArraySamples
from heatproof.datasets.dataset import Split, covered, first_of_each_class, tight_boxes
from heatproof.errors import DataError, InputError, PluginError


class Source:
    """Twelve pictures; value of picture i is i everywhere."""

    class_names = ("a", "b", "c")
    size = (2, 4)
    channels = 3
    fingerprint = "twelve"
    parts = ("train", "test")

    def open(self, part):
        pixels = torch.arange(12, dtype=torch.uint8)[:, None, None, None].expand(12, 3, 2, 4).contiguous()
        labels = np.array([0, 1, 0, 0, 1, 2, 0, 1, 1, 0, 0, 0])
        return ArraySamples(pixels, labels, f"twelve/{part}")


def test_the_first_of_each_class_train_in_the_order_of_the_file():
    data = Dataset("Twelve", Source(), 0.5)
    train, validation = data.split("train"), data.split("validation")
    # Class 0: rows 0 2 3 6 9 10 11, three train; class 1: rows 1 4 7 8, two train; class 2: row 5, none trains.
    np.testing.assert_array_equal(train.rows, [0, 1, 2, 3, 4])
    np.testing.assert_array_equal(validation.rows, [5, 6, 7, 8, 9, 10, 11])
    np.testing.assert_array_equal(train.labels, [0, 1, 0, 0, 1])
    np.testing.assert_array_equal(validation.pixels([2, 0, 2])[:, 0, 0, 0], [7, 5, 7])
    assert train.nbytes == 5 * 3 * 2 * 4
    assert validation.regions([0]) is None
    assert validation.boxes([0]) is None
    assert validation.ignored([0]) is None


@given(st.lists(st.integers(0, 4), min_size=1, max_size=60), st.floats(0.01, 1.0))
def test_splits_share_nothing_and_lose_nothing(labels, ratio):
    labels = np.array(labels)
    first = first_of_each_class(labels, ratio)
    for label in np.unique(labels):
        of_class = first[labels == label]
        assert of_class.sum() == int(ratio * len(of_class))
        assert not np.any(np.diff(of_class.astype(int)) > 0)  # after the first that validates, none trains


def test_a_split_without_pictures_is_an_error():
    with pytest.raises(
        DataError, match=r"^Twelve: no picture falls into 'validation': 12 pictures in 'train', split_r"
    ):
        Dataset("Twelve", Source(), 1.0).split("validation")


def few(examples=None, classes=None, seed=0, name="Planted", **options):
    options = {"train_images": 400, "test_images": 40} | options
    return open_dataset(
        name, None, split_ratio=0.75, seed=seed, options=options, examples_per_class=examples, classes=classes
    )


def test_a_few_shot_training_split_is_balanced_and_smaller_ones_lie_within_larger_ones():
    whole, ten, one = (few(count).split("train") for count in (None, 10, 1))
    np.testing.assert_array_equal(np.bincount(ten.labels), [10] * 8)
    np.testing.assert_array_equal(np.bincount(one.labels), [1] * 8)
    assert set(one.rows) < set(ten.rows) < set(whole.rows)
    np.testing.assert_array_equal(ten.rows, np.sort(ten.rows))
    assert torch.equal(ten.pixels([3]), whole.pixels(np.flatnonzero(whole.rows == ten.rows[3])))
    assert set(few(10, seed=1).split("train").rows) != set(ten.rows)


def test_few_classes_keep_their_labels_and_lie_within_more():
    three, two = (few(classes=count).split("train") for count in (3, 2))
    assert set(two.labels) < set(three.labels)
    assert [len(set(split.labels)) for split in (three, two)] == [3, 2]
    np.testing.assert_array_equal(
        np.bincount(few(4, 3).split("train").labels, minlength=8) // 4, np.bincount(three.labels, minlength=8) > 0
    )
    assert few(4, 3).class_names == few().class_names


def test_few_shot_changes_the_training_split_alone():
    prints = [
        {name: data.split(name).fingerprint for name in ("train", "validation", "test")}
        for data in (few(), few(10), few(9), few(classes=2))
    ]
    assert len({each["train"] for each in prints}) == 4
    assert all(each[name] == prints[0][name] for each in prints for name in ("validation", "test"))


def test_more_than_there_is_cannot_be_asked_for():
    with pytest.raises(DataError, match=r"Planted: class 'horizontal' has 37 training pictures; .*asks for 38"):
        few(38).split("train")
    with pytest.raises(DataError, match="9 classes were asked for, and there are 8"):
        few(classes=9).split("train")
    with pytest.raises(InputError, match="examples_per_class: 0 must lie between 1"):
        few(0)


def test_wrong_names_indices_and_ratios_are_named():
    data = Dataset("Twelve", Source(), 0.5)
    with pytest.raises(InputError, match="no split 'valid'; did you mean 'validation'"):
        data.split("valid")
    for index in (12, -1):
        with pytest.raises(InputError, match=f"test: index {index} lies outside the split of 12 images"):
            data.split("test").pixels([0, index])
    with pytest.raises(InputError, match=r"split_ratio: 1\.5 must lie above 0"):
        Dataset("Twelve", Source(), 1.5)


def test_fingerprints_change_with_the_rows():
    names = ("train", "validation", "test")
    half, most = (
        [Dataset("Twelve", Source(), ratio).split(name).fingerprint for name in names] for ratio in (0.5, 0.9)
    )
    assert len({*half, *most}) == 5  # the test split is the same
    assert half[2] == most[2]


@given(st.integers(0, 2**32 - 1), st.integers(1, 40))
@settings(max_examples=20)
def test_statistics_are_those_of_numpy_for_any_block(seed, block):
    pixels = np.random.default_rng(seed).integers(0, 256, size=(17, 3, 5, 4), dtype=np.uint8)

    class Drawn(Source):
        size = (5, 4)

        def open(self, part):
            return ArraySamples(torch.from_numpy(pixels), np.zeros(17, dtype=np.int64), part)

    split = Dataset("Drawn", Drawn(), 1.0).split("train")
    mean, std = training_statistics(split, block=block)
    values = pixels.astype(np.float64) / 255
    np.testing.assert_allclose(mean, values.mean(axis=(0, 2, 3)), rtol=1e-13)
    np.testing.assert_allclose(std, values.std(axis=(0, 2, 3)), rtol=1e-12)
    np.testing.assert_array_equal(training_statistics(split, block=7), (mean, std))


def test_boxes_are_half_open_and_tight():
    regions = np.zeros((3, 6, 8), dtype=bool)
    regions[0, 2:4, 1:6] = True
    regions[1, 5, 7] = regions[1, 0, 0] = True
    np.testing.assert_array_equal(tight_boxes(regions), [[1, 2, 6, 4], [0, 0, 8, 6], [0, 0, 0, 0]])


def test_unknown_data_sets_and_missing_folders_are_named():
    def opened(name, **options):
        return open_dataset(name, None, split_ratio=0.5, seed=0, options=options)

    with pytest.raises(DataError, match="no data set 'CIFAR-10'; did you mean 'CIFAR10'"):
        opened("CIFAR-10")
    with pytest.raises(DataError, match="CIFAR10: dataset_dir is not set"):
        opened("CIFAR10")
    with pytest.raises(PluginError, match="there is no module 'nowhere'"):
        opened("nowhere.MyData")


class Annotated(ArraySamples):
    """Three pictures of 4 x 5 pixels about whose objects something is known."""

    def __init__(self, regions=None, boxes=None):
        super().__init__(torch.zeros(3, 3, 4, 5, dtype=torch.uint8), np.zeros(3, dtype=np.int64), "annotated")
        self._regions, self._boxes = regions, boxes

    def regions(self, indices):
        return None if self._regions is None else self._regions[indices]

    def boxes(self, indices):
        return None if self._boxes is None else [self._boxes[index] for index in indices]


def test_boxes_are_those_around_the_regions_where_no_others_are_named():
    regions = np.zeros((3, 4, 5), dtype=bool)
    regions[0, 1:3, 2:5] = regions[2, 0, 0] = regions[2, 3, 4] = True
    split = Split("test", Annotated(regions), np.array([2, 1, 0]), (4, 5), 3)
    whole, none, part = split.boxes([0, 1, 2])
    np.testing.assert_array_equal(whole, [[0, 0, 5, 4]])
    assert none.shape == (0, 4)
    assert none.dtype == np.int64
    np.testing.assert_array_equal(part, [[2, 1, 5, 3]])


def test_regions_are_what_the_boxes_cover_and_the_boxes_stay_unclipped():
    boxes = [np.array([[-3, 1, 2, 9], [3, 3, 5, 4]]), np.empty((0, 4), dtype=np.int64), np.array([[7, -2, 9, 3]])]
    split = Split("test", Annotated(boxes=boxes), np.arange(3), (4, 5), 3)
    expected = np.zeros((3, 4, 5), dtype=bool)
    expected[0, 1:, :2] = expected[0, 3, 3:] = True
    np.testing.assert_array_equal(split.regions([0, 1, 2]), expected)
    np.testing.assert_array_equal(covered(boxes, (4, 5)), expected)
    for own, given_box in zip(split.boxes([0, 1, 2]), boxes, strict=True):
        np.testing.assert_array_equal(own, given_box)


def test_named_boxes_win_over_those_around_the_regions():
    regions, boxes = np.ones((3, 4, 5), dtype=bool), [np.array([[0, 0, 1, 1]])] * 3
    split = Split("test", Annotated(regions, boxes), np.arange(3), (4, 5), 3)
    np.testing.assert_array_equal(split.boxes([1])[0], [[0, 0, 1, 1]])
    assert split.regions([1]).all()


def test_the_splits_that_are_there_are_told_without_opening_them():
    source = Source()
    assert Dataset("Twelve", source, 0.5).splits == ("train", "validation", "test")
    source.parts = ("test",)
    assert Dataset("Twelve", source, 0.5).splits == ("test",)
