"""Insertion and deletion: the area below a curve of scores while pixels are put in or taken away.

Each function takes a whole batch of NumPy arrays and returns one float64 for each image. Deletion starts at the
untouched image and ends where everything is replaced; insertion starts there and ends at the untouched image. In both,
the most important pixels come first. A score that is NaN makes its image's result NaN.
"""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from heatproof.errors import InputError
from heatproof.metrics import perturbation


def insertion_deletion_auc(scores: ArrayLike) -> NDArray[np.float64]:
    """Area below each curve with unit steps, divided by their number: (sum of s - s_0 / 2 - s_n / 2) / n.

    Insertion: higher is better. Deletion: lower is better. A curve that never changes scores its constant, so that a
    score can be read as a mean probability; a map without information scores what the model says of images whose
    pixels come or go at random. The last step counts like the others also where it is shorter.

    Args:
        scores: (N, n + 1) scores of the target after 0, ..., n steps, or any (..., n + 1) with n at least 1.

    Returns:
        (N,), or (...); between the lowest and the highest score of the curve.

    Reference:
        Petsiuk, Das, Saenko: "RISE", BMVC 2018, arXiv:1806.07421: the area of the authors' causal metric.

    >>> insertion_deletion_auc([[0.9, 0.5, 0.25, 0.1]]).round(7)
    array([0.4166667])
    """
    curves = _curves(scores)
    ends = (curves[..., 0] + curves[..., -1]) / 2
    result: NDArray[np.float64] = (curves.sum(axis=-1) - ends) / (curves.shape[-1] - 1)
    return result


def insertion_minus_deletion(insertion: ArrayLike, deletion: ArrayLike) -> NDArray[np.float64]:
    """Area of the insertion curve minus area of the deletion curve of the same images; higher is better.

    One number for both questions: a model that is sure of everything raises both areas, and neither says then that
    the map is good. A map without information scores about 0 where both curves use the same replacement.

    Args:
        insertion: (N, n + 1) scores while pixels are put in.
        deletion: (N, m + 1) scores while pixels are taken away.

    Returns:
        (N,), in [-1, 1] for probabilities.

    >>> insertion_minus_deletion([[0.0, 1.0, 1.0]], [[1.0, 0.0, 0.0]])
    array([0.5])
    """
    result: NDArray[np.float64] = insertion_deletion_auc(insertion) - insertion_deletion_auc(deletion)
    return result


def normalised(scores: ArrayLike, intact: ArrayLike) -> NDArray[np.float64]:
    """Scores as a multiple of the untouched image's, so that images of which the model is unsure count as much.

    The multiple is unbounded: an insertion curve exceeds 1 where part of the image convinces the model more than all
    of it. The direction is that of the scores.

    Args:
        scores: (N,) or (N, ...) scores of the target.
        intact: (N,) the score of the untouched image.

    Returns:
        The shape of `scores`; NaN where the untouched image scores 0.

    >>> normalised([[0.8, 0.2]], [0.8])
    array([[1.  , 0.25]])
    """
    # The share that is left is what has not fallen: 1 - (p0 - p) / p0.
    result: NDArray[np.float64] = 1 - perturbation.signed_deviation(intact, scores) / 100
    return result


def gradmask_insertion_auc(scores: ArrayLike, percentages: ArrayLike) -> NDArray[np.float64]:
    """Compat: GradMask's insertion area: the trapezoidal rule over percent, from the first one of its list.

    It is on a scale of 0 to 100 and misses the curve below the first percentage: with the authors' list (1, 5, 10,
    20, ..., 100) a constant 1 gives 99. `insertion_deletion_auc`, or `perturbation.area` over fractions from 0 to 1
    where steps differ, is without these faults. Higher is better.

    Args:
        scores: (N, S), or any (..., S): scores with the top p percent shown.
        percentages: (S,) growing, in percent.

    Returns:
        (N,), or (...); score times percent.

    Reference:
        Traini: github.com/DavideTraini/GradMask, insertion and deletion.

    >>> gradmask_insertion_auc([[1.0, 1.0, 1.0]], [1, 50, 100])
    array([99.])
    """
    x = np.asarray(percentages, dtype=np.float64)
    result: NDArray[np.float64] = perturbation.area(scores, x) * (x[-1] - x[0])
    return result


def gradmask_deletion_auc(scores: ArrayLike, percentages: ArrayLike) -> NDArray[np.float64]:
    """Compat: GradMask's deletion area: the trapezoidal rule over percent, from the point (0, 0).

    The untouched image is given the score 0 instead of its own, which lowers the area, and lowers it more for images
    of which the model is sure. `insertion_deletion_auc` is without this fault. Lower is better.

    Args:
        scores: (N, S), or any (..., S): scores with the top p percent replaced.
        percentages: (S,) growing, in percent, above 0.

    Returns:
        (N,), or (...); score times percent.

    Reference:
        Traini: github.com/DavideTraini/GradMask, insertion and deletion.

    >>> gradmask_deletion_auc([[1.0, 1.0]], [50, 100])
    array([75.])
    """
    curves = np.asarray(scores, dtype=np.float64)
    zero = np.zeros((*curves.shape[:-1], 1))
    return gradmask_insertion_auc(np.concatenate((zero, curves), axis=-1), [0.0, *np.asarray(percentages).tolist()])


def _curves(scores: ArrayLike) -> NDArray[Any]:
    curves = np.asarray(scores, dtype=np.float64)
    if curves.ndim < 1 or curves.shape[-1] < 2:
        raise InputError(
            f"scores: shape {curves.shape}; expected (N, n + 1), the scores after 0 to n steps, n at least 1"
        )
    return curves
