"""Removal as the published codes do it, by our functions: golden vectors of the ROAR code and of Hooker et al."""

import numpy as np
import pytest

from heatproof import removal

FIRST = {"roar": "most", "kar": "least"}


@pytest.mark.parametrize("metric", FIRST)
@pytest.mark.parametrize("features", ["gray", "color"])
def test_removal_is_the_roar_codes(golden, metric, features):
    data = golden("roar_remove")
    maps = data[f"attr_{features}"][None]
    orders = removal.orders(maps)
    for step, percentile in enumerate(data["percentiles"]):
        removed = removal.removed(orders, percentile / 100, FIRST[metric]).reshape(maps.shape)
        assert removed.sum() == data[f"count_{features}"][step]
        filled = removal.fill(data["image"][None], removed, "mean", mean=data["mean"])
        np.testing.assert_array_equal(filled[0], data[f"{metric}_{features}"][step])


def test_the_roar_codes_fault_is_not_inherited(golden):
    data = golden("roar_remove")
    orders = removal.orders(data["attr_gray"])
    assert (data["fault_roar_gray_p0.5"].reshape(3, -1).std(axis=1) < 1e-6).all()  # there, everything went
    for percentile in (0, 0.5):
        assert not removal.removed(orders, percentile / 100).any()
    np.testing.assert_array_equal(data["kar_gray_p0"], data["image"])


def hooker(image, saliency, mean, fraction, first):
    """Removes single features, ranked in the reference's order of H, W and C, lowest position first among equals."""
    orders = removal.orders(saliency[None], ties="index")
    removed = removal.removed(orders, fraction, first).reshape(1, *saliency.shape).transpose(0, 3, 1, 2)
    pixels = image.transpose(2, 0, 1)[None]
    return removal.fill(pixels, removed, "mean", mean=mean)[0].numpy().transpose(1, 2, 0)


@pytest.mark.parametrize(("form", "power"), [("signed", 1), ("squared", 2)])
def test_removal_of_single_features_is_hookers(golden, form, power):
    data = golden("hooker_removal")
    saliency = data["saliency_hwc"] ** power
    for step, threshold in enumerate(data["thresholds"]):
        gone = hooker(data["image_hwc"], saliency, data["mean"], threshold / 100, "most")
        np.testing.assert_array_equal(gone, data[f"remove_{form}"][step])
        # There, "keep" names what stays.
        kept = hooker(data["image_hwc"], saliency, data["mean"], 1 - threshold / 100, "least")
        np.testing.assert_array_equal(kept, data[f"keep_{form}"][step])


def test_ties_by_index_are_hookers(golden):
    data = golden("hooker_removal")
    gone = hooker(data["image_hwc"], data["saliency_plateau"], data["mean"], 0.7, "most")
    np.testing.assert_array_equal(gone, data["remove_plateau_70"])


def degraded_pixels(data, rows, metric, percentile):
    """What a retraining sees before augmentation and normalisation, float pixels in [0, 1]."""
    maps = data["attr_uint8"][rows].max(axis=1)  # the ROAR code's reduction: signed maximum over channels
    ranks = removal.ranks(removal.orders(maps, keys=removal.tie_keys(0, rows, 32 * 32)), (32, 32))
    removed = removal.removed(ranks, percentile / 100, FIRST[metric])
    return removal.fill(data["x_uint8"][rows], removed, "mean", mean=data["cifar_mean"])


@pytest.mark.parametrize("metric", FIRST)
@pytest.mark.parametrize("percentile", [10, 50, 90])
def test_retraining_data_are_the_roar_codes(golden, metric, percentile):
    data = golden("roar_dataset")
    mean, std = (data[f"cifar_{name}"][None, :, None, None] for name in ("mean", "std"))
    for mode in ("validation", "test"):
        pixels = degraded_pixels(data, data[f"{mode}_source_index"], metric, percentile)
        images = (pixels.numpy() - mean) / std
        np.testing.assert_allclose(images, data[f"{metric}{percentile}_{mode}"], atol=1e-6)
    pixels = degraded_pixels(data, data["training_source_index"], metric, percentile)
    # The ROAR code rounds training images down to 8 bits, and so tells training from test; ours does not.
    stored = (pixels * 255).byte().permute(0, 2, 3, 1)
    np.testing.assert_array_equal(stored, data[f"{metric}{percentile}_training"])
