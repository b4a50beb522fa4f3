"""Bad input: one line on stderr, status 2, and nothing lost. Each error is read as a user would."""

import errno
import os
import pickle
import re
import shutil
import sys
import urllib.request

import pytest
import torch

from heatproof import artefacts, plugins, store
from heatproof.stages import train_cls
from tests.end_to_end.conftest import heatproof, results

PLUGIN = """
import torch

def wrong_shape(model, preprocessed_image, label):
    return torch.zeros(3, 3)

def not_a_number(model, preprocessed_image, label):
    return torch.full((32, 32), float("nan"))

def fine(model, preprocessed_image, label, power=2):
    '''The form of the ROAR code: one image, an array (C, H, W).'''
    image = preprocessed_image.clone().requires_grad_()
    model(image)[0, label].sum().backward()
    return image.grad[0].abs().pow(power).numpy()

constant = 3
"""


@pytest.fixture
def copied(finished, tmp_path):
    """The finished run, to be damaged."""
    shutil.copytree(finished.parent, tmp_path / "run")
    path = tmp_path / "run" / "small.yml"
    path.write_text(path.read_text().replace(str(finished.parent), str(tmp_path / "run")))
    return path


def refused(capsys, *command, status=2):
    capsys.readouterr()
    assert heatproof(*command) == status
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("heatproof: ")]
    assert len(lines) == 1, lines
    assert "Traceback" not in lines[0]
    return lines[0]


def method(text):
    return f"extract_cams.attribution_methods=[{{name: mine, {text}}}]"


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("method: heatproof.methods.cam.GradCan", "heatproof.methods.cam has no 'GradCan'; did you mean 'GradCam'?"),
        ("method: nowhere.f", "there is no module 'nowhere'"),
        ("method: bad_plugin.constant", "bad_plugin.constant: is not callable"),
        ("method: heatproof.methods.cam.GradCam, kwargs: {laier: x}", "unknown option 'laier'; did you mean 'layer'?"),
        ("method: heatproof.methods.cam.GradCam", "option 'layer' is missing"),
        ("method: heatproof.methods.cam.GradCam, kwargs: {layer: layer3.0.relo}", "did you mean 'layer3.0.relu'?"),
        ("method: heatproof.methods.attention.Chefer", "ResNet8: is no vision transformer that is known"),
        ("method: heatproof.methods.gradmask.GradMask", "ResNet8: is no vision transformer that is known"),
        ("method: heatproof.methods.transformer_lrp.TransformerLrp", "has no rule for 'batch_norm'"),
        (
            "method: heatproof.methods.attention.AttentionRollout, kwargs: {discard: 0.5}",
            "did you mean 'discard_ratio'?",
        ),
        ("method: bad_plugin.wrong_shape", "mine (bad_plugin.wrong_shape): image 0: maps of shape"),
        ("method: bad_plugin.not_a_number", "the map of image 0 holds NaN or infinity"),
    ],
)
def test_a_method_that_cannot_be_used_is_named(finished, tmp_path, monkeypatch, capsys, entry, message):
    (tmp_path / "bad_plugin.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(tmp_path)
    before = results(finished)
    line = refused(capsys, "extract-attribution-maps", "--config", finished, method(entry), "extract_cams.controls=[]")
    assert message in line
    assert results(finished) == before


def test_a_function_of_the_roar_code_works_unchanged(copied, tmp_path, monkeypatch):
    (tmp_path / "bad_plugin.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(tmp_path)
    entry = method("method: bad_plugin.fine, kwargs: {power: 1}, channel_reduction: sum")
    assert heatproof("extract-attribution-maps", "--config", copied, entry) == 0
    reader = store.MapReader(copied.parent / "out" / "extract_cams" / "mine" / "test.h5")
    assert reader.complete
    assert not reader.invalid.any()


def test_invalid_maps_can_be_kept_as_such(copied, tmp_path, monkeypatch):
    (tmp_path / "bad_plugin.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(tmp_path)
    entry = method("method: bad_plugin.not_a_number, on_invalid: skip")
    assert heatproof("extract-attribution-maps", "--config", copied, entry) == 0
    reader = store.MapReader(copied.parent / "out" / "extract_cams" / "mine" / "test.h5")
    assert reader.invalid.all()


def test_maps_of_another_classifier_are_refused(copied, capsys):
    assert heatproof("train-cls", "--config", copied, "train_cls.nb_epochs=1") == 0
    line = refused(capsys, "evaluate-attribution-maps-roar", "--config", copied)
    assert "train.h5: stale (model.weights: " in line
    assert "run extract-attribution-maps" in line


def test_maps_of_other_data_are_refused(copied, capsys):
    line = refused(capsys, "evaluate-attribution-maps-roar", "--config", copied, "data.options.difficulty=0.9")
    assert "gradcam/train.h5: maps of other data" in line


def test_missing_maps_are_named(copied, capsys):
    (copied.parent / "out" / "extract_cams" / "gradcam" / "train.h5").unlink()
    line = refused(capsys, "evaluate-attribution-maps-roar", "--config", copied)
    assert "gradcam/train.h5" in line


def test_maps_of_the_true_label_are_refused_unless_asked_for(copied, capsys):
    assert heatproof("extract-attribution-maps", "--config", copied, "extract_cams.target=label") == 0
    change = ("retrain_cls.seeds=[0]", "extract_cams.target=label")
    line = refused(capsys, "evaluate-attribution-maps-roar", "--config", copied, *change)
    assert "explain the true label" in line


def test_a_truncated_file_is_named_and_made_again(copied, capsys):
    path = copied.parent / "out" / "extract_cams" / "gradcam" / "test.h5"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert "gradcam/test.h5" in refused(capsys, "evaluate-attribution-maps-roar", "--config", copied)
    assert "test.h5" in refused(capsys, "inspect", path)
    assert heatproof("extract-attribution-maps", "--config", copied) == 0
    assert path.read_bytes() == whole


def test_a_flipped_bit_is_found_with_file_and_row(copied, capsys):
    path = copied.parent / "out" / "extract_cams" / "gradcam" / "test.h5"
    ranks = store.MapReader(path).ranks([5]).tobytes()
    content = bytearray(path.read_bytes())
    content[content.index(ranks) + 100] ^= 1
    path.write_bytes(content)
    line = refused(capsys, "inspect", path)
    assert "test.h5" in line
    assert "row 5" in line


def test_weights_of_another_architecture_are_refused(finished, capsys):
    line = refused(
        capsys, "extract-attribution-maps", "--config", finished,
        "extract_cams.model.arch=heatproof.models.resnet_cifar.ResNet8", "outdir=" + str(finished.parent / "elsewhere"),
        f"extract_cams.model.pretrained_weights={finished.parent}/out/train_cls/best_model.pth",
    )  # fmt: skip
    assert "best_model.pth" in line
    assert "ResNet8" in line


class Evil:
    def __reduce__(self):
        return (print, ("executed",))


def test_weights_that_want_to_execute_code_do_not(finished, tmp_path, capsys):
    path = tmp_path / "evil.pth"
    path.write_bytes(pickle.dumps({"a": Evil()}))
    line = refused(
        capsys, "extract-attribution-maps", "--config", finished, f"extract_cams.model.pretrained_weights={path}"
    )
    assert "evil.pth" in line
    torch.save({"a": Evil()}, path)
    capsys.readouterr()
    assert heatproof("lerf", "--config", finished, f"pixel_perturbation_analysis.model.pretrained_weights={path}") == 2
    assert "executed" not in capsys.readouterr().out


def test_missing_weights_are_named(small, capsys):
    line = refused(capsys, "extract-attribution-maps", "--config", small("untrained"))
    assert "best_model.pth: no such file of weights yet; run train-cls first" in line


@pytest.mark.parametrize("section", ["extract_cams", "pixel_perturbation_analysis"])
def test_a_wrong_path_of_weights_is_named_with_its_key(small, capsys, section):
    stage = {"extract_cams": "extract-attribution-maps", "pixel_perturbation_analysis": "lerf"}[section]
    line = refused(capsys, stage, "--config", small("wrong_path"), f"{section}.model.pretrained_weights=nets/w.pth")
    assert line == f"heatproof: {section}.model.pretrained_weights: nets/w.pth: no such file; correct the path"


def test_weights_to_start_a_training_from_are_named_with_their_key(small, capsys):
    line = refused(
        capsys, "train-cls", "--config", small("wrong_start"), "train_cls.model.pretrained_weights=nets/w.pth"
    )
    assert line == "heatproof: train_cls.model.pretrained_weights: nets/w.pth: no such file; correct the path"


@pytest.mark.parametrize(
    ("overrides", "fetched"),
    [
        (["data={dataset: CIFAR10, dataset_dir: none}"], r"cifar-10-batches-py: is missing, and a dry run does not fetch https://www\.cs\.toronto"),
        (["data={dataset: MNIST, dataset_dir: none}"], r"train-images-idx3-ubyte: is missing, and a dry run does not fetch https?://"),
        (["data={dataset: tests.end_to_end.test_messages.Fetching, dataset_dir: none}"], r"a dry run fetches nothing from downloads\.example"),
        (["train_cls=null", "extract_cams.model={arch: torchvision.models.resnet18, pretrained_weights: DEFAULT}"],
         r"torchvision\.models\.resnet18: a dry run does not fetch its weights \(https://download\.pytorch\.org/models/resnet18-"),
        (["train_cls=null", "extract_cams.model={arch: 'timm:resnet10t', pretrained_weights: DEFAULT}"],
         r"timm:resnet10t: a dry run does not fetch its weights"),
        (["train_cls=null", "extract_cams.model={arch: 'hf:some/name', pretrained_weights: DEFAULT}"],
         r"hf:some/name: a dry run does not fetch its weights"),
    ],
)  # fmt: skip
def test_a_dry_run_fetches_nothing_and_says_what_it_would(small, tmp_path, caplog, monkeypatch, overrides, fetched):
    def connect(*_):
        raise AssertionError("a dry run has asked the network")

    pytest.importorskip("timm")
    pytest.importorskip("transformers")
    monkeypatch.setattr("socket.socket.connect", connect)
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    caplog.set_level("INFO")
    stage = "extract-attribution-maps" if "train_cls=null" in overrides else "train-cls"
    assert heatproof(stage, "--config", small("nothing_fetched"), *overrides, "--dry-run") == 0
    assert re.search(fetched, caplog.text), caplog.text
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


class Fetching:
    """A data set of a user's own that downloads."""

    def __init__(self, folder, split):
        urllib.request.urlopen("http://downloads.example/data.zip")


def test_a_fill_that_is_none_is_one_line(finished, tmp_path, capsys):
    for name, option in (("NormalisedInfill", "infill: x, normalization: y"), ("compat_of", "")):
        fill = f"{{name: heatproof.removal.inpainting.{name}, {option}}}" if option else "{name: pathlib.PurePath}"
        line = refused(capsys, "lerf", "--config", finished, f"outdir={tmp_path}", f"pixel_perturbation_analysis.fill={fill}",
                       f"pixel_perturbation_analysis.model.pretrained_weights={finished.parent}/out/train_cls/best_model.pth")  # fmt: skip
        assert "is no fill, as it cannot be called with (pixels, removed, indices)" in line


@pytest.mark.parametrize("command", [("schema",), ("--help",), ("lerf", "--help")])
def test_a_reader_that_has_enough_is_no_error(command, monkeypatch, capfd):
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as closed:
        monkeypatch.setattr(sys, "stdout", closed)
        assert heatproof(*command) == 141
        closed.write("what the interpreter flushes when it ends goes nowhere")
    assert not capfd.readouterr().err


def test_a_reader_that_has_enough_of_a_users_prints_is_no_error_of_theirs(small, monkeypatch):
    def printing(run):
        raise BrokenPipeError

    monkeypatch.setattr(plugins, "_NAMED", {"tests"})
    monkeypatch.setattr(train_cls, "run", printing)
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as closed:
        monkeypatch.setattr(sys, "stdout", closed)
        assert heatproof("train-cls", "--config", small("printing")) == 141


def test_another_broken_pipe_is_not_hidden(small, monkeypatch):
    monkeypatch.setattr(plugins, "_NAMED", set())  # the tests, where it breaks, are no user's code

    def broken(run):
        raise BrokenPipeError

    monkeypatch.setattr(train_cls, "run", broken)
    with pytest.raises(BrokenPipeError):
        heatproof("train-cls", "--config", small("pipe"))


@pytest.mark.parametrize(
    ("module", "command", "kept"),
    [
        ("train_cls", ("train-cls", "--config"), "completed work is kept, and the same command resumes there"),
        ("explain", ("explain", "picture.png", "--model", "a.b", "--method", "gradient"),
         "files written so far are kept, and the same command starts again with the first picture"),
    ],
)  # fmt: skip
def test_an_interruption_says_what_is_true_of_the_command(small, monkeypatch, capsys, module, command, kept):
    def interrupted(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(f"heatproof.stages.{module}.run", interrupted)
    path = [small("interrupted")] if "--config" in command else []
    assert refused(capsys, *command, *path, status=130) == f"heatproof: interrupted; {kept}"


def test_pretrained_weights_for_retraining_are_refused(finished, capsys):
    line = refused(
        capsys, "evaluate-attribution-maps-roar", "--config", finished, "retrain_cls.model.pretrained_weights=x.pth"
    )
    assert "retrain_cls.model.pretrained_weights: must not be set" in line


def test_a_missing_section_is_named(finished, capsys):
    line = refused(capsys, "lerf", "--config", finished, "pixel_perturbation_analysis=null")
    assert "section pixel_perturbation_analysis is missing" in line


def test_a_full_disk_is_one_line_and_the_same_command_goes_on(small, capsys, monkeypatch):
    path = small("full")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device", "somewhere")

    with monkeypatch.context() as patch:
        patch.setattr(artefacts.os, "fsync", full)
        line = refused(capsys, "train-cls", "--config", path)
    assert "somewhere: No space left on device" in line
    assert heatproof("train-cls", "--config", path) == 0


def test_an_unknown_command_names_the_nearest(capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["heatproof", "extract"])
    line = refused(capsys, "extract")
    assert "unknown command 'extract'; did you mean 'extract-attribution-maps'?" in line


def test_a_dry_run_goes_on_where_maps_will_be_stale(finished, caplog):
    caplog.set_level("INFO")
    before = results(finished)
    assert heatproof("demo", "--config", finished, "seed=4", "--dry-run") == 0
    assert "evaluate-attribution-maps-roar: 0 of 19 complete" in caplog.text
    assert "report/index.html: stale, to be made again: configuration" in caplog.text  # the last stage
    assert results(finished) == before


def test_a_dry_run_of_retraining_writes_nothing(small):
    path = small("dry")
    assert heatproof("evaluate-attribution-maps-roar", "--config", path, "--dry-run") == 0
    assert not (path.parent / "out").exists()


def full_host():
    torch.empty(2**60, dtype=torch.uint8)


def full_device():
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of")


@pytest.mark.parametrize(
    ("fill", "told"),
    [(full_host, "can't allocate memory"), (full_device, "(CUDA out of memory. Tried to allocate 2.00 GiB")],
    ids=["host", "device"],
)
def test_a_full_memory_is_one_line(small, capsys, monkeypatch, fill, told):
    monkeypatch.setattr(train_cls, "run", lambda run: fill())
    line = refused(capsys, "train-cls", "--config", small("memory"))
    assert told in line
    assert "completed work is kept, and the same command resumes there; use a smaller batch_size or width" in line
