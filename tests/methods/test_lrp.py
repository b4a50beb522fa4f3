"""Layer-wise relevance propagation: against Zennit's numbers, by hand, and where it refuses."""

import pytest
import torch
from torch import nn

from heatproof.errors import ModelError
from heatproof.methods.gradient import Lrp
from tests.methods.networks import FunctionalTinyCnn, SharedTinyCnn, SmallResNet, TinyCnn


@pytest.mark.parametrize("composite", ["epsilon_plus_flat", "epsilon_plus"])
@pytest.mark.parametrize("network", [TinyCnn, FunctionalTinyCnn, SharedTinyCnn])
def test_maps_are_zennits(golden, weights, images, targets, network, composite):
    model = network().eval()
    model.load_state_dict(weights)
    maps = Lrp(model, composite=composite)(images[:3], targets[:3])
    torch.testing.assert_close(maps, golden("lrp")[f"tinycnn_{composite}"], atol=1e-6, rtol=1e-4)


def test_with_batch_norms_and_a_residual_sum_they_are_zennits_too(golden):
    expected = golden("lrp")
    model = SmallResNet().eval()
    model.load_state_dict({k[2:]: v for k, v in expected.items() if k.startswith("w.")}, strict=False)
    model.bn1.eps = model.bn2.eps = 0.0  # Zennit's merging leaves a trace of eps; its golden vector was made without
    maps = Lrp(model)(expected["x"], expected["target"])
    torch.testing.assert_close(maps, expected["residual_epsilon_plus_flat"], atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("composite", ["epsilon_plus_flat", "epsilon_plus", "epsilon"])
def test_without_biases_no_relevance_is_lost(composite):
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.ReLU(), nn.MaxPool2d(3, 2, 1)),
        *(nn.Conv2d(8, 8, 3, bias=False), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(2), nn.Flatten()),
        *(nn.Linear(32, 16, bias=False), nn.ReLU(), nn.Linear(16, 4, bias=False)),
    ).double()
    images, targets = torch.randn(3, 3, 9, 8, dtype=torch.float64), torch.tensor([0, 1, 3])
    maps = Lrp(model, composite=composite, epsilon=1e-12)(images, targets)
    logits = model(images)[range(3), targets].detach()
    torch.testing.assert_close(maps.sum(dim=(1, 2, 3)).double(), logits, atol=1e-6, rtol=1e-5)


def test_the_plus_rule_by_hand():
    """One output 2 a - 1 b + 3 at a = 1, b = 1 (logit 4): all of its relevance goes to a, less the bias's share."""
    model = nn.Sequential(nn.Conv2d(2, 1, 1), nn.Flatten())
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([2.0, -1.0]).reshape(1, 2, 1, 1))
        model[0].bias.fill_(3.0)
    image, target = torch.ones(1, 2, 1, 1), torch.tensor([0])
    plus = Lrp(model, composite="epsilon_plus", epsilon=0.0)(image, target).flatten().tolist()
    assert plus == pytest.approx([4 * 2 / (2 + 3), 0])
    flat = Lrp(model, composite="epsilon_plus_flat", epsilon=0.0)(image, target).flatten().tolist()
    assert flat == pytest.approx([2, 2])
    epsilon = Lrp(model, composite="epsilon", epsilon=0.0)(image, target).flatten().tolist()
    assert epsilon == pytest.approx([2, -1])


def test_a_batch_norm_alone_hands_on_all_it_gets():
    model = nn.Sequential(nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(2, 1, bias=False)).eval()
    nn.init.constant_(model[0].bias, 5.0)
    nn.init.constant_(model[3].weight, 1.0)
    maps = Lrp(model)(torch.tensor([1.0, 2.0]).reshape(1, 2, 1, 1), torch.tensor([0]))
    assert maps.flatten().tolist() == pytest.approx([6.0, 7.0], abs=1e-3)


class Gate(nn.Module):
    def __init__(self, combine):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.combine = combine

    def forward(self, images):
        return self.combine(self.conv(images)).mean(dim=(2, 3))


@pytest.mark.parametrize(
    ("combine", "name"),
    [
        (lambda x: x * x.sigmoid(), "mul"),
        (lambda x: torch.einsum("nchw,nchw->nchw", x, x), "einsum"),
        (lambda x: x.softmax(dim=1), "softmax"),
        (lambda x: torch.matmul(x, x), "matmul"),
        (lambda x: nn.functional.layer_norm(x, x.shape[1:]), "layer_norm"),
    ],
)
def test_a_function_without_a_rule_is_refused_by_name(combine, name):
    with pytest.raises(ModelError, match=f"Lrp: has no rule for '{name}', which the model calls"):
        Lrp(Gate(combine))(torch.ones(1, 3, 2, 2), torch.tensor([0]))


@pytest.mark.parametrize(
    "combine", [lambda x: 2 * x, lambda x: x + 1, lambda x: x / 3, lambda x: 1 - x, lambda x: x[:, [0, 1, 2, 3]]]
)
def test_constants_and_rearrangements_take_no_relevance(combine):
    model = Gate(combine)
    nn.init.zeros_(model.conv.bias)
    image = torch.rand(1, 3, 2, 2)
    logit = model(image)[0, 1].detach()
    maps = Lrp(model, composite="epsilon", epsilon=0.0)(image, torch.tensor([1]))
    torch.testing.assert_close(maps.sum(), logit, atol=1e-5, rtol=1e-4)


def test_batch_statistics_are_refused():
    model = nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2, track_running_stats=False), nn.Flatten()).eval()
    with pytest.raises(ModelError, match="no rule for a batch norm without running statistics"):
        Lrp(model)(torch.rand(1, 3, 2, 2), torch.tensor([0]))
