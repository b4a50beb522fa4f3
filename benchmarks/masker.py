"""A FIX training step against what it cannot do without: the classifier's forward passes and the backward pass to its input.

    python benchmarks/masker.py [--quick] [--device cuda] [--threads 2] [--cpu-time]

The bound is one forward pass of the clean images without gradients, one of twice as many masked images, and the gradient of
the masked images from a plain cross-entropy, with the parameters frozen. A step does the same and trains the masker: its
forward and backward passes, both terms of the loss, Adam. Both sides alternate on the same images; medians over the repeats.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from alternating import Turns, parser_for, turns_of
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models import mobilenet_v2, resnet50

from heatproof.models.masker import Masker, MaskerForm, discovered
from heatproof.models.resnet_cifar import ResNet8, ResNet20
from heatproof.training.masker_steps import MaskerDraws, MaskerRecipe, MaskerTraining


@dataclass(frozen=True)
class Case:
    """A classifier, its taps, and the images of a step."""

    name: str
    build: Callable[[], nn.Module]
    taps: tuple[str, ...]
    size: int
    images: int


def main() -> None:
    parser = parser_for(__doc__, quick="the small classifiers, fewer repeats")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    options = parser.parse_args()
    turns = turns_of(options, quick=3, full=9)
    print(f"{turns}, {options.precision}")
    print(f"{'case':<24}{'images':>7}{'bound ms':>11}{'step ms':>10}{'step / bound':>14}")
    for case in _cases(options.quick, turns.device):
        bound, step = _seconds(case, turns, options.precision)
        print(
            f"{case.name:<24}{case.images:>7}{1000 * bound:>11.1f}{1000 * step:>10.1f}{step / bound:>14.3f}", flush=True
        )


def _cases(quick: bool, device: torch.device) -> list[Case]:
    on_cpu = device.type == "cpu"
    cases = [
        Case("ResNet8, 32 x 32", lambda: ResNet8(num_classes=10), ("layer2", "layer3"), 32, 32 if on_cpu else 256),
        Case("ResNet20, 32 x 32", lambda: ResNet20(num_classes=10), ("layer2", "layer3"), 32, 72 if on_cpu else 256),
        Case("MobileNetV2, 224 x 224", mobilenet_v2, ("features.13", "features.18"), 224, 8 if on_cpu else 72),
        Case("ResNet-50, 224 x 224", resnet50, ("layer3", "layer4"), 224, 4 if on_cpu else 72),
    ]
    return cases[:2] if quick else cases


def _seconds(case: Case, turns: Turns, precision: str) -> tuple[float, float]:
    torch.manual_seed(0)
    device = turns.device
    model = case.build().eval().requires_grad_(False).to(device)
    images = torch.randn(case.images, 3, case.size, case.size, device=device)
    labels = torch.randint(10, (case.images,), device=device)
    masker = Masker(discovered(model, images[:1], MaskerForm(taps=case.taps))).to(device)
    with MaskerTraining(model, masker, MaskerRecipe(precision=precision)).at_work() as training:
        sides = {
            "bound": lambda: _bound(model, images, labels, precision),
            "step": lambda: training.step(images, labels, MaskerDraws()),
        }
        seconds = turns.seconds(sides, warm_ups=2)
    return seconds["bound"], seconds["step"]


def _bound(model: nn.Module, images: Tensor, labels: Tensor, precision: str) -> None:
    with torch.autocast(images.device.type, dtype=torch.bfloat16, enabled=precision == "bfloat16"):
        with torch.no_grad():
            model(images)
        masked = torch.cat([images, images]).requires_grad_()
        logits = model(masked)
    torch.autograd.grad(functional.cross_entropy(logits.float(), labels.repeat(2)), masked)


if __name__ == "__main__":
    main()
