"""What a classifier must answer before its maps are computed."""

import numpy as np
import pytest
import torch

from heatproof import config
from heatproof.errors import ModelError
from heatproof.models.resnet_cifar import NarrowResNet8
from heatproof.stages.extract import Extraction
from heatproof.stages.run import Run

CONFIG = """
outdir: {folder}/out
device: cpu
data: {{dataset: Planted, split_ratio: 0.8, options: {{train_images: 20, test_images: 16}}}}
extract_cams:
    model: {{arch: heatproof.models.resnet_cifar.NarrowResNet8, constructor_args: {{num_classes: {classes}}}, pretrained_weights: {folder}/w.pth,
            normalization: {{mean: [0.5, 0.5, 0.5], std: [0.25, 0.25, 0.25]}}}}
    target: {target}
    attribution_methods: [{{name: gradient, method: heatproof.methods.gradient.Gradient}}]
"""


@pytest.fixture
def plan(tmp_path):
    def made(classes=8, target="predicted", bias=0.0):
        torch.manual_seed(0)
        model = NarrowResNet8(classes)
        model.linear.bias.data += bias
        torch.save(model.state_dict(), tmp_path / "w.pth")
        (tmp_path / "c.yml").write_text(CONFIG.format(folder=tmp_path, classes=classes, target=target))
        run = Run(config.read(tmp_path / "c.yml"))
        found = Extraction.of(run, run.config.extract_cams)
        return found, run.dataset.split("test")

    return made


def test_logits_that_are_not_finite_name_the_first_image(plan):
    found, split = plan()
    inner = found.loaded.module.forward
    bright = split.pixels([5]).float().mean()

    def forward(images):
        logits = inner(images)
        logits[images.mean((1, 2, 3)) == found._images(split.pixels([5])).mean()] = float("nan")
        return logits

    assert bright > 0
    found.loaded.module.forward = forward
    with pytest.raises(ModelError, match=r"NarrowResNet8: gives NaN or infinity for image 5 of test"):
        found.intact(split, np.arange(16))


def test_a_label_that_is_no_class_of_the_network_cannot_be_explained(plan):
    with pytest.raises(ModelError, match="gives 3 outputs, and Planted has 8 classes"):
        plan(classes=3, target="label")
