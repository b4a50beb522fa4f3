"""Masker networks: the published numbers and keys, every option, any classifier, and files."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from heatproof.errors import InputError, MissingInputError, ModelError
from heatproof.models.masker import (
    Masker,
    MaskerForm,
    binary_gumbel,
    discovered,
    tapped,
)
from heatproof.models.masker_files import SavedMasker, read_masker, read_published
from heatproof.models.resnet_cifar import NarrowResNet8
from heatproof.models.vit import ViTTiny
from tests.models.closed_formula import filled, of_shape

GOLDEN = Path(__file__).parents[1] / "golden" / "casme"
CHANNELS = (8, 16, 24, 32, 40)
SIZE = (64, 96)


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN / "masker.npz") as file:
        return {name: torch.from_numpy(file[name]) for name in file}


def form(layers, **options):
    return MaskerForm(
        taps=tuple(f"layer{i}" for i in layers),
        channels=tuple(CHANNELS[i] for i in layers),
        indices=tuple(layers),
        width=6,
        **options,
    )


def published(golden, tag, layers, weights=None, **options):
    """A masker with the weights of a tag, in eval mode, and the activations that it reads."""
    masker = Masker(form(layers, **options))
    prefix = f"{weights or tag}/w/"
    masker.load_state_dict({k.removeprefix(prefix): v for k, v in golden.items() if k.startswith(prefix)}, strict=True)
    return masker.eval(), [golden[f"act{i}"] for i in layers]


def close(found, wanted, tolerance=1e-5):
    torch.testing.assert_close(found, wanted[:, 0] if wanted.ndim == 4 else wanted, rtol=0, atol=tolerance)


LAYERS = {"all": (0, 1, 2, 3, 4), "34": (3, 4), "4": (4,), "012": (0, 1, 2)}


@pytest.mark.parametrize(("tag", "layers"), LAYERS.items(), ids=LAYERS)
def test_masks_are_those_of_the_published_network(golden, tag, layers):
    masker, activations = published(golden, tag, layers)
    close(masker(activations, SIZE), golden[f"{tag}/eval"])
    close(masker.enlarged(masker.logits(activations, SIZE), SIZE), golden[f"{tag}/logits"])
    close(masker.train()(activations, SIZE), golden[f"{tag}/train"])
    if tag == "34":
        for name, value in masker.state_dict().items():
            torch.testing.assert_close(value, golden[f"34/w_after_train/{name}"], rtol=0, atol=1e-5)


def test_the_last_enlargement_can_be_bilinear(golden):
    masker, activations = published(golden, "34_bilinear", (3, 4), weights="34", upsample="bilinear")
    close(masker(activations, SIZE), golden["34_bilinear/eval"])


def test_a_wanted_area_and_a_class_are_further_channels_in_this_order(golden):
    area, classes = golden["34_prob/use_p"], golden["34_class/class_ids"]
    masker, activations = published(golden, "34_prob", (3, 4), takes_area=True)
    close(masker(activations, SIZE, areas=area), golden["34_prob/eval"])
    close(masker(activations, SIZE, areas=torch.tensor([0.3])), golden["34_prob/eval_scalar_0.3"])
    table = {"class_module.embedding.weight": of_shape("class_module.embedding.weight", (1000, 64))}
    for tag, options in {"34_class": {}, "34_both": {"takes_area": True}}.items():
        masker = Masker(form((3, 4), classes=1000, **options)).eval()
        weights = {k.removeprefix(f"{tag}/w/"): v for k, v in golden.items() if k.startswith(f"{tag}/w/")}
        masker.load_state_dict(weights | table, strict=True)
        areas = area if options else None
        close(masker(activations, SIZE, areas=areas, classes=classes), golden[f"{tag}/eval"])


@pytest.mark.parametrize("mode", ["hard", "soft", "sigmoid", "logits"])
def test_the_gumbel_head_in_all_its_modes(golden, mode):
    masker, activations = published(golden, "gumbel", (3, 4), gumbel=mode)
    close(masker(activations, SIZE), golden[f"gumbel/{mode}/eval"])
    if mode in ("hard", "soft"):
        masks = masker.train()(activations, SIZE, noise=golden["gumbel/uniform_noise"])
        close(masks, golden[f"gumbel/{mode}/train"], 1e-4)


def test_the_binary_gumbel_softmax_and_its_straight_through_gradient(golden):
    logits, noise = golden["bgs/logits"].clone().requires_grad_(), golden["bgs/uniform_noise"]
    close(binary_gumbel(logits, noise, 0.5, hard=False).detach(), golden["bgs/soft_out_tau0.5"])
    hard = binary_gumbel(logits, noise, 0.5, hard=True)
    close(hard.detach(), golden["bgs/hard_out_tau0.5"])
    (gradient,) = torch.autograd.grad((hard * golden["bgs/cotangent"]).sum(), logits)
    close(gradient, golden["bgs/grad"])


def test_the_published_size_with_weights_by_formula():
    masker = Masker(MaskerForm(taps=("layer3", "layer4"), channels=(1024, 2048), indices=(3, 4))).eval()
    filled(masker, gain=1.0)
    u = [(of_shape(f"act{i}", shape, gain=np.sqrt(np.prod(shape[1:]) / 3)).double() + 1).float()
         for i, shape in ((3, (2, 1024, 14, 14)), (4, (2, 2048, 7, 7)))]  # fmt: skip
    with np.load(GOLDEN / "masker_full.npz") as file, torch.no_grad():
        logits = masker.logits(u, (224, 224))
        close(logits, torch.from_numpy(file["logits_56"]), 1e-4)
        close(masker.masked(logits), torch.from_numpy(file["mask_56"]), 1e-4)
    assert sum(p.numel() for p in masker.parameters()) == 198_017


KEYS = json.loads((GOLDEN / "masker_state_dict.json").read_text())


@pytest.mark.parametrize("tag", KEYS)
def test_every_published_list_of_keys_is_ours(tag):
    told = {"takes_area": "prob" in tag, "classes": 1000 if "class" in tag or "both" in tag else None}
    layers = (3, 4) if tag.startswith(("34", "gumbel")) else (0, 1, 2, 3, 4)
    channels = (64, 256, 512, 1024, 2048)
    masker = Masker(
        MaskerForm(
            taps=tuple(map(str, layers)), channels=tuple(channels[i] for i in layers), indices=layers,
            gumbel="hard" if "gumbel" in tag else None, **told,
        )
    )  # fmt: skip
    ours = [
        (name, list(value.shape), str(value.dtype).removeprefix("torch."))
        for name, value in masker.state_dict().items()
    ]
    assert sorted(ours) == sorted((entry["key"], entry["shape"], entry["dtype"]) for entry in KEYS[tag])


# --- any classifier


def run(classifier, images, **options):
    form = discovered(classifier, images, MaskerForm(**options))
    masker = Masker(form).eval()
    with torch.no_grad(), tapped(form.layouts_in(classifier), images) as activations:
        classifier(images)
        return form, masker(activations(), images.shape[2:])


def test_channels_are_found_by_a_dry_pass_and_any_size_will_do():
    form, masks = run(NarrowResNet8(5).eval(), torch.rand(2, 3, 30, 45), taps=("relu", "layer2.0.relu1"), stride=4)
    assert form.channels == (16, 16)
    assert masks.shape == (2, 30, 45)
    cells = masks[:, ::4, ::4]
    assert torch.equal(cells.repeat_interleave(4, 1).repeat_interleave(4, 2)[:, :30, :45], masks)


def test_tokens_of_a_vision_transformer_stand_on_their_grid():
    form, masks = run(ViTTiny(num_classes=3).eval(), torch.rand(2, 3, 32, 32), taps=("blocks.1", "blocks.3"))
    assert form.channels == (ViTTiny(num_classes=3).head.in_features,) * 2
    assert masks.shape == (2, 32, 32)


class ChannelsLast(nn.Module):
    """Gives the same activations as "first", (N, C, h, w), and as "last", (N, h, w, C); C = h for images of 24 x 24."""

    def __init__(self):
        super().__init__()
        self.conv, self.first, self.last, self.head = nn.Conv2d(3, 6, 4, 4), nn.ReLU(), nn.Identity(), nn.Linear(6, 4)

    def forward(self, images):
        return self.head(self.last(self.first(self.conv(images)).permute(0, 2, 3, 1)).mean(dim=(1, 2)))


@pytest.mark.parametrize("size", [(24, 24), (48, 32), (20, 36)])
def test_a_tap_gives_the_same_masks_in_any_layout(size):
    torch.manual_seed(0)
    classifier, images = ChannelsLast().eval(), torch.rand(2, 3, *size)
    masks = {}
    for layouts in ((), ("channels_last",)):
        for tap in ("first", "last"):
            if layouts and tap == "first":
                continue
            torch.manual_seed(0)
            form, masks[tap, layouts] = run(classifier, images, taps=(tap,), layouts=layouts)
            assert form.channels == (6,)
    assert torch.equal(masks["last", ()], masks["first", ()])
    assert torch.equal(masks["last", ("channels_last",)], masks["first", ()])


def test_layouts_are_kept_with_the_masker_and_checked(tmp_path):
    form = MaskerForm(taps=("a", "b"), channels=(2, 3), layouts=("channels_last", None))
    saved = SavedMasker(form, Masker(form).state_dict(), "", "")
    torch.save(saved.content(), tmp_path / "masker.pth")
    assert read_masker(tmp_path / "masker.pth").form == form
    with pytest.raises(InputError, match="masker: tap 'b': layout 'NHWC' is unknown"):
        MaskerForm(taps=("a", "b"), layouts=(None, "NHWC"))
    with pytest.raises(InputError, match="masker: 2 taps, 1 layouts; one each"):
        MaskerForm(taps=("a", "b"), layouts=(None,))


def test_the_taps_are_detached_and_nothing_is_left_behind():
    classifier, images = NarrowResNet8(5), torch.rand(2, 3, 32, 32)
    with tapped(MaskerForm(taps=("relu", "layer1")).layouts_in(classifier), images) as activations:
        classifier(images)
        assert [values.requires_grad for values in activations()] == [False, False]
    assert not any(module._forward_hooks for module in classifier.modules())


def test_a_tap_that_does_not_exist_names_the_nearest():
    with pytest.raises(
        ModelError, match=r"layer 'layer3.0.rleu': NarrowResNet8 has no such layer; did you mean 'layer3.0.relu'"
    ):
        run(NarrowResNet8(5), torch.rand(1, 3, 32, 32), taps=("layer3.0.rleu",))


def test_a_tap_without_places_is_refused():
    with pytest.raises(ModelError, match=r"layer 'linear': gives \(1, 5\); a map needs a layer with \(N, C, h, w\)"):
        run(NarrowResNet8(5), torch.rand(1, 3, 32, 32), taps=("linear",))


@pytest.mark.parametrize("told", [{"takes_area": True}, {"classes": 4}, {"takes_area": True, "classes": 4}], ids=str)
def test_a_raw_tap_takes_area_and_class_too(told):
    """In the published code this combination cannot run."""
    masker = Masker(MaskerForm(taps=("a", "b"), channels=(3, 5), indices=(0, 1), **told)).eval()
    activations = [torch.rand(2, 3, 4, 4), torch.rand(2, 5, 2, 2)]
    given = {"areas": torch.tensor([0.1, 0.9]), "classes": torch.tensor([0, 3])}
    wanted = {name: given[name] for name, key in (("areas", "takes_area"), ("classes", "classes")) if key in told}
    assert masker(activations, (16, 16), **wanted).shape == (2, 16, 16)


@pytest.mark.parametrize(
    ("options", "given", "message"),
    [
        ({"takes_area": True}, {}, r"it was trained with a wanted area; give one \(use_p\)"),
        ({"classes": 4}, {}, "it was trained with the class; give one for each image"),
        ({"classes": 4}, {"classes": torch.tensor([1, 4])}, r"class 4: it knows 4 \(0 to 3\)"),
    ],
)
def test_what_a_masker_must_be_told(options, given, message):
    masker = Masker(MaskerForm(taps=("a",), channels=(3,), **options)).eval()
    with pytest.raises(InputError, match=message):
        masker([torch.rand(2, 3, 4, 4)], (16, 16), **given)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"taps": ()}, "name one layer or more, each once"),
        ({"taps": ("a", "a")}, "name one layer or more, each once"),
        ({"taps": ("a",), "channels": (1, 2)}, "1 taps, 2 channels, 1 indices; one each"),
        ({"taps": ("a",), "upsample": "cubic"}, "upsample 'cubic': must be one of nearest, bilinear"),
        ({"taps": ("a",), "gumbel": "wet"}, "gumbel 'wet': must be one of"),
        ({"taps": ("a",), "temperature": -1.0}, "temperature -1.0: must be above 0"),
    ],
)
def test_a_form_that_cannot_be(options, message):
    with pytest.raises(InputError, match=message):
        MaskerForm(**options)


# --- files


@pytest.fixture
def saved():
    form = MaskerForm(taps=("relu", "layer1.0.relu"), channels=(16, 16), upsample="bilinear", gumbel="soft")
    return SavedMasker(form, Masker(form).state_dict(), "aa", "bb")


def test_a_saved_masker_comes_back(saved, tmp_path):
    torch.save(saved.content(), tmp_path / "masker.pth")
    back = read_masker(tmp_path / "masker.pth")
    assert (back.form, back.started_from, back.classifier_sha256, back.classifier) == (saved.form, "aa", "bb", None)
    assert all(torch.equal(back.state[name], value) for name, value in saved.state.items())


def test_files_that_are_no_masker(saved, tmp_path):
    path = tmp_path / "masker.pth"
    with pytest.raises(
        MissingInputError, match=r"no such masker; correct the path, train one \(train-masker\), or make it of"
    ):
        read_masker(path)
    torch.save({"a": torch.zeros(1)}, path)
    with pytest.raises(ModelError, match=r"masker.pth: is no masker"):
        read_masker(path)
    torch.save({"state_dict_masker": {}}, path)
    with pytest.raises(ModelError, match="a published checkpoint: make a masker of it with heatproof import-masker"):
        read_masker(path)
    path.write_bytes(b"PK\x03\x04 cut short")
    with pytest.raises(ModelError, match="is no file of weights, or a damaged one"):
        read_masker(path)
    saved.state["final.conv.weight"][0] = float("nan")
    with pytest.raises(ModelError, match=r"final.conv.weight holds NaN or infinity"):
        saved.build("x.pth")


def checkpoint(path, tag="34", prefix="", key="state_dict_masker", **changes):
    """A checkpoint as the published code writes it, with the weights of the golden set's formula."""
    state = {e["key"]: of_shape(e["key"], tuple(e["shape"])) for e in KEYS[tag]} | changes.pop("weights", {})
    for name in changes.pop("without", ()):
        del state[name]
    told = {
        "masker_use_layers": "3,4", "upsample": "nearest", "add_prob_layers": "prob" in tag, "apply_gumbel_tau": 0.1,
        "gumbel_output_mode": "hard",
    }  # fmt: skip
    content = {
        "epoch": 60, key: {prefix + name: value for name, value in state.items()},
        "state_dict_classifier": {prefix + "conv1.weight": torch.ones(1)}, "optimizer_masker": {"state": {}}, "args": told | changes,
    }  # fmt: skip
    torch.save(content, path)
    return path


@pytest.mark.parametrize("tag", KEYS)
def test_a_published_checkpoint_loads_strictly(tag, tmp_path):
    layers = "0,1,2,3,4" if tag == "all" else "3,4"
    saved, classifier = read_published(checkpoint(tmp_path / "fix.chk", tag, masker_use_layers=layers))
    masker = saved.build("x")
    assert [(k, v.shape) for k, v in masker.state_dict().items()] == [
        (e["key"], torch.Size(e["shape"])) for e in KEYS[tag]
    ]
    assert saved.form.taps == (("maxpool", "layer1", "layer2") if tag == "all" else ()) + ("layer3", "layer4")
    assert saved.form.takes_area == ("prob" in tag)
    assert classifier == {"conv1.weight": torch.ones(1)}


def test_old_and_wrapped_checkpoints_and_all_options_load(tmp_path):
    path = checkpoint(tmp_path / "a.chk", "34_gumbel", key="state_dict_decoder", prefix="module.", upsample="bilinear",
                      gumbel_output_mode="soft", apply_gumbel_tau=0.5)  # fmt: skip
    form = read_published(path)[0].form
    assert (form.upsample, form.gumbel, form.temperature, form.width) == ("bilinear", "soft", 0.5, 64)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"without": ["conv1x1_4.1.bias"]}, "the file has no conv1x1_4.1.bias"),
        ({"weights": {"extra.weight": torch.ones(1)}}, "the model has no extra.weight"),
        (
            {"weights": {"conv1x1_4.1.bias": torch.ones(5)}},
            r"conv1x1_4.1.bias has shape \(5,\) in the file and \(64,\)",
        ),
        ({"masker_use_layers": "3"}, "its keys are not those of a masker of layers 3"),
        ({"key": "state_dict"}, "is no checkpoint of a masker: state_dict_masker and state_dict_classifier"),
    ],
)
def test_weights_with_other_keys_name_the_first_that_differs(changes, message, tmp_path):
    with pytest.raises(ModelError, match=message):
        read_published(checkpoint(tmp_path / "fix.chk", **changes))


def test_a_missing_checkpoint_says_where_it_comes_from_and_its_licence(tmp_path):
    with pytest.raises(
        ModelError, match=r"fix.chk: no such checkpoint; .*zphang/saliency_investigation \(BSD-3-Clause\)"
    ):
        read_published(tmp_path / "fix.chk")


DAMAGE = {
    "no form": (lambda content: content.pop("form"), "KeyError: 'form'"),
    "no weights": (lambda content: content.pop("masker"), "KeyError: 'masker'"),
    "a form that is none": (lambda content: content.update(form=[1]), "TypeError: "),
    "an option of later": (lambda content: content["form"].update(later=1), "unexpected keyword argument 'later'"),
    "a width in words": (lambda content: content["form"].update(width="x"), "width: 'x' must be an integer"),
    "no stride": (lambda content: content["form"].update(stride=0), "stride: 0 must lie between 1 and"),
    "weights in words": (lambda content: content.update(masker="abc"), "weights that are no dict of tensors"),
    "a number as weights": (
        lambda content: content["masker"].update({"final.0.bias": 3.0}),
        "weights that are no dict of tensors",
    ),
    "a classifier in words": (
        lambda content: content.update(classifier={"a": "b"}),
        "weights that are no dict of tensors",
    ),
}


@pytest.mark.parametrize(("damage", "message"), DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_masker_is_one_line(saved, tmp_path, damage, message):
    content = saved.content()
    content["masker"] = dict(content["masker"])
    damage(content)
    torch.save(content, tmp_path / "masker.pth")
    with pytest.raises(ModelError, match=rf"masker\.pth: is a damaged masker \(.*{message}.*; make it again"):
        read_masker(tmp_path / "masker.pth")


@pytest.mark.parametrize(
    "changes",
    [
        {"state_dict_masker": {}},
        {"state_dict_masker": "x"},
        {"state_dict_masker": {"conv1x1_x.0.weight": torch.zeros(1)}},
        {"state_dict_masker": {"conv1x1_3.0.weight": torch.zeros(1), "final.0.weight": torch.zeros(1)}},
        {"state_dict_classifier": {"a": 3}},
        {"args": {"masker_use_layers": "x,y"}},
        {"args": 5},
    ],
    ids=str,
)
def test_a_published_checkpoint_of_another_form_is_one_line(saved, tmp_path, changes):
    content = {"state_dict_masker": saved.state, "state_dict_classifier": {"a": torch.zeros(1)}, "args": {}}
    torch.save(content | changes, tmp_path / "x.chk")
    with pytest.raises(ModelError, match=r"x\.chk: (is a damaged checkpoint of a masker|its keys are not those of)"):
        read_published(tmp_path / "x.chk")
