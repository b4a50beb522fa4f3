"""Summaries of scores: of the images that were used, and of pairs of images that both methods have."""

import math

import numpy as np
import pytest

from heatproof.metrics import faithfulness
from heatproof.metrics.score import Pooled, Scored
from heatproof.stages import evaluate


def share(hits):
    """Share of hits, pooled; NaN where an image is not used."""

    def statistic(total):
        with np.errstate(invalid="ignore"):
            return total[:, 0] / total[:, 1]

    hits = np.asarray(hits, dtype=np.float64)
    return Pooled("share", np.stack([np.nan_to_num(hits), np.isfinite(hits)], axis=1), statistic)


def test_a_pooled_score_counts_the_images_that_add_something():
    summary, difference = evaluate.pooled(share([1, 0, np.nan, np.nan, 1]), None, seed=0)
    assert (summary.n, summary.n_undefined) == (3, 2)
    assert summary.mean == pytest.approx(2 / 3)
    assert difference == evaluate.NO_DIFFERENCE


def test_an_image_that_is_used_and_scores_nothing_counts():
    summary, _ = evaluate.pooled(share([0, 0, 0]), None, seed=0)
    assert (summary.n, summary.n_undefined, summary.mean) == (3, 0, 0)


def test_two_pooled_scores_are_compared_on_the_images_of_both():
    # On images 1 and 2, which both use, the scores are equal; on all of their own they are not.
    mine, other = share([1, 1, 0, np.nan, 0]), share([np.nan, 1, 0, 1, np.nan])
    _, (n, difference, low, high, _) = evaluate.pooled(mine, other, seed=0)
    assert (n, difference, low, high) == (2, 0, 0, 0)


def test_the_interval_leaves_out_resamples_without_any_used_image():
    hits = [1, 0] + [np.nan] * 14  # one resample in nine holds neither
    summary, _ = evaluate.pooled(share(hits), None, seed=0)
    assert (summary.low, summary.high) == (0, 1)
    assert math.isfinite(summary.sd)


def test_a_pooled_score_of_no_image_is_undefined():
    score = share([np.nan] * 3)
    summary, (n, *numbers, _) = evaluate.pooled(score, score, seed=0)
    assert (summary.n, summary.n_undefined, n) == (0, 3, 0)
    assert np.isnan([summary.mean, summary.sd, summary.low, summary.high, *numbers]).all()


def test_sensitivity_n_counts_the_images_with_a_defined_map_even_the_first():
    sums, drops = np.array([[0.0], [np.nan], [2.0], [3.0]]), np.array([[0.0], [1.0], [2.0], [np.nan]])
    score = Pooled("sensitivity_n", faithfulness.moments(sums, drops), faithfulness.sensitivity_n)
    assert score.used.tolist() == [True, False, True, False]


def test_a_difference_of_means_says_how_many_pairs_it_rests_on():
    mine, random = Scored("hit", np.array([1.0, 2.0, np.nan, 4.0])), Scored("hit", np.array([0.0, np.nan, 3.0, 1.0]))
    [(_, summary, difference)] = evaluate._summaries([mine], {("hit", ""): random}, seed=0)
    assert (summary.n, summary.n_undefined) == (3, 1)
    assert difference[:2] == (2, 2.0)  # of images 0 and 3
    assert len(difference) == len(evaluate.NO_DIFFERENCE)
