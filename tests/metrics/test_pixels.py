import json
from pathlib import Path

import numpy as np
import pytest

from heatproof.errors import InputError
from heatproof.metrics import pixels
from tests.metrics.alone import batches, check_alone, public

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.mark.parametrize("interval", ["0.01", "0.001"])
def test_scores_are_those_of_wsolevaluation(interval):
    data = dict(np.load(GOLDEN / "metrics" / "wsol.npz"))
    objects, ignored = data["px_gt"] == 1, data["px_gt"] == 255
    found = pixels.pixel_histograms(data["px_scoremaps"], objects, ignored, float(interval))
    np.testing.assert_allclose(100 * pixels.pooled_average_precision(found), data[f"pxap_{interval}"], rtol=1e-12)
    each = 100 * pixels.pixel_average_precision(found)
    np.testing.assert_allclose(each, data[f"pxap_per_image_{interval}"], rtol=1e-12)
    if interval == "0.01":
        np.testing.assert_array_equal(found.sum(axis=0), [data["px_hist_true"], data["px_hist_false"]])


@pytest.mark.parametrize("interval", ["0.01", "0.001"])
def test_objects_of_several_masks_with_an_ignored_margin_score_as_in_wsolevaluation(interval):
    data = dict(np.load(GOLDEN / "casme" / "wsol.npz"))
    expected = json.loads((GOLDEN / "casme" / "wsol.json").read_text())
    maps, masks, ignored = (data[name].repeat(4, axis=1).repeat(4, axis=2) for name in ("maps56", "gt56", "ignore56"))
    # The rule in the file: two instances where the image's number is even.
    objects = np.array([masks[2 * i] | masks[2 * i + 1] if i % 2 == 0 else masks[2 * i] for i in range(6)]) > 0
    found = pixels.pixel_histograms(maps, objects, ignored > 0, float(interval))
    score = 100 * pixels.pooled_average_precision(found)
    np.testing.assert_allclose(score, expected[f"PxAP_interval_{interval}"], rtol=1e-12)
    if interval == "0.01":
        np.testing.assert_array_equal(found.sum(axis=0), [data["hist_pos"], data["hist_neg"]])


def test_a_constant_map_scores_the_share_of_the_object():
    objects = np.zeros((2, 4, 5), dtype=bool)
    objects[0, :2], objects[1, 0, 0] = True, True
    for level in (0.0, 0.5, 1.0):
        found = pixels.pixel_histograms(np.full(objects.shape, level), objects)
        np.testing.assert_allclose(pixels.pixel_average_precision(found), [10 / 20, 1 / 20])
        np.testing.assert_allclose(pixels.object_share(found), [10 / 20, 1 / 20])
        np.testing.assert_allclose(pixels.pooled_average_precision(found), 11 / 40)


def test_the_object_itself_scores_1():
    objects = np.random.default_rng(0).random((3, 6, 6)) < 0.4
    np.testing.assert_allclose(
        pixels.pixel_average_precision(pixels.pixel_histograms(objects.astype(float), objects)), 1
    )


def test_an_image_without_object_is_undefined_and_pools_as_background():
    objects = np.zeros((2, 1, 2), dtype=bool)
    objects[0, 0, 0] = True
    maps = np.array([[[0.8, 0.2]], [[0.9, 0.1]]])
    found = pixels.pixel_histograms(maps, objects)
    np.testing.assert_array_equal(pixels.pixel_average_precision(found), [1, np.nan])
    np.testing.assert_array_equal(pixels.object_share(found), [0.5, np.nan])
    assert pixels.pooled_average_precision(found) == 0.5  # one wrong pixel lies above the only right one


def test_no_object_pixel_at_all_is_an_error():
    found = pixels.pixel_histograms(np.zeros((2, 3, 3)), np.zeros((2, 3, 3), dtype=bool))
    with pytest.raises(InputError, match="no image has an object pixel"):
        pixels.pooled_average_precision(found)


def test_values_outside_the_unit_range_are_refused():
    objects = np.ones((1, 1, 2), dtype=bool)
    for wrong in (-0.1, 1.5, np.nan):
        with pytest.raises(InputError, match=r"bring them to \[0, 1\] first"):
            pixels.pixel_histograms(np.array([[[0.5, wrong]]]), objects)
    with pytest.raises(InputError, match="interval"):
        pixels.bin_edges(0)
    with pytest.raises(InputError, match="histograms"):
        pixels.pixel_average_precision(np.zeros((3, 4)))


ALONE = {
    "pixel_histograms": lambda b: pixels.pixel_histograms(b.masks, b.regions, b.ignored, 0.1),
    "pixel_average_precision": lambda b: pixels.pixel_average_precision(pixels.pixel_histograms(b.masks, b.regions)),
    "object_share": lambda b: pixels.object_share(pixels.pixel_histograms(b.masks, b.regions)),
}
OTHERS = {"bin_edges", "pooled_average_precision"}


@pytest.mark.parametrize("metric", ALONE.values(), ids=ALONE)
def test_an_image_is_scored_alone(metric):
    check_alone(metric, batches())


def test_no_function_is_left_out():
    assert public(pixels) == ALONE.keys() | OTHERS
