"""All tests at a glance: ranks and their ranges, what can be tested over images, and whether tests agree."""

import numpy as np
import pytest
from scipy import stats

from heatproof import report
from heatproof.metrics import statistics
from heatproof.metrics.comparison import Sample
from heatproof.report import overview, scores
from heatproof.report.scores import Score
from tests.report import synthetic
from tests.report.synthetic import METHODS, SETTINGS


def scored(values, *, better="higher", unit="image", test="probing", name="hit"):
    score = Score(test, name, unit, better, "a score", is_primary=True)
    return scores.compared(score, Sample(values, better, has_rank_ranges=True), METHODS, SETTINGS)


def ladder(gaps, images=50, spread=0.3):
    """Scores of `good` > `useless` > `bad` with given gaps and the same noise for all."""
    rng = np.random.default_rng(3)
    noise = rng.normal(0, spread, (3, images))
    return {name: level + own for name, level, own in zip(("good", "useless", "bad"), gaps, noise, strict=True)}


def test_far_apart_methods_have_one_rank_each_and_close_ones_a_range():
    part = scored(ladder((10.0, 0.0, -0.001)))
    spans = {e.method: (e.rank, e.best_rank, e.worst_rank) for e in part.entries}
    assert spans["good"] == (1, 1, 1)
    assert {spans["useless"][1:], spans["bad"][1:]} == {(2, 3)}


def test_the_range_of_a_rank_over_runs_spans_all_runs():
    part = scored(
        {"good": np.array([3.0, 3.0, 1.0]), "useless": np.array([2.0, 2.0, 2.0]), "bad": np.array([1.0, 1.0, 0.0])},
        unit="run",
    )
    spans = {e.method: (e.rank, e.best_rank, e.worst_rank) for e in part.entries}
    assert spans == {"good": (1, 1, 2), "useless": (2, 1, 2), "bad": (3, 3, 3)}


def test_one_run_has_no_range():
    part = scored({"good": np.array([3.0]), "bad": np.array([1.0])}, unit="run")
    assert {(e.best_rank, e.worst_rank) for e in part.entries} == {(None, None)}


def test_rows_are_sorted_by_mean_rank_and_flags_and_notes_are_kept():
    parts = [
        scored(ladder((0.0, 5.0, 10.0)), test="ROAR", name="area"),
        scored(ladder((9.0, 5.0, 1.0)), better="lower"),
    ]
    note = overview.Note("bad", "tell the class")
    matrix = overview.matrix(parts, ["a", "b"], METHODS, ("bad",), {"masks": {"bad": note}})
    assert [(row.method.name, row.mean_rank) for row in matrix.rows] == [("bad", 1.0), ("useless", 2.0), ("good", 3.0)]
    first = matrix.rows[0]
    assert [cell.leaks for cell in first.cells] == [True, False]
    assert [cell.tone for cell in first.cells] == [0, 0]
    assert first.notes == (note,)
    assert matrix.rows[1].notes == (None,)


def test_the_matrix_is_a_file_with_n_and_ranges():
    matrix = overview.matrix([scored(ladder((1.0, 0.5, 0.0)))], ["a"], METHODS, (), {})
    assert matrix.csv.splitlines()[1].startswith("good,False,probing,hit,higher,50,0,")
    assert matrix.csv.count("\n") == 4


def test_the_page_marks_who_is_not_better_than_a_control_in_the_matrix(parsed):
    page = parsed(report.compose(synthetic.material(tests=[synthetic.probing()])).html)
    columns = page.rows["matrix"][0]
    hit = next(place for place, cell in enumerate(columns) if "hit" in cell)
    assert "not better" not in page.row("good", "matrix")[hit]
    assert "not better than random, centre or sobel" in page.row("bad", "matrix")[hit]
    size = next(place for place, cell in enumerate(columns) if "size" in cell)
    assert "·" in columns[size]
    assert not page.row("good", "matrix")[size].startswith("1.")


def test_ranks_within_images_are_compared_as_scipy_compares_them():
    values = ladder((0.5, 0.2, 0.0), images=40)
    (ranking,) = overview.rankings([scored(values)], METHODS, SETTINGS)
    chi2, _ = stats.friedmanchisquare(*values.values())
    assert ranking.chi2 == pytest.approx(chi2)
    assert ranking.concordance == pytest.approx(chi2 / (40 * 2))
    assert ranking.names == ("good", "useless", "bad")
    assert sum(ranking.ranks) == pytest.approx(6)
    assert ranking.difference == pytest.approx(statistics.critical_difference(3, 40, 0.05))
    assert all(low <= rank <= high for low, rank, high in zip(ranking.low, ranking.ranks, ranking.high, strict=True))
    assert all(name in ranking.figure.drawing.svg for name in ranking.names)


def test_low_values_rank_first_where_lower_is_better():
    (ranking,) = overview.rankings([scored(ladder((5.0, 3.0, 1.0)), better="lower")], METHODS, SETTINGS)
    assert ranking.names == ("bad", "useless", "good")
    assert ranking.ranks == pytest.approx((1.0, 2.0, 3.0))


def test_methods_that_do_not_differ_have_no_diagram():
    rng = np.random.default_rng(1)
    (ranking,) = overview.rankings([scored(dict.fromkeys(("good", "bad"), 0) | {
        name: rng.normal(size=30) for name in ("good", "useless", "bad")
    })], METHODS, SETTINGS)  # fmt: skip
    assert ranking.p > 0.05
    assert ranking.figure is None


def test_images_without_a_score_of_every_method_are_left_out_and_counted():
    values = ladder((1.0, 0.5, 0.0), images=30)
    values["bad"][:4] = np.nan
    (ranking,) = overview.rankings([scored(values)], METHODS, SETTINGS)
    assert (ranking.blocks, ranking.left_out) == (26, 4)


@pytest.mark.parametrize(
    ("part", "reason"),
    [
        (lambda: scored(ladder((1.0, 0.5, 0.0), images=5), unit="run"), "1 block, 5 needed"),
        (lambda: scored(ladder((1.0, 0.5, 0.0), images=4)), "4 images, 5 needed"),
        (lambda: scored({name: np.arange(9.0) for name in ("good", "bad")}), "2 methods, 3 needed"),
        (lambda: scored(dict.fromkeys(("good", "bad", "useless"), np.ones(9))), "all methods are tied"),
    ],
)
def test_what_cannot_be_tested_is_said_with_the_reason(part, reason):
    (ranking,) = overview.rankings([part()], METHODS, SETTINGS)
    assert ranking.reason.startswith("not testable: ")
    assert reason in ranking.reason


def test_a_score_without_direction_is_not_ranked():
    assert list(overview.rankings([scored(ladder((1.0, 0.5, 0.0)), better="neither")], METHODS, SETTINGS)) == []


def test_the_page_says_that_blocks_are_images_of_this_data_set(parsed):
    page = parsed(report.compose(synthetic.material()).html)
    assert "nothing is said about other data sets or classifiers" in page.text
    assert "ROAR : not testable: 1 block, 5 needed" in page.text


def test_tests_that_rank_alike_agree_and_opposite_ones_do_not():
    parts = [
        scored(ladder((3.0, 2.0, 1.0)), name="a"),
        scored(ladder((1.0, 2.0, 3.0)), name="b", better="lower"),
        scored(ladder((1.0, 2.0, 3.0)), name="c"),
    ]
    found = overview.agreement(parts)
    assert found.tests == ("a (probing)", "b (probing)", "c (probing)")
    expected = [[1, 1, -1], [1, 1, -1], [-1, -1, 1]]
    np.testing.assert_allclose(found.kendall, expected)
    np.testing.assert_allclose(found.spearman, expected)
    assert np.array(found.methods).tolist() == [[3] * 3] * 3
    assert found.figure.csv.splitlines()[2] == "a (probing),b (probing),1.0,1.0,3.0"


def test_tests_that_share_too_few_methods_have_no_correlation():
    values = ladder((3.0, 2.0, 1.0))
    less = scored({name: values[name] for name in ("good", "bad")}, name="less")
    assert overview.agreement([scored(values), less]) is None
    both = overview.agreement([scored(values), scored(values, name="again"), less])
    assert both.tests == ("hit (probing)", "again (probing)")
