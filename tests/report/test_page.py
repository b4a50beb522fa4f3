"""The page: well formed, self-contained, and saying what the numbers say."""

import csv
import io
import json
import re
from dataclasses import replace

import numpy as np
import pytest

from heatproof import report
from heatproof.report.drawing import Drawing
from heatproof.report.figures import Figure
from heatproof.report.records import Progress
from tests.report import synthetic


@pytest.fixture(scope="module")
def made():
    return report.compose(synthetic.material())


@pytest.fixture
def page(made, parsed):
    return parsed(made.html)


def bare(**changes):
    """A page with nothing but what is asked for."""
    nothing = {"retraining": [], "curves": None, "health": [], "pictures": [], "training": None, "costs": []}
    return report.compose(synthetic.material(**(nothing | {"progress": []} | changes)))


def test_tags_are_balanced_and_ids_are_unique(page):
    assert page.problems == []
    assert len(page.ids) == len(set(page.ids))


def test_nothing_is_loaded_from_elsewhere(page):
    outside = [link for link in page.links if not link[2].startswith(("#", "data:"))]
    assert outside
    assert {(tag, name) for tag, name, _ in outside} == {("a", "href")}
    assert all(url.startswith("https://arxiv.org/abs/") for _, _, url in outside)
    assert {target[1:] for _, _, target in page.links if target.startswith("#")} <= set(page.ids)


def test_texts_from_outside_are_escaped(made, page):
    assert "<test>" not in made.html
    assert "Planted <test>" in page.text


def test_a_title_cannot_leave_its_place():
    evil = "</title><script>alert(1)</script>"
    methods = (replace(synthetic.METHODS[0], settings={"a": evil}), *synthetic.METHODS[1:])
    assert "alert(1)</script>" not in bare(title=evil, facts=[(evil, evil)], methods=methods, warnings=[evil]).html


def test_every_picture_and_chart_has_words(made, page):
    assert all(page.alternatives)
    charts = re.findall(r'role="img" aria-label="([^"]+)"', made.html)
    assert len(charts) == 5
    assert "good 0.97" in charts[0]


def test_the_headline_counts_the_methods_that_beat_every_control(page):
    assert "1 of 3 methods beats every control in all 4 tests" in page.text
    assert "good does better than random, centre and sobel in ROAR, KAR, MoRF and LeRF" in page.text


def test_only_methods_that_do_not_beat_a_control_carry_its_mark(page):
    for table in ("scores-run", "scores-image"):
        assert all("not better" not in cell for cell in page.row("good", table))
        assert all("not better than random, centre or sobel" in cell for cell in page.row("useless", table)[1:5])
        assert all("not better" not in cell for cell in page.row("oracle", table))


def test_every_header_of_a_score_says_its_direction(page):
    for table in ("scores-run", "scores-image"):
        header = page.rows[table][0]
        assert all(("↑ higher" in cell) or ("↓ lower" in cell) for cell in header[1:5])
    assert "↓ lower is better" in page.rows["scores-image"][0][2]


def test_the_numbers_below_a_chart_are_those_of_its_file(made, page):
    for key in ("roar", "kar", "morf", "lerf"):
        rows = list(csv.DictReader(io.StringIO(made.files[f"{key}.csv"])))
        for name in ("good", "random"):
            cells = page.row(name, f"numbers-{key}")[1:]
            lines = [row for row in rows if row["method"] == name]
            assert len(cells) == len(lines) > 3
            for cell, line in zip(cells, lines, strict=True):
                assert cell.startswith(
                    f"{float(line['mean']):.3f} [{float(line['low']):.3f}, {float(line['high']):.3f}]"
                )
                assert f"n = {line['n']}" in cell


def test_the_numbers_are_the_means_of_the_runs(made):
    roar = synthetic.retraining("roar")
    rows = [r for r in csv.DictReader(io.StringIO(made.files["roar.csv"])) if r["method"] == "bad"]
    np.testing.assert_allclose([float(r["mean"]) for r in rows], roar.accuracy["bad"].mean(axis=0), atol=1e-6)
    np.testing.assert_allclose([float(r["sd"]) for r in rows], roar.accuracy["bad"].std(axis=0, ddof=1), atol=1e-6)
    gaps = (roar.accuracy["bad"] - roar.accuracy["random"]).mean(axis=0)
    np.testing.assert_allclose([float(r["difference_to_random"]) for r in rows], gaps, atol=1e-6)


def test_kar_says_what_is_kept(made, page):
    assert "30 % 70 % kept" in " ".join(page.rows["numbers-kar"][0]).replace("\u202f", " ")
    assert "30\u202f%<br><i>70\u202f%</i>" in made.html.split('id="charts">')[1].split("</script>")[0].encode().decode(
        "unicode_escape"
    )


def test_charts_of_the_page_and_of_the_files_hold_the_same_lines(made):
    charts = json.loads(made.html.split('id="charts">')[1].split("</script>")[0])
    names = [method.name for method in synthetic.METHODS]
    for key in ("roar", "kar", "morf", "lerf"):
        assert [trace["name"] for trace in charts[key]["data"] if trace.get("showlegend", True)] == names
        assert all(f">{name}<" in made.files[f"{key}.svg"] for name in names)


def test_downloads_hold_the_files(made, parsed):
    figure = Figure("some", "Some", "a,b\n1,2\n", Drawing("<svg/>", b"png"))
    assert figure.csv_link == "data:text/csv;charset=utf-8,a%2Cb%0A1%2C2%0A"
    assert figure.files == {"some.csv": "a,b\n1,2\n", "some.svg": "<svg/>", "some.png": b"png"}
    # Four charts, the agreement of the tests, two critical-difference diagrams, the summary matrix and all scores.
    assert sum(target.startswith("data:text/csv") for _, _, target in parsed(made.html).links) == 9


def test_a_file_that_is_too_large_lies_beside_the_page_only():
    figure = Figure("some", "Some", "1,2\n" * 100_000, Drawing("<svg/>", b"png"))
    assert figure.csv_link == ""
    assert figure.svg_link


def test_the_same_material_gives_the_same_bytes(made):
    again = report.compose(synthetic.material())
    assert again.html == made.html
    assert again.files == made.files


def test_a_page_without_any_result_says_so(parsed):
    page = parsed(bare(progress=[Progress("Retraining", "heatproof roar", 0, 10, "cells")]).html)
    assert page.problems == []
    assert "Nothing has been tested yet" in page.text
    assert "Retraining: 0 of 10 cells heatproof roar" in page.text
    assert not {"scores", "curves", "gallery", "maps", "agreement", "classifier"} & set(page.ids)


def test_a_page_without_charts_needs_no_script():
    assert len(bare().html) < 60_000


@pytest.mark.parametrize(
    ("part", "section"),
    [("health", "maps"), ("pictures", "gallery"), ("training", "classifier"), ("curves", "curves")],
)
def test_a_section_is_there_with_its_results_only(part, section, parsed):
    whole = synthetic.material()
    page = parsed(bare(**{part: getattr(whole, part)}).html)
    assert page.problems == []
    assert section in page.ids
    assert f"#{section}" in [target for _, _, target in page.links]


def test_what_was_trained_beside_the_classifier_is_told():
    html = bare(learned=[("DiffMask", "keeps <half> of the patches")]).html
    assert 'id="learned"' in html
    assert "keeps &lt;half&gt; of the patches" in html
    assert 'id="learned"' not in bare().html
