"""Removal without retraining (LeRF, MoRF): what a curve of scores over the removed fraction amounts to.

Each function takes a whole batch of NumPy arrays and returns float64 for each image. A curve begins with the score of
the untouched image, so its first entry belongs to fraction 0. An entry that is NaN makes its image's result NaN.
"""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from heatproof.errors import InputError


def area(curve: ArrayLike, x: ArrayLike) -> NDArray[np.float64]:
    """Area under each curve, divided by the range of x: the curve's mean height.

    The trapezoidal rule, so uneven steps count by their width. The area of a constant curve is the constant. MoRF:
    lower is better; LeRF: higher is better.

    Args:
        curve: (N, S), or any (..., S).
        x: (S,) growing, for instance removed fractions.

    Returns:
        (N,), or (...); NaN where a value of the curve is NaN.

    >>> area([[0.9, 0.5, 0.3]], [0.0, 0.5, 1.0])
    array([0.55])
    """
    heights, steps = np.asarray(curve, dtype=np.float64), np.asarray(x, dtype=np.float64)
    _check_steps(heights, steps)
    result: NDArray[np.float64] = np.trapezoid(heights, steps, axis=-1) / (steps[-1] - steps[0])
    return result


def aopc(curve: ArrayLike) -> NDArray[np.float64]:
    """Area over the perturbation curve: the mean drop of the score over all steps, the untouched image included.

    For scores f_0, ..., f_L: the sum over k of (f_0 - f_k), divided by L + 1; step 0 adds nothing. MoRF: higher is
    better; LeRF: lower is better. A map without information has the same AOPC in both orders.

    Args:
        curve: (N, L + 1), or any (..., L + 1): scores after 0, ..., L steps.

    Returns:
        (N,), or (...); in score units.

    Reference:
        Samek et al., arXiv:1509.06321, equation 12.

    >>> aopc([[0.9, 0.5, 0.25, 0.1]])
    array([0.4625])
    """
    scores = np.asarray(curve, dtype=np.float64)
    result: NDArray[np.float64] = (scores[..., :1] - scores).mean(axis=-1)
    return result


def abpc(most: ArrayLike, least: ArrayLike) -> NDArray[np.float64]:
    """Area between the perturbation curves: AOPC of MoRF minus AOPC of LeRF; higher is better.

    Args:
        most: (N, L + 1) scores while the most important pixels go (MoRF).
        least: (N, L + 1) scores of the same images while the least important go (LeRF).

    Returns:
        (N,), in score units; 0 on average for a random map, negative where the order is upside down.

    Reference:
        Samek et al., arXiv:1509.06321; Schulz et al., arXiv:2001.00396, "degradation".

    >>> abpc([[0.9, 0.5, 0.1]], [[0.9, 0.8, 0.1]])
    array([0.1])
    """
    result: NDArray[np.float64] = aopc(most) - aopc(least)
    return result


def deviation(p0: ArrayLike, p: ArrayLike) -> NDArray[np.float64]:
    """By how many percent of its first value the probability has moved, up or down: 100 * |p0 - p| / p0.

    The figure of the ROAR code. It is unbounded where p0 is small, and a rise counts as damage: `signed_deviation`
    and `drop` are without these faults. MoRF: higher is better; LeRF: lower is better.

    Args:
        p0: (N,) probability of the target for the untouched image.
        p: (N,) or (N, ...) probability after removal.

    Returns:
        The shape of `p`, in percent; NaN where p0 is 0.

    Reference:
        Shah: github.com/saurabheights/ROAR, pixel perturbation analysis.

    >>> deviation([0.8, 0.5], [0.6, 1.0])
    array([ 25., 100.])
    """
    return np.abs(signed_deviation(p0, p))


def signed_deviation(p0: ArrayLike, p: ArrayLike) -> NDArray[np.float64]:
    """By how many percent of its first value the probability has fallen: 100 * (p0 - p) / p0; a rise is negative.

    Args:
        p0: (N,) probability of the target for the untouched image.
        p: (N,) or (N, ...) probability after removal.

    Returns:
        The shape of `p`, at most 100 percent; NaN where p0 is 0.

    >>> signed_deviation([0.8, 0.5], [0.6, 1.0])
    array([  25., -100.])
    """
    drops = drop(p0, p)
    before = np.broadcast_to(_before(p0, drops), drops.shape)
    shares: NDArray[np.float64] = np.divide(drops, before, out=np.full_like(drops, np.nan), where=before != 0)
    return 100 * shares


def drop(p0: ArrayLike, p: ArrayLike) -> NDArray[np.float64]:
    """How far the score has fallen: p0 - p; a rise is negative.

    Args:
        p0: (N,) score of the target for the untouched image: probability, logit, or any other.
        p: (N,) or (N, ...) the same score after removal.

    Returns:
        The shape of `p`, in score units; MoRF: higher is better; LeRF: lower is better.

    >>> drop([0.75], [[0.5, 0.25]])
    array([[0.25, 0.5 ]])
    """
    after = np.asarray(p, dtype=np.float64)
    result: NDArray[np.float64] = _before(p0, after) - after
    return result


def _before(p0: ArrayLike, after: NDArray[Any]) -> NDArray[np.float64]:
    """First scores (N), with further axes of size 1 to stand beside (N, ...)."""
    before = np.asarray(p0, dtype=np.float64)
    if before.shape != after.shape[: before.ndim]:
        raise InputError(f"p0: shape {before.shape} does not lead the shape {after.shape} of p")
    return before.reshape(before.shape + (1,) * (after.ndim - before.ndim))


def _check_steps(curve: NDArray[Any], x: NDArray[np.float64]) -> None:
    if x.ndim != 1 or len(x) < 2 or curve.shape[-1:] != x.shape:
        raise InputError(f"x: shape {x.shape}; expected one value for each of the steps of a curve {curve.shape}")
    if not (np.diff(x) > 0).all():
        raise InputError(f"x: {x.tolist()} must grow")
