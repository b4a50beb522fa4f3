"""Draws what published code of vision transformers does (`compat: true`) beside the correct form: docs/images/published_form.png.

python docs/published_form.py configs/vit_planted.yml   (after train-cls)

The first test picture of each class, in which a texture in one small disc tells the class; under each picture the rank correlation
of the two maps.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from scipy.stats import spearmanr

from heatproof import config
from heatproof.methods.attention import AttentionRollout, GradientRollout
from heatproof.methods.gradmask import GradMask
from heatproof.report.overlay import overlay
from heatproof.stages.run import Run

SHOWN = 6
METHODS = {
    "rollout, max fusion": (AttentionRollout, {"head_fusion": "max"}),
    "gradient rollout": (GradientRollout, {}),
    "GradMask": (GradMask, {"masks_layer": 3}),
}


def main(path: Path) -> None:
    """Explains a few pictures in both forms; the classifier is the trained one of the configuration."""
    run = Run(config.read(path))
    loaded = run.trained(config.section(run.config, "extract_cams", config.ExtractCams).model)
    split = run.dataset.split("test")
    rows = [int(np.flatnonzero(split.labels == label)[0]) for label in range(SHOWN)]
    pixels = split.pixels(rows)
    images = loaded.normalization(pixels.to(run.device).float() / 255)
    with torch.no_grad():
        targets = loaded.module(images).argmax(dim=1)
    shown = pixels.permute(0, 2, 3, 1).numpy()
    figure = Figure(figsize=(1.7 * SHOWN, 1.8 * (1 + 2 * len(METHODS))), layout="constrained")
    axes = figure.subplots(1 + 2 * len(METHODS), SHOWN)
    for column in range(SHOWN):
        axes[0, column].imshow(shown[column], interpolation="nearest")
    for place, (name, (method, options)) in enumerate(METHODS.items()):
        forms = [method(loaded.module, compat=compat, **options)(images, targets) for compat in (False, True)]
        for line, (maps, form) in enumerate(zip(forms, ("correct", "as published"), strict=True)):
            for column in range(SHOWN):
                axis = axes[1 + 2 * place + line, column]
                axis.imshow(overlay(shown[column], maps[column].cpu().numpy()), interpolation="nearest")
                if line:
                    agreement = spearmanr(*(each[column].flatten().cpu() for each in forms)).statistic
                    axis.set_xlabel(f"{agreement:.2f}", fontsize=9)
            axes[1 + 2 * place + line, 0].set_ylabel(f"{name}\n{form}", fontsize=8)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
    target = Path(__file__).parent / "images" / "published_form.png"
    figure.savefig(target, dpi=80, metadata={"Software": None})
    print(target)  # noqa: T201


if __name__ == "__main__":
    main(Path(sys.argv[1]))
