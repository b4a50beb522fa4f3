"""Agreement of methods, randomisation, and what forbids to read ROAR: tables, statements and files."""

import json
from dataclasses import replace

import numpy as np
import pytest
from scipy.cluster import hierarchy

from heatproof import report
from heatproof.report import retraining, similarity, wording
from tests.report import synthetic
from tests.report.synthetic import METHODS, SETTINGS

NAMES = ("good", "bad", "useless")


def alike():
    """`good` and `useless` agree, `bad` is apart; one image is undefined for `bad`."""
    rng = np.random.default_rng(2)
    mean = np.array([[1.0, 0.1, 0.9], [0.1, 1.0, 0.0], [0.9, 0.0, 1.0]])
    noise = rng.normal(0, 0.02, (12, 3, 3))
    values = mean + (noise + noise.transpose(0, 2, 1)) / 2 * (1 - np.eye(3))
    values[0, 1, :] = values[0, :, 1] = np.nan
    linkage = hierarchy.linkage([0.9, 0.1, 1.0], method="average")
    order = tuple(NAMES[leaf] for leaf in hierarchy.leaves_list(linkage))
    return report.Similarity(NAMES, {"spearman": values, "top_k_overlap": abs(values)}, order, linkage)


def steps(finals=None, check="top_down", score="spearman"):
    """Similarities that fall layer by layer to `finals`."""
    finals = finals or {"good": 0.1, "bad": 0.95, "useless": 0.45, "sobel": 1.0}
    found = []
    for method, final in finals.items():
        for step, layer in enumerate(("fc", "conv2", "conv1"), start=1):
            mean = 1 - (1 - final) * step / 3
            verdict = "" if step < 3 else "passes" if final < 0.4 else "fails" if final > 0.6 else "undecided"
            found.append(
                report.SanityStep(
                    method, check, step, layer, score, 30, 2, mean, 0.1, mean - 0.1, mean + 0.1, verdict,
                    model_independent=method == "sobel",
                )
            )  # fmt: skip
    return found


def line(score, metric, method, mean, fraction=0.3, **others):
    return report.RetrainingLine(score, metric, method, False, fraction, "neither", 3, mean, **others)


def test_methods_that_are_alike_stand_side_by_side():
    spearman, overlap = similarity.likenesses(alike(), SETTINGS)
    assert spearman.methods.index("bad") in (0, 2)
    a, b = spearman.methods.index("good"), spearman.methods.index("useless")
    assert abs(a - b) == 1
    assert spearman.mean[a, b] == pytest.approx(0.9, abs=0.03)
    assert spearman.low[a, b] < spearman.mean[a, b] < spearman.high[a, b]
    assert overlap.name == "top_k_overlap"


def test_undefined_pairs_are_counted_in_the_file():
    spearman, _ = similarity.likenesses(alike(), SETTINGS)
    rows = {tuple(text.split(",")[:2]): text.split(",")[2:4] for text in spearman.figure.csv.splitlines()}
    assert rows["good", "useless"] == ["12", "0"]
    assert rows["good", "bad"] == ["11", "1"]


def test_a_method_that_could_not_be_clustered_comes_last():
    whole = alike()
    part = report.Similarity(NAMES, whole.matrices, ("useless", "good"), hierarchy.linkage([0.1]), ("bad",))
    spearman, _ = similarity.likenesses(part, SETTINGS)
    assert spearman.methods == ("useless", "good", "bad")


def test_the_page_shows_the_matrix_with_n(parsed):
    made = report.compose(synthetic.material(similarity=alike()))
    page = parsed(made.html)
    assert page.problems == []
    cells = page.row("good", "likeness-spearman")
    assert any("n = 11" in cell for cell in cells)
    assert {"agreement-of-methods-spearman.svg", "agreement-of-methods-spearman.png"} <= made.files.keys()


def test_each_method_is_said_to_pass_or_not():
    said = {one.method: one for one in similarity.statements(steps(), METHODS)}
    assert {name: one.level for name, one in said.items()} == {
        "good": "good", "useless": "open", "bad": "bad", "sobel": "bad",
    }  # fmt: skip
    assert said["good"].text.startswith(
        "passes top down in every similarity (largest: spearman after top down 0.100 [0.000, 0.200]"
    )
    assert "the maps stay much the same (spearman after top down 0.950 [0.850, 1.050], n = 30)" in said["bad"].text
    assert "not look at the classifier" in said["sobel"].text


def test_one_failure_outweighs_all_passes():
    mixed = steps({"good": 0.1}) + steps({"good": 0.9}, score="ssim")
    (one,) = similarity.statements(mixed, METHODS)
    assert one.level == "bad"
    assert "ssim after top down" in one.text
    assert "spearman" not in one.text


def test_a_check_without_verdict_brings_no_statement():
    found = [s for s in steps() if s.step < 3]
    assert similarity.statements(found, METHODS) == []


def test_similarity_falls_layer_by_layer_in_the_chart():
    (figure,) = similarity.step_figures(steps(), METHODS)
    assert figure.chart.ticks == ("fc", "conv2", "conv1")
    assert [point.mean for point in figure.chart.lines[0].points] == pytest.approx([0.7, 0.4, 0.1])
    assert figure.csv.splitlines()[0].startswith("method,control,layer,n,mean")


def test_sanity_checks_have_a_section_and_a_column_of_the_matrix(parsed):
    other = replace(steps({"good": 0.6}, check="random_logit")[0], verdict="")
    page = parsed(report.compose(synthetic.material(sanity=[*steps(), other])).html)
    assert page.problems == []
    assert "sanity" in page.ids
    columns = page.rows["matrix"][0]
    place = columns.index("sanity checks")
    assert page.row("good", "matrix")[place] == "✓ pass"
    assert page.row("bad", "matrix")[place] == "✗ do not pass"
    assert "random other class" in page.text


MASKS = [
    line("accuracy", "mask_only", "good", 0.9, chance=0.25, low=0.85, high=0.95, images_low=0.8, images_high=0.97,
         p_holm=0.0001, leaks=True),
    line("accuracy", "mask_only", "bad", 0.26, chance=0.25, low=0.2, high=0.3, images_low=0.15, images_high=0.4, p_holm=0.4),
]  # fmt: skip


def test_a_method_whose_masks_tell_the_class_is_flagged_wherever_roar_is_read(parsed):
    page = parsed(report.compose(synthetic.material(retraining_lines=MASKS)).html)
    assert page.problems == []
    assert "ROAR cannot be read for good" in page.text
    assert wording.LEAKS in " ".join(page.row("good", "verdicts"))
    roar = page.row("good", "matrix")[1]
    assert wording.LEAKS in roar
    assert wording.LEAKS not in page.row("bad", "matrix")[1]
    assert "chance 25 %" in page.rows["mask-only"][0][1].replace("\u202f", " ")
    place = page.rows["matrix"][0].index("masks alone")
    assert page.row("good", "matrix")[place].startswith("✗ reveal the class")
    assert page.row("bad", "matrix")[place].startswith("✓ do not reveal the class")


def test_no_p_value_stands_alone(parsed):
    lines = [
        line("accuracy", "roar", "good", 0.5, difference_to_random=-0.2, difference_low=-0.3, difference_high=-0.1,
             cohens_d=-4.0, p_holm=0.01, images_low=-0.25, images_high=-0.15),
        line("accuracy", "roar", "bad", 0.5, difference_to_random=0.1, p_holm=0.5),  # one run: no interval, so no p
    ]  # fmt: skip
    page = parsed(report.compose(synthetic.material(retraining_lines=lines)).html)
    cell = page.row("good", "roar-differences")[1]
    assert cell == "−0.200 [−0.300, −0.100] runs and images [−0.250, −0.150] n = 3, d = −4.0, p = 0.010"
    assert page.row("bad", "roar-differences")[1] == "+0.100 not testable n = 3"


def test_conflict_of_the_orders_is_shown_for_each_fraction():
    lines = [
        line("order_kendall", "roar, kar", "", -0.33), line("order_spearman", "roar, kar", "", -0.5),
        line("order_kendall", "roar, kar", "", 0.4, fraction=float("nan")),
        line("order_spearman", "roar, kar", "", 0.5, fraction=float("nan")),
    ]  # fmt: skip
    assert [(o.where, o.kendall, o.spearman) for o in retraining.orders(lines)] == [
        ("30\u202f% removed", -0.33, -0.5),
        ("all fractions", 0.4, 0.5),
    ]


def test_what_the_tables_say_already_is_no_mark():
    marks = {"not_better_than": ("random", "good+blurred"), "not_testable_against": ("sobel",)}
    lines = [line("accuracy", "roar", "good", 0.5, fraction=f, **marks) for f in (0.1, 0.3)]
    assert retraining.marks(lines) == ["good, ROAR (10\u202f%, 30\u202f%): not better than good+blurred."]


def test_all_lines_are_in_a_file():
    made = report.compose(synthetic.material(retraining_lines=MASKS))
    header, first, _ = made.files["retraining.csv"].splitlines()
    assert header.startswith("score,metric,method,control,removed_fraction")
    assert first.startswith("accuracy,mask_only,good,False,0.3,neither,3,0.9")


def test_a_page_without_these_results_has_no_such_section(parsed):
    html = report.compose(synthetic.material(curves=None)).html
    page = parsed(html)
    assert not {"sanity", "likeness", "retraining", "tests"} & set(page.ids)
    assert json.loads(html.split('id="singles">')[1].split("</script>")[0]) == {}
