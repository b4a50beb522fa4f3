"""Attribution from gradients with respect to the image.

Each class is a factory: built with a model and options, called with `(images, targets)`. The maps have the images'
shape, (N, C, H, W), one value for each channel, with its sign; how channels become one value per pixel is the caller's
decision (`reduction.reduce_channels`). What is explained is the target's logit, not its probability.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from heatproof import plugins, seeding
from heatproof.errors import InputError, ModelError
from heatproof.methods import options, rows, rules, secants
from heatproof.methods.folding import quickened
from heatproof.methods.lrp import Lrp
from heatproof.methods.options import Baseline, BaselineImage
from heatproof.methods.protocol import Method
from heatproof.models.hooks import dtype_of
from heatproof.models.normalization import Normalization
from heatproof.models.targets import network_and_scalar

logger = logging.getLogger(__name__)

__all__ = [
    "Deconvolution",
    "DeepLift",
    "Gradient",
    "GradientShap",
    "GuidedBackprop",
    "InputXGradient",
    "IntegratedGradients",
    "Lrp",
    "SmoothGrad",
    "SmoothGradSquared",
    "VarGrad",
]

RESULTS_VERSION = 2  # to be raised when numbers change, also by a change in rows, rules, folding or variants

MISSED_WITHOUT_A_WORD = 0.1
"""Share of the logits' differences that integrated gradients may miss before it says so: 50 steps of a trained network miss less."""


@dataclass(frozen=True)
class Gradient:
    """Saliency: the gradient of the target's logit with respect to the image.

    Args:
        model: classifier, (N, C, H, W) -> (N, K) logits.
        absolute: the gradient's absolute value, as in the paper; False keeps the sign.

    Reference:
        Simonyan, Vedaldi, Zisserman: "Deep inside convolutional networks", ICLR workshop 2014, arXiv:1312.6034.

    >>> model = nn.Sequential(nn.Flatten(), nn.Linear(2, 1, bias=False))
    >>> _ = nn.init.constant_(model[1].weight, -3.0)
    >>> Gradient(model)(torch.ones(1, 1, 1, 2), torch.tensor([0])).flatten().tolist()
    [3.0, 3.0]
    """

    model: nn.Module
    absolute: bool = True

    def __call__(self, images: Tensor, targets: Tensor) -> Tensor:
        """Explains the logits of `targets` (N,) for `images` (N, C, H, W): maps (N, C, H, W), float32."""
        rows.check_batch(images, targets)
        with rows.explaining(self.model):
            gradients = rows.logit_gradients(self.model, images, targets)
        return (gradients.abs() if self.absolute else gradients).float()


@dataclass(frozen=True)
class InputXGradient:
    """Image times gradient, signed: for a linear model without bias, each value's share of the logit.

    Args:
        model: classifier, (N, C, H, W) -> (N, K) logits.

    Reference:
        Shrikumar, Greenside, Kundaje: "Learning important features through propagating activation differences",
        ICML 2017, arXiv:1704.02685 (discussed there as a baseline).

    >>> model = nn.Sequential(nn.Flatten(), nn.Linear(2, 1, bias=False))
    >>> _ = nn.init.constant_(model[1].weight, -3.0)
    >>> InputXGradient(model)(torch.tensor([[[[1.0, 2.0]]]]), torch.tensor([0])).flatten().tolist()
    [-3.0, -6.0]
    """

    model: nn.Module

    def __call__(self, images: Tensor, targets: Tensor) -> Tensor:
        """Explains the logits of `targets` (N,) for `images` (N, C, H, W): maps (N, C, H, W), float32, signed."""
        rows.check_batch(images, targets)
        with rows.explaining(self.model):
            gradients = rows.logit_gradients(self.model, images, targets)
        return (images.detach() * gradients).float()


class Quadrature(NamedTuple):
    """Points in [0, 1] and their weights: an integral over [0, 1] is the sum of weight * value at each point."""

    points: NDArray[np.float64]
    weights: NDArray[np.float64]


def gauss_legendre(steps: int) -> Quadrature:
    """Gauss-Legendre quadrature on (0, 1): exact for polynomials up to degree 2 * steps - 1.

    >>> gauss_legendre(1)
    Quadrature(points=array([0.5]), weights=array([1.]))
    """
    points, weights = np.polynomial.legendre.leggauss(steps)
    return Quadrature((1 + points) / 2, weights / 2)


def riemann_left(steps: int) -> Quadrature:
    """Points i / steps, equal weights: the form of the paper, from 0.

    >>> riemann_left(2)
    Quadrature(points=array([0. , 0.5]), weights=array([0.5, 0.5]))
    """
    return Quadrature(np.arange(steps) / steps, np.full(steps, 1 / steps))


def riemann_trapezoid(steps: int) -> Quadrature:
    """As Captum has it: points evenly spaced with both ends, weights 1/steps, half of that at the ends.

    The weights sum to 1 - 1/steps, so the maps fall short of completeness by that share: for comparisons only.

    >>> riemann_trapezoid(3)
    Quadrature(points=array([0. , 0.5, 1. ]), weights=array([0.16666667, 0.33333333, 0.16666667]))
    """
    weights = np.full(steps, 1 / steps)
    weights[[0, -1]] /= 2
    return Quadrature(np.linspace(0, 1, steps), weights)


QUADRATURES: Mapping[str, Callable[[int], Quadrature]] = {
    "gausslegendre": gauss_legendre,
    "riemann_left": riemann_left,
    "riemann_trapezoid": riemann_trapezoid,
}


@dataclass(frozen=True)
class IntegratedGradients:
    """Image minus baseline, times the mean gradient on the straight line from one to the other.

    Complete: the values of a map sum to logit(image) - logit(baseline), up to the error of the quadrature. Where a batch misses
    it by more than a tenth, a message is logged, once. What is under `torch.no_grad` in a part of the model shows here only.

    Args:
        model: classifier, (N, C, H, W) -> (N, K) logits.
        steps: points on the line.
        quadrature: which points and weights: gausslegendre, riemann_left, riemann_trapezoid.
        baseline: in units of normalised images: one number (0 is the mean colour), one per channel, or "black".
        normalization: the model's; needed for the black baseline, provided by the stage.
        rows_per_forward: rows (image, step) in one forward and backward pass; the memory knob. None: `rows.rows_of`.

    Reference:
        Sundararajan, Taly, Yan: "Axiomatic attribution for deep networks", ICML 2017, arXiv:1703.01365, equation 1.

    >>> model = nn.Sequential(nn.Flatten(), nn.Linear(2, 1, bias=False))
    >>> _ = nn.init.constant_(model[1].weight, -3.0)
    >>> maps = IntegratedGradients(model, steps=4, baseline=1.0)(torch.tensor([[[[1.0, 2.0]]]]), torch.tensor([0]))
    >>> [round(value, 5) for value in maps.flatten().tolist()]
    [-0.0, -3.0]
    """

    model: nn.Module
    steps: int = 50
    quadrature: str = "gausslegendre"
    baseline: Baseline = 0.0
    normalization: Normalization | None = None
    rows_per_forward: int | None = None
    _warned: list[float] = field(default_factory=list, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        options.one_of(self, "quadrature", self.quadrature, QUADRATURES)
        options.at_least(self, 2 if self.quadrature == "riemann_trapezoid" else 1, steps=self.steps)
        options.at_least(self, 1, rows_per_forward=self.rows_per_forward)
        BaselineImage(self.baseline, self.normalization)

    def __call__(self, images: Tensor, targets: Tensor) -> Tensor:
        """Explains the logits of `targets` (N,) for `images` (N, C, H, W): maps (N, C, H, W), float32, signed."""
        rows.check_batch(images, targets)
        baseline = BaselineImage(self.baseline, self.normalization)(images)
        with rows.explaining(self.model):
            with quickened(self.model, images) as layout:
                way = images.detach().contiguous(memory_format=layout) - baseline
                maps = self._integrated(way, baseline, targets)
            self._check_sums(maps, images.detach(), baseline, targets)
        return maps.float().contiguous()

    def _integrated(self, way: Tensor, baseline: Tensor, targets: Tensor) -> Tensor:
        """The integral over the way (N, C, H, W) from the baseline (1, C, 1, 1) to the images."""
        points, weights = QUADRATURES[self.quadrature](self.steps)

        def make(step: int, chosen: slice, out: Tensor) -> None:
            torch.add(baseline, way[chosen], alpha=float(points[step]), out=out)

        total = torch.zeros_like(way)
        size = rows.rows_of(way, self.rows_per_forward)
        for batch, batch_targets, pieces in rows.streamed(way, targets, self.steps, size, make):
            gradients = rows.logit_gradients(self.model, batch, batch_targets)
            for piece in pieces:
                total[piece.images].add_(gradients[piece.rows], alpha=float(weights[piece.sample]))
        return total.mul_(way)

    def _check_sums(self, maps: Tensor, images: Tensor, baseline: Tensor, targets: Tensor) -> None:
        """Warns, once for a method, where the maps (N, C, H, W) miss the differences of the logits by much."""
        if self._warned:
            return
        with torch.no_grad():
            start = rows.chosen(
                rows.logits_of(self.model, baseline.expand_as(images[:1]).clone()).expand(len(images), -1), targets
            )
            batches = zip(
                images.split(rows.rows_of(images, self.rows_per_forward)),
                targets.split(rows.rows_of(images, self.rows_per_forward)),
                strict=True,
            )
            ends = torch.cat(
                [rows.chosen(rows.logits_of(self.model, batch.clone()), classes) for batch, classes in batches]
            )
        differences = ends - start
        missed = (maps.flatten(1).sum(dim=1) - differences).abs().sum() / differences.abs().sum()
        if bool(missed > MISSED_WITHOUT_A_WORD):
            self._warned.append(float(missed))
            logger.warning(
                "IntegratedGradients: the maps of %d images miss the differences of the logits by %.0f %% (%d steps, %s); take more "
                "steps; where that does not help, a part of %s has no gradient",
                len(images),
                100 * missed,
                self.steps,
                self.quadrature,
                type(self.model).__name__,
            )


@dataclass(frozen=True)
class GuidedBackprop:
    """The gradient, of which each ReLU lets only the positive part through where it was active.

    Each call of a ReLU or ReLU6 follows the rule: module or function, in-place or not, shared or not.

    Args:
        model: classifier with ReLUs, (N, C, H, W) -> (N, K) logits.

    Raises:
        ModelError: on the call, where the model calls no ReLU.

    Reference:
        Springenberg, Dosovitskiy, Brox, Riedmiller: "Striving for simplicity", ICLR workshop 2015, arXiv:1412.6806.
    """

    model: nn.Module

    def __call__(self, images: Tensor, targets: Tensor) -> Tensor:
        """Explains the logits of `targets` (N,) for `images` (N, C, H, W): maps (N, C, H, W), float32, signed."""
        return _positive_gradients(self.model, images, targets, "guided")


@dataclass(frozen=True)
class Deconvolution:
    """The gradient, of which each ReLU lets only the positive part through, active or not.

    Args:
        model: classifier with ReLUs, (N, C, H, W) -> (N, K) logits.

    Raises:
        ModelError: on the call, where the model calls no ReLU.

    Reference:
        Zeiler, Fergus: "Visualizing and understanding convolutional networks", ECCV 2014, arXiv:1311.2901.
    """

    model: nn.Module

    def __call__(self, images: Tensor, targets: Tensor) -> Tensor:
        """Explains the logits of `targets` (N,) for `images` (N, C, H, W): maps (N, C, H, W), float32, signed."""
        return _positive_gradients(self.model, images, targets, "deconvolution")


def _positive_gradients(
    model: nn.Module, images: Tensor, targets: Tensor, rule: Literal["guided", "deconvolution"]
) -> Tensor:
    rows.check_batch(images, targets)
    with rows.explaining(model):
        inputs = rows.leaf(images)
        with rules.PositiveGradients(rule) as mode:
            logits = rows.logits_of(model, inputs.clone())
        scores = rows.chosen(logits, targets)
        rows.check_reached(model, scores, inputs)
        mode.check(model, logits, inputs)
        return torch.autograd.grad(scores.sum(), inputs)[0].float()


BASES: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "gradient": ("heatproof.methods.gradient.Gradient", {"absolute": False}),
    "input_x_gradient": ("heatproof.methods.gradient.InputXGradient", {}),
    "integrated_gradients": ("heatproof.methods.gradient.IntegratedGradients", {}),
    "guided_backprop": ("heatproof.methods.gradient.GuidedBackprop", {}),
    "deep_lift": ("heatproof.methods.gradient.DeepLift", {}),
}
"""Short names of the methods that SmoothGrad and its kin may run over, and options that differ from their defaults."""


def noisy_moments(
    explain: Method,
    images: Tensor,
    targets: Tensor,
    samples: int,
    add_noise: Callable[[int, slice, Tensor], object],
    rows_per_forward: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Mean and population variance of a method's maps over noisy copies of each image.

    Args:
        explain: the method.
        images: (N, C, H, W).
        targets: (N,).
        samples: copies of each image, S.
        add_noise: called as add_noise(sample, chosen, out) with out = images[chosen]; adds this sample's noise to out.
        rows_per_forward: noisy images given to the method at once.

    Returns:
        Mean and variance, each of a map's shape, float32. The mean of the squares is variance + mean ** 2.
    """

    def make(sample: int, chosen: slice, out: Tensor) -> None:
        out.copy_(images[chosen])
        add_noise(sample, chosen, out)

    images = images.detach()
    mean, squares = torch.zeros(()), torch.zeros(())
    for batch, batch_targets, pieces in rows.streamed(
        images, targets, samples, rows.rows_of(images, rows_per_forward), make
    ):
        maps = explain(batch, batch_targets)
        if mean.ndim == 0:
            mean = maps.new_zeros((len(images), *maps.shape[1:]))
            squares = torch.zeros_like(mean)
        for piece in pieces:
            # Welford's recurrence: the textbook's difference of two large sums would lose a small variance.
            before = maps[piece.rows] - mean[piece.images]
            mean[piece.images] += before / (piece.sample + 1)
            squares[piece.images] += before * (maps[piece.rows] - mean[piece.images])
    return mean, squares / samples


@dataclass(frozen=True)
class _OverNoise:
    """The options of SmoothGrad and its kin, and the run over noisy copies that they share.

    What is drawn for an image depends on (seed, index) only.
    """

    model: nn.Module
    base: str = "gradient"
    base_options: Mapping[str, Any] = field(default_factory=dict)
    samples: int = 25
    stdev: float = 0.15
    stdev_mode: str = "range"
    seed: int = 0
    normalization: Normalization | None = None
    rows_per_forward: int | None = None

    def __post_init__(self) -> None:
        options.at_least(self, 1, samples=self.samples, rows_per_forward=self.rows_per_forward)
        options.at_least(self, 0, stdev=self.stdev)
        options.one_of(self, "stdev_mode", self.stdev_mode, ("range", "absolute"))
        _ = self._explain  # a wrong base is told now, not at the first image

    @cached_property
    def _explain(self) -> Method:
        path, given = BASES.get(self.base, (self.base, {}))
        options, provided = {**given, **self.base_options}, {"normalization": self.normalization}
        explain: Method = plugins.build(path, plugins.resolve(path), options, self.model, provided=provided)
        return explain

    def _moments(self, images: Tensor, targets: Tensor, indices: Tensor | None) -> tuple[Tensor, Tensor]:
        rows.check_batch(images, targets)
        drawn = indices.tolist() if indices is not None else [0] * len(images)
        generators = [seeding.generator(self.seed, "smoothgrad", index) for index in drawn]
        stdevs = self._stdevs(images)

        def add_noise(_: int, chosen: slice, out: Tensor) -> None:
            # Sample follows sample, so each image's generator goes on where its last sample ended.
            out.addcmul_(_normal(generators[chosen], out), stdevs[chosen])

        return noisy_moments(self._explain, images, targets, self.samples, add_noise, self.rows_per_forward)

    def _stdevs(self, images: Tensor) -> Tensor:
        """Standard deviation of each image's noise, (N, 1, 1, 1)."""
        images = images.detach()
        if self.stdev_mode == "absolute":
            return images.new_full((len(images), 1, 1, 1), self.stdev)
        return self.stdev * (images.amax(dim=(1, 2, 3), keepdim=True) - images.amin(dim=(1, 2, 3), keepdim=True))


@dataclass(frozen=True)
class SmoothGrad(_OverNoise):
    """The mean of a method's maps over noisy copies of the image.

    Args:
        model: classifier, (N, C, H, W) -> (N, K) logits.
        base: the method: gradient (signed), input_x_gradient, integrated_gradients, guided_backprop, deep_lift, or
            the dotted path of a factory.
        base_options: its options.
        samples: noisy copies of each image.
        stdev: standard deviation of the Gaussian noise added to the normalised image.
        stdev_mode: its unit: "range" (the image's maximum minus its minimum, as in the paper) or "absolute" (as Captum).
        seed: the root seed; provided by the stage.
        normalization: the model's, for a base that wants it; provided by the stage.
        rows_per_forward: noisy images given to the method at once; the memory knob.

    Reference:
        Smilkov, Thorat, Kim, Viégas, Wattenberg: "SmoothGrad", 2017, arXiv:1706.03825.
    """

    def __call__(self, images: Tensor, targets: Tensor, *, indices: Tensor | None = None) -> Tensor:
        """Explains the logits of `targets` (N,) for `images` (N, C, H, W): maps of the base's shape, float32."""
        return self._moments(images, targets, indices)[0]


@dataclass(frozen=True)
class SmoothGradSquared(_OverNoise):
    """The mean of the squares of a method's maps over noisy copies of the image; at least 0.

    Args and noise: as `SmoothGrad`.

    Reference:
        Hooker, Erhan, Kindermans, Kim: "A benchmark for interpretability methods in deep neural networks",
        NeurIPS 2019, arXiv:1806.10758, section 3.
    """

    def __call__(self, images: Tensor, targets: Tensor, *, indices: Tensor | None = None) -> Tensor:
        """Explains the logits of `targets` (N,) for `images` (N, C, H, W): maps of the base's shape, float32, >= 0."""
        mean, variance = self._moments(images, targets, indices)
        return variance + mean.square()


@dataclass(frozen=True)
class VarGrad(_OverNoise):
    """The (population) variance of a method's maps over noisy copies of the image; at least 0.

    Args and noise: as `SmoothGrad`.

    Reference:
        Adebayo, Gilmer, Goodfellow, Kim: "Local explanation methods for deep neural networks lack sensitivity to
        parameter values", ICLR workshop 2018, arXiv:1810.03307.
    """

    def __call__(self, images: Tensor, targets: Tensor, *, indices: Tensor | None = None) -> Tensor:
        """Explains the logits of `targets` (N,) for `images` (N, C, H, W): maps of the base's shape, float32, >= 0."""
        return self._moments(images, targets, indices)[1]


@dataclass(frozen=True)
class DeepLift:
    """DeepLift, rescale rule: image minus baseline, times multipliers that run back through secants.

    A nonlinearity's multiplier is (y - y_baseline) / (x - x_baseline) in place of its derivative; below a difference
    of 1e-6 it is the derivative. Convolutions, linear layers, batch norm and mean pooling keep their
    gradients, being linear. A product of two activations (a gate, attention) counts each factor with the mean of the other
    for image and baseline; softmax and layer norm are made of such functions. It makes no difference how a function
    is spelt: as a module or function, in-place or not, a ReLU as `clamp` or `maximum` or with a mask.

    The values of a map sum to logit(image) - logit(baseline); this is checked. (Of a `Retargeted` model that is not linear in
    the outputs, what is explained is the scalar's gradient at the image's outputs.)

    Args:
        model: classifier, (N, C, H, W) -> (N, K) logits.
        baseline: in units of normalised images: one number (0 is the mean colour), one per channel, or "black".
        max_pool: "gradient": only the image's own maximum counts, as in Captum wherever a ReLU stands before the
            pool; the sum may then miss the difference of the logits by a few percent. "rescale": the difference
            of the pool's outputs goes to the larger of the two maxima, and the sum is exact.
        normalization: the model's; needed for the black baseline, provided by the stage.

    Raises:
        ModelError: on the call, where the model runs an operation that has no rule or cannot be seen (in a scripted module, in
            an autograd function), or where a map does not sum to the difference, as with a part under `torch.no_grad`.

    Reference:
        Shrikumar, Greenside, Kundaje: "Learning important features through propagating activation differences",
        ICML 2017, arXiv:1704.02685, section 3.5.1. The rule for products is the Shapley value of two factors.
    """

    model: nn.Module
    baseline: Baseline = 0.0
    max_pool: str = "gradient"
    normalization: Normalization | None = None

    def __post_init__(self) -> None:
        options.one_of(self, "max_pool", self.max_pool, ("gradient", "rescale"))
        BaselineImage(self.baseline, self.normalization)

    def __call__(self, images: Tensor, targets: Tensor) -> Tensor:
        """Explains the logits of `targets` (N,) for `images` (N, C, H, W): maps (N, C, H, W), float32, signed."""
        rows.check_batch(images, targets)
        baseline = BaselineImage(self.baseline, self.normalization)(images).expand_as(images[:1])
        network, scalar = network_and_scalar(self.model)
        with rows.explaining(self.model):
            with secants.Record() as record:
                outputs0 = rows.logits_of(network, rows.leaf(baseline).clone()).detach()
            inputs = rows.leaf(images)
            with secants.Rescale(record.references, exact_pools=self.max_pool == "rescale") as rescale:
                outputs = rows.logits_of(network, inputs.clone())
            scores = rows.chosen(scalar(outputs), targets)
            rows.check_reached(self.model, scores, inputs)
            rules.check_operations("DeepLift", network, outputs, inputs, lambda operation: operation.is_linear)
            (weights,) = torch.autograd.grad(scores.sum(), outputs, retain_graph=True)
            (multipliers,) = torch.autograd.grad(outputs, inputs, weights)
        maps = multipliers * (images.detach() - baseline)
        self._check_sums(maps, weights, outputs.detach(), outputs0, rescale.lost)
        return maps.float()

    def _check_sums(
        self, maps: Tensor, weights: Tensor, outputs: Tensor, outputs0: Tensor, lost: Sequence[Tensor]
    ) -> None:
        """Checks that each map, and what its max-pools lost, sum to the difference of the outputs (N, K) with these weights."""
        # The logits are float32, whatever precision the network computes in.
        eps = max(torch.finfo(dtype).eps for dtype in (outputs.dtype, dtype_of(self.model, maps)))
        sums = options.in_double(maps).flatten(1).sum(dim=1)
        for missing in lost:
            sums += options.in_double(missing)
        weights, outputs, outputs0 = (options.in_double(values) for values in (weights, outputs, outputs0))
        differences = (weights * (outputs - outputs0)).sum(dim=1)
        size = maps.abs().flatten(1).sum(dim=1).to(sums) + (weights * (outputs.abs() + outputs0.abs())).abs().sum(dim=1)
        # Rounding errors grow from layer to layer; half of the digits are left wherever logits mean anything.
        wrong = (sums - differences).abs() > eps**0.5 * size
        if bool(wrong.any()):
            first = int(wrong.nonzero()[0])
            raise ModelError(
                f"DeepLift: {type(self.model).__name__}: a map sums to {float(sums[first]):.4g}, but the logit differs from the "
                f"baseline's by {float(differences[first]):.4g}: a part of the model depends on the image without a gradient "
                "(torch.no_grad, detach, a mask made from values), so no map of it is right; use methods.perturbation"
            )


@dataclass(frozen=True)
class GradientShap:
    """Expected gradients: (image + noise - baseline) times the gradient at a random point between, on average.

    Each sample draws a baseline, a point of the line uniformly, and noise. With one baseline and no noise it is
    integrated gradients by Monte Carlo. What is drawn for an image depends on (seed, index) only.

    Args:
        model: classifier, (N, C, H, W) -> (N, K) logits.
        baselines: the distribution of baselines: a list of baselines, each one number, one per channel or "black", in
            units of normalised images; or a tensor (B, C, H, W) of images.
        samples: draws for each image.
        stdev: standard deviation of the noise, in units of normalised images; 0 for none.
        seed: the root seed; provided by the stage.
        normalization: the model's; needed for the black baseline, provided by the stage.
        rows_per_forward: rows (image, sample) in one forward and backward pass; the memory knob.

    Reference:
        Lundberg, Lee: "A unified approach to interpreting model predictions", NeurIPS 2017, arXiv:1705.07874; the form
        is that of Erion et al.: "Improving performance of deep learning models with axiomatic attribution priors and
        expected gradients", 2021, arXiv:1906.10670, equation 3.
    """

    model: nn.Module
    baselines: Sequence[Baseline] | Tensor = (0.0,)
    samples: int = 50
    stdev: float = 0.0
    seed: int = 0
    normalization: Normalization | None = None
    rows_per_forward: int | None = None

    def __post_init__(self) -> None:
        options.at_least(self, 1, samples=self.samples, rows_per_forward=self.rows_per_forward)
        options.at_least(self, 0, stdev=self.stdev)
        if len(self.baselines) == 0:
            raise InputError("GradientShap: baselines is empty; give at least one")
        if not isinstance(self.baselines, Tensor):
            for baseline in self.baselines:
                BaselineImage(baseline, self.normalization)

    def __call__(self, images: Tensor, targets: Tensor, *, indices: Tensor | None = None) -> Tensor:
        """Explains the logits of `targets` (N,) for `images` (N, C, H, W): maps (N, C, H, W), float32, signed."""
        rows.check_batch(images, targets)
        drawn = indices.tolist() if indices is not None else [0] * len(images)
        generators = [seeding.generator(self.seed, "gradient_shap", index) for index in drawn]
        with rows.explaining(self.model), quickened(self.model, images) as layout:
            images = images.detach().contiguous(memory_format=layout)
            return self._expected(images, targets, generators).div_(self.samples).float().contiguous()

    def _expected(self, images: Tensor, targets: Tensor, generators: Sequence[np.random.Generator]) -> Tensor:
        """The sum over samples of way times gradient, (N, C, H, W)."""
        baselines = self._baselines(images)
        ways: list[Tensor] = []  # from baseline to noisy image, for the pieces of the batch at hand

        def make(_: int, chosen: slice, out: Tensor) -> None:
            starts = baselines[[int(generator.integers(len(baselines))) for generator in generators[chosen]]]
            points = images.new_tensor([generator.random() for generator in generators[chosen]])
            ends = images[chosen]
            if self.stdev > 0:
                ends = ends + self.stdev * _normal(generators[chosen], out)
            ways.append(ends - starts)
            torch.addcmul(starts, ways[-1], points[:, None, None, None], out=out)

        total = torch.zeros_like(images)
        size = rows.rows_of(images, self.rows_per_forward)
        for batch, batch_targets, pieces in rows.streamed(images, targets, self.samples, size, make):
            gradients = rows.logit_gradients(self.model, batch, batch_targets)
            for piece, way in zip(pieces, ways, strict=True):
                total[piece.images].addcmul_(gradients[piece.rows], way)
            ways.clear()
        return total

    def _baselines(self, images: Tensor) -> Tensor:
        """The baselines to choose from, (B, C, H, W) or (B, C, 1, 1)."""
        if isinstance(self.baselines, Tensor):
            return self.baselines.to(images)
        return torch.cat([BaselineImage(baseline, self.normalization)(images) for baseline in self.baselines])


def _normal(generators: Sequence[np.random.Generator], like: Tensor) -> Tensor:
    """Standard normal noise for each image from its own generator, in the shape of `like` (n, C, H, W)."""
    drawn = [generator.standard_normal(like.shape[1:], dtype=np.float32) for generator in generators]
    return torch.from_numpy(np.stack(drawn)).to(like)
