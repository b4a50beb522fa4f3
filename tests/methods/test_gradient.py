"""Methods from gradients: golden vectors, known truths, messages."""

import numpy as np
import pytest
import torch
from torch import nn

from heatproof import plugins
from heatproof.errors import InputError, ModelError, PluginError
from heatproof.methods import rows
from heatproof.methods.gradient import (
    Deconvolution,
    DeepLift,
    Gradient,
    GradientShap,
    GuidedBackprop,
    InputXGradient,
    IntegratedGradients,
    Lrp,
    SmoothGrad,
    SmoothGradSquared,
    VarGrad,
)
from heatproof.methods.noisy import noisy_moments
from heatproof.methods.quadratures import QUADRATURES
from heatproof.models import Normalization
from tests.methods.networks import (
    ColourNet,
    FunctionalTinyCnn,
    SharedTinyCnn,
    TinyCnn,
    colour_patches,
    linear_model,
    small_resnet,
)

GOLDEN_TOLERANCE = {"atol": 1e-5, "rtol": 1e-4}

GOLDEN = {
    "saliency_abs": lambda model: Gradient(model),
    "saliency_signed": lambda model: Gradient(model, absolute=False),
    "input_x_gradient": lambda model: InputXGradient(model),
    "ig_gausslegendre50_base0": lambda model: IntegratedGradients(model),
    "ig_riemann_trapezoid20_base0": lambda model: IntegratedGradients(model, steps=20, quadrature="riemann_trapezoid"),
    "ig_riemann_left20_base0": lambda model: IntegratedGradients(model, steps=20, quadrature="riemann_left"),
    "guided_backprop": lambda model: GuidedBackprop(model),
    "deconvolution": lambda model: Deconvolution(model),
    "deeplift_base0": lambda model: DeepLift(model),
}


@pytest.mark.parametrize(("name", "make"), GOLDEN.items(), ids=GOLDEN)
@pytest.mark.parametrize("network", [TinyCnn, FunctionalTinyCnn, SharedTinyCnn])
def test_maps_are_captums_however_the_network_is_written(golden, weights, images, targets, network, name, make):
    model = network().eval()
    model.load_state_dict(weights)
    torch.testing.assert_close(make(model)(images, targets), golden("attributions")[name], **GOLDEN_TOLERANCE)


def test_the_black_baseline_is_captums(golden, tinycnn, images, targets):
    """In double precision, which gives the same maps with any kernels.

    The model's units and max-pools choose otherwise where rounding decides, so Captum's single precision maps are further from
    the exact ones than the other vectors: the tolerance, of the largest value, is that of tests/golden/README.md.
    """
    network = golden("tinycnn")
    normalization = Normalization(network["mean"].tolist(), network["std"].tolist())
    expected = golden("attributions")["ig_gausslegendre50_black"]
    exact = quadrature_by_autograd(tinycnn.double(), images.double(), targets, normalization.black)
    for baseline in ("black", list(normalization.black)):
        maps = IntegratedGradients(tinycnn, baseline=baseline, normalization=normalization)(images.double(), targets)
        torch.testing.assert_close(maps.double(), exact, rtol=0, atol=1e-6)  # maps are single precision
    torch.testing.assert_close(exact, expected.double(), rtol=0, atol=1.5e-4 * float(expected.abs().max()))


def quadrature_by_autograd(model, images, targets, baseline):
    """Integrated gradients with 50 points of Gauss and Legendre, written out."""
    start = torch.tensor(baseline, dtype=images.dtype)[:, None, None]
    total = torch.zeros_like(images)
    for point, weight in zip(*np.polynomial.legendre.leggauss(50), strict=True):
        between = (start + (point + 1) / 2 * (images - start)).requires_grad_()
        total += weight / 2 * torch.autograd.grad(model(between)[range(len(targets)), targets].sum(), between)[0]
    return total * (images - start)


@pytest.mark.parametrize("name", ["torchray_gradient", "torchray_guided_backprop"])
def test_the_largest_absolute_value_over_channels_is_torchrays(golden, tinycnn, images, targets, name):
    method = {"torchray_gradient": Gradient, "torchray_guided_backprop": GuidedBackprop}[name](tinycnn)
    maps = method(images, targets).abs().amax(dim=1, keepdim=True)
    torch.testing.assert_close(maps, golden("attributions")[name], **GOLDEN_TOLERANCE)


@pytest.mark.parametrize("rows_per_forward", [None, 1, 4, 18])
@pytest.mark.parametrize("name", ["saliency", "ig"])
def test_moments_over_given_noise_are_captums(golden, tinycnn, images, targets, name, rows_per_forward):
    expected = golden("noise_tunnel")
    base = {"saliency": Gradient(tinycnn, absolute=False), "ig": IntegratedGradients(tinycnn, steps=10)}[name]

    def add_noise(sample, chosen, out):
        out += expected["nt_noise"][chosen, sample]

    mean, variance = noisy_moments(base, images[:3], targets[:3], 6, add_noise, rows_per_forward)
    torch.testing.assert_close(mean, expected[f"nt_{name}_smoothgrad"], **GOLDEN_TOLERANCE)
    torch.testing.assert_close(variance + mean**2, expected[f"nt_{name}_smoothgrad_sq"], **GOLDEN_TOLERANCE)
    torch.testing.assert_close(variance, expected[f"nt_{name}_vargrad"], **GOLDEN_TOLERANCE)


SIGNED = {
    "InputXGradient": InputXGradient,
    "IntegratedGradients": IntegratedGradients,
    "DeepLift": DeepLift,
    "GradientShap": GradientShap,
    "Lrp": lambda model: Lrp(model, composite="epsilon"),
}


@pytest.mark.parametrize("make", SIGNED.values(), ids=SIGNED)
def test_of_a_linear_model_each_value_gets_weight_times_value(make):
    rng = np.random.default_rng(0)
    weights, images = torch.from_numpy(rng.normal(size=(2, 3, 4, 5))).float()
    maps = make(linear_model(weights))(images[None], torch.tensor([0]))
    torch.testing.assert_close(maps[0], weights * images, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("make", SIGNED.values(), ids=SIGNED)
def test_the_map_is_the_patch_of_the_asked_colour(make):
    images, regions = colour_patches()
    maps = make(ColourNet())(images, torch.arange(3))
    expected = torch.zeros_like(images)
    for colour in range(3):
        expected[colour, colour] = regions[colour] / 64
    torch.testing.assert_close(maps, expected, atol=2e-7, rtol=1e-4)


COMPLETE = {
    "IntegratedGradients": lambda model: IntegratedGradients(model, steps=400, baseline=0.3),
    "DeepLift": lambda model: DeepLift(model, baseline=0.3, max_pool="rescale"),
}


@pytest.mark.parametrize("make", COMPLETE.values(), ids=COMPLETE)
def test_the_values_sum_to_the_difference_of_the_logits(make):
    model = small_resnet(torch.float64)
    images = torch.randn(4, 3, 12, 10, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    targets = torch.tensor([0, 1, 2, 3])
    maps = make(model)(images, targets)
    with torch.no_grad():
        differences = (model(images) - model(torch.full_like(images, 0.3)))[range(4), targets]
    assert differences.abs().min() > 0.02
    tolerance = 1e-6 if isinstance(make(model), DeepLift) else 2e-3
    torch.testing.assert_close(maps.sum(dim=(1, 2, 3)).double(), differences, atol=tolerance, rtol=0)


@pytest.mark.parametrize("quadrature", QUADRATURES)
def test_a_quadratic_logit_shows_the_points_and_weights(quadrature):
    """The logit is the sum of x^2 / 2, the gradient at point a is a * x: the map is x^2 times the sum of w * a."""

    class Half(nn.Module):
        def forward(self, images):
            return images.square().sum(dim=(1, 2, 3))[:, None] / 2

    image = torch.tensor([1.0, -2.0, 3.0, 0.5]).reshape(1, 1, 2, 2)
    maps = IntegratedGradients(Half(), steps=5, quadrature=quadrature)(image, torch.tensor([0]))
    # By hand: exact 1/2; left (0 + 1 + 2 + 3 + 4) / 25; trapezoid (1/4 + 2/4 + 3/4 + 1/2) / 5.
    share = {"gausslegendre": 0.5, "riemann_left": 0.4, "riemann_trapezoid": 0.4}[quadrature]
    torch.testing.assert_close(maps, share * image.square())


class TwoUnits(nn.Module):
    """Logit: relu(x0) - relu(x1), with the ReLU as a function that is handed in."""

    def __init__(self, relu):
        super().__init__()
        self.relu = relu

    def forward(self, images):
        units = self.relu(images.flatten(1) * 1.0)
        return units[:, :1] - units[:, 1:]


RELUS = {
    "module": nn.ReLU(),
    "in-place module": nn.ReLU(inplace=True),
    "function": nn.functional.relu,
    "torch.relu": torch.relu,
    "in-place method": lambda units: units.relu_(),
    "ReLU6": nn.ReLU6(),
}


@pytest.mark.parametrize("relu", RELUS.values(), ids=RELUS)
def test_guided_backprop_and_deconvolution_by_hand(relu):
    model = TwoUnits(relu)
    images = torch.tensor([[1.0, 2.0], [-1.0, -2.0]]).reshape(2, 1, 1, 2)
    targets = torch.tensor([0, 0])
    assert Gradient(model, absolute=False)(images, targets).flatten().tolist() == [1, -1, 0, 0]
    assert GuidedBackprop(model)(images, targets).flatten().tolist() == [1, 0, 0, 0]  # -1 does not pass
    assert Deconvolution(model)(images, targets).flatten().tolist() == [1, 0, 1, 0]  # inactive units pass


@pytest.mark.parametrize("method", [GuidedBackprop, Deconvolution])
def test_without_a_relu_the_rule_is_refused(method):
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.GELU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(ModelError, match="Sequential: called no ReLU that can be seen"):
        method(model)(torch.zeros(1, 3, 2, 2), torch.tensor([0]))


def test_deep_lift_by_hand():
    """relu(x0 + x1 - 1) at (1, 1) is 1, at the baseline 0: each pixel gets a half; gradient times input says 1 each."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(2, 1), nn.ReLU())
    nn.init.constant_(model[1].weight, 1.0)
    nn.init.constant_(model[1].bias, -1.0)
    maps = DeepLift(model)(torch.ones(1, 1, 1, 2), torch.tensor([0]))
    assert maps.flatten().tolist() == [0.5, 0.5]


@pytest.mark.parametrize("activation", [nn.GELU(), nn.SiLU(), nn.Sigmoid(), nn.Tanh(), nn.Softplus(), nn.ELU()])
def test_deep_lift_is_complete_through_any_function_of_one_number(activation):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 5, 3), activation, nn.Conv2d(5, 2, 3), activation, nn.Flatten(), nn.Linear(8, 2))
    model = model.double()
    images = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    images[:, :, :2] = 0.0  # as the baseline: there the secant is 0 / 0
    maps = DeepLift(model)(images, torch.tensor([0, 1]))
    differences = (model(images) - model(torch.zeros_like(images)))[range(2), [0, 1]].detach()
    torch.testing.assert_close(maps.sum(dim=(1, 2, 3)).double(), differences, atol=1e-6, rtol=0)
    assert not maps[:, :, :2].any()


def test_deep_lift_explains_stock_torchvision_networks():
    torchvision = pytest.importorskip("torchvision")
    torch.manual_seed(0)
    model = torchvision.models.resnet18(num_classes=3).double().eval()
    images = torch.randn(2, 3, 48, 48, dtype=torch.float64)
    targets = torch.tensor([0, 2])
    maps = DeepLift(model, max_pool="rescale")(images, targets)
    with torch.no_grad():
        differences = (model(images) - model(torch.zeros_like(images)))[range(2), targets]
    torch.testing.assert_close(maps.sum(dim=(1, 2, 3)).double(), differences, atol=1e-5, rtol=0)


class Squares(nn.Module):
    """Logit: half the sum of squares; so the gradient of a noisy image is image + noise."""

    def forward(self, images):
        return images.square().sum(dim=(1, 2, 3))[:, None] / 2


def test_smooth_grad_and_its_kin_find_the_moments_of_the_noise():
    image = torch.linspace(-1, 3, 48).reshape(1, 3, 4, 4)  # range 4
    for options, stdev in (({"stdev": 0.5, "stdev_mode": "absolute"}, 0.5), ({"stdev": 0.1}, 0.4)):
        mean, squares, variance = (
            method(Squares(), samples=4000, **options)(image, torch.tensor([0]))
            for method in (SmoothGrad, SmoothGradSquared, VarGrad)
        )
        # Standard error of each value's mean: stdev / sqrt(4000); of the variances' mean over 48 values: 0.3 %.
        torch.testing.assert_close(mean, image, atol=4.5 * stdev / 4000**0.5, rtol=0)
        assert float(variance.mean()) == pytest.approx(stdev**2, rel=0.015)
        torch.testing.assert_close(squares, mean**2 + variance)


def test_the_noise_of_a_linear_models_gradient_is_nothing():
    model, image = linear_model(torch.arange(12.0).reshape(3, 2, 2)), torch.ones(1, 3, 2, 2)
    targets = torch.tensor([0])
    torch.testing.assert_close(SmoothGrad(model)(image, targets), Gradient(model)(image, targets))
    assert not VarGrad(model)(image, targets).any()


def test_a_small_variance_beside_a_large_mean_is_not_lost():
    def explain(images, targets):
        return 1000 + images

    def add_noise(sample, chosen, out):
        out += 0.01 * (-1) ** sample

    images = torch.zeros(2, 1, 1, 1, dtype=torch.float64)
    _, variance = noisy_moments(explain, images, torch.zeros(2, dtype=torch.int64), 10, add_noise)
    torch.testing.assert_close(variance.flatten(), torch.full((2,), 1e-4, dtype=torch.float64), rtol=1e-6, atol=0)


def test_gradient_shap_of_one_baseline_tends_to_integrated_gradients(tinycnn, images, targets):
    expected = IntegratedGradients(tinycnn, baseline=0.5)(images[:2], targets[:2])
    maps = GradientShap(tinycnn, baselines=[0.5], samples=600)(images[:2], targets[:2])
    assert torch.corrcoef(torch.stack([maps.flatten(), expected.flatten()]))[0, 1] > 0.99


def test_gradient_shap_of_a_linear_model_is_the_mean_over_the_baselines():
    """w * (x - b) with b = 0 or (1, 2): between the two, by the share of draws, the same share for each value."""
    model, image = linear_model(torch.ones(2, 1, 1)), torch.full((1, 2, 1, 1), 3.0)
    for baselines in ([0.0, [1.0, 2.0]], torch.tensor([[0.0, 0.0], [1.0, 2.0]])[:, :, None, None]):
        maps = GradientShap(model, baselines=baselines, samples=400)(image, torch.tensor([0])).flatten()
        share = 3 - float(maps[0])
        assert 0.4 < share < 0.6
        assert float(maps[1]) == pytest.approx(3 - 2 * share, abs=1e-5)


def test_gradient_shap_adds_its_noise_to_image_and_way():
    """Of the linear model w = 1 the map is x + noise - 0, whose mean over many draws is x."""
    model, image = linear_model(torch.ones(1, 4, 4)), torch.full((1, 1, 4, 4), 2.0)
    once = GradientShap(model, samples=1, stdev=0.5)(image, torch.tensor([0]))
    assert 0.25 < float((once - 2).std()) < 0.8
    many = GradientShap(model, samples=2000, stdev=0.5)(image, torch.tensor([0]))
    torch.testing.assert_close(many, image, atol=0.06, rtol=0)


MESSAGES = {
    "quadrature": (
        lambda m: IntegratedGradients(m, quadrature="gauss"),
        "IntegratedGradients: quadrature 'gauss' is unk",
    ),
    "steps": (lambda m: IntegratedGradients(m, steps=0), "IntegratedGradients: steps 0 must be a number, 1 or more"),
    "rows": (lambda m: IntegratedGradients(m, rows_per_forward=0), "rows_per_forward 0 must be a number, 1 or more"),
    "baseline": (lambda m: IntegratedGradients(m, baseline="blue"), "baseline 'blue' is unknown; use a number"),
    "black": (lambda m: DeepLift(m, baseline="black"), "baseline 'black' needs the model's normalization"),
    "stdev": (lambda m: SmoothGrad(m, stdev=-1), "SmoothGrad: stdev -1 must be a number, 0 or more"),
    "mode": (
        lambda m: VarGrad(m, stdev_mode="relative"),
        "VarGrad: stdev_mode 'relative' is unknown; known: range, abs",
    ),
    "base": (lambda m: SmoothGrad(m, base="gradients"), "gradients: there is no module 'gradients'"),
    "base option": (
        lambda m: SmoothGrad(m, base_options={"absolut": 1}),
        "unknown option 'absolut'; did you mean 'absolute'",
    ),
    "max_pool": (
        lambda m: DeepLift(m, max_pool="rescaled"),
        "DeepLift: max_pool 'rescaled' is unknown; did you mean 'resc",
    ),
    "composite": (lambda m: Lrp(m, composite="flat"), "Lrp: composite 'flat' is unknown"),
    "no baselines": (lambda m: GradientShap(m, baselines=[]), "GradientShap: baselines is empty; give at least one"),
}


@pytest.mark.parametrize(("make", "message"), MESSAGES.values(), ids=MESSAGES)
def test_a_wrong_option_is_told_when_the_method_is_built(make, message):
    with pytest.raises((InputError, PluginError)) as caught:
        make(nn.Identity())
    assert message in str(caught.value)


def test_a_baseline_of_the_wrong_number_of_channels_is_told():
    with pytest.raises(InputError, match="baseline: 2 values for images of 3 channels; give one per channel"):
        IntegratedGradients(ColourNet(), baseline=[0.0, 1.0])(torch.zeros(1, 3, 2, 2), torch.tensor([0]))


def test_unknown_options_are_named_with_the_nearest():
    with pytest.raises(PluginError, match="unknown option 'step'; did you mean 'steps'"):
        plugins.check_options("IntegratedGradients", IntegratedGradients, {"step": 5}, positional=1)


def test_a_model_that_gives_no_logits_is_told():
    with pytest.raises(
        ModelError, match=r"Identity: gives shape \(1, 3, 2, 2\) for 1 images; expected \(N, K\) logits"
    ):
        Gradient(nn.Identity())(torch.zeros(1, 3, 2, 2), torch.tensor([0]))


@pytest.mark.parametrize(("images", "samples", "size"), [(1, 1, 1), (3, 5, 4), (5, 3, 7), (4, 2, 100), (2, 6, 1)])
def test_streamed_batches_hold_each_variant_of_each_image_once(images, samples, size):
    numbers, targets = torch.arange(float(images)).reshape(-1, 1, 1, 1), 10 * torch.arange(images)
    seen = []

    def make(sample, chosen, out):
        out.copy_(numbers[chosen] + 100 * sample)

    for batch, batch_targets, pieces in rows.streamed(numbers, targets, samples, size, make):
        assert len(batch) == len(batch_targets) <= size
        for piece in pieces:
            values = [100 * piece.sample + i for i in range(piece.images.start, piece.images.stop)]
            assert batch[piece.rows].flatten().tolist() == values
            assert batch_targets[piece.rows].tolist() == [10 * (value % 100) for value in values]
            seen += values
    assert seen == [100 * sample + i for sample in range(samples) for i in range(images)]
