"""import-masker: a checkpoint of the published code becomes a masker and its classifier's weights.

Reads the checkpoint; writes masker.pth, classifier.pth and classifier.json (its normalisation, ImageNet's) into a folder.
"""

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path

import torch

from heatproof import artefacts, records
from heatproof.errors import ModelError
from heatproof.models import Normalization, load
from heatproof.models.loading import classes_in
from heatproof.models.masker import discovered
from heatproof.models.masker_files import PUBLISHED_TAPS, read_published
from heatproof.models.weights import put_weights
from heatproof.training.checkpoints import save_tensors

logger = logging.getLogger(__name__)

IMAGENET = Normalization((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
PUBLISHED_ARCH = "torchvision.models.resnet50"


def import_masker(
    file: Path, target: Path, arch: str = PUBLISHED_ARCH, taps: Sequence[str] = PUBLISHED_TAPS, side: int = 224
) -> None:
    """Writes the masker of a published checkpoint, and its classifier, into the folder `target`.

    Args:
        file: the checkpoint.
        target: folder.
        arch: the classifier, as `model.arch` of a configuration.
        taps: its layers that the published indices 0, 1, ... stand for.
        side: of the pictures that it takes.

    Raises:
        ModelError: there is no such file, or its weights do not fit masker or classifier; nothing is written.
    """
    saved, weights = read_published(file, taps)
    if not weights:
        raise ModelError(f"{file}: state_dict_classifier is empty")
    where = f"{file}: state_dict_classifier"
    classes = classes_in(weights, arch, channels=3, where=where) or 1000
    module = load(arch, num_classes=classes, channels=3, normalization=IMAGENET).module
    put_weights(module, weights, where=where, arch=arch)
    found = discovered(module, torch.zeros(1, 3, side, side), saved.form).channels
    if found != saved.form.channels:
        raise ModelError(
            f"{file}: the masker reads {saved.form.channels} channels, but {arch} gives {found}; mend --taps"
        )
    path = target / "classifier.pth"
    save_tensors(path, weights)
    records.write(path.with_suffix(".json"), {"imported": file.name}, [path], normalization=IMAGENET.plain)
    save_tensors(target / "masker.pth", dataclasses.replace(saved, classifier_sha256=artefacts.sha256(path)).content())
    logger.info(
        "%s: the file does not name its classifier, layers and normalisation: taken as %s, these layers, and ImageNet's mean and "
        "standard deviation", file, arch,
    )  # fmt: skip
    logger.info("%s: reads %s; explain %s with it", target / "masker.pth", ", ".join(saved.form.taps), path)
