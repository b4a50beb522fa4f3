"""One map, one order of its pixels: what every removal metric starts from.

A map becomes a permutation once, sorted by (value descending, tie key ascending). All fractions and both ends are
cut from that one permutation, so masks are nested, and what one end keeps is exactly what the other removes.
Nothing here compares values after the sort: a threshold removes too many pixels as soon as two are equal.

Sorting is NumPy's, on the CPU, the same on every machine. Cutting ranks works for arrays and for tensors.
"""

import math
from collections.abc import Iterator
from typing import Any, Literal, overload

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from heatproof import checks, seeding
from heatproof.errors import InputError, MapError, nearest

RESULTS_VERSION = 1

First = Literal["most", "least"]
FIRSTS: tuple[First, ...] = ("most", "least")
ORDERS = ("morf", "lerf")  # what removing from these ends is called

_SIXTEEN_BITS = 1 << 16
_BLOCK = 1 << 20  # pixels sorted at a time: keeps the temporary arrays near the size of a cache


def tie_keys(seed: int, indices: ArrayLike, pixels: int) -> NDArray[Any]:
    """One random permutation for each image; among equal values, the pixel with the lower key comes first.

    A key depends on the root seed and the image's index alone: the same for every method, fraction and run, so that
    ties hurt or favour no method.

    Args:
        seed: the root seed.
        indices: (N,) index of each image in its split.
        pixels: number of pixels of a map.

    Returns:
        (N, pixels), each row a permutation of 0 .. pixels - 1; uint16, or uint32 above 65,536 pixels.

    >>> keys = tie_keys(0, [7, 8, 7], 5)
    >>> bool((keys[0] == keys[2]).all()), np.sort(keys[1]).tolist()
    (True, [0, 1, 2, 3, 4])
    """
    rows = np.asarray(indices, dtype=np.int64).reshape(-1)
    keys = np.empty((len(rows), pixels), dtype=_rank_dtype(pixels))
    for row, index in enumerate(rows.tolist()):
        keys[row] = seeding.generator(seed, "ties", index).permutation(pixels)
    return keys


def orders(
    maps: ArrayLike, ties: Literal["random", "index"] = "random", keys: NDArray[Any] | None = None
) -> NDArray[np.int64]:
    """The positions of each map's pixels, the most important first.

    Sorted by (value descending, tie key ascending). Only equal values are ties (-0.0 equals 0.0); nothing is ever
    added to the values. A constant map is legal: its order is its tie key's.

    Args:
        maps: (N, H, W), or any (N, ...) whose values are to be ranked together; real and finite.
        ties: "random": by `keys`; "index": the lower row-major position first, as TensorFlow's top-k does.
        keys: (N, P) from `tie_keys`, a permutation for each image. Without it every map draws as image 0 of seed 0.

    Returns:
        (N, P) row-major positions in the flattened map; P is the number of pixels.

    Raises:
        MapError: a value is NaN or infinite; the message names image and pixel.

    Reference:
        Hooker et al., arXiv:1806.10758 (ROAR), with a tie rule that does not depend on the machine.

    >>> orders(np.array([[[2.0, 7.0], [7.0, 0.0]]]), ties="index")
    array([[1, 2, 0, 3]])
    >>> orders(np.array([[[2.0, 7.0], [7.0, 0.0]]]), keys=np.array([[0, 3, 2, 1]]))
    array([[2, 1, 0, 3]])
    """
    maps = np.asarray(maps)
    flat = _flattened("maps", maps)
    if flat.dtype.kind not in "fiub":
        raise InputError(f"maps: dtype {flat.dtype}; expected real numbers")
    _check_finite(flat, maps.shape[1:])
    images, pixels = flat.shape
    keys = _checked_keys(ties, keys, images, pixels)
    packs = pixels <= _SIXTEEN_BITS and np.can_cast(flat.dtype, np.float32, "safe")
    sort = _packed_orders if packs else _stable_orders
    result = np.empty(flat.shape, dtype=np.int64)
    for rows in _blocks(images, pixels):
        result[rows] = sort(flat[rows], keys if len(keys) == 1 else keys[rows])
    return result


def ranks(orders: NDArray[np.int64], size: tuple[int, ...] | None = None) -> NDArray[Any]:
    """The position of each pixel in its map's order: 0 is the most important pixel.

    Args:
        orders: (N, P), a permutation in each row.
        size: (H, W) of the map, where the ranks shall have its shape.

    Returns:
        (N, P) or (N, *size); uint16, or uint32 above 65,536 pixels.

    >>> ranks(np.array([[1, 2, 0, 3]])).tolist()
    [[2, 0, 1, 3]]
    """
    images, pixels = checks.shapes("N P", orders=orders).values()
    places = np.arange(pixels, dtype=_rank_dtype(pixels))
    result = np.empty(orders.shape, dtype=places.dtype)
    np.put_along_axis(result, np.asarray(orders), places[None], axis=1)
    if size is None:
        return result
    if math.prod(size) != pixels:
        raise InputError(f"size: {size} has {math.prod(size)} pixels; the orders have {pixels}")
    return result.reshape(images, *size)


def rank_tensor(ranks: NDArray[Any], device: torch.device | str | None = None) -> Tensor:
    """Ranks as a tensor of the smallest type that torch can compare: int16 up to 32,767 pixels, else int32.

    torch holds uint16 and uint32 but compares neither, on any device. This is the form in which the ranks of a whole
    split stay on a device: 2 bytes a pixel for 32 x 32.

    >>> rank_tensor(np.array([[2, 0, 1, 3]], dtype=np.uint16)).dtype
    torch.int16
    """
    small = math.prod(ranks.shape[1:]) <= np.iinfo(np.int16).max
    return torch.from_numpy(ranks.astype(np.int16 if small else np.int32)).to(device)


def count(fraction: float, pixels: int) -> int:
    """How many of `pixels` a removed fraction stands for: floor(fraction * pixels + 1e-9).

    >>> count(0.1, 6), count(0.5, 6), count(0.07, 100)
    (0, 3, 7)
    """
    return math.floor(checks.fraction("fraction", fraction) * pixels + 1e-9)


@overload
def removed(orders_or_ranks: NDArray[Any], fraction: float, first: First = "most") -> NDArray[np.bool_]: ...
@overload
def removed(orders_or_ranks: Tensor, fraction: float, first: First = "most") -> Tensor: ...
def removed(
    orders_or_ranks: NDArray[Any] | Tensor, fraction: float, first: First = "most"
) -> NDArray[np.bool_] | Tensor:
    """Which pixels go when a fraction of them is removed from one end of the order.

    A fraction that stands for no pixel removes nothing, 1 removes all; masks of growing fractions are nested.

    Args:
        orders_or_ranks: orders, (N, P) of type int64; anything else is ranks, (N, P) or (N, H, W), of another
            integer type or with more axes. A tensor stays on its device.
        fraction: removed share of the pixels, in [0, 1].
        first: "most": the most important pixels go first (ROAR, MoRF); "least": the least important (KAR, LeRF).

    Returns:
        True where a pixel is removed; the shape of the argument, row-major positions for orders.

    >>> order = orders(np.array([[[5, 1, 3], [2, 4, 0]]]))
    >>> removed(ranks(order, (2, 3)), 0.5).astype(int)
    array([[[1, 0, 1],
            [0, 1, 0]]])
    >>> removed(order, 0.5, first="least").astype(int)
    array([[0, 1, 0, 1, 0, 1]])
    >>> bool(removed(order, 0.1).any())
    False
    """
    if first not in ("most", "least"):
        raise InputError(f"first: {first!r}{nearest(str(first), ('most', 'least'))}")
    pixels = math.prod(orders_or_ranks.shape[1:])
    number = count(fraction, pixels)
    if orders_or_ranks.ndim == 2 and orders_or_ranks.dtype in (np.int64, torch.int64):
        return _cut_orders(orders_or_ranks, number, first)
    if isinstance(orders_or_ranks, Tensor) and orders_or_ranks.dtype in (torch.uint16, torch.uint32):
        orders_or_ranks = orders_or_ranks.to(torch.int32)
    return orders_or_ranks < number if first == "most" else orders_or_ranks >= pixels - number


@overload
def inverse(ranks: NDArray[Any]) -> NDArray[Any]: ...
@overload
def inverse(ranks: Tensor) -> Tensor: ...
def inverse(ranks: NDArray[Any] | Tensor) -> NDArray[Any] | Tensor:
    """The ranks of the reversed order: the control that must do worse than random.

    >>> inverse(np.array([[2, 0, 1, 3]], dtype=np.uint16)).tolist()
    [[1, 3, 2, 0]]
    """
    last = math.prod(ranks.shape[1:]) - 1
    return last - ranks


def tied_share(maps: ArrayLike, fraction: float, first: First = "most") -> NDArray[np.float64]:
    """Share of each map's pixels that are tied across the cut: for them the tie rule decides who goes, not the map.

    The pixels that hold the value of the last one removed, where the first one kept holds it too; 0 where the cut
    falls between two values, and for a cut that removes nothing or all.

    Args:
        maps: (N, ...), as for `orders`.
        fraction: removed share of the pixels, in [0, 1].
        first: the end of the order that is removed.

    Returns:
        (N,), in [0, 1]; NaN for a map with NaN.

    >>> tied_share(np.array([[[2.0, 7.0], [7.0, 0.0]]]), 0.25)
    array([0.5])
    >>> tied_share(np.array([[[2.0, 7.0], [7.0, 0.0]]]), 0.5)
    array([0.])
    """
    flat = _flattened("maps", np.asarray(maps))
    images, pixels = flat.shape
    number = count(fraction, pixels)
    cut = pixels - number if first == "most" else number  # position of the cut in ascending order
    shares = np.zeros(images)
    if 0 < cut < pixels:
        halves = np.partition(flat, (cut - 1, cut), axis=1)
        below, above = halves[:, cut - 1], halves[:, cut]
        shares = np.where(below == above, (flat == above[:, None]).mean(axis=1), 0.0)
    shares[np.isnan(flat).any(axis=1)] = np.nan
    return shares


def _packed_orders(values: NDArray[Any], keys: NDArray[Any]) -> NDArray[np.int64]:
    """Sorts one 64-bit number for each pixel: 32 bits of value, 16 of tie key, 16 of position.

    No two are equal, so any sorting algorithm gives the same answer, and NumPy's fastest is ten times as fast as its
    stable one.
    """
    bits = (values.astype(np.float32) + np.float32(0.0)).view(np.uint32)  # adding zero turns -0.0 into 0.0
    # The bits of floats grow with their magnitude: as they are for negative ones, turned round for the others.
    descending = bits ^ (((bits >> np.uint32(31)) - np.uint32(1)) & np.uint32(0x7FFFFFFF))
    packed = descending.astype(np.uint64) << np.uint64(32)
    packed |= keys.astype(np.uint64) << np.uint64(16)
    packed |= np.arange(values.shape[1], dtype=np.uint64)
    packed.sort(axis=1)
    return (packed & np.uint64(0xFFFF)).astype(np.int64)


def _stable_orders(values: NDArray[Any], keys: NDArray[Any]) -> NDArray[np.int64]:
    """The same order for large maps and wide types: a stable sort of the values laid out by falling tie key."""
    falling = np.broadcast_to(np.argsort(keys, axis=1, kind="stable")[:, ::-1], values.shape)
    laid_out = np.take_along_axis(values, falling, axis=1)
    ascending = np.argsort(laid_out, axis=1, kind="stable")
    return np.take_along_axis(falling, ascending[:, ::-1], axis=1)


def _checked_keys(ties: str, keys: NDArray[Any] | None, images: int, pixels: int) -> NDArray[Any]:
    if ties not in ("random", "index"):
        raise InputError(f"ties: {ties!r}{nearest(str(ties), ('random', 'index'))}")
    if ties == "index":
        if keys is not None:
            raise InputError("keys: given, but ties='index' takes none; leave them out or use ties='random'")
        return np.arange(pixels)[None]
    if keys is None:
        return tie_keys(0, [0], pixels)
    if keys.shape != (images, pixels):
        raise InputError(f"keys: shape {keys.shape}; expected {(images, pixels)}, one permutation for each map")
    if keys.size and (keys.min() < 0 or keys.max() >= pixels):
        raise InputError(f"keys: values from {keys.min()} to {keys.max()}; expected permutations of 0 to {pixels - 1}")
    return keys


def _cut_orders(orders: NDArray[Any] | Tensor, number: int, first: First) -> NDArray[np.bool_] | Tensor:
    start = 0 if first == "most" else orders.shape[1] - number
    chosen = orders[:, start : start + number]
    if isinstance(chosen, Tensor):
        return torch.zeros(orders.shape, dtype=torch.bool, device=chosen.device).scatter_(1, chosen, value=True)
    result = np.zeros(orders.shape, dtype=np.bool_)
    np.put_along_axis(result, chosen, True, axis=1)
    return result


def _flattened(name: str, maps: NDArray[Any]) -> NDArray[Any]:
    if maps.ndim < 2 or 0 in maps.shape[1:]:
        raise InputError(f"{name}: shape {maps.shape}; expected (N, H, W), at least one pixel")
    return maps.reshape(len(maps), math.prod(maps.shape[1:]))


def _check_finite(flat: NDArray[Any], size: tuple[int, ...]) -> None:
    if flat.dtype.kind != "f" or np.isfinite(flat).all():
        return
    image, pixel = np.argwhere(~np.isfinite(flat))[0].tolist()
    place = tuple(int(i) for i in np.unravel_index(pixel, size))
    raise MapError(f"maps[{image}]: {flat[image, pixel]} at pixel {place}; a map must be finite to be ranked")


def _rank_dtype(pixels: int) -> type[np.unsignedinteger[Any]]:
    return np.uint16 if pixels <= _SIXTEEN_BITS else np.uint32


def _blocks(images: int, pixels: int) -> Iterator[slice]:
    rows = max(1, _BLOCK // max(1, pixels))
    return (slice(start, start + rows) for start in range(0, images, rows))
