"""train-infiller: trains a small network to fill holes of the images at hand, and compares it with the other fills.

Reads the data set; writes train_infiller/best_model.pth (tensors only), best_model.json (errors, origin), history.csv,
TensorBoard scalars and pictures, and results.csv: PSNR in the holes and SSIM of each fill, on test images that no fill has
seen, for each kind of hole (`blur` blurs the whole image, and so has seen what stood in the hole). Killed, it goes on from the last epoch. The fill is `LearnedInfill`.
"""

import logging
import time
from collections.abc import Iterator
from dataclasses import astuple, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from heatproof import artefacts, config, removal, runtime, seeding
from heatproof.datasets import Split
from heatproof.metrics import statistics
from heatproof.metrics.reconstruction import picture_ssim, psnr_in_holes
from heatproof.models.inpainting import GatedUNet
from heatproof.stages.evaluate import sample
from heatproof.stages.run import Run, build_fill, why_stale
from heatproof.stages.scalars import Scalars
from heatproof.training import infiller
from heatproof.training.classifier import save_tensors
from heatproof.training.holes import KINDS, Kind, holes

logger = logging.getLogger(__name__)
RESULTS_VERSION = 1
LEARNED = "learned"
COLUMNS = (
    "fill",
    "holes",
    "score",
    "n",
    "mean",
    "low",
    "high",
    "difference_to_learned",
    "difference_low",
    "difference_high",
)
PICTURES = 8  # rows in TensorBoard: original, with its hole, filled


def run(run: Run) -> None:
    """Trains unless a network of the same origin is there; compares it with other fills unless that is done."""
    section = config.section(run.config, "train_infiller", config.TrainInfiller)
    folder = run.config.outdir / "train_infiller"
    origin = _origin(run, section)
    if not _is_done(folder, origin):
        if run.dry_run:
            return
        _train(run, section, folder, origin)
    _compare(run, section, folder)


def _train(run: Run, section: config.TrainInfiller, folder: Path, origin: dict[str, Any]) -> None:
    torch.manual_seed(seeding.derive(run.config.seed, infiller.PURPOSE, "weights"))
    network = GatedUNet(run.dataset.channels, section.width).to(run.device)
    train, validation = (run.dataset.split(name) for name in ("train", "validation"))
    started = time.monotonic()
    checkpoint = folder / "checkpoint.pt"
    columns = [field.name for field in fields(infiller.InfillerEpoch)]
    with Scalars(folder) as scalars:

        def tell(history: Any) -> None:
            scalars.add(columns, [astuple(line) for line in history])
            scalars.show("filled", _pictures(run, network, validation), history[-1].epoch)

        fitted = infiller.fit_infiller(
            network,
            run.examples(train),
            run.examples(validation),
            infiller.InfillerRecipe(section.nb_epochs, section.batch_size, section.learning_rate),
            seed=run.config.seed,
            checkpoint=checkpoint,
            identity=artefacts.canonical(origin),
            on_epoch=tell,
        )
    save_tensors(folder / "best_model.pth", fitted.state)
    artefacts.write_json(
        folder / "best_model.json",
        {
            "origin": origin,
            "weights_sha256": artefacts.sha256(folder / "best_model.pth"),
            "best_epoch": fitted.best_epoch,
            "epochs": section.nb_epochs,
            "validation_error": fitted.validation_error,
        },
    )
    runtime.record_time(folder, "train-infiller", len(train) * section.nb_epochs, started)
    checkpoint.unlink(missing_ok=True)


def _origin(run: Run, section: config.TrainInfiller) -> dict[str, Any]:
    return {
        "data": {name: run.dataset.split(name).fingerprint for name in ("train", "validation")},
        "training": section.model_dump(include={"width", "nb_epochs", "batch_size", "learning_rate"}),
        "seed": run.config.seed,
        "code": infiller.RESULTS_VERSION,
    }


def _is_done(folder: Path, origin: dict[str, Any]) -> bool:
    path, weights = folder / "best_model.json", folder / "best_model.pth"
    kept = artefacts.read_json(path)
    if kept is None:
        going_on = " (an interrupted training goes on)" if (folder / "checkpoint.pt").is_file() else ""
        logger.info("%s: to be trained%s", weights, going_on)
    elif kept["origin"] != origin:
        logger.info("%s: stale, to be trained again: %s", weights, why_stale(kept["origin"], origin))
    elif not weights.is_file() or artefacts.sha256(weights) != kept["weights_sha256"]:
        logger.info("%s: missing or not the file that was trained, to be trained again", weights)
    else:
        logger.info("%s: complete, mean error in the holes %.4f", weights, kept["validation_error"])
        return True
    return False


def _pictures(run: Run, network: GatedUNet, split: Split) -> Image.Image:
    """Some images, with their holes in grey, and filled."""
    index = np.arange(min(PICTURES, len(split)))
    pixels = split.pixels(index).to(run.device).float().div_(255.0)
    mask = holes(pixels, index, run.config.seed, infiller.PURPOSE, "validation")[:, None]
    with torch.inference_mode():
        filled = torch.where(mask, network(pixels, mask.to(pixels.dtype)), pixels).clamp(0, 1)
    rows = torch.cat((pixels, torch.where(mask, 0.5, pixels), filled), dim=3)
    picture = rows.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).flatten(0, 1)
    return Image.fromarray((picture * 255).round().to(torch.uint8).cpu().numpy())


def _compare(run: Run, section: config.TrainInfiller, folder: Path) -> None:
    """Fills holes of test images with each fill, and says how near each comes."""
    split = run.dataset.split("test")
    index = sample(run.config.seed, len(split), section.test_samples)
    origin = {
        "network": artefacts.sha256(folder / "best_model.pth"),
        "data": split.fingerprint,
        "index": index.tolist(),
        "fills": list(section.fills),
        "seed": run.config.seed,
        "code": [RESULTS_VERSION, infiller.RESULTS_VERSION],
    }
    kept = artefacts.read_json(folder / "results.json")
    if kept == {"origin": origin} and (folder / "results.csv").is_file():
        logger.info("%s: complete", folder / "results.csv")
        return
    if run.dry_run:
        return
    started = time.monotonic()
    fills = {LEARNED: removal.build_fill("LearnedInfill", checkpoint=str(folder / "best_model.pth"))}
    fills |= {name: build_fill(run, name, lambda: run.statistics) for name in section.fills}
    lines = list(_lines(run, split, index, fills))
    artefacts.write_csv(folder / "results.csv", COLUMNS, lines)
    artefacts.write_json(folder / "results.json", {"origin": origin})
    runtime.record_time(folder, "compare", len(index) * len(fills) * len(KINDS), started)
    logger.info("%s: %d rows", folder / "results.csv", len(lines))


def _lines(run: Run, split: Split, index: NDArray[np.int64], fills: dict[str, removal.Fill]) -> Iterator[list[Any]]:
    with runtime.progress(len(index) * len(fills) * len(KINDS), "fill held-out holes") as bar:
        for kind in KINDS:
            found: dict[str, NDArray[np.float64]] = {}
            for name, fill in fills.items():
                found[name] = np.concatenate([_scores(run, split, part, kind, fill) for part in _parts(index)], axis=1)
                bar.update(len(index))
            for place, score in enumerate(("psnr", "ssim")):
                rows = [scores[place] for scores in found.values()]
                rows += [scores[place] - found[LEARNED][place] for scores in found.values()]
                summaries = statistics.summarize_rows(rows, seed=run.config.seed)
                for own, other, name in zip(summaries, summaries[len(found) :], found, strict=False):
                    yield [name, kind, score, own.n, own.mean, own.low, own.high, other.mean, other.low, other.high]


def _scores(run: Run, split: Split, index: NDArray[np.int64], kind: Kind, fill: removal.Fill) -> NDArray[np.float64]:
    """(2, B): PSNR in the holes, and SSIM."""
    pixels: Tensor = split.pixels(index).to(run.device).float().div_(255.0)
    removed = holes(pixels, index, run.config.seed, infiller.PURPOSE, "test", kind=kind)
    filled = fill(pixels, removed, index).cpu().numpy()
    original = pixels.cpu().numpy()
    return np.stack((psnr_in_holes(filled, original, removed.cpu().numpy()), picture_ssim(filled, original)))


def _parts(index: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    return np.split(index, range(256, len(index), 256))
