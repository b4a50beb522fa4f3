"""One step of the training of maskers: FIX leaves the classifier as it is, CA trains it beside the masker as its adversary.

One step with images x and labels y, m = masker(activations of f(x)):

    FIX  one forward pass of [x m, x (1 - m)] through f; the gradient goes through f to m alone.
    CA   f takes a step on the clean images; then x m and x (1 - m) go through it, one after the other; the gradients of f
         (cross-entropy of both) and of the masker are both taken before either moves.

CA keeps a zoo of earlier classifiers. At some steps, drawn with `historic_probability`, the classifier does not learn from the
masked images; `consulted`: a random member of the zoo judges them; `as_published`: the live one does all the same.

Reference:
    Phang, Park, Geras, arXiv:2010.09750; Zolna, Geras, Cho, arXiv:1805.08249.
"""

import contextlib
import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from heatproof import plugins
from heatproof.errors import DivergedError, InputError
from heatproof.methods.rows import check_reached
from heatproof.models import Normalization
from heatproof.models.hooks import frozen_eval
from heatproof.models.masker import Masker, tapped
from heatproof.models.probabilities import Kind, cross_entropy, kind_of
from heatproof.models.weights import State
from heatproof.removal import Generating
from heatproof.training.augmentation import Augmentation
from heatproof.training.checkpoints import copied
from heatproof.training.mask_objectives import Side, Term, TermLoss, term_loss


@dataclass(frozen=True)
class MaskerRecipe:
    """How to train; the defaults are the published ones of FIX.

    Args:
        form: "fix" or "ca".
        mask_in: term of the image masked in; None leaves it out.
        mask_out: term of the image masked out; None leaves it out.
        epochs: so many; after each one comes a checkpoint.
        batch_size: images of a step; what does not fill a batch waits for another epoch.
        share: of the training images in one epoch, drawn anew for each; above 1, several passes make one epoch.
        masker_rate: learning rate of the masker's Adam.
        classifier_rate: learning rate of the classifier's SGD, with CA.
        decay_every: epochs after which both rates fall to a tenth; 0 never.
        momentum: of SGD.
        weight_decay: of both, added to the gradient.
        clip: longest gradient of the masker.
        historic: with CA, see the module's text.
        historic_probability: share of the steps without the live classifier's learning from masked images.
        zoo_every: steps between two copies of the classifier.
        zoo_size: how many copies are kept; then a random one makes room.
        areas: least and largest area that is drawn for an image, where the masker takes one.
        infiller: what stands in removed places, made from pixels in [0, 1]; None for the mean colour, 0.
        infill: the terms whose images it fills.
        augmentation: of the training images.
        precision: "float32", or "bfloat16" for autocast of classifier and masker.

    Raises:
        InputError: no term is there.
    """

    form: Literal["fix", "ca"] = "fix"
    mask_in: Term | None = Term("classification", lambda_r=1.0, lambda_tv=0.001)  # noqa: RUF009 - frozen
    mask_out: Term | None = Term("entropy", lambda_r=10.0, lambda_tv=0.001)  # noqa: RUF009 - frozen
    epochs: int = 60
    batch_size: int = 72
    share: float = 0.2
    masker_rate: float = 1e-3
    classifier_rate: float = 1e-3
    decay_every: int = 20
    momentum: float = 0.9
    weight_decay: float = 1e-4
    clip: float = 10.0
    historic: Literal["as_published", "consulted"] = "as_published"
    historic_probability: float = 0.0
    zoo_every: int = 100
    zoo_size: int = 30
    areas: tuple[float, float] = (0.25, 0.75)
    infiller: Generating | None = None
    infill: tuple[Side, ...] = ()
    augmentation: Augmentation | None = None
    precision: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self) -> None:
        if not self.terms:
            raise InputError("masker: mask_in or mask_out must have a criterion")

    @property
    def terms(self) -> dict[Side, Term]:
        """The terms that are there."""
        both: dict[Side, Term | None] = {"in": self.mask_in, "out": self.mask_out}
        return {side: term for side, term in both.items() if term is not None}


@dataclass(frozen=True)
class MaskerDraws:
    """All that is random in one step.

    Args:
        live: whether the live classifier judges the masked images and learns from them.
        member: which of the zoo judges else, as a share of its length.
        slot: whose place a new copy takes in a full zoo, as a share of its length.
        areas: (N,) where the masker takes areas.
        noise: (N, h, w) where its head draws noise.
        indices: (N,) of the images, which the noise of an infiller depends on.
    """

    live: bool = True
    member: float = 0.0
    slot: float = 0.0
    areas: Tensor | None = None
    noise: Tensor | None = None
    indices: Tensor | None = None


class MaskerTraining:
    """A masker, its classifier, their optimizers and the zoo: all that a step changes.

    Args:
        classifier, masker, recipe: as for `fit`.
        normalization: made the images from pixels, on which an infiller works; None: the images are pixels of any range.
    """

    def __init__(
        self, classifier: nn.Module, masker: Masker, recipe: MaskerRecipe, normalization: Normalization | None = None
    ):
        self.classifier, self.masker, self.recipe = classifier, masker, recipe
        self.normalization = normalization
        self.layouts = masker.form.layouts_in(classifier)
        self.kind = kind_of(classifier)
        self.of_masker = torch.optim.Adam(masker.parameters(), lr=recipe.masker_rate, weight_decay=recipe.weight_decay)
        self.of_classifier: torch.optim.SGD | None = None
        self.zoo: list[State] = []
        self.step_count = 0
        self._past: nn.Module | None = None
        if recipe.form == "ca":
            self.of_classifier = torch.optim.SGD(
                classifier.parameters(), lr=recipe.classifier_rate, momentum=recipe.momentum, weight_decay=recipe.weight_decay
            )  # fmt: skip

    @contextlib.contextmanager
    def at_work(self) -> Iterator["MaskerTraining"]:
        """Modes and gradient flags as training needs them: FIX freezes the classifier, CA trains all of it."""
        with frozen_eval(self.classifier):  # puts everything back
            if self.recipe.form == "ca":
                self.classifier.train()
                self.classifier.requires_grad_()
            self.masker.train()
            try:
                yield self
            finally:
                self.masker.eval()

    def set_rates(self, epoch: int) -> None:
        """The learning rates of an epoch (from 0)."""
        recipe = self.recipe
        factor = 0.1 ** (epoch // recipe.decay_every) if recipe.decay_every else 1.0
        for optimizer, rate in ((self.of_masker, recipe.masker_rate), (self.of_classifier, recipe.classifier_rate)):
            for group in [] if optimizer is None else optimizer.param_groups:
                group["lr"] = rate * factor

    def step(self, images: Tensor, labels: Tensor, draws: MaskerDraws) -> dict[str, Tensor]:
        """Learns from one batch: normalised images (N, C, H, W), labels (N,).

        Returns:
            Means over the batch, of what was so before the step; `gradient`: the length of the masker's gradient, unclipped.

        Raises:
            DivergedError: the loss or the gradient is not finite; nothing was changed by this step's masks.
            ModelError: in the first step, no gradient of the classifier's logits comes to the masks.
        """
        logits, activations = self._clean(images)
        clean_loss = cross_entropy(logits, labels, self.kind)
        if self.of_classifier is not None:
            self._move(self.of_classifier, clean_loss)
            self._keep(draws.slot)
        masks = self._masks(activations, images, labels, draws)
        judge, learns = self._judge(draws)
        found = self._losses(judge, images, labels, masks, logits.detach(), draws)
        if self.step_count == 0:
            judged = torch.cat(list(found.logits.values()))
            check_reached(self.classifier, judged, masks, "no masks can be learnt from it")
        # Both gradients first: a step of either changes what the other was computed with.
        wanted = list(self.masker.parameters())
        gradients = torch.autograd.grad(found.total, wanted, retain_graph=learns)
        lesson = self._gradients(self.of_classifier, found.classifier) if learns else None
        for parameter, gradient in zip(wanted, gradients, strict=True):
            parameter.grad = gradient
        length = nn.utils.clip_grad_norm_(wanted, self.recipe.clip)
        self._check(found.total, length)
        if lesson is not None and self.of_classifier is not None:
            self._apply(self.of_classifier, lesson)
        self.of_masker.step()
        self.step_count += 1
        return found.means | {"classifier_loss": clean_loss.detach(), "gradient": length}

    @torch.no_grad()
    def evaluate(
        self, images: Tensor, labels: Tensor, areas: Tensor | None = None, indices: Tensor | None = None
    ) -> dict[str, Tensor]:
        """The same means for a batch from which nothing is learnt; the live classifier in eval mode judges."""
        modes = [(module, module.training) for module in (*self.classifier.modules(), *self.masker.modules())]
        self.classifier.eval()
        self.masker.eval()
        try:
            logits, activations = self._clean(images)
            draws = MaskerDraws(areas=areas, indices=indices)
            masks = self._masks(activations, images, labels, draws)
            found = self._losses(self.classifier, images, labels, masks, logits, draws)
        finally:
            for module, mode in modes:
                module.training = mode
        return found.means | {"classifier_loss": cross_entropy(logits, labels, self.kind)}

    def state_dict(self) -> dict[str, Any]:
        """Everything the next step depends on."""
        return {
            "masker": self.masker.state_dict(),
            "of_masker": self.of_masker.state_dict(),
            "classifier": None if self.of_classifier is None else self.classifier.state_dict(),
            "of_classifier": None if self.of_classifier is None else self.of_classifier.state_dict(),
            "zoo": self.zoo,
            "steps": self.step_count,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores such a state."""
        self.masker.load_state_dict(state["masker"])
        self.of_masker.load_state_dict(state["of_masker"])
        if self.of_classifier is not None:
            self.classifier.load_state_dict(state["classifier"])
            self.of_classifier.load_state_dict(state["of_classifier"])
        self.zoo, self.step_count = list(state["zoo"]), state["steps"]

    def _clean(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        learns = self.of_classifier is not None and torch.is_grad_enabled()
        taps = tapped(self.layouts, images)
        with torch.set_grad_enabled(learns), taps as activations, self._autocast(images):
            logits = self.classifier(images)
            return logits.float(), activations()

    def _masks(self, activations: list[Tensor], images: Tensor, labels: Tensor, draws: MaskerDraws) -> Tensor:
        classes = None if self.masker.form.classes is None else labels
        with self._autocast(images):
            masks = self.masker(activations, images.shape[2:], areas=draws.areas, classes=classes, noise=draws.noise)
        full: Tensor = masks.float()
        return full

    def _losses(
        self, judge: nn.Module, images: Tensor, labels: Tensor, masks: Tensor, clean: Tensor, draws: MaskerDraws
    ) -> "MaskerLosses":
        right = clean.argmax(dim=1) == labels
        losses, logits = {}, self._judged(judge, images, masks, draws.indices)
        for side, term in self.recipe.terms.items():
            losses[side] = term_loss(term, side, masks, logits[side], labels, right, draws.areas, self.kind)
        return MaskerLosses(self.recipe.terms, losses, logits, labels, masks, right, self.kind)

    def _judged(
        self, judge: nn.Module, images: Tensor, masks: Tensor, indices: Tensor | None = None
    ) -> dict[Side, Tensor]:
        """Logits of the masked images. In eval mode no image influences another, so one pass serves both terms."""
        parts = {side: self.composed(side, images, masks, indices) for side in self.recipe.terms}
        with self._autocast(images):
            if not judge.training:
                return dict(zip(parts, judge(torch.cat(list(parts.values()))).float().chunk(len(parts)), strict=True))
            return {side: judge(part).float() for side, part in parts.items()}

    def composed(self, side: Side, images: Tensor, masks: Tensor, indices: Tensor | None = None) -> Tensor:
        """Images masked in or out by masks (N, H, W), with the infiller's pixels in what is removed."""
        kept = masks[:, None] if side == "in" else 1 - masks[:, None]
        left = images * kept
        if self.recipe.infiller is None or side not in self.recipe.infill:
            return left
        return left + self._filled(self.recipe.infiller, images, (1 - kept).detach(), indices) * (1 - kept)

    @torch.no_grad()
    def _filled(self, infiller: Generating, images: Tensor, holes: Tensor, indices: Tensor | None) -> Tensor:
        """What an infiller makes of the images' pixels, normalised as they are."""
        # Noise added to the images, and rounding, take pixels out of [0, 1]; an infiller gets none of those.
        pixels = images if self.normalization is None else self.normalization.pixels(images).clamp(0, 1)
        own = {} if indices is None else plugins.given(infiller.generate, {"indices": indices.cpu()})
        generated = infiller.generate(pixels, holes, **own)
        if generated.shape != images.shape:
            raise InputError(
                f"{type(infiller).__name__}.generate: returned shape {tuple(generated.shape)} for pixels {tuple(images.shape)}"
            )
        return generated if self.normalization is None else self.normalization(generated.clamp(0, 1))

    def _judge(self, draws: MaskerDraws) -> tuple[nn.Module, bool]:
        """Who judges the masked images, and whether the live classifier learns from them."""
        if self.of_classifier is None or draws.live:
            return self.classifier, self.of_classifier is not None
        if self.recipe.historic == "as_published":
            return self.classifier, False
        if self._past is None:
            self._past = copy.deepcopy(self.classifier).eval().requires_grad_(False)
        self._past.load_state_dict(self.zoo[int(draws.member * len(self.zoo))])
        return self._past, False

    def _keep(self, slot: float) -> None:
        """Puts a copy of the classifier into the zoo, where one is due."""
        recipe = self.recipe
        if recipe.historic_probability == 0 or (
            self.zoo and self.step_count % recipe.zoo_every != recipe.zoo_every - 1
        ):
            return
        if len(self.zoo) < recipe.zoo_size:
            self.zoo.append(copied(self.classifier))
        else:
            self.zoo[int(slot * len(self.zoo))] = copied(self.classifier)

    def _move(self, optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
        self._apply(optimizer, self._gradients(optimizer, loss))

    @staticmethod
    def _gradients(optimizer: torch.optim.Optimizer | None, loss: Tensor) -> Sequence[Tensor | None]:
        assert optimizer is not None
        wanted = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        found: Sequence[Tensor | None] = torch.autograd.grad(loss, wanted, allow_unused=True)
        return found

    @staticmethod
    def _apply(optimizer: torch.optim.Optimizer, gradients: Sequence[Tensor | None]) -> None:
        wanted = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        for parameter, gradient in zip(wanted, gradients, strict=True):
            parameter.grad = gradient
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def _check(self, loss: Tensor, length: Tensor) -> None:
        values = torch.stack([loss.detach(), length]).tolist()
        if not all(map(math.isfinite, values)):
            raise DivergedError(
                f"training of the masker diverged in step {self.step_count + 1}: loss {values[0]}, length of its gradient "
                f"{values[1]}; masks or images hold NaN or infinity: try a smaller masker_rate than {self.recipe.masker_rate:g}"
            )

    @contextlib.contextmanager
    def _autocast(self, images: Tensor) -> Iterator[None]:
        if self.recipe.precision == "float32":
            yield
            return
        with torch.autocast(images.device.type, dtype=torch.bfloat16):
            yield


@dataclass(frozen=True)
class MaskerLosses:
    """The terms of a batch and what they were made of."""

    terms: Mapping[Side, Term]
    losses: Mapping[Side, TermLoss]
    logits: Mapping[Side, Tensor]
    labels: Tensor
    masks: Tensor
    right: Tensor
    kind: Kind

    @property
    def total(self) -> Tensor:
        """The masker's loss."""
        return torch.stack([term.weight * self.losses[side].total for side, term in self.terms.items()]).sum()

    @property
    def classifier(self) -> Tensor:
        """What the classifier learns from masked images: their cross-entropy."""
        terms = self.terms.items()
        return torch.stack(
            [t.weight * cross_entropy(self.logits[side], self.labels, self.kind) for side, t in terms]
        ).sum()

    @property
    def means(self) -> dict[str, Tensor]:
        """Means over the batch, by name."""
        found = {
            "loss": self.total.detach(),
            "accuracy": self.right.float().mean(),
            "area": self.masks.detach().mean(),
        }
        for side, loss in self.losses.items():
            logits = self.logits[side].detach()
            found |= {
                f"{side}_classifier_loss": cross_entropy(logits, self.labels, self.kind),
                f"{side}_accuracy": (logits.argmax(dim=1) == self.labels).float().mean(),
                f"{side}_reached": loss.reached.mean(),
                f"{side}_size": loss.size.detach().mean(),
            }
        return found
