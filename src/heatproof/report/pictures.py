"""Images and maps as small PNG pictures inside the page."""

import base64
import io
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from heatproof.models.probabilities import Kind, probabilities

LARGEST_SIDE = 160
"""Pictures are scaled down to this many pixels a side; smaller ones stay as they are and the browser enlarges them."""
SEQUENTIAL = "inferno"
DIVERGING = "RdBu_r"


def choice(labels: NDArray[np.int64], predictions: NDArray[np.int64], wanted: int) -> list[int]:
    """Positions of images for a gallery: about a third wrongly classified, where there are so many, and all classes in turn.

    Args:
        labels: (N,) true classes.
        predictions: (N,) the classifier's.
        wanted: how many.

    Returns:
        Positions in growing order, the right ones first; the same for the same arguments.

    >>> choice(np.array([0, 0, 1, 1, 1, 0]), np.array([0, 1, 1, 1, 1, 0]), 3)
    [0, 2, 1]
    """
    right = _in_turn(labels, np.flatnonzero(labels == predictions))
    wrong = _in_turn(labels, np.flatnonzero(labels != predictions))
    few = min(len(wrong), max(wanted // 3, wanted - len(right)))
    return [*sorted(right[: wanted - few]), *sorted(wrong[:few])]


def _in_turn(labels: NDArray[np.int64], positions: NDArray[np.int64]) -> list[int]:
    """Positions sorted so that each class has its first one before any has its second."""
    seen: dict[int, int] = {}
    turns = []
    for position in positions.tolist():
        label = int(labels[position])
        turns.append((seen.setdefault(label, 0), label, position))
        seen[label] += 1
    return [position for _, _, position in sorted(turns)]


def confidence(logits: NDArray[np.floating], kind: Kind = "softmax") -> NDArray[np.float64]:
    """The classifier's probability of its own prediction, from its logits (N, K): (N,).

    >>> confidence(np.array([[0.0, 0.0]]))
    array([0.5])
    """
    found: NDArray[np.float64] = probabilities(torch.from_numpy(logits).double(), kind).amax(dim=1).numpy()
    return found


def photograph(pixels: NDArray[np.uint8]) -> str:
    """A data URI of an image (H, W, C)."""
    image = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    return _data_uri(_small(image))


def map_picture(values: NDArray[np.float32], *, signed: bool) -> str:
    """A data URI of a map (H, W) in colours.

    Args:
        values: finite, or all NaN for an invalid map, which becomes grey.
        signed: diverging colours centred at zero; else from the smallest value (dark) to the largest (bright).
    """
    if not np.isfinite(values).all():
        return _data_uri(Image.new("L", values.shape[::-1], 128))
    image = _small(Image.fromarray(np.round(255 * scaled(values, signed=signed)).astype(np.uint8)))
    image.putpalette(palette(DIVERGING if signed else SEQUENTIAL))
    return _data_uri(image)


def scaled(values: NDArray[np.floating], *, signed: bool) -> NDArray[np.floating]:
    """A map's place on a scale of colours, in [0, 1]: 0.5 is zero where signed, else from its smallest to its largest value.

    >>> scaled(np.array([[-1.0, 0.0, 2.0]]), signed=True)
    array([[0.25, 0.5 , 1.  ]])
    """
    if signed:
        largest = float(np.abs(values).max()) or 1.0
        places = 0.5 + values / (2 * largest)
    else:
        low, high = float(values.min()), float(values.max())
        places = (values - low) / ((high - low) or 1.0)
    clipped: NDArray[np.floating] = np.clip(places, 0, 1)
    return clipped


def gradient(*, signed: bool) -> tuple[str, ...]:
    """Nine colours from one end of a scale to the other, for a legend."""
    table = np.frombuffer(palette(DIVERGING if signed else SEQUENTIAL), dtype=np.uint8).reshape(256, 3)
    return tuple("#" + bytes(table[place]).hex() for place in np.linspace(0, 255, 9).round().astype(int))


def outline(region: NDArray[np.bool_]) -> str:
    """An SVG path along the edges between a region's pixels and the others, in units of pixels.

    >>> outline(np.array([[True]]))
    'M0 0H1M0 1H1M0 0V1M1 0V1'
    """
    padded = np.pad(region, 1)
    height, width = padded.shape
    pieces = []
    for y in range(1, height):
        pieces += [f"M{a} {y - 1}H{b}" for a, b in _runs(padded[y, 1:-1] != padded[y - 1, 1:-1])]
    for x in range(1, width):
        pieces += [f"M{x - 1} {a}V{b}" for a, b in _runs(padded[1:-1, x] != padded[1:-1, x - 1])]
    return "".join(pieces)


def _runs(is_edge: NDArray[np.bool_]) -> Sequence[tuple[int, int]]:
    """First and last corner of each unbroken stretch."""
    steps = np.diff(np.concatenate(([0], is_edge.astype(np.int8), [0])))
    return list(zip(np.flatnonzero(steps == 1).tolist(), np.flatnonzero(steps == -1).tolist(), strict=True))


def palette(name: str) -> bytes:
    """The 256 colours of one of matplotlib's scales: red, green and blue of each, one byte for each."""
    import matplotlib as mpl

    table = mpl.colormaps[name](np.arange(256))[:, :3]
    return np.round(255 * table).astype(np.uint8).tobytes()


def _small(image: Image.Image) -> Image.Image:
    scale = LARGEST_SIDE / max(image.size)
    if scale >= 1:
        return image
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, Image.Resampling.BOX)


def _data_uri(image: Image.Image) -> str:
    written = io.BytesIO()
    image.save(written, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(written.getvalue()).decode()
