"""The stage: what belongs to the configuration, what is missing, what is stale, and what is not done twice."""

import csv
import logging

import numpy as np
import pytest

from heatproof import artefacts, records
from heatproof.stages import report
from heatproof.stages.results import Results
from tests.report import run_folder, synthetic

TRAINED, MAPS, CELLS, CURVES = "train_cls", "extract_cams", "retrain_cls", "pixel_perturbation_analysis"
ROAR = "evaluate-attribution-maps-roar"


@pytest.fixture
def part_of(whole, tmp_path):
    """Makes a configuration that has some of the results only."""
    return lambda *parts: run_folder.copy(whole, tmp_path / "own", *parts)


def logged(caplog, run):
    caplog.clear()
    with caplog.at_level(logging.INFO):
        report.run(run)
    return [record.getMessage() for record in caplog.records]


def told(run):
    """How the page stands."""
    (page,) = report.plan(run)
    return page.status()


def progress_of(results, command):
    return results.stages[command].progress


def results_of(path, *overrides):
    return Results.of(run_folder.open_run(path, *overrides))


def without_images(folder):
    return "data.dataset=ImageFolder", f"data.dataset_dir={folder}", "data.options={}"


def outdir(path):
    return run_folder.open_run(path).config.outdir


def test_the_page_shows_what_the_files_hold(whole, page_of):
    page = page_of(whole)
    assert page.problems == []
    assert "A <small> run" in page.text
    assert "1 of 3 methods beats every control in all 4 tests" in page.text
    assert "147 of 147" in page.text
    assert not [part for part in Results.of(run_folder.open_run(whole)).progress() if part.remarks]
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


def test_a_changed_setting_result_or_page_makes_it_again(whole, monkeypatch):
    changed = run_folder.open_run(whole, "report.confidence=0.9", dry_run=True)
    assert told(changed).state == "stale"
    assert told(changed).why.startswith("configuration")
    monkeypatch.setattr(report.report, "RESULTS_VERSION", 0)
    assert told(run_folder.open_run(whole, dry_run=True)).why.startswith("page: [")


def test_a_page_that_somebody_changed_is_made_again(part_of, caplog):
    started = part_of(TRAINED)
    report.run(run_folder.open_run(started))
    page = outdir(started) / "report" / "index.html"
    whole = page.read_text()
    page.write_text(whole + "x")
    assert "damaged (checksum); to be made again" in logged(caplog, run_folder.open_run(started))[0]
    assert page.read_text() == whole


def test_a_plan_writes_nothing(part_of):
    started = part_of(TRAINED)
    assert told(run_folder.open_run(started, dry_run=True)).state == "missing"
    assert not (outdir(started) / "report").exists()


def test_a_run_that_has_only_begun_has_a_page(part_of, page_of):
    started = part_of(TRAINED)
    report.run(run_folder.open_run(started))
    page = page_of(started)
    assert page.problems == []
    assert "Nothing has been tested yet" in page.text
    assert "Retraining: 0 of 148 results heatproof evaluate-attribution-maps-roar --config FILE" in page.text
    assert "Attribution maps: 0 of 24 results heatproof extract-attribution-maps --config FILE" in page.text
    assert "classifier" in page.ids


def test_part_of_a_grid_is_compared_run_by_run(part_of, page_of):
    started = part_of(TRAINED, MAPS, CELLS)
    for path in (outdir(started) / CELLS).rglob("seed*.json"):
        if path.name == "seed2.json" or "kar" in path.parts:
            path.unlink()
    report.run(run_folder.open_run(started))
    page = page_of(started)
    assert "Retraining: 50 of 148 results" in page.text
    parts = results_of(started).retraining()
    assert np.isfinite(parts[0].accuracy["good"]).all(axis=1).tolist() == [True, True, False]
    assert [part.metric for part in parts] == ["roar"]
    assert page.row("good", "scores-run")[-2:] == ["2", "1"]
    assert "numbers-roar" in page.ids
    assert "numbers-kar" not in page.ids


def test_cells_of_other_settings_are_left_out_and_named(whole):
    results = results_of(whole, "retrain_cls.nb_epochs=9")
    progress = progress_of(results, ROAR)
    assert (results.retraining(), progress.done) == ([], 0)
    assert progress.remarks == (
        "retrain_cls/intact/0/seed0.json and 146 others were made with other settings (training.nb_epochs: 5 -> 9); left out.",
    )
    assert results.retraining_lines() == []


def test_cells_of_maps_that_were_made_anew_are_left_out(part_of):
    started = part_of(TRAINED, MAPS, CELLS)
    for path in (outdir(started) / CELLS).glob("*/good/*/*.json"):
        result = records.read(path)
        result["origin"]["maps"]["test"] = "older"
        records.write(path, **{name: result[name] for name in result if name != "sha256"})
    results = results_of(started)
    progress = progress_of(results, ROAR)
    assert (progress.done, progress.wanted) == (129, 148)
    (remark,) = progress.remarks
    assert remark.startswith(
        "retrain_cls/roar/good/10/seed0.json and 17 others were made with other settings (maps.test: "
    )
    assert np.isnan(results.retraining()[0].accuracy["good"][:, 1:]).all()


def test_without_the_images_cells_that_disagree_about_them_are_left_out(part_of, tmp_path):
    started = part_of(TRAINED, MAPS, CELLS)
    cell = outdir(started) / "retrain_cls" / "roar" / "bad" / "30" / "seed1.json"
    result = records.read(cell)
    result["origin"]["data"]["test"] = "others"
    records.write(cell, **{name: result[name] for name in result if name != "sha256"})
    progress = progress_of(results_of(started, *without_images(tmp_path)), ROAR)
    assert progress.remarks[0] == (
        "retrain_cls/roar/bad/30/seed1.json was made with other settings (from other data than the rest); left out."
    )


def test_a_damaged_result_is_left_out_and_named(part_of):
    started = part_of(TRAINED, MAPS, CELLS)
    cell = outdir(started) / "retrain_cls" / "roar" / "bad" / "30" / "seed1.json"
    cell.write_text(cell.read_text().replace('"test_accuracy": 0.', '"test_accuracy": 0.9'))
    (outdir(started) / "extract_cams" / "good" / "train.h5").write_bytes(b"nothing")
    results = results_of(started)
    assert progress_of(results, ROAR).remarks == (
        "retrain_cls/roar/bad/30/seed1.json is damaged (retrain_cls/roar/bad/30/seed1.json: damaged (checksum)); left out.",
    )
    (remark,) = progress_of(results, "extract-attribution-maps").remarks
    assert remark.startswith("extract_cams/good/train.h5 is damaged (")


def test_other_data_than_the_configuration_s_is_left_out(whole):
    other = results_of(whole, "data.options.difficulty=0.5")
    assert other.retraining() == []
    assert other.curves() is None
    assert other.maps == {}


def test_failed_cells_are_named(part_of):
    started = part_of(TRAINED)
    path = outdir(started) / "retrain_cls" / "roar" / "bad" / "30" / "seed1.error"
    artefacts.write_text(path, "Traceback")
    assert progress_of(results_of(started), ROAR).remarks[0] == (
        f"retrain_cls/roar/bad/30/seed1.json has failed; see {path}."
    )


def test_curves_of_another_fill_are_left_out(whole):
    other = results_of(whole, "pixel_perturbation_analysis.fill=black")
    assert other.curves() is None
    assert any('(fill: "mean" -> "black")' in remark for remark in progress_of(other, "lerf").remarks)


def test_ties_and_constant_maps_are_counted(part_of):
    started = part_of(TRAINED)
    run_folder.write_maps(started, constant_rows=(0, 7))
    found = {health.method: health for health in results_of(started).health()}
    assert (found["good"].images, found["good"].constant, found["good"].invalid) == (48, 2, 0)
    assert found["bad"].signed
    assert not found["good"].signed
    # Of |N(0, 1)| about 13 % lie above 1.5: the rest of `useless` ties at zero, across the cut at 30 % but not at 10 %.
    constant = 2 / 48
    assert found["useless"].tied[0.1] == pytest.approx(constant, abs=0.02)
    assert found["useless"].tied[0.3] == pytest.approx(0.87 * (1 - constant) + constant, abs=0.02)
    assert (found["good"].seconds, found["good"].made) == (0.5, 48)


def test_the_gallery_shows_right_and_wrong_predictions_with_all_maps(whole):
    pictures, remarks = results_of(whole).pictures(6)
    assert remarks == ()
    assert [picture.is_right for picture in pictures] == [True] * 4 + [False] * 2
    assert all(list(picture.maps) == list(synthetic.QUALITY) for picture in pictures)
    assert all(picture.region.any() for picture in pictures)
    assert pictures[0].label == pictures[0].prediction
    assert pictures[-1].label != pictures[-1].prediction == pictures[-1].target


def test_a_missing_data_set_costs_the_pictures_only(whole, tmp_path):
    results = results_of(whole, *without_images(tmp_path))
    assert not results.run.has_images
    assert results.pictures(4)[1] == ("The images of the data set are not there, so no pictures are shown.",)
    assert results.networks() == (147, 147)
    assert results.class_names[0] == "horizontal"
