"""The generated set: its bytes, its regions, and that nothing but the object's texture tells the class."""

import hashlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from heatproof.datasets import open_dataset, training_statistics
from heatproof.datasets.planted import OUTLINES, TEXTURES, Planted, PlantedSource
from heatproof.errors import HeatproofError, InputError, PluginError
from heatproof.models.resnet_cifar import NarrowResNet8


def planted(seed=0, **options):
    return open_dataset("Planted", None, split_ratio=0.875, seed=seed, options=options)


def sha256(array):
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()[:16]


# The bytes must be the same on every machine and for good; if one of these changes on purpose, raise GENERATOR_VERSION.
@pytest.mark.parametrize(
    ("options", "pixels", "regions"),
    [
        ({}, "72cc50c310604402", "421c15cf548d6cb3"),
        ({"difficulty": 0.6, "classes": 14, "objects": 2, "diameter": 9}, "c9863b7e4753cbae", "1e86a0eaa1ff0b12"),
        ({"evidence": "shape", "classes": 12, "size": 64}, "2d93b0856116322a", "5923f31438ca77fa"),
        ({"size": 224, "distractors": 0}, "ca0acc3dbe476120", "61be0027bc00f279"),
    ],
)
def test_the_bytes_are_pinned(options, pixels, regions):
    split = planted(seed=7, train_images=48, test_images=24, **options).split("test")
    everything = np.arange(24)
    assert sha256(split.pixels(everything).numpy()) == pixels
    assert sha256(split.regions(everything)) == regions


def test_a_picture_depends_on_its_index_alone():
    split = planted(train_images=64).split("train")
    everything = split.pixels(np.arange(len(split)))
    fresh = PlantedSource(Planted(train_images=500), seed=0).open("train")
    rows = np.array([9, 2, 2, 40])
    for one_by_one in (torch.cat([fresh._made(rows[i : i + 1]) for i in range(4)]), fresh.pixels(rows)):
        torch.testing.assert_close(one_by_one, everything[rows], rtol=0, atol=0)
    assert not torch.equal(everything, planted(seed=1, train_images=64).split("train").pixels(np.arange(len(split))))
    assert not torch.equal(everything[:8], planted(test_images=64).split("test").pixels(np.arange(8)))


def test_large_sets_are_made_when_they_are_asked_for(monkeypatch):
    rows = np.array([3, 0, 7])
    held = planted(train_images=16).split("train").pixels(rows)
    monkeypatch.setattr("heatproof.datasets.planted._HELD_BYTES", 0)
    split = planted(train_images=16).split("train")
    torch.testing.assert_close(split.pixels(rows), held, rtol=0, atol=0)
    assert split.samples._held is None


def test_labels_are_balanced_and_split_by_class():
    data = planted()
    assert data.class_names == tuple(TEXTURES)[:8]
    train, validation, test = (data.split(name) for name in ("train", "validation", "test"))
    assert (len(train), len(validation), len(test)) == (8 * 437, 8 * 63, 1000)
    assert set(np.bincount(train.labels)) == {437}
    assert not set(train.rows) & set(validation.rows)


def test_regions_and_boxes_agree_and_cover_a_tenth():
    split = planted(train_images=200).split("train")
    regions, boxes = split.regions(np.arange(100)), split.boxes(np.arange(100))
    assert regions.shape == (100, 32, 32)
    assert set(regions.sum(axis=(1, 2))) == {97}  # a disc of diameter 11
    for region, ((x0, y0, x1, y1),) in zip(regions, boxes, strict=True):
        assert (x1 - x0, y1 - y0) == (11, 11)
        assert region[y0:y1, x0:x1].sum() == region.sum()


def test_the_region_is_where_the_texture_is():
    # With the same random streams, another class changes the picture inside the region and nowhere else.
    source = PlantedSource(Planted(train_images=32), seed=3)
    one, other = source.open("train"), source.open("train")
    other.labels = (one.labels + 1) % 8
    rows = np.arange(32)
    differs = (one.pixels(rows) != other.pixels(rows)).any(dim=1).numpy()
    regions = one.regions(rows)
    assert not differs[~regions].any()
    assert differs[regions].mean() > 0.3


def test_the_outline_is_the_same_for_all_classes():
    split = planted(train_images=80, classes=14).split("train")
    regions, boxes = split.regions(np.arange(len(split))), split.boxes(np.arange(len(split)))
    holes = {regions[i, y0:y1, x0:x1].tobytes() for i, ((x0, y0, x1, y1),) in enumerate(boxes)}
    assert len(holes) == 1


def test_the_shape_variant_tells_the_class_by_the_outline_alone():
    data = planted(train_images=240, evidence="shape", classes=12)
    split = data.split("train")
    regions, boxes = split.regions(np.arange(len(split))), split.boxes(np.arange(len(split)))
    holes = [(x1 - x0, regions[i, y0:y1, x0:x1].tobytes()) for i, ((x0, y0, x1, y1),) in enumerate(boxes)]
    assert len(set(zip(holes, split.labels, strict=True))) == len(set(holes)) == 12
    assert data.class_names == tuple(OUTLINES)


@given(
    size=st.sampled_from([32, 64]),
    objects=st.integers(1, 2),
    distractors=st.integers(0, 2),
    diameter=st.integers(5, 10),
    evidence=st.sampled_from(["texture", "shape"]),
    difficulty=st.floats(0, 1),
    seed=st.integers(0, 2**63),
)
@settings(max_examples=25, deadline=None)
def test_objects_lie_inside_and_apart(size, objects, distractors, diameter, evidence, difficulty, seed):
    options = {"size": size, "objects": objects, "distractors": distractors, "diameter": diameter, "train_images": 16}
    data = planted(seed, evidence=evidence, difficulty=difficulty, test_images=8, **options)
    alone = planted(seed, evidence=evidence, test_images=8, **{**options, "objects": 1, "distractors": 0})
    split = data.split("test")
    regions = split.regions(np.arange(8))
    one = alone.split("test").regions(np.arange(8)).sum(axis=(1, 2))
    assert split.pixels(np.arange(8)).shape == (8, 3, size, size)
    np.testing.assert_array_equal(regions.sum(axis=(1, 2)), objects * one)


def test_sizes_share_one_layout():
    small, large = (planted(size=size, test_images=8).split("test").regions(np.arange(8)) for size in (32, 64))
    agreement = (large[:, ::2, ::2] & small).sum() / small.sum()
    assert agreement > 0.9


def test_classes_are_equally_bright():
    split = planted().split("train")
    pixels, regions = split.pixels(np.arange(len(split))).numpy(), split.regions(np.arange(len(split)))
    brightness = (pixels.mean(axis=1) * regions).sum(axis=(1, 2)) / 97
    means = [brightness[split.labels == label].mean() for label in range(8)]
    assert max(means) - min(means) < 8  # of 255; the discs' colours spread over 96


def test_the_fingerprint_names_options_and_seed():
    fingerprints = {
        planted(seed, **options).fingerprint
        for seed in (0, 1)
        for options in ({}, {"difficulty": 0.5}, {"train_images": 100}, {"evidence": "shape"})
    }
    assert len(fingerprints) == 8
    assert planted().fingerprint == planted(size=32).fingerprint
    train, validation = (planted().split(name).fingerprint for name in ("train", "validation"))
    assert train != validation


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 48}, "Planted: size: 48 must be one of 32, 64, 224"),
        ({"classes": 15}, "Planted: classes: 15 must lie between 2 and 14"),
        ({"classes": 13, "evidence": "shape"}, "Planted: classes: 13 must lie between 2 and 12"),
        ({"train_images": 2.5}, "Planted: option 'train_images': 2.5 should be a whole number"),
        ({"difficulty": "high"}, "Planted: option 'difficulty': 'high' should be a number"),
        ({"evidence": "colour"}, "Planted: evidence: 'colour' must be 'texture' or 'shape'"),
    ],
)
def test_a_wrong_value_is_named(options, message):
    with pytest.raises(HeatproofError, match=f"^{message}$"):
        planted(**options)


def test_a_misspelt_option_is_named():
    with pytest.raises(PluginError, match="unknown option 'dificulty'; did you mean 'difficulty'"):
        planted(dificulty=0.5)


def test_discs_that_find_no_room_are_an_error():
    data = planted(objects=4, distractors=4, diameter=15)
    with pytest.raises(InputError, match="8 discs of diameter 15 do not fit on 32 x 32"):
        data.split("test").pixels([0])


def fitted(removal, epochs=3):
    """Test accuracy of a narrow network after some epochs on (pixels, labels); removed pixels get the mean."""
    data = planted()
    mean, std = (torch.from_numpy(a).float()[:, None, None] for a in training_statistics(data.split("train")))

    def images(split):
        pixels = split.pixels(np.arange(len(split))).float() / 255
        removed = removal(split)
        return ((pixels if removed is None else torch.where(removed[:, None], mean, pixels)) - mean) / std

    torch.manual_seed(0)
    network = NarrowResNet8(8).to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2, weight_decay=1e-4)
    split = data.split("train")
    inputs, labels = images(split).contiguous(memory_format=torch.channels_last), torch.from_numpy(split.labels)
    for epoch in range(epochs):
        optimizer.param_groups[0]["lr"] = 1e-2 if epoch < 2 else 3e-3
        for rows in torch.randperm(len(split)).split(64):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                logits = network(inputs[rows])
            optimizer.zero_grad()
            functional.cross_entropy(logits.float(), labels[rows]).backward()
            optimizer.step()
    test = data.split("test")
    with torch.no_grad():
        predictions = network.eval()(images(test)).argmax(1).numpy()
    return (predictions == test.labels).mean()


def test_a_small_network_learns_it():
    assert fitted(lambda _: None) >= 0.97


def test_without_the_object_nothing_can_be_learnt():
    assert fitted(lambda split: torch.from_numpy(split.regions(np.arange(len(split)))), epochs=2) < 0.2
