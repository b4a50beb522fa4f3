"""Trains DiffMask with seven seeds on the counting task and says how far each finds the counted tiles, as a table.

python docs/diffmask_counting.py configs/counting_vit.yml   (after task train-cls with the same configuration)

The classifier stays the same. IoU: of the tiles with P(kept) > 1/2 with the counted ones, mean over test images that have any.
"""

import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch.nn import functional

from heatproof import config
from heatproof.models import LoadedModel, frozen_eval
from heatproof.models.diffmask import DiffMaskNetwork, explainer_for
from heatproof.models.masking import masking_of
from heatproof.stages.run import Run
from heatproof.stages.train_diffmask import recipe_of
from heatproof.training import diffmask

SCORES = ("soft_divergence", "hard_divergence", "hard_agreement", "hard_kept")
SEEDS = range(1, 8)
HEAD = (
    "| seed | IoU, mean | IoU, least | divergence, soft | hard | agreement | kept | CPU seconds |\n" + "|---" * 8 + "|"
)


def main(path: Path, *overrides: str) -> None:
    """Prints a line for each seed."""
    torch.set_num_threads(1)
    run = Run(config.read(path, overrides))
    section = config.section(run.config, "train_diffmask", config.TrainDiffmask)
    loaded = run.trained(section.model)
    masking = masking_of(loaded.module, section.form)
    train, validation, test = (run.examples(run.dataset.split(name)) for name in ("train", "validation", "test"))
    print(HEAD)  # noqa: T201
    for seed in SEEDS:
        started = time.process_time()
        torch.manual_seed(seed)
        with frozen_eval(loaded.module):
            explainer = explainer_for(
                masking,
                loaded.normalization(run.dataset.split("train").pixels(range(32)).float() / 255),
                hidden=section.hidden,
                mul_activation=section.mul_activation,
                add_activation=section.add_activation,
            )
        fitted = diffmask.fit(
            explainer, masking, loaded.module, loaded.normalization, train, validation, recipe_of(section),
            seed=seed, purpose=("counting",),
        )  # fmt: skip
        seconds = time.process_time() - started
        explainer.load_state_dict(fitted.state)
        with frozen_eval(loaded.module):
            scores = diffmask.validate(explainer, masking, loaded.normalization, test)
            ious = torch.cat(list(_ious(run, loaded, explainer)))
        values = (ious.mean(), ious.min(), *(scores[name] for name in SCORES))
        print(f"| {seed} | {' | '.join(f'{value:.3f}' for value in values)} | {seconds:.0f} |", flush=True)  # noqa: T201


def _ious(run: Run, loaded: LoadedModel, explainer: DiffMaskNetwork) -> Iterator[torch.Tensor]:
    split, masking = run.dataset.split("test"), masking_of(loaded.module)
    for batch in run.examples(split).batches(torch.arange(len(split)), 250):
        passed = masking.intact(loaded.normalization(batch.pixels))
        with torch.no_grad():
            kept = explainer.log_kept(passed.hidden)[:, :, -1].exp() > 0.5
        regions = torch.from_numpy(split.regions(batch.indices.numpy())).float()
        counted = functional.adaptive_avg_pool2d(regions, passed.grid).flatten(1) > 0.5
        some = counted.any(dim=1)
        yield ((kept & counted).sum(1) / (kept | counted).sum(1))[some]


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
