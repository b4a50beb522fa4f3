"""Any scalar as what is explained: it means what it says, and every method finds it through the model around the network."""

import pytest
import torch
from torch import nn

from heatproof.errors import InputError, ModelError
from heatproof.methods.attention import AttentionRollout, Chefer, GradientRollout, LeGrad, StopGradient
from heatproof.methods.cam import GradCam
from heatproof.methods.gradient import Gradient, IntegratedGradients
from heatproof.methods.gradmask import GradMask
from heatproof.methods.lrp import Lrp
from heatproof.methods.perturbation import Occlusion, Rise
from heatproof.methods.transformer_lrp import TransformerAttribution, TransformerLrp
from heatproof.models.targets import AnyOf, Difference, Output, Retargeted
from heatproof.models.vit import ViTTiny
from tests.methods.networks import small_resnet

METHODS = {
    "gradient": lambda model: Gradient(model, absolute=False),
    "intgrad": lambda model: IntegratedGradients(model, steps=3),
    "gradcam": lambda model: GradCam(model, layer="blocks.0.norm1"),
    "occlusion": lambda model: Occlusion(model, window=4, stride=4),
    "rise": lambda model: Rise(model, masks=8),
    "rollout": lambda model: AttentionRollout(model),
    "gradient_rollout": lambda model: GradientRollout(model, discard_ratio=0.0),
    "chefer": lambda model: Chefer(model),
    "legrad": lambda model: LeGrad(model),
    "stop": lambda model: StopGradient(model),
    "gradmask": lambda model: GradMask(model, masks_layer=2),
    "attribution": lambda model: TransformerAttribution(model),
    "transformer_lrp": lambda model: TransformerLrp(model),
}


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    model = ViTTiny(5, img_size=(8, 12), embed_dim=16, depth=2, num_heads=2).eval()
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model


@pytest.fixture(scope="module")
def images():
    return torch.randn(3, 3, 8, 12, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", METHODS)
def test_one_class_is_explained_as_ever(network, images, name):
    """Its logit, its probability, its layers and its attention are those of the network inside."""
    plain = METHODS[name](network)(images, torch.full((3,), 3))
    asked = METHODS[name](Retargeted(network, AnyOf((3,))))(images, torch.zeros(3, dtype=torch.int64))
    torch.testing.assert_close(asked, plain, rtol=1e-4, atol=1e-6 * float(plain.abs().max()))


@pytest.mark.parametrize("name", ["gradient", "stop"])
def test_what_is_linear_in_the_score_is_so_for_a_difference(network, images, name):
    maps = [METHODS[name](network)(images, torch.full((3,), k)) for k in (4, 1)]
    asked = METHODS[name](Retargeted(network, Difference(4, 1)))(images, torch.zeros(3, dtype=torch.int64))
    torch.testing.assert_close(asked, maps[0] - maps[1], rtol=0, atol=1e-5 * float(maps[0].abs().max()))


@pytest.mark.parametrize("method", [Lrp, lambda model: Lrp(model, "epsilon")])
def test_relevance_of_a_difference_is_the_difference_of_both(method):
    model, images = small_resnet(), torch.randn(3, 3, 12, 10, generator=torch.Generator().manual_seed(1))
    maps = [method(model)(images, torch.full((3,), k)) for k in (3, 1)]
    asked = method(Retargeted(model, Difference(3, 1)).eval())(images, torch.zeros(3, dtype=torch.int64))
    torch.testing.assert_close(asked, maps[0] - maps[1], rtol=0, atol=1e-5 * float(maps[0].abs().max()))


def test_relevance_through_a_transformer_begins_at_the_class_that_the_difference_is_for(network, images):
    first, asked = network, Retargeted(network, Difference(4, 1)).eval()
    zeros = torch.zeros(3, dtype=torch.int64)
    torch.testing.assert_close(TransformerLrp(asked)(images, zeros), TransformerLrp(first)(images, zeros + 4))
    maps = TransformerAttribution(asked)(images, zeros)
    assert (maps > 0).any(dim=(1, 2)).all()
    assert not torch.allclose(maps, TransformerAttribution(first)(images, zeros + 4))


def test_a_method_s_rules_are_for_the_network_alone(network, images):
    """Softmax is a constant for StopGradient, but not in the scalar."""
    asked = Retargeted(network, lambda outputs: outputs.softmax(dim=1)[:, 2].log()).eval()
    maps = StopGradient(asked)(images, torch.zeros(3, dtype=torch.int64))
    shares = network(images).softmax(dim=1).detach()
    each = torch.stack([StopGradient(network)(images, torch.full((3,), k)) for k in range(5)])
    expected = each[2] - torch.einsum("nk,knhw->nhw", shares, each)
    torch.testing.assert_close(maps, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


def test_the_probability_of_any_is_the_sum_of_theirs(network, images):
    with torch.no_grad():
        every = network(images).softmax(dim=1)
        found = Retargeted(network, AnyOf((0, 4)))(images).softmax(dim=1)
    torch.testing.assert_close(found[:, 0], every[:, 0] + every[:, 4])


def test_the_probability_of_a_difference_knows_two_classes_only(network, images):
    with torch.no_grad():
        every = network(images).softmax(dim=1)
        found = Retargeted(network, Difference(0, 4))(images).softmax(dim=1)
    torch.testing.assert_close(found[:, 0], every[:, 0] / (every[:, 0] + every[:, 4]))


def test_a_function_of_one_s_own_is_a_scalar(network, images):
    model = Retargeted(network, lambda outputs: outputs.square().sum(dim=1))
    asked = Gradient(model, absolute=False)(images, torch.zeros(3, dtype=torch.int64))
    inputs = images.clone().requires_grad_()
    (expected,) = torch.autograd.grad(network(inputs).square().sum(), inputs)
    torch.testing.assert_close(asked, expected)


@pytest.mark.parametrize(
    ("scalar", "error", "message"),
    [
        (AnyOf((1, 5)), InputError, "class 5; the model has 5 classes"),
        (AnyOf(()), InputError, "no class is named"),
        (AnyOf(tuple(range(5))), InputError, "all classes of the model are named"),
        (Difference(2, 2), InputError, "class 2 and itself"),
        (Output(-1), InputError, "class -1"),
        (lambda outputs: outputs, ModelError, r"gives \(3, 5\) for outputs \(3, 5\); expected \(N,\) or \(N, 2\)"),
    ],
)
def test_what_is_no_scalar_is_said(network, images, scalar, error, message):
    with pytest.raises(error, match=message):
        Retargeted(network, scalar)(images)


def test_a_layer_that_does_not_exist_is_told_of_the_network(network):
    with pytest.raises(ModelError, match="ViTTiny has no such layer"):
        GradCam(Retargeted(network, Output()), layer="blocks.9")


def test_a_network_without_attention_stays_without():
    with pytest.raises(ModelError, match="no vision transformer"):
        Chefer(Retargeted(nn.Flatten(), Output()))
