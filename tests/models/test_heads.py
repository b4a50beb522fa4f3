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
