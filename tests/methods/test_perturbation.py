"""Methods that change the image: golden vectors, known truths, messages."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn

from heatproof.errors import InputError, PluginError
from heatproof.methods.perturbation import (
    KernelShap,
    Lime,
    Occlusion,
    Rise,
    rise_map,
    rise_masks,
    windows,
)
from heatproof.methods.superpixels import grid_superpixels, lime_coefficients
from tests.methods.networks import ColourNet, colour_patches, linear_model, small_resnet

GOLDEN_TOLERANCE = {"atol": 1e-5, "rtol": 1e-4}


@pytest.mark.parametrize(("window", "stride"), [(8, 4), (5, 3)])
@pytest.mark.parametrize("rows_per_forward", [None, 5])
def test_occlusion_is_captums(golden, tinycnn, images, targets, window, stride, rows_per_forward):
    method = Occlusion(tinycnn, window=window, stride=[stride, stride], rows_per_forward=rows_per_forward)
    expected = golden("attributions")[f"occlusion_3x{window}x{window}_stride{stride}"]
    maps = method(images, targets)
    torch.testing.assert_close(maps[:, None].expand_as(expected), expected, **GOLDEN_TOLERANCE)


def test_occlusion_by_hand_with_windows_cut_at_the_border():
    """Pixels 1 2 4 of a summing model, windows of two and steps of two: {1, 2} and {4}, covered with 10."""
    maps = Occlusion(linear_model(torch.ones(1, 1, 3)), window=[1, 2], stride=[1, 2], baseline=10.0)(
        torch.tensor([[[[1.0, 2.0, 4.0]]]]), torch.tensor([0])
    )
    torch.testing.assert_close(maps, torch.tensor([[[3.0 - 20, 3.0 - 20, 4.0 - 10]]]))


def test_a_step_wider_than_the_window_leaves_zeros_between():
    maps = Occlusion(linear_model(torch.ones(1, 1, 5)), window=1, stride=2)(torch.ones(1, 1, 1, 5), torch.tensor([0]))
    torch.testing.assert_close(maps, torch.tensor([[[1.0, 0.0, 1.0, 0.0, 1.0]]]))


@pytest.mark.parametrize(
    ("size", "window", "stride"), [((7, 9), (3, 4), (2, 3)), ((4, 4), (4, 4), (1, 1)), ((5, 3), (2, 2), (4, 4))]
)
def test_windows_begin_at_multiples_of_the_stride_and_reach_the_border(size, window, stride):
    found = windows(size, window, stride)
    for axis, part in enumerate(("rows", "columns")):
        starts = sorted({getattr(w, part).start for w in found})
        assert starts == [stride[axis] * i for i in range(math.ceil((size[axis] - window[axis]) / stride[axis]) + 1)]
        assert max(getattr(w, part).stop for w in found) == size[axis]
    assert len({repr(window) for window in found}) == len(found)


def test_rise_masks_are_the_published_ones(golden):
    expected = golden("rise_saliency")
    masks = rise_masks(expected["grid"], expected["shift_xy"], (32, 32))
    torch.testing.assert_close(masks[:, None], expected["masks"], atol=1e-6, rtol=0)


def test_the_rise_map_is_the_published_one(golden, tinycnn, images):
    expected = golden("rise_saliency")
    image, masks = images[expected["image_index"]], expected["masks"]
    probabilities = tinycnn(image * masks).softmax(dim=1).detach()
    maps = rise_map(masks[:, 0], probabilities.T, float(expected["p1"]))
    torch.testing.assert_close(maps, expected["saliency_all_classes"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("masks", [20, 300])  # fewer and more than the masks that are made at a time
def test_rise_weights_its_own_masks_by_probabilities(tinycnn, images, targets, masks):
    method = Rise(tinycnn, masks=masks, cells=4, shown=0.3, rows_per_forward=33)
    maps = method(images[:2], targets[:2])
    made = torch.cat([method._blocks(images)(number) for number in range(math.ceil(masks / 128))])
    assert made.shape == (masks, 32, 32)
    for n in range(2):
        probabilities = tinycnn(images[n] * made[:, None]).softmax(dim=1).detach()[:, targets[n]]
        expected = (probabilities[:, None, None] * made).sum(dim=0) / (masks * 0.3)
        torch.testing.assert_close(maps[n], expected, atol=1e-6, rtol=1e-5)


def test_rise_draws_cells_and_shifts_as_it_says():
    method = Rise(nn.Identity(), masks=4000, cells=5, shown=0.3)
    blocks = method._blocks(torch.zeros(1, 1, 10, 15))
    masks = torch.cat([blocks(number) for number in range(32)])[:4000]
    assert float(masks.mean()) == pytest.approx(0.3, abs=0.01)
    # Shifts: all of 0 to cell - 1; an unshifted mask shows the mirrored border, others do not repeat it.
    assert len({tuple(mask.flatten().tolist()) for mask in masks[:50]}) > 45
    assert torch.equal(masks, torch.cat([method._blocks(torch.zeros(2, 3, 10, 15))(n) for n in range(32)])[:4000])
    other = Rise(nn.Identity(), masks=4000, cells=5, shown=0.3, seed=1)._blocks(torch.zeros(1, 1, 10, 15))(0)
    assert not torch.equal(masks[:128], other)


def test_where_nothing_is_hidden_rise_gives_the_probability_everywhere(tinycnn, images, targets):
    maps = Rise(tinycnn, masks=3, shown=1.0)(images, targets)
    probabilities = tinycnn(images).softmax(dim=1).detach()[range(6), targets]
    torch.testing.assert_close(maps, probabilities[:, None, None].expand(6, 32, 32), atol=1e-5, rtol=0)


SUPERPIXEL_METHODS = {
    "KernelShap": lambda model, **options: KernelShap(model, samples=100, **options),
    "Lime": lambda model, **options: Lime(model, samples=100, ridge=0.0, **options),
}


@pytest.mark.parametrize("make", SUPERPIXEL_METHODS.values(), ids=SUPERPIXEL_METHODS)
@pytest.mark.parametrize("cells", [1, 2, 3])
def test_of_a_linear_model_each_superpixel_gets_its_sum(make, cells):
    rng = np.random.default_rng(1)
    weights, image = torch.from_numpy(rng.normal(size=(2, 3, 7, 6))).float()
    maps = make(linear_model(weights, bias=2.0), cells=cells, baseline=0.5)(image[None], torch.tensor([0]))
    contributions = (weights * (image - 0.5)).sum(dim=0)
    numbers = torch.from_numpy(grid_superpixels((7, 6), cells))
    for number in numbers.unique():
        inside = numbers == number
        expected = contributions[inside].sum().expand(int(inside.sum()))
        torch.testing.assert_close(maps[0][inside], expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("make", SUPERPIXEL_METHODS.values(), ids=SUPERPIXEL_METHODS)
def test_the_cells_of_the_asked_colour_are_found(make):
    images, regions = colour_patches()
    maps = make(ColourNet(), cells=2)(images, torch.arange(3))
    torch.testing.assert_close(maps, 16 / 64 * regions.float(), atol=1e-5, rtol=0)


def quarters(image):
    """A segmentation of a user: labels with gaps, more superpixels on a bright image."""
    labels = np.zeros(image.shape[1:], dtype=int)
    labels[: image.shape[1] // 2] = 7
    if image.mean() > 0:
        labels[:, : image.shape[2] // 2] += 3
    return labels


PATH = f"{__name__}.quarters"


@pytest.mark.parametrize("make", SUPERPIXEL_METHODS.values(), ids=SUPERPIXEL_METHODS)
def test_images_of_a_batch_may_have_different_superpixels(make):
    model = small_resnet()
    images = torch.randn(3, 3, 12, 10, generator=torch.Generator().manual_seed(0)) * 0.1
    images += torch.tensor([1.0, -1.0, 1.0])[:, None, None, None]
    targets = torch.tensor([0, 1, 2])
    method = make(model, segmentation=PATH)
    maps = method(images, targets)
    assert [len(one.unique()) for one in maps] == [4, 2, 4]
    alone = torch.cat([method(images[i : i + 1], targets[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(maps, alone, atol=1e-6 * float(alone.abs().max()), rtol=0)
    if isinstance(method, KernelShap):
        differences = (model(images) - model(torch.zeros_like(images)))[range(3), targets].detach()
        sums = torch.stack([one.unique().sum() for one in maps])
        torch.testing.assert_close(sums, differences, atol=1e-5, rtol=1e-4)


def test_kernel_shap_tends_to_the_shapley_values():
    model = small_resnet()
    image = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(2)) * 2
    numbers = torch.from_numpy(grid_superpixels((8, 8), 2))

    def logit(coalition):
        shows = torch.isin(numbers, torch.tensor(sorted(coalition), dtype=torch.int64))
        return float(model(image * shows)[0, 1].detach())

    exact = [
        sum(
            (logit({*others, player}) - logit(set(others))) / (4 * math.comb(3, len(others)))
            for size in range(4)
            for others in itertools.combinations(set(range(4)) - {player}, size)
        )
        for player in range(4)
    ]
    maps = KernelShap(model, samples=4000, cells=2)(image, torch.tensor([1]))
    found = [float(maps[0, row, column]) for row in (0, 4) for column in (0, 4)]
    assert found == pytest.approx(exact, abs=0.03 * np.ptp(exact))
    assert sum(found) == pytest.approx(sum(exact), abs=1e-4)
    gradient_like = Lime(model, samples=4000, cells=2)(image, torch.tensor([1]))
    assert not torch.allclose(gradient_like, maps, atol=0.05 * np.ptp(exact))  # LIME answers another question


def test_lime_is_the_weighted_ridge_regression():
    rng = np.random.default_rng(0)
    shown, scores = rng.random((50, 6)) < 0.5, rng.normal(size=50)
    shown[0] = True
    cosines = shown.sum(axis=1) / np.sqrt(np.maximum(shown.sum(axis=1), 1) * 6)
    weights = np.exp(-(((1 - cosines) / 0.25) ** 2))
    # The textbook's form, with a column for the intercept that is not penalised.
    design = np.concatenate([shown, np.ones((50, 1))], axis=1)
    penalty = np.diag([2.0] * 6 + [0.0])
    expected = np.linalg.solve(design.T @ (weights[:, None] * design) + penalty, design.T @ (weights * scores))[:6]
    found = lime_coefficients(
        torch.from_numpy(shown[None]).double(), torch.from_numpy(scores[None]), torch.tensor([6]), width=0.25, ridge=2.0
    )
    np.testing.assert_allclose(found[0], expected, rtol=1e-9)


def test_few_samples_give_a_finite_map():
    image = torch.randn(1, 3, 12, 10, generator=torch.Generator().manual_seed(0))
    for method in (KernelShap(small_resnet(), samples=5), Lime(small_resnet(), samples=5)):
        assert torch.isfinite(method(image, torch.tensor([0]))).all()


def flat(image):
    return np.zeros(5, dtype=int)


MESSAGES = {
    "window": (lambda m: Occlusion(m, window=9), r"Occlusion: window \(9, 9\) is larger than the image, \(8, 8\)"),
    "two numbers": (lambda m: Occlusion(m, window=[1, 2, 3]), r"\[1, 2, 3\]: expected one number, or two"),
    "zero stride": (lambda m: Occlusion(m, stride=0), "Occlusion: stride 0 must be a number, 1 or more"),
    "shown": (lambda m: Rise(m, shown=0.0), "Rise: shown 0.0 must lie above 0 and not above 1"),
    "masks": (lambda m: Rise(m, masks=0), "Rise: masks 0 must be a number, 1 or more"),
    "segmentation": (lambda m: Lime(m, segmentation=f"{__name__}.flat"), r"segmentation: gave shape \(5,\)"),
    "no segmentation": (lambda m: Lime(m, segmentation=f"{__name__}.quarter"), "did you mean 'quarters'"),
    "black": (lambda m: KernelShap(m, baseline="black"), "baseline 'black' needs the model's normalization"),
}


@pytest.mark.parametrize(("make", "message"), MESSAGES.values(), ids=MESSAGES)
def test_a_wrong_option_is_told(make, message):
    with pytest.raises((InputError, PluginError), match=message):
        make(ColourNet())(torch.zeros(1, 3, 8, 8), torch.tensor([0]))
