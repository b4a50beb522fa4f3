import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from heatproof.errors import InputError
from heatproof.metrics import boxes, contours, masks
from tests.metrics.alone import batches, check_alone, public

GOLDEN = Path(__file__).parents[1] / "golden"
THETAS = (0.3, 0.5, 0.7)


def corners(box):
    return [box["xmin"], box["ymin"], box["xmax"], box["ymax"]]


def enlarged(small):
    return small.repeat(4, axis=-1).repeat(4, axis=-2)


@pytest.fixture(scope="module")
def wsol():
    data = dict(np.load(GOLDEN / "metrics" / "wsol.npz"))
    data["truths"] = [data["gt_boxes_resized"][data["gt_boxes_resized"][:, 0] == i, 1:] for i in range(10)]
    return data


@pytest.mark.parametrize(("kind", "all_contours"), [("single", False), ("multi", True)])
def test_boxes_are_those_of_opencv(wsol, kind, all_contours):
    counts, flat = wsol[f"boxcount_{kind}_5"], wsol[f"boxes_{kind}_5"]
    expected = iter(np.split(flat, counts.ravel().cumsum()[:-1]))
    for scores in wsol["scoremaps"]:
        for found in boxes.boxes_from_map(scores, boxes.thresholds(0.05), all_contours, reference=True):
            assert sorted(map(tuple, found)) == sorted(map(tuple, next(expected)))


@pytest.mark.parametrize("interval", [1, 5])
def test_accuracies_are_those_of_wsolevaluation(wsol, interval):
    overlaps = boxes.box_overlaps(wsol["scoremaps"], wsol["truths"], boxes.thresholds(interval / 100), reference=True)
    for number, kind in enumerate(("single", "multi")):
        hits = np.array([boxes.hits_at(overlaps[:, number], theta).sum(axis=0) for theta in THETAS])
        np.testing.assert_array_equal(hits / 10 * 100, wsol[f"curve_{kind}_{interval}"])
        best = [100 * boxes.max_box_accuracy(row[None], 10) for row in hits]
        np.testing.assert_allclose(best, wsol[f"maxboxacc_{kind}_{interval}"], rtol=1e-12)


def test_overlaps_and_resized_corners_are_those_of_wsolevaluation(wsol):
    np.testing.assert_array_equal(boxes.iou(wsol["iou_a"], wsol["iou_b"], inclusive=True), wsol["iou_out"])
    for row, (width, height) in enumerate(wsol["image_size_wh"].tolist()):
        original = wsol["gt_boxes_original"][wsol["gt_boxes_original"][:, 0] == row, 1:]
        found = boxes.resized_boxes(original, (height, width), (56, 56))
        np.testing.assert_array_equal(found, wsol["truths"][row])


def test_max_box_accuracies_of_photograph_size_are_those_of_wsolevaluation():
    data = dict(np.load(GOLDEN / "casme" / "wsol.npz"))
    expected = json.loads((GOLDEN / "casme" / "wsol.json").read_text())
    truths = []
    for name, raw in expected["raw_boxes"].items():
        truths.append(boxes.resized_boxes(raw["boxes"], (raw["height"], raw["width"]), (224, 224)))
        np.testing.assert_array_equal(truths[-1], expected["resized_gt_boxes"][name])
    maps = enlarged(data["maps56"])
    overlaps = boxes.box_overlaps(maps, truths, boxes.thresholds(), reference=True)
    v1 = np.array([(overlaps[:, 0] >= 0.5).sum(axis=0)])
    v2 = np.array([(overlaps[:, 1] >= theta).sum(axis=0) for theta in THETAS])
    for hits, name in ((v1, "MaxBoxAcc_v1"), (v2, "MaxBoxAcc_v2")):
        np.testing.assert_allclose(100 * boxes.max_box_accuracy(hits, 6), expected[name]["reported"], rtol=1e-12)
        np.testing.assert_array_equal(hits.argmax(axis=1), expected[name]["best_threshold_index"])
    for kind, all_contours in (("single", False), ("multi", True)):
        for scores, at_thresholds in zip(maps, expected["boxes_at_0.2_0.5_0.8"][kind], strict=True):
            found = boxes.boxes_from_map(scores, [0.2, 0.5, 0.8], all_contours, reference=True)
            for ours, theirs in zip(found, at_thresholds, strict=True):
                assert sorted(map(tuple, ours.tolist())) == sorted(map(tuple, theirs))


@pytest.fixture(scope="module")
def casme():
    cases = json.loads((GOLDEN / "casme" / "boxes.json").read_text())
    return cases, enlarged(np.load(GOLDEN / "casme" / "boxes.npz")["mask56"])


def test_mean_boxes_are_tight_or_as_published(casme):
    cases, maps = casme
    np.testing.assert_array_equal(boxes.mean_boxes(maps), [corners(c["tight_exclusive_box"]) for c in cases])
    found = boxes.mean_boxes(maps, "as_published")
    np.testing.assert_array_equal(found, [corners(c["box_as_used"]) for c in cases])


def test_eroded_and_dilated_boxes_are_as_published(casme):
    cases, maps = casme
    names = [case["name"] for case in cases]
    for case in json.loads((GOLDEN / "casme" / "boxes_morphology.json").read_text()):
        mask = maps[names.index(case["mask"])][None]
        found = boxes.mean_boxes(mask, "as_published", erode=case["erode"], dilate=case["dilate"])
        np.testing.assert_array_equal(found, [corners(case["box"])])


def test_f1_and_overlap_of_each_true_box_are_as_published(casme):
    cases, maps = casme
    tight, short = boxes.mean_boxes(maps), boxes.mean_boxes(maps, "as_published")
    for row, case in enumerate(cases):
        for truth in case["gt"]:
            given = [np.array([corners(truth["box"])])]
            if truth["iou_as_used"] is None:  # a box without area: 0 there, undefined here
                assert truth["f1"] == 0
                assert np.isnan(boxes.f1(maps[row : row + 1], given))
                assert np.isnan(boxes.localisation_error(tight[row : row + 1], given))
                continue
            np.testing.assert_allclose(boxes.f1(maps[row : row + 1], given), truth["f1"], atol=1e-6)
            np.testing.assert_allclose(boxes.best_overlap(short[row : row + 1], given), truth["iou_as_used"], atol=1e-6)
            found = boxes.best_overlap(tight[row : row + 1], given)
            np.testing.assert_allclose(found, truth["iou_with_tight_box"], atol=1e-6)
            assert boxes.localisation_error(short[row : row + 1], given) == 1 - truth["iou_gt_0_5"]


def test_boxes_given_from_outside_score_as_published():
    run = json.loads((GOLDEN / "casme" / "score_run.json").read_text())
    truths = [np.array([corners(box) for box in image]) for image in run["gt_boxes"]][:10]
    external = np.array([corners(box) for box in run["external_boxes"].values()])[:10]
    whole, nothing = np.array([[0, 0, 224, 224]] * 10), np.zeros((10, 4), dtype=int)
    centre = np.array([[33, 33, 191, 191]] * 10)
    for predicted, name in ((whole, "max"), (nothing, "min"), (centre, "center"), (external, "external_tight_boxes")):
        expected = run[f"special_{name}_first_10_images_batches_5_5"]
        drawn = np.zeros((10, 224, 224))
        for mask, (x0, y0, x1, y1) in zip(drawn, predicted, strict=True):
            mask[y0:y1, x0:x1] = 1
        np.testing.assert_allclose(boxes.f1(drawn, truths).mean(), expected["F1"], atol=1e-5)
        np.testing.assert_allclose(boxes.f1a(drawn, truths).mean(), expected["F1a"], atol=1e-5)
        np.testing.assert_allclose(boxes.localisation_error(predicted, truths).mean(), expected["LE"], atol=1e-5)
        np.testing.assert_allclose(boxes.log_area(predicted, (224, 224)).mean(), expected["SM1"], atol=1e-3)


def test_true_boxes_taken_as_masks_score_as_published():
    run = json.loads((GOLDEN / "casme" / "score_run.json").read_text())
    expected = run["special_ground_truth_first_10_images_batches_5_5"]
    best, mean, areas = [], [], []
    for image in run["gt_boxes"][:10]:
        scores = []
        visible = np.clip([corners(box) for box in image], 0, 224)
        for box, (x0, y0, x1, y1) in zip(image, visible, strict=True):
            mask = np.zeros((1, 224, 224))
            mask[0, y0:y1, x0:x1] = 1
            scores.append(boxes.f1(mask, [np.array([corners(box)])])[0])
        best.append(max(scores))
        mean.append(np.mean(scores))
        areas.append(boxes.log_area(visible, (224, 224)).mean())
    np.testing.assert_allclose(np.mean(best), expected["F1"], atol=1e-5)
    np.testing.assert_allclose(np.mean(mean), expected["F1a"], atol=1e-5)
    np.testing.assert_allclose(np.mean(areas), expected["SM1"], atol=1e-3)


@given(st.integers(0, 10_000))
@settings(max_examples=30, deadline=None)
def test_all_thresholds_at_once_are_the_thresholds_one_by_one(seed):
    rng = np.random.default_rng(seed)
    scores = masks.unit_range(ndimage.gaussian_filter(rng.random((1, 13, 17)), (0, *rng.uniform(0, 1.5, 2))))[0]
    taus = np.sort(rng.random(6)) * 0.99
    together = contours.contours(scores, taus)
    for step, tau in enumerate(taus):
        alone = contours.contours(scores, [tau])
        np.testing.assert_array_equal(together.largest[step], alone.largest[0])
        np.testing.assert_array_equal(together.boxes[together.steps == step], alone.boxes)
        np.testing.assert_array_equal(together.holes[together.steps == step], alone.holes)


def test_thresholds_of_one_map_may_fall_into_several_blocks(monkeypatch):
    scores = masks.unit_range(ndimage.gaussian_filter(np.random.default_rng(0).random((1, 20, 20)), (0, 1, 1)))[0]
    whole = contours.contours(scores, boxes.thresholds())
    monkeypatch.setattr(contours, "_PIXELS_AT_ONCE", 900)
    parts = contours.contours(scores, boxes.thresholds())
    for name in ("boxes", "steps", "holes", "largest"):
        np.testing.assert_array_equal(getattr(parts, name), getattr(whole, name))


def ring():
    scores = np.zeros((9, 9))
    scores[1:8, 1:8] = 1
    scores[3:6, 3:6] = 0
    scores[4, 4] = 1
    return scores


def test_a_hole_is_a_contour_as_published_and_none_of_ours():
    theirs = boxes.boxes_from_map(ring(), [0.5], all_contours=True, reference=True)[0]
    assert sorted(map(tuple, theirs.tolist())) == [(1, 1, 8, 8), (2, 2, 7, 7), (4, 4, 5, 5)]
    ours = boxes.boxes_from_map(ring(), [0.5], all_contours=True)[0]
    assert sorted(map(tuple, ours.tolist())) == [(1, 1, 8, 8), (4, 4, 5, 5)]


def test_the_largest_contour_is_that_of_the_largest_polygon_not_of_most_pixels():
    scores = np.zeros((12, 12))
    scores[0:6, 0] = scores[0:6, 5] = scores[0, 0:6] = scores[5, 0:6] = 1  # a frame: 20 pixels, area 25
    scores[7:12, 7:12] = 1  # a block: 25 pixels, area 16
    assert boxes.boxes_from_map(scores, [0.5])[0].tolist() == [[0, 0, 6, 6]]


def test_of_equal_contours_the_last_counts():
    scores = np.zeros((8, 8))
    scores[1, 1] = scores[1, 5] = scores[6, 2] = 1
    assert boxes.boxes_from_map(scores, [0.5])[0].tolist() == [[2, 6, 3, 7]]


def test_corners_that_touch_belong_together():
    scores = np.zeros((4, 4))
    scores[0, 0] = scores[1, 1] = scores[2, 2] = 1
    assert boxes.boxes_from_map(scores, [0.0], all_contours=True)[0].tolist() == [[0, 0, 3, 3]]


def test_an_empty_map_predicts_the_empty_box():
    assert [b.tolist() for b in boxes.boxes_from_map(np.zeros((4, 4)), [0.0, 0.5])] == [[[0, 0, 0, 0]]] * 2
    overlaps = boxes.box_overlaps(np.zeros((1, 4, 4)), [np.array([[0, 0, 1, 1]])], [0.0, 0.5])
    np.testing.assert_array_equal(overlaps, 0)


def test_values_outside_the_unit_range_are_refused():
    with pytest.raises(InputError, match=r"bring them to \[0, 1\] first"):
        boxes.boxes_from_map(np.array([[0.0, 2.0]]), [0.5])
    with pytest.raises(InputError, match="interval"):
        boxes.thresholds(1.0)


def test_the_object_itself_is_found_at_every_threshold():
    maps = np.zeros((2, 10, 12))
    maps[0, 2:5, 3:9], maps[1, 0:10, 0:3] = 1, 1
    truths = [np.array([[3, 2, 9, 5]]), np.array([[0, 0, 3, 10]])]
    np.testing.assert_array_equal(boxes.box_overlaps(maps, truths, boxes.thresholds(0.1)), 1)
    np.testing.assert_array_equal(boxes.localisation_error(boxes.mean_boxes(maps), truths), 0)
    np.testing.assert_allclose(boxes.f1(maps, truths), 1, atol=1e-5)


def test_the_part_of_a_true_box_outside_the_image_cannot_be_found():
    truth = [np.array([[-4, 0, 4, 4]])]
    np.testing.assert_array_equal(boxes.best_overlap([[0, 0, 4, 4]], truth), [0.5])
    np.testing.assert_array_equal(boxes.localisation_error([[0, 0, 4, 4]], truth), [1])  # half is not more than half
    inside = np.zeros((1, 8, 8))
    inside[0, :4, :4] = 1
    np.testing.assert_allclose(boxes.f1(inside, truth), 2 * 0.5 / 1.5, atol=1e-5)


@given(st.integers(0, 10_000))
@settings(max_examples=20, deadline=None)
def test_no_box_within_the_image_overlaps_more_than_can_be_reached(seed):
    rng = np.random.default_rng(seed)
    low = rng.integers(-4, 6, (2, 2))
    truths = [np.concatenate([low, low + rng.integers(1, 6, (2, 2))], axis=1)]
    x, y = (np.array([(a, b) for a in range(n) for b in range(a + 1, n + 1)]) for n in (5, 4))
    every = np.array([(x0, y0, x1, y1) for x0, x1 in x for y0, y1 in y])
    np.testing.assert_allclose(boxes.reachable_overlap(truths, (4, 5)), boxes.iou(every, truths[0]).max())


def test_an_image_whose_boxes_lie_outside_has_no_object():
    truths = boxes.seen_truths(
        [np.array([[9, 9, 12, 12], [-5, 2, 0, 4]]), np.array([[-5, 2, 1, 4], [9, 0, 12, 2]])], (9, 9)
    )
    assert [len(truth) for truth in truths] == [0, 2]
    predicted, maps = np.array([[0, 0, 2, 2]] * 2), np.ones((2, 9, 9))
    for values in (
        boxes.localisation_error(predicted, truths),
        boxes.best_overlap(predicted, truths),
        boxes.f1(maps, truths),
        boxes.f1a(maps, truths),
        boxes.box_overlaps(maps, truths, [0.5])[:, 0, 0],
    ):
        assert np.isnan(values).tolist() == [True, False]
    assert np.isnan(boxes.official_metric([np.nan, 0], [False, True])).tolist() == [True, False]


def test_a_box_without_area_counts_as_missed_beside_others():
    truths = [np.array([[0, 0, 2, 2], [5, 5, 5, 9]])]
    mask = np.zeros((1, 9, 9))
    mask[0, :2, :2] = 1
    np.testing.assert_allclose(boxes.f1a(mask, truths), boxes.f1(mask, truths) / 2)


def test_accuracy_at_a_held_out_threshold_is_not_an_oracle():
    # In each half another threshold is best: chosen on the other half, both fail.
    hits = np.array([[[1.0, 0.0]], [[1.0, 0.0]], [[0.0, 1.0]], [[0.0, 1.0]]])
    halves = np.array([False, False, True, True])
    np.testing.assert_array_equal(boxes.held_out_accuracy(hits, halves), 0)
    assert boxes.max_box_accuracy(hits.sum(axis=0), 4) == 0.5
    mixed = np.array([False, True, False, True])
    assert boxes.held_out_accuracy(hits, mixed).mean() == 0.5
    hits[0] = np.nan
    assert np.isnan(boxes.held_out_accuracy(hits, mixed)).tolist() == [True, False, False, False]
    assert np.isnan(boxes.held_out_accuracy(hits[1:], np.zeros(3, dtype=bool))).all()
    assert np.isnan(boxes.max_box_accuracy(np.zeros((1, 3)), 0))


def test_saliency_metric_rewards_small_boxes_down_to_a_twentieth():
    size = (10, 10)
    found = boxes.log_area([[0, 0, 10, 10], [0, 0, 5, 5], [0, 0, 2, 2], [0, 0, 0, 0]], size)
    np.testing.assert_allclose(found, np.log([1, 0.25, 0.05, 0.05]))
    np.testing.assert_allclose(boxes.saliency_metric(found[:1], [np.log(0.2)]), -np.log(0.2))


ALONE = {
    "boxes_from_map": lambda b: [boxes.boxes_from_map(m, [0.2, 0.6])[0] for m in b.masks],
    "box_overlaps": lambda b: boxes.box_overlaps(b.masks, b.boxes, [0.0, 0.3, 0.7]),
    "hits_at": lambda b: boxes.hits_at(b.masks, 0.5),
    "seen_truths": lambda b: boxes.seen_truths(b.boxes, (7, 6)),
    "reachable_overlap": lambda b: boxes.reachable_overlap(b.boxes, (7, 6)),
    "mean_boxes": lambda b: boxes.mean_boxes(b.maps),
    "best_overlap": lambda b: boxes.best_overlap(b.predicted, b.boxes),
    "localisation_error": lambda b: boxes.localisation_error(b.predicted, b.boxes),
    "official_metric": lambda b: boxes.official_metric(boxes.localisation_error(b.predicted, b.boxes), b.correct),
    "f1": lambda b: boxes.f1(b.masks, b.boxes),
    "f1a": lambda b: boxes.f1a(b.masks, b.boxes),
    "log_area": lambda b: boxes.log_area(b.predicted, (7, 6)),
    "saliency_metric": lambda b: boxes.saliency_metric(boxes.log_area(b.predicted, (7, 6)), b.masks[:, 0, 0]),
}
OTHERS = {"thresholds", "iou", "max_box_accuracy", "held_out_accuracy", "resized_boxes"}


@pytest.mark.parametrize("name", sorted(ALONE.keys() - {"seen_truths"}))
def test_an_image_is_scored_alone(name):
    check_alone(ALONE[name], batches())


def test_truths_are_kept_or_left_out_image_by_image():
    truths = batches().boxes
    for row, found in enumerate(boxes.seen_truths(truths, (7, 6))):
        np.testing.assert_array_equal(found, boxes.seen_truths(truths[row : row + 1], (7, 6))[0])


def test_no_function_is_left_out():
    assert public(boxes) == ALONE.keys() | OTHERS
    assert public(contours) == {"contours"}
