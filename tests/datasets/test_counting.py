"""The counting tasks: published grids, exact counts, and what makes an explanation right."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from heatproof.datasets import open_dataset
from heatproof.datasets.counting import (
    COLOURS,
    Counting,
    CountingSamples,
    CountingSource,
    chosen,
    coloured,
    distinct,
    laid_out,
)
from heatproof.datasets.pictures import Framing
from heatproof.datasets.resized import ResizedSamples, scaled
from heatproof.errors import DataError, HeatproofError, InputError, PluginError

GOLDEN = Path(__file__).parents[1] / "golden" / "diffmask"


def counting(seed=0, **options):
    return open_dataset("Counting", None, split_ratio=0.8, seed=seed, options=options)


@pytest.mark.parametrize("case", ["g3c3", "g2c1"])
def test_published_grids_come_out_of_their_colours(case):
    golden, facts = np.load(GOLDEN / "data.npz"), json.loads((GOLDEN / "data.json").read_text())[case]
    assert [list(rgb) for rgb in COLOURS.values()] == list(facts["palette_rgb"].values())
    pixels = coloured(golden[f"{case}.colour_ids"], tile=16)
    normalised = (pixels.float() / 255 - 0.5) / 0.5
    np.testing.assert_array_equal(normalised, golden[f"{case}.images"])
    data = counting(grid_size=facts["grid_size"], class_idx=facts["class_idx"])
    assert len(data.class_names) == facts["num_labels"]
    assert [data.channels, *data.size] == facts["image_shape"]


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 5), st.integers(0, 5), st.integers(1, 7), st.integers(0, 2**40))
def test_label_and_regions_tell_the_tiles_of_the_asked_colour(grid_size, class_idx, tile, seed):
    split = counting(seed, grid_size=grid_size, class_idx=class_idx, tile=tile, test_images=30).split("test")
    everything = np.arange(30)
    asked = torch.tensor(list(COLOURS.values())[class_idx], dtype=torch.uint8) * 255
    of_colour = (split.pixels(everything) == asked[None, :, None, None]).all(dim=1).numpy()
    np.testing.assert_array_equal(split.regions(everything), of_colour)
    np.testing.assert_array_equal(of_colour.sum(axis=(1, 2)), split.labels * tile**2)
    assert [len(boxes) for boxes in split.boxes(everything)] == (split.labels > 0).tolist()  # around all of them


def test_counts_are_equally_frequent_and_places_and_other_colours_are_even():
    samples = counting(train_images=6000).source.open("train")
    numbers = samples.colours(np.arange(6000))
    np.testing.assert_array_equal(np.bincount(samples.labels), 600)
    counted = (numbers == 3).mean(axis=0)  # half of the tiles, 4 standard errors of which are 0.026
    np.testing.assert_allclose(counted, 0.5, atol=0.026)
    shares = np.bincount(numbers[numbers != 3], minlength=6) / (numbers != 3).sum()
    np.testing.assert_allclose(shares[[0, 1, 2, 4, 5]], 0.2, atol=0.01)


def test_a_grid_depends_on_its_index_alone():
    split = counting(train_images=200).split("train")
    everything = split.pixels(np.arange(len(split)))
    rows = np.array([9, 2, 2, 40])
    assert torch.equal(split.pixels(rows), everything[rows])
    assert torch.equal(split.pixels(rows[:1]), everything[rows[:1]])
    larger = counting(train_images=500).source.open("train").pixels(np.arange(200))
    assert torch.equal(counting(train_images=200).source.open("train").pixels(np.arange(200)), larger)


def test_seeds_and_parts_have_grids_and_names_of_their_own():
    first, other, again = (counting(seed, grid_size=5) for seed in (0, 1, 0))
    rows = np.arange(26)
    assert not torch.equal(first.split("test").pixels(rows), other.split("test").pixels(rows))
    assert not torch.equal(first.split("test").pixels(rows), first.source.open("train").pixels(rows))
    assert first.fingerprint == again.fingerprint != other.fingerprint
    named = {data.split(name).fingerprint for data in (first, other) for name in ("train", "validation", "test")}
    assert len(named) == 6


def test_the_bytes_are_pinned():
    # They must be the same on every machine and for good; if they change on purpose, raise GENERATOR_VERSION.
    numbers = counting(seed=7).source.open("test").colours(np.array([4, 5]))
    assert numbers.tolist() == [[[1, 3, 3], [3, 1, 0], [3, 2, 2]], [[3, 1, 3], [3, 1, 4], [3, 3, 2]]]


def test_as_many_places_are_chosen_as_are_asked_for():
    words = np.random.default_rng(0).integers(0, 2**63, (500, 9)).astype(np.uint64)
    numbers = np.arange(500) % 10
    np.testing.assert_array_equal(chosen(numbers, words).sum(axis=1), numbers)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"class_idx": 6}, "Counting: class_idx: 6 must lie between 0 and 5"),
        ({"grid_size": 0}, "Counting: grid_size: 0 must lie between 1 and 64"),
        ({"tile": 2.5}, "Counting: option 'tile': 2.5 should be a whole number"),
        ({"train_images": True}, "Counting: option 'train_images': True should be a whole number"),
    ],
)
def test_options_out_of_range_are_named(options, message):
    with pytest.raises(HeatproofError, match=message):
        counting(**options)


CLASSES = 4


def save_pictures(path, train=240, test=120, side=8):
    """Pictures that say which they are: the value of all pixels; labels 0 to 3 in turn."""
    arrays = {}
    for part, count in (("train", train), ("test", test)):
        arrays[f"{part}_images"] = np.full(
            (count, side, side, 3), np.arange(count, dtype=np.uint8)[:, None, None, None]
        )
        arrays[f"{part}_labels"] = np.arange(count) % CLASSES
    np.savez(path, class_names=np.array(list("abcd")), **arrays)
    return path


def pictures(path, split_ratio=0.75, seed=0, **options):
    options = {"size": None, "class_idx": 1, "train_images": 100, "test_images": 50} | options
    return open_dataset("CIFAR10_QA", path, split_ratio=split_ratio, seed=seed, options=options)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return save_pictures(tmp_path_factory.mktemp("pictures") / "pictures.npz")


def test_published_grids_of_pictures_come_out_of_their_tiles_and_are_resized_alike():
    golden = {name: value for name, value in np.load(GOLDEN / "data.npz").items() if name.startswith("qa.")}
    images = torch.from_numpy(golden["qa.images"]).permute(0, 3, 1, 2)
    grids = torch.from_numpy(golden["qa.grids"])
    tiles = grids.reshape(2, 3, 3, 32, 3, 32).permute(0, 2, 4, 1, 3, 5)
    same = (tiles[:, :, :, None] == images).flatten(4).all(-1)
    assert torch.equal(same.sum(-1), torch.ones(2, 3, 3, dtype=torch.int64))  # each tile is one of the pictures
    rows = same.int().argmax(-1)
    assert torch.equal(laid_out(images[rows]), grids)
    shows = golden["qa.image_labels"][rows.numpy()] == golden["qa.class_idx"]
    np.testing.assert_array_equal(shows.sum(axis=(1, 2)), golden["qa.labels"])
    normalised = (scaled(grids, Framing(64, squash=True)).float() / 255 - 0.5) / 0.5
    np.testing.assert_allclose(normalised, golden["qa.grids_resized64_normalised"], atol=1e-6)


def test_a_published_picture_of_one_channel_is_resized_alike():
    golden = np.load(GOLDEN / "data.npz")
    large = scaled(torch.from_numpy(golden["mnist.image"])[None, None], Framing(112, squash=True))
    np.testing.assert_allclose((large[0].float() / 255 - 0.5) / 0.5, golden["mnist.output"], atol=1e-6)


def test_labels_and_regions_of_picture_grids_tell_the_pictures_of_the_class(file):
    split = pictures(file).split("test")
    everything = np.arange(len(split))
    shown = split.pixels(everything)[:, 0].numpy()
    np.testing.assert_array_equal(split.regions(everything), shown % CLASSES == 1)
    np.testing.assert_array_equal(split.regions(everything).sum(axis=(1, 2)), 64 * split.labels)
    tiles = shown[:, ::8, ::8].reshape(len(split), -1)
    assert all(len(set(tile)) == 9 for tile in tiles.tolist())  # none occurs twice


def test_grids_of_training_and_validation_share_no_picture(file):
    data = pictures(file, train_images=500)
    shown = {
        name: set(np.unique(data.split(name).pixels(np.arange(len(data.split(name))))))
        for name in ("train", "validation")
    }
    # The first three quarters of each class of 60 train, the rest validates: all of them occur, and on one side only.
    assert shown["train"] == set(range(180))
    assert shown["validation"] == set(range(180, 240))


def test_a_picture_grid_depends_on_seed_part_and_index_alone(file):
    split = pictures(file).split("train")
    everything = split.pixels(np.arange(len(split)))
    rows = np.array([9, 2, 2, 40])
    assert torch.equal(split.pixels(rows), everything[rows])
    assert not torch.equal(pictures(file, seed=1).split("train").pixels(rows), everything[rows])
    assert pictures(file).fingerprint == pictures(file).fingerprint != pictures(file, class_idx=2).fingerprint


def test_resized_grids_keep_their_regions_in_place(file):
    small, large = pictures(file).split("test"), pictures(file, size=60).split("test")
    assert large.size == (60, 60)
    assert large.pixels([3]).shape == (1, 3, 60, 60)
    assert large.fingerprint != small.fingerprint
    expected = small.regions(range(10))[:, ::8, ::8].repeat(20, axis=1).repeat(20, axis=2)
    np.testing.assert_array_equal(large.regions(range(10)), expected)


def test_resized_pictures_take_boxes_and_ignored_pixels_along():
    class Known(CountingSamples):
        def boxes(self, indices):
            return [np.array([[0, 0, 16, 32], [-16, 8, 64, 48]])] * len(indices)

        def ignored(self, indices):
            return self.regions(indices)

    source = CountingSource(Counting(), seed=0)
    samples = ResizedSamples(Known(source, "test"), source.size, Framing(24, squash=True))
    np.testing.assert_array_equal(samples.boxes(np.array([4]))[0], [[0, 0, 8, 16], [-8, 4, 32, 24]])
    np.testing.assert_array_equal(samples.ignored(np.arange(5)), samples.regions(np.arange(5)))


def test_picture_grids_that_cannot_be_filled_are_refused(tmp_path, file):
    with pytest.raises(DataError, match=r"train: a split has 3 pictures of class 1 \(b\), and a grid may need 9"):
        pictures(save_pictures(tmp_path / "few.npz", train=44)).split("train")
    with pytest.raises(InputError, match="CIFAR10_QA: class_idx: 4 must lie between 0 and 3"):
        pictures(file, class_idx=4)
    with pytest.raises(InputError, match="CIFAR10_QA: size: 0 must lie between 1 and"):
        pictures(file, size=0)
    with pytest.raises(PluginError, match="CIFAR10_QA: unknown option 'split_ratio'"):
        open_dataset("CIFAR10_QA", file, split_ratio=0.5, seed=0, options={"split_ratio": 0.9})


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 9), st.integers(0, 12), st.integers(0, 2**32))
def test_distinct_numbers_are_distinct_and_in_range(count, more, seed):
    words = np.random.default_rng(seed).integers(0, 2**63, (20, count)).astype(np.uint64)
    drawn = distinct(count + more, words)
    assert drawn.min() >= 0
    assert drawn.max() < count + more
    assert all(len(set(row)) == count for row in drawn.tolist())


def test_distinct_numbers_are_all_equally_likely():
    words = np.random.default_rng(0).integers(0, 2**64, (6000, 2), dtype=np.uint64)
    pairs, times = np.unique(distinct(3, words), axis=0, return_counts=True)
    assert len(pairs) == 6
    np.testing.assert_allclose(times, 1000, atol=120)  # four standard deviations
