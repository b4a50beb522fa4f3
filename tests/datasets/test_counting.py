"""The counting tasks: published grids, exact counts, and what makes an explanation right."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from heatproof.datasets import open_dataset
from heatproof.datasets.counting import COLOURS, chosen, coloured
from heatproof.errors import InputError

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
def test_label_regions_and_boxes_all_tell_the_tiles_of_the_asked_colour(grid_size, class_idx, tile, seed):
    split = counting(seed, grid_size=grid_size, class_idx=class_idx, tile=tile, test_images=30).split("test")
    everything = np.arange(30)
    asked = torch.tensor(list(COLOURS.values())[class_idx], dtype=torch.uint8) * 255
    of_colour = (split.pixels(everything) == asked[None, :, None, None]).all(dim=1).numpy()
    np.testing.assert_array_equal(split.regions(everything), of_colour)
    np.testing.assert_array_equal(of_colour.sum(axis=(1, 2)), split.labels * tile**2)
    for region, boxes, label in zip(of_colour, split.boxes(everything), split.labels, strict=True):
        assert len(boxes) == label
        for x0, y0, x1, y1 in boxes:
            assert (x1 - x0, y1 - y0) == (tile, tile)
            assert region[y0:y1, x0:x1].all()


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
        ({"tile": 2.5}, "Counting: tile: 2.5 must be an integer"),
        ({"train_images": True}, "Counting: train_images: True must be an integer"),
    ],
)
def test_options_out_of_range_are_named(options, message):
    with pytest.raises(InputError, match=message):
        counting(**options)
