"""What the stages that train beside the classifier left to be told: how good is it, and what was learnt to explain and to fill."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from heatproof.report.wording import interval, number, percent
from heatproof.stages.planned import Planned


def told(stages: Mapping[str, Planned], outdir: Path) -> Iterator[tuple[str, str]]:
    """Subject and sentence for each result that can be shown.

    Args:
        stages: of a run, by their commands.
        outdir: its folder.
    """
    if planned := stages.get("evaluate-cls"):
        for row in planned.table(outdir / "evaluate_cls" / "results.csv"):
            accuracy, low, high = (float(row[name]) for name in ("accuracy", "low", "high"))
            yield (
                f"Classifier, {row['split']} images",
                f"right on {percent(accuracy, 2)} of {int(row['images']):,} {interval(100 * low, 100 * high, 2)}",
            )
    if planned := stages.get("train-diffmask"):
        kept = planned.content(outdir / "train_diffmask" / "best_model.pth")
        # Of the test images, where there are any, else of the validation images.
        if scores := kept.get("test") or kept.get("validation"):
            yield "DiffMask", _of_diffmask(scores)
    if planned := stages.get("train-masker"):
        for form in ("fix", "ca"):
            if last := planned.content(outdir / "train_masker" / form / "masker.pth").get("last"):
                yield f"Masker, {form.upper()}", _of_masker(last)
    if planned := stages.get("train-infiller"):
        rows = [row for row in planned.table(outdir / "train_infiller" / "results.csv") if row["score"] == "psnr"]
        for kind in dict.fromkeys(row["holes"] for row in rows):
            means = [f"{row['fill']} {number(float(row['mean']), 2)}" for row in rows if row["holes"] == kind]
            yield f"Fills of {kind}", f"PSNR in the holes of test images, in dB, higher is better: {', '.join(means)}"


def _of_diffmask(scores: dict[str, float]) -> str:
    return (
        f"the patches with P(kept) above 1/2 are {percent(scores['hard_kept'])} of all; with them alone "
        f"{percent(scores['hard_agreement'])} of the predictions stay, at a divergence of {number(scores['hard_divergence'])} nats "
        f"({number(scores['soft_divergence'])} with the mask as it is)"
    )


def _of_masker(last: dict[str, float]) -> str:
    return (
        f"masks keep {percent(last['validation_area'])} of the validation images; with what is kept "
        f"{percent(last['validation_in_accuracy'])} are right, with what is left {percent(last['validation_out_accuracy'])}, "
        f"intact {percent(last['validation_accuracy'])}"
    )
