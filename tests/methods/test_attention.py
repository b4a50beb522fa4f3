"""Methods on the attention of vision transformers: published maps, known truths, and what holds for every method."""

import dataclasses
import gc
import inspect

import numpy as np
import pytest
import torch
from torch import nn

from heatproof.errors import InputError, ModelError
from heatproof.methods import attention, gradmask, transformer_lrp
from heatproof.methods.attention import (
    HEAD_FUSIONS,
    AttentionFlow,
    AttentionRollout,
    Chefer,
    GradientRollout,
    LeGrad,
    StopGradient,
)
from heatproof.methods.attention_matrices import discarded, maximum_flows, mixed
from heatproof.methods.gradmask import GradMask
from heatproof.methods.transformer_lrp import TransformerAttribution, TransformerLrp
from tests.methods import test_properties as properties
from tests.models import vits
from tests.models.vits import RECTANGULAR, golden

METHODS = {
    "AttentionRollout": lambda model: AttentionRollout(model, discard_ratio=0.5),
    "GradientRollout": lambda model: GradientRollout(model, head_fusion="max"),
    "AttentionFlow": AttentionFlow,
    "Chefer": Chefer,
    "LeGrad": LeGrad,
    "StopGradient": StopGradient,
    "TransformerAttribution": TransformerAttribution,
    "TransformerAttribution rollout": lambda model: TransformerAttribution(model, "rollout"),
    "TransformerLrp": TransformerLrp,
    "GradMask": lambda model: GradMask(model, masks_layer=2),
}
FAMILIES = {
    "timm": vits.timm_tiny,
    "torchvision": lambda: vits.torchvision_twin("timm_tiny"),
}
HUGGING_FACE = {
    "hf": lambda: vits.hugging_face("hf_vit_small"),
    "torchvision": lambda: vits.torchvision_twin("hf_vit_small"),
}


def over(table):
    return pytest.mark.parametrize("make", table.values(), ids=table)


def classes(vectors):
    """Position of each class in the arrays, and it for each of the three images."""
    return [(place, torch.full((3,), target)) for place, target in enumerate(vectors["classes"].tolist())]


def assert_near(found, expected, tolerance):
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance, equal_nan=True)


NO_TARGETS = torch.zeros(3, dtype=torch.int64)


@over(FAMILIES)
@pytest.mark.parametrize("fusion", HEAD_FUSIONS)
@pytest.mark.parametrize("discard", ["0", "0.5", "0.9"])
def test_vit_explains_rollout(make, fusion, discard):
    vectors = golden("vit_explain_rollout")
    method = AttentionRollout(make(), fusion, float(discard), compat=True)
    assert_near(method.patch_maps(vectors["x"], NO_TARGETS), vectors[f"mask_{fusion}_{discard}"], 2e-5)


@over(FAMILIES)
@pytest.mark.parametrize(("compat", "name"), [(True, "mask"), (False, "independent_correct")])
def test_vit_explains_gradient_rollout(make, compat, name):
    vectors = golden("vit_explain_grad_rollout")
    for place, targets in classes(vectors):
        for ratio, expected in zip(vectors["discard"].tolist(), vectors[name][:, place].unbind(1), strict=True):
            method = GradientRollout(make(), discard_ratio=ratio, compat=compat)
            assert_near(method.patch_maps(vectors["x"], targets), expected.float(), 2e-5)


def rolled(blocks):
    """The published functions' result for matrices (L, T, T) of fused attention: a square map."""
    row = torch.eye(blocks.shape[1])[:1]
    for block in reversed(blocks):
        row = row @ mixed(block[None], by_column=True)[0]
    side = round((blocks.shape[1] - 1) ** 0.5)
    return (row[0, 1:] / row[0, 1:].max()).reshape(side, side)


@pytest.mark.parametrize("ratio", ["0", "0.5", "0.9", "0.99"])
def test_vit_explains_functions(ratio):
    vectors = golden("vit_explain_functions")
    for fusion, fuse in HEAD_FUSIONS.items():
        blocks = discarded(fuse(vectors["attn"]), float(ratio), keep_first=True)
        assert_near(rolled(blocks), vectors[f"rollout_{fusion}_{ratio}"], 1e-6)
    positive = (vectors["attn"] * vectors["grad"]).mean(dim=1).clamp(min=0)
    blocks = discarded(positive, float(ratio), keep_first=False)
    assert_near(rolled(blocks), vectors[f"grad_rollout_{ratio}"], 1e-6)


@over(FAMILIES)
def test_vit_explains_gradient_rollout_with_one_fault_after_the_other_mended(make):
    vectors, model = golden("vit_explain_grad_rollout"), make()
    for place, targets in classes(vectors):
        with attention.attention(model) as record:
            record.backward(model(vectors["x"]).gather(1, targets[:, None]))
            blocks = list(record)
        for name, weights in (("order", "score_gradient"), ("order_and_grad", "gradient")):
            weighted = torch.stack([block.probabilities * getattr(block, weights) for block in blocks], dim=1)
            positive = weighted.mean(dim=2).clamp(min=0)  # (image, block, T, T)
            for at, ratio in enumerate(vectors["discard"].tolist()):
                for image in range(3):
                    found = rolled(discarded(positive[image], ratio, keep_first=False))
                    assert_near(found, vectors[f"mask_{name}_fixed"][image, place, at], 2e-5)


@over(HUGGING_FACE)
@pytest.mark.parametrize("fusion", HEAD_FUSIONS)
@pytest.mark.parametrize("discard", ["0", "0.5", "0.9"])
def test_diffmasks_rollout(make, fusion, discard):
    vectors = golden("diffmask_rollout")
    maps = AttentionRollout(make(), fusion, float(discard)).patch_maps(vectors["x"], NO_TARGETS)
    assert_near(maps, vectors[f"single_{fusion}_{discard}"], 2e-5)


@pytest.mark.parametrize("fusion", HEAD_FUSIONS)
@pytest.mark.parametrize("discard", ["0.0", "0.5", "0.9"])
def test_diffmasks_other_rollout(fusion, discard):
    vectors = golden("attributions", "diffmask")
    maps = AttentionRollout(vits.diffmask_vit(), fusion, float(discard), interpolation="nearest")(
        vectors["images"], torch.zeros(4, dtype=torch.int64)
    )
    assert_near(maps, vectors[f"rollout.single.{discard}.{fusion}"], 1e-5)


def test_diffmasks_other_attention_and_chefer():
    vectors, model = golden("attributions", "diffmask"), vits.diffmask_vit()
    with attention.attention(model) as record:
        predicted = model(vectors["images"]).argmax(dim=1)
        assert_near(torch.stack([block.probabilities for block in record]), vectors["attentions"], 1e-5)
    found = Chefer(model).patch_maps(vectors["images"], predicted).flatten(1)
    assert_near(found, vectors["chefer.relevance_argmax"], 1e-5)
    found = Chefer(model).patch_maps(vectors["images"], torch.ones_like(predicted)).flatten(1)
    assert_near(found, vectors["chefer.relevance_class1"], 1e-5)


@over(HUGGING_FACE)
def test_diffmasks_chefer(make):
    vectors, model = golden("diffmask_chefer"), make()
    for place, targets in classes(vectors):
        found = Chefer(model).patch_maps(vectors["x"], targets).flatten(1)
        assert_near(found, vectors["relevance"][:, place], 5e-6)
    predicted = Chefer(model).patch_maps(vectors["x"], vectors["predicted"]).flatten(1)
    assert_near(predicted, vectors["relevance_predicted"], 5e-6)


def test_diffmasks_chefer_enlarged():
    vectors, model = golden("diffmask_chefer"), vits.torchvision_twin("hf_vit_tiny")
    images = (vectors["image_u8"].permute(2, 0, 1)[None] / 255 - 0.5) / 0.5
    for place, target in enumerate(vectors["classes"]):
        relevance = Chefer(model).patch_maps(images, target[None])
        assert_near(relevance.flatten(), vectors["big_relevance"][place], 5e-6)
        (found,) = Chefer(model)(images, target[None])
        scaled = (found - found.min()) / (found.max() - found.min())  # the published code does so at the end
        assert_near(scaled[::7, ::7], vectors["big_map_every7"][place], 5e-6)
        assert_near(scaled[100], vectors["big_map_row100"][place], 5e-6)


@pytest.mark.parametrize("fusion", HEAD_FUSIONS)
def test_published_flows_from_every_source(fusion):
    vectors = golden("attention_flow")
    heads = vectors["attn"].double()
    capacities = torch.stack([mixed(HEAD_FUSIONS[fusion](heads[:, block])) for block in range(3)], dim=1).numpy()
    for image in range(2):
        for place, (depth, token) in enumerate([(1, 0), (2, 0), (3, 0), (3, 3)]):
            found = maximum_flows(capacities[image, :depth], np.eye(17)[token], range(17))
            expected = vectors[f"independent_flow_{fusion}"][image, place]
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


@over(FAMILIES)
def test_published_rollout_of_every_row(make):
    vectors, product = golden("chefer_lrp"), torch.eye(17)
    with attention.attention(model := make(), gradients=False) as record:
        model(vectors["x"])
        for block in record:
            product = mixed(block.probabilities.mean(dim=1)) @ product
    assert_near(product, vectors["rollout_rownorm"], 2e-6)
    maps = AttentionRollout(model, discard_ratio=0).patch_maps(vectors["x"], NO_TARGETS).flatten(1)
    expected = vectors["rollout_rownorm"][:, 0, 1:]
    assert_near(maps, expected / expected.amax(dim=1, keepdim=True), 2e-5)


def test_published_flow_of_the_class_token():
    vectors = golden("attention_flow")
    capacities = torch.stack(
        [mixed(vectors["attn"][:, block].double().mean(dim=1)) for block in range(3)], dim=1
    ).numpy()
    for image in range(2):
        found = maximum_flows(capacities[image], np.eye(17)[0], range(17))
        expected = vectors["reference_flow_cls_normalised"][image]
        np.testing.assert_allclose(found / found.sum(), expected, rtol=0, atol=1e-6)


def test_published_rollout_of_every_depth():
    vectors = golden("attention_flow")
    product = torch.eye(17)
    for block in range(3):
        product = mixed(vectors["attn"][:, block].mean(dim=1)) @ product
        assert_near(product, vectors["reference_joint_attention"][:, block].float(), 1e-6)


def test_no_flow_exceeds_what_reaches_all_patches_together():
    vectors = golden("attention_flow")
    flows = vectors["independent_flow_mean"][:, 2, 1:]
    capacities = torch.stack([mixed(vectors["attn"][:, block].double().mean(dim=1)) for block in range(3)], dim=1)
    for image in range(2):
        found = maximum_flows(capacities[image].numpy(), np.eye(17)[0], range(1, 17))
        assert found.max() < vectors["independent_total_to_patches"][image] < found.sum()
        np.testing.assert_allclose(found, flows[image], rtol=0, atol=1e-6)


def test_flow_in_the_maps_is_that_of_the_blocks():
    vectors = golden("vit_explain_rollout")
    flow = AttentionFlow(vits.timm_tiny()).flow(vectors["x"], NO_TARGETS)
    blocks = [mixed(vectors["attn"][:, block].double().mean(dim=1)) for block in range(3)]
    for image in range(3):
        values = maximum_flows(np.stack([block[image] for block in blocks]), np.eye(17)[0], range(1, 17))
        expected = torch.from_numpy(values / values.max()).float().reshape(4, 4)
        assert_near(flow.maps[image], expected, 1e-5)


def test_one_block_saturates_every_patch():
    model = vits.timm_vit(depth=1)
    with torch.no_grad():
        model.blocks[0].attn.qkv.weight[:16] = 0  # no query, so all rows ask alike
        model.blocks[0].attn.qkv.bias[:16] = 0
    images = torch.randn(2, 3, 16, 24, generator=torch.Generator().manual_seed(0))
    flow = AttentionFlow(model).flow(images, NO_TARGETS[:2])
    assert torch.equal(flow.maps, torch.ones(2, 4, 6))
    assert torch.equal(flow.saturated, torch.zeros(2))  # what limits is the read-out row's one connection
    deep = AttentionFlow(vits.timm_vit(depth=8)).flow(images, NO_TARGETS[:2])
    assert (deep.saturated > 0.9).all()


@over(FAMILIES)
def test_published_conservative_propagation(make):
    vectors = golden("attnlrp_lxt")
    for place, targets in classes(vectors):
        maps = StopGradient(make())(vectors["x"], targets)
        assert_near(maps, vectors["gradient_x_input"][:, place], 1e-5)


@over(METHODS)
@pytest.mark.parametrize(
    ("first", "second", "name"),
    [(*FAMILIES.values(), "vit_explain_rollout"), (*HUGGING_FACE.values(), "diffmask_rollout")],
    ids=["timm and torchvision", "hf and torchvision"],
)
def test_twins_of_two_families_give_the_same_maps(make, first, second, name):
    images, targets = golden(name)["x"], torch.tensor([1, 2, 3])
    assert_near(make(first())(images, targets), make(second())(images, targets), 2e-5)


@over(METHODS)
@pytest.mark.parametrize("network", RECTANGULAR.values(), ids=RECTANGULAR)
def test_every_family_on_a_rectangle_alone_as_in_a_batch(make, network):
    # In double precision: what is left in single is the matrix products' own rounding, which depends on the batch.
    images = torch.randn(2, 3, 16, 24, generator=torch.Generator().manual_seed(4)).double()
    method, targets = make(network[0]().double()), torch.tensor([0, 3])
    maps = method(images, targets)
    assert maps.shape == (2, 16, 24)
    assert torch.isfinite(maps).all()
    alone = torch.cat([method(images[i : i + 1], targets[i : i + 1]) for i in range(2)])
    assert_near(maps, alone, 1e-6 * float(maps.abs().max()))


class Reader(nn.Module):
    """A token's value is whether its patch is white, and the class token's query likes white: attention is known."""

    def __init__(self):
        super().__init__()
        self.vit = vits.timm_vit(img_size=(16, 24), embed_dim=4, num_heads=1, depth=1, num_classes=1, qkv_bias=False)
        with torch.no_grad():
            for parameter in self.vit.parameters():
                parameter.zero_()
            self.vit.patch_embed.proj.weight[0] = 1 / 48  # feature 0: brightness of the patch
            self.vit.cls_token[..., 1] = 1  # feature 1: marks the class token
            self.vit.blocks[0].attn.qkv.weight[0, 1] = 1.0  # query of the class token
            self.vit.blocks[0].attn.qkv.weight[4, 0] = 9.0  # key of a bright patch
            self.vit.blocks[0].attn.qkv.weight[8, 0] = 1.0
            self.vit.blocks[0].attn.proj.weight[2, 0] = 1.0
            self.vit.head.weight[0, 2] = 1.0
        self.vit.blocks[0].norm1 = self.vit.norm = nn.Identity()

    def forward(self, images):
        return self.vit(images)


@over({name: make for name, make in METHODS.items() if name != "GradMask"})  # which wants two blocks
def test_the_patch_that_is_looked_at_is_found(make):
    images = torch.zeros(1, 3, 16, 24)
    images[0, :, 8:12, 4:8] = 1
    (found,) = make(Reader().eval())(images, torch.tensor([0]))
    found = nn.functional.avg_pool2d(found[None, None], 4)[0, 0]
    assert int(found.argmax()) == 2 * 6 + 1


def test_each_patch_is_repeated_or_blended():
    model, images = vits.timm_vit(), torch.randn(1, 3, 16, 24, generator=torch.Generator().manual_seed(4))
    for interpolation in ("nearest", "bilinear"):
        method = Chefer(model, interpolation=interpolation)
        small = method.patch_maps(images, NO_TARGETS[:1])
        expected = nn.functional.interpolate(small[None], scale_factor=4, mode=interpolation)[0]
        assert_near(method(images, NO_TARGETS[:1]), expected, 1e-6 * float(expected.max()))


def test_a_map_that_is_zero_everywhere_stays_zero_and_is_nan_in_compat():
    model = vits.timm_vit(depth=1)
    with torch.no_grad():
        model.head.weight.zero_()
    images = torch.randn(1, 3, 16, 24)
    for method in (GradientRollout(model), Chefer(model), LeGrad(model)):
        assert torch.equal(method(images, NO_TARGETS[:1]), torch.zeros(1, 16, 24))
    assert GradientRollout(model, compat=True)(images, NO_TARGETS[:1]).isnan().all()


@pytest.mark.parametrize("factory", [AttentionRollout, GradientRollout])
def test_a_deeper_model_holds_no_more_attention_at_once(factory, monkeypatch):
    held = []

    def counting(matrices, **options):
        alive = [found for found in gc.get_objects() if type(found) is torch.Tensor and found.shape[-2:] == (25, 25)]
        held.append(sum(matrix.numel() for matrix in alive))
        return mixed(matrices, **options)

    monkeypatch.setattr(attention, "mixed", counting)
    images = torch.randn(2, 3, 16, 24)
    most = []
    for depth in (2, 6):
        held.clear()
        factory(vits.timm_vit(depth=depth))(images, NO_TARGETS[:2])
        most.append(max(held))
        assert len(held) == depth
    assert most[0] == most[1] <= 2 * 2 * 25 * 25 * 6  # images, heads, tokens; six matrices of one or two blocks


def test_discarding_is_done_image_by_image():
    matrices = torch.stack([torch.eye(3) + 0.1, 100 * torch.eye(3) + 10])
    found = discarded(matrices, 0.7, keep_first=False)
    assert torch.equal(found != 0, torch.eye(3, dtype=torch.bool).expand(2, 3, 3))


def test_legrad_sums_its_last_blocks():
    model, images = vits.timm_vit(depth=3), torch.randn(1, 3, 16, 24, generator=torch.Generator().manual_seed(4))
    last, two, everything = (LeGrad(model, blocks).patch_maps(images, NO_TARGETS[:1]) for blocks in (1, 2, None))
    assert (two >= last).all()
    assert not torch.equal(two, last)
    assert torch.equal(LeGrad(model, 9).patch_maps(images, NO_TARGETS[:1]), everything)


@over(METHODS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_gives_finite_maps(make, dtype):
    maps = make(vits.timm_vit().to(dtype))(torch.randn(2, 3, 16, 24).to(dtype), torch.tensor([0, 3]))
    assert maps.dtype == torch.float32
    assert torch.isfinite(maps).all()
    assert (maps != 0).any()


def small_vit():
    return vits.timm_vit(img_size=(12, 10), patch_size=2, num_classes=4)


def on_a_vit(make):
    """A method that is built on a transformer of the dtype and mode of the network that the property gives."""
    return lambda model: make(small_vit().to(next(model.parameters()).dtype).train(model.training))


PROPERTIES = [
    properties.test_maps_are_float32_detached_and_of_the_images_size,
    properties.test_images_differ_and_so_do_maps,
    properties.test_the_same_seed_gives_the_same_bytes,
    properties.test_nothing_is_kept_from_batch_to_batch,
    properties.test_the_maps_do_not_depend_on_the_callers_modes,
    properties.test_double_precision_gives_the_same_maps,
    properties.test_channels_last_gives_the_same_maps,
    properties.test_wrong_batches_are_refused_by_name,
    properties.test_a_target_that_is_no_class_is_named,
]


@over(METHODS)
@pytest.mark.parametrize("holds", PROPERTIES, ids=lambda test: test.__name__)
def test_what_holds_for_every_method_holds_here(make, holds):
    holds(on_a_vit(make))


@over(METHODS)
@pytest.mark.parametrize("asks_for_gradients", [False, True])
def test_the_callers_tensors_are_left_untouched(make, asks_for_gradients):
    properties.test_the_callers_tensors_are_left_untouched(on_a_vit(make), asks_for_gradients)


def test_no_method_is_left_out():
    public = {
        name
        for module in (attention, gradmask, transformer_lrp)
        for name, found in inspect.getmembers(module, dataclasses.is_dataclass)
        if not name.startswith("_") and found.__module__ == module.__name__
    }
    assert public == {name.split()[0] for name in METHODS}


@over({name: make for name, make in METHODS.items() if name not in ("StopGradient", "TransformerLrp")})
def test_a_network_without_attention_is_refused_when_the_method_is_built(make):
    with pytest.raises(ModelError, match="SmallResNet: is no vision transformer that is known"):
        make(properties.small_resnet())


@pytest.mark.parametrize("factory", [StopGradient, TransformerLrp])
def test_what_any_network_with_attention_will_do_for_asks_for_attention(factory):
    with pytest.raises(ModelError, match=r"(calls no attention|no rule for 'batch_norm').*methods.gradient"):
        factory(properties.small_resnet())(properties.some_images(), properties.TARGETS)


@pytest.mark.parametrize("factory", [AttentionRollout, GradientRollout])
@pytest.mark.parametrize("ratio", [-0.1, 1, 1.5, float("nan"), "half"])
def test_a_discard_ratio_outside_its_range_is_named(factory, ratio):
    with pytest.raises(InputError, match=rf"{factory.__name__}: discard_ratio {ratio!r} must lie in \[0, 1\)"):
        factory(small_vit(), discard_ratio=ratio)


def test_unknown_options_are_named():
    with pytest.raises(InputError, match="AttentionFlow: head_fusion 'maks' is unknown; did you mean 'max'"):
        AttentionFlow(small_vit(), head_fusion="maks")
    with pytest.raises(InputError, match="Chefer: interpolation 'cubic' is unknown"):
        Chefer(small_vit(), interpolation="cubic")
    with pytest.raises(InputError, match="LeGrad: blocks 0 must be a number, 1 or more"):
        LeGrad(small_vit(), blocks=0)
