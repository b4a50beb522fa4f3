"""Whether a metric treats every row, or image, alone: its score, whatever stands beside it; the caller's arrays stay as they were."""

import inspect
from dataclasses import dataclass, fields

import numpy as np


@dataclass(frozen=True)
class Batch:
    """What localisation metrics take, for the same images; the first axis of every field is theirs."""

    maps: np.ndarray
    masks: np.ndarray
    ranks: np.ndarray
    regions: np.ndarray
    ignored: np.ndarray
    boxes: np.ndarray  # (N, 2, 4)
    predicted: np.ndarray
    correct: np.ndarray


def batches(images=6, height=7, width=6):
    """Signed maps with ties, one image without object, one constant map, boxes that leave the frame."""
    rng = np.random.default_rng(0)
    maps = np.round(rng.normal(size=(images, height, width)), 1)
    regions = rng.random((images, height, width)) < 0.3
    maps[1], regions[2] = 0.5, False
    low = rng.integers(-3, 4, (images, 2, 2))
    masks = maps - maps.min(axis=(1, 2), keepdims=True)
    masks /= np.maximum(masks.max(axis=(1, 2), keepdims=True), 1)
    boxes = np.concatenate([low, low + rng.integers(1, 5, low.shape)], axis=2)
    boxes[2] = 0
    corner = rng.integers(0, 3, (images, 2))
    return Batch(
        maps=maps,
        masks=masks,
        ranks=maps.reshape(images, -1).argsort(axis=1, kind="stable").argsort(axis=1).reshape(maps.shape),
        regions=regions,
        ignored=rng.random(regions.shape) < 0.2,
        boxes=boxes,
        predicted=np.concatenate([corner, corner + rng.integers(0, 4, corner.shape)], axis=1),
        correct=rng.random(images) < 0.5,
    )


def check_rows_alone(metric, *arrays):
    """Rows score as they do one by one, in any order, and are left untouched; returns the scores."""
    before, count = [array.copy() for array in arrays], len(arrays[0])
    together = np.asarray(metric(*arrays))
    assert len(together) == count
    for row in range(count):
        np.testing.assert_array_equal(metric(*(array[row : row + 1] for array in arrays))[0], together[row])
    order = np.random.default_rng(1).permutation(count)
    np.testing.assert_array_equal(np.asarray(metric(*(array[order] for array in arrays))), together[order])
    for array, copy in zip(arrays, before, strict=True):
        np.testing.assert_array_equal(array, copy)
    return together


def check_alone(metric, batch):
    """The same for the images of a batch."""
    check_rows_alone(lambda *arrays: metric(Batch(*arrays)), *(getattr(batch, field.name) for field in fields(batch)))


def public(module):
    """Names of the module's own functions."""
    return {
        name
        for name, value in vars(module).items()
        if inspect.isfunction(inspect.unwrap(value))
        and value.__module__ == module.__name__
        and not name.startswith("_")
    }
