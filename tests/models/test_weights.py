"""Weights as people save them: each form gives the network's own weights, or one line that says what to do."""

import argparse
import json
import logging
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from heatproof.errors import ModelError
from heatproof.models import Normalization, load
from heatproof.models.loading import LogitsOf, classes_in
from heatproof.models.weights import put_weights, read_weights

HALF = Normalization((0.5,) * 3, (0.5,) * 3)


class Net(nn.Module):
    """A small classifier with batch norm, whose parameters are on several levels."""

    def __init__(self, num_classes: int = 4, width: int = 6):
        super().__init__()
        self.token = nn.Parameter(torch.randn(1, width))
        self.body = nn.Sequential(nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.ReLU())
        self.fc = nn.Linear(width, num_classes)

    def forward(self, images):
        return self.fc(self.body(images).mean((2, 3)) + self.token)


class Lightning(nn.Module):
    """A training module around the network, with a loss that has a tensor of its own."""

    def __init__(self, net):
        super().__init__()
        self.net = net
        self.criterion = nn.CrossEntropyLoss(weight=torch.ones(4))


def prefixed(prefix):
    return lambda state: {f"{prefix}{name}": value for name, value in state.items()}


def adam(net):
    optimizer = torch.optim.Adam(net.parameters())
    net(torch.randn(2, 3, 8, 8)).sum().backward()
    optimizer.step()
    return optimizer.state_dict()


FORMS = {
    "plain": lambda state: state,
    "state_dict": lambda state: {"epoch": 3, "state_dict": state, "best_acc": 0.5},
    "model_state_dict": lambda state: {"model_state_dict": state, "optimizer_state_dict": adam(Net()), "loss": torch.tensor(1.0)},
    "model": lambda state: {"model": state, "args": argparse.Namespace(lr=0.1, out=Path("runs"))},
    "net": lambda state: {"net": state, "acc": np.float64(93.1), "epoch": np.int64(3)},
    "weights in a list": lambda state: [state, {"epoch": 3}],
    "DataParallel": prefixed("module."),
    "Lightning": lambda state: {"state_dict": Lightning(Net()).state_dict() | prefixed("net.")(state), "hyper_parameters": {"lr": 1}},
    "compiled": prefixed("_orig_mod."),
    "compiled inside": lambda state: {name.replace("body.", "body._orig_mod."): value for name, value in state.items()},
    "encoder": prefixed("encoder."),
    "nested": lambda state: {"state_dict": prefixed("model._orig_mod.module.")(state)},
    "averaged": lambda state: {"n_averaged": torch.tensor(3), **prefixed("module.")(state)},
    "checkpoint inside": lambda state: {"checkpoint": {"model": prefixed("module.")(state)}, "epoch": 1},
    "half": lambda state: {name: value.half() if value.is_floating_point() else value for name, value in state.items()},
    "parameters": lambda state: {name: nn.Parameter(value) if value.is_floating_point() else value for name, value in state.items()},
    "before 0.4.1": lambda state: {name: value for name, value in state.items() if "num_batches" not in name},
    "twice the same": lambda state: {"model": state, "state_dict": dict(state)},
    "beside other networks": lambda state: {"state_dict": state, "discriminator": nn.Conv2d(3, 6, 3).state_dict()},
    "holds itself": lambda state: own(state),
}  # fmt: skip


def own(state):
    content = {"model": state}
    content["parent"] = content
    return content


@pytest.fixture
def net():
    torch.manual_seed(3)
    return Net()


def arch():
    return f"{__name__}.Net"


@pytest.mark.parametrize("wrap", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_each_form_gives_the_network_s_own_weights(net, tmp_path, wrap, legacy):
    if legacy and wrap is FORMS["half"]:
        pytest.skip("the other file is read alike")
    torch.save(wrap(net.state_dict()), tmp_path / "w.pt", _use_new_zipfile_serialization=not legacy)
    torch.manual_seed(4)
    loaded = load(arch(), num_classes=4, pretrained_weights=tmp_path / "w.pt", normalization=HALF).module
    images, tolerance = torch.randn(2, 3, 8, 8), 1e-2 if wrap is FORMS["half"] else 0
    with torch.no_grad():
        torch.testing.assert_close(loaded(images), net.eval()(images), atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("name", ["w.safetensors", "w.pt"])
@pytest.mark.parametrize("prefix", ["", "model."])
def test_safetensors_are_read(net, tmp_path, name, prefix):
    saving = pytest.importorskip("safetensors.torch")
    saving.save_file(prefixed(prefix)(net.state_dict()), tmp_path / name)
    loaded = load(arch(), num_classes=4, pretrained_weights=tmp_path / name, normalization=HALF).module
    assert all(torch.equal(value, net.state_dict()[key]) for key, value in loaded.state_dict().items())


def test_safetensors_without_their_library_are_one_line(net, tmp_path, monkeypatch):
    saving = pytest.importorskip("safetensors.torch")
    saving.save_file(net.state_dict(), tmp_path / "w.safetensors")
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(
        ModelError, match=r"w\.safetensors: needs the package safetensors, which is not installed; `uv sync"
    ):
        read_weights(tmp_path / "w.safetensors")


def test_the_log_says_what_of_a_file_is_read(net, tmp_path, caplog):
    torch.save(FORMS["Lightning"](net.state_dict()), tmp_path / "w.pt")
    with caplog.at_level(logging.INFO):
        put_weights(Net(), read_weights(tmp_path / "w.pt"), where="w.pt", arch="Net")
    assert caplog.messages == ["w.pt: the weights below 'state_dict.net.' are read; 1 other tensors are not"]


@pytest.mark.parametrize("wrap", ["plain", "nested"])
def test_a_network_that_reads_by_version_gets_its_weights(tmp_path, wrap):
    arch = "torchvision.models.mnasnet0_5"
    torch.manual_seed(5)
    network = load(arch, num_classes=4, normalization=HALF).module
    torch.save(FORMS[wrap](network.state_dict()), tmp_path / "w.pt")
    torch.manual_seed(6)
    loaded = load(arch, num_classes=4, pretrained_weights=tmp_path / "w.pt", normalization=HALF).module
    assert all(torch.equal(value, network.state_dict()[key]) for key, value in loaded.state_dict().items())


@pytest.mark.parametrize(
    ("keys", "inner"),
    [(("state_dict", "state_dict_ema"), ""), (("model", "model_ema"), "module."), (("net", "best"), "")],
)
def test_two_sets_of_weights_in_a_file_are_not_chosen_between(net, tmp_path, keys, inner):
    torch.manual_seed(9)
    torch.save(
        {keys[0]: prefixed(inner)(net.state_dict()), keys[1]: prefixed(inner)(Net().state_dict())}, tmp_path / "w.pt"
    )
    places = " and ".join(repr(f"{key}.{inner}".rstrip(".")) for key in keys)
    with pytest.raises(ModelError, match=rf"w\.pt: holds weights that fit Net below {places}, and they differ; save"):
        put_weights(Net(), read_weights(tmp_path / "w.pt"), where=str(tmp_path / "w.pt"), arch="Net")


def test_a_wrapped_network_takes_the_weights_of_the_one_inside_but_a_layer_does_not_take_any_layer_s(net):
    wrapped = LogitsOf(Net())
    put_weights(wrapped, dict(net.state_dict()), where="w.pt", arch="LogitsOf")
    assert torch.equal(wrapped.model.fc.weight, net.fc.weight)
    single = nn.Sequential()
    single.add_module("linear", nn.Linear(6, 4))
    with pytest.raises(
        ModelError, match=r"the file has no linear\.weight, linear\.bias; the model has no token, body\.0\.w"
    ):
        put_weights(single, dict(net.state_dict()), where="w.pt", arch="single")


REFUSED = {
    "no tensor": (lambda state: {}, r"w\.pt: holds no tensor with a name \(dict\)"),
    "a list of one tensor": (lambda state: [torch.zeros(3)], r"does not fit .*Net: the file has no token, body\.0\.weight, body\.0\.bias \(and 6 more\); the model has no 0$"),
    "numbers only": (lambda state: {"epoch": 3}, "holds no tensor with a name"),
    "of another number of classes": (lambda state: state | {"fc.weight": torch.zeros(9, 6), "fc.bias": torch.zeros(9)}, r"fc\.weight has shape \(9, 6\) in the file and \(4, 6\) in the model, fc\.bias has shape \(9,\).*; check the number of classes"),
    "without one of the network's tensors": (lambda state: {"model": {n: v for n, v in state.items() if n != "fc.bias"}, "epoch": 1}, r"the file has no fc\.bias$"),
    "with a tensor more than the network": (lambda state: {"model": state | {"fc.scale": torch.zeros(1)}}, r"the model has no fc\.scale$"),
    "with NaN": (lambda state: {"model": state | {"fc.bias": torch.full((4,), torch.nan)}}, r"fc\.bias holds NaN or infinity"),
    "sparse": (lambda state: state | {"fc.bias": torch.zeros(4).to_sparse()}, r"fc\.bias is quantised, sparse or without values"),
    "a pickled network": (lambda state: Net(), r"is no tensors-only file of weights \(it names .*Net\); nothing of it was run; .*torch\.save\(model\.state_dict\(\), path\)"),
    "a masker of train-masker": (lambda state: {"format": "heatproof/masker", "masker": state}, "is a file of heatproof/masker, not the weights of a network alone"),
    "one name twice": (lambda state: {"a.token": state["token"], "a": {"token": state["token"]}}, r"has two tensors of the name a\.token"),
}  # fmt: skip


@pytest.mark.parametrize(("change", "message"), REFUSED.values(), ids=REFUSED)
def test_what_does_not_fit_is_one_line(net, tmp_path, change, message):
    torch.save(change(dict(net.state_dict())), tmp_path / "w.pt")
    with pytest.raises(ModelError, match=message) as error:
        load(arch(), num_classes=4, pretrained_weights=tmp_path / "w.pt", normalization=HALF)
    assert "\n" not in str(error.value)
    assert str(error.value).startswith(str(tmp_path / "w.pt"))


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
def test_torchscript_and_folders_are_one_line(tmp_path):
    torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2)), tmp_path / "w.pt")
    with pytest.raises(
        ModelError, match=r"is a TorchScript archive, .* torch\.save\(torch\.jit\.load\(path\)\.state_dict"
    ):
        read_weights(tmp_path / "w.pt")
    with pytest.raises(ModelError, match=r"is a folder; name the file of weights in it"):
        read_weights(tmp_path)
    pytest.importorskip("safetensors")
    (tmp_path / "w.safetensors").write_bytes(b"\x10" + bytes(7) + b"{" + bytes(30))
    with pytest.raises(ModelError, match=r"w\.safetensors: is no file of weights, or a damaged one"):
        read_weights(tmp_path / "w.safetensors")


class Convolutional(nn.Module):
    """Its head is a convolution with one more output than classes, registered first."""

    def __init__(self, num_classes: int = 4):
        super().__init__()
        self.head = nn.Conv2d(3, num_classes + 1, 1)
        self.stem = nn.Conv2d(3, 3, 1)


@pytest.mark.parametrize("kind", [Net, Convolutional])
@pytest.mark.parametrize("wrap", ["plain", "state_dict", "DataParallel", "nested"])
@pytest.mark.parametrize("backwards", [False, True])
def test_the_number_of_classes_is_read_from_the_network_s_structure(kind, wrap, backwards):
    state = FORMS[wrap](dict(sorted(kind(9).state_dict().items(), reverse=backwards)))
    flat = {f"state_dict.{name}": value for name, value in state.get("state_dict", {}).items()} or state
    assert classes_in(flat, f"{__name__}.{kind.__name__}", where="w.pt") == 9


def test_heads_of_different_numbers_of_classes_are_one_line_and_a_network_without_is_none():
    state = Net(9).state_dict()
    with pytest.raises(ModelError, match=r"w\.pt: its heads are of 8 and 9 classes"):
        classes_in(state | {"fc.bias": torch.zeros(8)}, arch(), where="w.pt")
    assert classes_in(state, arch(), constructor_args={"num_classes": 9}, where="w.pt") is None
    assert classes_in({"other": torch.zeros(1)}, arch(), where="w.pt") is None


# --- the normalisation of a file's weights


@pytest.fixture
def saved(tmp_path):
    """Saves drawn weights of a library's network."""

    def save(name, **options):
        torch.manual_seed(1)
        torch.save(load(name, num_classes=4, normalization=HALF, **options).module.state_dict(), tmp_path / "w.pt")
        return tmp_path / "w.pt"

    return save


def forbidden():
    raise AssertionError("the statistics of the data at hand are not those of other weights")


@pytest.mark.parametrize(
    ("name", "options", "mean"),
    [
        ("torchvision.models.squeezenet1_1", {}, (0.485, 0.456, 0.406)),
        ("timm:vit_tiny_patch16_224", {"constructor_args": {"depth": 1, "img_size": 32}}, (0.5, 0.5, 0.5)),
        ("hf", {}, (0.1, 0.2, 0.3)),
    ],
)
def test_a_file_for_a_library_s_network_takes_the_library_s_normalisation_and_the_log_says_so(
    saved, tmp_path, caplog, name, options, mean
):
    if name == "hf":
        pytest.importorskip("transformers")
        sizes = {"image_size": 32, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
        (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit", **sizes}))
        processor = {"image_processor_type": "ViTImageProcessor", "image_mean": mean, "image_std": [0.5] * 3}
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
        name = f"hf:{tmp_path}"
    if name.startswith("timm"):
        pytest.importorskip("timm")
    path = saved(name, **options)
    with caplog.at_level(logging.INFO, logger="heatproof"):
        found = load(name, num_classes=4, pretrained_weights=path, default_normalization=forbidden, **options)
    assert found.normalization.mean == mean
    (line,) = [m for m in caplog.messages if "no normalisation is stored beside it" in m]
    assert line.startswith(f"{path}: ")
    assert f"mean {mean[0]:g}, {mean[1]:g}, {mean[2]:g}" in line
    # What train-cls leaves beside its weights wins, and what the user says wins over that.
    path.with_suffix(".json").write_text(json.dumps({"normalization": {"mean": [0.9] * 3, "std": [1] * 3}}))
    caplog.clear()
    assert load(name, num_classes=4, pretrained_weights=path, **options).normalization.mean == (0.9,) * 3
    assert load(name, num_classes=4, pretrained_weights=path, normalization=HALF, **options).normalization == HALF
    assert not any("no normalisation is stored" in message for message in caplog.messages)


def test_a_file_of_unknown_origin_needs_its_normalisation(net, tmp_path, saved):
    torch.save(net.state_dict(), tmp_path / "net.pt")
    for name, path, channels in (
        (arch(), tmp_path / "net.pt", 3),
        ("timm:resnet10t", saved("timm:resnet10t", channels=1), 1),
    ):
        with pytest.raises(
            ModelError, match=rf"{path.name}: its normalisation is unknown; set normalization: .*--mean"
        ):
            load(name, num_classes=4, channels=channels, pretrained_weights=path, default_normalization=forbidden)


# --- wrappers that a constructor may return


def compiled(num_classes: int = 4):
    return torch.compile(Net(num_classes), backend="eager")


def compiled_inside(num_classes: int = 4):
    net = Net(num_classes)
    net.body = torch.compile(net.body, backend="eager")
    net.fc.compile(backend="eager")
    return net


def parallel(num_classes: int = 4):
    return nn.DataParallel(Net(num_classes))


@pytest.mark.parametrize("make", [compiled, compiled_inside, parallel])
def test_compiled_and_parallel_networks_are_unwrapped(net, tmp_path, make):
    torch.save(make().state_dict() if make is not parallel else net.state_dict(), tmp_path / "w.pt")
    found = load(
        f"{__name__}.{make.__name__}", num_classes=4, pretrained_weights=tmp_path / "w.pt", normalization=HALF
    ).module
    assert type(found) is Net
    assert [name for name, _ in found.named_modules()] == [name for name, _ in net.named_modules()]
    kept = []
    for module in (found.body[0], found.fc):
        module.register_forward_hook(lambda module, given, left: kept.append(left))
    found(torch.zeros(1, 3, 8, 8))
    assert len(kept) == 2
