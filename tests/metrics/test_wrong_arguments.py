"""Arguments of metrics that would give a wrong number are refused in one line; every real type gives the same number."""

import numpy as np
import pytest

from heatproof.errors import InputError
from heatproof.metrics import boxes, faithfulness, masks, pixels, pointing, regions

RNG = np.random.default_rng(0)
MAPS = RNG.integers(0, 200, (2, 8, 8)).astype(np.float64)
RANKS = np.argsort(np.argsort(-MAPS.reshape(2, -1), axis=1), axis=1).reshape(MAPS.shape)
REGION = np.zeros((2, 8, 8), dtype=bool)
REGION[:, 2:5, 2:6] = True
TRUTHS = [np.array([[2, 2, 6, 5]])] * 2
UNIT = MAPS / 200

OF_REGIONS = {
    "region_share": regions.region_share,
    "mass_in_region": lambda region: regions.mass_in_region(MAPS, region),
    "absolute_mass_in_region": lambda region: regions.absolute_mass_in_region(MAPS, region),
    "roc_area_in_region": lambda region: regions.roc_area_in_region(MAPS, region),
    "rank_in_region": lambda region: regions.rank_in_region(RANKS, region),
    "top_k_in_region": lambda region: regions.top_k_in_region(RANKS, region, k=3),
    "hit": lambda region: pointing.hit(MAPS, region, 1),
    "chance": lambda region: pointing.chance(region, 1),
    "pixel_histograms": lambda region: pixels.pixel_histograms(UNIT, region),
    "largest_component": masks.largest_component,
    "ignored": lambda region: regions.region_share(REGION, region),
    "sum_in_subsets": lambda region: faithfulness.sum_in_subsets(MAPS, region[:, None]),
}


@pytest.mark.parametrize("metric", OF_REGIONS.values(), ids=OF_REGIONS)
def test_a_region_is_a_mask_of_truth_values(metric):
    metric(REGION)
    for wrong in (REGION.astype(np.float64), REGION.astype(np.uint8) * 255, REGION.astype(np.int64)):
        with pytest.raises(InputError, match=r"^\w+: \w+ values; expected bool"):
            metric(wrong)


@pytest.mark.parametrize("name", ["mass_in_region", "absolute_mass_in_region", "roc_area_in_region"])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float16, np.float32])
def test_the_type_of_a_map_changes_nothing(name, dtype):
    score = getattr(regions, name)
    np.testing.assert_allclose(score(MAPS.astype(dtype), REGION), score(MAPS, REGION), rtol=1e-12)
    turned = np.asfortranarray(MAPS.astype(dtype))
    np.testing.assert_allclose(score(turned, REGION), score(MAPS, REGION), rtol=1e-12)


WRONG = {
    "maps for ranks": (lambda: regions.rank_in_region(MAPS, REGION), "ranks: float64 values; expected integers"),
    "maps for ranks at the top": (lambda: pointing.top_points(MAPS), "ranks: float64 values; expected integers"),
    "a list": (lambda: regions.mass_in_region(MAPS.tolist(), REGION), r"maps: list; expected an array \(N, H, W\)"),
    "a negative tolerance": (lambda: pointing.hit(MAPS, REGION, -1), "tolerance: -1 pixels; it must be at least 0"),
    "no tolerance": (lambda: pointing.chance(REGION, float("nan")), "tolerance: nan pixels"),
    "a class too many": (lambda: pointing.class_accuracy([1, 0], [0, 5], 3), "classes: from 0 to 5; expected 0 to 2"),
    "a negative class": (lambda: pointing.class_accuracy([1, 0], [0, -1], 3), "classes: from -1 to 0; expected 0 to 2"),
    "half a class": (lambda: pointing.class_accuracy([1, 0], [0, 1.5], 3), "classes: float64 values; expected integers"),
    "a box between pixels": (lambda: boxes.best_overlap([[0, 0, 1.5, 2]] * 2, TRUTHS), "expected whole pixels"),
    "a true box between pixels": (lambda: boxes.f1(UNIT, [np.array([[2.5, 2, 6, 5]])] * 2), "expected whole pixels"),
    "a region between pixels": (lambda: pointing.box_regions([np.array([[1, 1, np.nan, 3]])], (8, 8)), "expected whole"),
    "boxes of fewer images": (lambda: boxes.best_overlap([[0, 0, 1, 2]] * 2, TRUTHS[:1]), "truths: of 1 images; expected 2"),
    "truths of fewer images": (lambda: boxes.f1(UNIT, TRUTHS[:1]), "truths: of 1 images; expected 2"),
    "masks in bytes": (lambda: boxes.f1(MAPS, TRUTHS), r"masks: values from .* to .*; bring them to \[0, 1\] first"),
    "a convention": (lambda: boxes.mean_boxes(UNIT, "exakt"), "convention: 'exakt'; did you mean 'exact'?"),
}  # fmt: skip


@pytest.mark.parametrize(("call", "message"), WRONG.values(), ids=WRONG)
def test_a_wrong_argument_is_one_line(call, message):
    with pytest.raises(InputError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
