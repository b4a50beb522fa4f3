"""From a name in the configuration to a data set."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from heatproof import plugins
from heatproof.datasets import trees
from heatproof.datasets.arrays import NpzSource
from heatproof.datasets.coco import coco
from heatproof.datasets.counting import Counting, CountingPictures, CountingSource
from heatproof.datasets.custom import CustomSource
from heatproof.datasets.dataset import Dataset, Source
from heatproof.datasets.folders import image_folder, imagenet
from heatproof.datasets.pets import oxford_pets
from heatproof.datasets.planted import Planted, PlantedSource
from heatproof.datasets.prepared import prepared
from heatproof.datasets.resized import resized
from heatproof.datasets.standard import Cifar10Source, MnistSource
from heatproof.datasets.wsol import wsol
from heatproof.errors import DataError, InputError, nearest


def _cifar10(folder: Path, size: int | None = None) -> Source:
    return resized(Cifar10Source(folder), size)


def _mnist(folder: Path, size: int | None = None) -> Source:
    return resized(MnistSource("MNIST", folder), size)


def _fashion_mnist(folder: Path, size: int | None = None) -> Source:
    return resized(MnistSource("FashionMNIST", folder), size)


def _arrays(folder: Path, size: int | None = None) -> Source:
    return resized(NpzSource(folder), size)


def _cifar10_qa(
    folder: Path,
    seed: int,
    split_ratio: float,
    grid_size: int = 3,
    class_idx: int = 3,
    size: int | None = 224,
    train_images: int = 4000,
    test_images: int = 1000,
) -> Source:
    held = folder.is_file() or any(not trees.is_hidden(file.name) for file in folder.glob("*.npz"))
    pictures = NpzSource(folder) if held else Cifar10Source(folder)
    grids = CountingPictures(pictures, seed, split_ratio, grid_size, class_idx, train_images, test_images)
    return resized(grids, size)


# What lies in files: called with dataset_dir, then the options; with seed and split_ratio where it has them.
FILES: dict[str, Callable[..., Source]] = {
    "CIFAR10": _cifar10,
    "CIFAR10_QA": _cifar10_qa,
    "MNIST": _mnist,
    "FashionMNIST": _fashion_mnist,
    "ImageNet": imagenet,
    "ImageFolder": image_folder,
    "Arrays": _arrays,
    "Wsol": wsol,
    "Prepared": prepared,
    "OxfordPets": oxford_pets,
    "Coco": coco,
}
# What is generated: options that become a source together with the seed.
GENERATED: dict[str, tuple[Callable[..., Any], Callable[[Any, int], Source]]] = {
    "Planted": (Planted, PlantedSource),
    "Counting": (Counting, CountingSource),
}


def open_dataset(
    name: str,
    dataset_dir: Path | None,
    *,
    split_ratio: float,
    seed: int,
    options: Mapping[str, Any],
    examples_per_class: int | None = None,
    classes: int | None = None,
) -> Dataset:
    """Opens a data set; its pictures are read when a split is asked for.

    Args:
        name: `Planted`, `Counting`, `CIFAR10`, `CIFAR10_QA`, `MNIST`, `FashionMNIST`, `ImageNet`, `ImageFolder`, `Arrays`, `Wsol`, `Prepared`,
            `OxfordPets`, `Coco`, or the dotted path of a class of the user's own (`CustomSource` says what is asked of it).
        dataset_dir: where the files are; generated data need none and read none.
        split_ratio: share of each class's training pictures, the first in the order of the file, that is trained on; the
            rest validates.
        seed: root seed, for what is generated and what is drawn.
        options: further options of the data set.
        examples_per_class: cut the training split to so many pictures of each class; None: all.
        classes: cut the training split to so many classes; None: all.

    Raises:
        DataError: unknown name, or files that are missing and cannot be downloaded.
        PluginError: an option that the data set does not have.
        InputError: an option's value is out of range.

    >>> data = open_dataset("Planted", None, split_ratio=0.875, seed=0, options={"classes": 4, "train_images": 40})
    >>> data.class_names, data.size, len(data.split("train")), len(data.split("validation"))
    (('horizontal', 'vertical', 'falling', 'rising'), (32, 32), 32, 8)
    """
    source = _source(name, dataset_dir, seed, split_ratio, options)
    return Dataset(name, source, split_ratio, examples_per_class, classes, seed)


def _source(name: str, folder: Path | None, seed: int, split_ratio: float, options: Mapping[str, Any]) -> Source:
    if name in GENERATED:
        make_options, make = GENERATED[name]
        return make(plugins.build(name, make_options, options), seed)
    if name in FILES:
        if folder is None:
            raise DataError(f"{name}: dataset_dir is not set; name the folder or file that holds the data")
        provided = {"seed": seed, "split_ratio": split_ratio}
        try:
            source: Source = plugins.build(name, FILES[name], options, folder, provided=provided)
        except InputError as error:
            raise InputError(f"{name}: {error}") from error
        return source
    if "." in name:
        return CustomSource(name, folder, options)
    raise DataError(
        f"there is no data set {name!r}{nearest(name, [*GENERATED, *FILES])}; or give a dotted path to a class"
    )
