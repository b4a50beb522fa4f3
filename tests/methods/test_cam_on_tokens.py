"""Class activation maps, and methods on gradients and perturbations, on vision transformers."""

import itertools

import pytest
import torch
from torch import nn

from heatproof.errors import ModelError
from heatproof.methods import cam, gradient, perturbation
from tests.methods.test_properties import traces
from tests.models import vits
from tests.models.vits import golden

LAYERS = {
    "hf": (lambda: vits.hugging_face("hf_vit_tiny"), "model.vit.layers.1.layernorm_after"),
    "torchvision": (lambda: vits.torchvision_twin("hf_vit_tiny"), "encoder.layers.encoder_layer_1.ln_2"),
}
TARGETS = torch.tensor([3, 1])


def some_images():
    return torch.randn(2, 3, 16, 24, generator=torch.Generator().manual_seed(2))


over_layers = pytest.mark.parametrize(("make", "layer"), LAYERS.values(), ids=LAYERS)


@pytest.fixture(scope="module")
def published():
    """Golden Grad-CAMs, and the images that they are of."""
    vectors = golden("diffmask_gradcam")
    images = torch.stack([vectors[name].permute(2, 0, 1) for name in ("image_u8", "image2_u8")]) / 255
    return vectors, (images - 0.5) / 0.5


@over_layers
def test_diffmasks_grad_cam(published, make, layer):
    (vectors, images), model = published, make()
    targets = model(images).argmax(dim=1)
    raw = cam.layer_grad_cam(model, layer, images, targets)
    torch.testing.assert_close(raw, vectors["cam_plain_14_raw"], rtol=0, atol=5e-6)
    # The published code scales before and after enlarging, with a guard that shows where maps are small.
    torch.testing.assert_close(enlarged(raw, images)[:, ::7, ::7], vectors["cam_plain_every7"], rtol=0, atol=5e-6)
    torch.testing.assert_close(cam.GradCam(model, layer)(images, targets), cam.to_image_size(raw.relu(), images))


@over_layers
def test_diffmasks_grad_cam_with_a_principal_component(published, make, layer):
    (vectors, images), model = published, make()
    targets = model(images).argmax(dim=1)
    plain = cam.layer_grad_cam(model, layer, images, targets)
    raw = cam.layer_grad_cam(model, layer, images, targets, eigen_smooth=True)
    signs = torch.sign((raw * vectors["cam_eigen_14_raw"]).sum(dim=(1, 2), keepdim=True))  # as LAPACK gave them
    torch.testing.assert_close(signs * raw, vectors["cam_eigen_14_raw"], rtol=0, atol=5e-6)
    drawn = enlarged(signs * raw, images)[:, ::7, ::7]
    torch.testing.assert_close(drawn, vectors["cam_eigen_every7"], rtol=0, atol=5e-6)
    for found, sum_of_channels in zip(raw, plain, strict=True):
        assert torch.corrcoef(torch.stack([found, sum_of_channels]).flatten(1))[0, 1] > 0
    maps = cam.GradCam(model, layer, eigen_smooth=True)(images, targets)
    torch.testing.assert_close(maps, cam.to_image_size(raw.relu(), images))


class Predicted(nn.Module):
    """Its one logit is that of the class that it predicts: the published code explains this class in each run."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, images):
        return self.inner(images).amax(dim=1, keepdim=True)


@over_layers
def test_diffmasks_grad_cam_over_mirrored_and_dimmed_images(published, make, layer):
    (vectors, images), model = published, Predicted(make()).eval()
    maps = cam.GradCam(model, f"inner.{layer}", aug_smooth=True)(images, torch.tensor([0, 0]))
    torch.testing.assert_close(maps[:, ::7, ::7], vectors["cam_aug_every7"], rtol=0, atol=5e-6)


@over_layers
def test_diffmasks_grad_cam_with_both_smoothings(published, make, layer):
    (vectors, images), model, layer = published, Predicted(make()).eval(), f"inner.{layer}"
    signed = both_signs(model, layer, images)
    ours = cam.GradCam(model, layer, eigen_smooth=True, aug_smooth=True)(images, torch.tensor([0, 0]))
    torch.testing.assert_close(signed[0].mean(dim=0), ours, rtol=0, atol=1e-6)
    for image in range(2):
        published_signs = [
            signs for signs, maps in mixtures(signed[:, :, image])
            if torch.allclose(maps[::7, ::7], vectors["cam_every7"][image], rtol=0, atol=5e-6)
            and torch.allclose(maps[100], vectors["cam_row100"][image], rtol=0, atol=5e-6)
        ]  # fmt: skip
        assert len(published_signs) == 1  # and some of them are the wrong ones, which the fixed sign is for
        assert any(published_signs[0])


def both_signs(model, layer, images):
    """The six runs' maps (sign, run, image, H, W) with each sign of the principal component, ours first."""
    runs = []
    for flipped, brightness in itertools.product((False, True), (0.9, 1.0, 1.1)):
        seen = brightness * (images.flip(3) if flipped else images)
        raw = cam.layer_grad_cam(model, layer, seen, torch.zeros(len(images), dtype=torch.int64), eigen_smooth=True)
        both = torch.stack([enlarged(sign * raw, images) for sign in (1, -1)])
        runs.append(both.flip(3) if flipped else both)
    return torch.stack(runs, dim=1)


def mixtures(signed):
    """Means over the runs of maps (sign, run, H, W) under every choice of signs."""
    for signs in itertools.product((0, 1), repeat=6):
        yield signs, torch.stack([signed[sign, run] for run, sign in enumerate(signs)]).mean(dim=0)


def enlarged(raw, images):
    return scaled(cam.to_image_size(scaled(raw.relu()), images))


def scaled(maps):
    maps = maps - maps.amin(dim=(1, 2), keepdim=True)
    return maps / (1e-7 + maps.amax(dim=(1, 2), keepdim=True))


def test_the_other_published_grad_cam():
    vectors, inner = golden("attributions", "diffmask"), vits.diffmask_vit()
    layer, targets = "model.vit.layers.1.layernorm_after", inner(vectors["images"]).argmax(dim=1)
    raw = cam.layer_grad_cam(inner, layer, vectors["images"], targets)
    torch.testing.assert_close(enlarged(raw, vectors["images"]), vectors["grad_cam.plain"], rtol=0, atol=1e-5)
    signed = both_signs(Predicted(inner).eval(), f"inner.{layer}", vectors["images"])
    for image, expected in enumerate(vectors["grad_cam"]):
        least = min(float((maps - expected).abs().max()) for _, maps in mixtures(signed[:, :, image]))
        assert least < 1e-5


class Patches(nn.Module):
    """Tokens as they come: three of the prefix, then a number for each patch that tells where it stands."""

    def forward(self, tokens):
        numbers = torch.arange(-3.0, 24)[None, :, None]
        return numbers.expand(len(tokens), -1, tokens.shape[2]) + 0 * tokens


def test_tokens_of_patches_stand_on_their_grid():
    model = vits.timm_vit(global_pool="avg", reg_tokens=2)
    model.blocks[1].norm2 = Patches()
    values, gradients = cam.activations(model, "blocks.1.norm2", some_images(), TARGETS)
    assert gradients.shape == values.shape == (2, 16, 4, 6)
    assert torch.equal(values[1, 5], torch.arange(24.0).reshape(4, 6))


CAMS = (cam.GradCam, cam.GradCamPlusPlus, cam.LayerCam, cam.EigenCam, cam.ScoreCam)


@pytest.mark.parametrize("factory", CAMS)
@pytest.mark.parametrize("name", ["ViTTiny", "timm mean of patches", "hf DINOv2 with registers"])
def test_every_cam_explains_tokens_and_leaves_no_trace(factory, name):
    model = vits.RECTANGULAR[name][0]()
    before = traces(model)
    layer = "model.dinov2_with_registers.encoder.layer.1.norm1" if name.startswith("hf") else "blocks.1.norm1"
    method = factory(model, layer)
    maps = method(some_images(), TARGETS)
    assert maps.shape == (2, 16, 24)
    assert torch.isfinite(maps).all()
    assert torch.equal(method(some_images(), TARGETS), maps)
    assert traces(model) == before


def test_what_is_no_grid_of_patches_is_refused():
    with pytest.raises(
        ModelError, match=r"'head': gives \(2, 5\); a map needs a layer with \(N, C, h, w\), or a vision"
    ):
        cam.GradCam(vits.timm_vit(), "head")(some_images(), TARGETS)
    dropped = nn.Sequential(nn.Conv2d(3, 5, 4, 4), nn.Flatten(2), Dropped(), nn.AdaptiveAvgPool1d(1), nn.Flatten())
    with pytest.raises(ModelError, match=r"'2': gives \(2, 5, 20\); a map needs .* set layout: tokens:HxW"):
        cam.GradCam(dropped, "2")(some_images(), TARGETS)


class Dropped(nn.Module):
    """Tokens (N, C, T) without the last four, which leaves no full grid."""

    def forward(self, tokens):
        return tokens[:, :, :-4]


@pytest.mark.parametrize(
    "make",
    [
        gradient.Gradient,
        gradient.InputXGradient,
        lambda model: gradient.IntegratedGradients(model, steps=3),
        lambda model: gradient.SmoothGrad(model, samples=2),
        lambda model: gradient.GradientShap(model, baselines=[0.0], samples=2),
        lambda model: perturbation.Occlusion(model, window=(8, 8)),
        lambda model: perturbation.Rise(model, masks=5, cells=3),
    ],
    ids=["Gradient", "InputXGradient", "IntegratedGradients", "SmoothGrad", "GradientShap", "Occlusion", "Rise"],
)
@pytest.mark.parametrize("name", ["ViTTiny", "hf DeiT"])
def test_methods_for_any_network_explain_transformers(make, name):
    maps = make(vits.RECTANGULAR[name][0]())(some_images(), TARGETS)
    assert maps.shape in {(2, 16, 24), (2, 3, 16, 24)}
    assert torch.isfinite(maps).all()
    assert (maps != 0).any()
