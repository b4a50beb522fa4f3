"""Logits are found in whatever a network returns, and refused where they are not plain."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from heatproof import removal
from heatproof.errors import ModelError
from heatproof.models import outputs
from heatproof.models.probabilities import (
    cross_entropy,
    divergences,
    entropy,
    kind_of,
    log_probability_of_any,
    margins,
    probabilities,
)
from tests.models import small_outputs as networks


def some_images(count=2, channels=3):
    return torch.randn(count, channels, 9, 8, generator=torch.Generator().manual_seed(2))


def read(model, **options):
    """The network in evaluation mode, read as a stage reads it."""
    outputs.read(model, some_images(), name="net", **({"classes": 4} | options))
    return model.eval()


@pytest.mark.parametrize("make", networks.FORMS.values(), ids=networks.FORMS)
@pytest.mark.parametrize("count", [1, 3])
def test_logits_are_taken_where_they_are_plain(make, count):
    model = networks.returning(make)
    expected, names = model.logits(some_images(count)), [*model.state_dict()]
    torch.testing.assert_close(read(model)(some_images(count)), expected, rtol=0, atol=0)
    assert [*model.state_dict()] == names
    torch.testing.assert_close(copy.deepcopy(model)(some_images(count)), expected, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda y: (y, y * 2),
            r"a tuple with float32 \(2, 4\), float32 \(2, 4\).*more than one of which can be the logits",
        ),
        (lambda y: y[:, :, None, None].expand(-1, -1, 3, 3), r"float32 \(2, 4, 3, 3\) for 2 images, expected logits"),
        (lambda y: y.argmax(dim=1), r"int64 \(2,\)"),
        (lambda y: None, "a NoneType with no tensor"),
        (lambda y: {"loss": y.sum()}, r"a dict with float32 \(\)"),
    ],
)
def test_other_outputs_are_one_line_with_the_way_out(make, message):
    with pytest.raises(ModelError, match=f"^net: gives {message}.*; return logits .* alone"):
        read(networks.returning(make))


def test_a_network_that_gives_logits_is_untouched():
    model = networks.Net()
    expected = model(some_images())
    assert read(model)(some_images()).grad_fn.name() == expected.grad_fn.name()
    assert torch.equal(model(some_images()), expected)
    assert kind_of(model) == "softmax"


def test_looking_at_a_network_draws_nothing_and_changes_nothing():
    model = nn.Sequential(networks.Normed(), nn.Dropout())
    model[0].eval()
    state, torch_state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    outputs.read(model, some_images(), name="net")
    assert [part.training for part in (model, model[0], model[1])] == [True, False, True]
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_one_network_is_read_once():
    model = read(read(networks.One()))
    assert model(some_images()).shape == (2, 2)


@pytest.mark.parametrize("make", [lambda y: y, lambda y: y[:, 0]], ids=["(N, 1)", "(N,)"])
def test_one_output_is_two_classes(make):
    model = networks.One()
    model.forward = lambda images: make(model.logits(images))
    z = model.logits(some_images(3))
    logits = read(model)(some_images(3))
    torch.testing.assert_close(logits, torch.cat((-z, z), dim=1))
    as_two = torch.cat((torch.zeros_like(z), z), dim=1)
    assert kind_of(model) == "sigmoid"
    torch.testing.assert_close(probabilities(logits, "sigmoid"), as_two.softmax(dim=1))
    assert torch.equal(logits.argmax(dim=1), as_two.argmax(dim=1))


def test_all_that_is_computed_of_one_output_is_that_of_the_logits_0_and_z():
    z, other = torch.randn(2, 50, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).unbind()
    pair, two = torch.cat((-z, z), dim=1), torch.cat((torch.zeros_like(z), z), dim=1)
    pair_other, two_other = torch.cat((-other, other), dim=1), torch.cat((torch.zeros_like(z), other), dim=1)
    labels = torch.arange(50) % 2
    torch.testing.assert_close(cross_entropy(pair, labels, "sigmoid"), cross_entropy(two, labels))
    torch.testing.assert_close(
        cross_entropy(pair, labels, "sigmoid", "none"), cross_entropy(two, labels, reduction="none")
    )
    torch.testing.assert_close(margins(pair, labels, "sigmoid"), margins(two, labels))
    torch.testing.assert_close(entropy(pair, "sigmoid"), entropy(two))
    torch.testing.assert_close(divergences(pair, pair_other, "sigmoid"), divergences(two, two_other))
    named = torch.nn.functional.one_hot(labels, 2).bool()
    torch.testing.assert_close(log_probability_of_any(pair, named, "sigmoid"), log_probability_of_any(two, named))


def test_curves_of_one_output_are_those_of_two_classes():
    one = read(networks.One())
    z = one.logits

    class Two(nn.Module):
        def forward(self, images):
            return torch.cat((torch.zeros(len(images), 1), z(images)), dim=1)

    generator = torch.Generator().manual_seed(5)
    pixels = torch.rand(4, 3, 9, 8, generator=generator)
    ranks = torch.stack([torch.randperm(72, generator=generator).reshape(9, 8) for _ in range(4)])
    asked = {
        "normalize": lambda p: p - 0.5,
        "fractions": (0.2, 0.5),
        "fill": lambda p, removed, index: p * ~removed[:, None],
    }
    targets = torch.tensor([0, 1, 0, 1])
    found, wanted = (removal.degraded_scores(model.eval(), pixels, ranks, targets, **asked) for model in (one, Two()))
    np.testing.assert_allclose(found.probability, wanted.probability, rtol=1e-5)
    np.testing.assert_allclose(found.logit_margin, wanted.logit_margin, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found.logit[1::2], wanted.logit[1::2], rtol=1e-5)
    np.testing.assert_array_equal(found.prediction, wanted.prediction)
    assert found.probability.max() < 1


def test_labels_that_can_be_true_together_have_logistic_functions():
    model = read(networks.Net(), output="sigmoid")
    assert kind_of(model) == "sigmoid"
    logits = model(some_images())
    torch.testing.assert_close(probabilities(logits, kind_of(model)), logits.sigmoid())


@pytest.mark.parametrize(
    "model", [networks.Soft(), networks.Sigmoids(), networks.Soft().half()], ids=["softmax", "sigmoid", "half"]
)
def test_probabilities_are_noticed(model):
    with pytest.raises(ModelError, match=r"outputs are probabilities already .* set model.output .* to probabilities"):
        read(model)


def test_a_softmax_of_one_class_is_noticed():
    model = networks.One()
    model.forward = lambda images: model.logits(images).softmax(dim=1)
    with pytest.raises(ModelError, match="always 1"):
        read(model, output="probabilities")


@pytest.mark.parametrize("model", [networks.Soft(), networks.Sigmoids()], ids=["softmax", "sigmoid"])
def test_probabilities_are_brought_back_to_logits_on_request(model):
    expected = model(some_images()).flatten(1)
    read(model, output="probabilities")
    torch.testing.assert_close(probabilities(model(some_images()), kind_of(model)), expected)


def test_logits_are_no_probabilities():
    with pytest.raises(ModelError, match="says probabilities, but its outputs reach from"):
        read(networks.Net(), output="probabilities")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_images_get_the_precision_of_the_weights_and_logits_are_at_least_single(dtype):
    model = networks.Net()
    expected = model(some_images())
    found = read(model.to(dtype))(some_images())
    assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(found.float(), expected, rtol=0, atol=0.02)


@pytest.mark.parametrize(
    ("model", "wanted"),
    [(networks.WithAuxiliary(), "first"), (networks.Distilled(), "mean")],
    ids=["auxiliary", "distilled"],
)
def test_training_gives_what_evaluation_gives(model, wanted):
    read(model)
    logits = model.train()(some_images(3))
    assert logits.shape == (3, 4)
    logits.sum().backward()
    assert (model.second.weight.grad is None) == (wanted == "first")
    assert model.training
    assert model.dropout.training


def test_outputs_of_training_that_evaluation_does_not_give_are_one_line():
    model = read(networks.SecondInEvaluation()).train()
    with pytest.raises(ModelError, match="neither the first nor their mean is its output in evaluation"):
        model(some_images())


def test_auxiliary_outputs_of_a_record_are_left_out():
    model = networks.Net()
    model.forward = lambda images: (
        networks.Record(y := model.logits(images), y * 2) if model.training else model.logits(images)
    )
    torch.testing.assert_close(read(model).train()(some_images()), model.logits(some_images()))


@pytest.mark.parametrize(("built_for", "given", "message"), [(3, 1, "pictures are grey"), (1, 3, "takes 1")])
def test_another_number_of_channels_is_one_line(built_for, given, message):
    with pytest.raises(ModelError, match=f"{message}.*constructor_args"):
        outputs.read(networks.Net(in_channels=built_for), some_images(channels=given), name="net")


def test_batch_norms_that_see_single_values_are_found():
    assert outputs.norms_single_values(read(networks.Normed()))
    assert not outputs.norms_single_values(read(networks.Net()))
    assert not outputs.norms_single_values(networks.Normed())


def test_a_scripted_network_of_logits_is_read_and_another_is_refused():
    fine, squeezed = nn.Sequential(nn.Conv2d(3, 4, 8), nn.AdaptiveAvgPool2d(1), nn.Flatten()), nn.Conv2d(3, 4, (9, 8))
    with pytest.warns((FutureWarning, DeprecationWarning)):
        fine, squeezed = torch.jit.script(fine), torch.jit.script(squeezed)
    assert read(fine)(some_images()).shape == (2, 4)
    with pytest.raises(ModelError, match="is scripted and takes no hooks"):
        read(squeezed)
