"""Where in the picture each entry of a layer's output belongs, whichever way the layer lays it out.

Convolutions give (N, C, h, w), Swin's blocks and the norms of ConvNeXt (N, h, w, C), transformers tokens (N, T, C), some with
class and register tokens in front. The shape does not decide: (N, 8, 8, 8) may be any layout. `Layouts` therefore runs the
model once on one image and follows the place of each value, its row and column in the picture, through all tensor operations:

- operations that only move values (permute, reshape, slice, roll, cat, pad, ...) move their places in the same way;
- convolutions, pooling and resizing of (N, C, h, w) make a new grid of h x w places;
- a matrix product mixes the last axis. Its rows keep their place, or the mean of the places that are mixed, as in patch merging;
- all other operations keep the places where they keep the shape. Otherwise the places are unknown, until a convolution makes new
  ones or a residual connection adds values whose places are known.

The places of a layer's output must form a full grid, each place once, along all axes but one, which is the channels'. The
result depends on the operations only, not on weights or pixels. A layout that is not known is never guessed: the error message
names the option `layout`.
"""

import functools
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.weak import WeakTensorKeyDictionary

from heatproof.errors import InputError, ModelError
from heatproof.models.hooks import dtype_of, frozen_eval, module_named, recorded, recorded_output, tensor_in

Layout = Callable[[Tensor], Tensor]
"""Brings a layer's output, or the gradient with respect to it, into the form (N, C, h, w)."""

_KNOWN = "channels_first (N, C, h, w), channels_last (N, h, w, C), tokens (N, T, C), or tokens:HxW such as tokens:14x14"
_TOLERANCE = 1e-4  # of places, as fractions of the picture's sides


def check_layout(where: str, layout: str | None) -> None:
    """Checks the option `layout`.

    Raises:
        InputError: it is neither None nor one of the known layouts.
    """
    names = ("channels_first", "channels_last", "tokens")
    if layout is not None and layout not in names and not re.fullmatch(r"tokens:[1-9]\d*x[1-9]\d*", str(layout)):
        raise InputError(f"{where}: layout {layout!r} is unknown; it can be {_KNOWN}")


class Layouts:
    """The layouts of layers' outputs, found once for each size of images; of a layer that is called several times, of its last call.

    Args:
        model: classifier, (N, C, H, W) -> (N, K) logits.
        layers: names of submodules, each with its option `layout`. None finds the layout by a forward pass of one image, in
            evaluation mode and without gradients. "tokens" without sizes takes all tokens as patches, on the grid that has the
            proportions of the picture; "tokens:HxW" takes the last H x W tokens.

    Raises:
        ModelError: there is no such layer; on the call, it does not run or gives no tensor, or its layout is neither found nor given.
        InputError: an option is unknown.

    >>> layouts = Layouts(nn.Sequential(nn.Conv2d(3, 5, 1), nn.Flatten(2)), {"1": None})
    >>> layouts(torch.zeros(1, 3, 4, 6))["1"](torch.zeros(2, 5, 24)).shape
    torch.Size([2, 5, 4, 6])
    """

    def __init__(self, model: nn.Module, layers: Mapping[str, str | None]) -> None:
        for layer, option in layers.items():
            module_named(model, layer)
            check_layout(f"layer {layer!r}", option)
        self.model = model
        self.layers = dict(layers)
        self._by_size: dict[tuple[int, ...], dict[str, Layout]] = {}

    def __call__(self, images: Tensor) -> dict[str, Layout]:
        """The layout of each layer for images (N, C, H, W) of this size."""
        size = tuple(images.shape[1:])
        if size not in self._by_size:
            self._by_size[size] = self._for(images)
        return self._by_size[size]

    def _for(self, images: Tensor) -> dict[str, Layout]:
        height, width = images.shape[2:]
        layouts: dict[str, Layout] = {
            layer: _Stated(layer, option, (height, width))
            for layer, option in self.layers.items()
            if option is not None
        }
        to_find = [layer for layer in self.layers if layer not in layouts]
        if to_find:
            with ExitStack() as stack:
                outputs = {layer: stack.enter_context(recorded(self.model, layer)) for layer in to_find}
                traces = traced(self.model, images, to_find)
            for layer in to_find:
                recorded_output(layer, outputs[layer])
                layouts[layer] = _found(layer, traces[layer], len(images))
        return layouts


@dataclass(frozen=True)
class Grid:
    """The layout of a layer's output whose values stand on a grid.

    Args:
        shape: of the output, without the batch.
        channels: axis of the channels in `shape`.
        size: (h, w).
        order: for each place of the grid, row by row, its position along the other axes, flattened.
    """

    shape: tuple[int, ...]
    channels: int
    size: tuple[int, int]
    order: tuple[int, ...]

    def __call__(self, values: Tensor) -> Tensor:
        """Values (N, *shape) as (N, C, h, w); values without a place, such as class tokens, are left out.

        Raises:
            ModelError: the shape is another one.
        """
        if tuple(values.shape[1:]) != self.shape:
            raise ModelError(
                f"a layer gives {tuple(values.shape[1:])} for one image and {self.shape} for another of the same size"
            )
        in_order = self.order == tuple(range(math.prod(self.shape) // self.shape[self.channels]))
        if in_order and self.channels == 0 and self.shape[1:] == self.size:
            return values
        flat = values.movedim(1 + self.channels, 1).flatten(2)
        if not in_order:
            flat = flat[:, :, torch.tensor(self.order, device=values.device)]
        grid: Tensor = flat.unflatten(2, self.size)
        return grid.contiguous()


@dataclass(frozen=True)
class _Stated:
    """A layout that the user has stated."""

    layer: str
    layout: str
    image_size: tuple[int, int]

    def __call__(self, values: Tensor) -> Tensor:
        kind, _, sizes = self.layout.partition(":")
        if values.ndim != (3 if kind == "tokens" else 4):
            raise ModelError(f"layer {self.layer!r}: gives {tuple(values.shape)}, which cannot be layout {self.layout}")
        if kind == "channels_first":
            return values
        if kind == "channels_last":
            return values.movedim(3, 1).contiguous()
        count = values.shape[1]
        size = _sizes(sizes) if sizes else _proportional(count, self.image_size)
        if size is None or math.prod(size) > count:
            raise ModelError(
                f"layer {self.layer!r}: {count} tokens do not form {'x'.join(map(str, size)) if size else 'a grid'} "
                f"for pictures of {'x'.join(map(str, self.image_size))} pixels; set layout: tokens:HxW for H x W patches, the last of the tokens"
            )
        patches: Tensor = values[:, count - math.prod(size) :].transpose(1, 2).unflatten(2, size)
        return patches.contiguous()


def _sizes(text: str) -> tuple[int, int]:
    height, width = map(int, text.split("x"))
    return height, width


def _proportional(count: int, image_size: tuple[int, int]) -> tuple[int, int] | None:
    """The grid of `count` places with the proportions of the image.

    >>> _proportional(96, (48, 32)), _proportional(97, (48, 32))
    ((12, 8), None)
    """
    height, width = image_size
    rows = math.isqrt(count * height // width)
    return (rows, count // rows) if rows and rows * rows * width == count * height and count % rows == 0 else None


# --- places
#
# The places of a tensor are a complex tensor of its shape: the row as the imaginary part and the column as the real part, both
# as the fraction of the picture's side at the middle of the cell, so above 0. 0 stands for no place.


@dataclass(frozen=True)
class Trace:
    """What a layer gave for one image: the shape, and the places of its values, or None where they are not known."""

    shape: tuple[int, ...]
    places: Tensor | None


def traced(model: nn.Module, images: Tensor, layers: Iterable[str]) -> dict[str, Trace]:
    """Runs the model on the first image, in evaluation mode, and follows the places of all values.

    Returns:
        The trace of each layer that was called and gave a tensor, in the order of their last calls.

    Raises:
        ModelError: there is no such layer.
    """
    traces: dict[str, Trace] = {}
    tracer = _Tracer()

    def noting(layer: str) -> Callable[[nn.Module, Any, Any], None]:
        def note(module: nn.Module, arguments: Any, output: Any) -> None:
            traces.pop(layer, None)
            tensor = tensor_in(output)
            if tensor is not None:
                traces[layer] = Trace(tuple(tensor.shape), tracer.places.get(tensor))

        return note

    with ExitStack() as stack:
        for layer in layers:
            stack.callback(module_named(model, layer).register_forward_hook(noting(layer)).remove)
        stack.enter_context(frozen_eval(model))
        stack.enter_context(torch.inference_mode(mode=False))
        stack.enter_context(torch.no_grad())
        image = images[:1].detach().to(dtype_of(model, images), copy=True)
        tracer.places[image] = _grid(image.shape)
        stack.enter_context(tracer)
        model(image)
    return traces


def grid_of(trace: Trace) -> Grid | None:
    """The grid on which a layer's values stand, or None where they stand on none or it is not known.

    >>> grid_of(Trace((1, 5, 4, 6), _grid((1, 5, 4, 6)))).size
    (4, 6)
    """
    if trace.places is None or len(trace.shape) < 3 or trace.shape[0] != 1:
        return None
    places, grids = trace.places[0], []
    for axis in range(places.ndim):
        means = _mean(places, axis)
        laid_out = _laid_out(means.flatten())
        if laid_out is not None:
            spread = torch.where(places == 0, 0, (places - means).abs()).max()
            grids.append((float(spread), axis, laid_out))
    if not grids:
        return None
    _, axis, (size, order) = min(grids)
    return Grid(trace.shape[1:], axis, size, order)


def _laid_out(places: Tensor) -> tuple[tuple[int, int], tuple[int, ...]] | None:
    """The size of the grid that places (P,) form, and the position of each of its cells; None where they form no full grid."""
    positions = places.nonzero()[:, 0]
    rows, columns = _ranks(places[positions].imag), _ranks(places[positions].real)
    if not len(positions):
        return None
    size = int(rows.max()) + 1, int(columns.max()) + 1
    cells = rows * size[1] + columns
    if len(cells) != math.prod(size) or len(cells.unique()) != len(cells):
        return None
    return size, tuple(positions[cells.argsort()].tolist())


def _ranks(values: Tensor) -> Tensor:
    """The rank of each value (P,) among those that differ by more than the tolerance."""
    order = values.argsort()
    steps = values[order].diff() > _TOLERANCE
    ranks = torch.zeros_like(order)
    ranks[order[1:]] = steps.cumsum(dim=0)
    return ranks


def _found(layer: str, trace: Trace, images: int) -> Layout:
    grid = grid_of(trace)
    if grid is not None:
        return grid
    shape = (images, *trace.shape[1:]) if trace.shape[0] == 1 else f"{trace.shape} for one image"
    hint = ""
    if trace.shape[0] == 1 and len(trace.shape) == 4:
        raise ModelError(
            f"layer {layer!r}: gives {shape}, and the model's operations do not show which axis holds the channels; "
            "set layout: channels_first for (N, C, h, w), or channels_last for (N, h, w, C)"
        )
    if trace.shape[0] == 1 and len(trace.shape) == 3:
        hint = "; if these are tokens (N, T, C), set layout: tokens:HxW for H x W patches, the last of the tokens"
    raise ModelError(
        f"layer {layer!r}: gives {shape}; a map needs a layer with (N, C, h, w), or a vision transformer's tokens{hint}"
    )


def _grid(shape: Sequence[int]) -> Tensor:
    """The places of a tensor (N, C, h, w)."""
    return _cells(*shape[-2:]).expand(*shape)


@functools.lru_cache(maxsize=64)
def _cells(height: int, width: int) -> Tensor:
    """The places of a grid (h, w)."""
    rows = (torch.arange(height) + 0.5) / height
    columns = (torch.arange(width) + 0.5) / width
    return torch.complex(columns.expand(height, width), rows[:, None].expand(height, width))


def _mean(places: Tensor, axis: int) -> Tensor:
    """The mean place along an axis, which stays with length 1; values without a place do not count."""
    first = places.narrow(axis, 0, 1)
    if places.stride(axis) == 0 or bool((places == first).all()):
        return first
    return places.sum(axis, keepdim=True) / (places != 0).sum(axis, keepdim=True).clamp(min=1)


def _mixed(places: Tensor | None, axis: int, shape: Sequence[int]) -> Tensor | None:
    """The places of a product over an axis, expanded to its shape; None where it mixes all of the picture."""
    if places is None:
        return None
    means = _mean(places, axis)
    mixes_all = bool((means == means.flatten()[0]).all()) and not bool((places == means).all())
    return None if mixes_all else means.expand(*shape)


def _is_grid(places: Tensor) -> bool:
    """Whether places (N, C, h, w) are rows from top to bottom and columns from left to right; a frame of padding may surround them."""
    if places.ndim != 4:
        return False
    cells = _cells(*places.shape[2:])
    if places.stride() == (0, 0, *cells.stride()) and places.data_ptr() == cells.data_ptr():
        return True  # the usual case, without a look at the values
    means = _mean(places[:1], 1)[0, 0]
    means = means[(means != 0).any(dim=1)][:, (means != 0).any(dim=0)]
    if not means.numel() or bool((means == 0).any()):
        return False
    straight = (means.imag - means.imag[:, :1]).abs().max() < _TOLERANCE
    upright = (means.real - means.real[:1]).abs().max() < _TOLERANCE
    return bool(straight & upright & (means.imag[:, 0].diff() > 0).all() & (means.real[0].diff() > 0).all())


_MOVES = {
    "permute", "transpose", "t", "swapaxes", "movedim", "expand", "slice", "select", "narrow", "unsqueeze", "squeeze",
    "index", "index_select", "gather", "take_along_dim", "cat", "stack", "roll", "flip", "rot90", "repeat",
    "repeat_interleave", "split", "split_with_sizes", "unsafe_split", "unsafe_split_with_sizes", "chunk",
    "unsafe_chunk", "tensor_split", "unbind", "unfold", "diagonal", "unflatten", "flatten", "slice_scatter",
    "select_scatter", "channel_shuffle", "im2col",
}  # fmt: skip
_VIEWS = {"view", "_unsafe_view", "reshape", "_reshape_alias"}
_GRIDS = re.compile(r"conv|pool2d|upsample|pixel_(un)?shuffle|pad2d|constant_pad_nd")
# Where the left factor is among the arguments.
_PRODUCTS = {"mm": 0, "bmm": 0, "matmul": 0, "linear": 0, "addmm": 1, "baddbmm": 1}
_REDUCTIONS = {
    "mean",
    "sum",
    "amax",
    "amin",
    "max",
    "min",
    "std",
    "var",
    "norm",
    "linalg_vector_norm",
    "logsumexp",
    "prod",
    "any",
    "all",
}
_SCRAMBLES = re.compile(r"sort|topk|scatter|index_put|index_copy|index_add|^put|grid_sampler|_fft|as_strided$")


class _Tracer(TorchDispatchMode):
    """Follows places through the operations inside the block."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.places: Any = WeakTensorKeyDictionary()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        outputs = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if not any(tensor in self.places for tensor in inputs):
            return output
        name = func._schema.name.partition("::")[2].rstrip("_")
        followed = self._followed(name, func, args, kwargs, inputs, outputs)
        for tensor, places in zip(outputs, followed, strict=True):
            self.places.pop(tensor, None)  # an operation in place may have changed what it stands for
            if places is not None and places.shape == tensor.shape:
                self.places[tensor] = places
        return output

    def _followed(
        self, name: str, func: Any, args: Any, kwargs: Any, inputs: list[Tensor], outputs: list[Tensor]
    ) -> list[Tensor | None]:
        """The places of each output."""
        if _SCRAMBLES.search(name):
            return [None for _ in outputs]
        places = self.places.get(args[0]) if isinstance(args[0], Tensor) else None
        if name in _VIEWS and places is not None:
            return [places.reshape(output.shape) if output.numel() == places.numel() else None for output in outputs]
        if name in _MOVES:
            return tree_leaves(func(*tree_map(self._moving, args), **tree_map(self._moving, kwargs)))
        if _GRIDS.search(name):
            return [self._on_new_grid(name, func, places, args, output) for output in outputs]
        if name in _PRODUCTS:
            left, right = (self.places.get(factor) for factor in args[_PRODUCTS[name] :][:2])
            return [
                _mixed(left, -1, out.shape) if left is not None else _mixed(right, -2, out.shape) for out in outputs
            ]
        if name in _REDUCTIONS and places is not None:
            axes = _argument("dim", func, args, kwargs)
            return [None if axes is None else _reduced(places, axes, output.shape) for output in outputs]
        known = [self.places[tensor] for tensor in (inputs[1:] if name == "copy" else inputs) if tensor in self.places]
        return [_kept(known, output.shape) for output in outputs]

    def _moving(self, argument: Any) -> Any:
        """An argument's places in its stead; indices stay."""
        if not isinstance(argument, Tensor):
            return argument
        if argument in self.places:
            return self.places[
                argument
            ].detach()  # a tensor of its own, since the operation may change its shape in place
        if argument.is_floating_point():
            return torch.zeros((), dtype=torch.complex64).expand(argument.shape)
        return argument.cpu()

    def _on_new_grid(self, name: str, func: Any, places: Tensor | None, args: Any, output: Tensor) -> Tensor | None:
        if places is None:
            return None
        if output.ndim == 4 and _is_grid(places):
            return _grid(output.shape)
        if name == "constant_pad_nd":
            padded: Tensor = func(places, args[1])
            return padded
        if name == "convolution" and args[1].shape[2:].numel() == 1 and output.shape[2:] == places.shape[2:]:
            return _mixed(places, 1, output.shape)
        return None


def _argument(name: str, func: Any, args: Any, kwargs: Any) -> Any:
    """The value of an operation's argument; None where it is not given."""
    position = next((n for n, argument in enumerate(func._schema.arguments) if argument.name == name), len(args))
    return args[position] if position < len(args) else kwargs.get(name)


def _reduced(places: Tensor, axes: int | Sequence[int], shape: Sequence[int]) -> Tensor:
    """The places of a mean, a sum or another reduction over axes."""
    numbers = sorted({axis % places.ndim for axis in ([axes] if isinstance(axes, int) else axes)})
    for axis in numbers:
        places = _mean(places, axis)
    return places if len(shape) == places.ndim else places.squeeze(numbers)


def _kept(known: Sequence[Tensor], shape: Sequence[int]) -> Tensor | None:
    """The places of an operation that works value by value: those of the first input of its shape, or else of one that is broadcast."""
    for places in known:
        if places.shape == torch.Size(shape):
            return places
    for places in known:
        if places.ndim == len(shape) and all(
            own in (1, length) for own, length in zip(places.shape, shape, strict=True)
        ):
            return places.expand(*shape)
    return None
