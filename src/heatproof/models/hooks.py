"""Looking into a model without leaving a trace: everything here puts the old state back, also after an error."""

import copy
import dataclasses
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from heatproof.errors import ModelError, nearest
from heatproof.models.targets import Retargeted


def module_named(model: nn.Module, name: str) -> nn.Module:
    """The submodule of this name, as in `model.named_modules()`; of a `Retargeted` model, as in the one inside.

    Raises:
        ModelError: where there is none; it lists the nearest names.

    >>> module_named(nn.Sequential(nn.ReLU()), "0")
    ReLU()
    """
    if isinstance(model, Retargeted):
        return module_named(model.model, name)
    modules: dict[str, nn.Module] = {key: m for key, m in model.named_modules(remove_duplicate=False) if key}
    if name not in modules:
        raise ModelError(f"layer {name!r}: {type(model).__name__} has no such layer{nearest(name, modules)}")
    return modules[name]


@contextmanager
def recorded(model: nn.Module, layer: str) -> Iterator[list[Tensor]]:
    """Records the output of a layer while the model runs inside the block.

    Yields:
        A list that holds, after a forward pass, one tensor: what the layer gave in its last call (one module can be
        called several times in a pass, as the ReLU of torchvision's residual blocks). Where gradients are on, they
        can be asked for with respect to it. Empty where the layer was not called. Of a tuple or record of outputs, the
        tensor that `tensor_in` names.

    Raises:
        ModelError: where there is no such layer, or where its output holds no tensor of activations.

    >>> model = nn.Sequential(nn.ReLU(), nn.Flatten())
    >>> with recorded(model, "0") as outputs:
    ...     _ = model(torch.tensor([[-1.0, 2.0]]))
    >>> outputs[0].detach()
    tensor([[0., 2.]])
    """
    outputs: list[Tensor] = []

    def keep(module: nn.Module, arguments: Any, output: Any) -> Any:
        tensor = tensor_in(output)
        if tensor is None:
            raise ModelError(f"layer {layer!r}: gives a {type(output).__name__}, not a tensor; choose another layer")
        if torch.is_grad_enabled() and not tensor.requires_grad and tensor.is_floating_point():
            # Nothing before this layer asks for gradients: the graph begins here, so that no memory goes to what lies before.
            tensor = tensor.detach().requires_grad_()
        outputs[:] = [tensor]
        # What follows works on a copy: an in-place ReLU would else overwrite what was recorded.
        return _with_tensor(output, tensor.clone())

    handle = module_named(model, layer).register_forward_hook(keep)
    try:
        yield outputs
    finally:
        handle.remove()


def recorded_output(layer: str, outputs: list[Tensor]) -> Tensor:
    """What `recorded` has kept of a layer, after a forward pass.

    Raises:
        ModelError: the layer was not called.
    """
    if not outputs:
        raise ModelError(f"layer {layer!r}: is not called when the model runs; choose another layer")
    return outputs[0]


def tensor_in(output: Any) -> Tensor | None:
    """The activations in what a module returns: the tensor itself, or of several outputs the one named `last_hidden_state`, else the first.

    None where the first of several outputs is no tensor (N, ...) with two or more further axes.

    >>> tensor_in((torch.zeros(1, 5, 8), None)).shape
    torch.Size([1, 5, 8])
    """
    if isinstance(output, Tensor):
        return output
    key = _key_of_tensor(output)
    tensor = None if key is None else _items(output)[key]
    return tensor if isinstance(tensor, Tensor) and tensor.ndim > 2 else None


def _items(output: Any) -> dict[Any, Any]:
    """Several outputs, by name or number."""
    if isinstance(output, Mapping):
        return dict(output)
    if dataclasses.is_dataclass(output) and not isinstance(output, type):
        return {field.name: getattr(output, field.name) for field in dataclasses.fields(output)}
    return dict(enumerate(output)) if isinstance(output, tuple | list) else {}


def _key_of_tensor(output: Any) -> Any:
    items = _items(output)
    return "last_hidden_state" if items.get("last_hidden_state") is not None else next(iter(items), None)


def _with_tensor(output: Any, tensor: Tensor) -> Any:
    """What a module returned, with this tensor in place of its activations; the module's own object stays as it is."""
    if isinstance(output, Tensor):
        return tensor
    key = _key_of_tensor(output)
    if isinstance(output, tuple):
        values = [tensor if number == key else value for number, value in enumerate(output)]
        return type(output)(*values) if hasattr(output, "_fields") else tuple(values)
    if isinstance(output, Mapping | list):
        changed: Any = copy.copy(output)
        changed[key] = tensor
        return changed
    return dataclasses.replace(output, **{key: tensor})


@contextmanager
def frozen_eval(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, and no gradients for parameters, inside the block.

    Then every module's mode and every parameter's `requires_grad` are as before, even where they differed
    from one another. No `.grad` is touched. What was compiled runs as it was written. Gradients with respect to inputs and outputs of layers work as usual;
    those of batch norms are right for one image as well (`_one_image_through_norms`).

    >>> model = nn.Dropout()
    >>> with frozen_eval(model):
    ...     model.training
    False
    >>> model.training
    True
    """
    modes = [(module, module.training) for module in model.modules()]
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        model.eval()
        for parameter, _ in flags:
            parameter.requires_grad = False
        with _as_written(), _one_image_through_norms(model):
            yield
    finally:
        for module, mode in modes:
            module.training = mode
        for parameter, flag in flags:
            parameter.requires_grad = flag


@contextmanager
def _one_image_through_norms(model: nn.Module) -> Iterator[None]:
    """Batch norms get one image, and its gradient, in memory that can be read in one way only.

    Of a batch of one, tokens (1, T, C) seen as (1, C, h, w) have a stride of the batch that no image fills. torch's backward
    pass on CPUs takes such a tensor for another memory format than the gradient's (seen in 2.15), and the gradient is wrong: its
    channels are exchanged with its places.
    """

    def before(module: nn.Module, arguments: tuple[Any, ...]) -> Any:
        return tuple(_plainly_stored(value) if isinstance(value, Tensor) else value for value in arguments)

    def after(module: nn.Module, arguments: tuple[Any, ...], output: Any) -> None:
        if isinstance(output, Tensor) and output.requires_grad:
            output.register_hook(_plainly_stored)

    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    handles = [norm.register_forward_pre_hook(before) for norm in norms]
    handles += [norm.register_forward_hook(after) for norm in norms]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _plainly_stored(values: Tensor) -> Tensor:
    """The tensor, copied where the stride of a batch of one is smaller than an image."""
    # Nothing here computes with the values: whoever watches the operations of a network would take that for a use of them.
    if values.shape[0] != 1 or values.stride(0) >= values.numel():
        return values
    return values.clone(memory_format=torch.contiguous_format)


@contextmanager
def _as_written() -> Iterator[None]:
    """Whatever `torch.compile` was applied to runs without it: hooks and modes see nothing of compiled code."""
    if "torch._dynamo" not in sys.modules:  # nothing was compiled, and the import takes seconds
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


def dtype_of(model: nn.Module, images: Tensor) -> torch.dtype:
    """The precision that a model runs in: that of its first parameter; of the images where it has none."""
    own = getattr(model, "dtype", None)
    if isinstance(own, torch.dtype):
        return own
    return next((parameter.dtype for parameter in model.parameters() if parameter.is_floating_point()), images.dtype)
