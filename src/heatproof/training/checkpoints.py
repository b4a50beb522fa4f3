"""Files of tensors that trainings leave: their weights, and the state from which an interrupted one resumes."""

import hashlib
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from heatproof import artefacts
from heatproof.errors import ModelError
from heatproof.models.weights import State, read_plain

logger = logging.getLogger(__name__)

SEAL = b"heatproof checkpoint, sealed"
"""The last bytes of a checkpoint; before them stands the SHA-256 of all bytes before the seal."""
_SEAL_LENGTH = hashlib.sha256().digest_size + len(SEAL)
_END_OF_ZIP = b"PK\x05\x06"  # begins the last 22 bytes of a file of torch.save


def save_tensors(path: Path, state: Any) -> None:
    """Writes a whole file that `torch.load(weights_only=True)` reads; equal tensors give equal bytes."""
    # Given a path, torch would write its (temporary) name into the file.
    with artefacts.whole_file(path) as temporary, temporary.open("wb") as file:
        torch.save(state, file)


def save_checkpoint(path: Path, identity: str, state: Mapping[str, Any]) -> None:
    """Writes the state of a training (tensors and plain values), sealed; `torch.load(weights_only=True)` reads it too.

    Args:
        path: the file.
        identity: names all that the training depends on.
        state: what the next step depends on.
    """
    with artefacts.whole_file(path) as temporary, temporary.open("w+b") as file:
        torch.save({"identity": identity, **state}, file)
        file.seek(0)
        file.write(hashlib.file_digest(file, "sha256").digest() + SEAL)


def read_checkpoint(path: Path | None, identity: str) -> dict[str, Any] | None:
    """The state of a training, on the CPU; None where there is no file, or one of another identity.

    A damaged file gives None and a warning. Torch checks no checksum, so that it would load flipped bits. Files of versions
    without a seal are read as far as their end is whole.
    """
    if path is None or not path.is_file():
        return None
    try:
        state = read_plain(path) if _is_whole(path.read_bytes()) else None
    except ModelError:
        state = None
    if state is None:
        logger.warning("%s: damaged; the training starts again", path)
    return state if isinstance(state, dict) and state.get("identity") == identity else None


def _is_whole(content: bytes) -> bool:
    if not content.endswith(SEAL):
        return content[-22:].startswith(_END_OF_ZIP)
    return content[-_SEAL_LENGTH : -len(SEAL)] == hashlib.sha256(memoryview(content)[:-_SEAL_LENGTH]).digest()


def copied(module: nn.Module) -> State:
    """A module's weights as they are now."""
    # Contiguous on the CPU, so that the file does not depend on device or memory layout.
    return {name: value.detach().cpu().clone().contiguous() for name, value in module.state_dict().items()}
