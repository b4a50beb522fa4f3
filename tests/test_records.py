"""Records vouch for results: what is missing, stale or damaged is told apart, and what somebody else wrote is no damage."""

import json

import pytest

from heatproof import artefacts, records
from heatproof.artefacts import Unknown
from heatproof.errors import DamagedError
from heatproof.stages.plan import Artefact

ORIGIN = {"seed": 0, "maps": {"a": "1"}, "others": ["x", "y"]}


@pytest.fixture
def table(tmp_path):
    """A complete table."""
    artefact = Artefact(tmp_path / "results.csv", ORIGIN, None)
    artefacts.write_csv(artefact.path, ("method", "mean"), [("a", 0.5)])
    artefact.write(artefact.path, n=1)
    return artefact


def test_what_is_not_known_differs_from_nothing_and_all_else_does():
    wanted = {"seed": 0, "maps": {"a": Unknown("a.h5")}, "others": ["x", Unknown("b.h5"), "z"][:2]}
    assert artefacts.differences(ORIGIN, wanted) == []
    assert artefacts.unknown(wanted) == ["a.h5", "b.h5"]
    assert artefacts.differences(ORIGIN, wanted | {"seed": 1}) == ["seed: 0 -> 1"]
    assert artefacts.differences(ORIGIN, wanted | {"others": ["v", Unknown("b.h5")]}) == ['others[0]: "x" -> "v"']
    assert len(artefacts.differences(ORIGIN, wanted | {"others": [Unknown("b.h5")]})) == 1
    assert artefacts.unknown(Unknown("the images", is_there=True)) == []
    with pytest.raises(TypeError):  # nothing is ever written with an origin that is not known
        artefacts.canonical(wanted)


def test_each_state_is_told_with_its_reason(table):
    assert table.status().is_complete
    assert table.status().content["n"] == 1
    assert records.table(table.record, "results.csv") == [{"method": "a", "mean": "0.5"}]
    assert Artefact(table.path, ORIGIN | {"seed": 2}, None).status() == records.Status("stale", "seed: 0 -> 2")
    assert Artefact(table.path, ORIGIN | {"seed": Unknown("s")}, None).status() == records.Status("waiting", "s")
    assert Artefact(table.path.with_name("none.csv"), ORIGIN, None).status().state == "missing"
    whole = table.path.read_text()
    table.path.write_text(whole.replace("0.5", "0.6"))
    assert table.status() == records.Status("damaged", f"{table.path}: damaged (checksum)")
    with pytest.raises(DamagedError, match=r"results\.csv: damaged \(checksum\); run its stage again"):
        records.table(table.record, "results.csv")
    table.path.unlink()
    assert table.status().state == "missing"


def test_a_failed_job_and_one_that_was_interrupted_are_told_apart(tmp_path):
    cell = Artefact(tmp_path / "seed0.json", ORIGIN, None)
    cell.checkpoint.write_bytes(b"state")
    assert cell.status() == records.Status("partial", "an interrupted training goes on")
    cell.error.write_text("Traceback")
    assert cell.status() == records.Status("failed", f"see {cell.error}")
    cell.write(accuracy=0.5)
    assert cell.is_complete()
    assert [path.name for path in tmp_path.iterdir()] == ["seed0.json"]


def test_a_changed_digit_in_a_record_is_damage_and_blanks_are_not(table):
    text = table.record.read_text()
    table.record.write_text(text.replace('"n": 1', '"n": 2'))
    assert table.status().state == "damaged"
    table.record.write_text(json.dumps(json.loads(text)))
    assert table.status().is_complete


def test_a_record_of_an_earlier_version_has_no_checksum_and_stays_valid(tmp_path):
    weights = tmp_path / "best_model.pth"
    weights.write_bytes(b"weights")
    kept = {"origin": ORIGIN, "weights_sha256": artefacts.sha256(weights), "test_accuracy": 0.5}
    artefacts.write_json(tmp_path / "best_model.json", kept)
    assert Artefact(weights, ORIGIN, None).status().content == kept
    assert records.beside(weights) == kept
    weights.write_bytes(b"flipped")
    assert Artefact(weights, ORIGIN, None).status().state == "damaged"
    with pytest.raises(DamagedError, match=r"best_model\.pth"):
        records.beside(weights)


@pytest.mark.parametrize("text", ['{"normalization": {"mean": [0.5], "std": [0.2]}}', "[1]", "no JSON", "{}"])
def test_what_somebody_else_put_beside_weights_is_no_record(tmp_path, text):
    (tmp_path / "net.json").write_text(text)
    found = records.beside(tmp_path / "net.pth")
    assert found == (json.loads(text) if text.startswith("{") else {})
