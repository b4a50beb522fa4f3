"""The small vision transformer: timm's names, timm's outputs, the trained weights' logits, and a start that looks near."""

import numpy as np
import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch.nn import functional

from heatproof.datasets import open_dataset
from heatproof.errors import InputError, PluginError
from heatproof.models import Normalization, load, recorded
from heatproof.models.vit import ViTTiny


def built(**options):
    torch.manual_seed(0)
    return ViTTiny(**options).eval()


def test_the_number_of_parameters_is_the_known_one():
    assert sum(parameter.numel() for parameter in built().parameters()) == 683_242


@pytest.mark.parametrize("options", [{}, {"img_size": (16, 24), "patch_size": 8, "embed_dim": 32, "num_heads": 2}])
def test_it_is_timm_s_transformer(options):
    ours = built(depth=2, num_classes=5, **options)
    sizes = {"img_size": 32, "patch_size": 4, "embed_dim": 96, "num_heads": 3} | options
    theirs = VisionTransformer(depth=2, num_classes=5, **sizes).eval()
    theirs.load_state_dict(ours.state_dict(), strict=True)
    side = sizes["img_size"]
    images = torch.randn(3, 3, *((side, side) if isinstance(side, int) else side))
    with torch.inference_mode():
        torch.testing.assert_close(ours(images), theirs(images), rtol=0, atol=1e-5)
    for name in ("num_heads", "scale"):
        assert getattr(ours.blocks[1].attn, name) == getattr(theirs.blocks[1].attn, name)
    assert ours.num_prefix_tokens == theirs.num_prefix_tokens
    assert ours.patch_embed.grid_size == theirs.patch_embed.grid_size
    assert ours.patch_embed.patch_size == theirs.patch_embed.patch_size


def test_classes_and_channels_can_be_chosen_and_images_do_not_mix():
    network = built(num_classes=7, in_channels=1, img_size=28, depth=2)
    images = torch.randn(3, 1, 28, 28)
    logits = network(images)
    assert logits.shape == (3, 7)
    torch.testing.assert_close(logits, torch.cat([network(images[i : i + 1]) for i in range(3)]), rtol=1e-4, atol=1e-5)


def test_the_same_seed_draws_the_same_weights():
    weights = [built().blocks[0].attn.qkv.weight for _ in range(2)]
    torch.manual_seed(1)
    assert torch.equal(*weights)
    assert not torch.equal(weights[0], ViTTiny().blocks[0].attn.qkv.weight)


def test_fresh_tokens_attend_most_to_what_is_near():
    network = built()
    with recorded(network, "blocks.0.norm1") as outputs, torch.no_grad():
        network(torch.zeros(1, 3, 32, 32))
    attention = network.blocks[0].attn
    query, key, _ = attention.qkv(outputs[0]).detach().reshape(1, 65, 3, 3, 32).permute(2, 0, 3, 1, 4)
    probabilities = functional.softmax(query @ key.transpose(-1, -2) * attention.scale, dim=-1)[0, :, 1:, 1:].mean(0)
    rows, columns = torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="ij")
    places = torch.stack([rows.flatten(), columns.flatten()], dim=1)
    distances = torch.cdist(places, places)
    near, far = probabilities[distances < 1.5].mean(), probabilities[distances > 4].mean()
    assert near > 2 * far


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"patch_size": 5}, "patch_size 5 does not divide the picture, 32 x 32"),
        ({"num_heads": 5}, "embed_dim 96 must be a multiple of 4 and of num_heads 5"),
        ({"embed_dim": 6, "num_heads": 3}, "embed_dim 6 must be a multiple of 4 and of num_heads 3"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        ViTTiny(**options)


def test_a_picture_of_another_size_is_refused_and_not_stretched():
    with pytest.raises(InputError, match=r"28 x 28 pixels; this transformer was built for 32 x 32 \(option img_size\)"):
        built(depth=1)(torch.zeros(1, 3, 28, 28))


def test_an_unknown_option_names_the_nearest():
    with pytest.raises(PluginError, match=r"unknown option 'dept'; did you mean 'depth'\?"):
        load("heatproof.models.vit.ViTTiny", num_classes=10, constructor_args={"dept": 3})


def test_the_trained_weights_give_their_logits_and_their_accuracy(shared_data):
    loaded = load(
        "heatproof.models.vit.ViTTiny",
        num_classes=10,
        pretrained_weights=shared_data / "weights" / "cifar10_vit_tiny_p4.pt",
        normalization=Normalization((0.5,) * 3, (0.5,) * 3),
    )
    data = open_dataset("Arrays", shared_data / "cifar10", split_ratio=0.875, seed=0, options={})
    test = data.split("test")
    with torch.inference_mode():
        batches = (test.pixels(range(start, start + 250)) for start in range(0, 2000, 250))
        logits = torch.cat([loaded.module(loaded.normalization(pixels / 255)) for pixels in batches]).numpy()
    expected = np.load(shared_data / "weights" / "expected" / "cifar10_vit_tiny_p4_test_logits.npz")
    np.testing.assert_allclose(logits, expected["logits"], rtol=0, atol=1e-3)
    assert (logits.argmax(1) == test.labels).mean() == pytest.approx(0.6925)
