"""Which folders are classes and which files are pictures, among what systems leave in trees of pictures."""

import logging
import os
import shutil

import numpy as np
import pytest
from PIL import Image

from heatproof.datasets import open_dataset, trees
from heatproof.errors import DataError
from tests.datasets.annotated import rectangle

LITTER = ("__MACOSX", "@eaDir", "$RECYCLE.BIN", "lost+found", "#recycle", ".ipynb_checkpoints", ".thumbnails")


@pytest.fixture
def tree(tmp_path):
    """train/ and test/ with two pictures of each of the classes a and b."""
    for part in ("train", "test"):
        for name in "ab":
            for number in range(2):
                rectangle(tmp_path / part / name / f"{number}.png")
    return tmp_path


def opened(root, name="ImageFolder", **options):
    return open_dataset(name, root, split_ratio=0.5, seed=0, options=options)


def files(data):
    return {part: list(data.source.open(part).files) for part in ("train", "test")}


@pytest.mark.parametrize("litter", LITTER)
@pytest.mark.parametrize("full", [False, True])
def test_folders_of_systems_are_no_classes_and_hold_no_pictures(tree, caplog, litter, full):
    before = files(opened(tree))
    for folder in (tree / "train", tree / "test", tree / "train" / "a", tree / "test" / "b"):
        (folder / litter).mkdir()
        if full:
            rectangle(folder / litter / "a_copy.png")
    caplog.set_level(logging.INFO)
    data = opened(tree)
    assert data.class_names == ("a", "b")
    assert files(data) == before
    assert f"train: left out: 1 hidden or system entries ({litter})" in caplog.text
    assert f"test: left out: 1 hidden or system entries (b/{litter})" in caplog.text


def test_a_folder_without_pictures_is_no_class_unless_another_part_has_some(tree, caplog):
    for name in ("aa", "c"):
        (tree / "train" / name).mkdir()
        (tree / "train" / name / "notes.txt").write_text("none")
    rectangle(tree / "test" / "c" / "0.png")
    caplog.set_level(logging.INFO)
    data = opened(tree)
    assert data.class_names == ("a", "b", "c")
    assert data.split("test").labels.tolist() == [0, 0, 1, 1, 2]
    assert "train: left out: 1 folders without pictures (aa)" in caplog.text
    data.source.open("train")
    assert "train: has no pictures of 1 of the 3 classes, such as 'c'" in caplog.text


def test_files_that_are_no_pictures_are_left_out_and_counted(tree, caplog):
    before = files(opened(tree))
    folder = tree / "test" / "a"
    for name in ("Thumbs.db", ".DS_Store", "._0.png", "0", "0.heic", "b.xml"):
        (folder / name).write_bytes(b"\0\5\x16\7")
    (folder / "old.jpg").mkdir()
    os.mkfifo(folder / "pipe.png")
    shutil.copy(folder / "0.png", folder / "2.PNG")
    caplog.set_level(logging.INFO)
    found = files(opened(tree))
    assert found["test"] == ["a/0.png", "a/1.png", "a/2.PNG", *before["test"][2:]]
    assert "3 hidden or system entries (a/.DS_Store, a/._0.png, a/Thumbs.db)" in caplog.text
    assert "3 entries without the ending of a picture (a/0, a/0.heic, a/b.xml)" in caplog.text
    assert "1 folders and devices with the ending of a picture (a/pipe.png)" in caplog.text
    assert [path.name for path in trees.pictures_in(folder)] == ["0.png", "1.png", "2.PNG"]


@pytest.mark.parametrize("target", [".", "..", "../..", "../../train/a"])
def test_links_that_lead_up_are_left_out(tree, caplog, target):
    before = files(opened(tree))
    (tree / "train" / "a" / "up").symlink_to(target)
    (tree / "train" / "up").symlink_to("..")
    caplog.set_level(logging.INFO)
    data = opened(tree)
    assert data.class_names == ("a", "b")
    assert files(data) == before
    assert "train: left out: 1 links that lead up (a/up)" in caplog.text


def test_links_in_a_circle_end_and_other_links_are_followed(tree, tmp_path_factory):
    (tree / "train" / "a" / "x").symlink_to("../b")
    (tree / "train" / "b" / "y").symlink_to("../a")
    (tree / "train" / "self").symlink_to("self")
    elsewhere = tmp_path_factory.mktemp("disk")
    rectangle(elsewhere / "c" / "0.png")
    (elsewhere / "c" / "back").symlink_to(tree / "train")
    (tree / "train" / "c").symlink_to(elsewhere / "c")
    data = opened(tree)
    assert data.class_names == ("a", "b", "c")
    own = [f"a/{path}" for path in ("0.png", "1.png", "x/0.png", "x/1.png")]
    assert [file for file in files(data)["train"] if file[0] == "a"] == own
    assert [file for file in files(data)["train"] if file[0] == "c"] == ["c/0.png"]
    (tree / "train" / "a" / "self.png").symlink_to("self.png")
    with pytest.raises(DataError, match=r"self\.png: cannot be read"):
        opened(tree).split("train")


def test_a_class_whose_link_leads_nowhere_is_named(tree):
    (tree / "train" / "c").symlink_to("unmounted/c")
    with pytest.raises(DataError, match=r"train/c: cannot be read: No such file"):
        opened(tree)


@pytest.mark.parametrize(("one", "other"), [("\u00e9", "e\u0301"), ("Cat", "cat"), ("cat", "cat ")])
def test_one_class_in_two_spellings_is_no_two_classes(tree, one, other):
    rectangle(tree / "train" / one / "0.png")
    rectangle(tree / "test" / other / "0.png")
    with pytest.raises(DataError, match="are one class in two spellings, each in another of"):
        opened(tree)
    rectangle(tree / "train" / other / "0.png")  # letters, for instance, are classes in either case
    assert {one, other} <= set(opened(tree).class_names)


def test_imagenet_takes_no_offence_at_folders_without_pictures(tmp_path):
    rectangle(tmp_path / "val" / "n01440764" / "0.JPEG")
    (tmp_path / "val" / "empty").mkdir()
    (tmp_path / "val" / "@eaDir" / "0.JPEG").mkdir(parents=True)
    assert len(opened(tmp_path, "ImageNet").split("test")) == 1


def test_without_training_pictures_the_error_says_what_else_helps(tmp_path):
    rectangle(tmp_path / "test" / "a" / "0.png")
    with pytest.raises(DataError, match=r"train: no such folder; put the train .*, or set .*model\.normalization"):
        opened(tmp_path).split("train")


def test_a_class_without_a_picture_to_train_on_is_logged(tree, caplog):
    opened(tree).split("train")
    assert not caplog.text
    (tree / "train" / "b" / "1.png").unlink()
    np.testing.assert_array_equal(opened(tree).split("train").labels, [0])
    assert "split_ratio 0.5 leaves no picture to train on of 1 classes, such as 'b', which has 1 in all" in caplog.text


def test_a_test_part_of_one_class_is_logged(tree, caplog):
    shutil.rmtree(tree / "test" / "b")
    caplog.set_level(logging.INFO)
    opened(tree).split("test")
    assert "all 2 test pictures are of class 'a'" in caplog.text


def test_the_first_picture_of_several_is_taken_and_that_is_logged(tree, caplog):
    first, second = Image.new("RGB", (120, 90), (250, 0, 0)), Image.new("RGB", (120, 90), (0, 0, 250))
    for name in ("2.gif", "3.tif"):
        first.save(tree / "test" / "a" / name, save_all=True, append_images=[second])
    caplog.set_level(logging.INFO)
    pixels = opened(tree).split("test").pixels([2, 3])
    np.testing.assert_allclose(pixels[:, :, 0, 0], [[250, 0, 0]] * 2, atol=6)
    for name in ("2.gif", "3.tif"):
        assert f"{name}: holds several pictures; the first one is taken" in caplog.text
