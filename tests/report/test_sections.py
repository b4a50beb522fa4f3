"""A section for each test of stored maps: right numbers, right marks, right images."""

import csv
import io
import json
from dataclasses import replace

import numpy as np
import pytest

from heatproof import report
from heatproof.metrics.score import Curve, Pooled, Score, Scored
from heatproof.report import sections
from tests.report import synthetic


@pytest.fixture(scope="module")
def material():
    return synthetic.material(tests=[synthetic.probing()])


@pytest.fixture(scope="module")
def made(material):
    return report.compose(material)


@pytest.fixture
def page(made, parsed):
    return parsed(made.html)


def column(material, name, setting=""):
    *_, test = material.tests
    found = sections.section(test, material)
    (part,) = [p for p in found.scored if (p.score.name, p.score.setting) == (name, setting)]
    return part


def where(page, name, table="scores-probing"):
    """The column of a score."""
    return next(place for place, cell in enumerate(page.rows[table][0]) if cell.split(" ")[0] == name)


def with_values(scores, values, methods=("good", "random")):
    index = np.arange(len(next(iter(values.values()))[0].values))
    test = report.TestResult("probing", "probing", "asks", scores, values, index)
    return synthetic.material(tests=[test], methods=[m for m in synthetic.METHODS if m.name in methods])


def test_a_page_with_a_test_of_maps_is_well_formed(made, page):
    assert page.problems == []
    assert len(page.ids) == len(set(page.ids))
    assert {"test-probing", "scores-probing", "overview", "matrix"} <= set(page.ids)


def test_every_score_has_its_direction_and_its_chance_level(page):
    hit, cost, size = (page.rows["scores-probing"][0][where(page, name)] for name in ("hit", "cost", "size"))
    assert "↑ higher is better" in hit
    assert "chance: 0.500" in hit
    assert "↓ lower is better" in cost
    assert "no direction" in size


def test_a_score_without_direction_has_no_rank_and_no_mark(material, page):
    part = column(material, "size")
    assert {entry.rank for entry in part.entries} == {None}
    assert all(not entry.not_better_than for entry in part.entries)
    assert "not better" not in page.row("useless", "scores-probing")[where(page, "size")]


def test_low_is_good_where_lower_is_better(material, page):
    part = column(material, "cost")
    assert [part.entry(name).rank for name in ("good", "useless", "bad")] == [1, 2, 3]
    assert part.entry("good").versus["random"].outcome == "better"
    # The table shows the difference as it is, not turned: a good method costs less.
    assert "▲ −" in page.row("good", "scores-probing")[where(page, "cost")]
    assert "▼ +" in page.row("bad", "scores-probing")[where(page, "cost")]


def test_the_difference_to_random_comes_with_interval_effect_and_n(material, page):
    versus = column(material, "hit").entry("good").versus["random"]
    cell = page.row("good", "scores-probing")[1]
    assert f"{versus.gain:+.3f} [{versus.low:.3f}, {versus.high:.3f}] to random, d = {versus.effect:.2f}" in " ".join(
        cell.split()
    )
    assert page.row("good", "scores-probing")[-2:] == ["57–60", "0–3"]


def test_undefined_images_are_counted_and_left_out(material):
    entry = column(material, "hit").entry("good")
    assert (entry.n, entry.n_undefined) == (57, 3)
    values = next(p.values for p in synthetic.probing().values["good"] if p.name == "hit")
    assert entry.mean == pytest.approx(np.nanmean(values))


def test_the_chance_level_stands_in_the_cell_where_methods_differ_in_it():
    values = {
        name: [Scored("hit", np.linspace(0, 1, 20), chance=np.full(20, chance))]
        for name, chance in (("good", 0.25), ("random", 0.5))
    }
    found = column(with_values([Score("hit", "higher", "hits")], values), "hit")
    assert np.isnan(found.chance)
    assert [entry.chance for entry in found.entries] == [0.25, 0.5]


def test_a_pooled_score_is_that_of_all_images_with_interval_and_rank(material):
    part = column(material, "precision")
    sums = next(p.sums for p in synthetic.probing().values["good"] if p.name == "precision")
    entry = part.entry("good")
    assert entry.mean == pytest.approx(sums[:, 0].sum() / sums[:, 1].sum())
    assert entry.low < entry.mean < entry.high
    assert (entry.rank, entry.best_rank, entry.worst_rank) == (1, 1, 1)
    assert entry.versus["random"].outcome == "better"
    assert part.entry("bad").versus["random"].outcome == "worse"
    assert part.entry("useless").versus["random"].outcome == "undecided"


def test_a_pooled_score_counts_the_images_that_it_uses_and_compares_those_of_both_methods():
    def pooled(hits):
        hits = np.array(hits, dtype=np.float64)
        sums = np.stack([np.nan_to_num(hits), np.isfinite(hits)], 1)
        return [Pooled("share", sums, lambda t: t[:, 0] / np.maximum(t[:, 1], 1))]

    values = {"good": pooled([1, 1, 0, np.nan, 0]), "random": pooled([np.nan, 1, 0, 1, np.nan])}
    test = report.TestResult("probing", "probing", "asks", [Score("share", "higher", "share")], values, np.arange(5))
    entry = column(synthetic.material(tests=[test]), "share").entry("good")
    assert (entry.n, entry.n_undefined, entry.mean) == (4, 1, 0.5)
    versus = entry.versus["random"]
    assert (versus.n, versus.gain) == (2, 0)


def test_p_values_of_a_pooled_score_are_adjusted_over_the_methods():
    def pooled(rate):
        return [Pooled("share", np.stack([np.full(40, rate), np.ones(40)], 1), lambda t: t[:, 0] / t[:, 1])]

    values = {"good": pooled(0.9), "bad": pooled(0.8), "random": pooled(0.5), "centre": pooled(0.6)}
    test = report.TestResult("probing", "probing", "asks", [Score("share", "higher", "share")], values, np.arange(40))
    whole = synthetic.material(tests=[test])
    found = column(whole, "share")
    smallest = 2 / (1 + whole.settings.resamples)
    assert found.entry("good").versus["random"].p == pytest.approx(2 * smallest)
    assert found.entry("centre").versus["random"].p == pytest.approx(smallest)


def test_many_settings_of_one_number_become_a_chart(material, made, page):
    *_, test = material.tests
    (figure,) = sections.section(test, material).settings
    assert (figure.key, figure.chart.x_label) == ("probing-left", "removed")
    rows = [row for row in csv.DictReader(io.StringIO(made.files["probing-left.csv"])) if row["method"] == "good"]
    assert [float(row["removed"]) for row in rows] == [0.1, 0.2, 0.5, 1.0]
    assert all(row["n"] == "60" for row in rows)
    assert page.row("good", "numbers-probing-left")[1].startswith(f"{float(rows[0]['mean']):.3f} [")


def test_few_settings_are_columns_and_the_first_one_stands_for_the_score(material):
    *_, test = material.tests
    found = sections.section(test, material)
    assert [(p.score.setting, p.score.is_primary) for p in found.scored if p.score.name == "near"] == [
        ("tolerance=1", True),
        ("tolerance=3", False),
    ]


def test_a_mean_curve_has_a_band_and_its_file(material, made):
    curve = next(part for part in synthetic.probing().values["good"] if isinstance(part, Curve))
    rows = [row for row in csv.DictReader(io.StringIO(made.files["probing-fall.csv"])) if row["method"] == "good"]
    np.testing.assert_allclose([float(row["mean"]) for row in rows], curve.values.mean(axis=0), atol=1e-6)
    assert all(float(row["low"]) <= float(row["mean"]) <= float(row["high"]) for row in rows)
    charts = json.loads(made.html.split('id="charts">')[1].split("</script>")[0])
    bands = [trace for trace in charts["probing-fall"]["data"] if trace.get("fill")]
    assert len(bands) == len(synthetic.METHODS)


def test_every_figure_is_there_as_svg_png_and_numbers(made):
    stems = {name.rpartition(".")[0] for name in made.files if name.endswith(".svg")}
    assert {"probing-fall", "probing-left", "agreement-of-tests", "roar"} <= stems
    for stem in stems:
        assert made.files[f"{stem}.png"].startswith(b"\x89PNG")
        assert made.files[f"{stem}.csv"].count("\n") > 1


def test_a_long_curve_is_thinned_on_the_page_and_keeps_its_ends():
    x = np.linspace(0, 1, 500)
    values = {
        name: [Curve("fall", x, np.tile(1 - x, (5, 1)), "removed", "probability", "lower")]
        for name in ("good", "random")
    }
    test = report.TestResult("probing", "probing", "asks", [], values, np.arange(5))
    (figure,) = sections.section(test, synthetic.material(tests=[test])).curves
    assert len(figure.chart.xs) == sections.POINTS
    assert (figure.chart.xs[0], figure.chart.xs[-1]) == (0.0, 1.0)


def test_single_images_of_the_gallery_have_their_own_curves_and_scores(material, made):
    singles = json.loads(made.html.split('id="singles">')[1].split("</script>")[0])
    found = singles["probing"]
    assert found["images"] == [3, 8, 5]  # those of the gallery, in its order
    curve = next(part for part in synthetic.probing().values["bad"] if isinstance(part, Curve))
    np.testing.assert_allclose(found["curves"]["fall"]["methods"]["bad"][1], curve.values[8], atol=1e-4)
    hits = next(part for part in synthetic.probing().values["good"] if part.name == "hit").values
    assert found["scores"]["hit"]["good"][1] == pytest.approx(hits[8], abs=1e-4)
    assert "precision" not in found["scores"]  # it is no score of an image


def test_an_undefined_score_of_an_image_is_null_and_one_that_was_not_looked_at_is_left_out():
    test = synthetic.probing()
    found = sections.section(test, synthetic.material(tests=[test]))
    made = sections.singles([test], [found], [0, 999])
    assert made["probing"]["images"] == [0]
    assert made["probing"]["scores"]["hit"]["good"] == [None]


def test_without_removal_tests_the_verdict_is_read_off_the_headline_scores(parsed):
    nothing = {"retraining": [], "curves": None, "progress": []}
    page = parsed(report.compose(synthetic.material(tests=[synthetic.probing()], **nothing)).html)
    assert "1 of 3 methods beats every control" in page.text
    assert "Nothing has been tested yet" not in page.text


def test_a_test_that_does_not_recognise_the_oracle_is_said_not_to(parsed):
    test = synthetic.probing(quality=synthetic.QUALITY | {"oracle": -0.2})
    page = parsed(report.compose(synthetic.material(tests=[test])).html)
    assert "The right answer is not recognised in hit (probing)" in page.text


def test_lerf_s_main_scores_are_shown_once(parsed):
    curves = synthetic.curves()
    scores = [Score("abpc", "higher", "gap", headline=True), Score("morf_deviation", "higher", "deviation")]
    values = {
        name: [
            Scored("abpc", probability[:, 1, -1] - probability[:, 0, -1]),
            Scored("morf_deviation", 1 - probability[:, 0, -1]),
        ]
        for name, probability in curves.probability.items()
    }
    test = report.TestResult(sections.PERTURBATION, "lerf", "removes", scores, values, np.arange(60))
    page = parsed(report.compose(synthetic.material(tests=[test])).html)
    header = page.rows[f"scores-{sections.PERTURBATION}"][0]
    assert not any("abpc" in cell for cell in header)
    assert any("morf_ deviation" in cell for cell in header)
    assert "abpc" not in " ".join(page.rows["matrix"][0])


def test_twins_stand_below_their_method_and_count_as_controls(parsed):
    twin = report.Method("good+blurred", control=True, path="twin:blurred", twin_of="good")
    methods = (*synthetic.METHODS, twin)
    test = synthetic.probing(quality=synthetic.QUALITY | {"good+blurred": 0.5})
    page = parsed(report.compose(synthetic.material(tests=[test], methods=methods)).html)
    rows = [row[0] for row in page.rows["scores-probing"]]
    assert rows[rows.index("good") + 1] == "good+blurred"
    assert "1 of 3 methods" in page.text
    assert not page.row("good+blurred", "scores-probing")[1].startswith(("1.", "2.", "3."))


def test_names_of_scores_are_escaped(parsed):
    evil = "<script>alert(1)</script>"
    values = {"good": [Scored("hit", np.linspace(0, 1, 9), setting=evil)]}
    test = report.TestResult("probing", "probing", evil, [Score("hit", "higher", evil)], values, np.arange(9))
    html = report.compose(replace(synthetic.material(), tests=[test])).html
    assert "<script>alert(1)" not in html
    assert parsed(html).problems == []
