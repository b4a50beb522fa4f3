"""What trainings left is told in sentences; what is not there, or is no result, is not."""

from heatproof import artefacts
from heatproof.stages.learned import FILES, told


def test_nothing_is_told_of_nothing(tmp_path):
    assert list(told(tmp_path)) == []
    for name in FILES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("{}" if name.endswith("json") else "split,score\n")
    assert list(told(tmp_path)) == []


def test_each_result_is_told_with_its_numbers(tmp_path):
    scores = {"hard_kept": 0.25, "hard_agreement": 0.98, "hard_divergence": 0.05, "soft_divergence": 0.0625}
    worse = scores | {"hard_kept": 0.5}
    artefacts.write_json(tmp_path / "train_diffmask" / "best_model.json", {"test": scores, "validation": worse})
    last = {"validation_area": 0.2, "validation_in_accuracy": 0.9, "validation_out_accuracy": 0.1}
    artefacts.write_json(
        tmp_path / "train_masker" / "ca" / "masker.json", {"last": last | {"validation_accuracy": 1.0}}
    )
    rows = [
        (fill, kind, score, mean)
        for fill, mean in (("learned", 20.5), ("mean", 14.25))
        for kind in ("pixels", "blobs")
        for score in ("psnr", "ssim")
    ]
    artefacts.write_csv(tmp_path / "train_infiller" / "results.csv", ("fill", "holes", "score", "mean"), rows)
    artefacts.write_csv(
        tmp_path / "evaluate_cls" / "results.csv",
        ("split", "images", "accuracy", "low", "high"),
        [("test", 2000, 0.5, 0.4, 0.6)],
    )
    found = {subject: sentence.replace("\N{NARROW NO-BREAK SPACE}", " ") for subject, sentence in told(tmp_path)}
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
