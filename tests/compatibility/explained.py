"""What `heatproof explain` writes for a network by each method, and the true map next to it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from heatproof.errors import HeatproofError
from heatproof.methods import catalogue
from heatproof.methods.explainer import Explained, Explainer
from heatproof.stages import explain
from tests.compatibility.networks import Network, saved


@dataclass(frozen=True)
class Recorded(Explainer):
    """A method whose refusal is kept, so that the others of a run go on."""

    refusals: list[str] = field(default_factory=list)

    def bind(self, model: nn.Module, provided: Any) -> Callable[[Tensor, Tensor, Tensor], Explained]:
        """As an explainer; a refused method gives maps of zeros."""
        try:
            bound = super().bind(model, provided)
        except HeatproofError as error:
            self.refusals.append(str(error))

        def call(images: Tensor, targets: Tensor, indices: Tensor) -> Explained:
            if not self.refusals:
                try:
                    return bound(images, targets, indices)
                except HeatproofError as error:
                    self.refusals.append(str(error))
            return Explained(torch.zeros_like(images[:, 0]), torch.zeros(len(images), dtype=torch.bool))

        return call


@dataclass(frozen=True)
class Case:
    """A network, the image that it is given, its most probable class, and the maps (H, W) or refusals that `explain` leaves."""

    network: Network
    model: nn.Module
    image: Tensor
    target: int
    maps: dict[str, np.ndarray]
    refusals: dict[str, str]


def picture(side: int) -> np.ndarray:
    """Coarse and fine structure in three colours, (H, W, 3) uint8."""
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)).resize(
        (side, side), Image.Resampling.BICUBIC
    )
    pixels = 128 + 0.4 * (np.asarray(coarse) - 128.0) + rng.normal(0, 6, (side, side, 3))
    return np.clip(pixels, 0, 255).astype(np.uint8)


def explained(network: Network, methods: dict[str, dict[str, Any]], folder: Path) -> Case:
    """Runs `explain` in this process, with weights as train-cls leaves them, and reads its files."""
    model = network.build()
    weights = saved(model, network, folder / "w.pt")
    pixels = picture(network.side)
    Image.fromarray(pixels).save(folder / "p.png")
    explainers = [Recorded(name, catalogue.path_of(name), options, "sum") for name, options in methods.items()]
    request = explain.Request(
        [folder / "p.png"], network.arch, explainers, weights=str(weights), out=folder / "out", device="cpu",
        size=(network.side, network.side),
    )  # fmt: skip
    for _ in explain.run(request):
        pass
    refusals = {each.name: each.refusals[0] for each in explainers if each.refusals}
    maps = {name: np.load(folder / "out" / f"p_{name}.npy") for name in methods if name not in refusals}
    image = torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255 * 2 - 1
    with torch.no_grad():
        target = int(model(image).argmax())
    return Case(network, model, image, target, maps, refusals)
