"""From channels to pixels."""

import pytest
import torch

from heatproof.errors import InputError
from heatproof.methods.reduction import CHANNEL_REDUCTIONS, reduce_channels

MAPS = torch.tensor([[1.0, 2.0, -5.0], [-1.0, -4.0, -2.0]]).T.reshape(1, 3, 1, 2)  # two pixels, three channels


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("signed_max", [2.0, -1.0]),
        ("abs_max", [5.0, 4.0]),
        ("sum", [-2.0, -7.0]),
        ("abs_sum", [8.0, 7.0]),
        ("l2", [30**0.5, 21**0.5]),
        ("mean", [-2 / 3, -7 / 3]),
    ],
)
def test_each_reduction_by_hand(how, expected):
    assert reduce_channels(MAPS, how).flatten().tolist() == pytest.approx(expected)


def test_no_reduction_is_left_out():
    assert set(CHANNEL_REDUCTIONS) == {"signed_max", "abs_max", "sum", "abs_sum", "l2", "mean"}


def test_a_map_without_channels_stays_as_it_is():
    assert torch.equal(reduce_channels(-MAPS[:, 0], "abs_max"), -MAPS[:, 0])


def test_wrong_names_and_shapes_are_told():
    with pytest.raises(InputError, match="channel_reduction 'abs_mx' is unknown; did you mean 'abs_max'"):
        reduce_channels(MAPS, "abs_mx")
    with pytest.raises(InputError, match=r"maps: shape \(3,\); expected \(N, C, H, W\) or \(N, H, W\)"):
        reduce_channels(torch.zeros(3), "sum")
