"""RISE's insertion and deletion by our forward passes: golden vectors of the authors' code on the tiny network."""

import numpy as np
import pytest
import torch

from heatproof import removal
from heatproof.errors import InputError
from heatproof.metrics.insertion_deletion import insertion_deletion_auc
from heatproof.models import Normalization


@pytest.fixture(scope="module")
def rise(golden):
    return golden("rise_causal")


@pytest.fixture(scope="module")
def pixels_and_normalization(tinycnn):
    data = tinycnn[1]
    return torch.from_numpy(data["x_uint8"]), Normalization(tuple(data["mean"]), tuple(data["std"]))


def test_the_start_image_is_rises(rise, pixels_and_normalization):
    pixels, normalization = pixels_and_normalization
    blurred = normalization(removal.RiseBlur(normalization.mean).replacement(pixels))
    np.testing.assert_allclose(blurred, rise["blurred"], atol=1e-5)


@pytest.mark.parametrize(("size", "sigma"), [(11, 5), (3, 1), (5, 2)])
def test_the_kernel_is_rises(rise, size, sigma):
    # The blur of an impulse is the kernel; around it lies the padding.
    impulse = torch.zeros(1, 1, size, size)
    impulse[0, 0, size // 2, size // 2] = 1
    kernel = removal.RiseBlur((0.0,), size, float(sigma)).replacement(impulse)[0, 0]
    np.testing.assert_allclose(kernel, rise[f"kernel_{size}_{sigma}"], atol=1e-7)


@pytest.mark.parametrize("kind", ["del", "ins"])
@pytest.mark.parametrize("ranking", ["grad", "ig_abs"])
@pytest.mark.parametrize("step", [32, 256])
def test_curves_and_areas_are_rises(rise, tinycnn, pixels_and_normalization, kind, ranking, step):
    pixels, normalization = pixels_and_normalization
    ranks = removal.rank_tensor(removal.ranks(removal.orders(rise[f"map_{ranking}"]), (32, 32)))
    mean = normalization.mean
    scores = removal.degraded_scores(
        tinycnn[0],
        pixels,
        ranks,
        torch.from_numpy(tinycnn[1]["pred"]),
        normalize=normalization,
        fractions=np.arange(step, 1025, step) / 1024,
        fill=removal.ZeroNormalised(mean) if kind == "del" else removal.RiseBlur(mean),
        firsts=("most",) if kind == "del" else ("least",),
    ).probability[:, 0]
    curves = scores if kind == "del" else scores[:, ::-1]
    np.testing.assert_allclose(curves, rise[f"{kind}_{ranking}_step{step}"], atol=2e-5)
    areas = insertion_deletion_auc(curves)
    np.testing.assert_allclose(areas, rise[f"auc_{kind}_{ranking}_step{step}"], atol=1e-5)
    # The area of the mean curve is the mean of the areas.
    of_mean = rise[f"auc_of_mean_{kind}_{ranking}_step{step}"]
    np.testing.assert_allclose([areas.mean(), insertion_deletion_auc(curves.mean(axis=0))], of_mean, atol=1e-5)


def test_the_blur_lets_the_padding_in_and_keeps_the_padding_colour():
    plain = torch.full((1, 1, 20, 20), 0.25)
    torch.testing.assert_close(removal.RiseBlur((0.25,)).replacement(plain), plain)
    darkened = removal.RiseBlur((0.0,)).replacement(plain)[0, 0]
    assert darkened[0, 0] < darkened[0, 10] < darkened[10, 10] == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"size": 4}, "size: 4 must be an odd number"), ({"sigma": 0.0}, "sigma: 0.0 must be above 0, in pixels")],
)
def test_messages(options, message):
    with pytest.raises(InputError, match=message):
        removal.RiseBlur((0.5,), **options)
