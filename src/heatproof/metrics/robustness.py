"""Robustness: how much does a map change when its image changes so little that nobody would see it?

The stage perturbs the images and explains them again; here are the distances, for a whole batch, one float64 for each
image (and sample). Lower is better, as far as it goes: a map that looks at no pixel scores 0, the best there is, and a
model that does change its mind should change its map. So read these scores beside those of faithfulness.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from heatproof import checks
from heatproof.errors import InputError

RESULTS_VERSION = 1
LEAST_CHANGE = 1e-6  # what relative changes are divided by at least


def distance(a: ArrayLike, b: ArrayLike) -> NDArray[np.float64]:
    """Euclidean distance between an image's map (or the image itself) and each of its perturbed ones.

    Args:
        a: (N, ...) one array for each image: map (N, H, W) or image (N, C, H, W).
        b: (N, S, ...) S others of the same shape for each.

    Returns:
        (N, S), >= 0, in the units of the values; 0 where nothing changed; NaN where a value is not finite.

    >>> distance([[[0.0, 0.0]]], [[[[3.0, 4.0]], [[0.0, 1.0]]]])
    array([[5., 1.]])
    """
    first, second = _aligned(a, b)
    return _lengths(second - first[:, None])


def relative_change(maps: ArrayLike, perturbed: ArrayLike) -> NDArray[np.float64]:
    """How far each perturbed image's map lies from the intact one, as a share of its length; lower is better.

    ||a(x) - a(x')|| / ||a(x)||. It does not depend on the maps' scale. A map that does not look at the image scores 0; two
    unrelated maps of equal length and mean 0 score sqrt(2).

    Args:
        maps: (N, H, W), or any (N, ...): maps of the intact images.
        perturbed: (N, S, H, W), or (N, S, ...): maps of S perturbed versions of each.

    Returns:
        (N, S), >= 0; NaN where the intact map is all zeros, or a value is not finite.

    >>> relative_change([[[3.0, 4.0]]], [[[[3.0, 4.0]], [[0.0, 0.0]]]])
    array([[0., 1.]])
    """
    first, _ = _aligned(maps, perturbed)
    changes, length = distance(maps, perturbed), _lengths(first)[:, None]
    shares: NDArray[np.float64] = np.divide(changes, length, out=np.full_like(changes, np.nan), where=length != 0)
    return shares


def max_sensitivity(changes: ArrayLike) -> NDArray[np.float64]:
    """The largest relative change of a map over the perturbed versions of its image; lower is better.

    It grows with the number of samples: compare methods at the same number only.

    Args:
        changes: (N, S) from `relative_change`.

    Returns:
        (N,), >= 0; 0 for a map that does not look at the image; NaN where one of the changes is undefined.

    Reference:
        Yeh et al.: "On the (in)fidelity and sensitivity of explanations", NeurIPS 2019, arXiv:1901.09392, section 4.

    >>> max_sensitivity([[0.5, 0.75]])
    array([0.75])
    """
    largest: NDArray[np.float64] = _samples(changes).max(axis=1)
    return largest


def avg_sensitivity(changes: ArrayLike) -> NDArray[np.float64]:
    """The mean relative change of a map over the perturbed versions of its image; lower is better.

    Args:
        changes: (N, S) from `relative_change`.

    Returns:
        (N,), >= 0; 0 for a map that does not look at the image; NaN where one of the changes is undefined.

    Reference:
        Yeh et al., arXiv:1901.09392, section 4.

    >>> avg_sensitivity([[0.5, 0.75]])
    array([0.625])
    """
    mean: NDArray[np.float64] = _samples(changes).mean(axis=1)
    return mean


def local_lipschitz(map_distances: ArrayLike, image_distances: ArrayLike) -> NDArray[np.float64]:
    """The steepest change of a map around its image: the largest ||a(x) - a(x')|| / ||x - x'||; lower is better.

    With distances between maps as they are, its unit is that of the map over that of the image, so that methods of
    different units cannot be compared. With `relative_change` in their place it can be: share of the map's length, for each
    unit of the normalised image.

    Args:
        map_distances: (N, S) from `distance` or `relative_change` of the maps.
        image_distances: (N, S) from `distance` of the images, S perturbed versions of each.

    Returns:
        (N,), >= 0; 0 for a map that does not look at the image; NaN where an image was not changed, or a distance is NaN.

    Reference:
        Alvarez-Melis, Jaakkola: "On the robustness of interpretability methods", 2018, arXiv:1806.08049, equation 1.

    >>> local_lipschitz([[1.0, 3.0]], [[2.0, 4.0]])
    array([0.75])
    """
    above, below = _samples(map_distances), _samples(image_distances)
    if above.shape != below.shape:
        raise InputError(f"image_distances: shape {below.shape}; expected {above.shape}")
    ratios = np.divide(above, below, out=np.full_like(above, np.nan), where=below != 0)
    steepest: NDArray[np.float64] = ratios.max(axis=1)
    return steepest


def relative_stability(
    maps: ArrayLike, perturbed_maps: ArrayLike, inputs: ArrayLike, perturbed_inputs: ArrayLike
) -> NDArray[np.float64]:
    """The largest relative change of a map for the relative change of what the model saw, or gave; lower is better.

    || (a(x) - a(x')) / a(x) || / max(|| (z - z') / z ||, 1e-6), each value divided on its own, those below 1e-6 by 1e-6.
    With images for z it is the relative input stability, with logits the relative output stability. Single values of the
    map near 0 govern it.

    Args:
        maps: (N, H, W), or any (N, ...).
        perturbed_maps: (N, S, ...) maps of the perturbed images.
        inputs: (N, ...) images, or logits (N, K).
        perturbed_inputs: (N, S, ...) the perturbed images, or their logits.

    Returns:
        (N,), >= 0, in no unit; 0 for a map that does not look at the image; NaN where a value is not finite.

    Reference:
        Agarwal et al.: "Rethinking stability for attribution-based explanations", 2022, arXiv:2203.06877.

    >>> relative_stability([[2.0]], [[[3.0], [2.0]]], [[4.0]], [[[5.0], [5.0]]])
    array([2.])
    """
    above = _relative(maps, perturbed_maps)
    below = np.maximum(_relative(inputs, perturbed_inputs), LEAST_CHANGE)
    if above.shape != below.shape:
        raise InputError(f"perturbed_inputs: {below.shape[1]} samples of {len(below)} images; expected {above.shape}")
    largest: NDArray[np.float64] = _samples(above / below).max(axis=1)
    return largest


def _aligned(a: ArrayLike, b: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The two arrays with the values of each item in one row: (N, D) and (N, S, D)."""
    first, second = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if second.ndim != first.ndim + 1 or first.ndim < 2 or second.shape[:1] + second.shape[2:] != first.shape:
        raise InputError(f"perturbed: shape {second.shape}; expected (N, S, ...) beside the intact {first.shape}")
    rows = first.reshape(len(first), -1)
    return rows, second.reshape(*second.shape[:2], rows.shape[1])


def _lengths(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Euclidean length along the last axis; NaN where a value is not finite."""
    squares = np.where(np.isfinite(rows), rows, np.nan) ** 2
    lengths: NDArray[np.float64] = np.sqrt(squares.sum(axis=-1))
    return lengths


def _relative(a: ArrayLike, b: ArrayLike) -> NDArray[np.float64]:
    """Length of the changes of all values, each as a share of the intact one: (N, S)."""
    first, second = _aligned(a, b)
    guarded = np.where(np.abs(first) < LEAST_CHANGE, LEAST_CHANGE, first)
    return _lengths((second - first[:, None]) / guarded[:, None])


def _samples(values: ArrayLike) -> NDArray[np.float64]:
    array = np.asarray(values, dtype=np.float64)
    checks.shapes("N S", changes=array)
    if array.shape[1] == 0:
        raise InputError("changes: no samples; expected (N, S) with at least one")
    return array
