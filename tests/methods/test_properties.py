"""What holds for every attribution method, checked over all of them at once."""

import contextlib
import dataclasses
import gc
import inspect

import numpy as np
import pytest
import torch
from torch import nn

from heatproof import plugins
from heatproof.errors import InputError, ModelError
from heatproof.methods import cam, catalogue, controls, gradient, perturbation
from heatproof.models.vit import ViTTiny
from tests.methods.networks import small_resnet
from tests.models import vits

FAMILIES = (gradient, cam, perturbation, controls)


def squares(indices):
    """Regions of a data set that knows them: a corner whose size depends on the index."""
    regions = np.zeros((len(indices), 12, 10), dtype=bool)
    for region, index in zip(regions, indices, strict=True):
        region[: 1 + index % 7, :4] = True
    return regions


METHODS = {
    "Gradient": lambda model: gradient.Gradient(model),
    "InputXGradient": lambda model: gradient.InputXGradient(model),
    "IntegratedGradients": lambda model: gradient.IntegratedGradients(model, steps=6),
    "GuidedBackprop": lambda model: gradient.GuidedBackprop(model),
    "Deconvolution": lambda model: gradient.Deconvolution(model),
    "SmoothGrad": lambda model: gradient.SmoothGrad(model, samples=4),
    "SmoothGradSquared": lambda model: gradient.SmoothGradSquared(model, samples=4),
    "VarGrad": lambda model: gradient.VarGrad(
        model, base="integrated_gradients", base_options={"steps": 2}, samples=3, stdev_mode="absolute"
    ),
    "DeepLift": lambda model: gradient.DeepLift(model),
    "GradientShap": lambda model: gradient.GradientShap(model, baselines=[0.0, [1.0, 0.0, -1.0]], samples=5, stdev=0.1),
    "Lrp": lambda model: gradient.Lrp(model),
    "GradCam": lambda model: cam.GradCam(model, layer="last"),
    "GradCam smoothed": lambda model: cam.GradCam(model, layer="last", eigen_smooth=True, aug_smooth=True),
    "GradCamPlusPlus": lambda model: cam.GradCamPlusPlus(model, layer="last"),
    "ScoreCam": lambda model: cam.ScoreCam(model, layer="last"),
    "LayerCam": lambda model: cam.LayerCam(model, layer="relu"),
    "EigenCam": lambda model: cam.EigenCam(model, layer="last"),
    "GuidedGradCam": lambda model: cam.GuidedGradCam(model, layer="last"),
    "Occlusion": lambda model: perturbation.Occlusion(model, window=(4, 3)),
    "Rise": lambda model: perturbation.Rise(model, masks=20, cells=3),
    "KernelShap": lambda model: perturbation.KernelShap(model, samples=40, cells=3),
    "Lime": lambda model: perturbation.Lime(model, samples=40, cells=3),
    "Random": lambda model: controls.Random(model),
    "Sobel": lambda model: controls.Sobel(model),
    "CentreGaussian": lambda model: controls.CentreGaussian(model),
    "Uniform": lambda model: controls.Uniform(model),
    "Oracle": lambda model: controls.Oracle(model, regions=squares),
    "AntiOracle": lambda model: controls.AntiOracle(model, regions=squares),
}
IGNORE_THE_MODEL = {"Random", "Sobel", "CentreGaussian", "Uniform", "Oracle", "AntiOracle"}
LOOK_AT_THE_MODEL = {name: make for name, make in METHODS.items() if name not in IGNORE_THE_MODEL}

INDICES = torch.tensor([5, 2, 9])
TARGETS = torch.tensor([0, 3, 1])


def some_images(dtype=torch.float32):
    return torch.randn(3, 3, 12, 10, generator=torch.Generator().manual_seed(1)).to(dtype)


def explain(method, images, targets, indices):
    """Calls a method with indices if it takes them."""
    named = {"indices": indices} if "indices" in inspect.signature(method).parameters else {}
    return method(images, targets, **named)


def options_of(make):
    return {field.name for field in dataclasses.fields(make(small_resnet()))}


def over(methods):
    return pytest.mark.parametrize("make", methods.values(), ids=methods)


def traces(model):
    """All that a method could leave behind in a model."""
    hooks = [
        len(getattr(module, kind))
        for module in model.modules()
        for kind in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    ]
    flags = [parameter.requires_grad for parameter in model.parameters()]
    gradients = [parameter.grad for parameter in model.parameters()]
    modes = [module.training for module in model.modules()]
    stack = torch.overrides._get_current_function_mode_stack()
    return hooks, flags, gradients, modes, stack, {k: sorted(vars(m)) for k, m in model.named_modules()}


def test_no_method_is_left_out():
    public = {
        name
        for family in FAMILIES
        for name, found in inspect.getmembers(family, dataclasses.is_dataclass)
        if not name.startswith("_") and "model" in {field.name for field in dataclasses.fields(found)}
    }
    assert public == {name.split()[0] for name in METHODS}


@over(METHODS)
def test_maps_are_float32_detached_and_of_the_images_size(make):
    maps = explain(make(small_resnet()), some_images(), TARGETS, INDICES)
    assert maps.dtype == torch.float32
    assert not maps.requires_grad
    assert maps.shape in {(3, 12, 10), (3, 3, 12, 10)}
    assert torch.isfinite(maps).all()


@over(METHODS)
def test_a_batch_gives_the_maps_of_its_images_one_by_one(make):
    method, images = make(small_resnet(torch.float64)), some_images(torch.float64)  # as for rows_per_forward
    maps = explain(method, images, TARGETS, INDICES)
    alone = [explain(method, images[i : i + 1], TARGETS[i : i + 1], INDICES[i : i + 1])[0] for i in range(3)]
    for together, single in zip(maps, alone, strict=True):
        torch.testing.assert_close(together, single, rtol=0, atol=1e-6 * float(single.abs().max()))


@over({name: make for name, make in METHODS.items() if "Oracle" not in name})
def test_without_indices_too(make):
    method, images = make(small_resnet(torch.float64)), some_images(torch.float64)  # as for rows_per_forward
    maps = method(images, TARGETS)
    alone = torch.cat([method(images[i : i + 1], TARGETS[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(maps, alone, rtol=0, atol=1e-6 * float(alone.abs().max()))


@over(METHODS)
def test_images_differ_and_so_do_maps(make):
    method, images = make(small_resnet()), some_images()
    maps = explain(method, images, TARGETS, INDICES)
    differ = type(method).__name__ not in {"CentreGaussian", "Uniform"}
    assert torch.equal(maps[0], maps[1]) != differ


@over(METHODS)
def test_the_same_seed_gives_the_same_bytes(make):
    maps = [explain(make(small_resnet()), some_images(), TARGETS, INDICES).numpy().tobytes() for _ in range(2)]
    assert maps[0] == maps[1]


@over({name: make for name, make in METHODS.items() if "seed" in options_of(make) and name != "Rise"})
def test_what_is_drawn_depends_on_seed_and_index_only(make):
    method, images = make(small_resnet()), some_images()[:1].expand(3, 3, 12, 10)
    targets = TARGETS[:1].expand(3)
    first = explain(method, images, targets, torch.tensor([4, 7, 4]))
    assert torch.equal(first[0], first[2])
    assert not torch.equal(first[0], first[1])
    other = explain(dataclasses.replace(method, seed=1), images, targets, torch.tensor([4, 7, 4]))
    assert not torch.equal(first[0], other[0])


@over({name: make for name, make in METHODS.items() if "rows_per_forward" in options_of(make)})
@pytest.mark.parametrize("rows_per_forward", [1, 7])
def test_rows_per_forward_bounds_the_batch_and_changes_nothing(make, rows_per_forward):
    sizes = []
    # In double precision: a convolution of another batch size may be another kernel, which rounds otherwise.
    model, images = small_resnet(torch.float64), some_images(torch.float64)
    model.register_forward_pre_hook(lambda _, arguments: sizes.append(len(arguments[0])))
    method = make(model)
    expected = explain(method, images, TARGETS, INDICES)
    sizes.clear()
    if type(method).__name__ == "VarGrad":
        method = dataclasses.replace(method, base_options={"steps": 2, "rows_per_forward": rows_per_forward})
    maps = explain(dataclasses.replace(method, rows_per_forward=rows_per_forward), images, TARGETS, INDICES)
    allowed = max(rows_per_forward, 3 if isinstance(method, cam.ScoreCam) else 1)  # its activations: one plain pass
    assert max(sizes) <= allowed
    torch.testing.assert_close(maps, expected, rtol=0, atol=1e-6 * float(expected.abs().max()))


@over(METHODS)
@pytest.mark.parametrize("fails_at", [None, 0, 1])
def test_the_model_is_left_untouched_also_after_an_error(make, fails_at):
    model = small_resnet().train()
    model.bn1.eval()
    model.fc.bias.requires_grad_(False)
    before, state = traces(model), {key: value.clone() for key, value in model.state_dict().items()}
    calls = []

    def stumble(*_):
        calls.append(1)
        if fails_at is not None and len(calls) > fails_at:
            raise KeyError("stumbled")

    handle = model.fc.register_forward_pre_hook(stumble)
    try:
        explain(make(model), some_images(), TARGETS, INDICES)
    except KeyError:
        assert fails_at is not None
    handle.remove()
    assert traces(model) == before
    for key, value in model.state_dict().items():
        assert torch.equal(value, state[key]), key


def live_tensors():
    gc.collect()
    return sum(type(found) is torch.Tensor for found in gc.get_objects())


@over(METHODS)
def test_nothing_is_kept_from_batch_to_batch(make):
    method = make(small_resnet())
    explain(method, some_images(), TARGETS, INDICES)
    before = live_tensors()
    for _ in range(3):
        explain(method, some_images(), TARGETS, INDICES)
    assert live_tensors() <= before


@over(METHODS)
@pytest.mark.parametrize("asks_for_gradients", [False, True])
def test_the_callers_tensors_are_left_untouched(make, asks_for_gradients):
    images, targets = some_images().requires_grad_(asks_for_gradients), TARGETS.clone()
    explain(make(small_resnet()), images, targets, INDICES)
    assert images.requires_grad == asks_for_gradients
    assert images.grad is None
    assert images.grad_fn is None
    assert torch.equal(images, some_images())
    assert torch.equal(targets, TARGETS)


class Centred(nn.Module):
    """A model that changes its input in place."""

    def __init__(self):
        super().__init__()
        self.inner = small_resnet()
        self.last, self.relu = self.inner.last, self.inner.relu

    def forward(self, images):
        images -= 0.5
        return self.inner(images)


@over(LOOK_AT_THE_MODEL)
def test_a_model_that_works_in_place_does_not_change_the_images(make):
    images = some_images()
    explain(make(Centred().eval()), images, TARGETS, INDICES)
    assert torch.equal(images, some_images())


@over(METHODS)
def test_the_maps_do_not_depend_on_the_callers_modes(make):
    images = some_images()
    expected = explain(make(small_resnet()), images, TARGETS, INDICES)
    assert torch.equal(explain(make(small_resnet().train()), images, TARGETS, INDICES), expected)
    method = make(small_resnet())
    with torch.no_grad():
        assert torch.equal(explain(method, images, TARGETS, INDICES), expected)
    with torch.inference_mode():
        assert torch.equal(explain(method, images, TARGETS, INDICES), expected)
        assert torch.equal(explain(method, images.clone(), TARGETS, INDICES), expected)


@over(METHODS)
def test_double_precision_gives_the_same_maps(make):
    single = explain(make(small_resnet()), some_images(), TARGETS, INDICES)
    double = explain(make(small_resnet(torch.float64)), some_images(torch.float64), TARGETS, INDICES)
    assert double.dtype == torch.float32
    torch.testing.assert_close(single, double, rtol=0, atol=1e-4 * float(double.abs().max()))


@over(METHODS)
def test_channels_last_gives_the_same_maps(make):
    images = some_images()
    expected = explain(make(small_resnet()), images, TARGETS, INDICES)
    maps = explain(make(small_resnet()), images.contiguous(memory_format=torch.channels_last), TARGETS, INDICES)
    torch.testing.assert_close(maps, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


@over(METHODS)
def test_wrong_batches_are_refused_by_name(make):
    method, images = make(small_resnet()), some_images()
    with pytest.raises(InputError, match=r"images: shape \(3, 12, 10\) has 3 axes; expected \(N, C, H, W\)"):
        explain(method, images[0], TARGETS, INDICES)
    with pytest.raises(InputError, match=r"targets: shape \(2,\)"):
        explain(method, images, TARGETS[:2], INDICES)
    with pytest.raises(InputError, match=r"targets: dtype torch.float32; expected int64"):
        explain(method, images, TARGETS.float(), INDICES)
    with pytest.raises(InputError, match=r"images: dtype torch.uint8; expected floating point"):
        explain(method, images.byte(), TARGETS, INDICES)


@over({name: make for name, make in LOOK_AT_THE_MODEL.items() if name != "EigenCam"})
def test_a_target_that_is_no_class_is_named(make):
    with pytest.raises(InputError, match=r"targets: class 4, but the model has 4 classes \(0 to 3\)"):
        explain(make(small_resnet()), some_images(), torch.tensor([0, 4, 1]), INDICES)


OPTIONS = {
    "layer": "blocks.0.norm1", "regions": squares, "baselines": [0.0], "window": (4, 3), "cells": 3, "samples": 6,
    "steps": 3, "masks": 6, "masks_layer": 2,
}  # fmt: skip
# What asks for ReLUs, has no rule for what transformers call, or loads what a stage of its own trained.
NOT_FOR_TRANSFORMERS = {"guided-backprop", "deconvolution", "guided-grad-cam", "lrp"}
FOR_TRANSFORMERS = {
    name: path
    for name, path in catalogue.factories().items()
    if name not in NOT_FOR_TRANSFORMERS and "checkpoint" not in catalogue.options_of(path, provided=())
}


def small_vit():
    return vits.randomised(ViTTiny(4, img_size=(12, 10), patch_size=2, embed_dim=16, depth=2, num_heads=2))


def on_a_transformer(path, model):
    """The method of this dotted path with small numbers of whatever it counts."""
    known = catalogue.options_of(path, provided=())
    return plugins.resolve(path)(model, **{name: value for name, value in OPTIONS.items() if name in known})


@pytest.mark.parametrize("path", FOR_TRANSFORMERS.values(), ids=FOR_TRANSFORMERS)
def test_on_a_transformer_an_error_between_two_calls_leaves_no_trace_and_the_same_bytes(path):
    model = small_vit().train()
    model.blocks[0].eval()
    next(model.parameters()).requires_grad_(False)
    before, state = traces(model), {name: value.clone() for name, value in model.state_dict().items()}
    method = on_a_transformer(path, model)
    first = explain(method, some_images(), TARGETS, INDICES)
    assert traces(model) == before
    called = []

    def stumble(*_):
        called.append(1)
        raise KeyError("stumbled")

    for module in (model.patch_embed, model.blocks[1].mlp, model.head):
        called.clear()
        handle = module.register_forward_pre_hook(stumble)
        with contextlib.suppress(KeyError):
            explain(method, some_images(), TARGETS, INDICES)
        handle.remove()
        assert bool(called) != (type(method).__name__ in IGNORE_THE_MODEL)
        assert traces(model) == before
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert explain(method, some_images(), TARGETS, INDICES).numpy().tobytes() == first.numpy().tobytes()


@pytest.mark.parametrize("name", sorted(NOT_FOR_TRANSFORMERS))
def test_what_does_not_fit_a_transformer_says_so_and_leaves_no_trace(name):
    model = small_vit()
    before, method = traces(model), on_a_transformer(catalogue.factories()[name], model)
    with pytest.raises(ModelError):
        explain(method, some_images(), TARGETS, INDICES)
    assert traces(model) == before


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@over(METHODS)
def test_a_gpu_gives_the_same_maps(make):
    expected = explain(make(small_resnet()), some_images(), TARGETS, INDICES)
    device = torch.device("cuda")
    maps = explain(make(small_resnet().to(device)), some_images().to(device), TARGETS.to(device), INDICES.to(device))
    assert maps.device.type == "cuda"
    torch.testing.assert_close(maps.cpu(), expected, rtol=0, atol=1e-3 * float(expected.abs().max()))
