"""ROAD: what the scores of imputed images say of the maps, and whether the two orders of removal agree.

NumPy arrays in, float64 out. Everywhere, t is the removed fraction: MoRF at t has lost its most important share t,
LeRF at t its least important one. The ROAD code names its LeRF after what it keeps: its LeRF at t keeps the top t,
which is our LeRF at 1 - t.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from heatproof.errors import InputError
from heatproof.metrics import statistics

COMPARABLE = 3
"""Rankings of fewer methods agree or disagree by chance alone."""


def accuracy(predictions: ArrayLike, classes: ArrayLike) -> NDArray[np.float64]:
    """1 where the predicted class of a degraded image is the wanted one, else 0; its mean is ROAD's accuracy.

    With the true label as the wanted class: MoRF lower is better, LeRF higher is better. A map without information
    scores the same in both orders. With the intact image's prediction instead, it says how often the answer stays.

    Args:
        predictions: (N,) or (N, ...) predicted classes, for instance (N, orders, fractions).
        classes: (N,) the wanted class of each image.

    Returns:
        The shape of `predictions`, 0 or 1.

    Reference:
        Rong et al., arXiv:2202.00449 (ROAD).

    >>> accuracy([[2, 2, 0], [1, 0, 0]], [2, 0])
    array([[1., 1., 0.],
           [0., 1., 1.]])
    """
    found, wanted = np.asarray(predictions), np.asarray(classes)
    if wanted.shape != found.shape[:1]:
        raise InputError(f"classes: shape {wanted.shape}; expected {found.shape[:1]}, one for each row of predictions")
    correct: NDArray[np.bool_] = found == wanted.reshape(wanted.shape + (1,) * (found.ndim - 1))
    return correct.astype(np.float64)


def lerf_minus_morf(most: ArrayLike, least: ArrayLike) -> NDArray[np.float64]:
    """Mean over the fractions of what LeRF leaves of the score minus what MoRF leaves; higher is better.

    One number for both orders: 0 on average for a map without information, negative where the order is upside down.
    A model that is hurt by every removal, or by none, scores 0 too, since both orders are compared at equal fractions.

    Args:
        most: (N, S) scores after the most important pixels went (MoRF), the untouched image not among them.
        least: (N, S) scores of the same images after the least important went (LeRF), at the same removed fractions.

    Returns:
        (N,), in [-1, 1] for probabilities; NaN where a score is NaN.

    >>> lerf_minus_morf([[0.5, 0.25]], [[0.75, 0.5]])
    array([0.25])
    """
    morf, lerf = np.asarray(most, dtype=np.float64), np.asarray(least, dtype=np.float64)
    if morf.shape != lerf.shape or morf.ndim != 2:
        raise InputError(f"most, least: shapes {morf.shape} and {lerf.shape}; expected (N, S), the same for both")
    result: NDArray[np.float64] = (lerf - morf).mean(axis=1)
    return result


def consistency(most: ArrayLike, least: ArrayLike) -> NDArray[np.float64]:
    """Do the two orders rank the methods alike? Spearman's correlation of the ranking by MoRF with that by LeRF.

    MoRF ranks by low scores, LeRF by high ones. 1: the same ranking; 0: unrelated; -1: the opposite one. Neither
    direction is a merit of a method: a low value says that the benchmark's answer depends on the order of removal.

    Args:
        most: (..., M) mean score of each of M methods under MoRF.
        least: (..., M) the same under LeRF, at the same removed fraction; a pair with NaN is left out.

    Returns:
        (...), in [-1, 1]; NaN for fewer than three methods, and where all methods score the same in one order.

    Reference:
        Rong et al., arXiv:2202.00449 (ROAD): consistency under the change of the removal order.

    >>> consistency([[0.2, 0.4, 0.6], [0.2, 0.4, 0.6]], [[0.9, 0.7, 0.5], [0.5, 0.7, 0.9]])
    array([ 1., -1.])
    """
    morf, lerf = np.asarray(most, dtype=np.float64), np.asarray(least, dtype=np.float64)
    if morf.shape != lerf.shape or morf.ndim < 1:
        raise InputError(f"most, least: shapes {morf.shape} and {lerf.shape}; expected (..., M), the same for both")
    compared = np.isfinite(morf + lerf).sum(axis=-1)
    result: NDArray[np.float64] = np.where(compared < COMPARABLE, np.nan, statistics.spearman(-morf, lerf))
    return result
