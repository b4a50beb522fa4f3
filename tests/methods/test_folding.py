"""The quicker way to run a model gives what the model gives."""

import pytest
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from heatproof.errors import ModelError
from heatproof.methods.folding import quickened
from heatproof.methods.gradient import IntegratedGradients
from tests.methods.networks import SmallResNet, small_resnet


class Count(TorchFunctionMode):
    """How often the model calls each function; to be entered first, so that it sees what is really run."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.calls.append(getattr(func, "__name__", ""))
        return func(*args, **(kwargs or {}))


def batch_norms_run(model, images):
    with torch.no_grad(), Count() as count, quickened(model, images):
        count.calls.clear()
        logits = model(images)
    return count.calls.count("batch_norm"), logits


class UsedTwice(nn.Module):
    """The convolution's own output is needed beside that of its batch norm."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        nn.init.constant_(self.norm.bias, 2.0)

    def forward(self, images):
        features = self.conv(images)
        return (features + self.norm(features)).mean(dim=(2, 3))


class SharedWeights(nn.Module):
    """One convolution, called twice, with two batch norms."""

    def __init__(self):
        super().__init__()
        self.conv, self.norms = nn.Conv2d(3, 3, 3), nn.ModuleList([nn.BatchNorm2d(3), nn.BatchNorm2d(3)])
        nn.init.constant_(self.norms[1].bias, 2.0)

    def forward(self, images):
        for norm in self.norms:
            images = norm(self.conv(images))
        return images.mean(dim=(2, 3))


class Viewing(SmallResNet):
    """Takes the features as they lie in memory, which forbids channels last."""

    def forward(self, images):
        features = self.bn1(self.conv1(images))
        return features.view(len(images), 4, -1).mean(dim=2)


@pytest.mark.parametrize(
    ("model", "left"),
    [
        (small_resnet(), 0),
        (UsedTwice(), 1),
        (SharedWeights(), 2),
        (Viewing(), 0),
        (
            nn.Sequential(
                nn.Conv2d(3, 2, 3), nn.BatchNorm2d(2, track_running_stats=False), nn.AdaptiveAvgPool2d(1), nn.Flatten()
            ),
            1,
        ),
        (nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()), 1),
        (nn.Sequential(nn.Conv2d(3, 2, 3), nn.ReLU(), nn.BatchNorm2d(2), nn.AdaptiveAvgPool2d(1), nn.Flatten()), 1),
    ],
    ids=["residual", "used twice", "shared weights", "view", "batch statistics", "norm first", "norm behind a ReLU"],
)
def test_batch_norms_are_folded_where_that_changes_nothing(model, left):
    images = torch.randn(4, 3, 12, 10, generator=torch.Generator().manual_seed(0))
    model = model.eval()
    run, logits = batch_norms_run(model, images)
    assert run == left
    torch.testing.assert_close(logits, model(images).detach(), atol=1e-5, rtol=1e-5)


def test_integrated_gradients_are_those_of_the_plain_model():
    model = small_resnet()
    images = torch.randn(2, 3, 12, 10, generator=torch.Generator().manual_seed(0))
    targets = torch.tensor([1, 3])
    total = torch.zeros_like(images)
    for step in range(8):
        inputs = (step / 8 * images).requires_grad_()
        total += torch.autograd.grad(model(inputs)[range(2), targets].sum(), inputs)[0] / 8
    maps = IntegratedGradients(model, steps=8, quadrature="riemann_left")(images, targets)
    torch.testing.assert_close(maps, images * total, atol=1e-6 * float((images * total).abs().max()), rtol=0)


def test_on_a_cpu_batches_lie_channels_last_unless_the_model_views_them():
    images = torch.zeros(1, 3, 12, 10)
    with quickened(small_resnet(), images) as layout:
        assert layout == torch.channels_last
    with quickened(Viewing().eval(), images) as layout:
        assert layout == torch.contiguous_format


class Fickle(nn.Module):
    """Its batch norm is for bright images only."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, images):
        features = self.conv(images)
        return (self.norm(features) if images.mean() > 0 else features).mean(dim=(2, 3))


def test_a_path_that_depends_on_the_image_is_an_error_rather_than_a_wrong_map():
    images = torch.stack([torch.ones(3, 6, 6), -torch.ones(3, 6, 6)])
    method = IntegratedGradients(Fickle().eval(), steps=2, rows_per_forward=1)
    assert method(images[:1], torch.tensor([0])).isfinite().all()
    with pytest.raises(ModelError, match="Fickle: left out a batch norm that it calls for the first image"):
        method(images, torch.tensor([0, 0]))


def test_an_error_of_the_model_is_not_hidden():
    with pytest.raises(RuntimeError, match="expected input"), quickened(small_resnet(), torch.zeros(1, 7, 12, 10)):
        pass


def test_a_block_can_stand_in_a_block():
    model, images = small_resnet(), torch.randn(2, 3, 12, 10, generator=torch.Generator().manual_seed(0))
    expected = model(images).detach()
    with torch.no_grad(), quickened(model, images), quickened(model, images):
        torch.testing.assert_close(model(images), expected, atol=1e-5, rtol=1e-5)
