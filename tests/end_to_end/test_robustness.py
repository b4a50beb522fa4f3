"""The stage robustness on generated images: what looks at no pixel does not move, and what is drawn does not depend on batches."""

import csv
import logging
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from heatproof import config, store
from heatproof.errors import ConfigError
from heatproof.methods.explainer import Explained
from heatproof.stages import robustness
from heatproof.stages.run import Run

SECTION = """
robustness:
    test_samples: 12
    samples: 3
    controls: [random, sobel, centre]
    twins: [inverse]
    attribution_methods:
        - {name: gradcam, method: heatproof.methods.cam.GradCam, kwargs: {layer: layer3.0.relu}}
        - {name: smoothgrad, method: heatproof.methods.gradient.SmoothGrad, kwargs: {samples: 3}}
        - {name: foreign, method: imported}
"""


@pytest.fixture(scope="module")
def written(small_trained):
    """The configuration after training and the stage: its path, and the run."""
    path = small_trained("robustness")
    path.write_text(path.read_text() + SECTION)
    run = Run(config.read(path))
    robustness.run(run)
    return path, run


def column(run, method, name):
    return store.RowReader(run.config.outdir / "robustness" / f"{method}.h5").read(name)


def test_a_map_that_looks_at_no_pixel_does_not_move(written):
    for control in ("random", "centre"):
        np.testing.assert_array_equal(column(written[1], control, "uniform_change"), 0)
    assert (column(written[1], "sobel", "uniform_change") > 0.05).all()


def test_the_noise_is_the_same_for_all_methods_and_as_long_as_it_should_be(written):
    lengths = [column(written[1], name, "gaussian_image_distance") for name in ("gradcam", "smoothgrad", "sobel")]
    np.testing.assert_array_equal(lengths[0], lengths[1])
    np.testing.assert_array_equal(lengths[0], lengths[2])
    values = 3 * np.prod(written[1].dataset.size)
    np.testing.assert_allclose(lengths[0], 0.1 * np.sqrt(values), rtol=0.06)
    assert len(np.unique(lengths[0])) == lengths[0].size


def test_results_hold_maximum_mean_and_slope(written):
    with (written[1].config.outdir / "robustness" / "results.csv").open(newline="") as file:
        means = {(line["method"], line["score"]): float(line["mean"]) for line in csv.DictReader(file)}
    changes = column(written[1], "gradcam", "uniform_change")
    np.testing.assert_allclose(means["gradcam", "max_sensitivity"], changes.max(axis=1).mean())
    np.testing.assert_allclose(means["gradcam", "avg_sensitivity"], changes.mean())
    slopes = column(written[1], "sobel", "gaussian_map_distance") / column(
        written[1], "sobel", "gaussian_image_distance"
    )
    np.testing.assert_allclose(means["sobel", "local_lipschitz"], slopes.max(axis=1).mean())


def test_the_batch_size_changes_nothing(written, tmp_path):
    path, run = written
    shutil.copytree(run.config.outdir / "train_cls", tmp_path / "train_cls")
    changes = ["robustness.batch_size=5", "robustness.controls=[sobel]", f"outdir={tmp_path}"]
    robustness.run(Run(config.read(path, changes)))
    for name in ("gradcam", "smoothgrad", "sobel"):
        found = store.RowReader(tmp_path / "robustness" / f"{name}.h5")
        np.testing.assert_array_equal(found.read("index"), column(run, name, "index"))
        # Batches of another size round differently, which float16 maps show in their third digit.
        np.testing.assert_allclose(found.read("uniform_change"), column(run, name, "uniform_change"), atol=2e-3)


def test_an_invalid_map_of_a_perturbed_image_makes_this_distance_undefined_only(written):
    _, run = written
    test = robustness.test(run.config)
    maps = torch.ones(2, 4, 4)
    maps[1, 0, 0] = torch.inf
    explained = Explained(maps, torch.tensor([False, True]))
    subject = SimpleNamespace(explain=lambda images, targets, indices: explained)
    images = SimpleNamespace(target=np.zeros(2, dtype=np.int64), index=np.arange(2))
    found = test._explained(images, subject, torch.zeros(2, 3, 4, 4))
    np.testing.assert_array_equal(found[0], 1)
    assert np.isnan(found[1]).all()


def test_methods_that_cannot_be_called_are_left_out_with_one_line(written, caplog):
    path, run = written
    names = {file.stem for file in (run.config.outdir / "robustness").glob("*.h5")}
    assert names == {"gradcam", "smoothgrad", "random", "sobel", "centre"}
    with caplog.at_level(logging.INFO):
        robustness.run(run)
    lines = [record.getMessage() for record in caplog.records if "left out" in record.getMessage()]
    assert lines == [
        "robustness: left out, for their maps cannot be made anew: foreign, gradcam+inverse, smoothgrad+inverse, "
        "foreign+inverse"
    ]
    only = Run(config.read(path, ["robustness.attribution_methods=[{name: foreign, method: imported}]",
                                  "robustness.controls=[]", "robustness.twins=[]"]))  # fmt: skip
    with pytest.raises(ConfigError, match="none of foreign can be called"):
        robustness.run(only)
