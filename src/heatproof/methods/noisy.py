"""Mean and variance of a method's maps over noisy copies of the image: what SmoothGrad and its kin share."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from heatproof import plugins, seeding
from heatproof.methods import options, rows
from heatproof.methods.protocol import Method
from heatproof.models.normalization import Normalization

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
class OverNoise:
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
            out.addcmul_(normal_noise(generators[chosen], out), stdevs[chosen])

        return noisy_moments(self._explain, images, targets, self.samples, add_noise, self.rows_per_forward)

    def _stdevs(self, images: Tensor) -> Tensor:
        """Standard deviation of each image's noise, (N, 1, 1, 1)."""
        images = images.detach()
        if self.stdev_mode == "absolute":
            return images.new_full((len(images), 1, 1, 1), self.stdev)
        return self.stdev * (images.amax(dim=(1, 2, 3), keepdim=True) - images.amin(dim=(1, 2, 3), keepdim=True))


def normal_noise(generators: Sequence[np.random.Generator], like: Tensor) -> Tensor:
    """Standard normal noise for each image from its own generator, in the shape of `like` (n, C, H, W)."""
    drawn = [generator.standard_normal(like.shape[1:], dtype=np.float32) for generator in generators]
    return torch.from_numpy(np.stack(drawn)).to(like)
