"""What a mask of patches leaves of a picture: the picture, the picture masked, and the mask in colours over it."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from heatproof import checks
from heatproof.report.overlay import jet_overlay


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
