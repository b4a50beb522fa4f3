"""How alike two maps are: by hand, against the masking-based saliency code, and each pair alone."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from heatproof.errors import InputError
from heatproof.metrics import agreement
from tests.metrics.alone import check_rows_alone, public

GOLDEN = Path(__file__).parents[1] / "golden" / "casme"


def ranks_of(maps):
    order = np.argsort(-maps.reshape(len(maps), -1), axis=1, kind="stable")
    return np.argsort(order, axis=1).reshape(maps.shape)


# Each takes two batches of maps (N, H, W).
PAIRS = {
    "spearman": agreement.spearman,
    "abs_spearman": agreement.abs_spearman,
    "ssim": agreement.ssim,
    "hog_correlation": lambda a, b: agreement.hog_correlation(a, b, cell=4),
    "top_k_overlap": lambda a, b: agreement.top_k_overlap(ranks_of(a), ranks_of(b)),
    "top_k_iou": lambda a, b: agreement.top_k_iou(ranks_of(a), ranks_of(b)),
    "spearman_matrix": lambda a, b: agreement.spearman_matrix(np.stack([a, b], axis=1))[:, 0, 1],
    "unit_scaled": lambda a, b: agreement.ssim(agreement.unit_scaled(a), agreement.unit_scaled(b)),
    "hog": lambda a, b: (agreement.hog(a, cell=4) * agreement.hog(b, cell=4)).sum(axis=1),
}
OTHERS = {"cell_for"}
per_pair = pytest.mark.parametrize("metric", PAIRS.values(), ids=PAIRS)


def maps_of(count=8, size=16, seed=0):
    return np.random.default_rng(seed).normal(size=(2, count, size, size))


@pytest.fixture(scope="module")
def published():
    data = dict(np.load(GOLDEN / "sanity.npz"))
    a, b = (data[name].repeat(2, axis=1).repeat(2, axis=2) for name in ("a32", "b32"))
    c = data["c"]
    pairs = {
        "a_b": (a, b),
        "a_a": (a, a),
        "c_logits_vs_a": (c, a),
        "c_c_noise": (c, c + np.float32(0.3) * data["noise"]),
    }
    return pairs, json.loads((GOLDEN / "sanity.json").read_text())


@pytest.mark.parametrize("pair", ["a_b", "a_a", "c_logits_vs_a", "c_c_noise"])
def test_similarities_are_the_published_ones(published, pair):
    (a, b), scores = published[0][pair], published[1][pair]
    np.testing.assert_allclose(agreement.spearman(a, b), scores["spearman"], atol=1e-5)
    np.testing.assert_allclose(agreement.abs_spearman(a, b, centre=0.5), scores["abs_spearman"], atol=1e-5)
    np.testing.assert_allclose(agreement.ssim(a, b), scores["ssim"], atol=1e-5)
    np.testing.assert_allclose(agreement.hog_correlation(a, b), scores["hog_correl"], atol=1e-4)


def test_ssim_of_one_window_follows_from_the_formula():
    a, b = maps_of(1, 5)
    covariance = np.cov(a.ravel(), b.ravel())
    means = a.mean(), b.mean()
    c1, c2 = (0.01 * 3) ** 2, (0.03 * 3) ** 2
    by_hand = (2 * means[0] * means[1] + c1) * (2 * covariance[0, 1] + c2)
    by_hand /= (means[0] ** 2 + means[1] ** 2 + c1) * (covariance[0, 0] + covariance[1, 1] + c2)
    np.testing.assert_allclose(agreement.ssim(a, b, data_range=3.0), [by_hand])


def test_the_matrix_holds_the_pairs_with_mid_ranks_for_ties():
    maps = np.round(np.random.default_rng(1).normal(size=(3, 4, 6, 6)))  # many ties
    maps[1, 2] = 5.0
    matrix = agreement.spearman_matrix(maps)
    for i in range(4):
        for j in range(4):
            if i != j:
                np.testing.assert_allclose(matrix[:, i, j], agreement.spearman(maps[:, i], maps[:, j]), atol=1e-12)
    np.testing.assert_array_equal(matrix, matrix.swapaxes(1, 2))
    np.testing.assert_array_equal(matrix[0].diagonal(), 1)
    assert np.isnan(matrix[1, 2]).all()
    expected = stats.spearmanr(maps[0, 0].ravel(), maps[0, 1].ravel()).statistic
    np.testing.assert_allclose(matrix[0, 0, 1], expected)


def test_the_ten_percent_of_two_shifted_bars_that_overlap():
    a, b = np.zeros((2, 1, 10, 10))
    a[0, 3, :], b[0, 3, 5:], b[0, 4, :5] = 1, 1, 1  # 10 pixels each, 5 of them common
    assert agreement.top_k_overlap(ranks_of(a), ranks_of(b), fraction=0.1)[0] == 0.5
    np.testing.assert_allclose(agreement.top_k_iou(ranks_of(a), ranks_of(b), fraction=0.1), [5 / 15])


def test_unrelated_orders_share_the_fraction_itself():
    a, b = maps_of(200, 16)
    np.testing.assert_allclose(agreement.top_k_overlap(ranks_of(a), ranks_of(b), fraction=0.25).mean(), 0.25, atol=0.01)


def test_a_map_and_its_negative_agree_in_size_and_edges_only():
    a, _ = maps_of(3, 48)
    np.testing.assert_allclose(agreement.spearman(a, -a), -1)
    np.testing.assert_allclose(agreement.abs_spearman(a, -a), 1)
    np.testing.assert_allclose(agreement.hog_correlation(a, -a), 1)
    assert (agreement.ssim(a, -a) < agreement.ssim(a, a)).all()


def test_a_vertical_edge_fills_the_bin_of_no_angle():
    maps = np.zeros((1, 48, 48))
    maps[:, :, 24:] = 1.0
    cells = agreement.hog(maps).reshape(9, 9)
    assert (cells[:, 1:] == 0).all()
    assert (cells[1::3, 0] > 0.3).all()  # the middle column of cells holds the edge
    np.testing.assert_allclose((cells**2).sum(), 1, atol=1e-4)


def test_a_constant_map_has_no_order_and_no_edges_but_is_like_itself():
    flat, other = np.full((1, 48, 48), 0.5), np.random.default_rng(0).random((1, 48, 48))
    for metric in (agreement.spearman, agreement.abs_spearman, agreement.hog_correlation):
        assert np.isnan(metric(flat, other)[0])
    assert agreement.ssim(flat, flat)[0] == 1


@given(st.integers(0, 200), st.sampled_from([0.5, 4.0, 100.0]), st.floats(-3, 3))
@settings(max_examples=25, deadline=None)
def test_scale_and_shift_leave_orders_and_edges(seed, scale, shift):
    a, b = maps_of(2, 12, seed)
    np.testing.assert_allclose(agreement.spearman(scale * a + shift, b), agreement.spearman(a, b), atol=1e-12)
    np.testing.assert_allclose(
        agreement.hog_correlation(scale * a + shift, b, cell=4), agreement.hog_correlation(a, b, cell=4), atol=1e-3
    )
    np.testing.assert_allclose(agreement.unit_scaled(scale * a), agreement.unit_scaled(a), atol=1e-12)


@per_pair
def test_the_two_maps_may_change_places(metric):
    a, b = maps_of()
    np.testing.assert_allclose(metric(a, b), metric(b, a), atol=1e-12)


@per_pair
def test_a_pair_is_scored_alone_in_any_order_and_stays_untouched(metric):
    a, b = maps_of()
    a[3], a[4] = 0.0, b[4]
    assert check_rows_alone(metric, a, b).dtype == np.float64


@pytest.mark.parametrize(
    "name", ["spearman", "abs_spearman", "ssim", "hog_correlation", "spearman_matrix", "unit_scaled"]
)
def test_a_map_that_is_not_finite_makes_its_own_score_undefined_only(name):
    a, b = maps_of()
    a[2, 0, 0], a[5, 1, 1] = np.nan, np.inf
    np.testing.assert_array_equal(np.isnan(PAIRS[name](a, b)), [i in (2, 5) for i in range(8)])


def test_no_function_is_left_out():
    assert public(agreement) == PAIRS.keys() | OTHERS


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda a, b: agreement.spearman(a, b[:1]), r"b: shape \(1, 16, 16\); axis N must have size 8"),
        (lambda a, b: agreement.ssim(a, b, window=4), r"window: 4 must be odd"),
        (lambda a, b: agreement.ssim(a, b, window=17), r"window: 17 .* size 16 x 16"),
        (lambda a, b: agreement.ssim(a, b, data_range=0.0), r"data_range: 0.0 must be above 0"),
        (lambda a, b: agreement.hog_correlation(a, b), r"maps: 16 x 16 is too small for 3 x 3 cells of 16 pixels"),
        (lambda a, b: agreement.top_k_overlap(a, b, fraction=0), r"fraction: 0 must lie in \(0, 1\]"),
    ],
)
def test_messages(call, message):
    with pytest.raises(InputError, match=message):
        call(*maps_of())
