"""A FIX training step against what it cannot do without: the classifier's forward passes and the backward pass to its input.

    python benchmarks/masker.py [--quick] [--device cuda] [--threads 2] [--cpu-time]

The bound is one forward pass of the clean images without gradients, one of twice as many masked images, and the gradient of
the masked images from a plain cross-entropy, with the parameters frozen. A step does the same and trains the masker: its
forward and backward passes, both terms of the loss, Adam. Both sides alternate on the same images; medians over the repeats.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models import mobilenet_v2, resnet50

from heatproof.models.masker import Masker, MaskerForm, discovered
from heatproof.models.resnet_cifar import ResNet8, ResNet20
from heatproof.training.masker import Draws, MaskerRecipe, Training


@dataclass(frozen=True)
class Case:
    """A classifier, its taps, and the images of a step."""

    name: str
    build: Callable[[], nn.Module]
    taps: tuple[str, ...]
    size: int
    images: int


def main() -> None:
    options = _options()
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    clock = time.process_time if options.cpu_time else time.perf_counter
    repeats = options.repeats or (3 if options.quick else 9)
    print(f"{device}, {options.threads} thread(s), {options.precision}, medians of {repeats}, {clock.__name__}")
    print(f"{'case':<24}{'images':>7}{'bound ms':>11}{'step ms':>10}{'step / bound':>14}")
    for case in _cases(options.quick, device):
        bound, step = _seconds(case, device, repeats, clock, options.precision)
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


def _seconds(
    case: Case, device: torch.device, repeats: int, clock: Callable[[], float], precision: str
) -> tuple[float, float]:
    torch.manual_seed(0)
    model = case.build().eval().requires_grad_(False).to(device)
    images = torch.randn(case.images, 3, case.size, case.size, device=device)
    labels = torch.randint(10, (case.images,), device=device)
    masker = Masker(discovered(model, images[:1], MaskerForm(taps=case.taps))).to(device)
    taken: dict[str, list[float]] = {"bound": [], "step": []}
    with Training(model, masker, MaskerRecipe(precision=precision)).at_work() as training:
        sides: dict[str, Callable[[], object]] = {
            "bound": lambda: _bound(model, images, labels, precision),
            "step": lambda: training.step(images, labels, Draws()),
        }
        for run in (*sides.values(), *sides.values()):
            run()  # warms up
        for _ in range(repeats):
            for name, run in sides.items():
                start = clock()
                run()
                if device.type == "cuda":
                    torch.cuda.synchronize(device)
                taken[name].append(clock() - start)
    return statistics.median(taken["bound"]), statistics.median(taken["step"])


def _bound(model: nn.Module, images: Tensor, labels: Tensor, precision: str) -> None:
    with torch.autocast(images.device.type, dtype=torch.bfloat16, enabled=precision == "bfloat16"):
        with torch.no_grad():
            model(images)
        masked = torch.cat([images, images]).requires_grad_()
        logits = model(masked)
    torch.autograd.grad(functional.cross_entropy(logits.float(), labels.repeat(2)), masked)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the small classifiers, fewer repeats")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int)
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--cpu-time", action="store_true", help="CPU time of the process instead of wall time")
    return parser.parse_args()


if __name__ == "__main__":
    main()
