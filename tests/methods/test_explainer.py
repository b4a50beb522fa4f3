"""What a configured method is besides its maps: what it is given."""

from pathlib import Path

import pytest
import torch

from heatproof import plugins
from heatproof.errors import PluginError
from heatproof.methods.explainer import Explainer


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
