"""Reading of a configuration file: YAML, overrides, and messages that name what to fix."""

import re
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import ValidationError

from heatproof import plugins
from heatproof.config.base import check_file_names
from heatproof.config.maps import CONTROLS, Methods, Twin
from heatproof.config.schema import KINDS, Config, section_in
from heatproof.config.stages import STAGES
from heatproof.errors import ConfigError, nearest

LARGEST: dict[type, float] = {float: 3.4e38, int: 2**63 - 1}
"""Of the numbers of a configuration: networks compute in 32 bits, and count in 64."""

# Names that pydantic puts into a location for the alternatives of a type.
_ALTERNATIVES = {"str", "int", "float", "Plugin"}
_SECTION_OF = {command: stage.section for command, stage in STAGES.items()}


def read(path: Path, overrides: Iterable[str] = ()) -> Config:
    """Reads a YAML file, applies overrides such as "train_cls.nb_epochs=1" and checks the whole.

    Raises:
        ConfigError: one line that names the file, the key, what is wrong and the nearest known key.
    """
    content = _by_section(path, _load(path))
    for override in overrides:
        _apply(content, override)
    outdir = content.get("outdir")
    if isinstance(outdir, str):
        content = _substituted(content, outdir)
    _complete_tests(content)
    for where, value in _numbers(content):
        # What the arithmetic cannot hold, and origins cannot say.
        if not abs(value) <= LARGEST[type(value)]:
            kind = "finite number, of 32 bits" if isinstance(value, float) else "whole number of 64 bits"
            raise ConfigError(f"{path}: {where}: {value!r}: input should be a {kind}")
    try:
        config = Config.model_validate(content)
    except ValidationError as error:
        raise ConfigError(f"{path}: {_first_problem(error)}") from error
    for name, part in config.sections():
        if isinstance(part, Methods):
            _check_names(path, name, part)
    _check_tests(path, config)
    return config


def _complete_tests(content: dict[str, Any]) -> None:
    """Gives sections the classifier and the methods of extract_cams where they inherit them."""
    extraction = content.get("extract_cams")
    if not isinstance(extraction, dict):
        return
    for name, kind in KINDS.items():
        if issubclass(kind, Methods) and name in content:
            shared = {key: extraction[key] for key in kind.inherited if key in extraction}
            content[name] = _completed(content[name], shared)


def _completed(part: Any, shared: Mapping[str, Any]) -> Any:
    """A section, or each entry of a list of them, with the keys that it leaves out."""
    if isinstance(part, list):
        return [_completed(entry, shared) for entry in part]
    return {**shared, **part} if isinstance(part, dict) else part


def _by_section(path: Path, content: dict[str, Any]) -> dict[str, Any]:
    """Puts what stands under a stage's command under the name of its section."""
    for command, section in _SECTION_OF.items():
        if command != section and command in content and section in content:
            raise ConfigError(f"{path}: {command} and {section} name the same section; keep one of them")
    return {_SECTION_OF.get(name, name): part for name, part in content.items()}


class _Loader(yaml.SafeLoader):
    """Safe YAML in which 1e-3 is a number and a key may occur only once."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [key.value for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        for key, _ in reversed(node.value):
            if keys.count(key.value) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"key {key.value!r} occurs twice", key.start_mark)
        return super().construct_mapping(node, deep)


# YAML 1.1 reads 1e-3 as text for want of a dot.
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d[\d_]*\.?[\d_]*|\.\d[\d_]*)[eE][-+]?\d+$"), list("-+.0123456789")
)


def _load(path: Path) -> dict[str, Any]:
    try:
        content = _parsed(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such configuration file") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: {_yaml_problem(error)}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: holds {type(content).__name__}, not sections; see configs/demo.yml for an example")
    return content


def _parsed(text: str) -> Any:
    """What YAML says. Its aliases are one object in several places; here they are copies: an override means one place only."""
    try:
        return _unshared(yaml.load(text, Loader=_Loader))  # noqa: S506 - a SafeLoader
    except RecursionError as error:
        raise yaml.YAMLError("nested too deeply, or an alias stands inside of what it names") from error


def _yaml_problem(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    where = f"line {mark.line + 1}: " if mark else ""
    problem = str(getattr(error, "problem", None) or error).replace("\n", " ")
    if "could not determine a constructor" in problem:
        return f"{where}tags such as !!python/... are not allowed; write plain YAML values"
    return where + problem


def _apply(content: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    names = [part for part in re.split(r"[.\[\]]+", key) if part]
    if not equals or not names:
        raise ConfigError(f"{override!r}: an override is written section.key=value, such as train_cls.nb_epochs=1")
    try:
        value = _parsed(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{override!r}: {_yaml_problem(error)}") from error
    names[0] = _SECTION_OF.get(names[0], names[0])
    here: Any = content
    for position, name in enumerate(names):
        last = position == len(names) - 1
        if isinstance(here, list):
            if not name.isdigit() or int(name) >= len(here):
                raise ConfigError(
                    f"{override!r}: {'.'.join(names[:position])} is a list of {len(here)}; {name!r} is no position in it"
                )
            if last:
                here[int(name)] = value
            here = here[int(name)]
        elif isinstance(here, dict):
            if last:
                here[name] = value
            elif here.get(name) is None:
                here[name] = {}
            here = here[name]
        else:
            raise ConfigError(f"{override!r}: {'.'.join(names[:position])} is a value, not a section")


def _unshared(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _unshared(item) for key, item in value.items()}
    return [_unshared(item) for item in value] if isinstance(value, list) else value


def _numbers(value: Any, where: tuple[int | str, ...] = ()) -> Iterator[tuple[str, float]]:
    """All numbers of a configuration, each with its place; also in options that the schema does not know."""
    if type(value) in LARGEST:
        yield _where(where), value
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, part in parts:
        yield from _numbers(part, (*where, name if isinstance(name, int) else str(name)))


def _substituted(value: Any, outdir: str) -> Any:
    if isinstance(value, dict):
        return {key: _substituted(item, outdir) for key, item in value.items()}
    if isinstance(value, list):
        return [_substituted(item, outdir) for item in value]
    return value.replace("${outdir}", outdir) if isinstance(value, str) else value


def _first_problem(error: ValidationError) -> str:
    # An unknown key explains more than what is missing because of it.
    problems = sorted(error.errors(), key=lambda p: p["type"] != "extra_forbidden")
    first = problems[0]
    # Alternatives of a type ("auto" or a number) fail one by one; what belongs to one key is one problem.
    same = [p for p in problems if _where(p["loc"]) == _where(first["loc"])]
    others = len({_where(p["loc"]) for p in problems}) - 1
    more = f" (and {others} more)" if others else ""
    return f"{_where(first['loc'])}: {' or '.join(dict.fromkeys(_what(p) for p in same))}{more}"


def _where(location: tuple[int | str, ...]) -> str:
    text = ""
    for part in location:
        if isinstance(part, int):
            text += f"[{part}]"
        elif not text:
            text = part  # a section, or what stands in the place of one
        elif re.fullmatch(r"[A-Za-z_0-9]+", part) and part not in _ALTERNATIVES:
            text += f".{part}"
    return text


def _what(problem: Mapping[str, Any]) -> str:
    if problem["type"] == "extra_forbidden":
        return f"unknown key{nearest(str(problem['loc'][-1]), _fields_at(problem['loc'][:-1]))}"
    if problem["type"] == "missing":
        return "is missing"
    message = str(problem["msg"]).removeprefix("Value error, ")
    return f"{problem['input']!r:.80}: {message[0].lower()}{message[1:]}"


def _fields_at(location: Sequence[int | str]) -> list[str]:
    kind: Any = Config
    for part in location:
        if isinstance(part, int):
            continue
        fields = getattr(kind, "model_fields", {})
        if part in fields:
            kind = section_in(fields[part].annotation)
    return [*getattr(kind, "model_fields", {}), *(() if location else STAGES)]


def _check_names(path: Path, name: str, part: Methods) -> None:
    """Refuses names of methods that would share a file, or stand for a control that they are not."""
    try:
        check_file_names([method.name for method in part.attribution_methods], "attribution_methods")
    except ValueError as error:
        raise ConfigError(f"{path}: {name}.{error}") from error
    for position, method in enumerate(part.attribution_methods):
        where = f"{path}: {name}.attribution_methods[{position}].name: {method.name!r}"
        control = CONTROLS.get(method.name.lower())
        if control is not None and (method.name != control.name or not _names_factory(method.method, control.method)):
            raise ConfigError(
                f"{where} is the name of the control {control.method}, which other methods are compared with; take another"
            )
        if method.name.lower().endswith(tuple(f"+{kind}" for kind in get_args(Twin))):
            raise ConfigError(f"{where} is the name of a control that is derived from a method; take another")


def _check_tests(path: Path, config: Config) -> None:
    """Refuses names of tests that would share a folder, or a place in the report with a stage."""
    names = [test.name for test in config.tests or ()]
    try:
        check_file_names(names, "tests")
    except ValueError as error:
        raise ConfigError(f"{path}: {error}") from error
    for position, name in enumerate(names):
        if name.lower() in {*STAGES, *KINDS}:
            raise ConfigError(f"{path}: tests[{position}].name: {name!r} is the name of a stage; take another")


def _names_factory(spelt: str, path: str) -> bool:
    """Whether a method of a configuration is the factory of a dotted path, or its short name."""
    return spelt == path or plugins.plain(spelt) == plugins.plain(path.rpartition(".")[2])
