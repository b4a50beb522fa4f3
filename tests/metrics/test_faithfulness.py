import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import stats

from heatproof.errors import InputError
from heatproof.metrics import faithfulness
from tests.metrics.alone import check_rows_alone, public

# Each takes two tables (N, 12) and gives one value, or one row, for each image.
BY_ROW = {
    "sum_in_steps": lambda a, b: faithfulness.sum_in_steps(a.reshape(-1, 3, 4), ranks_of(b), [0, 2, 7, 10]),
    "sum_in_subsets": lambda a, b: faithfulness.sum_in_subsets(a, np.stack([b > 0, b > 0.5], axis=1)),
    "sum_in_patches": lambda a, b: faithfulness.sum_in_patches(a.reshape(-1, 3, 4), np.arange(12).reshape(3, 4) % 5),
    "correlation": faithfulness.correlation,
    "monotonicity_correlation": lambda a, b: faithfulness.monotonicity_correlation(
        a, b[:, 0], np.stack([b, a + b], axis=2)
    ),
    "infidelity": faithfulness.infidelity,
    "monotonicity": lambda a, b: faithfulness.monotonicity(np.sort(a, axis=1) + (b > 2)),
}
# Over all images together, on purpose; each has its own tests.
JOINTLY = {"moments", "correlation_of_moments", "sensitivity_n"}
per_metric = pytest.mark.parametrize("metric", BY_ROW.values(), ids=BY_ROW)
TABLES = hnp.arrays(np.float64, (4, 6), elements=st.floats(-5, 5).map(lambda value: round(value, 3)))


def ranks_of(values):
    return values.argsort(axis=1).argsort(axis=1).reshape(-1, 3, 4)


def tables():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 8, 12))
    a[2] = 0.3  # nothing is claimed
    a[3, 1], b[5, 4] = np.nan, np.nan
    return a, b


def pixels_of(rng, images=6):
    """A linear classifier f(x) = sum(w * x) of 5 x 5 pixels, and its right map w * x."""
    weights, images = rng.normal(size=(5, 5)), rng.normal(size=(images, 5, 5))
    return images * weights


@per_metric
def test_a_row_is_scored_alone_in_any_order_and_stays_untouched(metric):
    check_rows_alone(metric, *tables())


@per_metric
def test_results_are_float64_also_of_float32(metric):
    a, b = tables()
    result = metric(a.astype(np.float32), b.astype(np.float32))
    assert result.dtype == np.float64
    np.testing.assert_allclose(result, metric(a, b), rtol=1e-4, atol=1e-5)


@per_metric
def test_no_image_gives_no_score(metric):
    a, b = tables()
    assert len(metric(a[:0], b[:0])) == 0


def test_no_function_is_left_out():
    assert public(faithfulness) == BY_ROW.keys() | JOINTLY


# --- a linear classifier, whose right map is known: weight times pixel


def test_the_right_map_of_a_linear_classifier_is_perfect_and_its_reverse_the_opposite():
    rng = np.random.default_rng(0)
    maps = pixels_of(rng)
    subsets = rng.random((6, 30, 5, 5)) < 0.3
    drops = (maps[:, None] * subsets).sum(axis=(2, 3))  # what f loses when the pixels become 0
    claims = faithfulness.sum_in_subsets(maps, subsets)
    np.testing.assert_allclose(faithfulness.correlation(claims, drops), 1)
    np.testing.assert_allclose(faithfulness.correlation(-claims, drops), -1)
    np.testing.assert_allclose(faithfulness.infidelity(claims, drops, scaled=False), 0, atol=1e-12)
    np.testing.assert_allclose(faithfulness.infidelity(3 * claims, drops), 0, atol=1e-12)
    mean_squares = (drops**2).mean(axis=1)
    np.testing.assert_allclose(faithfulness.infidelity(3 * claims, drops, scaled=False), 4 * mean_squares)
    np.testing.assert_array_equal(faithfulness.infidelity(-claims, drops), mean_squares)
    np.testing.assert_array_equal(faithfulness.infidelity(0 * claims, drops), mean_squares)


def test_a_random_map_claims_nothing_on_average():
    rng = np.random.default_rng(0)
    drops, claims = rng.normal(size=(2, 4000, 40))
    correlations = faithfulness.correlation(claims, drops)
    assert abs(correlations.mean()) < 3 / np.sqrt(4000 * 40)
    assert (np.abs(correlations) < 1).all()


def test_over_images_the_right_maps_are_right_at_every_step():
    rng = np.random.default_rng(1)
    steps = pixels_of(rng, 9).reshape(9, -1).cumsum(axis=1)
    totals = faithfulness.moments(steps, steps).sum(axis=0)[None]
    np.testing.assert_allclose(faithfulness.correlation_of_moments(totals), 1)
    np.testing.assert_allclose(faithfulness.sensitivity_n(totals), 1)
    reverse = faithfulness.moments(-steps, steps).sum(axis=0)[None]
    np.testing.assert_allclose(faithfulness.sensitivity_n(reverse), -1)


def test_adding_what_speaks_for_the_class_lets_the_score_rise():
    contributions = np.sort(np.abs(pixels_of(np.random.default_rng(2)).reshape(6, -1)), axis=1)
    rising = contributions.cumsum(axis=1)
    np.testing.assert_array_equal(faithfulness.monotonicity(rising), 1)
    np.testing.assert_array_equal(faithfulness.monotonicity(-rising), 0)


def test_a_fall_within_the_tolerance_is_no_fall():
    curve = [[0.1, 0.5, 0.499]]
    assert faithfulness.monotonicity(curve) == 0
    assert faithfulness.monotonicity(curve, tolerance=0.01) == 1
    assert np.isnan(faithfulness.monotonicity([[0.1, np.nan, 0.2]]))


def test_the_movement_of_a_step_has_no_sign():
    # Steps that move the score by 1, -2 and 3 of an intact score of 2.
    filled = 2 - np.array([[[1.0], [-2.0], [3.0]]])
    np.testing.assert_allclose(faithfulness.monotonicity_correlation([[1.0, 2.0, 3.0]], [2.0], filled), 1)
    np.testing.assert_allclose(faithfulness.monotonicity_correlation([[1.0, -2.0, 3.0]], [2.0], filled), 0.5)
    assert np.isnan(faithfulness.monotonicity_correlation([[1.0, 2.0, 3.0]], [0.0], filled))
    assert np.isnan(faithfulness.monotonicity_correlation([[1.0, 1.0, 1.0]], [2.0], filled))


# --- what is undefined


def test_equal_values_give_no_correlation_also_after_rounding():
    drops = np.random.default_rng(0).random((1, 50))
    rounded = np.full((1, 50), 0.1) + np.random.default_rng(1).normal(size=(1, 50)) * 1e-16
    assert np.ptp(rounded) > 0
    for claims in (rounded, np.zeros((1, 50)), 1e6 * rounded):
        assert np.isnan(faithfulness.correlation(claims, drops)).all()
        assert np.isnan(faithfulness.correlation(drops, claims)).all()
    assert not np.isnan(faithfulness.correlation(rounded + 1e-6 * drops, drops)).any()


def test_over_images_equal_claims_are_undefined_and_undefined_images_left_out():
    rng = np.random.default_rng(0)
    sums, drops = rng.random((2, 7, 3))
    sums[:, 1] = 0.1 + rng.normal(size=7) * 1e-16
    sums[4, 0], drops[5, 2] = np.nan, np.nan
    steps = faithfulness.correlation_of_moments(faithfulness.moments(sums, drops).sum(axis=0)[None])[0]
    assert np.isnan(steps[1])
    np.testing.assert_allclose(steps[0], stats.pearsonr(*np.delete([sums[:, 0], drops[:, 0]], 4, axis=1))[0])
    np.testing.assert_allclose(steps[2], stats.pearsonr(*np.delete([sums[:, 2], drops[:, 2]], 5, axis=1))[0])
    totals = faithfulness.moments(sums, drops).sum(axis=0)[None]
    np.testing.assert_allclose(faithfulness.sensitivity_n(totals), np.nanmean(steps))
    # A resample that holds one image again and again.
    assert np.isnan(faithfulness.sensitivity_n(7 * faithfulness.moments(sums, drops)[2][None])).all()


# --- properties


@given(TABLES, TABLES, st.floats(0.1, 10), st.floats(-3, 3))
@settings(max_examples=30, deadline=None)
def test_a_positive_factor_and_a_constant_change_no_correlation(sums, drops, factor, constant):
    expected = faithfulness.correlation(sums, drops)
    np.testing.assert_allclose(faithfulness.correlation(factor * sums + constant, drops), expected, atol=1e-9)
    np.testing.assert_allclose(faithfulness.correlation(sums, factor * drops + constant), expected, atol=1e-9)
    np.testing.assert_allclose(faithfulness.correlation(-sums, drops), -expected, atol=1e-9)
    for row, (x, y) in enumerate(zip(sums, drops, strict=True)):
        if np.isfinite(expected[row]):
            np.testing.assert_allclose(expected[row], stats.pearsonr(x, y)[0], atol=1e-9)


@given(TABLES, TABLES)
@settings(max_examples=30, deadline=None)
def test_no_factor_serves_infidelity_better_than_the_chosen_one(claims, drops):
    best = faithfulness.infidelity(claims, drops)
    for factor in (0.0, 0.1, 0.5, 1.0, 2.0, 7.0):
        raw = faithfulness.infidelity(factor * claims, drops, scaled=False)
        assert (best <= raw + 1e-9).all()
    np.testing.assert_allclose(faithfulness.infidelity(5 * claims, drops), best, atol=1e-9)


@given(TABLES, TABLES)
@settings(max_examples=30, deadline=None)
def test_sums_over_images_give_pearson_at_each_step(sums, drops):
    steps = faithfulness.correlation_of_moments(faithfulness.moments(sums, drops).sum(axis=0)[None])[0]
    expected = faithfulness.correlation(sums.T, drops.T)
    np.testing.assert_allclose(steps, expected, atol=1e-6)


def test_sums_of_steps_and_patches_leave_nothing_out():
    a, b = tables()
    maps = np.nan_to_num(a).reshape(-1, 3, 4)
    steps = faithfulness.sum_in_steps(maps, ranks_of(np.nan_to_num(b)), [0, 1, 5, 12])
    np.testing.assert_allclose(steps.sum(axis=1), maps.sum(axis=(1, 2)))
    patches = np.array([[0, 0, 1, 1], [0, 0, 1, 1], [2, 2, 3, 3]])
    sums = faithfulness.sum_in_patches(maps, patches)
    np.testing.assert_allclose(sums[:, 3], maps[:, 2, 2:].sum(axis=1))
    np.testing.assert_allclose(sums.sum(axis=1), maps.sum(axis=(1, 2)))
    # Steps may begin behind the first pixel.
    later = faithfulness.sum_in_steps(maps, ranks_of(np.nan_to_num(b)), [1, 5])
    np.testing.assert_array_equal(later[:, 0], steps[:, 1])


# --- messages


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: faithfulness.correlation([[1, 2]], [[1, 2, 3]]), r"drops: shape \(1, 3\) beside sums \(1, 2\)"),
        (lambda: faithfulness.infidelity([1, 2], [1, 2]), r"expected \(N, R\) of both"),
        (lambda: faithfulness.monotonicity([[1]]), r"curve: shape \(1, 1\); expected \(N, S\) with at least two"),
        (
            lambda: faithfulness.sum_in_steps(np.ones((1, 2, 2)), np.ones((1, 2, 3), int), [0, 1]),
            r"ranks: shape \(1, 2, 3\); expected that of the maps",
        ),
        (
            lambda: faithfulness.sum_in_steps(np.ones((1, 2, 2)), np.ones((1, 2, 2), int), [0, 5]),
            r"cuts: \[0, 5\] must grow, from 0 to 4 at most",
        ),
        (
            lambda: faithfulness.sum_in_subsets(np.ones((1, 2, 2)), np.ones((1, 2, 2), bool)),
            r"subsets: shape \(1, 2, 2\); expected \(N, R, ...\)",
        ),
        (
            lambda: faithfulness.monotonicity_correlation([[1, 2]], [1], np.ones((1, 3, 2))),
            r"sums: shape \(1, 2\)",
        ),
    ],
)
def test_messages(call, message):
    with pytest.raises(InputError, match=message):
        call()
