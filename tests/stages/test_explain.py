"""explain as a user types it: any picture, any method, files that can be read, and one line where it cannot be done."""

import os
import shutil
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from heatproof.methods import catalogue
from heatproof.methods.explainer import Explainer
from heatproof.models import Normalization, load
from heatproof.models.preparation import library_preparation
from heatproof.models.vit import Attention, ViTTiny
from heatproof.stages.explain import settable
from tests.end_to_end.conftest import heatproof

HALVES = Normalization((0.5,) * 3, (0.5,) * 3)
VIT = ("--model", "heatproof.models.vit.ViTTiny", "--mean", ".5,.5,.5", "--std", ".5,.5,.5")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Pictures of every kind, weights of a transformer of two blocks and 4 classes, and their names."""
    folder = tmp_path_factory.mktemp("explain")
    (folder / "pictures").mkdir()
    values = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    rgb = Image.fromarray(values)
    for mode, name in {
        "RGB": "rgb.png",
        "L": "grey.png",
        "P": "palette.png",
        "RGBA": "alpha.png",
        "CMYK": "cmyk.jpg",
        "LA": "greyalpha.png",
        "1": "bits.png",
    }.items():
        rgb.convert(mode).save(folder / "pictures" / name)
    Image.fromarray(values[:, :, 0].astype(np.uint16) * 257).save(folder / "pictures" / "deep.tif")
    Image.fromarray(values[:1, :1]).save(folder / "pictures" / "tiny.png")
    rgb.save(folder / "pictures" / "moving.gif", save_all=True, append_images=[Image.new("RGB", rgb.size)])
    torch.manual_seed(0)
    torch.save(ViTTiny(num_classes=4).state_dict(), folder / "vit.pt")
    (folder / "names.txt").write_text("horizontal\nvertical, upright\nfalling\nrising\n")
    return folder


def explain(folder, *arguments, pictures="pictures/rgb.png", method="gradient", vit=VIT):
    out = (
        "--weights",
        folder / "vit.pt",
        "--classes",
        folder / "names.txt",
        "--out",
        folder / "out",
        "--device",
        "cpu",
    )
    return heatproof("explain", folder / pictures, *vit, *out, *(("--method", method) if method else ()), *arguments)


def size(path):
    with Image.open(path) as picture:
        return picture.size


def test_every_kind_of_picture_is_explained_by_every_method_asked_for(folder, capsys):
    shutil.rmtree(folder / "out", ignore_errors=True)
    assert explain(folder, "--method", "intgrad", "--steps", "2", pictures="pictures") == 0
    shown = capsys.readouterr().out
    names = [path.stem for path in (folder / "pictures").iterdir()]
    assert len(names) == 10
    for name in names:
        for method in ("gradient", "integrated-gradients"):
            values = np.load(folder / "out" / f"{name}_{method}.npy")
            assert values.shape == (32, 32)
            assert values.dtype == np.float32
            assert size(folder / "out" / f"{name}_{method}.png") == (32, 32)
        assert size(folder / "out" / f"{name}_sheet.png")[0] > 3 * 240
        assert f"{name}_gradient.npy" in shown


def test_the_map_is_the_method_s_own_for_the_class_that_is_named(folder, capsys):
    assert explain(folder, "--target", "Upright", "--channel-reduction", "l2") == 0
    shown = capsys.readouterr().out
    assert "explained: 1 vertical, upright" in shown
    loaded = load(
        "heatproof.models.vit.ViTTiny", num_classes=4, pretrained_weights=folder / "vit.pt", normalization=HALVES
    )
    with Image.open(folder / "pictures" / "rgb.png") as picture:
        rgb = picture.resize((32, 32), Image.Resampling.BILINEAR)
    images = loaded.normalization(torch.from_numpy(np.array(rgb)).permute(2, 0, 1)[None] / 255)
    logits = loaded.module(images)[0]
    best = logits.softmax(0).max().item()
    assert f"{100 * best:5.1f} %  {int(logits.argmax())} " in shown
    bound = Explainer("gradient", catalogue.path_of("gradient"), {}, "l2").bind(loaded.module, {})
    expected = bound(images, torch.tensor([1]), torch.tensor([0])).maps[0]
    np.testing.assert_allclose(np.load(folder / "out" / "rgb_gradient.npy"), expected, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize(
    ("target", "told"),
    [
        ("rising - upright", "3 rising rather than 1 vertical, upright"),
        ("3 -1", "3 rising rather than 1 vertical, upright"),
        ("rising,0", "3 rising or 0 horizontal"),
        ("vertical, upright", "1 vertical, upright"),
    ],
)
def test_a_difference_of_classes_or_any_of_several_is_explained(folder, capsys, target, told):
    signed = {
        "gradient": ("--no-absolute", "--channel-reduction", "sum"),
        "gradmask": ("--masks-layer", "3"),
        "chefer": (),
    }
    for method, options in signed.items():
        assert explain(folder, "--target", target, *options, method=method) == 0
        assert f"explained: {told}\n" in capsys.readouterr().out
    if "-" in target:
        found = np.load(folder / "out" / "rgb_gradient.npy")
        maps = []
        for each in ("3", "1"):
            assert explain(folder, "--target", each, *signed["gradient"]) == 0
            maps.append(np.load(folder / "out" / "rgb_gradient.npy"))
        np.testing.assert_allclose(found, maps[0] - maps[1], rtol=0, atol=1e-5 * np.abs(maps[0]).max())


def test_the_output_of_a_regression_is_explained(folder, capsys):
    torch.manual_seed(0)
    torch.save(ViTTiny(num_classes=1, depth=2).state_dict(), folder / "regression.pt")
    command = ("explain", folder / "pictures" / "rgb.png", *VIT, "--out", folder / "out", "--device", "cpu")
    arch = "tests.stages.test_explain.regression"
    options = (
        "--model",
        arch,
        "--weights",
        folder / "regression.pt",
        "--method",
        "gradient",
        "--method",
        "rise",
        "--masks",
        "20",
    )
    assert heatproof(*command[:2], *options, *command[4:]) == 0
    shown = capsys.readouterr().out
    assert "explained: the output, " in shown
    assert "%" not in shown
    assert np.ptp(np.load(folder / "out" / "rgb_rise.npy")) > 0


def regression():
    """A network of one output."""
    return ViTTiny(num_classes=1, depth=2)


def test_a_picture_s_map_does_not_depend_on_the_others(folder):
    options = ("--samples", "2", "--target", "0")
    assert explain(folder, *options, pictures="pictures", method="smooth-grad") == 0
    together = np.load(folder / "out" / "rgb_smooth-grad.npy")
    assert explain(folder, *options, method="smoothgrad") == 0
    np.testing.assert_allclose(np.load(folder / "out" / "rgb_smooth-grad.npy"), together, rtol=1e-4, atol=1e-7)


def test_pictures_of_one_name_are_kept_apart(folder, capsys):
    (folder / "twins").mkdir()
    for name in ("rgb.png", "rgb.bmp"):
        with Image.open(folder / "pictures" / "rgb.png") as picture:
            picture.save(folder / "twins" / name)
    assert explain(folder, pictures="twins") == 0
    shown = capsys.readouterr().out
    assert "rgb_png_gradient.npy" in shown
    assert "rgb_bmp_gradient.npy" in shown


def test_help_tells_the_options_of_the_method_that_is_named(capsys):
    assert heatproof("explain", "--method", "intgrad", "--help") == 0
    shown = capsys.readouterr().out
    assert "--steps VALUE" in shown
    assert "heatproof explain cat.jpg" in shown


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pictures": "pictures/rbg.png"}, "rbg.png: no such file; did you mean 'rgb.png'?"),
        ({"pictures": "pipe.png"}, "pipe.png: picture cannot be read: it is a pipe or a device"),
        ({"pictures": "empty"}, "empty: no picture in this folder"),
        ({"pictures": "broken.png"}, "broken.png: picture cannot be read"),
        ({"pictures": "broken.jpg"}, "broken.jpg: picture cannot be read: image file is truncated"),
        ({"pictures": "nothing.png"}, "nothing.png: picture cannot be read: cannot identify image file"),
        ({"pictures": "floats.tif"}, "floats.tif: picture cannot be read: mode F (32 bits a pixel)"),
        ({"pictures": "vast.png"}, "vast.png: picture is too large: Image size (900000000 pixels) exceeds limit of"),
        ({"pictures": "large.png"}, "large.png: picture cannot be read: image file is truncated"),
        ({"method": "gradcamm"}, "there is no method 'gradcamm'; did you mean 'grad-cam'?"),
        ({"method": "r"}, "method 'r' may be random or rise; write more of it"),
        ({"method": "grad-cam"}, "grad-cam: needs --layer"),
        ({"method": "oracle"}, "oracle: needs to know where the object is"),
        ({"arguments": ("--stepps", "3"), "method": "intgrad"}, "unknown option '--stepps'; did you mean '--steps'?"),
        ({"arguments": ("--target", "4")}, "--target 4: the model has 4 classes (0 to 3)"),
        ({"arguments": ("--target", "rising - 3")}, "--target: the difference of class 3 and itself is 0"),
        ({"arguments": ("--target", "0,1,2,3")}, "--target: names all classes of the model"),
        ({"arguments": ("--target", "0, 7")}, "--target 7: the model has 4 classes (0 to 3)"),
        ({"arguments": ("--target", "rising - fallling")}, "no class has this name; did you mean 'falling'?"),
        ({"arguments": ("--target", "fallling")}, "no class has this name; did you mean 'falling'?"),
        ({"method": "rollout", "arguments": ("--discard-ratio", "1")}, "there is no method 'rollout'"),
        ({"method": "attention-rollout", "arguments": ("--discard-ratio", "1")}, "discard_ratio 1 must lie in [0, 1)"),
        ({"method": "gradient-rollout", "arguments": ("--discard-ratio", "-.5")}, "discard_ratio -0.5 must lie in"),
        ({"method": "attention-flow", "arguments": ("--head-fusion", "sum")}, "head_fusion 'sum' is unknown; known: mean"),
        ({"method": "grad-mask", "arguments": ("--masks-layer", "7")}, "masks_layer 7 does not divide the width 96; did you mean 6?"),
        ({"method": "transformer-attribution", "arguments": ("--form", "rolout")}, "did you mean 'rollout'?"),
        ({"method": "grad-cam", "arguments": ("--layer", "blocks.5.norm")}, "did you mean 'blocks.5.norm1'?"),
        ({"method": "grad-cam", "arguments": ("--layer", "blocks.5.norm1", "--layout", "nhwc")}, "layout 'nhwc' is unknown"),
        ({"method": "grad-cam", "arguments": ("--layer", "blocks.5.norm1", "--layout", "tokens:99x99")}, "tokens do not form 99x99"),
        ({"arguments": ("--weights", "nowhere.pt")}, "nowhere.pt: no such file of weights"),
        ({"arguments": ("--weights", "DEFAULT")}, "has no weights of its own; name a file with --weights FILE"),
        ({"arguments": ("--std", "0,1,1")}, "each std above 0"),
        ({"arguments": ("--mean", "x", "--std", "1")}, "argument --mean: 'x': give a number for each channel"),
        ({"arguments": ("--size", "big")}, "argument --size: 'big': give one side, such as 224"),
        ({"method": "smooth-grad", "arguments": ("--samples", "many")}, "option 'samples': 'many' should be a whole number"),
        ({"vit": VIT[:2]}, "vit.pt: its normalisation is unknown; set normalization: {mean: [...], std: [...]} (explain: --mean and --std)"),
        ({"vit": ("--model", "timm:vit_tinny_patch16_224")}, "did you mean 'vit_tiny_patch16_224'?"),
        ({"method": None}, "the following arguments are required: --method"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_one_line(folder, changes, message, capsys):
    broken_pictures(folder)
    assert explain(folder, *changes.get("arguments", ()), **{k: v for k, v in changes.items() if k != "arguments"}) == 2
    one_line(capsys.readouterr().err, message)


def one_line(error, message):
    assert error.count("\n") == 1
    assert error.startswith("heatproof: ")
    assert message in error


def broken_pictures(folder):
    (folder / "empty").mkdir(exist_ok=True)
    if not (folder / "pipe.png").exists():
        os.mkfifo(folder / "pipe.png")
    (folder / "broken.png").write_bytes((folder / "pictures" / "rgb.png").read_bytes()[:300])
    (folder / "broken.jpg").write_bytes((folder / "pictures" / "cmyk.jpg").read_bytes()[:2000])
    (folder / "nothing.png").write_bytes(b"")
    Image.new("F", (4, 4)).save(folder / "floats.tif")
    for name, side in (("vast.png", 30_000), ("large.png", 10_000)):  # headers alone: nothing of this size is made
        (folder / name).write_bytes(png_without_pixels(side))


def png_without_pixels(side):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")


def odd_vit(num_classes: int):
    """A transformer whose attention is of another kind."""

    class Odd(Attention):
        pass

    model = ViTTiny(num_classes, depth=2)
    model.blocks[1].attn = Odd(96, 3)
    return model


NO_VIT = [
    ("torchvision.models.squeezenet1_1", "SqueezeNet: is no vision transformer that is known"),
    ("tests.stages.test_explain.odd_vit", "attention: 'blocks.1.attn' is a tests.stages.test_explain."),
]


@pytest.mark.parametrize(("model", "message"), NO_VIT, ids=["squeezenet", "odd attention"])
@pytest.mark.parametrize("method", ["attention-rollout", "chefer", "legrad", "grad-mask", "transformer-attribution"])
def test_a_network_without_known_attention_is_told_what_fits_it(folder, model, message, method, capsys):
    vit = ("--model", model, *VIT[2:])
    assert explain(folder, "--weights", "random", "--out", folder / "none", method=method, vit=vit) == 2
    error = capsys.readouterr().err
    one_line(error, message)
    assert "methods.cam, methods.gradient and methods.perturbation fit any network" in error
    assert not (folder / "none").exists()


@pytest.mark.parametrize(
    ("model", "lacks"),
    [("timm:vit_tiny_patch16_224", "weights"), ("hf:google/vit-base-patch16-224", "image processor")],
)
def test_without_network_the_library_s_weights_are_one_line(folder, tmp_path, capfd, monkeypatch, model, lacks):
    asked = []

    def refuse(address, timeout):
        asked.append(address)
        raise OSError("no route to host")

    pytest.importorskip("transformers")
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr("socket.create_connection", refuse)
    monkeypatch.setattr("urllib.request.getproxies", dict)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    picture = folder / "pictures" / "rgb.png"
    assert heatproof("explain", picture, "--model", model, "--method", "gradient", "--out", folder / "out") == 2
    error = capfd.readouterr().err
    assert f"{model}: its {lacks} could not be had (huggingface.co cannot be reached: no route to host); " in error
    assert error.count("\n") == 1
    assert asked == [("huggingface.co", 443)]  # asked once, not again and again
    assert constants.HF_HUB_OFFLINE is False


def test_a_library_s_model_is_given_its_library_s_pictures():
    timm, torchvision = (library_preparation(a) for a in ("timm:vit_tiny_patch16_224", "torchvision.models.resnet18"))
    picture = Image.fromarray(np.random.default_rng(1).integers(0, 256, (300, 500, 3), dtype=np.uint8))
    from torchvision.models import ResNet18_Weights

    expected = ResNet18_Weights.DEFAULT.transforms()(picture)
    torch.testing.assert_close(
        torchvision.normalization(torchvision.pixels(picture)[None])[0], expected, atol=1e-5, rtol=0
    )
    assert timm.pixels(picture).shape == (3, 224, 224)
    assert timm.normalization.mean == (0.5, 0.5, 0.5)
    assert timm.class_names[281].startswith("tabby")
    assert torchvision.class_names[281] == "tabby"
    assert library_preparation("heatproof.models.vit.ViTTiny") is None


def test_every_method_is_found_by_its_name_and_its_options_collide_with_none_of_the_command(capsys):
    assert heatproof("explain", "--help") == 0
    own = {word for word in capsys.readouterr().out.split("Each picture leaves")[0].split() if word.startswith("--")}
    for name, path in catalogue.factories().items():
        assert catalogue.path_of(name) == catalogue.path_of(name.replace("-", "")) == path
        assert not own & {f"--{catalogue.dashed(option)}" for option in settable(path)}, name
    assert {"grad-cam", "lrp", "rise", "random"} <= catalogue.factories().keys()
    assert catalogue.path_of("tests.stages.test_explain.norm") == "tests.stages.test_explain.norm"


def norm(model: nn.Module, image, label, power=1.0):
    """A function of a user's own."""
    return (image.norm(dim=1) ** power)[0]


def test_a_method_of_one_s_own_is_named_by_its_path(folder):
    assert explain(folder, "--power", "2", method="tests.stages.test_explain.norm") == 0
    assert np.load(folder / "out" / "rgb_norm.npy").min() >= 0
