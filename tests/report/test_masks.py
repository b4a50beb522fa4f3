"""Panels of masked pictures, as the published training of DiffMask logs them."""

from pathlib import Path

import numpy as np

from heatproof.report.masks import mask_panels, smooth

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "diffmask" / "viz.npz")


def test_masks_are_enlarged_as_published():
    found = smooth(GOLDEN["patch_masks"], (48, 48))
    np.testing.assert_allclose(found, GOLDEN["smooth"], atol=1e-5)
    np.testing.assert_allclose(100 * (1 - found.mean(axis=(1, 2))), GOLDEN["masking_percent"], atol=1e-4)
    unnormalized = GOLDEN["images"] * 0.5 + 0.5
    np.testing.assert_allclose(unnormalized, GOLDEN["unnormalized"], atol=1e-6)
    np.testing.assert_allclose(unnormalized * found[:, None], GOLDEN["masked"], atol=1e-5)


def test_panels_are_picture_over_masked_picture_over_heat_map():
    pixels = np.round(255 * GOLDEN["unnormalized"].transpose(0, 2, 3, 1)).astype(np.uint8)
    panels = mask_panels(pixels, GOLDEN["patch_masks"])
    expected = GOLDEN["panel"].transpose(0, 2, 3, 1)
    assert panels.shape == expected.shape
    # The pictures were rounded to 8 bits, and so are the panels.
    assert np.abs(panels / 255 - expected).max() < 2 / 255
