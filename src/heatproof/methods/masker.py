"""Maskers as attribution methods: what `train-masker` trained says in one forward pass which pixels count."""

import copy
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from heatproof import checks
from heatproof.errors import InputError, ModelError
from heatproof.methods import options, rows
from heatproof.models import masker as network
from heatproof.models.hooks import frozen_eval
from heatproof.models.layout import Layouts
from heatproof.models.masker_files import SavedMasker, read_masker
from heatproof.models.weights import put_weights

RESULTS_VERSION = 1  # to be raised when numbers change, also by a change in models.masker

OUTPUTS = ("mask", "logits")
CLASSIFIERS = ("explained", "checkpoint")


@dataclass(frozen=True)
class Masker:
    """A trained masker: one network reads the classifier's activations and gives the mask that keeps what counts.

    Maps (N, H, W) in [0, 1]: which share of each pixel is kept. They are of no class, unless the masker was trained with the
    class; then they are of the targets. A masker learns from many images: its map is what it expects to count, not what the
    classifier's output depends on in this one. Pixels of one cell of the mask are equal; their ranks are ties.

    The activations are those of the explained classifier, so that a map changes when the classifier does, as sanity checks
    ask. FIX was trained on them. CA was trained beside a classifier that changed: explain that one (classifier.pth beside the
    masker), or set `classifier: checkpoint` for maps that a comparison on the first classifier can show, as the published
    scores do; such maps tell nothing of the explained classifier.

    Args:
        model: classifier, with the layers that the masker reads.
        checkpoint: file of train-masker or import-masker.
        use_p: share of the image to keep, for a masker that was trained with areas.
        output: "mask", or "logits": before the sigmoid. A mask is a share, which F1 and the statistics of masks need, and in
            float32, from which ranks are made, distinct below a logit of 16. Stored in 16 bits, values above 0.9995 become
            one: to compare maps value by value, as sanity checks do, take logits.
        classifier: whose activations are read, "explained" or "checkpoint".
        classifier_sha256: of the explained classifier's weights; checked where it is given.

    Raises:
        MissingInputError: there is no such file.
        ModelError: it is no masker, or of another classifier; the model has no such layers.
        InputError: an option is out of range, or `use_p` and the masker do not fit.

    Reference:
        Phang, Park, Geras, arXiv:2010.09750; Zolna, Geras, Cho, arXiv:1805.08249.
    """

    model: nn.Module
    checkpoint: str
    use_p: float | None = None
    output: str = "mask"
    classifier: str = "explained"
    classifier_sha256: str | None = None
    _masker: network.Masker = field(init=False, repr=False, compare=False)
    _taps: Layouts = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        options.one_of(self, "output", self.output, OUTPUTS)
        options.one_of(self, "classifier", self.classifier, CLASSIFIERS)
        saved = read_masker(Path(self.checkpoint))
        if self.use_p is not None:
            checks.fraction("Masker: use_p", self.use_p)
        if saved.form.takes_area != (self.use_p is not None):
            raise InputError(
                f"Masker: {self.checkpoint} was trained with wanted areas; set use_p, the share to keep"
                if saved.form.takes_area
                else f"Masker: {self.checkpoint} was trained without wanted areas; leave use_p out"
            )
        self._check_classifier(saved)
        read = self.model if self.classifier == "explained" or saved.classifier is None else self._adapted(saved)
        device = next((parameter.device for parameter in self.model.parameters()), torch.device("cpu"))
        object.__setattr__(self, "_masker", saved.build(self.checkpoint).to(device).requires_grad_(False))
        object.__setattr__(self, "_taps", saved.form.layouts_in(read))

    def __call__(self, images: Tensor, targets: Tensor) -> Tensor:
        """Masks (N, H, W) of `images` (N, C, H, W); `targets` (N,) matter where the masker takes the class."""
        rows.check_batch(images, targets)
        form, size = self._masker.form, images.shape[2:]
        areas = None if self.use_p is None else images.new_full((len(images),), self.use_p)
        classes = None if form.classes is None else targets
        classifier = self._taps.model
        with frozen_eval(classifier), torch.no_grad(), network.tapped(self._taps, images) as activations:
            classifier(images.detach().clone())  # a copy: the first layer may be in-place
            logits = self._masker.logits(activations(), size, areas=areas, classes=classes)
        cells = logits if self.output == "logits" else self._masker.masked(logits)
        return self._masker.enlarged(cells, size).float()

    def _check_classifier(self, saved: SavedMasker) -> None:
        known = (
            {saved.classifier_sha256}
            if self.classifier == "explained"
            else {saved.classifier_sha256, saved.started_from}
        )
        if self.classifier_sha256 is None or "" in known or self.classifier_sha256 in known:
            return
        if self.classifier == "explained" and self.classifier_sha256 == saved.started_from:
            raise ModelError(
                f"Masker: {self.checkpoint} reads the classifier as CA training has left it, not the one explained here; "
                "explain classifier.pth beside it, or set classifier: checkpoint"
            )
        raise ModelError(
            f"Masker: {self.checkpoint} is of another classifier (weights {saved.classifier_sha256[:12]}..., "
            f"not {self.classifier_sha256[:12]}...); train it again (train-masker), or mend checkpoint"
        )

    def _adapted(self, saved: SavedMasker) -> nn.Module:
        """The classifier with the weights that came with the masker."""
        assert saved.classifier is not None
        adapted = copy.deepcopy(self.model)
        put_weights(adapted, saved.classifier, where=self.checkpoint, arch=type(adapted).__name__)
        return adapted.requires_grad_(False)
