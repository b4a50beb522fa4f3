"""prepare-data: the published lists, few-shot lists, what the data set reads from them, and trees that are refused."""

import csv
import json
import logging
import os
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from heatproof.datasets import open_dataset, preparation
from heatproof.datasets.preparation import Listing
from heatproof.errors import DataError, InputError
from heatproof.stages import prepare
from heatproof.stages.prepare import Request
from tests.datasets.annotated import rectangle, voc_xml, white
from tests.end_to_end.conftest import heatproof

GOLDEN = Path(__file__).parents[1] / "golden" / "casme" / "preproc.json"


@pytest.fixture(scope="module")
def golden(tmp_path_factory):
    """What the published code made of a small tree, and the tree."""
    expected, root = json.loads(GOLDEN.read_text()), tmp_path_factory.mktemp("tree")
    for name in (*expected["files"], *expected["annotations"]):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(expected["annotations"].get(name, ""))
    return expected, root


def published(golden, **changes):
    """The published request, and how its labels were drawn."""
    expected, root = golden
    request = Request(
        root / "train",
        root / "val",
        root / "lists",
        val_annotations=root / "vann",
        train_annotations=root / "ext",
        per_class=expected["num_per_class_in_train_val"],
        seed=expected["seed"],
        shuffled_classes=1000,
        shuffle_seed=expected["global_numpy_seed_before_run"],
    )
    return replace(request, **changes)


def test_all_lists_are_the_published_ones(golden):
    expected, root = golden
    request = published(golden)
    prepare.run(request)
    written = {path.name: path.read_text() for path in request.out.iterdir()}
    assert written.keys() == expected["outputs"].keys() | {"prepared.json"}
    for name, content in expected["outputs"].items():
        assert json.loads(written[name].replace(str(root), "ROOT")) == content
        if not name.endswith("bboxes.json"):  # there in the order in which the file system lists the XML files
            assert written[name].replace(str(root), "ROOT") == json.dumps(content, indent=2)


def test_without_boxes_the_lists_are_those_of_the_older_published_function(golden):
    expected, root = golden
    contents = prepare.prepared(published(golden, train_annotations=None, val_annotations=None))
    assert contents.keys() == expected["old_function_outputs"].keys() | {"prepared.json"}
    for name, content in expected["old_function_outputs"].items():
        assert json.loads(json.dumps(contents[name]).replace(str(root), "ROOT")) == content


def test_few_shot_lists_are_balanced_and_smaller_ones_are_within_larger_ones(golden):
    whole, two, one = (
        {
            name: [tuple(sample) for sample in content["samples"]]
            for name, content in prepare.prepared(published(golden, examples_per_class=count)).items()
            if "samples" in content
        }
        for count in (None, 2, 1)
    )
    for name in ("train.json", "train_train.json"):
        assert [sorted(Counter(label for _, label in lists[name]).values()) for lists in (two, one)] == [
            [2] * 3,
            [1] * 3,
        ]
        assert set(one[name]) < set(two[name]) < set(whole[name])
        assert two[name] == [sample for sample in whole[name] if sample in two[name]]  # in the same order
    assert [path for path, _ in two["train_shuffle.json"]] == [path for path, _ in two["train.json"]]
    assert two["val.json"] == whole["val.json"]
    assert two["train_val.json"] == whole["train_val.json"]


def test_lists_of_few_classes_keep_the_labels_of_all(golden):
    contents = {count: prepare.prepared(published(golden, classes=count))["train.json"] for count in (1, 2)}
    labels = {count: {label for _, label in content["samples"]} for count, content in contents.items()}
    assert [len(labels[count]) for count in (1, 2)] == [1, 2]
    assert labels[1] < labels[2]
    assert len(contents[1]["classes"]) == 3


def test_shuffled_labels_are_drawn_from_the_classes_and_the_seed(golden):
    drawn = {
        seed: [
            label
            for _, label in prepare.prepared(published(golden, shuffled_classes=None, shuffle_seed=None, seed=seed))[
                "train_shuffle.json"
            ]["samples"]
        ]
        for seed in (1, 2)
    }
    assert set(drawn[1]) == set(drawn[2]) == {0, 1, 2}
    assert drawn[1] != drawn[2]


class Recorded:
    """A generator that leaves the order and notes how many were to be shuffled."""

    def __init__(self):
        self.counts = []

    def shuffle(self, items):
        self.counts.append(len(items))


def test_the_classes_of_train_val_take_turns_by_their_first_picture_annotated_or_not(tmp_path):
    """As published: a class has its turn from its first picture in the list, even where that one has no annotation."""
    order = ["b0", "a0", "a1", "b1", "b2", "c0"]  # without XML file: b0, c0
    for name in ("a0", "a1", "b1", "b2"):
        (tmp_path / name[0]).mkdir(exist_ok=True)
        (tmp_path / name[0] / f"{name}.xml").touch()
    (tmp_path / "a" / "a2.xml").touch()
    listing = Listing(
        tmp_path, tuple((Path(f"{name}.png"), "abc".index(name[0])) for name in [*order, "a2"]), ("a", "b", "c")
    )
    generator = Recorded()
    trained, validated = preparation.parted_by_annotations(listing, tmp_path, 1, generator)
    assert generator.counts == [2, 3, 0, 2, 5]  # b before a
    assert [path.stem for path, _ in validated.samples] == ["b1", "a0"]
    assert [path.stem for path, _ in trained.samples] == ["b0", "c0", "b2", "a1", "a2"]


# --- through the command and the data set


BOX = (30, 20, 75, 60)


@pytest.fixture
def pictures(tmp_path):
    """Pictures of 120 x 90 with a white box that XML files know: three classes, four and two pictures of each."""
    for part, count in (("train", 4), ("val", 2)):
        for name in ("cat", "dog", "eel"):
            for number in range(count):
                rectangle(tmp_path / part / name / f"{name}_{part}{number}.png", box=BOX)
                xml = tmp_path / f"{part}_xml" / name / f"{name}_{part}{number}.xml"
                xml.parent.mkdir(parents=True, exist_ok=True)
                xml.write_text(voc_xml(120, 90, ("mouse", 0, 0, 9, 9), (name, *BOX)))
    return tmp_path


def command(root, *more, annotated=True):
    arguments = ["prepare-data", "--train-path", root / "train", "--val-path", root / "val"]
    arguments += ["--output-base-path", root / "lists", "--size", "64", "--num-per-class-in-train-val", "1"]
    if annotated:
        arguments += ["--val-annotation-path", root / "val_xml", "--extended-annot-base-path", root / "train_xml"]
    return heatproof(*arguments, *more)


def opened(root, **options):
    return open_dataset("Prepared", root / "lists", split_ratio=0.7, seed=0, options={"size": 64, **options})


@pytest.mark.parametrize("squash", [False, True])
def test_the_data_set_reads_what_the_command_left(pictures, squash):
    assert command(pictures, *(["--break-ratio"] if squash else [])) == 0
    data = opened(pictures, squash=squash)
    assert (data.class_names, data.size, len(data.split("test"))) == (("cat", "dog", "eel"), (64, 64), 6)
    split = data.split("test")
    for index in range(6):
        ((x0, y0, x1, y1),) = split.boxes([index])[0]
        rows, columns = white(split, index).nonzero()
        shown = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
        assert abs(np.clip([x0, y0, x1, y1], 0, 64) - shown).max() <= 1
    assert data.split("train").boxes([0]) is None
    np.testing.assert_array_equal(np.bincount(data.split("train").labels), 2)
    validated = opened(pictures, squash=squash, train="train_train.json", test="train_val.json")
    assert len(validated.split("test")) == 3
    assert all(len(boxes) == 1 for boxes in validated.split("test").boxes(range(3)))
    assert len({part.fingerprint for part in (data.split("test"), validated.split("test"), data.split("train"))}) == 3


def test_a_plain_tree_needs_no_annotations(pictures):
    assert command(pictures, "--examples-per-class", "2", annotated=False) == 0
    names = {path.name for path in (pictures / "lists").iterdir()}
    assert names == {
        f"{name}.json" for name in ("train", "train_train", "train_val", "train_shuffle", "val", "prepared")
    }
    data = opened(pictures)
    assert len(data.split("train")) + len(data.split("validation")) == 6
    assert data.split("test").regions([0]) is None
    np.testing.assert_array_equal(opened(pictures, train="train_shuffle.json").split("train").labels < 3, True)


def test_names_that_are_no_text_are_read_all_the_same(pictures):
    first = pictures / "train" / "cat" / "cat_train0.png"
    first.rename(first.with_name(os.fsdecode(b"\xff.png")))
    assert command(pictures, annotated=False) == 0
    assert len(opened(pictures).source.open("train").labels) == 12


def test_what_is_no_picture_and_no_class_is_left_out(pictures, caplog):
    assert command(pictures) == 0
    lists = {path.name: path.read_text() for path in (pictures / "lists").iterdir()}
    for folder in (pictures / "train", pictures / "val", pictures / "val" / "cat"):
        rectangle(folder / "@eaDir" / "x.png")
        (folder / "empty").mkdir()
        (folder / "up").symlink_to("..")
    (pictures / "val" / "cat" / "._cat_val0.png").write_bytes(b"\0\5")
    with caplog.at_level(logging.INFO):
        assert command(pictures) == 0
    assert {path.name: path.read_text() for path in (pictures / "lists").iterdir()} == lists
    assert (
        "val: left out: 1 hidden or system entries (@eaDir); 1 links that lead up (up); 1 folders without"
        in caplog.text
    )
    # An empty folder of a class of the training pictures stays a class.
    shutil.rmtree(pictures / "val" / "cat")
    (pictures / "val" / "cat").mkdir()
    assert command(pictures) == 0
    assert json.loads((pictures / "lists" / "val.json").read_text())["classes"] == ["cat", "dog", "eel"]


def test_published_lists_name_boxes_up_to_the_first_dot(pictures):
    assert command(pictures) == 0
    (pictures / "val" / "cat" / "cat_val0.png").rename(pictures / "val" / "cat" / "cat_val0.b.png")
    path = pictures / "lists" / "val.json"
    path.write_text(path.read_text().replace("cat_val0.png", "cat_val0.b.png"))
    assert len(opened(pictures).split("test").boxes([0])[0]) == 1
    (pictures / "val" / "cat" / "cat_val1.png").rename(pictures / "val" / "cat" / "cat_val0.c.png")
    path.write_text(path.read_text().replace("cat_val1.png", "cat_val0.c.png"))
    with pytest.raises(DataError, match=r"val_bboxes\.json: .*: cat_val0 stands in .* already"):
        opened(pictures).split("test")


def test_sizes_that_contradict_a_picture_leave_one_line(pictures, capsys):
    xml = pictures / "val_xml" / "cat" / "cat_val0.xml"
    xml.write_text(voc_xml(90, 120, ("cat", *BOX)))
    assert command(pictures) == 2
    assert "cat_val0.png: the picture is 120 x 90 pixels, and 90 x 120 in " in capsys.readouterr().err
    assert not (pictures / "lists").exists()


def test_lists_of_another_request_do_not_stay_behind(pictures):
    assert command(pictures) == 0
    assert command(pictures, annotated=False) == 0
    assert not list((pictures / "lists").glob("*bboxes*"))
    assert opened(pictures).split("test").boxes([0]) is None


def test_a_classifier_is_trained_on_the_lists_and_its_maps_are_localised(pictures):
    assert command(pictures, "--size", "32") == 0
    arch = "arch: heatproof.models.resnet_cifar.NarrowResNet8"
    path = pictures / "prepared.yml"
    path.write_text(f"""
outdir: {pictures / "out"}
device: cpu
data: {{dataset: Prepared, dataset_dir: {pictures / "lists"}, split_ratio: 0.7, options: {{size: 32}}}}
train_cls: {{model: {{{arch}}}, nb_epochs: 1, batch_size: 4}}
extract_cams:
    model: {{{arch}, pretrained_weights: '{pictures / "out" / "train_cls" / "best_model.pth"}'}}
    controls: [random, oracle]
    attribution_methods: [{{name: gradient, method: heatproof.methods.gradient.Gradient}}]
localise: {{tolerance: 1}}
""")
    for stage in ("train-cls", "localise"):
        assert heatproof(stage, "--config", path) == 0
    with (pictures / "out" / "localise" / "results.csv").open(newline="") as file:
        scores = {(line["method"], line["score"]): line for line in csv.DictReader(file)}
    assert float(scores["oracle", "pointing"]["mean"]) == 1.0
    assert int(scores["gradient", "pointing"]["n"]) == 6


def test_small_classes_are_not_parted(pictures, caplog):
    with caplog.at_level(logging.INFO):
        assert command(pictures, "--num-per-class-in-train-val", "4", annotated=False) == 0
    assert not (pictures / "lists" / "train_train.json").exists()
    assert "cat: has 4 pictures, no more than train_val.json would take: the training list is not parted" in caplog.text


def test_nothing_is_written_twice_and_nothing_by_a_dry_run(pictures, caplog):
    with caplog.at_level(logging.INFO):
        assert command(pictures, "--dry-run") == 0
    assert not (pictures / "lists").exists()
    assert "train.json: to be written, 12 pictures" in caplog.text
    assert command(pictures) == 0
    times = {path: path.stat().st_mtime_ns for path in (pictures / "lists").iterdir()}
    caplog.clear()
    with caplog.at_level(logging.INFO):
        assert command(pictures) == 0
    assert {path: path.stat().st_mtime_ns for path in (pictures / "lists").iterdir()} == times
    assert "val_bboxes.json: complete, boxes of 6 pictures" in caplog.text
    assert command(pictures, "--seed", "5") == 0
    changed = {path.name for path, time in times.items() if path.stat().st_mtime_ns != time}
    assert changed >= {"train.json", "prepared.json"}
    assert not changed & {"val.json", "val_bboxes.json"}


def test_objects_outside_the_frame_are_kept_and_counted(pictures, caplog):
    xml = pictures / "val_xml" / "cat" / "cat_val0.xml"
    xml.write_text(voc_xml(120, 90, ("cat", 0, 0, 10, 10), ("cat", 0, 10, 60, 50), ("cat", *BOX)))
    with caplog.at_level(logging.INFO):
        assert command(pictures) == 0
    assert "of 8 objects, 1 lie outside the frame and 1 partly; their boxes are kept as they are" in caplog.text
    assert json.loads((pictures / "lists" / "val_bboxes.json").read_text())["cat_val0"][0]["xmax"] == -3


def remove(path):
    path.unlink()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda root: (root / "train").rename(root / "gone"), "train: no such folder; expected one that holds"),
        (lambda root: [(root / "val" / n).rename(root / n) for n in ("cat", "dog", "eel")], "val: holds no folders"),
        (
            lambda root: (root / "val" / "cat").rename(root / "val" / "cow"),
            "'cow' is no class of the training pictures",
        ),
        (
            lambda root: (root / "val" / "cat").rename(root / "gone"),
            "val: has no folder 'cat', a class of the training",
        ),
        (
            lambda root: (root / "val_xml" / "dog" / "dog_val1.xml").write_text(voc_xml(9, 9, ("cat", 1, 1, 2, 2))),
            "dog_val1.xml: holds no object 'dog', the class of its picture; its objects: cat",
        ),
        (lambda root: remove(root / "val_xml" / "eel" / "eel_val0.xml"), "eel_val0.xml: no such annotation"),
        (
            lambda root: (root / "train_xml").rename(root / "gone"),
            "holds no <class>/<file stem>.xml of a training picture",
        ),
        (
            lambda root: (
                [rectangle(root / "val" / "dog" / f"cat_val0.{end}") for end in ("png",)]
                and (root / "val_xml" / "dog" / "cat_val0.xml").write_text(voc_xml(120, 90, ("dog", *BOX)))
            ),
            "and boxes are known by names; rename one of them",
        ),
    ],
)
def test_trees_that_cannot_be_listed_leave_one_line_and_nothing_else(pictures, capsys, change, message):
    change(pictures)
    assert command(pictures) == 2
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("heatproof: ")]
    assert len(error) == 1
    assert message in error[0]
    assert not (pictures / "lists").exists()


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (["--examples-per-class", "9"], "cat: has 4 training pictures; 9 of each class were asked for"),
        (["--num-classes", "4"], "4 classes were asked for, and there are 3"),
        (["--examples-per-class", "0"], "--examples-per-class: 0 must lie between 1 and"),
        (["--seed", "-1"], "--seed: -1 must lie between 0 and"),
    ],
)
def test_options_that_cannot_be_met_are_one_line(pictures, capsys, option, message):
    assert command(pictures, *option) == 2
    assert message in capsys.readouterr().err
    assert not (pictures / "lists").exists()


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        (
            "val.json",
            '.png",\n      2',
            '.png",\n      3',
            r"val\.json: samples\[4\]: .*: label 3 names none of the 3 classes",
        ),
        (
            "val.json",
            "cat_val0.png",
            "cat_val7.png",
            r"val\.json: samples\[0\]: names .*cat_val7\.png, which is not there",
        ),
        ("val.json", '"dog",', '"cow",', r"val\.json: its classes differ from those of .*train\.json"),
        ("val.json", '"samples"', '"others"', r"val\.json: samples: is no list of \[path, label\]"),
        (
            "val.json",
            "cat_val1",
            "cat_val0",
            r"val\.json: samples\[1\]: .*cat_val0\.png stands in .*samples\[0\] already",
        ),
        ("val_bboxes.json", '"cat_val0"', '"cat"', r"val_bboxes\.json: has no boxes of 'cat_val0'"),
        ("val_bboxes.json", '"xmin"', '"x"', r"val_bboxes\.json: cat_val0: expected a list of boxes with xmin"),
        ("val_bboxes.json", '"xmin": ', '"xmin": 0.5, "x": ', r"cat_val0: boxes must be whole numbers of pixels"),
        ("prepared.json", '"size": 64', '"size": 99', r"the boxes of .*lists were made for 99, false; set these"),
    ],
)
def test_lists_that_were_damaged_are_named(pictures, name, old, new, message):
    assert command(pictures) == 0
    path = pictures / "lists" / name
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises((DataError, InputError), match=message):
        opened(pictures).split("test")


def test_missing_lists_say_who_makes_them(pictures):
    with pytest.raises(
        DataError, match=r"val\.json: no such list, nor train\.json; make them with heatproof prepare-data"
    ):
        opened(pictures)
    assert command(pictures) == 0
    (pictures / "lists" / "train.json").unlink()
    with pytest.raises(DataError, match=r"train\.json: no such list; make it with heatproof prepare-data"):
        opened(pictures).split("train")
