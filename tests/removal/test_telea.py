"""Telea's inpainting: known truths."""

import numpy as np
import torch

from heatproof.removal import Telea


def test_a_slope_goes_on_into_a_hole_at_its_rim():
    rows, columns = torch.meshgrid(torch.arange(20.0), torch.arange(24.0), indexing="ij")
    pixels = ((2 * rows + columns) / 80)[None, None]
    removed = torch.zeros(1, 20, 24, dtype=torch.bool)
    removed[0, 5:12, 8:15] = True
    torch.testing.assert_close(Telea((0.5,))(pixels, removed), pixels, rtol=0, atol=1e-5)


def test_a_mirrored_image_is_filled_mirrored():
    rng = np.random.default_rng(1)
    pixels = torch.from_numpy(rng.random((2, 3, 15, 18), dtype=np.float32))
    removed = torch.from_numpy(rng.random((2, 15, 18)) < 0.6)
    fill = Telea((0.5,))
    for axis in (-1, -2):
        mirrored = fill(pixels.flip(axis), removed.flip(axis)).flip(axis)
        torch.testing.assert_close(mirrored, fill(pixels, removed), rtol=0, atol=1e-5)


def test_a_hole_takes_the_colour_of_its_side():
    pixels = torch.zeros(1, 1, 16, 32)
    pixels[..., 16:] = 1.0
    removed = torch.zeros(1, 16, 32, dtype=torch.bool)
    removed[0, :, 11:21] = True
    filled = Telea((0.5,))(pixels, removed)[0, 0]
    assert (filled[:, :15] < 0.2).all()
    assert (filled[:, 17:] > 0.8).all()


def test_what_is_removed_as_a_whole_gets_the_mean():
    filled = Telea((0.2, 0.4, 0.6))(torch.zeros(1, 3, 5, 6), torch.ones(1, 5, 6, dtype=torch.bool))
    assert torch.equal(filled, torch.tensor([0.2, 0.4, 0.6]).view(1, 3, 1, 1).expand(1, 3, 5, 6))
