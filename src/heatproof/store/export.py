"""Attribution files for other programs: plain arrays, one compressed copy, a project for the browser ViRelAy."""

import os
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import yaml
from numpy.typing import ArrayLike, NDArray

from heatproof import artefacts
from heatproof.errors import InputError
from heatproof.store import seals
from heatproof.store.columns import Column
from heatproof.store.hdf5 import VERSIONS, checksum, create_view, set_attributes, write_contiguous
from heatproof.store.maps import MapReader, map_columns
from heatproof.store.seals import Sealed

ARCHIVE_CHUNK = 64
ARCHIVE_ROWS = 16 * ARCHIVE_CHUNK  # rows in memory at a time

Pixels = Callable[[NDArray[np.int64]], ArrayLike]
"""Gives the pixels (B, C, H, W) of the images at positions (B,) of the split, uint8 or float in [0, 1]."""


def export_npz(reader: MapReader, path: Path) -> None:
    """Writes everything as a NumPy archive: `maps` in the units of the method, `ranks`, `index`, `label`, `target`, ...

    `heatproof import-maps` reads it back. Rows are copied block by block, so memory stays small.

    Args:
        reader: a complete attribution file.
        path: the `.npz` file.
    """
    reader.require_complete()
    names = {"index": "index", "label": "label", "target": "target", "prediction": "prediction", "logits": "logits"}
    with artefacts.whole_file(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        _add(archive, "maps", np.dtype("<f4"), reader.shape("map"), (reader.maps(rows) for rows in reader.row_blocks()))
        for name, column in {"ranks": "rank", **names, "flag": "flag"}.items():
            dtype = reader.dtype(column).newbyteorder("<")
            _add(archive, name, dtype, reader.shape(column), (reader.read(column, r) for r in reader.row_blocks()))
        for name, text in {
            "origin": artefacts.canonical(reader.origin),
            "method": reader.method,
            "split": reader.split,
        }.items():
            array = np.array(text).astype(f"<U{max(1, len(text))}")
            _add(archive, name, array.dtype, (), [array])


def export_archive(reader: MapReader, path: Path) -> None:
    """Writes one compressed copy, for shipping: same names, values and checksums; `MapReader` reads it, slowly.

    `map` and `rank` lie in chunks of 64 rows, byte-shuffled and deflated: filters that every HDF5 has.

    Args:
        reader: a complete attribution file.
        path: the `.h5` file.
    """
    reader.require_complete()
    sealed = {}
    with artefacts.whole_file(path) as temporary:
        with h5py.File(temporary, "w", libver=VERSIONS, locking=False) as file:
            for column in _columns(reader):
                options: dict[str, Any] = {}
                if column.name in ("map", "rank"):
                    chunk = (min(ARCHIVE_CHUNK, reader.rows), *column.shape)
                    options = {"chunks": chunk, "shuffle": True, "compression": "gzip", "compression_opts": 1}
                dataset = file.create_dataset(
                    column.name, reader.shape(column.name), column.stored_dtype, track_times=False, **options
                )
                crc = 0
                for rows in np.array_split(np.arange(reader.rows), range(ARCHIVE_ROWS, reader.rows, ARCHIVE_ROWS)):
                    values = reader.read(column.name, rows)
                    dataset[rows[0] : rows[-1] + 1] = values
                    crc = checksum(values, crc)
                sealed[column.name] = Sealed(None, reader.nbytes(column.name), crc)
            set_attributes(file, reader.attributes)
        seals.append(temporary, sealed)


def export_virelay(
    reader: MapReader, folder: Path, pixels: Pixels, class_names: Sequence[str], *, copy: bool = False
) -> Path:
    """Writes a project for ViRelAy, a browser of attributions: four small files and the images.

    The maps themselves are not copied: `attribution` shows the three channels that ViRelAy wants on the same bytes of
    the attribution file, so keep that file where it is, or give `copy=True`. Values are as stored, each map divided by
    its `scale`; ViRelAy normalises each map anyway.

    Args:
        reader: a complete attribution file.
        folder: where to write: `project.yaml`, `label-map.json`, `attribution.h5`, `data.h5`.
        pixels: gives the images; grey ones are shown in three equal channels.
        class_names: one for each class.
        copy: whether to copy the maps, so that the folder stands alone.

    Returns:
        The project file, which `virelay` opens.

    Reference:
        Anders et al.: "Software for Dataset-wide XAI", arXiv:2106.13200; the format as read by ViRelAy 0.6.1.
    """
    reader.require_complete()
    if len(class_names) != reader.classes:
        raise InputError(f"class_names: {len(class_names)} names; {reader.path} has {reader.classes} classes")
    folder.mkdir(parents=True, exist_ok=True)
    _write_images(reader, folder / "data.h5", pixels)
    _write_attributions(reader, folder / "attribution.h5", copy=copy)
    labels = [{"index": i, "word_net_id": f"n{i:08d}", "name": name} for i, name in enumerate(class_names)]
    artefacts.write_json(folder / "label-map.json", labels)
    project = folder / "project.yaml"
    artefacts.write_text(project, yaml.safe_dump({"project": _project(reader)}, sort_keys=False, allow_unicode=True))
    return project


def _columns(reader: MapReader) -> tuple[Column, ...]:
    return map_columns(reader.size, reader.classes, "float32" if reader.dtype("map") == np.float32 else "float16")


def _add(
    archive: zipfile.ZipFile, name: str, dtype: np.dtype[Any], shape: tuple[int, ...], pieces: Iterable[NDArray[Any]]
) -> None:
    """Adds an array to a NumPy archive piece by piece; a fixed date, so that equal arrays give equal bytes."""
    with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as file:
        header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        for piece in pieces:
            file.write(np.ascontiguousarray(piece, dtype=dtype).tobytes())


def _write_images(reader: MapReader, path: Path, pixels: Pixels) -> None:
    columns = (Column("data", "uint8", (3, *reader.size)), Column("label", "uint16"))

    def values(column: Column) -> Iterator[NDArray[Any]]:
        for rows in reader.row_blocks():
            yield reader.labels[rows] if column.name == "label" else _bytes(pixels(reader.index[rows]), reader.size)

    write_contiguous(path, columns, reader.rows, {}, values)


def _bytes(pixels: ArrayLike, size: tuple[int, int]) -> NDArray[np.uint8]:
    """(B, 3, H, W) uint8 of pixels with one or three channels."""
    array = np.asarray(pixels)
    if array.ndim != 4 or array.shape[1] not in (1, 3) or array.shape[2:] != size:
        raise InputError(f"pixels: shape {array.shape}; expected (B, 1 or 3, {size[0]}, {size[1]})")
    if array.dtype != np.uint8:
        array = np.clip(np.rint(array * 255.0), 0, 255).astype(np.uint8)
    return np.broadcast_to(array, (len(array), 3, *size))


def _write_attributions(reader: MapReader, path: Path, *, copy: bool) -> None:
    attribution = Column("attribution", str(reader.dtype("map")), (3, *reader.size), fill=float("nan"))
    # `index` counts the images of data.h5, which are those of the attribution file in the same order.
    small: dict[Column, NDArray[Any]] = {
        Column("prediction", "float32", (reader.classes,)): reader.logits,
        Column("label", "uint16"): reader.targets,
        Column("index", "int64"): np.arange(reader.rows),
    }
    if copy:

        def values(column: Column) -> Iterator[NDArray[Any]]:
            for rows in reader.row_blocks():
                if column is attribution:
                    yield np.repeat(reader.read("map", rows)[:, None], 3, axis=1)
                else:
                    yield small[column][rows]

        write_contiguous(path, (attribution, *small), reader.rows, {}, values)
        return
    with (
        artefacts.whole_file(path) as temporary,
        h5py.File(temporary, "w", libver=VERSIONS, locking=False) as file,
    ):
        selections = [
            (
                (extent.start, channel, 0, 0),
                (extent.stop - extent.start, 1, *reader.size),
                Path(os.path.realpath(extent.path)),
                extent.dataset,
                (extent.stop - extent.start, *reader.size),
            )
            for extent in reader.extents("map")
            for channel in range(3)
        ]
        create_view(file, attribution, reader.rows, selections, Path(os.path.realpath(path.parent)))
        for column, array in small.items():
            file.create_dataset(column.name, data=array.astype(column.stored_dtype), track_times=False)


def _project(reader: MapReader) -> dict[str, Any]:
    model = reader.origin.get("model", {})
    explains_labels = bool((reader.targets == reader.labels).all())
    return {
        "name": f"{reader.method} on {reader.split}",
        "model": str(model.get("arch", "unknown") if isinstance(model, Mapping) else model),
        "label_map": "label-map.json",
        "dataset": {
            "name": reader.split,
            "type": "hdf5",
            "path": "data.h5",
            "input_width": reader.size[1],
            "input_height": reader.size[0],
            "down_sampling_method": "none",
            "up_sampling_method": "none",
        },
        "attributions": {
            "attribution_method": reader.method,
            "attribution_strategy": "true_label" if explains_labels else "predicted_label",
            "sources": ["attribution.h5"],
        },
    }
