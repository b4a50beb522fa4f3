"""LeRF and MoRF against the bare forward passes of the same number of rows.

    python benchmarks/perturbation.py [--quick] [--device cuda] [--threads 1]

Both sides run the same model on the same rows per batch, alternating, so that what else the machine does hits both;
medians over the repeats. The bare side feeds one finished batch again and again: no pipeline can be faster.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from alternating import Turns, parser_for, turns_of
from torch import Tensor, nn
from torchvision.models import resnet18, resnet50

from heatproof.models import Normalization
from heatproof.models.resnet_cifar import ResNet8
from heatproof.removal import Fill, Mean, NoisyLinear, degraded_scores, orders, rank_tensor, ranks

FRACTIONS = tuple(percent / 100 for percent in range(1, 11))  # the defaults of the lerf stage
ROWS_PER_IMAGE = 1 + 2 * len(FRACTIONS)
NORMALIZATION = Normalization(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
MEAN = NORMALIZATION.mean


@dataclass(frozen=True)
class Case:
    """A model, an image size and how many images one repeat scores."""

    name: str
    build: Callable[[], nn.Module]
    size: int
    images: int
    rows_per_forward: int
    fill: Fill


def main() -> None:
    parser = parser_for(__doc__, quick="the two smallest cases only, three repeats")
    parser.set_defaults(threads=1)
    options = parser.parse_args()
    turns = turns_of(options, quick=3, full=7)
    print(f"{turns}, {ROWS_PER_IMAGE} rows an image")
    print(f"{'case':<32}{'LeRF+MoRF img/s':>17}{'bound img/s':>13}{'share':>8}")
    for case in _cases(options.quick, turns.device):
        ours, bound = _seconds(case, turns)
        print(f"{case.name:<32}{case.images / ours:>17.2f}{case.images / bound:>13.2f}{bound / ours:>8.3f}", flush=True)


def _cases(quick: bool, device: torch.device) -> list[Case]:
    # A GPU needs work for about a second to be measured, a CPU thread gets there with a few images.
    much = 64 if device.type == "cuda" else 1
    rows = 256 if device.type == "cuda" else 64
    cases = [
        Case("ResNet8, 32 x 32, mean", lambda: ResNet8(num_classes=10), 32, 12 * much, rows, Mean(MEAN)),
        Case("resnet18, 224 x 224, mean", resnet18, 224, 3 * much, rows, Mean(MEAN)),
    ]
    if quick:
        return cases
    cases += [
        Case("resnet50, 224 x 224, mean", resnet50, 224, 3 * much, rows, Mean(MEAN)),
        Case("ResNet8, 32 x 32, noisy_linear", lambda: ResNet8(num_classes=10), 32, 12 * much, rows, NoisyLinear(MEAN)),
    ]
    if device.type == "cuda":  # on a CPU, solving for each row takes minutes
        cases.append(Case("resnet50, 224 x 224, noisy_linear", resnet50, 224, 3 * much, rows, NoisyLinear(MEAN)))
    return cases


def _seconds(case: Case, turns: Turns) -> tuple[float, float]:
    """Median seconds of the scores and of the bare forward passes."""
    torch.manual_seed(0)
    device = turns.device
    model = case.build().eval().to(device)
    pixels = torch.rand(case.images, 3, case.size, case.size).to(device)
    maps = np.random.default_rng(0).normal(size=(case.images, case.size, case.size)).astype(np.float32)
    device_ranks = rank_tensor(ranks(orders(maps), maps.shape[1:]), device)
    targets = torch.zeros(case.images, dtype=torch.int64)
    images_per_forward = case.rows_per_forward // ROWS_PER_IMAGE
    batch = NORMALIZATION(torch.rand(images_per_forward * ROWS_PER_IMAGE, 3, case.size, case.size).to(device))

    def ours() -> None:
        degraded_scores(
            model,
            pixels,
            device_ranks,
            targets,
            normalize=NORMALIZATION,
            fractions=FRACTIONS,
            fill=case.fill,
            rows_per_forward=case.rows_per_forward,
        )

    def bound() -> None:
        _forward(model, batch, case.images // images_per_forward)

    seconds = turns.seconds({"ours": ours, "bound": bound})
    return seconds["ours"], seconds["bound"]


def _forward(model: nn.Module, batch: Tensor, times: int) -> None:
    with torch.no_grad():
        for _ in range(times):
            model(batch)


if __name__ == "__main__":
    main()
