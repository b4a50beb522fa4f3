"""The stage: what belongs to the configuration, what is missing, what is stale, and what is not done twice."""

import csv
import json
import logging

import numpy as np
import pytest

from heatproof import artefacts
from heatproof.stages import report
from heatproof.stages.results import Results
from tests.report import run_folder, synthetic

TRAINED, MAPS, CELLS, CURVES = "train_cls", "extract_cams", "retrain_cls", "pixel_perturbation_analysis"


@pytest.fixture
def part_of(whole, tmp_path):
    """Makes a configuration that has some of the results only."""
    return lambda *parts: run_folder.copy(whole, tmp_path / "own", *parts)


def logged(caplog, run):
    caplog.clear()
    with caplog.at_level(logging.INFO):
        report.run(run)
    return [record.getMessage() for record in caplog.records]


def outdir(path):
    return run_folder.open_run(path).config.outdir


def test_the_page_shows_what_the_files_hold(whole, page_of):
    page = page_of(whole)
    assert page.problems == []
    assert "A <small> run" in page.text
    assert "1 of 3 methods beats every control in all 4 tests" in page.text
    assert "147 of 147" in page.text
    assert "test accuracy 81.2 %" in page.text
    assert "This page is partial" not in page.text
    accuracy = synthetic.retraining("roar").accuracy["good"].mean(axis=0)
    assert page.row("good", "numbers-roar")[2].startswith(f"{accuracy[1]:.3f} [")


def test_figures_and_their_numbers_lie_beside_the_page(whole):
    folder = outdir(whole) / "report" / "figures"
    keys = {"roar", "kar", "morf", "lerf", "agreement-of-tests"}
    keys |= {"critical-difference-morf-aopc", "critical-difference-lerf-area"}
    keys |= {f"pixel_perturbation_analysis-{order}_deviation" for order in ("morf", "lerf")}
    names = {f"{key}.{kind}" for key in keys for kind in ("csv", "svg", "png")}
    assert {path.name for path in folder.iterdir()} == names | {"summary.csv", "matrix.csv"}
    assert (folder / "roar.png").read_bytes().startswith(b"\x89PNG")
    with (folder / "summary.csv").open(newline="") as file:
        rows = {(row["test"], row["score"], row["method"]): row for row in csv.DictReader(file)}
    assert rows["ROAR", "area to random", "good"]["against_random"] == "better"
    assert rows["ROAR", "area to random", "useless"]["against_random"] == "undecided"


def test_a_second_run_does_nothing(whole, caplog, monkeypatch):
    page = outdir(whole) / "report" / "index.html"
    before = page.stat().st_mtime_ns
    monkeypatch.setattr(report.report, "compose", None)
    assert logged(caplog, run_folder.open_run(whole)) == [f"{page}: complete"]
    assert page.stat().st_mtime_ns == before


def test_a_changed_setting_result_or_page_makes_it_again(whole, caplog, monkeypatch):
    page = outdir(whole) / "report" / "index.html"
    changed = run_folder.open_run(whole, "report.confidence=0.9", dry_run=True)
    assert logged(caplog, changed) == [f"{page}: results or settings have changed, to be made again"]
    monkeypatch.setattr(report.report, "RESULTS_VERSION", 0)
    assert "to be made again" in logged(caplog, run_folder.open_run(whole, dry_run=True))[0]


def test_a_page_that_somebody_changed_is_made_again(part_of, caplog):
    started = part_of(TRAINED)
    report.run(run_folder.open_run(started))
    page = outdir(started) / "report" / "index.html"
    whole = page.read_text()
    page.write_text(whole + "x")
    assert "the page is made again" in logged(caplog, run_folder.open_run(started))[0]
    assert page.read_text() == whole


def test_a_dry_run_writes_nothing(part_of, caplog):
    started = part_of(TRAINED)
    messages = logged(caplog, run_folder.open_run(started, dry_run=True))
    assert messages[-1] == f"{outdir(started) / 'report' / 'index.html'}: to be made"
    assert not (outdir(started) / "report").exists()


def test_a_run_that_has_only_begun_has_a_page(part_of, page_of):
    started = part_of(TRAINED)
    report.run(run_folder.open_run(started))
    page = page_of(started)
    assert page.problems == []
    assert "Nothing has been tested yet" in page.text
    assert "Retraining: 0 of 147 cells heatproof evaluate-attribution-maps-roar --config FILE" in page.text
    assert "Attribution maps: 0 of 24 files heatproof extract-attribution-maps --config FILE" in page.text
    assert "classifier" in page.ids


def test_part_of_a_grid_is_compared_run_by_run(part_of, page_of):
    started = part_of(TRAINED, MAPS, CELLS)
    for path in (outdir(started) / CELLS).rglob("seed*.json"):
        if path.name == "seed2.json" or "kar" in path.parts:
            path.unlink()
    report.run(run_folder.open_run(started))
    page = page_of(started)
    assert "Retraining: 50 of 147 cells" in page.text
    parts, _ = Results(run_folder.open_run(started)).retraining()
    assert np.isfinite(parts[0].accuracy["good"]).all(axis=1).tolist() == [True, True, False]
    assert [part.metric for part in parts] == ["roar"]
    assert page.row("good", "scores-run")[-2:] == ["2", "1"]
    assert "numbers-roar" in page.ids
    assert "numbers-kar" not in page.ids


def test_cells_of_other_settings_are_left_out_and_named(whole):
    found, progress = Results(run_folder.open_run(whole, "retrain_cls.nb_epochs=9")).retraining()
    assert (found, progress.done) == ([], 0)
    assert progress.remarks == ("147 cells were made with other settings (training.nb_epochs: 5 -> 9); left out.",)


def test_cells_of_maps_that_were_made_anew_are_left_out(part_of):
    started = part_of(TRAINED, MAPS, CELLS)
    for path in (outdir(started) / CELLS).glob("*/good/*/*.json"):
        result = json.loads(path.read_text())
        result["origin"]["maps"]["test"] = "older"
        path.write_text(json.dumps(result))
    found, progress = Results(run_folder.open_run(started)).retraining()
    assert (progress.done, progress.wanted) == (129, 147)
    assert progress.remarks == (
        "18 cells were made with other settings (maps of good that have been made anew since); left out.",
    )
    assert np.isnan(found[0].accuracy["good"][:, 1:]).all()


def test_cells_that_disagree_about_the_data_are_left_out(part_of):
    started = part_of(TRAINED, MAPS, CELLS)
    cell = outdir(started) / "retrain_cls" / "roar" / "bad" / "30" / "seed1.json"
    result = json.loads(cell.read_text())
    artefacts.write_json(cell, result | {"test_images": 47})
    _, progress = Results(run_folder.open_run(started)).retraining()
    assert progress.done == 146
    assert progress.remarks == ("1 cell was made from other data than the rest; left out.",)


def test_other_data_than_the_configuration_s_is_left_out(whole):
    other = Results(run_folder.open_run(whole, "data.options.difficulty=0.5"))
    assert other.retraining()[0] == []
    assert other.curves() is None
    assert other.maps.readers == {}


def test_failed_cells_are_named(part_of):
    started = part_of(TRAINED)
    path = outdir(started) / "retrain_cls" / "roar" / "bad" / "30" / "seed1.error"
    artefacts.write_text(path, "Traceback")
    _, progress = Results(run_folder.open_run(started)).retraining()
    assert progress.remarks == (f"1 cell has failed; see {path}.",)


def test_curves_of_another_fill_are_left_out(whole):
    other = Results(run_folder.open_run(whole, "pixel_perturbation_analysis.fill=black"))
    [progress] = other.test_progress()
    assert other.curves() is None
    assert len(progress.remarks) == 1
    assert '(fill: "mean" -> "black")' in progress.remarks[0]


def test_ties_and_constant_maps_are_counted(part_of):
    started = part_of(TRAINED)
    run_folder.write_maps(started, constant_rows=(0, 7))
    found = {health.method: health for health in Results(run_folder.open_run(started)).health()}
    assert (found["good"].images, found["good"].constant, found["good"].invalid) == (48, 2, 0)
    assert found["bad"].signed
    assert not found["good"].signed
    # Of |N(0, 1)| about 13 % lie above 1.5: the rest of `useless` ties at zero, across the cut at 30 % but not at 10 %.
    constant = 2 / 48
    assert found["useless"].tied[0.1] == pytest.approx(constant, abs=0.02)
    assert found["useless"].tied[0.3] == pytest.approx(0.87 * (1 - constant) + constant, abs=0.02)
    assert (found["good"].seconds, found["good"].made) == (0.5, 48)


def test_the_gallery_shows_right_and_wrong_predictions_with_all_maps(whole):
    pictures, remarks = Results(run_folder.open_run(whole)).pictures(6)
    assert remarks == ()
    assert [picture.is_right for picture in pictures] == [True] * 4 + [False] * 2
    assert all(list(picture.maps) == list(synthetic.QUALITY) for picture in pictures)
    assert all(picture.region.any() for picture in pictures)
    assert pictures[0].label == pictures[0].prediction
    assert pictures[-1].label != pictures[-1].prediction == pictures[-1].target


def test_a_missing_data_set_costs_the_pictures_only(whole, tmp_path):
    run = run_folder.open_run(whole, "data.dataset=ImageFolder", f"data.dataset_dir={tmp_path}", "data.options={}")
    results = Results(run)
    assert results.fingerprints == {}
    assert results.pictures(4)[1] == ("The images of the data set are not there, so no pictures are shown.",)
    assert results.retraining()[1].done == 147
    assert results.class_names[0] == "horizontal"
