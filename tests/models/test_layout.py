"""Layouts of activations: found through each kind of operation, stated, or refused in one line."""

import warnings

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from heatproof.errors import InputError, ModelError
from heatproof.models.layout import Layouts
from tests.models import vits


class Then(nn.Module):
    """A function as a module."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def behind(*functions, channels=6, stride=4):
    """A convolution to `channels`, then functions; the layer of the last is called "layer"."""
    *first, last = map(Then, functions)
    convolution = nn.Conv2d(3, channels, stride, stride)
    model = nn.Sequential(convolution, *first)
    model.add_module("layer", last)
    return model.eval()


def grid(model, images, layout=None):
    """The convolution's output, and the last layer's as its layout gives it."""
    with torch.no_grad():
        return model[0](images), Layouts(model, {"layer": layout})(images)["layer"](model(images))


PREFIX = torch.randn(1, 3, 6)  # class, distillation and register tokens
ARRANGEMENTS = {
    "(N, C, h, w)": [lambda x: x],
    "(N, h, w, C)": [lambda x: x.permute(0, 2, 3, 1)],
    "(N, w, h, C)": [lambda x: x.transpose(1, 3)],
    "(N, C, T)": [lambda x: x.flatten(2)],
    "(N, T, C)": [lambda x: x.flatten(2).transpose(1, 2)],
    "(N, P + T, C)": [lambda x: torch.cat([PREFIX.to(x).expand(len(x), -1, -1), x.flatten(2).mT], dim=1)],
    "(N, T + P, C)": [lambda x: torch.cat([x.flatten(2).mT, PREFIX.to(x).expand(len(x), -1, -1)], dim=1)],
    "(N, h, w, C) by einsum": [lambda x: torch.einsum("nchw->nhwc", x)],
    "shifted and back": [lambda x: x.permute(0, 2, 3, 1).roll((-1, -2), (1, 2)), lambda x: x.roll((1, 2), (1, 2))],
    "shifted": [lambda x: x.permute(0, 2, 3, 1).roll((-1, -2), (1, 2))],
    "one mirrored": [lambda x: x.flip(3)],
    "padded and cut": [lambda x: functional.pad(x.permute(0, 2, 3, 1), (0, 0, 0, 3, 0, 1)), lambda x: x[:, :-1, :-3]],
    "padded": [lambda x: functional.pad(x.permute(0, 2, 3, 1), (0, 0, 2, 3, 0, 1))],
    "in halves": [lambda x: torch.cat([x[:, :2], x[:, 2:]], dim=1).movedim(1, 3)],
    "in place": [lambda x: x.clone().transpose_(1, 3)],
}


@pytest.mark.parametrize("size", [(32, 32), (48, 32), (24, 24), (20, 36), (4, 8)], ids=str)
@pytest.mark.parametrize("functions", ARRANGEMENTS.values(), ids=ARRANGEMENTS)
def test_the_same_activations_are_the_same_grid_in_any_arrangement(functions, size):
    """With 24 x 24 pixels, channels, rows and columns are all 6: nothing but the operations tells them apart."""
    activations, found = grid(behind(*functions), torch.randn(2, 3, *size))
    assert found.is_contiguous()
    assert torch.equal(found, activations)


@settings(max_examples=25, deadline=None)
@given(
    count=st.integers(1, 3),
    channels=st.integers(1, 6),
    height=st.integers(1, 6),
    width=st.integers(1, 6),
    order=st.permutations([1, 2, 3]),
    tokens=st.booleans(),
    prefix=st.integers(0, 3),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
)
def test_any_order_of_axes_and_any_prefix_gives_the_same_grid(
    count, channels, height, width, order, tokens, prefix, dtype
):
    def arranged(x):
        if not tokens:
            return x.permute(0, *order)
        rows = x.flatten(2).transpose(1, 2)
        return torch.cat([x.new_ones(len(x), prefix, channels), rows], dim=1)

    # In a picture of one place nothing tells one channel of two tokens from two channels of one.
    assume(not (tokens and prefix and channels == height * width == 1))
    model = behind(arranged, channels=channels, stride=2).to(dtype)
    images = torch.randn(count, 3, 2 * height, 2 * width, generator=torch.Generator().manual_seed(0)).to(dtype)
    activations, found = grid(model, images)
    if channels == 1 and tokens and prefix == 0 and height * width > 1:
        found = found.reshape(activations.shape)  # one channel: (N, T, 1) is the same in both readings
    assert torch.equal(found, activations)


KEEPING = {
    "norm of the last axis": nn.LayerNorm(6),
    "linear layer": nn.Linear(6, 9),
    "no bias": nn.Linear(6, 9, bias=False),
    "product from the left": Then(lambda x: (torch.ones(9, 6) @ x.flatten(1, 2).mT).mT.unflatten(1, x.shape[1:3])),
    "dropout": nn.Dropout(),
    "in-place ReLU": nn.ReLU(inplace=True),
    "softmax": nn.Softmax(dim=-1),
    "a constant added": Then(lambda x: 2 * x + torch.arange(6)),
    "a gate on all channels": Then(lambda x: x * x.mean(dim=(1, 2), keepdim=True)),
    "a map for all channels": Then(lambda x: x.mean(dim=3, keepdim=True) * torch.ones(6)),
    "half precision": Then(lambda x: x.half()),
    "tokens mixed beside": Then(lambda x: x + torch.ones_like(x) * x.flatten(1, 2).mean(dim=1)[:, None, None]),
    "an unknown operation beside": Then(lambda x: x + x.sort(dim=1).values),
    "windows": Then(
        lambda x: (
            x.unflatten(1, (-1, 2)).unflatten(3, (-1, 2)).transpose(2, 3).flatten(3, 4).flatten(0, 2)
            .matmul(torch.eye(6)).reshape(len(x), x.shape[1] // 2, x.shape[2] // 2, 2, 2, 6).transpose(2, 3)
            .reshape(x.shape)
        )
    ),
}  # fmt: skip


@pytest.mark.parametrize("module", KEEPING.values(), ids=KEEPING)
def test_operations_that_keep_the_places(module):
    model = nn.Sequential(nn.Conv2d(3, 6, 4, 4), Then(lambda x: x.permute(0, 2, 3, 1)), module).eval()
    with torch.no_grad():
        images = torch.randn(2, 3, 24, 24)
        wanted = model(images).permute(0, 3, 1, 2)
        assert torch.equal(Layouts(model, {"2": None})(images)["2"](model(images)), wanted)


def test_merged_patches_stand_where_the_patches_were():
    """As Swin merges 2 x 2 places: each of the four is a part of the channels."""
    merging = Then(lambda x: torch.cat([x[:, i::2, j::2] for j in (0, 1) for i in (0, 1)], dim=3))
    model = nn.Sequential(
        nn.Conv2d(3, 6, 4, 4), Then(lambda x: x.permute(0, 2, 3, 1)), merging, nn.LayerNorm(24), nn.Linear(24, 4)
    ).eval()
    images = torch.randn(2, 3, 16, 48)
    for layer in ("2", "3", "4"):
        given = model[: int(layer) + 1](images)
        assert torch.equal(Layouts(model, {layer: None})(images)[layer](given), given.permute(0, 3, 1, 2))


def test_patches_by_reshape_and_a_linear_layer_are_tokens_on_their_grid():
    """As some write a vision transformer: without a convolution."""

    def cut(x):
        n, c, h, w = x.shape
        return x.reshape(n, c, h // 4, 4, w // 4, 4).permute(0, 2, 4, 3, 5, 1).reshape(n, -1, 16 * c)

    model = nn.Sequential(Then(cut), nn.LayerNorm(48), nn.Linear(48, 5)).eval()
    images = torch.randn(2, 3, 24, 16)
    found = Layouts(model, {"2": None})(images)["2"](model(images))
    assert torch.equal(found, model(images).transpose(1, 2).unflatten(2, (6, 4)))


def test_a_convolution_on_swapped_axes_is_not_taken_for_the_picture():
    images = torch.randn(1, 3, 24, 24)
    for swap in (lambda x: x.transpose(2, 3), lambda x: x.flip(3), lambda x: x.permute(0, 2, 3, 1)):
        model = nn.Sequential(nn.Conv2d(3, 6, 4, 4), Then(swap), nn.Conv2d(6, 2, 3, padding=1)).eval()
        with pytest.raises(ModelError, match="layer '2': gives"):
            Layouts(model, {"2": None})(images)


UNKNOWN = {
    "sorted": [lambda x: x.sort(dim=1).values],
    "from NumPy": [lambda x: torch.from_numpy(x.numpy().copy())],
    "transformed": [lambda x: torch.fft.fft2(x).real],
}


@pytest.mark.parametrize("functions", UNKNOWN.values(), ids=UNKNOWN)
@pytest.mark.parametrize("channels_last", [False, True])
def test_where_operations_do_not_say_it_the_option_does(functions, channels_last):
    arrange = (lambda x: x.permute(0, 2, 3, 1)) if channels_last else (lambda x: x)
    model, images = behind(*functions, arrange), torch.randn(2, 3, 24, 24)
    with pytest.raises(
        ModelError, match=r"^layer 'layer': gives \(2, 6, 6, 6\), .* set layout: channels_first .* or channels_last"
    ):
        Layouts(model, {"layer": None})(images)
    stated = "channels_last" if channels_last else "channels_first"
    with torch.no_grad():
        wanted = functions[0](model[0](images))
        assert torch.equal(Layouts(model, {"layer": stated})(images)["layer"](model(images)), wanted)


def test_stated_tokens():
    tokens = torch.arange(2 * 27 * 5.0).reshape(2, 27, 5)
    images = torch.zeros(2, 3, 48, 32)
    model = behind(lambda x: x)

    def laid_out(layout, values):
        return Layouts(model, {"layer": layout})(images)["layer"](values)

    wanted = tokens[:, 3:].transpose(1, 2).unflatten(2, (6, 4))
    assert torch.equal(laid_out("tokens:6x4", tokens), wanted)
    assert torch.equal(laid_out("tokens", tokens[:, 3:]), wanted)  # 24 tokens of a picture of 48 x 32: 6 x 4
    with pytest.raises(
        ModelError, match="27 tokens do not form a grid for pictures of 48x32 pixels; set layout: tokens:HxW"
    ):
        laid_out("tokens", tokens)
    with pytest.raises(ModelError, match="27 tokens do not form 7x4 for"):
        laid_out("tokens:7x4", tokens)
    with pytest.raises(ModelError, match=r"layer 'layer': gives \(2, 27, 5\), which cannot be layout channels_last"):
        laid_out("channels_last", tokens)


@pytest.mark.parametrize("layout", ["NHWC", "tokens:6", "tokens:0x4", "tokens:6x4x2", "", 3])
def test_an_unknown_layout_is_one_line(layout):
    with pytest.raises(InputError, match=r"layer '0': layout .* is unknown; it can be channels_first"):
        Layouts(nn.Sequential(nn.ReLU()), {"0": layout})


def test_finding_a_layout_leaves_the_model_as_it_was():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(), nn.Flatten(), nn.Linear(4 * 36, 2))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    images, state = torch.randn(2, 3, 8, 8), torch.get_rng_state()
    Layouts(model, {"1": None})(images)
    assert model.training
    assert all(module.training for module in model)
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(module._forward_hooks for module in model.modules())


def test_each_size_of_images_has_its_own_layout():
    model = behind(lambda x: x.flatten(2).transpose(1, 2))
    layouts = Layouts(model, {"layer": None})
    for size in ((24, 16), (16, 24), (24, 16)):
        images = torch.randn(2, 3, *size)
        with torch.inference_mode():
            found = layouts(images)["layer"](model(images))
        assert found.shape == (2, 6, size[0] // 4, size[1] // 4)


def test_a_scripted_network_is_followed_too():
    with warnings.catch_warnings(
        action="ignore", category=FutureWarning
    ):  # torch deprecates it; people have such files
        traced = torch.jit.trace(behind(lambda x: x.permute(0, 2, 3, 1)), torch.zeros(1, 3, 24, 24))
    model = nn.Sequential(traced, nn.Identity()).eval()
    images = torch.randn(2, 3, 24, 24)
    assert torch.equal(Layouts(model, {"1": None})(images)["1"](model(images)), model(images).permute(0, 3, 1, 2))


# --- networks of the libraries


def _timm(name, **options):
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    return timm.create_model(name, num_classes=3, **options).eval()


SMALL = {"embed_dim": 12, "depths": (1, 1), "num_heads": (1, 2), "window_size": 4}


def _torchvision_swin(version=1):
    from torchvision.models import swin_transformer as swin

    options = {"block": swin.SwinTransformerBlockV2, "downsample_layer": swin.PatchMergingV2} if version == 2 else {}
    return swin.SwinTransformer([4, 4], 12, [1, 1], [1, 2], [4, 4], num_classes=3, **options).eval()


def _convnext():
    from torchvision.models.convnext import CNBlockConfig, ConvNeXt

    return ConvNeXt([CNBlockConfig(8, 12, 1), CNBlockConfig(12, None, 1)], num_classes=3).eval()


def _maxvit():
    from torchvision.models.maxvit import MaxVit

    return MaxVit((64, 64), 8, 2, [8, 8], [1, 1], 4, 0.0, num_classes=3).eval()


def _hugging_face(name, **options):
    transformers = pytest.importorskip("transformers")
    from heatproof.models.loading import LogitsOf

    config = getattr(transformers, f"{name}Config")(**options)
    return LogitsOf(getattr(transformers, f"{name}ForImageClassification")(config)).eval()


LAST, TOKENS, FIRST = "channels last", "tokens", "channels first"
NETWORKS = {
    "torchvision Swin, odd sides": (_torchvision_swin, (35, 53), {"features.1.0": (LAST, 0, 8, 13), "features.1.0.norm1": (LAST, 0, 8, 13), "features.2": (LAST, 0, 4, 7), "features.2.norm": (LAST, 0, 4, 7), "features.3.0.mlp": (LAST, 0, 4, 7), "permute": (FIRST, 0, 4, 7)}),
    "torchvision Swin V2": (lambda: _torchvision_swin(2), (48, 32), {"features.1.0": (LAST, 0, 12, 8), "features.2.norm": (LAST, 0, 6, 4), "features.3": (LAST, 0, 6, 4)}),
    "timm Swin": (lambda: _timm("swin_tiny_patch4_window7_224", img_size=(48, 32), **SMALL), (48, 32), {"layers.0.blocks.0": (LAST, 0, 12, 8), "layers.1.blocks.0.norm2": (TOKENS, 0, 6, 4), "layers.1.downsample.norm": (LAST, 0, 6, 4), "norm": (LAST, 0, 6, 4)}),
    "timm Swin V2": (lambda: _timm("swinv2_tiny_window8_256", img_size=(48, 32), **SMALL), (48, 32), {"layers.0.blocks.0": (LAST, 0, 12, 8), "layers.1.blocks.0.norm2": (TOKENS, 0, 6, 4)}),
    "ConvNeXt": (_convnext, (48, 32), {"features.0.1": (FIRST, 0, 12, 8), "features.1.0.block.2": (LAST, 0, 12, 8), "features.1.0": (FIRST, 0, 12, 8), "features.2.0": (FIRST, 0, 12, 8)}),
    "MaxViT": (_maxvit, (64, 64), {"blocks.0": (FIRST, 0, 16, 16), "blocks.0.layers.0.layers.window_attention": (FIRST, 0, 16, 16)}),
    "timm DeiT distilled": (lambda: _timm("deit_tiny_distilled_patch16_224", img_size=(48, 32), patch_size=8, embed_dim=24, depth=1, num_heads=2), (48, 32), {"blocks.0": (TOKENS, 2, 6, 4)}),
    "timm ViT with registers": (lambda: _timm("vit_small_patch14_reg4_dinov2", img_size=(56, 42), embed_dim=24, depth=1, num_heads=2), (56, 42), {"blocks.0.norm1": (TOKENS, 5, 4, 3)}),
    "timm LeViT": (lambda: _timm("levit_128s", embed_dim=(16, 32, 48), key_dim=8, num_heads=(2, 3, 4), depth=(1, 1, 1)), (224, 224), {"stages.0": (TOKENS, 0, 14, 14), "stages.1.downsample": (TOKENS, 0, 7, 7), "stages.2": (TOKENS, 0, 4, 4)}),
    "hf Swin": (lambda: _hugging_face("Swin", image_size=64, embed_dim=12, depths=[1, 1], num_heads=[1, 2], window_size=4), (48, 32), {"model.swin.encoder.layers.0.blocks.0": (TOKENS, 0, 12, 8), "model.swin.layernorm": (TOKENS, 0, 6, 4), "model.swin": (TOKENS, 0, 6, 4)}),
    "hf ConvNeXt": (lambda: _hugging_face("ConvNext", hidden_sizes=[8, 12], depths=[1, 1], num_stages=2), (48, 32), {"model.convnext.encoder.stages.0": (FIRST, 0, 12, 8), "model.convnext.encoder.stages.1.layers.0.layernorm": (LAST, 0, 6, 4)}),
    "hf SegFormer": (lambda: _hugging_face("Segformer", depths=[1, 1, 1, 1], hidden_sizes=[8, 8, 8, 8], num_attention_heads=[1, 1, 1, 1]), (96, 64), {"model.segformer.stages.1.blocks.0": (TOKENS, 0, 12, 8)}),
}  # fmt: skip


@pytest.mark.parametrize(("make", "size", "layers"), NETWORKS.values(), ids=NETWORKS)
def test_layers_of_libraries_are_laid_out_as_they_say(make, size, layers):
    torch.manual_seed(0)
    model, images = make(), torch.randn(2, 3, *size)
    layouts = Layouts(model, dict.fromkeys(layers))(images)
    from heatproof.models.hooks import recorded

    for layer, (kind, prefix, height, width) in layers.items():
        with recorded(model, layer) as outputs, torch.no_grad():
            model(images)
        given = outputs[0]
        if kind == TOKENS:
            assert given.shape[:2] == (2, prefix + height * width)
            wanted = given[:, prefix:].transpose(1, 2).unflatten(2, (height, width))
        else:
            wanted = given.movedim(3, 1) if kind == LAST else given
        assert wanted.shape[2:] == (height, width)
        assert torch.equal(layouts[layer](given), wanted), layer


@pytest.mark.parametrize("name", vits.RECTANGULAR)
def test_the_patches_of_every_vision_transformer_stand_on_their_grid(name):
    model = vits.RECTANGULAR[name][0]()
    images = torch.randn(2, 3, 16, 24)
    from heatproof.models.hooks import recorded
    from heatproof.models.transformers import architecture_of

    block = architecture_of(model).blocks[0]
    layer = next(key for key, module in model.named_modules() if module is block)
    with recorded(model, layer) as outputs, torch.no_grad():
        model(images)
    found = Layouts(model, {layer: None})(images)[layer](outputs[0])
    assert torch.equal(found, outputs[0][:, -24:].transpose(1, 2).unflatten(2, (4, 6)))
