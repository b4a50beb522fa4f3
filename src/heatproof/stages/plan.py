"""What a run consists of: artefacts, each with its path, the origin that it must have, and the job that makes it.

A stage's `plan(run)` lists its artefacts without loading a network or computing anything; `run(run)` makes those that are not
complete. Dry runs, resuming and the report read the same list, so that no path and no origin is written down twice.
"""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from heatproof import artefacts, records, store
from heatproof.errors import MissingInputError

logger = logging.getLogger(__name__)
Job = TypeVar("Job")


@dataclass(frozen=True, eq=False)
class Artefact(Generic[Job]):
    """One result of a run.

    Args:
        path: its file: HDF5, or what a record of the same name (.json) vouches for.
        origin: what it must be made from; parts that are not made yet are `artefacts.Unknown`.
        job: what makes it.
        verb: what is done to make it, for the log.
    """

    path: Path
    origin: artefacts.Origin
    job: Job
    verb: str = "computed"

    @property
    def record(self) -> Path:
        """The record of what is no HDF5 file."""
        return self.path.with_suffix(".json")

    @property
    def error(self) -> Path:
        """Where the traceback is kept if the job fails."""
        return self.path.with_suffix(".error")

    @property
    def checkpoint(self) -> Path:
        """The state from which a killed job goes on, where it keeps one."""
        return self.path.with_suffix(".checkpoint")

    @property
    def needs(self) -> list[str]:
        """What has to be made before."""
        return artefacts.unknown(self.origin)

    def require_inputs(self) -> None:
        """Raises MissingInputError where something has to be made before."""
        if self.needs:
            raise MissingInputError(f"{self.path}: needs {self.needs[0]}, which is not there; run what makes it first")

    def status(self) -> records.Status:
        """How it stands."""
        found = self._state_of_rows() if self.path.suffix == ".h5" else records.status(self.record, self.origin)
        if found.is_complete and self.needs and self.path.suffix == ".csv":
            return records.Status("waiting", self.needs[0])
        if found.is_complete:
            return found
        if self.error.is_file():
            return records.Status("failed", f"see {self.error}")
        if found.state == "missing" and self.checkpoint.is_file():
            return records.Status("partial", "an interrupted training goes on")
        return found

    def _state_of_rows(self) -> records.Status:
        state = store.read_state(self.path)
        if state is None:
            return records.Status("missing")
        if state.damage:
            return records.Status("damaged", state.damage)
        if changed := state.differences(self.origin):
            return records.Status("stale", "; ".join(changed[:3]))
        if not state.complete:
            return records.Status("partial", f"{state.rows_done} of {state.rows} rows")
        if damage := store.damage_of(self.path):
            return records.Status("damaged", damage)
        return records.Status("complete")

    def described(self) -> records.Status:
        """How it stands; the log says so too."""
        found = self.status()
        if found.state == "missing":
            logger.info("%s: to be %s", self.path, self.verb)
        elif found.state == "partial":
            logger.info("%s: %s; to be continued", self.path, found.why)
        elif found.state == "stale":
            logger.info("%s: stale, to be %s again: %s", self.path, self.verb, found.why)
        elif found.state == "damaged":
            logger.info("%s; to be %s again", found.why, self.verb)
        elif found.state == "waiting":
            logger.info("%s: waits for %s", self.path, found.why)
        elif found.state == "failed":
            logger.info("%s: failed (%s); to be %s again", self.path, found.why, self.verb)
        else:
            logger.info("%s: complete", self.path)
        return found

    def is_complete(self) -> bool:
        """Whether nothing is left to do; the log says what is.

        Leftovers of kills beside a complete one are removed, and so is a damaged file of rows: a writer would go on from it.
        """
        found = self.described()
        if found.is_complete:
            self.remove_leftovers()
        elif found.state == "damaged" and self.path.suffix == ".h5":
            self.path.unlink(missing_ok=True)
        return found.is_complete

    def remove_leftovers(self) -> None:
        """Deletes what a kill left beside a complete artefact."""
        for path in (self.error, self.checkpoint):
            path.unlink(missing_ok=True)
        if self.path.suffix == ".h5":
            store.remove_parts(self.path)
        for path in {self.path, self.record}:
            artefacts.remove_leftovers_of(path)

    def write(self, *files: Path, **values: Any) -> dict[str, Any]:
        """Writes the record, once the files that it vouches for are in their places; returns what it holds."""
        content = records.write(self.record, self.origin, files, **values)
        self.remove_leftovers()
        return content
