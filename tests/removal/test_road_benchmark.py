"""ROAD's benchmark by our forward passes: golden vectors of the authors' code on the tiny network."""

import numpy as np
import pytest
import torch

from heatproof import removal
from heatproof.metrics.road import accuracy
from heatproof.models import Normalization


@pytest.fixture(scope="module")
def benchmark(golden):
    return golden("road_eval")


@pytest.fixture(scope="module")
def ranks(benchmark):
    """Ranks of the maps as ROAD's code makes them: channels summed, min-max, one noise pattern for all images.

    The pattern reorders pixels that are close; our own maps are ranked without it.
    """
    maps = benchmark["expl_hwc"].sum(axis=3).astype(np.float64)
    low, high = maps.min(axis=(1, 2), keepdims=True), maps.max(axis=(1, 2), keepdims=True)
    patterned = (maps - low) / (high - low + 1e-5) + benchmark["tiebreak_noise"]
    return removal.ranks(removal.orders(patterned), (32, 32))


def ours(order, kept_or_removed):
    """Our removed fraction and end for ROAD's: its LeRF at t keeps the top t, rounded down to whole pixels."""
    pixels = int(32 * 32 * kept_or_removed)
    return (pixels / 1024, "most") if order == "morf" else (1 - pixels / 1024, "least")


@pytest.mark.parametrize("order", ["morf", "lerf"])
def test_masks_are_roads(benchmark, ranks, order):
    shape = tuple(benchmark["keepmask_shape"])
    kept = np.unpackbits(benchmark[f"keepmask_{order}"], axis=-1)[..., : shape[-1]].reshape(shape).astype(bool)
    for step, percentage in enumerate(benchmark["percentages"]):
        np.testing.assert_array_equal(removal.removed(ranks, *ours(order, percentage)), ~kept[step])


@pytest.mark.parametrize("order", ["morf", "lerf"])
@pytest.mark.parametrize("imputer", ["linear0", "mean"])
def test_accuracies_are_roads(benchmark, ranks, tinycnn, order, imputer):
    model, data = tinycnn
    mean = tuple(data["mean"])
    fill = removal.NoisyLinear(mean, noise=0.0) if imputer == "linear0" else removal.ImageMean()
    removed = [ours(order, percentage) for percentage in benchmark["percentages"]]
    forwards = order == "morf"  # the removed fractions have to grow
    scores = removal.degraded_scores(
        model,
        torch.from_numpy(benchmark["x_uint8"]),
        ranks,
        benchmark["label"],
        normalize=Normalization(mean, tuple(data["std"])),
        fractions=[fraction for fraction, _ in (removed if forwards else removed[::-1])],
        fill=fill,
        firsts=(removed[0][1],),
    )
    np.testing.assert_array_equal(scores.prediction[:, 0, 0], benchmark["pred"])
    found = accuracy(scores.prediction[:, 0, 1:], benchmark["label"]).mean(axis=0)
    expected = benchmark[f"acc_{order}_{imputer}"]
    np.testing.assert_allclose(found if forwards else found[::-1], expected, atol=1 / 24 + 1e-9)
