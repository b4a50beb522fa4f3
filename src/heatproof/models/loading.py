"""Classifiers by name, with weights that fit exactly or not at all (`weights.py`), and the normalisation that belongs to them."""

import contextlib
import functools
import inspect
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from heatproof import artefacts, downloads, plugins, records
from heatproof.errors import HeatproofError, MissingInputError, ModelError, nearest
from heatproof.models.normalization import Normalization
from heatproof.models.weights import (
    State,
    fits,
    library,
    put_weights,
    read_weights,
    shapes,
    state_sha256,
    with_all_names,
)

RESULTS_VERSION = 1

logger = logging.getLogger(__name__)

Known = Callable[[], Normalization | None]
"""The normalisation that a model's library names for it; None where it names none."""


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
    default_normalization: Normalization | Known | None = None,
) -> LoadedModel:
    """Builds a classifier and gives it its weights.

    Weights that are not loaded are drawn from torch's global generator: the caller seeds it.

    Args:
        arch: dotted path of a class or function that returns a module, `torchvision.models.resnet50`, `timm:NAME`, or
            `hf:NAME` (a name on the Hugging Face hub, or a folder).
        num_classes: handed to the constructor where it has such a parameter; the library's own weights keep theirs.
        channels: of the pictures; handed on as `in_channels` (`in_chans` for timm) where the constructor has it.
        constructor_args: further arguments; they win over `num_classes` and `channels`.
        pretrained_weights: file of weights, as `weights.read_weights` reads it; `DEFAULT` for the library's own; None leaves
            them drawn.
        transformer: dotted path called with (model, num_classes); returns the model to use, say with a new head. A file of
            weights may be that of the model before or after it.
        normalization: wins over all others.
        default_normalization: of drawn weights, usually of the data that they will be trained on.

    Raises:
        PluginError: a dotted path leads nowhere, or an argument does not fit.
        ModelError: weights are missing, unsafe, damaged or of another architecture; an extra is not installed; the
            normalisation is unknown.

    >>> loaded = load("heatproof.models.resnet_cifar.ResNet8", num_classes=4, normalization=Normalization((0.5,), (0.5,)))
    >>> loaded.module(torch.zeros(1, 3, 32, 32)).shape
    torch.Size([1, 4])
    """
    blueprint = _Blueprint(arch, num_classes, channels, dict(constructor_args or {}), transformer)
    if pretrained_weights is None or pretrained_weights == "DEFAULT":
        module, known = blueprint.build(library_weights=pretrained_weights is not None)
        module = blueprint.transformed(module)
        sha256 = state_sha256(module)
    else:
        module, known = _with_weights(blueprint, Path(pretrained_weights))
        sha256 = artefacts.sha256(Path(pretrained_weights))
    chosen = normalization or _normalization(blueprint, pretrained_weights, known, default_normalization)
    return LoadedModel(module.eval(), chosen, sha256)


def _normalization(
    blueprint: "_Blueprint", weights: str | Path | None, known: Known, drawn: Normalization | Known | None
) -> Normalization:
    """The normalisation of weights, where the user names none.

    A file's is in the JSON file beside it, which train-cls writes; failing that, it is the one that the model's library uses
    for its own weights, and the log says so. Never is it that of the data at hand: the file was trained on others.

    Raises:
        ModelError: nobody knows it.
    """
    if weights is None and drawn is not None:
        found = drawn if isinstance(drawn, Normalization) else drawn()
    elif weights is None or weights == "DEFAULT":
        found = known()
    else:
        found = _beside(Path(weights)) or _of_library(blueprint, weights, known)
    if found is None:
        raise ModelError(
            f"{blueprint.arch if weights in (None, 'DEFAULT') else weights}: its normalisation is unknown; set normalization: "
            "{mean: [...], std: [...]} (explain: --mean and --std) to the values that it was trained with"
        )
    return found


def _of_library(blueprint: "_Blueprint", weights: str | Path, known: Known) -> Normalization | None:
    """The normalisation of the library's own weights for those of a file, where it has as many channels; the log says so."""
    found = known()
    if found is None or blueprint.channels not in (None, len(found.mean)):
        return None
    mean, std = (", ".join(f"{value:g}" for value in values) for values in (found.mean, found.std))
    logger.info(
        "%s: no normalisation is stored beside it; that of the library's own weights for %s is used: mean %s, std %s; "
        "set normalization where these were trained with another",
        weights, blueprint.arch, mean, std,
    )  # fmt: skip
    return found


def classes_in(
    state: State,
    arch: str,
    *,
    where: str,
    channels: int | None = None,
    constructor_args: Mapping[str, Any] | None = None,
    transformer: str | None = None,
) -> int | None:
    """For how many classes weights were trained: what `num_classes` must be for the network to have their shapes.

    The network is built for two numbers of classes; the sides of its parameters that differ are those that count classes.

    Returns:
        The number; None where it changes nothing, or the names are not the network's.

    Raises:
        ModelError: the tensors are of different numbers of classes.
    """
    few, many = (
        shapes(blueprint.transformed(blueprint.build()[0]).state_dict())
        for blueprint in (_Blueprint(arch, n, channels, dict(constructor_args or {}), transformer) for n in _PROBES)
    )
    sides = [
        (name, axis)
        for name in few
        for axis in range(len(few[name]))
        if len(many.get(name, ())) == len(few[name]) and few[name][axis] != many[name][axis]
    ]
    counts = set()
    for weights in with_all_names(few, state):
        for name, axis in sides:
            if weights[name].ndim == len(few[name]):
                slope = (many[name][axis] - few[name][axis]) / (_PROBES[1] - _PROBES[0])
                counts.add(_PROBES[0] + (weights[name].shape[axis] - few[name][axis]) / slope)
    if len(counts) > 1:
        raise ModelError(
            f"{where}: its heads are of {' and '.join(f'{n:g}' for n in sorted(counts))} classes; "
            "save the weights of one network alone"
        )
    return int(counts.pop()) if counts else None


_PROBES = 5, 7


@dataclass(frozen=True)
class _Blueprint:
    """All that a network is built from, so that it can be built again."""

    arch: str
    num_classes: int
    channels: int | None
    arguments: dict[str, Any]
    transformer: str | None

    def build(self, *, library_weights: bool = False) -> tuple[nn.Module, Known]:
        """The network, and the normalisation of its library's own weights."""
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
        known = {"num_classes": self.num_classes} | ({} if self.channels is None else {"in_channels": self.channels})
        arguments = plugins.given(target, known) | self.arguments  # which may say otherwise
        return _module(self.arch, lambda: plugins.build(self.arch, target, arguments)), lambda: None

    def transformed(self, module: nn.Module) -> nn.Module:
        """The network with what the transformer changes."""
        path = self.transformer
        if path is None:
            return module
        change = plugins.resolve(path)
        return _module(path, lambda: plugins.build(path, change, {}, module, self.num_classes))


def _with_weights(blueprint: _Blueprint, path: Path) -> tuple[nn.Module, Known]:
    state = read_weights(path)
    module, known = blueprint.build()
    fits_before = fits(shapes(module.state_dict()), state)
    module = blueprint.transformed(module)
    if fits_before and not fits(shapes(module.state_dict()), state):
        # The file belongs to the network as it was before the transformer.
        module, known = blueprint.build()
        put_weights(module, state, where=str(path), arch=blueprint.arch)
        return blueprint.transformed(module), known
    put_weights(module, state, where=str(path), arch=blueprint.arch)
    return module, known


def _from_torchvision(
    blueprint: _Blueprint, builder: Callable[..., Any], library_weights: bool
) -> tuple[nn.Module, Known]:
    from torchvision.models import get_model_weights  # slow to import

    arch, arguments = blueprint.arch, blueprint.arguments
    plugins.check_options(arch, builder, arguments, provided=("weights", "progress"))
    try:
        weights = get_model_weights(builder).DEFAULT
    except (ValueError, AttributeError):
        weights = None

    def normalization() -> Normalization | None:
        if weights is None:
            return None
        transforms = weights.transforms()
        return Normalization(tuple(transforms.mean), tuple(transforms.std))

    if not library_weights:
        arguments = {"num_classes": blueprint.num_classes, **arguments}
        return _module(arch, lambda: builder(weights=None, **arguments)), normalization
    if weights is None:
        raise ModelError(f"{arch}: torchvision has no weights for it; name a file in pretrained_weights")
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    with fetching(arch, f"put {weights.url} into {folder}"):
        if not (folder / weights.url.rpartition("/")[2]).is_file():
            downloads.announce(f"{weights.url} into {folder}")
        module = builder(weights=weights, **arguments)
    return module, normalization


def _from_timm(blueprint: _Blueprint, library_weights: bool) -> tuple[nn.Module, Known]:
    timm = library(blueprint.arch, "timm", extra="models")
    name = blueprint.arch.removeprefix("timm:")
    if not timm.is_model(name):
        raise ModelError(f"{blueprint.arch}: timm has no model {name!r}{nearest(name, timm.list_models())}")
    if library_weights:
        with fetching(blueprint.arch, "fill the cache of the Hugging Face hub on a machine with network"):
            module = timm.create_model(name, pretrained=True, **blueprint.arguments)
        return module, functools.partial(_of_timm, module)
    offered = {"num_classes": blueprint.num_classes, "in_chans": blueprint.channels}
    arguments = {key: value for key, value in offered.items() if value is not None} | blueprint.arguments
    module = _module(blueprint.arch, lambda: timm.create_model(name, pretrained=False, **arguments))
    return module, functools.partial(_of_timm, module)


def _of_timm(module: Any) -> Normalization | None:
    known = getattr(module, "pretrained_cfg", None) or {}
    return Normalization(tuple(known["mean"]), tuple(known["std"])) if {"mean", "std"} <= known.keys() else None


def _from_hugging_face(blueprint: _Blueprint, library_weights: bool) -> tuple[nn.Module, Known]:
    transformers = library(blueprint.arch, "transformers", extra="hf")
    name, arguments = blueprint.arch.removeprefix("hf:"), blueprint.arguments
    fix = "fill the cache of the Hugging Face hub on a machine with network, or give a folder as hf:FOLDER"
    classifiers = transformers.AutoModelForImageClassification

    def normalization() -> Normalization:
        with fetching(blueprint.arch, "set model.normalization", what="image processor"):
            processor = transformers.AutoImageProcessor.from_pretrained(name)
            return Normalization(tuple(processor.image_mean), tuple(processor.image_std))

    if not library_weights:
        with fetching(blueprint.arch, fix, what="configuration"):
            config = transformers.AutoConfig.from_pretrained(name, num_labels=blueprint.num_classes)
        # What the configuration knows (sizes, depth) is set there; the rest (such as attn_implementation) is an option.
        offered = {} if blueprint.channels is None else {"num_channels": blueprint.channels}
        known = {key: value for key, value in (offered | arguments).items() if hasattr(config, key)}
        for key, value in known.items():
            setattr(config, key, value)
        options = {key: value for key, value in arguments.items() if key not in known}
        return _module(blueprint.arch, lambda: LogitsOf(classifiers.from_config(config, **options))), normalization
    with fetching(blueprint.arch, fix):
        # Only the safetensors format: the other one is a pickle.
        return LogitsOf(classifiers.from_pretrained(name, use_safetensors=True, **arguments)), normalization


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


def _module(name: str, make: Callable[[], Any]) -> nn.Module:
    """The network that a constructor returns, without what only runs it; whatever the constructor raises becomes one line."""
    try:
        module = make()
    except HeatproofError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())
        raise ModelError(f"{name}: building it failed: {type(error).__name__}: {reason}") from error
    if not isinstance(module, nn.Module):
        raise ModelError(f"{name}: returned a {type(module).__name__}; expected a torch.nn.Module")
    return _unwrapped(module)


def _unwrapped(module: nn.Module) -> nn.Module:
    """A network without torch.compile and DataParallel, whose layers have other names and see no hooks; at any depth."""
    inner = getattr(module, "_orig_mod", None)  # of torch.compile; importing its class takes seconds
    if isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
        inner = module.module
    if isinstance(inner, nn.Module):
        return _unwrapped(inner)
    for name, child in module.named_children():
        if (plain := _unwrapped(child)) is not child:
            setattr(module, name, plain)
    if getattr(module, "_compiled_call_impl", None) is not None:  # of module.compile()
        module._compiled_call_impl = None
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
        except downloads.NotNowError as error:
            raise MissingInputError(f"{arch}: a dry run does not fetch its {what} ({error})") from error
        except HeatproofError:
            raise
        except Exception as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:180]
            if unreachable is not None and isinstance(error, OSError):  # what the cache lacks
                if downloads.are_off():
                    raise MissingInputError(
                        f"{arch}: a dry run does not fetch its {what} (not in the cache)"
                    ) from error
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


def _beside(weights: Path) -> Normalization | None:
    """The normalisation in the JSON file beside a file of weights; None where there is none."""
    path = weights.with_suffix(".json")
    if not path.is_file():
        return None
    kept = records.beside(weights)
    try:
        section = kept["normalization"]
        return Normalization(tuple(section["mean"]), tuple(section["std"]))
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(
            f'{path}: lies beside the weights and should hold {{"normalization": {{"mean": [...], "std": [...]}}}}; '
            "mend or remove it"
        ) from error
