"""The one seam between a grid of independent jobs and the machine that runs them.

A cell is one result file; it is done when that file exists with the wanted origin, whoever made it. Running a cell
twice writes the same bytes, so a killed pool loses nothing: start the same command again.
"""

import concurrent.futures
import logging
import multiprocessing
import multiprocessing.queues
import os
import threading
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import torch

from heatproof import artefacts, runtime
from heatproof.errors import CellsFailedError, HeatproofError
from heatproof.threads import cpus, fix, workers_for

logger = logging.getLogger(__name__)
Job = TypeVar("Job")


@dataclass(frozen=True)
class Cell(Generic[Job]):
    """One job of a grid and the result file that it leaves."""

    path: Path
    job: Job


def default_workers(device: torch.device, threads: int) -> int:
    """As many processes of so many threads as this process may use CPUs for; one for each GPU otherwise."""
    if device.type == "cpu":
        return workers_for(threads, cpus())
    return max(1, torch.cuda.device_count())


def map_cells(
    function: Callable[[Job], None],
    cells: Sequence[Cell[Job]],
    *,
    device: torch.device,
    workers: int,
    threads: int,
    description: str,
) -> None:
    """Runs `function(cell.job)` for each cell in a pool of fresh processes.

    Args:
        function: importable by name; writes the cell's file itself, whole or not at all.
        cells: what is missing.
        device: what the cells compute on.
        workers: number of processes; with one, a single process beside this one.
        threads: CPU threads of each, a constant of the experiment: results depend on it in the last bits.
        description: for the progress bar.

    Raises:
        HeatproofError: the first error that a user can mend; the remaining cells are not started.
        CellsFailedError: at the end, where cells failed by a bug; their tracebacks lie beside their paths as `.error`.
    """
    if not cells:
        return
    workers = min(workers, len(cells))
    if device.type == "cpu" and workers * threads > cpus():
        logger.info("%s: %d processes of %d threads share %d CPU(s)", description, workers, threads, cpus())
    context = multiprocessing.get_context("spawn")
    failed: list[Path] = []
    numbers = context.SimpleQueue()
    for number in range(workers):
        numbers.put(number)
    pool = concurrent.futures.ProcessPoolExecutor(
        workers, mp_context=context, initializer=_start_worker, initargs=(threads, device, numbers)
    )
    with runtime.progress(len(cells), description, unit="cell") as bar, pool:
        futures = {pool.submit(function, cell.job): cell for cell in cells}
        try:
            for future in concurrent.futures.as_completed(futures):
                path = futures[future].path
                error_file = path.with_suffix(".error")
                try:
                    future.result()
                    error_file.unlink(missing_ok=True)
                except HeatproofError:
                    raise
                except Exception as error:  # noqa: BLE001 - whatever a cell raised is kept beside it; the rest goes on
                    artefacts.write_text(error_file, "".join(traceback.format_exception(error)))
                    logger.error("%s failed: %s: %s", path, type(error).__name__, error)
                    failed.append(path)
                bar.update()
        except BaseException:
            _stop(pool)
            raise
    if failed:
        listed = ", ".join(str(path.with_suffix(".error")) for path in failed[:3])
        raise CellsFailedError(f"{len(failed)} of {len(cells)} cells failed ({listed}); the next run tries them again")


def _start_worker(threads: int, device: torch.device, numbers: "multiprocessing.queues.SimpleQueue[int]") -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    number = numbers.get()
    fix(threads)
    runtime.keep_freed_memory()
    if str(device) == "cuda":  # one of several: the processes share them out
        torch.cuda.set_device(number % torch.cuda.device_count())
    runtime.make_deterministic(device)


def _end_with_parent() -> None:
    """Ends this process when the one that started it is gone: a killed driver must not leave workers waiting for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _stop(pool: concurrent.futures.ProcessPoolExecutor) -> None:
    processes = list((pool._processes or {}).values())
    pool.shutdown(wait=False, cancel_futures=True)
    for process in processes:
        process.terminate()
