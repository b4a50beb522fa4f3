"""Pictures in folders: order, modes, framing, and the names of the ones that cannot be read."""

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.models import ResNet50_Weights
from torchvision.transforms import CenterCrop, Compose, Resize

from heatproof import threads
from heatproof.datasets import open_dataset
from heatproof.datasets.folders import imagenet_wnids
from heatproof.datasets.pictures import Framing
from heatproof.errors import DataError, InputError, PluginError


def picture(size=(8, 6), seed=0, mode="RGB"):
    width, height = size
    values = np.random.default_rng(seed).integers(0, 256, size=(height, width, 3), dtype=np.uint8)
    return Image.fromarray(values).convert(mode)


def opened(path, name="ImageFolder", **options):
    return open_dataset(name, path, split_ratio=0.5, seed=0, options=options)


def tree(root, *paths, size=(8, 6)):
    for seed, path in enumerate(paths):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        picture(size, seed).save(root / path)
    return root


def test_classes_are_those_of_all_parts_and_files_are_in_order(tmp_path):
    tree(
        tmp_path, "train/b/2.png", "train/b/10.png", "train/a/x/1.png", "train/a/0.PNG", "test/c/0.png", "test/a/0.png"
    )
    (tmp_path / "train/b/notes.txt").write_text("no picture")
    (tmp_path / "train/b/._2.png").write_bytes(b"resource fork")
    data = opened(tmp_path)
    assert data.class_names == ("a", "b", "c")
    assert data.size == (6, 8)
    train = data.split("train").samples
    assert list(train.files) == ["a/0.PNG", "a/x/1.png", "b/10.png", "b/2.png"]
    np.testing.assert_array_equal(train.labels, [0, 0, 1, 1])
    np.testing.assert_array_equal(data.split("test").labels, [0, 2])
    np.testing.assert_array_equal(data.split("test").pixels([1])[0].permute(1, 2, 0), np.asarray(picture(seed=4)))


def test_val_stands_in_for_test_and_a_missing_part_matters_only_when_asked_for(tmp_path):
    data = opened(tree(tmp_path, "val/a/0.png"))
    assert len(data.split("test")) == 1
    assert len(data.fingerprint) == 64
    assert data.splits == ("test",)
    with pytest.raises(DataError, match="train: no such folder; put the train pictures there"):
        data.split("train")


def test_a_truncated_picture_is_named_and_its_neighbours_are_not_touched(tmp_path):
    tree(tmp_path, "test/a/0.jpg", "test/a/1.jpg", "test/a/2.jpg", size=(64, 64))
    broken = tmp_path / "test/a/1.jpg"
    broken.write_bytes(broken.read_bytes()[:-500])
    split = opened(tmp_path).split("test")
    assert split.pixels([0, 2]).shape == (2, 3, 64, 64)
    with pytest.raises(DataError, match=r"test/a/1\.jpg: image 1 cannot be read: .*truncated") as error:
        split.pixels([0, 1, 2])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", [b"", b"not a picture", b"\x89PNG\r\n\x1a\n" + bytes(40), b"GIF89a", b"BM"])
def test_what_is_no_picture_is_named(tmp_path, content):
    tree(tmp_path, "test/a/0.png", "test/a/1.png")
    (tmp_path / "test/a/1.png").write_bytes(content)
    with pytest.raises(DataError, match=r"1\.png: image 1 cannot be read"):
        opened(tmp_path).split("test").pixels([1])


def test_a_picture_that_went_away_is_named(tmp_path):
    split = opened(tree(tmp_path, "test/a/0.png", "test/a/1.png")).split("test")
    (tmp_path / "test/a/1.png").unlink()
    with pytest.raises(DataError, match=r"1\.png: image 1 cannot be read"):
        split.pixels([1])


def test_decoding_in_threads_keeps_the_order(tmp_path, monkeypatch):
    split = opened(tree(tmp_path, *(f"test/a/{i}.png" for i in range(9)))).split("test")
    one_by_one = torch.cat([split.pixels([i]) for i in range(9)])
    for workers in (1, 4):
        monkeypatch.setattr(threads, "limit", lambda workers=workers: workers)
        torch.testing.assert_close(split.pixels(range(9)), one_by_one, rtol=0, atol=0)
    assert split.pixels([]).shape == (0, 3, 6, 8)


def test_a_picture_of_another_size_is_named_with_the_options_that_help(tmp_path):
    tree(tmp_path, "test/a/0.png", "test/a/1.png")
    picture((9, 6)).save(tmp_path / "test/a/2.png")
    with pytest.raises(
        DataError, match=r"2\.png: image 2 is 9 x 6 pixels, the first one 8 x 6; set the options resize"
    ):
        opened(tmp_path).split("test").pixels([0, 1, 2])
    split = opened(tmp_path, resize=6, crop=6).split("test")
    assert split.pixels([0, 1, 2]).shape == (3, 3, 6, 6)


@pytest.mark.parametrize("mode", ["L", "1", "P", "RGBA", "LA", "CMYK", "YCbCr"])
def test_every_mode_becomes_rgb(tmp_path, mode):
    suffix = "tif" if mode in ("CMYK", "YCbCr") else "png"
    path = tmp_path / f"test/a/0.{suffix}"
    path.parent.mkdir(parents=True)
    flat = Image.new("RGB", (8, 6), (200, 200, 200)).convert(mode, palette=Image.Palette.ADAPTIVE)
    flat.save(path)
    pixels = opened(tmp_path).split("test").pixels([0])
    expected = 255 if mode == "1" else 200
    assert pixels.shape == (1, 3, 6, 8)
    if mode != "1":  # a black and white picture dithers
        assert (pixels.int() - expected).abs().max() <= 2


def test_transparent_palettes_and_16_bits_are_read(tmp_path):
    (tmp_path / "test/a").mkdir(parents=True)
    palette = Image.new("RGB", (8, 6), (10, 200, 30)).convert("P", palette=Image.Palette.ADAPTIVE)
    palette.save(tmp_path / "test/a/0.png", transparency=bytes([128] * 3))
    Image.fromarray(np.full((6, 8), 200 * 256 + 77, dtype=np.uint16)).save(tmp_path / "test/a/1.png")
    Image.fromarray(np.full((6, 8), 0.5, dtype=np.float32)).save(tmp_path / "test/a/2.tif")
    split = opened(tmp_path).split("test")
    pixels = split.pixels([0, 1])
    assert pixels[0, :, 0, 0].tolist() == [10, 200, 30]
    assert (pixels[1] == 200).all()
    with pytest.raises(DataError, match=r"2\.tif: image 2 cannot be read: mode F"):
        split.pixels([2])


@pytest.mark.parametrize("size", [(500, 375), (375, 500), (224, 224), (90, 301), (257, 256), (1000, 30)])
@pytest.mark.parametrize(("resize", "crop"), [(256, 224), (64, 64), (50, 91), (None, 225)])
def test_framing_is_that_of_torchvision(size, resize, crop):
    image = picture(size)
    steps = [] if resize is None else [Resize(resize)]
    expected = Compose([*steps, CenterCrop(crop)])(image)
    np.testing.assert_array_equal(np.asarray(Framing(resize, crop)(image)), np.asarray(expected))


def test_the_fingerprint_covers_paths_sizes_and_options(tmp_path):
    tree(tmp_path, "test/a/0.png", "test/b/1.png")
    first = opened(tmp_path).split("test").fingerprint
    assert opened(tmp_path, crop=4).split("test").fingerprint != first
    picture(seed=99).save(tmp_path / "test/a/9.png")
    second = opened(tmp_path).split("test").fingerprint
    (tmp_path / "test/a/9.png").rename(tmp_path / "test/b/9.png")
    assert len({first, second, opened(tmp_path).split("test").fingerprint}) == 3
    (tmp_path / "test/b/9.png").unlink()
    assert opened(tmp_path).split("test").fingerprint == first


def test_wrong_roots_and_options_are_named(tmp_path):
    with pytest.raises(DataError, match="has no folder train, test or val"):
        opened(tmp_path)
    (tmp_path / "test/a").mkdir(parents=True)
    with pytest.raises(DataError, match="test: holds no pictures"):
        opened(tmp_path).split("test")
    with pytest.raises(InputError, match="ImageFolder: crop: 0 must be a number of pixels above 0"):
        opened(tmp_path, crop=0)
    with pytest.raises(PluginError, match="unknown option 'croop'; did you mean 'crop'"):
        opened(tmp_path, croop=3)


def test_a_link_that_leads_nowhere_is_named(tmp_path):
    tree(tmp_path, "test/a/0.png")
    (tmp_path / "test/a/1.png").symlink_to(tmp_path / "gone.png")
    with pytest.raises(DataError, match=r"1\.png: cannot be read"):
        opened(tmp_path).split("test")


def test_imagenet_labels_are_those_of_the_1000_classes_even_in_a_part_of_it(tmp_path):
    tree(tmp_path, "val/n02124075/ILSVRC2012_val_1.JPEG", "val/n01440764/ILSVRC2012_val_2.JPEG", size=(300, 400))
    data = opened(tmp_path, "ImageNet")
    assert data.size == (224, 224)
    assert len(data.class_names) == 1000
    test = data.split("test")
    np.testing.assert_array_equal(test.labels, [0, 285])
    assert [data.class_names[label] for label in test.labels] == ["tench", "Egyptian cat"]
    preset = ResNet50_Weights.IMAGENET1K_V1.transforms()
    with Image.open(tmp_path / "val/n01440764/ILSVRC2012_val_2.JPEG") as image:
        expected = preset(image)
    mean, std = (torch.tensor(values)[:, None, None] for values in (preset.mean, preset.std))
    torch.testing.assert_close((test.pixels([0])[0] / 255 - mean) / std, expected)
    with pytest.raises(DataError, match="train: no such folder"):
        data.split("train")


def test_imagenet_that_is_missing_or_strange_is_named(tmp_path):
    with pytest.raises(
        DataError, match=r"val: no such folder; get ILSVRC2012_img_val\.tar from https://image-net\.org"
    ):
        opened(tmp_path, "ImageNet")
    tree(tmp_path, "val/cats/0.JPEG")
    with pytest.raises(DataError, match="val/cats: is not one of ImageNet's 1000 classes"):
        opened(tmp_path, "ImageNet")


def test_the_wordnet_ids_are_sorted_and_agree_with_the_shared_list(shared_data):
    lines = (shared_data / "weights" / "imagenet_class_names.txt").read_text().splitlines()
    assert [line.split()[0] for line in lines] == list(imagenet_wnids()) == sorted(imagenet_wnids())
