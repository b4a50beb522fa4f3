"""Draws how a map can score better than the true object without retraining: docs/images/beats_oracle.png.

python docs/beats_oracle.py configs/demo.yml   (after ./taskw demo)

Among the images whose prediction changes under the method but not under the oracle, the first ones are shown.
"""

import sys
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from heatproof import config, removal, store
from heatproof.stages.run import Run

METHOD, FRACTION, SHOWN = "intgrad", 0.02, 4


def main(path: Path) -> None:
    """Reads the stored curves and ranks; nothing is computed but the filled pictures."""
    run = Run(config.read(path))
    folder, names, split = run.config.outdir, run.dataset.class_names, run.dataset.split("test")
    curves = {
        name: store.RowReader(folder / "pixel_perturbation_analysis" / f"{name}.h5") for name in ("oracle", METHOD)
    }
    step = next(iter(curves.values())).origin["fractions"].index(FRACTION)
    predicted = {name: reader.read("predicted")[:, 0, step] for name, reader in curves.items()}
    intact, index = curves["oracle"].read("prediction"), curves["oracle"].read("index")
    told = (predicted["oracle"] == intact) & (predicted[METHOD] != intact)
    rows = np.flatnonzero(told)[:SHOWN]
    pixels = split.pixels(index[rows])
    figure = Figure(figsize=(2.2 * SHOWN, 6.6), layout="constrained")
    axes = figure.subplots(3, SHOWN)
    for line, name in enumerate((None, "oracle", METHOD)):
        pictures = pixels.float() / 255
        if name is not None:
            ranks = store.MapReader(folder / "extract_cams" / name / "test.h5").ranks(index[rows])
            removed = removal.removed(ranks, FRACTION, "most")
            pictures = removal.fill(pixels, removed, removal.Mean(run.statistics.mean))
        for column, row in enumerate(rows):
            axis = axes[line, column]
            axis.imshow(pictures[column].permute(1, 2, 0).numpy().clip(0, 1), interpolation="nearest")
            axis.set(xticks=[], yticks=[])
            if name is None:
                axis.set_title(f"intact: {names[intact[row]]}", fontsize=9)
            else:
                probability = curves[name].read("probability")[row, 0, step]
                axis.set_title(
                    f"{name}: {names[predicted[name][row]]}\np({names[intact[row]]}) = {probability:.2f}", fontsize=9
                )
    target = Path(__file__).parent / "images" / "beats_oracle.png"
    figure.savefig(target, dpi=90, metadata={"Software": None})
    print(f"{target}: {told.sum()} of {len(told)} images change under {METHOD} and not under the oracle")  # noqa: T201


if __name__ == "__main__":
    main(Path(sys.argv[1]))
