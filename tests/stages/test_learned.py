"""What trainings left is told in sentences; what is not there, or is no result, is not."""

import pytest

from heatproof import artefacts
from heatproof.stages.learned import told
from heatproof.stages.plan import Artefact
from heatproof.stages.planned import Planned

RESULTS = {
    "evaluate-cls": "evaluate_cls/results.csv",
    "train-diffmask": "train_diffmask/best_model.pth",
    "train-masker": "train_masker/ca/masker.pth",
    "train-infiller": "train_infiller/results.csv",
}


@pytest.fixture
def files(tmp_path):
    return {command: Artefact(tmp_path / name, {"seed": 0}, None) for command, name in RESULTS.items()}


def stages(root, files):
    return {command: Planned(command, root, {file: file.status()}) for command, file in files.items()}


def test_nothing_is_told_of_nothing(tmp_path, files):
    assert list(told({}, tmp_path)) == []
    assert list(told(stages(tmp_path, files), tmp_path)) == []
    for file in files.values():
        file.path.parent.mkdir(parents=True, exist_ok=True)
        file.record.write_text("{}")
    assert list(told(stages(tmp_path, files), tmp_path)) == []


def test_each_result_is_told_with_its_numbers(tmp_path, files):
    scores = {"hard_kept": 0.25, "hard_agreement": 0.98, "hard_divergence": 0.05, "soft_divergence": 0.0625}
    files["train-diffmask"].write(test=scores, validation=scores | {"hard_kept": 0.5})
    last = {"validation_area": 0.2, "validation_in_accuracy": 0.9, "validation_out_accuracy": 0.1}
    files["train-masker"].write(last=last | {"validation_accuracy": 1.0})
    rows = [
        (fill, kind, score, mean)
        for fill, mean in (("learned", 20.5), ("mean", 14.25))
        for kind in ("pixels", "blobs")
        for score in ("psnr", "ssim")
    ]
    infiller, classifier = files["train-infiller"], files["evaluate-cls"]
    artefacts.write_csv(infiller.path, ("fill", "holes", "score", "mean"), rows)
    infiller.write(infiller.path)
    artefacts.write_csv(
        classifier.path, ("split", "images", "accuracy", "low", "high"), [("test", 2000, 0.5, 0.4, 0.6)]
    )
    classifier.write(classifier.path)
    found = {
        subject: sentence.replace("\N{NARROW NO-BREAK SPACE}", " ")
        for subject, sentence in told(stages(tmp_path, files), tmp_path)
    }
    assert found["Classifier, test images"] == "right on 50 % of 2,000 [40.00, 60.00]"
    assert (
        "are 25 % of all; with them alone 98 % of the predictions stay, at a divergence of 0.050 nats"
        in found["DiffMask"]
    )
    assert found["Masker, CA"].startswith(
        "masks keep 20 % of the validation images; with what is kept 90 % are right, with what is left 10 %"
    )
    assert found["Fills of pixels"].endswith("learned 20.50, mean 14.25")
    assert list(found) == ["Classifier, test images", "DiffMask", "Masker, CA", "Fills of pixels", "Fills of blobs"]
