"""The perturbation curves of Vision DiffMask's evaluation: noise in the place of whole patches, most and least important first."""

import numpy as np
import pytest
import torch

from heatproof import removal
from heatproof.methods.cam import to_image_size
from tests.models.test_diffmask import golden, tiny_vit


@pytest.mark.parametrize("step", [1, 3])
def test_curves_are_those_of_the_published_evaluation(step):
    vectors = golden("perturbation")
    model = tiny_vit(vectors, side=64, patch=16, classes=6, depth=2)
    images, patches = vectors["images"], vectors["patch_map"].shape[1:].numel()
    maps = to_image_size(vectors["patch_map"], images, "nearest").numpy()
    ranks = removal.ranks(removal.orders(maps, ties="index"), size=maps.shape[1:])
    counts = range(0, patches + 1, step)
    with torch.no_grad():
        predicted = model(images).argmax(dim=1)
    noise = vectors["baseline_noise"]  # the same for every image and step
    scores = removal.degraded_scores(
        model,
        images,
        ranks,
        predicted,
        normalize=lambda pixels: pixels,
        fractions=[count / patches for count in counts],
        fill=lambda pixels, removed, indices=None: torch.where(removed[:, None], noise, pixels),
    )
    for place, name in enumerate(("pos", "neg")):
        expected = vectors[f"accuracy.{name}.step{step}"].numpy()
        np.testing.assert_allclose(scores.probability[:, place], expected, rtol=0, atol=1e-5)
        np.testing.assert_allclose(
            -np.log(scores.probability[:, place]), vectors[f"kld.{name}.step{step}"], rtol=0, atol=1e-4
        )
