"""Accuracy, precision, recall and F1: published numbers, scikit-free checks by hand, and intervals."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heatproof.errors import InputError
from heatproof.metrics import classification
from heatproof.metrics.statistics import wilson_interval

GOLDEN = Path(__file__).parents[1] / "golden" / "diffmask" / "metrics.npz"
ANSWERS = st.integers(1, 6).flatmap(
    lambda classes: st.lists(
        st.tuples(st.integers(0, classes - 1), st.integers(0, classes - 1)), min_size=1, max_size=40
    )
)


@pytest.mark.parametrize("case", [0, 1, 2])
def test_published_scores_come_out(case):
    golden = {name.partition(".")[2]: value for name, value in np.load(GOLDEN).items() if name.startswith(f"{case}.")}
    confusion = classification.confusion_matrix(golden["y_true"], golden["y_pred"])
    np.testing.assert_array_equal(confusion, golden["confusion"])
    scores = classification.class_scores(confusion)
    np.testing.assert_array_equal(scores.precision.astype(np.float32), golden["precision"])
    np.testing.assert_array_equal(scores.recall.astype(np.float32), golden["recall"])
    np.testing.assert_array_max_ulp(scores.f1.astype(np.float32), golden["f1"], maxulp=1)  # float32 there, step by step
    assert np.float32(classification.accuracy(confusion)) == golden["acc"]
    averages = [classification.accuracy(confusion), *(score.mean() for score in scores)]
    np.testing.assert_array_max_ulp(np.float32(averages), golden["avg"], maxulp=2)


@settings(deadline=None)
@given(ANSWERS)
def test_the_matrix_counts_and_the_scores_are_what_they_are_called(answers):
    labels, predictions = np.array(answers).T
    confusion = classification.confusion_matrix(labels, predictions, classes=7)
    assert confusion.shape == (7, 7)
    assert confusion.sum() == len(answers)
    assert classification.accuracy(confusion) == (labels == predictions).mean()
    scores = classification.class_scores(confusion)
    for label in range(7):
        of_class, called = predictions[labels == label], labels[predictions == label]
        precision = (called == label).mean() if len(called) else 0.0
        recall = (of_class == label).mean() if len(of_class) else 1.0
        f1 = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
        np.testing.assert_allclose([score[label] for score in scores], [precision, recall, f1], atol=1e-15)


def test_a_class_that_does_not_exist_is_named():
    with pytest.raises(InputError, match=r"4 is none of the 3 classes \(0 to 2\)"):
        classification.confusion_matrix([0, 1], [2, 4], classes=3)
    with pytest.raises(InputError, match="-1 is none of the 2 classes"):
        classification.confusion_matrix([0, -1], [1, 1])


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 5000), st.floats(0, 1), st.sampled_from([0.5, 0.9, 0.95, 0.99]))
def test_the_ends_of_wilsons_interval_are_just_not_significant(trials, share, level):
    successes = round(share * trials)
    observed, z = successes / trials, {0.5: 0.6744898, 0.9: 1.6448536, 0.95: 1.9599640, 0.99: 2.5758293}[level]
    low, high = wilson_interval(successes, trials, level)
    assert 0 <= low <= observed <= high <= 1
    for end in (low, high):
        distance = abs(observed - end) / np.sqrt(end * (1 - end) / trials) if 0 < end < 1 else z
        np.testing.assert_allclose(distance, z, rtol=1e-4)


def test_impossible_counts_have_no_interval():
    for successes, trials in ((3, 2), (0, 0), (-1, 4)):
        with pytest.raises(InputError, match=f"{successes} of {trials} trials"):
            wilson_interval(successes, trials)
