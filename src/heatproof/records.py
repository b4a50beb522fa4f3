"""Records: the JSON file beside a result that says what it was made from, and vouches for every file that belongs to it.

A record holds values, the `origin`, `files` (SHA-256 by name, relative to the record) and `sha256`, that of all the rest in
canonical form. It is written last. Whoever reads a result reads it through its record, so that no changed byte is used in
silence. Records of runs that were made before there were checksums have none, and stay valid.
"""

import csv
import hashlib
import io
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from heatproof import artefacts
from heatproof.errors import DamagedError, MissingInputError

Condition = Literal["complete", "partial", "missing", "stale", "damaged", "failed", "waiting"]


@dataclass(frozen=True)
class Status:
    """How a result stands.

    Args:
        state: complete; partial (begun, and can be continued); missing; stale (made from something else); damaged; failed;
            waiting (a table that is there, of results that are not).
        why: what differs, what is damaged, or how far it got; empty where there is nothing to say.
        content: of the record; empty unless it is complete.
    """

    state: Condition
    why: str = ""
    content: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_complete(self) -> bool:
        """Whether nothing is left to do."""
        return self.state == "complete"


def write(path: Path, origin: artefacts.Origin, files: Iterable[Path] = (), **values: Any) -> dict[str, Any]:
    """Writes a record of files that are whole and in their places; returns what it holds."""
    content = {**values, "origin": origin}
    listed = {str(file.relative_to(path.parent)): artefacts.sha256(file) for file in files}
    if listed:
        content["files"] = listed
    content["sha256"] = _digest(content)
    artefacts.write_json(path, content)
    return content


def read(path: Path) -> dict[str, Any] | None:
    """What a record holds; None where there is none.

    Raises:
        DamagedError: it is not what was written.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError, IsADirectoryError) as error:
        raise DamagedError(path, "no JSON") from error
    if not isinstance(content, dict) or "origin" not in content:
        raise DamagedError(path, "no record")
    if "sha256" in content and content["sha256"] != _digest({k: v for k, v in content.items() if k != "sha256"}):
        raise DamagedError(path, "checksum")
    if not isinstance(content.get("files", {}), dict):
        raise DamagedError(path, "no record")
    return content


def status(path: Path, origin: artefacts.Origin | None = None) -> Status:
    """How the result of a record stands, compared with the wanted origin where one is given."""
    try:
        content = read(path)
        if content is None:
            return Status("missing")
        if origin is not None and (changed := artefacts.differences(content.get("origin"), origin)):
            return Status("stale", "; ".join(changed[:3]))
        for name in files_of(path, content):
            _verify(path, content, name)
    except DamagedError as error:
        return Status("damaged", str(error).removesuffix("; run its stage again"))
    except MissingInputError as error:
        return Status("missing", str(error))
    return Status("complete", content=content)


def files_of(path: Path, content: Mapping[str, Any]) -> dict[str, str]:
    """SHA-256 of the files that a record vouches for, by their names."""
    if "weights_sha256" in content:  # as trainings wrote it before there was `files`
        return {path.with_suffix(".pth").name: content["weights_sha256"]}
    files: dict[str, str] = content.get("files", {})
    return files


def text_of(path: Path, name: str) -> str | None:
    """The text of a file that a record vouches for; None where there is no record, or the record knows no such file.

    Raises:
        DamagedError, MissingInputError: the file is not what was written, or not there.
    """
    content = read(path)
    if content is None or (content.get("sha256") and name not in files_of(path, content)):
        return None
    if name in files_of(path, content):
        _verify(path, content, name)
    try:
        return (path.parent / name).read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except UnicodeDecodeError as error:
        raise DamagedError(path.parent / name, "no text") from error


def table(path: Path, name: str) -> list[dict[str, str]]:
    """The rows of a CSV file that a record vouches for; none where it is not there. Raises as `text_of`."""
    text = text_of(path, name)
    return [] if text is None else list(csv.DictReader(io.StringIO(text)))


def _verify(path: Path, content: Mapping[str, Any], name: str) -> None:
    file, digest = path.parent / name, files_of(path, content)[name]
    try:
        found = artefacts.sha256(file)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise MissingInputError(
            f"{file}: is gone, and {path.name} says that it was there; run its stage again"
        ) from error
    except IsADirectoryError as error:
        raise DamagedError(file, "a folder") from error
    if found != digest:
        raise DamagedError(file, "checksum")


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(artefacts.canonical(content).encode()).hexdigest()


def beside(weights: Path) -> dict[str, Any]:
    """The record beside a file of weights, which are checked where it vouches for them; empty where there is none of ours.

    Raises:
        DamagedError: record or weights are not what was written.
    """
    path = weights.with_suffix(".json")
    try:
        content = read(path)
    except DamagedError:
        return _foreign(path)
    if content is None or not isinstance(content["origin"], dict):
        return {}
    if weights.name in files_of(path, content) and weights.is_file():
        _verify(path, content, weights.name)
    return content


def _foreign(path: Path) -> dict[str, Any]:
    """What somebody wrote by hand; raises DamagedError where it is one of our records that has changed."""
    text = path.read_text(encoding="utf-8", errors="replace")
    if '"sha256"' in text or '"weights_sha256"' in text:
        raise DamagedError(path, "checksum")
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}
