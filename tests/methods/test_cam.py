"""Class activation maps: golden vectors, known truths, messages."""

import numpy as np
import pytest
import torch
from torch import nn

from heatproof.errors import InputError, ModelError
from heatproof.methods.cam import (
    EigenCam,
    GradCam,
    GradCamPlusPlus,
    GuidedGradCam,
    LayerCam,
    ScoreCam,
    activations,
    layer_grad_cam,
    to_image_size,
)
from tests.methods.networks import ColourNet, SmallResNet, colour_patches, small_resnet

GOLDEN_TOLERANCE = {"atol": 1e-5, "rtol": 1e-4}


@pytest.mark.parametrize("layer", ["conv3", "relu3"])
def test_at_the_layers_size_grad_cam_is_captums(golden, tinycnn, images, targets, layer):
    maps = layer_grad_cam(tinycnn, layer, images, targets)
    torch.testing.assert_close(maps[:, None], golden("attributions")[f"layer_gradcam_{layer}"], **GOLDEN_TOLERANCE)
    if layer == "relu3":
        expected = golden("attributions")["layer_gradcam_relu3_relu"]
        torch.testing.assert_close(maps.relu()[:, None], expected, **GOLDEN_TOLERANCE)


@pytest.mark.parametrize(
    ("name", "interpolation"),
    [
        ("gradcam_relu3_relu_bilinear", "bilinear"),
        ("seed_gradcam_relu3", "bilinear"),
        ("gradcam_relu3_relu_captum_interp_nearest", "nearest"),
    ],
)
def test_enlarged_grad_cam_is_captums_and_the_roar_codes(golden, tinycnn, images, targets, name, interpolation):
    maps = GradCam(tinycnn, layer="relu3", interpolation=interpolation)(images, targets)
    expected = golden("attributions")[name]
    torch.testing.assert_close(maps[:, None].expand_as(expected), expected, **GOLDEN_TOLERANCE)


def test_guided_grad_cam_is_captums(golden, tinycnn, images, targets):
    maps = GuidedGradCam(tinycnn, layer="relu3")(images, targets)
    torch.testing.assert_close(maps, golden("attributions")["guided_gradcam_relu3"], **GOLDEN_TOLERANCE)


@pytest.mark.parametrize("method", [GradCam, GradCamPlusPlus, LayerCam])
def test_the_patch_of_the_asked_colour_is_found(method):
    images, regions = colour_patches()
    maps = method(ColourNet().eval(), layer="features")(images, torch.arange(3))
    assert not maps[~regions].any()
    assert (maps[regions] > 0).all()


def test_score_cam_gives_the_asked_colour_the_most():
    images, regions = colour_patches()
    maps = ScoreCam(ColourNet().eval(), layer="features")(images, torch.arange(3))
    # Behind its own mask the logit of a colour is 16/64, behind another's 0: weights by softmax.
    own, other = np.exp([0.25, 0.0]) / (np.exp(0.25) + 2)
    for colour in range(3):
        expected = own * regions[colour] + other * (regions.any(dim=0) & ~regions[colour])
        torch.testing.assert_close(maps[colour], expected.float())


def test_without_relu_grad_cam_keeps_what_speaks_against():
    model = nn.Sequential(nn.Identity(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1, 1, bias=False))
    nn.init.constant_(model[3].weight, -1.0)
    image = torch.tensor([[[[2.0, 4.0]]]])
    assert not GradCam(model, layer="0")(image, torch.tensor([0])).any()
    assert GradCam(model, layer="0", relu=False)(image, torch.tensor([0])).tolist() == [[[-1.0, -2.0]]]


def test_smoothed_grad_cam_is_the_first_principal_component_of_the_weighted_channels():
    model, targets = small_resnet(), torch.tensor([1, 3])
    images = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    values, gradients = activations(model, "conv2", images, targets)
    maps = GradCam(model, layer="conv2", relu=False, eigen_smooth=True)(images, targets)
    for n in range(2):
        weighted = (gradients[n].mean(dim=(1, 2), keepdim=True) * values[n]).flatten(1).T.double().numpy()
        centred = weighted - weighted.mean(axis=0)
        projection = centred @ np.linalg.svd(centred)[2][0]
        projection *= np.sign(np.corrcoef(projection, weighted.sum(axis=1))[0, 1])
        expected = to_image_size(torch.from_numpy(projection).float().reshape(1, 8, 8), images[:1])
        torch.testing.assert_close(maps[n : n + 1], expected, atol=1e-6 * float(expected.abs().max()), rtol=1e-4)


def test_smoothing_over_mirror_images_makes_no_difference_between_them():
    model, targets = small_resnet(), torch.tensor([1, 3])
    images = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    method = GradCam(model, layer="last", aug_smooth=True)
    maps = method(images, targets)
    torch.testing.assert_close(method(images.flip(3), targets).flip(2), maps, rtol=0, atol=1e-5)
    assert 0 <= maps.min() <= maps.max() <= 1
    assert not torch.allclose(maps, GradCam(model, layer="last")(images, targets), atol=1e-2)


def test_smoothing_over_images_leaves_no_sign():
    with pytest.raises(InputError, match=r"GradCam: aug_smooth brings each map to .* set relu"):
        GradCam(small_resnet(), layer="last", relu=False, aug_smooth=True)


def test_grad_cam_plus_plus_by_hand():
    """Logit: mean of two pixels, 1 and 3. g = 1/2; alpha = 1 / (2 + 4/2) = 1/4; weight = 2 * 1/4 * 1/2 = 1/4."""
    model = nn.Sequential(nn.Identity(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    maps = GradCamPlusPlus(model, layer="0")(torch.tensor([[[[1.0, 3.0]]]]), torch.tensor([0]))
    torch.testing.assert_close(maps, torch.tensor([[[0.25, 0.75]]]))


def test_layer_cam_weights_each_place_by_its_own_gradient():
    model = nn.Sequential(nn.Identity(), nn.Flatten(), nn.Linear(4, 1, bias=False))
    with torch.no_grad():
        model[2].weight.copy_(torch.tensor([[3.0, -1.0, 2.0, 1.0]]))
    image = torch.tensor([[[[1.0, 1.0]], [[2.0, -5.0]]]])
    maps = LayerCam(model, layer="0")(image, torch.tensor([0]))
    assert maps.tolist() == [[[3.0 * 1 + 2.0 * 2, 0.0]]]  # at the second place 0 * 1 + 1 * -5, clipped


def test_score_cam_is_its_definition_channel_by_channel():
    model = small_resnet()
    images = torch.randn(2, 3, 12, 10, generator=torch.Generator().manual_seed(0))
    targets = torch.tensor([1, 3])
    found = []
    model.last.register_forward_hook(lambda *arguments: found.append(arguments[2].detach()))
    model(images)
    values = found.pop()
    for n in range(2):
        scores = []
        for channel in values[n]:
            mask = nn.functional.interpolate(channel[None, None], size=(12, 10), mode="bilinear", align_corners=False)
            mask = (mask - mask.min()) / (mask.max() - mask.min())
            scores.append(model(images[n : n + 1] * mask)[0, targets[n]].detach())
        assert values.std(dim=(2, 3)).min() > 0
        weights = torch.stack(scores).softmax(dim=0)
        expected = to_image_size((weights[:, None, None] * values[n]).sum(dim=0).relu()[None], images)
        maps = ScoreCam(model, layer="last")(images[n : n + 1], targets[n : n + 1])
        torch.testing.assert_close(maps, expected, atol=1e-6, rtol=1e-5)


def test_a_constant_channel_has_no_weight_and_a_constant_layer_gives_a_zero_map():
    model = ColourNet().eval()
    image = torch.ones(2, 3, 4, 4)
    image[0, 0, 0, 0] = 2.0
    maps = ScoreCam(model, layer="features")(image, torch.tensor([0, 0]))
    torch.testing.assert_close(maps[0], image[0, 0])  # channel 0 alone varies: its weight is 1
    assert not maps[1].any()


def test_eigen_cam_is_the_first_principal_projection():
    model = small_resnet()
    images = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    found = []
    model.conv2.register_forward_hook(lambda *arguments: found.append(arguments[2].detach()))
    model(images)
    maps = EigenCam(model, layer="conv2")(images, torch.tensor([0, 0]))
    for n in range(2):
        matrix = found[0][n].flatten(1).T.double().numpy()  # (h * w, C)
        _, _, right = np.linalg.svd(matrix)
        projection = torch.from_numpy(matrix @ right[0]).float().reshape(1, 8, 8)
        expected = to_image_size(projection * torch.sign(projection.sum()), images[:1])
        torch.testing.assert_close(maps[n : n + 1], expected, atol=1e-5, rtol=1e-4)
        assert projection.sum() != 0
    positive = EigenCam(model, layer="last")(images, torch.tensor([0, 0]))  # behind a ReLU
    assert (positive >= -1e-5).all()
    assert positive.max() > 0.1


CAMS = [GradCam, GradCamPlusPlus, LayerCam, ScoreCam, EigenCam, GuidedGradCam]


@pytest.mark.parametrize("method", CAMS)
def test_a_misspelt_layer_names_the_nearest_when_the_method_is_built(method):
    with pytest.raises(ModelError, match=r"layer 'conv22': SmallResNet has no such layer; did you mean 'conv2'\?"):
        method(small_resnet(), layer="conv22")


@pytest.mark.parametrize("method", CAMS)
def test_a_layer_without_a_place_for_each_value_is_told(method):
    with pytest.raises(ModelError, match=r"layer 'fc': gives \(1, 4\); a map needs a layer with \(N, C, h, w\)"):
        method(small_resnet(), layer="fc")(torch.zeros(1, 3, 12, 10), torch.tensor([0]))


class WithSpareLayers(SmallResNet):
    """One layer is never called, another leads nowhere."""

    def __init__(self):
        super().__init__()
        self.unused, self.aside = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)

    def forward(self, images):
        self.aside(images)
        return super().forward(images)


@pytest.mark.parametrize("method", CAMS)
def test_a_layer_that_is_not_called_is_told(method):
    with pytest.raises(ModelError, match="layer 'unused': is not called when the model runs; choose another layer"):
        method(WithSpareLayers().eval(), layer="unused")(torch.zeros(1, 3, 12, 10), torch.tensor([0]))


@pytest.mark.parametrize("method", [GradCam, GradCamPlusPlus, LayerCam, GuidedGradCam])
def test_a_layer_that_leads_nowhere_is_told(method):
    with pytest.raises(ModelError, match="layer 'aside': the logits do not depend on its last output"):
        method(WithSpareLayers().eval(), layer="aside")(torch.zeros(1, 3, 12, 10), torch.tensor([0]))


@pytest.mark.parametrize("method", [GradCam, GuidedGradCam])
def test_an_unknown_interpolation_is_told(method):
    with pytest.raises(InputError, match="interpolation 'bicubic' is unknown"):
        method(small_resnet(), layer="last", interpolation="bicubic")
