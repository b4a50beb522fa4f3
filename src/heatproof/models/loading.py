"""Classifiers by name, with weights that fit exactly or not at all.

A file of weights is data: it is read with torch's restricted unpickler, which builds tensors and runs nothing, and must
name each parameter of the network with its shape.
"""

import contextlib
import functools
import hashlib
import importlib
import inspect
import logging
import pickle
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from heatproof import artefacts, downloads, plugins
from heatproof.errors import HeatproofError, ModelError, nearest
from heatproof.models.normalization import Normalization

RESULTS_VERSION = 1

State = dict[str, Tensor]
Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class LoadedModel:
    """A classifier as a stage uses it.

    Args:
        module: (N, C, H, W) -> logits (N, K), in eval mode.
        normalization: from pixels in [0, 1] to the images that it expects.
        weights_sha256: of the file of weights; of the state dict (`state_sha256`) where the weights come from a library or
            are drawn.
    """

    module: nn.Module
    normalization: Normalization
    weights_sha256: str


def load(
    arch: str,
    *,
    num_classes: int,
    channels: int | None = None,
    constructor_args: Mapping[str, Any] | None = None,
    pretrained_weights: str | Path | None = None,
    transformer: str | None = None,
    normalization: Normalization | None = None,
    default_normalization: Normalization | Callable[[], Normalization] | None = None,
) -> LoadedModel:
    """Builds a classifier and gives it its weights.

    Weights that are not loaded are drawn from torch's global generator: the caller seeds it.

    Args:
        arch: dotted path of a class or function that returns a module, `torchvision.models.resnet50`, `timm:NAME`, or
            `hf:NAME` (a name on the Hugging Face hub, or a folder).
        num_classes: handed to the constructor where it has such a parameter; the library's own weights keep theirs.
        channels: of the pictures; handed on as `in_channels` (`in_chans` for timm) where the constructor has it.
        constructor_args: further arguments; they win over `num_classes` and `channels`.
        pretrained_weights: file with a dict of tensors; `DEFAULT` for the library's own; None leaves them drawn.
        transformer: dotted path called with (model, num_classes); returns the model to use, say with a new head. A file of
            weights may be that of the model before or after it.
        normalization: wins over all others.
        default_normalization: used where neither the library nor a JSON file beside the weights knows one.

    Raises:
        PluginError: a dotted path leads nowhere, or an argument does not fit.
        ModelError: weights are missing, unsafe, damaged or of another architecture; an extra is not installed; the
            normalisation is unknown.

    >>> loaded = load("heatproof.models.resnet_cifar.ResNet8", num_classes=4, normalization=Normalization((0.5,), (0.5,)))
    >>> loaded.module(torch.zeros(1, 3, 32, 32)).shape
    torch.Size([1, 4])
    """
    blueprint = _Blueprint(arch, num_classes, channels, dict(constructor_args or {}), transformer)
    known: Callable[[], Normalization | None]
    if pretrained_weights is None or pretrained_weights == "DEFAULT":
        module, known = blueprint.build(library_weights=pretrained_weights is not None)
        module = blueprint.transformed(module)
        sha256 = state_sha256(module)
    else:
        path = Path(pretrained_weights)
        module, known = _with_weights(blueprint, path), functools.partial(_beside, path)
        sha256 = artefacts.sha256(path)
    chosen = normalization or known() or _default(default_normalization, arch)
    return LoadedModel(module.eval(), chosen, sha256)


def read_weights(path: Path) -> State:
    """A state dict from a file, read without running anything that the file says.

    Raises:
        ModelError: the file is missing, damaged, holds something else than a dict of tensors, wants to run code, or
            holds values that are not finite.
    """
    return _checked(path, read_plain(path))


def read_plain(path: Path) -> Any:
    """Tensors and plain values from a file, read without running anything that the file says.

    Raises:
        ModelError: the file is missing, damaged, or wants to run code.
    """
    if not path.is_file():
        raise ModelError(f"{path}: no such file of weights")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickle protocols; what cannot be read raises
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        wanted = re.search(r"GLOBAL ([\w.]+)", str(error))
        runs = f" (it names {wanted[1]})" if wanted else ""
        raise ModelError(
            f"{path}: is no tensors-only file of weights{runs}; nothing of it was run; "
            "save it again as torch.save(model.state_dict(), path) where you trust it"
        ) from error
    except (RuntimeError, EOFError, ValueError, LookupError, OSError, AttributeError, TypeError) as error:
        reason = " ".join(str(error).split())[:120]
        raise ModelError(
            f"{path}: is no file of weights, or a damaged one ({type(error).__name__}: {reason})"
        ) from error


def put_weights(module: nn.Module, state: State, *, where: str, arch: str) -> None:
    """Gives a module its weights; all of them, and no others.

    Raises:
        ModelError: naming the first parameter that is missing, unknown or of another shape.
    """
    problem = _misfit(_shapes(module.state_dict()), state)
    if problem is not None:
        raise ModelError(f"{where}: does not fit {arch}: {problem}")
    module.load_state_dict(state)


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


@dataclass(frozen=True)
class _Blueprint:
    """All that a network is built from, so that it can be built again."""

    arch: str
    num_classes: int
    channels: int | None
    arguments: dict[str, Any]
    transformer: str | None

    def build(self, *, library_weights: bool = False) -> tuple[nn.Module, Callable[[], Normalization | None]]:
        """The network, and what tells the normalisation of the library's weights (None for drawn ones)."""
        if self.arch.startswith("timm:"):
            return _from_timm(self, library_weights)
        if self.arch.startswith("hf:"):
            return _from_hugging_face(self, library_weights)
        target = plugins.resolve(self.arch)
        if self.arch.startswith("torchvision.") and inspect.isfunction(target):
            return _from_torchvision(self, target, library_weights)
        if library_weights:
            raise ModelError(
                f"{self.arch}: pretrained_weights: DEFAULT stands for the weights of torchvision, timm: and hf: models; "
                "name a file"
            )
        arguments = self.wanted(target, num_classes=self.num_classes, in_channels=self.channels) | self.arguments
        plugins.check_options(self.arch, target, arguments)
        return _module(self.arch, lambda: target(**arguments)), _unknown

    def transformed(self, module: nn.Module) -> nn.Module:
        """The network with what the transformer changes."""
        if self.transformer is None:
            return module
        change = plugins.resolve(self.transformer)
        plugins.check_options(self.transformer, change, {}, positional=2)
        return _module(self.transformer, lambda: change(module, self.num_classes))

    @staticmethod
    def wanted(target: Callable[..., Any], **offered: Any) -> dict[str, Any]:
        """Of what is offered, that which is known and which the signature has."""
        known = {name: value for name, value in offered.items() if value is not None}
        return {name: value for name, value in known.items() if callable(target) and plugins.wants(target, name)}


def _with_weights(blueprint: _Blueprint, path: Path) -> nn.Module:
    state = read_weights(path)
    module, _ = blueprint.build()
    before = _misfit(_shapes(module.state_dict()), state)
    module = blueprint.transformed(module)
    after = _misfit(_shapes(module.state_dict()), state)
    if after is not None and before is None:
        # The file belongs to the network as it was before the transformer.
        module, _ = blueprint.build()
        module.load_state_dict(state)
        return blueprint.transformed(module)
    put_weights(module, state, where=str(path), arch=blueprint.arch)
    return module


def _from_torchvision(
    blueprint: _Blueprint, builder: Callable[..., Any], library_weights: bool
) -> tuple[nn.Module, Callable[[], Normalization | None]]:
    from torchvision.models import get_model_weights  # slow to import

    arch, arguments = blueprint.arch, blueprint.arguments
    plugins.check_options(arch, builder, arguments, provided=("weights", "progress"))
    if not library_weights:
        arguments = {"num_classes": blueprint.num_classes, **arguments}
        return _module(arch, lambda: builder(weights=None, **arguments)), _unknown
    try:
        weights = get_model_weights(builder).DEFAULT
    except (ValueError, AttributeError) as error:
        raise ModelError(f"{arch}: torchvision has no weights for it; name a file in pretrained_weights") from error
    with fetching(arch, f"put {weights.url} into {Path(torch.hub.get_dir()) / 'checkpoints'}"):
        module = builder(weights=weights, **arguments)

    def normalization() -> Normalization:
        transforms = weights.transforms()
        return Normalization(tuple(transforms.mean), tuple(transforms.std))

    return module, normalization


def _from_timm(blueprint: _Blueprint, library_weights: bool) -> tuple[nn.Module, Callable[[], Normalization | None]]:
    timm = _extra(blueprint.arch, "timm", extra="models")
    name = blueprint.arch.removeprefix("timm:")
    if not timm.is_model(name):
        raise ModelError(f"{blueprint.arch}: timm has no model {name!r}{nearest(name, timm.list_models())}")
    if library_weights:
        with fetching(blueprint.arch, "fill the cache of the Hugging Face hub on a machine with network"):
            module = timm.create_model(name, pretrained=True, **blueprint.arguments)
        return module, lambda: Normalization(tuple(module.pretrained_cfg["mean"]), tuple(module.pretrained_cfg["std"]))
    offered = {"num_classes": blueprint.num_classes, "in_chans": blueprint.channels}
    arguments = {key: value for key, value in offered.items() if value is not None} | blueprint.arguments
    return _module(blueprint.arch, lambda: timm.create_model(name, pretrained=False, **arguments)), _unknown


def _from_hugging_face(
    blueprint: _Blueprint, library_weights: bool
) -> tuple[nn.Module, Callable[[], Normalization | None]]:
    transformers = _extra(blueprint.arch, "transformers", extra="hf")
    name, arguments = blueprint.arch.removeprefix("hf:"), blueprint.arguments
    fix = "fill the cache of the Hugging Face hub on a machine with network, or give a folder as hf:FOLDER"
    classifiers = transformers.AutoModelForImageClassification
    if not library_weights:
        with fetching(blueprint.arch, fix, what="configuration"):
            config = transformers.AutoConfig.from_pretrained(name, num_labels=blueprint.num_classes)
        # What the configuration knows (sizes, depth) is set there; the rest (such as attn_implementation) is an option.
        offered = {} if blueprint.channels is None else {"num_channels": blueprint.channels}
        known = {key: value for key, value in (offered | arguments).items() if hasattr(config, key)}
        for key, value in known.items():
            setattr(config, key, value)
        options = {key: value for key, value in arguments.items() if key not in known}
        return _module(blueprint.arch, lambda: LogitsOf(classifiers.from_config(config, **options))), _unknown
    with fetching(blueprint.arch, fix):
        # Only the safetensors format: the other one is a pickle.
        module = LogitsOf(classifiers.from_pretrained(name, use_safetensors=True, **arguments))

    def normalization() -> Normalization:
        with fetching(blueprint.arch, "set model.normalization", what="image processor"):
            processor = transformers.AutoImageProcessor.from_pretrained(name)
            return Normalization(tuple(processor.image_mean), tuple(processor.image_std))

    return module, normalization


class LogitsOf(nn.Module):
    """Makes a Hugging Face classifier return its logits (N, K) instead of a record that holds them.

    Args:
        model: takes `pixel_values`.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, K)."""
        return self.model(pixel_values=images).logits  # type: ignore[no-any-return]


def _extra(arch: str, package: str, *, extra: str) -> Any:
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        if error.name != package:
            raise
        raise ModelError(
            f"{arch}: needs the package {package}, which is not installed; "
            f"`uv sync --extra {extra}` or `pip install 'heatproof[{extra}]'`"
        ) from error


def _module(name: str, make: Callable[[], Any]) -> nn.Module:
    """What a constructor returns; whatever it raises becomes one line."""
    try:
        module = make()
    except HeatproofError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())
        raise ModelError(f"{name}: building it failed: {type(error).__name__}: {reason}") from error
    if not isinstance(module, nn.Module):
        raise ModelError(f"{name}: returned a {type(module).__name__}; expected a torch.nn.Module")
    return module


@contextlib.contextmanager
def fetching(arch: str, fix: str, *, what: str = "weights") -> Iterator[None]:
    """Whatever a library raises inside the block, which fetches something of a model, becomes one line.

    Args:
        arch: of the model.
        fix: what the user can do.
        what: is fetched.

    Raises:
        ModelError: it could not be had.
    """
    elsewhere = arch.startswith("torchvision.") or Path(arch.removeprefix("hf:")).is_dir()
    hub = contextlib.nullcontext() if elsewhere else downloads.hub_or_its_cache()
    with downloads.bounded_wait(), hub as unreachable, _quiet("huggingface_hub", "timm", "transformers"):
        try:
            yield
        except HeatproofError:
            raise
        except Exception as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:180]
            if unreachable is not None and isinstance(error, OSError):  # what the cache lacks
                reason = unreachable
            raise ModelError(f"{arch}: its {what} could not be had ({reason}); {fix}") from error


@contextlib.contextmanager
def _quiet(*names: str) -> Iterator[None]:
    """Errors of libraries' logs only: they report each of their attempts, where our one line says it all."""
    logs = [(log, log.level) for log in map(logging.getLogger, names)]
    try:
        for log, _ in logs:
            log.setLevel(logging.ERROR)
        yield
    finally:
        for log, level in logs:
            log.setLevel(level)


def _checked(path: Path, state: Any) -> State:
    if not isinstance(state, Mapping) or not all(isinstance(name, str) for name in state):
        raise ModelError(
            f"{path}: holds a {type(state).__name__}; expected a dict of tensors by name, as model.state_dict() gives"
        )
    if not state:
        raise ModelError(f"{path}: holds no tensor; expected a dict of tensors by name, as model.state_dict() gives")
    if isinstance(kind := state.get("format"), str):
        raise ModelError(
            f"{path}: is a file of {kind}, not the weights of a network alone; name the file that is meant"
        )
    for name, value in state.items():
        if not isinstance(value, Tensor):
            inner = next((key for key in ("state_dict", "model", "net") if key in state), None)
            advice = f"save its {inner!r} alone" if inner else "save model.state_dict() alone"
            raise ModelError(f"{path}: {name!r} is a {type(value).__name__}; expected tensors only; {advice}")
        if value.is_floating_point() and not bool(value.isfinite().all()):
            raise ModelError(f"{path}: {name} holds NaN or infinity; the file is damaged, or its training diverged")
    return dict(state)


def _misfit(expected: Shapes, state: State) -> str | None:
    """How a state dict does not fit; None where it does."""
    # Files from before PyTorch 0.4.1 have no counters of batches; nothing reads them.
    missing = [name for name in expected if name not in state and not name.endswith("num_batches_tracked")]
    unknown = [name for name in state if name not in expected]
    phrases = []
    if missing:
        phrases.append(f"{missing[0]} is missing from the file{_and_more(missing)}")
    if unknown:
        phrases.append(f"the model has no {unknown[0]}{_and_more(unknown)}")
        if all(name.startswith("module.") for name in state):
            phrases.append("the file was saved from DataParallel: remove 'module.' from its names")
    if phrases:
        return "; ".join(phrases)
    for name, shape in expected.items():
        found = tuple(state[name].shape) if name in state else shape
        if found != shape:
            return (
                f"{name} has shape {found} in the file and {shape} in the model; check the classes and constructor_args"
            )
    return None


def _shapes(state: Mapping[str, Tensor]) -> Shapes:
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def _and_more(names: list[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""


def _beside(weights: Path) -> Normalization | None:
    """The normalisation in the JSON file beside a file of weights; None where there is none."""
    path = weights.with_suffix(".json")
    if not path.is_file():
        return None
    kept: Any = artefacts.read_json(path)
    try:
        section = kept["normalization"]
        return Normalization(tuple(section["mean"]), tuple(section["std"]))
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(
            f'{path}: lies beside the weights and should hold {{"normalization": {{"mean": [...], "std": [...]}}}}; '
            "mend or remove it"
        ) from error


def _unknown() -> None:
    return None


def _default(default: Normalization | Callable[[], Normalization] | None, arch: str) -> Normalization:
    if default is None:
        raise ModelError(f"{arch}: its normalisation is unknown; set normalization: {{mean: [...], std: [...]}}")
    return default if isinstance(default, Normalization) else default()
