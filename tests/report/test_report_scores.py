"""Scores of known results: areas by hand, intervals as SciPy's, comparisons that must come out."""

import math

import numpy as np
import pytest
from scipy import stats

from heatproof.report import Curves, Method, Retraining, Settings, scores
from tests.report import synthetic

TWO = (Method("mine"), Method("random", control=True))


def only(found, test, name):
    (part,) = [part for part in found if (part.score.test, part.score.name) == (test, name)]
    return part


def retrained(metric, mine, random, fractions=(0.0, 0.5, 1.0), nothing_left=0.25):
    accuracy = {"mine": np.array(mine), "random": np.array(random)}
    return Retraining(metric, np.array(fractions), tuple(range(len(mine))), accuracy, nothing_left)


def test_areas_by_hand():
    # The example of the specification: area to random 0.15, RACU 0.3.
    part = retrained("roar", [[0.9, 0.4, 0.1]], [[0.9, 0.7, 0.1]])
    found = list(scores.retraining_scores([part], TWO, Settings()))
    assert only(found, "ROAR", "area to random").entry("mine").mean == pytest.approx(0.15)
    assert only(found, "ROAR", "RACU").entry("mine").mean == pytest.approx(0.3)


def test_racu_takes_the_most_frequent_class_where_total_removal_was_not_measured():
    part = retrained("roar", [[0.9, 0.4]], [[0.9, 0.7]], fractions=(0.0, 0.5), nothing_left=0.2)
    found = list(scores.retraining_scores([part], TWO, Settings()))
    assert only(found, "ROAR", "RACU").entry("mine").mean == pytest.approx(0.15 / 0.6)


def test_keeping_the_evidence_is_good_in_kar():
    part = retrained("kar", [[0.9, 0.8, 0.1]], [[0.9, 0.6, 0.1]])
    found = list(scores.retraining_scores([part], TWO, Settings()))
    assert only(found, "KAR", "area above random").entry("mine").mean == pytest.approx(0.1)


def test_diff_roar_is_kar_minus_roar():
    parts = [
        retrained("roar", [[0.9, 0.4, 0.1]], [[0.9, 0.7, 0.1]]),
        retrained("kar", [[0.9, 0.8, 0.1]], [[0.9, 0.7, 0.1]]),
    ]
    found = list(scores.retraining_scores(parts, TWO, Settings()))
    assert only(found, "ROAR & KAR", "DiffROAR").entry("mine").mean == pytest.approx(0.2)
    assert only(found, "ROAR & KAR", "DiffROAR").entry("random").mean == pytest.approx(0.0)


def test_runs_are_pairs_with_a_t_interval():
    random = np.array([[0.9, 0.7], [0.8, 0.6], [0.7, 0.5]])
    gains = np.array([0.10, 0.12, 0.15])
    part = retrained("roar", random - [[0, 1]] * gains[:, None], random, fractions=(0.0, 1.0))
    versus = (
        only(list(scores.retraining_scores([part], TWO, Settings())), "ROAR", "area to random")
        .entry("mine")
        .versus["random"]
    )
    low, high = stats.t.interval(0.95, 2, loc=gains.mean() / 2, scale=gains.std(ddof=1) / 2 / math.sqrt(3))
    assert (versus.gain, versus.low, versus.high) == pytest.approx((gains.mean() / 2, low, high))
    assert versus.p == pytest.approx(stats.ttest_1samp(gains, 0).pvalue)
    assert versus.outcome == "better"


def test_a_run_that_is_missing_is_counted_and_left_out():
    mine = [[0.9, 0.5, 0.1], [0.9, np.nan, 0.1], [0.9, 0.4, 0.1]]
    part = retrained("roar", mine, [[0.9, 0.7, 0.1]] * 3)
    entry = only(list(scores.retraining_scores([part], TWO, Settings())), "ROAR", "area to random").entry("mine")
    assert (entry.n, entry.n_undefined) == (2, 1)
    assert entry.mean == pytest.approx((0.1 + 0.15) / 2)


def test_identical_runs_decide_without_a_warning():
    part = retrained("roar", [[0.9, 0.5, 0.1]] * 3, [[0.9, 0.7, 0.1]] * 3)
    entry = only(list(scores.retraining_scores([part], TWO, Settings())), "ROAR", "area to random").entry("mine")
    assert entry.versus["random"].outcome == "better"
    same = retrained("roar", [[0.9, 0.7, 0.1]] * 3, [[0.9, 0.7, 0.1]] * 3)
    entry = only(list(scores.retraining_scores([same], TWO, Settings())), "ROAR", "area to random").entry("mine")
    assert entry.versus["random"].outcome == "undecided"


def test_without_random_the_mean_accuracy_is_scored_low_is_good_in_roar():
    part = Retraining("roar", np.array([0.0, 1.0]), (0,), {"mine": np.array([[0.9, 0.1]])}, 0.25)
    (found,) = scores.retraining_scores([part], TWO, Settings())
    assert (found.score.name, found.score.direction) == ("mean accuracy", "lower is better")
    assert found.entry("mine").mean == pytest.approx(0.5)


def test_images_whose_score_is_undefined_are_counted_and_their_pairs_left_out():
    curves = synthetic.curves(images=30)
    curves.probability["good"][:4] = np.nan
    entry = only(
        list(scores.perturbation_scores(synthetic.perturbation(curves), synthetic.METHODS, synthetic.SETTINGS)),
        "LeRF",
        "area",
    ).entry("good")
    assert (entry.n, entry.n_undefined) == (26, 4)
    assert entry.versus["random"].n == 26
    assert math.isfinite(entry.mean)


def test_p_values_are_adjusted_over_the_methods_and_not_over_the_controls():
    found = list(
        scores.perturbation_scores(
            synthetic.perturbation(synthetic.curves(images=8)), synthetic.METHODS, synthetic.SETTINGS
        )
    )
    part = only(found, "LeRF", "area")
    # Eight pairs of one sign: the smallest exact p of Wilcoxon's test, 2 / 2^8, times the three methods under test.
    assert part.entry("good").versus["random"].p == pytest.approx(3 * 2 / 2**8)
    assert part.entry("oracle").versus["random"].p == pytest.approx(2 / 2**8)


def test_ranks_count_the_methods_under_test_only():
    part = only(
        list(
            scores.perturbation_scores(
                synthetic.perturbation(synthetic.curves()), synthetic.METHODS, synthetic.SETTINGS
            )
        ),
        "MoRF",
        "area",
    )
    assert {entry.method: entry.rank for entry in part.entries if entry.rank} == {
        "good": 1,
        "useless": 2,
        "bad": 3,
    }


def test_aopc_and_areas_by_hand():
    probability = np.array([[[0.9, 0.5, 0.1], [0.9, 0.8, 0.6]]])
    targets, prediction = np.zeros(1, dtype=np.int64), np.zeros((1, 2, 3), dtype=np.int64)
    curves = Curves(np.array([0.0, 0.5, 1.0]), targets, {"mine": probability}, {"mine": prediction})
    found = list(scores.perturbation_scores(synthetic.perturbation(curves), TWO, Settings(resamples=10)))
    values = {(part.score.test, part.score.name): part.entry("mine").mean for part in found}
    assert values[("MoRF", "AOPC")] == pytest.approx((0 + 0.4 + 0.8) / 3)
    assert values[("MoRF", "area")] == pytest.approx(0.5)
    assert values[("LeRF", "area")] == pytest.approx(0.775)
    assert values[("MoRF & LeRF", "ABPC")] == pytest.approx(0.4 - (0.1 + 0.3) / 3)
