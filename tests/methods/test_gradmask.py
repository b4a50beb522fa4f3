"""GradMask: the published code's masks, confidences and maps; equal work is done once and in bounded batches."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from heatproof.errors import InputError, ModelError
from heatproof.methods.gradmask import GradMask
from heatproof.models.preparation import resized
from heatproof.models.vit import ViTTiny
from tests.models import vits

FAMILIES = {"vit": "hf_vit_tiny", "deit": "hf_deit_tiny"}


def loaded(family):
    golden = np.load(vits.GOLDEN / f"gradmask_{family}.npz")
    pixels = torch.from_numpy(golden["image_u8"]).permute(2, 0, 1)[None] / 255
    mean, std = torch.from_numpy(golden["pixel_mean_std"]).float()[:, None, :, None, None]
    return golden, (pixels - mean) / std


@pytest.fixture(scope="module", params=["vit", "deit"])
def published(request):
    return (*loaded(request.param), vits.hugging_face(FAMILIES[request.param]))


@pytest.mark.parametrize("masks_layer", [1, 2, 4, 8])
@pytest.mark.parametrize("which", ["pred", "other"])
def test_masks_confidences_and_map_are_the_published_ones(published, which, masks_layer):
    golden, images, model = published
    target = torch.from_numpy(golden["classes"])[["pred", "other"].index(which)][None]
    method = GradMask(model, masks_layer=masks_layer, compat=True)
    kept, confidence = method.masks(images, target)
    suffix = f"{which}_ml{masks_layer}"
    expected = np.unpackbits(golden[f"masks_{suffix}"], axis=1)[:, :196].astype(bool)
    assert (kept[0].flatten(1).numpy() != expected).sum() <= 2
    np.testing.assert_allclose(confidence[0], golden[f"conf_{suffix}"], rtol=0, atol=5e-6)
    heatmap = method.relevance(images, target)[0]
    np.testing.assert_allclose(heatmap, golden[f"heatmap_{suffix}"], rtol=0, atol=2e-5)


def test_class_0_is_explained_where_the_published_code_takes_the_predicted_one(published):
    golden, images, model = published
    assert golden["label_zero_returned"] == golden["predicted"]
    method = GradMask(model, compat=True)
    assert not torch.equal(method.relevance(images, torch.tensor([0])), method.relevance(images, torch.tensor([1])))


def test_a_picture_is_resized_as_the_published_code_does():
    golden = np.load(vits.GOLDEN / "gradmask_preprocess.npz")
    found = resized(Image.fromarray(golden["image_u8"]), (224, 224))
    np.testing.assert_array_equal((255 * found).round().to(torch.uint8), golden["resized_u8"])


def small(depth=3):
    torch.manual_seed(0)
    network = ViTTiny(4, img_size=(8, 12), embed_dim=16, depth=depth, num_heads=2).eval()
    nn.init.normal_(network.head.weight)
    return network


class Counting(nn.Module):
    """Keeps the rows of each call."""

    def __init__(self, model):
        super().__init__()
        self.model, self.rows = model, []

    def forward(self, images):
        self.rows.append(images.detach().clone())
        return self.model(images)


def test_equal_masks_are_evaluated_once_in_full_batches_that_images_share():
    counting = Counting(small())
    images, targets = torch.randn(3, 3, 8, 12), torch.tensor([0, 3, 1])
    kept, confidence = GradMask(counting, masks_layer=8, rows_per_forward=7).masks(images, targets)
    distinct = [{tuple(mask) for mask in kept[i].flatten(1).tolist() if not all(mask)} for i in range(3)]
    total = sum(map(len, distinct))
    assert total < kept.shape[0] * kept.shape[1]
    sizes = [len(batch) for batch in counting.rows[1:]]
    assert sum(sizes) == total
    assert set(sizes[:-1]) == {7}
    network = counting.model
    for i in range(3):
        enlarged = kept[i].repeat_interleave(4, dim=1).repeat_interleave(4, dim=2)
        with torch.no_grad():
            one_by_one = torch.cat([network(images[i : i + 1] * mask).softmax(1) for mask in enlarged])
        np.testing.assert_allclose(confidence[i], one_by_one[:, targets[i]], atol=1e-6)


def test_a_mask_that_keeps_everything_counts_in_the_published_form_only():
    network = small()
    nn.init.zeros_(network.head.weight)  # no gradient at all: every mask keeps everything
    images, targets = torch.randn(2, 3, 8, 12), torch.tensor([0, 1])
    assert GradMask(network).masks(images, targets).kept.all()
    assert not GradMask(network)(images, targets).any()
    masks = 3 * 2 * 4
    np.testing.assert_allclose(GradMask(network, compat=True)(images, targets), masks * 0.25, rtol=1e-5)


def test_by_coverage_a_patch_gets_the_mean_confidence_of_the_masks_that_keep_it():
    images, targets = torch.randn(1, 3, 8, 12), torch.tensor([2])
    method = GradMask(small(), by_coverage=True, last_block=True)
    kept, confidence = (found[0] for found in method.masks(images, targets))
    assert len(kept) == 3 * 3 * 4
    partial = ~kept.all(dim=(1, 2))
    relevance = method.relevance(images, targets)[0]
    for place in np.ndindex(2, 3):
        keeping = confidence[partial & kept[:, place[0], place[1]]]
        expected = keeping.mean() if len(keeping) else torch.tensor(0.0)
        torch.testing.assert_close(relevance[place], expected, rtol=1e-5, atol=1e-6)


def test_maps_have_the_size_of_the_image_and_a_batch_equals_its_images():
    method = GradMask(small(), interpolation="nearest", rows_per_forward=5)
    images, targets = torch.randn(3, 3, 8, 12), torch.tensor([0, 3, 1])
    maps = method(images, targets)
    assert maps.shape == (3, 8, 12)
    torch.testing.assert_close(maps[:, ::4, ::4], method.relevance(images, targets))
    one_by_one = torch.cat([method(images[i : i + 1], targets[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(maps, one_by_one, rtol=1e-5, atol=1e-6)
    assert torch.equal(method(images, targets), maps)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"masks_layer": 3}, InputError, "masks_layer 3 does not divide the width 16"),
        ({"masks_layer": 0}, InputError, "masks_layer 0 must be a number, 1 or more"),
        ({"interpolation": "linear"}, InputError, "did you mean 'bilinear'"),
        ({"compat": True, "by_coverage": True}, InputError, "compat is the published form"),
        ({"model": small(depth=1)}, ModelError, "ViTTiny has one block; it needs two"),
        ({"model": nn.Flatten()}, ModelError, "no vision transformer"),
    ],
)
def test_what_does_not_fit_is_one_line(options, error, message):
    with pytest.raises(error, match=message):
        GradMask(**{"model": small(), **options})(torch.zeros(1, 3, 8, 12), torch.tensor([0]))
