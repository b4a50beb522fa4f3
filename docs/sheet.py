"""Draws the stored maps of every method of LeRF/MoRF on the same pictures, one of each of six classes.

python docs/sheet.py configs/vit_planted.yml   (after task demo with the same configuration)

Writes docs/images/<name of the configuration>.png.
"""

import sys
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from heatproof import config
from heatproof.report.overlay import overlay
from heatproof.stages.evaluate import SampledMaps
from heatproof.stages.run import Run

SHOWN = 6


def main(path: Path) -> None:
    """A row of pictures, and a row for each method."""
    run = Run(config.read(path))
    section = config.section(run.config, "pixel_perturbation_analysis", config.PixelPerturbationAnalysis)
    sampled, split = SampledMaps.of(run, section), run.dataset.split("test")
    maps = sampled.make()
    labels = split.labels[sampled.chosen]
    rows = [int(sampled.chosen[np.flatnonzero(labels == label)[0]]) for label in range(SHOWN)]
    pictures = split.pixels(rows).permute(0, 2, 3, 1).numpy()
    names = {method.name for method in section.attribution_methods}
    readers = {name: reader for name, reader in maps.items() if name in names}
    figure = Figure(figsize=(1.1 * (1 + len(readers)), 1.2 * SHOWN), layout="constrained")
    axes = figure.subplots(SHOWN, 1 + len(readers))
    for line, (row, picture) in enumerate(zip(rows, pictures, strict=True)):
        axes[line, 0].imshow(picture, interpolation="nearest")
        for axis, (name, reader) in zip(axes[line, 1:], readers.items(), strict=True):
            map_ = reader.maps(np.flatnonzero(reader.index == row))[0]
            axis.imshow(overlay(picture, map_), interpolation="nearest")
            if line == 0:
                axis.set_title(name.replace("_", "\n"), fontsize=8)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
    target = Path(__file__).parent / "images" / f"{path.stem}.png"
    figure.savefig(target, dpi=80, metadata={"Software": None})
    print(target)  # noqa: T201


if __name__ == "__main__":
    main(Path(sys.argv[1]))
