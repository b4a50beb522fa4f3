"""Short names in configurations: each leads to one dotted path, and a wrong one is one line."""

import pytest
from torch import nn

from heatproof import config, plugins
from heatproof.errors import ConfigError
from heatproof.models import catalogue
from heatproof.stages.run import Run

TEXT = """
outdir: runs/x
device: cpu
data: {dataset: Planted}
train_cls: {model: {arch: ResNet8}}
extract_cams:
    model: {arch: resnet18}
    attribution_methods:
        - {name: cam, method: grad-cam}
        - {name: sobel, method: sobel}
        - {name: dotted, method: heatproof.methods.cam.GradCam}
        - {name: mine, method: my_module.Mine}
        - {name: elsewhere, method: imported}
lerf: {}
"""


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "c.yml"
    path.write_text(TEXT)
    return path


def test_a_run_has_dotted_paths_in_every_section(path):
    settings = Run(config.read(path)).config
    assert settings.train_cls.model.arch == "heatproof.models.resnet_cifar.ResNet8"
    for section in (settings.extract_cams, settings.pixel_perturbation_analysis):
        assert section.model.arch == "torchvision.models.resnet18"
        assert [method.method for method in section.attribution_methods] == [
            "heatproof.methods.cam.GradCam",
            "heatproof.methods.controls.Sobel",
            "heatproof.methods.cam.GradCam",
            "my_module.Mine",
            "imported",
        ]
    assert Run(settings).config == settings


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "extract_cams.attribution_methods.0.method=grad-kam",
            "extract_cams.attribution_methods[0]: there is no method 'grad-kam'; did you mean 'grad-cam'?",
        ),
        ("train_cls.model.arch=resnet8", "train_cls.model: there is no classifier 'resnet8'; did you mean "),
        ("train_cls.model.arch=resnet5", "train_cls.model: there is no classifier 'resnet5'; did you mean 'resnet50'?"),
    ],
)
def test_an_unknown_name_is_one_line_with_its_key_and_the_nearest(path, override, message):
    with pytest.raises(ConfigError) as caught:
        Run(config.read(path, [override]))
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_the_name_of_a_control_stays_its_own(path):
    with pytest.raises(ConfigError, match="'sobel' is the name of the control"):
        config.read(path, ["extract_cams.attribution_methods.1.method=gradient"])


@pytest.mark.parametrize("name", ["ResNet8", "ResNet18", "NarrowResNet8", "ResNet56", "ViTTiny"])
def test_a_classifier_of_the_package_is_built_by_its_name(name):
    assert isinstance(plugins.resolve(catalogue.path_of(name))(num_classes=3), nn.Module)


def test_names_with_a_place_of_their_own_stay():
    for name in ("timm:vit_tiny_patch16_224", "hf:some/model", "my_module.Net", "torchvision.models.resnet50"):
        assert catalogue.path_of(name) == name
