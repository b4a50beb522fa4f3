"""Copies of a model with re-initialised layers: which layers, which values, and what stays as it was."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from torch import nn

from heatproof.errors import InputError, ModelError
from heatproof.methods.gradient import Gradient
from heatproof.metrics import agreement
from heatproof.models import randomisation
from tests.methods.networks import TinyCnn

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture(scope="module")
def published():
    return json.loads((GOLDEN / "casme" / "sanity.json").read_text())


@pytest.fixture(scope="module")
def quantus():
    inputs = dict(np.load(GOLDEN / "metrics" / "quantus_inputs.npz"))
    return inputs, json.loads((GOLDEN / "metrics" / "quantus.json").read_text())


@pytest.fixture(scope="module")
def tinycnn():
    model = TinyCnn().eval()
    stored = np.load(GOLDEN / "metrics" / "tinycnn.npz")
    model.load_state_dict({name[2:]: torch.from_numpy(stored[name]) for name in stored.files if name[:2] == "w."})
    return model


class Tiny(nn.Module):
    """The small classifier of the published vectors: five convolutions, one normalisation, one linear layer."""

    def __init__(self):
        super().__init__()
        for number, (inputs, outputs) in enumerate([(3, 4), (4, 6), (6, 8), (8, 10), (10, 12)]):
            self.add_module(f"conv{number}", nn.Conv2d(inputs, outputs, 3))
            if number == 3:
                self.bn3 = nn.BatchNorm2d(10)
        self.fc = nn.Linear(12, 10)


def changed(before, after):
    after = after.state_dict()
    return sorted(name for name, value in before.state_dict().items() if not torch.equal(value, after[name]))


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_the_layers_of_resnet50_are_the_published_ones(published, depth):
    with torch.device("meta"):
        model = torchvision.models.resnet50()
    assert randomisation.layers(model, depth) == published[f"resnet50_layer_names_depth{depth}"]


def test_cascading_and_independent_steps_change_the_published_parameters(published):
    model = Tiny()
    names = randomisation.layers(model, depth=1)
    assert names == published["tiny_layer_names_depth1"]
    for order, key in (("top_down", "tiny_cascade_changed_keys"), ("independent", "tiny_independent_changed_keys")):
        found = []
        for step in randomisation.steps(names, order):
            copy = randomisation.randomised(model, step.randomised, seed=0)
            found.append([step.layer, changed(model, copy)])
        assert found == [[layer, sorted(keys)] for layer, keys in published[key]]


def test_new_values_spread_as_the_published_rule_says():
    model = nn.ModuleDict({"conv": nn.Conv2d(60, 80, (3, 5)), "fc": nn.Linear(200, 70), "bn": nn.BatchNorm2d(900)})
    new = dict(randomisation.randomised(model, ["conv", "fc", "bn"], seed=1).named_parameters())
    np.testing.assert_allclose(new["conv.weight"].std().item(), np.sqrt(2 / (60 * 80 * 5)), rtol=0.02)
    for name, bound in (("fc.weight", 200), ("fc.bias", 70), ("conv.bias", 80), ("bn.weight", 900)):
        values = new[name].detach().numpy() * np.sqrt(bound)
        assert np.abs(values).max() <= 1
        np.testing.assert_allclose(values.std(), 1 / np.sqrt(3), rtol=0.15)


@pytest.mark.parametrize("order", ["top_down", "bottom_up", "independent"])
def test_the_gradient_moves_as_in_quantus(tinycnn, quantus, order):
    inputs, scores = quantus
    images, targets = torch.from_numpy(inputs["x"]), torch.from_numpy(inputs["y"])
    intact = Gradient(tinycnn)(images, targets).flatten(1)[:, None].numpy()
    names = randomisation.layers(tinycnn, depth=None)
    expected = scores[f"mprt_{order}"]
    walk = randomisation.steps(names, order)
    assert {"original", *(step.layer for step in walk)} == set(expected)
    if order != "independent":  # the others' keys are in the order of the walk
        assert [step.layer for step in walk] == list(inputs[f"mprt_{order}_layers"])
    for step in walk:
        model = TinyCnn().eval()
        state = dict(tinycnn.state_dict())
        for name in step.randomised:
            for kind in ("weight", "bias"):
                state[f"{name}.{kind}"] = torch.from_numpy(inputs[f"mprt_new_{name}_{kind}"])
        model.load_state_dict(state)
        maps = Gradient(model)(images, targets).flatten(1)[:, None].numpy()
        np.testing.assert_allclose(agreement.abs_spearman(intact, maps), expected[step.layer], atol=1e-5)


@pytest.mark.parametrize("initialisation", ["published", "reset"])
def test_all_orders_end_in_the_same_model_which_depends_on_the_seed(tinycnn, initialisation):
    names = randomisation.layers(tinycnn)
    ends = []
    for order, seed in (("top_down", 0), ("bottom_up", 0), ("top_down", 1)):
        step = randomisation.steps(names, order)[-1]
        ends.append(randomisation.randomised(tinycnn, step.randomised, seed, initialisation=initialisation))
    assert not changed(ends[0], ends[1])
    assert len(changed(ends[0], ends[2])) == 8


def test_the_model_its_mode_and_the_callers_random_state_stay_as_they_were(tinycnn):
    before = {name: value.clone() for name, value in tinycnn.state_dict().items()}
    tinycnn.conv1.train()
    torch.manual_seed(5)
    for initialisation in ("published", "reset"):
        copy = randomisation.randomised(tinycnn, ["fc", "conv2"], 0, initialisation=initialisation)
        assert [copy.conv1.training, copy.conv2.training] == [True, False]
    drawn = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(drawn, torch.rand(1))
    tinycnn.conv1.eval()
    assert all(torch.equal(before[name], value) for name, value in tinycnn.state_dict().items())


@pytest.mark.parametrize("initialisation", ["published", "reset"])
def test_running_statistics_stay_unless_they_are_to_be_forgotten(initialisation):
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2))
    model[1].running_mean += 3
    kept = randomisation.randomised(model, ["1"], 0, initialisation=initialisation)
    forgot = randomisation.randomised(model, ["1"], 0, initialisation=initialisation, keep_statistics=False)
    assert kept[1].running_mean.tolist() == [3, 3]
    assert forgot[1].running_mean.tolist() == [0, 0]


def test_parameters_of_a_parent_are_layers_too():
    with torch.device("meta"):
        names = randomisation.layers(torchvision.models.vit_b_16(), depth=2)
    assert names[:3] == ["class_token", "conv_proj", "encoder.pos_embedding"]
    model = nn.Module()
    model.token, model.fc = nn.Parameter(torch.zeros(1, 1, 4)), nn.Linear(4, 2)
    new = randomisation.randomised(model, randomisation.layers(model), seed=0)
    assert changed(model, new) == ["fc.bias", "fc.weight", "token"]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda m: randomisation.layers(m, 0), InputError, "depth: 0 must be 1 or more"),
        (lambda m: randomisation.layers(nn.ReLU()), ModelError, "ReLU: no layer to re-initialise"),
        (lambda m: randomisation.layers(nn.Sequential(nn.ReLU()), None), ModelError, "no layer has reset_parameters"),
        (lambda m: randomisation.steps(["a"], "sideways"), InputError, "order: 'sideways' is not one of"),
        (lambda m: randomisation.randomised(m, ["conv9"], 0), ModelError, "layer 'conv9': TinyCnn has no such layer"),
        (
            lambda m: (
                randomisation.randomised(nn.MultiheadAttention(4, 1), ["out_proj"], 0, initialisation="reset")
                and randomisation.randomised(
                    nn.Sequential(nn.MultiheadAttention(4, 1)), ["0"], 0, initialisation="reset"
                )
            ),
            ModelError,
            "nothing resets '0.in_proj_weight'; use initialisation: published",
        ),
    ],
)
def test_messages(tinycnn, call, error, message):
    with pytest.raises(error, match=message):
        call(tinycnn)
