"""faithfulness on a trained classifier and generated pictures, whose right map is known."""

import csv
import itertools
from pathlib import Path

import numpy as np
import pytest

from heatproof import config, store
from heatproof.errors import ConfigError, InputError
from heatproof.metrics import statistics
from heatproof.metrics.score import Curve, Pooled, Scored
from heatproof.stages import faithfulness
from heatproof.stages.run import Run
from tests.end_to_end.conftest import heatproof

SECTION = """
faithfulness:
    controls: [random, uniform, oracle, anti_oracle]
    attribution_methods:
        - {name: gradcam, method: heatproof.methods.cam.GradCam, kwargs: {layer: layer3.0.relu}}
"""
EVERYTHING = """
    test_samples: 6
    batch_size: 4
    subsets: 6
    region_side: 8
    region_draws: 2
    region_steps: 5
    pixel_steps: 6
    monotonicity_draws: 2
    within_fractions: [0.2, 0.6]
    fill: noise
    score: logit_margin
    tests: [region_perturbation, pixel_flipping, selectivity, faithfulness_correlation, faithfulness_estimate,
        monotonicity_correlation, sensitivity_n, sensitivity_n_within, infidelity, monotonicity]
"""


@pytest.fixture(scope="module")
def trained(small):
    path = small("faithfulness")
    assert heatproof("train-cls", "--config", path, "train_cls.nb_epochs=6") == 0
    return path


def settings(trained: Path, text: str, *overrides: str, outdir: str | None = None) -> config.Config:
    """The trained classifier's configuration with a section of faithfulness, and perhaps a folder of its own."""
    path = trained.with_name("faithfulness.yml")
    content = trained.read_text() + text
    if outdir:
        weights = str(trained.parent / "out" / "train_cls")
        content = content.replace("${outdir}/train_cls", weights).replace(
            str(trained.parent / "out") + "\n", f"{outdir}\n"
        )
    path.write_text(content)
    return config.read(path, overrides)


def scores(found: config.Config) -> dict[str, dict[str, Scored | Pooled | Curve]]:
    """By method and by the score's name and setting."""
    test = faithfulness.test(found)
    result = {}
    for method in test.settings.methods():
        reader = store.RowReader(found.outdir / "faithfulness" / f"{method.name}.h5")
        result[method.name] = {f"{s.name} {getattr(s, 'setting', '')}".strip(): s for s in test.read(reader.read)}
    return result


@pytest.fixture(scope="module")
def default(trained):
    found = settings(trained, SECTION, "faithfulness.test_samples=60")
    faithfulness.run(Run(found))
    return found


def test_the_object_is_ahead_of_chance_and_chance_of_its_inverse(default):
    test, found = faithfulness.test(default), scores(default)
    checked = [score for score in test.scores if score.oracle_best]
    assert {"region_morf_aopc", "region_abpc", "faithfulness_correlation", "infidelity"} <= {s.name for s in checked}
    for score in checked:
        sign = -1 if score.better == "lower" else 1
        values = {m: found[m][score.name].values * sign for m in ("oracle", "random", "anti_oracle")}
        for better, worse in (("oracle", "random"), ("random", "anti_oracle")):
            differences = values[better] - values[worse]
            assert np.nanmean(differences) > 0, (score.name, better)
            assert statistics.wilcoxon(differences).p < 0.01, (score.name, better)


def test_a_map_of_equal_values_has_no_correlation_and_is_counted(default):
    uniform = scores(default)["uniform"]
    for name in ("faithfulness_correlation", "faithfulness_estimate"):
        assert np.isnan(uniform[name].values).all()
    assert np.isfinite(uniform["region_abpc"].values).all()  # its order is drawn
    with (default.outdir / "faithfulness" / "results.csv").open(newline="") as file:
        rows = {(row["method"], row["score"]): row for row in csv.DictReader(file)}
    assert rows["uniform", "faithfulness_correlation"]["n"] == "0"
    assert rows["uniform", "faithfulness_correlation"]["n_undefined"] == "60"
    assert rows["oracle", "faithfulness_correlation"]["n"] == "60"
    assert float(rows["oracle", "infidelity"]["mean"]) < float(rows["oracle", "infidelity"]["chance"])


def test_what_no_map_chose_is_the_same_for_all_methods(default):
    folder = default.outdir / "faithfulness"
    readers = [store.RowReader(folder / f"{name}.h5") for name in ("oracle", "random", "gradcam")]
    for column in ("subset_drops", "square_drops"):
        first, *others = (reader.read(column) for reader in readers)
        assert np.ptp(first) > 0
        for other in others:
            np.testing.assert_array_equal(other, first)


@pytest.fixture(scope="module")
def everything(trained, tmp_path_factory):
    found = settings(trained, SECTION + EVERYTHING, outdir=str(tmp_path_factory.mktemp("everything") / "out"))
    faithfulness.run(Run(found))
    return found


def test_every_test_runs_and_gives_what_it_announces(everything):
    test = faithfulness.test(everything)
    assert set(test.settings.tests) == set(faithfulness.SCORES) == set(faithfulness.READ) == set(faithfulness.NEEDED)
    announced = {score.name for score in test.scores}
    for parts in scores(everything).values():
        assert {part.name for part in parts.values() if not isinstance(part, Curve)} == announced
        for part in parts.values():
            if isinstance(part, Curve):
                assert part.values.shape == (6, len(part.x))
                assert (part.x[0], part.x[-1]) == (0, 1)
            elif isinstance(part, Scored):
                assert part.values.shape == (6,)
    assert {"sensitivity_n_within removed=0.2", "sensitivity_n_within removed=0.6"} <= scores(everything)[
        "oracle"
    ].keys()


@pytest.mark.parametrize("change", ["batch_size=5", "rows_per_forward=7"])
def test_no_score_depends_on_how_many_images_are_at_work(trained, everything, tmp_path, change):
    text = SECTION.replace("random, uniform, oracle, anti_oracle", "random")
    other = settings(trained, text + EVERYTHING, f"faithfulness.{change}", outdir=str(tmp_path / "out"))
    faithfulness.run(Run(other))
    first, second = (store.RowReader(run.outdir / "faithfulness" / "random.h5") for run in (everything, other))
    for column in set(itertools.chain.from_iterable(faithfulness.NEEDED.values())):
        np.testing.assert_allclose(first.read(column), second.read(column), rtol=1e-4, atol=1e-4)


def test_noise_is_averaged_over_draws_and_other_fills_are_drawn_once(trained, tmp_path):
    only = "    test_samples: 6\n    tests: region_perturbation\n"

    def curves(fill, draws):
        text = SECTION.replace("random, uniform, oracle, anti_oracle", "random") + only
        changes = (f"faithfulness.fill={fill}", f"faithfulness.region_draws={draws}")
        found = settings(trained, text, *changes, outdir=str(tmp_path / f"{fill}{draws}"))
        faithfulness.run(Run(found))
        return store.RowReader(found.outdir / "faithfulness" / "random.h5").read("region_curves")

    np.testing.assert_array_equal(curves("mean", 3), curves("mean", 1))
    one, three = curves("noise", 1), curves("noise", 3)
    np.testing.assert_allclose(one[:, :, 0], three[:, :, 0])  # the untouched image
    assert (one[:, :, -1] != three[:, :, -1]).all()
    # All squares gone, nothing is left but noise: the mean of three draws, the first of which is the one.
    others = (3 * three - one) / 2
    assert ((others > -1e-9) & (others < 1 + 1e-9)).all()


def test_a_finished_file_is_left_as_it_is(default):
    folder = default.outdir / "faithfulness"
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    faithfulness.run(Run(default))
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_messages(trained):
    with pytest.raises(ConfigError, match=r"faithfulness.tests\[0\]: 'infidelty'"):
        settings(trained, SECTION + "    tests: [infidelty]\n")
    with pytest.raises(ConfigError, match=r"faithfulness\.subset_fraction: 1"):
        settings(trained, SECTION + "    subset_fraction: 1\n")
    found = settings(trained, SECTION + "    region_side: 99\n")
    with pytest.raises(InputError, match="side: 99 must lie between 1 and 32"):
        faithfulness.run(Run(found))
