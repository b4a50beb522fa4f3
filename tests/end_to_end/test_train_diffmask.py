"""train-diffmask from the command line: its files, its maps in every test, kill and resume, and what it refuses."""

import csv
import json
import shutil

import pytest
import torch

from heatproof import store
from heatproof.training.diffmask_steps import DiffMaskTraining
from tests.end_to_end.conftest import heatproof, results
from tests.end_to_end.test_messages import refused

SMALL = """
outdir: {outdir}
seed: 3
device: cpu
data:
    dataset: Planted
    split_ratio: 0.8
    options: {{train_images: 80, test_images: 12, classes: 4}}
train_cls:
    model: &MODEL
        arch: heatproof.models.vit.ViTTiny
        constructor_args: {{patch_size: 8, embed_dim: 16, depth: 2, num_heads: 2}}
    batch_size: 16
    nb_epochs: 1
train_diffmask:
    model: &TRAINED
        <<: *MODEL
        pretrained_weights: '${{outdir}}/train_cls/best_model.pth'
    batch_size: 16
    nb_epochs: 2
    hidden: 8
    sample_images: 2
extract_cams:
    model: *TRAINED
    controls: [random]
    attribution_methods:
        - {{name: diffmask, method: heatproof.methods.diffmask.DiffMask, kwargs: {{checkpoint: '${{outdir}}/train_diffmask/best_model.pth'}}}}
pixel_perturbation_analysis: {{percentiles: [20]}}
localise: {{}}
sanity_checks: {{test_samples: 4, orders: [independent]}}
"""


@pytest.fixture(scope="module")
def done(write):
    path = write(SMALL, "done")
    assert heatproof("demo", "--config", path) == 0
    return path


def test_it_leaves_weights_scores_history_and_pictures(done):
    folder = done.parent / "out" / "train_diffmask"
    kept = json.loads((folder / "best_model.json").read_text())
    state = torch.load(folder / "best_model.pth", weights_only=True)
    assert not state["every_layer"]
    assert bytes(state["classifier"].tolist()).hex() == kept["classifier_sha256"] == kept["origin"]["weights"]
    lines = list(csv.DictReader((folder / "history.csv").read_text().splitlines()))
    assert [line["epoch"] for line in lines] == ["1", "2"]
    assert [line["steps"] for line in lines] == ["4", "8"]
    assert float(lines[kept["best_epoch"] - 1]["hard_kept"]) == kept["validation"]["hard_kept"]
    assert kept["test"].keys() == {
        f"{kind}_{name}" for kind in ("soft", "hard") for name in ("divergence", "agreement", "kept")
    }
    [events] = (folder / "tensorboard").iterdir()
    written = events.read_bytes()
    assert b"hard_divergence" in written
    assert written.count(b"\x89PNG") == 2
    assert not (folder / "checkpoint.pt").exists()


def test_its_maps_go_through_the_tests(done):
    outdir = done.parent / "out"
    reader = store.MapReader(outdir / "extract_cams" / "diffmask" / "test.h5")
    assert reader.maps(range(12)).std() > 0
    for folder in ("pixel_perturbation_analysis", "localise", "sanity_checks"):
        assert "diffmask" in (outdir / folder / "results.csv").read_text(), folder


def test_what_is_done_is_skipped_and_a_changed_option_makes_it_stale(done, caplog):
    caplog.set_level("INFO")
    assert heatproof("train-diffmask", "--config", done) == 0
    assert "best_model.pth: complete" in caplog.text
    caplog.clear()
    assert heatproof("train-diffmask", "--config", done, "train_diffmask.eps=0.2", "--dry-run") == 0
    assert "stale, to be trained again: training.eps: 0.1 -> 0.2" in caplog.text


def test_a_dry_run_computes_nothing(write, caplog):
    caplog.set_level("INFO")
    path = write(SMALL, "dry")
    assert heatproof("demo", "--config", path, "--dry-run") == 0
    assert not list(path.parent.rglob("train_diffmask/*"))


def test_killed_and_continued_gives_the_same_files(done, write, monkeypatch):
    path = write(SMALL, "killed")
    assert heatproof("train-cls", "--config", path) == 0
    step = DiffMaskTraining.step
    for stop in (2, 6):

        def stopping(self, *arguments, stop=stop):
            if self.step_number == stop:
                raise KeyboardInterrupt
            return step(self, *arguments)

        monkeypatch.setattr(DiffMaskTraining, "step", stopping)
        assert heatproof("train-diffmask", "--config", path) == 130
    monkeypatch.setattr(DiffMaskTraining, "step", step)
    assert heatproof("train-diffmask", "--config", path) == 0
    made, expected = results(path), results(done)
    names = [name for name in expected if name.startswith("train_diffmask")]
    assert len(names) == 3
    assert {name: made[name] for name in names} == {name: expected[name] for name in names}


def test_a_convolutional_classifier_is_masked_by_pixels(write):
    path = write(SMALL, "cnn")
    arch = "heatproof.models.resnet_cifar.NarrowResNet8"
    changes = [f"{section}.model={{arch: {arch}, pretrained_weights: {path.parent}/out/train_cls/best_model.pth}}" for section in
               ("train_diffmask", "extract_cams")]  # fmt: skip
    changes += [f"train_cls.model={{arch: {arch}}}", "train_diffmask.nb_epochs=1"]
    for stage in ("train-cls", "train-diffmask", "extract-attribution-maps"):
        assert heatproof(stage, "--config", path, *changes) == 0
    state = torch.load(path.parent / "out" / "train_diffmask" / "best_model.pth", weights_only=True)
    assert (int(state["form"]), int(state["patch"])) == (1, 4)
    assert state["gate.placeholder"].shape == (1, 1, 3)


def test_maps_of_another_classifier_are_refused(done, capsys, tmp_path):
    state = torch.load(done.parent / "out" / "train_cls" / "best_model.pth", weights_only=True)
    state["head.bias"] += 1
    torch.save(state, tmp_path / "other.pth")
    other = f"extract_cams.model.pretrained_weights={tmp_path}/other.pth"
    normalization = "extract_cams.model.normalization={mean: [0.5, 0.5, 0.5], std: [0.5, 0.5, 0.5]}"
    line = refused(capsys, "extract-attribution-maps", "--config", done, other, normalization, f"outdir={tmp_path}/out",
                   f"extract_cams.attribution_methods.0.kwargs.checkpoint={done.parent}/out/train_diffmask/best_model.pth")  # fmt: skip
    assert "train_diffmask/best_model.pth: was trained for another classifier" in line


@pytest.mark.parametrize(
    ("stage", "change", "message"),
    [
        ("train-diffmask", "train_diffmask.eps=0", "train_diffmask.eps: 0: input should be greater than 0"),
        ("train-diffmask", "train_diffmask.alpha=300", "train_diffmask.alpha: 300: input should be less than or equal to 200"),
        ("train-diffmask", "train_diffmask.lr=-1", "train_diffmask.lr: -1: input should be greater than 0"),
        ("train-diffmask", "seed=9", "best_model.pth: no such file of weights yet; run train-cls first"),
        ("extract-attribution-maps", "train_diffmask.eps=1", "no such file of weights"),
    ],
)  # fmt: skip
def test_bad_values_and_missing_inputs_are_one_line(write, capsys, stage, change, message):
    assert message in refused(capsys, stage, "--config", write(SMALL, "bad"), change)


def test_a_classifier_without_tokens_cannot_be_masked_by_tokens(write, capsys):
    path = write(SMALL, "tokens")
    arch = "heatproof.models.resnet_cifar.NarrowResNet8"
    weights = path.parent / "out" / "train_cls" / "best_model.pth"
    assert heatproof("train-cls", "--config", path, f"train_cls.model={{arch: {arch}}}") == 0
    line = refused(capsys, "train-diffmask", "--config", path, "train_diffmask.form=tokens",
                   f"train_diffmask.model={{arch: {arch}, pretrained_weights: {weights}}}")  # fmt: skip
    assert "NarrowResNet8: is no vision transformer that is known" in line
    assert not (path.parent / "out" / "train_diffmask").exists()


def test_a_missing_explainer_is_named_with_the_stage_that_makes_it(write, capsys):
    path = write(SMALL, "missing")
    assert heatproof("train-cls", "--config", path) == 0
    line = refused(capsys, "extract-attribution-maps", "--config", path)
    assert "train_diffmask/best_model.pth: no such file; correct the path, or make it with train-diffmask" in line


def test_a_start_that_is_not_there_is_one_line_also_after_the_training(done, capsys):
    line = refused(capsys, "train-diffmask", "--config", done, "train_diffmask.diffmask_checkpoint=none.pth")
    assert "none.pth: no such file; train-diffmask makes it, or mend train_diffmask.diffmask_checkpoint" in line


def test_the_report_tells_of_maps_whose_explainer_was_trained_again(done, tmp_path, caplog):
    shutil.copytree(done.parent, tmp_path / "run")
    path = tmp_path / "run" / "small.yml"
    path.write_text(path.read_text().replace(str(done.parent), str(tmp_path / "run")))
    assert heatproof("train-diffmask", "--config", path, "train_diffmask.nb_epochs=1", "train_diffmask.lr=0.02") == 0
    assert heatproof("extract-attribution-maps", "--config", path) == 0
    assert heatproof("train-diffmask", "--config", path) == 0
    assert heatproof("report", "--config", path) == 0
    assert "method.kwargs.checkpoint" in (path.parent / "out" / "report" / "index.html").read_text()


def test_maps_of_a_run_that_was_moved_are_not_computed_again(done, tmp_path):
    shutil.copytree(done.parent, tmp_path / "moved")
    path = tmp_path / "moved" / "small.yml"
    path.write_text(path.read_text().replace(str(done.parent), str(path.parent)))
    files = sorted((path.parent / "out" / "extract_cams").glob("*/*.h5"))
    before = [(file.stat().st_ino, file.stat().st_mtime_ns) for file in files]
    assert heatproof("extract-attribution-maps", "--config", path) == 0
    assert [(file.stat().st_ino, file.stat().st_mtime_ns) for file in files] == before
    assert len(files) > 1


def test_masks_of_the_first_gates_alone_are_learnt_where_that_is_asked_for(done, tmp_path):
    trained = done.parent / "out" / "train_cls" / "best_model.pth"
    common = ("--config", done, f"outdir={tmp_path}", f"train_diffmask.model.pretrained_weights={trained}")
    for option in ("every_layer", "weighted_layer_distribution", "compat"):
        assert heatproof("train-diffmask", *common, "train_diffmask.nb_epochs=1", f"train_diffmask.{option}=true") == 0
        assert torch.load(tmp_path / "train_diffmask" / "best_model.pth", weights_only=True)["every_layer"], option
