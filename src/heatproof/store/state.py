"""What a stage must know of a file before it decides: done, begun, made from something else, or damaged."""

import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from heatproof import artefacts
from heatproof.errors import MapError
from heatproof.store import layout
from heatproof.store.infills import FORMAT as INFILL
from heatproof.store.infills import InfillReader
from heatproof.store.layout import Stamp
from heatproof.store.maps import FORMAT as MAPS
from heatproof.store.maps import FORMAT_VERSION, MapReader
from heatproof.store.reader import RowReader

CHECKED_BYTES = 2**28
"""Up to this size a file's values are compared with their checksums before it counts as complete; in larger ones when they are read."""


@dataclass(frozen=True)
class State:
    """How far a row file got.

    Args:
        origin: what it was made from; None where it cannot be read.
        complete: whether all rows are there.
        rows_done: rows that are there.
        rows: rows that it shall have.
        damage: why it cannot be used, in one line; empty where it can.
    """

    origin: dict[str, Any] | None = None
    complete: bool = False
    rows_done: int = 0
    rows: int = 0
    damage: str = ""

    def is_done(self, origin: artefacts.Origin) -> bool:
        """Whether nothing is left to do: complete, readable, and made from `origin`."""
        return self.complete and not self.differences(origin)

    def differences(self, origin: artefacts.Origin) -> list[str]:
        """What differs from the wanted origin, one phrase each; empty where it is the same."""
        return artefacts.differences(self.origin, origin)


def read_state(path: Path | str, kind: str | None = None, version: int = 1) -> State | None:
    """The state of a row file, from its metadata alone; None where there is no file.

    A damaged or foreign file raises nothing: its state says why it cannot be used, so that a stage can say so and make
    it again. Damaged values are not found here, only when they are read. A file that another program is writing must not
    be made again, and raises `InUseError`.

    Args:
        path: the file.
        kind: the wanted `format`; None takes any of ours.
        version: newest `format_version` that the caller reads.
    """
    path = Path(path)
    if not path.exists():
        return None
    try:
        found = layout.read_layout(path, kind, version)
        attributes = found.attributes
        origin = json.loads(attributes["origin"])
        return State(origin, bool(attributes["complete"]), int(attributes["rows_done"]), found.rows)
    except layout.InUseError:
        raise
    except (MapError, KeyError, ValueError, TypeError) as error:
        message = str(error) if isinstance(error, MapError) else f"{path}: attribute missing or damaged: {error}"
        return State(damage=message)


def damage_of(path: Path) -> str:
    """What is damaged of a complete file's values, in one line; empty where nothing is, or the file is too large to be read for it."""
    stamp = Stamp.of(path)
    return _damage(path, stamp) if path.stat().st_size <= CHECKED_BYTES else ""


def content_id(path: Path) -> str:
    """What is in a complete attribution file, as `MapReader.content_id`; once for each content."""
    return _content_id(path, Stamp.of(path))


@functools.lru_cache(maxsize=4096)
def _content_id(path: Path, stamp: Stamp) -> str:
    return MapReader(path).content_id()


@functools.lru_cache(maxsize=4096)
def _damage(path: Path, stamp: Stamp) -> str:
    """Once for each content: a plan asks several times."""
    try:
        kind = layout.read_attributes(path, version=FORMAT_VERSION)["format"]
        reader = {MAPS: MapReader, INFILL: InfillReader}.get(str(kind), RowReader)(path)
        return next(iter(reader.damage()), "")
    except layout.InUseError:
        raise
    except (MapError, KeyError) as error:
        return str(error)
