import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from heatproof.errors import InputError
from heatproof.metrics import masks
from tests.metrics.alone import batches, check_alone, public

GOLDEN = Path(__file__).parents[1] / "golden" / "casme"


@pytest.fixture(scope="module")
def golden():
    return json.loads((GOLDEN / "boxes.json").read_text()), dict(np.load(GOLDEN / "boxes.npz"))


def test_masks_are_cut_at_their_mean_and_reduced_to_a_part_as_published(golden):
    cases, data = golden
    cut = masks.binarized(data["mask56"])
    np.testing.assert_array_equal(cut, data["binarized56"] > 0)
    np.testing.assert_array_equal(masks.largest_component(cut), data["largest56"] > 0)
    np.testing.assert_allclose(
        masks.binarized_share(data["mask56"]), [c["binarized_fraction"] for c in cases], atol=1e-6
    )


def test_saliency_points_are_those_published(golden):
    cases, data = golden
    points = masks.saliency_points(data["mask56"].repeat(4, axis=1).repeat(4, axis=2))
    np.testing.assert_array_equal(points[:, ::-1], [case["saliency_point"] for case in cases])


def test_unit_range_keeps_the_order_and_reaches_both_ends():
    maps = np.random.default_rng(0).normal(size=(3, 4, 5)).astype(np.float32)
    scaled = masks.unit_range(maps)
    np.testing.assert_array_equal(scaled.reshape(3, -1).argsort(axis=1), maps.reshape(3, -1).argsort(axis=1))
    np.testing.assert_array_equal(scaled.min(axis=(1, 2)), 0)
    np.testing.assert_array_equal(scaled.max(axis=(1, 2)), 1)
    np.testing.assert_array_equal(masks.unit_range(np.array([[[1.0, np.nan]], [[1.0, np.inf]], [[3.0, 3.0]]])), 0)


@pytest.mark.parametrize("level", [0.0, 0.1, 1 / 3, 0.7, 1.0])
def test_nothing_of_a_constant_mask_is_above_its_mean(level):
    constant = np.full((1, 37, 41), level, dtype=np.float32)
    assert not masks.binarized(constant).any()
    assert np.isnan(masks.saliency_points(constant)).all()


@given(st.integers(0, 10_000))
@settings(max_examples=20, deadline=None)
def test_the_largest_part_is_the_first_of_the_largest(seed):
    regions = np.random.default_rng(seed).random((5, 8, 9)) < 0.45
    regions[3] = False
    for region, found in zip(regions, masks.largest_component(regions), strict=True):
        labels, count = ndimage.label(region)
        sizes = [(labels == k).sum() for k in range(1, count + 1)]
        expected = labels == 1 + sizes.index(max(sizes)) if count else np.zeros_like(region)
        np.testing.assert_array_equal(found, expected)


def test_soft_entropy_is_one_sided_and_peaks_at_1_over_e():
    levels = np.array([0, 0.25, 1 / np.e, 0.5, 1])
    found = masks.soft_entropy(levels[:, None, None])
    np.testing.assert_allclose(found, [0, 0.5, np.log2(np.e) / np.e, 0.5, 0])
    assert found.argmax() == 2


def test_total_variation_squares_and_averages_both_directions():
    mask = np.zeros((1, 2, 3))
    mask[0, 0, 0] = 0.5
    np.testing.assert_allclose(masks.total_variation(mask), 0.25 / 4 + 0.25 / 3)
    np.testing.assert_allclose(masks.total_variation(mask[:, :1]), 0.25 / 2)


def test_spread_is_over_all_images_or_within_batches():
    averages = [0.1, 0.3, 0.2, 0.8]
    np.testing.assert_allclose(masks.spread_of_averages(averages), np.std(averages, ddof=1))
    within = (2 * np.std([0.1, 0.3], ddof=1) + 2 * np.std([0.2, 0.8], ddof=1)) / 4
    np.testing.assert_allclose(masks.spread_of_averages(averages, [2, 2]), within)
    np.testing.assert_allclose(masks.spread_of_averages([0.1, np.nan, 0.3]), np.std([0.1, 0.3], ddof=1))
    assert np.isnan(masks.spread_of_averages([0.1]))
    with pytest.raises(InputError, match="hold 3 images; there are 4"):
        masks.spread_of_averages(averages, [2, 1])


ALONE = {
    "unit_range": lambda b: masks.unit_range(b.maps),
    "binarized": lambda b: masks.binarized(b.masks),
    "largest_component": lambda b: masks.largest_component(b.regions),
    "saliency_points": lambda b: masks.saliency_points(b.masks),
    "binarized_share": lambda b: masks.binarized_share(b.masks),
    "average": lambda b: masks.average(b.masks),
    "soft_entropy": lambda b: masks.soft_entropy(b.masks),
    "total_variation": lambda b: masks.total_variation(b.masks),
}
OTHERS = {"in_plane", "spread_of_averages"}


@pytest.mark.parametrize("metric", ALONE.values(), ids=ALONE)
def test_an_image_is_scored_alone(metric):
    check_alone(metric, batches())


def test_no_function_is_left_out():
    assert public(masks) == ALONE.keys() | OTHERS
