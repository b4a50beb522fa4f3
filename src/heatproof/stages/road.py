"""road: ROAD: remove pixels, impute them from their neighbours and measure, without retraining.

Both orders, without retraining; the fractions say what is *removed* (the ROAD code's LeRF names what it keeps: its
LeRF at 30 percent is ours at 70). ROAD with retraining is evaluate-attribution-maps-roar with `fill: noisy_linear`.

Reads each method's stored maps; writes road/<method>.h5 (per image, order and fraction: the target's probability and
the predicted class), results.csv, and how far the two orders rank the methods alike: consistency.csv and .json.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from heatproof import artefacts, config, removal, store
from heatproof.metrics import perturbation, road, statistics
from heatproof.metrics.comparison import Settings
from heatproof.metrics.score import Curve, Score, Scored
from heatproof.stages.evaluate import Images, Subject, evaluate
from heatproof.stages.infilled import Removal
from heatproof.stages.plan import Artefact
from heatproof.stages.run import Run, fill_origin

RESULTS_VERSION = 2

RESAMPLES = 1000  # of the consistency, whose ranks are drawn up anew in each
CONSISTENCY = ("score", "methods", "removed_fraction", "n_methods", "n", "spearman", "low", "high")


@dataclass(frozen=True)
class RoadTest:
    """The classifier's answers to images from which more and more pixels are imputed, from both ends of the order."""

    settings: config.Road
    section = "road"
    scores = (
        Score("road", "higher", "mean gap between LeRF's and MoRF's probability of the target, in [-1, 1]", headline=True),
        Score("morf_accuracy", "lower", "share of images classified rightly, the most important pixels removed first"),
        Score("lerf_accuracy", "higher", "share of images classified rightly, the least important pixels removed first"),
        Score("morf_unchanged", "lower", "share of images whose predicted class stays, the most important pixels first"),
        Score("lerf_unchanged", "higher", "share of images whose predicted class stays, the least important pixels first"),
        Score("morf_probability", "lower", "probability of the target after removal, the most important pixels first"),
        Score("lerf_probability", "higher", "probability of the target after removal, the least important pixels first"),
        Score("morf_area", "lower", "area below the MoRF curve of the target's probability from removed fraction 0"),
        Score("lerf_area", "higher", "area below the LeRF curve of the target's probability from removed fraction 0"),
    )  # fmt: skip

    @property
    def fractions(self) -> tuple[float, ...]:
        """Removed fractions, growing from 0."""
        return 0.0, *sorted(percentile / 100 for percentile in self.settings.percentiles)

    def columns(self, size: tuple[int, int]) -> list[store.Column]:
        """Both orders, all fractions."""
        shape = (len(removal.FIRSTS), len(self.fractions))
        return [store.Column("probability", "float64", shape), store.Column("predicted", "int64", shape)]

    def origin(self) -> dict[str, Any]:
        """Fractions, fill and version of the code."""
        return {
            "fractions": list(self.fractions),
            "fill": fill_origin(self.settings.fill),
            "code": [RESULTS_VERSION, removal.scores.RESULTS_VERSION],
        }

    def removals(self, size: tuple[int, int]) -> Mapping[str, Sequence[Removal]]:
        """What is removed, for each key of a fill."""
        return {"fill": [(fraction, first) for first in removal.FIRSTS for fraction in self.fractions if fraction > 0]}

    def measure(self, images: Images, subject: Subject) -> Mapping[str, NDArray[Any]]:
        """Runs the classifier on the imputed images."""
        settings = self.settings
        scores = subject.degraded(
            images, images.ranks, self.fractions, removal.FIRSTS, subject.fill(settings.fill), settings.rows_per_forward
        )
        found = {"probability": scores.probability, "predicted": scores.prediction}
        # Of other classes than the classifier's, a label cannot be compared with what is predicted.
        return found if subject.extraction.labels_are_outputs else found | {"label": np.full(len(images), -1)}

    def read(self, column: Callable[[str], NDArray[Any]]) -> Iterator[Scored | Curve]:
        """The gap of the orders, areas, and answers at each fraction."""
        kept = _Kept.of(column)
        probability = kept.probability
        yield Scored("road", road.lerf_minus_morf(probability[:, 0, 1:], probability[:, 1, 1:]))
        fractions = np.array(self.fractions)
        for place, order in enumerate(removal.ORDERS):
            yield Scored(f"{order}_area", perturbation.area(probability[:, place], fractions))
            for step, fraction in enumerate(self.fractions):
                setting = f"removed={fraction:g}"
                yield Scored(f"{order}_accuracy", kept.accuracy[:, place, step], setting)
                yield Scored(f"{order}_unchanged", kept.unchanged[:, place, step], setting)
                yield Scored(f"{order}_probability", probability[:, place, step], setting)
        labels = ("removed fraction", "accuracy")
        yield Curve("MoRF", fractions, kept.accuracy[:, 0], *labels, better="lower")
        yield Curve("LeRF", fractions, kept.accuracy[:, 1], *labels, better="higher")


@dataclass(frozen=True)
class _Kept:
    """What a file says of its images, (N, 2, S) each; NaN where the map is invalid."""

    probability: NDArray[np.float64]
    accuracy: NDArray[np.float64]
    unchanged: NDArray[np.float64]

    @classmethod
    def of(cls, column: Callable[[str], NDArray[Any]]) -> "_Kept":
        probability, predicted = column("probability"), column("predicted")
        # Classes have no NaN to say that a map was invalid; the probabilities beside them do.
        undefined = np.isnan(probability)
        right, same = (road.accuracy(predicted, column(name)) for name in ("label", "prediction"))
        undefined_label = undefined | (column("label") < 0)[:, None, None]
        return cls(probability, np.where(undefined_label, np.nan, right), np.where(undefined, np.nan, same))


def test(settings: config.Config) -> RoadTest:
    """The test that a configuration asks for."""
    return RoadTest(config.section(settings, RoadTest.section, config.Road))


def tables(run: Run, files: Sequence[Artefact[Any]]) -> list[Artefact[Any]]:
    """How far the two orders rank the methods alike."""
    settings = test(run.config).settings
    origin = {
        "files": {file.path.stem: file.origin for file in files},
        "controls": [method.name for method in settings.methods() if method.control],
        "intervals": run.intervals.origin(),
        "code": [RESULTS_VERSION, statistics.RESULTS_VERSION],
    }
    return [Artefact(run.config.outdir / RoadTest.section / "consistency.csv", origin, None)]


def run(run: Run) -> None:
    """Computes what is missing or stale of every method's answers, summarises them, and compares the two orders."""
    found = test(run.config)
    files = evaluate(run, found.settings, found)
    (consistency,) = tables(run, files)
    if not consistency.is_complete():
        _write_consistency(consistency, found, run.intervals, {file.path.stem: file.path for file in files})


def _write_consistency(place: Artefact[Any], test: RoadTest, settings: Settings, files: Mapping[str, Path]) -> None:
    """How far MoRF and LeRF rank the methods alike, with and without the controls, on images that all methods explain."""
    controls = place.origin["controls"]
    kept = {name: _Kept.of(store.RowReader(path).read) for name, path in files.items()}
    sets = {"without controls": [name for name in kept if name not in controls], "with controls": list(kept)}
    lines = [
        line
        for score, (kind, names) in itertools.product(("accuracy", "probability"), sets.items())
        for line in _consistency(score, kind, [getattr(kept[name], score) for name in names], test, settings)
    ]
    found = [dict(zip(CONSISTENCY, line, strict=True)) for line in lines]
    artefacts.write_csv(place.path, CONSISTENCY, [["" if v is None else v for v in line] for line in lines])
    place.write(place.path, consistency=found)


def _consistency(
    score: str, kind: str, methods: Sequence[NDArray[np.float64]], test: RoadTest, settings: Settings
) -> Iterator[list[Any]]:
    """A line for each removed fraction, and one for their mean, in which the fraction is empty."""
    if not methods:
        return
    scores = np.stack([values[:, :, 1:] for values in methods], axis=-1)  # (N, 2, S, M)
    scores = scores[np.isfinite(scores).all(axis=(1, 2, 3))]
    scores = np.concatenate((scores, scores.mean(axis=2, keepdims=True)), axis=2)
    for step, fraction in enumerate((*test.fractions[1:], None)):
        found, low, high = _with_interval(scores[:, :, step], settings)
        yield [score, kind, fraction, len(methods), len(scores), found, low, high]


def _with_interval(scores: NDArray[np.float64], settings: Settings) -> list[float | None]:
    """Consistency of the means of (N, 2, M) and its bootstrap interval over images; None where undefined.

    Resamples in which all methods are equal in one order have no ranking, and are left out of the interval.
    """

    def statistic(sums: NDArray[np.float64]) -> NDArray[np.float64]:
        return road.consistency(sums[:, 0], sums[:, 1])

    found = float(statistic(scores.sum(axis=0)[None])[0])
    if math.isnan(found):
        return [None, None, None]
    drawn = statistics.resampled(scores, statistic, settings.seed, RESAMPLES)
    interval = statistics.Interval.of_resamples(drawn[np.isfinite(drawn)], settings.confidence)
    return [found, float(interval.low), float(interval.high)]
