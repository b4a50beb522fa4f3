"""Shapes of arguments, checked once at public functions."""

from typing import Any

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
        shape = tuple(array.shape)
        if len(shape) != len(names):
            raise InputError(f"{argument}: shape {shape} has {len(shape)} axes; expected ({', '.join(names)})")
        for name, size in zip(names, shape, strict=True):
            expected = int(name) if name.isdigit() else sizes.setdefault(name, size)
            if size != expected:
                raise InputError(f"{argument}: shape {shape}; axis {name} must have size {expected}, not {size}")
    return sizes


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
