"""Each method on one network, held against the truth."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from torch import Tensor

from tests.compatibility import truths
from tests.compatibility.explained import Case
from tests.compatibility.networks import Network

FAMILIES: Mapping[str, tuple[str, ...]] = {
    "gradient": ("gradient", "input-x-gradient", "smooth-grad"),
    "integrated gradients": ("integrated-gradients",),
    "DeepLift": ("deep-lift",),
    "guided backprop, deconvolution": ("guided-backprop", "deconvolution"),
    "LRP": ("lrp",),
    "CAM": ("grad-cam", "grad-cam-plus-plus", "layer-cam", "eigen-cam"),
    "occlusion": ("occlusion",),
    "attention": ("attention-rollout", "gradient-rollout", "chefer"),
    "stop-gradient": ("stop-gradient",),
}
"""The methods of each column of the table; each is held against a truth."""

CLIPPED = ("grad-cam-plus-plus", "layer-cam")
"""Methods of which nothing may be left where all speaks against the class; grad-cam is compared without its clip."""

DISTANCE = 0.02
"""Largest distance of a map from the true one, as a share of the true one's length (Euclidean): rounding of single precision.

Exchanged axes, the wrong class or a forgotten factor are at .5 and more.
"""

ROUGH, ROUGH_DISTANCE = ("integrated-gradients", "lrp", "grad-cam-plus-plus"), 0.1
"""Methods that magnify rounding.

Integrated gradients merge batch norms, which moves a ReLU's input across zero now and then, at one of few points; drawn RegNets were
.03 away. LRP's rule epsilon divides by sums near 0, and Grad-CAM++ by 2 + g sum(A); .02 away.
"""


def options(network: Network) -> dict[str, dict[str, Any]]:
    """Options of each method, so that its true map can be computed."""
    half = -(-network.side // 2)
    special: dict[str, dict[str, Any]] = {
        "gradient": {"absolute": False},
        "smooth-grad": {"samples": 2, "stdev": 0.0},
        "integrated-gradients": {"steps": truths.STEPS},
        "deep-lift": {"max_pool": "rescale"},
        "lrp": {"composite": "epsilon"},
        "occlusion": {"window": half, "stride": half},
        **{method: {"layer": network.layer} for method in FAMILIES["CAM"]},
        "grad-cam": {"layer": network.layer, "relu": False},
        "attention-rollout": {"discard_ratio": 0.0},
        "gradient-rollout": {"discard_ratio": 0.0},
    }
    return {method: special.get(method, {}) for family in FAMILIES.values() for method in family}


def true_maps(case: Case) -> dict[str, Tensor]:
    """The true map (H, W) of each method that was not refused and has one."""
    network, model, image, target = case.network, case.model, case.image, case.target
    truth: dict[str, Callable[[], Tensor | None]] = {
        "integrated-gradients": lambda: _summed(truths.integrated(model, image, target)),
        "guided-backprop": lambda: _summed(truths.guided(model, image, target)),
        "deconvolution": lambda: _summed(truths.deconvolution(model, image, target)),
        "lrp": lambda: _summed(truths.lrp_zero(model, image, target)),
        "occlusion": lambda: truths.occlusion(model, image, target),
        "stop-gradient": lambda: _summed(truths.stop_gradient(model, image, target)),
    }
    gradient = truths.gradient(model, image, target)
    maps = {
        "gradient": _summed(gradient), "smooth-grad": _summed(gradient), "input-x-gradient": _summed(gradient * image)
    }  # fmt: skip
    maps |= {method: true for method, make in truth.items() if method in case.maps and (true := make()) is not None}
    if FAMILIES["CAM"][0] in case.maps:
        activations, gradients = truths.at_layer(model, image, target, network.layer, network.layout)
        formulas = (truths.grad_cam, truths.grad_cam_plus_plus, truths.layer_cam, truths.eigen_cam)
        for method, formula in zip(FAMILIES["CAM"], formulas, strict=True):
            maps[method] = truths.enlarged(formula(activations, gradients), image)
    if "chefer" in case.maps:
        attention, gradients = truths.attention(model, image, target)
        for method, formula, scaled in (
            ("attention-rollout", truths.rollout, True),
            ("gradient-rollout", truths.gradient_rollout, True),
            ("chefer", truths.chefer, False),
        ):
            row = truths.read_out(formula(attention, gradients), network.layout)
            maps[method] = truths.enlarged(row / row.max() if scaled else row, image)
    return maps


def unknown(case: Case) -> set[str]:
    """Methods whose true map is not computed."""
    return set(case.maps) - set(true_maps(case)) - {"deep-lift"}


def wrong(case: Case) -> list[str]:
    """What is not true of the maps, one line for each; no line where all is well."""
    lines = []
    maps = true_maps(case)
    for method, found in case.maps.items():
        if method == "deep-lift":
            missed = abs(float(found.sum()) - truths.difference(case.model, case.image, case.target))
            if not missed <= 1e-4 * np.abs(found).sum():
                lines.append(f"deep-lift: the sum misses the difference of the logits by {missed:.3g}")
            continue
        if method not in maps:
            if not np.isfinite(found).all():
                lines.append(f"{method}: not finite")
            continue
        true = maps[method].detach().numpy()
        length = np.linalg.norm(true)
        if length == 0 and method in CLIPPED and not found.any():
            continue
        distance = np.linalg.norm(found - true) / length if length > 0 else np.inf
        if not distance <= (ROUGH_DISTANCE if method in ROUGH else DISTANCE):
            lines.append(f"{method}: {distance:.3g} of the true map's length ({length:.3g}) away from it")
    return lines


def _summed(values: Tensor | None) -> Tensor | None:
    return None if values is None else values.sum(dim=1)[0]
