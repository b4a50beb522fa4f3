"""How methods compare: on the units of both, against each control, with marks that say what is not shown."""

import math

import numpy as np
import pytest
from scipy import stats

from heatproof.metrics import faithfulness, statistics
from heatproof.metrics.comparison import Sample, Settings, compare, sample_of
from heatproof.metrics.score import Pooled, Scored

NAN = math.nan
CONTROLS = {"good": False, "bad": False, "good+blurred": True, "random": True, "sobel": True, "oracle": True}
RUNS = {"good": [0.2, 0.3, 0.25], "bad": [0.5, 0.7, 0.6], "random": [0.5, 0.62, 0.55]}  # accuracies of ROAR


SETTINGS = Settings()


def entries(values, better="lower", unit="run", settings=SETTINGS, **options):
    """The entries of one score by method."""
    values = {name: v if isinstance(v, Pooled) else np.asarray(v, dtype=np.float64) for name, v in values.items()}
    (found,) = compare([Sample(values, better, **options)], CONTROLS, settings, unit)
    return {entry.method: entry for entry in found}


def share(hits):
    """Share of hits, pooled; NaN where an image is not used."""

    def statistic(total):
        with np.errstate(invalid="ignore"):
            return total[:, 0] / total[:, 1]

    hits = np.asarray(hits, dtype=np.float64)
    return Pooled("share", np.stack([np.nan_to_num(hits), np.isfinite(hits)], axis=1), statistic)


# --- scores of all images together


def test_a_pooled_score_counts_the_images_that_add_something():
    found = entries({"good": share([1, 0, NAN, NAN, 1])}, "higher", "image")["good"]
    assert (found.n, found.n_undefined) == (3, 2)
    assert found.mean == pytest.approx(2 / 3)
    assert found.versus == {}
    assert found.row()["difference_n"] is None


def test_an_image_that_is_used_and_scores_nothing_counts():
    found = entries({"good": share([0, 0, 0])}, "higher", "image")["good"]
    assert (found.n, found.n_undefined, found.mean) == (3, 0, 0)


def test_two_pooled_scores_are_compared_on_the_images_of_both():
    # On images 1 and 2, which both use, the scores are equal; on all of their own they are not.
    scores = {"good": share([1, 1, 0, NAN, 0]), "random": share([NAN, 1, 0, 1, NAN])}
    versus = entries(scores, "higher", "image")["good"].versus["random"]
    assert (versus.n, versus.difference, versus.low, versus.high) == (2, 0, 0, 0)


def test_the_interval_leaves_out_resamples_without_any_used_image():
    found = entries({"good": share([1, 0] + [NAN] * 14)}, "higher", "image")[
        "good"
    ]  # one resample in nine holds neither
    assert (found.low, found.high) == (0, 1)
    assert math.isfinite(found.sd)


def test_a_pooled_score_of_no_image_is_undefined():
    found = entries(dict.fromkeys(("good", "random"), share([NAN] * 3)), "higher", "image")["good"]
    assert (found.n, found.n_undefined, found.versus["random"].n) == (0, 3, 0)
    versus = found.versus["random"]
    assert np.isnan([found.mean, found.sd, found.low, found.high, versus.difference, versus.low, versus.high]).all()
    assert found.not_testable_against == ("random",)


def test_sensitivity_n_counts_the_images_with_a_defined_map_even_the_first():
    sums, drops = np.array([[0.0], [np.nan], [2.0], [3.0]]), np.array([[0.0], [1.0], [2.0], [np.nan]])
    score = Pooled("sensitivity_n", faithfulness.moments(sums, drops), faithfulness.sensitivity_n)
    assert score.used.tolist() == [True, False, True, False]


# --- means over units


def test_a_difference_rests_on_the_pairs_that_both_have():
    found = entries({"good": [1.0, 2.0, NAN, 4.0], "random": [0.0, NAN, 3.0, 1.0]}, "higher", "image")["good"]
    assert (found.n, found.n_undefined) == (3, 1)
    assert (found.versus["random"].n, found.versus["random"].difference) == (2, 2.0)  # of images 0 and 3


def test_images_are_resampled_as_the_statistics_do_and_runs_have_t_intervals():
    rng = np.random.default_rng(0)
    good, random = rng.random((2, 37))
    good[::5] = NAN
    found = entries({"good": good, "random": random}, "higher", "image", Settings(seed=9))["good"]
    assert (found.n, found.n_undefined, found.mean, found.sd, found.low, found.high) == statistics.summarize(
        good, seed=9
    )
    gaps = statistics.summarize(good - random, seed=9)
    assert (found.versus["random"].low, found.versus["random"].high) == (gaps.low, gaps.high)
    assert found.versus["random"].p == statistics.wilcoxon(good - random).p
    versus = entries(RUNS)["good"].versus["random"]
    gaps = np.subtract(RUNS["good"], RUNS["random"])
    assert (versus.low, versus.high) == pytest.approx(stats.t.interval(0.95, 2, gaps.mean(), stats.sem(gaps)))
    assert versus.effect == pytest.approx(gaps.mean() / gaps.std(ddof=1))


def test_scores_are_the_same_whether_they_are_compared_alone_or_together():
    rng = np.random.default_rng(1)
    samples = [
        Sample({name: rng.random(20) for name in ("good", "random")}, better)
        for better in ("higher", "lower", "neither")
    ]
    samples.insert(1, Sample({name: share(rng.random(20) > 0.5) for name in ("good", "random")}, "higher"))
    together = compare(samples, CONTROLS, Settings(resamples=50))
    alone = [compare([sample], CONTROLS, Settings(resamples=50))[0] for sample in samples]
    assert repr(together) == repr(alone)


def test_gains_are_turned_so_that_positive_is_better():
    low, high = (entries(RUNS, better)["good"].versus["random"] for better in ("lower", "higher"))
    assert (low.outcome, high.outcome) == ("better", "worse")
    assert low.gain == -high.gain > 0
    assert low.gain_ends == (-high.high, -high.low)
    assert low.gain_effect == -low.effect > 0


def test_p_is_adjusted_over_the_methods_under_test_for_each_control():
    found = entries(RUNS | {"sobel": [0.4, 0.5, 0.5]})
    single = {name: stats.ttest_rel(RUNS[name], RUNS["random"]).pvalue for name in ("good", "bad")}
    adjusted = [found[name].versus["random"].p for name in ("good", "bad")]
    np.testing.assert_allclose(adjusted, statistics.holm(list(single.values())))
    assert found["sobel"].versus["random"].p == pytest.approx(stats.ttest_rel([0.4, 0.5, 0.5], RUNS["random"]).pvalue)


def test_marks_name_the_controls_that_a_method_is_not_shown_to_beat():
    blurred, sobel, oracle = [0.2, 0.2, 0.3], [0.9, 0.95, 0.9], [0.1, 0.1, 0.2]
    found = entries(RUNS | {"good+blurred": blurred, "sobel": sobel, "oracle": oracle})
    # The oracle need not be beaten, and a control that is derived from a method's maps is that method's alone.
    assert (found["good"].beaten, found["good"].not_better_than) == (("random", "sobel"), ("good+blurred",))
    assert found["bad"].not_better_than == ("random",)
    assert found["good+blurred"].not_better_than == found["random"].not_better_than == ()
    assert found["good"].row()["not_better_than"] == "good+blurred"


def test_one_unit_shows_nothing():
    for unit in ("run", "image"):
        found = entries({"good": [0.2], "random": [0.6]}, unit=unit)["good"]
        assert (found.not_better_than, found.not_testable_against, found.is_judged) == ((), ("random",), False)
        assert math.isnan(found.low)


def test_a_score_without_direction_has_no_rank_and_no_marks():
    found = entries(RUNS, "neither")["good"]
    assert (found.rank, found.beaten, found.not_better_than, found.not_testable_against) == (None, (), (), ())
    assert found.versus["random"].outcome == "neutral"


def test_chance_is_the_mean_over_the_images_where_it_is_known():
    parts = {"good": Scored("hit", np.ones(3), chance=np.array([0.2, NAN, 0.4])), "random": Scored("hit", np.ones(3))}
    good, random = compare([sample_of(parts, "higher")], CONTROLS, Settings(resamples=10))[0]
    assert good.row()["chance"] == pytest.approx(0.3)
    assert random.row()["chance"] is None


def test_the_level_decides_about_intervals_and_marks():
    close = {"good": [0.3, 0.45, 0.4, 0.5], "random": [0.5, 0.5, 0.55, 0.6]}
    assert [entries(close, settings=Settings(level))["good"].beaten for level in (0.9, 0.99)] == [("random",), ()]
