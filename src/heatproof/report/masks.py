"""What masks leave of pictures: the picture, its mask, and the picture masked."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.nn import functional

from heatproof import checks
from heatproof.report.overlay import jet_overlay, sheet

_PANEL = 96  # least side of a picture


def smooth(masks: NDArray[np.floating], size: tuple[int, int]) -> NDArray[np.float32]:
    """Masks (N, h, w) enlarged to (N, H, W), bilinear with half-pixel centres."""
    values = torch.from_numpy(np.asarray(masks, dtype=np.float32))[:, None]
    enlarged: NDArray[np.float32] = functional.interpolate(values, size=size, mode="bilinear")[:, 0].numpy()
    return enlarged


def mask_panels(pixels: NDArray[np.uint8], masks: NDArray[np.floating]) -> NDArray[np.uint8]:
    """For each picture, one above the other: the picture, the picture times its smooth mask, the mask in JET over the picture.

    Args:
        pixels: (N, H, W, 3).
        masks: (N, h, w), in [0, 1].

    Returns:
        (N, 3 H, W, 3).

    Reference:
        AngelosNal/Vision-DiffMask, the panels that its training logs.
    """
    sizes = checks.shapes("N H W 3", pixels=pixels)
    checks.shapes(f"{sizes['N']} h w", masks=masks)
    values = smooth(masks, (sizes["H"], sizes["W"]))
    masked = np.round(pixels * values[..., None]).astype(np.uint8)
    coloured = [jet_overlay(picture, mask) for picture, mask in zip(pixels, values, strict=True)]
    return np.concatenate([pixels, masked, np.stack(coloured)], axis=1)


def masks_sheet(pixels: NDArray[np.uint8], masks: NDArray[np.floating], fill: Sequence[float]) -> Image.Image:
    """Pictures below one another, beside each its mask, what the mask keeps and what it removes.

    Args:
        pixels: (N, H, W, 3).
        masks: (N, H, W), in [0, 1], 1 = kept.
        fill: colour of what is removed, one value for each channel in [0, 1].
    """
    shares = np.clip(masks, 0.0, 1.0)[..., None]
    colour = 255 * np.asarray(fill)
    columns = {
        "picture": pixels.astype(np.float64),
        "mask": np.broadcast_to(255 * shares, pixels.shape),
        "masked in": pixels * shares + colour * (1 - shares),
        "masked out": pixels * (1 - shares) + colour * shares,
    }
    width = pixels.shape[2]
    factor = -(-_PANEL // width)
    panels = []
    for name, values in columns.items():
        strip = np.round(values).astype(np.uint8).reshape(-1, width, 3)
        panels.append((name, strip.repeat(factor, axis=0).repeat(factor, axis=1)))
    return sheet(panels)
