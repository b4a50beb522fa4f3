"""The stage infill against the bare generator, and a ROAR epoch of stored infilled images against one from memory.

    python benchmarks/infill.py [--quick] [--threads 1] [--cpu-time]

Ratios are taken side by side in one run: the sides alternate, and medians are compared. The bare side runs the network
alone on one finished batch again and again; the stage also reads images and ranks, cuts the holes, and writes the file.
"""

import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import torch
from alternating import Turns, parser_for, turns_of

from heatproof import config, removal, store
from heatproof.models.inpainting import GatedUNet
from heatproof.models.resnet_cifar import ResNet8
from heatproof.stages import extract, infill, infilled
from heatproof.stages.run import Run
from heatproof.training import classifier
from heatproof.training.augmentation import Augmentation
from heatproof.training.classifier import ClassifierRecipe, Named
from heatproof.training.examples import Examples, Removal

FRACTION, BATCH = 0.5, 64


def main() -> None:
    options = parser_for(__doc__, quick="fewer images and repeats").parse_args()
    turns = turns_of(options, quick=3, full=5)
    with tempfile.TemporaryDirectory() as folder:
        run = prepared(Path(folder), 512 if options.quick else 2048, options.device)
        compare_infill(run, turns)
        compare_streaming(run, turns)


def prepared(folder: Path, images: int, device: str) -> Run:
    """A run with the ranks of random maps and an untrained network: neither changes the work."""
    torch.manual_seed(0)
    torch.save(GatedUNet().state_dict(), folder / "network.pth")
    options = {"train_images": 2 * images, "test_images": 16}
    learned = {"name": "learned", "infiller": "LearnedInfill", "kwargs": {"checkpoint": str(folder / "network.pth")}}
    settings = config.Config.model_validate(
        {
            "outdir": folder / "out",
            "device": device,
            "data": {"dataset": "Planted", "split_ratio": 0.5, "options": options},
            "infill": {
                "infillers": [learned],
                "attribution_methods": [{"name": "random", "method": "heatproof.methods.controls.Random"}],
                "controls": [],
                "percentiles": [100 * FRACTION],
                "splits": ["train"],
                "batch_size": BATCH,
            },
        }
    )
    run = Run(settings)
    split = run.dataset.split("train")
    writer = store.MapWriter(
        folder / "out" / "extract_cams" / "random" / "train.h5",
        rows=len(split), size=(32, 32), classes=8, origin={"data": split.fingerprint}, method="random", split="train",
    )  # fmt: skip
    rng = np.random.default_rng(0)
    for block in writer.missing():
        count = block.stop - block.start
        maps, zeros = rng.random((count, 32, 32), dtype=np.float32), np.zeros(count, dtype=np.int64)
        ranks = removal.ranks(removal.orders(maps, ties="index"), size=(32, 32))
        logits = np.zeros((count, 8), dtype=np.float32)
        index = np.arange(block.start, block.stop)
        writer.write(
            block, maps=maps, ranks=ranks, index=index, label=zeros, target=zeros, prediction=zeros, logits=logits
        )
    writer.finish()
    split.pixels(np.arange(len(split)))
    return run


def compare_infill(run: Run, turns: Turns) -> None:
    split = run.dataset.split("train")
    network = GatedUNet().eval().to(turns.device)
    pixels = split.pixels(np.arange(BATCH)).to(turns.device).float() / 255
    holes = (torch.rand(BATCH, 1, 32, 32) < FRACTION).to(pixels)

    def bare() -> None:
        with torch.inference_mode():
            for _ in range(0, len(split), BATCH):
                network(pixels, holes)

    def stage() -> None:
        for path in infill.folder_of(run, "learned", "random").rglob("*.h5"):
            path.unlink()
        infill.run(run)

    seconds = turns.seconds({"bare": bare, "stage": stage})
    for name, value in seconds.items():
        print(f"infill, {name}: {len(split) / value:.0f} img/s")
    print(f"stage / bare: {seconds['bare'] / seconds['stage']:.3f} of its speed (aim >= 0.9)")


def compare_streaming(run: Run, turns: Turns) -> None:
    split = run.dataset.split("train")
    maps = store.MapReader(extract.file_of(run, "random", split.name))
    stored = infilled.opened(run, "learned", "random", split.name, maps.content_id()).at(FRACTION, "most")
    everything = np.arange(len(split))
    removed = removal.removed(removal.rank_tensor(maps.ranks(everything), turns.device), FRACTION)
    held = stored(split.pixels(everything).to(turns.device).float() / 255, removed, everything)

    sides = {
        "memory": lambda pixels, ranks, indices: held[indices],
        "HDF5": lambda pixels, ranks, indices: stored(pixels, removal.removed(ranks, FRACTION), indices),
    }
    examples = {
        name: Examples(split, turns.device, removal=Removal(maps.ranks, degrade)) for name, degrade in sides.items()
    }
    few = Examples(run.dataset.split("test"), turns.device)
    seconds = turns.seconds({name: partial(epoch, source, few) for name, source in examples.items()})
    for name, value in seconds.items():
        print(f"ROAR epoch of ResNet8 on infilled images from {name}: {len(split) / value:.0f} img/s")
    print(f"streamed / in memory: {seconds['HDF5'] / seconds['memory']:.3f} (aim <= 1.03)")


def epoch(train: Examples, few: Examples) -> None:
    adam, loss = Named("torch.optim.Adam", {"lr": 1e-3}), Named("torch.nn.CrossEntropyLoss")
    torch.manual_seed(0)
    module = ResNet8(num_classes=8).to(train.device)
    recipe = ClassifierRecipe(adam, None, loss, 1, 256, Augmentation(4))
    classifier.fit(module, lambda pixels: pixels, train, few, recipe, seed=0, purpose=("bench",))


if __name__ == "__main__":
    main()
