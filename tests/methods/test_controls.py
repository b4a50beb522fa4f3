"""Controls: golden vectors, known truths, messages."""

import numpy as np
import pytest
import torch
from torch import nn

from heatproof.errors import InputError, PluginError
from heatproof.methods.controls import AntiOracle, CentreGaussian, Oracle, Random, Sobel, Uniform

MODEL = nn.Identity()
TARGETS = torch.zeros(6, dtype=torch.int64)


def test_sobel_is_scipys(golden):
    expected = golden("stats_controls")
    images = expected["x"]
    for mode, name in (("magnitude", "sobel_magnitude_luma"), ("sia", "sobel_sia_last_axis_of_channel_mean")):
        torch.testing.assert_close(Sobel(MODEL, mode=mode)(images, TARGETS), expected[name], atol=1e-5, rtol=0)
    maps = Sobel(MODEL, mode="hooker")(images, TARGETS).permute(0, 2, 3, 1)
    torch.testing.assert_close(maps, expected["sobel_hooker_axis0_hwc"], atol=1e-5, rtol=0)


def test_the_default_sobel_is_the_magnitude():
    images = torch.zeros(1, 3, 4, 4)
    images[:, :, 2:] = 3.0  # one horizontal edge of height 3, seen from both sides
    expected = torch.tensor([0.0, 12.0, 12.0, 0.0])[None, :, None].expand(1, 4, 4)
    torch.testing.assert_close(Sobel(MODEL)(images, TARGETS[:1]), expected)


def test_random_values_are_uniform_and_independent():
    maps = Random(MODEL)(torch.zeros(6, 3, 50, 40), TARGETS, indices=torch.arange(6))
    assert maps.min() >= 0
    assert maps.max() < 1
    deciles = torch.histc(maps, bins=10, min=0, max=1) / maps.numel()
    assert deciles.min() > 0.09
    assert torch.corrcoef(maps.flatten(1)).triu(1).abs().max() < 0.1


def test_the_gaussian_peaks_in_the_middle_and_spreads_by_a_quarter_of_each_side():
    maps = CentreGaussian(MODEL)(torch.zeros(2, 3, 8, 12), TARGETS[:2])
    torch.testing.assert_close(maps, maps.flip(1))
    torch.testing.assert_close(maps, maps.flip(2))
    # On a row: exp(-(11/2)^2 / (2 * 3^2)) over exp(-(1/2)^2 / (2 * 3^2)) = exp(-30 / 18).
    assert float(maps[0, 3, 0] / maps[0, 3, 5]) == pytest.approx(np.exp(-30 / 18), rel=1e-5)
    assert float(maps[0, 0, 3] / maps[0, 3, 3]) == pytest.approx(np.exp(-((3.5**2 - 0.5**2) / (2 * 2**2))), rel=1e-5)


def test_uniform_is_constant():
    assert Uniform(MODEL)(torch.rand(2, 3, 4, 5), TARGETS[:2]).unique().tolist() == [1.0]


def regions(indices):
    found = np.zeros((len(indices), 2, 3), dtype=bool)
    found[np.arange(len(indices)), indices % 2, indices % 3] = True
    return found


def test_the_oracle_is_the_region_and_the_anti_oracle_is_not():
    images, indices = torch.rand(2, 3, 2, 3), torch.tensor([4, 3])
    expected = torch.tensor([[[0.0, 1, 0], [0, 0, 0]], [[0, 0, 0], [1, 0, 0]]])
    torch.testing.assert_close(Oracle(MODEL, regions=regions)(images, TARGETS[:2], indices=indices), expected)
    torch.testing.assert_close(AntiOracle(MODEL, regions=regions)(images, TARGETS[:2], indices=indices), 1 - expected)


@pytest.mark.parametrize("control", [Oracle, AntiOracle])
def test_where_no_regions_are_known_the_oracles_say_so(control):
    message = f"{control.__name__}: the data set knows no regions; leave this control out"
    with pytest.raises(PluginError, match=message):
        control(MODEL)
    with pytest.raises(PluginError, match=message):
        control(MODEL, regions=lambda indices: None)(torch.rand(2, 3, 2, 3), TARGETS[:2], indices=torch.arange(2))
    with pytest.raises(InputError, match=r"regions of shape \(2, 2, 3\) for images \(2, 3, 4, 4\)"):
        control(MODEL, regions=regions)(torch.rand(2, 3, 4, 4), TARGETS[:2], indices=torch.arange(2))


def test_wrong_options_are_told():
    with pytest.raises(InputError, match="Sobel: mode 'horizontal' is unknown; known: magnitude, hooker, sia"):
        Sobel(MODEL, mode="horizontal")
    with pytest.raises(InputError, match="CentreGaussian: sigma 0 must be above 0"):
        CentreGaussian(MODEL, sigma=0)
