"""Checkpoints of trainings: whole and of their training, or not used."""

import numpy as np
import pytest
import torch

from heatproof.training.checkpoints import SEAL, read_checkpoint, save_checkpoint, save_tensors

STATE = {
    "network": {"weight": torch.arange(24.0).reshape(4, 6), "count": torch.tensor(3)},
    "history": [{"epoch": 1, "loss": 0.25}],
}
SEAL_LENGTH = 32 + len(SEAL)


@pytest.fixture
def checkpoint(tmp_path):
    save_checkpoint(tmp_path / "c.pt", "a", STATE)
    return tmp_path / "c.pt"


def equal(state):
    return (
        state["identity"] == "a"
        and state["history"] == STATE["history"]
        and all(torch.equal(state["network"][name], value) for name, value in STATE["network"].items())
    )


def test_what_was_saved_is_read(checkpoint):
    assert equal(read_checkpoint(checkpoint, "a"))
    assert equal(torch.load(checkpoint, weights_only=True))
    assert read_checkpoint(checkpoint, "b") is None
    assert read_checkpoint(checkpoint.with_name("none.pt"), "a") is None
    assert read_checkpoint(None, "a") is None


def test_a_checkpoint_without_a_seal_is_read(checkpoint):
    """Versions before the seal left torch's own file."""
    save_tensors(checkpoint, {"identity": "a", **STATE})
    assert equal(read_checkpoint(checkpoint, "a"))


def test_no_flipped_bit_and_no_cut_is_used(checkpoint, caplog):
    whole, rng = checkpoint.read_bytes(), np.random.default_rng(0)
    flips = [(int(place), 1 << int(bit)) for place, bit in rng.integers((0, 0), (len(whole), 8), (300, 2))]
    flips += [(len(whole) - 1 - place, 1) for place in range(SEAL_LENGTH)]
    # A cut that takes the seal alone leaves a whole file without one.
    cuts = [int(length) for length in rng.integers(0, len(whole), 100) if length != len(whole) - SEAL_LENGTH]
    damaged = [whole[:place] + bytes([whole[place] ^ bit]) + whole[place + 1 :] for place, bit in flips]
    damaged += [whole[:length] for length in cuts] + [whole + b"\0", whole[1:], whole[:-SEAL_LENGTH] + whole]
    for content in damaged:
        checkpoint.write_bytes(content)
        caplog.clear()
        assert read_checkpoint(checkpoint, "a") is None
        assert [record.getMessage() for record in caplog.records] == [
            f"{checkpoint}: damaged; the training starts again"
        ]


@pytest.mark.parametrize("state", [[1, 2], 5, {"weight": torch.zeros(1)}])
def test_a_foreign_file_is_not_used(checkpoint, state):
    save_tensors(checkpoint, state)
    assert read_checkpoint(checkpoint, "a") is None
