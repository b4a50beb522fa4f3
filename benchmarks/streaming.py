"""A ROAR epoch with images and ranks streamed from disk, against the same epoch from memory; and peak memory over size.

    python benchmarks/streaming.py [--quick]

Ratios are taken side by side in one run: the two epochs alternate, and medians are compared.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import torch
from alternating import Turns, parser_for, turns_of

from heatproof import removal, store
from heatproof.datasets import open_dataset
from heatproof.models.resnet_cifar import ResNet8
from heatproof.training import classifier
from heatproof.training.augmentation import Augmentation
from heatproof.training.classifier import ClassifierRecipe, Named
from heatproof.training.examples import Examples, Removal


def main() -> None:
    parser = parser_for(__doc__, quick="fewer images and repeats")
    parser.add_argument("--memory-of", type=int, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.memory_of:
        extract_all(asked.memory_of)
        return
    compare_epochs(512 if asked.quick else 4096, turns_of(asked, quick=3, full=7))
    compare_memory(images=300 if asked.quick else 2000)


def dataset(images: int):
    return open_dataset(
        "Planted", None, split_ratio=0.5, seed=0, options={"train_images": 2 * images, "test_images": 10}
    )


def write_maps(path: Path, images: int) -> store.MapReader:
    writer = store.MapWriter(path, rows=images, size=(32, 32), classes=8, origin={}, method="random", split="train")
    rng = np.random.default_rng(0)
    for block in writer.missing():
        count = block.stop - block.start
        maps = rng.random((count, 32, 32), dtype=np.float32)
        zeros = np.zeros(count, dtype=np.int64)
        writer.write(
            block,
            maps=maps,
            ranks=removal.ranks(removal.orders(maps, ties="index"), size=(32, 32)),
            index=np.arange(block.start, block.stop),
            label=zeros,
            target=zeros,
            prediction=zeros,
            logits=np.zeros((count, 8), dtype=np.float32),
        )
    return store.MapReader(writer.finish())


def compare_epochs(images: int, turns: Turns) -> None:
    split = dataset(images).split("train")
    images = len(split)  # the split's share is rounded down in each class
    with tempfile.TemporaryDirectory() as folder:
        reader = write_maps(Path(folder) / "train.h5", images)
        fill = removal.Mean((0.5, 0.5, 0.5))

        def degrade(pixels, ranks, indices):
            return fill(pixels, removal.removed(ranks, 0.5), indices)

        examples = {
            "memory": Examples(split, turns.device, removal=Removal(reader.ranks, degrade)),
            "HDF5": Examples(split, turns.device, 0, workers=0, removal=Removal(reader.ranks, degrade)),
        }
        few = Examples(dataset(8).split("train"), turns.device)
        medians = turns.seconds({name: partial(epoch, source, few) for name, source in examples.items()})
    for name, median in medians.items():
        print(f"ROAR epoch of ResNet8, {images} images, from {name}: {images / median:.0f} img/s")
    print(f"streamed / in memory: {medians['HDF5'] / medians['memory']:.3f} (aim <= 1.03)")


def epoch(train: Examples, few: Examples) -> None:
    recipe = ClassifierRecipe(
        Named("torch.optim.Adam", {"lr": 1e-3}), None, Named("torch.nn.CrossEntropyLoss"), 1, 256, Augmentation(4)
    )
    torch.manual_seed(0)
    module = ResNet8(num_classes=8).to(train.device)
    classifier.fit(module, lambda pixels: pixels, train, few, recipe, seed=0, purpose=("bench",))


def compare_memory(images: int) -> None:
    peaks = {}
    for count in (images, 10 * images):
        command = [sys.executable, __file__, "--memory-of", str(count)]
        peaks[count] = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])
        print(f"peak memory of writing and streaming the maps of {count} images: {peaks[count] / 1024:.0f} MiB")
    print(f"10 N / N: {peaks[10 * images] / peaks[images]:.3f} (aim <= 1.1)")


def extract_all(images: int) -> None:
    """Explains, writes and reads back maps of pictures that are made one block at a time; prints the peak in KiB."""
    from heatproof.methods.gradient import IntegratedGradients

    split = dataset(images).split("train")
    images = len(split)  # the split's share is rounded down in each class
    torch.manual_seed(0)
    explain = IntegratedGradients(ResNet8(num_classes=8).eval(), steps=4)
    with tempfile.TemporaryDirectory() as folder:
        writer = store.MapWriter(
            Path(folder) / "train.h5", rows=images, size=(32, 32), classes=8, origin={}, method="ig", split="train",
            rows_per_block=256,
        )  # fmt: skip
        for block in writer.missing():
            rows = np.arange(block.start, block.stop)
            pixels = split.pixels(rows).float().div_(255)
            targets = torch.from_numpy(split.labels[rows])
            maps = torch.cat([explain(p, t).sum(1) for p, t in zip(pixels.split(32), targets.split(32), strict=True)])
            ranks = removal.ranks(removal.orders(maps.numpy(), ties="index"), size=(32, 32))
            label = split.labels[rows]
            logits = np.zeros((len(rows), 8), dtype=np.float32)
            writer.write(
                block, maps=maps.numpy(), ranks=ranks, index=rows, label=label, target=label, prediction=label, logits=logits
            )  # fmt: skip
        reader = store.MapReader(writer.finish())
        order = np.random.default_rng(0).permutation(images)
        for start in range(0, images, 256):
            reader.ranks(order[start : start + 256])
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


if __name__ == "__main__":
    main()
