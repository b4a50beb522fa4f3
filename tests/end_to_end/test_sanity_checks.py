"""The stage sanity-checks on generated images: what looks at no classifier fails, what does passes, and maps are stored."""

import csv
import logging
import shutil

import numpy as np
import pytest

from heatproof import config, store
from heatproof.errors import ConfigError
from heatproof.metrics import statistics
from heatproof.stages import permuted_labels, sanity_checks
from heatproof.stages.evaluate import SampledMaps
from heatproof.stages.run import Run
from heatproof.training.examples import permuted
from tests.end_to_end.conftest import heatproof, results

SECTION = """
sanity_checks:
    test_samples: 10
    batch_size: 8
    orders: [top_down, bottom_up]
    layer_depth: 1
    data_randomisation: {nb_epochs: 2, until_accuracy: 0.2}
    controls: [sobel]
    attribution_methods:
        - {name: gradient, method: heatproof.methods.gradient.Gradient}
"""
CASCADES = ("top_down", "bottom_up")


@pytest.fixture(scope="module")
def written(small_trained):
    """The configuration after training and the stage: its path, and the run."""
    path = small_trained("sanity_checks")
    path.write_text(path.read_text() + SECTION)
    run = Run(config.read(path))
    sanity_checks.run(run)
    return path, run


def lines(run, **wanted):
    with (run.config.outdir / "sanity_checks" / "results.csv").open(newline="") as file:
        found = [line for line in csv.DictReader(file) if wanted.items() <= line.items()]
    assert found
    return found


def maps(run, check, step, method):
    return store.MapReader(run.config.outdir / "sanity_checks" / check / step / method / "test.h5")


def test_what_looks_at_no_classifier_is_the_same_after_every_step_and_fails(written):
    for line in lines(written[1], method="sobel"):
        assert float(line["mean"]) == pytest.approx(1, abs=1e-6), line
        assert line["model_independent"] == "True"
    last = [line for line in lines(written[1], method="sobel") if line["verdict"]]
    assert {line["verdict"] for line in last} == {"fails"}
    assert len(last) == 3 * 4  # both cascades and the permuted labels, four scores


@pytest.mark.parametrize("check", CASCADES)
def test_the_order_of_a_gradients_pixels_is_lost_with_the_weights(written, check):
    found = lines(written[1], method="gradient", check=check, score="spearman")
    (line,) = [line for line in found if line["verdict"]]
    assert (line["verdict"], line["model_independent"]) == ("passes", "False")
    assert abs(float(line["mean"])) < 0.3


def test_similarity_falls_along_the_cascade(written):
    means = [float(line["mean"]) for line in lines(written[1], method="gradient", check="top_down", score="spearman")]
    assert means[0] > means[-1] + 0.1


def test_each_order_walks_through_the_layers(written):
    walks = {}
    for check in CASCADES:
        walks[check] = [line["layer"] for line in lines(written[1], method="sobel", check=check, score="ssim")]
    assert walks["top_down"] == walks["bottom_up"][::-1]
    assert (walks["bottom_up"][0], walks["bottom_up"][-1]) == ("conv1", "linear")
    count = len(walks["top_down"])
    assert len(lines(written[1])) == 2 * 4 * (2 * count + 2)


def test_randomised_maps_are_attribution_files_of_the_same_classes(written):
    _, run = written
    stored = SampledMaps.of(run, run.config.sanity_checks)
    intact = store.MapReader(stored.maps["gradient"].path)
    first, last = maps(run, "top_down", "01_linear", "gradient"), maps(run, "top_down", "06_conv1", "gradient")
    for reader in (first, last):
        reader.verify()
        np.testing.assert_array_equal(reader.index, stored.rows)
        np.testing.assert_array_equal(reader.targets, intact.targets)
    weights = [reader.origin["model"]["weights"] for reader in (intact, first, last)]
    assert len(set(weights)) == 3


def test_both_cascades_end_in_the_same_maps(written):
    ends = [
        maps(written[1], "top_down", "06_conv1", "gradient"),
        maps(written[1], "bottom_up", "06_linear", "gradient"),
    ]
    assert ends[0].origin["model"]["weights"] == ends[1].origin["model"]["weights"]
    np.testing.assert_array_equal(ends[0].maps(), ends[1].maps())


def test_the_other_class_is_never_the_explained_one(written):
    _, run = written
    others = maps(run, "random_logit", "other-class", "gradient")
    intact = store.MapReader(SampledMaps.of(run, run.config.sanity_checks).maps["gradient"].path)
    assert (others.targets != intact.targets).all()
    assert len(set(others.targets.tolist())) > 1
    assert others.origin["model"] == intact.origin["model"]
    assert {line["verdict"] for line in lines(run, check="random_logit")} == {""}


def test_permuted_labels_are_as_frequent_as_before_and_seldom_right(written):
    split = written[1].dataset.split("train")
    changed = permuted(split, seed=3).labels
    np.testing.assert_array_equal(np.bincount(changed), np.bincount(split.labels))
    assert (changed == split.labels).mean() < 0.4


def test_nothing_is_computed_twice_and_what_was_lost_comes_back_in_the_same_bytes(written, monkeypatch):
    path, run = written
    before = results(path)
    with monkeypatch.context() as patched:
        patched.setattr(sanity_checks, "similarities", None)
        patched.setattr(permuted_labels, "_train", None)
        patched.setattr(sanity_checks.Extraction, "_compute", None)
        sanity_checks.run(run)
    folder = run.config.outdir / "sanity_checks"
    shutil.rmtree(folder / "random_logit")
    shutil.rmtree(folder / "bottom_up" / "06_linear")
    for name in ("results.csv", "bottom_up/sobel.h5", "data_randomisation/permuted_labels.pth"):
        (folder / name).unlink()
    sanity_checks.run(Run(config.read(path)))
    after = results(path)
    assert {name for name in before if before[name] != after.get(name)} == set()


def test_a_dry_run_says_what_is_to_be_done_and_does_nothing(written, caplog, tmp_path):
    path, run = written
    caplog.set_level(logging.INFO)
    assert heatproof("sanity-checks", "--config", path, "--dry-run") == 0
    assert " to be " not in caplog.text
    for name in ("train_cls", "extract_cams"):
        shutil.copytree(run.config.outdir / name, tmp_path / name)
    before = sorted(tmp_path.rglob("*"))
    assert heatproof("sanity-checks", "--config", path, f"outdir={tmp_path}", "--dry-run") == 0
    assert sorted(tmp_path.rglob("*")) == before
    for name in ("top_down/06_conv1/gradient/test.h5: to be computed", "permuted_labels.pth: to be trained"):
        assert name in caplog.text


def test_a_network_that_does_not_know_the_permuted_labels_tells_nothing(written, caplog, tmp_path):
    path, run = written
    shutil.copytree(run.config.outdir / "train_cls", tmp_path / "train_cls")
    changes = ["data_randomisation.until_accuracy=0.9", "orders=[]", "random_logit=false"]
    other = Run(config.read(path, [f"outdir={tmp_path}", *(f"sanity_checks.{change}" for change in changes)]))
    with caplog.at_level(logging.WARNING):
        sanity_checks.run(other)
    assert "less than until_accuracy: what its maps look like tells nothing; raise sanity_checks" in caplog.text
    assert {line["verdict"] for line in lines(other)} == {"not testable"}


def test_another_architecture_with_permuted_labels_is_refused(written):
    path, _ = written
    run = Run(config.read(path, ["train_cls.model.arch=heatproof.models.resnet_cifar.ResNet8"]))
    with pytest.raises(ConfigError, match=r"ResNet8 of train_cls\.model, but the maps explain"):
        sanity_checks.run(run)


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [
        (-0.1, 0.2, "passes"),
        (0.6, 0.7, "fails"),
        (0.4, 0.6, "undecided"),
        (-0.9, -0.8, "fails"),
        (-0.6, 0.1, "undecided"),
    ],
)
def test_the_verdict_asks_for_the_whole_interval(low, high, said):
    assert sanity_checks.verdict(statistics.Summary(9, 0, 0.0, 0.1, low, high), low=0.5) == said


def test_without_a_defined_similarity_there_is_no_verdict():
    nan = float("nan")
    assert sanity_checks.verdict(statistics.Summary(0, 9, nan, nan, nan, nan), low=0.5) == "undefined"
