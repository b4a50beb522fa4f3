from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from torch import nn

from heatproof import removal
from heatproof.errors import InputError, PluginError
from heatproof.removal import FILLS, impute_linear, linear

MEAN, OTHER = (0.2, 0.5, 0.7), (0.4, 0.1, 0.9)
ALL_FILLS = {name: removal.build_fill(name, mean=MEAN, normalization_mean=OTHER, seed=3) for name in FILLS}
per_fill = pytest.mark.parametrize("fill", ALL_FILLS.values(), ids=ALL_FILLS)


def batch(images=4, channels=3, size=(7, 9), seed=0):
    """Random pixels and masks of all densities; the first image loses nothing, the last one everything."""
    rng = np.random.default_rng(seed)
    densities = np.linspace(0, 1, images)[:, None, None]
    removed = rng.random((images, *size)) < densities
    return torch.from_numpy(rng.random((images, channels, *size), dtype=np.float32)), torch.from_numpy(removed)


# --- all fills


@per_fill
@given(st.integers(0, 10_000))
@settings(max_examples=8, deadline=None)
def test_kept_pixels_are_bit_for_bit_what_they_were(fill, seed):
    pixels, removed = batch(seed=seed)
    before = pixels.clone(), removed.clone()
    filled = fill(pixels, removed, np.arange(4))
    kept = ~removed[:, None].expand_as(pixels)
    assert torch.equal(filled[kept], before[0][kept])
    assert torch.equal(pixels, before[0])
    assert torch.equal(removed, before[1])
    assert filled.dtype == torch.float32
    assert filled.data_ptr() != pixels.data_ptr()


@per_fill
def test_every_channel_of_a_removed_pixel_changes(fill):
    # A published library once changed the red channel only.
    pixels, removed = batch()
    changed = fill(pixels, removed, np.arange(4)) != pixels
    np.testing.assert_array_equal(changed, removed[:, None].expand_as(pixels))


@per_fill
def test_a_batch_is_filled_like_its_images(fill):
    pixels, removed = batch(6)
    indices = np.array([5, 0, 3, 3, 8, 1])
    together = fill(pixels, removed, indices)
    alone = [fill(pixels[i : i + 1], removed[i : i + 1], indices[i : i + 1]) for i in range(6)]
    torch.testing.assert_close(together, torch.cat(alone), rtol=0, atol=1e-6)


@per_fill
def test_without_indices_a_batch_is_filled_like_its_images(fill):
    pixels, removed = batch(3)
    alone = [fill(pixels[i : i + 1], removed[i : i + 1]) for i in range(3)]
    torch.testing.assert_close(fill(pixels, removed), torch.cat(alone), rtol=0, atol=1e-6)


@per_fill
def test_the_same_image_is_filled_the_same_twice(fill):
    pixels, removed = batch(2)
    assert torch.equal(fill(pixels, removed, [1, 2]), fill(pixels, removed, [1, 2]))


@per_fill
def test_single_features_can_be_removed(fill):
    pixels, _ = batch(3)
    removed = torch.rand(pixels.shape, generator=torch.Generator().manual_seed(0)) < 0.4
    changed = fill(pixels, removed) != pixels
    np.testing.assert_array_equal(changed, removed)
    whole = removed[:, :1].expand_as(removed)
    torch.testing.assert_close(fill(pixels, whole), fill(pixels, removed[:, 0]), rtol=0, atol=1e-6)


@per_fill
def test_bytes_are_filled_as_floats(fill):
    pixels, removed = batch()
    stored = (pixels * 255).round().to(torch.uint8)
    assert torch.equal(fill(stored, removed), fill(stored.float() / 255, removed))


@pytest.mark.parametrize("fill", [f for f in ALL_FILLS.values() if isinstance(f, removal.Replacing)], ids=repr)
def test_a_replacement_does_not_know_the_mask(fill):
    pixels, removed = batch()
    everything = torch.ones_like(removed)
    whole = fill(pixels, everything, np.arange(4))
    assert torch.equal(fill.replacement(pixels, np.arange(4)).expand_as(pixels), whole)
    expected = torch.where(removed[:, None], whole, pixels)
    assert torch.equal(fill(pixels, removed, np.arange(4)), expected)


@per_fill
def test_no_image_at_all_is_legal(fill):
    assert fill(torch.empty(0, 3, 4, 4), torch.empty(0, 4, 4, dtype=torch.bool)).shape == (0, 3, 4, 4)


# --- each on its own


@pytest.mark.parametrize(
    ("name", "colour"),
    [("mean", MEAN), ("zero_normalised", OTHER), ("black", (0, 0, 0))],
    ids=["mean", "zero", "black"],
)
def test_constant_fills(name, colour):
    pixels, removed = batch()
    filled = ALL_FILLS[name](pixels, removed)
    for channel in range(3):
        assert (filled[:, channel][removed] == np.float32(colour[channel])).all()


def test_zero_normalised_is_zero_for_the_model():
    pixels, removed = batch()
    mean, std = torch.tensor(OTHER).view(1, 3, 1, 1), 0.3
    images = (ALL_FILLS["zero_normalised"](pixels, removed) - mean) / std
    assert (images.transpose(0, 1)[:, removed] == 0).all()


@pytest.mark.parametrize("size", [(40, 24), (24, 40)])
def test_blur_is_scipys_gaussian_of_a_size_that_grows_with_the_image(size):
    pixels, _ = batch(2, size=size)
    blurred = removal.Blur(sigma=0.05).replacement(pixels)
    expected = ndimage.gaussian_filter(pixels.numpy().astype(float), sigma=(0, 0, 2, 2), mode="reflect")
    np.testing.assert_allclose(blurred, expected, atol=1e-6)


def test_blur_keeps_a_plain_image_also_at_its_border():
    plain = torch.full((1, 1, 6, 30), 0.25)
    torch.testing.assert_close(removal.Blur(sigma=0.5).replacement(plain), plain)


def test_noise_belongs_to_the_image_not_to_the_batch_or_the_fraction():
    pixels, removed = batch(3)
    noise = removal.Noise(seed=1)
    everything = torch.ones_like(removed)
    whole = noise(pixels, everything, [4, 5, 4])
    assert torch.equal(whole[0], whole[2])
    assert not torch.equal(whole[0], whole[1])
    assert not torch.equal(whole[0], whole[0].roll(1, dims=0))
    assert torch.equal(
        noise(pixels, removed, [4, 5, 4])[removed[:, None].expand_as(pixels)], whole[removed[:, None].expand_as(pixels)]
    )
    assert not torch.equal(whole, removal.Noise(seed=2)(pixels, everything, [4, 5, 4]))
    assert 0 <= whole.min() < 0.05 < 0.95 < whole.max() < 1


# --- ROAD's imputation

MASKS = ["rand10", "rand50", "rand90", "block", "top_rows", "corner_single", "one_known"]


@pytest.mark.parametrize("mask", MASKS)
def test_imputation_is_roads(golden, mask):
    data = golden("road_imputation")
    removed = torch.from_numpy(data[f"mask_{mask}"] == 0)[None]
    imputed = impute_linear(torch.from_numpy(data["img"])[None], removed)
    np.testing.assert_allclose(imputed[0], data[f"lin0_{mask}"], atol=2e-7)


def test_all_golden_masks_in_one_batch_are_imputed_as_alone(golden):
    data = golden("road_imputation")
    removed = torch.from_numpy(np.stack([data[f"mask_{mask}"] == 0 for mask in MASKS]))
    imputed = impute_linear(torch.from_numpy(data["img"]).expand(len(MASKS), -1, -1, -1), removed)
    np.testing.assert_allclose(imputed, np.stack([data[f"lin0_{mask}"] for mask in MASKS]), atol=2e-7)


def test_imputation_with_roads_noise(golden):
    data = golden("road_imputation")
    removed = torch.from_numpy(data["mask_rand50"] == 0)[None]
    draws = torch.zeros(1, 3, 12, 9)
    draws[:, :, removed[0]] = torch.from_numpy(data["noise_rand50"])
    imputed = impute_linear(torch.from_numpy(data["img"])[None], removed, 0.1, draws=draws)
    np.testing.assert_allclose(imputed[0], data["lin_noise0.1_rand50"], atol=1e-6)


@pytest.mark.parametrize(("how", "name"), [("image_mean", "mean_rand50"), ("black", "zero_rand50")])
def test_roads_other_fills(golden, how, name):
    data = golden("road_imputation")
    filled = removal.fill(data["img"][None], data["mask_rand50"][None] == 0, how)
    np.testing.assert_allclose(filled[0], data[name], atol=1e-6)


def test_imputed_pixels_worked_by_hand():
    image = torch.arange(1.0, 10.0).reshape(1, 1, 3, 3)
    for holes, values in (
        ([(1, 1)], [5.0]),
        ([(0, 0)], [3.4]),
        ([(1, 1), (1, 2)], [4.9130435, 5.4782610]),
    ):
        removed = torch.zeros(1, 3, 3, dtype=torch.bool)
        removed[0][tuple(zip(*holes, strict=True))] = True
        np.testing.assert_allclose(impute_linear(image, removed)[0, 0][removed[0]], values, atol=1e-6)


def residual(filled, removed):
    """What is left of the system at the removed pixels: weighted differences to the neighbours inside the image."""
    kernel = torch.tensor([[1, 2, 1], [2, 0, 2], [1, 2, 1]], dtype=torch.float64) / 12
    channels = filled.double().flatten(0, 1)[:, None]
    sums = nn.functional.conv2d(channels, kernel[None, None], padding=1)
    weights = nn.functional.conv2d(torch.ones_like(channels), kernel[None, None], padding=1)
    return ((weights * channels - sums).view(filled.shape) * removed[:, None]).abs().max()


@pytest.mark.parametrize("size", [(1, 1), (1, 8), (2, 3), (63, 70), (64, 64), (97, 65), (130, 71)])
@pytest.mark.parametrize("share", [0.05, 0.5, 0.97])
@pytest.mark.parametrize("solve", [linear.by_elimination, linear.by_conjugate_gradients])
def test_imputation_solves_its_system_at_any_size(size, share, solve):
    # Both compact and scattered holes; from 64 pixels on, the solver also corrects at coarser scales.
    rng = np.random.default_rng(0)
    pixels = torch.from_numpy(rng.random((2, 2, *size)))
    pixels[:, 0] = 0.5  # solved at once: the other channel must be waited for
    maps = np.stack([rng.random(size), ndimage.gaussian_filter(rng.random(size), 6) + 1e-9 * rng.random(size)])
    removed = torch.from_numpy(removal.removed(removal.ranks(removal.orders(maps), size), share))
    holes = removed[:, None].expand(-1, 2, -1, -1)
    imputed = torch.where(holes, solve(pixels, holes, torch.zeros(1, 2, 1, 1)), pixels)
    assert residual(imputed, removed) < 2e-6


def test_both_solvers_agree_where_each_channel_has_its_own_holes():
    rng = np.random.default_rng(1)
    pixels, holes = torch.from_numpy(rng.random((3, 3, 20, 17))), torch.from_numpy(rng.random((3, 3, 20, 17)) < 0.6)
    found = [
        solve(pixels, holes, torch.zeros(1, 3, 1, 1))
        for solve in (linear.by_elimination, linear.by_conjugate_gradients)
    ]
    torch.testing.assert_close(found[0][holes], found[1][holes], rtol=0, atol=1e-5)


def test_a_plain_image_is_imputed_by_its_colour():
    removed = torch.zeros(1, 20, 20, dtype=torch.bool)
    removed[0, 3:15, 4:19] = True
    plain = torch.tensor([0.0, 0.3, 1.0]).view(1, 3, 1, 1).expand(1, 3, 20, 20)
    torch.testing.assert_close(impute_linear(plain, removed), plain.contiguous(), rtol=0, atol=1e-6)


def test_where_nothing_is_left_the_imputation_is_the_mean():
    pixels, removed = batch(3)
    filled = removal.NoisyLinear(MEAN, noise=0.0)(pixels, removed)
    assert removed[2].all()
    np.testing.assert_allclose(filled[2], np.broadcast_to(np.float32(MEAN)[:, None, None], (3, 7, 9)), atol=1e-7)
    with pytest.raises(InputError, match="an image is removed as a whole"):
        impute_linear(pixels, removed)


def test_imputation_noise_has_the_asked_size_and_differs_between_channels():
    pixels = torch.full((1, 3, 40, 40), 0.5)
    removed = torch.ones(1, 40, 40, dtype=torch.bool)
    noise = removal.NoisyLinear((0.5,), noise=0.1, seed=2)(pixels, removed, [7]) - 0.5
    assert abs(noise.std().item() - 0.1) < 0.005
    assert abs(np.corrcoef(noise[0].flatten(1))[0, 1]) < 0.1
    other = removal.NoisyLinear((0.5,), noise=0.1, seed=2)(pixels, removed, [8]) - 0.5
    assert abs(np.corrcoef(noise.flatten(), other.flatten())[0, 1]) < 0.1


# --- by name


@dataclass(frozen=True)
class Fixed:
    """A user's fill."""

    value: float
    mean: tuple[float, ...]

    def __call__(self, pixels, removed, indices=None):
        return torch.where(removed[:, None], self.value + self.mean[0], pixels)


def careless(pixels, removed, indices, value=0.5):
    """A user's function: spoils what it gets, and paints over everything."""
    removed[:] = True
    pixels[:] = value + torch.as_tensor(indices).view(-1, 1, 1, 1)
    return pixels


def test_a_fill_of_the_users_own():
    fill = removal.build_fill(f"{__name__}.Fixed", mean=MEAN, seed=0, value=0.5)
    assert fill == Fixed(0.5, MEAN)


def test_a_users_function_can_spoil_neither_kept_pixels_nor_the_callers_tensors():
    pixels, removed = batch(3)
    before = pixels.clone(), removed.clone()
    filled = removal.build_fill(f"{__name__}.careless", value=0.25)(pixels, removed, [1, 2, 3])
    assert torch.equal(pixels, before[0])
    assert torch.equal(removed, before[1])
    expected = torch.where(removed[:, None], torch.tensor([1.25, 2.25, 3.25]).view(3, 1, 1, 1), pixels)
    assert torch.equal(filled, expected)


def test_fill_takes_a_name_with_options_or_a_finished_fill():
    pixels, removed = batch()
    by_name = removal.fill(pixels, removed, "mean", mean=np.array(MEAN))
    assert torch.equal(by_name, removal.fill(pixels.numpy(), removed.numpy(), removal.Mean(MEAN)))
    assert torch.equal(removal.fill(pixels, removed, "blur", sigma=0.1), removal.Blur(0.1)(pixels, removed))


@pytest.mark.parametrize(
    ("error", "call", "message"),
    [
        (PluginError, lambda: removal.build_fill("imagemeen"), "fill: there is no 'imagemeen'; did you mean 'image_mean'"),
        (PluginError, lambda: removal.build_fill("mean"), "mean: option 'mean' is missing"),
        (PluginError, lambda: removal.build_fill("blur", sigam=1), "blur: unknown option 'sigam'; did you mean 'sigma'"),
        (PluginError, lambda: removal.build_fill("no.such_fill"), "no.such_fill: there is no module 'no'"),
        (PluginError, lambda: removal.build_fill(f"{__name__}.careless", indices=1), "unknown option 'indices'"),
        (InputError, lambda: removal.Blur(0.0), "sigma: 0.0 must be above 0"),
        (InputError, lambda: removal.fill(*batch(), removal.Black(), mean=MEAN), r"options \['mean'\] given beside"),
        (InputError, lambda: removal.Mean((0.1, 0.2))(*batch()), "has 2 values; the pixels have 3 channels"),
        (InputError, lambda: removal.Noise()(*batch(), [1, 2]), r"indices: shape \(2,\); expected \(4,\)"),
        (InputError, lambda: removal.Black()(batch()[0], batch()[1].float()), "removed: torch.float32; expected bool"),
        (InputError, lambda: removal.Black()(batch()[0], batch()[1][:, :5]), r"removed: shape \(4, 1, 5, 9\)"),
        (InputError, lambda: removal.Black()(batch()[0].int(), batch()[1]), "pixels: torch.int32; expected float"),
    ],
)  # fmt: skip
def test_messages(error, call, message):
    with pytest.raises(error, match=message):
        call()
