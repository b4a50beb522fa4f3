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
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from heatproof import artefacts, cells, config, removal, runtime, store
from heatproof.datasets import Split
from heatproof.errors import MapError
from heatproof.metrics import roar
from heatproof.models.weights import read_weights
from heatproof.stages import infilled, kept_maps, recursive, retrain_summary
from heatproof.stages.plan import Artefact
from heatproof.stages.retrain_grid import (
    FIRST,
    Cell,
    chains,
    check_maps,
    fill_of,
    grid_of,
    remaps,
    tables_of,
    weights_of,
)
from heatproof.stages.run import SPLITS, Run
from heatproof.training import classifier
from heatproof.training.checkpoints import save_tensors
from heatproof.training.examples import Removal
from heatproof.training.loop import Fitted

logger = logging.getLogger(__name__)

FORMAT = "heatproof/retraining"
COLUMNS = (
    "metric", "method", "control", "removed_fraction", "first", "fill", "run", "epochs", "best_epoch",
    "validation_accuracy", "test_accuracy", "test_images", "chance_level", "base_model", "maps",
)  # fmt: skip


def plan(run: Run) -> list[Artefact[Any]]:
    """All cells of the grid, the maps of recursive chains, and the tables."""
    section = config.section(run.config, "retrain_cls", config.RetrainCls)
    if not run.is_reading:
        for file in kept_maps.kept_files(run, section.methods()).values():
            if file.status().is_complete:
                check_maps(store.MapReader(file.path), allow_label=section.allow_label_target)
    grid = list(grid_of(run, section))
    return [*grid, *(file for cell in grid for file in remaps(run, section, cell)), tables_of(run, grid)]


def run(run: Run) -> None:
    """Computes the missing and stale cells of the grid, and gathers all results."""
    section = config.section(run.config, "retrain_cls", config.RetrainCls)
    folder = run.config.outdir / "retrain_cls"
    _need_maps(run, section)
    grid = list(grid_of(run, section))
    for cell in grid:
        cell.require_inputs()
    done = {
        cell: cell.is_complete() and all(file.is_complete() for file in remaps(run, section, cell)) for cell in grid
    }
    logger.info("%s: %d of %d cells are complete", folder, sum(done.values()), len(grid))
    begun = chains(grid, {cell for cell in grid if not done[cell]})
    for parent in {cell.path.parent for chain in begun for cell in chain}:
        artefacts.remove_leftovers(parent)
    cells.map_cells(
        compute,
        [cells.Cell(chain[-1].path, chain) for chain in begun],
        device=run.device,
        workers=cells.default_workers(run.device, section.threads) if section.workers == "auto" else section.workers,
        threads=section.threads,
        description="retrain",
    )
    tables = tables_of(run, grid)
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
    files = [weights_of(cell)] if job.keeps_weights else []
    for path in files:
        save_tensors(path, fitted.state)
    cell.write(*files, **_result(cell, fitted, predictions, test.split.labels, test.valid))
    what = str(cell.path.relative_to(run.config.outdir / "retrain_cls").with_suffix(""))
    runtime.record_time(run.config.outdir / "retrain_cls", what, len(fitted.history) * len(splits["train"]), started)


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
    missing = [file for file in remaps(run, section, cell) if not file.is_complete()]
    if not missing:
        return
    loaded = run.fresh(section.model, "retrain", cell.job.number)
    loaded.module.load_state_dict(read_weights(weights_of(cell)))
    extraction = run.config.extract_cams
    for file in missing:
        explanation = recursive.Explanation(
            run,
            loaded,
            file.job.method,
            fill_of(run, section, file.job.split),
            cell.job.percentile / 100,
            64 if extraction is None else extraction.batch_size,
        )
        before = store.MapReader(cell.job.maps[file.job.split])
        explanation.write(splits[file.job.split], before, file)


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
        fill: removal.Fill = fill_of(run, section, split)
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

    >>> import torch
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


def _need_maps(run: Run, section: config.RetrainCls) -> None:
    """Checks that the maps of each method are there; complete, of this data and of one classifier."""
    files = kept_maps.kept_files(run, section.methods())
    base_models = {}
    for method in section.methods():
        for name in SPLITS:
            reader = kept_maps.maps_of(files[method.name, name], run.dataset.split(name))
            check_maps(reader, allow_label=section.allow_label_target)
            base_models[reader.path] = reader.origin.get("model")
    _check_base_model(base_models)


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
