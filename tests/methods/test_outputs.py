"""Every method explains networks as `models.outputs` reads them: of one output, of half precision, of labels."""

import copy

import pytest
import torch
from torch import nn

from heatproof.methods.attention import Chefer, GradientRollout, LeGrad, StopGradient
from heatproof.methods.gradient import VarGrad
from heatproof.methods.gradmask import GradMask
from heatproof.methods.transformer_lrp import TransformerAttribution, TransformerLrp
from heatproof.models import outputs
from heatproof.models.vit import ViTTiny
from tests.methods.networks import small_resnet
from tests.methods.test_properties import INDICES, LOOK_AT_THE_MODEL, METHODS, explain, over, some_images

ON_TOKENS = {
    "GradientRollout": lambda model: GradientRollout(model, discard_ratio=0.0),
    "Chefer": Chefer,
    "LeGrad": LeGrad,
    "StopGradient": StopGradient,
    "GradMask": lambda model: GradMask(model, masks_layer=2),
    "TransformerAttribution": TransformerAttribution,
    "TransformerLrp": TransformerLrp,
}


def with_one_output(network, layer):
    """Two copies of a network with another last linear `layer`: one of two classes, with the logits (0, z), and one of one output z."""
    last = network.get_submodule(layer)
    heads = nn.Linear(last.in_features, 2), nn.Linear(last.in_features, 1)
    with torch.no_grad():
        for head in heads:
            head.weight.copy_(torch.zeros_like(head.weight))
            head.bias.copy_(torch.zeros_like(head.bias))
            head.weight[-1] = last.weight[1] - last.weight[0]
            head.bias[-1] = last.bias[1] - last.bias[0]
    two, one = copy.deepcopy(network), copy.deepcopy(network)
    parent, _, name = layer.rpartition(".")
    for model, head in zip((two, one), heads, strict=True):
        setattr(model.get_submodule(parent), name, head)
    return two.eval(), one.eval()


def last_linear(network):
    return [name for name, module in network.named_modules() if isinstance(module, nn.Linear)][-1]


def vit(classes=2):
    torch.manual_seed(0)
    network = ViTTiny(classes, img_size=(12, 8), embed_dim=16, depth=2, num_heads=2).eval()
    for parameter in network.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return network


def pairs():
    torch.manual_seed(0)
    network = small_resnet()
    for name, make in LOOK_AT_THE_MODEL.items():
        yield pytest.param(make, network, some_images(), id=name)
    for name, make in ON_TOKENS.items():
        yield pytest.param(make, vit(), some_images()[:, :, :, :8], id=f"{name} of tokens")


@pytest.mark.parametrize(("make", "network", "images"), list(pairs()))
def test_one_output_is_explained_as_two_classes_with_the_logits_0_and_z(make, network, images):
    two, one = with_one_output(network, last_linear(network))
    outputs.read(one, images[:2], name="one")
    targets = torch.ones(3, dtype=torch.int64)
    wanted, found = (explain(make(model), images, targets, INDICES) for model in (two, one))
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5 * float(wanted.abs().max()))


@over(
    {
        name: LOOK_AT_THE_MODEL[name]
        for name in ("InputXGradient", "IntegratedGradients", "DeepLift", "Lrp", "Occlusion")
    }
)
def test_the_other_class_of_one_output_has_the_opposite_logit(make):
    _, one = with_one_output(small_resnet(), last_linear(small_resnet()))
    outputs.read(one, some_images()[:2], name="one")
    maps = [explain(make(one), some_images(), torch.full((3,), k), INDICES) for k in (0, 1)]
    torch.testing.assert_close(maps[0], -maps[1], rtol=1e-4, atol=1e-6 * float(maps[1].abs().max()))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
@over(METHODS)
def test_networks_of_other_precision_are_explained(make, dtype):
    """Within the rounding of their weights and activations, as the same network in single precision."""
    network = small_resnet().to(dtype)
    exact = copy.deepcopy(network).float()
    outputs.read(network, some_images()[:2], name="other precision")
    targets = torch.tensor([0, 3, 1])
    found, wanted = (explain(make(model), some_images(), targets, INDICES) for model in (network, exact))
    assert found.dtype == torch.float32
    assert torch.isfinite(found).all()
    steps = {torch.float16: 2**-11, torch.bfloat16: 2**-8, torch.float64: 2**-24}
    alike = torch.nn.functional.cosine_similarity(found.flatten(1), wanted.flatten(1))
    alike[(found == 0).flatten(1).all(dim=1) & (wanted == 0).flatten(1).all(dim=1)] = 1  # clipped at zero
    # A variance is a difference of nearly equal numbers: half of the digits are lost.
    bound = 4 * steps[dtype] ** 0.5 if isinstance(make(network), VarGrad) else 40 * steps[dtype]
    assert (alike > 1 - bound).all(), alike
