"""The stage evaluate-cls on generated images: its accuracies are those of the training, its tables agree."""

import csv
import json
import logging

import numpy as np
import pytest

from heatproof import config
from heatproof.stages import evaluate_cls
from heatproof.stages.run import Run
from heatproof.training import classifier
from tests.end_to_end.conftest import heatproof


@pytest.fixture(scope="module")
def evaluated(small_trained):
    """The configuration, after training and the stage; it has no section evaluate_cls."""
    path = small_trained("evaluate_cls")
    assert heatproof("evaluate-cls", "--config", path, "evaluate_cls.splits=[validation, test]") == 0
    return path


def table(path, name):
    with (config.read(path).outdir / "evaluate_cls" / name).open(newline="") as file:
        return list(csv.DictReader(file))


def test_accuracies_are_those_that_the_training_stored(evaluated):
    kept = json.loads((config.read(evaluated).outdir / "train_cls" / "best_model.json").read_text())
    accuracies = {line["split"]: float(line["accuracy"]) for line in table(evaluated, "results.csv")}
    assert accuracies == {"validation": kept["validation_accuracy"], "test": kept["test_accuracy"]}
    for line in table(evaluated, "results.csv"):
        assert float(line["low"]) < float(line["accuracy"]) < float(line["high"])


def test_tables_of_classes_and_confusions_agree(evaluated):
    of_test = [line for line in table(evaluated, "classes.csv") if line["split"] == "test"]
    rows = table(evaluated, "confusion_test.csv")
    names = [line["class"] for line in of_test]
    assert names == ["horizontal", "vertical", "falling", "rising"] == [row.pop("true") for row in rows]
    confusion = np.array([[int(row[name]) for name in names] for row in rows])
    np.testing.assert_array_equal(confusion.sum(axis=1), [int(line["images"]) for line in of_test])
    np.testing.assert_array_equal(confusion.sum(axis=0), [int(line["predicted"]) for line in of_test])
    summary = next(line for line in table(evaluated, "results.csv") if line["split"] == "test")
    assert int(summary["images"]) == confusion.sum() == 96
    for score in ("precision", "recall", "f1"):
        assert float(summary[score]) == pytest.approx(np.mean([float(line[score]) for line in of_test]))


def test_nothing_is_computed_twice_and_what_is_stale_is_computed_again(evaluated, monkeypatch, caplog):
    run = Run(config.read(evaluated, ["evaluate_cls.splits=[validation, test]"]))
    with monkeypatch.context() as patched:
        patched.setattr(classifier, "predict", None)
        evaluate_cls.run(run)
        (tables,) = evaluate_cls.plan(Run(config.read(evaluated), dry_run=True))
        assert tables.status().state == "stale"
    with caplog.at_level(logging.INFO):
        evaluate_cls.run(Run(config.read(evaluated)))
    assert [line["split"] for line in table(evaluated, "results.csv")] == ["test"]
    assert "stale, to be computed again: data.validation" in caplog.text


def test_what_cannot_be_evaluated_is_one_line(small, evaluated, capsys):
    path = small("nothing_to_evaluate")
    assert heatproof("evaluate-cls", "--config", path) == 2
    assert "best_model.pth: no such file of weights yet; run train-cls first" in capsys.readouterr().err
    assert heatproof("evaluate-cls", "--config", path, "--dry-run") == 0
    assert heatproof("evaluate-cls", "--config", path, "train_cls=null") == 2
    assert "evaluate_cls.model is not set, and there is no section train_cls" in capsys.readouterr().err
    weights = config.read(evaluated).outdir / "train_cls" / "best_model.pth"
    arch = "heatproof.models.resnet_cifar.NarrowResNet8"
    model = f"evaluate_cls.model={{arch: {arch}, pretrained_weights: {weights}, constructor_args: {{num_classes: 4}}}}"
    assert heatproof("evaluate-cls", "--config", path, model, "data.options.classes=2") == 2
    assert "and Planted has 2 classes; take a classifier of these classes" in capsys.readouterr().err
    assert not (config.read(path).outdir / "evaluate_cls").exists()
