"""ROAD: known truth, and properties of all functions at once. The authors' benchmark: tests/removal/test_road_benchmark.py."""

import numpy as np
import pytest
import torch

from heatproof import removal
from heatproof.errors import InputError
from heatproof.metrics import road
from heatproof.metrics.road import accuracy, consistency, lerf_minus_morf
from tests.metrics.alone import check_rows_alone, public

# Each takes two tables of scores (N, S) and gives one number for each row.
BY_ROW = {
    "accuracy": lambda a, b: accuracy(a.argsort(axis=1), b.argmax(axis=1))[:, 2],
    "lerf_minus_morf": lerf_minus_morf,
    "consistency": consistency,
}
per_metric = pytest.mark.parametrize("metric", BY_ROW.values(), ids=BY_ROW)


# --- known truth


class PatchModel(torch.nn.Module):
    """Logit 1 is ten times the contrast of the patch to the rest, logit 0 is 5."""

    def __init__(self, patch):
        super().__init__()
        self.patch = patch

    def forward(self, images):
        inside = (images * self.patch).sum(dim=(1, 2, 3)) / self.patch.sum()
        outside = (images * (1 - self.patch)).sum(dim=(1, 2, 3)) / (1 - self.patch).sum()
        return torch.stack((torch.full_like(inside, 5.0), 10 * (inside - outside)), dim=1)


def test_the_right_map_beats_random_and_its_reverse_loses():
    patch = torch.zeros(12, 12)
    patch[3:8, 4:9] = 1
    noise = np.random.default_rng(0).random((30, 12, 12))
    maps = np.concatenate((patch.numpy()[None], -patch.numpy()[None], noise))
    scores = removal.degraded_scores(
        PatchModel(patch).eval(),
        patch.expand(len(maps), 1, 12, 12),
        removal.ranks(removal.orders(maps), (12, 12)),
        np.ones(len(maps), dtype=np.int64),
        normalize=lambda pixels: pixels,
        fractions=(0.2, 0.4),
        fill=removal.NoisyLinear((0.5,), noise=0.0),
    )
    road_scores = lerf_minus_morf(scores.probability[:, 0, 1:], scores.probability[:, 1, 1:])
    assert road_scores[1] < road_scores[2:].min() < road_scores[2:].max() < road_scores[0]
    # What is imputed from around the patch shows nothing of it, so that the right map's MoRF loses the class.
    right = accuracy(scores.prediction, np.ones(len(maps), dtype=np.int64))
    np.testing.assert_array_equal(right[0], [[1, 0, 0], [1, 1, 1]])


def test_two_orders_that_agree_and_two_that_do_not():
    morf = np.array([[0.1, 0.5, 0.3, 0.9], [0.1, 0.2, 0.3, 0.4]])
    lerf = np.array([[0.9, 0.5, 0.7, 0.1], [0.1, 0.2, 0.3, 0.4]])
    np.testing.assert_allclose(consistency(morf, lerf), [1, -1])


def test_rankings_of_two_methods_or_of_equal_ones_are_not_compared():
    nan = np.nan
    assert np.isnan(consistency([0.1, 0.2], [0.2, 0.1]))
    assert np.isnan(consistency([0.1, 0.2, nan, 0.4], [0.2, nan, 0.1, 0.3]))
    assert np.isnan(consistency([0.5, 0.5, 0.5], [0.2, 0.1, 0.3]))
    np.testing.assert_allclose(consistency([0.1, 0.2, nan, 0.4], [0.5, 0.4, 0.1, 0.3]), 1)


# --- properties


def tables():
    a, b = np.random.default_rng(0).random((2, 8, 5))
    return a, b


@per_metric
def test_a_row_is_scored_alone_in_any_order_and_stays_untouched(metric):
    assert check_rows_alone(metric, *tables()).dtype == np.float64


def test_an_undefined_score_makes_its_image_undefined_and_no_other():
    a, b = tables()
    a[3, 1] = np.nan
    np.testing.assert_array_equal(np.isnan(lerf_minus_morf(a, b)), np.arange(8) == 3)


def test_swapped_orders_turn_the_sign():
    a, b = tables()
    np.testing.assert_array_equal(lerf_minus_morf(a, b), -lerf_minus_morf(b, a))


def test_no_function_is_left_out():
    assert public(road) == BY_ROW.keys()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: accuracy(np.zeros((3, 2)), np.zeros(2)), r"classes: shape \(2,\); expected \(3,\)"),
        (lambda: lerf_minus_morf(np.zeros((3, 2)), np.zeros((3, 3))), r"shapes \(3, 2\) and \(3, 3\)"),
        (lambda: consistency(np.zeros(3), np.zeros(4)), r"shapes \(3,\) and \(4,\)"),
    ],
)
def test_messages(call, message):
    with pytest.raises(InputError, match=message):
        call()
