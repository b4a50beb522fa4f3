"""Curves and imputation against Quantus and against the bare forward passes of the same number of rows.

    uv run --with quantus==0.6.0 python benchmarks/against_quantus.py [--quick] [--threads 2]

Quantus (LGPL) is installed for this script only; without it the comparisons with it are left out, and that is said. All
sides run the same model on the same images, alternating, so that what else the machine does hits all; medians over the
repeats. Quantus flips single features of a colour image, we flip pixels: both do the same number of steps. Its ROAD takes
grey images only, so grey images both get. The bare side feeds one finished batch again and again.
"""

import importlib.util
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from alternating import Turns, parser_for, turns_of
from numpy.typing import NDArray
from torch import Tensor, nn
from torchvision.models import mobilenet_v2

from heatproof import runtime
from heatproof.models import Normalization
from heatproof.models.resnet_cifar import ResNet8
from heatproof.removal import Blur, Fill, Mean, NoisyLinear, degraded_scores, orders, rank_tensor, ranks
from heatproof.removal.linear import impute_linear

QUANTUS = importlib.util.find_spec("quantus") is not None
STEPS = 32
ROAD_FRACTIONS = tuple(percent / 100 for percent in range(10, 100, 10))


class Grey(nn.Module):
    """A colour classifier that takes grey images."""

    def __init__(self, colour: nn.Module) -> None:
        super().__init__()
        self.colour = colour

    def forward(self, images: Tensor) -> Tensor:
        """Repeats the one channel."""
        logits: Tensor = self.colour(images.expand(-1, 3, -1, -1))
        return logits


@dataclass(frozen=True)
class Case:
    """A curve: what is asked of us, of Quantus, and how many rows of an image travel through the model."""

    name: str
    model: nn.Module
    shape: tuple[int, int, int]
    images: int
    fractions: tuple[float, ...]
    curves: tuple[tuple[str, Fill], ...]
    quantus: Callable[[], Any] | None = None

    @property
    def rows(self) -> int:
        """Images that go through the model for each one."""
        return sum(1 + len(self.fractions) for _ in self.curves)


def main() -> None:
    parser = parser_for(__doc__, quick="the small network only, two repeats")
    parser.set_defaults(threads=2)
    options = parser.parse_args()
    turns = turns_of(options, quick=2, full=5)
    runtime.keep_freed_memory()  # as the stages do; all sides profit
    torch.manual_seed(0)
    if not QUANTUS:
        print("quantus is not installed: only the bare forward passes are compared with")
    print(turns)
    print(f"{'curve':<42}{'ours img/s':>11}{'bound img/s':>12}{'share':>7}{'Quantus img/s':>15}{'ratio':>8}")
    for case in _cases(options.quick):
        ours, bound, quantus = _seconds(case, turns)
        theirs = f"{case.images / quantus:>15.2f}{quantus / ours:>8.1f}" if quantus else f"{'-':>15}{'-':>8}"
        print(
            f"{case.name:<42}{case.images / ours:>11.2f}{case.images / bound:>12.2f}{bound / ours:>7.2f}{theirs}",
            flush=True,
        )
    print(f"\n{'noisy linear imputation, 50 % removed':<42}{'seconds':>11}{'aim':>12}")
    for images, size, aim in ((256, 32, 1.0), (8, 224, 4.0)):
        pixels, removed = torch.rand(images, 3, size, size), torch.rand(images, size, size) < 0.5
        seconds = turns.seconds({"ours": partial(impute_linear, pixels, removed)}, warm_ups=0)["ours"]
        print(f"{f'{images} of {size} x {size}':<42}{seconds:>11.2f}{f'< {aim:g}':>12}", flush=True)


def _cases(quick: bool) -> list[Case]:
    small, grey = ResNet8(num_classes=10).eval(), Grey(ResNet8(num_classes=10)).eval()
    mean, grey_mean = Mean((0.5, 0.5, 0.5)), Mean((0.5,))
    steps = tuple(step / STEPS for step in range(1, STEPS + 1))
    patches = tuple(patch / 64 for patch in range(1, 65))
    cases = [
        Case(
            "insertion and deletion, ResNet8, 32", small, (3, 32, 32), 32, steps,
            (("most", mean), ("least", Blur())),
        ),
        Case("pixel flipping, ResNet8, 32", small, (3, 32, 32), 32, steps, (("most", mean),), _flipping(32 * 32)),
        Case("region perturbation, ResNet8, 32", small, (3, 32, 32), 32, patches, (("most", mean),), _regions(4)),
        Case(
            "ROAD (MoRF), ResNet8, 32, grey", grey, (1, 32, 32), 32, ROAD_FRACTIONS,
            (("most", NoisyLinear(grey_mean.mean, noise=0.01)),), _road,
        ),
    ]  # fmt: skip
    if not quick:
        large = mobilenet_v2().eval()
        cases += [
            Case(
                "insertion and deletion, MobileNetV2, 224", large, (3, 224, 224), 8, steps,
                (("most", mean), ("least", Blur())),
            ),
            Case(
                "pixel flipping, MobileNetV2, 224", large, (3, 224, 224), 8, steps, (("most", mean),),
                _flipping(224 * 224),
            ),
        ]  # fmt: skip
    return cases


def _flipping(features: int) -> Callable[[], Any]:
    def build() -> Any:
        import quantus

        return quantus.PixelFlipping(
            features_in_step=features // STEPS,
            perturb_baseline="mean",
            disable_warnings=True,
            display_progressbar=False,
        )

    return build


def _regions(patch: int) -> Callable[[], Any]:
    def build() -> Any:
        import quantus

        return quantus.RegionPerturbation(
            patch_size=patch, regions_evaluation=64, perturb_baseline="mean", disable_warnings=True,
            display_progressbar=False,
        )  # fmt: skip

    return build


def _road() -> Any:
    import quantus

    return quantus.ROAD(
        percentages=[round(100 * fraction) for fraction in ROAD_FRACTIONS], noise=0.01, disable_warnings=True,
        display_progressbar=False,
    )  # fmt: skip


def _seconds(case: Case, turns: Turns) -> tuple[float, float, float | None]:
    """Median seconds of our curves, of the bare forward passes, and of Quantus."""
    channels, height, width = case.shape
    normalization = Normalization(mean=(0.5,) * channels, std=(0.25,) * channels)
    pixels = torch.rand(case.images, *case.shape)
    maps = np.random.default_rng(0).random((case.images, height, width)).astype(np.float32)
    order = rank_tensor(ranks(orders(maps), maps.shape[1:]), torch.device("cpu"))
    targets = torch.zeros(case.images, dtype=torch.int64)
    images = normalization(pixels)

    def ours() -> None:
        for first, fill in case.curves:
            degraded_scores(
                case.model, pixels, order, targets, normalize=normalization, fractions=case.fractions, fill=fill,
                firsts=(first,), rows_per_forward=64,  # type: ignore[arg-type]
            )  # fmt: skip

    def bound() -> None:
        batch = images.repeat(-(-64 // case.images), 1, 1, 1)[:64]
        with torch.no_grad():
            for _ in range(case.images * case.rows // 64):
                case.model(batch)

    sides = {"ours": ours, "bound": bound}
    if QUANTUS and case.quantus is not None:
        everywhere = np.repeat(maps[:, None], channels, axis=1)
        sides["quantus"] = _theirs(case.quantus(), case.model, images.numpy(), everywhere)
    seconds = turns.seconds(sides)
    return seconds["ours"], seconds["bound"], seconds.get("quantus")


def _theirs(
    metric: Any, model: nn.Module, images: NDArray[np.float32], maps: NDArray[np.float32]
) -> Callable[[], None]:
    targets = np.zeros(len(images), dtype=np.int64)

    def run() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            metric(
                model=model, x_batch=images, y_batch=targets, a_batch=maps, device="cpu", channel_first=True,
                batch_size=len(images),
            )  # fmt: skip

    return run


if __name__ == "__main__":
    main()
