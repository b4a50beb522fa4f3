"""Against Captum itself, on a network with batch norms, for what the golden vectors do not hold."""

import pytest
import torch
from torch import nn

from heatproof.methods.cam import GradCam
from heatproof.methods.gradient import GradientShap, IntegratedGradients, Lrp
from tests.methods.networks import TinyCnn, small_resnet

captum = pytest.importorskip("captum.attr")

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

IMAGES = torch.randn(3, 3, 12, 10, generator=torch.Generator().manual_seed(1))
TARGETS = torch.tensor([0, 3, 1])


def test_integrated_gradients_through_batch_norms():
    model = small_resnet()
    expected = captum.IntegratedGradients(model).attribute(IMAGES, target=TARGETS, baselines=-0.4, n_steps=20)
    maps = IntegratedGradients(model, steps=20, baseline=-0.4)(IMAGES, TARGETS)
    torch.testing.assert_close(maps, expected.float(), atol=1e-6, rtol=1e-4)


def test_grad_cam_of_an_inner_layer():
    model = small_resnet()
    expected = captum.LayerGradCam(model, model.conv2).attribute(IMAGES, target=TARGETS)
    expected = nn.functional.interpolate(expected, size=(12, 10), mode="bilinear", align_corners=False)[:, 0]
    maps = GradCam(model, layer="conv2", relu=False)(IMAGES, TARGETS)
    torch.testing.assert_close(maps, expected.detach(), atol=1e-6, rtol=1e-4)


class WithoutFlatten(TinyCnn):
    """Captum's rules know no module that flattens."""

    def __init__(self):
        super().__init__()
        del self.flat

    def forward(self, images):
        for layer in list(self.children())[:-1]:
            images = layer(images)
        return self.fc(images[:, :, 0, 0])


def test_lrp_with_epsilon_everywhere(weights, images, targets):
    model = WithoutFlatten().eval()
    model.load_state_dict(weights)
    expected = captum.LRP(model).attribute(images, target=targets)
    maps = Lrp(model, composite="epsilon", epsilon=1e-9)(images, targets)
    torch.testing.assert_close(maps, expected.detach(), atol=1e-5, rtol=1e-3)


def test_gradient_shap_agrees_on_average():
    model = small_resnet()
    baselines = torch.tensor([0.0, 0.5])[:, None, None, None].expand(2, 3, 12, 10)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        expected = captum.GradientShap(model).attribute(IMAGES, baselines, target=TARGETS, n_samples=1500).detach()
    maps = GradientShap(model, baselines=[0.0, 0.5], samples=1500)(IMAGES, TARGETS)
    assert torch.corrcoef(torch.stack([maps.flatten(), expected.float().flatten()]))[0, 1] > 0.99
    assert float((maps - expected).norm() / expected.norm()) < 0.15
