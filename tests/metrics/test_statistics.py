import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from heatproof import seeding
from heatproof.errors import InputError
from heatproof.metrics import statistics

GOLDEN = Path(__file__).parents[1] / "golden" / "metrics"
NAN = math.nan


@pytest.fixture(scope="module")
def golden():
    return json.loads((GOLDEN / "stats.json").read_text())


@pytest.fixture(scope="module")
def controls():
    return dict(np.load(GOLDEN / "stats_controls.npz"))


def close(actual, expected):
    np.testing.assert_allclose(actual, expected, rtol=1e-9, atol=1e-9)


# --- golden vectors


def test_t_intervals_and_deviations(golden):
    close(np.stack(statistics.t_interval(golden["acc"]), axis=-1), golden["t_ci95"])
    for values, sd, ends in zip(golden["acc"][0], golden["std_ddof1"][0], golden["t_ci95"][0], strict=True):
        summary = statistics.summarize(values)
        close([summary.sd, summary.low, summary.high], [sd, *ends])


def test_wilcoxon(golden, controls):
    means, accuracies = controls["mean_table"], np.array(golden["acc"])
    exact = statistics.wilcoxon(means[0], means[1])
    close(exact, list(golden["wilcoxon_0_vs_1_exact"].values()))
    many = (accuracies[0] - accuracies[2]).ravel()
    for correction, name in ((False, "nocorr"), (True, "corr")):
        result = statistics.wilcoxon(many, correction=correction)
        close(result, list(golden[f"wilcoxon_0_vs_2_approx_{name}"].values()))
        np.testing.assert_allclose(result.p, golden[f"wilcoxon_0_vs_2_approx_{name}"]["p"], rtol=1e-9)
    tied = golden["wilcoxon_ties"]
    close(statistics.wilcoxon(tied["diff"]), list(tied["wilcox"].values()))
    close(statistics.wilcoxon(tied["diff"], zeros="pratt"), list(tied["pratt"].values()))


def test_ranks_over_blocks(golden, controls):
    table = controls["mean_table"]
    close(statistics.average_ranks(table), golden["avg_ranks"])
    close(statistics.friedman(table), list(golden["friedman"].values()))
    np.testing.assert_allclose(statistics.iman_davenport(table), list(golden["iman_davenport"].values()), rtol=1e-9)


def test_critical_differences(golden):
    close(statistics.critical_difference(5, 7), golden["critical_difference_alpha0.05"])
    for alpha, table in golden["nemenyi_q"].items():
        for methods, q in table.items():
            k = int(methods)
            close(statistics.critical_difference(k, 9, float(alpha)), q * math.sqrt(k * (k + 1) / 54))


def test_paired_bootstrap(golden, controls):
    differences = controls["mean_table"][0] - controls["mean_table"][1]
    close(differences.mean(), golden["paired_bootstrap"]["mean_diff"])
    interval = statistics.bootstrap_interval(differences, controls["bootstrap_index"])
    close(interval, golden["paired_bootstrap"]["ci95_percentile"])


def test_holm(golden):
    close(statistics.holm(golden["holm"]["p"]), golden["holm"]["adjusted"])


def test_rank_correlations(golden, controls):
    table = controls["mean_table"]
    close(statistics.kendall(table[0], table[2]), golden["kendall_tau_b"])
    close(statistics.spearman(table[0], table[2]), golden["spearman"])
    ties = golden["ties"]
    close(statistics.kendall(ties["a"], ties["b"]), ties["kendall_tau_b"])
    close(statistics.spearman(ties["a"], ties["b"]), ties["spearman"])


def test_paired_t(golden):
    accuracies = np.array(golden["acc"])
    close(statistics.paired_t(accuracies[0].ravel(), accuracies[1].ravel()), list(golden["paired_t"].values()))


# --- against SciPy, and known truth


@given(st.integers(1, 25), st.integers(0, 999))
@settings(max_examples=25, deadline=None)
def test_the_exact_signed_rank_distribution_is_scipys(pairs, seed):
    differences = np.random.default_rng(seed).normal(0.3, size=pairs)
    expected = stats.wilcoxon(differences, method="exact")
    close(statistics.wilcoxon(differences), (expected.statistic, expected.pvalue))


def test_from_26_pairs_on_wilcoxon_is_approximate():
    differences = np.random.default_rng(0).normal(size=26)
    assert statistics.wilcoxon(differences) == statistics.wilcoxon(differences, method="approx")
    assert statistics.wilcoxon(differences[:25]) == statistics.wilcoxon(differences[:25], method="exact")


def test_five_pairs_can_never_reach_five_percent():
    for pairs, p in ((5, 0.0625), (6, 0.03125)):
        assert statistics.wilcoxon(np.arange(1, pairs + 1)) == (0, p)


def test_no_p_value_exceeds_1():
    assert statistics.wilcoxon([1, -1, 2, -2], correction=True) == (5, 1)
    assert statistics.wilcoxon([1, -2, -3, 4]) == (5, 1)


def test_wilcoxon_ignores_the_direction_of_the_pairs():
    a, b = np.random.default_rng(0).normal(size=(2, 12))
    assert statistics.wilcoxon(a, b) == statistics.wilcoxon(b, a)


def test_a_bootstrap_interval_has_its_known_width():
    values = np.arange(1000) % 2
    index = statistics.bootstrap_index(np.random.default_rng(0), 1000, 4000)
    assert index.min() == 0
    assert index.max() == 999
    low, high = statistics.bootstrap_interval(values, index)
    np.testing.assert_allclose([low, high], 0.5 + np.array([-1.96, 1.96]) * 0.5 / math.sqrt(1000), atol=0.003)


def test_methods_share_their_resamples():
    rng = np.random.default_rng(0)
    table = rng.normal(size=(3, 40))
    table[2] = table[0] + 1
    table[1, :5] = NAN
    index = statistics.bootstrap_index(rng, 40, 500)
    low, high = statistics.bootstrap_interval(table, index)
    close(low[2], low[0] + 1)
    for row in range(3):
        close(statistics.bootstrap_interval(table[row], index), (low[row], high[row]))
    # The same seed serves every method with the same number of images.
    one, other = (statistics.summarize(values, seed=5) for values in table[[0, 2]])
    close([other.low, other.high], [one.low + 1, one.high + 1])
    assert statistics.summarize(table[0], seed=6).low != one.low


def test_long_columns_are_resampled_in_parts():
    values = np.random.default_rng(0).normal(size=3000)
    index = statistics.bootstrap_index(np.random.default_rng(1), 3000, 800)
    low, high = np.percentile(values[index].mean(axis=1), [2.5, 97.5])
    close(statistics.bootstrap_interval(values, index), (low, high))


def test_undefined_scores_are_left_out_and_counted():
    values = np.array([1.0, NAN, 2.0, 4.0, NAN])
    summary = statistics.summarize(values)
    assert (summary.n, summary.n_undefined) == (3, 2)
    close(summary[2:], statistics.summarize(values[[0, 2, 3]])[2:])
    boot = statistics.summarize(values, seed=0)
    assert 1 <= boot.low < boot.mean == 7 / 3 < boot.high <= 4
    close(statistics.spearman(values, [3.0, 1.0, 2.0, 0.0, 1.0]), -1)
    close(statistics.kendall(values, [3.0, 1.0, 2.0, 0.0, 1.0]), -1)


def test_nothing_defined_gives_nan_without_a_warning():
    for values in ([], [NAN, NAN], [1.0]):
        summary = statistics.summarize(values)
        assert summary.n == np.isfinite(values).sum()
        assert np.isnan(summary[3:]).all()
    assert np.isnan(statistics.summarize([NAN], seed=0)[2:]).all()
    assert np.isnan(statistics.wilcoxon([0.0, 0.0])).all()
    assert math.isnan(statistics.cohens_d([1.0]))
    assert np.isnan(statistics.friedman([[1.0, 1.0], [1.0, 1.0]])).all()
    assert np.isnan(statistics.spearman([1.0, 1.0], [1.0, 2.0]))
    assert np.isnan(statistics.kendall([1.0, 2.0], [3.0, 3.0]))


def test_a_single_score_has_a_mean_but_no_interval():
    assert statistics.summarize([3.0]).mean == 3
    low, high = statistics.t_interval([[3.0, NAN], [3.0, 5.0]])
    assert np.isnan([low[0], high[0]]).all()
    assert low[1] < 4 < high[1]


def test_cohens_d_is_that_of_paired_differences():
    a, b = np.random.default_rng(0).normal(size=(2, 30))
    close(statistics.cohens_d(a - b), stats.ttest_rel(a, b).statistic / math.sqrt(30))


def test_holm_never_orders_p_values_anew_and_leaves_gaps():
    adjusted = statistics.holm([0.01, NAN, 0.011, 0.9, 0.8])
    close(adjusted[[0, 2, 3, 4]], [0.04, 0.04, 1.0, 1.0])
    assert np.isnan(adjusted[1])


def test_ranks_with_ties_and_missing_blocks():
    table = [[3.0, 1.0, NAN, 2.0], [3.0, 2.0, 1.0, 1.0], [1.0, 3.0, 2.0, 1.0]]
    close(statistics.average_ranks(table), [(1.5 + 3 + 1) / 3, (1.5 + 2 + 2.5) / 3, (3 + 1 + 2.5) / 3])
    close(statistics.average_ranks(table, higher_is_better=False), 4 - statistics.average_ranks(table))
    whole = np.delete(table, 2, axis=1)
    expected = stats.friedmanchisquare(*whole)
    close(statistics.friedman(table), (expected.statistic, expected.pvalue))


def test_blocks_that_all_agree_leave_no_doubt():
    table = np.arange(4)[:, None] + 10 * np.arange(6)
    assert statistics.friedman(table).statistic == pytest.approx(18)
    assert statistics.iman_davenport(table) == (math.inf, 0.0)


@pytest.mark.parametrize(
    ("ranks", "expected"),
    [([1, 2, 3, 4], [[0, 1], [1, 2], [2, 3]]), ([4, 1, 1.5, 3.9], [[1, 2], [3, 0]]), ([1, 3, 5], []), ([2, 2, 2], [[0, 1, 2]])],
)  # fmt: skip
def test_groups_join_what_does_not_differ(ranks, expected):
    assert statistics.groups(ranks, difference=1) == expected


@given(st.integers(0, 999))
@settings(max_examples=20, deadline=None)
def test_rank_correlations_are_scipys_on_ties(seed):
    a, b = np.random.default_rng(seed).integers(0, 4, (2, 9)).astype(float)
    if np.ptp(a) > 0 < np.ptp(b):
        close(statistics.spearman(a, b), stats.spearmanr(a, b).statistic)
        close(statistics.kendall(a, b), stats.kendalltau(a, b).statistic)
        close(statistics.spearman(np.exp(a), -b), -statistics.spearman(a, b))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: statistics.wilcoxon([1, 1, 2], method="exact"), "'exact' asked for, but there are ties or zeros"),
        (lambda: statistics.wilcoxon([1, 2], method="aprox"), "method: 'aprox'; did you mean 'approx'"),
        (lambda: statistics.wilcoxon([1, 2], zeros="prat"), "zeros: 'prat'; did you mean 'pratt'"),
        (lambda: statistics.wilcoxon([[1, 2]]), r"differences: shape \(1, 2\)"),
        (lambda: statistics.friedman([1, 2]), r"table: shape \(2,\); expected \(methods, blocks\)"),
        (lambda: statistics.bootstrap_interval([1, 2], np.zeros((3, 4), int)), r"index: shape \(3, 4\)"),
        (lambda: statistics.spearman([1, 2], [1, 2, 3]), r"b: shape \(3,\); expected that of a, \(2,\)"),
    ],
)
def test_messages(call, message):
    with pytest.raises(InputError, match=message):
        call()


def test_seeded_intervals_of_many_rows_are_those_of_one_index_matrix():
    values = np.random.default_rng(0).normal(size=(4, 60))
    values[1, ::7] = NAN
    values[3] = NAN
    found = statistics.seeded_bootstrap(values, seed=3, resamples=700)
    index = statistics.bootstrap_index(seeding.generator(3, "bootstrap", 60), 60, 700)
    np.testing.assert_allclose(found, statistics.bootstrap_interval(values, index), rtol=1e-12)
    assert np.isnan(found.low).tolist() == [False, False, False, True]
