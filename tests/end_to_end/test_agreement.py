"""The stage agreement on generated images: equal maps agree, opposite ones are far apart, and a kill changes nothing."""

import csv
import json
import shutil

import numpy as np
import pytest

from heatproof import config, store
from heatproof.stages import agreement
from heatproof.stages.run import Run

SECTION = """
agreement:
    test_samples: 20
    batch_size: 8
    controls: [random, uniform, oracle, anti_oracle]
    attribution_methods:
        - {name: gradient, method: heatproof.methods.gradient.Gradient}
        - {name: same, method: heatproof.methods.gradient.Gradient}
        - {name: gradcam, method: heatproof.methods.cam.GradCam, kwargs: {layer: layer3.0.relu}}
"""
NAMES = ["gradient", "same", "gradcam", "random", "uniform", "oracle", "anti_oracle"]


@pytest.fixture(scope="module")
def written(small_trained):
    """The run after training and the stage."""
    path = small_trained("agreement")
    path.write_text(path.read_text() + SECTION)
    run = Run(config.read(path))
    agreement.run(run)
    return run


def folder(run):
    return run.config.outdir / "agreement"


def means(run, score):
    with (folder(run) / "results.csv").open(newline="") as file:
        lines = [line for line in csv.DictReader(file) if line["score"] == score]
    return {(line["first"], line["second"]): line for line in lines}


def test_the_file_holds_one_matrix_for_each_image_and_score(written):
    reader = store.RowReader(folder(written) / "agreement.h5")
    assert reader.origin["methods"] == NAMES
    for score in agreement.SCORES:
        matrices = reader.read(score)
        assert matrices.shape == (20, 7, 7)
        np.testing.assert_array_equal(matrices, matrices.swapaxes(1, 2))


def test_equal_maps_agree_and_opposite_ones_do_not(written):
    for score in agreement.SCORES:
        assert float(means(written, score)["gradient", "same"]["mean"]) == pytest.approx(1)
    assert float(means(written, "spearman")["oracle", "anti_oracle"]["mean"]) == pytest.approx(-1)
    assert abs(float(means(written, "spearman")["gradient", "random"]["mean"])) < 0.05
    assert float(means(written, "top_k_overlap")["gradient", "random"]["mean"]) == pytest.approx(0.1, abs=0.03)


def test_a_constant_map_agrees_with_nothing_and_is_counted(written):
    line = means(written, "spearman")["random", "uniform"]
    assert (line["n"], line["n_undefined"], line["mean"]) == ("0", "20", "nan")
    assert means(written, "top_k_overlap")["uniform", "oracle"]["n"] == "0"


def test_equal_methods_are_joined_first_and_opposite_ones_last(written):
    found = json.loads((folder(written) / "clustering.json").read_text())
    assert found["left_out"] == ["uniform"]
    assert sorted(found["leaf_order"]) == sorted(set(NAMES) - {"uniform"})
    first, *_, last = found["linkage"]
    assert [found["methods"][int(member)] for member in first[:2]] == ["gradient", "same"]
    assert first[2] == pytest.approx(0, abs=1e-12)
    assert last[3] == 6
    distances = np.array(found["distances"])
    where = [found["methods"].index(name) for name in ("oracle", "anti_oracle")]
    assert distances[where[0], where[1]] == pytest.approx(2)


def test_nothing_is_computed_twice_and_a_killed_run_goes_on_to_the_same_bytes(written, monkeypatch):
    names = ("agreement.h5", "results.csv", "clustering.json")
    before = {name: (folder(written) / name).read_bytes() for name in names}
    calls = []
    matrices = agreement._matrices
    monkeypatch.setattr(agreement, "_matrices", lambda *given: calls.append(len(given[0])) or matrices(*given))
    agreement.run(written)
    assert calls == []
    shutil.rmtree(folder(written))

    def killed(*given):
        if len(calls) == 1:
            raise KeyboardInterrupt
        calls.append(len(given[0]))
        return matrices(*given)

    monkeypatch.setattr(agreement, "_matrices", killed)
    with pytest.raises(KeyboardInterrupt):
        agreement.run(written)
    monkeypatch.setattr(agreement, "_matrices", lambda *given: calls.append(len(given[0])) or matrices(*given))
    agreement.run(written)
    assert calls == [8, 8, 4]
    assert {name: (folder(written) / name).read_bytes() for name in names} == before


def test_clustering_of_one_method_and_of_none_is_no_error():
    undefined = np.full((3, 2, 2), np.nan)
    assert agreement.clustering(["a", "b"], undefined)["leaf_order"] == []
    undefined[:, 0, 0] = 1.0
    assert agreement.clustering(["a", "b"], undefined)["leaf_order"] == ["a"]
