"""evaluate-attribution-maps-roar: ROAR and KAR: remove pixels, retrain, measure.

Reads extract_cams/<method>/<split>.h5; writes one file for each cell of the grid,
retrain_cls/<metric>/<method>/<percentile>/seed<run>.json, retrain_cls/results.csv, and what they amount to,
retrain_cls/summary.csv. The cell of removed fraction 0 is shared by all: retrain_cls/intact/0/seed<run>.json. Initial
weights, batch order and augmentation depend on the run alone, so that runs of two methods are pairs.

`mask_only` shows the networks ROAR's holes and nothing else: 1 for a kept pixel, 0 for a removed one, minus the mean,
in every channel. Masks are cropped and mirrored as the images of the other retrainings are, because there the holes are too;
what the crop adds has the mask's mean. A mask has no colours, so `padding`, `fill` and the normalisation play no part.

With `recursive`, each method that can be called gets a chain of cells for each run: the network retrained at one
fraction makes the maps for the next one (retrain_cls/recursive/<method>/<percentile>/seed<run>/<split>.h5, beside the
network's weights, seed<run>.pth).
"""

import base64
import dataclasses
import functools
import json
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from heatproof import artefacts, cells, config, removal, runtime, store
from heatproof.datasets import Split
from heatproof.errors import ConfigError, MapError
from heatproof.methods.explainer import Explainer
from heatproof.metrics import roar
from heatproof.models import Normalization
from heatproof.stages import extract, infilled, recursive, retrain_summary
from heatproof.stages.run import Run, build_fill, fill_origin, model_origin, training_origin, why_stale
from heatproof.training import classifier
from heatproof.training.checkpoints import save_tensors
from heatproof.training.examples import Removal

logger = logging.getLogger(__name__)

FORMAT = "heatproof/retraining"
INTACT = "intact"
# KAR follows the ROAR code: the share of the least important pixels that is *removed*.
FIRST: dict[str, removal.First] = {"roar": "most", "kar": "least", "mask_only": "most", "recursive": "most"}
COLUMNS = (
    "metric", "method", "control", "removed_fraction", "first", "fill", "run", "epochs", "best_epoch",
    "validation_accuracy", "test_accuracy", "test_images", "chance_level", "base_model", "maps",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
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
    keeps_weights: bool = False

    @property
    def weights(self) -> Path:
        """Where the retrained network is kept, if it is."""
        return self.path.with_suffix(".pth")


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
    chains = _chains(grid, set(missing))
    for job in missing:
        artefacts.remove_leftovers(job.path.parent)
    cells.map_cells(
        compute,
        [cells.Cell(chain[-1].path, chain) for chain in chains],
        device=run.device,
        workers=cells.default_workers(run.device, section.threads) if section.workers == "auto" else section.workers,
        threads=section.threads,
        description="retrain",
    )
    folder = run.config.outdir / "retrain_cls"
    results = {job: json.loads(job.path.read_text()) for job in grid}
    _write_results(run, folder / "results.csv", results)
    retrain_summary.write(run, folder, list(results.values()))


def compute(chain: tuple[Job, ...]) -> None:
    """Trains the cells of a chain that are missing; all chains but recursive ones have one cell."""
    run, splits = _shared(chain[0].settings.model_dump_json())
    section = config.section(run.config, "retrain_cls", config.RetrainCls)
    for position, job in enumerate(chain):
        if not _is_done(job):
            if position:
                _explain(run, section, splits, chain[position - 1])
            _retrain(run, section, splits, job)


def _retrain(run: Run, section: config.RetrainCls, splits: dict[str, Split], job: Job) -> None:
    started = time.monotonic()
    examples = {
        name: run.examples(split, _removal(run, section, job, name) if job.maps else None)
        for name, split in splits.items()
    }
    loaded, recipe = run.fresh(section.model, "retrain", job.number), run.recipe(section)
    normalize: classifier.Normalize = loaded.normalization
    if job.metric == "mask_only":
        normalize, recipe = _unchanged, _for_masks(recipe)
    checkpoint = job.path.with_suffix(".checkpoint")
    fitted = classifier.fit(
        loaded.module,
        normalize,
        examples["train"],
        examples["validation"],
        recipe,
        seed=run.config.seed,
        purpose=("retrain", job.number),
        checkpoint=checkpoint,
        identity=artefacts.canonical(job.origin),
        checkpoint_every_s=60.0,
    )
    loaded.module.load_state_dict(fitted.state)
    predictions = classifier.predict(loaded.module, normalize, examples["test"], batch_size=1024)
    test = examples["test"]
    if job.keeps_weights:
        save_tensors(job.weights, fitted.state)
    artefacts.write_json(job.path, _result(job, fitted, predictions, test.split.labels, test.valid))
    checkpoint.unlink(missing_ok=True)
    what = str(job.path.relative_to(run.config.outdir / "retrain_cls").with_suffix(""))
    runtime.record_time(run.config.outdir / "retrain_cls", what, len(fitted.history) * len(splits["train"]), started)


def _unchanged(pixels: Tensor) -> Tensor:
    return pixels


def _for_masks(recipe: classifier.Recipe) -> classifier.Recipe:
    """The same training with crops that are padded with 0, the mean of a mask."""
    if recipe.augmentation is None:
        return recipe
    black = tuple(0.0 for _ in recipe.augmentation.colour)
    return dataclasses.replace(recipe, augmentation=dataclasses.replace(recipe.augmentation, colour=black))


def _explain(run: Run, section: config.RetrainCls, splits: dict[str, Split], job: Job) -> None:
    """Makes the maps of a chain's next cell with the network that `job` left."""
    loaded = run.fresh(section.model, "retrain", job.number)
    state = torch.load(job.weights, map_location=run.device, weights_only=True)
    loaded.module.load_state_dict(state)
    extraction = run.config.extract_cams
    for name, split in splits.items():
        explanation = recursive.Explanation(
            run,
            loaded,
            _explainer(section, job.method),
            _fill(run, section, name),
            job.percentile / 100,
            64 if extraction is None else extraction.batch_size,
        )
        before = store.MapReader(job.maps[name])
        origin = {"retraining": job.origin, "weights": artefacts.sha256(job.weights)}
        explanation.write(split, before, _recursive_maps(job)[name], origin)


def _explainer(section: config.RetrainCls, name: str) -> Explainer:
    return next(extract.explainer(method) for method in section.methods() if method.name == name)


def _recursive_maps(job: Job) -> dict[str, Path]:
    """Where the maps are that the network of a cell makes."""
    return {name: job.path.with_suffix("") / f"{name}.h5" for name in extract.SPLITS}


@functools.lru_cache(maxsize=1)
def _shared(settings: str) -> tuple[Run, dict[str, Split]]:
    """What all cells of one process share: splits stay decoded from cell to cell."""
    run = Run(config.Config.model_validate_json(settings))
    return run, {name: run.dataset.split(name) for name in extract.SPLITS}


@functools.lru_cache(maxsize=6)
def _reader(path: Path, content: str) -> store.MapReader:
    return store.MapReader(path)


def _removal(run: Run, section: config.RetrainCls, job: Job, split: str) -> Removal:
    # What a chain's maps hold is not known before they are made.
    reader = _reader(job.maps[split], job.origin["maps"][split] if job.metric != "recursive" else str(job.number))
    fraction, first = job.percentile / 100, FIRST[job.metric]
    if job.metric == "mask_only":
        return Removal(reader.ranks, MaskAlone(fraction), reader.invalid if reader.invalid.any() else None)
    if (name := infilled.name_of(section.fill)) is None:
        fill: removal.Fill = _fill(run, section, split)
    else:
        fill = infilled.opened(run, name, job.method, run.dataset.split(split), reader).at(fraction, first)

    def degrade(pixels: Tensor, ranks: Tensor, indices: Tensor) -> Tensor:
        return fill(pixels, removal.removed(ranks, fraction, first), indices)

    return Removal(reader.ranks, degrade, reader.invalid if reader.invalid.any() else None)


@dataclass(frozen=True)
class MaskAlone:
    """In the place of each image which of its pixels are kept: 1 or 0, minus the mean, in every channel.

    Args:
        fraction: removed, the most important pixels first.

    Reference:
        Rong et al., ICML 2022, arXiv:2202.00449: the mask minus its mean, repeated to three channels.

    >>> MaskAlone(0.25)(torch.zeros(1, 3, 1, 4), torch.tensor([[[0, 1, 2, 3]]]), torch.zeros(1))[0, 0].tolist()
    [[-0.75, 0.25, 0.25, 0.25]]
    """

    fraction: float

    def __call__(self, pixels: Tensor, ranks: Tensor, indices: Tensor) -> Tensor:
        """Masks (B, C, H, W) in the shape of `pixels`; from ranks (B, H, W) alone."""
        count = ranks[0].numel()
        gone = removal.removed(ranks, self.fraction, "most")
        mean = 1 - removal.count(self.fraction, count) / count
        kept = (~gone).to(pixels.dtype) - mean
        return kept[:, None].repeat(1, pixels.shape[1], 1, 1)


def _fill(run: Run, section: config.RetrainCls, split: str) -> removal.Fill:
    asked = section.model.normalization
    return build_fill(
        run,
        section.fill,
        lambda: run.statistics if asked is None else Normalization(tuple(asked.mean), tuple(asked.std)),
        split,
    )


def _check(run: Run, section: config.RetrainCls) -> None:
    if section.model.pretrained_weights is not None:
        raise ConfigError(
            "retrain_cls.model.pretrained_weights: must not be set; ROAR retrains from fresh weights, "
            "or what was learnt from intact images would leak into the score"
        )
    run.recipe(section)
    if (name := infilled.name_of(section.fill)) is None:
        _fill(run, section, "test")
        return
    infilled.check_known(run, name)
    if section.recursive:
        raise ConfigError(
            f"retrain_cls.recursive: its maps are not known before, and so their holes are not stored; name the fill of {name} itself"
        )


def _grid(run: Run, section: config.RetrainCls) -> Iterator[Job]:
    root = run.config.outdir / "retrain_cls"
    shared = {
        "data": {name: run.dataset.split(name).fingerprint for name in extract.SPLITS},
        "model": model_origin(section.model),
        "training": training_origin(section),
        "seed": run.config.seed,
        "code": classifier.RESULTS_VERSION,
    }
    fill = fill_origin(section.fill)
    maps = _maps(run, section)
    infills = _infills(run, section, maps)
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
                    origin = shared | {"run": number, "metric": metric, "percentile": percentile, "maps": contents}
                    if metric != "mask_only":
                        origin["fill"] = fill
                        origin |= infills(method.name, percentile / 100, FIRST[metric])
                    path = root / metric / method.name / f"{percentile:g}" / f"seed{number}.json"
                    yield Job(run.config, path, metric, method.name, method.control, percentile, number, origin, paths)
        if section.recursive:
            for method in section.methods():
                if not method.control and extract.is_called(extract.explainer(method)):
                    origin = shared | {"run": number, "fill": fill}
                    yield from _recursive_cells(run, section, method, number, origin, maps[method.name])


def _infills(
    run: Run, section: config.RetrainCls, maps: dict[str, tuple[dict[str, Path], dict[str, str]]]
) -> Callable[[str, float, removal.First], dict[str, Any]]:
    """What stored images in the place of a fill add to the origin of a cell: of method, removed fraction and end."""
    name = infilled.name_of(section.fill)
    if name is None:
        return lambda method, fraction, first: {}
    stored = {
        (method, split): infilled.opened(run, name, method, run.dataset.split(split), _reader(path, contents[split]))
        for method, (paths, contents) in maps.items()
        for split, path in paths.items()
    }
    # All that is missing is told at once, not one percentile after the other.
    firsts = {FIRST[metric] for metric in section.metrics if metric != "mask_only"}
    needed = [(percentile / 100, first) for first in sorted(firsts) for percentile in section.percentiles if percentile]
    for one in stored.values():
        one.need(needed)

    def added(method: str, fraction: float, first: removal.First) -> dict[str, Any]:
        contents = {split: stored[method, split].content_ids([(fraction, first)]) for split in extract.SPLITS}
        return {"infill": contents}

    return added


def _recursive_cells(
    run: Run,
    section: config.RetrainCls,
    method: config.AttributionMethod,
    number: int,
    shared: dict[str, Any],
    maps: tuple[dict[str, Path], dict[str, str]],
) -> Iterator[Job]:
    """One method's cells of one run, from the smallest fraction on; each uses the maps that the one before leaves."""
    paths, contents = maps
    steps = sorted(percentile for percentile in section.percentiles if percentile > 0)
    explained = method.model_dump(exclude={"control"}) | {"code": extract.explainer(method).code_version()}
    for position, percentile in enumerate(steps):
        origin = shared | {
            "metric": "recursive",
            "percentile": percentile,
            "chain": steps[:position],
            "maps": contents,
            "method": explained,
            "remaps": recursive.RESULTS_VERSION,
        }
        path = run.config.outdir / "retrain_cls" / "recursive" / method.name / f"{percentile:g}" / f"seed{number}.json"
        is_last = percentile == steps[-1]
        job = Job(run.config, path, "recursive", method.name, False, percentile, number, origin, paths, not is_last)
        yield job
        paths = _recursive_maps(job)


def _chains(grid: list[Job], missing: set[Job]) -> list[tuple[Job, ...]]:
    """What has to be computed in one go: single cells, and the whole recursive chains in which a cell is missing."""
    chains: dict[Any, list[Job]] = {}
    for job in grid:
        chains.setdefault((job.method, job.number) if job.metric == "recursive" else job, []).append(job)
    return [tuple(chain) for chain in chains.values() if not missing.isdisjoint(chain)]


def _maps(run: Run, section: config.RetrainCls) -> dict[str, tuple[dict[str, Path], dict[str, str]]]:
    """The files of each method, and what is in them; complete, of this data and of one classifier."""
    found = {}
    base_models = {}
    for method in section.methods():
        paths, contents = {}, {}
        for name in extract.SPLITS:
            reader = extract.maps_of(run, method.name, run.dataset.split(name))
            _check_maps(reader, allow_label=section.allow_label_target)
            base_models[reader.path] = reader.origin.get("model")
            paths[name], contents[name] = reader.path, reader.content_id()
        found[method.name] = (paths, contents)
    _check_base_model(run, base_models)
    return found


def _check_maps(reader: store.MapReader, *, allow_label: bool) -> None:
    if reader.invalid.all():
        raise MapError(f"{reader.path}: holds no valid map; take the method out of the configuration, or mend it")
    if reader.origin.get("target") == "label" and not allow_label:
        raise ConfigError(
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
    return job.weights.is_file() or not job.keeps_weights


def _result(
    job: Job,
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
        "epochs": len(fitted.history),
        "best_epoch": fitted.best_epoch,
        "validation_accuracy": fitted.validation_accuracy,
        "test_accuracy": float(correct.mean()),
        "test_images": len(correct),
        "left_out": np.flatnonzero(~valid).tolist(),
        "predictions": base64.b64encode(predictions.astype("<u2").tobytes()).decode(),
        "correct": base64.b64encode(np.packbits(correct).tobytes()).decode(),
    }


def _write_results(run: Run, path: Path, results: dict[Job, dict[str, Any]]) -> None:
    labels = run.dataset.split("test").labels
    rows = []
    for job, result in results.items():
        chance = roar.chance_level(np.delete(labels, result["left_out"]))
        base = json.dumps(job.origin["maps"]["test"]) if job.maps else ""
        rows.append([*(result[name] for name in COLUMNS[:-3]), chance, _base_model(job), base.strip('"')])
    artefacts.write_csv(path, COLUMNS, rows)
    logger.info("%s: %d rows", path, len(rows))


def _base_model(job: Job) -> str:
    if not job.maps:
        return ""
    path = job.settings.outdir / "extract_cams" / job.method / "test.h5"
    model = _reader(path, job.origin["maps"]["test"]).origin.get("model") or {}
    return str(model.get("weights", ""))
