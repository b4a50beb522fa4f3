"""Pictures: right colours, right size, right choice."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from heatproof.report import pictures


def opened(uri):
    assert uri.startswith("data:image/png;base64,")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))).convert("RGB")).astype(int)


def test_a_sign_is_centred_at_white():
    shown = opened(pictures.map_picture(np.array([[-1.0, 0.0, 0.5]], dtype=np.float32), signed=True))
    against, zero, slightly_for = shown[0]
    assert against[2] > against[0]  # blue
    assert zero.min() > 240
    assert slightly_for[0] > slightly_for[2] + 30  # red


def test_without_a_sign_dark_is_lowest():
    shown = opened(pictures.map_picture(np.array([[3.0, 4.0, 5.0]], dtype=np.float32), signed=False))
    assert shown[0].sum(axis=1).tolist() == sorted(shown[0].sum(axis=1))
    assert shown[0, 0].sum() < 30


@pytest.mark.parametrize("signed", [True, False])
def test_a_constant_map_is_shown_and_an_invalid_one_is_grey(signed):
    assert opened(pictures.map_picture(np.zeros((4, 4), dtype=np.float32), signed=signed)).shape == (4, 4, 3)
    assert (opened(pictures.map_picture(np.full((4, 4), np.nan, dtype=np.float32), signed=signed)) == 128).all()


def test_small_pictures_keep_their_pixels_and_large_ones_are_made_small():
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    np.testing.assert_array_equal(opened(pictures.photograph(pixels)), pixels)
    assert opened(pictures.photograph(np.zeros((224, 448, 1), dtype=np.uint8))).shape == (80, 160, 3)


def test_an_outline_runs_between_pixels():
    region = np.zeros((3, 4), dtype=bool)
    region[1, 1:3] = True
    assert pictures.outline(region) == "M1 1H3M1 2H3M1 1V2M3 1V2"
    assert pictures.outline(np.zeros((3, 4), dtype=bool)) == ""


def test_a_third_is_wrong_and_all_classes_have_their_turn():
    labels = np.arange(40) % 4
    predictions = labels.copy()
    predictions[[3, 7, 10, 20]] = (predictions[[3, 7, 10, 20]] + 1) % 4
    chosen = pictures.choice(labels, predictions, 6)
    assert chosen == [0, 1, 2, 11, 10, 20]
    assert set(labels[chosen[:4]]) == {0, 1, 2, 3}
    assert chosen == pictures.choice(labels, predictions, 6)


def test_a_perfect_classifier_leaves_no_gap():
    labels = np.arange(9) % 3
    assert len(pictures.choice(labels, labels, 6)) == 6
    assert len(pictures.choice(labels, (labels + 1) % 3, 6)) == 6
    assert pictures.choice(labels, labels, 20) == list(range(9))
