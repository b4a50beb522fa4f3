"""The stage road on generated images: the known answer wins, both orders are compared, and it serves as a fill of ROAR."""

import csv
import json

import numpy as np
import pytest
import torch

from heatproof import config, removal, store
from heatproof.errors import ConfigError
from heatproof.stages import road
from heatproof.stages.run import Run, build_fill
from tests.end_to_end.conftest import heatproof

SECTION = """
road:
    percentiles: [20, 5]
    test_samples: 40
    controls: [random, oracle, anti_oracle]
"""


@pytest.fixture(scope="module")
def written(small_trained):
    """The configuration after training and the stage: its path, and the run."""
    path = small_trained("road")
    path.write_text(path.read_text() + SECTION)
    run = Run(config.read(path))
    road.run(run)
    return path, run


def table(run, name):
    with (run.config.outdir / "road" / name).open(newline="") as file:
        return list(csv.DictReader(file))


def means(run, score, setting=""):
    rows = [row for row in table(run, "results.csv") if (row["score"], row["setting"]) == (score, setting)]
    return {row["method"]: float(row["mean"]) for row in rows}


def test_the_oracle_beats_random_which_beats_the_inverse(written):
    _, run = written
    scores = means(run, "road")
    assert scores["oracle"] > scores["random"] > scores["anti_oracle"]
    # The accuracy of a classifier trained for seconds says little on 40 images; its probabilities do.
    for order, sign in (("morf", -1), ("lerf", 1)):
        for score, setting in ((f"{order}_area", ""), (f"{order}_probability", "removed=0.2")):
            found = means(run, score, setting)
            assert sign * found["oracle"] > sign * found["random"] > sign * found["anti_oracle"], score


def test_answers_are_those_of_imputed_images(written):
    _, run = written
    stored = store.RowReader(run.config.outdir / "road" / "gradcam.h5")
    index, probability, predicted = (stored.read(name) for name in ("index", "probability", "predicted"))
    assert probability.shape == predicted.shape == (40, 2, 3)
    maps = store.MapReader(run.config.outdir / "extract_cams" / "gradcam" / "test-40.h5")
    np.testing.assert_array_equal(maps.index, index)
    classifier = run.trained(run.config.road.model)
    pixels = run.dataset.split("test").pixels(index)
    fill = removal.NoisyLinear(run.statistics.mean, noise=0.01, seed=run.config.seed)
    for place, first in enumerate(("most", "least")):
        gone = torch.from_numpy(removal.removed(maps.ranks(np.arange(40)), 0.2, first))
        with torch.no_grad():
            logits = classifier.module(classifier.normalization(fill(pixels, gone, index)))
        np.testing.assert_array_equal(predicted[:, place, 2], logits.argmax(dim=1))
        expected = logits.softmax(dim=1)[range(40), stored.read("target")]
        np.testing.assert_allclose(probability[:, place, 2], expected, atol=1e-5)
    right = (predicted[:, 1, 2] == stored.read("label")).mean()
    assert means(run, "lerf_accuracy", "removed=0.2")["gradcam"] == pytest.approx(right)
    same = (predicted[:, 0, 1] == stored.read("prediction")).mean()
    assert means(run, "morf_unchanged", "removed=0.05")["gradcam"] == pytest.approx(same)
    assert means(run, "lerf_unchanged", "removed=0")["gradcam"] == 1


def test_both_orders_are_compared_at_each_fraction_and_over_all(written):
    _, run = written
    rows = table(run, "consistency.csv")
    found = json.loads((run.config.outdir / "road" / "consistency.json").read_text())["consistency"]
    assert len(rows) == len(found) == 2 * 2 * 3
    for row, entry in zip(rows, found, strict=True):
        assert all(row[name] == ("" if value is None else str(value)) for name, value in entry.items())
    by = {(row["score"], row["methods"], row["removed_fraction"]): row for row in rows}
    # Two methods that are no controls: their rankings agree or disagree by chance, and are not compared.
    assert by["accuracy", "without controls", "0.2"]["spearman"] == ""
    overall = by["probability", "with controls", ""]
    assert (overall["n_methods"], overall["n"]) == ("5", "40")
    names = ("gradcam", "smoothgrad", "random", "oracle", "anti_oracle")
    lerf, morf = (
        np.array([sum(means(run, f"{order}_probability", f"removed={f}")[n] for f in ("0.05", "0.2")) for n in names])
        for order in ("lerf", "morf")
    )
    ranks = lerf.argsort().argsort(), (-morf).argsort().argsort()
    assert float(overall["spearman"]) == pytest.approx(np.corrcoef(*ranks)[0, 1])
    assert float(overall["low"]) <= float(overall["spearman"]) <= float(overall["high"])


def test_an_image_with_an_invalid_map_has_no_answer():
    values = {
        "probability": np.array([[[0.5, 0.2]] * 2, [[np.nan] * 2] * 2]),
        "predicted": np.ones((2, 2, 2), dtype=int),
    }
    values |= {"label": np.array([1, 1]), "prediction": np.array([0, 1])}
    settings = config.Road.model_construct(percentiles=[50])
    scores = [score for score in road.RoadTest(settings).read(values.__getitem__) if hasattr(score, "setting")]
    assert {score.name for score in scores} == {score.name for score in road.RoadTest.scores}
    for score in scores:
        np.testing.assert_array_equal(np.isnan(score.values), [False, True], err_msg=score.name)


def test_a_second_run_computes_nothing(written, monkeypatch):
    path, run = written
    before = {file: file.stat().st_mtime_ns for file in (run.config.outdir / "road").iterdir()}
    monkeypatch.setattr(removal, "degraded_scores", None)
    road.run(Run(config.read(path)))
    assert before == {file: file.stat().st_mtime_ns for file in (run.config.outdir / "road").iterdir()}


def test_the_noise_of_roads_imputation_can_be_set_wherever_a_fill_is_asked_for(written):
    _, run = written
    for asked, noise in (
        ("noisy_linear", 0.01),
        (config.Plugin.model_validate({"name": "noisy_linear", "noise": 0.0}), 0),
    ):
        fill = build_fill(run, asked, lambda: run.statistics)
        assert fill == removal.NoisyLinear(run.statistics.mean, noise=noise, seed=run.config.seed)


def test_road_with_retraining_is_roar_with_roads_imputation(written):
    path, run = written
    only = "attribution_methods=[{name: oracle, method: heatproof.methods.controls.Oracle, control: true}]"
    changed = ["retrain_cls.percentiles=[30]", "retrain_cls.seeds=[0]", "retrain_cls.metrics=[roar]"]
    changed += ["retrain_cls.fill={name: noisy_linear, noise: 0.0}"]
    changed += [
        f"{section}.{option}" for section in ("extract_cams", "retrain_cls") for option in (only, "controls=[]")
    ]
    for stage in ("extract-attribution-maps", "evaluate-attribution-maps-roar"):
        assert heatproof(stage, "--config", path, *changed) == 0
    cell = json.loads((run.config.outdir / "retrain_cls" / "roar" / "oracle" / "30" / "seed0.json").read_text())
    assert cell["origin"]["fill"] == {"name": "noisy_linear", "noise": 0.0}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("road.percentiles=[0, 10]", r"road.percentiles\[0\]: 0: "),
        ("road.percentiles=[10, 110]", r"road.percentiles\[1\]: 110: "),
        ("road.noise=0", "road.noise: unknown key"),
    ],
)
def test_messages(written, change, message):
    with pytest.raises(ConfigError, match=message):
        config.read(written[0], [change])
