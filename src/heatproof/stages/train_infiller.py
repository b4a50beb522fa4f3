"""train-infiller: train a small network to fill holes, and compare it with the other fills.

Reads the data set; writes train_infiller/best_model.pth (tensors only), best_model.json (errors, origin), history.csv,
TensorBoard scalars and pictures, and results.csv: PSNR in the holes and SSIM of each fill, on test images that no fill has
seen, for each kind of hole (`blur` blurs the whole image, and so has seen what stood in the hole). Killed, it goes on from the last epoch. The fill is `LearnedInfill`.
"""

import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from heatproof import artefacts, config, removal, runtime, seeding, threads
from heatproof.datasets import Split
from heatproof.metrics.comparison import summaries
from heatproof.metrics.reconstruction import picture_ssim, psnr_in_holes
from heatproof.models.inpainting import GatedUNet
from heatproof.stages.evaluate import sample
from heatproof.stages.plan import Artefact
from heatproof.stages.run import IMAGES, Run, build_fill
from heatproof.stages.scalars import Scalars, as_pictures
from heatproof.stages.trained import Trained
from heatproof.training import infiller
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


def plan(run: Run) -> list[Artefact[Any]]:
    """The network, and the comparison of fills."""
    section = config.section(run.config, "train_infiller", config.TrainInfiller)
    network = _place(run, section)
    return [network, *_comparison(run, section, network)]


def _place(run: Run, section: config.TrainInfiller) -> Trained:
    return Trained(run.config.outdir / "train_infiller" / "best_model.pth", _origin(run, section))


def _comparison(run: Run, section: config.TrainInfiller, network: Trained) -> list[Artefact[Any]]:
    """The table of how near each fill comes; none where there are no test images."""
    if "test" not in run.splits:
        return []
    unmade = artefacts.Unknown(str(network.path))
    index: Any = IMAGES
    if run.has_images:
        index = sample(run.config.seed, len(run.dataset.split("test")), section.test_samples).tolist()
    origin = {
        "network": artefacts.sha256(network.path) if network.status().is_complete else unmade,
        "data": run.fingerprint("test"),
        "index": index,
        "fills": list(section.fills),
        "seed": run.config.seed,
        "intervals": run.intervals.origin(),
        "code": [RESULTS_VERSION, infiller.RESULTS_VERSION],
    }
    return [Artefact(network.path.with_name("results.csv"), origin, None)]


def run(run: Run) -> None:
    """Trains unless a network of the same origin is there; compares it with other fills unless that is done."""
    section = config.section(run.config, "train_infiller", config.TrainInfiller)
    for name in section.fills:
        _fill(run, name)  # what is wrong with one shows before the training, not after it
    torch.manual_seed(seeding.derive(run.config.seed, infiller.PURPOSE, "weights"))
    network = GatedUNet(run.dataset.channels, section.width).to(run.device)
    threads.raise_for(network, run.dataset.size)  # here, so that the comparison has as many threads when it runs alone
    place = _place(run, section)
    kept = place.kept()
    if kept is not None:
        logger.info("%s: mean error in the holes %.4f", place.path, kept["validation_error"])
    else:
        _train(run, section, place, network)
    comparison = _comparison(run, section, place)
    if not comparison:
        logger.info("%s: there are no test images to compare fills on", place.path.with_name("results.csv"))
    for table in comparison:
        if not table.is_complete():
            _compare(run, section, table, place.path)


def _train(run: Run, section: config.TrainInfiller, place: Trained, network: GatedUNet) -> None:
    train, validation = (run.dataset.split(name) for name in ("train", "validation"))
    started = time.monotonic()
    with Scalars(place.path.parent) as scalars:

        def tell(history: Sequence[infiller.InfillerEpoch]) -> None:
            scalars.add([asdict(line) for line in history])
            scalars.show("filled", _pictures(run, network, validation), history[-1].epoch)

        fitted = infiller.fit(
            network,
            run.examples(train),
            run.examples(validation),
            infiller.InfillerRecipe(section.nb_epochs, section.batch_size, section.lr),
            seed=run.config.seed,
            checkpoint=place.checkpoint,
            identity=place.identity,
            on_epoch=tell,
            describe="train-infiller",
        )
    place.leave(
        fitted.state,
        place.path.with_name("history.csv"),
        best_epoch=fitted.best_epoch,
        epochs=section.nb_epochs,
        validation_error=fitted.best.validation_error,
    )
    runtime.record_time(place.path.parent, "train-infiller", len(train) * section.nb_epochs, started)


def _origin(run: Run, section: config.TrainInfiller) -> dict[str, Any]:
    return {
        "data": {name: run.fingerprint(name) for name in ("train", "validation")},
        "training": section.model_dump(include={"width", "nb_epochs", "batch_size", "lr"}),
        "seed": run.config.seed,
        "code": infiller.RESULTS_VERSION,
    }


def _pictures(run: Run, network: GatedUNet, split: Split) -> Image.Image:
    """Some images, with their holes in grey, and filled."""
    index = np.arange(min(PICTURES, len(split)))
    pixels = split.pixels(index).to(run.device).float().div_(255.0)
    mask = holes(pixels, index, run.config.seed, infiller.PURPOSE, "validation")[:, None]
    with torch.inference_mode():
        filled = torch.where(mask, network(pixels, mask.to(pixels.dtype)), pixels).clamp(0, 1)
    rows = as_pictures(torch.cat((pixels, torch.where(mask, 0.5, pixels), filled), dim=3))
    return Image.fromarray(np.concatenate(rows))


def _compare(run: Run, section: config.TrainInfiller, table: Artefact[Any], network: Path) -> None:
    """Fills holes of test images with each fill, and says how near each comes."""
    started = time.monotonic()
    split, index = run.dataset.split("test"), np.array(table.origin["index"])
    fills = {LEARNED: removal.build_fill("LearnedInfill", checkpoint=str(network))}
    fills |= {name: _fill(run, name) for name in section.fills}
    lines = list(_lines(run, split, index, fills))
    artefacts.write_csv(table.path, COLUMNS, lines)
    table.write(table.path)
    runtime.record_time(table.path.parent, "compare", len(index) * len(fills) * len(KINDS), started)
    logger.info("%s: %d rows", table.path, len(lines))


def _fill(run: Run, name: str) -> removal.Fill:
    return build_fill(run, name, lambda: run.statistics)


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
                made = summaries(rows, "image", run.intervals)
                for own, other, name in zip(made, made[len(found) :], found, strict=False):
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
