"""Grey, oblong and odd pictures through what is trained on them: masks, fills, and the tests that stream these."""

import csv

import numpy as np
import pytest
import torch

from heatproof import store
from tests.end_to_end.conftest import heatproof

CONFIGURATION = """
outdir: {folder}/out
device: cpu
data: {{dataset: Arrays, dataset_dir: {folder}, split_ratio: 0.75, loader_workers: 0}}
train_cls:
    model: &MODEL {{arch: heatproof.models.resnet_cifar.NarrowResNet8}}
    batch_size: 64
    nb_epochs: 1
train_diffmask:
    model: &TRAINED
        <<: *MODEL
        pretrained_weights: '${{outdir}}/train_cls/best_model.pth'
    nb_epochs: 1
    hidden: 4
train_masker: {{model: *TRAINED, taps: [relu, layer3.0.relu], width: 4, nb_epochs: 1, batch_size: 12, share: 1}}
train_infiller: {{nb_epochs: 1, width: 4, test_samples: 4, fills: [mean]}}
extract_cams:
    model: *TRAINED
    controls: []
    attribution_methods:
        - {{name: diffmask, method: heatproof.methods.diffmask.DiffMask, kwargs: {{checkpoint: '${{outdir}}/train_diffmask/best_model.pth'}}}}
        - {{name: masker, method: heatproof.methods.masker.Masker, kwargs: {{checkpoint: '${{outdir}}/train_masker/fix/masker.pth'}}}}
infill:
    infillers: [{{name: learned, infiller: LearnedInfill, kwargs: {{checkpoint: '${{outdir}}/train_infiller/best_model.pth'}}}}]
    percentiles: [30]
    orders: [most, least]
    splits: [test]
pixel_perturbation_analysis: {{percentiles: [30], fill: 'infill:learned'}}
"""


def written(folder, shape, parts=("train", "test")):
    rng = np.random.default_rng(0)
    arrays = {"class_names": np.array(["a", "b"])}
    for part, count in (("train", 48), ("test", 8)):
        if part in parts:
            arrays[f"{part}_images"] = rng.integers(0, 256, (count, *shape), dtype=np.uint8)
            arrays[f"{part}_labels"] = np.arange(count) % 2
    np.savez(folder / "data.npz", **arrays)
    path = folder / "c.yml"
    path.write_text(CONFIGURATION.format(folder=folder))
    return path


@pytest.mark.parametrize(
    ("shape", "patch"), [((28, 28), 4), ((20, 36, 3), 2), ((31, 17, 3), 1)], ids=["grey", "oblong", "odd sides"]
)
def test_every_stage_takes_them(tmp_path, shape, patch):
    path = written(tmp_path, shape)
    assert heatproof("demo", "--config", path) == 0
    out = tmp_path / "out"
    for method in ("diffmask", "masker"):
        maps = store.MapReader(out / "extract_cams" / method / "test.h5").maps(np.arange(8))
        assert maps.shape == (8, *shape[:2])
        with (out / "pixel_perturbation_analysis" / "results.csv").open(newline="") as file:
            assert method in {line["method"] for line in csv.DictReader(file)}
    reader = store.InfillReader(out / "infill" / "learned" / "masker" / "30" / "test.h5")
    assert reader.shape("infill")[1] == (shape[2] if len(shape) == 3 else 1)
    assert int(torch.load(out / "train_diffmask" / "best_model.pth", weights_only=True)["patch"]) == patch


def test_without_test_pictures_a_network_fills_all_the_same(tmp_path, caplog):
    path = written(tmp_path, (16, 16, 3), parts=("train",))
    caplog.set_level("INFO")
    assert heatproof("train-infiller", "--config", path) == 0
    assert "results.csv: there are no test images to compare fills on" in caplog.text
    assert {p.name for p in (tmp_path / "out" / "train_infiller").iterdir()} >= {"best_model.pth", "best_model.json"}
    assert heatproof("report", "--config", path) == 0
