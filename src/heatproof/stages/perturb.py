"""lerf: LeRF and MoRF, removal without retraining.

Takes each method's maps from extract_cams where they are there for this model and data, and computes and keeps those of the
sampled images (pixel_perturbation_analysis/maps/<method>.h5) where not; writes
pixel_perturbation_analysis/<method>.h5 (per image, order and fraction: probability, logit, margin of the target, and
the predicted class) and results.csv.
"""

import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from heatproof import artefacts, config, removal, runtime, seeding, store
from heatproof.datasets import Split
from heatproof.metrics import perturbation, statistics
from heatproof.stages.extract import IMPORTED, Extraction, is_complete
from heatproof.stages.retrain import build_fill
from heatproof.stages.run import Run

logger = logging.getLogger(__name__)

FORMAT = "heatproof/perturbation"
FIRSTS: tuple[removal.First, ...] = ("most", "least")
COLUMNS = (
    "method", "control", "score", "first", "fill", "removed_fraction", "n", "n_undefined", "mean", "sd", "low", "high",
)  # fmt: skip


def run(run: Run) -> None:
    """Computes what is missing or stale of every method's curves, and summarises them."""
    section = config.section(run.config, "pixel_perturbation_analysis", config.PixelPerturbationAnalysis)
    folder = run.config.outdir / "pixel_perturbation_analysis"
    plan = Extraction.of(run, section)
    split = run.dataset.split("test")
    rows = _sample(run, len(split), section.test_samples)
    maps = _maps(run, plan, split, rows, folder)
    fill = build_fill(run, section.fill, lambda: plan.loaded.normalization)
    _log_accuracy(next(iter(maps.values())), rows)
    origins = {}
    for name, path in maps.items():
        if not run.dry_run or path.is_file():
            origins[name] = _curves(run, section, plan, split, rows, store.MapReader(path), fill, folder / f"{name}.h5")
    if not run.dry_run:
        _write_results(section, folder, run.config.seed, origins)


def _sample(run: Run, count: int, wanted: int | None) -> NDArray[np.int64]:
    if wanted is None or wanted >= count:
        return np.arange(count)
    return np.sort(seeding.generator(run.config.seed, "lerf", "sample").permutation(count)[:wanted])


def _maps(run: Run, plan: Extraction, split: Split, rows: NDArray[np.int64], folder: Path) -> dict[str, Path]:
    """A file for each method that holds the maps of the sampled images, in the order of the methods."""
    found = {}
    missing = []
    for method in plan.methods:
        path = run.config.outdir / "extract_cams" / method.name / f"{split.name}.h5"
        state = store.read_state(path)
        if method.path == IMPORTED:
            plan.require_imported(method, split, path)
            found[method.name] = path
        elif state is not None and state.is_done(plan.origin(method, split)):
            found[method.name] = path
        else:
            missing.append(method)
            found[method.name] = folder / "maps" / f"{method.name}.h5"
    if missing:
        plan.only(missing).extract(split, found, folder, rows=rows)
    return found


def _log_accuracy(path: Path, rows: NDArray[np.int64]) -> None:
    """Says how good the classifier is on the sampled images: curves of a bad one explain nothing."""
    if path.is_file():
        reader = store.MapReader(path)
        chosen = np.isin(reader.index, rows)
        right = int((reader.predictions[chosen] == reader.labels[chosen]).sum())
        logger.info("the classifier is right on %d of %d sampled images", right, len(rows))


def _curves(
    run: Run,
    section: config.PixelPerturbationAnalysis,
    plan: Extraction,
    split: Split,
    rows: NDArray[np.int64],
    maps: store.MapReader,
    fill: removal.Fill,
    path: Path,
) -> dict[str, Any]:
    """Makes one method's file complete: every sampled image, both orders, all fractions from 0; returns its origin."""
    fractions = _fractions(section)
    origin = {
        "maps": maps.content_id(),
        "model": maps.origin["model"],
        "data": split.fingerprint,
        "rows": rows.tolist(),
        "fractions": list(fractions),
        "fill": section.fill if isinstance(section.fill, str) else section.fill.model_dump(),
        "seed": run.config.seed,
        "code": removal.scores.RESULTS_VERSION,
    }
    if is_complete(path, origin) or run.dry_run:
        return origin
    where = {int(index): row for row, index in enumerate(maps.index)}
    per_image = (len(FIRSTS), len(fractions))
    columns = [
        store.Column("index", "int64"),
        store.Column("label", "int64"),
        store.Column("target", "int64"),
        store.Column("probability", "float64", per_image),
        store.Column("logit", "float64", per_image),
        store.Column("logit_margin", "float64", per_image),
        store.Column("prediction", "int64", per_image),
    ]
    started = time.monotonic()
    writer = store.RowWriter(
        path, columns, rows=len(rows), origin=origin, kind=FORMAT, rows_per_shard=max(128, section.batch_size)
    )
    missing = writer.missing()
    with runtime.progress(sum(b.stop - b.start for b in missing), f"lerf {path.stem}") as bar:
        for block in missing:
            indices = rows[block.start : block.stop]
            chosen = np.array([where[int(index)] for index in indices])
            scores = removal.degraded_scores(
                plan.loaded.module,
                split.pixels(indices).to(run.device),
                removal.rank_tensor(maps.ranks(chosen), run.device),
                maps.targets[chosen],
                normalize=plan.loaded.normalization,
                fractions=fractions,
                fill=fill,
                firsts=FIRSTS,
                rows_per_forward=section.rows_per_forward,
                indices=indices,
            )
            values = {name: getattr(scores, name) for name in ("probability", "logit", "logit_margin", "prediction")}
            # A map that is no map has no score; summaries leave it out and count it.
            for name in ("probability", "logit", "logit_margin"):
                values[name][maps.invalid[chosen]] = np.nan
            known = {"index": indices, "label": maps.labels[chosen], "target": maps.targets[chosen]}
            writer.write(block, known | values)
            bar.update(len(indices))
    writer.finish()
    runtime.record_time(path.parent, f"lerf/{path.stem}", len(rows), started)
    return origin


def _fractions(section: config.PixelPerturbationAnalysis) -> tuple[float, ...]:
    return tuple(sorted({0.0} | {percentile / 100 for percentile in section.percentiles}))


def _write_results(
    section: config.PixelPerturbationAnalysis, folder: Path, seed: int, origins: dict[str, dict[str, Any]]
) -> None:
    """One line for each method, score, order and fraction; areas have an empty fraction."""
    kept = artefacts.read_json(folder / "results.json")
    if kept == {"origin": origins} and (folder / "results.csv").is_file():
        return
    lines: list[list[Any]] = []
    fill = section.fill if isinstance(section.fill, str) else section.fill.name
    for method in section.methods():
        reader = store.RowReader(folder / f"{method.name}.h5")
        for score, first, fraction, values in _scores(reader.read("probability"), _fractions(section)):
            summary = statistics.summarize(values, seed=seed)
            lines.append([method.name, method.control, score, first, fill, fraction, *summary])
    artefacts.write_csv(folder / "results.csv", COLUMNS, lines)
    artefacts.write_json(folder / "results.json", {"origin": origins})


def _scores(
    probability: NDArray[np.float64], fractions: tuple[float, ...]
) -> Iterator[tuple[str, str, float | str, NDArray[np.float64]]]:
    """Every score of a method: (score, first, fraction or "", one value for each image)."""
    intact = probability[:, 0, 0]
    for order, first in enumerate(FIRSTS):
        curve = probability[:, order]
        for step, fraction in enumerate(fractions):
            yield "probability", first, fraction, curve[:, step]
            yield "deviation", first, fraction, perturbation.deviation(intact, curve[:, step])
        yield "aopc", first, "", perturbation.aopc(curve)
        yield "area", first, "", perturbation.area(curve, np.array(fractions))
    yield "abpc", "", "", perturbation.abpc(probability[:, 0], probability[:, 1])
