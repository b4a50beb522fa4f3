"""A run's folder, written in the formats of the stages, with results whose verdict is known by construction."""

import base64
import shutil

import numpy as np

from heatproof import artefacts, config, records, store
from heatproof.removal import orders, ranks, tie_keys
from heatproof.stages import registry, retrain_grid, retrain_summary
from heatproof.stages.evaluate import FORMAT as SCORES
from heatproof.stages.evaluate import LINE
from heatproof.stages.retrain import FORMAT as CELL
from heatproof.stages.run import Run
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
        - {{name: good, method: heatproof.methods.gradient.Gradient}}
        - {{name: useless, method: heatproof.methods.gradient.InputXGradient}}
        - {{name: bad, method: heatproof.methods.gradient.GuidedBackprop}}
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
    write_maps(path)
    write_cells(path)
    write_curves(path)


def planned(run, command):
    """A stage's artefacts, as the report reads them."""
    return registry.plan(run.view(is_reading=True), command)


def write_training(path):
    run = open_run(path)
    (place,) = planned(run, "train-cls")
    folder = place.path.parent
    folder.mkdir(parents=True)
    columns = ("epoch", "learning_rate", "train_loss", "train_accuracy", "validation_loss", "validation_accuracy")
    rows = [(e, 0.001, 1 / e, 0.5 + 0.08 * e, 1.1 / e, 0.5 + 0.07 * e) for e in range(1, 6)]
    artefacts.write_csv(folder / "history.csv", columns, rows)
    told = {"class_names": run.dataset.class_names, "epochs": 5, "best_epoch": 5}
    told |= {"normalization": {"mean": [0.5] * 3, "std": [0.2] * 3}}
    place.leave({}, folder / "history.csv", validation_accuracy=0.85, test_accuracy=0.8125, **told)
    write_times(folder, [("train-cls", 320, 12.5)])


def write_maps(path, **changes):
    """The files of maps of every method."""
    run = open_run(path)
    for file in planned(run, "extract-attribution-maps"):
        _write_maps(run, file, **changes)


def _write_maps(run, file, constant_rows=()):
    split, name = run.dataset.split(file.job.split), file.job.method.name
    rng = np.random.default_rng([len(name), 2])
    maps = rng.normal(size=(len(split), 32, 32)).astype(np.float32)
    if name != "bad":
        maps = abs(maps)
    if name == "useless":
        maps = np.maximum(maps - 1.5, 0)  # most pixels tie at zero
    maps[list(constant_rows)] = 0.0
    index = np.arange(len(split))
    logits = 4 * np.eye(4, dtype=np.float32)[split.labels]
    logits[::5] = np.roll(logits[::5], 1, axis=1)  # every fifth image is classified wrongly
    predictions = logits.argmax(1)
    writer = store.MapWriter(
        file.path, rows=len(split), size=(32, 32), classes=4, origin=known(file.origin), method=name, split=split.name
    )
    (block,) = writer.missing()
    found = orders(maps, keys=tie_keys(run.config.seed, index, 1024))
    writer.write(
        block, maps=maps, ranks=ranks(found, (32, 32)), index=index, label=split.labels, target=predictions,
        prediction=predictions, logits=logits,
    )  # fmt: skip
    writer.finish()
    if split.name == "test":
        write_times(file.path.parent.parent, [(f"{name}/test", len(split), 0.5)])


def known(origin):
    """An origin without what only a loaded classifier tells."""
    if isinstance(origin, dict):
        return {key: known(value) for key, value in origin.items() if not isinstance(value, artefacts.Unknown)}
    return origin


def write_cells(path, *overrides, keep=lambda metric, method, percentile, run: True):
    """The grid's cells with the accuracies of `synthetic.retraining`, those that `keep` says, and their tables."""
    run = open_run(path, *overrides)
    section = run.config.retrain_cls
    tables = {metric: synthetic.retraining(metric, runs=section.seeds) for metric in section.metrics}
    steps = [0, *section.percentiles]
    for cell in planned(run, "evaluate-attribution-maps-roar"):
        job = cell.job
        if not isinstance(job, retrain_grid.Job) or not keep(job.metric, job.method, job.percentile, job.number):
            continue
        table = tables.get(job.metric, tables["roar"])
        method = "random" if job.metric == retrain_grid.INTACT else job.method
        accuracy = table.accuracy[method][section.seeds.index(job.number), steps.index(job.percentile)]
        _write_cell(cell, float(accuracy))
    *_, summary = planned(run, "evaluate-attribution-maps-roar")
    if not summary.needs:
        for name in ("results.csv", "summary.csv"):
            artefacts.write_csv(summary.path.with_name(name), retrain_summary.COLUMNS, [])
        summary.write(summary.path, summary.path.with_name("results.csv"))


def _write_cell(cell, accuracy):
    cell.path.parent.mkdir(parents=True, exist_ok=True)
    cell.write(
        format=CELL,
        test_accuracy=accuracy,
        test_images=48,
        run=cell.job.number,
        correct=base64.b64encode(bytes(6)).decode(),
    )


def write_curves(path, *overrides, quality=synthetic.QUALITY):
    """A file of curves for each method, with the probabilities of `synthetic.curves`, and their table."""
    run = open_run(path, *overrides)
    section = run.config.pixel_perturbation_analysis
    fractions = [0.0, *(p / 100 for p in section.percentiles)]
    made = synthetic.curves(40, quality, fractions)
    per_image = (2, len(fractions))
    columns = [store.Column(name, "int64") for name in ("index", "label", "target", "prediction")]
    columns += [store.Column(name, "float64", per_image) for name in ("probability", "logit", "logit_margin")]
    columns.append(store.Column("predicted", "int64", per_image))
    *files, summary = planned(run, "lerf")
    for file in files:
        writer = store.RowWriter(file.path, columns, rows=40, origin=known(file.origin), kind=SCORES, rows_per_shard=64)
        probability = made.probability[file.path.stem]
        for block in writer.missing():
            values = dict.fromkeys(("probability", "logit", "logit_margin"), probability)
            seen = {"index": np.arange(40), "label": made.targets, "target": made.targets, "prediction": made.targets}
            writer.write(block, values | seen | {"predicted": made.predicted[file.path.stem]})
        writer.finish()
    artefacts.write_csv(summary.path, LINE, [])
    records.write(summary.record, known(summary.origin), [summary.path])


def write_times(folder, lines):
    for what, items, seconds in lines:
        columns = ("finished", "host", "what", "items", "seconds")
        artefacts.append_row(folder / "timing.csv", columns, ("2026-01-01T00:00:00Z", "laptop", what, items, seconds))
