"""How far a map moves when its image is perturbed: by hand, against Quantus, and each image alone."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from heatproof.errors import InputError
from heatproof.methods.gradient import Gradient
from heatproof.metrics import robustness
from tests.methods.networks import TinyCnn
from tests.metrics.alone import check_rows_alone, public

GOLDEN = Path(__file__).parents[1] / "golden" / "metrics"

# Each takes maps (N, H, W), perturbed maps (N, S, H, W), images and perturbed images, and gives (N,) or (N, S).
ALL = {
    "distance": lambda a, b, x, y: robustness.distance(a, b),
    "relative_change": lambda a, b, x, y: robustness.relative_change(a, b),
    "max_sensitivity": lambda a, b, x, y: robustness.max_sensitivity(robustness.relative_change(a, b)),
    "avg_sensitivity": lambda a, b, x, y: robustness.avg_sensitivity(robustness.relative_change(a, b)),
    "local_lipschitz": lambda a, b, x, y: robustness.local_lipschitz(
        robustness.distance(a, b), robustness.distance(x, y)
    ),
    "relative_stability": robustness.relative_stability,
}
per_metric = pytest.mark.parametrize("metric", ALL.values(), ids=ALL)


def test_sensitivity_of_the_gradient_is_that_of_quantus():
    inputs = np.load(GOLDEN / "quantus_inputs.npz")
    scores = json.loads((GOLDEN / "quantus.json").read_text())
    model = TinyCnn().eval()
    model.load_state_dict(
        {
            name[2:]: torch.from_numpy(value)
            for name, value in np.load(GOLDEN / "tinycnn.npz").items()
            if name[:2] == "w."
        }
    )
    images, targets = torch.from_numpy(inputs["x"]), torch.from_numpy(inputs["y"])
    gradient = Gradient(model, absolute=False)
    noisy = [(images + torch.from_numpy(noise)).float() for noise in inputs["maxsens_noise"]]
    perturbed = np.stack([gradient(batch, targets).numpy() for batch in noisy], axis=1)
    changes = robustness.relative_change(gradient(images, targets).numpy(), perturbed)
    np.testing.assert_allclose(robustness.max_sensitivity(changes), scores["max_sensitivity"], atol=2e-5)
    np.testing.assert_allclose(robustness.avg_sensitivity(changes), scores["avg_sensitivity"], atol=2e-5)


def test_a_map_that_looks_at_no_pixel_scores_nought_and_unrelated_ones_the_root_of_two():
    rng = np.random.default_rng(0)
    maps = rng.normal(size=(4, 40, 40))
    same = np.repeat(maps[:, None], 3, axis=1)
    np.testing.assert_array_equal(robustness.relative_change(maps, same), 0)
    unrelated = rng.normal(size=(4, 3, 40, 40))
    np.testing.assert_allclose(robustness.relative_change(maps, unrelated), np.sqrt(2), atol=0.1)


def test_the_slope_of_a_linear_map_is_its_lipschitz_constant():
    rng = np.random.default_rng(0)
    images, others = rng.normal(size=(3, 1, 5, 5)), rng.normal(size=(3, 4, 1, 5, 5))
    maps, moved = 2.5 * images[:, 0] + 1, 2.5 * others[:, :, 0] + 1
    slopes = robustness.local_lipschitz(robustness.distance(maps, moved), robustness.distance(images, others))
    np.testing.assert_allclose(slopes, 2.5)
    # A map proportional to the image changes by the same share as the image does.
    ratio = robustness.relative_stability(-3 * images, -3 * others, images, others)
    np.testing.assert_allclose(ratio, 1)


def test_sensitivity_does_not_depend_on_the_scale_of_the_maps():
    maps, moved = np.random.default_rng(0).normal(size=(2, 3, 2, 4, 4))
    changes = robustness.relative_change(maps[:, 0], moved)
    np.testing.assert_allclose(robustness.relative_change(-8 * maps[:, 0], -8 * moved), changes)
    assert (robustness.max_sensitivity(changes) >= robustness.avg_sensitivity(changes)).all()


def test_what_cannot_be_divided_is_undefined():
    zeros, ones = np.zeros((1, 2, 2)), np.ones((1, 3, 2, 2))
    assert np.isnan(robustness.relative_change(zeros, ones)).all()
    assert np.isnan(robustness.local_lipschitz([[1.0, 2.0]], [[1.0, 0.0]])[0])
    assert np.isnan(robustness.max_sensitivity([[0.5, np.nan]])[0])


@per_metric
def test_an_image_is_scored_alone_in_any_order_and_stays_untouched(metric):
    rng = np.random.default_rng(0)
    arrays = [
        rng.normal(size=shape).astype(np.float32) for shape in ((6, 5, 4), (6, 3, 5, 4), (6, 2, 5, 4), (6, 3, 2, 5, 4))
    ]
    arrays[0][2] = 0
    arrays[1][4, 1, 0, 0] = np.nan
    scores = check_rows_alone(metric, *arrays)
    assert scores.dtype == np.float64
    assert np.isnan(scores[4]).any()


def test_no_function_is_left_out():
    assert public(robustness) == ALL.keys()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: robustness.distance(np.zeros((2, 3, 3)), np.zeros((2, 3, 3))), r"perturbed: shape \(2, 3, 3\)"),
        (lambda: robustness.max_sensitivity(np.zeros((2, 0))), r"changes: no samples"),
        (lambda: robustness.local_lipschitz([[1.0]], [[1.0, 2.0]]), r"image_distances: shape \(1, 2\)"),
    ],
)
def test_messages(call, message):
    with pytest.raises(InputError, match=message):
        call()
