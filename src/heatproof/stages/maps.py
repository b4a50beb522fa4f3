"""Tools around attribution files: look into one, make one of maps from elsewhere, give one away."""

import dataclasses
import logging
import time
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from heatproof import artefacts, config, runtime, store
from heatproof.errors import ConfigError, MapError
from heatproof.methods.reduction import reduce_channels
from heatproof.stages.extract import Extraction
from heatproof.stages.run import Run

logger = logging.getLogger(__name__)


def inspect(path: Path) -> None:
    """Prints what a file is, how far it got, its statistics and whether its checksums hold.

    Raises:
        MapError: the file is no row file of ours, or damaged; the report is printed first where there is one.
    """
    report = store.inspect(path)
    print(store.render(report))  # noqa: T201
    if report.damage:
        raise MapError(f"{path}: damaged: {report.damage[0]}")


def import_maps(run: Run, source: Path, *, method: str, split: str) -> None:
    """Makes extract_cams/<method>/<split>.h5 of arrays that were computed elsewhere for this data and classifier.

    The entry of `extract_cams.attribution_methods` with this name says `method: imported`; its `channel_reduction`
    and `on_invalid` are used. What the source does not hold (labels, predictions, logits) comes from data and model.
    """
    section = config.section(run.config, "extract_cams", config.ExtractCams)
    entry = next((m for m in section.attribution_methods if m.name == method), None)
    if entry is None or entry.method != config.IMPORTED:
        raise ConfigError(
            f"extract_cams.attribution_methods: no entry {{name: {method}, method: {config.IMPORTED}}}; "
            "add it, so that the tests know these maps"
        )
    started = time.monotonic()
    data = run.dataset.split(split)
    found = store.imported_maps(source, run.dataset.size)
    order = _order(found, len(data))
    extraction = Extraction.of(run, section)
    _check_columns(found, order, data.labels, extraction.class_count)
    planned = next(file for file in extraction.plan(split, extraction.files(split)) if file.job.method.name == method)
    file = dataclasses.replace(planned, origin={**planned.origin, "imported": artefacts.sha256(source)})
    writer = extraction.writer(file, data, len(data))
    predicted = found.prediction if found.logits is None else found.logits.argmax(axis=1)
    others = 0
    with runtime.progress(len(data), f"import {method}") as bar:
        for block in writer.missing():
            rows = order[block.start : block.stop]
            given = torch.from_numpy(np.asarray(found.maps[rows], dtype=np.float32))
            maps = (reduce_channels(given, entry.channel_reduction) if given.ndim == 4 else given).numpy()
            invalid = ~np.isfinite(maps).all(axis=(1, 2))
            if invalid.any() and entry.on_invalid == "error":
                index = block.start + int(invalid.argmax())
                raise MapError(
                    f"{source}: the map of image {index} holds NaN or infinity; mend it, or set on_invalid: skip"
                )
            images = extraction.intact(data, np.arange(block.start, block.stop))
            if predicted is not None:
                others += int((predicted[rows] != images.prediction).sum())
            if found.target is not None:
                images = dataclasses.replace(images, target=found.target[rows])
            extraction.write(writer, data.name, block, images, maps, invalid)
            bar.update(len(rows))
    writer.finish()
    if others:
        logger.warning(
            "%s: %d of %d predictions are not those of this classifier: the maps may be of another one, or of images that were "
            "prepared in another way", source, others, len(data),
        )  # fmt: skip
    runtime.record_time(run.config.outdir / "extract_cams", f"import/{method}/{split}", len(data), started)
    logger.info("%s: complete", file.path)


def _order(found: store.ImportedMaps, count: int) -> NDArray[np.int64]:
    """For each image of the split the row of its map."""
    if len(found.maps) != count:
        raise MapError(f"{found.path}: {len(found.maps)} maps for the split's {count} images")
    if found.index is None:
        return np.arange(count)
    order = np.full(count, -1, dtype=np.int64)
    inside = (found.index >= 0) & (found.index < count)
    order[found.index[inside]] = np.flatnonzero(inside)
    if (order < 0).any():
        raise MapError(f"{found.path}: index: there is no map for image {int((order < 0).argmax())} of {count}")
    return order


def _check_columns(
    found: store.ImportedMaps, order: NDArray[np.int64], labels: NDArray[np.int64], classes: int
) -> None:
    """Raises MapError where what stands beside the maps contradicts the data set or the classifier."""
    for key, values in (("target", found.target), ("prediction", found.prediction)):
        if values is not None and (values >= classes).any():
            row = int((values >= classes).argmax())
            raise MapError(
                f"{found.path}: {key}[{row}]: class {values[row]}; the classifier has {classes} classes, from 0"
            )
    if found.logits is not None and found.logits.shape[1] != classes:
        raise MapError(f"{found.path}: logits: of {found.logits.shape[1]} classes; the classifier has {classes}")
    if found.label is not None and (found.label[order] != labels).any():
        index = int((found.label[order] != labels).argmax())
        raise MapError(
            f"{found.path}: label: {found.label[order][index]} for image {index}, which the data set labels {labels[index]}; these "
            "are maps of other images, or in another order: give index"
        )


def export_maps(path: Path, target: Path, *, form: str, run: Run | None) -> None:
    """Writes a complete attribution file as .npz, as compressed HDF5, or as a project of the browser ViRelAy."""
    reader = store.MapReader(path)
    reader.require_complete()
    if form == "npz":
        store.export_npz(reader, target)
    elif form == "archive":
        store.export_archive(reader, target)
    else:
        if run is None:
            raise ConfigError("--virelay needs --config FILE: the browser shows the images beside their maps")
        split = run.dataset.split(reader.split)
        if reader.origin.get("data") != split.fingerprint:
            raise MapError(f"{path}: maps of other data than the configuration's")
        names = run.class_names(reader.classes)
        store.export_virelay(reader, target, lambda rows: split.pixels(reader.index[rows]).numpy(), names)
    logger.info("%s: written", target)
