"""Relevance through transformers: published maps, conservation, precision and memory. See test_attention.py for the rest."""

import gc
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional

from heatproof.errors import InputError, ModelError
from heatproof.methods.transformer_lrp import TransformerAttribution, TransformerLrp, propagated
from heatproof.models.vit import ViTTiny
from tests.models import vits
from tests.models.vits import golden


def our_twin():
    model = ViTTiny(10, img_size=32, patch_size=8, embed_dim=32, depth=3, num_heads=2)
    model.load_state_dict(vits.timm_tiny().state_dict())
    return model.eval()


def unfused(make):
    model = make()
    for block in model.blocks:
        block.attn.fused_attn = False
    return model


FAMILIES = {
    "timm": vits.timm_tiny,
    "timm not fused": partial(unfused, vits.timm_tiny),
    "torchvision": partial(vits.torchvision_twin, "timm_tiny"),
    "ours": our_twin,
}
families = pytest.mark.parametrize("make", FAMILIES.values(), ids=FAMILIES)
TARGETS = torch.tensor([0, 3])


def some_images():
    return torch.randn(2, 3, 16, 24, generator=torch.Generator().manual_seed(4))


def assert_near(found, expected, tolerance):
    """Tolerance in units of the largest value."""
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance * float(expected.abs().max()))


def of_classes(vectors, method):
    """Maps of three images for each of the classes, flattened: (image, class, value)."""
    targets = vectors["classes"].tolist()
    return torch.stack([method(vectors["x"], torch.full((3,), target)) for target in targets], dim=1).flatten(2)


# The published maps are single precision, ours here double: the same with any kernels. Each tolerance is the distance, of the
# largest value, to which single precision takes the published maps from the exact ones, from tests/golden/README.md.
PUBLISHED = {
    "attribution": ("lrp_transformer_attribution", 5e-5),
    "rollout": ("lrp_rollout", 5e-5),
    "last_layer": ("lrp_last_layer", 7e-5),
    "last_layer_attention": ("lrp_last_layer_attn", 1e-5),
}
PIXELS = ("lrp_full", 2.1e-4)


def in_double(make):
    """Model and golden vectors in double precision."""
    vectors = golden("chefer_lrp")
    return make().double(), vectors | {"x": vectors["x"].double()}


@families
@pytest.mark.parametrize("form", PUBLISHED)
def test_published_transformer_attribution(make, form):
    model, vectors = in_double(make)
    name, tolerance = PUBLISHED[form]
    maps = of_classes(vectors, TransformerAttribution(model, form, compat=True).patch_maps)
    assert_near(maps, vectors[name].double(), tolerance)


@families
def test_published_relevance_of_the_pixels(make):
    model, vectors = in_double(make)
    name, tolerance = PIXELS
    maps = of_classes(vectors, TransformerLrp(model, compat=True))
    assert_near(maps.double(), vectors[name].flatten(2).double(), tolerance)


@families
def test_maps_of_a_single_precision_model_are_those_of_double_precision(make):
    model, vectors = in_double(make)
    exact = of_classes(vectors, TransformerAttribution(model).patch_maps)
    maps = of_classes(golden("chefer_lrp"), TransformerAttribution(make()).patch_maps)
    assert_near(maps.double(), exact, 1e-5)  # only the gradients of attention are single precision: the README's figure


@pytest.mark.parametrize(("double", "dtype"), [(True, torch.float64), (False, torch.float32)])
def test_relevance_has_the_models_precision_only_where_that_is_asked_for(double, dtype):
    dtypes = []
    propagated(
        our_twin(),
        golden("chefer_lrp")["x"],
        torch.zeros(3, dtype=torch.int64),
        lambda relevance: dtypes.append(relevance.dtype),
        double=double,
    )
    assert dtypes == [dtype] * 3


def test_the_logits_relevance_is_conserved():
    model = vits.timm_vit(global_pool="avg", class_token=False, qkv_bias=False)
    with torch.no_grad():
        model.pos_embed.zero_()  # it would take its share
    seen = []
    relevance = propagated(
        model, some_images(), TARGETS, lambda matrices: seen.append(matrices.sum(dim=(1, 2, 3))), layers=2
    )
    torch.testing.assert_close(relevance.sum(dim=(1, 2, 3)), torch.ones(2).double(), rtol=0, atol=1e-4)
    assert len(seen) == 2


def test_a_linear_layer_shares_out_what_speaks_for_its_output():
    """One token, no attention to itself but 1: value 2 x_0 - x_1, so for x = (1, -1): 2 and 1 of 3; for x_1 = 1 all to x_0."""

    class Sole(nn.Module):
        def __init__(self):
            super().__init__()
            self.patches, self.value = nn.Conv2d(2, 2, 1, bias=False), nn.Linear(2, 1, bias=False)
            nn.init.dirac_(self.patches.weight)
            self.value.weight.data = torch.tensor([[2.0, -1.0]])

        def forward(self, images):
            tokens = self.patches(images).flatten(2).transpose(1, 2)
            value = self.value(tokens)
            return functional.scaled_dot_product_attention(value, value, value)[:, 0]

    images = torch.tensor([[1.0, -1.0], [1.0, 1.0]])[:, :, None, None]
    relevance = propagated(Sole().eval(), images, torch.zeros(2, dtype=torch.int64), lambda _: None, layers=1)
    # Half goes to P V's value, and half by the probabilities to query and key, which are the value here.
    expected = torch.tensor([[2 / 3, 1 / 3], [1.0, 0.0]]).double()
    torch.testing.assert_close(relevance.flatten(1), expected, rtol=0, atol=1e-6)


def test_eager_attention_gives_the_same_map():
    model = vits.hugging_face("hf_vit_small")
    images, targets = golden("diffmask_rollout")["x"], torch.tensor([1, 2, 3])
    fused = TransformerAttribution(model).patch_maps(images, targets)
    model.model.set_attn_implementation("eager")
    assert_near(TransformerAttribution(model).patch_maps(images, targets), fused, 1e-4)


@pytest.mark.parametrize("form", ["last_layer", "last_layer_attention"])
@pytest.mark.parametrize("name", ["timm", "timm attention pool", "hf DINOv2 with registers"])
def test_the_last_layer_of_every_read_out(form, name):
    model = vits.RECTANGULAR[name][0]()
    maps = TransformerAttribution(model, form).patch_maps(some_images(), TARGETS)
    assert maps.shape == (2, 4, 6)
    assert (maps >= 0).all()
    assert not torch.equal(maps[0], maps[1])


@pytest.mark.parametrize("depth", [2, 6])
def test_a_deeper_model_holds_no_more_relevance_of_attention_at_once(depth):
    held = []

    def visit(relevance):
        alive = [found for found in gc.get_objects() if type(found) is torch.Tensor and found.shape[-2:] == (25, 25)]
        held.append(len(alive))

    propagated(vits.timm_vit(depth=depth), some_images(), TARGETS, visit, layers=depth)
    assert len(held) == depth
    assert max(held) <= 4


class Twice(nn.Module):
    """Looks again at what it has seen, so that attention is called more often than there are layers."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, images):
        return self.inner(images) + self.inner(images)


class Rounding(nn.Module):
    """Calls a function that has no rule."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, images):
        return self.inner(images).cumsum(dim=1)


class Masked(nn.Module):
    """Attention with a mask."""

    def forward(self, images):
        tokens = images.flatten(2)
        return functional.scaled_dot_product_attention(tokens, tokens, tokens, attn_mask=torch.ones(3, 3))[:, :, 0]


def test_what_has_no_rule_is_named():
    with pytest.raises(ModelError, match="Twice: calls attention 4 times; 2 are known"):
        TransformerAttribution(Twice(vits.our_vit()))(some_images(), TARGETS)
    for factory in (TransformerAttribution, TransformerLrp):
        with pytest.raises(ModelError, match="has no rule for 'cumsum', which the model calls"):
            factory(Rounding(vits.our_vit()))(some_images(), TARGETS)
    with pytest.raises(ModelError, match="no rule for attention with a mask"):
        TransformerLrp(Masked())(some_images(), TARGETS)
    with pytest.raises(ModelError, match="Flatten: calls no attention"):
        TransformerLrp(nn.Flatten())(some_images(), TARGETS)
    with pytest.raises(InputError, match="form 'rollot' is unknown; did you mean 'rollout'"):
        TransformerAttribution(vits.our_vit(), "rollot")
