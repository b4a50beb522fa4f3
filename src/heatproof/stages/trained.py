"""What a training leaves: its weights, and beside them what they were made from. Is it there, and if not, why?"""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from heatproof import artefacts
from heatproof.stages.run import why_stale
from heatproof.training.checkpoints import save_tensors

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Trained:
    """The place of a training's result.

    Args:
        weights: file of tensors; a JSON file of the same name stands beside it, and while the training goes on, its checkpoint.
        origin: what the result depends on.
    """

    weights: Path
    origin: artefacts.Origin

    @property
    def identity(self) -> str:
        """Of the checkpoint."""
        return artefacts.canonical(self.origin)

    @property
    def checkpoint(self) -> Path:
        """The state from which a killed training goes on."""
        return self.weights.with_name("checkpoint.pt")

    def kept(self) -> dict[str, Any] | None:
        """What `leave` said of a result of this origin; None where there is none, and the log says why."""
        kept = artefacts.read_json(self.weights.with_suffix(".json"))
        if not isinstance(kept, dict) or "origin" not in kept:
            going_on = " (an interrupted training goes on)" if self.checkpoint.is_file() else ""
            logger.info("%s: to be trained%s", self.weights, going_on)
        elif artefacts.canonical(kept["origin"]) != self.identity:
            why = why_stale(kept["origin"], self.origin)
            logger.info("%s: stale, to be trained again: %s", self.weights, why)
        elif not self.weights.is_file() or artefacts.sha256(self.weights) != kept.get("weights_sha256"):
            logger.info("%s: missing or not the file that was trained, to be trained again", self.weights)
        else:
            return kept
        return None

    def leave(self, state: Any, **told: Any) -> dict[str, Any]:
        """Writes the weights, and then the file that says that they are whole; returns what it holds."""
        save_tensors(self.weights, state)
        kept = {"origin": self.origin, "weights_sha256": artefacts.sha256(self.weights), **told}
        artefacts.write_json(self.weights.with_suffix(".json"), kept)
        self.checkpoint.unlink(missing_ok=True)
        return kept
