"""Sentences appear when their numbers say so, and only then."""

import pytest

from heatproof import report
from heatproof.report import findings, scores, wording
from tests.report import synthetic
from tests.report.synthetic import METHODS, QUALITY, SETTINGS


def scored(retraining=(), curves=None, methods=METHODS):
    found = list(scores.retraining_scores(retraining, methods, SETTINGS))
    return found + (
        list(scores.perturbation_scores(synthetic.perturbation(curves), methods, SETTINGS)) if curves else []
    )


def verdict(*arguments, **options):
    return findings.verdict(scored(*arguments, **options), options.get("methods", METHODS), 0.95)


def titles(curves=None, retraining=(), health=(), label_targets=False):
    found = findings.findings(scored(retraining, curves), curves, health, METHODS, label_targets=label_targets)
    return [finding.title for finding in found]


def test_a_method_that_beats_every_control_passes():
    marks = {row.method: [mark.passes for mark in row.marks] for row in verdict([synthetic.retraining("roar")]).rows}
    assert marks == {"good": ["all"], "useless": ["none"], "bad": ["none"]}


def test_a_method_equal_to_random_is_not_better_and_not_worse():
    (row,) = [row for row in verdict([synthetic.retraining("roar")]).rows if row.method == "useless"]
    assert row.marks[0].text == "worse than centre and sobel; not better than random"


def test_a_mixed_method_is_told_where_it_fails():
    curves = synthetic.curves(quality=QUALITY | {"useless": 0.15})
    found = verdict(curves=curves)
    assert "beats every control" in found.headline
    (row,) = [row for row in found.rows if row.method == "useless"]
    assert [mark.passes for mark in row.marks] == ["some", "some"]


def test_methods_are_listed_best_first():
    assert [row.method for row in verdict(curves=synthetic.curves()).rows] == ["good", "useless", "bad"]


def test_one_run_gives_no_verdict():
    part = synthetic.retraining("roar", runs=(0,))
    found = verdict([part])
    assert found.headline == "No verdict yet"
    assert {mark.text for row in found.rows for mark in row.marks} == {"one run: no interval"}
    assert titles(retraining=[part]) == ["One run only in ROAR"]


def test_without_a_control_there_is_no_verdict():
    quality = {name: value for name, value in QUALITY.items() if name in ("good", "bad")}
    found = verdict([synthetic.retraining("roar", quality=quality)])
    assert found.headline == "No verdict without a control"


def test_a_test_that_recognises_the_oracle_is_said_to():
    assert titles(synthetic.curves(quality=QUALITY | {"bad": 0.3})) == ["The tests recognise the right answer"]


def test_a_test_that_does_not_recognise_the_oracle_is_said_not_to():
    curves = synthetic.curves(quality=QUALITY | {"oracle": -0.2, "good": -0.3, "useless": -0.3, "bad": -0.3})
    assert titles(curves)[0] == "The right answer is not recognised in MoRF and LeRF"


def test_a_method_above_the_oracle_is_shown_and_explained():
    curves = synthetic.curves(quality=QUALITY | {"oracle": 0.5, "bad": 0.3})
    retraining = [synthetic.retraining("roar", quality=QUALITY | {"bad": 0.3})]
    (finding,) = [
        found for found in findings.findings(scored(retraining, curves), curves, [], METHODS) if "oracle" in found.title
    ]
    assert finding.title == "good beats the oracle in MoRF and LeRF, without retraining"
    words = " ".join((*finding.points, *finding.paragraphs))
    # Slopes 0.27 apart at six steps whose mean is 0.1917.
    assert "MoRF AOPC, difference to oracle: good +0.05" in words
    assert "n = 60" in words
    assert "push it to another class" in words
    assert "the prediction changes on" in words
    assert "Where networks are retrained (ROAR), it does not beat the oracle." in words


def test_who_beats_the_oracle_where_is_told_for_each_test():
    # In KAR the other way round: `bad` is above the oracle there only.
    parts = [
        synthetic.retraining("roar", quality=QUALITY | {"oracle": 0.6}),
        synthetic.retraining("kar", quality=QUALITY | {"oracle": 0.6, "good": 0.1, "bad": 0.9}),
    ]
    assert "good beats the oracle in ROAR, bad in KAR" in titles(retraining=parts)


def test_an_oracle_with_ties_is_said_to_have_no_order_within_the_object():
    part = synthetic.retraining("roar", quality=QUALITY | {"oracle": 0.6})
    tied = report.MapHealth("oracle", 200, 0, 0, False, 100, {0.1: 0.9})
    words = "does not order the pixels within the object"
    with_ties = findings.findings(scored([part]), None, [tied], METHODS)
    assert any(words in paragraph for finding in with_ties for paragraph in finding.paragraphs)
    without = findings.findings(scored([part]), None, [], METHODS)
    assert not any(words in paragraph for finding in without for paragraph in finding.paragraphs)


def test_a_method_below_the_oracle_brings_no_such_sentence():
    assert not [title for title in titles(synthetic.curves()) if "beats the oracle" in title]


def test_random_above_a_method_is_shown():
    assert "Random beats bad in MoRF and LeRF" in titles(synthetic.curves())
    assert "Random beats bad in ROAR" in titles(retraining=[synthetic.retraining("roar")])
    assert not [t for t in titles(synthetic.curves(quality=QUALITY | {"bad": 0.1})) if t.startswith("Random")]


def test_ties_constant_and_invalid_maps_are_told():
    health = [report.MapHealth("good", 200, 7, 0, False, 100, {0.1: 0.02, 0.5: 0.62})]
    health.append(report.MapHealth("bad", 200, 0, 2, False, 100, {0.1: 0.0, 0.5: 0.0}))
    found = findings.findings([], None, health, METHODS, label_targets=True)
    assert [finding.title for finding in found] == [
        "Part of an order is drawn, not the method's",
        "Maps of one value only",
        "Maps that hold NaN or infinity",
        "The maps explain the true class",
    ]
    assert found[0].points == ("good: 62\u202f% of the pixels tie at 50\u202f% removed",)
    assert found[1].points == ("good: 7 of 200",)
    assert found[2].points == ("bad: 2 of 200",)


def test_controls_may_tie():
    assert titles(health=[report.MapHealth("oracle", 200, 5, 0, False, 100, {0.5: 0.9})]) == []


def test_opposite_orders_that_rank_alike_agree_at_every_fraction():
    turned = synthetic.curves(quality={name: -value for name, value in QUALITY.items()})
    ((pair, methods, values),) = findings.orders(METHODS, turned)
    assert (pair, methods) == ("MoRF and LeRF", 3)
    assert [value for _, value in values] == pytest.approx([1.0] * 5)


def test_two_methods_are_too_few_to_compare_orders():
    quality = {name: value for name, value in QUALITY.items() if name != "bad"}
    assert findings.orders(METHODS, synthetic.curves(quality=quality)) == []


def mask_line(method, mean, leaks=False):
    return report.RetrainingLine(
        "accuracy", "mask_only", method, False, 0.3, "neither", 3, mean, chance=0.25, images_low=mean - 0.05,
        images_high=mean + 0.05, leaks=leaks,
    )  # fmt: skip


def test_masks_that_tell_the_class_make_roar_unreadable():
    lines = [mask_line("good", 0.8, leaks=True), mask_line("bad", 0.26)]
    (finding,) = findings.findings([], None, [], METHODS, lines=lines)
    assert finding.title == "ROAR cannot be read for good"
    assert finding.points[0].startswith(
        "good, 30\u202f% removed: accuracy 80\u202f% [0.750, 0.850] from the masks alone"
    )
    found = findings.verdict(scored([synthetic.retraining("roar")]), METHODS, 0.95, findings.leaking(lines))
    marks = {row.method: row.marks[0] for row in found.rows}
    assert marks["good"].text == wording.LEAKS
    assert marks["good"].passes == "unknown"
    assert marks["bad"].passes == "none"
