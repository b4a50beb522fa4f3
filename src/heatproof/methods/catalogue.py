"""All methods of the package by name: found by looking through its modules, so that no list can be forgotten."""

import functools
import importlib
import inspect
import pkgutil
import re
from typing import Any

from heatproof import methods, plugins
from heatproof.errors import PluginError, nearest
from heatproof.methods.protocol import attribute_of


@functools.cache
def factories() -> dict[str, str]:
    """Dotted path of each factory `(model, **options)` by its dashed name, sorted by name.

    >>> factories()["grad-cam"], factories()["input-x-gradient"]
    ('heatproof.methods.cam.GradCam', 'heatproof.methods.gradient.InputXGradient')
    """
    found = {}
    for module in pkgutil.iter_modules(methods.__path__):
        for name, thing in vars(importlib.import_module(f"{methods.__name__}.{module.name}")).items():
            if not name.startswith("_") and _is_factory(thing):
                found[dashed(name)] = f"{thing.__module__}.{thing.__qualname__}"
    return dict(sorted(found.items()))


def path_of(name: str) -> str:
    """The dotted path of a method: its name with or without dashes, each word shortened or not; dotted paths stay.

    Raises:
        PluginError: where there is none or several; it names the nearest.

    >>> path_of("intgrad"), path_of("gradcam")
    ('heatproof.methods.gradient.IntegratedGradients', 'heatproof.methods.cam.GradCam')
    """
    if "." in name:
        return name
    known, plain = factories(), plugins.plain(name)
    exact = [dash for dash in known if plugins.plain(dash) == plain]
    candidates = exact or [dash for dash in known if _shortened(dash).fullmatch(plain)]
    if len(candidates) == 1:
        return known[candidates[0]]
    if candidates:
        raise PluginError(f"method {name!r} may be {' or '.join(candidates)}; write more of it")
    raise PluginError(f"there is no method {name!r}{nearest(name.lower().replace('_', '-'), known)}")


def options_of(path: str, *, provided: tuple[str, ...]) -> dict[str, inspect.Parameter]:
    """What a user can set of a factory or function that a dotted path names.

    Args:
        path: the dotted path.
        provided: names that are filled in for the user.
    """
    target = plugins.resolve(path)
    parameters = list(inspect.signature(target).parameters.values())[1:]
    if (attribute := attribute_of(target)) is not None:
        parameters += list(inspect.signature(attribute).parameters.values())[2:]
        provided = (*provided, "target")
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {p.name: p for p in parameters if p.kind in kinds and p.name not in provided}


def dashed(name: str) -> str:
    """The name of a class or option as it is typed on the command line.

    >>> dashed("AttentionRollout"), dashed("discard_ratio")
    ('attention-rollout', 'discard-ratio')
    """
    return re.sub(r"(?<!^)(?=[A-Z])", "-", name).lower().replace("_", "-")


def _is_factory(thing: Any) -> bool:
    if not isinstance(thing, type) or not thing.__module__.startswith(f"{methods.__name__}."):
        return False
    if next(iter(inspect.signature(thing).parameters), None) != "model":
        return False
    called = inspect.signature(thing.__call__).parameters if "__call__" in dir(thing) else {}
    return {"images", "targets"} <= called.keys()


def _shortened(name: str) -> re.Pattern[str]:
    """Matches the words of a dashed name, each cut anywhere after its first letter."""
    words = ("".join(f"(?:{letter}" for letter in word[1:]) + ")?" * (len(word) - 1) for word in name.split("-"))
    return re.compile("".join(word[0] + rest for word, rest in zip(name.split("-"), words, strict=True)))
