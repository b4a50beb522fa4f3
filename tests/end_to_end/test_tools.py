"""Tools around attribution files, and the examples of the README, as a user runs them."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from heatproof import store
from tests.end_to_end.conftest import heatproof

README = (Path(__file__).parents[2] / "README.md").read_text()


@pytest.fixture
def maps(finished):
    return finished.parent / "out" / "extract_cams" / "gradcam" / "test.h5"


def test_inspect_says_what_a_file_is(maps, capsys):
    assert heatproof("inspect", maps) == 0
    shown = capsys.readouterr().out
    assert "gradcam" in shown
    assert "96" in shown
    assert "heatproof.methods.cam.GradCam" in shown


def test_maps_that_are_exported_come_back_by_their_index(finished, maps, tmp_path, capsys):
    shutil.copytree(finished.parent, tmp_path / "run")
    path = tmp_path / "run" / "small.yml"
    path.write_text(path.read_text().replace(str(finished.parent), str(tmp_path / "run")))
    assert heatproof("export", maps, tmp_path / "maps.npz", "--npz") == 0
    arrays = dict(np.load(tmp_path / "maps.npz"))
    shuffled = np.random.default_rng(0).permutation(96)
    np.savez(tmp_path / "mine.npz", maps=arrays["maps"][shuffled], index=arrays["index"][shuffled])
    entry = "extract_cams.attribution_methods=[{name: mine, method: imported}]"
    command = ("import-maps", tmp_path / "mine.npz", "--config", path, "--method", "mine", "--split", "test", entry)
    assert heatproof(*command) == 0
    original = store.MapReader(maps)
    imported = store.MapReader(tmp_path / "run" / "out" / "extract_cams" / "mine" / "test.h5")
    np.testing.assert_array_equal(imported.maps(), original.maps())
    np.testing.assert_array_equal(imported.predictions, original.predictions)
    lerf = ("lerf", "--config", path, entry.replace("extract_cams", "pixel_perturbation_analysis"))
    assert heatproof(*lerf) == 0
    curves = tmp_path / "run" / "out" / "pixel_perturbation_analysis"
    assert store.RowReader(curves / "mine.h5").complete
    assert not (curves / "maps" / "mine.h5").exists()
    capsys.readouterr()
    assert heatproof("train-cls", "--config", path, "train_cls.nb_epochs=1") == 0
    assert heatproof(*lerf) == 2
    assert "mine/test.h5: stale (model.weights" in capsys.readouterr().err
    order = np.argsort(imported.ranks().reshape(96, -1), axis=1)
    assert (np.diff(np.take_along_axis(imported.maps().reshape(96, -1), order, axis=1), axis=1) <= 0).all()


def test_imported_maps_need_their_entry(finished, maps, tmp_path, capsys):
    assert heatproof("export", maps, tmp_path / "maps.npz", "--npz") == 0
    capsys.readouterr()
    command = ("import-maps", tmp_path / "maps.npz", "--config", finished, "--method", "mine", "--split", "test")
    assert heatproof(*command) == 2
    assert "no entry {name: mine, method: imported}" in capsys.readouterr().err


ENTRY = "extract_cams.attribution_methods=[{name: mine, method: imported}]"


@pytest.mark.parametrize(
    ("key", "change", "message"),
    [
        ("target", lambda a: a.__setitem__(5, 4), "target[5]: class 4; the classifier has 4 classes, from 0"),
        ("target", lambda a: a.__setitem__(5, -1), "target[5]: -1 must not be negative"),
        ("prediction", lambda a: a.__setitem__(7, 99), "prediction[7]: class 99; the classifier has 4 classes"),
        ("label", lambda a: a.__setitem__(3, (a[3] + 1) % 4), "which the data set labels"),
        ("index", lambda a: a.__setitem__(0, 1), "index: image 1 occurs more than once"),
        ("index", lambda a: a.__setitem__(0, 96), "index: there is no map for image 0 of 96"),
    ],
)
def test_imported_columns_that_contradict_data_or_classifier_are_one_line(
    finished, maps, tmp_path, capsys, key, change, message
):
    assert heatproof("export", maps, tmp_path / "maps.npz", "--npz") == 0
    arrays = dict(np.load(tmp_path / "maps.npz"))
    change(arrays[key])
    np.savez(tmp_path / "wrong.npz", **arrays)
    outdir = f"outdir={tmp_path / 'out'}"
    weights = f"extract_cams.model.pretrained_weights={finished.parent / 'out' / 'train_cls' / 'best_model.pth'}"
    command = ("import-maps", tmp_path / "wrong.npz", "--config", finished, "--method", "mine", "--split", "test")
    capsys.readouterr()
    assert heatproof(*command, ENTRY, outdir, weights) == 2
    [line] = capsys.readouterr().err.strip().splitlines()
    assert message in line
    assert not (tmp_path / "out" / "extract_cams" / "mine").exists()


def test_imported_predictions_of_another_classifier_are_reported(finished, maps, tmp_path, caplog):
    assert heatproof("export", maps, tmp_path / "maps.npz", "--npz") == 0
    arrays = dict(np.load(tmp_path / "maps.npz"))
    arrays["logits"] = -arrays["logits"]
    np.savez(tmp_path / "other.npz", **arrays)
    outdir = f"outdir={tmp_path / 'out'}"
    weights = f"extract_cams.model.pretrained_weights={finished.parent / 'out' / 'train_cls' / 'best_model.pth'}"
    for name, count in (("maps", 0), ("other", 96)):
        caplog.clear()
        command = ("import-maps", tmp_path / f"{name}.npz", "--config", finished, "--method", "mine", "--split", "test")
        assert heatproof(*command, ENTRY, outdir, weights) == 0
        assert (f"{count} of 96 predictions are not those of this classifier" in caplog.text) == (count > 0)


def test_the_archive_and_the_browser_project_can_be_made(finished, maps, tmp_path):
    assert heatproof("export", maps, tmp_path / "small.h5", "--archive") == 0
    np.testing.assert_array_equal(store.MapReader(tmp_path / "small.h5").ranks(), store.MapReader(maps).ranks())
    assert heatproof("export", maps, tmp_path / "browser", "--virelay", "--config", finished) == 0
    assert (tmp_path / "browser" / "project.yaml").is_file()


def test_the_browser_needs_images(maps, tmp_path, capsys):
    assert heatproof("export", maps, tmp_path / "browser", "--virelay") == 2
    assert "--virelay needs --config FILE" in capsys.readouterr().err


def test_a_file_of_somebody_else_is_refused_and_not_called_for_deletion(tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("mine")
    assert heatproof("inspect", tmp_path / "notes.txt") == 2
    error = capsys.readouterr().err
    assert "not an HDF5 file" in error
    assert "delete" not in error


def test_the_schema_is_json(capsys):
    assert heatproof("schema") == 0
    assert "retrain_cls" in json.loads(capsys.readouterr().out)["properties"]


@pytest.mark.parametrize("command", ["train-cls", "roar", "demo", "inspect", "import-maps", "export", "schema"])
def test_every_command_has_a_help_text(command, capsys):
    assert heatproof(command, "--help") == 0
    assert command in capsys.readouterr().out


def test_the_readme_s_own_method_runs(finished, tmp_path, monkeypatch):
    (code,) = re.findall(r"```python\n(import torch\n.*?)```", README, re.DOTALL)
    (entry,) = re.findall(r"attribution_methods:\n    - (\{.*?\})\n```", README, re.DOTALL)
    (tmp_path / "my_methods.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    changes = (f"extract_cams.attribution_methods=[{entry}]", "extract_cams.controls=[]", f"outdir={tmp_path / 'out'}")
    weights = f"extract_cams.model.pretrained_weights={finished.parent / 'out' / 'train_cls' / 'best_model.pth'}"
    assert heatproof("extract-attribution-maps", "--config", finished, *changes, weights) == 0
    maps = store.MapReader(tmp_path / "out" / "extract_cams" / "norm" / "test.h5").maps()
    assert (maps >= 0).all()
    assert maps.max() > 0


def test_every_configuration_that_the_readme_names_is_here():
    names = set(re.findall(r"configs/\w+\.yml", README))
    assert "configs/demo.yml" in names
    for name in names:
        assert (Path(__file__).parents[2] / name).is_file(), name
