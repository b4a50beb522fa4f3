"""The summary of retrained networks, from cells whose accuracies are known."""

import base64
import math

import numpy as np
import pytest

from heatproof.metrics import statistics
from heatproof.metrics.comparison import Settings
from heatproof.stages import retrain_summary
from heatproof.stages.retrain_summary import NOT_TESTABLE, Grid

IMAGES, CLASSES, RUNS = 400, 4, 6
LABELS = np.arange(IMAGES) % CLASSES
SETTINGS = Settings(resamples=200)


def cell(metric, method, fraction, run, right, control=False, left_out=()):
    """A result whose network is right on the first `right` images that take part."""
    count = IMAGES - len(left_out)
    correct = np.arange(count) < right
    return {
        "metric": metric,
        "method": method,
        "control": control,
        "removed_fraction": fraction,
        "run": run,
        "test_accuracy": correct.mean(),
        "test_images": count,
        "left_out": list(left_out),
        "correct": base64.b64encode(np.packbits(correct).tobytes()).decode(),
    }


# Right answers of 400 at a removed fraction of 0.5, run 0; later runs get one more each.
RIGHT = {
    ("roar", "good"): 120,
    ("roar", "bad"): 200,
    ("roar", "worst"): 240,
    ("roar", "random"): 200,
    ("kar", "good"): 300,
    ("kar", "bad"): 200,
    ("kar", "worst"): 220,
    ("kar", "random"): 200,
}


def results(runs=RUNS, right=RIGHT, jitter=True):
    found = [cell("intact", "intact", 0.0, run, 360) for run in range(runs)]
    for (metric, method), number in right.items():
        for run in range(runs):
            # The first is above the other in even runs, so that no two methods differ by a constant.
            more = run + (run % 2 if method == "good" else 0) if jitter else 0
            found.append(cell(metric, method, 0.5, run, number + more, control=method in ("random", "good+blurred")))
    return found


def lines(found):
    made = retrain_summary.summary(Grid(found, SETTINGS, LABELS))
    return {(line.score, line.metric, line.entry.method, line.removed_fraction): line for line in made}


def test_areas_are_measured_from_random_in_both_metrics():
    found = lines(results())
    # A triangle: half the gap at 0.5; KAR's turned round.
    gap = np.mean([80 - run % 2 for run in range(RUNS)]) / IMAGES / 2
    np.testing.assert_allclose(found["area_to_random", "roar", "good", None].entry.mean, gap)
    gap = np.mean([100 + run % 2 for run in range(RUNS)]) / IMAGES / 2
    np.testing.assert_allclose(found["area_to_random", "kar", "good", None].entry.mean, gap)
    assert found["area_to_random", "roar", "random", None].entry.mean == 0
    assert found["area_to_random", "roar", "worst", None].entry.mean < 0


def test_a_difference_to_random_is_paired_and_has_effect_and_tests():
    line = lines(results())["accuracy", "roar", "good", 0.5]
    versus = line.entry.versus["random"]
    gaps = np.array([run % 2 - 80 for run in range(RUNS)]) / IMAGES
    low, high = statistics.t_interval(gaps)
    np.testing.assert_allclose([versus.difference, versus.low, versus.high], [gaps.mean(), low, high])
    np.testing.assert_allclose(versus.effect, gaps.mean() / gaps.std(ddof=1))
    assert versus.wilcoxon_p == statistics.wilcoxon(gaps).p
    assert line.changed["images_low"] < gaps.mean() < line.changed["images_high"]


def test_methods_are_marked_that_do_not_beat_a_control_in_the_direction_of_the_metric():
    found = lines(results())
    for score, metric, fraction in (
        ("accuracy", "roar", 0.5), ("accuracy", "kar", 0.5), ("area_to_random", "roar", None), ("racu", "roar", None),
        ("diff_roar", "roar, kar", 0.5),
    ):  # fmt: skip
        assert found[score, metric, "good", fraction].entry.not_better_than == (), (score, metric)
        assert found[score, metric, "bad", fraction].entry.not_better_than == ("random",), (score, metric)
        assert found[score, metric, "random", fraction].entry.not_better_than == ()
    # More right answers: worse in ROAR, better in KAR.
    assert found["accuracy", "roar", "worst", 0.5].entry.not_better_than == ("random",)
    assert found["accuracy", "kar", "worst", 0.5].entry.not_better_than == ()


def test_a_method_that_is_no_better_than_its_blurred_twin_is_marked():
    found = lines(results(right=RIGHT | {("roar", "good+blurred"): 100}))
    assert found["accuracy", "roar", "good", 0.5].entry.not_better_than == ("good+blurred",)
    assert found["accuracy", "roar", "bad", 0.5].entry.not_better_than == ("random",)


def test_p_values_are_adjusted_over_methods_and_controls_are_none():
    rng = np.random.default_rng(0)
    found = results(jitter=False)
    for one in found:
        right = round(one["test_accuracy"] * IMAGES) + int(rng.integers(0, 30))
        one |= cell(one["metric"], one["method"], one["removed_fraction"], one["run"], right, one["control"])
    made = lines(found)
    random = np.array([c["test_accuracy"] for c in found if (c["metric"], c["method"]) == ("roar", "random")])
    single = [
        statistics.paired_t([c["test_accuracy"] for c in found if (c["metric"], c["method"]) == ("roar", m)], random).p
        for m in ("good", "bad", "worst")
    ]
    adjusted = [made["accuracy", "roar", m, 0.5].entry.versus["random"].p for m in ("good", "bad", "worst")]
    np.testing.assert_allclose(adjusted, statistics.holm(single))


def test_diff_roar_pairs_runs_for_its_interval_and_all_runs_for_the_published_figures():
    found = lines(results(runs=3))
    paired, every = (found[score, "roar, kar", "good", 0.5] for score in ("diff_roar", "diff_roar_pairs"))
    assert (paired.entry.n, every.entry.n) == (3, 9)
    np.testing.assert_allclose([paired.entry.mean, every.entry.mean], 180 / IMAGES)
    assert paired.entry.sd == pytest.approx(0, abs=1e-12)
    # Known truth: run k has 120 + (0, 2, 2) right in ROAR and 300 + (0, 2, 2) in KAR.
    gaps = np.subtract.outer([300, 302, 302], [120, 122, 122]) / IMAGES
    np.testing.assert_allclose(every.entry.sd, gaps.std(ddof=1))
    assert every.row()[10:12] == ["", ""]  # no interval: pairs share their runs


def test_rankings_are_compared_at_each_fraction_and_over_all():
    found = lines(results())
    # ROAR: good, bad, worst; KAR: good, worst, bad.
    for fraction in (0.5, None):
        assert found["order_kendall", "roar, kar", "", fraction].entry.mean == pytest.approx(1 / 3)
        assert found["order_spearman", "roar, kar", "", fraction].entry.mean == pytest.approx(0.5)
        assert found["order_kendall", "roar, kar", "", fraction].entry.n == 3


def test_one_run_can_tell_nothing_and_says_so():
    line = lines(results(runs=1))["accuracy", "roar", "good", 0.5]
    assert line.entry.not_testable_against == ("random",)
    row = dict(zip(retrain_summary.COLUMNS, line.row(), strict=True))
    for name in ("sd", "low", "high", "difference_low", "difference_high", "cohens_d", "p_holm", "wilcoxon_p"):
        assert row[name] == NOT_TESTABLE, name
    assert row["mean"] == 0.3


@pytest.mark.parametrize(("runs", "testable"), [(5, False), (6, True)])
def test_wilcoxon_needs_six_runs(runs, testable):
    assert (
        math.isfinite(lines(results(runs=runs))["accuracy", "roar", "good", 0.5].entry.versus["random"].wilcoxon_p)
        is testable
    )


def test_masks_that_tell_the_class_are_marked_wherever_roar_is_read():
    right = RIGHT | {("mask_only", "good"): 160, ("mask_only", "bad"): 104, ("mask_only", "random"): 100}
    found = lines(results(right=right))
    line = found["accuracy", "mask_only", "good", 0.5]
    assert (line.leaks, line.better, line.entry.chance) == (True, "neither", 0.25)
    assert line.changed["images_low"] > 0.25
    assert not found["accuracy", "mask_only", "bad", 0.5].leaks
    assert found["accuracy", "roar", "good", 0.5].leaks
    assert found["area_to_random", "roar", "good", None].leaks
    assert not found["accuracy", "kar", "good", 0.5].leaks
    assert found["accuracy", "roar", "bad", 0.5].entry.not_better_than == ("random",)


def test_images_without_a_valid_map_are_left_out_on_both_sides():
    found = results(runs=3)
    left_out = range(0, IMAGES, 4)  # all of class 0
    for one in found:
        if (one["metric"], one["method"]) == ("roar", "good"):
            one |= cell("roar", "good", 0.5, one["run"], 90 + one["run"], left_out=left_out)
    found += [cell("mask_only", "good", 0.5, run, 100, left_out=left_out) for run in range(3)]
    made = lines(found)
    assert made["accuracy", "mask_only", "good", 0.5].entry.chance == pytest.approx(1 / 3)
    line = made["accuracy", "roar", "good", 0.5]
    # The first 120 images are right with 90 of those that take part, and 200 for random, on 300 images.
    assert line.changed["images_low"] < -60 / 300 < line.changed["images_high"]
