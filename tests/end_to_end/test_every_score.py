"""Every score of every registered test must know the right answer: oracle before random before its inverse.

On Planted the true object is known. A test that is registered is asked here, whatever it is: a new one cannot be
forgotten, and one that ranks the truth below chance cannot land.
"""

from collections import Counter

import numpy as np
import pytest

from heatproof import config, store
from heatproof.metrics import statistics
from heatproof.metrics.score import Curve, Pooled
from heatproof.stages import registry
from tests.end_to_end.conftest import heatproof

TRUTH = """
desc: known truth
outdir: {outdir}
seed: 0
device: cpu
data:
    dataset: Planted
    options: {{train_images: 2400, test_images: 160}}
train_cls:
    model: &MODEL {{arch: heatproof.models.resnet_cifar.NarrowResNet8}}
    optimizer: &OPTIMIZER {{name: torch.optim.Adam, lr: 1.0e-2, weight_decay: 1.0e-4}}
    scheduler: &SCHEDULER {{name: torch.optim.lr_scheduler.StepLR, step_size: 3, gamma: 0.3}}
    augmentation: &AUGMENTATION {{crop_padding: 0, flip: false}}
    batch_size: 64
    nb_epochs: 6
extract_cams:
    model: {{arch: heatproof.models.resnet_cifar.NarrowResNet8, pretrained_weights: '${{outdir}}/train_cls/best_model.pth'}}
    controls: [random, oracle, anti_oracle]
    attribution_methods:
        - {{name: gradcam, method: heatproof.methods.cam.GradCam, kwargs: {{layer: layer3.0.relu}}}}
"""
# Defaults are for real runs; these settings ask the same in less time.
CHEAPER = {
    "insertion_deletion": "{step: 0.04}",
    "road": "{percentiles: [10, 30, 50]}",
    "robustness": "{samples: 3}",
    "tests": f"[{{name: inside, test: {__name__}.inside}}]",
}
MAP_TESTS = [name for name, stage in registry.STAGES.items() if stage.is_map_test]


def inside(ranks, regions):
    """Share of the first 100 pixels on the object."""
    return ((ranks.cpu().numpy() < 100) & regions).sum(axis=(1, 2)) / 100


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A classifier that has learnt Planted, and all maps."""
    folder = tmp_path_factory.mktemp("truth")
    path = folder / "truth.yml"
    path.write_text(TRUTH.format(outdir=folder / "out"))
    assert heatproof("train-cls", "--config", path) == 0
    assert heatproof("extract-attribution-maps", "--config", path) == 0
    return path


def asked(name):
    """The section of a test, as an override."""
    section = registry.STAGES[name].section
    return f"{section}={CHEAPER.get(section, '{}')}"


def verdict(better, truth, other, seed=0):
    """Whether the truth is ahead: at p < 0.01 over images, or beyond the 99 % interval where images are pooled."""
    sign = {"higher": 1, "lower": -1}[better]
    if isinstance(truth, Pooled):
        drawn = [statistics.resampled(part.sums, part.statistic, seed) for part in (truth, other)]
        return np.percentile(sign * (drawn[0] - drawn[1]), 1) > 0
    ahead = sign * (truth.values - other.values)
    ahead = ahead[~np.isnan(ahead)]
    return ahead.mean() > 0 and statistics.wilcoxon(ahead).p < 0.01


@pytest.mark.parametrize("name", MAP_TESTS)
def test_the_truth_is_ahead_of_chance_and_chance_of_its_inverse(trained, name):
    overrides = (asked(name),)
    assert heatproof(name, "--config", trained, *overrides) == 0
    settings = config.read(trained, overrides)
    [test] = registry.map_tests(settings, name)
    scores = {score.name: score for score in test.scores}
    found = {}
    for method in ("oracle", "random", "anti_oracle", "gradcam"):
        reader = store.RowReader(settings.outdir / test.section / f"{method}.h5")
        parts = [part for part in test.read(reader.read) if not isinstance(part, Curve)]
        found[method] = {(part.name, part.setting): part for part in parts}
    assert {name for name, _ in found["oracle"]} == set(scores), "what is read is what is declared"
    settings_of = Counter(score for score, _ in found["oracle"])
    wrong = []
    for (score, setting), truth in found["oracle"].items():
        known = scores[score]
        if known.better == "neither" or not known.oracle_best:
            continue
        random, inverse = found["random"][score, setting], found["anti_oracle"][score, setting]
        for better, worse, said in ((truth, random, "oracle and random"), (random, inverse, "random and inverse")):
            # One of several settings may leave nothing to tell apart (next to nothing removed, or all); none may deny.
            if settings_of[score] > 1:
                holds = not verdict(known.better, worse, better)
            else:
                holds = verdict(known.better, better, worse)
            if not holds:
                wrong.append(f"{score} {setting}: {said}")
        if name == "localise" and verdict(known.better, found["gradcam"][score, setting], truth):
            wrong.append(f"{score} {setting}: a method is ahead of the oracle")
    assert wrong == []


@pytest.mark.parametrize("name", MAP_TESTS)
def test_every_test_has_a_headline_and_tells_directions(tmp_path, name):
    path = tmp_path / "truth.yml"
    path.write_text(TRUTH.format(outdir=tmp_path / "out"))
    [test] = registry.map_tests(config.read(path, [asked(name)]), name)
    scores = test.scores
    assert any(score.headline for score in scores)
    assert len({score.name for score in scores}) == len(scores)
    assert all(score.meaning and score.better in ("higher", "lower", "neither") for score in scores)
