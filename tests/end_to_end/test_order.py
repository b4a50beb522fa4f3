"""The order of methods beside the README's table, which holds on every processor, though its digits do not.

The demo's own network, maps and recipe with fewer pictures, without retraining; `task test-portable` repeats this with each set
of torch's kernels.
"""

import csv
from pathlib import Path

import pytest

from tests.end_to_end.conftest import heatproof

ROOT = Path(__file__).parents[2]

# The first test trains and explains: minutes where kernels without AVX share the processor with other programs.
pytestmark = pytest.mark.timeout(900)

METHODS = """[
    {name: gradcam, method: heatproof.methods.cam.GradCam, kwargs: {layer: layer3.0.relu}},
    {name: intgrad, method: heatproof.methods.gradient.IntegratedGradients, kwargs: {steps: 20}, channel_reduction: abs_sum}]"""
CONTROLS = "[random, oracle, anti_oracle]"
LESS = [
    "data.options={train_images: 3200, test_images: 100}",
    "pixel_perturbation_analysis.test_samples=100",
    *(f"{section}.attribution_methods={METHODS}" for section in ("extract_cams", "pixel_perturbation_analysis")),
    *(f"{section}.controls={CONTROLS}" for section in ("extract_cams", "pixel_perturbation_analysis")),
]


@pytest.fixture(scope="module")
def outdir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("order")
    for stage in ("train-cls", "lerf"):
        assert heatproof(stage, "--config", ROOT / "configs" / "demo.yml", f"outdir={folder}", *LESS) == 0
    return folder


def column(path, value, **chosen):
    """A value of each method, of the lines that have these entries."""
    with path.open(newline="") as file:
        lines = [line for line in csv.DictReader(file) if chosen.items() <= line.items()]
    values = {line["method"]: float(line[value]) for line in lines}
    assert len(values) == len(lines)
    assert values.keys() >= {"oracle", "intgrad", "gradcam", "random", "anti_oracle"}
    return values


def test_most_relevant_first(outdir):
    area = column(outdir / "pixel_perturbation_analysis" / "results.csv", "mean", score="morf_area")
    assert area["intgrad"] < area["oracle"] < area["gradcam"] < area["random"] < area["anti_oracle"]


def test_least_relevant_first(outdir):
    area = column(outdir / "pixel_perturbation_analysis" / "results.csv", "mean", score="lerf_area")
    assert min(area["oracle"], area["intgrad"], area["gradcam"]) > area["random"] > area["anti_oracle"]
