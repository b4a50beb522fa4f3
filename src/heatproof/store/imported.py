"""Maps that were made elsewhere: arrays read from a file, checked, and given the shape that the store knows."""

import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from heatproof.errors import MapError, nearest

KEYS = ("maps", "index", "label", "target", "prediction", "logits")


@dataclass(frozen=True)
class ImportedMaps:
    """Arrays of N images from a foreign file.

    Args:
        path: where they come from.
        maps: (N, H, W), or (N, C, H, W) where the channels are still to be reduced; any real type, perhaps mapped
            from disk: convert it batch by batch.
        index: (N,) int64, position of each image in its split, each once; None where the file does not say.
        label, target, prediction: (N,) int64, or None.
        logits: (N, K) float32, or None.
    """

    path: Path
    maps: NDArray[Any]
    index: NDArray[np.int64] | None = None
    label: NDArray[np.int64] | None = None
    target: NDArray[np.int64] | None = None
    prediction: NDArray[np.int64] | None = None
    logits: NDArray[np.float32] | None = None


def imported_maps(path: Path | str, size: tuple[int, int] | None = None) -> ImportedMaps:
    """Maps from a `.npz`, `.npy` or `.h5` file.

    A `.npy` file holds the maps alone; the others hold `maps`, and may hold `index`, `label`, `target`, `prediction`
    and `logits`. Maps may be (N, H, W), (N, 1, H, W), (N, H, W, 1) or (N, C, H, W); where `size` is given, also
    (N, H, W, C). Pickled objects are never loaded.

    Args:
        path: the file.
        size: (H, W) of the images that the maps must fit; None takes any.

    Raises:
        MapError: one line naming the file, the array, and what is wrong with it.
    """
    path = Path(path)
    readers = {".npz": _read_npz, ".npy": _read_npy, ".h5": _read_h5, ".hdf5": _read_h5}
    if path.suffix.lower() not in readers:
        raise MapError(f"{path}: maps are imported from {', '.join(readers)}, not from {path.suffix!r}")
    if not path.is_file():
        raise MapError(f"{path}: no such file")
    try:
        arrays = readers[path.suffix.lower()](path)
    except (OSError, ValueError, EOFError, RuntimeError, LookupError, zipfile.BadZipFile, zlib.error) as error:
        raise MapError(f"{path}: cannot be read: {_reason(error)}") from error
    for key in arrays:
        if key not in KEYS:
            raise MapError(f"{path}: unknown array {key!r}{nearest(key, KEYS)}")
    if "maps" not in arrays:
        raise MapError(f"{path}: has no array 'maps'; it has {', '.join(arrays) or 'nothing'}")
    maps = _maps(path, arrays.pop("maps"), size)
    return ImportedMaps(path, maps, **{key: _column(path, key, array, len(maps)) for key, array in arrays.items()})


def _read_npz(path: Path) -> dict[str, NDArray[Any]]:
    with path.open("rb") as file:
        archive = np.load(file, allow_pickle=False)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise ValueError("not an archive of arrays; save it with numpy.savez")
        # What `export_npz` adds for people is not needed to make the file again.
        return {key: archive[key] for key in archive if key not in ("ranks", "flag", "origin", "method", "split")}


def _read_npy(path: Path) -> dict[str, NDArray[Any]]:
    return {"maps": np.lib.format.open_memmap(path, mode="r")}


def _read_h5(path: Path) -> dict[str, NDArray[Any]]:
    with h5py.File(path, "r", locking=False) as file:
        if "map" in file and "rank" in file:
            raise ValueError("it is an attribution file already; use it as it is")
        return {key: file[key][...] for key in file if isinstance(file[key], h5py.Dataset)}


def _maps(path: Path, maps: NDArray[Any], size: tuple[int, int] | None) -> NDArray[Any]:
    """The maps with axes (N, H, W) or (N, C, H, W)."""
    if maps.dtype.kind not in "fiub":
        raise MapError(f"{path}: maps: {maps.dtype} values; expected real numbers")
    shape = maps.shape
    if maps.ndim == 4 and shape[1] == 1:
        maps = maps[:, 0]
    elif maps.ndim == 4 and shape[3] == 1:
        maps = maps[..., 0]
    elif maps.ndim == 4 and size is not None and shape[1:3] == size != shape[2:]:
        maps = np.moveaxis(maps, 3, 1)
    if maps.ndim not in (3, 4) or 0 in shape:
        raise MapError(f"{path}: maps: shape {shape}; expected (N, H, W), (N, 1, H, W), (N, H, W, 1) or (N, C, H, W)")
    if size is not None and maps.shape[-2:] != tuple(size):
        raise MapError(f"{path}: maps: shape {shape}; the images are {size[0]} x {size[1]}")
    return maps


def _column(path: Path, key: str, array: NDArray[Any], rows: int) -> NDArray[Any]:
    axes = 2 if key == "logits" else 1
    if array.ndim != axes or len(array) != rows:
        expected = f"({rows}, K)" if key == "logits" else f"({rows},)"
        raise MapError(f"{path}: {key}: shape {array.shape}; expected {expected}, as there are {rows} maps")
    if key == "logits":
        if array.dtype.kind not in "fiu" or not np.isfinite(array).all():
            raise MapError(f"{path}: logits: {array.dtype} values; expected finite numbers")
        return array.astype(np.float32)
    if array.dtype.kind not in "iu":
        raise MapError(f"{path}: {key}: {array.dtype} values; expected integers")
    if array.max() > np.iinfo(np.int64).max:
        raise MapError(f"{path}: {key}[{array.argmax()}]: {array.max()} does not fit into 64 bits")
    if array.min() < 0:
        raise MapError(f"{path}: {key}[{array.argmin()}]: {array.min()} must not be negative")
    if key == "index" and len(np.unique(array)) != rows:
        values, counts = np.unique(array, return_counts=True)
        raise MapError(f"{path}: index: image {values[counts > 1][0]} occurs more than once")
    return array.astype(np.int64)


def _reason(error: BaseException) -> str:
    if "allow_pickle" in str(error) or "Python objects" in str(error):
        return "no NumPy file, or one of pickled objects, which are never loaded; save plain arrays with numpy.savez"
    return str(error).splitlines()[0] if str(error) else type(error).__name__
