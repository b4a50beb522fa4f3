"""One network however it is written: methods that replace the rules of its functions are right, or refuse by name."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from heatproof.errors import ModelError
from heatproof.methods.gradient import Deconvolution, DeepLift, GuidedBackprop, Lrp

IMAGE, TARGET = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([1, 2])


class OwnRelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.clamp(min=0)

    @staticmethod
    def backward(ctx, gradient):
        return gradient * (ctx.saved_tensors[0] > 0)


class Network(nn.Module):
    """Two convolutions, whose ReLU is handed in."""

    def __init__(self, relu):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.conv1, self.conv2, self.fc = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 3), nn.Linear(6, 4)
        self.relu = relu

    def forward(self, images):
        return self.fc(self.relu(self.conv2(self.relu(self.conv1(images)))).mean(dim=(2, 3)))


def set_to_zero(x):
    x[x < 0] = 0
    return x


RELUS = {
    "clamp": lambda x: x.clamp(min=0),
    "clamp in place": lambda x: x.clamp_(0),
    "clip": lambda x: torch.clip(x, 0, None),
    "clamp_min": lambda x: torch.clamp_min(x, 0),
    "named input": lambda x: functional.relu(input=x),
    "in place": functional.relu_,
    "maximum": lambda x: torch.maximum(x, torch.zeros(())),
    "maximum of zeros": lambda x: torch.maximum(torch.zeros_like(x), x),
    "max": lambda x: torch.max(x, torch.zeros(())),
    "fmax": lambda x: torch.fmax(x, torch.zeros(())),
    "threshold": lambda x: functional.threshold(x, 0, 0),
    "threshold module": nn.Threshold(0, 0),
    "hardtanh": lambda x: functional.hardtanh(x, 0.0, 1e4),
    "where": lambda x: torch.where(x > 0, x, 0.0),
    "where of zeros": lambda x: torch.where(x <= 0, torch.zeros_like(x), x),
    "mask": lambda x: x * (x > 0),
    "mask of numbers": lambda x: (x > 0).float() * x,
    "masked_fill": lambda x: x.masked_fill(x < 0, 0.0),
    "own function": OwnRelu.apply,
    "set to zero": set_to_zero,
    "largest of a stack": lambda x: torch.stack([x, torch.zeros_like(x)]).amax(dim=0),
    "with its absolute value": lambda x: (x + x.abs()) / 2,
    "scripted": torch.jit.script(nn.ReLU()),
}
REFUSED = {
    "DeepLift": {"own function", "set to zero", "largest of a stack", "scripted"},
    "Lrp": {"own function", "set to zero", "scripted", "with its absolute value"},
    "GuidedBackprop": {"own function", "set to zero", "largest of a stack", "with its absolute value", "scripted"},
}
REFUSED["Deconvolution"] = REFUSED["GuidedBackprop"]
METHODS = {
    "DeepLift": lambda model: DeepLift(model, baseline=0.3),
    "Lrp": Lrp,
    "GuidedBackprop": GuidedBackprop,
    "Deconvolution": Deconvolution,
}


@pytest.mark.parametrize("relu", RELUS)
@pytest.mark.parametrize("method", METHODS)
def test_a_relu_is_a_relu_however_it_is_spelt(method, relu):
    explain = METHODS[method](Network(RELUS[relu]))
    if relu in REFUSED[method]:
        with pytest.raises(ModelError):
            explain(IMAGE, TARGET)
        return
    expected = METHODS[method](Network(nn.ReLU()))(IMAGE, TARGET)
    torch.testing.assert_close(explain(IMAGE, TARGET), expected, atol=1e-5 * float(expected.abs().max()), rtol=1e-4)
