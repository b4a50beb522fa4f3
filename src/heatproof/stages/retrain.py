"""evaluate-attribution-maps-roar: removes pixels in the order of each method's maps, retrains, and measures.

Reads extract_cams/<method>/<split>.h5; writes one file for each cell of the grid,
retrain_cls/<metric>/<method>/<percentile>/seed<run>.json, and retrain_cls/results.csv. The cell of removed fraction 0
is shared by all: retrain_cls/intact/0/seed<run>.json. Initial weights, batch order and augmentation depend on the
run alone, so that runs of two methods are pairs.
"""

import base64
import functools
import json
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from heatproof import artefacts, cells, config, plugins, removal, runtime, store
from heatproof.errors import ConfigError, MapError, MissingInputError
from heatproof.models import Normalization
from heatproof.stages import extract
from heatproof.stages.run import Run, model_origin, training_origin, why_stale
from heatproof.training import classifier
from heatproof.training.examples import Removal

logger = logging.getLogger(__name__)

FORMAT = "heatproof/retraining"
INTACT = "intact"
# KAR follows the ROAR code: the share of the least important pixels that is *removed*.
FIRST: dict[str, removal.First] = {"roar": "most", "kar": "least"}
COLUMNS = (
    "metric", "method", "control", "removed_fraction", "first", "fill", "run", "epochs", "best_epoch",
    "validation_accuracy", "test_accuracy", "test_images", "base_model", "maps",
)  # fmt: skip


@dataclass(frozen=True)
class Job:
    """One retraining; everything that a fresh process needs."""

    settings: config.Config
    path: Path
    metric: str
    method: str
    control: bool
    percentile: float
    number: int
    origin: dict[str, Any]
    maps: dict[str, Path]


def run(run: Run) -> None:
    """Computes the missing and stale cells of the grid, and gathers all results."""
    section = config.section(run.config, "retrain_cls", config.RetrainCls)
    _check(run, section)
    grid = list(_grid(run, section))
    missing = [job for job in grid if not _is_done(job)]
    logger.info(
        "%s: %d of %d cells are complete", run.config.outdir / "retrain_cls", len(grid) - len(missing), len(grid)
    )
    if run.dry_run:
        return
    for job in missing:
        artefacts.remove_leftovers(job.path.parent)
    cells.map_cells(
        compute,
        [cells.Cell(job.path, job) for job in missing],
        device=run.device,
        workers=cells.default_workers(run.device) if section.workers == "auto" else section.workers,
        threads=section.threads,
        description="retrain",
    )
    _write_results(run.config.outdir / "retrain_cls" / "results.csv", grid)


def compute(job: Job) -> None:
    """Trains one cell and writes its file."""
    started = time.monotonic()
    run, splits = _shared(job.settings.model_dump_json())
    section = config.section(run.config, "retrain_cls", config.RetrainCls)
    examples = {
        name: run.examples(split, _removal(run, section, job, name) if job.maps else None)
        for name, split in splits.items()
    }
    loaded = run.fresh(section.model, "retrain", job.number)
    checkpoint = job.path.with_suffix(".checkpoint")
    fitted = classifier.fit(
        loaded.module,
        loaded.normalization,
        examples["train"],
        examples["validation"],
        run.recipe(section),
        seed=run.config.seed,
        purpose=("retrain", job.number),
        checkpoint=checkpoint,
        identity=artefacts.canonical(job.origin),
        checkpoint_every_s=60.0,
    )
    loaded.module.load_state_dict(fitted.state)
    predictions = classifier.predict(loaded.module, loaded.normalization, examples["test"], batch_size=1024)
    test = examples["test"]
    artefacts.write_json(job.path, _result(job, section, fitted, predictions, test.split.labels, test.valid))
    checkpoint.unlink(missing_ok=True)
    what = str(job.path.relative_to(run.config.outdir / "retrain_cls").with_suffix(""))
    runtime.record_time(run.config.outdir / "retrain_cls", what, section.nb_epochs * len(splits["train"]), started)


@functools.lru_cache(maxsize=1)
def _shared(settings: str) -> tuple[Run, dict[str, Any]]:
    """What all cells of one process share: splits stay decoded from cell to cell."""
    run = Run(config.Config.model_validate_json(settings))
    return run, {name: run.dataset.split(name) for name in extract.SPLITS}


@functools.lru_cache(maxsize=6)
def _reader(path: Path, content: str) -> store.MapReader:
    return store.MapReader(path)


def _removal(run: Run, section: config.RetrainCls, job: Job, split: str) -> Removal:
    reader = _reader(job.maps[split], job.origin["maps"][split])
    fill = _fill(run, section)
    fraction, first = job.percentile / 100, FIRST[job.metric]

    def degrade(pixels: Tensor, ranks: Tensor, indices: Tensor) -> Tensor:
        return fill(pixels, removal.removed(ranks, fraction, first), indices)

    return Removal(reader.ranks, degrade, reader.invalid if reader.invalid.any() else None)


def build_fill(run: Run, asked: str | config.Plugin, normalization: Callable[[], Normalization]) -> removal.Fill:
    """The fill that a section asks for, in units of pixels in [0, 1]; means are looked up only where it takes them."""
    name, options = (asked, {}) if isinstance(asked, str) else (asked.name, asked.options)
    target = removal.FILLS.get(name) or (plugins.resolve(name) if "." in name else None)
    means: dict[str, tuple[float, ...]] = {}
    if target is not None and plugins.wants(target, "mean"):
        means["mean"] = run.statistics.mean
    if target is not None and plugins.wants(target, "normalization_mean"):
        means["normalization_mean"] = normalization().mean
    return removal.build_fill(name, seed=run.config.seed, **means, **options)


def _fill(run: Run, section: config.RetrainCls) -> removal.Fill:
    asked = section.model.normalization
    return build_fill(
        run,
        section.fill,
        lambda: run.statistics if asked is None else Normalization(tuple(asked.mean), tuple(asked.std)),
    )


def _check(run: Run, section: config.RetrainCls) -> None:
    if section.model.pretrained_weights is not None:
        raise ConfigError(
            "retrain_cls.model.pretrained_weights: must not be set; ROAR retrains from fresh weights, "
            "or what was learnt from intact images would leak into the score"
        )
    run.recipe(section)
    _fill(run, section)


def _grid(run: Run, section: config.RetrainCls) -> Iterator[Job]:
    root = run.config.outdir / "retrain_cls"
    shared = {
        "data": {name: run.dataset.split(name).fingerprint for name in extract.SPLITS},
        "model": model_origin(section.model),
        "training": training_origin(section),
        "seed": run.config.seed,
        "code": classifier.RESULTS_VERSION,
    }
    fill = section.fill if isinstance(section.fill, str) else section.fill.model_dump()
    maps = _maps(run, section)
    # Run by run, so that an unfinished grid already compares all methods.
    for number in section.seeds:
        path = root / INTACT / "0" / f"seed{number}.json"
        yield Job(run.config, path, INTACT, INTACT, False, 0.0, number, shared | {"run": number}, {})
        for metric in section.metrics:
            for method in section.methods():
                for percentile in section.percentiles:
                    if percentile == 0:
                        continue
                    paths, contents = maps[method.name]
                    origin = shared | {
                        "run": number,
                        "metric": metric,
                        "percentile": percentile,
                        "fill": fill,
                        "maps": contents,
                    }
                    path = root / metric / method.name / f"{percentile:g}" / f"seed{number}.json"
                    yield Job(run.config, path, metric, method.name, method.control, percentile, number, origin, paths)


def _maps(run: Run, section: config.RetrainCls) -> dict[str, tuple[dict[str, Path], dict[str, str]]]:
    """The files of each method, and what is in them; complete, of this data and of one classifier."""
    found = {}
    base_models = {}
    for method in section.methods():
        paths, contents = {}, {}
        for name in extract.SPLITS:
            path = run.config.outdir / "extract_cams" / method.name / f"{name}.h5"
            if not path.is_file():
                raise MissingInputError(f"{path}: no such file of maps; run extract-attribution-maps first")
            reader = store.MapReader(path)
            reader.require_complete()
            split = run.dataset.split(name)
            _check_maps(reader, split.fingerprint, len(split), allow_label=section.allow_label_target)
            base_models[path] = reader.origin.get("model")
            paths[name], contents[name] = path, reader.content_id()
        found[method.name] = (paths, contents)
    _check_base_model(run, base_models)
    return found


def _check_maps(reader: store.MapReader, data: str, rows: int, *, allow_label: bool) -> None:
    if reader.origin.get("data") != data:
        raise MapError(f"{reader.path}: maps of other data than the configuration's; run extract-attribution-maps")
    if reader.rows != rows or not np.array_equal(reader.index, np.arange(rows)):
        raise MapError(f"{reader.path}: {reader.rows} rows that are not the split's {rows} images in order")
    if reader.invalid.all():
        raise MapError(f"{reader.path}: holds no valid map; take the method out of the configuration, or mend it")
    if reader.origin.get("target") == "label" and not allow_label:
        raise MapError(
            f"{reader.path}: the maps explain the true label, which a retrained network could read off the mask; "
            "use extract_cams.target: predicted, or set retrain_cls.allow_label_target: true"
        )


def _check_base_model(run: Run, found: dict[Path, Any]) -> None:
    first_path, first = next(iter(found.items()))
    wanted, by = first, str(first_path)
    if run.config.extract_cams is not None:
        plan = extract.Extraction.of(run, run.config.extract_cams)
        wanted, by = plan.origin(plan.methods[0], run.dataset.split("test"))["model"], "extract_cams.model"
    for path, model in found.items():
        if model != wanted:
            raise MapError(
                f"{path}: maps of another classifier than {by} ({why_stale({'model': model}, {'model': wanted})}); "
                "run extract-attribution-maps"
            )


def _is_done(job: Job) -> bool:
    kept = artefacts.read_json(job.path)
    if kept is None:
        return False
    if kept.get("origin") != job.origin:
        logger.info("%s: stale, to be computed again: %s", job.path, why_stale(kept.get("origin", {}), job.origin))
        return False
    return True


def _result(
    job: Job,
    section: config.RetrainCls,
    fitted: classifier.Fitted,
    predictions: NDArray[np.int64],
    labels: NDArray[np.int64],
    valid: NDArray[np.bool_],
) -> dict[str, Any]:
    correct = predictions == labels[valid]
    return {
        "format": FORMAT,
        "origin": job.origin,
        "metric": job.metric,
        "method": job.method,
        "control": job.control,
        "removed_fraction": job.percentile / 100,
        "first": FIRST.get(job.metric),
        "fill": job.origin.get("fill"),
        "run": job.number,
        "epochs": section.nb_epochs,
        "best_epoch": fitted.best_epoch,
        "validation_accuracy": fitted.validation_accuracy,
        "test_accuracy": float(correct.mean()),
        "test_images": len(correct),
        "left_out": np.flatnonzero(~valid).tolist(),
        "predictions": base64.b64encode(predictions.astype("<u2").tobytes()).decode(),
        "correct": base64.b64encode(np.packbits(correct).tobytes()).decode(),
    }


def correct_images(result: dict[str, Any]) -> NDArray[np.bool_]:
    """Which test images a cell's network classified right, in order and without those `left_out`, from the cell's file."""
    packed = np.frombuffer(base64.b64decode(result["correct"]), dtype=np.uint8)
    return np.unpackbits(packed, count=result["test_images"]).astype(bool)


def _write_results(path: Path, grid: list[Job]) -> None:
    rows = []
    for job in grid:
        result = json.loads(job.path.read_text())
        base = json.dumps(job.origin["maps"]["test"]) if job.maps else ""
        rows.append([*(result[name] for name in COLUMNS[:-2]), _base_model(job), base.strip('"')])
    artefacts.write_csv(path, COLUMNS, rows)
    logger.info("%s: %d rows", path, len(rows))


def _base_model(job: Job) -> str:
    if not job.maps:
        return ""
    model = _reader(job.maps["test"], job.origin["maps"]["test"]).origin.get("model") or {}
    return str(model.get("weights", ""))
