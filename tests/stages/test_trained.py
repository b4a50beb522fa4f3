"""The one place where a training's result lies: whole and of the wanted origin, or made again, and the log says why."""

import pytest
import torch

from heatproof import artefacts
from heatproof.stages.trained import Trained

STATE = {"weight": torch.arange(3.0)}


@pytest.fixture
def place(tmp_path):
    return Trained(tmp_path / "net" / "net.pth", {"seed": 0, "training": {"epochs": 2, "areas": (0.2, 0.5)}})


def test_what_was_left_is_kept_and_its_checkpoint_is_gone(place):
    assert place.kept() is None
    place.checkpoint.parent.mkdir()
    place.checkpoint.write_bytes(b"state")
    left = place.leave(STATE, accuracy=0.5)
    assert left["accuracy"] == 0.5
    assert left["files"] == {"net.pth": artefacts.sha256(place.path)}
    assert place.kept() == {**left, "origin": artefacts.read_json(place.record)["origin"]}
    assert torch.equal(torch.load(place.path, weights_only=True)["weight"], STATE["weight"])
    assert [path.name for path in sorted(place.path.parent.iterdir())] == ["net.json", "net.pth"]


def test_why_it_is_trained_is_said(place, caplog):
    caplog.set_level("INFO")

    def told():
        caplog.clear()
        assert place.kept() is None
        return caplog.text

    assert "net.pth: to be trained\n" in told()
    place.checkpoint.parent.mkdir()
    place.checkpoint.write_bytes(b"state")
    assert "net.pth: an interrupted training goes on; to be continued" in told()
    Trained(place.path, {**place.origin, "seed": 1}).leave(STATE)
    assert "net.pth: stale, to be trained again: seed: 1 -> 0" in told()
    place.leave(STATE)
    place.path.write_bytes(b"another")
    assert "net.pth: damaged (checksum); to be trained again" in told()
    place.path.unlink()
    assert "net.pth: to be trained\n" in told()


@pytest.mark.parametrize("text", ["{}", "[1]", "no json", '{"origin": {"seed": 0}}'])
def test_a_foreign_file_beside_the_weights_counts_as_none(place, text):
    place.leave(STATE)
    place.path.with_suffix(".json").write_text(text)
    assert place.kept() is None
