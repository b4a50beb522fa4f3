"""The gates and the masking of Vision DiffMask: golden vectors of the published code, and what ours adds."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from heatproof.errors import InputError, ModelError
from heatproof.models import masking as masking_module
from heatproof.models.diffmask import DiffMaskNetwork, explainer_from
from heatproof.models.hard_concrete import HardConcrete, log_complement
from heatproof.models.hooks import frozen_eval
from heatproof.models.loading import LogitsOf
from heatproof.models.masking import masking_of
from heatproof.models.resnet_cifar import ResNet8
from heatproof.models.targets import Difference, Retargeted
from heatproof.models.transformers import architecture_of
from tests.models.vits import RECTANGULAR, _new_name, our_vit, randomised, timm_vit

GOLDEN = Path(__file__).parents[1] / "golden" / "diffmask"


def golden(name):
    arrays = np.load(GOLDEN / f"{name}.npz")
    return {key: torch.from_numpy(arrays[key]) for key in arrays}


def tiny_vit(vectors, *, side=32, patch=8, classes=10, depth=3):
    """The classifier of the golden vectors, in transformers' form of today."""
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=32, num_hidden_layers=depth, num_attention_heads=2, intermediate_size=64, image_size=side,
        patch_size=patch, num_labels=classes, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    model = transformers.ViTForImageClassification(config)
    state = {_new_name(k.removeprefix("model.")): v for k, v in vectors.items() if k.startswith("model.")}
    model.load_state_dict(state)
    return LogitsOf(model).eval()


def published(vectors, prefix="explainer."):
    """The explainer of a golden file."""
    return explainer_from(
        {k.removeprefix(prefix): v for k, v in vectors.items() if k.startswith(prefix)}, where="golden"
    )


def close(found, expected, tolerance):
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance)


def test_hard_concrete_gates_are_those_of_the_published_code():
    vectors = golden("hard_concrete")
    logits = vectors["logits"].requires_grad_()
    gate = HardConcrete(logits, compat=True)
    close(gate.binary_concrete(vectors["u"]), vectors["binary_concrete"], 1e-5)
    close(gate.stretched(vectors["u"]), vectors["stretched"], 1e-5)
    close(gate.sample(vectors["u"]), vectors["gate"], 1e-5)
    close(gate.log_probability_open(), vectors["log_expected_L0"], 1e-5)
    close(gate.log_probability_open().exp(), vectors["expected_L0"], 1e-5)
    weights = vectors["grad_weights"]
    for value, name in ((gate.sample(vectors["u"]), "gate"), (gate.log_probability_open(), "log_expected_L0")):
        (gradient,) = torch.autograd.grad((weights * value).sum(), logits)
        close(gradient, vectors[f"grad_{name}_logits"], 1e-5)
    x = vectors["bc_values"][:, None, None]
    close(gate.log_density(x), vectors["bc_log_prob"], 1e-5)
    close(gate.log_density(torch.tensor(1.0)), vectors["bc_log_prob_at_one"], 0)
    close(gate.cdf(x), vectors["bc_cdf"], 1e-5)
    close(gate.log_survival(x), vectors["bc_log_survival"], 1e-5)
    wide = HardConcrete(vectors["alt_logits"], 0.5, -0.1, 1.1, compat=True)
    close(wide.sample(vectors["alt_u"]), vectors["alt_gate"], 1e-5)
    close(wide.log_probability_open(), vectors["alt_log_expected_L0"], 1e-5)


def test_without_compat_a_sample_feels_its_logit_however_large():
    logits = torch.tensor([18.0, 18.0], requires_grad=True)
    u = torch.tensor([2.0e-7, 0.5])
    (ours,) = torch.autograd.grad(HardConcrete(logits).sample(u).sum(), logits)
    (theirs,) = torch.autograd.grad(HardConcrete(logits, compat=True).sample(u).sum(), logits)
    assert ours[0] > 0 == theirs[0]


def test_a_gate_is_open_as_often_as_it_says():
    logits = torch.tensor([-2.0, -0.3, 0.0, 1.5])
    u = (torch.arange(100_000) + 0.5)[:, None] / 100_000
    gate = HardConcrete(logits)
    close((gate.sample(u) > 0).float().mean(dim=0), gate.log_probability_open().exp(), 2e-5)
    close(gate.log_probability_open().exp() + gate.log_probability_closed().exp(), torch.ones(4), 1e-6)


@given(st.floats(-60, -1e-7))
def test_the_logarithm_of_the_complement_is_exact_and_smooth(log_probability):
    x = torch.tensor(log_probability, requires_grad=True)
    value = log_complement(x)
    value.backward()
    exact = float(x.detach().double())
    expected = math.log(-math.expm1(exact)) if exact > -0.7 else math.log1p(-math.exp(exact))
    assert float(value.detach()) == pytest.approx(expected, rel=1e-5, abs=1e-30)
    assert float(x.grad) == pytest.approx(math.exp(exact) / math.expm1(exact), rel=1e-4, abs=1e-30)


@pytest.mark.parametrize("depth", ["all", "0", "2"])
@pytest.mark.parametrize("placeholder", ["ph", "zero"])
@pytest.mark.parametrize("aggregated", ["agg", "noagg"])
def test_gates_and_masked_states_are_those_of_the_published_code(depth, placeholder, aggregated):
    vectors = golden("gates")
    state = {f"gate.{k.removeprefix('ph.param.')}": v for k, v in vectors.items() if k.startswith("ph.param.")}
    explainer = explainer_from(
        state | {"gate.placeholder": vectors[f"{placeholder}.param.placeholder"]}, where="golden"
    )
    count = 5 if depth == "all" else int(depth) + 1
    hidden = list(vectors["hidden_states"])[:count]
    key = f"{placeholder}.{depth}.{aggregated}."
    gates = explainer.votes(hidden).sample(vectors[f"u.{depth}"])
    log_kept = explainer.log_kept(hidden, aggregated=aggregated == "agg")
    keep = gates.prod(dim=2)
    close(explainer.votes(hidden).logits, vectors["gate_logits"][:, :, :count], 2e-5)
    close(gates.cumprod(dim=2), vectors[key + "gates_full"], 2e-5)
    close(keep, vectors[key + "gates"], 2e-5)
    close(log_kept, vectors[key + "expected_L0_full"], 2e-5)
    close(log_kept[:, :, -1], vectors[key + "expected_L0"], 2e-5)
    masked = keep[:, :, None] * hidden[0] + (1 - keep[:, :, None]) * explainer.placeholder
    close(masked, vectors[key + "masked_hidden"], 1e-4)


def test_hidden_states_maps_and_masked_predictions_are_those_of_the_published_code():
    vectors = golden("tiny_vit_explainer")
    model, explainer = tiny_vit(vectors), published(vectors)
    masking = masking_of(model, "tokens", compat=True)
    with torch.no_grad(), frozen_eval(model):
        passed = masking.intact(vectors["images"])
        close(passed.logits, vectors["logits"], 2e-5)
        close(passed.hidden[0][:, 1:], vectors["hidden.0"], 5e-5)
        for number in range(1, 5):
            close(passed.hidden[number], vectors[f"hidden.{number}"], 5e-5)
        assert passed.grid == (4, 4)
        log_kept = explainer.log_kept(passed.hidden)
        close(log_kept, vectors["log_expected_L0_full"], 5e-5)
        close(log_kept[:, 1:, -1].exp().reshape(4, 4, 4), vectors["patch_map"], 2e-5)
        gates = explainer.votes(passed.hidden).sample(vectors["u"])
        close(gates.cumprod(dim=2), vectors["gates_full"], 2e-5)
        masked = masking.masked(vectors["images"], passed, gates.prod(dim=2), explainer.placeholder)
        close(masked, vectors["masked_logits"], 2e-5)
        assert (masked.argmax(1) == vectors["pred_class"]).all()
        assert (passed.logits.argmax(1) == vectors["orig_pred_class"]).all()


@pytest.mark.parametrize("index", [0, 2, 4])
def test_a_replaced_state_leads_where_it_leads_in_the_published_code(index):
    vectors = golden("tiny_vit_explainer")
    model = tiny_vit(vectors)
    architecture = architecture_of(model)
    with (
        torch.no_grad(),
        masking_module.replaced_state(architecture, index, vectors[f"set{index}.new"]),
        masking_module.hidden_states(architecture) as states,
    ):
        logits = model(vectors["images"])
    close(logits, vectors[f"set{index}.logits"], 2e-5)
    close(states[-1], vectors[f"set{index}.hidden_last"], 5e-5)


def test_a_soft_mask_is_as_faithful_as_in_the_published_evaluation():
    vectors = golden("perturbation")
    model = tiny_vit(vectors, side=64, patch=16, classes=6, depth=2)
    masking = masking_of(model, "tokens")
    with torch.no_grad():
        passed = masking.intact(vectors["images"])
        mask = vectors["patch_map"].flatten(1)
        masked = masking.masked(vectors["images"], passed, mask, vectors["softmask.placeholder"])
    target, found = passed.logits.log_softmax(1), masked.log_softmax(1)
    close((target.exp() * (target - found)).sum(1), vectors["softmask.kl"], 1e-5)
    assert ((masked.argmax(1) == vectors["softmask.labels"]) == vectors["softmask.correct"]).all()
    close(100 * (1 - mask.double().mean(1)), vectors["softmask.masked_percentage"], 1e-4)


@pytest.mark.parametrize(("build", "prefix"), RECTANGULAR.values(), ids=RECTANGULAR)
def test_every_known_transformer_is_masked_on_its_grid_and_left_as_it_was(build, prefix):
    model = build()
    masking = masking_of(model)
    images = torch.randn(2, 3, 16, 24, generator=torch.Generator().manual_seed(0))
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
    with torch.no_grad():
        passed = masking.intact(images)
        assert (masking.form, passed.grid) == ("tokens", (4, 6))
        assert {state.shape for state in passed.hidden} == {(2, 24, 16)}
        assert len(passed.hidden) == len(architecture_of(model).blocks) + 2
        placeholder = torch.zeros(1, 1, 16)
        kept = masking.masked(images, passed, torch.ones(2, 24), placeholder)
        close(kept, model(images), 1e-5)
        keep = torch.ones(2, 24)
        keep[0, 7] = 0
        one = masking.masked(images, passed, keep, placeholder)
        close(one[1], kept[1], 1e-5)
        assert not torch.allclose(one[0], kept[0], atol=1e-5)
        # Without positions and blocks in between, state 0 is what the projection gives at a patch's place.
        close(passed.hidden[0][:, 7], architecture_of(model).projection(images)[:, :, 1, 1], 1e-5)
    assert [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()] == hooks


def test_hooks_are_gone_after_an_error():
    model = our_vit()
    masking = masking_of(model)
    with pytest.raises(InputError, match="pixels"):
        masking.intact(torch.zeros(1, 3, 8, 8))
    architecture = architecture_of(model)
    with pytest.raises(InputError), masking_module.replaced_state(architecture, 0, torch.zeros(2, 24, 16)):
        model(torch.zeros(1, 3, 8, 8))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_gates_start_open_and_the_published_ones_anywhere():
    torch.manual_seed(0)
    hidden = [3 * torch.randn(2, 50, 32) for _ in range(6)]
    ours = DiffMaskNetwork("tokens", 6, 32, mul_activation=5.0, add_activation=3.0).votes(hidden).logits
    theirs = DiffMaskNetwork("tokens", 6, 32, mul_activation=15.0, add_activation=8.0, compat=True).votes(hidden).logits
    assert (ours - 3).abs().max() < 0.3
    assert theirs.min() < 2
    assert theirs.max() > 14


def test_the_product_of_all_gates_is_that_of_each_gate_alone():
    torch.manual_seed(1)
    explainer = DiffMaskNetwork("tokens", 3, 8, hidden=5, mul_activation=2.0, add_activation=1.0)
    hidden = [torch.randn(2, 4, 8) for _ in range(3)]
    logits = explainer.votes(hidden).logits
    for number, own in enumerate(hidden):
        first, second = (explainer.gate.layers(key)[number] for key in ("0", "2"))
        rows = [each.weight_g * each.weight_v / each.weight_v.norm(dim=1, keepdim=True) for each in (first, second)]
        active = (torch.cat([hidden[0], own], dim=2) @ rows[0].T + first.bias).tanh()
        close(logits[:, :, number], 2 * (active @ rows[1].T + second.bias)[:, :, 0] + 1, 1e-5)


def test_an_explainer_is_wholly_in_its_state_dict():
    torch.manual_seed(0)
    explainer = DiffMaskNetwork("pixels", 3, 8, hidden=5, mul_activation=2.5, add_activation=1.0, colours=1)
    again = explainer_from(explainer.state_dict(), where="memory")
    hidden = [torch.randn(2, 4, 8) for _ in range(3)]
    assert torch.equal(again.log_kept(hidden), explainer.log_kept(hidden))
    assert again.placeholder.shape == (1, 1, 1)


def test_a_foreign_file_of_weights_is_no_explainer():
    with pytest.raises(ModelError, match="holds no weights of DiffMask"):
        explainer_from(our_vit().state_dict(), where="x.pth")
    state = DiffMaskNetwork("tokens", 2, 8, mul_activation=1.0, add_activation=1.0).state_dict()
    del state["gate.g_hat.1.f.2.bias"]
    with pytest.raises(ModelError, match=r"the file has no gate\.g_hat\.1\.f\.2\.bias"):
        explainer_from(state, where="x.pth")


def test_a_classifier_without_tokens_cannot_be_masked_by_tokens():
    with pytest.raises(ModelError, match="no vision transformer that is known"):
        masking_of(ResNet8(num_classes=4), "tokens")


def test_the_published_form_asks_for_a_class_token():
    with pytest.raises(ModelError, match="no class token"):
        masking_of(timm_vit(global_pool="avg", class_token=False, pool_include_prefix=True), "tokens", compat=True)


def test_pixels_of_a_convolutional_network_are_masked_patch_by_patch():
    model = randomised(ResNet8(num_classes=4))
    masking = masking_of(model, patch=4)
    images = torch.randn(2, 3, 16, 24, generator=torch.Generator().manual_seed(0))
    colour = torch.tensor([0.5, -1.0, 2.0]).reshape(1, 1, 3)
    with torch.no_grad():
        passed = masking.intact(images)
        assert (masking.form, passed.grid) == ("pixels", (4, 6))
        assert len({state.shape for state in passed.hidden}) == 1
        close(passed.logits, model(images), 1e-6)
        # Patch 7 is in row 1, column 1.
        assert set(passed.hidden[0][1, 7].tolist()) - {0.0} == set(images[1, :, 4:8, 4:8].flatten().tolist())
        covered = images.clone()
        covered[0, :, 4:8, 4:8] = colour.reshape(3, 1, 1)
        keep = torch.ones(2, 24)
        keep[0, 7] = 0
        close(masking.masked(images, passed, keep, colour), model(covered), 1e-5)


def test_stages_are_the_last_output_at_each_size():
    model = ResNet8(num_classes=4).eval()
    names = masking_module.stages_of(model, torch.zeros(1, 3, 32, 32))
    assert [name.split(".")[0] for name in names] == ["layer1", "layer2", "layer3"]


def test_stages_in_other_layouts_are_read_as_they_are_laid_out():
    first = nn.Sequential(nn.Conv2d(3, 6, 4, 4), nn.Flatten(), nn.Linear(6 * 36, 2)).eval()
    last = nn.Sequential(first[0], Then(lambda x: x.permute(0, 2, 3, 1)), *first[1:]).eval()
    images = torch.randn(2, 3, 24, 24)
    assert list(masking_module.stages_of(last, images)) == ["1"]
    wanted, found = (masking_of(model, "pixels", patch=8).intact(images).hidden for model in (first, last))
    assert all(torch.equal(a, b) for a, b in zip(wanted, found, strict=True))


class Then(nn.Module):
    """A function as a module."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def test_a_patch_must_divide_the_image():
    with pytest.raises(InputError, match="patch 5 does not divide images of 16 x 24 pixels"):
        masking_of(ResNet8(num_classes=4), patch=5).intact(torch.zeros(1, 3, 16, 24))


def test_a_network_without_stages_is_refused():
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 2))
    with pytest.raises(ModelError, match="neither tokens nor stages"):
        masking_of(model).intact(torch.zeros(1, 3, 4, 4))


@pytest.mark.parametrize(
    "damage",
    [{"form": torch.tensor(9)}, {"form": torch.tensor([0, 1])}, {"gate.placeholder": torch.tensor(0.0)}],
    ids=["an unknown form", "two forms", "a placeholder without axes"],
)
def test_a_damaged_file_of_an_explainer_is_one_line(damage):
    explainer = DiffMaskNetwork("tokens", 2, 8, hidden=4, mul_activation=1.0, add_activation=1.0)
    with pytest.raises(ModelError, match=r"x\.pth: is damaged, or no file that train-diffmask made"):
        explainer_from(explainer.state_dict() | damage, where="x.pth")


def test_the_stages_of_a_retargeted_network_are_those_of_the_network_inside():
    model, images = ResNet8(4).eval(), torch.zeros(1, 3, 32, 32)
    wrapped = Retargeted(model, Difference(0, 1))
    assert masking_module.stages_of(wrapped, images) == masking_module.stages_of(model, images)
    states = [masking_of(m, "pixels").intact(images).hidden for m in (model, wrapped)]
    assert all(torch.equal(a, b) for a, b in zip(*states, strict=True))
