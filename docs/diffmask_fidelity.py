"""Says how well the patches that each method ranks highest keep the prediction, when DiffMask's placeholder stands for the others.

python docs/diffmask_fidelity.py configs/vit_cifar10_subset.yml   (after train-diffmask and lerf with the same configuration)

That is the test that DiffMask is trained for (soft-mask fidelity in the paper), with equal shares of patches for all methods, since their
values have no common scale. A patch counts by the mean of its map. KL divergence of the masked from the intact prediction in nats,
mean over the images of `lerf` with 95 % intervals; 0 is exact.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from heatproof import config
from heatproof.metrics import statistics
from heatproof.models import frozen_eval
from heatproof.models.diffmask import DiffMaskNetwork, explainer_from
from heatproof.models.masking import FORMS, Masking, Pass, masking_of
from heatproof.models.probabilities import divergences
from heatproof.models.weights import read_weights
from heatproof.stages.evaluate import SampledMaps
from heatproof.stages.run import Run

SHARES = (0.1, 0.2, 0.3, 0.5, 0.7)


def main(path: Path, *overrides: str) -> None:
    """Prints a line for each method."""
    run = Run(config.read(path, overrides))
    section = config.section(run.config, "pixel_perturbation_analysis", config.PixelPerturbationAnalysis)
    weights = run.config.outdir / "train_diffmask" / "best_model.pth"
    explainer = explainer_from(read_weights(weights), where=str(weights)).to(run.device)
    sampled = SampledMaps.of(run, section)
    readers, rows_shown = sampled.make(), sampled.chosen
    loaded = sampled.extraction.loaded
    masking = masking_of(loaded.module, FORMS[int(explainer.form)], patch=int(explainer.patch) or None)
    images = loaded.normalization(run.dataset.split("test").pixels(rows_shown).to(run.device).float() / 255)
    with frozen_eval(loaded.module), torch.no_grad():
        passed = masking.intact(images)
        print("| method |" + "".join(f" {share:.0%} kept |" for share in SHARES))  # noqa: T201
        print("|---" * (len(SHARES) + 1) + "|")  # noqa: T201
        for name, reader in readers.items():
            maps = torch.from_numpy(reader.maps(np.flatnonzero(np.isin(reader.index, rows_shown))).astype(np.float32))
            order = (
                functional.adaptive_avg_pool2d(maps[:, None], passed.grid).flatten(1).argsort(dim=1, descending=True)
            )
            rows = [_divergences(explainer, masking, images, passed, order, share) for share in SHARES]
            found = statistics.summarize_rows(rows, seed=run.config.seed)
            print(f"| {name} |" + "".join(f" {s.mean:.2f} [{s.low:.2f}, {s.high:.2f}] |" for s in found), flush=True)  # noqa: T201


def _divergences(
    explainer: DiffMaskNetwork, masking: Masking, images: Tensor, passed: Pass, order: Tensor, share: float
) -> NDArray[np.float64]:
    """Of each image (N,), with the first `share` of its patches in this order kept."""
    kept = torch.zeros(order.shape).scatter(1, order[:, : round(share * order.shape[1])], 1.0).to(images.device)
    masked = masking.masked(images, passed, kept, explainer.placeholder)
    return divergences(passed.logits, masked).double().cpu().numpy()


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
