"""A network that fills holes: trained, compared, continued after a kill, and used as a fill."""

import csv
import json

import numpy as np
import pytest
import torch

from heatproof import removal
from heatproof.training import infiller
from tests.end_to_end.conftest import heatproof, results

SMALL = """
outdir: {outdir}
seed: 1
device: cpu
data: {{dataset: Planted, split_ratio: 0.8, options: {{train_images: 400, test_images: 60}}}}
train_infiller: {{nb_epochs: 3, width: 8, batch_size: 8, test_samples: 40, fills: [mean, kept_blur]}}
"""


@pytest.fixture(scope="module")
def trained(write):
    path = write(SMALL, "trained")
    assert heatproof("train-infiller", "--config", path) == 0
    return path


def folder(path):
    return path.parent / "out" / "train_infiller"


def test_it_beats_the_mean_and_a_blur_of_what_is_kept(trained):
    with (folder(trained) / "results.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 3 * 2 * 3  # fills, scores, kinds of holes
    means = [line for line in lines if line["fill"] == "mean"]
    blurs = [line for line in lines if line["fill"] == "kept_blur" and line["holes"] == "pixels"]
    assert (len(means), len(blurs)) == (2 * 3, 2)
    assert [line for line in means if float(line["difference_high"]) >= 0] == []
    assert [line for line in blurs if float(line["difference_to_learned"]) >= 0] == []


def test_it_leaves_weights_history_and_origin(trained):
    state = torch.load(folder(trained) / "best_model.pth", weights_only=True)
    assert state["answer.weight"].shape == (3, 8, 3, 3)
    kept = json.loads((folder(trained) / "best_model.json").read_text())
    assert kept["origin"]["training"]["width"] == 8
    with (folder(trained) / "history.csv").open(newline="") as file:
        history = list(csv.DictReader(file))
    assert float(history[-1]["validation_error"]) < float(history[0]["validation_error"])
    assert any((folder(trained) / "tensorboard").iterdir())
    assert not (folder(trained) / "checkpoint.pt").exists()


def test_a_second_run_trains_nothing(trained, monkeypatch):
    before = results(trained)
    monkeypatch.setattr(infiller, "fit", None)
    assert heatproof("train-infiller", "--config", trained) == 0
    assert results(trained) == before


def test_interrupted_and_continued_gives_the_same_bytes(trained, write, monkeypatch):
    path = write(SMALL, "killed")
    epoch = infiller.InfillerLearner.epoch

    def interrupted(self, number, *arguments):
        if number == 2:
            raise KeyboardInterrupt
        return epoch(self, number, *arguments)

    monkeypatch.setattr(infiller.InfillerLearner, "epoch", interrupted)
    assert heatproof("train-infiller", "--config", path) == 130
    assert (folder(path) / "checkpoint.pt").exists()
    monkeypatch.undo()
    assert heatproof("train-infiller", "--config", path) == 0
    names = ("best_model.pth", "best_model.json", "history.csv", "results.csv")
    assert [(folder(path) / name).read_bytes() for name in names] == [
        (folder(trained) / name).read_bytes() for name in names
    ]


def test_it_is_a_fill_of_its_checkpoint(trained):
    fill = removal.build_fill("LearnedInfill", checkpoint=str(folder(trained) / "best_model.pth"))
    pixels = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    removed = torch.zeros(2, 32, 32, dtype=torch.bool)
    removed[:, 4:20, 6:15] = True
    filled = fill(pixels, removed)
    np.testing.assert_array_equal((filled != pixels).any(dim=1), removed)


def test_holes_depend_on_seed_purpose_and_index_alone():
    from heatproof.training.holes import KINDS, holes

    pixels = torch.rand(6, 3, 12, 16, generator=torch.Generator().manual_seed(1))
    index = np.array([5, 0, 9, 7, 2, 4])
    found = holes(pixels, index, 3, "train", 1)
    order = np.array([4, 2, 0])
    assert torch.equal(holes(pixels[order], index[order], 3, "train", 1), found[order])
    assert not torch.equal(holes(pixels, index, 3, "train", 2), found)
    shares = {kind: holes(pixels, index, 3, "train", 1, kind=kind).flatten(1).sum(1) for kind in KINDS}
    assert torch.equal(shares["pixels"], shares["blobs"])  # the kind says which pixels, not how many
    assert torch.equal(shares["pixels"], shares["edges"])


def test_a_fill_that_cannot_be_compared_is_told_before_the_training(write, capsys):
    path = write(SMALL, "fills")
    assert heatproof("train-infiller", "--config", path, "train_infiller.fills=[mean, CaGan]") == 2
    assert "CaGan: option 'weights' is missing" in capsys.readouterr().err
    assert not folder(path).exists()
