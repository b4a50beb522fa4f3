"""Small vision transformers of each family: those of the golden vectors, and some built the ways that adapters stumble over."""

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.models.vision_transformer import VisionTransformer

from heatproof.models import vit
from heatproof.models.loading import LogitsOf

GOLDEN = Path(__file__).parents[1] / "golden" / "vit"


def golden(name, area="vit"):
    """An npz file of golden vectors, as torch tensors; texts stay out."""
    arrays = np.load(GOLDEN.parent / area / f"{name}.npz")
    return {key: torch.from_numpy(arrays[key]) for key in arrays if arrays[key].dtype.kind in "fiub"}


def _state(name):
    data = np.load(GOLDEN / f"{name}.npz")
    tensors = {key.removeprefix("state/"): torch.from_numpy(data[key]) for key in data if key.startswith("state/")}
    return json.loads(str(data["config_json"])), tensors


def torchvision_twin(name):
    """The golden network `name` ("timm_tiny", "hf_vit_small", "hf_vit_tiny") in torchvision's form."""
    options, tensors = _state(f"{name}_as_torchvision")
    norm = partial(nn.LayerNorm, eps=options.pop("layer_norm_eps"))
    model = VisionTransformer(**options, norm_layer=norm)
    model.load_state_dict(tensors)
    return model.eval()


def timm_tiny():
    timm = pytest.importorskip("timm")
    options, tensors = _state("timm_tiny_weights")
    model = timm.models.vision_transformer.VisionTransformer(**options)
    model.load_state_dict(tensors)
    return model.eval()


def hugging_face(name):
    """The golden network `name` ("hf_vit_small", "hf_vit_tiny", "hf_deit_tiny") in transformers' form."""
    transformers = pytest.importorskip("transformers")
    options, tensors = _state(f"{name}_weights")
    kind = "DeiT" if "deit" in name else "ViT"
    builder = getattr(
        transformers, "DeiTForImageClassificationWithTeacher" if kind == "DeiT" else "ViTForImageClassification"
    )
    model = builder(getattr(transformers, f"{kind}Config")(**options))
    model.load_state_dict({_new_name(key): value for key, value in tensors.items()})
    return LogitsOf(model).eval()


def diffmask_vit():
    """The network of Vision-DiffMask's golden attributions, which has the sizes of hf_vit_small."""
    transformers = pytest.importorskip("transformers")
    options, _ = _state("hf_vit_small_weights")
    model = transformers.ViTForImageClassification(transformers.ViTConfig(**options))
    data = np.load(GOLDEN.parent / "diffmask" / "attributions.npz")
    tensors = {key.removeprefix("model."): torch.from_numpy(data[key]) for key in data if key.startswith("model.")}
    model.load_state_dict({_new_name(key): value for key, value in tensors.items()})
    return LogitsOf(model).eval()


def _new_name(name):
    """The name of a weight in transformers 5, from that in 4."""
    for old, new in (
        (".encoder.layer.", ".layers."),
        ("attention.attention.query", "attention.q_proj"),
        ("attention.attention.key", "attention.k_proj"),
        ("attention.attention.value", "attention.v_proj"),
        ("attention.output.dense", "attention.o_proj"),
        ("intermediate.dense", "mlp.fc1"),
        (".output.dense", ".mlp.fc2"),
    ):
        name = name.replace(old, new)
    return name


def randomised(model, seed=0):
    """The model with seeded weights under which attention is not uniform, in eval mode."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                inputs = parameter[0].numel()
                deviation = 2.0 / inputs**0.5 if "attn" in name or "attention" in name else inputs**-0.5
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * deviation)
            elif "norm" not in name and "ln" not in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
            else:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model.eval()


def timm_vit(**options):
    """A timm transformer: 16 x 24 pixels, patches of 4: a grid of 4 x 6; class token unless asked otherwise."""
    timm = pytest.importorskip("timm")
    options = {
        "img_size": (16, 24),
        "patch_size": 4,
        "embed_dim": 16,
        "depth": 2,
        "num_heads": 2,
        "num_classes": 5,
    } | options
    return randomised(timm.models.vision_transformer.VisionTransformer(**options))


def timm_deit():
    timm = pytest.importorskip("timm")
    return randomised(
        timm.models.deit.VisionTransformerDistilled(
            img_size=(16, 24), patch_size=4, embed_dim=16, depth=2, num_heads=2, num_classes=5
        )
    )


def hugging_face_vit(kind, **options):
    """A transformer of transformers, 16 x 24 pixels, grid of 4 x 6."""
    transformers = pytest.importorskip("transformers")
    dino = kind.startswith("Dinov2")
    config = getattr(transformers, f"{kind}Config")(
        image_size=16 if dino else (16, 24),  # it enlarges a square grid of positions, whatever it is given
        patch_size=4, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, num_labels=5,
        **({"mlp_ratio": 2} if dino else {"intermediate_size": 32}), **options,
    )  # fmt: skip
    return LogitsOf(randomised(getattr(transformers, f"{kind}ForImageClassification")(config)))


def our_vit():
    return randomised(vit.ViTTiny(5, img_size=(16, 24), embed_dim=16, depth=2, num_heads=2))


RECTANGULAR = {
    "ViTTiny": (our_vit, 1),
    "timm": (timm_vit, 1),
    "timm q/k norm, registers, gate, norm": (
        partial(timm_vit, qk_norm=True, scale_attn_norm=True, reg_tokens=3, init_values=0.5), 4
    ),
    "timm mean of patches": (partial(timm_vit, global_pool="avg", reg_tokens=2), 3),
    "timm mean of all, no class token": (
        partial(timm_vit, global_pool="avg", class_token=False, pool_include_prefix=True), 0
    ),
    "timm attention pool": (partial(timm_vit, global_pool="map", class_token=False), 0),
    "timm not fused": (partial(timm_vit, qkv_bias=False), 1),
    "timm distilled": (timm_deit, 2),
    "hf ViT": (partial(hugging_face_vit, "ViT"), 1),
    "hf DeiT": (partial(hugging_face_vit, "DeiT"), 2),
    "hf DINOv2": (partial(hugging_face_vit, "Dinov2"), 1),
    "hf DINOv2 with registers": (partial(hugging_face_vit, "Dinov2WithRegisters", num_register_tokens=3), 4),
    "hf MSN": (partial(hugging_face_vit, "ViTMSN"), 1),
    "hf I-JEPA": (partial(hugging_face_vit, "IJepa"), 0),
}  # fmt: skip
"""Networks on 16 x 24 pixels with 5 classes, and how many tokens stand in front of the 4 x 6 patches."""
