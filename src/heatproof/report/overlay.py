"""A map over its picture, and several of them side by side. Drawn with Pillow alone: no display is needed."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from heatproof import checks
from heatproof.report.pictures import DIVERGING, SEQUENTIAL, palette, scaled

Colour = Literal["perceptual", "jet"]

_OPACITY = 0.6  # of the colours over the picture
_PANEL = 240  # least side of a picture in a sheet
_MARGIN = 8
_TITLE = 20


def overlay(
    pixels: NDArray[np.uint8], values: NDArray[np.floating], colour: Colour = "perceptual"
) -> NDArray[np.uint8]:
    """A map in colours over its picture.

    Args:
        pixels: (H, W, 3).
        values: (H, W), finite.
        colour: "perceptual": colours whose lightness grows with the value, from the map's smallest to its largest; for maps
            with negative values a diverging scale centred at zero. "jet": `jet_overlay` of the map divided by its maximum,
            negative values as 0.

    Returns:
        (H, W, 3) uint8.
    """
    checks.shapes("H W 3", pixels=pixels)
    checks.shapes(f"{pixels.shape[0]} {pixels.shape[1]}", values=values)
    if colour == "jet":
        positive = np.maximum(values, 0.0)
        return jet_overlay(pixels, positive / (positive.max() or 1.0))
    signed = bool((values < 0).any())
    table = np.frombuffer(palette(DIVERGING if signed else SEQUENTIAL), dtype=np.uint8).reshape(256, 3)
    colours = table[np.round(255 * scaled(values, signed=signed)).astype(np.uint8)]
    # A grey picture below, so that its own colours are not taken for the map's.
    grey = (pixels.astype(np.float64) * (0.299, 0.587, 0.114)).sum(axis=-1)
    mixed: NDArray[np.uint8] = np.round(_OPACITY * colours + (1 - _OPACITY) * grey[:, :, None]).astype(np.uint8)
    return mixed


def jet_table() -> NDArray[np.uint8]:
    """The JET colours as OpenCV has them, (256, 3) red, green, blue; matplotlib's differ by up to 34 levels.

    Colour i is clip(1.5 - |4 i / 255 - c|, 0, 1) with c = 3, 2, 1 for red, green, blue, in 255ths, halves rounded to even.

    >>> jet_table()[[0, 255]].tolist()
    [[0, 0, 128], [128, 0, 0]]
    """
    # All values are whole numbers and a half: taken times 255 before the difference, the arithmetic is exact.
    distances = np.abs(4 * np.arange(256)[:, None] - 255 * np.array([3, 2, 1]))
    table: NDArray[np.uint8] = np.round(np.clip(1.5 * 255 - distances, 0, 255)).astype(np.uint8)
    table[159, 2] = 1  # the one constant in OpenCV's source that lies below its half
    return table


def jet_overlay(pixels: NDArray[np.uint8], values: NDArray[np.floating]) -> NDArray[np.uint8]:
    """The overlay of vit-explain: colour plus picture, divided by the largest value of the sum.

    Args:
        pixels: (H, W, 3).
        values: (H, W), in [0, 1].

    Returns:
        (H, W, 3) uint8.

    Reference:
        jacobgil/vit-explain, `show_mask_on_image`.
    """
    places = (255 * values.astype(np.float32)).astype(np.uint8)
    # float32 as there: the last step rounds down, so that the exact type decides.
    total = jet_table()[places].astype(np.float32) / np.float32(255) + (pixels / 255).astype(np.float32)
    drawn: NDArray[np.uint8] = (255 * (total / total.max())).astype(np.uint8)
    return drawn


def sheet(panels: Sequence[tuple[str, NDArray[np.uint8]]]) -> Image.Image:
    """Pictures of one size side by side, a title above each.

    Args:
        panels: title and picture (H, W, 3).
    """
    height, width = panels[0][1].shape[:2]
    factor = max(1, -(-_PANEL // max(height, width)))  # small pictures are enlarged by repetition
    height, width = factor * height, factor * width
    step = width + _MARGIN
    drawn = Image.new("RGB", (_MARGIN + step * len(panels), height + _TITLE + 2 * _MARGIN), "white")
    pen, font = ImageDraw.Draw(drawn), ImageFont.load_default(13)
    for place, (title, pixels) in enumerate(panels):
        left = _MARGIN + place * step
        pen.text((left, _MARGIN), title, fill="black", font=font)
        picture = Image.fromarray(pixels).resize((width, height), Image.Resampling.NEAREST)
        drawn.paste(picture, (left, _MARGIN + _TITLE))
    return drawn
