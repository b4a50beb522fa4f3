"""Controls of ROAR on generated data: leaking masks are found, twins are files like any other, chains of maps go on."""

import csv
import json
import shutil

import numpy as np
import pytest
import torch

from heatproof import store
from tests.end_to_end.conftest import heatproof, results

# The oracle's masks at 9.5 % are the objects. Crops shift outlines, which costs training time here and proves nothing.
ORACLE_ONLY = {
    "metrics: [roar, kar]": "metrics: mask_only",
    "percentiles: [30]": "percentiles: [9.5]",
    "seeds: [0, 1]": "seeds: [0]",
    "test_images: 96": "test_images: 160, distractors: 0",
    "    batch_size: 32\n    nb_epochs: 1\n": "    batch_size: 16\n    nb_epochs: 2\n",
    "controls: &CONTROLS [random, oracle]": "controls: &CONTROLS [random]",
    "nb_epochs: 3": "nb_epochs: 1",  # the oracle does not ask the classifier
}


def table(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def oracle_only(small, name, **changes):
    oracle = "        - {name: truth, method: heatproof.methods.controls.Oracle}\n"
    config = small(name, **ORACLE_ONLY, **changes)
    text = config.read_text()
    start, stop = text.index("        - {name: gradcam"), text.index("retrain_cls:")
    config.write_text(text[:start] + oracle + text[stop:])
    return config


@pytest.fixture(scope="module", params=["texture", "shape"])
def masks(request, small):
    config = oracle_only(small, request.param, **{"classes: 4": f"classes: 4, evidence: {request.param}"})
    assert heatproof("roar", "--config", config) == 0
    return request.param, config.parent / "out" / "retrain_cls"


def test_the_oracle_is_flagged_where_the_outline_tells_the_class_and_only_there(masks):
    evidence, folder = masks
    rows = {row["method"]: row for row in table(folder / "summary.csv")}
    assert rows["random"]["leaks"] == "False"
    assert rows["truth"]["leaks"] == str(evidence == "shape")


# --- twins and recursive ROAR

ALL_OF_RUN_0 = ["10/seed0.json", "10/seed0.pth", "10/seed0/train.h5", "10/seed0/test.h5", "30/seed0.json"]
TWINS = "[blurred, inverse, average]"
CHAINED = {
    "train_images: 320": "train_images: 160",
    "controls: &CONTROLS [random, oracle]": f"twins: &TWINS {TWINS}\n    controls: &CONTROLS [random]",
    "metrics: [roar, kar]": "metrics: [roar, kar, mask_only]\n    recursive: true\n    twins: [inverse]",
    "percentiles: [30]": "percentiles: [30, 10]",
    "test_samples: 40": "test_samples: 40\n    twins: *TWINS",
}


@pytest.fixture(scope="module")
def chained(small):
    """One method with all its twins, retrained with maps made anew: the configuration's path, after all stages."""
    config = small("chained", **CHAINED)
    text = config.read_text()
    start, stop = text.index("        - {name: smoothgrad"), text.index("retrain_cls:")
    config.write_text(text[:start] + text[stop:])
    assert heatproof("roar", "--config", config) == 0
    assert heatproof("lerf", "--config", config) == 0
    return config


def reader(config, *names):
    return store.MapReader(config.parent.joinpath("out", *names))


def test_twins_are_files_that_name_their_source(chained):
    source = reader(chained, "extract_cams", "gradcam", "train.h5")
    for kind in ("blurred", "inverse", "average"):
        twin = reader(chained, "extract_cams", f"gradcam+{kind}", "train.h5")
        assert twin.origin["source"] == source.content_id()
        assert twin.method == f"gradcam+{kind}"
        for column in ("index", "label", "target", "prediction", "logits"):
            np.testing.assert_array_equal(twin.read(column), source.read(column))
    inverse = reader(chained, "extract_cams", "gradcam+inverse", "train.h5")
    np.testing.assert_array_equal(inverse.ranks().astype(int) + source.ranks(), 32 * 32 - 1)


def test_every_test_takes_twins(chained):
    out = chained.parent / "out"
    found = {row["method"] for row in table(out / "pixel_perturbation_analysis" / "results.csv")}
    assert found == {"gradcam", "random", "gradcam+blurred", "gradcam+inverse", "gradcam+average"}
    rows = [row for row in table(out / "retrain_cls" / "results.csv") if row["metric"] == "mask_only"]
    assert {row["method"] for row in rows} == {"gradcam", "random", "gradcam+inverse"}
    assert {row["control"] for row in rows if "+" in row["method"]} == {"True"}
    assert {row["chance_level"] for row in rows} == {"0.25"}


def test_a_twin_is_stale_when_its_source_is(chained, caplog):
    caplog.set_level("INFO")
    change = "extract_cams.attribution_methods.0.kwargs.layer=layer2.0.relu"
    assert heatproof("extract-attribution-maps", "--config", chained, "--dry-run", change) == 0
    stale = [line for line in caplog.text.splitlines() if "stale" in line]
    assert len(stale) == 3 * 4
    assert all("layer3.0.relu" in line for line in stale)


def test_a_chains_first_cell_is_that_of_roar(chained):
    folder = chained.parent / "out" / "retrain_cls"
    for run in (0, 1):
        roar, recursive = (
            json.loads((folder / metric / "gradcam" / "10" / f"seed{run}.json").read_text())
            for metric in ("roar", "recursive")
        )
        assert recursive["predictions"] == roar["predictions"]


def test_what_is_gone_stays_gone_and_the_retrained_network_orders_the_rest(chained):
    before = reader(chained, "extract_cams", "gradcam", "test.h5")
    after = reader(chained, "retrain_cls", "recursive", "gradcam", "10", "seed1", "test.h5")
    first = before.ranks() < 102  # 10 % of 1024
    np.testing.assert_array_equal(after.ranks()[first], before.ranks()[first])
    assert (after.ranks()[~first] >= 102).all()
    # Known truth: behind the hole the order is that of the new maps.
    order = np.argsort(after.ranks().reshape(96, -1), axis=1)[:, 102:]
    values = np.take_along_axis(after.maps().reshape(96, -1), order, axis=1)
    assert (np.diff(values, axis=1) <= 0).all()
    assert (after.ranks() != before.ranks()).any()
    assert after.origin["retraining"]["percentile"] == 10
    weights = chained.parent / "out" / "retrain_cls" / "recursive" / "gradcam" / "10" / "seed1.pth"
    assert set(torch.load(weights, weights_only=True))
    assert not list(weights.parents[1].glob("30/*.pth"))  # nobody needs them


@pytest.mark.parametrize(
    "lost",
    [
        # One run before its second network, the other one before anything.
        ["10/seed1/train.h5", "30/seed1.json", *ALL_OF_RUN_0],
        ["10/seed1.pth"],
    ],
)
def test_a_chain_goes_on_where_it_stopped_and_ends_the_same(chained, lost):
    before = results(chained)
    folder = chained.parent / "out" / "retrain_cls" / "recursive" / "gradcam"
    for name in lost:
        (folder / name).unlink()
    assert heatproof("evaluate-attribution-maps-roar", "--config", chained) == 0
    after = results(chained)
    assert after.keys() == before.keys()
    for name, content in before.items():
        assert after[name] == content, name


def test_the_summary_counts_runs_and_says_what_they_cannot_tell(chained):
    rows = table(chained.parent / "out" / "retrain_cls" / "summary.csv")
    scores = {(row["score"], row["metric"]) for row in rows}
    both = {(name, "roar, kar") for name in ("diff_roar", "diff_roar_pairs", "order_kendall", "order_spearman")}
    areas = {(name, metric) for name in ("area_to_random", "racu") for metric in ("roar", "recursive")}
    accuracies = {("accuracy", metric) for metric in ("roar", "kar", "recursive", "mask_only")}
    assert scores == both | areas | accuracies | {("area_to_random", "kar")}
    runs = [row for row in rows if row["score"] in ("accuracy", "area_to_random", "diff_roar")]
    assert {row["n"] for row in runs} == {"2"}
    assert {row["wilcoxon_p"] for row in runs if row["difference_to_random"]} == {"not testable"}
    assert {row["mean"] for row in rows if row["score"].startswith("order")} == {"not testable"}  # one method


@pytest.fixture
def copied(chained, tmp_path):
    """The finished run, to be changed."""
    shutil.copytree(chained.parent, tmp_path / "run")
    config = tmp_path / "run" / "small.yml"
    config.write_text(config.read_text().replace(str(chained.parent), str(tmp_path / "run")))
    return config


def test_maps_of_true_labels_are_refused_unless_asked_for(copied, capsys):
    label = "extract_cams.target=label"
    assert heatproof("extract-attribution-maps", "--config", copied, label) == 0
    capsys.readouterr()
    assert heatproof("evaluate-attribution-maps-roar", "--config", copied, label, "--dry-run") == 2
    assert (
        "the maps explain the true label, which a retrained network could read off the mask" in capsys.readouterr().err
    )
    allowed = "retrain_cls.allow_label_target=true"
    assert heatproof("evaluate-attribution-maps-roar", "--config", copied, label, allowed, "--dry-run") == 0


def test_twins_of_sampled_images_come_from_the_full_file_or_from_the_samples(copied):
    section = "pixel_perturbation_analysis"
    assert heatproof("lerf", "--config", copied, f"{section}.twins=[max3]") == 0
    full = reader(copied, "extract_cams", "gradcam", "test.h5")
    twin = reader(copied, "extract_cams", "gradcam+max3", "test-40.h5")
    assert twin.origin["source"] == full.content_id()
    np.testing.assert_array_equal(twin.targets, full.targets[twin.index])
    other = [f"{section}.attribution_methods.0.name=other", f"{section}.twins=[average, inverse]"]
    assert heatproof("lerf", "--config", copied, *other) == 0
    sampled = reader(copied, "extract_cams", "other", "test-40.h5")
    average = reader(copied, "extract_cams", "other+average", "test-40.h5")
    assert average.origin["source"] == sampled.content_id()
    # The mean of the sample's other images, not of all test images.
    expected = sampled.maps()[1:].astype(np.float64).mean(axis=0)
    np.testing.assert_allclose(average.maps([0])[0], expected, atol=np.abs(expected).max() * 1e-3)
