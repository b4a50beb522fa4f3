"""Whether a metric treats every image alone: its result, whatever stands beside it, and the caller's arrays stay as they were."""

import inspect
from dataclasses import dataclass, fields

import numpy as np


@dataclass(frozen=True)
class Batch:
    """What localisation metrics take, for the same images; every field is indexed by image."""

    maps: np.ndarray
    masks: np.ndarray
    ranks: np.ndarray
    regions: np.ndarray
    ignored: np.ndarray
    boxes: np.ndarray  # (N, 2, 4)
    predicted: np.ndarray
    correct: np.ndarray

    def __getitem__(self, rows):
        return Batch(*(getattr(self, field.name)[rows] for field in fields(self)))


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


def check_alone(metric, batch):
    """A batch scores as its images one by one, in any order, and is left untouched."""
    before = [getattr(batch, field.name).copy() for field in fields(batch)]
    together = metric(batch)
    for row in range(len(batch.maps)):
        np.testing.assert_array_equal(metric(batch[row : row + 1])[0], together[row])
    order = np.random.default_rng(1).permutation(len(batch.maps))
    np.testing.assert_array_equal(np.asarray(metric(batch[order])), np.asarray(together)[order])
    for field, array in zip(fields(batch), before, strict=True):
        np.testing.assert_array_equal(getattr(batch, field.name), array)


def public(module):
    """Names of the module's own functions."""
    return {
        name
        for name, value in vars(module).items()
        if inspect.isfunction(value) and value.__module__ == module.__name__ and not name.startswith("_")
    }
