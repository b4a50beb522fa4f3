"""The stage complexity on generated images: maps of known shape have known scores."""

import csv

import numpy as np
import pytest

from heatproof import config, store
from heatproof.stages import complexity
from heatproof.stages.evaluate import SampledMaps
from heatproof.stages.run import Run

SECTION = """
complexity:
    test_samples: 20
    controls: [random, uniform, oracle]
"""


@pytest.fixture(scope="module")
def written(small_trained):
    """The run after training and the stage."""
    path = small_trained("complexity")
    path.write_text(path.read_text() + SECTION)
    run = Run(config.read(path))
    complexity.run(run)
    return run


def column(run, method, name):
    return store.RowReader(run.config.outdir / "complexity" / f"{method}.h5").read(name)


def test_a_constant_map_a_region_and_noise_score_what_they_must(written):
    pixels = int(np.prod(written.dataset.size))
    np.testing.assert_array_equal(column(written, "uniform", "sparseness"), 0)
    np.testing.assert_allclose(column(written, "uniform", "complexity"), np.log(pixels))
    np.testing.assert_array_equal(column(written, "uniform", "effective_complexity"), pixels)
    inside = written.dataset.split("test").regions(column(written, "oracle", "index")).sum(axis=(1, 2))
    np.testing.assert_allclose(column(written, "oracle", "sparseness"), 1 - inside / pixels)
    np.testing.assert_allclose(column(written, "oracle", "complexity"), np.log(inside))
    np.testing.assert_array_equal(column(written, "oracle", "effective_complexity"), inside)
    np.testing.assert_allclose(column(written, "random", "sparseness").mean(), 1 / 3, atol=0.01)


def test_results_say_directions_and_counts(written):
    with (written.config.outdir / "complexity" / "results.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert {(line["score"], line["better"]) for line in lines} == {
        ("sparseness", "neither"), ("complexity", "lower"), ("effective_complexity", "lower"),
    }  # fmt: skip
    assert len(lines) == 5 * 3
    for line in lines:
        assert int(line["n"]) + int(line["n_undefined"]) == 20


def test_nothing_is_computed_twice(written, monkeypatch):
    def forbidden(*_):
        raise AssertionError("computed again")

    monkeypatch.setattr(complexity.Complexity, "measure", forbidden)
    complexity.run(written)
    assert set(SampledMaps.of(written, written.config.complexity).maps) >= {"uniform", "oracle"}
