"""The faithfulness metrics of the Quantus toolbox on the golden network; its images are normalised, so 0 is the mean colour."""

import json
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor

from heatproof import removal
from heatproof.metrics import faithfulness, perturbation
from heatproof.removal import regions
from heatproof.removal.scores import subset_scores
from tests.removal.conftest import GOLDEN

FEATURES = 3 * 32 * 32
SCORES, CORRELATIONS = {"rtol": 0, "atol": 2e-5}, {"rtol": 0, "atol": 1e-5}


@dataclass(frozen=True)
class Given:
    """A fill of given values (N, C, H, W), or of one value."""

    values: Tensor

    def replacement(self, pixels, indices=None):
        return self.values


ZERO = Given(torch.zeros(1, 1, 1, 1))


@pytest.fixture(scope="module")
def quantus(golden):
    with (GOLDEN / "quantus.json").open() as file:
        return golden("quantus_inputs") | {"expected": json.load(file)}


@pytest.fixture(scope="module")
def score(quantus, tinycnn):
    """A function from subsets, and perhaps a fill, to the scores of the golden images without them."""

    def call(subsets, fill=ZERO):
        images, targets = torch.from_numpy(quantus["x"]), quantus["y"]
        return subset_scores(
            tinycnn[0],
            images,
            torch.as_tensor(subsets),
            targets,
            normalize=lambda p: p,
            fill=fill,
            rows_per_forward=256,
        )

    return call


def feature_ranks(maps):
    return removal.ranks(removal.orders(maps, ties="index"), maps.shape[1:]).astype(np.int64)


def cumulative(maps, steps):
    """Subsets (N, S, C, H, W): the most important features up to the end of each of `steps` equal steps."""
    ends = FEATURES // steps * np.arange(1, steps + 1)
    return feature_ranks(maps)[:, None] < ends[:, None, None, None]


def running_mean(images, maps, steps):
    """What each feature becomes if a step is filled with the mean of the image as the steps before have left it."""
    ranks = feature_ranks(maps)
    filled = images.copy()
    for step in range(steps):
        chosen = ranks // (FEATURES // steps) == step
        for image, gone in zip(filled, chosen, strict=True):
            image[gone] = image.mean()
    return filled


def test_pixel_flipping_of_single_features(quantus, score):
    images, maps, expected = quantus["x"], quantus["a_color"], quantus["expected"]
    # The reference's "black" is the smallest value of the image, which no filling with it changes.
    smallest = torch.from_numpy(images.min(axis=(1, 2, 3), keepdims=True))
    fills = {
        "black": Given(smallest),
        "mean": Given(torch.from_numpy(running_mean(images, maps, 12))),
        "0_0": ZERO,
    }
    subsets = cumulative(maps, 12)
    for name, fill in fills.items():
        curve = score(subsets, fill).probability
        np.testing.assert_allclose(curve[:, 1:], expected[f"pixelflipping_color_{name}"], **SCORES)
    # Its area has steps of width 1 and leaves out the untouched image.
    area = 11 * perturbation.area(curve[:, 1:], np.arange(12))
    np.testing.assert_allclose(area, expected["pixelflipping_color_auc_0_0"], **SCORES)


def region_curves(quantus, model, side, steps, firsts=("most", "least")):
    maps = quantus["a_color"].sum(axis=1)
    patches = regions.square_patches((32, 32), side)
    orders = removal.orders(faithfulness.sum_in_patches(maps, patches), ties="index")
    number = orders.shape[1]
    return removal.degraded_scores(
        model,
        torch.from_numpy(quantus["x"]),
        regions.patch_ranks(orders, patches),
        quantus["y"],
        normalize=lambda pixels: pixels,
        fractions=np.arange(1, min(steps, number) + 1) / number,
        fill=ZERO,
        firsts=firsts,
    )


def test_region_perturbation_in_both_orders(quantus, tinycnn):
    expected = quantus["expected"]
    curves = region_curves(quantus, tinycnn[0], side=4, steps=20).probability
    fallen = curves[:, :, :1] - curves[:, :, 1:]
    np.testing.assert_allclose(fallen[:, 0], expected["regionpert_morf"], **SCORES)
    np.testing.assert_allclose(fallen[:, 1], expected["regionpert_lerf"], **SCORES)
    most, least = curves[:, 0], curves[:, 1]
    np.testing.assert_allclose(perturbation.aopc(most), expected["independent_aopc_per_image_morf_L20"], **SCORES)
    np.testing.assert_allclose(perturbation.aopc(most).mean(), expected["independent_aopc_morf_L20"], **SCORES)
    np.testing.assert_allclose(perturbation.aopc(least).mean(), expected["independent_aopc_lerf_L20"], **SCORES)
    np.testing.assert_allclose(perturbation.abpc(most, least).mean(), expected["independent_abpc_L20"], **SCORES)


def test_region_perturbation_where_the_grid_does_not_fit(quantus, tinycnn):
    curve = region_curves(quantus, tinycnn[0], side=5, steps=10, firsts=("most",)).probability[:, 0]
    np.testing.assert_allclose(curve[:, :1] - curve[:, 1:], quantus["expected"]["regionpert_morf_pad"], **SCORES)


def test_selectivity(quantus, tinycnn):
    curve = region_curves(quantus, tinycnn[0], side=4, steps=64, firsts=("most",)).probability[:, 0]
    np.testing.assert_allclose(curve[:, 1:], quantus["expected"]["selectivity"], **SCORES)


def drops(scores):
    return scores[:, :1] - scores[:, 1:]


def test_faithfulness_correlation(quantus, score):
    members = quantus["faithcorr_subsets"].transpose(1, 0, 2)  # image, run, feature
    subsets = np.zeros((*members.shape[:2], FEATURES), dtype=bool)
    np.put_along_axis(subsets, members.astype(np.int64), True, axis=2)
    subsets = subsets.reshape(*members.shape[:2], 3, 32, 32)
    claims = faithfulness.sum_in_subsets(quantus["a_color"], subsets)
    result = faithfulness.correlation(claims, drops(score(subsets).logit))
    np.testing.assert_allclose(result, quantus["expected"]["faithfulness_correlation"], **CORRELATIONS)


def test_faithfulness_estimate(quantus, score):
    ranks = feature_ranks(quantus["a_color"])
    cuts = np.arange(0, FEATURES + 1, 256)
    claims = faithfulness.sum_in_steps(quantus["a_color"], ranks, cuts)
    found = drops(score(regions.step_subsets(torch.from_numpy(ranks), cuts)).logit)
    result = faithfulness.correlation(claims, found)
    np.testing.assert_allclose(result, quantus["expected"]["faithfulness_estimate"], **CORRELATIONS)


def test_sensitivity_n(quantus, score):
    maps = quantus["a_color"]
    expected = np.array(quantus["expected"]["sensitivity_n"])
    steps = len(expected)
    # 32 features a step, as many steps as the reference keeps; it sets a step's own sum against the drop of all so far.
    cuts = 32 * np.arange(steps + 1)
    own = faithfulness.sum_in_steps(maps, feature_ranks(maps), cuts)
    subsets = feature_ranks(maps)[:, None] < cuts[1:, None, None, None]
    found = drops(score(subsets).probability)
    totals = faithfulness.moments(own, found).sum(axis=0)[None]
    np.testing.assert_allclose(faithfulness.correlation_of_moments(totals)[0], expected, **CORRELATIONS)
    np.testing.assert_allclose(faithfulness.sensitivity_n(totals), expected.mean(), **CORRELATIONS)
