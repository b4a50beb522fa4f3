import numpy as np
import pytest

from heatproof.errors import InputError
from heatproof.metrics import roar

FRACTIONS = [0, 0.1, 0.3, 0.5, 0.7, 0.9]


def test_area_to_random_worked_by_hand():
    # Differences 0, 0.3, 0 at 0, 0.5, 1: a triangle of area 0.15.
    np.testing.assert_allclose(roar.area_to_random([0.9, 0.4, 0.1], [0.9, 0.7, 0.1], [0, 0.5, 1]), 0.15)
    # Up to 0.5 only: the same triangle's left half, over half the range.
    np.testing.assert_allclose(roar.area_to_random([0.9, 0.4], [0.9, 0.7], [0, 0.5]), 0.15)


def test_a_method_better_than_random_has_a_positive_area():
    random = np.linspace(0.9, 0.4, 6)
    np.testing.assert_allclose(roar.area_to_random(random - 0.1, random, FRACTIONS), 0.1)
    np.testing.assert_allclose(roar.area_to_random(random + 0.1, random, FRACTIONS), -0.1)


def test_runs_are_scored_alone_and_a_missing_run_is_undefined():
    rng = np.random.default_rng(0)
    method, random = rng.random((2, 4, 6))
    method[2, 3] = np.nan
    areas = roar.area_to_random(method, random, FRACTIONS)
    np.testing.assert_array_equal(
        areas, [roar.area_to_random(m, r, FRACTIONS) for m, r in zip(method, random, strict=True)]
    )
    assert np.isnan(areas).tolist() == [False, False, True, False]


def test_racu_worked_by_hand():
    np.testing.assert_allclose(roar.racu([0.9, 0.4, 0.1], [0.9, 0.7, 0.1], [0, 0.5, 1]), 0.3)
    # Random 0.9, 0.7 above a floor of 0.1 given apart: (0.8 + 0.6) / 2 = 0.7; the method's area is 0.15.
    np.testing.assert_allclose(roar.racu([0.9, 0.4], [0.9, 0.7], [0, 0.5], total=0.1), 0.15 / 0.7)


def test_racu_of_the_random_map_is_0_and_of_immediate_total_loss_nearly_1():
    random = np.array([0.9, 0.8, 0.6, 0.1])
    steps = [0, 0.001, 0.5, 1]
    assert roar.racu(random, random, steps) == 0
    assert 0.99 < roar.racu([0.9, 0.1, 0.1, 0.1], random, steps) < 1


def test_racu_is_undefined_where_random_has_nothing_to_lose():
    random = [[0.5, 0.3], [0.1, 0.1], [0.1, 0.05]]
    result = roar.racu([[0.5, 0.4], [0.1, 0.1], [0.1, 0.1]], random, [0, 1], total=[0.1, 0.1, 0.1])
    assert np.isnan(result).tolist() == [False, True, True]


def test_diff_roar_takes_all_pairs_of_runs():
    most, least = np.array([[0.5, 0.2], [0.4, 0.1]]), np.array([[0.9, 0.8], [0.7, 0.6], [0.6, 0.5]])
    pairs = roar.diff_roar(most, least)
    assert pairs.shape == (6, 2)
    np.testing.assert_allclose(sorted(pairs[:, 0]), sorted(b - a for a in (0.5, 0.4) for b in (0.9, 0.7, 0.6)))
    np.testing.assert_allclose(pairs.mean(axis=0), least.mean(axis=0) - most.mean(axis=0))


# --- the two-level bootstrap


def difference(a, b, seed=0, **options):
    return roar.correctness_difference(a, b, np.random.default_rng(seed), **({"resamples": 3000} | options))


def test_only_images_vary_when_all_runs_agree():
    # Known truth: a mean of n coin flips, whose standard error is 0.5 / sqrt(n).
    a = np.tile(np.arange(400) % 2, (5, 1))
    mean, low, high = difference(a, np.zeros_like(a))
    assert mean == 0.5
    np.testing.assert_allclose([low, high], 0.5 + 1.96 * np.array([-1, 1]) * 0.5 / 20, atol=0.005)


def test_only_runs_vary_when_all_images_agree():
    a = np.repeat([[1], [1], [0], [0], [0], [0]], 300, axis=1)
    _, low, high = difference(a, np.zeros_like(a), level=0.9)
    # The share of ones among six draws with probability 1/3: 5 % and 95 % quantiles of the binomial, over six.
    np.testing.assert_allclose([low, high], [0, 4 / 6])


def test_methods_are_compared_on_the_same_images_and_runs():
    rng = np.random.default_rng(0)
    b = rng.random((4, 500)) < 0.5
    assert difference(b, b) == (0, 0, 0)
    # Right on one image more in every run: resampled apart, the interval would be as wide as that of 500 coins.
    a = b.copy()
    a[:, np.flatnonzero(~b.any(axis=0))[:5]] = True
    mean, low, high = difference(a, b)
    np.testing.assert_allclose(mean, 0.01)
    assert 0 <= low < 0.01 < high < 0.025


def test_fractions_share_their_resamples():
    rng = np.random.default_rng(1)
    a, b = rng.random((2, 3, 2, 60)) < 0.6
    together = difference(a, b, resamples=200)
    for step in range(2):
        alone = difference(a[:, step], b[:, step], resamples=200)
        np.testing.assert_allclose([end[step] for end in together], alone, atol=1e-12)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: roar.area_to_random([0.5, 0.4], [0.5, 0.4], [0.1, 0.5]), "must begin with 0"),
        (lambda: roar.racu([0.5, 0.4], [0.5, 0.4], [0, 0.9]), "total: the accuracy at total removal is needed"),
        (lambda: difference(np.ones((2, 5)), np.ones((3, 5))), r"shapes \(2, 5\), \(3, 5\)"),
        (lambda: difference(np.full((2, 5), np.nan), np.ones((2, 5))), "a value is missing"),
    ],
)
def test_messages(call, message):
    with pytest.raises(InputError, match=message):
        call()
