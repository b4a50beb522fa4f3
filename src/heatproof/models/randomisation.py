"""Forgetting what a model has learnt, layer by layer: copies with re-initialised parameters, for sanity checks.

A map that explains a model must change with it. What is drawn for a layer depends on (seed, layer name) alone, so that
all orders end in the same fully randomised model, and a continued run meets the same models.
"""

import copy
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from heatproof import seeding
from heatproof.errors import InputError, ModelError

RESULTS_VERSION = 1

Order = Literal["top_down", "bottom_up", "independent"]
Initialisation = Literal["published", "reset"]


class Step(NamedTuple):
    """One randomised model: the layer that is new in it, and all that are re-initialised."""

    layer: str
    randomised: tuple[str, ...]


def layers(model: nn.Module, depth: int | None = 2) -> list[str]:
    """Names of the layers that are re-initialised one after another, in the order in which the model defines them.

    Args:
        model: any; only modules with parameters count.
        depth: at this depth of the tree of modules (1: the model's own children); a module without children stays where
            it is. Parameters that a module above that depth holds itself (a class token) are layers under their own name.
            None: every module that can re-initialise itself (`reset_parameters`), at any depth.

    Returns:
        Names as in `named_modules()` or `named_parameters()`.

    Raises:
        InputError: a depth below 1.
        ModelError: the model has no such layer.

    >>> layers(nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1))))
    ['0', '1.0', '1.2']
    >>> layers(nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1))), depth=1)
    ['0', '1']
    """
    if depth is not None and depth < 1:
        raise InputError(f"depth: {depth} must be 1 or more, or None")
    if depth is None:
        found = [name for name, module in model.named_modules() if hasattr(module, "reset_parameters")]
    else:
        found = list(_at_depth(model, depth, ""))
    if not found:
        raise ModelError(f"{type(model).__name__}: no layer {'to re-initialise' if depth else 'has reset_parameters'}")
    return found


def _at_depth(module: nn.Module, depth: int, prefix: str) -> Iterator[str]:
    children = [(name, child) for name, child in module.named_children() if any(True for _ in child.parameters())]
    if prefix and (depth == 0 or not children):
        yield prefix
        return
    dot = f"{prefix}." if prefix else ""
    for name, _ in module.named_parameters(recurse=False):
        yield dot + name
    for name, child in children:
        yield from _at_depth(child, depth - 1, dot + name)


def steps(names: Sequence[str], order: Order) -> list[Step]:
    """The randomised models of an order, one for each layer.

    Args:
        names: the layers, from the input to the output.
        order: "top_down": cascading from the output; "bottom_up": cascading from the input; in both, what was
            re-initialised stays so. "independent": one layer at a time, from the output, the others as learnt.

    >>> steps(["conv", "fc"], "top_down")
    [Step(layer='fc', randomised=('fc',)), Step(layer='conv', randomised=('fc', 'conv'))]
    >>> steps(["conv", "fc"], "independent")
    [Step(layer='fc', randomised=('fc',)), Step(layer='conv', randomised=('conv',))]
    """
    if order not in ("top_down", "bottom_up", "independent"):
        raise InputError(f"order: {order!r} is not one of top_down, bottom_up, independent")
    walk = tuple(names) if order == "bottom_up" else tuple(reversed(names))
    if order == "independent":
        return [Step(name, (name,)) for name in walk]
    return [Step(name, walk[: number + 1]) for number, name in enumerate(walk)]


def randomised(
    model: nn.Module,
    names: Sequence[str],
    seed: int,
    *,
    initialisation: Initialisation = "published",
    keep_statistics: bool = True,
) -> nn.Module:
    """A copy of the model in which the parameters of some layers are drawn anew; the model itself stays as it is.

    Args:
        model: in any mode, on any device.
        names: layers, as from `layers`.
        seed: root seed.
        initialisation: "published": the rule of the masking-based saliency code: kernels of four or more axes from
            N(0, sqrt(2 / (out * in * width))), vectors of n values from U(-1/sqrt(n), 1/sqrt(n)), everything else from
            U(-1/sqrt(f), 1/sqrt(f)) with f values for each output; it disturbs normalisation layers too. "reset": each
            module's own `reset_parameters`, which for a normalisation layer draws nothing: weights 1, biases 0.
        keep_statistics: the running mean and variance of normalisation layers stay as learnt, as in the published code;
            False puts them back to 0 and 1.

    Returns:
        The copy, with the modes and device of the model.

    Raises:
        ModelError: a layer that the model does not have, or that cannot re-initialise itself where "reset" asks for it.

    >>> model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    >>> other = randomised(model, ["1"], seed=0)
    >>> [bool((a == b).all()) for a, b in zip(model.parameters(), other.parameters())]
    [True, True, False, False]
    """
    result = copy.deepcopy(model)
    modules = dict(result.named_modules())
    parameters = dict(result.named_parameters(remove_duplicate=False))
    for name in names:
        if name not in modules and name not in parameters:
            raise ModelError(f"layer {name!r}: {type(model).__name__} has no such layer")
        with torch.no_grad():
            if name in modules and initialisation == "reset":
                _reset(modules[name], name, seed, keep_statistics=keep_statistics)
            elif name in modules:
                _draw(dict(modules[name].named_parameters(prefix=name)), seed)
                if not keep_statistics:
                    _forget_statistics(modules[name])
            else:
                _draw({name: parameters[name]}, seed)
    return result


def _draw(parameters: dict[str, nn.Parameter], seed: int) -> None:
    # By the parameter's name, so that a layer's values do not depend on the depth at which layers are counted.
    for name, parameter in parameters.items():
        generator = seeding.generator(seed, "mprt", name)
        shape = tuple(parameter.shape)
        if len(shape) >= 4:
            values = generator.normal(0.0, np.sqrt(2 / (shape[0] * shape[1] * shape[-1])), shape)
        else:
            inputs = int(np.prod(shape[1:])) if len(shape) > 1 else parameter.numel()
            values = generator.uniform(-1.0, 1.0, shape) / np.sqrt(max(1, inputs))
        parameter.copy_(torch.as_tensor(values))


def _reset(layer: nn.Module, name: str, seed: int, *, keep_statistics: bool) -> None:
    """Each module below, and the layer itself, by its own `reset_parameters`, drawn on the CPU."""
    able = [(path, module) for path, module in layer.named_modules(prefix=name) if hasattr(module, "reset_parameters")]
    covered = {id(p) for _, module in able for p in module.parameters()}
    missing = [path for path, parameter in layer.named_parameters(prefix=name) if id(parameter) not in covered]
    if missing:
        raise ModelError(f"layer {name!r}: nothing resets {missing[0]!r}; use initialisation: published")
    for path, module in able:
        fresh = copy.deepcopy(module).cpu()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seeding.derive(seed, "mprt", path))
            fresh.reset_parameters()
        for own, new in zip(module.parameters(), fresh.parameters(), strict=True):
            own.copy_(new)
        if not keep_statistics:
            _forget_statistics(module)


def _forget_statistics(layer: nn.Module) -> None:
    for module in layer.modules():
        for name, value in (("running_mean", 0.0), ("running_var", 1.0)):
            held = getattr(module, name, None)
            if isinstance(held, Tensor):
                held.fill_(value)
