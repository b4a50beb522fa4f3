"""Small attribution files whose content is known."""

import os
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import pytest

from heatproof.store import MapWriter

ORIGIN = {"data": "planted", "method": {"name": "gradcam", "kwargs": {"layer": "layer3"}}, "seed": 0}


@dataclass(frozen=True)
class Sample:
    """Arrays as a stage would hand them to the writer."""

    maps: np.ndarray
    ranks: np.ndarray
    index: np.ndarray
    label: np.ndarray
    target: np.ndarray
    prediction: np.ndarray
    logits: np.ndarray

    @classmethod
    def drawn(cls, rows=50, size=(8, 6), classes=4, seed=0):
        rng = np.random.default_rng(seed)
        maps = rng.normal(size=(rows, *size)).astype(np.float32) * 10.0 ** rng.uniform(-30, 30, (rows, 1, 1))
        maps = maps.astype(np.float32)
        logits = rng.normal(size=(rows, classes)).astype(np.float32)
        prediction = logits.argmax(axis=1)
        return cls(
            maps=maps,
            ranks=(-maps.reshape(rows, -1)).argsort(axis=1).argsort(axis=1).reshape(maps.shape),
            index=rng.permutation(1000)[:rows],
            label=rng.integers(classes, size=rows),
            target=prediction,
            prediction=prediction,
            logits=logits,
        )

    def rows(self, block):
        return {f.name: getattr(self, f.name)[block.start : block.stop] for f in fields(self)}

    def writer(self, path, **options):
        options = {"origin": ORIGIN, "method": "gradcam", "split": "test", "rows_per_block": 16} | options
        return MapWriter(path, rows=len(self.maps), size=self.maps.shape[1:], classes=self.logits.shape[1], **options)

    def write(self, path, *, finish=True, numbers=None, **options) -> Path:
        """Writes the file, or only the blocks of the given numbers."""
        writer = self.writer(path, **options)
        for block in writer.missing():
            if numbers is None or block.number in numbers:
                writer.write(block, **self.rows(block))
        return writer.finish() if finish else writer.path


@pytest.fixture(autouse=True, scope="module")
def _no_power_cuts():
    """Waiting for the disk takes most of the time of these tests, and tells nothing: a kill leaves the page cache alone."""
    original, os.fsync = os.fsync, lambda _: None
    yield
    os.fsync = original


@pytest.fixture(scope="session")
def sample():
    return Sample.drawn()


@pytest.fixture
def drawn():
    """Makes other samples: drawn(rows=..., size=..., classes=..., seed=...)."""
    return Sample.drawn
