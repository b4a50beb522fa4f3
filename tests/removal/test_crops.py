import numpy as np
import pytest
import torch

from heatproof.errors import InputError
from heatproof.removal.crops import enlarged


def test_the_whole_image_stays_as_it_is_and_an_empty_box_is_the_mean_colour():
    images = torch.randn(2, 3, 7, 9, generator=torch.Generator().manual_seed(0))
    found = enlarged(images, np.array([[0, 0, 9, 7], [3, 3, 3, 6]]))
    torch.testing.assert_close(found[0], images[0])
    assert not found[1].any()


def test_only_what_the_box_holds_is_seen():
    images = torch.zeros(1, 1, 8, 8)
    images[0, 0, 2:4, 4:8] = 1
    torch.testing.assert_close(enlarged(images, [[4, 2, 8, 4]]), torch.ones(1, 1, 8, 8))
    assert not enlarged(images, [[0, 0, 4, 8]]).any()
    # Enlarged left to right: a step of values stays a step.
    images = torch.arange(8.0).expand(1, 1, 8, 8)
    row = enlarged(images, [[2, 0, 6, 8]])[0, 0, 0]
    assert (row.diff() > 0).all()
    np.testing.assert_allclose(row.mean(), 3.5, atol=1e-6)


def test_boxes_must_belong_to_the_images():
    with pytest.raises(InputError, match="boxes: shape"):
        enlarged(torch.zeros(2, 1, 4, 4), np.zeros((1, 4)))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_crops_on_the_gpu_are_those_of_the_cpu():
    images = torch.randn(2, 3, 31, 40, generator=torch.Generator().manual_seed(0))
    boxes = [[3, 2, 20, 30], [0, 0, 1, 1]]
    torch.testing.assert_close(enlarged(images.cuda(), boxes).cpu(), enlarged(images, boxes), rtol=0, atol=1e-4)
