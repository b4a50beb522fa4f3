"""Overlays: JET as vit-explain and OpenCV draw it, to the byte; scales that tell signs apart."""

from pathlib import Path

import numpy as np
import pytest
import torch

from heatproof.errors import InputError
from heatproof.methods.cam import to_image_size
from heatproof.report.overlay import jet_overlay, jet_table, overlay, sheet

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "vit" / "vit_explain_overlay.npz")


def test_the_table_of_jet_is_opencv_s():
    np.testing.assert_array_equal(jet_table()[:, ::-1], GOLDEN["jet_bgr"])


@pytest.mark.parametrize(
    ("picture", "values", "drawn"),
    [("rgb", "mask_resized", "overlay_bgr"), ("rgb_dark", "mask_dark", "overlay_dark_bgr")],
)
def test_the_jet_overlay_is_the_published_one(picture, values, drawn):
    np.testing.assert_array_equal(jet_overlay(GOLDEN[picture], GOLDEN[values])[:, :, ::-1], GOLDEN[drawn])


def test_a_map_is_enlarged_as_opencv_does():
    small, large = torch.from_numpy(GOLDEN["mask_small"])[None], torch.zeros(1, 3, *GOLDEN["mask_resized"].shape)
    np.testing.assert_allclose(to_image_size(small, large)[0], GOLDEN["mask_resized"], rtol=0, atol=1e-6)


def test_in_jet_a_map_is_divided_by_its_maximum_and_a_map_of_nothing_is_blue():
    pixels = np.full((2, 2, 3), 100, dtype=np.uint8)
    values = np.array([[0.5, 2.0], [-1.0, 0.0]])
    np.testing.assert_array_equal(
        overlay(pixels, values, "jet"), jet_overlay(pixels, np.array([[0.25, 1.0], [0.0, 0.0]]))
    )
    blue = overlay(pixels, np.zeros((2, 2)), "jet")
    assert (blue[:, :, 2] > blue[:, :, 0]).all()


def test_by_default_lightness_grows_with_the_value_and_zero_of_a_signed_map_has_no_hue():
    pixels = np.full((1, 256, 3), 128, dtype=np.uint8)
    lightness = overlay(pixels, np.linspace(0, 7, 256)[None]).astype(float) @ (0.299, 0.587, 0.114)
    assert (np.diff(lightness[0, ::16]) > 0).all()
    negative, zero, positive = overlay(pixels[:, :3], np.array([[-1.0, 0.0, 1.0]]))[0].astype(int)
    assert negative[2] > negative[0]
    assert positive[0] > positive[2]
    assert np.ptp(zero) < 8


def test_a_map_of_another_size_is_refused():
    with pytest.raises(InputError, match="values"):
        overlay(np.zeros((2, 3, 3), dtype=np.uint8), np.zeros((3, 2)))


def test_a_sheet_shows_its_pictures_unchanged_and_large_enough():
    rng = np.random.default_rng(0)
    panels = [("a", rng.integers(0, 256, (8, 10, 3), dtype=np.uint8)), ("b", np.zeros((8, 10, 3), dtype=np.uint8))]
    drawn = np.asarray(sheet(panels))
    assert drawn.shape[1] > 2 * 240
    np.testing.assert_array_equal(drawn[28 + 12 : 28 + 192 : 24, 8 + 12 : 8 + 240 : 24], panels[0][1])
