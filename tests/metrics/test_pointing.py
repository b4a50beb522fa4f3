from pathlib import Path

import numpy as np
import pytest

from heatproof.errors import InputError
from heatproof.metrics import pointing
from tests.metrics.alone import batches, check_alone, public

GOLDEN = Path(__file__).parents[1] / "golden" / "metrics" / "pointing_game.npz"


@pytest.fixture(scope="module")
def golden():
    data = dict(np.load(GOLDEN))
    data["regions"] = np.unpackbits(data["mask"], axis=-1)[..., : data["mask_shape"][-1]].astype(bool)
    return data


@pytest.mark.parametrize("tolerance", [15, 5, 1])
def test_hits_are_those_of_torchray(golden, tolerance):
    hits = pointing.hit(golden["point_uv"], golden["regions"], tolerance)
    expected = (golden[f"hit_tol{tolerance}"] == 1).astype(float)
    empty = ~golden["regions"].any(axis=(1, 2))
    assert empty.sum() == 1  # there, the reference counts a miss
    np.testing.assert_array_equal(hits, np.where(empty, np.nan, expected))


@pytest.mark.parametrize("tolerance", [15, 5, 1])
def test_class_accuracies_are_those_of_torchray_but_for_untested_classes(golden, tolerance):
    hits = np.nan_to_num(pointing.hit(golden["point_uv"], golden["regions"], tolerance))
    accuracy, tests, mean = pointing.class_accuracy(hits, golden["class_id"], 8)
    np.testing.assert_array_equal(np.nan_to_num(accuracy), golden[f"class_accuracy_tol{tolerance}"])
    expected = golden[f"hits_per_class_tol{tolerance}"] + golden[f"misses_per_class_tol{tolerance}"]
    np.testing.assert_array_equal(tests, expected)
    assert np.isnan(accuracy[7])
    assert tests[7] == 0
    np.testing.assert_allclose(mean * 7 / 8, golden[f"mean_accuracy_tol{tolerance}"], rtol=1e-12)


def test_the_protocol_of_voc_is_that_of_torchray(golden):
    width, height = golden["voc_image_wh"].tolist()
    results = golden["voc_results"]
    objects = golden["voc_objects"]
    groups = [objects[(objects[:, 0] == image) & (objects[:, 1] == label)] for image, label in results[:, :2]]
    # VOC's corners are 1-based and inclusive.
    regions = pointing.box_regions([group[:, 3:] - [1, 1, 0, 0] for group in groups], (height, width))
    first = (results[:, 0] == 0) & (results[:, 1] == 0)
    np.testing.assert_array_equal(regions[first][0], golden["voc_mask_image0"])
    all_difficult = np.array([group[:, 2].all() for group in groups])
    hits = np.where(all_difficult, np.nan, pointing.hit(results[:, 2:4], regions, 15))
    codes = np.select([hits == 1, hits == 0], [1, -1], 0)
    np.testing.assert_array_equal(codes, results[:, 4])
    accuracy, _, _ = pointing.class_accuracy(hits, results[:, 1], 20)
    np.testing.assert_allclose(np.nan_to_num(accuracy), golden["voc_class_accuracy"], rtol=1e-12)
    np.testing.assert_allclose(np.nan_to_num(accuracy).mean(), golden["voc_mean_accuracy"], rtol=1e-12)
    flagged = golden["voc_flags"][results[:, 0], results[:, 1]]
    subset = np.where(flagged, hits, np.nan)
    np.testing.assert_array_equal(np.select([subset == 1, subset == 0], [1, -1], 0), results[:, 5])
    accuracy, _, _ = pointing.class_accuracy(subset, results[:, 1], 20)
    np.testing.assert_allclose(np.nan_to_num(accuracy).mean(), golden["voc_mean_accuracy_difficult"], rtol=1e-12)


def test_a_map_points_with_its_first_maximum_or_with_its_lowest_rank():
    maps = np.array([[[0.0, 2.0, 1.0], [0.0, 2.0, 0.0]]])
    regions = np.zeros((1, 2, 3), dtype=bool)
    regions[0, 1, 1] = True
    np.testing.assert_array_equal(pointing.hit(maps, regions, 1), [0])  # of equal values the upper one points
    ranks = np.array([[[5, 1, 2], [4, 0, 3]]])  # here the tie was broken the other way
    np.testing.assert_array_equal(pointing.hit(pointing.top_points(ranks), regions, 1), [1])


def test_tolerance_1_means_on_the_object_and_0_never_hits():
    regions = np.zeros((1, 8, 8), dtype=bool)
    regions[0, 2:5, 2:5] = True
    points = [[2, 2], [1, 2], [4, 5]]
    np.testing.assert_array_equal(pointing.hit(points, regions.repeat(3, axis=0), 1), [1, 0, 0])
    np.testing.assert_array_equal(pointing.hit(points, regions.repeat(3, axis=0), 0), [0, 0, 0])


def test_an_empty_region_is_never_a_hit():
    empty = np.zeros((1, 8, 8), dtype=bool)
    assert np.isnan(pointing.hit([[3, 3]], empty, 100)).all()
    assert np.isnan(pointing.chance(empty, 100)).all()


def test_chance_is_the_hit_rate_of_all_points():
    rng = np.random.default_rng(0)
    regions = rng.random((1, 9, 13)) < 0.02
    regions[0, 4, 4] = True
    points = np.stack(np.meshgrid(np.arange(13), np.arange(9)), axis=-1).reshape(-1, 2)
    for tolerance in (1, 2, 3, 5):
        hits = pointing.hit(points, regions.repeat(len(points), axis=0), tolerance)
        np.testing.assert_allclose(pointing.chance(regions, tolerance), hits.mean())


def test_a_tolerance_without_meaning_is_refused():
    assert pointing.checked_tolerance((300, 224)) == 15
    assert pointing.checked_tolerance((32, 300)) == 1
    with pytest.raises(InputError, match="15 pixels mean nothing on images of 32 x 32; take less than 8"):
        pointing.checked_tolerance((32, 32), 15)
    assert pointing.checked_tolerance((32, 32), 15, force=True) == 15
    with pytest.raises(InputError, match="10 pixels mean nothing on images of 40 x 30"):
        pointing.checked_tolerance((30, 40), 0.2, relative=True)
    with pytest.raises(InputError, match="never hits"):
        pointing.checked_tolerance((32, 32), 0, force=True)


def test_points_and_regions_must_belong_together():
    with pytest.raises(InputError, match="points: shape"):
        pointing.hit(np.zeros((2, 2)), np.ones((1, 4, 4), dtype=bool), 1)
    with pytest.raises(InputError, match="maps: shape"):
        pointing.hit(np.zeros((1, 4, 5)), np.ones((1, 4, 4), dtype=bool), 1)


ALONE = {
    "top_points": lambda b: pointing.top_points(b.ranks),
    "hit": lambda b: pointing.hit(b.maps, b.regions, 2),
    "chance": lambda b: pointing.chance(b.regions, 2),
    "box_regions": lambda b: pointing.box_regions(b.boxes, (7, 6)),
}
OTHERS = {"checked_tolerance", "class_accuracy"}  # one result for all images


@pytest.mark.parametrize("metric", ALONE.values(), ids=ALONE)
def test_an_image_is_scored_alone(metric):
    check_alone(metric, batches())


def test_no_function_is_left_out():
    assert public(pointing) == ALONE.keys() | OTHERS
