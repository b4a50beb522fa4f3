"""Which removals the faithfulness tests make, and the scores that their stored columns give."""

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from heatproof import config, removal
from heatproof.metrics import faithfulness, perturbation
from heatproof.metrics.score import Curve, Pooled, Scored
from heatproof.removal import regions

ENDS: tuple[removal.First, ...] = ("most", "least")
ROUNDING = 1e-6  # a fall of the score by less is no fall: float32 outputs


KEPT_STEPS = 0.8  # sensitivity_n: behind them little is left of an image to tell maps apart


Values = NDArray[np.float64]


Read = Callable[[str], NDArray[Any]]


NEEDED: dict[config.FaithfulnessTest, tuple[str, ...]] = {
    "region_perturbation": ("region_curves",),
    "pixel_flipping": ("pixel_curve",),
    "selectivity": ("square_curve",),
    "faithfulness_correlation": ("subset_claims", "subset_drops"),
    "faithfulness_estimate": ("step_claims", "step_drops"),
    "monotonicity_correlation": ("step_claims", "intact", "step_noise"),
    "sensitivity_n": ("step_claims", "pixel_curve"),
    "sensitivity_n_within": ("within_claims", "within_drops"),
    "infidelity": ("square_claims", "square_drops"),
    "monotonicity": ("pixel_curve",),
}


@dataclass(frozen=True)
class Cuts:
    """How an image of one size is cut into squares, steps and subsets.

    Args:
        settings: of the section.
        size: (H, W).
    """

    settings: config.Faithfulness
    size: tuple[int, int]

    @property
    def pixels(self) -> int:
        """How many there are."""
        return self.size[0] * self.size[1]

    @functools.cached_property
    def patches(self) -> NDArray[np.int64]:
        """(H, W) the number of the square that each pixel lies in."""
        return regions.square_patches(self.size, self.settings.region_side or max(1, min(self.size) // 8))

    @property
    def squares(self) -> int:
        """How many there are."""
        return int(self.patches.max()) + 1

    @property
    def windows(self) -> NDArray[np.int64]:
        """(W + 1,) pixels before each step of equal size; a rest at the end that fills no step is left out."""
        return regions.equal_cuts(self.pixels, self.settings.pixel_steps)

    @property
    def pixel_fractions(self) -> Values:
        """Removed fractions from 0 to 1, at the ends of the steps."""
        return _to_the_end(self.windows, self.pixels)

    @property
    def region_fractions(self) -> Values:
        """Removed shares of the squares from 0 to 1."""
        return _to_the_end(regions.equal_cuts(self.squares, self.settings.region_steps), self.squares)

    @property
    def square_fractions(self) -> Values:
        """Removed shares of the squares, one by one."""
        return np.arange(self.squares + 1) / self.squares

    @property
    def kept_steps(self) -> int:
        """How many steps sensitivity_n looks at."""
        return max(1, int(KEPT_STEPS * (len(self.windows) - 1)))

    def members(self, fraction: float) -> int:
        """Pixels in a random subset: one at least."""
        return max(1, removal.count(fraction, self.pixels))

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """What an image has in each column."""
        steps, subsets = (len(self.windows) - 1,), (self.settings.subsets,)
        within = (len(self.settings.within_fractions), *subsets)
        return {
            "region_curves": (len(ENDS), len(self.region_fractions)),
            "square_curve": (len(self.square_fractions),),
            "pixel_curve": (len(self.pixel_fractions),),
            "intact": (),
            "step_claims": steps,
            "step_drops": steps,
            "step_noise": (*steps, self.settings.monotonicity_draws),
            "subset_claims": subsets,
            "subset_drops": subsets,
            "within_claims": within,
            "within_drops": within,
            "square_claims": (self.squares,),
            "square_drops": (self.squares,),
        }


def _region_perturbation(cuts: Cuts, column: Read) -> Iterator[Scored | Curve]:
    curves, x = column("region_curves"), cuts.region_fractions
    morf, lerf = curves[:, 0], curves[:, 1]
    yield Scored("region_morf_aopc", perturbation.aopc(morf))
    yield Scored("region_lerf_aopc", perturbation.aopc(lerf))
    yield Scored("region_abpc", perturbation.abpc(morf, lerf))
    yield Scored("region_morf_area", perturbation.area(morf, x))
    yield Scored("region_lerf_area", perturbation.area(lerf, x))
    labels = ("removed share of the squares", _score_label(cuts.settings.score))
    yield Curve("squares, MoRF", x, morf, *labels, better="lower")
    yield Curve("squares, LeRF", x, lerf, *labels, better="higher")


def _pixel_flipping(cuts: Cuts, column: Read) -> Iterator[Scored | Curve]:
    curve, x = column("pixel_curve"), cuts.pixel_fractions
    yield Scored("pixel_flipping", perturbation.area(curve, x))
    yield Curve("pixel flipping", x, curve, "removed fraction", _score_label(cuts.settings.score), better="lower")


def _selectivity(cuts: Cuts, column: Read) -> Iterator[Scored | Curve]:
    curve, x = column("square_curve"), cuts.square_fractions
    yield Scored("selectivity", perturbation.area(curve, x))
    labels = ("removed share of the squares", _score_label(cuts.settings.score))
    yield Curve("square by square", x, curve, *labels, better="lower")


def _faithfulness_correlation(cuts: Cuts, column: Read) -> Iterator[Scored]:
    correlations = faithfulness.correlation(column("subset_claims"), column("subset_drops"))
    yield Scored("faithfulness_correlation", correlations, chance=_zeros(correlations))


def _faithfulness_estimate(cuts: Cuts, column: Read) -> Iterator[Scored]:
    correlations = faithfulness.correlation(column("step_claims"), column("step_drops"))
    yield Scored("faithfulness_estimate", correlations, chance=_zeros(correlations))


def _monotonicity_correlation(cuts: Cuts, column: Read) -> Iterator[Scored]:
    claims, intact, filled = (column(name) for name in NEEDED["monotonicity_correlation"])
    yield Scored("monotonicity_correlation", faithfulness.monotonicity_correlation(claims, intact, filled))


def _sensitivity_n(cuts: Cuts, column: Read) -> Iterator[Pooled]:
    steps, curve = cuts.kept_steps, column("pixel_curve")
    claimed = np.cumsum(column("step_claims")[:, :steps], axis=1)
    found = perturbation.drop(curve[:, 0], curve[:, 1 : 1 + steps])
    yield Pooled("sensitivity_n", faithfulness.moments(claimed, found), faithfulness.sensitivity_n)


def _sensitivity_n_within(cuts: Cuts, column: Read) -> Iterator[Scored]:
    claims, drops = column("within_claims"), column("within_drops")
    for size, fraction in enumerate(cuts.settings.within_fractions):
        correlations = faithfulness.correlation(claims[:, size], drops[:, size])
        yield Scored("sensitivity_n_within", correlations, f"removed={fraction:g}", _zeros(correlations))


def _infidelity(cuts: Cuts, column: Read) -> Iterator[Scored]:
    claims, drops = column("square_claims"), column("square_drops")
    of_zeros = faithfulness.infidelity(np.zeros_like(claims), drops)
    yield Scored("infidelity", faithfulness.infidelity(claims, drops), chance=of_zeros)
    yield Scored("infidelity_raw", faithfulness.infidelity(claims, drops, scaled=False), chance=of_zeros)


def _monotonicity(cuts: Cuts, column: Read) -> Iterator[Scored]:
    # What is there after the least important pixels were added is what is left after the most important were removed.
    added = column("pixel_curve")[:, ::-1]
    yield Scored("monotonicity", faithfulness.monotonicity(added, ROUNDING))


READ: dict[config.FaithfulnessTest, Callable[[Cuts, Read], Iterator[Scored | Pooled | Curve]]] = {
    "region_perturbation": _region_perturbation,
    "pixel_flipping": _pixel_flipping,
    "selectivity": _selectivity,
    "faithfulness_correlation": _faithfulness_correlation,
    "faithfulness_estimate": _faithfulness_estimate,
    "monotonicity_correlation": _monotonicity_correlation,
    "sensitivity_n": _sensitivity_n,
    "sensitivity_n_within": _sensitivity_n_within,
    "infidelity": _infidelity,
    "monotonicity": _monotonicity,
}


def _to_the_end(cuts: NDArray[np.int64], number: int) -> Values:
    """Cuts as fractions of a number of things, the last one 1."""
    return np.unique([*cuts, number]) / number


def _score_label(score: str) -> str:
    return {"accuracy": "target still predicted", "logit_margin": "logit margin of the target"}.get(
        score, f"{score} of the target"
    )


def _zeros(correlations: Values) -> Values:
    """What a map that knows nothing scores, where there is a score."""
    return np.where(np.isnan(correlations), np.nan, 0.0)
