import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from heatproof.errors import InputError
from heatproof.metrics import perturbation

CURVES = hnp.arrays(np.float64, st.tuples(st.integers(1, 4), st.integers(2, 9)), elements=st.floats(-5, 5))


def test_area_weighs_steps_by_their_width():
    # By hand: trapezoids of widths 1 and 3 over heights 1, 3, 0, divided by the range 4.
    np.testing.assert_allclose(perturbation.area([1.0, 3.0, 0.0], [2.0, 3.0, 6.0]), (2.0 + 4.5) / 4)


@given(CURVES, st.floats(0.1, 10), st.floats(-3, 3))
@settings(max_examples=30, deadline=None)
def test_area_is_a_mean_height(curve, width, start):
    x = start + width * np.arange(curve.shape[1])
    areas = perturbation.area(curve, x)
    np.testing.assert_allclose(perturbation.area(curve + 1.5, x), areas + 1.5, atol=1e-9)
    np.testing.assert_allclose(perturbation.area(curve, 7 * x), areas, atol=1e-9)
    np.testing.assert_allclose(perturbation.area(curve[:, ::-1], x), areas, atol=1e-9)


def test_area_of_a_straight_line_does_not_depend_on_the_steps():
    for x in ([0.0, 1.0], [0.0, 0.1, 0.2, 1.0], np.linspace(0, 1, 50)):
        np.testing.assert_allclose(perturbation.area(3 - 2 * np.asarray(x), x), 2.0)


def test_aopc_counts_the_untouched_image_as_a_step():
    np.testing.assert_allclose(perturbation.aopc([[0.9, 0.5, 0.25, 0.1]]), (0.4 + 0.65 + 0.8) / 4)
    np.testing.assert_allclose(perturbation.aopc([[0.2, 0.6]]), -0.2)


@given(CURVES)
@settings(max_examples=30, deadline=None)
def test_abpc_changes_its_sign_with_the_ends(curve):
    other = curve[:, ::-1] + (curve[:, :1] - curve[:, -1:])  # the same start
    np.testing.assert_allclose(perturbation.abpc(curve, other), -perturbation.abpc(other, curve), atol=1e-9)
    np.testing.assert_allclose(perturbation.abpc(curve, other), (other - curve).mean(axis=1), atol=1e-9)


def test_deviation_is_relative_and_blind_to_the_direction():
    p0 = [0.8, 0.1]
    p = [[0.6, 1.0], [0.05, 0.3]]
    np.testing.assert_allclose(perturbation.deviation(p0, p), [[25, 25], [50, 200]])
    np.testing.assert_allclose(perturbation.signed_deviation(p0, p), [[25, -25], [50, -200]])
    np.testing.assert_allclose(perturbation.drop(p0, p), [[0.2, -0.2], [0.05, -0.2]])


def test_deviation_of_a_probability_of_zero_is_undefined():
    np.testing.assert_array_equal(perturbation.deviation([0.0, 0.5], [0.5, 0.5]), [np.nan, 0])
    np.testing.assert_array_equal(perturbation.signed_deviation([0.0], [0.0]), [np.nan])


def test_an_undefined_score_stays_undefined():
    curve = np.array([[0.5, np.nan, 0.1], [0.5, 0.3, 0.1]])
    for result in (
        perturbation.area(curve, [0, 1, 2]),
        perturbation.aopc(curve),
        perturbation.abpc(curve[::-1], curve),
    ):
        assert np.isnan(result).tolist()[0]
    assert not np.isnan(perturbation.aopc(curve)[1])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: perturbation.area([[1, 2, 3]], [0, 1]), r"x: shape \(2,\); expected one value"),
        (lambda: perturbation.area([[1, 2]], [1, 1]), r"x: \[1.0, 1.0\] must grow"),
        (lambda: perturbation.area([[1]], [0]), r"x: shape \(1,\)"),
        (lambda: perturbation.deviation([1, 2, 3], [[1, 2, 3]]), r"p0: shape \(3,\) does not lead the shape \(1, 3\)"),
    ],
)
def test_messages(call, message):
    with pytest.raises(InputError, match=message):
        call()
