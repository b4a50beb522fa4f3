"""A configuration so small that every stage runs in seconds, and a command line that runs in this process."""

import os
import shutil
import signal
import sys
from pathlib import Path

import pytest

from heatproof import cli

SMALL = """
desc: small
outdir: {outdir}
seed: 3
device: cpu
data:
    dataset: Planted
    split_ratio: 0.8
    options: {{train_images: 320, test_images: 96, classes: 4}}
train_cls:
    model: &MODEL {{arch: heatproof.models.resnet_cifar.NarrowResNet8}}
    optimizer: &OPTIMIZER {{name: torch.optim.Adam, lr: 5.0e-3}}
    augmentation: &AUGMENTATION {{crop_padding: 2, flip: false}}
    batch_size: 32
    nb_epochs: 3
extract_cams:
    model: &TRAINED
        <<: *MODEL
        pretrained_weights: '${{outdir}}/train_cls/best_model.pth'
    controls: &CONTROLS [random, oracle]
    attribution_methods: &METHODS
        - {{name: gradcam, method: heatproof.methods.cam.GradCam, kwargs: {{layer: layer3.0.relu}}}}
        - {{name: smoothgrad, method: heatproof.methods.gradient.SmoothGrad, kwargs: {{samples: 3}}}}
retrain_cls:
    metrics: [roar, kar]
    percentiles: [30]
    seeds: [0, 1]
    controls: *CONTROLS
    attribution_methods: *METHODS
    model: *MODEL
    optimizer: *OPTIMIZER
    augmentation: *AUGMENTATION
    batch_size: 32
    nb_epochs: 1
    workers: 1
pixel_perturbation_analysis:
    model: *TRAINED
    percentiles: [5, 20]
    test_samples: 40
    controls: *CONTROLS
    attribution_methods: *METHODS
"""


@pytest.fixture(scope="session")
def write(tmp_path_factory):
    """Writes a configuration with a place for its `outdir` into a folder of its own; returns its path."""

    def written(text, name="run"):
        folder = tmp_path_factory.mktemp(name)
        path = folder / "small.yml"
        path.write_text(text.format(outdir=folder / "out"))
        return path

    return written


@pytest.fixture(scope="session")
def small(write):
    """Writes the small configuration; returns its path."""

    def written(name="run", **changes):
        path = write(SMALL, name)
        text = path.read_text()
        for old, new in changes.items():
            assert old in text
            text = text.replace(old, new)
        path.write_text(text)
        return path

    return written


@pytest.fixture(scope="session")
def small_trained(small):
    """Writes the small configuration beside a run of train-cls, which is trained once for all; returns its path."""
    source = small("trained")
    assert heatproof("train-cls", "--config", source) == 0

    def written(name):
        path = small(name)
        shutil.copytree(source.parent / "out", path.parent / "out")
        return path

    return written


def heatproof(*arguments: str | Path) -> int:
    """The exit status of a command, run in this process; its traces in the process are undone."""
    path, handler = list(sys.path), signal.getsignal(signal.SIGTERM)
    try:
        return cli.main([str(argument) for argument in arguments])
    except SystemExit as stopped:  # argparse
        return int(stopped.code or 0)
    finally:
        sys.path[:] = path
        signal.signal(signal.SIGTERM, handler)


@pytest.fixture(scope="session")
def finished(small):
    """The small configuration after all stages: its path."""
    path = small("finished")
    assert heatproof("demo", "--config", path) == 0
    return path


def results(path: Path) -> dict[str, bytes]:
    """All result files of a configuration's run by name, without what cannot be the same twice."""
    outdir = path.parent / "out"
    found = {}
    for folder, _, names in os.walk(outdir):
        for name in names:
            file = Path(folder) / name
            if name != "timing.csv" and "tensorboard" not in file.parts and file.parts[len(outdir.parts)] != "report":
                found[str(file.relative_to(outdir))] = file.read_bytes().replace(str(outdir).encode(), b"OUT")
    assert found  # two runs without a file would be alike
    return found
