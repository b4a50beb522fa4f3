"""What a score is: its name, its direction, and its values for the images of one method."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Direction = Literal["higher", "lower", "neither"]


@dataclass(frozen=True)
class Score:
    """A quantity that a test measures.

    Args:
        name: in snake_case, unique within its test.
        better: which direction speaks for a method; "neither" where none does.
        meaning: one sentence for the reader of a table: what it is, its unit and range.
        headline: whether it stands for its test in the summary of methods x tests.
        oracle_best: whether a map of the true object must be ahead of a random one, and that of its inverse; False where
            the score does not ask about the object.
    """

    name: str
    better: Direction
    meaning: str
    headline: bool = False
    oracle_best: bool = True


@dataclass(frozen=True)
class Scored:
    """One score of every image, for one method.

    Args:
        name: of a `Score`.
        values: (N,) float64, NaN where undefined.
        setting: which of several, such as "removed=0.3"; empty where there is one only.
        chance: (N,) the score of a map without information, where it is known.
    """

    name: str
    values: NDArray[np.float64]
    setting: str = ""
    chance: NDArray[np.float64] | None = None


@dataclass(frozen=True)
class Pooled:
    """A score of all images together that is no mean over them, such as a precision of pooled pixels.

    Args:
        name: of a `Score`.
        sums: (N, ...) what each image adds, its own count among it; zeros or NaN for an image that is not used.
        statistic: sums (B, ...) over the images of B resamples -> (B,) scores.
        setting: which of several.
    """

    name: str
    sums: NDArray[np.float64]
    statistic: Callable[[NDArray[np.float64]], NDArray[np.float64]]
    setting: str = ""

    @property
    def used(self) -> NDArray[np.bool_]:
        """(N,) the images that the score rests on: those that add something.

        >>> Pooled("hits", np.array([[1.0, 1.0], [0.0, 0.0], [0.0, 1.0]]), lambda sums: sums[:, 0] / sums[:, 1]).used
        array([ True, False,  True])
        """
        added: NDArray[np.bool_] = (np.nan_to_num(self.sums).reshape(len(self.sums), -1) != 0).any(axis=1)
        return added

    @property
    def value(self) -> float:
        """The score of all images."""
        total: NDArray[np.float64] = np.nansum(self.sums, axis=0, dtype=np.float64)
        return float(self.statistic(total[None])[0])

    def among(self, images: NDArray[np.bool_]) -> "Pooled":
        """The same score of some of the images (N,); the others stay in their places and add nothing."""
        chosen = images.reshape(-1, *(1 for _ in self.sums.shape[1:]))
        return dataclasses.replace(self, sums=np.where(chosen, self.sums, 0.0))


@dataclass(frozen=True)
class Curve:
    """One curve for each image, for one method.

    Args:
        name: what is drawn.
        x: (S,) growing.
        values: (N, S), NaN where undefined.
        x_label, y_label: of the axes.
        better: direction of the area below it.
    """

    name: str
    x: NDArray[np.float64]
    values: NDArray[np.float64]
    x_label: str
    y_label: str
    better: Direction
