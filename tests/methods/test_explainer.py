"""What a configured method is besides its maps: what it is given."""

from pathlib import Path

import pytest
import torch

from heatproof import cli, config, plugins
from heatproof.errors import MapError, PluginError
from heatproof.methods.catalogue import options_of
from heatproof.methods.explainer import Explainer
from heatproof.methods.gradient import Gradient, IntegratedGradients
from heatproof.methods.perturbation import Occlusion
from heatproof.removal import build_fill
from tests.end_to_end.conftest import heatproof
from tests.methods.networks import small_resnet


class Learned:
    """A method that keeps what it was given."""

    def __init__(self, model, checkpoint, classifier_sha256=None):
        self.given = (checkpoint, classifier_sha256)

    def __call__(self, images, targets):
        return torch.full((len(images), *images.shape[2:]), float(self.given[1] == "abc"))


def test_a_method_that_asks_for_it_is_told_which_classifier_it_explains():
    method = Explainer("m", f"{__name__}.Learned", {"checkpoint": "none"})
    method.check()
    images, targets, indices = torch.zeros(2, 3, 4, 4), torch.zeros(2, dtype=torch.int64), torch.arange(2)
    told = method.bind(torch.nn.Identity(), {"seed": 0, "classifier_sha256": "abc"})
    untold = method.bind(torch.nn.Identity(), {"seed": 0})
    assert told(images, targets, indices).maps.all()
    assert not untold(images, targets, indices).maps.any()


@pytest.mark.parametrize(
    ("path", "options", "message"),
    [
        ("diffmask.DiffMask", {"checkpoint": "x", "layer": 1.5}, "option 'layer': 1.5 should be a whole number"),
        (
            "diffmask.DiffMask",
            {"checkpoint": "x", "aggregated": "no"},
            "option 'aggregated': 'no' should be true or false",
        ),
        ("masker.Masker", {"checkpoint": 3}, "option 'checkpoint': 3 should be text"),
        ("masker.Masker", {"checkpoint": "x", "use_p": "half"}, "option 'use_p': 'half' should be a number or null"),
        ("gradient.SmoothGrad", {"samples": [3]}, r"option 'samples': \[3\] should be a whole number"),
    ],
)
def test_an_option_of_another_type_than_the_method_says_is_refused(path, options, message):
    with pytest.raises(PluginError, match=message):
        Explainer("mine", f"heatproof.methods.{path}", options).check()


def test_options_whose_type_is_more_than_plain_are_the_methods_own_business():
    def method(model, size: tuple[int, int] = (1, 1), steps: "int" = 3, share: float = 0.5, fill: str | None = None):
        return lambda images, targets: images

    for options in ({"size": [2, 2]}, {"steps": "x"}, {"share": 1}, {"fill": None}, {"fill": Path("x")}):
        plugins.check_options("mine", method, options, positional=1)


IMAGES = torch.randn(3, 3, 12, 10, generator=torch.Generator().manual_seed(1))
TARGETS, INDICES = torch.tensor([0, 3, 1]), torch.arange(3)


@pytest.mark.filterwarnings("ignore")  # Captum's own
@pytest.mark.parametrize(
    ("name", "options", "ours"),
    [
        ("Saliency", {}, Gradient),
        ("Saliency", {"abs": False}, lambda model: Gradient(model, absolute=False)),
        (
            "IntegratedGradients",
            {"n_steps": 20, "baselines": 0.3, "multiply_by_inputs": True},
            lambda model: IntegratedGradients(model, steps=20, baseline=0.3),
        ),
        (
            "Occlusion",
            {"sliding_window_shapes": [3, 4, 5], "strides": [3, 4, 5]},
            lambda model: Occlusion(model, window=(4, 5), stride=(4, 5)),
        ),
    ],
)
def test_captums_classes_are_methods(name, options, ours):
    pytest.importorskip("captum")
    model, method = small_resnet(), Explainer("captum", f"captum.attr.{name}", options, "signed_max")
    method.check()
    with torch.inference_mode():  # as stages call it
        maps = method.bind(model, {"seed": 0})(IMAGES, TARGETS, INDICES).maps
    expected = ours(model)(IMAGES, TARGETS)
    if expected.ndim == 4:
        expected = Explainer("ours", "heatproof.methods.gradient.Gradient", {})._checked(expected, IMAGES, INDICES).maps
        torch.testing.assert_close(maps, expected, atol=1e-6, rtol=1e-4)
    else:  # Captum sums over the window's places what ours takes the mean of
        ratio = maps / expected
        torch.testing.assert_close(ratio, ratio.flatten()[0].expand_as(ratio), atol=0, rtol=1e-3)


@pytest.mark.filterwarnings("ignore")
def test_a_captum_layer_is_named_and_a_layers_map_is_refused():
    pytest.importorskip("captum")
    guided = Explainer("captum", "captum.attr.GuidedGradCam", {"layer": "conv2"})
    guided.check()
    assert guided.bind(small_resnet(), {"seed": 0})(IMAGES, TARGETS, INDICES).maps.shape == (3, 12, 10)
    inner = Explainer("captum", "captum.attr.LayerGradCam", {"layer": "conv2"}).bind(small_resnet(), {"seed": 0})
    with pytest.raises(MapError, match="maps of shape"):
        inner(IMAGES, TARGETS, INDICES)


def test_the_options_of_captums_classes_are_checked_and_listed():
    pytest.importorskip("captum")
    for options, message in (
        ({"n_step": 3}, "unknown option 'n_step'; did you mean 'n_steps'"),
        ({"target": 3}, "unknown option 'target'"),
    ):
        with pytest.raises(PluginError, match=message):
            Explainer("captum", "captum.attr.IntegratedGradients", options).check()
    with pytest.raises(PluginError, match="option 'sliding_window_shapes' is missing"):
        Explainer("captum", "captum.attr.Occlusion", {}).check()
    listed = options_of("captum.attr.IntegratedGradients", provided=("seed",))
    assert {"multiply_by_inputs", "n_steps", "baselines"} <= listed.keys()
    assert not {"self", "inputs", "target"} & listed.keys()


class Attributed:
    """What a factory may return: an object in Captum's form."""

    def __init__(self, model):
        self.model = model

    def attribute(self, inputs, target=None):
        return inputs * target[:, None, None, None]


def make_attributed(model):
    return Attributed(model)


@pytest.mark.parametrize("name", ["Attributed", "make_attributed"])
def test_an_object_with_attribute_is_a_method(name):
    method = Explainer("mine", f"{__name__}.{name}", {}, "sum")
    method.check()
    maps = method.bind(torch.nn.Identity(), {"seed": 0})(IMAGES, TARGETS, INDICES).maps
    torch.testing.assert_close(maps, (IMAGES * TARGETS[:, None, None, None]).sum(dim=1))


@pytest.fixture
def users_module(tmp_path, monkeypatch):
    """A module of a user's own in the current folder."""
    (tmp_path / "mine_that_fails.py").write_text(
        "import torch\n\ndef method(model):\n    return lambda images, targets: images.reshape(7, 7)\n\n"
        "def fill(pixels, removed):\n    raise KeyError('no\\nsuch fill')\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def test_an_error_in_a_users_code_is_one_line_with_its_place_and_a_traceback_beside(users_module):
    explain = Explainer("mine", "mine_that_fails.method", {}).bind(torch.nn.Identity(), {"seed": 0})
    fill = build_fill("mine_that_fails.fill")
    for call, line, reason in (
        (lambda: explain(IMAGES, TARGETS, INDICES), 4, "RuntimeError: shape"),
        (lambda: fill(IMAGES, IMAGES[:, 0] > 0), 7, "KeyError: 'no"),
    ):
        with pytest.raises((RuntimeError, KeyError)) as caught:
            call()
        told = str(plugins.raised_by_a_plugin(caught.value))
        assert told.startswith(f"{users_module / 'mine_that_fails.py'}, line {line}: {reason}")
        assert "\n" not in told
        assert "Traceback" in (users_module / "heatproof-traceback.txt").read_text()


def test_an_error_of_ours_is_not_blamed_on_a_user(users_module):
    plugins.resolve("mine_that_fails.method")
    with pytest.raises(AttributeError) as caught:
        build_fill(3)  # what no user can give
    assert plugins.raised_by_a_plugin(caught.value) is None
    assert not (users_module / "heatproof-traceback.txt").exists()


def test_a_users_failing_method_ends_the_command_with_status_2(users_module, capsys, monkeypatch):
    def failing():
        Explainer("mine", "mine_that_fails.method", {}).bind(torch.nn.Identity(), {"seed": 0})(IMAGES, TARGETS, INDICES)

    monkeypatch.setattr(config.Config, "model_json_schema", failing)
    assert cli.main(["schema"]) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert "mine_that_fails.py, line 4: RuntimeError" in told


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (None, "returned NoneType; expected maps"),
        ("map", "returned str; expected maps"),
        ([[1.0, 2.0], [3.0]], "returned list; expected maps"),
        ((torch.zeros(2, 4, 4), 1), "returned tuple; expected maps"),
        (torch.zeros(2, 4, 4, dtype=torch.complex64), "returned Tensor of complex64"),  # its real part would be silent
        (torch.zeros(2, 4, 4).to_sparse(), "torch.sparse_coo; expected maps"),
    ],
)
@pytest.mark.parametrize("form", ["factory", "function"])
def test_a_method_that_returns_no_maps_is_named(monkeypatch, returned, message, form):
    factory = {
        "factory": lambda model: lambda images, targets: returned,
        "function": lambda model, image, label: returned,
    }
    monkeypatch.setattr(plugins, "resolve", lambda path: factory[form])
    explain = Explainer("mine", "own.method", {}).bind(torch.nn.Identity(), {})
    with pytest.raises(MapError, match=rf"mine \(own\.method\): image 7: .*{message}"):
        explain(torch.zeros(2, 3, 4, 4), torch.zeros(2, dtype=torch.int64), torch.tensor([7, 8]))


def test_a_list_of_maps_is_as_good_as_a_tensor_of_them(monkeypatch):
    monkeypatch.setattr(plugins, "resolve", lambda path: lambda model: lambda images, targets: list(images[:, 0]))
    images = torch.rand(2, 3, 4, 4)
    explained = Explainer("mine", "own.method", {}).bind(torch.nn.Identity(), {})(
        images, torch.zeros(2, dtype=torch.int64), torch.arange(2)
    )
    assert torch.equal(explained.maps, images[:, 0])


def test_a_factory_that_makes_nothing_to_call_is_named(monkeypatch):
    monkeypatch.setattr(plugins, "resolve", lambda path: lambda model: None)
    with pytest.raises(PluginError, match=r"own\.method: made NoneType, which cannot be called"):
        Explainer("mine", "own.method", {}).bind(torch.nn.Identity(), {})


class Sized:
    """A method whose option has the name of one of explain's."""

    def __init__(self, model, size: int = 3):
        self.size = size

    def __call__(self, images, targets):
        return images[:, 0]


def test_an_option_that_explain_has_too_bears_the_methods_name(capsys):
    assert heatproof("explain", "--method", f"{__name__}.Sized", "--help") == 0
    assert "--sized-size VALUE" in capsys.readouterr().out
