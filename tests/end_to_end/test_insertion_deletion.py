"""The stage insertion-deletion on generated images: what it leaves, and that the known answer wins."""

import csv
import json
import shutil

import numpy as np
import pytest
import torch

from heatproof import config, removal, store
from heatproof.errors import ConfigError
from heatproof.metrics.insertion_deletion import insertion_deletion_auc
from heatproof.stages import insertion_deletion
from heatproof.stages.evaluate import SampledMaps
from heatproof.stages.run import Run

SECTION = """
insertion_deletion:
    step: 0.05
    test_samples: 40
    controls: [random, oracle, anti_oracle]
"""


@pytest.fixture(scope="module")
def written(small_trained):
    """The configuration after training and the stage: its path, and the run."""
    path = small_trained("insertion_deletion")
    path.write_text(path.read_text() + SECTION)
    run = Run(config.read(path))
    insertion_deletion.run(run)
    return path, run


def means(run, score, setting=""):
    with (run.config.outdir / "insertion_deletion" / "results.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if (row["score"], row["setting"]) == (score, setting)]
    return {row["method"]: float(row["mean"]) for row in rows}


@pytest.mark.parametrize("setting", ["", "logit"])
def test_the_oracle_beats_random_which_beats_the_inverse(written, setting):
    insertion = means(written[1], "insertion", setting)
    assert insertion["oracle"] > insertion["random"] > insertion["anti_oracle"]
    deletion = means(written[1], "deletion", setting)
    assert deletion["oracle"] < deletion["random"] < deletion["anti_oracle"]
    difference = means(written[1], "insertion_minus_deletion", setting)
    np.testing.assert_allclose(difference["oracle"], insertion["oracle"] - deletion["oracle"], rtol=1e-5)


def test_the_start_image_is_the_same_for_all_methods(written):
    start = means(written[1], "start_score")
    assert len(start) == 5
    np.testing.assert_allclose(list(start.values()), start["random"], atol=1e-6)


def test_curves_start_and_end_where_they_should(written):
    _, run = written
    stored = store.RowReader(run.config.outdir / "insertion_deletion" / "gradcam.h5")
    insertion, deletion = stored.read("insertion_probability"), stored.read("deletion_probability")
    # 51 of 1024 pixels a step: twenty steps, and a shorter one.
    assert insertion.shape == deletion.shape == (40, 22)
    np.testing.assert_allclose(insertion[:, -1], deletion[:, 0], atol=1e-6)
    classifier = run.trained(run.config.insertion_deletion.model)
    pixels = run.dataset.split("test").pixels(stored.read("index"))
    mean = classifier.normalization.mean
    for fill, found in ((removal.RiseBlur(mean), insertion[:, 0]), (removal.ZeroNormalised(mean), deletion[:, -1])):
        replaced = fill(pixels, torch.ones(40, 32, 32, dtype=torch.bool))
        with torch.no_grad():
            probability = classifier.module(classifier.normalization(replaced)).softmax(dim=1)
        np.testing.assert_allclose(found, probability[range(40), stored.read("target")], atol=1e-5)


def test_a_second_run_computes_nothing(written, monkeypatch):
    monkeypatch.setattr(removal, "degraded_scores", None)
    insertion_deletion.run(Run(config.read(written[0])))


@pytest.mark.parametrize(
    ("section", "shares"),
    [
        ({"step": 256}, [0, 0.25, 0.5, 0.75, 1]),
        ({"step": 1 / 3}, [0, 341 / 1024, 682 / 1024, 1023 / 1024, 1]),
        ({"step": 1e-6}, np.arange(1025) / 1024),
        ({"patch": 16}, [0, 0.25, 0.5, 0.75, 1]),
        ({"patch": 16, "step": 0.5}, [0, 0.5, 1]),
        ({"patch": 16, "step": 3}, [0, 0.75, 1]),
        ({"step": 5000}, [0, 1]),
    ],
)
def test_steps_are_counts_or_shares_of_pixels_or_of_squares(written, section, shares):
    settings = written[1].config.insertion_deletion.model_copy(update=section)
    test = insertion_deletion.InsertionDeletionTest(settings)
    np.testing.assert_allclose(test.shares((32, 32)), shares, atol=1e-12)


@pytest.fixture(scope="module")
def squares(written):
    """The stage's answers for whole squares of 8 pixels, black to image and image to black; its run."""
    path, _ = written
    outdir = path.parent / "squares"
    shutil.copytree(path.parent / "out", outdir)
    changed = ["insertion_deletion.patch=8", "insertion_deletion.insertion_fill=black", "insertion_deletion.step=1"]
    changed += ["insertion_deletion.deletion_fill=black", f"outdir={outdir}"]
    run = Run(config.read(path, changed))
    insertion_deletion.run(run)
    return run


def test_whole_squares_come_and_go(squares):
    stored = store.RowReader(squares.config.outdir / "insertion_deletion" / "oracle.h5")
    insertion, deletion = stored.read("insertion_probability"), stored.read("deletion_probability")
    assert insertion.shape == (40, 17)
    maps = store.MapReader(SampledMaps.of(squares, squares.config.insertion_deletion).maps["oracle"].path)
    classifier = squares.trained(squares.config.insertion_deletion.model)
    index = stored.read("index")
    pixels = squares.dataset.split("test").pixels(index[:1]).float() / 255
    one = maps.maps(np.flatnonzero(maps.index == index[0]))[0].reshape(4, 8, 4, 8).sum(axis=(1, 3))
    first = one.argmax()
    shown = torch.zeros(4, 4)
    shown.view(-1)[first] = 1
    shown = shown.repeat_interleave(8, 0).repeat_interleave(8, 1)
    assert (one == one.max()).sum() == 1
    for curve, mask in ((insertion, shown), (deletion, 1 - shown)):
        with torch.no_grad():
            probability = classifier.module(classifier.normalization(pixels * mask)).softmax(dim=1)
        np.testing.assert_allclose(curve[0, 1], probability[0, stored.read("target")[0]], atol=1e-5)
    # The same start for both: what the one ends with, the other starts from.
    np.testing.assert_allclose(insertion[:, 0], deletion[:, -1], atol=1e-6)
    scores = insertion_deletion_auc(insertion) - insertion_deletion_auc(deletion)
    np.testing.assert_allclose(means(squares, "insertion_minus_deletion")["oracle"], scores.mean(), atol=1e-6)


def test_settings_are_part_of_the_origin(written):
    _, run = written
    origin = insertion_deletion.test(run.config).origin()
    assert origin["insertion_fill"] == "rise_blur"
    assert json.dumps(origin)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("insertion_deletion.step=0", "insertion_deletion.step: 0"),
        ("insertion_deletion.step=-0.5", "insertion_deletion.step: -0.5"),
        ("insertion_deletion.steps=3", "insertion_deletion.steps: unknown key; did you mean 'step'"),
    ],
)
def test_messages(written, change, message):
    with pytest.raises(ConfigError, match=message):
        config.read(written[0], [change])
