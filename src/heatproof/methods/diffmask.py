"""Vision DiffMask as an attribution method: a network that `train-diffmask` trained for the classifier says which patches it needs."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from heatproof.errors import InputError, MissingInputError, ModelError
from heatproof.methods import options, rows
from heatproof.methods.cam import INTERPOLATIONS, to_image_size
from heatproof.models.diffmask import DiffMaskNetwork, read_explainer
from heatproof.models.hard_concrete import log_complement
from heatproof.models.hooks import frozen_eval
from heatproof.models.masking import FORMS, Masking, masking_of

RESULTS_VERSION = 1  # to be raised when numbers change, also by a change in models.diffmask or models.hard_concrete

VALUES: Mapping[str, Callable[[Tensor], Tensor]] = {
    "log_odds": lambda log_kept: log_kept - log_complement(log_kept),
    "probability": torch.exp,
    "log_probability": lambda log_kept: log_kept,
}
"""From ln P(kept)."""


@dataclass(frozen=True)
class DiffMask:
    """Vision DiffMask: how probable it is that a patch has to be kept, for the classifier to predict what it predicts.

    One forward pass through the classifier and the trained gates; nothing is drawn, and targets make no difference. With gates
    0 to k: P(kept) = P(z_0 > 0) ... P(z_k > 0). For a convolutional classifier the patches are squares of pixels, an extension
    of ours.

    Args:
        model: classifier, (N, C, H, W) -> (N, K) logits.
        checkpoint: file that train-diffmask made for this classifier.
        layer: k, the last gate that votes: -1 for all, 0 for the one that sees patch embeddings alone. Fewer than all need an
            explainer that was trained with `every_layer`.
        aggregated: False for the vote of gate k alone.
        value: "log_odds", ln P(kept) / P(replaced): above 0 where a patch is rather kept. "probability", as published, in [0, 1]:
            where gates are sure, patches come to be equal in float32, and their order is lost. "log_probability": <= 0; it
            orders patches as the others do. The first and the last keep the order wherever gates tell patches apart.
        interpolation: "bilinear" or "nearest", from patches to pixels.
        mul_activation: factor of the gates' logits, for a checkpoint of the published code, which does not hold it. None: as the
            checkpoint says, else 15, the published default, with a warning.
        classifier_sha256: of the weights of `model`; the checkpoint must belong to them. None: it is not checked.

    Raises:
        MissingInputError: there is no checkpoint yet.
        ModelError: the checkpoint is no DiffMask's, belongs to another classifier, or has not learnt masks of this layer.

    Reference:
        Nalmpantis et al.: "Vision DiffMask: Faithful interpretation of vision transformers with differentiable patch
        masking", CVPR Workshops 2023, arXiv:2304.06391.
    """

    model: nn.Module
    checkpoint: str
    layer: int = -1
    aggregated: bool = True
    value: str = "log_odds"
    interpolation: str = "bilinear"
    mul_activation: float | None = None
    classifier_sha256: str | None = None
    _explainer: DiffMaskNetwork = field(init=False, repr=False)
    _masking: Masking = field(init=False, repr=False)

    def __post_init__(self) -> None:
        options.one_of(self, "value", self.value, VALUES)
        options.one_of(self, "interpolation", self.interpolation, INTERPOLATIONS)
        explainer = self._read()
        form = FORMS[int(explainer.form)]
        try:
            # The class token's row is dropped, so nobody needs to read it.
            masking = masking_of(self.model, form, patch=int(explainer.patch) or None)
        except ModelError as error:
            raise ModelError(f"{self.checkpoint}: masks the {form} of a vision transformer, but {error}") from error
        object.__setattr__(self, "_explainer", explainer)
        object.__setattr__(self, "_masking", masking)

    def patch_maps(self, images: Tensor, targets: Tensor) -> Tensor:
        """Maps (N, h, w), one value for each patch; `targets` make no difference."""
        rows.check_batch(images, targets)
        with frozen_eval(self.model), torch.no_grad():
            passed = self._masking.intact(images.detach().clone())
            rows.chosen(passed.logits, targets)
            explainer = self._explainer.to(images.device)
            try:
                explainer.check_fits(passed.hidden)
            except ModelError as error:
                raise ModelError(f"{self.checkpoint}: {error}") from error
            log_kept = explainer.log_kept([state.float() for state in passed.hidden], aggregated=self.aggregated)
            maps: Tensor = VALUES[self.value](log_kept[:, :, self.layer]).unflatten(1, passed.grid)
            return maps

    def __call__(self, images: Tensor, targets: Tensor) -> Tensor:
        """Maps (N, H, W), float32, for `images` (N, C, H, W); `targets` (N,) make no difference."""
        return to_image_size(self.patch_maps(images, targets), images, self.interpolation)

    def _read(self) -> DiffMaskNetwork:
        path = Path(self.checkpoint)
        if not path.is_file():
            raise MissingInputError(
                f"checkpoint: {path}: no such file; correct the path, or make it with train-diffmask"
            )
        if self.mul_activation is not None and not self.mul_activation > 0:
            raise InputError(f"DiffMask: mul_activation: {self.mul_activation} must be above 0")
        explainer = read_explainer(path, self.mul_activation)
        trained_for, gates = explainer.classifier_sha256, len(explainer.gate.g_hat)
        if None not in (self.classifier_sha256, trained_for) and trained_for != self.classifier_sha256:
            raise ModelError(
                f"{path}: was trained for another classifier (weights {str(trained_for)[:12]}..., not "
                f"{str(self.classifier_sha256)[:12]}...); run train-diffmask again, or name its own checkpoint"
            )
        if not -gates <= self.layer < gates:
            raise ModelError(f"{path}: layer {self.layer} of DiffMask; it has gates 0 to {gates - 1}, and -1 for all")
        if self.layer % gates != gates - 1 and not explainer.every_layer:
            raise ModelError(
                f"{path}: layer {self.layer} of DiffMask; only masks of all gates were learnt: take layer -1, or run "
                "train-diffmask with train_diffmask.every_layer=true"
            )
        return explainer
