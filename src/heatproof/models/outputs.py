"""Logits (N, K) of whatever a network returns, through hooks on the network, which stays as it is otherwise.

Names of layers and of weights do not change. `read` runs two images through the network once and decides:

- which tensor holds the logits: the output itself, `logits` of a record or dict, the only element of a tuple that fits;
- in which shape: (N, K), (N,) as (N, 1), (N, K, 1, 1);
- whether they are logits: rows that are probabilities already are refused, or brought back to logits on request;
- how logits become probabilities (`probabilities.Kind`); one output z is read as two labels with the logits (-z, z).

Images are given the type of the network's weights, and logits of half precision become float32.
"""

import contextlib
import dataclasses
import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from heatproof.errors import HeatproofError, ModelError
from heatproof.models.probabilities import ATTRIBUTE, Kind

logger = logging.getLogger(__name__)

Output = Literal["softmax", "sigmoid", "probabilities"]
"""What a configuration says of a network's outputs: logits of a softmax, logits of labels, or probabilities."""

_HALVES = (torch.float16, torch.bfloat16)
_MOVES = (
    "View",
    "Reshape",
    "Squeeze",
    "Unsqueeze",
    "Select",
    "Slice",
    "ToCopy",
    "Clone",
    "Alias",
    "Permute",
    "Transpose",
)
_PROBABILITIES = ("Softmax", "Sigmoid")  # as autograd calls the functions that give them
_WAY_OUT = "return logits (N, K) alone, or in a dict or record under the name logits"


class Outputs:
    """How the outputs of one network are read.

    Attributes:
        name: of the network, for messages.
        kind: how its logits become probabilities.
        classes: K, the number of logits that callers see.
        norms_single_values: whether a batch norm sees one value of each channel for an image, so that a batch of one
            image cannot be trained.
    """

    def __init__(self, name: str):
        self.name = name
        self.kind: Kind = "softmax"
        self.classes = 0
        self.norms_single_values = False
        self._columns: int | None = None  # of the network's own output
        self._change: Callable[[Tensor], Tensor] | None = None
        self._is_changing = True
        self._in_training: Literal["first", "mean"] | None = None
        self._has_spoken = False

    @property
    def is_pair(self) -> bool:
        """Whether the network has one output, from which two logits are made."""
        return self._columns == 1 and self.classes == 2

    @property
    def changes(self) -> bool:
        """Whether logits are computed from the network's outputs, and are not the outputs themselves."""
        return self._change is not None

    def logits(self, outputs: Tensor) -> Tensor:
        """Logits (N, K) of the network's own outputs (N, k)."""
        return outputs if self._change is None else self._change(outputs)

    @contextlib.contextmanager
    def unchanged(self) -> Iterator[None]:
        """Inside the block the network gives its own outputs (N, k)."""
        before, self._is_changing = self._is_changing, False
        try:
            yield
        finally:
            self._is_changing = before

    def decide(self, matrix: Tensor, output: Output, binary: bool, last_function: Callable[[], str | None]) -> None:
        """Decides from the network's own outputs (N, k) for some images how they become logits.

        Raises:
            ModelError: they are probabilities and should not be, or the other way round.
        """
        self._columns = self.classes = matrix.shape[1]
        tolerance = 2e-2 if matrix.dtype in _HALVES else 1e-3
        values = matrix.detach().double()
        in_range = bool(((values >= 0) & (values <= 1 + tolerance)).all())
        sums_to_one = in_range and bool(((values.sum(dim=1) - 1).abs() <= tolerance).all())
        if output == "probabilities" and not in_range:
            raise ModelError(
                f"{self.name}: model.output (explain: --model-output) says probabilities, but its outputs reach from {values.min():.3g} to "
                f"{values.max():.3g}; set it to softmax or sigmoid"
            )
        if sums_to_one and self._columns == 1:
            raise ModelError(
                f"{self.name}: its only output is always 1, as that of a softmax over one class; remove the softmax"
            )
        if output != "probabilities" and (sums_to_one or (in_range and last_function() in _PROBABILITIES)):
            why = "each row sums to 1, as behind a softmax" if sums_to_one else "they come from a softmax or sigmoid"
            raise ModelError(
                f"{self.name}: its outputs are probabilities already ({why}), and another softmax or sigmoid would follow; "
                "set model.output (explain: --model-output) to probabilities, or remove the last layer"
            )
        if self._columns == 1:
            if binary:
                self.kind, self.classes = "sigmoid", 2
                self._change = _pair_of_probability if output == "probabilities" else _pair
        elif output == "probabilities":
            self.kind = "softmax" if sums_to_one else "sigmoid"
            self._change = _logarithm if sums_to_one else _logit
        elif output == "sigmoid":
            self.kind = "sigmoid"

    def matrix(self, raw: Any, images: int, wanted: int | None, module: nn.Module, inputs: Tensor | None) -> Tensor:
        """The network's own outputs (N, k).

        Args:
            raw: what it returned.
            images: N.
            wanted: k where it is known; picks one of several tensors.
            module: the network.
            inputs: what `raw` was computed from; None where two tensors that fit are an error.

        Raises:
            ModelError: no tensor has this form, or several have.
        """
        if isinstance(raw, Tensor) and raw.ndim == 2 and raw.is_floating_point():
            return raw
        tensors = _tensors(raw)
        matrices = [found for tensor in tensors if (found := _matrix(tensor, images, wanted)) is not None]
        fitting = [found for found in matrices if wanted in (None, found.shape[1])]
        chosen = matrices if len(matrices) == 1 else fitting
        if len(chosen) == 1:
            return chosen[0]
        if len(chosen) > 1 and inputs is not None and module.training:
            return self._of_training(chosen, module, inputs)
        if isinstance(raw, Tensor):
            got = f"{_described(raw)} for {images} images"
        else:
            inside = ", ".join(_described(tensor) for tensor in tensors) or "no tensor"
            got = f"a {type(raw).__name__} with {inside} for {images} images"
        several = "more than one of which can be the logits" if len(chosen) > 1 else "expected logits (N, K)"
        raise ModelError(f"{self.name}: gives {got}, {several}; {_WAY_OUT}")

    def cast(self, module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """A forward pre-hook: gives the images the type of the network's weights."""
        if not arguments or not isinstance(arguments[0], Tensor) or not arguments[0].is_floating_point():
            return None
        dtype = next((weight.dtype for weight in module.parameters() if weight.is_floating_point()), None)
        if dtype in (None, arguments[0].dtype):
            return None
        return (arguments[0].to(dtype), *arguments[1:])

    def read(self, module: nn.Module, arguments: tuple[Any, ...], raw: Any) -> Tensor:
        """A forward hook: logits (N, K) in place of what the network returned."""
        if not isinstance(raw, Tensor) and module.training and not self._has_spoken:
            self._has_spoken = True
            logger.info("%s: gives several outputs in training; only the main one is learnt", self.name)
        matrix = self.matrix(raw, len(arguments[0]), self._columns, module, arguments[0])
        if matrix.dtype in _HALVES:
            matrix = matrix.float()
        return self.logits(matrix) if self._is_changing else matrix

    def _of_training(self, matrices: list[Tensor], module: nn.Module, images: Tensor) -> Tensor:
        """Of several outputs (N, k) in training, that which evaluation gives: the first, or the mean of all."""
        if self._in_training is None:
            self._in_training = self._compared(module, images[:2].detach())
        return matrices[0] if self._in_training == "first" else torch.stack(matrices).mean(dim=0)

    def _compared(self, module: nn.Module, images: Tensor) -> Literal["first", "mean"]:
        modes = [(part, part.training) for part in module.modules()]
        try:
            with torch.no_grad(), torch.random.fork_rng(_devices(images)):
                for part, _ in modes:
                    # Dropout and batch norm as in evaluation; what contains other modules takes its way through training.
                    part.training = next(part.children(), None) is not None
                several = [_matrix(tensor, len(images), self._columns) for tensor in _tensors(module.forward(images))]
                module.eval()
                one = self.matrix(module.forward(images), len(images), self._columns, module, None)
        finally:
            for part, mode in modes:
                part.training = mode
        fitting = [matrix for matrix in several if matrix is not None and matrix.shape == one.shape]
        near = 1e-3 * float(one.abs().max())
        if torch.allclose(fitting[0], one, rtol=1e-3, atol=near):
            return "first"
        if torch.allclose(torch.stack(fitting).mean(dim=0), one, rtol=1e-3, atol=near):
            return "mean"
        raise ModelError(
            f"{self.name}: gives {len(fitting)} outputs of {one.shape[1]} numbers in training, and neither the first nor their "
            f"mean is its output in evaluation; {_WAY_OUT}"
        )


def outputs_of(model: Any) -> Outputs | None:
    """How the outputs of a network are read; None where it gives logits (N, K) of its own accord."""
    found: Outputs | None = getattr(model, ATTRIBUTE, None)
    return found


def read(
    module: nn.Module,
    images: Tensor,
    *,
    name: str,
    output: Output = "softmax",
    classes: int | None = None,
    binary: bool = True,
) -> Outputs:
    """Makes a network give logits (N, K), whatever it returns, after a look at its outputs for some images.

    Args:
        module: the network, on the device of the images.
        images: (N, C, H, W), normalised; of two different images, probabilities are recognised with certainty.
        name: of the network, for messages.
        output: what its outputs are.
        classes: of the data; picks one of several tensors where it has as many columns.
        binary: one output becomes two logits; else it stays one.

    Raises:
        ModelError: the network does not take such images, or its outputs cannot be read.
    """
    if (earlier := outputs_of(module)) is not None:  # a constructor that returns one network twice
        return earlier
    reading = Outputs(name)
    with _hooked(module, reading) as hooks:
        raw = _forward(module, images, reading)
        matrix = reading.matrix(raw, len(images), classes, module, None)
        if not bool(matrix.isfinite().all()):
            logger.warning("%s: gives NaN or infinity for an image of noise", name)
        reading.decide(matrix, output, binary, lambda: _last_function(module, images, reading, classes))
        if hooks is None and (matrix is not raw or reading.changes):
            raise ModelError(
                f"{name}: is scripted and takes no hooks, so its outputs cannot be read as logits; {_WAY_OUT}"
            )
        if hooks is not None:
            hooks.pop_all()
            module.register_forward_hook(reading.read)
    setattr(module, ATTRIBUTE, reading)
    return reading


def norms_single_values(module: nn.Module) -> bool:
    """Whether a batch of one image cannot be trained, because a batch norm sees one value of each channel."""
    reading = outputs_of(module)
    return reading is not None and reading.norms_single_values


def own_outputs(model: nn.Module) -> tuple[nn.Module, Callable[[Tensor], Tensor]]:
    """A network that gives its own outputs (N, k), and the function from them to logits; the network itself where they are one.

    For methods with rules for each function that a network calls: what follows the outputs has the ordinary ones.
    """
    reading = outputs_of(model)
    if reading is None or not reading.changes:
        return model, lambda outputs: outputs
    return _Unchanged(model, reading), reading.logits


class _Unchanged(nn.Module):
    def __init__(self, model: nn.Module, reading: Outputs):
        super().__init__()
        self.model = model
        self.reading = reading

    def forward(self, images: Tensor) -> Any:
        """The network's own outputs."""
        with self.reading.unchanged():
            return self.model(images)


@contextlib.contextmanager
def _hooked(module: nn.Module, reading: Outputs) -> Iterator[contextlib.ExitStack | None]:
    """The images get the network's type inside; None where the network takes no hooks."""
    with contextlib.ExitStack() as hooks:
        try:
            hooks.callback(module.register_forward_pre_hook(reading.cast).remove)
        except RuntimeError:  # torch.jit.script
            yield None
            return
        yield hooks


def _forward(module: nn.Module, images: Tensor, reading: Outputs) -> Any:
    """What the network returns in evaluation mode; notes on the way whether batch norms see single values."""

    def note(part: nn.Module, arguments: tuple[Any, ...]) -> None:
        values: Tensor = arguments[0]
        reading.norms_single_values |= values.numel() == len(images) * values.shape[1]

    norms = [part for part in module.modules() if isinstance(part, _BatchNorm)]
    with _evaluated(module, images), torch.no_grad(), contextlib.ExitStack() as hooks:
        for norm in norms:
            hooks.callback(norm.register_forward_pre_hook(note).remove)
        try:
            return module(images.clone())
        except HeatproofError:
            raise
        except Exception as error:
            shape = " x ".join(map(str, images.shape[1:]))
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            raise ModelError(
                f"{reading.name}: fails for images of {shape}{_wrong_channels(module, images.shape[1])}: {reason}"
            ) from error


@contextlib.contextmanager
def _evaluated(module: nn.Module, images: Tensor) -> Iterator[None]:
    """Evaluation mode, outside of inference mode; generators and modes are as before afterwards."""
    modes = [(part, part.training) for part in module.modules()]
    try:
        module.eval()
        with torch.inference_mode(mode=False), torch.random.fork_rng(_devices(images)):
            yield
    finally:
        for part, mode in modes:
            part.training = mode


def _devices(images: Tensor) -> list[int]:
    return [images.device.index or 0] if images.device.type == "cuda" else []


def _wrong_channels(module: nn.Module, channels: int) -> str:
    first = next((part for part in module.modules() if isinstance(part, nn.Conv2d)), None)
    if first is None or first.in_channels == channels or 3 not in (channels, first.in_channels):
        return ""
    if channels == 1:
        return (
            f" (the pictures are grey and its first layer takes {first.in_channels} channels: build it for one channel with "
            "constructor_args, or repeat the grey channel in a model.transformer)"
        )
    return (
        f" (the pictures have {channels} channels and its first layer takes {first.in_channels}: build it for {channels} "
        "channels with constructor_args)"
    )


def _last_function(module: nn.Module, images: Tensor, reading: Outputs, classes: int | None) -> str | None:
    """The name of the function that made the outputs, as autograd calls it; None where it is not known."""
    try:
        with _evaluated(module, images), torch.enable_grad():
            raw = module(images.detach().clone().requires_grad_().clone())
            node = reading.matrix(raw, len(images), classes, module, None).grad_fn
    except (RuntimeError, TypeError):  # a network that cannot be differentiated
        return None
    while node is not None and node.name().startswith(_MOVES):
        node = node.next_functions[0][0]
    return None if node is None else node.name().partition("Backward")[0]


def _tensors(raw: Any) -> list[Tensor]:
    """The tensors of an output among which the logits are; one where that is plain."""
    if isinstance(raw, Tensor):
        return [raw]
    named = raw if isinstance(raw, Mapping) else getattr(raw, "__dict__", {})
    logits = named["logits"] if "logits" in named else getattr(raw, "logits", None)
    if isinstance(logits, Tensor):
        return [logits]
    is_record = isinstance(raw, Mapping) or dataclasses.is_dataclass(raw)
    values = raw if isinstance(raw, tuple | list) else named.values() if is_record else ()
    return [value for value in values if isinstance(value, Tensor)]


def _matrix(tensor: Tensor, images: int, columns: int | None) -> Tensor | None:
    """Outputs of N images as (N, k); None where they have another form."""
    if not tensor.is_floating_point():
        return None
    if images == 1 and tensor.ndim < 2 and columns in (None, tensor.numel()):  # squeezed
        return tensor.reshape(1, -1)
    if tensor.ndim == 0 or len(tensor) != images:
        return None
    if tensor.ndim == 2:
        return tensor
    width = 1 if tensor.ndim == 1 else tensor.shape[1]
    return tensor.reshape(images, width) if tensor.numel() == images * width else None


def _described(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"


def _pair(outputs: Tensor) -> Tensor:
    return torch.cat((-outputs, outputs), dim=1)


def _pair_of_probability(outputs: Tensor) -> Tensor:
    return _pair(_logit(outputs))


def _logarithm(outputs: Tensor) -> Tensor:
    return outputs.clamp(min=torch.finfo(outputs.dtype).tiny).log()


def _logit(outputs: Tensor) -> Tensor:
    return torch.logit(outputs, eps=torch.finfo(outputs.dtype).eps)
