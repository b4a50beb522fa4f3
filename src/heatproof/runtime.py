"""Where and how a run computes: device, threads, determinism, progress, versions."""

import contextlib
import csv
import ctypes
import os
import platform
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tqdm import tqdm

from heatproof import artefacts
from heatproof.errors import ConfigError


def resolve_device(name: str) -> torch.device:
    """The device for "auto", "cpu", "cuda", "cuda:1" or "mps".

    Raises:
        ConfigError: where the machine has no such device; never a silent fall-back to the CPU.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"device: {name!r} is not a device; use auto, cpu, cuda, cuda:1 or mps") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"device: {name!r} asked for, but torch sees {torch.cuda.device_count()} CUDA device(s); use cpu or auto"
        )
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ConfigError("device: 'mps' asked for, but torch sees none; use cpu or auto")
    return device


def make_deterministic(device: torch.device) -> None:
    """Asks torch for the same bytes on every run of the same machine.

    On the CPU what we use is deterministic for a fixed number of threads; asking there would only import
    torch's compiler, seconds for each process.
    """
    if device.type != "cuda":
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    torch.use_deterministic_algorithms(mode=True, warn_only=True)


def keep_freed_memory() -> None:
    """Lets the C library keep the memory of freed tensors for the next ones.

    By default glibc returns each large block to the system at once and gets it back zeroed: for the activations of a
    network on a CPU that costs more than the network. The peak grows by some percent. Elsewhere nothing is done.
    """
    try:
        adjust = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):  # no glibc
        return
    m_trim_threshold, m_mmap_threshold = -1, -3
    adjust(m_mmap_threshold, 1 << 30)
    adjust(m_trim_threshold, -1)


def progress(total: int, description: str | None, unit: str = "img", initial: int = 0) -> "tqdm[Any]":
    """A progress bar with rate and time left on stderr; where that is no terminal, one line a minute at most.

    Without a description it shows nothing.
    """
    return tqdm(
        total=total,
        desc=description,
        unit=unit,
        initial=initial,
        disable=description is None,
        dynamic_ncols=True,
        mininterval=0.2 if sys.stderr.isatty() else 60.0,
        smoothing=0.05,
    )


def versions() -> dict[str, str]:
    """Versions of what computes: Python, Heatproof and the libraries that numbers depend on."""
    packages = ("heatproof", "torch", "torchvision", "numpy", "scipy", "h5py")
    return {"python": platform.python_version()} | {name: metadata.version(name) for name in packages}


class Spent(NamedTuple):
    """A line of timing.csv."""

    finished: str
    host: str
    what: str
    items: int
    seconds: float


def times(folder: Path) -> list[Spent]:
    """The lines of `folder`/timing.csv; one that a kill cut short is left out, for nothing but a table of costs reads them."""
    try:
        text = (folder / "timing.csv").read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return []
    found = []
    for row in csv.reader(text.splitlines()[1:]):
        with contextlib.suppress(ValueError):
            finished, host, what, items, seconds = row
            found.append(Spent(finished, host, what, int(items), float(seconds)))
    return found


def record_time(folder: Path, what: str, count: int, started: float) -> None:
    """Adds a line to `folder`/timing.csv: what ran, where, how many items, and the seconds since `started` (monotonic)."""
    seconds = round(time.monotonic() - started, 3)
    when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    artefacts.append_row(folder / "timing.csv", Spent._fields, (when, platform.node(), what, count, seconds))
