"""lerf: LeRF and MoRF: remove pixels and measure, without retraining.

Reads each method's stored maps; writes pixel_perturbation_analysis/<method>.h5 (per image, order and fraction:
probability, logit, margin of the target, and the predicted class) and results.csv.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from heatproof import config, removal, store
from heatproof.metrics import perturbation
from heatproof.metrics.score import Curve, Score, Scored
from heatproof.stages.evaluate import Images, Subject, evaluate
from heatproof.stages.infilled import Removal
from heatproof.stages.run import Run, fill_origin


@dataclass(frozen=True)
class PixelPerturbation:
    """The classifier's scores of images from which more and more pixels are removed, from both ends of the order."""

    settings: config.PixelPerturbationAnalysis
    section = "pixel_perturbation_analysis"
    scores = (
        Score("morf_area", "lower", "area below the MoRF curve of the target's probability, in [0, 1]", headline=True),
        Score("lerf_area", "higher", "area below the LeRF curve of the target's probability, in [0, 1]"),
        Score("abpc", "higher", "mean gap between the LeRF and the MoRF curve, in [-1, 1]", headline=True),
        Score("morf_aopc", "higher", "mean drop of the probability, the most important pixels removed first"),
        Score("lerf_aopc", "lower", "mean drop of the probability, the least important pixels removed first"),
        Score("morf_probability", "lower", "probability of the target after removal, the most important pixels first"),
        Score(
            "lerf_probability", "higher", "probability of the target after removal, the least important pixels first"
        ),
        Score("morf_deviation", "higher", "|p0 - p| / p0 of the target, the most important pixels removed first"),
        Score("lerf_deviation", "lower", "|p0 - p| / p0 of the target, the least important pixels removed first"),
    )

    @property
    def fractions(self) -> tuple[float, ...]:
        """Removed fractions, growing from 0."""
        return tuple(sorted({0.0} | {percentile / 100 for percentile in self.settings.percentiles}))

    def columns(self, size: tuple[int, int]) -> list[store.Column]:
        """Both orders, all fractions."""
        shape = (len(removal.FIRSTS), len(self.fractions))
        names = {"probability": "float64", "logit": "float64", "logit_margin": "float64", "predicted": "int64"}
        return [store.Column(name, dtype, shape) for name, dtype in names.items()]

    def origin(self) -> dict[str, Any]:
        """Fractions, fill and version of the code."""
        return {
            "fractions": list(self.fractions),
            "fill": fill_origin(self.settings.fill),
            "code": removal.scores.RESULTS_VERSION,
        }

    def removals(self, size: tuple[int, int]) -> Mapping[str, Sequence[Removal]]:
        """What is removed, for each key of a fill."""
        return {"fill": [(fraction, first) for first in removal.FIRSTS for fraction in self.fractions if fraction > 0]}

    def measure(self, images: Images, subject: Subject) -> Mapping[str, NDArray[Any]]:
        """Runs the classifier on the degraded images."""
        settings = self.settings
        scores = subject.degraded(
            images, images.ranks, self.fractions, removal.FIRSTS, subject.fill(settings.fill), settings.rows_per_forward
        )
        return {
            "probability": scores.probability,
            "logit": scores.logit,
            "logit_margin": scores.logit_margin,
            "predicted": scores.prediction,
        }

    def read(self, column: Callable[[str], NDArray[Any]]) -> Iterator[Scored | Curve]:
        """Areas and AOPC of each order, and the scores at each fraction."""
        probability = column("probability")
        intact, fractions = probability[:, 0, 0], np.array(self.fractions)
        morf, lerf = probability[:, 0], probability[:, 1]
        yield Scored("abpc", perturbation.abpc(morf, lerf))
        for order, curve in zip(removal.ORDERS, (morf, lerf), strict=True):
            yield Scored(f"{order}_area", perturbation.area(curve, fractions))
            yield Scored(f"{order}_aopc", perturbation.aopc(curve))
            for step, fraction in enumerate(self.fractions):
                setting = f"removed={fraction:g}"
                yield Scored(f"{order}_probability", curve[:, step], setting)
                yield Scored(f"{order}_deviation", perturbation.deviation(intact, curve[:, step]), setting)
        labels = ("removed fraction", "probability of the target")
        yield Curve("MoRF", fractions, morf, *labels, better="lower")
        yield Curve("LeRF", fractions, lerf, *labels, better="higher")


def test(settings: config.Config) -> PixelPerturbation:
    """The test that a configuration asks for."""
    section = config.section(settings, PixelPerturbation.section, config.PixelPerturbationAnalysis)
    return PixelPerturbation(section)


def run(run: Run) -> None:
    """Computes what is missing or stale of every method's curves, and summarises them."""
    found = test(run.config)
    evaluate(run, found.settings, found)
