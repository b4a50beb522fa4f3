"""CIFAR-10 and the MNISTs from torchvision's files, without a network."""

import gzip
import hashlib
import pickle
import urllib.request
from urllib.error import URLError

import numpy as np
import pytest
import torchvision
from PIL import Image

from heatproof.datasets import open_dataset
from heatproof.errors import DataError, PluginError


def opened(name, path, **options):
    return open_dataset(name, path, split_ratio=0.5, seed=0, options=options)


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*_, **__):
        raise URLError("Name or service not known")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)


def write_idx(path, array, compressed=False):
    path.parent.mkdir(parents=True, exist_ok=True)
    raw = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape) + array.tobytes()
    path.write_bytes(gzip.compress(raw) if compressed else raw)


def mnist(folder, suffix=""):
    rng = np.random.default_rng(0)
    arrays = {}
    for prefix, count in (("train", 40), ("t10k", 20)):
        arrays[prefix] = rng.integers(0, 256, (count, 28, 28), np.uint8), np.arange(count, dtype=np.uint8) % 10
        write_idx(folder / f"{prefix}-images-idx3-ubyte{suffix}", arrays[prefix][0], bool(suffix))
        write_idx(folder / f"{prefix}-labels-idx1-ubyte{suffix}", arrays[prefix][1], bool(suffix))
    return arrays


@pytest.mark.parametrize(("below", "suffix"), [("MNIST/raw", ""), ("raw", ""), ("", ".gz")])
def test_mnist_is_read_from_where_torchvision_puts_it_and_from_plain_folders(tmp_path, below, suffix):
    arrays = mnist(tmp_path / below, suffix)
    data = opened("MNIST", tmp_path)
    assert (data.size, data.channels, data.class_names[3]) == ((28, 28), 1, "3")
    test = data.split("test")
    np.testing.assert_array_equal(test.pixels(range(20))[:, 0], arrays["t10k"][0])
    np.testing.assert_array_equal(test.labels, arrays["t10k"][1])
    assert len(data.split("train")) == 20
    assert len(data.fingerprint) == 64


def test_the_two_mnists_have_their_own_classes_and_fingerprints(tmp_path):
    mnist(tmp_path)
    digits, clothes = (opened(name, tmp_path) for name in ("MNIST", "FashionMNIST"))
    assert clothes.class_names[9] == "Ankle boot"
    assert digits.split("test").fingerprint != clothes.split("test").fingerprint


def test_pictures_are_scaled_to_the_size_that_is_asked_for(tmp_path):
    arrays = mnist(tmp_path)
    plain, large = (opened("MNIST", tmp_path, size=size) for size in (None, 112))
    assert (large.size, large.channels, large.split("test").nbytes) == ((112, 112), 1, 20 * 112**2)
    rows = np.array([4, 0])
    pixels = large.split("test").pixels(rows)
    for row, scaled in zip(rows, pixels, strict=True):
        expected = Image.fromarray(arrays["t10k"][0][row]).resize((112, 112), Image.Resampling.BILINEAR)
        np.testing.assert_array_equal(scaled, np.asarray(expected)[None])
    np.testing.assert_array_equal(large.split("train").labels, plain.split("train").labels)
    assert plain.fingerprint == opened("MNIST", tmp_path).fingerprint != large.fingerprint
    assert plain.split("test").fingerprint != large.split("test").fingerprint
    with pytest.raises(PluginError, match="MNIST: option 'size': 'large' should be a whole number or null"):
        opened("MNIST", tmp_path, size="large")


def test_mnist_that_is_damaged_is_named(tmp_path):
    mnist(tmp_path)
    path = tmp_path / "t10k-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(
        DataError, match=r"t10k-images-idx3-ubyte: is damaged \(it should hold 15680 values and holds 15679"
    ):
        opened("MNIST", tmp_path).split("test")
    path.write_bytes(b"<html>")
    with pytest.raises(DataError, match="does not begin as an IDX file"):
        opened("MNIST", tmp_path).split("test")
    mnist(tmp_path)
    write_idx(tmp_path / "t10k-labels-idx1-ubyte", np.zeros(19, np.uint8))
    with pytest.raises(DataError, match="19 labels"):
        opened("MNIST", tmp_path).split("test")
    write_idx(tmp_path / "t10k-labels-idx1-ubyte", np.full(20, 10, np.uint8))
    with pytest.raises(DataError, match="label 10 is none of the ten classes"):
        opened("MNIST", tmp_path).split("test")


@pytest.mark.parametrize("name", ["CIFAR10", "MNIST", "FashionMNIST"])
def test_missing_data_without_a_network_is_one_line(tmp_path, name, capsys):
    with pytest.raises(DataError, match=r"is missing, and .* could not be downloaded") as error:
        opened(name, tmp_path / "nowhere")
    assert "\n" not in str(error.value)
    assert str(tmp_path / "nowhere") in str(error.value)
    assert "get it from http" in str(error.value)


def cifar10(folder, monkeypatch):
    """Six pictures in each of torchvision's files, with MD5 sums to match."""
    folder.mkdir(parents=True)
    library = torchvision.datasets.CIFAR10
    sums = {}
    rng = np.random.default_rng(0)
    pictures = {}
    for name in [file for file, _ in library.train_list + library.test_list]:
        pictures[name] = rng.integers(0, 256, (6, 3 * 32 * 32), np.uint8)
        (folder / name).write_bytes(pickle.dumps({"data": pictures[name], "labels": [0, 1, 2, 3, 4, 9]}))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": ["airplane"] * 10}))
    for path in folder.iterdir():
        sums[path.name] = hashlib.md5(path.read_bytes()).hexdigest()
    monkeypatch.setattr(library, "train_list", [[name, sums[name]] for name, _ in library.train_list])
    monkeypatch.setattr(library, "test_list", [[name, sums[name]] for name, _ in library.test_list])
    monkeypatch.setattr(library, "meta", {**library.meta, "md5": sums["batches.meta"]})
    return pictures


@pytest.mark.parametrize("inner", ["", "cifar-10-batches-py"])
def test_cifar10_is_read_from_torchvisions_files(tmp_path, monkeypatch, inner):
    pictures = cifar10(tmp_path / "cifar-10-batches-py", monkeypatch)
    data = opened("CIFAR10", tmp_path / inner)
    test = data.split("test")
    np.testing.assert_array_equal(test.pixels(range(6)).flatten(1), pictures["test_batch"])
    np.testing.assert_array_equal(test.labels, [0, 1, 2, 3, 4, 9])
    assert (len(data.split("train")), len(data.split("validation"))) == (12, 18)  # int(0.5 * 5) of each class
    assert data.class_names[9] == "truck"


def test_cifar10_with_a_changed_byte_is_refused(tmp_path, monkeypatch):
    folder = tmp_path / "cifar-10-batches-py"
    cifar10(folder, monkeypatch)
    raw = bytearray((folder / "data_batch_3").read_bytes())
    raw[2000] ^= 1
    (folder / "data_batch_3").write_bytes(raw)
    with pytest.raises(DataError, match="cifar-10-batches-py: a file is missing or damaged"):
        opened("CIFAR10", tmp_path).split("train")


def test_the_shared_mnist_is_the_published_one(shared_data):
    data = opened("MNIST", shared_data / "mnist")
    assert len(data.split("test")) == 10000
    raw = b"".join(chunk.numpy().tobytes() for chunk in data.split("test").pixels(range(10000)).split(1000))
    header = bytes([0, 0, 8, 3]) + b"".join(n.to_bytes(4, "big") for n in (10000, 28, 28))
    assert hashlib.md5(header + raw).hexdigest() == "2646ac647ad5339dbf082846283269ea"
