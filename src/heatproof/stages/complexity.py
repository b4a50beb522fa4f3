"""complexity: measure whether maps concentrate on few pixels.

Reads each method's stored maps; writes complexity/<method>.h5 (per image: sparseness, complexity, effective complexity)
and results.csv. No classifier is run.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from heatproof import config, store
from heatproof.metrics import complexity
from heatproof.metrics.score import Score, Scored
from heatproof.stages.evaluate import Images, Subject, evaluate
from heatproof.stages.run import Run


@dataclass(frozen=True)
class Complexity:
    """How a map's absolute values are spread over its pixels, each map on its own."""

    settings: config.Complexity
    section = "complexity"
    scores = (
        Score(
            "sparseness",
            "neither",
            "Gini index of the absolute values, in [0, 1): 0 if all are equal",
            oracle_best=False,
        ),
        Score(
            "complexity",
            "lower",
            "entropy of the absolute values as shares, in nats: 0 for one pixel, ln n for a constant map",
            headline=True,
            oracle_best=False,
        ),
        Score(
            "effective_complexity",
            "lower",
            "number of pixels above a small share of the map's largest absolute value",
            oracle_best=False,
        ),
    )

    def columns(self, size: tuple[int, int]) -> list[store.Column]:
        """One value for each score."""
        return [store.Column(score.name, "float64") for score in self.scores]

    def origin(self) -> dict[str, Any]:
        """Threshold and version of the code."""
        return {"effective_threshold": self.settings.effective_threshold, "code": complexity.RESULTS_VERSION}

    def measure(self, images: Images, subject: Subject) -> Mapping[str, NDArray[Any]]:
        """Arithmetic on the maps alone."""
        return {
            "sparseness": complexity.gini(images.maps),
            "complexity": complexity.entropy(images.maps),
            "effective_complexity": complexity.effective_complexity(images.maps, self.settings.effective_threshold),
        }

    def read(self, column: Callable[[str], NDArray[Any]]) -> Iterator[Scored]:
        """The columns as they are."""
        yield Scored("sparseness", column("sparseness"))
        yield Scored("complexity", column("complexity"))
        yield Scored("effective_complexity", column("effective_complexity"))


def test(settings: config.Config) -> Complexity:
    """The test that a configuration asks for."""
    return Complexity(config.section(settings, Complexity.section, config.Complexity))


def run(run: Run) -> None:
    """Computes what is missing or stale of every method's scores, and summarises them."""
    found = test(run.config)
    evaluate(run, found.settings, found)
