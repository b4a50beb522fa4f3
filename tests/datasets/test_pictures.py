"""Framing: masks and boxes go where the picture goes."""

import os

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import CenterCrop, Compose, Resize

from heatproof.datasets import pictures
from heatproof.datasets.dataset import tight_boxes
from heatproof.datasets.pictures import Framing
from heatproof.errors import DataError, InputError
from tests.datasets.annotated import FRAMINGS, lies_on, rectangle


@given(
    st.integers(20, 90),
    st.integers(20, 90),
    st.sampled_from(FRAMINGS),
    st.tuples(st.integers(0, 12), st.integers(0, 12), st.integers(4, 60), st.integers(4, 60)),
)
@settings(max_examples=80, deadline=None)
def test_a_box_is_tight_around_its_framed_mask(width, height, framing, place):
    x0, y0, across, down = place
    x1, y1 = min(x0 + across, width), min(y0 + down, height)
    scaled_width, scaled_height = Framing(*framing).scaled(width, height)
    # Where a pixel's centre falls on the edge itself, rounding decides whose it is.
    assume(all((2 * x * scaled_width) % (2 * width) != width for x in (x0, x1)))
    assume(all((2 * y * scaled_height) % (2 * height) != height for y in (y0, y1)))
    mask = np.zeros((height, width), dtype=np.uint8)
    mask[y0:y1, x0:x1] = 1
    framed = Framing(*framing).mask(mask)
    ((left, top, right, bottom),) = Framing(*framing).boxes(np.array([[x0, y0, x1, y1]]), width, height)
    expected = np.zeros_like(framed)
    expected[max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)] = 1
    np.testing.assert_array_equal(framed, expected)


@pytest.mark.parametrize("framing", FRAMINGS)
@pytest.mark.parametrize("size", [(120, 90), (90, 131)])
def test_picture_mask_and_box_of_a_white_rectangle_agree(tmp_path, framing, size):
    mask = rectangle(tmp_path / "0.png", size)
    frame = Framing(*framing)
    with Image.open(tmp_path / "0.png") as picture:
        pixels = np.asarray(frame(picture))[..., 0] > 127
    region = frame.mask(mask.astype(np.uint8)) > 0
    assert region.any()
    assert region.shape == pixels.shape
    assert frame.size is None or frame.size == region.shape
    assert lies_on(region, pixels)
    box = frame.boxes(np.array([[30, 20, 75, 60]]), *size)
    np.testing.assert_array_equal(np.clip(box, 0, np.tile(region.shape[::-1], 2)), tight_boxes(region[None]))


def test_a_box_beyond_the_frame_is_not_clipped():
    boxes = Framing(100, 50).boxes(np.array([[0, 0, 200, 100], [0, 0, 10, 10]]), 200, 100)
    np.testing.assert_array_equal(boxes, [[-75, -25, 125, 75], [-75, -25, -65, -15]])
    assert Framing(100, 50).boxes(np.empty((0, 4)), 200, 100).shape == (0, 4)


@pytest.mark.parametrize("size", [(500, 375), (90, 301)])
def test_a_squashed_picture_is_that_of_torchvision(size):
    values = np.random.default_rng(0).integers(0, 256, size=(*size[::-1], 3), dtype=np.uint8)
    expected = Compose([Resize((64, 64)), CenterCrop(50)])(Image.fromarray(values))
    np.testing.assert_array_equal(np.asarray(Framing(64, 50, squash=True)(Image.fromarray(values))), expected)


def test_wrong_squashing_is_named():
    with pytest.raises(InputError, match="squash: needs resize"):
        Framing(squash=True)
    with pytest.raises(InputError, match="squash: 1 must be true or false"):
        Framing(8, squash=1)


def test_a_pipe_is_no_picture_and_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "0.png")
    with pytest.raises(DataError, match=r"0\.png: image 0 cannot be read: it is a pipe or a device"):
        pictures.read(tmp_path / "0.png", 0, Framing())
