"""DiffMask as a method: golden maps, what its values mean, and checkpoints that do not fit."""

import re
from pathlib import Path

import pytest
import torch

from heatproof.errors import InputError, MissingInputError, ModelError
from heatproof.methods.diffmask import DiffMask
from heatproof.models.diffmask import explainer_for
from heatproof.models.masking import masking_of
from heatproof.models.resnet_cifar import NarrowResNet8, ResNet8
from heatproof.training.checkpoints import save_tensors
from tests.models.test_diffmask import close, golden, tiny_vit
from tests.models.vits import our_vit, randomised, timm_vit

IMAGES = torch.randn(5, 3, 16, 24, generator=torch.Generator().manual_seed(1))
TARGETS = torch.tensor([0, 1, 2, 3, 4])


@pytest.fixture
def saved(tmp_path):
    """Saves an explainer of a model with strong weights; returns its file."""

    def save(model, images=IMAGES, *, add=0.5, sha256="ab" * 32, every_layer=False):
        torch.manual_seed(3)
        masking = masking_of(model, patch=4)
        explainer = explainer_for(
            masking, images, hidden=6, mul_activation=40.0, add_activation=add, every_layer=every_layer
        )
        explainer.put_classifier(sha256)
        save_tensors(tmp_path / "explainer.pth", explainer.state_dict())
        return str(tmp_path / "explainer.pth")

    return save


@pytest.mark.parametrize("layer", [-1, 0, 2])
@pytest.mark.parametrize("aggregated", [True, False])
def test_maps_are_those_of_the_published_code(tmp_path, layer, aggregated):
    vectors = golden("tiny_vit_explainer")
    weights = {k.removeprefix("explainer."): v for k, v in vectors.items() if k.startswith("explainer.")}
    save_tensors(tmp_path / "published.pth", weights)
    method = DiffMask(
        tiny_vit(vectors),
        str(tmp_path / "published.pth"),
        layer,
        aggregated,
        value="probability",
        interpolation="nearest",
    )
    maps = method(vectors["images"], torch.zeros(4, dtype=torch.int64))
    close(maps, vectors[f"mask.{layer}.{'agg' if aggregated else 'noagg'}"], 2e-5)


@pytest.fixture
def published(tmp_path):
    """A checkpoint of the published code: its weights alone, or with more; and the network that it explains."""
    vectors = golden("tiny_vit_explainer")
    weights = {k.removeprefix("explainer."): v for k, v in vectors.items() if k.startswith("explainer.")}
    weights.pop("mul_activation", None)

    def save(**more):
        save_tensors(tmp_path / "published.pth", weights | more)
        return str(tmp_path / "published.pth")

    return tiny_vit(vectors), vectors["images"], save


def test_a_published_checkpoint_without_its_factor_is_read_with_the_default_and_a_warning(published, caplog):
    model, images, save = published
    targets = torch.zeros(len(images), dtype=torch.int64)
    assumed = DiffMask(model, save()).patch_maps(images, targets)
    [record] = [record for record in caplog.records if record.levelname == "WARNING"]
    assert (
        "published.pth: does not hold mul_activation, the scale of its logits; the published default, 15"
        in record.message
    )
    caplog.clear()
    torch.testing.assert_close(DiffMask(model, save(), mul_activation=15.0).patch_maps(images, targets), assumed)
    given = DiffMask(model, save(), mul_activation=10.0).patch_maps(images, targets)
    stored = DiffMask(model, save(mul_activation=torch.tensor(10.0))).patch_maps(images, targets)
    torch.testing.assert_close(given, stored)
    assert (given - assumed).abs().max() > 1
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


def test_another_factor_than_the_checkpoints_is_refused(published, saved):
    model, _, save = published
    with pytest.raises(ModelError, match=r"was trained with mul_activation 10, not 15; leave it out"):
        DiffMask(model, save(mul_activation=torch.tensor(10.0)), mul_activation=15.0)
    with pytest.raises(ModelError, match=r"was trained with mul_activation 40, not 15"):
        DiffMask(our_vit(), saved(our_vit()), mul_activation=15.0)
    with pytest.raises(InputError, match=r"DiffMask: mul_activation: -1 must be above 0"):
        DiffMask(model, save(), mul_activation=-1)


def test_a_checkpoint_that_lacks_only_some_settings_is_refused(published, saved):
    state = torch.load(saved(our_vit()), weights_only=True)
    del state["compat"]  # read as published, every logit would go through a tanh
    path = Path(saved(our_vit()))
    save_tensors(path, state)
    with pytest.raises(ModelError, match=r"lacks compat, but has other settings of train-diffmask"):
        DiffMask(our_vit(), str(path))


def test_a_map_is_deterministic_and_each_images_own_and_knows_no_target(saved):
    model = our_vit()
    method = DiffMask(model, saved(model))
    maps = method(IMAGES, TARGETS)
    assert maps.shape == (5, 16, 24)
    assert method.patch_maps(IMAGES, TARGETS).shape == (5, 4, 6)
    assert maps.flatten(1).std(dim=1).min() > 0.1
    close(maps, method(IMAGES, TARGETS.flip(0)), 0)
    close(maps, torch.cat([method(IMAGES[k : k + 1], TARGETS[k : k + 1]) for k in range(5)]), 1e-5)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert all(p.requires_grad for p in model.parameters())


def test_log_odds_and_log_probability_tell_patches_apart_where_probabilities_are_equal(saved):
    model = our_vit()
    path = saved(model, add=30.0)
    maps = {value: DiffMask(model, path, value=value).patch_maps(IMAGES, TARGETS).flatten(1) for value in
            ("log_odds", "probability", "log_probability")}  # fmt: skip
    assert torch.equal(maps["log_odds"].argsort(), maps["log_probability"].argsort())
    distinct = {value: min(len(row.unique()) for row in found) for value, found in maps.items()}
    assert distinct["probability"] < 24 == distinct["log_odds"] == distinct["log_probability"]
    low = {value: DiffMask(model, saved(model, add=-60.0), value=value).patch_maps(IMAGES, TARGETS) for value in maps}
    assert len(low["probability"].unique()) == 1
    assert min(len(row.unique()) for row in low["log_odds"].flatten(1)) == 24
    middle = {value: DiffMask(model, saved(model), value=value).patch_maps(IMAGES, TARGETS) for value in maps}
    close(middle["log_odds"].sigmoid(), middle["probability"], 1e-5)
    close(middle["log_probability"].exp(), middle["probability"], 1e-6)


def test_pixels_of_a_convolutional_network_are_explained(saved):
    model = randomised(ResNet8(num_classes=5))
    method = DiffMask(model, saved(model), interpolation="nearest")
    maps = method(IMAGES, TARGETS)
    assert torch.equal(maps[:, ::4, ::4], method.patch_maps(IMAGES, TARGETS))
    assert maps.flatten(1).std(dim=1).min() > 0.01


@pytest.mark.parametrize(
    ("trained", "asked", "message"),
    [
        (our_vit, lambda: ResNet8(num_classes=5), "masks the tokens of a vision transformer, but ResNet8: is no vision transformer"),
        (our_vit, lambda: timm_vit(depth=3), "has gates for 4 states of 16 values, but the classifier has 5 of 16"),
        (our_vit, lambda: timm_vit(embed_dim=24), "4 states of 16 values, but the classifier has 4 of 24"),
        (lambda: ResNet8(num_classes=5), lambda: NarrowResNet8(num_classes=5), "has gates for .* it was trained for another one"),
    ],
)  # fmt: skip
def test_a_checkpoint_of_another_architecture_is_refused(saved, trained, asked, message):
    path = saved(trained().eval())
    with pytest.raises(ModelError, match=message) as caught:
        DiffMask(asked().eval(), path)(IMAGES, TARGETS)
    assert str(caught.value).startswith(path)
    assert "\n" not in str(caught.value)


def test_a_checkpoint_of_other_weights_is_refused_where_they_are_known(saved):
    model = our_vit()
    path = saved(model)
    with pytest.raises(
        ModelError, match=r"was trained for another classifier \(weights abababababab\.\.\., not cdcdcdcdcdcd"
    ):
        DiffMask(model, path, classifier_sha256="cd" * 32)
    DiffMask(model, path, classifier_sha256="ab" * 32)
    DiffMask(model, path)  # sanity checks explain other weights on purpose


def test_a_missing_checkpoint_says_which_stage_makes_it(tmp_path):
    with pytest.raises(
        MissingInputError,
        match=r"checkpoint: .*none\.pth: no such file; correct the path, or make it with train-diffmask",
    ):
        DiffMask(our_vit(), str(tmp_path / "none.pth"))


def test_a_file_of_something_else_is_refused(tmp_path):
    save_tensors(tmp_path / "x.pth", our_vit().state_dict())
    with pytest.raises(ModelError, match=r"x\.pth: holds no weights of DiffMask"):
        DiffMask(our_vit(), str(tmp_path / "x.pth"))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"layer": 4}, ModelError, "layer 4 of DiffMask; it has gates 0 to 3, and -1 for all"),
        ({"layer": 2}, ModelError, "layer 2 of DiffMask; only masks of all gates were learnt: take layer -1, or run"),
        ({"layer": -2}, ModelError, "layer -2 of DiffMask; only masks of all gates were learnt"),
        ({"value": "log_prob"}, InputError, "value 'log_prob' is unknown; did you mean 'log_probability'?"),
        ({"interpolation": "cubic"}, InputError, "interpolation 'cubic' is unknown"),
    ],
)
def test_a_wrong_option_is_one_clear_line(saved, options, error, message):
    with pytest.raises(error, match=re.escape(message)):
        DiffMask(our_vit(), saved(our_vit()), **options)


def test_masks_of_the_first_gates_alone_are_those_of_an_explainer_that_learnt_them(saved):
    model = our_vit()
    path = saved(model, every_layer=True)
    first, last, all_votes = (DiffMask(model, path, layer, value="log_probability") for layer in (0, 3, -1))
    close(last(IMAGES, TARGETS), all_votes(IMAGES, TARGETS), 0)
    assert (first(IMAGES, TARGETS) > all_votes(IMAGES, TARGETS)).all()
    assert DiffMask(model, saved(model), 3).layer == 3
