"""The stage localise: known answers on generated data, published numbers end to end, and what it refuses."""

import csv
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from heatproof import config, store
from heatproof.datasets import Split
from heatproof.errors import ConfigError, DataError
from heatproof.metrics import boxes, masks
from heatproof.models import LoadedModel, Normalization
from heatproof.stages import localise
from heatproof.stages.evaluate import Images
from heatproof.stages.run import Run
from tests.end_to_end.conftest import heatproof

GOLDEN = Path(__file__).parents[1] / "golden" / "casme"
SECTION = """
localise:
    test_samples: 48
    controls: [random, oracle, anti_oracle]
"""


@pytest.fixture(scope="module")
def written(small_trained):
    """The configuration after training and the stage: its path, and the run."""
    path = small_trained("localise")
    path.write_text(path.read_text() + SECTION)
    run = Run(config.read(path))
    localise.run(run)
    return path, run


def folder(run):
    return run.config.outdir / "localise"


def table(run):
    with (folder(run) / "results.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def means(run, score):
    return {row["method"]: float(row["mean"]) for row in table(run) if row["score"] == score}


def test_the_oracle_finds_the_object_whatever_is_asked(written):
    _, run = written
    perfect = [
        "pointing", "pointing_class_mean", "mass_in_region", "absolute_mass_in_region", "rank_in_region", "top_k_in_region",
        "roc_area_in_region", "average_precision", "pxap", "max_box_acc", "max_box_acc_v2", "box_acc_held_out",
        "box_acc_v2_held_out", "box_overlap",
    ]  # fmt: skip
    for score in perfect:
        found = means(run, score)
        assert found["oracle"] == pytest.approx(1), score
        assert found["random"] < 0.6, score
        assert found["anti_oracle"] < 0.2, score
    assert means(run, "le")["oracle"] == 0
    assert means(run, "le")["anti_oracle"] == 1
    assert means(run, "f1")["oracle"] > 0.8 > 0.3 > means(run, "f1")["random"] > means(run, "f1")["anti_oracle"]


def test_what_a_map_that_knows_nothing_scores_stands_beside_the_result(written):
    _, run = written
    chance = {row["score"]: row["chance"] for row in table(run) if row["method"] == "random"}
    for score in ("pointing", "mass_in_region", "rank_in_region", "top_k_in_region", "average_precision"):
        assert float(chance[score]) == pytest.approx(means(run, score)["random"], abs=0.06)
    assert float(chance["roc_area_in_region"]) == 0.5
    # A box around the whole image: it errs on objects this small, and shows the classifier all there is.
    assert float(chance["le"]) == 1
    assert float(chance["sm1"]) == 0
    rows = store.RowReader(folder(run) / "random.h5")
    assert float(chance["sm_acc"]) == (rows.read("prediction") == rows.read("label")).mean()
    share = rows.read("region_share")
    assert float(chance["f1"]) == pytest.approx((2 * share / (1 + share)).mean(), abs=0.05)
    assert means(run, "reachable_overlap")["random"] == 1


def test_all_declared_scores_are_read_and_no_other(written):
    _, run = written
    test = localise.test(run.config)
    assert {row["score"] for row in table(run)} == {score.name for score in test.scores}
    assert {row["setting"] for row in table(run) if row["score"] == "pointing"} == {"tolerance=1"}
    assert {score.name for score in test.scores if score.headline} == {
        "pointing",
        "mass_in_region",
        "max_box_acc_v2",
        "le",
    }


def test_the_published_summary_is_written_beside_the_rows(written):
    _, run = written
    for method in ("gradcam", "smoothgrad", "random", "oracle", "anti_oracle"):
        found = json.loads((folder(run) / f"{method}.json").read_text())
        keys = "F1 F1a OM LE SM SM1 SM2 top1 top5 sm_acc binarized avg_mask std_mask entropy tv"
        assert found.keys() == set(keys.split())
        assert found["SM"] == pytest.approx(found["SM1"] - found["SM2"])
        assert found["OM"] >= found["LE"]
        assert found["LE"] == means(run, "le")[method]
        rows = store.RowReader(folder(run) / f"{method}.h5")
        assert found["top1"] == 100 * (rows.read("prediction") == rows.read("label")).mean()
        assert found["sm_acc"] == pytest.approx(100 * means(run, "sm_acc")[method])


def test_each_class_is_told_with_the_number_of_its_tests(written):
    _, run = written
    with (folder(run) / "classes.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["method"] == "gradcam"]
    stored = store.RowReader(folder(run) / "gradcam.h5")
    labels, hits, errors = (stored.read(name) for name in ("label", "hit", "le"))
    assert sum(int(row["pointing_tests"]) for row in rows) == 48
    for row in rows:
        chosen = labels == run.dataset.class_names.index(row["class"])
        assert (int(row["pointing_tests"]), int(row["le_tests"])) == (chosen.sum(), chosen.sum())
        assert float(row["pointing"]) == pytest.approx(hits[chosen].mean())
        assert float(row["le"]) == pytest.approx(errors[chosen].mean())
    mean = np.mean([float(row["pointing"]) for row in rows])
    assert mean == pytest.approx(means(run, "pointing_class_mean")["gradcam"])


def test_a_second_run_computes_nothing(written, monkeypatch):
    _, run = written
    before = {path: path.stat().st_mtime_ns for path in folder(run).iterdir()}
    monkeypatch.setattr(localise.Localisation, "measure", None)
    localise.run(run)
    assert {path: path.stat().st_mtime_ns for path in folder(run).iterdir()} == before


# Published numbers, through the stage's own measure and summary


class Tiny(nn.Module):
    """The classifier of the golden vectors."""

    def __init__(self):
        super().__init__()
        self.conv0 = nn.Conv2d(3, 4, 7, 4, 3)
        self.conv1 = nn.Conv2d(4, 6, 3, 1, 1)
        self.conv2 = nn.Conv2d(6, 8, 3, 2, 1)
        self.conv3 = nn.Conv2d(8, 10, 3, 2, 1)
        self.bn3 = nn.BatchNorm2d(10)
        self.conv4 = nn.Conv2d(10, 12, 3, 2, 1)
        self.fc = nn.Linear(12, 10)

    def forward(self, images):
        features = self.conv2(self.conv1(self.conv0(images).relu()).relu()).relu()
        features = self.conv4(self.bn3(self.conv3(features)).relu()).relu()
        return self.fc(features.mean(dim=(2, 3)))


def tiny(data, prefix):
    model = Tiny().eval()
    named = {name.removeprefix(prefix): torch.from_numpy(v) for name, v in data.items() if name.startswith(prefix)}
    model.load_state_dict(named)
    return model


def enlarged(small, times):
    return small.repeat(times, axis=-1).repeat(times, axis=-2)


def corners(box):
    return [box["xmin"], box["ymin"], box["xmax"], box["ymax"]]


@pytest.mark.parametrize(("name", "convention"), [("casme", "as_published"), ("casme_with_tight_box_patch", "exact")])
def test_a_whole_scoring_run_is_the_published_one(name, convention):
    data = dict(np.load(GOLDEN / "score_run.npz"))
    run = json.loads((GOLDEN / "score_run.json").read_text())
    pictures, labels = torch.from_numpy(enlarged(data["x28"], 8)), data["target"]
    with torch.no_grad():
        logits = tiny(data, "clf/")(pictures).numpy()
    maps = enlarged(data["mask56"], 4)
    truths = [np.array([corners(box) for box in image]) for image in run["gt_boxes"]]
    images = made(maps, pictures, labels, logits, truths)
    # The reference gives normalised images to the classifier, as they are stored here.
    loaded = LoadedModel(tiny(data, "orig/"), Normalization((0.0,) * 3, (1.0,) * 3), "")
    test = localise.Localisation(settings(mask="as_is", convention=convention, threshold_interval=0.2), seed=0)
    columns = test.measure(images, subject(loaded))
    recorded = "recorded_boxes" if convention == "as_published" else None
    if recorded:
        np.testing.assert_array_equal(columns["box"], [corners(box) for box in run[recorded]])
    else:
        np.testing.assert_array_equal(columns["box"], [corners(box) for box in run["external_boxes"].values()])
    found = localise.summary(columns.__getitem__)
    # As published, the deviation of masks is taken within the batches of that run.
    found["std_mask"] = masks.spread_of_averages(columns["avg_mask"], [5, 4, 3])
    for key, expected in run[name].items():
        np.testing.assert_allclose(found[key], expected, atol=1e-3 if key.startswith("SM") else 1e-5, err_msg=key)
    if convention == "as_published":
        for row, case in enumerate(run["per_image"]):
            np.testing.assert_allclose(columns["f1"][row], max(case["f1"]), atol=1e-5)
            assert columns["le"][row] == 1 - max(case["hit"])
            assert columns["top1"][row] == case["is_correct"]


def test_the_saliency_metric_of_given_boxes_is_the_published_one():
    data = dict(np.load(GOLDEN / "saliency_metric.npz"))
    pictures, labels = torch.from_numpy(enlarged(data["x28"], 8)), data["target"]
    drawn = data["boxes_xmin_xmax_ymin_ymax"][:, [0, 2, 1, 3]]
    maps = np.zeros((8, 224, 224), dtype=np.float32)
    truths = [box[None] for box in drawn]
    images = made(maps, pictures, labels, np.zeros((8, 10), dtype=np.float32), truths)
    loaded = LoadedModel(tiny(data, "clf/"), Normalization((0.0,) * 3, (1.0,) * 3), "")
    test = localise.Localisation(settings(rows_per_forward=3), seed=0)
    accepted = np.eye(10, dtype=bool)[labels]
    log_probability, correct = test._content(images, subject(loaded), drawn, accepted)
    np.testing.assert_allclose(boxes.log_area(drawn, (224, 224)), data["sm1_log_area"], atol=1e-3)
    np.testing.assert_allclose(log_probability, data["sm2_log_prob"], atol=1e-3)
    assert 100 * correct.mean() == data["acc_percent"]
    # True boxes in place of drawn ones: the terms are averaged over an image's boxes, cut at the frame.
    given = json.loads((GOLDEN / "saliency_metric_gt_boxes.json").read_text())
    for row, image in enumerate(given):
        visible = np.clip([corners(box) for box in image], 0, 224)
        rows = np.full(len(visible), row)
        repeated = made(
            maps[rows], pictures[rows], labels[rows], np.zeros((len(rows), 10), dtype=np.float32), visible[:, None]
        )
        log_probability, _ = test._content(repeated, subject(loaded), visible, accepted[rows])
        area = boxes.log_area(visible, (224, 224))
        np.testing.assert_allclose(area.mean(), data["gt_sm1"][row], atol=1e-3)
        np.testing.assert_allclose(log_probability.mean(), data["gt_sm2"][row], atol=1e-3)
        sm = boxes.saliency_metric(area, log_probability).mean()
        np.testing.assert_allclose(sm, data["gt_sm"][row], atol=1e-3)


# What is right, where the model's classes are not the data's


def settings(**changes):
    model = {"arch": "x"}
    methods = [{"name": "m", "method": "x"}]
    return config.Localise.model_validate({"model": model, "attribution_methods": methods} | changes)


def subject(loaded, class_names=tuple("0123456789")):
    data = SimpleNamespace(dataset="Made")
    run = SimpleNamespace(
        dataset=SimpleNamespace(class_names=class_names),
        config=SimpleNamespace(data=data),
        require_labels=lambda *arguments: None,
    )
    return SimpleNamespace(loaded=loaded, run=run, extraction=SimpleNamespace(model=None))


def made(maps, pictures, labels, logits, truths):
    count = len(maps)
    order = np.argsort(-maps.reshape(count, -1), axis=1, kind="stable")
    ranks = np.argsort(order, axis=1).reshape(maps.shape)
    regions = np.zeros(maps.shape, dtype=bool)
    for region, truth in zip(regions, truths, strict=True):
        for x0, y0, x1, y1 in np.maximum(truth, 0):
            region[y0:y1, x0:x1] = True
    return Images(
        index=np.arange(count),
        label=labels,
        target=labels,
        prediction=logits.argmax(axis=1),
        logits=logits,
        pixels=pictures,
        maps=maps.astype(np.float32),
        ranks=torch.from_numpy(ranks.astype(np.int32)),
        invalid=np.zeros(count, dtype=bool),
        regions=regions,
        boxes=truths,
        ignored=None,
    )


class Colours(nn.Module):
    """Three logits: the mean of each channel."""

    def forward(self, images):
        return 4 * images.mean(dim=(2, 3))


def coloured(labels, truths=None):
    """Two pictures of 8 x 8, red in the left half and green in the right one; maps high on the left."""
    pictures = torch.zeros(2, 3, 8, 8)
    pictures[:, 0, :, :4], pictures[:, 1, :, 4:] = 1, 1
    maps = np.zeros((2, 8, 8), dtype=np.float32)
    maps[:, :, :4] = 1
    logits = np.array([[3.0, 2.0, 1.0], [1.0, 3.0, 2.0]], dtype=np.float32)
    truths = [np.array([[0, 0, 4, 8]])] * 2 if truths is None else truths
    return made(maps, pictures, np.array(labels), logits, truths)


def measured(images, class_names, **changes):
    loaded = LoadedModel(Colours(), Normalization((0.0,) * 3, (1.0,) * 3), "")
    test = localise.Localisation(settings(threshold_interval=0.25, **changes), seed=0)
    return test.measure(images, subject(loaded, class_names))


def test_several_classes_of_the_model_may_be_right_for_a_label():
    accepted = {"warm": [0, 1], "cold": [2], "other": []}
    found = measured(coloured([0, 1]), ("warm", "cold", "other"), accepted_classes=accepted)
    np.testing.assert_array_equal(found["top1"], [1, 0])
    np.testing.assert_array_equal(found["top5"], [1, 1])
    np.testing.assert_array_equal(found["om"], [0, 1])
    # The box holds red alone: logits 4, 0, 0.
    whole = np.exp(4) + 2
    np.testing.assert_allclose(found["sm2"], np.log([(np.exp(4) + 1) / whole, 1 / whole]))
    np.testing.assert_array_equal(found["sm_correct"], [1, 0])
    found = measured(coloured([2, 2]), ("warm", "cold", "other"), accepted_classes=accepted)
    for name in ("top1", "top5", "om", "sm2", "sm_correct"):
        assert np.isnan(found[name]).all(), name
    np.testing.assert_array_equal(found["le"], 0)


def test_a_label_that_the_model_does_not_know_is_one_clear_line():
    with pytest.raises(ConfigError, match=r"localise.accepted_classes: 'c3' would be class 3; the model has 3 classes"):
        measured(coloured([0, 3]), ("c0", "c1", "c2", "c3"))


def test_an_image_whose_object_is_not_in_it_is_undefined():
    truths = [np.array([[9, 9, 12, 12]]), np.array([[0, 0, 4, 8]])]
    found = measured(coloured([0, 0], truths), ("a", "b", "c"))
    undefined = [
        "hit",
        "mass_in_region",
        "rank_in_region",
        "box_overlap",
        "le",
        "om",
        "f1",
        "f1a",
        "sm1",
        "sm2",
        "sm_correct",
    ]
    for name in undefined:
        assert np.isnan(found[name]).tolist() == [True, False], name
    assert np.isnan(found["best_overlap"][:, 0, 0]).tolist() == [True, False]
    test = localise.Localisation(settings(), seed=0)
    scores = {part.name: part for part in test.read((found | {"label": np.array([0, 0])}).__getitem__)}
    assert np.isnan(scores["pointing"].values).tolist() == [True, False]
    assert np.isnan(scores["average_precision"].values).tolist() == [True, False]
    np.testing.assert_array_equal(found["reachable_overlap"], [np.nan, 1])
    for name in ("max_box_acc", "max_box_acc_v2", "pointing_class_mean"):
        pooled = scores[name]
        assert pooled.statistic(pooled.sums.sum(axis=0)[None]) == [1], name
        assert pooled.used.tolist() == [False, True], name
    assert scores["pxap"].used.tolist() == [True, True]  # the background of an image without an object counts


def test_masks_are_taken_as_they_are_only_where_they_are_masks():
    images = coloured([0, 0])
    images.maps[1] *= 0.5
    np.testing.assert_allclose(measured(images, ("a", "b", "c"), mask="as_is")["avg_mask"], [0.5, 0.25])
    np.testing.assert_allclose(measured(images, ("a", "b", "c"))["avg_mask"], [0.5, 0.5])
    images.maps[1] -= 1
    with pytest.raises(
        ConfigError, match=r"localise.mask: as_is needs maps in \[0, 1\]; that of image 1 goes from -1 to"
    ):
        measured(images, ("a", "b", "c"), mask="as_is")


def test_maps_may_be_resized_for_boxes_and_pixels():
    found = measured(coloured([0, 0]), ("a", "b", "c"), size=16)
    assert found["best_overlap"].max() == 1
    np.testing.assert_array_equal(found["histogram"].sum(axis=2), 16 * 16 / 2)
    # The box at the map's mean belongs to the image and stays as it is.
    np.testing.assert_array_equal(found["box"], [[0, 0, 4, 8]] * 2)


def test_published_conventions_draw_boxes_one_short_and_compare_inclusive_corners():
    found = measured(coloured([0, 0]), ("a", "b", "c"), convention="as_published")
    np.testing.assert_array_equal(found["box"], [[0, 0, 3, 7]] * 2)
    # Inclusive corners (0, 0, 4, 7) against (0, 0, 3, 7): five columns for four.
    np.testing.assert_allclose(found["best_overlap"], 4 / 5)


def test_an_image_is_measured_alone():
    rng = np.random.default_rng(0)
    maps = np.round(rng.random((5, 8, 8)), 1).astype(np.float32)
    maps[3] = 0.5
    pictures, logits = (
        torch.from_numpy(rng.random((5, 3, 8, 8), dtype=np.float32)),
        rng.random((5, 3), dtype=np.float32),
    )
    labels, truths = np.array([0, 2, 1, 0, 0]), [np.array([[i - 1, 0, i + 3, 5], [4, 4, 7, 9]]) for i in range(5)]
    whole = made(maps, pictures, labels, logits, truths)
    together = measured(whole, ("a", "b", "c"), rows_per_forward=2)
    for row in range(5):
        part = {name: getattr(whole, name) for name in vars(whole)}
        part = Images(**{name: None if value is None else value[row : row + 1] for name, value in part.items()})
        for name, values in measured(part, ("a", "b", "c")).items():
            np.testing.assert_allclose(values[0], together[name][row], rtol=1e-6, err_msg=name)


# What is refused


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("localise.tolerance=15", "localise.tolerance: 15 pixels mean nothing on images of 32 x 32; take less than 8"),
        ("localise.tolerance=0", "localise.tolerance"),
        ("localise={tolerance: 0.5, relative_tolerance: true}", "localise.tolerance: 22.6274 pixels mean nothing"),
        ("localise.accepted_classes={nobody: [1]}", "localise.accepted_classes: no label 'nobody'"),
        ("localise.accepted_classes={}", "localise.accepted_classes: no entry for"),
    ],
)
def test_what_cannot_be_measured_is_refused_in_one_line(written, override, message):
    path, _ = written
    with pytest.raises(ConfigError, match=message.replace("[", r"\[")):
        localise.run(Run(config.read(path, [override])))


def test_a_tolerance_can_be_forced(written):
    path, _ = written
    run = Run(config.read(path, ["localise.tolerance=15", "localise.force_tolerance=true"]))
    localise.check(run, localise.test(run.config).settings)


def test_data_without_objects_are_refused_before_a_model_is_loaded(written, monkeypatch, capsys):
    path, _ = written
    monkeypatch.setattr(Split, "boxes", lambda self, indices: None)
    monkeypatch.setattr(Run, "trained", None)
    assert heatproof("localise", "--config", path) == 2
    [line] = capsys.readouterr().err.strip().splitlines()
    assert "Planted: the data set does not know where its objects are; localise needs regions or boxes" in line
    without = Images(**(vars(coloured([0, 0])) | {"regions": None}))
    with pytest.raises(DataError, match="does not know where its objects are"):
        measured(without, ("a", "b", "c"))
