"""Lookahead around torch's optimizers, as the published code has it."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from heatproof.training.diffmask_steps import optimizer
from heatproof.training.lookahead import Lookahead

GOLDEN = Path(__file__).parents[1] / "golden" / "diffmask" / "optim.npz"


@pytest.mark.parametrize(
    ("name", "kind", "lr", "steps", "rate"),
    [
        ("adam", "adam", 0.05, 6, 0.5),
        ("rmsprop_centered", "rmsprop", 0.02, 6, 0.5),
        ("radam", "radam", 0.05, 6, 0.5),
        ("adam_k3_a08", "adam", 0.05, 3, 0.8),
    ],
)
def test_it_walks_as_the_published_one_also_where_gradients_are_missing(name, kind, lr, steps, rate):
    vectors = np.load(GOLDEN)
    parameter = nn.Parameter(torch.from_numpy(vectors["p0"]).clone())
    lookahead = Lookahead(optimizer(kind, [parameter], lr).optimizer, steps, rate)
    for step, gradient in enumerate(torch.from_numpy(vectors["grads"])):
        parameter.grad = None if step in (5, 11) else gradient.clone()
        lookahead.step()
        torch.testing.assert_close(parameter.detach(), torch.from_numpy(vectors[name][step]), rtol=0, atol=2e-6)


def test_it_goes_on_from_its_state_as_if_nothing_had_happened(tmp_path):
    gradients = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))

    def walk(parameter, lookahead, steps):
        for gradient in steps:
            parameter.grad = gradient.clone()
            lookahead.step()

    straight = nn.Parameter(torch.ones(3))
    walk(straight, Lookahead(torch.optim.Adam([straight], lr=0.1)), gradients)
    first = nn.Parameter(torch.ones(3))
    lookahead = Lookahead(torch.optim.Adam([first], lr=0.1))
    walk(first, lookahead, gradients[:8])
    torch.save(lookahead.state_dict(), tmp_path / "state")
    second = nn.Parameter(first.detach().clone())
    again = Lookahead(torch.optim.Adam([second], lr=0.1))
    again.load_state_dict(torch.load(tmp_path / "state", weights_only=True))
    walk(second, again, gradients[8:])
    assert torch.equal(second, straight)
