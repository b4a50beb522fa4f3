"""Integrated gradients (50 steps) against the bare forward and backward passes of as many rows, and against Captum.

    python benchmarks/extraction.py [--quick] [--device cuda] [--threads 2] [--cpu-time]

All sides run the same model on the same rows per batch, alternating, so that what else the machine does hits all;
medians over the repeats. The bare side runs the model as it is, parameters frozen, on one finished batch again and
again. Captum runs once with as many rows per batch (internal_batch_size) and once as it comes: all rows at once.
--cpu-time counts the CPU time of the process: on a machine with other work the better measure, with one thread.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
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
    options = _options()
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    clock = time.process_time if options.cpu_time else time.perf_counter
    repeats = options.repeats or (1 if options.quick else 5)
    print(f"{device}, {options.threads} thread(s), {STEPS} steps, medians of {repeats}, {clock.__name__}")
    print(f"{'case':<22}{'rows':>5}{'ms a row':>10}{'of bound':>10}{'x Captum':>10}{'x Captum, all rows':>20}")
    for case in _cases(options.quick, device):
        size, seconds = _seconds(case, device, repeats, clock)
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


def _seconds(
    case: Case, device: torch.device, repeats: int, clock: Callable[[], float]
) -> tuple[int, dict[str, float]]:
    torch.manual_seed(0)
    model = case.build().eval().to(device)
    images = torch.randn(case.images, 3, case.size, case.size, device=device)
    targets = torch.zeros(case.images, dtype=torch.int64, device=device)
    size = rows.rows_of(images, None)
    sides: dict[str, Callable[[int], object]] = {
        "ours": lambda n: IntegratedGradients(model, steps=n)(images, targets),
        "bound": lambda n: _bare(model, images, n, size),
        "captum": lambda n: Captum(model).attribute(images, target=targets, n_steps=n, internal_batch_size=size),
        "captum, all rows": lambda n: Captum(model).attribute(images, target=targets, n_steps=n),
    }
    taken: dict[str, list[float]] = {name: [] for name in sides}
    for run in sides.values():
        run(2)  # warms up
    for _ in range(repeats):
        for name, run in sides.items():
            start = clock()
            run(STEPS)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            taken[name].append(clock() - start)
    return size, {name: statistics.median(seconds) for name, seconds in taken.items()}


def _bare(model: nn.Module, images: Tensor, steps: int, size: int) -> None:
    batch = images.repeat(-(-size // len(images)), 1, 1, 1)[:size]
    total = steps * len(images)
    with frozen_eval(model):
        for start in range(0, total, size):
            inputs = batch[: total - start].detach().requires_grad_()
            torch.autograd.grad(model(inputs)[:, 0].sum(), inputs)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer images and repeats")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int)
    parser.add_argument("--cpu-time", action="store_true", help="CPU time of the process instead of wall time")
    return parser.parse_args()


if __name__ == "__main__":
    main()
