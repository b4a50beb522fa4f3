"""Files of tensors that trainings leave: their weights, and the state from which a killed one goes on."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from heatproof import artefacts
from heatproof.errors import ModelError
from heatproof.models.weights import State, read_plain


def save_tensors(path: Path, state: Any) -> None:
    """Writes a whole file that `torch.load(weights_only=True)` reads; equal tensors give equal bytes."""
    # Given a path, torch would write its (temporary) name into the file.
    with artefacts.whole_file(path) as temporary, temporary.open("wb") as file:
        torch.save(state, file)


def read_checkpoint(path: Path | None, identity: str) -> dict[str, Any] | None:
    """The state of a training, on the CPU; None where there is none, or one with another "identity".

    Raises:
        ModelError: the file is damaged.
    """
    if path is None or not path.is_file():
        return None
    try:
        state: dict[str, Any] = read_plain(path)
    except ModelError as error:
        raise ModelError(f"{path}: the checkpoint is damaged; delete it to train from the start") from error
    return state if state.get("identity") == identity else None


def copied(module: nn.Module) -> State:
    """A module's weights as they are now."""
    # Contiguous on the CPU, so that the file does not depend on device or memory layout.
    return {name: value.detach().cpu().clone().contiguous() for name, value in module.state_dict().items()}
