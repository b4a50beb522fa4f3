"""GradMask's insertion and deletion, compat: golden vectors of the authors' code on two tiny transformers."""

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from torchvision.models.vision_transformer import VisionTransformer

from heatproof import removal
from heatproof.errors import InputError
from heatproof.metrics.insertion_deletion import gradmask_deletion_auc, gradmask_insertion_auc
from heatproof.models import Normalization
from heatproof.removal import regions
from heatproof.removal.gradmask import BASELINES, gradmask_scores

GOLDEN = Path(__file__).parents[1] / "golden" / "vit"
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def state(name):
    data = np.load(GOLDEN / f"{name}.npz")
    tensors = {key.removeprefix("state/"): torch.from_numpy(data[key]) for key in data if key.startswith("state/")}
    return json.loads(str(data["config_json"])), tensors


def vit():
    options, tensors = state("hf_vit_tiny_as_torchvision")
    norm = partial(nn.LayerNorm, eps=options.pop("layer_norm_eps"))
    model = VisionTransformer(**options, norm_layer=norm)
    model.load_state_dict(tensors)
    return model.eval()


class Deit:
    """A DeiT with distillation token, from its weights alone; only as much as these tests need."""

    training = False

    def __init__(self):
        options, self.weights = state("hf_deit_tiny_weights")
        self.depth, self.heads = options["num_hidden_layers"], options["num_attention_heads"]
        self.patch = options["patch_size"]

    def linear(self, name, values):
        return functional.linear(values, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"])

    def norm(self, name, values):
        weight = self.weights[f"{name}.weight"]
        return functional.layer_norm(values, weight.shape, weight, self.weights[f"{name}.bias"], 1e-12)

    def __call__(self, images):
        front = "deit.embeddings"
        projection = f"{front}.patch_embeddings.projection"
        patches = functional.conv2d(
            images, self.weights[f"{projection}.weight"], self.weights[f"{projection}.bias"], stride=self.patch
        )
        prefix = [
            self.weights[f"{front}.{name}"].expand(len(images), -1, -1) for name in ("cls_token", "distillation_token")
        ]
        tokens = torch.cat((*prefix, patches.flatten(2).transpose(1, 2)), dim=1)
        tokens = tokens + self.weights[f"{front}.position_embeddings"]
        for layer in range(self.depth):
            tokens = self.block(f"deit.encoder.layer.{layer}", tokens)
        tokens = self.norm("deit.layernorm", tokens)
        return (self.linear("cls_classifier", tokens[:, 0]) + self.linear("distillation_classifier", tokens[:, 1])) / 2

    def block(self, name, tokens):
        before = self.norm(f"{name}.layernorm_before", tokens)
        query, key, value = (
            self.linear(f"{name}.attention.attention.{part}", before).unflatten(2, (self.heads, -1)).transpose(1, 2)
            for part in ("query", "key", "value")
        )
        mixed = functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        tokens = tokens + self.linear(f"{name}.attention.output.dense", mixed)
        inner = functional.gelu(self.linear(f"{name}.intermediate.dense", self.norm(f"{name}.layernorm_after", tokens)))
        return tokens + self.linear(f"{name}.output.dense", inner)


@pytest.fixture(scope="module", params=["vit", "deit"])
def reference(request):
    """A model, the golden file, and the normalised image."""
    data = dict(np.load(GOLDEN / f"gradmask_insdel_{request.param}.npz"))
    pixels = torch.from_numpy(data["image_u8"]).permute(2, 0, 1)[None] / 255
    # Each model's published settings.
    normalize = Normalization(*(((0.5,) * 3, (0.5,) * 3) if request.param == "vit" else IMAGENET))
    return (vit() if request.param == "vit" else Deit()), data, normalize(pixels)


def given_ranks(data):
    """Ranks that reproduce the pixels which the reference took: its sort leaves open the order inside a patch."""
    selected = np.unpackbits(data["notebook_selected_pixels_packed"], axis=1)[:, : 224 * 224].astype(bool)
    assert (selected[1:] >= selected[:-1]).all()
    return ranks_of(selected.sum(axis=0).reshape(1, 224, 224))


def patch_ranks(data):
    return ranks_of(np.kron(data["map_distinct"], np.ones((16, 16)))[None])


def ranks_of(maps):
    return removal.rank_tensor(removal.ranks(removal.orders(maps, ties="index"), maps.shape[1:]))


@pytest.mark.parametrize("baseline", BASELINES)
@pytest.mark.parametrize("steps", ["notebook", "patches"])
def test_scores_and_areas_are_gradmasks(reference, steps, baseline):
    model, data, images = reference
    ranks = given_ranks(data) if steps == "notebook" else patch_ranks(data)
    percentages = data[f"perc_{steps}"].tolist()
    with torch.random.fork_rng():
        torch.manual_seed(1234)
        scores = gradmask_scores(model, images, ranks, torch.tensor([int(data["label"])]), percentages, baseline)
    name = f"{steps}_{baseline}"
    np.testing.assert_allclose(scores.insertion[0], data[f"{name}_insertion"], atol=5e-6)
    np.testing.assert_allclose(scores.deletion[0], data[f"{name}_deletion"], atol=5e-6)
    insertion = gradmask_insertion_auc(scores.insertion, percentages)
    deletion = gradmask_deletion_auc(scores.deletion, percentages)
    np.testing.assert_allclose(insertion, data[f"{name}_auc_insertion"], atol=1e-4)
    np.testing.assert_allclose(deletion, data[f"{name}_auc_deletion"], atol=1e-4)


def test_baselines_are_gradmasks(reference):
    _, data, images = reference
    blurred = BASELINES["blur"](images)[0, :, 64:128, 64:128]
    np.testing.assert_allclose(blurred, data["blur_baseline_crop"], atol=5e-6)
    np.testing.assert_allclose(BASELINES["mean"](images), data["mean_baseline_value"], atol=5e-6)


def test_our_own_protocol_gives_gradmasks_scores_where_no_fault_is_in_the_way(reference):
    model, data, images = reference
    sums = data["map_distinct"][None] * 256
    ranks = regions.patch_ranks(removal.orders(sums), regions.square_patches((224, 224), 16))
    patches = np.array([int(p / 100 * 196 + 1e-6) for p in data["perc_patches"]])
    steps = np.arange(1, 197) / 196
    scores = removal.degraded_scores(
        model,
        images,  # normalised already, so that black is GradMask's
        ranks,
        data["label"][None],
        normalize=lambda pixels: pixels,
        fractions=steps,
        fill=removal.Black(),
    ).probability[0]
    np.testing.assert_allclose(scores[0][patches], data["patches_black_deletion"], atol=5e-6)
    np.testing.assert_allclose(scores[1][::-1][patches], data["patches_black_insertion"], atol=5e-6)


def test_the_baselines_of_a_batch_are_those_of_its_images():
    images = torch.randn(3, 3, 20, 20, generator=torch.Generator().manual_seed(0))
    for name in ("black", "blur", "mean"):
        alone = torch.cat([BASELINES[name](image[None]) for image in images])
        torch.testing.assert_close(BASELINES[name](images), alone)


def test_an_unknown_baseline_is_named():
    images, ranks = torch.zeros(1, 3, 4, 4), torch.arange(16).view(1, 4, 4).int()
    with pytest.raises(InputError, match="baseline: 'blurred'; did you mean 'blur'"):
        gradmask_scores(lambda x: x.mean((2, 3)), images, ranks, torch.tensor([0]), [50], "blurred")
