"""A run's folder, written in the formats of the stages, with results whose verdict is known by construction."""

import base64
import json
import shutil

import numpy as np

from heatproof import artefacts, config, store
from heatproof.removal import orders, ranks, scores, tie_keys
from heatproof.stages.evaluate import FORMAT as SCORES
from heatproof.stages.retrain import FORMAT as CELL
from heatproof.stages.run import Run, model_origin, training_origin
from heatproof.training import classifier
from tests.report import synthetic

YAML = """
desc: "A <small> run"
outdir: {outdir}
seed: 5
device: cpu
data:
    dataset: Planted
    options: {{train_images: 64, test_images: 48, classes: 4}}
train_cls:
    model: &MODEL {{arch: heatproof.models.resnet_cifar.ResNet8}}
    nb_epochs: 5
extract_cams:
    model: &TRAINED
        <<: *MODEL
        pretrained_weights: '${{outdir}}/train_cls/best_model.pth'
    controls: &CONTROLS [random, sobel, centre, oracle, anti_oracle]
    attribution_methods: &METHODS
        - {{name: good, method: my.Good}}
        - {{name: useless, method: my.Useless}}
        - {{name: bad, method: my.Bad}}
retrain_cls:
    metrics: [roar, kar]
    percentiles: [10, 30, 50]
    seeds: [0, 1, 2]
    controls: *CONTROLS
    attribution_methods: *METHODS
    model: *MODEL
    nb_epochs: 5
pixel_perturbation_analysis:
    model: *TRAINED
    percentiles: [5, 10, 20, 30, 50]
    test_samples: 40
    controls: *CONTROLS
    attribution_methods: *METHODS
report: {{gallery_images: 4, resamples: 300}}
"""


def write_configuration(folder):
    path = folder / "small.yml"
    folder.mkdir(exist_ok=True)
    path.write_text(YAML.format(outdir=folder / "out"))
    return path


def copy(path, folder, *parts):
    """A configuration of its own with the named parts of a run's results."""
    own = write_configuration(folder)
    for part in parts:
        shutil.copytree(path.parent / "out" / part, folder / "out" / part)
    return own


def open_run(path, *overrides, dry_run=False):
    return Run(config.read(path, overrides), dry_run=dry_run)


def write_all(path):
    """Writes what every stage would leave."""
    write_training(path)
    contents = write_maps(path)
    write_cells(path, contents)
    write_curves(path, contents)


def write_training(path):
    run = open_run(path)
    folder = run.config.outdir / "train_cls"
    section = run.config.train_cls
    (folder).mkdir(parents=True)
    (folder / "best_model.pth").write_bytes(b"weights")
    columns = ("epoch", "learning_rate", "train_loss", "train_accuracy", "validation_loss", "validation_accuracy")
    rows = [(e, 0.001, 1 / e, 0.5 + 0.08 * e, 1.1 / e, 0.5 + 0.07 * e) for e in range(1, 6)]
    artefacts.write_csv(folder / "history.csv", columns, rows)
    origin = {"model": model_origin(section.model), "training": training_origin(section), "seed": run.config.seed}
    kept = {"origin": origin, "weights_sha256": artefacts.sha256(folder / "best_model.pth")}
    kept |= {"class_names": run.dataset.class_names, "epochs": 5, "best_epoch": 5}
    artefacts.write_json(folder / "best_model.json", kept | {"validation_accuracy": 0.85, "test_accuracy": 0.8125})
    write_times(folder, [("train-cls", 320, 12.5)])


def write_maps(path, **changes):
    """One file of test maps for each method; returns what is in them."""
    run = open_run(path)
    return {method.name: _write_maps(run, method, **changes) for method in run.config.extract_cams.methods()}


def _write_maps(run, method, constant_rows=()):
    split = run.dataset.split("test")
    section = run.config.extract_cams
    rng = np.random.default_rng([len(method.name), 2])
    maps = rng.normal(size=(len(split), 32, 32)).astype(np.float32)
    if method.name != "bad":
        maps = abs(maps)
    if method.name == "useless":
        maps = np.maximum(maps - 1.5, 0)  # most pixels tie at zero
    maps[list(constant_rows)] = 0.0
    index = np.arange(len(split))
    origin = {
        "data": split.fingerprint,
        "model": model_origin(section.model)
        | {"weights": artefacts.sha256(run.config.outdir / "train_cls/best_model.pth")},
        "method": {
            "path": method.method,
            "kwargs": method.kwargs,
            "channel_reduction": method.channel_reduction,
            "on_invalid": method.on_invalid,
            "code": "1",
        },
        "target": section.target,
        "dtype": section.dtype,
        "ties": section.ties,
        "seed": run.config.seed,
    }
    logits = 4 * np.eye(4, dtype=np.float32)[split.labels]
    logits[::5] = np.roll(logits[::5], 1, axis=1)  # every fifth image is classified wrongly
    predictions = logits.argmax(1)
    folder = run.config.outdir / "extract_cams" / method.name
    writer = store.MapWriter(
        folder / "test.h5", rows=len(split), size=(32, 32), classes=4, origin=origin, method=method.name, split="test"
    )
    (block,) = writer.missing()
    found = orders(maps, keys=tie_keys(run.config.seed, index, 1024))
    writer.write(
        block, maps=maps, ranks=ranks(found, (32, 32)), index=index, label=split.labels, target=predictions,
        prediction=predictions, logits=logits,
    )  # fmt: skip
    writer.finish()
    for name in ("train", "validation"):  # their content does not matter here
        shutil.copy(folder / "test.h5", folder / f"{name}.h5")
    write_times(folder.parent, [(f"{method.name}/test", len(split), 0.5)])
    return store.MapReader(folder / "test.h5").content_id()


def write_cells(path, contents, *overrides, keep=lambda metric, method, percentile, run: True):
    """The grid's cells with the accuracies of `synthetic.retraining`, those that `keep` says."""
    run = open_run(path, *overrides)
    section = run.config.retrain_cls
    for metric in section.metrics:
        table = synthetic.retraining(metric, runs=section.seeds)
        steps = [0, *(p / 100 for p in section.percentiles)]
        for method in section.methods():
            for row, number in enumerate(section.seeds):
                for column, fraction in enumerate(steps):
                    if not keep(metric, method.name, 100 * fraction, number):
                        continue
                    place = "intact/0" if fraction == 0 else f"{metric}/{method.name}/{100 * fraction:g}"
                    extra = {} if fraction == 0 else {
                        "metric": metric, "percentile": 100 * fraction, "fill": section.fill,
                        "maps": dict.fromkeys(("train", "validation", "test"), contents[method.name]),
                    }  # fmt: skip
                    _write_cell(run, place, number, float(table.accuracy[method.name][row, column]), extra)


def _write_cell(run, place, number, accuracy, extra):
    section = run.config.retrain_cls
    origin = {
        "data": {name: run.dataset.split(name).fingerprint for name in ("train", "validation", "test")},
        "model": model_origin(section.model),
        "training": training_origin(section),
        "seed": run.config.seed,
        "code": classifier.RESULTS_VERSION,
        "run": number,
    }
    result = {"format": CELL, "origin": origin | extra, "test_accuracy": accuracy, "test_images": 48, "run": number}
    result["correct"] = base64.b64encode(b"\x00" * 6).decode()
    path = run.config.outdir / "retrain_cls" / place / f"seed{number}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result))


def write_curves(path, contents, *overrides, quality=synthetic.QUALITY):
    """A file of curves for each method, with the probabilities of `synthetic.curves`."""
    run = open_run(path, *overrides)
    section = run.config.pixel_perturbation_analysis
    fractions = [0.0, *(p / 100 for p in section.percentiles)]
    made = synthetic.curves(40, quality, fractions)
    per_image = (2, len(fractions))
    columns = [store.Column(name, "int64") for name in ("index", "label", "target", "prediction")]
    columns += [store.Column(name, "float64", per_image) for name in ("probability", "logit", "logit_margin")]
    columns.append(store.Column("predicted", "int64", per_image))
    for method in section.methods():
        origin = {
            "maps": contents[method.name],
            "model": {"weights": "w"},
            "data": run.dataset.split("test").fingerprint,
            "rows": list(range(40)),
            "fractions": fractions,
            "fill": section.fill,
            "seed": run.config.seed,
            "code": scores.RESULTS_VERSION,
        }
        target = run.config.outdir / "pixel_perturbation_analysis" / f"{method.name}.h5"
        writer = store.RowWriter(target, columns, rows=40, origin=origin, kind=SCORES, rows_per_shard=64)
        probability = made.probability[method.name]
        for block in writer.missing():
            values = dict.fromkeys(("probability", "logit", "logit_margin"), probability)
            known = {"index": np.arange(40), "label": made.targets, "target": made.targets, "prediction": made.targets}
            writer.write(block, values | known | {"predicted": made.predicted[method.name]})
        writer.finish()


def write_times(folder, lines):
    for what, items, seconds in lines:
        columns = ("finished", "host", "what", "items", "seconds")
        artefacts.append_row(folder / "timing.csv", columns, ("2026-01-01T00:00:00Z", "laptop", what, items, seconds))
