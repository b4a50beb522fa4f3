"""Draws how far each method finds the counted tiles of the counting task, and prints it as a table: docs/images/diffmask_counting.png.

python docs/diffmask_figure.py configs/counting_vit.yml   (after task demo with the same configuration)

A right map lies on the red tiles and nowhere else, on each with the same share. Mass: share of a map's positive values on them.
Distance: total variation between the map's shares of the tiles and the expected ones, 1 / count on each red tile; 0 is exact,
1 the opposite. Images without a red tile, or whose map has no positive value, are left out and counted.
"""

import sys
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from heatproof import config, store
from heatproof.metrics import statistics
from heatproof.report.overlay import overlay
from heatproof.stages.run import Run

SHOWN = (1, 2, 3, 5, 7, 8)


def main(path: Path) -> None:
    """Reads the stored maps of the test pictures."""
    run = Run(config.read(path))
    section = config.section(run.config, "extract_cams", config.ExtractCams)
    split = run.dataset.split("test")
    names = [method.name for method in section.methods()]
    readers = {name: store.MapReader(run.config.outdir / "extract_cams" / name / "test.h5") for name in names}
    side = int(run.config.data.options["grid_size"])
    counted = _tiles(split.regions(np.arange(len(split))).astype(np.float64), side) > 0
    some = np.flatnonzero(counted.any(axis=1))
    expected = counted[some] / counted[some].sum(axis=1, keepdims=True)
    print("| method | mass on the counted tiles | distance from the expected | pictures |\n|---|---|---|---|")  # noqa: T201
    scores = {}
    for name, reader in readers.items():
        mass = _tiles(np.maximum(reader.maps(some), 0).astype(np.float64), side)
        total = mass.sum(axis=1, keepdims=True)
        shares = np.divide(mass, total, out=np.full_like(mass, np.nan), where=total > 0)
        rows = [(shares * counted[some]).sum(axis=1), np.abs(shares - expected).sum(axis=1) / 2]
        scores[name] = statistics.summarize_rows(rows, seed=run.config.seed)
        told = " | ".join(f"{s.mean:.3f} [{s.low:.3f}, {s.high:.3f}]" for s in scores[name])
        print(f"| {name} | {told} | {scores[name][0].n} of {len(some)} |")  # noqa: T201
    _draw(split, readers, scores, counted)


def _tiles(values: NDArray[np.float64], side: int) -> NDArray[np.float64]:
    """Sums (N, side * side) over the tiles of (N, H, W)."""
    N, H, W = values.shape
    sums: NDArray[np.float64] = values.reshape(N, side, H // side, side, W // side).sum(axis=(2, 4)).reshape(N, -1)
    return sums


def _draw(split, readers, scores, counted) -> None:  # type: ignore[no-untyped-def]
    rows = [int(np.flatnonzero(counted.sum(axis=1) == count)[0]) for count in SHOWN]
    pixels = split.pixels(rows).permute(0, 2, 3, 1).numpy()
    figure = Figure(figsize=(1.15 * len(SHOWN) + 3.2, 1.05 * (1 + len(readers))), layout="constrained")
    grid = figure.add_gridspec(1 + len(readers), len(SHOWN) + 3)
    for line, name in enumerate([None, *readers]):
        for column, row in enumerate(rows):
            axis = figure.add_subplot(grid[line, column])
            shown = pixels[column] if name is None else overlay(pixels[column], readers[name].maps([row])[0])
            axis.imshow(shown, interpolation="nearest")
            axis.set(xticks=[], yticks=[])
            if name is None:
                axis.set_title(f"{SHOWN[column]} red", fontsize=9)
            elif column == 0:
                axis.set_ylabel(name, fontsize=8)
    bars = figure.add_subplot(grid[1:, len(SHOWN) :])
    means = np.array([found[0].mean for found in scores.values()])
    ends = np.array([(found[0].mean - found[0].low, found[0].high - found[0].mean) for found in scores.values()]).T
    bars.barh(range(len(means)), means, xerr=ends, color="#5b7fa6", height=0.6)
    bars.set(ylim=(len(means) - 0.5, -0.5), xlim=(0, 1), yticks=[], title="mass on the red tiles")
    bars.spines[["top", "right"]].set_visible(False)
    target = Path(__file__).parent / "images" / "diffmask_counting.png"
    figure.savefig(target, dpi=80, metadata={"Software": None})
    print(target)  # noqa: T201


if __name__ == "__main__":
    main(Path(sys.argv[1]))
