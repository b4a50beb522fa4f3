"""Sparseness, complexity, effective complexity: by hand, against Quantus, and each map alone."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from heatproof.errors import InputError
from heatproof.metrics import complexity
from tests.metrics.alone import check_rows_alone, public

GOLDEN = Path(__file__).parents[1] / "golden" / "metrics"
ALL = {
    "gini": complexity.gini,
    "entropy": complexity.entropy,
    "effective_complexity": lambda maps: complexity.effective_complexity(maps, threshold=0.1),
}
per_metric = pytest.mark.parametrize("metric", ALL.values(), ids=ALL)
MAPS = hnp.arrays(
    np.float64, st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(2, 5)), elements=st.floats(-9, 9)
)


@pytest.fixture(scope="module")
def quantus():
    return dict(np.load(GOLDEN / "quantus_inputs.npz")), json.loads((GOLDEN / "quantus.json").read_text())


@pytest.mark.parametrize("kind", ["color", "gray"])
def test_sparseness_and_complexity_are_those_of_quantus(quantus, kind):
    inputs, scores = quantus
    maps = inputs[f"a_{kind}"]
    # Quantus adds 1e-7 to each value before the index, and 1e-12 inside the logarithm.
    np.testing.assert_allclose(complexity.gini(maps), scores[f"cplx_sparseness_{kind}"], atol=2e-5)
    np.testing.assert_allclose(complexity.entropy(maps), scores[f"cplx_complexity_{kind}"], atol=2e-5)


def test_effective_complexity_is_that_of_quantus_with_its_threshold_of_the_batch(quantus):
    inputs, scores = quantus
    maps = inputs["a_color"]
    largest = np.abs(maps).max(axis=(1, 2, 3))
    found = [
        complexity.effective_complexity(maps[i : i + 1], threshold=0.05 * largest.max() / largest[i])[0]
        for i in range(len(maps))
    ]
    np.testing.assert_array_equal(found, scores["cplx_effective_color"])


def test_one_pixel_a_half_and_a_constant_map():
    maps = np.zeros((3, 4, 4))
    maps[0, 1, 2] = -7
    maps[1, :2] = 3
    maps[2] = 0.1
    np.testing.assert_allclose(complexity.gini(maps), [15 / 16, 1 / 2, 0], atol=1e-12)
    np.testing.assert_allclose(complexity.entropy(maps), [0, np.log(8), np.log(16)], atol=1e-12)
    np.testing.assert_array_equal(complexity.effective_complexity(maps), [1, 8, 16])


def test_a_map_of_zeros_is_constant_has_no_shares_and_no_pixel_that_counts():
    zeros = np.zeros((1, 3, 3))
    assert complexity.gini(zeros)[0] == 0
    assert np.isnan(complexity.entropy(zeros)[0])
    assert complexity.effective_complexity(zeros)[0] == 0


def test_uniform_noise_has_a_gini_index_of_a_third():
    maps = np.random.default_rng(0).random((20, 64, 64))
    np.testing.assert_allclose(complexity.gini(maps).mean(), 1 / 3, atol=2e-3)


@per_metric
@given(maps=MAPS, scale=st.sampled_from([-1.0, 0.25, 1e30, 2.0**-200]), seed=st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_neither_scale_nor_sign_nor_place_matters(metric, maps, scale, seed):
    maps = np.where(np.abs(maps) < 1e-3, 0, maps)
    moved = np.random.default_rng(seed).permuted(maps.reshape(len(maps), -1), axis=1)
    np.testing.assert_allclose(metric(scale * moved), metric(maps), atol=1e-9)


@per_metric
def test_a_map_is_scored_alone_in_any_order_and_stays_untouched(metric):
    rng = np.random.default_rng(0)
    maps = rng.normal(size=(8, 6, 7)).astype(np.float32)
    maps[2] = 0
    maps[5, 0, 0] = np.nan
    maps[6, 1, 1] = np.inf
    scores = check_rows_alone(metric, maps)
    assert scores.dtype == np.float64
    np.testing.assert_array_equal(np.isnan(scores[5:7]), True)


def test_no_function_is_left_out():
    assert public(complexity) == ALL.keys()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: complexity.gini(np.zeros(4)), r"maps: shape \(4,\); expected \(N, H, W\)"),
        (lambda: complexity.entropy(np.zeros((2, 0, 3))), r"maps: shape \(2, 0, 3\).*not empty"),
        (
            lambda: complexity.effective_complexity(np.zeros((1, 2, 2)), threshold=1),
            r"threshold: 1 must lie in \[0, 1\)",
        ),
    ],
)
def test_messages(call, message):
    with pytest.raises(InputError, match=message):
        call()
