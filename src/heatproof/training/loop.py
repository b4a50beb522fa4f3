"""The loop of all trainings: history, best epoch, patience and checkpoints.

A learner draws everything random from (seed, purpose, epoch or step). A checkpoint therefore needs no generator states, and a
resumed training equals an uninterrupted one.
"""

import logging
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypedDict, TypeVar, Unpack

from torch import nn

from heatproof import runtime
from heatproof.models.weights import State
from heatproof.training.checkpoints import copied, read_checkpoint, save_checkpoint

Line = TypeVar("Line")  # of a history: a data class, or a dict of numbers

logger = logging.getLogger(__name__)


class Stateful(Protocol):
    """What can be saved and restored."""

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values."""
        ...

    def load_state_dict(self, state: Any, /) -> object:
        """Restores them."""
        ...


class Learner(ABC, Generic[Line]):
    """One kind of training, as the loop needs it.

    Attributes:
        line: builds a line of the history from its values by name.
        shown: words on an epoch for the progress bar, a format of the values of its line.
        network: its weights after the best epoch are the result.
        parts: everything the next step depends on; None where a part is not used.
        epochs: number of epochs, >= 1.
        patience: number of epochs without a better one after which the training ends; None: never.
        steps: number of steps in one epoch.
        step_checkpoint_every_s: least time between two checkpoints within an epoch, for a learner that can resume there.
    """

    line: Callable[..., Line]
    shown: str
    network: nn.Module
    parts: Mapping[str, Stateful | None]
    epochs: int
    patience: int | None = None
    steps: int
    step_checkpoint_every_s = math.inf

    @abstractmethod
    def epoch(self, number: int, after_step: Callable[[], object]) -> Line:
        """Trains for one epoch, counted from 0, and validates; calls `after_step` after each step."""

    @abstractmethod
    def rank(self, line: Line) -> Any:
        """Value by which epochs are compared; the smallest is the best, and of equals the earliest."""


@dataclass(frozen=True)
class Fitted(Generic[Line]):
    """Result of a training.

    Args:
        state: weights of the best epoch.
        best_epoch: its number, from 1.
        history: one line for each epoch.
    """

    state: State
    best_epoch: int
    history: tuple[Line, ...]

    @property
    def best(self) -> Line:
        """The line of the best epoch."""
        return self.history[self.best_epoch - 1]


class LoopOptions(TypedDict, Generic[Line], total=False):
    """Options of `train_epochs` that each training passes on.

    Attributes:
        checkpoint: file of the state; where it exists, the training resumes from it. The caller deletes it once the result
            is safe. Default: none.
        identity: names all that the training depends on; a checkpoint of another identity is not used.
        checkpoint_every_s: least time between two checkpoints at ends of epochs. Default: 0.
        on_epoch: called after each epoch with all lines so far.
        is_enough: called with the last line before each further epoch; True ends the training.
        describe: text of a progress bar on stderr. Default: no bar.
    """

    checkpoint: Path | None
    identity: str
    checkpoint_every_s: float
    on_epoch: Callable[[Sequence[Line]], object]
    is_enough: Callable[[Line], bool]
    describe: str | None


def train_epochs(learner: Learner[Line], **options: Unpack[LoopOptions[Line]]) -> Fitted[Line]:
    """Trains a freshly initialised learner, or resumes from a checkpoint."""
    checkpoint, identity = options.get("checkpoint"), options.get("identity", "")
    history: list[Line] = []
    best: State | None = None
    done = 0  # steps
    state = read_checkpoint(checkpoint, identity)
    if state is not None and not state.keys() >= {"history", "best", *learner.parts}:
        logger.info("%s: of another version; the training starts again", checkpoint)
    elif state is not None:
        history, best = [learner.line(**values) for values in state["history"]], state["best"]
        done = state.get("done", len(history) * learner.steps)  # earlier versions count none
        for name, part in learner.parts.items():
            if part is not None:
                part.load_state_dict(state[name])
    saved_at = time.monotonic()

    def best_epoch() -> int:
        return 1 + min(range(len(history)), key=lambda number: learner.rank(history[number]))

    def is_over() -> bool:
        if not history:
            return False
        is_impatient = learner.patience is not None and len(history) - best_epoch() >= learner.patience
        is_enough = "is_enough" in options and options["is_enough"](history[-1])
        return len(history) >= learner.epochs or is_impatient or is_enough

    def save_after(seconds: float) -> None:
        nonlocal saved_at
        if checkpoint is None or time.monotonic() - saved_at < seconds:
            return
        loop = {"history": [_values(line) for line in history], "best": best, "done": done}
        parts = {name: None if part is None else part.state_dict() for name, part in learner.parts.items()}
        save_checkpoint(checkpoint, identity, loop | parts)
        saved_at = time.monotonic()

    with runtime.progress(learner.epochs * learner.steps, options.get("describe"), "step", done) as bar:

        def after_step() -> None:
            nonlocal done
            done += 1
            bar.update()
            save_after(learner.step_checkpoint_every_s)

        while not is_over():
            history.append(learner.epoch(len(history), after_step))
            if best_epoch() == len(history):
                best = copied(learner.network)
            bar.set_postfix_str(f"epoch {len(history)}, {learner.shown.format(**_values(history[-1]))}", refresh=False)
            if "on_epoch" in options:
                options["on_epoch"](history)
            save_after(options.get("checkpoint_every_s", 0.0))
    assert best is not None
    return Fitted(best, best_epoch(), tuple(history))


def _values(line: Any) -> dict[str, Any]:
    return dict(line) if isinstance(line, Mapping) else asdict(line)
