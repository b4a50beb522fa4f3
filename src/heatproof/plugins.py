"""Whatever a configuration names by a dotted path: found here, and its options checked before anything runs."""

import hashlib
import importlib
import inspect
import pkgutil
import sys
import traceback
import types
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, Union, get_args, get_origin

from heatproof.errors import PluginError, nearest

_NAMED: set[str] = set()
"""The packages that dotted paths led to: whose code runs because a user named it."""
_OURS = {"heatproof", "torch", "torchvision"}


def resolve(path: str) -> Any:
    """The object that a dotted path such as "heatproof.methods.cam.GradCam" names.

    Raises:
        PluginError: where a part of the path does not exist (naming the nearest) or its module fails to import.
    """
    parts = path.split(".")
    _NAMED.add(parts[0])
    found: Any = _import(path, parts[0])
    if found is None:
        raise PluginError(
            f"{path}: there is no module {parts[0]!r}; is it installed, or in the folder you started from?"
        )
    for position in range(1, len(parts)):
        owner, name = found, parts[position]
        found = getattr(owner, name, None)
        if found is None and hasattr(owner, "__path__"):
            found = _import(path, ".".join(parts[: position + 1]))
        if found is None:
            raise PluginError(f"{path}: {'.'.join(parts[:position])} has no {name!r}{nearest(name, _names_in(owner))}")
    return found


def raised_by_a_plugin(error: BaseException) -> PluginError | None:
    """What a user's code, or a library that a user named by a dotted path, is to be blamed for: one line; else None.

    That is an error behind whose place in their code no code of ours stands: in a method, a fill, a network, a data set, whatever
    was named. The traceback is written to a file in the current folder.
    """
    named, ours = _NAMED - _OURS, None
    for frame, line in traceback.walk_tb(error.__traceback__):
        package = str(frame.f_globals.get("__name__", "")).split(".")[0]
        if package in named or package == "heatproof":
            ours = None if package == "heatproof" else f"{frame.f_code.co_filename}, line {line}"
    if ours is None:
        return None
    text = " ".join(f"{type(error).__name__}: {error}".split())
    text = text if len(text) <= 300 else f"{text[:300]}..."
    written = Path("heatproof-traceback.txt")
    try:
        written.write_text("".join(traceback.format_exception(error)), encoding="utf-8")
    except OSError as reason:
        return PluginError(f"{ours}: {text} (the traceback could not be written: {reason})")
    return PluginError(f"{ours}: {text} (an error in your code, not in heatproof; its traceback: {written})")


def _import(path: str, module: str) -> Any:
    """The module, or None where there is none of this name."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name == module:
            return None
        raise PluginError(f"{path}: importing {module} failed: no module named {error.name!r}") from error
    except Exception as error:  # a user's module may raise anything while it is imported
        raise PluginError(f"{path}: importing {module} failed: {type(error).__name__}: {error}") from error


def _names_in(owner: Any) -> list[str]:
    submodules = [module.name for module in pkgutil.iter_modules(getattr(owner, "__path__", None) or [])]
    return [name for name in dict.fromkeys([*dir(owner), *submodules]) if not name.startswith("_")]


def check_options(
    path: str, target: Any, options: Mapping[str, Any], positional: int = 0, provided: Collection[str] = ()
) -> None:
    """Checks that `target(*positional arguments, **options)` fits its signature.

    Args:
        path: the name for messages.
        target: a class or function.
        options: keyword options from the configuration.
        positional: how many leading parameters the caller fills.
        provided: names that the caller fills by keyword where the signature has them; users may not set them.

    Raises:
        PluginError: not callable, unknown option (naming the nearest), missing option, or one that is of another type than
            its annotation says, where this names numbers, text, truth values and None only.
    """
    if not callable(target):
        raise PluginError(f"{path}: is not callable; expected a class or a function")
    parameters = list(_signature(path, target).parameters.values())
    takes = f"{path} takes ({', '.join(p.name for p in parameters)})"
    named = [p for p in parameters[positional:] if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    free = any(p.kind is p.VAR_KEYWORD for p in parameters)
    for name in options:
        if name in provided or (not free and name not in {p.name for p in named}):
            known = [p.name for p in named if p.name not in provided]
            raise PluginError(f"{path}: unknown option {name!r}{nearest(name, known)}; {takes}")
    for parameter in named:
        if parameter.name in options and not _is_of(parameter, options[parameter.name]):
            raise PluginError(
                f"{path}: option {parameter.name!r}: {options[parameter.name]!r} should be "
                f"{_words(parameter.annotation)}"
            )
    missing = [p.name for p in named if p.default is p.empty and p.name not in options and p.name not in provided]
    if missing:
        raise PluginError(f"{path}: option {missing[0]!r} is missing; {takes}")


PLAIN = {int: "a whole number", float: "a number", str: "text", bool: "true or false", types.NoneType: "null"}


def _kinds(annotation: Any) -> tuple[Any, ...]:
    """The types that an annotation names, such as float and None."""
    return get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)


def _is_of(parameter: inspect.Parameter, value: Any) -> bool:
    """Whether what a configuration says is of the annotated type; yes where that is more than plain types."""
    kinds = _kinds(parameter.annotation)
    if type(value) not in {*PLAIN, list, dict} or value is parameter.default:
        return True
    if not all(isinstance(kind, type) and kind in PLAIN for kind in kinds):
        return True
    return type(value) in kinds or (type(value) is int and float in kinds)


def _words(annotation: Any) -> str:
    return " or ".join(PLAIN[kind] for kind in _kinds(annotation))


def plain(name: str) -> str:
    """A name without dashes, underscores and capitals: what all its spellings share."""
    return name.replace("-", "").replace("_", "").lower()


def wants(target: Callable[..., Any], name: str) -> bool:
    """Whether a callable has a parameter of this name (a `**kwargs` does not count); no, where it shows no signature."""
    try:
        return name in inspect.signature(target).parameters
    except (TypeError, ValueError):
        return False


def given(target: Callable[..., Any], provided: Mapping[str, Any]) -> dict[str, Any]:
    """Of what is provided, that which a callable has a parameter for."""
    return {name: value for name, value in provided.items() if wants(target, name)}


def build(
    path: str, target: Any, options: Mapping[str, Any], *positional: Any, provided: Mapping[str, Any] | None = None
) -> Any:
    """Calls `target(*positional, **options)`, with those of the provided values that its signature names.

    Args:
        path: the name for messages.
        target: a class or function.
        options: keyword options from the configuration, checked as by `check_options`.
        positional: what the leading parameters get.
        provided: what the caller gives by keyword where the signature has the name; users may not set it.

    Raises:
        PluginError: the options do not fit.
    """
    provided = provided or {}
    check_options(path, target, options, len(positional), provided)
    return target(*positional, **options, **given(target, provided))


def needs(target: Any, name: str) -> bool:
    """Whether a callable has a parameter of this name that has no default."""
    parameter = inspect.signature(target).parameters.get(name) if callable(target) else None
    return parameter is not None and parameter.default is parameter.empty


def code_version(target: Any) -> str:
    """What a result's origin says about the code: the module's RESULTS_VERSION, else a hash of its source file.

    Our own modules state a RESULTS_VERSION, raised when their numbers change, so that a mended comment
    makes nothing stale; a user's module is taken by its bytes, so that an edit is never overlooked.
    """
    module = sys.modules[inspect.unwrap(target).__module__]
    version = getattr(module, "RESULTS_VERSION", None)
    if version is not None:
        return str(version)
    if module.__file__ is None or not Path(module.__file__).is_file():
        return "unknown"
    return hashlib.sha256(Path(module.__file__).read_bytes()).hexdigest()[:16]


def _signature(path: str, target: Callable[..., Any]) -> inspect.Signature:
    try:
        return inspect.signature(target)
    except (TypeError, ValueError) as error:
        raise PluginError(f"{path}: has no signature that could be checked") from error
