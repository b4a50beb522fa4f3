"""Weights in files as people save them: which tensors of a file are a network's, and do they fit it exactly?

A file is data: it is read with torch's restricted unpickler, or as safetensors, which build tensors and run nothing.
Training scripts keep a state dict in many ways: inside of a dict of other things (`state_dict`, `model_state_dict`, `model`,
`net`), below the prefix of what wrapped the network (`module.` of DataParallel, `model.` of Lightning, `_orig_mod.` of
torch.compile, `encoder.`), or in several of them. So each tensor of a file gets one dotted name, its place in the file; and
the weights of a network are the tensors that have, below one prefix, all of its names and no other, in its shapes. Where that
is so below two prefixes, as with a moving average beside the weights, the file does not say which are meant.
"""

import argparse
import hashlib
import importlib
import itertools
import logging
import pickle
import re
import warnings
from collections import Counter, OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from heatproof import records
from heatproof.errors import ModelError

logger = logging.getLogger(__name__)

State = dict[str, Tensor]
Shapes = dict[str, tuple[int, ...]]

_COMPILED = "_orig_mod."  # what torch.compile puts into names, at any depth
_NAMED = 3  # names of parameters in a message


class _Inert:
    """Stands for a value beside the weights whose type is not built, such as a NumPy scalar; it keeps nothing."""

    def __new__(cls, *_: Any) -> "_Inert":
        return super().__new__(cls)

    def __setstate__(self, state: Any) -> None:
        pass


# What training scripts leave beside the weights: options, which are plain attributes, and values that nobody reads here.
_BESIDE: list[Any] = [
    argparse.Namespace,
    *(
        (_Inert, name)
        for name in (
            "numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar", "numpy.dtype",
            *(f"numpy.dtypes.{kind}DType" for kind in ("Float64", "Float32", "Int64", "Int32", "Bool")),
            "pathlib.PosixPath", "pathlib._local.PosixPath", "pathlib.WindowsPath", "pathlib._local.WindowsPath",
        )
    ),
]  # fmt: skip


def read_weights(path: Path) -> State:
    """All tensors of a file, each by its place in the file, such as `state_dict.conv1.weight`; nothing that it says is run.

    Raises:
        ModelError: the file is missing, damaged, holds no tensor, wants to run code, or is a file of ours that is more than
            the weights of a network.
    """
    content = read_plain(path)
    if isinstance(content, Mapping) and str(kind := content.get("format")).startswith("heatproof/"):
        raise ModelError(
            f"{path}: is a file of {kind}, not the weights of a network alone; name the file that is meant"
        )
    state: State = {}
    for name, tensor in _tensors(content):
        if name in state:
            raise ModelError(f"{path}: has two tensors of the name {name}; save model.state_dict() alone")
        state[name] = tensor
    if not state:
        raise ModelError(
            f"{path}: holds no tensor with a name ({type(content).__name__}); "
            "expected a dict of tensors by name, as model.state_dict() gives"
        )
    return state


def read_plain(path: Path) -> Any:
    """Tensors and plain values from a file of torch.save or of safetensors, read without running anything that it says.

    Raises:
        ModelError: the file is missing, damaged, or wants to run code.
        DamagedError: it is not what the stage wrote that left it.
    """
    records.beside(path)
    if not path.is_file():
        is_folder = " is a folder; name the file of weights in it" if path.is_dir() else " no such file of weights"
        raise ModelError(f"{path}:{is_folder}")
    try:
        if _is_safetensors(path):
            return _read_safetensors(path)
        with warnings.catch_warnings(), torch.serialization.safe_globals(_BESIDE):
            warnings.simplefilter("ignore")  # about pickle protocols; what cannot be read raises
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        wanted = re.search(r"GLOBAL ([\w.]+)", str(error))
        runs = f" (it names {wanted[1]})" if wanted else ""
        raise ModelError(
            f"{path}: is no tensors-only file of weights{runs}; nothing of it was run; where you trust it, load it as it was "
            "saved, and save the network's weights alone: torch.save(model.state_dict(), path)"
        ) from error
    except (RuntimeError, EOFError, ValueError, LookupError, OSError, AttributeError, TypeError) as error:
        if "TorchScript" in str(error):
            raise ModelError(
                f"{path}: is a TorchScript archive, which holds code; where you trust it, save its weights alone: "
                "torch.save(torch.jit.load(path).state_dict(), other_path)"
            ) from error
        reason = " ".join(str(error).split())[:120]
        raise ModelError(
            f"{path}: is no file of weights, or a damaged one ({type(error).__name__}: {reason})"
        ) from error


def put_weights(module: nn.Module, state: State, *, where: str, arch: str) -> None:
    """Gives a module its weights; all of them, and no others.

    Args:
        module: gets the weights.
        state: tensors by name, as `read_weights` gives them: what wraps the names is found.
        where: the file, for messages.
        arch: the module, for messages.

    Raises:
        ModelError: the weights do not fit, naming some that are missing, unknown or of another shape; they fit in several
            places of the file and differ; or they are not finite.
    """
    expected = shapes(module.state_dict())
    places = [place for place in _places(expected, state) if _misfit(expected, place.weights) is None]
    if not places:
        nearest = next(_places(expected, state), Place("", state, 0))
        raise ModelError(f"{where}: does not fit {arch}: {_misfit(expected, nearest.weights)}")
    place = places[0]
    if any(not _equal(place.weights, other.weights) for other in places[1:]):
        key = places[-1].prefix.partition(".")[0]
        raise ModelError(
            f"{where}: holds weights that fit {arch} below {_either([place.prefix for place in places])}, and they differ; "
            f"save those that are meant alone, as in torch.save(torch.load(path)[{key!r}], other_path)"
        )
    for name, value in place.weights.items():
        _check_values(f"{where}: {name}", value)
    if place.others:
        logger.info("%s: the weights below %r are read; %d other tensors are not", where, place.prefix, place.others)
    own = module.state_dict()
    # Some modules read by the version that their state dict states (MNASNet, batch norms). Names and shapes are those of this one.
    fitting = OrderedDict((name, place.weights.get(name, value)) for name, value in own.items())
    fitting._metadata = own._metadata  # type: ignore[attr-defined]
    module.load_state_dict(fitting)


@dataclass(frozen=True)
class Place:
    """Where a file has the weights of a network.

    Args:
        prefix: what stands before their names in the file.
        weights: by the network's own names.
        others: number of the file's tensors that are not among them.
    """

    prefix: str
    weights: State
    others: int


def fits(expected: Shapes, state: State) -> bool:
    """Whether a file has all weights of a network and no others in one place at least, in its shapes."""
    return any(_misfit(expected, place.weights) is None for place in _places(expected, state))


def with_all_names(expected: Shapes, state: State) -> list[State]:
    """What a file has for a network, by the network's names, wherever these are complete; the shapes may differ."""
    return [place.weights for place in _places(expected, state) if not any(_other_names(expected, place.weights))]


def below(state: State, name: str, where: str) -> State:
    """The tensors of a file that stand beside the one of this name, without what stands before their names; all, where none has it.

    Raises:
        ModelError: there are several of this name.

    >>> below({"state_dict.gate.bias": torch.zeros(1), "state_dict.gate.scale": torch.ones(1)}, "gate.bias", "file.pt")
    {'gate.bias': tensor([0.]), 'gate.scale': tensor([1.])}
    """
    prefixes = [key.removesuffix(name) for key in state if key == name or key.endswith(f".{name}")]
    if len(prefixes) > 1:
        raise ModelError(f"{where}: holds {name} below {_either(prefixes)}; save one of them alone")
    return _stripped(state, prefixes[0]) if prefixes else state


def shapes(state: Mapping[str, Tensor]) -> Shapes:
    """The shape of each tensor."""
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def state_sha256(module: nn.Module) -> str:
    """SHA-256 over names, types, shapes and bytes of a module's parameters and buffers, sorted by name.

    >>> twins = [nn.Conv2d(1, 1, 1), nn.Conv2d(1, 1, 1)]
    >>> _ = twins[1].load_state_dict(twins[0].state_dict())
    >>> state_sha256(twins[0]) == state_sha256(twins[1])
    True
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def library(where: str, package: str, *, extra: str) -> Any:
    """A package that an extra installs.

    Raises:
        ModelError: it is not installed.
    """
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        if error.name != package:
            raise
        raise ModelError(
            f"{where}: needs the package {package}, which is not installed; "
            f"`uv sync --extra {extra}` or `pip install 'heatproof[{extra}]'`"
        ) from error


def _either(prefixes: list[str]) -> str:
    return " and ".join(repr(prefix.rstrip(".")) for prefix in prefixes)


def _equal(one: State, other: State) -> bool:
    return all(torch.equal(value, other[name]) for name, value in one.items() if name in other)


def _is_safetensors(path: Path) -> bool:
    """Whether a file begins as safetensors do: the length of a JSON object in 8 bytes, and the object."""
    with path.open("rb") as file:
        head = file.read(9)
    return path.suffix == ".safetensors" or (
        head[8:] == b"{" and int.from_bytes(head[:8], "little") < path.stat().st_size
    )


def _read_safetensors(path: Path) -> Any:
    safetensors = library(str(path), "safetensors", extra="models")
    try:
        return importlib.import_module("safetensors.torch").load_file(path, device="cpu")
    except safetensors.SafetensorError as error:
        raise ValueError(str(error)) from error


def _tensors(content: Any, where: str = "", outside: tuple[int, ...] = ()) -> Iterator[tuple[str, Tensor]]:
    """The tensors inside of dicts and lists, each with its place."""
    if isinstance(content, Tensor):
        if where:
            yield where.replace(_COMPILED, ""), content.detach()
        return
    inside: Any = ()
    if isinstance(content, Mapping):
        inside = content.items()
    elif isinstance(content, list | tuple):
        inside = enumerate(content)
    if id(content) in outside:  # a pickle can hold itself
        return
    for key, value in inside:
        yield from _tensors(value, f"{where}.{key}" if where else str(key), (*outside, id(content)))


def _places(expected: Shapes, state: State) -> Iterator[Place]:
    """Where a file has some of a network's names behind one prefix; those with the most first."""
    for outer in _wrappings(expected):
        names = {name.removeprefix(outer) for name in expected}
        counts = Counter(name[:start] for name in state for start in _starts(name) if name[start:] in names)
        for prefix, _ in counts.most_common():
            inside = {outer + name: value for name, value in _stripped(state, prefix).items()}
            yield Place(prefix, inside, len(state) - len(inside))


def _wrappings(expected: Shapes) -> Iterator[str]:
    """What a file's names may lack of a network's: nothing, or the name of the one module that holds all others."""
    outer, names = "", list(expected)
    while True:
        yield outer
        first = {name.partition(".")[0] for name in names}
        # A single layer's own names, weight and bias, would fit any layer.
        if len(first) != 1 or all(name.count(".") < 2 for name in names):
            return
        outer += f"{first.pop()}."
        names = [name.removeprefix(outer) for name in expected]


def _starts(name: str) -> Iterator[int]:
    return itertools.chain([0], (match.end() for match in re.finditer(r"\.", name)))


def _stripped(state: State, prefix: str) -> State:
    return {name[len(prefix) :]: value for name, value in state.items() if name.startswith(prefix)}


def _misfit(expected: Shapes, state: State) -> str | None:
    """How a state dict does not fit; None where it does."""
    missing, unknown = _other_names(expected, state)
    of_other_shape = [
        f"{name} has shape {tuple(state[name].shape)} in the file and {shape} in the model"
        for name, shape in expected.items()
        if name in state and tuple(state[name].shape) != shape
    ]
    phrases = []
    if missing:
        phrases.append(f"the file has no {_some(missing)}")
    if unknown:
        phrases.append(f"the model has no {_some(unknown)}")
    if of_other_shape:
        phrases.append(f"{_some(of_other_shape)}; check the number of classes and constructor_args")
    return "; ".join(phrases) or None


def _other_names(expected: Shapes, state: State) -> tuple[list[str], list[str]]:
    """A network's names that a state dict lacks, and those that only the state dict has."""
    # Files from before PyTorch 0.4.1 have no counters of batches; nothing reads them.
    missing = [name for name in expected if name not in state and not name.endswith("num_batches_tracked")]
    return missing, [name for name in state if name not in expected]


def _check_values(where: str, value: Tensor) -> None:
    if value.is_quantized or value.layout != torch.strided or value.is_meta:
        raise ModelError(f"{where} is quantised, sparse or without values; save the weights as plain tensors")
    wide = value.float() if value.itemsize == 1 else value
    if value.is_floating_point() and not bool(wide.isfinite().all()):
        raise ModelError(f"{where} holds NaN or infinity; the file is damaged, or its training diverged")


def _some(phrases: list[str]) -> str:
    more = f" (and {len(phrases) - _NAMED} more)" if len(phrases) > _NAMED else ""
    return ", ".join(phrases[:_NAMED]) + more
