"""Classifiers by name: what is accepted, and each refusal as a user reads it."""

import io
import json
import os
import pickle
import sys
import types
import urllib.request
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
from torch import nn

from heatproof import artefacts
from heatproof.datasets import open_dataset
from heatproof.errors import ModelError, PluginError
from heatproof.models import Normalization, load
from heatproof.models.resnet_cifar import NarrowResNet8
from heatproof.models.weights import read_weights, state_sha256

HALF = Normalization((0.5,) * 3, (0.5,) * 3)
OTHER = Normalization((0.1,) * 3, (0.2,) * 3)
NARROW = "heatproof.models.resnet_cifar.NarrowResNet8"


def loaded(arch=NARROW, **options):
    return load(arch, **{"num_classes": 4, "normalization": HALF, **options})


@pytest.fixture
def weights(tmp_path):
    """A file with the weights of a narrow network of four classes."""
    torch.manual_seed(5)
    path = tmp_path / "best_model.pth"
    torch.save(NarrowResNet8(4).state_dict(), path)
    return path


def new_head(model, num_classes):
    model.linear = nn.Linear(16, num_classes)
    return model


def no_model(model, num_classes):
    return num_classes


def a_list(num_classes):
    return [num_classes]


def broken(num_classes):
    raise ValueError("no\nmore")


class OneLayer(nn.Module):
    """Takes neither classes nor channels."""

    def __init__(self, width=2):
        super().__init__()
        self.layer = nn.Linear(width, 2)


def test_a_file_gives_its_weights_and_its_hash(weights):
    found = loaded(pretrained_weights=str(weights))
    for name, tensor in torch.load(weights, weights_only=True).items():
        torch.testing.assert_close(found.module.state_dict()[name], tensor, rtol=0, atol=0)
    assert found.weights_sha256 == artefacts.sha256(weights)
    assert not found.module.training


def test_drawn_weights_follow_torchs_seed_and_are_named_by_their_hash():
    hashes = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        hashes.append(loaded().weights_sha256)
    assert hashes[0] == hashes[1] != hashes[2]


def test_the_hash_covers_names_types_shapes_and_values():
    base = nn.Linear(2, 3)
    others = [
        nn.Linear(2, 3),
        nn.Linear(2, 3).double(),
        nn.Linear(3, 2),
        nn.Conv2d(2, 3, 1),
        nn.Linear(2, 3).bfloat16(),
    ]
    others[1].load_state_dict(base.state_dict())
    hashes = {state_sha256(module) for module in (base, *others)}
    assert len(hashes) == 6
    assert len(state_sha256(nn.BatchNorm1d(2))) == 64  # with a counter of no dimensions


def test_classes_and_channels_go_where_the_constructor_has_them():
    assert loaded(channels=1).module(torch.zeros(2, 1, 8, 8)).shape == (2, 4)
    assert loaded(constructor_args={"num_classes": 9}).module.linear.out_features == 9
    assert loaded(f"{__name__}.OneLayer", channels=3, constructor_args={"width": 5}).module.layer.in_features == 5
    assert loaded("torchvision.models.squeezenet1_1").module(torch.zeros(1, 3, 64, 64)).shape == (1, 4)


def test_the_normalisation_is_looked_for_in_order(weights):
    def chosen(**options):
        return load(NARROW, num_classes=4, **options).normalization

    asked = []
    assert chosen(default_normalization=lambda: asked.append(1) or OTHER) == OTHER
    assert asked == [1]
    weights.with_suffix(".json").write_text(json.dumps({"normalization": {"mean": [0.5] * 3, "std": [0.5] * 3}}))
    assert chosen(pretrained_weights=weights, default_normalization=lambda: asked.append(1) or OTHER) == HALF
    assert asked == [1]
    assert chosen(pretrained_weights=weights, normalization=OTHER) == OTHER
    assert chosen(default_normalization=OTHER) == OTHER
    with pytest.raises(ModelError, match="NarrowResNet8: its normalisation is unknown; set normalization"):
        chosen()


@pytest.mark.parametrize("text", ["", "{}", '{"normalization": {"mean": 3, "std": 4}}', "[]"])
def test_a_damaged_file_beside_the_weights_is_named(weights, text):
    weights.with_suffix(".json").write_text(text)
    with pytest.raises(ModelError, match=r"best_model\.json: lies beside the weights and should hold"):
        load(NARROW, num_classes=4, pretrained_weights=weights)


def test_the_transformer_comes_before_or_after_the_weights_as_the_file_wants(weights, tmp_path):
    fresh = loaded(transformer=f"{__name__}.new_head", num_classes=7)
    assert fresh.module.linear.out_features == 7
    torch.save(fresh.module.state_dict(), tmp_path / "tuned.pth")
    options = {"num_classes": 7, "transformer": f"{__name__}.new_head"}
    tuned = loaded(pretrained_weights=tmp_path / "tuned.pth", **options)
    assert state_sha256(tuned.module) == state_sha256(fresh.module)
    before = loaded(pretrained_weights=weights, constructor_args={"num_classes": 4}, **options)
    assert before.module.linear.out_features == 7
    torch.testing.assert_close(before.module.conv1.weight, torch.load(weights, weights_only=True)["conv1.weight"])


def test_weights_of_another_architecture_name_both_sides(weights):
    with pytest.raises(ModelError) as error:
        loaded("heatproof.models.resnet_cifar.ResNet20", pretrained_weights=weights)
    message = str(error.value)
    assert message.startswith(
        f"{weights}: does not fit heatproof.models.resnet_cifar.ResNet20: the file has no layer1.1.conv1.weight, "
    )
    assert "the model has no layer1.0.shortcut.0.weight, " in message
    assert message.count(" more)") == 3
    assert " has shape (16,) in the file and (32,) in the model (and " in message


def test_a_wrong_shape_names_the_parameter_and_both_shapes(weights):
    with pytest.raises(ModelError, match=r"linear\.weight has shape \(4, 16\) in the file and \(5, 16\) in the model"):
        loaded(pretrained_weights=weights, num_classes=5)


def test_missing_and_unknown_names_are_told(weights, tmp_path):
    state = torch.load(weights, weights_only=True)

    def refused(changed):
        torch.save(changed, tmp_path / "changed.pth")
        with pytest.raises(ModelError) as error:
            loaded(pretrained_weights=tmp_path / "changed.pth")
        return str(error.value)

    assert "the file has no linear.bias" in refused({k: v for k, v in state.items() if k != "linear.bias"})
    assert "the model has no extra" in refused({**state, "extra": torch.zeros(1)})
    assert "conv1.weight holds NaN" in refused({**state, "conv1.weight": state["conv1.weight"] * float("nan")})


def test_files_without_counters_of_batches_are_taken(weights):
    state = torch.load(weights, weights_only=True)
    torch.save({k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}, weights)
    assert loaded(pretrained_weights=weights).module.linear.out_features == 4


class Evil:
    """Makes a folder when it is unpickled."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("form", ["torch", "pickle"])
def test_a_pickle_that_wants_to_execute_does_not(tmp_path, form):
    path, proof = tmp_path / "evil.pth", tmp_path / "executed"
    content = {"conv1.weight": Evil(proof)}
    if form == "torch":
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content))
    with pytest.raises(
        ModelError, match=r"evil\.pth: is no tensors-only file of weights.*nothing of it was run"
    ) as error:
        loaded(pretrained_weights=path)
    assert not proof.exists()
    assert "\n" not in str(error.value)
    assert "weights_only" not in str(error.value)  # torch's own advice is to switch the protection off
    if form == "torch":
        assert "it names posix.mkdir" in str(error.value) or "it names nt.mkdir" in str(error.value)


def saved(thing):
    buffer = io.BytesIO()
    torch.save(thing, buffer)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is no file of weights, or a damaged one"),
        (b"hello", "is no file of weights, or a damaged one"),
        (saved({"a": torch.zeros(300)})[:-100], "is no file of weights, or a damaged one"),
        (saved(nn.Linear(1, 1)), r"is no tensors-only file of weights \(it names torch.nn.modules.linear.Linear\)"),
        (saved({}), r"holds no tensor with a name \(dict\); expected a dict of tensors by name"),
        (saved({"state_dict": {"a": torch.zeros(1)}, "epoch": 3}), "does not fit .*; the model has no state_dict.a$"),
    ],
)
def test_files_that_hold_no_weights_are_named(tmp_path, content, message):
    path = tmp_path / "weights.pth"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=rf"weights\.pth: {message}") as error:
        loaded(pretrained_weights=path)
    assert "\n" not in str(error.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ModelError, match=r"nowhere\.pth: no such file of weights"):
        loaded(pretrained_weights=tmp_path / "nowhere.pth")


@pytest.mark.parametrize(
    ("arch", "options", "kind", "message"),
    [
        ("heatproof.models.resnet_cifar.ResNet9", {}, PluginError, "has no 'ResNet9'; did you mean 'ResNet"),
        ("torchvision.models.resnet5", {}, PluginError, "torchvision.models has no 'resnet5'"),
        ("torchvision.models.resnet", {}, PluginError, "torchvision.models.resnet: is not callable"),
        (NARROW, {"constructor_args": {"widht": 3}}, PluginError, "unknown option 'widht'"),
        (
            "torchvision.models.alexnet",
            {"constructor_args": {"wide": 3}},
            ModelError,
            "unexpected keyword argument 'wide'",
        ),
        ("torchvision.models.alexnet", {"constructor_args": {"weights": "x"}}, PluginError, "unknown option 'weights'"),
        ("test_loading.broken", {}, ModelError, r"building it failed: ValueError: no more$"),
        ("test_loading.a_list", {}, ModelError, "returned a list; expected a torch.nn.Module"),
        (
            NARROW,
            {"transformer": "test_loading.no_model"},
            ModelError,
            "no_model: returned a int; expected a torch.nn.Module",
        ),
        (NARROW, {"pretrained_weights": "DEFAULT"}, ModelError, "DEFAULT stands for the weights of torchvision"),
        ("timm:vit_tiny_patch16_22", {}, ModelError, "timm has no model 'vit_tiny_patch16_22'; did you mean"),
    ],
)
def test_what_cannot_be_built_is_named(monkeypatch, arch, options, kind, message):
    monkeypatch.setitem(sys.modules, "test_loading", sys.modules[__name__])
    with pytest.raises(kind, match=message):
        loaded(arch, **options)


@pytest.mark.parametrize(
    ("arch", "package", "extra"), [("timm:resnet18", "timm", "models"), ("hf:a/b", "transformers", "hf")]
)
def test_a_missing_extra_is_named(monkeypatch, arch, package, extra):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ModelError, match=rf"needs the package {package}, .*uv sync --extra {extra}. or .pip install"):
        loaded(arch)


def test_default_weights_without_a_network_are_one_line(monkeypatch, tmp_path):
    def refuse(*_, **__):
        raise URLError("Name or service not known")

    monkeypatch.setattr("torch.hub.urlopen", refuse)
    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    with pytest.raises(ModelError, match=r"its weights could not be had .*put https://download.pytorch.org/") as error:
        loaded("torchvision.models.squeezenet1_1", pretrained_weights="DEFAULT")
    assert "\n" not in str(error.value)
    assert str(tmp_path) in str(error.value)


def test_default_weights_of_torchvision_bring_their_normalisation_and_their_classes(monkeypatch):
    def kept(url, *_, **__):
        from torchvision.models import squeezenet1_1

        torch.manual_seed(9)
        return squeezenet1_1().state_dict()

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", kept)
    found = load("torchvision.models.squeezenet1_1", num_classes=4, pretrained_weights="DEFAULT")
    assert found.normalization == Normalization((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert found.module(torch.zeros(1, 3, 64, 64)).shape == (1, 1000)
    assert found.weights_sha256 == state_sha256(found.module)


def test_timm_models_are_built(monkeypatch):
    timm = pytest.importorskip("timm")
    found = loaded("timm:vit_tiny_patch16_224", channels=1, constructor_args={"img_size": 32, "depth": 1})
    assert found.module(torch.zeros(1, 1, 32, 32)).shape == (1, 4)
    create = timm.create_model
    monkeypatch.setattr(
        timm, "create_model", lambda name, pretrained, **options: create(name, pretrained=False, **options)
    )
    library = load(
        "timm:vit_tiny_patch16_224", num_classes=4, pretrained_weights="DEFAULT", constructor_args={"depth": 1}
    )
    assert library.normalization == HALF
    assert library.module.num_classes == 1000


def test_hugging_face_models_return_logits(monkeypatch):
    class Classifier(nn.Module):
        def __init__(self, classes):
            super().__init__()
            self.head = nn.Linear(3, classes)

        def forward(self, pixel_values):
            return types.SimpleNamespace(logits=self.head(pixel_values.mean(dim=(2, 3))))

    def from_pretrained(name, use_safetensors, attn_implementation=None):
        assert use_safetensors
        assert name == "google/some-vit"
        return Classifier(1000)

    fake = types.ModuleType("transformers")
    fake.AutoConfig = types.SimpleNamespace(from_pretrained=lambda name, num_labels: num_labels)
    fake.AutoModelForImageClassification = types.SimpleNamespace(
        from_pretrained=from_pretrained, from_config=Classifier
    )
    fake.AutoImageProcessor = types.SimpleNamespace(
        from_pretrained=lambda name: types.SimpleNamespace(image_mean=[0.5] * 3, image_std=[0.5] * 3)
    )
    monkeypatch.setitem(sys.modules, "transformers", fake)
    eager = {"attn_implementation": "eager"}
    library = load("hf:google/some-vit", num_classes=4, pretrained_weights="DEFAULT", constructor_args=eager)
    assert library.module(torch.zeros(2, 3, 8, 8)).shape == (2, 1000)
    assert library.normalization == HALF
    assert loaded("hf:google/some-vit").module(torch.zeros(2, 3, 8, 8)).shape == (2, 4)


@pytest.mark.parametrize("kind", ["vit", "convnext"])
def test_hugging_face_models_take_sizes_and_channels_of_the_data(tmp_path, kind):
    pytest.importorskip("transformers")
    shape = {
        "vit": {"image_size": 224, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2},
        "convnext": {"hidden_sizes": [4, 4, 4, 4], "depths": [1, 1, 1, 1]},
    }[kind]
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind, **shape}))
    sizes = {"image_size": 48, "patch_size": 16} if kind == "vit" else {"patch_size": 2}
    for arguments in (sizes, sizes | {"attn_implementation": "eager"}):
        found = loaded(f"hf:{tmp_path}", channels=1, constructor_args=arguments)
        assert found.module(torch.zeros(2, 1, 48, 48)).shape == (2, 4)
    with pytest.raises(ModelError, match=r"building it failed: TypeError: .*image_siez"):
        loaded(f"hf:{tmp_path}", constructor_args={"image_siez": 48})


@pytest.mark.parametrize(
    ("arch", "arguments"),
    [
        ("torchvision.models.convnext_tiny", {}),
        ("torchvision.models.vit_b_16", {"image_size": 32}),
        ("timm:convnext_atto", {}),
        ("timm:vit_tiny_patch16_224", {"img_size": 48}),
    ],
)
def test_transformers_and_convnexts_of_the_libraries_are_built_for_small_pictures(arch, arguments):
    if arch.startswith("timm:"):
        pytest.importorskip("timm")
    side = next(iter(arguments.values()), 32)
    with torch.inference_mode():
        assert loaded(arch, constructor_args=arguments).module(torch.zeros(1, 3, side, side)).shape == (1, 4)


def test_the_shared_mobilenet_gives_its_logits_on_framed_photographs(tmp_path, shared_data):
    found = loaded(
        "torchvision.models.mobilenet_v2",
        num_classes=1000,
        pretrained_weights=shared_data / "weights" / "imagenet_mobilenet_v2.pt",
    )
    expected = np.load(shared_data / "weights" / "expected" / "imagenet_mobilenet_v2_pets_logits.npz")
    names = [str(name) for name in expected["names"]][::6]
    (tmp_path / "test" / "pet").mkdir(parents=True)
    for place, name in enumerate(names):
        source = shared_data / "pets" / "images" / f"{Path(name).stem}.jpg"
        (tmp_path / "test" / "pet" / f"{place:02d}.jpg").symlink_to(source)
    data = open_dataset("ImageFolder", tmp_path, split_ratio=1.0, seed=0, options={"resize": 256, "crop": 224})
    with torch.inference_mode():
        logits = found.module(found.normalization(data.split("test").pixels(range(len(names))) / 255))
    np.testing.assert_allclose(logits.numpy(), expected["logits"][::6], rtol=0, atol=2e-3)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (torch.zeros(2), r"holds no tensor with a name \(Tensor\); expected a dict of tensors by name"),
        (
            {"format": "heatproof/masker", "masker": {}},
            "is a file of heatproof/masker, not the weights of a network alone; name the file that is meant",
        ),
    ],
)
def test_files_of_something_else_say_what_they_are(tmp_path, content, message):
    torch.save(content, tmp_path / "weights.pth")
    with pytest.raises(ModelError, match=message):
        read_weights(tmp_path / "weights.pth")
