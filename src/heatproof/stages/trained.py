"""What a training leaves: its weights, and beside them what they were made from. Is it there, and if not, why?"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from heatproof import artefacts
from heatproof.stages.plan import Artefact
from heatproof.training.checkpoints import save_tensors


@dataclass(frozen=True, eq=False)
class Trained(Artefact[None]):
    """A training's weights: `path` is their file, the record stands beside it, and while the training goes on, its checkpoint."""

    job: None = None
    verb: str = "trained"

    @property
    def identity(self) -> str:
        """Of the checkpoint."""
        return artefacts.canonical(self.origin)

    @property
    def checkpoint(self) -> Path:
        """The state from which a killed training goes on."""
        return self.path.with_name("checkpoint.pt")

    def kept(self) -> Mapping[str, Any] | None:
        """What `leave` said of a result of this origin; None where there is none, and the log says why."""
        found = self.described()
        if found.is_complete:
            self.remove_leftovers()
        return found.content if found.is_complete else None

    def leave(self, state: Any, *beside: Path, **told: Any) -> dict[str, Any]:
        """Writes the weights, and then the record, which vouches for them and for the files beside them; returns what it holds."""
        save_tensors(self.path, state)
        return self.write(self.path, *beside, **told)
