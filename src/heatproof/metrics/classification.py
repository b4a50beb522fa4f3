"""Classification: how often a classifier is right, as a whole and for each class."""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from heatproof import checks
from heatproof.errors import InputError

RESULTS_VERSION = 1


class ClassScores(NamedTuple):
    """Scores of each class, each (K,), in [0, 1]; higher is better."""

    precision: NDArray[np.float64]
    recall: NDArray[np.float64]
    f1: NDArray[np.float64]


def confusion_matrix(labels: ArrayLike, predictions: ArrayLike, classes: int | None = None) -> NDArray[np.int64]:
    """How many images of each true class (row) were given each class (column): (K, K).

    Args:
        labels: (N,) true classes, from 0.
        predictions: (N,) predicted classes, from 0.
        classes: K; None: one more than the highest class that occurs.

    Raises:
        InputError: a class lies outside 0 to K - 1.

    >>> confusion_matrix([0, 0, 1], [0, 1, 1])
    array([[1, 1],
           [0, 1]])
    """
    true, found = np.asarray(labels, dtype=np.int64), np.asarray(predictions, dtype=np.int64)
    checks.shapes("N", labels=true, predictions=found)
    both = np.concatenate([true, found])
    count = int(both.max(initial=-1)) + 1 if classes is None else classes
    if both.size and not 0 <= both.min() <= both.max() < count:
        wrong = both[(both < 0) | (both >= count)][0]
        raise InputError(f"labels, predictions: {wrong} is none of the {count} classes (0 to {count - 1})")
    matrix: NDArray[np.int64] = np.bincount(true * count + found, minlength=count**2).reshape(count, count)
    return matrix


def accuracy(confusion: NDArray[np.int64]) -> float:
    """Share of images that were given their class; NaN without images.

    >>> accuracy(np.array([[3, 1], [0, 4]]))
    0.875
    """
    total = int(confusion.sum())
    return int(np.trace(confusion)) / total if total else float("nan")


def class_scores(confusion: NDArray[np.int64]) -> ClassScores:
    """Precision, recall and F1 of each class.

    With C the confusion matrix: precision is C_kk over the sum of column k, 0 for a class that is never predicted; recall
    is C_kk over the sum of row k, 1 for a class that never occurs: none of its images is missed. F1 is their harmonic
    mean, 0 where both are 0. The customary averages are the plain means over classes.

    Args:
        confusion: (K, K), rows are true classes.

    Reference:
        The conventions for empty classes are those of Vision DiffMask's evaluation code.

    >>> class_scores(np.array([[3, 1], [0, 4]])).recall
    array([0.75, 1.  ])
    """
    right, predicted, occurring = confusion.diagonal(), confusion.sum(axis=0), confusion.sum(axis=1)
    precision = np.divide(right, predicted, out=np.zeros(len(right)), where=predicted > 0)
    recall = np.divide(right, occurring, out=np.ones(len(right)), where=occurring > 0)
    total = precision + recall
    return ClassScores(
        precision, recall, np.divide(2 * precision * recall, total, out=np.zeros(len(right)), where=total > 0)
    )
