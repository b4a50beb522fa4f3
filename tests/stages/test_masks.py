"""What networks see in `mask_only`, and how the orders of a chain are continued."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from heatproof import removal
from heatproof.stages import retrain
from heatproof.stages.recursive import continued_ranks
from heatproof.training.augmentation import Augmentation
from heatproof.training.classifier import ClassifierRecipe, Named


def orders(count, pixels, seed=0):
    rng = np.random.default_rng(seed)
    return np.stack([rng.permutation(pixels) for _ in range(count)])


@pytest.mark.parametrize("fraction", [0.1, 0.5, 0.95])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_mask_tells_what_roar_removes_and_nothing_of_the_image(fraction, channels):
    ranks = removal.rank_tensor(orders(4, 30).reshape(4, 5, 6))
    pixels = torch.rand(4, channels, 5, 6)
    found = retrain.MaskAlone(fraction)(pixels, ranks, torch.arange(4))
    assert found.shape == pixels.shape
    torch.testing.assert_close(found.mean((2, 3)), torch.zeros(4, channels), atol=1e-6, rtol=0)
    gone = removal.removed(ranks, fraction, "most")
    assert ((found < 0) == gone[:, None]).all()
    torch.testing.assert_close(found.amax((1, 2, 3)) - found.amin((1, 2, 3)), torch.ones(4))
    torch.testing.assert_close(found, retrain.MaskAlone(fraction)(1 - pixels, ranks, torch.arange(4)), rtol=0, atol=0)


def test_crops_of_masks_are_padded_with_the_masks_mean_and_nothing_else_changes():
    standard = ClassifierRecipe(Named("o"), None, Named("l"), 3, 8, Augmentation(2, (0.4, 0.5, 0.6), flip=True))
    found = retrain._for_masks(standard)
    assert found.augmentation == Augmentation(2, (0.0, 0.0, 0.0), flip=True)
    assert found.epochs == standard.epochs
    plain = ClassifierRecipe(Named("o"), None, Named("l"), 3, 8, None)
    assert retrain._for_masks(plain) == plain


@given(st.integers(0, 20), st.integers(0, 1000))
def test_a_continued_order_keeps_what_is_gone_and_sorts_the_rest_by_the_new_map(count, seed):
    before, new = (orders(3, 20, seed=[seed, part]).reshape(3, 4, 5) for part in (0, 1))
    found = continued_ranks(before, new, count).reshape(3, -1)
    for row, old, fresh in zip(found, before.reshape(3, -1), new.reshape(3, -1), strict=True):
        np.testing.assert_array_equal(np.sort(row), np.arange(20))
        np.testing.assert_array_equal(row[old < count], old[old < count])
        rest = np.argsort(row)[count:]
        assert (np.diff(fresh[rest]) > 0).all()
