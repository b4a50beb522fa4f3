"""Short names of methods and classifiers in a configuration, replaced by their dotted paths before any stage reads it.

Origins then hold dotted paths, however they were spelt.
"""

from typing import Any

from pydantic import BaseModel

from heatproof.config import IMPORTED, AttributionMethod, Config, Model
from heatproof.errors import ConfigError, HeatproofError
from heatproof.methods import catalogue as methods
from heatproof.models import catalogue as models
from heatproof.removal import fill_name


def with_paths(settings: Config) -> Config:
    """The configuration with a dotted path in each `method` and each `arch`.

    Raises:
        ConfigError: naming the key, where a short name is not known.
    """
    config: Config = _with_paths(settings, "")
    return config


def _with_paths(part: Any, where: str) -> Any:
    if isinstance(part, list):
        return [_with_paths(item, f"{where}[{position}]") for position, item in enumerate(part)]
    if not isinstance(part, BaseModel):
        return part
    fields = {name: _with_paths(value, f"{where}.{name}".removeprefix(".")) for name, value in part}
    try:
        if isinstance(part, Model):
            fields["arch"] = models.path_of(part.arch)
        elif isinstance(part, AttributionMethod) and part.method != IMPORTED:
            fields["method"] = methods.path_of(part.method)
        elif isinstance(fill := fields.get("fill"), str):
            fields["fill"] = fill_name(fill) or fill
    except HeatproofError as error:
        raise ConfigError(f"{where}: {error}") from error
    changed = {name: value for name, value in fields.items() if value != getattr(part, name)}
    return part.model_copy(update=changed) if changed else part
