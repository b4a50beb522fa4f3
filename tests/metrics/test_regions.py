import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heatproof import removal
from heatproof.errors import InputError
from heatproof.metrics import regions
from tests.metrics.alone import batches, check_alone, public

GOLDEN = Path(__file__).parents[1] / "golden" / "metrics"


@pytest.fixture(scope="module")
def quantus():
    return json.loads((GOLDEN / "quantus.json").read_text()), dict(np.load(GOLDEN / "quantus_inputs.npz"))


def test_scores_are_those_of_quantus(quantus):
    expected, inputs = quantus
    maps, objects = inputs["a_gray"][:, 0], inputs["seg"][:, 0]
    ranks = removal.ranks(removal.orders(maps, ties="index"), (32, 32))
    found = {
        "loc_auc": regions.roc_area_in_region(maps, objects),
        "loc_mass": regions.mass_in_region(maps, objects, signed=True),
        "loc_attrloc": regions.absolute_mass_in_region(maps, objects),
    }
    for name, values in found.items():
        np.testing.assert_allclose(values, expected[name], atol=2e-5, err_msg=name)
    np.testing.assert_allclose(regions.rank_in_region(ranks, objects), expected["loc_rank"], rtol=1e-12)
    np.testing.assert_allclose(regions.top_k_in_region(ranks, objects, k=50), expected["loc_topk"], rtol=1e-12)


def test_images_without_object_are_undefined_as_in_quantus(quantus):
    expected, inputs = quantus
    maps, objects = inputs["edge_a"][:, 0], inputs["edge_seg"][:, 0]
    mass = regions.mass_in_region(maps, objects, signed=True)
    np.testing.assert_allclose(mass, np.array(expected["edge_mass"], dtype=float), atol=2e-5)
    area = regions.roc_area_in_region(maps, objects)
    np.testing.assert_allclose(area, np.array(expected["edge_auc"], dtype=float), atol=2e-5)
    assert np.isnan(mass).tolist() == [False, True, False, False, False, False]


def test_mass_clips_negatives_and_absolute_mass_does_not():
    maps = np.array([[[3.0, 1.0], [0.0, -5.0]]])
    objects = np.array([[[True, False], [False, True]]])
    np.testing.assert_allclose(regions.mass_in_region(maps, objects), 3 / 4)
    np.testing.assert_allclose(regions.mass_in_region(maps, objects, signed=True), -2 / -1)
    np.testing.assert_allclose(regions.absolute_mass_in_region(maps, objects), 8 / 9)


def test_a_map_without_positive_values_has_no_mass():
    maps = np.array([[[-3.0, 0.0]], [[0.0, 0.0]]])
    objects = np.array([[[True, False]], [[True, False]]])
    assert np.isnan(regions.mass_in_region(maps, objects)).all()
    assert np.isnan(regions.absolute_mass_in_region(maps, objects)).tolist() == [False, True]


def test_an_object_that_fills_the_image_has_no_roc_area():
    maps, everything = np.array([[[1.0, 2.0]]]), np.ones((1, 1, 2), dtype=bool)
    assert np.isnan(regions.roc_area_in_region(maps, everything)).all()
    np.testing.assert_array_equal(regions.mass_in_region(maps, everything), [1])


def test_ignored_pixels_count_neither_way():
    batch = batches()
    shown = batch.regions & ~batch.ignored
    wild = np.where(batch.ignored, 1e6, batch.maps)
    tame = np.where(batch.ignored, -1e6, batch.maps)
    for metric in (regions.mass_in_region, regions.absolute_mass_in_region, regions.roc_area_in_region):
        np.testing.assert_array_equal(metric(wild, shown, batch.ignored), metric(tame, shown, batch.ignored))
    ranks = [removal.ranks(removal.orders(maps, ties="index"), maps.shape[1:]) for maps in (wild, tame)]
    for metric in (regions.rank_in_region, regions.top_k_in_region):
        np.testing.assert_array_equal(*(metric(rank, shown, batch.ignored) for rank in ranks))
    counted = (~batch.ignored).sum(axis=(1, 2))
    share = regions.region_share(shown, batch.ignored)
    np.testing.assert_allclose(np.nan_to_num(share), shown.sum(axis=(1, 2)) / counted)


def test_an_object_keeps_its_pixels_that_are_also_to_be_ignored():
    objects, ignored = np.array([[[True, False]]]), np.array([[[True, False]]])
    np.testing.assert_array_equal(regions.region_share(objects, ignored), [0.5])


@given(st.integers(0, 10_000))
@settings(max_examples=20, deadline=None)
def test_the_object_itself_scores_1_and_its_inverse_least(seed):
    rng = np.random.default_rng(seed)
    objects = rng.random((4, 6, 5)) < 0.3
    objects[:, 0, 0], objects[:, 5, 4] = True, False
    ranks = removal.ranks(removal.orders(objects.astype(np.float32)), (6, 5))
    last = ranks.max() - ranks
    for metric in (regions.mass_in_region, regions.absolute_mass_in_region, regions.roc_area_in_region):
        np.testing.assert_array_equal(metric(objects.astype(float), objects), 1)
        np.testing.assert_array_equal(metric(1 - objects.astype(float), objects), 0)
    np.testing.assert_array_equal(regions.rank_in_region(ranks, objects), 1)
    np.testing.assert_array_equal(regions.top_k_in_region(ranks, objects, k=1), 1)
    np.testing.assert_array_equal(regions.top_k_in_region(last, objects, k=1), 0)
    np.testing.assert_allclose(regions.top_k_in_region(ranks, objects), regions.region_share(objects))


def test_a_map_that_knows_nothing_scores_the_share_of_the_region():
    rng = np.random.default_rng(0)
    objects = np.zeros((1, 20, 20), dtype=bool)
    objects[0, 3:9, 4:12] = True
    many = objects.repeat(400, axis=0)
    maps = rng.random(many.shape)
    ranks = removal.ranks(removal.orders(maps), (20, 20))
    share = regions.region_share(objects)[0]
    for values in (
        regions.mass_in_region(maps, many),
        regions.rank_in_region(ranks, many),
        regions.top_k_in_region(ranks, many, k=50),
    ):
        np.testing.assert_allclose(values.mean(), share, atol=4 * values.std() / 20)
    areas = regions.roc_area_in_region(maps, many)
    np.testing.assert_allclose(areas.mean(), 0.5, atol=4 * areas.std() / 20)
    constant = np.ones(objects.shape)
    np.testing.assert_allclose(regions.mass_in_region(constant, objects), share)
    np.testing.assert_array_equal(regions.roc_area_in_region(constant, objects), 0.5)


def test_roc_area_counts_all_pairs():
    rng = np.random.default_rng(3)
    values, objects = rng.integers(0, 4, (1, 5, 5)), rng.random((1, 5, 5)) < 0.4
    inside, outside = values[objects][:, None], values[~objects][None]
    expected = ((inside > outside) + 0.5 * (inside == outside)).mean()
    np.testing.assert_allclose(regions.roc_area_in_region(values, objects), expected)


def test_focus_asks_for_the_tiles_of_the_class():
    maps = np.arange(16, dtype=float).reshape(1, 4, 4)
    tiles = np.array([[[False, True], [False, False]]])
    np.testing.assert_allclose(regions.focus(maps, tiles), (2 + 3 + 6 + 7) / 120)
    with pytest.raises(InputError, match="cannot be cut"):
        regions.focus(np.zeros((1, 3, 4)), tiles)


def test_k_below_1_is_refused():
    with pytest.raises(InputError, match="k: 0"):
        regions.top_k_in_region(np.zeros((1, 2, 2)), np.ones((1, 2, 2), dtype=bool), k=0)


ALONE = {
    "region_share": lambda b: regions.region_share(b.regions, b.ignored),
    "mass_in_region": lambda b: regions.mass_in_region(b.maps, b.regions, b.ignored),
    "absolute_mass_in_region": lambda b: regions.absolute_mass_in_region(b.maps, b.regions, b.ignored),
    "rank_in_region": lambda b: regions.rank_in_region(b.ranks, b.regions, b.ignored),
    "top_k_in_region": lambda b: regions.top_k_in_region(b.ranks, b.regions, b.ignored, k=5),
    "roc_area_in_region": lambda b: regions.roc_area_in_region(b.maps, b.regions, b.ignored),
    "focus": lambda b: regions.focus(b.maps[:, :6], b.regions[:, :2, :2]),
}


@pytest.mark.parametrize("metric", ALONE.values(), ids=ALONE)
def test_an_image_is_scored_alone(metric):
    check_alone(metric, batches())


def test_no_function_is_left_out():
    assert public(regions) == ALONE.keys()
