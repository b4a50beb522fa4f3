"""Complexity: is a map about few pixels, or about all of them?

Each function takes a whole batch of maps and returns one float64 for each, from the absolute values of that map alone:
nothing is scaled over a batch. The scores say how a map looks, not whether it is right.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from heatproof.errors import InputError

RESULTS_VERSION = 1


def gini(maps: ArrayLike) -> NDArray[np.float64]:
    """Sparseness: the Gini index of each map's absolute values; neither end is better.

    For the n absolute values in growing order v_1, ..., v_n: sum of (2 i - n - 1) v_i, divided by n times their sum. Equal
    values score 0, one pixel alone scores 1 - 1/n. Independent uniform values score 1/3 on average.

    Args:
        maps: (N, H, W), or any (N, ...); signed maps count by their absolute values.

    Returns:
        (N,), in [0, 1); 0 for a map of zeros, which is constant like any other; NaN where a value is not finite.

    Reference:
        Chalasani et al.: "Concise explanations of neural networks using adversarial training", ICML 2020,
        arXiv:1810.06583.

    >>> gini([[[0.0, 0.0], [0.0, 1.0]], [[2.0, 2.0], [2.0, 2.0]]])
    array([0.75, 0.  ])
    """
    values = np.sort(_magnitudes(maps), axis=1)
    count = values.shape[1]
    weights = 2.0 * np.arange(1, count + 1) - count - 1
    total = values.sum(axis=1)
    # The weights add up to 0, so a map of zeros may be divided by anything.
    index: NDArray[np.float64] = (values * weights).sum(axis=1) / (count * np.where(total == 0, 1.0, total))
    return index


def entropy(maps: ArrayLike) -> NDArray[np.float64]:
    """Complexity: the entropy, in nats, of each map's absolute values as shares of their sum; lower is better.

    For q = |a| / sum |a|: minus the sum of q ln q. One pixel alone scores 0, a constant map ln n, the most there is.

    Args:
        maps: (N, H, W), or any (N, ...); signed maps count by their absolute values.

    Returns:
        (N,), in [0, ln n] nats; NaN for a map of zeros, which has no shares, and where a value is not finite.

    Reference:
        Bhatt, Weller, Moura: "Evaluating and aggregating feature-based model explanations", IJCAI 2020,
        arXiv:2005.00631, section 3.3.

    >>> entropy([[[3.0, 3.0], [-3.0, 3.0]]]) == np.log(4)
    array([ True])
    """
    values = _magnitudes(maps)
    total = values.sum(axis=1, keepdims=True)
    shares = np.divide(values, total, out=np.full_like(values, np.nan), where=total != 0)
    result: NDArray[np.float64] = special.entr(shares).sum(axis=1)
    return result


def effective_complexity(maps: ArrayLike, threshold: float = 1e-5) -> NDArray[np.float64]:
    """How many values of each map count: those whose absolute value exceeds a share of the map's largest; lower is better.

    The reference divides by the largest value of a whole batch, so that there an image's score depends on its neighbours.

    Args:
        maps: (N, H, W), or any (N, ...); signed maps count by their absolute values.
        threshold: the share, in [0, 1).

    Returns:
        (N,), whole numbers in 0 .. n; n for a constant map, 0 for a map of zeros; NaN where a value is not finite.

    Raises:
        InputError: a threshold outside [0, 1).

    Reference:
        Nguyen, Martinez: "On quantitative aspects of model interpretability", 2020, arXiv:2007.07584, section 3.2.

    >>> effective_complexity([[[8.0, -4.0], [1.0, 0.0]]], threshold=0.2)
    array([2.])
    """
    if not 0 <= threshold < 1:
        raise InputError(f"threshold: {threshold!r} must lie in [0, 1)")
    values = _magnitudes(maps)
    counts: NDArray[np.float64] = (values > threshold).sum(axis=1, dtype=np.float64)
    counts[np.isnan(values[:, 0])] = np.nan
    return counts


def _magnitudes(maps: ArrayLike) -> NDArray[np.float64]:
    """Absolute values (N, n), divided by the largest of their map; a map that is not finite becomes NaN throughout."""
    array = np.asarray(maps)
    if array.ndim < 2 or array.size == 0:
        raise InputError(f"maps: shape {array.shape}; expected (N, H, W), not empty")
    values = np.abs(array.reshape(len(array), -1).astype(np.float64))
    values[~np.isfinite(values).all(axis=1)] = np.nan
    largest = values.max(axis=1, keepdims=True)
    scaled: NDArray[np.float64] = values / np.where(largest == 0, 1.0, largest)
    return scaled
