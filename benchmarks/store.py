"""Random batches of ranks from an attribution file, against the same gather from memory and through h5py.

    python benchmarks/store.py [--quick]

All sides read the same batches in one run, alternating, so that what else the machine does hits all; medians of CPU
time, with the file in the page cache. "first" opens the file anew and compares every row with its checksum.
"""

import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import h5py
import numpy as np
from alternating import Turns, parser_for, turns_of

from heatproof.store import MapReader, MapWriter, export_archive


def main() -> None:
    parser = parser_for(__doc__, quick="fewer maps and repeats")
    parser.set_defaults(cpu_time=True)
    options = parser.parse_args()
    quick, turns = options.quick, turns_of(options, quick=3, full=9)
    print(f"{'size':<12}{'reader':<26}{'img/CPU-s':>12}{'share of memory':>17}")
    compare(size=32, maps=8192 if quick else 50_000, batch=256, turns=turns)
    compare(size=224, maps=256 if quick else 2000, batch=32, turns=turns)


def compare(size: int, maps: int, batch: int, turns: Turns) -> None:
    with tempfile.TemporaryDirectory() as folder:
        whole, wrote = written(Path(folder) / "whole" / "test.h5", size, maps, "always")
        shards, _ = written(Path(folder) / "shards" / "test.h5", size, maps, "never")
        export_archive(whole, Path(folder) / "archive.h5")
        archive = MapReader(Path(folder) / "archive.h5")
        memory = whole.ranks()
        order = np.random.default_rng(0).permutation(maps)
        batches = [order[start : start + batch] for start in range(0, maps - batch + 1, batch)]
        shards.ranks()  # compared with the checksums once
        with h5py.File(whole.path) as file:
            dataset = file["rank"]
            readers: dict[str, tuple[Callable[[np.ndarray], object], int]] = {
                "memory": (lambda rows: memory[rows], len(batches)),
                "MapReader, one file": (whole.ranks, len(batches)),
                "MapReader, shards": (shards.ranks, len(batches)),
                "MapReader, first": (lambda rows: MapReader(whole.path).ranks(rows), 1),
                "h5py, sorted": (lambda rows: dataset[np.sort(rows)], max(1, len(batches) // 20)),
                "MapReader, archive": (archive.ranks, 1),
            }
            report(f"{size} x {size}", readers, batches, order, turns)
        print(f"{f'{size} x {size}':<12}{'MapWriter, one file':<26}{wrote:>12,.0f}")


def written(path: Path, size: int, maps: int, consolidate) -> tuple[MapReader, float]:
    rng = np.random.default_rng(0)
    few = rng.random((64, size, size), dtype=np.float32)
    ranks = few.reshape(64, -1).argsort(axis=1).reshape(few.shape).astype(np.uint16)
    writer = MapWriter(
        path,
        rows=maps,
        size=(size, size),
        classes=10,
        origin={},
        method="random",
        split="test",
        consolidate=consolidate,
    )
    seconds = 0.0
    for block in writer.missing():
        index = np.arange(block.start, block.stop)
        zeros = np.zeros(len(index), dtype=np.int64)
        rows = {"maps": few[index % 64], "ranks": ranks[index % 64], "logits": np.zeros((len(index), 10), np.float32)}
        begin = time.process_time()
        writer.write(block, index=index, label=zeros, target=zeros, prediction=zeros, **rows)
        seconds += time.process_time() - begin
    begin = time.process_time()
    writer.finish()
    seconds += time.process_time() - begin
    return MapReader(path), maps / seconds


def report(name: str, readers, batches, order, turns: Turns) -> None:
    asked = {
        reader: [order] if reader == "MapReader, first" else batches[:count] for reader, (_, count) in readers.items()
    }
    sides = {reader: partial(all_read, read, asked[reader]) for reader, (read, _) in readers.items()}
    seconds = {
        reader: taken / sum(map(len, asked[reader])) for reader, taken in turns.seconds(sides, warm_ups=0).items()
    }
    for reader, each in seconds.items():
        print(f"{name:<12}{reader:<26}{1 / each:>12,.0f}{seconds['memory'] / each:>17.3f}", flush=True)


def all_read(read: Callable[[np.ndarray], object], batches: list[np.ndarray]) -> None:
    for rows in batches:
        read(rows)


if __name__ == "__main__":
    main()
