"""Fills by networks: against published code, and what holds for all of them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from heatproof import plugins, removal
from heatproof.errors import InputError, MissingInputError, ModelError, PluginError
from heatproof.models.inpainting import CaGanGenerator, CnnInfiller, DfNetGenerator, GatedUNet, PartialConvUNet
from heatproof.removal.inpainting import IMAGENET, NormalisedInfill
from tests.models import closed_formula

GOLDEN = Path(__file__).parents[1] / "golden" / "casme" / "infillers.npz"
NETWORKS = {
    "CaGan": (CaGanGenerator, 1.2),
    "DfNet": (DfNetGenerator, 1.4),
    "PartialConv": (lambda: PartialConvUNet(4), 1.4),
    "Cnn": (CnnInfiller, 1.0),
    "LearnedInfill": (GatedUNet, 1.0),
}
OPTIONS = {"PartialConv": {"levels": 4}, "DfNet": {"fit": "resize"}}


@pytest.fixture(scope="session")
def weights(tmp_path_factory):
    """A file of weights for each network, by the closed formula."""
    folder = tmp_path_factory.mktemp("weights")
    for name, (build, gain) in NETWORKS.items():
        torch.save(closed_formula.state(build(), gain), folder / f"{name}.pth")
    return lambda name: str(folder / f"{name}.pth")


@pytest.fixture(scope="session")
def fills(weights):
    """Each fill, made once."""
    found = {}
    for name in NETWORKS:
        option = "checkpoint" if name == "LearnedInfill" else "weights"
        found[name] = removal.build_fill(name, **{option: weights(name)}, **OPTIONS.get(name, {}))
    return found


per_network = pytest.mark.parametrize("name", NETWORKS)


def batch(images=2, size=(24, 20), seed=0):
    rng = np.random.default_rng(seed)
    densities = np.linspace(0.1, 0.6, images)[:, None, None]
    removed = rng.random((images, *size)) < densities
    return torch.from_numpy(rng.random((images, 3, *size), dtype=np.float32)), torch.from_numpy(removed)


# --- published code


@pytest.fixture(scope="module")
def published():
    with np.load(GOLDEN) as file:
        golden = {key: torch.from_numpy(np.asarray(file[key])) for key in file.files}

    def enlarged(small, times):
        return small.float().repeat_interleave(times, dim=-2).repeat_interleave(times, dim=-1)

    golden["images"] = enlarged(golden["x28"], 8)
    golden["soft"] = enlarged(golden["mask56"], 4)[:, None]
    golden["hard"] = enlarged(golden["hard_mask_rule_gt_0.3"], 4)[:, None]
    return golden


def difference(found, golden, key):
    """Largest difference of the first image, and of all."""
    apart = (found[..., 3::8, 3::8] - golden[key]).abs()
    return apart[0].max().item(), apart.max().item()


def generated(fill, golden, kept):
    """What a fill makes of images of which a soft mask is kept, in the code's normalised space."""
    with torch.inference_mode():
        return NormalisedInfill(fill, IMAGENET).generate(golden["images"] * kept, 1 - kept)


def composed(picture, golden, kept):
    return golden["images"] * kept + picture * (1 - kept)


PUBLISHED = {"ca": ("CaGan", 5e-3), "dfn": ("DfNet", 1e-3)}


@pytest.mark.parametrize("kind", ["soft", "hard"])
@pytest.mark.parametrize(("key", "case"), PUBLISHED.items(), ids=PUBLISHED)
def test_generators_fill_as_the_published_wrappers(key, case, kind, published, weights):
    name, tolerance = case
    options = {"weights": weights(name), **OPTIONS.get(name, {})}
    mask = published[kind]
    out = generated(removal.build_fill(name, compat="mask_out", **options), published, 1 - mask)
    assert difference(out, published, f"{key}/{kind}_out/generated_sub8")[1] < tolerance
    assert difference(composed(out, published, 1 - mask), published, f"{key}/{kind}_out/composed_sub8")[1] < tolerance
    wrong = generated(removal.build_fill(name, compat="mask_in", **options), published, mask)
    assert difference(wrong, published, f"{key}/{kind}_in/generated_sub8")[1] < tolerance
    assert difference(composed(wrong, published, mask), published, f"{key}/{kind}_in/composed_sub8")[1] < tolerance


@pytest.mark.parametrize("kind", ["soft", "hard"])
@pytest.mark.parametrize(("key", "case"), PUBLISHED.items(), ids=PUBLISHED)
def test_keeping_a_mask_is_filling_its_complement(key, case, kind, published, fills):
    name, tolerance = case
    mask = published[kind]
    kept = composed(generated(fills[name], published, mask), published, mask)
    # The published attention takes the first image's mask for all: only that image can be compared.
    assert difference(kept, published, f"{key}/{kind}_in_as_out_of_complement/composed_sub8")[0] < tolerance
    assert difference(kept, published, f"{key}/{kind}_in/composed_sub8")[0] > 10 * tolerance


@pytest.mark.parametrize("kind", ["soft", "hard"])
def test_cnn_and_blur_fill_as_published(kind, published, weights):
    for mode, kept in (("out", 1 - published[kind]), ("in", published[kind])):
        cnn = removal.Cnn(weights("Cnn"), compat=f"mask_{mode}")
        with torch.inference_mode():
            pictures = {
                "cnn": NormalisedInfill(cnn, IMAGENET).generate(published["images"], 1 - kept),
                "blur": IMAGENET(removal.MaskingBlur(IMAGENET.mean).replacement(pixels_of(published["images"]))),
                "dummy": IMAGENET(removal.ZeroNormalised(IMAGENET.mean).replacement(pixels_of(published["images"]))),
            }
        for key, picture in pictures.items():
            whole = picture.expand_as(published["images"])
            assert difference(whole, published, f"{key}/{kind}_{mode}/generated_sub8")[1] < 1e-4
            assert (
                difference(composed(whole, published, kept), published, f"{key}/{kind}_{mode}/composed_sub8")[1] < 1e-4
            )


def pixels_of(images):
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET.mean, IMAGENET.std))
    return images * std + mean


@pytest.mark.parametrize("sigma", ["1.0", "2.5"])
def test_the_wide_blur_is_the_published_gaussian(sigma, published):
    blurred = removal.MaskingBlur((0.0,), sigma=float(sigma)).replacement(published["imsmooth/x"])
    torch.testing.assert_close(blurred, published[f"imsmooth/sigma{sigma}"], rtol=0, atol=1e-5)


# --- what holds for all


@per_network
@given(st.integers(0, 1000))
@settings(max_examples=1, deadline=None)
def test_kept_pixels_stay_and_a_batch_is_filled_like_its_images_in_any_order(name, fills, seed):
    pixels, removed = batch(seed=seed)
    fill = fills[name]
    together = fill(pixels, removed)
    kept = ~removed[:, None].expand_as(pixels)
    assert torch.equal(together[kept], pixels[kept])
    assert together.min() >= 0
    assert together.max() <= 1
    backwards = fill(pixels.flip(0), removed.flip(0)).flip(0)
    torch.testing.assert_close(backwards, together, rtol=0, atol=1e-4)
    alone = fill(pixels[1:], removed[1:])
    torch.testing.assert_close(alone, together[1:], rtol=0, atol=1e-4)


@per_network
def test_what_stands_in_a_hole_is_not_looked_at(name, fills):
    pixels, removed = batch()
    other = torch.where(removed[:, None], 1 - pixels, pixels)
    torch.testing.assert_close(fills[name](other, removed), fills[name](pixels, removed), rtol=0, atol=1e-6)


@per_network
def test_masking_in_is_masking_out_the_complement(name, fills):
    pixels, mask = batch()
    soft = mask[:, None].float()
    with torch.inference_mode():
        masked_in = pixels * soft + fills[name].generate(pixels, 1 - soft).clamp(0, 1) * (1 - soft)
    torch.testing.assert_close(fills[name](pixels, ~mask), masked_in, rtol=0, atol=1e-6)


def test_sides_that_do_not_fit_are_padded_and_cut_off(weights):
    pixels, removed = batch(1, size=(13, 11))
    for name in ("CaGan", "Cnn", "LearnedInfill"):
        fill = removal.GENERATIVE[name](weights(name))
        assert fill(pixels, removed).shape == pixels.shape
    padded = removal.DfNet(weights("DfNet"), fit="pad")(pixels, removed)
    assert torch.equal(padded[~removed[:, None].expand_as(pixels)], pixels[~removed[:, None].expand_as(pixels)])


def test_gradients_flow_through_generate(fills):
    pixels, removed = batch(1)
    holes = removed[:, None].float().requires_grad_()
    normalised = removal.normalised_infill("LearnedInfill", IMAGENET, checkpoint=fills["LearnedInfill"].checkpoint)
    normalised.generate(IMAGENET(pixels), holes).sum().backward()
    assert holes.grad.abs().sum() > 0


# --- weights of the user's


def test_both_layouts_of_ca_gan_weights_are_taken(weights, tmp_path):
    state = torch.load(weights("CaGan"), weights_only=True)
    torch.save({f"netG.{name}": value for name, value in state.items()}, tmp_path / "torch_model.p")
    pixels, removed = batch(1)
    bare, prefixed = (removal.CaGan(str(path)) for path in (weights("CaGan"), tmp_path / "torch_model.p"))
    assert torch.equal(bare(pixels, removed), prefixed(pixels, removed))


MISSING = {
    "CaGan": "get gen_.*github.com/daa233/generative-inpainting-pytorch .MIT.",
    "DfNet": "github.com/hughplay/DFNet .CC BY-NC 4.0: not for commercial use.",
    "PartialConv": "naoto0804/pytorch-inpainting-with-partial-conv .MIT.",
    "Cnn": "there is none to download",
    "LearnedInfill": "make it with train-infiller",
}


@pytest.mark.parametrize(("name", "advice"), MISSING.items(), ids=MISSING)
def test_missing_weights_say_how_to_get_them(name, advice):
    with pytest.raises(
        MissingInputError,
        match=rf"^(weights|checkpoint): nowhere.pth: no such file of weights; correct the path, or .*{advice}",
    ):
        removal.GENERATIVE[name]("nowhere.pth")


@pytest.mark.parametrize("name", ["CaGan", "PartialConv", "Cnn", "LearnedInfill"])
def test_wrong_weights_name_the_first_difference(name, weights, tmp_path):
    state = torch.load(weights(name), weights_only=True)
    options = OPTIONS.get(name, {})
    first = next(iter(state))
    path = tmp_path / "weights.pth"
    torch.save({key: value for key, value in state.items() if key != first}, path)
    with pytest.raises(ModelError, match=rf"does not fit .*: the file has no {first}"):
        removal.GENERATIVE[name](str(path), **options)
    torch.save({**state, "other.weight": torch.zeros(1)}, path)
    with pytest.raises(ModelError, match=r"the model has no other\.weight"):
        removal.GENERATIVE[name](str(path), **options)
    torch.save({**state, first: torch.zeros(2, 3)}, path)
    with pytest.raises(ModelError, match=rf"{first} has shape \(2, 3\) in the file and"):
        removal.GENERATIVE[name](str(path), **options)


def test_partial_convolutions_need_ones(weights, tmp_path):
    state = torch.load(weights("PartialConv"), weights_only=True)
    state["dec_2.conv.mask_conv.weight"] *= 2
    torch.save(state, tmp_path / "weights.pth")
    with pytest.raises(ModelError, match=r"dec_2\.conv\.mask_conv\.weight is not all ones"):
        removal.PartialConv(str(tmp_path / "weights.pth"), levels=4)


def test_grey_images_are_refused_in_one_line(fills):
    with pytest.raises(InputError, match="pixels: 1 channels; CnnInfiller takes 3"):
        fills["Cnn"](torch.zeros(1, 1, 16, 16), torch.ones(1, 16, 16, dtype=torch.bool))


def test_a_fill_by_a_network_needs_its_file():
    with pytest.raises(PluginError, match="DfNet: option 'weights' is missing"):
        removal.build_fill("DfNet")


def test_the_training_of_maskers_takes_a_network_fill_by_name(weights):
    path = "heatproof.removal.normalised_infill"
    factory, options = plugins.resolve(path), {"infill": "LearnedInfill", "checkpoint": weights("LearnedInfill")}
    plugins.check_options(path, factory, options, provided=("normalization",))
    generate = factory(**options, normalization=IMAGENET).generate
    images, holes = torch.zeros(1, 3, 12, 12), torch.ones(1, 1, 12, 12)
    assert generate(images, holes).shape == images.shape
    with pytest.raises(PluginError, match="infill: there is no 'Telea'"):
        factory("Telea", IMAGENET)
