"""Class activation maps of layers in other layouts than (N, C, h, w): Swin's published maps, and equal maps in any layout."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from heatproof.errors import ModelError
from heatproof.methods import cam

GOLDEN = Path(__file__).parents[1] / "golden" / "recent"


def arrays(name):
    with np.load(GOLDEN / f"{name}.npz") as file:
        return {key: torch.from_numpy(file[key]) for key in file if file[key].dtype.kind in "fiu"}


def swin(library):
    if library == "timm":
        kind = pytest.importorskip("timm").models.swin_transformer.SwinTransformer
    else:
        from torchvision.models.swin_transformer import SwinTransformer as kind
    with np.load(GOLDEN / f"swin_{library}_weights.npz") as file:
        options = json.loads(str(file["config_json"]))
    model = kind(**options)
    state = {key.removeprefix("state/"): value for key, value in arrays(f"swin_{library}_weights").items()}
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected
    assert all("relative_position_index" in key or "attn_mask" in key for key in missing)
    return model.eval()


LAYERS = {
    ("torchvision", "norm1"): "features.3.1.norm1",
    ("torchvision", "block"): "features.3.1",
    ("torchvision", "stage1"): "features.1.1",  # 16 x 16 places, 16 channels
    ("timm", "norm1"): "layers.1.blocks.1.norm1",
    ("timm", "norm2"): "layers.1.blocks.1.norm2",  # tokens
    ("timm", "block"): "layers.1.blocks.1",
}
over_layers = pytest.mark.parametrize(
    ("library", "layer", "name"), [(*k, v) for k, v in LAYERS.items()], ids=map(" ".join, LAYERS)
)


@over_layers
def test_published_maps_of_swin(library, layer, name):
    vectors, model = arrays(f"swin_{library}"), swin(library)
    images, targets = vectors["x"], vectors["class"]

    def close(found, key, tolerance):
        torch.testing.assert_close(found, vectors[key].to(found), rtol=0, atol=tolerance)

    close(model(images).detach(), "logits", 3e-5)
    values, gradients = cam.activations(model, name, images, targets)
    close(values, f"{layer}_activations", 2e-4)
    close(gradients, f"independent_{layer}_gradients", 4e-7)
    raw = cam.layer_grad_cam(model, name, images, targets)
    close(raw, f"{layer}_gradcam_raw", 1e-6)
    maps = cam.GradCam(model, name)(images, targets)
    torch.testing.assert_close(maps, cam.to_image_size(raw.relu(), images))
    close(scaled(cam.to_image_size(scaled(raw.relu()), images)), f"{layer}_gradcam", 4e-5)
    layer_cam = vectors[f"{layer}_layercam_raw"].relu()
    torch.testing.assert_close(
        cam.LayerCam(model, name)(images, targets), cam.to_image_size(layer_cam, images), rtol=0, atol=2e-6
    )
    eigen = cam.EigenCam(model, name)(images, targets)
    torch.testing.assert_close(eigen, projected(vectors[f"{layer}_activations"], images), rtol=1e-3, atol=1e-3)


def scaled(maps):
    maps = maps - maps.amin(dim=(1, 2), keepdim=True)
    return maps / (1e-7 + maps.amax(dim=(1, 2), keepdim=True))


def projected(activations, images):
    """The published activations, projected on their first direction (not centred), enlarged."""
    maps = []
    for values in activations.double().flatten(2).mT.numpy():
        projection = values @ np.linalg.svd(values)[2][0]
        maps.append(torch.from_numpy(projection * np.sign(projection.sum())).reshape(activations.shape[2:]))
    return cam.to_image_size(torch.stack(maps).float(), images)


class Arranged(nn.Module):
    """A convolution, its output in another arrangement as layer "layer", and a head that reads it back."""

    def __init__(self, there, back, channels):
        super().__init__()
        self.conv, self.relu, self.layer = nn.Conv2d(3, channels, 4, 4), nn.ReLU(), nn.Identity()
        self.there, self.back = there, back
        self.head = nn.Linear(channels, 4)

    def forward(self, images):
        values = self.relu(self.conv(images))
        values = self.back(self.layer(self.there(values)), values.shape)
        return self.head((values * values.roll(1, 2)).mean(dim=(2, 3)))


ARRANGEMENTS = {
    "(N, h, w, C)": (lambda x: x.permute(0, 2, 3, 1), lambda x, shape: x.permute(0, 3, 1, 2)),
    "(N, T, C)": (lambda x: x.flatten(2).mT, lambda x, shape: x.mT.reshape(shape)),
    "(N, 2 + T, C)": (
        lambda x: torch.cat([x.new_ones(len(x), 2, x.shape[1]), x.flatten(2).mT], dim=1),
        lambda x, shape: x[:, 2:].mT.reshape(shape),
    ),
    "a tuple": (lambda x: (x.permute(0, 2, 3, 1), None), lambda x, shape: x[0].permute(0, 3, 1, 2)),
    "a dict": (
        lambda x: {"pooled": x.mean(dim=(2, 3)), "last_hidden_state": x.flatten(2).mT},
        lambda x, shape: x["last_hidden_state"].mT.reshape(shape),
    ),
}
CAMS = [cam.GradCam, cam.GradCamPlusPlus, cam.LayerCam, cam.EigenCam, cam.ScoreCam, cam.GuidedGradCam]


@pytest.mark.parametrize("method", CAMS)
@pytest.mark.parametrize("arrangement", ARRANGEMENTS)
@pytest.mark.parametrize(("count", "size", "channels"), [(2, (48, 32), 5), (1, (24, 24), 6), (2, (20, 36), 9)])
def test_the_same_activations_give_the_same_map(method, arrangement, count, size, channels):
    torch.manual_seed(0)
    model = Arranged(*ARRANGEMENTS[arrangement], channels).eval()
    images, targets = torch.randn(count, 3, *size), torch.tensor([2, 1][:count])
    wanted = method(model, layer="relu")(images, targets)
    assert wanted.abs().max() > 0
    torch.testing.assert_close(method(model, layer="layer")(images, targets), wanted, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_the_same_map_in_other_precisions(dtype):
    torch.manual_seed(0)
    model = Arranged(*ARRANGEMENTS["(N, h, w, C)"], 6).eval().to(dtype)
    images, targets = torch.randn(2, 3, 24, 24, dtype=dtype), torch.tensor([2, 1])
    wanted = cam.GradCam(model, layer="relu")(images, targets)
    torch.testing.assert_close(cam.GradCam(model, layer="layer")(images, targets), wanted, rtol=1e-2, atol=1e-5)


class Opaque(torch.autograd.Function):
    """An operation whose output PyTorch knows nothing of."""

    @staticmethod
    def forward(context, values):
        return torch.from_numpy(values.detach().numpy().copy())

    @staticmethod
    def backward(context, gradient):
        return gradient


OPAQUE = {
    "channels_last": (lambda x: Opaque.apply(x.permute(0, 2, 3, 1)), lambda x, shape: x.permute(0, 3, 1, 2)),
    "channels_first": (Opaque.apply, lambda x, shape: x),
    "tokens": (lambda x: Opaque.apply(x.flatten(2).mT), lambda x, shape: x.mT.reshape(shape)),
    "tokens:6x6": (lambda x: Opaque.apply(x.flatten(2).mT), lambda x, shape: x.mT.reshape(shape)),
}


@pytest.mark.parametrize("method", CAMS)
@pytest.mark.parametrize("layout", OPAQUE)
def test_a_layout_that_cannot_be_found_is_asked_for_and_taken(method, layout):
    torch.manual_seed(0)
    model = Arranged(*OPAQUE[layout], 6).eval()
    images, targets = torch.randn(2, 3, 24, 24), torch.tensor([2, 1])
    if method is cam.GuidedGradCam:  # its guided gradients see no more of the operation than the layout does
        with pytest.raises(ModelError, match="GuidedBackprop: has no rule for the autograd function 'Opaque'"):
            method(model, layer="layer", layout=layout)(images, targets)
        return
    with pytest.raises(ModelError, match=r"^layer 'layer': gives \(2, .* set layout: [^\n]*$"):
        method(model, layer="layer")(images, targets)
    wanted = method(model, layer="relu")(images, targets)
    torch.testing.assert_close(
        method(model, layer="layer", layout=layout)(images, targets), wanted, rtol=1e-5, atol=1e-7
    )
