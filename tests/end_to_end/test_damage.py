"""Every artefact of a run vouches for its content: what is deleted, damaged or changed is named, made again, and never used.

One run has all kinds of artefact; the tests go over the plans of all its stages, so that no kind can be forgotten.
"""

import json
import shutil

import pytest

from heatproof import config, records, store
from heatproof.config.stages import STAGES
from heatproof.stages import registry
from heatproof.stages.results import Results
from heatproof.stages.run import Run
from tests.damage import damaged, put
from tests.end_to_end.conftest import heatproof

EVERYTHING = """
outdir: {outdir}
seed: 3
device: cpu
data:
    dataset: Planted
    split_ratio: 0.75
    options: {{train_images: 64, test_images: 24, classes: 4}}
train_cls:
    model: &MODEL {{arch: heatproof.models.resnet_cifar.NarrowResNet8}}
    optimizer: &OPTIMIZER {{name: torch.optim.Adam, lr: 5.0e-3}}
    batch_size: 32
    nb_epochs: 1
evaluate_cls: {{splits: [validation, test]}}
train_diffmask: {{model: &TRAINED {{<<: *MODEL, pretrained_weights: '${{outdir}}/train_cls/best_model.pth'}}, nb_epochs: 1, sample_images: 0}}
train_masker: {{model: *TRAINED, form: [fix, ca], taps: [layer1, layer2], width: 4, nb_epochs: 1, batch_size: 8}}
train_infiller: {{nb_epochs: 1, width: 4, test_samples: 8, fills: [mean]}}
extract_cams:
    model: *TRAINED
    controls: [random, oracle]
    twins: [inverse]
    attribution_methods:
        - {{name: gradient, method: heatproof.methods.gradient.Gradient}}
infill: {{infillers: [{{name: blurred, infiller: blur}}], percentiles: [20], splits: [test]}}
retrain_cls:
    model: *MODEL
    optimizer: *OPTIMIZER
    metrics: [roar, kar]
    percentiles: [20, 50]
    seeds: [0]
    recursive: true
    batch_size: 32
    nb_epochs: 1
    workers: 1
    controls: [random]
    attribution_methods: [{{name: gradient, method: heatproof.methods.gradient.Gradient}}]
pixel_perturbation_analysis: {{percentiles: [20, 50], test_samples: 16}}
insertion_deletion: {{step: 200}}
road: {{percentiles: [20, 50]}}
faithfulness: {{test_samples: 4}}
localise: {{}}
complexity: {{}}
robustness: {{samples: 2, test_samples: 4}}
agreement: {{}}
sanity_checks: {{orders: [top_down], layer_depth: 1, test_samples: 8, data_randomisation: {{nb_epochs: 1}}}}
tests: [{{name: height, test: tests.end_to_end.test_damage.height, test_samples: 8}}]
report: {{gallery_images: 2, resamples: 100}}
"""
FAULTS = 1200
BESIDE = ("timing.csv", "events.out.tfevents")
"""What stages leave that says nothing of results: times, and TensorBoard's files."""


def height(maps):
    """A score from outside: the mean of a map."""
    return maps.mean((1, 2))


@pytest.fixture(scope="module")
def finished(write):
    path = write(EVERYTHING, "everything")
    assert heatproof("demo", "--config", path) == 0
    return path


def opened(path):
    return Run(config.read(path)).view(is_reading=True)


def artefacts_of(run):
    """All artefacts of a run, by command."""
    asked = [command for command, stage in STAGES.items() if getattr(run.config, stage.section)]
    return {command: registry.plan(run, command) for command in asked}


def files_of(artefact):
    """The files that an artefact consists of."""
    if artefact.path.suffix == ".h5":
        return [artefact.path]
    content = records.read(artefact.record)
    return [artefact.record, *(artefact.record.parent / name for name in records.files_of(artefact.record, content))]


def one_of_each_kind(run):
    """An artefact of each kind: of each stage, by the file's ending and the folder that it lies in."""
    kinds = {}
    for command, planned in artefacts_of(run).items():
        for artefact in planned:
            depth = len(artefact.path.relative_to(run.config.outdir).parts)
            kinds.setdefault((command, artefact.path.suffix, depth, type(artefact.job).__name__), artefact)
    return kinds


def content_of(run):
    folder = run.config.outdir
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.startswith(BESIDE)
    }


def copied(finished, tmp_path):
    shutil.copytree(finished.parent, tmp_path / "run")
    own = tmp_path / "run" / finished.name
    own.write_text(own.read_text().replace(str(finished.parent), str(tmp_path / "run")))
    return own


def test_a_finished_run_has_no_remark_and_all_its_stages_are_planned(finished):
    results = Results.of(Run(config.read(finished)))
    assert set(results.stages) == set(STAGES) - {"report"}
    for part in results.progress():
        assert (part.remarks, part.done) == ((), part.wanted), part.what


def test_every_file_of_a_run_belongs_to_an_artefact(finished):
    run = opened(finished)
    vouched = {path for planned in artefacts_of(run).values() for artefact in planned for path in files_of(artefact)}
    vouched |= {run.config.outdir / "data" / "statistics.json"}
    # The record of a trained classifier's weights beside its masker; the masker's own record vouches for the weights.
    vouched |= {path.with_suffix(".json") for path in vouched if path.name == "classifier.pth"}
    left = {run.config.outdir / name for name in content_of(run)} - vouched
    assert left == set()


def test_a_second_run_changes_nothing_and_a_moved_one_neither(finished, tmp_path, caplog):
    before = content_of(opened(finished))
    assert heatproof("demo", "--config", finished) == 0
    assert content_of(opened(finished)) == before
    own = copied(finished, tmp_path)
    caplog.set_level("INFO")
    caplog.clear()
    assert heatproof("demo", "--config", own) == 0
    assert [line for line in caplog.messages if " to be " in line] == []
    assert content_of(opened(own)) == before


def test_what_is_deleted_is_named_by_dry_run_and_report(finished, tmp_path, caplog):
    own = copied(finished, tmp_path)
    for (command, *_), artefact in one_of_each_kind(opened(own)).items():
        if command == "report":
            continue
        kept = {path: path.read_bytes() for path in files_of(artefact)}
        for path in kept:
            path.unlink()
        caplog.clear()
        caplog.set_level("INFO")
        assert heatproof(command, "--config", own, "--dry-run") == 0
        assert any(str(artefact.path) in line and " to be " in line for line in caplog.messages), artefact.path
        remarks = Results.of(Run(config.read(own))).planned(command).remarks
        assert any(str(artefact.path.relative_to(own.parent / "out")) in remark for remark in remarks), artefact.path
        for path, content in kept.items():
            path.write_bytes(content)


def test_no_damage_is_used_in_silence(finished, tmp_path):
    own = copied(finished, tmp_path)
    kinds = one_of_each_kind(opened(own))
    number = 0
    for artefact in kinds.values():
        before = {path: path.read_bytes() for path in files_of(artefact)}
        assert artefact.status().is_complete
        said = artefact.status().content
        values = _values(artefact)
        for _ in range(-(-FAULTS // (len(kinds) * len(before)))):
            for path, content in before.items():
                number += 1
                fault = damaged(content, number)
                if fault == content:
                    continue
                put(path, fault, number)
                found = artefact.status()
                if found.is_complete:  # of what no byte is read: blanks of JSON, gaps between an HDF5 file's parts
                    assert path.suffix in (".json", ".h5"), path
                    assert found.content == said, path
                    assert _values(artefact) == values, path
                put(path, content, number)
    assert number >= FAULTS


def _values(artefact):
    """Everything that a file of rows holds."""
    if artefact.path.suffix != ".h5":
        return None
    reader = store.RowReader(artefact.path)
    found = {name: reader.read(name).tobytes() for name in reader.names}
    return found, json.dumps(reader.origin, sort_keys=True), str(reader.attributes)


def test_what_is_damaged_is_made_again_to_the_same_bytes_and_leftovers_go(finished, tmp_path, caplog):
    own = copied(finished, tmp_path)
    run = opened(own)
    before = content_of(run)
    kinds = one_of_each_kind(run).values()
    for number, artefact in enumerate(kinds):
        path = files_of(artefact)[-1]
        put(path, damaged(path.read_bytes(), 3 * number), number)
    changed = {artefact.path for artefact in kinds}
    whole = [artefact for planned in artefacts_of(run).values() for artefact in planned if artefact.path not in changed]
    for artefact in whole:
        for leftover in (artefact.error, artefact.checkpoint, artefact.path.with_name(f".{artefact.path.name}.x.tmp")):
            if leftover.parent.is_dir() and "report" not in leftover.parts:
                leftover.write_bytes(b"left by a kill")
    assert heatproof("demo", "--config", own) == 0
    # The page shows what the second making cost.
    assert without_page(content_of(opened(own))) == without_page(before)
    assert not [path for path in own.parent.rglob("*") if path.suffix in (".tmp", ".error", ".checkpoint", ".parts")]


def without_page(contents):
    return {name: content for name, content in contents.items() if not name.startswith("report/")}


def test_other_json_in_the_place_of_a_record_is_damage(finished, tmp_path):
    own = copied(finished, tmp_path)
    kinds = [artefact for artefact in one_of_each_kind(opened(own)).values() if artefact.path.suffix != ".h5"]
    for content in ("", "[]", "{}", "5", "null", '"text"', "[" * 3000):
        for artefact in kinds:
            artefact.record.write_text(content)
            assert artefact.status().state in ("damaged", "stale"), (artefact.path, content)
    assert Results.of(Run(config.read(own))).progress()
