"""Nearness of filled images: values by hand, and pictures of any size."""

import numpy as np
import pytest

from heatproof.metrics import agreement
from heatproof.metrics.reconstruction import picture_ssim, psnr_in_holes


def test_psnr_counts_the_removed_pixels_of_each_image_alone():
    pixels = np.full((3, 2, 4, 4), 0.5)
    filled = pixels.copy()
    filled[:, :, 0, 0] += 0.1  # a hole
    filled[:, :, 3, 3] += 0.3  # kept: what differs there is no fill's fault
    filled[1, 0, 0, 0] -= 0.1
    removed = np.zeros((3, 4, 4), dtype=bool)
    removed[:2, 0, 0] = True
    found = psnr_in_holes(filled, pixels, removed)
    assert found[:2] == pytest.approx([20.0, -10 * np.log10(0.01 / 2)])
    assert np.isnan(found[2])
    assert psnr_in_holes(pixels, pixels, removed)[0] == np.inf


@pytest.mark.parametrize(("size", "window"), [((3, 7), 3), ((4, 4), 3), ((5, 9), 5), ((8, 8), 5)])
def test_ssim_of_pictures_is_the_mean_over_channels_and_small_ones_have_small_windows(size, window):
    rng = np.random.default_rng(0)
    pixels = rng.random((2, 3, *size))
    filled = np.clip(pixels + rng.normal(0, 0.1, pixels.shape), 0, 1)
    channels = [agreement.ssim(filled[:, c], pixels[:, c], data_range=1.0, window=window) for c in range(3)]
    assert picture_ssim(filled, pixels) == pytest.approx(np.mean(channels, axis=0))
    assert picture_ssim(pixels, pixels) == pytest.approx(1.0)
