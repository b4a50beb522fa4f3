"""robustness: measure how far maps change when images are perturbed slightly.

Reads each method's stored maps and explains perturbed images anew; writes robustness/<method>.h5 (per image and perturbed
version the distances, no maps) and results.csv.

The perturbations are drawn from (seed, kind, image index, sample), so that all methods meet the same ones, whatever the
batch. Methods that draw numbers themselves (SmoothGrad, RISE, KernelShap) draw the same ones for the intact image and for
its perturbed versions, because the house seeds them by the image's index: what is measured is their answer to the
perturbation, not their own noise. For the same reason the control `random` scores 0 like everything that looks at no pixel.
Maps that came through import-maps, and twins, cannot be made for perturbed images; they are left out, and the log says so.
"""

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from heatproof import config, seeding, store
from heatproof.errors import ConfigError
from heatproof.metrics import robustness
from heatproof.metrics.score import Score, Scored
from heatproof.stages.evaluate import Images, Subject, evaluate
from heatproof.stages.run import Run
from heatproof.store.maps import scaled

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Robustness:
    """Distances between the maps of images and of their perturbed versions."""

    settings: config.Robustness
    section = "robustness"
    scores = (
        Score(
            "max_sensitivity",
            "lower",
            "largest change of the map under uniform noise, as a share of its length; 0: it never moves",
            headline=True,
            oracle_best=False,
        ),
        Score(
            "avg_sensitivity",
            "lower",
            "mean change of the map under uniform noise, as a share of its length",
            oracle_best=False,
        ),
        Score(
            "local_lipschitz",
            "lower",
            "largest distance of maps for one of images under Gaussian noise; in the method's own unit, so compare it "
            "between methods of one unit only",
            oracle_best=False,
        ),
        Score(
            "relative_lipschitz",
            "lower",
            "the same with the distance of maps as a share of the intact map's length",
            oracle_best=False,
        ),
    )

    def columns(self, size: tuple[int, int]) -> list[store.Column]:
        """One distance for each perturbed version."""
        names = ("uniform_change", "gaussian_change", "gaussian_map_distance", "gaussian_image_distance")
        return [store.Column(name, "float64", (self.settings.samples,)) for name in names]

    def origin(self) -> dict[str, Any]:
        """The perturbations, how maps are rounded, and version of the code."""
        chosen = {"samples", "radius", "sigma", "dtype"}
        return self.settings.model_dump(include=chosen) | {"code": robustness.RESULTS_VERSION}

    def measure(self, images: Images, subject: Subject) -> Mapping[str, NDArray[Any]]:
        """Explains every perturbed version, one sample of all images at a time."""
        normalised = subject.loaded.normalization(images.pixels.float().div(255.0))
        found: dict[str, list[NDArray[np.float64]]] = {column.name: [] for column in self.columns((0, 0))}
        for sample in range(self.settings.samples):
            for kind in ("uniform", "gaussian"):
                noise = self._noise(kind, images, subject.run.config.seed, sample).to(normalised.device)
                maps = self._explained(images, subject, normalised + noise)[:, None]
                found[f"{kind}_change"].append(robustness.relative_change(images.maps, maps))
                if kind == "gaussian":
                    length = robustness.distance(np.zeros(noise.shape), noise[:, None].cpu().numpy())
                    found["gaussian_map_distance"].append(robustness.distance(images.maps, maps))
                    found["gaussian_image_distance"].append(length)
        return {name: np.concatenate(parts, axis=1) for name, parts in found.items()}

    def _noise(self, kind: str, images: Images, seed: int, sample: int) -> Tensor:
        """What is added to the normalised images, (B, C, H, W)."""
        drawn = []
        for index in images.index.tolist():
            generator = seeding.generator(seed, "robustness", kind, index, sample)
            shape = tuple(images.pixels.shape[1:])
            if kind == "uniform":
                drawn.append(generator.uniform(-self.settings.radius, self.settings.radius, shape))
            else:
                drawn.append(generator.normal(0.0, self.settings.sigma, shape))
        return torch.from_numpy(np.stack(drawn).astype(np.float32))

    def _explained(self, images: Images, subject: Subject, perturbed: Tensor) -> NDArray[np.float64]:
        """Maps (B, H, W) of perturbed images, for the class that the intact ones' maps explain."""
        targets = torch.from_numpy(images.target).to(perturbed.device)
        explained = subject.explain(perturbed, targets, torch.from_numpy(images.index))
        invalid = explained.invalid.cpu().numpy()
        maps = np.where(invalid[:, None, None], np.float32(0), explained.maps.cpu().numpy())
        # Rounded as the stored maps are, so that a map that does not move scores 0.
        stored, scale = scaled(maps, self.settings.dtype)
        kept: NDArray[np.float64] = (stored * scale[:, None, None]).astype(np.float64)
        kept[invalid] = np.nan
        return kept

    def read(self, column: Callable[[str], NDArray[Any]]) -> Iterator[Scored]:
        """The largest and the mean over the perturbed versions."""
        uniform, distances = column("uniform_change"), column("gaussian_image_distance")
        yield Scored("max_sensitivity", robustness.max_sensitivity(uniform))
        yield Scored("avg_sensitivity", robustness.avg_sensitivity(uniform))
        yield Scored("local_lipschitz", robustness.local_lipschitz(column("gaussian_map_distance"), distances))
        yield Scored("relative_lipschitz", robustness.local_lipschitz(column("gaussian_change"), distances))


def name_left_out(name: str, section: config.ExplainingTest) -> None:
    """Says in one line which methods a test cannot ask for maps.

    Raises:
        ConfigError: no method is left.
    """
    names = ", ".join(method.name for method in section.left_out())
    if names:
        logger.info("%s: left out, for their maps cannot be made anew: %s", name, names)
    if not section.methods():
        raise ConfigError(f"{name}.attribution_methods: none of {names} can be called; this test needs one that can")


def test(settings: config.Config) -> Robustness:
    """The test that a configuration asks for."""
    return Robustness(config.section(settings, Robustness.section, config.Robustness))


def run(run: Run) -> None:
    """Computes what is missing or stale of every method's distances, and summarises them."""
    found = test(run.config)
    name_left_out(found.section, found.settings)
    evaluate(run, found.settings, found)
