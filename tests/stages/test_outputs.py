"""Stages read whatever a network puts out: right, or one line before anything is computed."""

import csv

import numpy as np
import pytest
import torch

from heatproof import config, store
from heatproof.errors import ConfigError, ModelError
from heatproof.models import outputs
from heatproof.stages import evaluate_cls, extract, road, train_cls
from heatproof.stages.run import Run
from heatproof.training import classifier
from tests.models import small_outputs

CONFIG = """
outdir: {outdir}
device: cpu
data: {{dataset: Planted, split_ratio: 0.8, options: {{train_images: 26, test_images: 8, classes: {classes}}}}}
train_cls:
    model: &MODEL
        arch: tests.models.small_outputs.{name}
        output: {output}
        pretrained_weights: {weights}
        normalization: {{mean: [0.5, 0.5, 0.5], std: [0.25, 0.25, 0.25]}}
    optimizer: {{name: torch.optim.SGD, lr: 1.0e-2}}
    loss: {{name: torch.nn.{loss}}}
    augmentation: {{crop_padding: 0, flip: false}}
    batch_size: 19
    nb_epochs: 2
evaluate_cls: {{model: *MODEL}}
extract_cams:
    model: *MODEL
    attribution_methods: [{{name: gradient, method: heatproof.methods.gradient.Gradient}}]
road:
    model: *MODEL
    percentiles: [50]
    fill: mean
    attribution_methods: [{{name: gradient, method: heatproof.methods.gradient.Gradient}}]
"""


@pytest.fixture
def configured(tmp_path):
    """A run of one of the small networks, with drawn weights in a file where it is trained already."""

    def run(name, *, classes=4, output="softmax", loss="CrossEntropyLoss", trained=True, **changes):
        weights = "~"
        if trained:
            torch.manual_seed(0)
            torch.save(getattr(small_outputs, name)().state_dict(), tmp_path / "weights.pt")
            weights = tmp_path / "weights.pt"
        text = CONFIG.format(outdir=tmp_path, classes=classes, name=name, output=output, loss=loss, weights=weights)
        for old, new in changes.items():
            text = text.replace(old, new)
        (tmp_path / "run.yml").write_text(text)
        return Run(config.read(tmp_path / "run.yml"))

    return run


def scores(run, folder):
    with (run.config.outdir / folder / "results.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize(
    ("name", "classes", "output", "loss"),
    [
        ("Normed", 4, "softmax", "CrossEntropyLoss"),
        ("Half", 4, "softmax", "CrossEntropyLoss"),
        ("Distilled", 4, "softmax", "CrossEntropyLoss"),
        ("WithAuxiliary", 4, "softmax", "CrossEntropyLoss"),
        ("Net", 4, "sigmoid", "BCEWithLogitsLoss"),
        ("One", 2, "softmax", "BCEWithLogitsLoss"),
        ("Soft", 4, "probabilities", "CrossEntropyLoss"),
    ],
)
def test_a_network_is_trained_whatever_it_puts_out(configured, name, classes, output, loss):
    """20 training images in batches of 19: the one that is left over joins the first 19 where a batch norm needs it to."""
    run = configured(name, classes=classes, output=output, loss=loss, trained=False)
    train_cls.run(run)
    section = run.config.train_cls.model
    model = section.model_copy(update={"pretrained_weights": str(run.config.outdir / "train_cls" / "best_model.pth")})
    assert run.labels_are_outputs(model, run.trained(model))
    if output != "softmax":
        with pytest.raises(
            ModelError, match=f"was trained with model.output: {output}, and the section that reads it says softmax"
        ):
            run.trained(model.model_copy(update={"output": "softmax"}))


def test_training_of_one_output_is_that_of_two_classes_with_the_logits_0_and_z(configured):
    run = configured("One", classes=2, loss="BCEWithLogitsLoss", trained=False)
    examples = {name: run.examples(run.dataset.split(name)) for name in ("train", "validation")}
    fitted = []
    for loss in ("BCEWithLogitsLoss", "CrossEntropyLoss"):
        torch.manual_seed(0)
        network = small_outputs.One()
        if loss == "BCEWithLogitsLoss":
            outputs.read(network, torch.rand(2, 3, 32, 32), name="one")
        else:
            network.forward = lambda images, n=network: torch.nn.functional.pad(n.logits(images), (1, 0))
        section = run.config.train_cls.model_copy(update={"loss": config.Plugin(name=f"torch.nn.{loss}")})
        recipe, normalize = run.recipe(section), lambda pixels: 4 * pixels - 2
        fitted.append(classifier.fit(network, normalize, **examples, recipe=recipe, seed=0, purpose=("train",)))
    for one, two in zip(fitted[0].history, fitted[1].history, strict=True):
        assert (one.train_loss, one.validation_loss) == pytest.approx((two.train_loss, two.validation_loss), rel=1e-5)
        assert (one.train_accuracy, one.validation_accuracy) == (two.train_accuracy, two.validation_accuracy)


@pytest.mark.parametrize(
    ("name", "classes", "output", "loss", "error", "message"),
    [
        (
            "One",
            4,
            "softmax",
            "BCEWithLogitsLoss",
            ModelError,
            "gives 1 output, for 2 classes, and Planted has 4 classes",
        ),
        ("One", 2, "softmax", "CrossEntropyLoss", ConfigError, "set loss: torch.nn.BCEWithLogitsLoss"),
        ("Net", 4, "sigmoid", "CrossEntropyLoss", ConfigError, "set loss: torch.nn.BCEWithLogitsLoss"),
        ("Net", 4, "softmax", "BCEWithLogitsLoss", ConfigError, "model.output: sigmoid"),
        ("Net", 4, "sigmoid", "BCELoss", ConfigError, "takes probabilities; set loss: torch.nn.BCEWithLogitsLoss"),
        ("Soft", 4, "softmax", "CrossEntropyLoss", ModelError, "outputs are probabilities already"),
        ("Three", 4, "softmax", "CrossEntropyLoss", ModelError, "gives 3 outputs, and Planted has 4 classes"),
    ],
)
def test_a_training_that_would_be_of_something_else_is_one_line(
    configured, name, classes, output, loss, error, message
):
    run = configured(name, classes=classes, output=output, loss=loss, trained=False)
    with pytest.raises(error, match=message):
        train_cls.run(run)
    assert not (run.config.outdir / "train_cls" / "best_model.pth").exists()


def test_a_batch_size_of_one_that_batch_norm_refuses_is_one_line(configured):
    run = configured("Normed", trained=False, **{"batch_size: 19": "batch_size: 1"})
    with pytest.raises(ConfigError, match="batch_size is 1, and a batch norm"):
        train_cls.run(run)


@pytest.mark.parametrize("stage", [evaluate_cls, extract, road])
def test_fewer_outputs_than_classes_are_one_line_that_names_both(configured, stage):
    with pytest.raises(ModelError, match="gives 3 outputs, and Planted has 4 classes"):
        stage.run(configured("Three"))


@pytest.mark.parametrize("stage", [evaluate_cls, extract])
def test_labels_are_not_compared_with_the_outputs_of_other_classes(configured, stage):
    run = configured("Nine", **{"extract_cams:": "extract_cams:\n    target: label"})
    with pytest.raises(ModelError, match="has 9 outputs, and Planted has 4 classes; "):
        stage.run(run)


def test_road_of_other_classes_has_probabilities_and_no_accuracy(configured):
    run = configured("Nine")
    road.run(run)
    lines = {line["score"]: line for line in scores(run, "road") if line["method"] == "gradient"}
    assert lines["morf_accuracy"]["n_undefined"] == "8"
    assert np.isfinite(float(lines["morf_probability"]["mean"]))


def test_maps_say_how_logits_become_probabilities(configured):
    run = configured("One", classes=2)
    extract.run(run)
    reader = store.MapReader(run.config.outdir / "extract_cams" / "gradient" / "test.h5")
    assert reader.origin["model"]["probabilities"] == "sigmoid"
    np.testing.assert_array_equal(reader.logits[:, 0], -reader.logits[:, 1])
    np.testing.assert_array_equal(reader.predictions, reader.logits[:, 1] > 0)
