"""One network however it is written: methods that replace the rules of its functions are right, or refuse by name."""

import warnings

import pytest
import torch
from torch import fx, nn
from torch.nn import functional

from heatproof.errors import ModelError
from heatproof.methods.attention import StopGradient
from heatproof.methods.cam import GradCam, GradCamPlusPlus, LayerCam
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
)
from heatproof.methods.transformer_lrp import TransformerLrp

IMAGE, TARGET = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([1, 2])


class OwnRelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.clamp(min=0)

    @staticmethod
    def backward(ctx, gradient):
        return gradient * (ctx.saved_tensors[0] > 0)


class Network(nn.Module):
    """Two convolutions, whose ReLU is handed in."""

    def __init__(self, relu):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.conv1, self.conv2, self.fc = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 3), nn.Linear(6, 4)
        self.relu = relu

    def forward(self, images):
        return self.fc(self.relu(self.conv2(self.relu(self.conv1(images)))).mean(dim=(2, 3)))


def set_to_zero(x):
    x[x < 0] = 0
    return x


def scripted(module):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch warns of what people still have
        return torch.jit.script(module)


RELUS = {
    "clamp": lambda x: x.clamp(min=0),
    "clamp in place": lambda x: x.clamp_(0),
    "clip": lambda x: torch.clip(x, 0, None),
    "clamp_min": lambda x: torch.clamp_min(x, 0),
    "named input": lambda x: functional.relu(input=x),
    "in place": functional.relu_,
    "maximum": lambda x: torch.maximum(x, torch.zeros(())),
    "maximum of zeros": lambda x: torch.maximum(torch.zeros_like(x), x),
    "max": lambda x: torch.max(x, torch.zeros(())),
    "fmax": lambda x: torch.fmax(x, torch.zeros(())),
    "threshold": lambda x: functional.threshold(x, 0, 0),
    "threshold module": nn.Threshold(0, 0),
    "hardtanh": lambda x: functional.hardtanh(x, 0.0, 1e4),
    "where": lambda x: torch.where(x > 0, x, 0.0),
    "where of zeros": lambda x: torch.where(x <= 0, torch.zeros_like(x), x),
    "mask": lambda x: x * (x > 0),
    "mask of numbers": lambda x: (x > 0).float() * x,
    "mask of signs": lambda x: x * torch.sign(x).clamp(min=0),
    "masked_fill": lambda x: x.masked_fill(x < 0, 0.0),
    "own function": OwnRelu.apply,
    "set to zero": set_to_zero,
    "largest of a stack": lambda x: torch.stack([x, torch.zeros_like(x)]).amax(dim=0),
    "with its absolute value": lambda x: (x + x.abs()) / 2,
    "scripted": scripted(nn.ReLU()),
}
REFUSED = {
    "DeepLift": {"own function", "set to zero", "largest of a stack", "scripted", "mask of signs"},
    "Lrp": {"own function", "set to zero", "scripted", "with its absolute value", "mask of signs"},
    "GuidedBackprop": {"own function", "set to zero", "largest of a stack", "with its absolute value", "scripted"},
}
REFUSED["Deconvolution"] = REFUSED["GuidedBackprop"]
METHODS = {
    "DeepLift": lambda model: DeepLift(model, baseline=0.3),
    "Lrp": Lrp,
    "GuidedBackprop": GuidedBackprop,
    "Deconvolution": Deconvolution,
}


@pytest.mark.parametrize("relu", RELUS)
@pytest.mark.parametrize("method", METHODS)
def test_a_relu_is_a_relu_however_it_is_spelt(method, relu):
    explain = METHODS[method](Network(RELUS[relu]))
    if relu in REFUSED[method]:
        with pytest.raises(ModelError):
            explain(IMAGE, TARGET)
        return
    expected = METHODS[method](Network(nn.ReLU()))(IMAGE, TARGET)
    torch.testing.assert_close(explain(IMAGE, TARGET), expected, atol=1e-5 * float(expected.abs().max()), rtol=1e-4)


WHOLE = {
    "graph module": (fx.symbolic_trace, set()),
    "data parallel": (nn.DataParallel, set()),
    "compiled": (lambda model: torch.compile(model, backend="eager"), set()),
    "scripted": (scripted, set(METHODS)),
    "traced": (lambda model: torch.jit.trace(model, IMAGE), set(METHODS)),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("form", WHOLE)
@pytest.mark.parametrize("method", METHODS)
def test_whole_networks_in_other_forms_have_the_same_map_or_are_refused(method, form):
    wrap, refused_by = WHOLE[form]
    network = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(54, 4)).eval()
    explain = METHODS[method](wrap(network))
    if method in refused_by:
        with pytest.raises(ModelError):
            explain(IMAGE, TARGET)
        return
    torch.testing.assert_close(explain(IMAGE, TARGET), METHODS[method](network)(IMAGE, TARGET))


class Inside(nn.Module):
    """One function of some activations of an image."""

    def __init__(self, function, features=6):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            self.conv, self.fc = nn.Conv2d(3, 6, 3), nn.Linear(features, 4)
            self.gate, self.heads = nn.Linear(6, 6), nn.MultiheadAttention(6, 2, batch_first=True)
        self.function = function

    def forward(self, images):
        return self.fc(self.function(self, self.conv(images)).mean(dim=(2, 3)))


def ramp(x):
    return torch.linspace(0, 2, 36, dtype=x.dtype).reshape(6, 6)


def squeeze_and_excite(model, x):
    return x * torch.sigmoid(model.gate(x.mean(dim=(2, 3))))[:, :, None, None]


def attend(model, x):
    tokens = x.flatten(2).transpose(1, 2)
    return model.heads(tokens, tokens, tokens, need_weights=False)[0].transpose(1, 2).unflatten(2, x.shape[2:])


def attend_fused(model, x):
    tokens = x.flatten(2).transpose(1, 2)
    return functional.scaled_dot_product_attention(tokens, 2 * tokens, tokens).transpose(1, 2).unflatten(2, x.shape[2:])


EXACT = {
    "squeeze and excitation": squeeze_and_excite,
    "gate in place": lambda _, x: x.mul_(x.sigmoid()),
    "square": lambda _, x: x * x,
    "power": lambda _, x: x**2,
    "matrices": lambda _, x: torch.matmul(x, x.transpose(2, 3)),
    "einsum": lambda _, x: torch.einsum("nchw,nchk->ncwk", x, x),
    "quotient": lambda _, x: x / (1 + x.square()),
    "softmax": lambda _, x: 5 * (3 * x).softmax(dim=1) * x,
    "layer norm": lambda _, x: functional.layer_norm(x, (6, 6), ramp(x) ** 2, ramp(x)).exp(),
    "attention": attend,
    "fused attention": attend_fused,
    "gelu by hand": lambda _, x: 0.5 * x * (1 + torch.erf(x / 2**0.5)),
    "max-pool": lambda _, x: functional.max_pool2d(x * ramp(x), 3, 2),
}


@pytest.mark.parametrize("function", EXACT.values(), ids=EXACT)
def test_deep_lift_sums_to_the_difference_through_products_and_norms(function):
    model, images = Inside(function).double(), IMAGE.double()
    maps = DeepLift(model, baseline=0.3, max_pool="rescale")(images, TARGET).double()
    with torch.no_grad():
        expected = (model(images) - model(torch.full_like(images, 0.3)))[range(2), TARGET]
    assert expected.abs().min() > 5e-5
    torch.testing.assert_close(maps.sum(dim=(1, 2, 3)), expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("factor", [50, 150, 400])
def test_deep_lift_through_a_softmax_of_scores_far_from_the_baselines(factor, dtype):
    """As in LeViT, whose attention has scores that differ by hundreds: exp of one of them underflows beside the other."""

    model, images = Inside(lambda _, x: (factor * x).softmax(dim=1) * x).to(dtype), IMAGE.to(dtype)
    maps = DeepLift(model, baseline=0.3)(images, TARGET).double()
    with torch.no_grad():
        expected = (model(images) - model(torch.full_like(images, 0.3)))[range(2), TARGET].double()
    torch.testing.assert_close(maps.sum(dim=(1, 2, 3)), expected, atol=1e-5 * float(maps.abs().sum()), rtol=0)


WITHOUT_RULE = {
    "group norm": lambda _, x: functional.group_norm(x, 2),
    "response norm": lambda _, x: functional.normalize(x),
    "deviation": lambda _, x: x - x.std(dim=1, keepdim=True),
    "largest": lambda _, x: x - x.amax(dim=1, keepdim=True),
    "batch statistics": lambda _, x: functional.batch_norm(x, None, None, training=True),
    "log-softmax": lambda _, x: x.log_softmax(dim=1),
}


@pytest.mark.parametrize("function", WITHOUT_RULE.values(), ids=WITHOUT_RULE)
@pytest.mark.parametrize("method", ["DeepLift", "Lrp"])
def test_what_has_no_rule_is_refused(method, function):
    if method == "Lrp" and function is WITHOUT_RULE["largest"]:
        pytest.skip("Lrp gives all to the largest")
    with pytest.raises(ModelError, match="no rule"):
        METHODS[method](Inside(function))(IMAGE, TARGET)


def test_deep_lift_notices_a_part_without_gradient():
    def half_hidden(_, x):
        return x + 3 * x.detach().relu()

    with pytest.raises(ModelError, match=r"DeepLift: Inside: a map sums to .*, but the logit differs .* by"):
        DeepLift(Inside(half_hidden), baseline=0.3)(IMAGE, TARGET)


def test_a_max_pool_that_loses_some_is_no_part_without_gradient():
    model = Inside(EXACT["max-pool"])
    sums = DeepLift(model, baseline=0.3)(IMAGE, TARGET).sum(dim=(1, 2, 3))
    with torch.no_grad():
        differences = (model(IMAGE) - model(torch.full_like(IMAGE, 0.3)))[range(2), TARGET]
    assert (sums - differences).abs().max() > 1e-3  # as documented: known to the check, and no error


TRANSFORMERS = {"StopGradient": StopGradient, "TransformerLrp": TransformerLrp}


@pytest.mark.parametrize("method", TRANSFORMERS.values(), ids=TRANSFORMERS)
@pytest.mark.parametrize("function", [lambda x: x * torch.sigmoid(1.702 * x), OwnRelu.apply, scripted(nn.GELU())])
def test_a_transformers_activation_that_has_no_rule_is_refused(method, function):
    if method is TransformerLrp and function.__class__.__name__ == "function":
        pytest.skip("TransformerLrp has a rule for products")
    model = Inside(lambda model, x: function(attend(model, x)))
    with pytest.raises(ModelError, match="no rule"):
        method(model)(IMAGE, TARGET)


def no_grad(_, x):
    with torch.no_grad():
        return 2 * x


HIDDEN = {
    "no_grad": no_grad,
    "detach": lambda _, x: x.detach(),
    "argmax": lambda _, x: functional.one_hot(x.argmax(dim=1), 6).permute(0, 3, 1, 2).float(),
    "rounded": lambda _, x: (8 * x).round() / 8,
    "sign": lambda _, x: x.sign(),
}


CAMS = [lambda model, cam=cam: cam(model, layer="conv") for cam in (GradCam, GradCamPlusPlus, LayerCam)]


@pytest.mark.parametrize("function", HIDDEN.values(), ids=HIDDEN)
@pytest.mark.parametrize(
    "method",
    [Gradient, InputXGradient, IntegratedGradients, GradientShap, SmoothGrad, *METHODS.values(), *CAMS],
)
def test_a_network_without_gradients_is_refused(method, function):
    model = Inside(lambda model, x: function(model, x.relu()))
    with pytest.raises(ModelError, match=r"gradient|no rule"):
        method(model)(IMAGE, TARGET)


class BesideItsNorm(nn.Module):
    """A scripted module uses a convolution's output beside its batch norm, where no mode sees it."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.relu = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), scripted(nn.ReLU())
        nn.init.constant_(self.norm.weight, 3.0)

    def forward(self, images):
        features = self.conv(images)
        return (self.norm(features) + self.relu(features)).mean(dim=(2, 3))


def test_batch_norms_are_not_folded_where_something_hidden_uses_what_comes_before_them():
    torch.manual_seed(0)
    model = BesideItsNorm().eval()
    maps = IntegratedGradients(model, steps=100, baseline=0.3)(IMAGE, TARGET)
    with torch.no_grad():
        expected = (model(IMAGE) - model(torch.full_like(IMAGE, 0.3)))[range(2), TARGET]
    torch.testing.assert_close(maps.sum(dim=(1, 2, 3)), expected, atol=1e-2, rtol=1e-2)


def test_integrated_gradients_say_once_that_they_miss_the_difference(caplog):
    def half_hidden(_, x):
        return x + 3 * x.detach().square()

    explain = IntegratedGradients(Inside(half_hidden), baseline=0.3)
    for _ in range(2):
        explain(IMAGE, TARGET)
    (told,) = caplog.messages
    assert "the maps of 2 images miss the differences of the logits by" in told
    IntegratedGradients(Inside(squeeze_and_excite), baseline=0.3)(IMAGE, TARGET)
    assert len(caplog.messages) == 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("method", [*METHODS.values(), Gradient, IntegratedGradients, SmoothGrad, *CAMS])
def test_networks_of_other_precisions_are_explained_for_images_of_single_precision(method, dtype):
    model = Inside(lambda _, x: functional.relu(x)).to(dtype)
    expected = method(Inside(lambda _, x: functional.relu(x)).to(dtype).float())(IMAGE, TARGET)
    maps = method(model)(IMAGE, TARGET)
    assert maps.dtype == torch.float32
    worst = float((maps - expected).abs().max() / expected.abs().max())
    assert worst < {torch.float16: 0.02, torch.bfloat16: 0.1, torch.float64: 1e-4}[dtype]
