"""Areas of insertion and deletion: golden vectors, known truth, properties of all functions at once."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from heatproof import removal
from heatproof.errors import InputError
from heatproof.metrics import insertion_deletion
from heatproof.metrics.insertion_deletion import (
    gradmask_deletion_auc,
    gradmask_insertion_auc,
    insertion_deletion_auc,
    insertion_minus_deletion,
    normalised,
)
from tests.metrics.alone import check_rows_alone, public

PERCENTAGES = [1, 5, 10, 20, 30, 40, 50, 60, 70, 80, 90, 100]
# Each takes two tables of scores (N, 12) and gives one number, or one row, for each row.
BY_ROW = {
    "insertion_deletion_auc": lambda a, b: insertion_deletion_auc(a),
    "insertion_minus_deletion": insertion_minus_deletion,
    "normalised": lambda a, b: normalised(a, b[:, 0])[:, 5],
    "gradmask_insertion_auc": lambda a, b: gradmask_insertion_auc(a, PERCENTAGES),
    "gradmask_deletion_auc": lambda a, b: gradmask_deletion_auc(a, PERCENTAGES),
}
per_metric = pytest.mark.parametrize("metric", BY_ROW.values(), ids=BY_ROW)


def test_the_area_is_rises():
    data = dict(np.load(Path(__file__).parents[1] / "golden" / "metrics" / "rise_causal.npz"))
    np.testing.assert_allclose(insertion_deletion_auc(data["auc_probe_in"]), data["auc_probe_out"], atol=1e-9)
    curves = [name for name in data if name.startswith(("del_", "ins_"))]
    assert len(curves) == 8
    for name in curves:
        np.testing.assert_allclose(insertion_deletion_auc(data[name]), data[f"auc_{name}"], atol=1e-9)


# --- known truth: the logit of class 1 is the mean of a known patch


class PatchModel(torch.nn.Module):
    """Logit 1 is ten times the mean of the patch's pixels, logit 0 is 5: the patch is all that counts."""

    def __init__(self, patch):
        super().__init__()
        self.patch = patch

    def forward(self, images):
        brightness = (images * self.patch).sum(dim=(1, 2, 3)) / self.patch.sum()
        return torch.stack((torch.full_like(brightness, 5.0), 10 * brightness), dim=1)


def curves_of(maps, patch):
    """Insertion and deletion curves of white images, from and to black."""
    size = maps.shape[1:]
    ranks = removal.rank_tensor(removal.ranks(removal.orders(maps), size))
    scores = removal.degraded_scores(
        PatchModel(patch).eval(),
        torch.ones(len(maps), 1, *size),
        ranks,
        torch.ones(len(maps), dtype=torch.int64),
        normalize=lambda pixels: pixels,
        fractions=np.arange(1, 17) / 16,
        fill=removal.Black(),
    ).probability
    return scores[:, 1, ::-1], scores[:, 0]


def test_the_right_map_is_best_and_its_reverse_is_worst():
    patch = torch.zeros(8, 8)
    patch[2:6, 2:6] = 1  # a quarter of the image
    right = patch.numpy()[None]
    noise = np.random.default_rng(0).random((20, 8, 8))
    insertion, deletion = (insertion_deletion_auc(curve) for curve in curves_of(right, patch))
    # After a quarter of the steps all is there, or gone; until then the probability goes from near 0 to near 1.
    assert insertion > 0.8
    assert deletion < 0.2
    random_insertion, random_deletion = (insertion_deletion_auc(curve) for curve in curves_of(noise, patch))
    wrong_insertion, wrong_deletion = (insertion_deletion_auc(curve) for curve in curves_of(-right, patch))
    assert wrong_insertion < random_insertion.min() < random_insertion.max() < insertion
    assert deletion < random_deletion.min() < random_deletion.max() < wrong_deletion
    np.testing.assert_allclose(insertion_minus_deletion(*curves_of(right, patch)), insertion - deletion)


def test_a_curve_worked_by_hand():
    # One of two pixels is shown: half the patch, logit 5 against 5. All: 10 against 5. None: 0 against 5.
    patch = torch.ones(4, 4)
    insertion, deletion = curves_of(np.arange(16.0).reshape(1, 4, 4), patch)
    expected = 1 / (1 + np.exp(5 - 10 * np.arange(17) / 16))
    np.testing.assert_allclose(insertion[0], expected, atol=1e-7)
    np.testing.assert_allclose(deletion[0], expected[::-1], atol=1e-7)
    np.testing.assert_allclose(insertion_deletion_auc(insertion), 0.5, atol=1e-7)  # the curve is symmetric


# --- properties


@given(st.lists(st.floats(0, 1), min_size=2, max_size=40))
def test_the_area_lies_between_the_scores_and_does_not_know_the_direction(scores):
    area = insertion_deletion_auc([scores])
    assert min(scores) - 1e-12 <= area <= max(scores) + 1e-12
    np.testing.assert_allclose(insertion_deletion_auc([scores[::-1]]), area, atol=1e-12)


@given(st.lists(st.floats(0, 1), min_size=12, max_size=12))
def test_gradmasks_areas_are_ours_but_for_their_faults(scores):
    insertion, deletion = gradmask_insertion_auc([scores], PERCENTAGES), gradmask_deletion_auc([scores], PERCENTAGES)
    # A triangle stands where the first percent of the deletion curve should.
    np.testing.assert_allclose(deletion - insertion, scores[0] / 2, atol=1e-9)


def test_a_flat_curve_scores_its_constant():
    flat = np.full((2, 12), 0.25)
    np.testing.assert_array_equal(insertion_deletion_auc(flat), 0.25)
    np.testing.assert_array_equal(insertion_minus_deletion(flat, flat), 0)
    np.testing.assert_array_equal(normalised(flat, [0.25, 0.5]), [[1.0] * 12, [0.5] * 12])
    np.testing.assert_allclose(gradmask_insertion_auc(flat, PERCENTAGES), 0.25 * 99)


def test_an_untouched_image_of_score_zero_has_no_normalised_score():
    assert np.isnan(normalised([[0.5, 0.0]], [0.0])).all()


def tables():
    a, b = np.random.default_rng(0).random((2, 8, 12))
    a[3, 5], b[5, 0] = np.nan, np.nan
    return a, b


@per_metric
def test_an_image_is_scored_alone_in_any_order_and_its_scores_stay_untouched(metric):
    assert check_rows_alone(metric, *tables()).dtype == np.float64


@per_metric
def test_an_undefined_score_makes_its_image_undefined_and_no_other(metric):
    a, b = tables()
    undefined = np.isnan(metric(a, b))
    assert undefined[3]
    assert not undefined[[0, 1, 2, 4, 6, 7]].any()


def test_no_function_is_left_out():
    assert public(insertion_deletion) == BY_ROW.keys()


def test_one_score_is_no_curve():
    with pytest.raises(InputError, match=r"scores: shape \(3, 1\); expected"):
        insertion_deletion_auc(np.zeros((3, 1)))
