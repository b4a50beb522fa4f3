"""faithfulness: region perturbation, pixel flipping and faithfulness correlations, without retraining.

Reads each method's stored maps; writes faithfulness/<method>.h5 (per image what the map claims of each removal, and the
scores that the classifier gave) and results.csv. Which of the tests run is set in the section; they share what they can: a
column that two of them read is measured once, and what the classifier says of removals that no map has chosen, once for
all methods.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from heatproof import config, removal, seeding, store
from heatproof.metrics import faithfulness, perturbation
from heatproof.metrics.score import Curve, Pooled, Score, Scored
from heatproof.removal import regions
from heatproof.stages.evaluate import Images, Subject, evaluate
from heatproof.stages.faithfulness_scores import ENDS, NEEDED, READ, Cuts, Read, Values
from heatproof.stages.run import Run, fill_origin

RESULTS_VERSION = 2


SCORES: dict[config.FaithfulnessTest, tuple[Score, ...]] = {
    "region_perturbation": (
        Score(
            "region_morf_aopc",
            "higher",
            "mean drop of the score, squares of the highest sum removed first",
            headline=True,
        ),
        Score("region_lerf_aopc", "lower", "mean drop of the score, squares of the lowest sum removed first"),
        Score("region_abpc", "higher", "mean gap between the curves of both orders of squares; chance: 0"),
        Score("region_morf_area", "lower", "area below the score's curve, squares of the highest sum removed first"),
        Score("region_lerf_area", "higher", "area below the score's curve, squares of the lowest sum removed first"),
    ),
    "pixel_flipping": (
        Score("pixel_flipping", "lower", "area below the score's curve, the most important pixels removed first"),
    ),
    "selectivity": (
        Score("selectivity", "lower", "area below the score's curve, square by square, the highest sum removed first"),
    ),
    "faithfulness_correlation": (
        Score(
            "faithfulness_correlation",
            "higher",
            "correlation of the map's sum over random pixels with the drop without them, in [-1, 1]; chance: 0",
            headline=True,
        ),
    ),
    "faithfulness_estimate": (
        Score(
            "faithfulness_estimate",
            "higher",
            "correlation of the map's sum over each step of its order with the drop without that step, in [-1, 1]",
        ),
    ),
    "monotonicity_correlation": (
        Score(
            "monotonicity_correlation",
            "higher",
            "rank correlation of the map's sum over each step of its order with how much noise there moves the score, in "
            "[-1, 1]; blind to the sign of the movement",
        ),
    ),
    "sensitivity_n": (
        Score(
            "sensitivity_n",
            "higher",
            "correlation over images, at each step, of the map's sum over all removed pixels with the drop, in [-1, 1]",
            # A map of the object claims its area: undefined where all have the same, and larger ones need not drop more.
            oracle_best=False,
        ),
    ),
    "sensitivity_n_within": (
        Score(
            "sensitivity_n_within",
            "higher",
            "correlation of the map's sum over random pixels with the drop without them, for subsets of several sizes",
        ),
    ),
    "infidelity": (
        Score(
            "infidelity",
            "lower",
            "mean squared difference of the map's sum over a square and the drop without it, in squared score units, each "
            "map multiplied by the factor of at least 0 that serves it best; a map of zeros has the value named chance",
        ),
        Score(
            "infidelity_raw",
            "lower",
            "the same of maps as they are: a question for maps that mean to be in units of the score, such as gradient "
            "times input",
            oracle_best=False,
        ),
    ),
    "monotonicity": (
        Score(
            "monotonicity",
            "higher",
            "share of images whose score never falls while pixels are added, the least important first",
            # All or nothing: one step of background that speaks for another class fails an image.
            oracle_best=False,
        ),
    ),
}


@dataclass(frozen=True)
class Trial:
    """Some images with one method's maps, and the classifier that they explain; each public method makes a column.

    Args:
        settings: of the section.
        images: with their maps.
        subject: classifier and run.
        shared: drops that do not depend on a method, by what they are of and of which images; filled here.
    """

    settings: config.Faithfulness
    images: Images
    subject: Subject
    shared: dict[tuple[Any, ...], Values]

    @functools.cached_property
    def cuts(self) -> Cuts:
        """How the images are cut."""
        height, width = self.images.maps.shape[1:]
        return Cuts(self.settings, (height, width))

    @functools.cached_property
    def fill(self) -> removal.Fill:
        """What replaces removed pixels."""
        fill = self.subject.fill(self.settings.fill)
        assert not isinstance(fill, removal.ByRemoval)  # `evaluate` has refused it
        return fill

    @property
    def seed(self) -> int:
        """The root seed."""
        return self.subject.run.config.seed

    # --- growing removal

    def region_curves(self) -> Values:
        """(B, 2, S) scores while squares go, from either end."""
        drawn = [self._curves(self._square_ranks, self.cuts.region_fractions, ENDS, fill) for fill in self._draws()]
        mean: Values = np.mean(drawn, axis=0)
        return mean

    def square_curve(self) -> Values:
        """(B, P + 1) scores while one square after the other goes."""
        return self._curves(self._square_ranks, self.cuts.square_fractions, ENDS[:1], self.fill)[:, 0]

    def pixel_curve(self) -> Values:
        """(B, S) scores while pixels go."""
        return self._curves(self.images.ranks, self.cuts.pixel_fractions, ENDS[:1], self.fill)[:, 0]

    # --- steps, subsets and squares, each removed alone

    def intact(self) -> Values:
        """(B,) scores of the untouched images."""
        nothing = np.zeros((0, *self.cuts.size), dtype=np.bool_)
        return self._scores(lambda place: nothing, 0, self.fill)[:, 0]

    def step_claims(self) -> Values:
        """(B, W) sum of each map over each step."""
        return faithfulness.sum_in_steps(self.images.maps, self._ranks, self.cuts.windows)

    def step_drops(self) -> Values:
        """(B, W) drop without each step."""
        return self._drops(self._steps, len(self.cuts.windows) - 1)

    def step_noise(self) -> Values:
        """(B, W, D) scores with each step filled by noise."""
        number = len(self.cuts.windows) - 1
        noises = [
            removal.Noise(seeding.derive(self.seed, "faithfulness noise", draw))
            for draw in range(self.settings.monotonicity_draws)
        ]
        return np.stack([self._scores(self._steps, number, noise)[:, 1:] for noise in noises], axis=2)

    def subset_claims(self) -> Values:
        """(B, R) sum of each map over each random subset."""
        return self._claims(lambda place: self._subsets(place, self.settings.subset_fraction))

    def subset_drops(self) -> Values:
        """(B, R) drop without each random subset."""
        fraction = self.settings.subset_fraction
        return self._once("subsets", fraction, lambda place: self._subsets(place, fraction), self.settings.subsets)

    def within_claims(self) -> Values:
        """(B, F, R) sum of each map over random subsets of several sizes."""
        sizes = [
            self._claims(functools.partial(self._subsets, fraction=fraction))
            for fraction in self.settings.within_fractions
        ]
        return np.stack(sizes, axis=1)

    def within_drops(self) -> Values:
        """(B, F, R) drop without each of them."""
        sizes = [
            self._once("subsets", fraction, functools.partial(self._subsets, fraction=fraction), self.settings.subsets)
            for fraction in self.settings.within_fractions
        ]
        return np.stack(sizes, axis=1)

    def square_claims(self) -> Values:
        """(B, P) sum of each map over each square."""
        return faithfulness.sum_in_patches(self.images.maps, self.cuts.patches)

    def square_drops(self) -> Values:
        """(B, P) drop without each square."""
        squares = self.cuts.patches == np.arange(self.cuts.squares)[:, None, None]
        return self._once("squares", 0.0, lambda place: squares, self.cuts.squares)

    # --- pieces

    @functools.cached_property
    def _ranks(self) -> NDArray[Any]:
        return self.images.ranks.cpu().numpy()

    @functools.cached_property
    def _square_ranks(self) -> NDArray[Any]:
        """Ranks of pixels by the sum of their square; equal sums in an order drawn for the image, or by position."""
        keys = removal.tie_keys(self.seed, self.images.index, self.cuts.squares)
        ties = self.settings.ties
        orders = removal.orders(self.square_claims(), ties=ties, keys=keys if ties == "random" else None)
        return regions.patch_ranks(orders, self.cuts.patches)

    def _draws(self) -> list[removal.Fill]:
        """The fill, once for each draw of its noise; once where it draws none."""
        fill: Any = self.fill
        if not hasattr(fill, "seed"):
            return [fill]
        seeds = [seeding.derive(self.seed, "faithfulness", draw) for draw in range(1, self.settings.region_draws)]
        return [fill, *(dataclasses.replace(fill, seed=seed) for seed in seeds)]

    def _curves(
        self, ranks: Any, fractions: Values, firsts: tuple[removal.First, ...], fill: removal.Fill
    ) -> NDArray[np.float64]:
        scores = self.subject.degraded(
            self.images, ranks, fractions.tolist(), firsts, fill, self.settings.rows_per_forward
        )
        if self.settings.score == "accuracy":
            return scores.accuracy(self.images.target)
        curves: Values = getattr(scores, self.settings.score)
        return curves

    def _subsets(self, place: int, fraction: float) -> NDArray[np.bool_]:
        """(R, H, W) the random subsets of the image at a place of the batch: the same for every method."""
        members, number = self.cuts.members(fraction), self.settings.subsets
        index = int(self.images.index[place])
        drawn = regions.random_subsets(self.seed, f"subsets of {members}", index, self.cuts.pixels, number, members)
        return drawn.reshape(number, *self.cuts.size)

    def _steps(self, place: int) -> NDArray[np.bool_]:
        """(W, H, W) the steps of the order of the image at a place of the batch."""
        ranks = torch.from_numpy(self._ranks[place : place + 1])
        return regions.step_subsets(ranks, self.cuts.windows)[0].numpy()

    def _claims(self, subsets: Callable[[int], NDArray[np.bool_]]) -> Values:
        maps = self.images.maps
        sums = [
            faithfulness.sum_in_subsets(maps[place : place + 1], subsets(place)[None]) for place in range(len(maps))
        ]
        return np.concatenate(sums)

    def _once(
        self, what: str, fraction: float, subsets: Callable[[int], NDArray[np.bool_]], number: int
    ) -> NDArray[np.float64]:
        """Drops that no map has a part in; the next method asks for those of the same images."""
        key = (what, fraction, self.images.index.tobytes(), self.images.target.tobytes())
        if key not in self.shared:
            self.shared[key] = self._drops(subsets, number)
        return self.shared[key]

    def _drops(self, subsets: Callable[[int], NDArray[np.bool_]], number: int) -> Values:
        scores = self._scores(subsets, number, self.fill)
        return perturbation.drop(scores[:, 0], scores[:, 1:])

    def _scores(self, subsets: Callable[[int], NDArray[np.bool_]], number: int, fill: removal.Fill) -> Values:
        """(B, 1 + R); masks of a few images at a time, as many as one forward pass holds, but all subsets of one."""
        at_once = max(1, self.settings.rows_per_forward // (1 + number))
        starts = range(0, len(self.images), at_once)
        parts = [self._subset_scores(range(s, min(s + at_once, len(self.images))), subsets, fill) for s in starts]
        return np.concatenate([getattr(part, self.settings.correlation_score) for part in parts])

    def _subset_scores(
        self, places: range, subsets: Callable[[int], NDArray[np.bool_]], fill: removal.Fill
    ) -> removal.SubsetScores:
        rows = slice(places.start, places.stop)
        return removal.subset_scores(
            self.subject.loaded.module,
            self.images.pixels[rows],
            torch.from_numpy(np.stack([subsets(place) for place in places])),
            self.images.target[rows],
            normalize=self.subject.loaded.normalization,
            fill=fill,
            rows_per_forward=self.settings.rows_per_forward,
            indices=self.images.index[rows],
        )


@dataclass(frozen=True)
class Faithfulness:
    """The chosen tests of faithfulness."""

    settings: config.Faithfulness
    # Drops of subsets and squares, 8 bytes each: some 50 MB for 50,000 images, against half of all forward passes.
    _shared: dict[tuple[Any, ...], Values] = field(default_factory=dict, repr=False, compare=False)
    section = "faithfulness"

    @property
    def scores(self) -> tuple[Score, ...]:
        """Those of the chosen tests."""
        return tuple(score for name in self.settings.tests for score in SCORES[name])

    @property
    def _measured(self) -> list[str]:
        """The columns that the chosen tests read, each once."""
        return list(dict.fromkeys(column for name in self.settings.tests for column in NEEDED[name]))

    def columns(self, size: tuple[int, int]) -> list[store.Column]:
        """The image's size, and what the chosen tests read."""
        shapes = Cuts(self.settings, size).shapes
        measured = [store.Column(name, "float64", shapes[name]) for name in self._measured]
        return [store.Column("size", "int64", (2,)), *measured]

    def origin(self) -> dict[str, Any]:
        """Settings and versions of the code."""
        own = set(config.Faithfulness.model_fields) - set(config.MapTest.model_fields)
        settings = self.settings.model_dump(mode="json", include=own) | {"fill": fill_origin(self.settings.fill)}
        versions = [RESULTS_VERSION, regions.RESULTS_VERSION, removal.scores.RESULTS_VERSION]
        return {"settings": settings, "ties": self.settings.ties, "code": versions}

    def measure(self, images: Images, subject: Subject) -> Mapping[str, NDArray[Any]]:
        """Removes squares, pixels, subsets and steps, and asks the classifier."""
        trial = Trial(self.settings, images, subject, self._shared)
        size = np.tile(np.array(trial.cuts.size, dtype=np.int64), (len(images), 1))
        return {"size": size} | {name: getattr(trial, name)() for name in self._measured}

    def read(self, column: Read) -> Iterator[Scored | Pooled | Curve]:
        """The scores of the chosen tests, and their curves."""
        height, width = column("size")[0].tolist()
        cuts = Cuts(self.settings, (height, width))
        for name in self.settings.tests:
            yield from READ[name](cuts, column)

    def check(self, size: tuple[int, int]) -> None:
        """Raises InputError where squares are larger than the image."""
        Cuts(self.settings, size).patches  # noqa: B018 - computing it is the check


def test(settings: config.Config) -> Faithfulness:
    """The test that a configuration asks for."""
    return Faithfulness(config.section(settings, Faithfulness.section, config.Faithfulness))


def run(run: Run) -> None:
    """Computes what is missing or stale of every method's tests, and summarises them."""
    found = test(run.config)
    found.check(run.dataset.size)
    evaluate(run, found.settings, found)
