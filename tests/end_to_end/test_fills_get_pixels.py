"""Fills work on pixels in [0, 1]: every stage that calls one is run with a fill that refuses anything else."""

from dataclasses import dataclass

import pytest
import torch

from heatproof import config, store
from heatproof.config.schema import KINDS
from heatproof.stages import registry, retrain, retrain_grid
from heatproof.stages.plan import Artefact
from heatproof.stages.run import Run
from tests.end_to_end.conftest import heatproof

CALLS = []


def check(pixels, removed):
    assert pixels.dtype == torch.float32
    assert pixels.min() >= 0
    assert pixels.max() <= 1
    # Images of the data set are neither nearly constant nor squeezed into a part of the range.
    assert pixels.max() > 0.9
    assert pixels.min() < 0.1
    CALLS.append(removed.dtype)


@dataclass(frozen=True)
class Grey:
    """A fill whose answer looks at the hole, as far as its callers know."""

    def __call__(self, pixels, removed, indices=None):
        check(pixels, removed)
        return torch.where(removed[:, None], 0.5, pixels)


@dataclass(frozen=True)
class GreyReplacement:
    """A fill that is asked for all pixels at once."""

    def replacement(self, pixels, indices=None):
        check(pixels, pixels)
        return torch.full_like(pixels, 0.5)

    def __call__(self, pixels, removed, indices=None):
        return torch.where(removed[:, None], self.replacement(pixels, indices), pixels)


@dataclass(frozen=True)
class GreyNetwork:
    """An infiller for soft holes."""

    def generate(self, pixels, holes):
        check(pixels, holes)
        assert holes.min() >= 0
        assert holes.max() <= 1
        return torch.full_like(pixels, 0.5)


HERE = "tests.end_to_end.test_fills_get_pixels"
MASKER = """
train_masker:
    model: *TRAINED
    taps: [layer3.0.relu]
    width: 4
    nb_epochs: 1
    batch_size: 32
    share: 0.5
    sample_images: 0
    augmentation: {noise: 1.0, rotation: 10}
"""
SMOOTHGRAD = "        - {name: smoothgrad, method: heatproof.methods.gradient.SmoothGrad, kwargs: {samples: 3}}\n"
ASKED = {
    "lerf": ["pixel_perturbation_analysis={{percentiles: [20], test_samples: 8, fill: {fill}}}"],
    "insertion-deletion": [
        "insertion_deletion={{step: 0.25, test_samples: 8, insertion_fill: {fill}, deletion_fill: {fill}}}"
    ],
    "road": ["road={{percentiles: [20], test_samples: 8, fill: {fill}}}"],
    "faithfulness": ["faithfulness={{test_samples: 8, fill: {fill}}}"],
    "infill": ["infill={{infillers: [{{name: grey, infiller: {path}}}], percentiles: [20], splits: [test]}}"],
    "train-masker": ["train_masker.infiller={fill}"],
}
"""What each stage with a fill is told to use one."""


def run(stage, base, fill):
    CALLS.clear()
    path = f"{HERE}.{fill}"
    overrides = [text.format(fill=f"{{name: {path}}}", path=path) for text in ASKED[stage]]
    assert heatproof(stage, "--config", base, *overrides) == 0
    assert CALLS


@pytest.fixture(scope="module")
def base(small):
    path = small(
        "fills",
        **{
            "train_images: 320": "train_images: 80",
            "test_images: 96": "test_images: 24",
            "[random, oracle]": "[random]",
            "    nb_epochs: 3\n": "    nb_epochs: 1\n",
            "seeds: [0, 1]": "seeds: [0]",
            SMOOTHGRAD: "",
        },
    )
    path.write_text(path.read_text() + MASKER)
    assert heatproof("train-cls", "--config", path) == 0
    assert heatproof("extract-attribution-maps", "--config", path) == 0
    return path


@pytest.mark.parametrize("stage", ASKED)
@pytest.mark.parametrize("fill", ["Grey", "GreyReplacement"])
def test_every_stage_hands_pixels_to_its_fill(base, stage, fill):
    run(stage, base, fill)


def test_the_training_of_a_masker_hands_pixels_to_an_infiller_for_soft_holes(base):
    run("train-masker", base, "GreyNetwork")


def test_no_stage_with_a_fill_is_left_out():
    filling = {name for name, section in KINDS.items() if any("fill" in key for key in section.model_fields)}
    stages = {stage for stage, entry in registry.STAGES.items() if entry.section in filling}
    # train-infiller takes fills without options only, by their names; retraining is tested below, in this process.
    assert stages - {"train-infiller", "evaluate-attribution-maps-roar"} == set(ASKED)


@pytest.mark.parametrize("fill", ["Grey", "GreyReplacement"])
@pytest.mark.parametrize("metric", ["roar", "kar"])
def test_retraining_hands_pixels_to_its_fill(base, metric, fill):
    CALLS.clear()
    configuration = Run(config.read(base, [f"retrain_cls.fill={{name: {HERE}.{fill}}}"]))
    section, split = configuration.config.retrain_cls, configuration.dataset.split("test")
    path = configuration.config.outdir / "extract_cams" / "gradcam" / "test.h5"
    content = store.MapReader(path).content_id()
    job = retrain_grid.Job(configuration.config, metric, "gradcam", False, 30, 0, {"test": path})
    cell = Artefact(path.with_name("seed0.json"), {"maps": {"test": content}}, job)
    examples = configuration.examples(split, retrain._removal(configuration, section, cell, "test"))
    for batch in examples.batches(torch.arange(len(split)), 8):
        assert (batch.pixels == 0.5).any()
    assert CALLS
