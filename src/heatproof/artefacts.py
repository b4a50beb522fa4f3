"""Files that a run leaves behind: whole under their final name, and carrying what they were computed from."""

import contextlib
import csv
import functools
import hashlib
import io
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Origin = Mapping[str, Any]


@dataclass(frozen=True)
class Unknown:
    """A part of an origin that is not known; it differs from nothing.

    Args:
        source: what tells it.
        is_there: whether that is made already, and only not read.
    """

    source: str
    is_there: bool = False


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`; renames it to `path` when the block ends without an error.

    The data reach the disk before the new name does, so a crash leaves either the old file or the new one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.chmod(0o666 & ~_umask())  # mkstemp makes private files; results are for everyone the user lets in
        try:
            temporary.replace(path)
        except FileNotFoundError:
            # Another process finished this very file, and took ours for a leftover.
            if not path.is_file():
                raise
        _sync_directory(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def remove_leftovers(folder: Path) -> None:
    """Deletes temporary files that a killed writer of `folder` left behind; call it while no other one writes there."""
    for leftover in folder.glob(".*.tmp"):
        leftover.unlink(missing_ok=True)


def leftovers_of(path: Path) -> list[Path]:
    """Temporary files that killed writers of a file left beside it; or one that another process is writing."""
    try:
        beside = sorted(path.parent.iterdir())
    except FileNotFoundError:
        return []
    return [child for child in beside if child.name.startswith(f".{path.name}.") and child.suffix == ".tmp"]


def remove_leftovers_of(path: Path) -> None:
    """Deletes the leftovers of a file; call it once the file is whole, or while no other process writes it."""
    for leftover in leftovers_of(path):
        leftover.unlink(missing_ok=True)


def canonical(value: Any) -> str:
    """JSON with sorted keys and no blanks: equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def write_text(path: Path, text: str) -> None:
    """Writes a whole text file."""
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Writes a whole JSON file, keys sorted."""
    write_text(path, json.dumps(value, sort_keys=True, indent=1, allow_nan=False) + "\n")


def read_json(path: Path) -> Any | None:
    """The content of a JSON file; None where there is no readable one, so that it is made again."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError, UnicodeDecodeError):
        return None


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Writes a whole CSV file with a header line."""
    with whole_file(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(rows)


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes; a file that has not changed since is not read again: a plan asks many times."""
    state = path.stat()
    return _sha256(path, (state.st_ino, state.st_mtime_ns, state.st_size))


@functools.lru_cache(maxsize=4096)
def _sha256(path: Path, stamp: tuple[int, int, int]) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def with_content(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options as an origin says them: a file that is there counts by its SHA-256, wherever it lies."""

    def of(value: Any) -> Any:
        if isinstance(value, Mapping):
            return with_content(value)
        return sha256(Path(value)) if isinstance(value, str) and Path(value).is_file() else value

    return {option: of(value) for option, value in options.items()}


def differences(old: Any, new: Any, where: str = "") -> list[str]:
    """What differs between an origin and a wanted one, one phrase each, such as "method.steps: 20 -> 50"; empty where nothing does.

    What is not known yet of the wanted one (`Unknown`) differs from nothing.
    """
    if isinstance(new, Unknown):
        return []
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        found = []
        for key in sorted(old.keys() | new.keys()):
            found += differences(old.get(key), new.get(key), f"{where}.{key}" if where else str(key))
        return found
    if isinstance(old, list | tuple) and isinstance(new, list | tuple) and len(old) == len(new) and unknown(new):
        pairs = enumerate(zip(old, new, strict=True))
        return [phrase for place, pair in pairs for phrase in differences(*pair, f"{where}[{place}]")]
    return [] if _text(old) == _text(new) else [f"{where}: {_short(old)} -> {_short(new)}"]


def unknown(origin: Any) -> list[str]:
    """What has to be made before an origin can be known, each once."""
    if isinstance(origin, Unknown):
        return [] if origin.is_there else [origin.source]
    parts = origin.values() if isinstance(origin, Mapping) else origin if isinstance(origin, list | tuple) else ()
    return list(dict.fromkeys(source for part in parts for source in unknown(part)))


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), default=lambda part: f"({part.source})")


def _short(value: Any) -> str:
    text = _text(value)
    return text if len(text) <= 40 else text[:37] + "..."


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _sync_directory(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def append_row(path: Path, columns: Sequence[str], row: Sequence[Any]) -> None:
    """Adds one line to a CSV file that several processes may write to at the same time; makes it where missing.

    For what cannot be the same twice (wall times, hosts); results are written whole.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    line = io.StringIO()
    writer = csv.writer(line, lineterminator="\n")
    with path.open("ab", buffering=0) as file:
        if file.tell() == 0:
            writer.writerow(columns)
        writer.writerow(row)
        file.write(line.getvalue().encode())  # one write in append mode: lines of two processes do not mix
