"""Twins: maps that are derived from a method's stored maps, without calling the method or the classifier.

What a twin scores is owed to something simpler than the method: `blurred` and `max3` cannot know more than their source,
`average` has not seen the image, `inverse` must lose. They are attribution files like any other, so every test takes them.
"""

import functools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from heatproof import store
from heatproof.errors import MapError
from heatproof.methods.explainer import Explainer

PREFIX = "twin:"  # in the place of a dotted path
AVERAGE = "average"
RESULTS_VERSION = 1
SIGMA = 1.0  # pixels, as in SIA's study of blurred maps


@dataclass(frozen=True)
class Twin:
    """One kind of twin of the maps in a file; its maps come row by row, so that no file has to fit into memory.

    - `blurred`: Gaussian of sigma 1 pixel, the edge repeated; `max3`: the largest value of 3 x 3 pixels. Both often raise
      ROAR and ROAD scores though they add no information (SIA, arXiv:2304.13836).
    - `inverse`: the negative, with the source's order exactly reversed (tied pixels too).
    - `average`: the mean of all other images' maps in the file: where objects are, without the image. A file of a sample
      gives the mean over the sample. Invalid maps do not count.

    Args:
        kind: which.
        source: the complete file.

    Raises:
        MapError: `average` of fewer than two valid maps.
    """

    kind: str
    source: store.MapReader

    def maps(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """The twins (B, H, W) of the maps in these rows (B,) of the source; NaN where the source's is invalid."""
        maps = self.source.maps(rows)
        valid = ~self.source.invalid[rows]
        found = np.full(maps.shape, np.nan, dtype=np.float32)
        found[valid] = self._derived(maps[valid].astype(np.float64))
        return found

    def ranks(self, rows: NDArray[np.int64]) -> NDArray[np.int64] | None:
        """Ranks (B, H, W) where the source's say them; None where they are those of the maps. 0 in invalid rows."""
        if self.kind != "inverse":
            return None
        ranks = self.source.ranks(rows).astype(np.int64)
        return np.where(self.source.invalid[rows][:, None, None], 0, ranks[0].size - 1 - ranks)

    def _derived(self, maps: NDArray[np.float64]) -> NDArray[np.float64]:
        if self.kind != AVERAGE:
            return derived(self.kind, maps)
        total, count = self._total
        return (total - maps) / (count - 1)

    @functools.cached_property
    def _total(self) -> tuple[NDArray[np.float64], int]:
        """The sum (H, W) of all valid maps, and their number; read in blocks that depend on the size of maps only."""
        total, count = np.zeros(self.source.size), 0
        for rows in self.source.row_blocks():
            valid = rows[~self.source.invalid[rows]]
            total += self.source.maps(valid).astype(np.float64).sum(axis=0)
            count += len(valid)
        if count < 2:
            raise MapError(f"{self.source.path}: {count} valid maps; the average of all others needs two")
        return total, count


def derived(kind: str, maps: NDArray[np.float64]) -> NDArray[np.float64]:
    """The twins (N, H, W) that need no other map than their own: `blurred`, `max3`, `inverse`.

    >>> derived("max3", np.array([[[0.0, 0.0, 0.0, 5.0]]]))
    array([[[0., 0., 5., 5.]]])
    """
    found: NDArray[np.float64]
    if kind == "blurred":
        found = ndimage.gaussian_filter(maps, (0, SIGMA, SIGMA), mode="nearest")
    elif kind == "max3":
        found = ndimage.maximum_filter(maps, (1, 3, 3), mode="nearest")
    else:
        found = -maps
    return found


def is_twin(path: str) -> bool:
    """Whether a configuration's entry names a twin in the place of a dotted path."""
    return path.startswith(PREFIX)


def kind_of(path: str) -> str:
    """Which twin a configuration's entry names.

    >>> kind_of("twin:blurred")
    'blurred'
    """
    return path.removeprefix(PREFIX)


def source_of(twin: Explainer) -> Explainer:
    """The method whose maps a twin is derived from."""
    of = twin.options["of"]
    return Explainer(of["name"], of["method"], of["kwargs"], twin.channel_reduction, twin.on_invalid)
