"""insertion-deletion: insertion and deletion: put pixels into a start image or remove them, without retraining.

RISE's causal metric, with start images of one's choice, pixel by pixel or in whole patches.
Deletion goes from the image to `deletion_fill` (zeros after the normalisation, as in RISE), insertion from
`insertion_fill` (RISE's blur of the image) to the image; the most important pixels come or go first. Scores are those of
the map file's target: by default the class that the classifier predicts for the untouched image, fixed once, as in
RISE; of the true class where the maps explain it.

Reads each method's stored maps; writes insertion_deletion/<method>.h5 (per image: the target's probability and logit
along both curves) and results.csv.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from heatproof import config, removal, store
from heatproof.errors import ConfigError
from heatproof.metrics import faithfulness, insertion_deletion
from heatproof.metrics.score import Curve, Score, Scored
from heatproof.removal import regions
from heatproof.stages.evaluate import Images, Subject, evaluate
from heatproof.stages.infilled import Removal
from heatproof.stages.run import Run, fill_origin

RESULTS_VERSION = 1

SPACES = ("probability", "logit")  # what is kept of a forward pass


@dataclass(frozen=True)
class InsertionDeletionTest:
    """The target's scores while the image is put together, and while it is taken apart."""

    settings: config.InsertionDeletion
    section = "insertion_deletion"
    scores = (
        Score(
            "insertion",
            "higher",
            "area below the insertion curve: mean probability of the target, in [0, 1]; or mean logit",
            headline=True,
        ),
        Score(
            "deletion",
            "lower",
            "area below the deletion curve: mean probability of the target, in [0, 1]; or mean logit",
            headline=True,
        ),
        Score(
            "insertion_minus_deletion", "higher", "area of insertion minus area of deletion, in [-1, 1]; or in logits"
        ),
        Score("insertion_normalised", "higher", "area of insertion as a multiple of the untouched image's probability"),
        Score("deletion_normalised", "lower", "area of deletion as a multiple of the untouched image's probability"),
        Score(
            "start_score",
            "neither",
            "probability of the target for insertion's start image: where it is high, insertion is high for every map",
            oracle_best=False,
        ),
    )

    def columns(self, size: tuple[int, int]) -> list[store.Column]:
        """Both curves in both spaces, from no step to all; both run in the direction in which they are drawn."""
        shape = (len(self.shares(size)),)
        return [
            store.Column(f"{name}_{space}", "float32", shape) for name in ("insertion", "deletion") for space in SPACES
        ]

    def shares(self, size: tuple[int, int]) -> NDArray[np.float64]:
        """Which share of an image of height and width `size` has come or gone after each step, from 0 to 1."""
        patch = self.settings.patch
        units = size[0] * size[1] if patch is None else int(regions.square_patches(size, patch).max()) + 1
        step = self.settings.step
        taken = step if isinstance(step, int) else max(1, removal.count(step, units))
        return np.array([*range(0, units, taken), units]) / units

    def origin(self) -> dict[str, Any]:
        """Steps, start images and version of the code."""
        asked = self.settings.model_dump(mode="json", include={"step", "patch"})
        fills = {key: fill_origin(getattr(self.settings, key)) for key in ("insertion_fill", "deletion_fill")}
        return {**asked, **fills, "code": [RESULTS_VERSION, removal.scores.RESULTS_VERSION]}

    def removals(self, size: tuple[int, int]) -> Mapping[str, Sequence[Removal]]:
        """What is removed, for each key of a fill.

        Raises:
            ConfigError: squares are removed, and so not the pixels of a map's order.
        """
        if self.settings.patch is not None:
            raise ConfigError(
                "insertion_deletion.patch: whole squares go, stored images have holes of pixels; set it to null"
            )
        shares = self.shares(size).tolist()
        return {
            "deletion_fill": [(share, "most") for share in shares if share > 0],
            "insertion_fill": [(1 - share, "least") for share in shares if share < 1],
        }

    def measure(self, images: Images, subject: Subject) -> Mapping[str, NDArray[Any]]:
        """Runs the classifier along both curves; insertion is the removal of the least important, read backwards."""
        ranks, shares = self._ranks(images, subject), self.shares(images.maps.shape[1:])
        rows, start, end = self.settings.rows_per_forward, self.settings.insertion_fill, self.settings.deletion_fill
        deletion = subject.degraded(images, ranks, shares.tolist(), ("most",), subject.fill(end), rows)
        insertion = subject.degraded(images, ranks, (1 - shares[::-1]).tolist(), ("least",), subject.fill(start), rows)
        values = {f"deletion_{space}": getattr(deletion, space)[:, 0] for space in SPACES}
        return values | {f"insertion_{space}": getattr(insertion, space)[:, 0, ::-1] for space in SPACES}

    def read(self, column: Callable[[str], NDArray[Any]]) -> Iterator[Scored | Curve]:
        """The areas, in both spaces, and the curves of the probability."""
        for space in SPACES:
            setting = "" if space == "probability" else space
            insertion, deletion = (column(f"{name}_{space}").astype(np.float64) for name in ("insertion", "deletion"))
            yield Scored("insertion", insertion_deletion.insertion_deletion_auc(insertion), setting)
            yield Scored("deletion", insertion_deletion.insertion_deletion_auc(deletion), setting)
            difference = insertion_deletion.insertion_minus_deletion(insertion, deletion)
            yield Scored("insertion_minus_deletion", difference, setting)
            if space != "probability":
                continue
            intact = deletion[:, 0]
            for name, curve in (("insertion", insertion), ("deletion", deletion)):
                relative = insertion_deletion.normalised(curve, intact)
                yield Scored(f"{name}_normalised", insertion_deletion.insertion_deletion_auc(relative))
            yield Scored("start_score", insertion[:, 0])
            # The areas count steps, and so do the curves: the last one may stand for fewer pixels.
            done = np.linspace(0, 1, insertion.shape[1])
            yield Curve("insertion", done, insertion, "share of steps, put in", "probability of the target", "higher")
            yield Curve("deletion", done, deletion, "share of steps, taken away", "probability of the target", "lower")

    def _ranks(self, images: Images, subject: Subject) -> Tensor:
        """Ranks of the pixels, or of the squares that they lie in, by the sum of the map inside."""
        if self.settings.patch is None:
            return images.ranks
        patches = regions.square_patches(images.maps.shape[1:], self.settings.patch)
        sums = faithfulness.sum_in_patches(images.maps, patches)
        keys = None
        if self.settings.ties == "random":
            keys = removal.tie_keys(subject.run.config.seed, images.index, sums.shape[1])
        orders = removal.orders(sums, self.settings.ties, keys)
        return removal.rank_tensor(regions.patch_ranks(orders, patches), images.pixels.device)


def test(settings: config.Config) -> InsertionDeletionTest:
    """The test that a configuration asks for."""
    section = config.section(settings, InsertionDeletionTest.section, config.InsertionDeletion)
    return InsertionDeletionTest(section)


def run(run: Run) -> None:
    """Computes what is missing or stale of every method's curves, and summarises them."""
    found = test(run.config)
    evaluate(run, found.settings, found)
