"""How near a filled image comes to the one that was there.

Each function takes a whole batch of NumPy arrays and returns one float64 for each image.
"""

import numpy as np
from numpy.typing import NDArray

from heatproof import checks
from heatproof.metrics.agreement import ssim


def psnr_in_holes(
    filled: NDArray[np.floating], pixels: NDArray[np.floating], removed: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """Peak signal-to-noise ratio over the removed pixels, in decibels; higher is better.

    -10 log10 of the mean squared difference over all channels of the pixels that are True in `removed`.

    Args:
        filled: (N, C, H, W) in [0, 1].
        pixels: (N, C, H, W) in [0, 1], the originals.
        removed: (N, H, W), True in a hole.

    Returns:
        (N,), infinite for a perfect answer; NaN where nothing is removed.

    >>> pixels, removed = np.zeros((1, 1, 2, 2)), np.array([[[True, False], [False, False]]])
    >>> psnr_in_holes(pixels + 0.1, pixels, removed).round(6)
    array([20.])
    """
    checks.shapes("N C H W", filled=filled, pixels=pixels)
    checks.shapes("N H W", removed=removed)
    squares = np.where(removed[:, None], (filled - pixels).astype(np.float64) ** 2, 0.0).sum(axis=(1, 2, 3))
    counts = removed.sum(axis=(1, 2)) * pixels.shape[1]
    with np.errstate(divide="ignore", invalid="ignore"):
        decibels: NDArray[np.float64] = -10 * np.log10(squares / counts)
    return decibels


def picture_ssim(filled: NDArray[np.floating], pixels: NDArray[np.floating]) -> NDArray[np.float64]:
    """Structural similarity of pictures in [0, 1], mean over channels; higher is better.

    Over the whole picture: what is kept of it is equal in both and counts as such. Windows of 5 x 5 pixels, or of 3 x 3
    in pictures of less.

    Args:
        filled: (N, C, H, W).
        pixels: (N, C, H, W), the originals.

    Returns:
        (N,), 1 for equal pictures.

    Reference:
        Wang et al., IEEE Transactions on Image Processing 13 (2004); see `heatproof.metrics.agreement.ssim`.

    >>> pixels = np.linspace(0, 1, 75).reshape(1, 3, 5, 5)
    >>> picture_ssim(pixels, pixels).round(6), bool(picture_ssim(1 - pixels, pixels)[0] < 0)
    (array([1.]), True)
    """
    images, channels, height, width = checks.shapes("N C H W", filled=filled, pixels=pixels).values()
    flat = (images * channels, height, width)
    window = 5 if min(height, width) >= 5 else 3
    found = ssim(filled.reshape(flat), pixels.reshape(flat), data_range=1.0, window=window)
    means: NDArray[np.float64] = found.reshape(images, channels).mean(axis=1)
    return means
