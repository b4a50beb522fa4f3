"""A stage's artefacts and how each stands, told for a reader: what is complete, what is left out and why."""

import functools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from heatproof import artefacts, records, store
from heatproof.report import Progress
from heatproof.report.wording import listed
from heatproof.stages.plan import Artefact

NAMED = 3
"""Files that a remark names; more are counted."""
TRAIN, EXTRACT, RETRAIN = "train-cls", "extract-attribution-maps", "evaluate-attribution-maps-roar"
TITLES = {TRAIN: "Classifier", EXTRACT: "Attribution maps", RETRAIN: "Retraining"}


@dataclass(frozen=True)
class Planned:
    """A stage's artefacts, and how each stands.

    Args:
        command: of the stage.
        root: folder of the run.
        states: how each artefact stands.
        problem: why the plan cannot be told; empty where it can.
        is_begun: whether the stage has left anything.
    """

    command: str
    root: Path
    states: Mapping[Artefact[Any], records.Status]
    problem: str = ""
    is_begun: bool = False

    @functools.cached_property
    def complete(self) -> dict[Path, Artefact[Any]]:
        """What can be shown, by its path."""
        return {file.path: file for file, state in self.states.items() if state.is_complete}

    def content(self, path: Path) -> Mapping[str, Any]:
        """What the record of a complete artefact holds; empty where it cannot be shown."""
        return self.states[self.complete[path]].content if path in self.complete else {}

    def table(self, path: Path, name: str = "") -> list[dict[str, str]]:
        """The rows of a complete CSV file, or of one beside it; none where it cannot be shown."""
        file = self.complete.get(path)
        return [] if file is None else records.table(file.record, name or path.name)

    @property
    def progress(self) -> Progress:
        """How many artefacts can be shown, and what has to be said of the others."""
        title = TITLES.get(self.command, self.command)
        return Progress(title, _command(self.command), len(self.complete), len(self.states), "results", self.remarks)

    @property
    def remarks(self) -> tuple[str, ...]:
        """What is left out and why, one sentence each."""
        if self.problem:
            return (f"{self.command}: {self.problem}",)
        found = []
        groups: dict[tuple[str, str], list[Path]] = {}
        for file, state in self.states.items():
            if state.state in ("stale", "damaged", "failed"):
                groups.setdefault((state.state, "" if state.state == "failed" else state.why), []).append(file.path)
        for (state_name, why), paths in groups.items():
            names, were = self._named(paths), "was" if len(paths) == 1 else "were"
            if state_name == "stale":
                found.append(f"{names} {were} made with other settings ({why}); left out.")
            elif state_name == "damaged":
                found.append(f"{names} {'is' if len(paths) == 1 else 'are'} damaged ({self._short(why)}); left out.")
            else:
                has = "has" if len(paths) == 1 else "have"
                found.append(f"{names} {has} failed; see {paths[0].with_suffix('.error')}.")
        # What waits for another result goes without saying.
        unmade = [file for file, state in self.states.items() if state.state in ("missing", "partial")]
        missing = [file.path for file in unmade if not file.needs]
        if self.is_begun and 0 < len(missing) <= NAMED:
            found.append(f"{self._named(missing)} {'is' if len(missing) == 1 else 'are'} missing; run {self.command}.")
        return tuple(found)

    def _named(self, paths: Sequence[Path]) -> str:
        names = [self._short(str(path)) for path in paths]
        return listed(names) if len(names) <= NAMED else f"{listed(names[:1])} and {len(names) - 1:,} others"

    def _short(self, text: str) -> str:
        return text.replace(f"{self.root}/", "")


def without_odd(states: Mapping[Artefact[Any], records.Status]) -> dict[Artefact[Any], records.Status]:
    """Without the images, nothing says which of the results are theirs: those that disagree with most others are left out."""

    def data(file: Artefact[Any], state: records.Status) -> str:
        origin = store.RowReader(file.path).origin if file.path.suffix == ".h5" else state.content.get("origin", {})
        return artefacts.canonical(origin.get("data"))

    complete = {
        file: data(file, state) for file, state in states.items() if state.is_complete and "data" in file.origin
    }
    kinds = Counter((file.path.name, text) for file, text in complete.items())
    usual = {
        name: Counter({t: n for (other, t), n in kinds.items() if other == name}).most_common(1)[0][0]
        for name, _ in kinds
    }
    odd = records.Status("stale", "from other data than the rest")
    return {
        file: odd if file in complete and complete[file] != usual[file.path.name] else state
        for file, state in states.items()
    }


def _command(stage: str) -> str:
    return f"heatproof {stage} --config FILE"
