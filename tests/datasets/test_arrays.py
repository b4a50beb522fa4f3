"""Array files: what is read, and how bad ones are refused."""

import numpy as np
import pytest
import torch

from heatproof.datasets import open_dataset
from heatproof.errors import DataError


def content(**changes):
    rng = np.random.default_rng(0)
    good = {
        "train_images": rng.integers(0, 256, size=(8, 5, 6, 3), dtype=np.uint8),
        "train_labels": np.arange(8) % 2,
        "test_images": rng.integers(0, 256, size=(4, 5, 6, 3), dtype=np.uint8),
        "test_labels": np.arange(4, dtype=np.uint8) % 2,
        "class_names": np.array(["cat", "dog"]),
        "train_names": np.array(["never read"]),
    }
    return {key: value for key, value in {**good, **changes}.items() if value is not None}


def opened(path):
    return open_dataset("Arrays", path, split_ratio=0.5, seed=0, options={})


@pytest.fixture
def saved(tmp_path):
    def save(**changes):
        np.savez_compressed(tmp_path / "data.npz", **content(**changes))
        return tmp_path / "data.npz"

    return save


def test_pictures_labels_and_names_are_those_of_the_file(saved):
    data = opened(saved())
    assert (data.class_names, data.size, data.channels) == (("cat", "dog"), (5, 6), 3)
    test = data.split("test")
    np.testing.assert_array_equal(test.pixels([3, 1]).permute(0, 2, 3, 1), content()["test_images"][[3, 1]])
    np.testing.assert_array_equal(test.labels, [0, 1, 0, 1])
    assert test.labels.dtype == np.int64
    assert test.pixels([0]).dtype == torch.uint8
    np.testing.assert_array_equal(data.split("train").rows, [0, 1, 2, 3])


@pytest.mark.parametrize("shape", [(5, 6), (5, 6, 1)])
def test_grey_pictures_have_one_channel(saved, shape):
    images = np.arange(240, dtype=np.uint8).reshape(8, *shape)
    data = opened(saved(train_images=images, test_images=None, test_labels=None))
    assert data.channels == 1
    np.testing.assert_array_equal(data.split("train").pixels([2])[0, 0], images[2].reshape(5, 6))


def test_a_folder_with_one_file_will_do(saved, tmp_path):
    path = saved()
    (tmp_path / "._data.npz").write_bytes(b"\0\5\x16\7")  # a Mac's
    assert opened(path.parent).fingerprint == opened(path).fingerprint
    np.savez(tmp_path / "other.npz", **content())
    with pytest.raises(DataError, match=r"wants one \.npz file in this folder, found data\.npz, other\.npz"):
        opened(tmp_path)


def test_the_fingerprint_is_that_of_the_content(saved):
    first = opened(saved()).split("test").fingerprint
    changed = content()["test_images"]
    changed[0, 0, 0, 0] ^= 1
    assert opened(saved(test_images=changed)).split("test").fingerprint != first
    assert opened(saved()).split("test").fingerprint == first


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"test_labels": None}, "test_labels is missing; its keys: class_names, test_images, train_images"),
        ({"test_images": np.zeros((4, 5, 6, 3))}, "test_images: float64 of shape .* expected uint8"),
        ({"test_images": np.zeros((4, 3, 5, 6), np.uint8)}, r"test_images: uint8 of shape \(4, 3, 5, 6\)"),
        ({"test_images": np.zeros((4, 7, 6, 3), np.uint8)}, r"test_images: pictures of shape \(7, 6, 3\), others of"),
        ({"test_labels": np.zeros(3, int)}, r"test_labels: int64 of shape \(3,\); expected integers of shape \(4,\)"),
        ({"test_labels": np.zeros(4)}, "test_labels: float64"),
        ({"test_labels": np.array([0, 1, 2, 0])}, r"test_labels\[2\]: 2 names none of the 2 class_names \(0 to 1\)"),
        ({"test_labels": np.array([0, -1, 1, 0])}, r"test_labels\[1\]: -1 names none"),
        ({"class_names": np.array([1, 2])}, "class_names: int64 .* expected a one-dimensional array of strings"),
        ({"test_labels": np.array([0, 1, {}, 0])}, "test_labels holds Python objects, which are never unpickled"),
    ],
)
def test_bad_content_is_named(saved, changes, message):
    path = saved(**changes)
    with pytest.raises(DataError, match=message) as error:
        opened(path).split("test")
    assert str(error.value).startswith(f"{path}: ")
    assert "\n" not in str(error.value)


def test_a_file_without_pictures_is_named(saved):
    with pytest.raises(DataError, match="has neither train_images nor test_images; its keys: class_names, test_labels"):
        _ = opened(saved(train_images=None, test_images=None)).size


def test_damaged_and_missing_files_are_named(saved, tmp_path):
    path = saved()
    path.write_bytes(path.read_bytes()[:-400])
    with pytest.raises(DataError, match=r"data\.npz: cannot be read as an \.npz file"):
        opened(path).split("test")
    with pytest.raises(DataError, match=r"absent\.npz: no such file; Arrays reads an \.npz file"):
        opened(tmp_path / "absent.npz")


def test_a_flipped_bit_is_found(saved):
    path = saved()
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 3] ^= 64
    path.write_bytes(raw)
    with pytest.raises(DataError, match="cannot be read"):
        [opened(path).split(name) for name in ("train", "test")]


def test_the_shared_subset_is_read(shared_data):
    data = opened(shared_data / "cifar10")
    assert (len(data.split("train")), len(data.split("validation")), len(data.split("test"))) == (4000, 4000, 2000)
    assert data.class_names[:2] == ("airplane", "automobile")
