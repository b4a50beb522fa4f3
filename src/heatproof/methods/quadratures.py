"""Sums for the integral of `gradient.IntegratedGradients`."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Quadrature(NamedTuple):
    """Points in [0, 1] and their weights: an integral over [0, 1] is the sum of weight * value at each point."""

    points: NDArray[np.float64]
    weights: NDArray[np.float64]


def gauss_legendre(steps: int) -> Quadrature:
    """Gauss-Legendre quadrature on (0, 1): exact for polynomials up to degree 2 * steps - 1.

    >>> gauss_legendre(1)
    Quadrature(points=array([0.5]), weights=array([1.]))
    """
    points, weights = np.polynomial.legendre.leggauss(steps)
    return Quadrature((1 + points) / 2, weights / 2)


def riemann_left(steps: int) -> Quadrature:
    """Points i / steps, equal weights: the form of the paper, from 0.

    >>> riemann_left(2)
    Quadrature(points=array([0. , 0.5]), weights=array([0.5, 0.5]))
    """
    return Quadrature(np.arange(steps) / steps, np.full(steps, 1 / steps))


def riemann_trapezoid(steps: int) -> Quadrature:
    """As Captum has it: points evenly spaced with both ends, weights 1/steps, half of that at the ends.

    The weights sum to 1 - 1/steps, so the maps fall short of completeness by that share: for comparisons only.

    >>> riemann_trapezoid(3)
    Quadrature(points=array([0. , 0.5, 1. ]), weights=array([0.16666667, 0.33333333, 0.16666667]))
    """
    weights = np.full(steps, 1 / steps)
    weights[[0, -1]] /= 2
    return Quadrature(np.linspace(0, 1, steps), weights)


QUADRATURES: Mapping[str, Callable[[int], Quadrature]] = {
    "gausslegendre": gauss_legendre,
    "riemann_left": riemann_left,
    "riemann_trapezoid": riemann_trapezoid,
}
