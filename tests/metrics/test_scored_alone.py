"""Properties of all per-row functions of the perturbation, roar and statistics modules at once."""

import numpy as np
import pytest

from heatproof.metrics import perturbation, ranking, roar, statistics
from tests.metrics.alone import check_rows_alone, public

STEPS = np.array([0.0, 0.1, 0.3, 0.5, 1.0])
INDEX = statistics.bootstrap_index(np.random.default_rng(0), 5, 50)

# Each takes two tables of scores (N, 5) and gives one number for each row.
BY_ROW = {
    "area": lambda a, b: perturbation.area(a, STEPS),
    "aopc": lambda a, b: perturbation.aopc(a),
    "abpc": perturbation.abpc,
    "deviation": lambda a, b: perturbation.deviation(a[:, 0], a[:, 4]),
    "signed_deviation": lambda a, b: perturbation.signed_deviation(a[:, 0], a[:, 4]),
    "drop": lambda a, b: perturbation.drop(a[:, 0], a[:, 4]),
    "area_to_random": lambda a, b: roar.area_to_random(a, b, STEPS),
    "racu": lambda a, b: roar.racu(a, b + 1, STEPS, total=np.zeros(len(a))),
    "diff_roar": lambda a, b: roar.diff_roar(np.full((1, 5), 0.5), a)[:, 2],
    "t_interval": lambda a, b: statistics.t_interval(a).low,
    "bootstrap_interval": lambda a, b: statistics.bootstrap_interval(a, INDEX).high,
    "spearman": statistics.spearman,
    "kendall": statistics.kendall,
}
# One result for all rows together, on purpose; each has its own tests.
JOINTLY = {
    "correctness_difference", "seeded_bootstrap", "resampled", "summarize", "summarize_rows", "bootstrap_index", "paired_t", "paired_p", "wilcoxon", "wilson_interval", "cohens_d",
    "chance_level", "mask_leakage", "areas", "order_agreement", "holm", "average_ranks", "friedman", "iman_davenport", "critical_difference", "groups",
}  # fmt: skip
per_metric = pytest.mark.parametrize("metric", BY_ROW.values(), ids=BY_ROW)


def tables():
    rng = np.random.default_rng(0)
    a, b = rng.random((2, 8, 5))
    a[3, 1], b[5, 4] = np.nan, np.nan
    return a, b


@per_metric
def test_a_row_is_scored_alone_in_any_order_and_stays_untouched(metric):
    check_rows_alone(metric, *tables())


@per_metric
def test_results_are_float64_also_of_float32(metric):
    a, b = tables()
    result = metric(a.astype(np.float32), b.astype(np.float32))
    assert result.dtype == np.float64
    np.testing.assert_allclose(result, metric(a, b), rtol=1e-4, atol=1e-5)


def test_no_function_is_left_out():
    assert public(perturbation) | public(roar) | public(statistics) | public(ranking) == BY_ROW.keys() | JOINTLY
