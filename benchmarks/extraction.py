"""Integrated gradients (50 steps) against the bare forward and backward passes of as many rows, and against Captum.

    python benchmarks/extraction.py [--quick] [--device cuda] [--threads 2] [--cpu-time]

All sides run the same model on the same rows per batch, alternating, so that what else the machine does hits all;
medians over the repeats. The bare side runs the model as it is, parameters frozen, on one finished batch again and
again. Captum runs once with as many rows per batch (internal_batch_size) and once as it comes: all rows at once.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from alternating import Turns, parser_for, turns_of
from captum.attr import IntegratedGradients as Captum
from torch import Tensor, nn
from torchvision.models import resnet50

from heatproof.methods import rows
from heatproof.methods.gradient import IntegratedGradients
from heatproof.models.hooks import frozen_eval
from heatproof.models.resnet_cifar import ResNet8

STEPS = 50


@dataclass(frozen=True)
class Case:
    """A model, an image size and how many images one repeat explains."""

    name: str
    build: Callable[[], nn.Module]
    size: int
    images: int


def main() -> None:
    options = parser_for(__doc__, quick="fewer images and repeats").parse_args()
    turns = turns_of(options, quick=1, full=5)
    print(f"{turns}, {STEPS} steps")
    print(f"{'case':<22}{'rows':>5}{'ms a row':>10}{'of bound':>10}{'x Captum':>10}{'x Captum, all rows':>20}")
    for case in _cases(options.quick, turns.device):
        size, seconds = _seconds(case, turns)
        ours = seconds["ours"]
        print(
            f"{case.name:<22}{size:>5}{1000 * ours / (case.images * STEPS):>10.2f}{seconds['bound'] / ours:>10.2f}"
            f"{seconds['captum'] / ours:>10.2f}{seconds['captum, all rows'] / ours:>20.2f}",
            flush=True,
        )


def _cases(quick: bool, device: torch.device) -> list[Case]:
    # A GPU needs work for about a second to be measured, a CPU gets there with a few images.
    much = 32 if device.type == "cuda" else 1
    return [
        Case("ResNet8, 32 x 32", lambda: ResNet8(num_classes=10), 32, (2 if quick else 8) * much),
        Case("ResNet-50, 224 x 224", resnet50, 224, 1 if device.type == "cpu" else 8),
    ]


def _seconds(case: Case, turns: Turns) -> tuple[int, dict[str, float]]:
    torch.manual_seed(0)
    model = case.build().eval().to(turns.device)
    images = torch.randn(case.images, 3, case.size, case.size, device=turns.device)
    targets = torch.zeros(case.images, dtype=torch.int64, device=turns.device)
    size = rows.rows_of(images, None)
    sides: dict[str, Callable[[int], object]] = {
        "ours": lambda n: IntegratedGradients(model, steps=n)(images, targets),
        "bound": lambda n: _bare(model, images, n, size),
        "captum": lambda n: Captum(model).attribute(images, target=targets, n_steps=n, internal_batch_size=size),
        "captum, all rows": lambda n: Captum(model).attribute(images, target=targets, n_steps=n),
    }
    for run in sides.values():
        run(2)  # warms up
    return size, turns.seconds({name: partial(run, STEPS) for name, run in sides.items()}, warm_ups=0)


def _bare(model: nn.Module, images: Tensor, steps: int, size: int) -> None:
    batch = images.repeat(-(-size // len(images)), 1, 1, 1)[:size]
    total = steps * len(images)
    with frozen_eval(model):
        for start in range(0, total, size):
            inputs = batch[: total - start].detach().requires_grad_()
            torch.autograd.grad(model(inputs)[:, 0].sum(), inputs)


if __name__ == "__main__":
    main()
