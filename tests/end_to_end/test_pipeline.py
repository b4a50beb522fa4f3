"""The real commands on generated data: what they leave, what they do not do twice, and what survives a kill."""

import contextlib
import csv
import json
import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from heatproof import store
from tests.end_to_end.conftest import heatproof, results

KILLS = int(os.environ.get("HEATPROOF_KILLS", "2"))


def table(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_every_stage_leaves_its_files(finished):
    names = set(results(finished))
    methods = ("gradcam", "smoothgrad", "random", "oracle")
    expected = {
        "train_cls/best_model.pth",
        "train_cls/best_model.json",
        "train_cls/history.csv",
        "data/statistics.json",
    }
    expected |= {f"extract_cams/{m}/{s}.h5" for m in methods for s in ("train", "validation", "test")}
    expected |= {f"retrain_cls/{r}/{m}/30/seed{k}.json" for r in ("roar", "kar") for m in methods for k in (0, 1)}
    expected |= {f"retrain_cls/{name}" for name in ("results.csv", "summary.csv", "summary.json")}
    expected |= {f"retrain_cls/intact/0/seed{k}.json" for k in (0, 1)}
    expected |= {f"pixel_perturbation_analysis/{m}.h5" for m in methods} | {"pixel_perturbation_analysis/results.csv"}
    expected |= {"pixel_perturbation_analysis/results.json"}
    assert names == expected
    assert (finished.parent / "out" / "report" / "index.html").is_file()


def test_the_oracle_beats_random(finished):
    rows = table(finished.parent / "out" / "pixel_perturbation_analysis" / "results.csv")
    means = {(r["method"], r["score"]): float(r["mean"]) for r in rows}
    assert means["oracle", "morf_area"] < means["random", "morf_area"]
    assert means["oracle", "lerf_area"] > means["random", "lerf_area"]
    [line] = [r for r in rows if (r["method"], r["score"]) == ("oracle", "morf_area")]
    assert float(line["difference_to_random"]) == pytest.approx(
        means["oracle", "morf_area"] - means["random", "morf_area"], abs=1e-12
    )
    assert float(line["difference_low"]) <= float(line["difference_to_random"]) <= float(line["difference_high"])


def test_images_and_maps_are_paired_by_index(finished):
    outdir = finished.parent / "out"
    reader = store.MapReader(outdir / "extract_cams" / "oracle" / "test.h5")
    curves = store.RowReader(outdir / "pixel_perturbation_analysis" / "oracle.h5")
    chosen = curves.read("index")
    assert len(set(chosen.tolist())) == 40
    np.testing.assert_array_equal(curves.read("target"), reader.targets[chosen])
    logits = reader.logits[chosen].astype(np.float64)
    probability = np.exp(logits - logits.max(1, keepdims=True))
    probability /= probability.sum(1, keepdims=True)
    found = curves.read("probability")[:, :, 0]
    np.testing.assert_allclose(found[:, 0], probability[np.arange(40), reader.targets[chosen]], atol=2e-5)
    np.testing.assert_array_equal(found[:, 0], found[:, 1])


def test_images_of_two_splits_share_no_draws(finished):
    # A network retrained on the one would know the other's images by their random maps, or by their order of tied pixels.
    folder = finished.parent / "out" / "extract_cams"
    splits = ("train", "validation", "test")
    for method in ("random", "oracle"):
        ranks = [store.MapReader(folder / method / f"{split}.h5").ranks([5])[0] for split in splits]
        alike = [np.corrcoef(ranks[a].ravel(), ranks[b].ravel())[0, 1] for a, b in ((0, 1), (0, 2), (1, 2))]
        assert max(alike) < 0.4, method  # objects overlap a little; shared draws would give 0.9 and more


def test_a_cell_says_what_it_was_and_keeps_every_answer(finished):
    outdir = finished.parent / "out"
    cell = json.loads((outdir / "retrain_cls" / "kar" / "gradcam" / "30" / "seed1.json").read_text())
    assert (cell["metric"], cell["first"], cell["removed_fraction"], cell["run"]) == ("kar", "least", 0.3, 1)
    from heatproof.stages.retrain_summary import correct_images

    correct = correct_images(cell)
    assert correct.shape == (96,)
    assert correct.mean() == cell["test_accuracy"]


def test_a_second_run_computes_nothing(finished, monkeypatch, caplog):
    before = {path: path.stat().st_mtime_ns for path in (finished.parent / "out").rglob("*") if path.is_file()}
    caplog.set_level("INFO")
    assert heatproof("demo", "--config", finished) == 0
    after = {path: path.stat().st_mtime_ns for path in (finished.parent / "out").rglob("*") if path.is_file()}
    changed = {p.name for p in after if before.get(p) != after[p]}
    assert changed <= {"results.csv"}  # small summaries are gathered anew
    assert "18 of 18 cells are complete" in caplog.text


def test_short_names_name_the_same_artefacts(finished, tmp_path, caplog):
    text = finished.read_text()
    short = {
        "heatproof.models.resnet_cifar.NarrowResNet8": "NarrowResNet8",
        "heatproof.methods.cam.GradCam": "grad-cam",
        "heatproof.methods.gradient.SmoothGrad": "smoothgrad",
        "pixel_perturbation_analysis:": "lerf:\n    fill: heatproof.removal.fills.Mean",
        "extract_cams:": "extract-attribution-maps:",
        "retrain_cls:": "evaluate-attribution-maps-roar:\n    fill: MEAN",
    }
    for old, new in short.items():
        assert old in text
        text = text.replace(old, new)
    (tmp_path / "short.yml").write_text(text)
    before = results(finished)
    caplog.set_level("INFO")
    assert heatproof("demo", "--config", tmp_path / "short.yml") == 0
    assert results(finished) == before
    assert "18 of 18 cells are complete" in caplog.text
    assert "stale" not in caplog.text


def test_a_dry_run_says_what_would_be_done_and_does_nothing(small, caplog):
    path = small("dry")
    caplog.set_level("INFO")
    assert heatproof("train-cls", "--config", path, "--dry-run") == 0
    assert "to be trained" in caplog.text
    assert not (path.parent / "out" / "train_cls").exists()


def test_a_dry_run_of_everything_goes_on_where_an_earlier_stage_has_not_run(small, caplog):
    path = small("dry_chain")
    caplog.set_level("INFO")
    assert heatproof("demo", "--config", path, "--dry-run") == 0
    for planned in ("extract-attribution-maps: 0 of 12", "evaluate-attribution-maps-roar: 0 of 19", "lerf: 0 of 5"):
        assert f"{planned} complete" in caplog.text
    assert not (path.parent / "out" / "train_cls").exists()


def test_a_changed_option_makes_stale_what_depends_on_it_and_nothing_else(finished, caplog):
    caplog.set_level("INFO")
    change = "extract_cams.attribution_methods.1.kwargs.samples=4"
    assert heatproof("extract-attribution-maps", "--config", finished, "--dry-run", change) == 0
    stale = [line for line in caplog.text.splitlines() if "stale" in line]
    assert len(stale) == 3
    assert all("smoothgrad" in line and "method.kwargs.samples: 3 -> 4" in line for line in stale)


def test_the_same_configuration_gives_the_same_bytes(finished, small):
    again = small("again")
    assert heatproof("roar", "--config", again) == 0
    first, second = results(finished), results(again)
    for name in second:
        assert first[name] == second[name], name


def test_killed_anywhere_and_continued_gives_the_same_bytes(finished, small):
    path = small("killed")
    command = [sys.executable, "-m", "heatproof", "roar", "--config", str(path)]
    expected = {name: content for name, content in results(finished).items() if "perturbation" not in name}
    rng = random.Random(KILLS)
    kills = 0
    for _ in range(KILLS):
        child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
        time.sleep(rng.uniform(2.5, 9.0))
        kills += child.poll() is None
        with contextlib.suppress(ProcessLookupError):  # it was faster than its kill
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()
    assert heatproof("roar", "--config", path) == 0
    found = results(path)
    assert found.keys() == expected.keys()
    for name, content in expected.items():
        assert found[name] == content, name
    if not kills:
        pytest.skip("every run was faster than its kill; nothing was tested")
