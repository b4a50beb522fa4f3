import numpy as np
import pytest
from scipy import stats

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


# --- what the masks tell


def answers(right, images, runs=1):
    """Runs (R, 1, N) that are right on the first images."""
    return np.tile(np.arange(images) < right, (runs, 1, 1))


def test_chance_is_the_most_frequent_class():
    assert roar.chance_level([3, 3, 0, 3, 1, 2, 0, 1]) == 3 / 8
    assert np.isnan(roar.chance_level([]))


def test_one_run_is_judged_by_the_exact_binomial_test():
    # Known truth: SciPy's own test and interval of 40 right answers in 100 at a chance of 1/4.
    found = roar.mask_leakage(answers(40, 100), chance=0.25)
    exact = stats.binomtest(40, 100, 0.25, alternative="greater")
    both_sides = stats.binomtest(40, 100).proportion_ci(0.95, method="exact")
    np.testing.assert_allclose(found.p, exact.pvalue)
    np.testing.assert_allclose((found.images_low[0], found.images_high[0]), both_sides)
    assert found.is_flagged
    assert np.isnan([found.runs_low, found.runs_high]).all()


@pytest.mark.parametrize("right", [0, 100])
def test_intervals_over_images_end_at_0_and_1(right):
    found = roar.mask_leakage(answers(right, 100), chance=0.25)
    assert (found.images_low[0], found.images_high[0])[right // 100] == right / 100
    assert found.is_flagged == (right == 100)


def test_from_three_runs_on_the_runs_have_to_agree():
    # 0.9, 0.1 and 0.1 mean 0.367: above 0.25 for 3,000 images, but not for three runs.
    uneven = np.concatenate([answers(900, 1000), answers(100, 1000), answers(100, 1000)])
    found = roar.mask_leakage(uneven, chance=0.25)
    assert found.images_low > 0.25 > found.runs_low
    assert found.is_flagged is False
    np.testing.assert_allclose(found.p, stats.ttest_1samp([0.9, 0.1, 0.1], 0.25, alternative="greater").pvalue)
    even = np.concatenate([answers(right, 1000) for right in (367, 360, 370)])
    assert roar.mask_leakage(even, chance=0.25).is_flagged is True


def test_runs_that_agree_to_the_last_image_have_no_spread_to_divide_by():
    assert roar.mask_leakage(answers(400, 1000, runs=3), chance=0.25).is_flagged is True
    assert roar.mask_leakage(answers(250, 1000, runs=3), chance=0.25).is_flagged is False


def test_one_fraction_among_many_is_not_flagged_by_luck():
    # Right on 34 of 100 at a chance of 1/4 has p = 0.028: enough alone, not once in ten.
    lucky, usual = answers(34, 100), answers(25, 100)
    assert roar.mask_leakage(lucky, chance=0.25).is_flagged is True
    many = np.concatenate([lucky, *[usual] * 9], axis=1)
    assert roar.mask_leakage(many, chance=0.25).is_flagged is False


def test_networks_that_guess_are_rarely_flagged():
    # Known truth: 500 experiments without any leak at a level of 5 %.
    rng = np.random.default_rng(0)
    flags = [roar.mask_leakage(rng.random((3, 2, 200)) < 0.25, chance=0.25).is_flagged for _ in range(500)]
    assert np.mean(flags) < 0.05


def test_nothing_is_testable_without_runs_or_images():
    for shape in [(0, 2, 10), (3, 2, 0)]:
        found = roar.mask_leakage(np.zeros(shape), chance=0.25)
        assert found.is_flagged is None
        assert np.isnan(found.p).all()
        assert found.p.shape == (2,)


# --- the two orders


def test_orders_agree_when_what_is_lowest_in_roar_is_highest_in_kar():
    most = np.array([[0.2, 0.2, 0.2], [0.5, 0.5, 0.5], [0.7, 0.7, 0.7], [0.9, 0.9, 0.9]])
    # The same ranking; the opposite; the two best exchanged: one of six pairs discords, d2 = 2.
    least = np.stack([1 - most[:, 0], most[:, 1], [0.8, 0.9, 0.3, 0.1]], axis=1)
    found = roar.order_agreement(most, least)
    np.testing.assert_allclose(found.kendall, [1, -1, 4 / 6])
    np.testing.assert_allclose(found.spearman, [1, -1, 1 - 6 * 2 / (4 * 15)])


def test_two_methods_have_no_rank_correlation():
    most, least = np.array([[0.1], [0.2], [np.nan]]), np.array([[0.9], [0.8], [0.7]])
    assert np.isnan(roar.order_agreement(most, least).kendall).all()
    assert np.isnan(roar.order_agreement(most[:2], least[:2]).spearman).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: roar.area_to_random([0.5, 0.4], [0.5, 0.4], [0.1, 0.5]), "must begin with 0"),
        (lambda: roar.racu([0.5, 0.4], [0.5, 0.4], [0, 0.9]), "total: the accuracy at total removal is needed"),
        (lambda: difference(np.ones((2, 5)), np.ones((3, 5))), r"shapes \(2, 5\), \(3, 5\)"),
        (lambda: difference(np.full((2, 5), np.nan), np.ones((2, 5))), "a value is missing"),
        (lambda: roar.mask_leakage(np.ones((2, 5)), 0.25), r"shape \(2, 5\); expected \(runs, fractions, images\)"),
        (lambda: roar.mask_leakage(np.full((1, 1, 5), 0.5), 0.25), "of 0 and 1"),
        (lambda: roar.mask_leakage(np.ones((1, 1, 5)), 25), "chance: 25 must lie between 0 and 1"),
        (lambda: roar.order_agreement(np.ones((3, 2)), np.ones((2, 2))), r"shapes \(3, 2\), \(2, 2\)"),
    ],
)
def test_messages(call, message):
    with pytest.raises(InputError, match=message):
        call()
