"""Shapes of arguments, checked once at public functions."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from heatproof.errors import InputError


def shapes(axes: str, /, **arrays: Any) -> dict[str, int]:
    """Checks that all arrays have the named axes, and the same size along an axis of the same name.

    Args:
        axes: axis names, separated by blanks, as in "N H W"; a number fixes a size, as in "N 3 H W".
        arrays: anything with a `shape` (NumPy, torch), by the name that an error shall show.

    Returns:
        The size of each named axis.

    Raises:
        InputError: naming the argument, its shape and what it should be.

    >>> import numpy as np
    >>> shapes("N H W", maps=np.zeros((2, 3, 4)))
    {'N': 2, 'H': 3, 'W': 4}
    """
    names = axes.split()
    sizes: dict[str, int] = {}
    for argument, array in arrays.items():
        if not hasattr(array, "shape"):
            raise InputError(f"{argument}: {type(array).__name__}; expected an array ({', '.join(names)})")
        shape = tuple(array.shape)
        if len(shape) != len(names):
            raise InputError(f"{argument}: shape {shape} has {len(shape)} axes; expected ({', '.join(names)})")
        for name, size in zip(names, shape, strict=True):
            expected = int(name) if name.isdigit() else sizes.setdefault(name, size)
            if size != expected:
                raise InputError(f"{argument}: shape {shape}; axis {name} must have size {expected}, not {size}")
    return sizes


def boolean(**arrays: Any) -> None:
    """Raises InputError naming the first NumPy array, by argument, whose values are not True and False; None is left out.

    >>> boolean(regions=np.zeros((1, 2, 2), dtype=bool), ignored=None)
    """
    for argument, array in arrays.items():
        if array is not None and array.dtype != bool:
            raise InputError(f"{argument}: {array.dtype} values; expected bool, such as {argument} > 0.5")


def whole(**arrays: Any) -> None:
    """Raises InputError naming the first NumPy array, by argument, whose values are no integers.

    >>> whole(ranks=np.zeros((1, 2, 2), dtype=np.uint16))
    """
    for argument, array in arrays.items():
        if array.dtype.kind not in "iu":
            raise InputError(f"{argument}: {array.dtype} values; expected integers")


def pixel_corners(boxes: ArrayLike) -> NDArray[np.int64]:
    """Boxes as (k, 4) integers.

    Raises:
        InputError: a corner lies between pixels.

    >>> pixel_corners([0.0, 1.0, 4.0, 5.0]).tolist()
    [[0, 1, 4, 5]]
    """
    corners = np.asarray(boxes)
    if corners.dtype.kind == "f" and not (np.isfinite(corners) & (corners == np.floor(corners))).all():
        raise InputError(
            f"boxes: {corners.tolist()}; expected whole pixels (x0, y0, x1, y1), half-open: round them first"
        )
    return corners.astype(np.int64).reshape(-1, 4)


def fraction(name: str, value: float) -> float:
    """Returns `value` if it lies in [0, 1], else raises InputError naming it."""
    if not 0.0 <= value <= 1.0:
        raise InputError(f"{name}: {value!r} must lie between 0 and 1")
    return value


def integers(owner: object, **limits: tuple[int, int]) -> None:
    """Raises InputError naming the first field of `owner` that is no integer within its limits."""
    for option, (low, high) in limits.items():
        integer(f"{type(owner).__name__}: {option}", getattr(owner, option), low, high)


def integer(name: str, value: object, low: int, high: int) -> None:
    """Raises InputError naming `value` unless it is an integer from `low` to `high`."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise InputError(f"{name}: {value!r} must be an integer")
    if not low <= value <= high:
        raise InputError(f"{name}: {value} must lie between {low} and {high}")
