"""Bad input: one line on stderr, status 2, and nothing lost. Each error is read as a user would."""

import errno
import pickle
import shutil

import pytest
import torch

from heatproof import artefacts, store
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
    assert "maps of another classifier" in line
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
    assert "best_model.pth: no such file of weights; train it first (train-cls)" in line


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
    assert (
        "evaluate-attribution-maps-roar: all of it is still to be computed; it waits for what comes before"
        in caplog.text
    )
    assert "report/index.html: results or settings have changed" in caplog.text  # the last stage
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
    assert "what is done is kept, take a smaller batch_size or width" in line
