"""New heads on pretrained classifiers."""

import json

import pytest
import torch
from torch import nn

from heatproof.errors import ModelError
from heatproof.models import Normalization
from heatproof.models.heads import new_head
from heatproof.models.loading import load

HEAD = "heatproof.models.heads.new_head"


@pytest.mark.parametrize(
    ("arch", "arguments", "side"),
    [
        ("torchvision.models.shufflenet_v2_x0_5", {}, 32),
        ("torchvision.models.squeezenet1_1", {}, None),
        ("timm:convnext_atto", {}, 32),
        ("timm:vit_tiny_patch16_224", {"img_size": 32, "depth": 1}, 32),
        ("timm:resnet10t", {}, 32),
        ("hf", {}, 32),
    ],
)
def test_only_the_head_is_new(tmp_path, arch, arguments, side):
    pytest.importorskip("timm" if arch.startswith("timm") else "transformers")
    if arch == "hf":
        sizes = {"image_size": 32, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
        (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit", **sizes}))
        arch = f"hf:{tmp_path}"
    half = Normalization((0.5,) * 3, (0.5,) * 3)
    built = load(arch, num_classes=7, constructor_args=arguments, normalization=half).module
    if side is None:  # its head is a convolution
        with pytest.raises(ModelError, match="no linear layer that could be replaced"):
            new_head(built, 4)
        return
    before = {name: value.clone() for name, value in built.state_dict().items()}
    with torch.inference_mode():
        assert new_head(built, 4)(torch.zeros(2, 3, side, side)).shape == (2, 4)
    changed = {name for name, value in built.state_dict().items() if value.shape != before[name].shape}
    assert len(changed) == 2
    assert all(torch.equal(value, before[name]) for name, value in built.state_dict().items() if name not in changed)
    # What is trained so is read again, with the same transformer.
    torch.save(built.state_dict(), tmp_path / "trained.pth")
    again = load(
        arch,
        num_classes=4,
        constructor_args=arguments,
        pretrained_weights=tmp_path / "trained.pth",
        transformer=HEAD,
        normalization=half,
    )
    assert all(torch.equal(value, built.state_dict()[name]) for name, value in again.module.state_dict().items())


def test_a_head_without_bias_stays_without():
    head = new_head(nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 9, bias=False)).double(), 2)[2]
    assert (head.in_features, head.out_features, head.bias, head.weight.dtype) == (5, 2, None, torch.float64)


def sizes(model):
    return sorted(
        name for name, module in model.named_modules() if isinstance(module, nn.Linear) and module.out_features == 5
    )


class TwoHeads(nn.Module):
    """A head for the class token and one for the distillation token, as Hugging Face's DeiT has them."""

    def __init__(self, width=6):
        super().__init__()
        self.trunk = nn.Linear(width, width)
        self.classifier = nn.Linear(width, 9)
        self.distillation = nn.Linear(width, 9)


def test_all_heads_of_a_classifier_are_new():
    assert sizes(new_head(TwoHeads(), 5)) == ["classifier", "distillation"]
    inner = nn.Sequential(nn.Linear(12, 9), nn.ReLU(), nn.Linear(9, 9))
    assert sizes(new_head(inner, 5)) == ["2"]  # the first gives what the second takes


@pytest.mark.parametrize(
    ("name", "heads"),
    [("googlenet", ["aux1.fc2", "aux2.fc2", "fc"]), ("inception_v3", ["AuxLogits.fc", "fc"])],
)
def test_auxiliary_classifiers_are_new(name, heads):
    from torchvision import models

    with torch.device("meta"):
        model = getattr(models, name)(init_weights=False, aux_logits=True)
    assert sizes(new_head(model, 5)) == sorted(heads)


@pytest.mark.parametrize(
    ("name", "options", "side"),
    [
        ("deit_tiny_distilled_patch16_224", {"img_size": 32, "embed_dim": 24, "depth": 1, "num_heads": 3}, 32),
        ("levit_128s", {}, 224),
    ],
)
def test_timm_s_heads_are_new_in_training_and_evaluation(name, options, side):
    timm = pytest.importorskip("timm")
    model = timm.create_model(name, **options).double()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    images = torch.randn(2, 3, side, side, dtype=torch.float64)
    changed = new_head(model, 5)
    for training in (True, False):
        out = changed.train(training)(images)
        for one in out if isinstance(out, tuple) else (out,):
            assert (one.shape, one.dtype) == ((2, 5), torch.float64)
    changed = {key for key, value in model.state_dict().items() if value.shape != before[key].shape}
    assert changed
    assert all(key.startswith("head") for key in changed)
    drawn = {
        key for key in before if "running" in key or "num_batches" in key
    } | changed  # training has moved the first
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items() if key not in drawn)
