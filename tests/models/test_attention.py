"""The attention of every family of vision transformers, against autograd and against published code."""

import json
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from heatproof.errors import InputError, ModelError
from heatproof.models.attention import attention
from heatproof.models.transformers import architecture_of
from tests.methods.test_properties import traces
from tests.models import vits
from tests.models.vits import RECTANGULAR, golden

rectangular = pytest.mark.parametrize(("make", "prefix"), RECTANGULAR.values(), ids=RECTANGULAR)


def some_images(*size, dtype=torch.float32):
    return torch.randn(3, 3, *size, generator=torch.Generator().manual_seed(1)).to(dtype)


class Explicit(TorchFunctionMode):
    """Writes attention out, so that autograd sees what the fused kernel hides."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is not functional.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        query, key, value = args[:3]
        scale = (kwargs or {}).get("scale") or query.shape[-1] ** -0.5
        probabilities = (query * scale @ key.transpose(-2, -1)).softmax(dim=-1)
        self.calls.append((probabilities, query, key, value))
        return probabilities @ value


def autograd_attention(model, images, targets):
    """Per layer: probabilities, and the gradients of the target's logit for them, queries, keys and values."""
    with Explicit() as mode:
        logits = model(images.requires_grad_())
    score = logits.gather(1, targets[:, None]).sum()
    return [(call[0], *torch.autograd.grad(score, call, retain_graph=True)) for call in mode.calls]


@rectangular
def test_recomputed_attention_is_that_of_autograd(make, prefix):
    # In double precision: in single, how a processor rounds the two ways is more than the tolerance.
    model, targets, images = make().double(), torch.tensor([0, 4, 2]), some_images(16, 24, dtype=torch.float64)
    expected = autograd_attention(model, images.clone(), targets)
    with attention(model) as record:
        record.backward(model(images).gather(1, targets[:, None]))
        blocks = [*record, *([record.pool] if record.pool else [])]
    assert (len(record), len(blocks)) == (2, len(expected))
    for block, (probabilities, *gradients) in zip(blocks, expected, strict=True):
        torch.testing.assert_close(block.probabilities, probabilities, rtol=0, atol=2e-6)
        found = (block.gradient, block.query_gradient, block.key_gradient, block.value_gradient)
        for ours, theirs in zip(found, gradients, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5 * float(theirs.abs().max()))


@rectangular
def test_grid_prefix_and_rows_that_the_head_reads(make, prefix):
    model = make()
    with attention(model, gradients=False) as record:
        model(some_images(16, 24))
        weights = record.readout()
    assert (record.grid, record.prefix) == ((4, 6), prefix)
    assert weights.shape == (3, prefix + 24)
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(3))


@pytest.mark.parametrize(
    ("name", "first", "last"),
    [("timm", 1.0, 0.0), ("timm mean of patches", 0.0, 1 / 24), ("timm mean of all, no class token", 1 / 24, 1 / 24)],
)
def test_the_class_token_or_the_mean_is_read(name, first, last):
    model = RECTANGULAR[name][0]()
    with attention(model, gradients=False) as record:
        model(some_images(16, 24))
    assert record.readout()[:, 0].tolist() == pytest.approx([first] * 3)
    assert record.readout()[:, -1].tolist() == pytest.approx([last] * 3)


@rectangular
def test_the_head_makes_the_logits_from_the_last_blocks_tokens(make, prefix):
    model, images, kept = make(), some_images(16, 24), []
    found = architecture_of(model)
    handle = found.blocks[-1].register_forward_hook(lambda _, __, output: kept.append(output))
    logits = model(images)
    handle.remove()
    torch.testing.assert_close(found.head(kept[0]), logits)


@pytest.mark.parametrize(
    "make", [vits.timm_tiny, lambda: vits.torchvision_twin("timm_tiny")], ids=["timm", "torchvision"]
)
def test_vit_explains_gradients(make):
    vectors, model = golden("vit_explain_grad_rollout"), make()
    for position, target in enumerate(vectors["classes"].tolist()):
        with attention(model) as record:
            record.backward(model(vectors["x"])[:, target])
            gradients = torch.stack([block.gradient for block in record], dim=1)
            captured = torch.stack([block.score_gradient for block in reversed(record)], dim=1)
        for ours, theirs in (
            (gradients, vectors["independent_attn_grad"][:, position]),
            (captured, vectors["grads_captured"][:, position]),
        ):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5 * float(theirs.abs().max()))


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (vits.timm_tiny, "vit_explain_rollout"),
        (lambda: vits.torchvision_twin("timm_tiny"), "vit_explain_rollout"),
        (lambda: vits.hugging_face("hf_vit_small"), "diffmask_rollout"),
        (lambda: vits.torchvision_twin("hf_vit_small"), "diffmask_rollout"),
    ],
    ids=["timm", "timm as torchvision", "hf", "hf as torchvision"],
)
def test_published_attention(make, name):
    vectors, model = golden(name), make()
    with attention(model, gradients=False) as record:
        logits = model(vectors["x"])
        found = torch.stack([block.probabilities for block in record], dim=1)
    torch.testing.assert_close(logits, vectors["logits"], rtol=0, atol=1e-5)
    torch.testing.assert_close(found, vectors["attn"], rtol=0, atol=2e-6)


@pytest.mark.parametrize("family", ["vit", "deit"])
def test_gradmasks_gradients_of_queries_keys_and_values(family):
    vectors, model = golden(f"gradmask_{family}"), vits.hugging_face(f"hf_{family}_tiny")
    mean, std = vectors["pixel_mean_std"].float()[:, None, :, None, None]
    images = (vectors["image_u8"].permute(2, 0, 1)[None] / 255 - mean) / std
    with attention(model) as record:
        logits = model(images)
        torch.testing.assert_close(logits, vectors["logits"], rtol=0, atol=1e-5)
        record.backward(logits[:, vectors["predicted"]])
        for kind in ("query", "key", "value"):
            # Published from the last block on, heads side by side.
            found = [getattr(block, f"{kind}_gradient")[0].transpose(0, 1).flatten(1) for block in reversed(record)]
            expected = vectors[f"raw_{kind[0]}_grad"]
            tolerance = 1e-5 * float(expected.abs().max())
            torch.testing.assert_close(torch.stack(found), expected, rtol=0, atol=tolerance)


@rectangular
def test_the_model_is_left_as_it_was_also_after_an_error(make, prefix):
    model = make().train()
    next(model.parameters()).requires_grad_(False)
    before = traces(model)
    with attention(model) as record:
        record.backward(model(some_images(16, 24))[:, 0])
    assert traces(model) == before
    with pytest.raises(KeyError), attention(model) as record:
        {}[model(some_images(16, 24)).shape, len(record)]
    assert traces(model) == before


def test_an_error_inside_the_model_leaves_no_hook():
    model = vits.timm_vit()
    before = traces(model)
    with pytest.raises((AssertionError, RuntimeError)), attention(model):
        model(some_images(16, 20))
    assert traces(model) == before


def test_the_last_forward_pass_counts():
    model, images = vits.timm_vit(), some_images(16, 24)
    with attention(model) as record:
        record.backward(model(images)[:, 0])
        expected = record[0].gradient
        model(-images)
        with pytest.raises(InputError, match=r"after record.backward\(scores\) only"):
            _ = record[0].gradient
        record.backward(model(images)[:, 0])
        assert torch.equal(record[0].gradient, expected)


def test_nothing_is_asked_of_a_model_that_has_not_run():
    with attention(vits.timm_vit()) as record, pytest.raises(InputError, match="has not run inside the block"):
        _ = record.grid


def test_a_wrapped_model_is_found_and_told_by_its_own_names():
    inner = vits.timm_vit()
    wrapped = nn.Sequential(nn.Identity(), inner)
    assert architecture_of(wrapped).layers[0].name == "1.blocks.0.attn"
    with attention(wrapped, gradients=False) as record:
        wrapped(some_images(16, 24))
    assert record.grid == (4, 6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_recomputed_in_single(dtype):
    model, images = vits.timm_vit(depth=4), some_images(16, 24)
    with attention(model) as record:
        record.backward(model(images)[:, 0])
        expected = [block.gradient for block in record]
    model = model.to(dtype)
    with attention(model) as record:
        record.backward(model(images.to(dtype))[:, 0])
        for block, theirs in zip(record, expected, strict=True):
            assert block.probabilities.dtype == block.gradient.dtype == torch.float32
            tolerance = 0.25 if dtype == torch.bfloat16 else 0.02
            torch.testing.assert_close(block.gradient, theirs, rtol=0, atol=tolerance * float(theirs.abs().max()))


def test_gradients_too_small_for_half_precision_survive():
    model = vits.timm_vit().half()
    with attention(model) as record:
        record.backward(model(some_images(16, 24, dtype=torch.float16))[:, 0] * 1e-4)
        assert (record[0].gradient != 0).float().mean() > 0.9


def test_double_precision_stays():
    model = vits.timm_vit().double()
    with attention(model) as record:
        record.backward(model(some_images(16, 24, dtype=torch.float64))[:, 0])
        assert record[0].query_gradient.dtype == torch.float64


def test_autocast_does_not_reach_the_recomputation():
    model, images = vits.timm_vit(), some_images(16, 24)
    with attention(model) as record:
        record.backward(model(images)[:, 0])
        expected = record[1].gradient
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(record[1].gradient, expected)


def test_another_network_is_told_what_fits_it():
    with (
        pytest.raises(ModelError, match=r"Sequential: is no vision transformer that is known .*methods\.cam"),
        attention(nn.Sequential(nn.Conv2d(3, 4, 3))),
    ):
        pass


def test_an_unknown_attention_is_named():
    model = vits.timm_vit()
    model.blocks[1].attn = nn.Identity()
    with pytest.raises(ModelError, match=r"attention: 'blocks.1.attn' is a torch.nn.modules.linear.Identity"):
        architecture_of(model)


def test_pooling_whose_rows_cannot_be_told_is_refused():
    with pytest.raises(ModelError, match="VisionTransformer: pools by 'max'"):
        architecture_of(vits.timm_vit(global_pool="max"))


def test_masked_attention_is_refused():
    model = vits.timm_vit()
    with attention(model), pytest.raises(ModelError, match=r"'blocks.0.attn' gets a mask"):
        model(some_images(16, 24), attn_mask=torch.zeros(25, 25))


def test_no_library_is_imported_to_look_at_a_model():
    code = (
        "import json, sys, torch\n"
        "from torch import nn\n"
        "from heatproof.models import vit\n"
        "from heatproof.models.attention import attention\n"
        "model = vit.ViTTiny(3, depth=1)\n"
        "with attention(model) as record: record.backward(model(torch.zeros(1, 3, 32, 32))[:, 0]); record[0].gradient\n"
        "print(json.dumps([name for name in ('timm', 'transformers', 'torchvision') if name in sys.modules]))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(ran.stdout) == []
