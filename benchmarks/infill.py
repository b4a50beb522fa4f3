"""The stage infill against the bare generator, and a ROAR epoch of stored infilled images against one from memory.

    python benchmarks/infill.py [--quick] [--threads 1] [--cpu-time]

Ratios are taken side by side in one run: the sides alternate, and medians are compared. The bare side runs the network
alone on one finished batch again and again; the stage also reads images and ranks, cuts the holes, and writes the file.
--cpu-time counts the CPU time of the process: on a machine with other work the better measure, with one thread.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from heatproof import config, removal, store
from heatproof.models.inpainting import GatedUNet
from heatproof.models.resnet_cifar import ResNet8
from heatproof.stages import infill, infilled
from heatproof.stages.run import Run
from heatproof.training import classifier
from heatproof.training.augmentation import Augmentation
from heatproof.training.classifier import Named, Recipe
from heatproof.training.examples import Examples, Removal

FRACTION, BATCH = 0.5, 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer images and repeats")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--cpu-time", action="store_true", help="CPU time of the process instead of wall time")
    asked = parser.parse_args()
    clock = time.process_time if asked.cpu_time else time.perf_counter
    torch.set_num_threads(asked.threads)
    images, repeats = (512, 3) if asked.quick else (2048, 5)
    with tempfile.TemporaryDirectory() as folder:
        run = prepared(Path(folder), images)
        compare_infill(run, repeats, clock)
        compare_streaming(run, repeats, clock)


def prepared(folder: Path, images: int) -> Run:
    """A run with the ranks of random maps and an untrained network: neither changes the work."""
    torch.manual_seed(0)
    torch.save(GatedUNet().state_dict(), folder / "network.pth")
    options = {"train_images": 2 * images, "test_images": 16}
    learned = {"name": "learned", "infiller": "LearnedInfill", "kwargs": {"checkpoint": str(folder / "network.pth")}}
    settings = config.Config.model_validate(
        {
            "outdir": folder / "out",
            "device": "cpu",
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


def compare_infill(run: Run, repeats: int, clock: Callable[[], float]) -> None:
    split = run.dataset.split("train")
    network = GatedUNet().eval()
    pixels = split.pixels(np.arange(BATCH)).float() / 255
    holes = (torch.rand(BATCH, 1, 32, 32) < FRACTION).float()

    def bare() -> None:
        with torch.inference_mode():
            for _ in range(0, len(split), BATCH):
                network(pixels, holes)

    def stage() -> None:
        for path in infill.folder_of(run, "learned", "random").rglob("*.h5"):
            path.unlink()
        infill.run(run)

    seconds = timed({"bare": bare, "stage": stage}, repeats, clock)
    for name, value in seconds.items():
        print(f"infill, {name}: {len(split) / value:.0f} img/s")
    print(f"stage / bare: {seconds['bare'] / seconds['stage']:.3f} of its speed (aim >= 0.9)")


def compare_streaming(run: Run, repeats: int, clock: Callable[[], float]) -> None:
    split = run.dataset.split("train")
    maps = infill.maps_of(run, "random", split)
    stored = infilled.opened(run, "learned", "random", split, maps).at(FRACTION, "most")
    everything = np.arange(len(split))
    removed = removal.removed(removal.rank_tensor(maps.ranks(everything)), FRACTION)
    held = stored(split.pixels(everything).float() / 255, removed, everything)

    sides = {
        "memory": lambda pixels, ranks, indices: held[indices],
        "HDF5": lambda pixels, ranks, indices: stored(pixels, removal.removed(ranks, FRACTION), indices),
    }
    examples = {
        name: Examples(split, torch.device("cpu"), removal=Removal(maps.ranks, degrade))
        for name, degrade in sides.items()
    }
    few = Examples(run.dataset.split("test"), torch.device("cpu"))
    seconds = timed(
        {name: lambda source=source: epoch(source, few) for name, source in examples.items()}, repeats, clock
    )
    for name, value in seconds.items():
        print(f"ROAR epoch of ResNet8 on infilled images from {name}: {len(split) / value:.0f} img/s")
    print(f"streamed / in memory: {seconds['HDF5'] / seconds['memory']:.3f} (aim <= 1.03)")


def epoch(train: Examples, few: Examples) -> None:
    adam, loss = Named("torch.optim.Adam", {"lr": 1e-3}), Named("torch.nn.CrossEntropyLoss")
    torch.manual_seed(0)
    module = ResNet8(num_classes=8)
    recipe = Recipe(adam, None, loss, 1, 256, Augmentation(4))
    classifier.fit(module, lambda pixels: pixels, train, few, recipe, seed=0, purpose=("bench",))


def timed(sides: dict[str, Callable[[], None]], repeats: int, clock: Callable[[], float]) -> dict[str, float]:
    seconds = {name: [] for name in sides}
    for repeat in range(repeats + 1):
        for name, side in sides.items():
            start = clock()
            side()
            if repeat:  # the first of each warms caches
                seconds[name].append(clock() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


if __name__ == "__main__":
    main()
