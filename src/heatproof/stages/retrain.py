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
import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from heatproof import artefacts, cells, config, removal, runtime, store
from heatproof.datasets import Split
from heatproof.errors import ConfigError, MapError, MissingInputError
from heatproof.methods.explainer import Explainer
from heatproof.metrics import roar, statistics
from heatproof.models import Normalization
from heatproof.models.weights import read_weights
from heatproof.stages import extract, infilled, recursive, retrain_summary
from heatproof.stages.plan import Artefact
from heatproof.stages.run import SPLITS, Run, build_fill, fill_origin, model_origin, training_origin
from heatproof.training import classifier
from heatproof.training.checkpoints import save_tensors
from heatproof.training.examples import Removal
from heatproof.training.loop import Fitted

logger = logging.getLogger(__name__)

FORMAT = "heatproof/retraining"
INTACT = "intact"
# KAR follows the ROAR code: the share of the least important pixels that is *removed*.
FIRST: dict[str, removal.First] = {"roar": "most", "kar": "least", "mask_only": "most", "recursive": "most"}
COLUMNS = (
    "metric", "method", "control", "removed_fraction", "first", "fill", "run", "epochs", "best_epoch",
    "validation_accuracy", "test_accuracy", "test_images", "chance_level", "base_model", "maps",
)  # fmt: skip


@dataclass(frozen=True)
class Job:
    """One retraining; everything that a fresh process needs."""

    settings: config.Config
    metric: str
    method: str
    control: bool
    percentile: float
    number: int
    maps: dict[str, Path]
    keeps_weights: bool = False


Cell = Artefact[Job]
"""A retraining's result, a JSON record, and its network where a chain goes on with it."""


def plan(run: Run) -> list[Artefact[Any]]:
    """All cells of the grid, the maps of recursive chains, and the tables."""
    section = config.section(run.config, "retrain_cls", config.RetrainCls)
    if not run.is_reading:
        for file in extract.kept_files(run, section.methods()).values():
            if file.status().is_complete:
                _check_maps(store.MapReader(file.path), allow_label=section.allow_label_target)
    grid = list(_grid(run, section))
    return [*grid, *(file for cell in grid for file in _remaps(run, section, cell)), _tables(run, grid)]


def run(run: Run) -> None:
    """Computes the missing and stale cells of the grid, and gathers all results."""
    section = config.section(run.config, "retrain_cls", config.RetrainCls)
    folder = run.config.outdir / "retrain_cls"
    _need_maps(run, section)
    grid = list(_grid(run, section))
    for cell in grid:
        if cell.needs:
            raise MissingInputError(f"{cell.path}: needs {cell.needs[0]}, which is not there; run what makes it first")
    done = {
        cell: cell.is_complete() and all(file.is_complete() for file in _remaps(run, section, cell)) for cell in grid
    }
    logger.info("%s: %d of %d cells are complete", folder, sum(done.values()), len(grid))
    chains = _chains(grid, {cell for cell in grid if not done[cell]})
    for parent in {cell.path.parent for chain in chains for cell in chain}:
        artefacts.remove_leftovers(parent)
    cells.map_cells(
        compute,
        [cells.Cell(chain[-1].path, chain) for chain in chains],
        device=run.device,
        workers=cells.default_workers(run.device, section.threads) if section.workers == "auto" else section.workers,
        threads=section.threads,
        description="retrain",
    )
    tables = _tables(run, grid)
    if not tables.is_complete():
        results = {cell: cell.status().content for cell in grid}
        _write_results(run, folder / "results.csv", results)
        retrain_summary.write(run, tables.path, list(results.values()))
        tables.write(folder / "results.csv", tables.path)


def compute(chain: tuple[Cell, ...]) -> None:
    """Trains the cells of a chain that are missing; all chains but recursive ones have one cell."""
    run, splits = _shared(chain[0].job.settings.model_dump_json())
    section = config.section(run.config, "retrain_cls", config.RetrainCls)
    for position, cell in enumerate(chain):
        if position:
            _explain(run, section, splits, chain[position - 1])
        if not cell.is_complete():
            _retrain(run, section, splits, cell)


def _retrain(run: Run, section: config.RetrainCls, splits: dict[str, Split], cell: Cell) -> None:
    started = time.monotonic()
    job = cell.job
    examples = {
        name: run.examples(split, _removal(run, section, cell, name) if job.maps else None)
        for name, split in splits.items()
    }
    loaded, recipe = run.fresh(section.model, "retrain", job.number), run.recipe(section)
    normalize: classifier.Normalize = loaded.normalization
    if job.metric == "mask_only":
        normalize, recipe = _unchanged, _for_masks(recipe)
    fitted = classifier.fit(
        loaded.module,
        normalize,
        examples["train"],
        examples["validation"],
        recipe,
        seed=run.config.seed,
        purpose=("retrain", job.number),
        checkpoint=cell.checkpoint,
        identity=artefacts.canonical(cell.origin),
        checkpoint_every_s=60.0,
    )
    loaded.module.load_state_dict(fitted.state)
    predictions = classifier.predict(loaded.module, normalize, examples["test"], batch_size=1024)
    test = examples["test"]
    files = [_weights(cell)] if job.keeps_weights else []
    for path in files:
        save_tensors(path, fitted.state)
    cell.write(*files, **_result(cell, fitted, predictions, test.split.labels, test.valid))
    what = str(cell.path.relative_to(run.config.outdir / "retrain_cls").with_suffix(""))
    runtime.record_time(run.config.outdir / "retrain_cls", what, len(fitted.history) * len(splits["train"]), started)


def _weights(cell: Cell) -> Path:
    """Where the retrained network is kept, if it is."""
    return cell.path.with_suffix(".pth")


def _unchanged(pixels: Tensor) -> Tensor:
    return pixels


def _for_masks(recipe: classifier.ClassifierRecipe) -> classifier.ClassifierRecipe:
    """The same training with crops that are padded with 0, the mean of a mask."""
    if recipe.augmentation is None:
        return recipe
    black = tuple(0.0 for _ in recipe.augmentation.colour)
    return dataclasses.replace(recipe, augmentation=dataclasses.replace(recipe.augmentation, colour=black))


def _explain(run: Run, section: config.RetrainCls, splits: dict[str, Split], cell: Cell) -> None:
    """Makes the maps of a chain's next cell with the network that `cell` left."""
    missing = [file for file in _remaps(run, section, cell) if not file.is_complete()]
    if not missing:
        return
    loaded = run.fresh(section.model, "retrain", cell.job.number)
    loaded.module.load_state_dict(read_weights(_weights(cell)))
    extraction = run.config.extract_cams
    for file in missing:
        explanation = recursive.Explanation(
            run,
            loaded,
            file.job.method,
            _fill(run, section, file.job.split),
            cell.job.percentile / 100,
            64 if extraction is None else extraction.batch_size,
        )
        before = store.MapReader(cell.job.maps[file.job.split])
        explanation.write(splits[file.job.split], before, file)


def _remaps(run: Run, section: config.RetrainCls, cell: Cell) -> list[Artefact[extract.Source]]:
    """The maps that the network of a cell makes for the next one of its chain; none where it is the last, or no chain's."""
    if not cell.job.keeps_weights:
        return []
    method = _explainer(section, cell.job.method)
    weights = _weights(cell)
    sha256 = artefacts.sha256(weights) if cell.status().is_complete else artefacts.Unknown(str(cell.path))
    files = []
    for split, path in _recursive_maps(cell).items():
        kept = recursive.kept_of(extract.file_of(run, method.name, split))
        origin = {
            "retraining": cell.origin,
            "weights": sha256,
            "data": run.fingerprint(split),
            "code": [recursive.RESULTS_VERSION, method.code_version()],
            **kept,
        }
        files.append(Artefact(path, origin, extract.Source(method, split)))
    return files


def _explainer(section: config.RetrainCls, name: str) -> Explainer:
    return next(extract.explainer(method) for method in section.methods() if method.name == name)


def _recursive_maps(cell: Cell) -> dict[str, Path]:
    """Where the maps are that the network of a cell makes."""
    return {name: cell.path.with_suffix("") / f"{name}.h5" for name in SPLITS}


@functools.lru_cache(maxsize=1)
def _shared(settings: str) -> tuple[Run, dict[str, Split]]:
    """What all cells of one process share: splits stay decoded from cell to cell."""
    run = Run(config.Config.model_validate_json(settings))
    return run, {name: run.dataset.split(name) for name in SPLITS}


@functools.lru_cache(maxsize=6)
def _reader(path: Path, content: str) -> store.MapReader:
    return store.MapReader(path)


def _removal(run: Run, section: config.RetrainCls, cell: Cell, split: str) -> Removal:
    job = cell.job
    # What a chain's maps hold is not known before they are made.
    reader = _reader(job.maps[split], cell.origin["maps"][split] if job.metric != "recursive" else str(job.number))
    fraction, first = job.percentile / 100, FIRST[job.metric]
    if job.metric == "mask_only":
        return Removal(reader.ranks, MaskAlone(fraction), reader.invalid if reader.invalid.any() else None)
    if (name := infilled.name_of(section.fill)) is None:
        fill: removal.Fill = _fill(run, section, split)
    else:
        fill = infilled.opened(run, name, job.method, split, reader.content_id()).at(fraction, first)

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


Contents = dict[str, dict[str, Any]]
"""What is in the maps of each method, by split; unknown before they are made."""


def _grid(run: Run, section: config.RetrainCls) -> Iterator[Cell]:
    if not run.is_reading:
        _check(run, section)
    root = run.config.outdir / "retrain_cls"
    shared = {
        "data": {name: run.fingerprint(name) for name in SPLITS},
        "model": model_origin(section.model),
        "training": training_origin(section),
        "seed": run.config.seed,
        "code": classifier.RESULTS_VERSION,
    }
    fill = fill_origin(section.fill)
    contents = _contents(run, section)
    infills = _infills(run, section, contents)
    # Run by run, so that an unfinished grid already compares all methods.
    for number in section.seeds:
        path = root / INTACT / "0" / f"seed{number}.json"
        yield Artefact(path, shared | {"run": number}, Job(run.config, INTACT, INTACT, False, 0.0, number, {}))
        for metric in section.metrics:
            for method in section.methods():
                paths = {split: extract.file_of(run, method.name, split) for split in SPLITS}
                for percentile in section.percentiles:
                    if percentile == 0:
                        continue
                    maps = contents[method.name]
                    origin = shared | {"run": number, "metric": metric, "percentile": percentile, "maps": maps}
                    if metric != "mask_only":
                        origin["fill"] = fill
                        origin |= infills(method.name, percentile / 100, FIRST[metric])
                    path = root / metric / method.name / f"{percentile:g}" / f"seed{number}.json"
                    job = Job(run.config, metric, method.name, method.control, percentile, number, paths)
                    yield Artefact(path, origin, job)
        if section.recursive:
            for method in section.methods():
                if not method.control and extract.is_called(extract.explainer(method)):
                    origin = shared | {"run": number, "fill": fill}
                    yield from _recursive_cells(run, section, method, number, origin, contents[method.name])


def _infills(
    run: Run, section: config.RetrainCls, contents: Contents
) -> Callable[[str, float, removal.First], dict[str, Any]]:
    """What stored images in the place of a fill add to the origin of a cell: of method, removed fraction and end."""
    name = infilled.name_of(section.fill)
    if name is None:
        return lambda method, fraction, first: {}
    # All that is missing is told at once, not one percentile after the other.
    firsts = {FIRST[metric] for metric in section.metrics if metric != "mask_only"}
    needed = [(percentile / 100, first) for first in sorted(firsts) for percentile in section.percentiles if percentile]
    try:
        stored = {
            (method, split): infilled.opened(run, name, method, split, content)
            for method, found in contents.items()
            for split, content in found.items()
        }
        for one in stored.values():
            one.need(needed)
    except (MissingInputError, MapError) as error:
        if not run.dry_run:
            raise
        unmade = artefacts.Unknown(str(error))
        return lambda method, fraction, first: {"infill": unmade}

    def added(method: str, fraction: float, first: removal.First) -> dict[str, Any]:
        return {"infill": {split: stored[method, split].content_ids([(fraction, first)]) for split in SPLITS}}

    return added


def _recursive_cells(
    run: Run,
    section: config.RetrainCls,
    method: config.AttributionMethod,
    number: int,
    shared: dict[str, Any],
    contents: dict[str, Any],
) -> Iterator[Cell]:
    """One method's cells of one run, from the smallest fraction on; each uses the maps that the one before leaves."""
    paths = {split: extract.file_of(run, method.name, split) for split in SPLITS}
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
        cell = Artefact(
            path, origin, Job(run.config, "recursive", method.name, False, percentile, number, paths, not is_last)
        )
        yield cell
        paths = _recursive_maps(cell)


def _chains(grid: list[Cell], missing: set[Cell]) -> list[tuple[Cell, ...]]:
    """What has to be computed in one go: single cells, and the whole recursive chains in which a cell is missing."""
    chains: dict[Any, list[Cell]] = {}
    for cell in grid:
        job = cell.job
        chains.setdefault((job.method, job.number) if job.metric == "recursive" else cell, []).append(cell)
    return [tuple(chain) for chain in chains.values() if not missing.isdisjoint(chain)]


def _contents(run: Run, section: config.RetrainCls) -> Contents:
    """What is in the maps of each method."""
    files = extract.kept_files(run, section.methods())
    return {
        method.name: {split: extract.content_of(files[method.name, split]) for split in SPLITS}
        for method in section.methods()
    }


def _need_maps(run: Run, section: config.RetrainCls) -> None:
    """Checks that the maps of each method are there; complete, of this data and of one classifier."""
    files = extract.kept_files(run, section.methods())
    base_models = {}
    for method in section.methods():
        for name in SPLITS:
            reader = extract.maps_of(files[method.name, name], run.dataset.split(name))
            _check_maps(reader, allow_label=section.allow_label_target)
            base_models[reader.path] = reader.origin.get("model")
    _check_base_model(base_models)


def _check_maps(reader: store.MapReader, *, allow_label: bool) -> None:
    if reader.invalid.all():
        raise MapError(f"{reader.path}: holds no valid map; take the method out of the configuration, or mend it")
    if reader.origin.get("target") == "label" and not allow_label:
        raise ConfigError(
            f"{reader.path}: the maps explain the true label, which a retrained network could read off the mask; "
            "use extract_cams.target: predicted, or set retrain_cls.allow_label_target: true"
        )


def _check_base_model(found: dict[Path, Any]) -> None:
    first_path, wanted = next(iter(found.items()))
    for path, model in found.items():
        if changed := artefacts.differences({"model": model}, {"model": wanted}):
            raise MapError(
                f"{path}: maps of another classifier than {first_path} ({'; '.join(changed[:3])}); run extract-attribution-maps"
            )


def _result(
    cell: Cell,
    fitted: Fitted[classifier.ClassifierEpoch],
    predictions: NDArray[np.int64],
    labels: NDArray[np.int64],
    valid: NDArray[np.bool_],
) -> dict[str, Any]:
    correct = predictions == labels[valid]
    job = cell.job
    return {
        "format": FORMAT,
        "metric": job.metric,
        "method": job.method,
        "control": job.control,
        "removed_fraction": job.percentile / 100,
        "first": FIRST.get(job.metric),
        "fill": cell.origin.get("fill"),
        "run": job.number,
        "epochs": len(fitted.history),
        "best_epoch": fitted.best_epoch,
        "validation_accuracy": fitted.best.validation_accuracy,
        "test_accuracy": float(correct.mean()),
        "test_images": len(correct),
        "left_out": np.flatnonzero(~valid).tolist(),
        "predictions": base64.b64encode(predictions.astype("<u2").tobytes()).decode(),
        "correct": base64.b64encode(np.packbits(correct).tobytes()).decode(),
    }


def _tables(run: Run, grid: Sequence[Cell]) -> Artefact[None]:
    """The tables of all results, and what they amount to."""
    states = {cell: cell.status() for cell in grid}
    unmade = [cell for cell, state in states.items() if not state.is_complete]
    results: Any = artefacts.Unknown(str(unmade[0].path)) if unmade else None
    if not unmade:
        parts = {str(cell.path.relative_to(run.config.outdir)): state.content for cell, state in states.items()}
        results = hashlib.sha256(artefacts.canonical(parts).encode()).hexdigest()
    origin = {
        "results": results,
        "settings": run.intervals.origin(),
        "code": [retrain_summary.SUMMARY_VERSION, statistics.RESULTS_VERSION],
    }
    return Artefact(run.config.outdir / "retrain_cls" / "summary.csv", origin, None)


def _write_results(run: Run, path: Path, results: Mapping[Cell, Mapping[str, Any]]) -> None:
    labels = run.dataset.split("test").labels
    rows = []
    for cell, result in results.items():
        chance = roar.chance_level(np.delete(labels, result["left_out"]))
        base = json.dumps(cell.origin["maps"]["test"]) if cell.job.maps else ""
        rows.append([*(result[name] for name in COLUMNS[:-3]), chance, _base_model(cell), base.strip('"')])
    artefacts.write_csv(path, COLUMNS, rows)
    logger.info("%s: %d rows", path, len(rows))


def _base_model(cell: Cell) -> str:
    if not cell.job.maps:
        return ""
    path = cell.job.settings.outdir / "extract_cams" / cell.job.method / "test.h5"
    model = _reader(path, cell.origin["maps"]["test"]).origin.get("model") or {}
    return str(model.get("weights", ""))
