"""Controls of ROAR on generated data: leaking masks are found, twins are files like any other, chains of maps go on."""

import csv
import json

import numpy as np
import pytest
import torch

from heatproof import store
from tests.end_to_end.conftest import heatproof, results

LEAKS = "the masks alone tell the class: not to be read as faithfulness"

# The oracle's masks at 9.5 % are the objects. Crops shift outlines, which costs training time here and proves nothing.
ORACLE_ONLY = {
    "metrics: [roar, kar]": "metrics: mask_only",
    "percentiles: [30]": "percentiles: [9.5]",
    "seeds: [0, 1]": "seeds: [0]",
    "test_images: 96": "test_images: 160, distractors: 0",
    "    batch_size: 32\n    nb_epochs: 1\n": "    batch_size: 16\n    nb_epochs: 2\n",
    "controls: &CONTROLS [random, oracle]": "controls: &CONTROLS [random]",
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
    assert rows["random"]["marks"] == ""
    assert rows["truth"]["marks"] == (LEAKS if evidence == "shape" else "")
