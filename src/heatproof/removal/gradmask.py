"""Compat: insertion and deletion as GradMask's code does them, in the model's normalised space.

For figures that shall be comparable with that paper's. What differs from our own protocol: "black" is zero after the
normalisation and thus the mean colour, the blur covers about 15 pixels whatever the image's size, "mean" is one number
for all channels, and "random" is drawn anew for every percentage from torch's global generator, so that an image's
scores depend on what was drawn before. The stage insertion-deletion uses fills in pixel space and seeded noise
instead, and takes whole patches by its option `patch`. The areas are in `heatproof.metrics.insertion_deletion`.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms.functional import gaussian_blur

from heatproof import checks
from heatproof.errors import InputError, nearest
from heatproof.models.probabilities import kind_of, probabilities
from heatproof.removal.orders import removed


class GradmaskScores(NamedTuple):
    """Softmax probabilities of the target, (N, S) each: one for every percentage asked."""

    insertion: NDArray[np.float64]
    deletion: NDArray[np.float64]


BASELINES: dict[str, Callable[[Tensor], Tensor]] = {
    "black": torch.zeros_like,
    "blur": lambda images: gaussian_blur(images, [15, 15], [7.0, 7.0]),
    "mean": lambda images: images.mean(dim=(1, 2, 3), keepdim=True).expand_as(images),
    "random": lambda images: torch.randn_like(images, memory_format=torch.contiguous_format),
}
"""What stands where the image does not, by GradMask's names: normalised images (N, C, H, W) -> the same shape."""


def gradmask_scores(
    model: Callable[[Tensor], Tensor],
    images: Tensor,
    ranks: Tensor,
    targets: Tensor,
    percentages: Sequence[float],
    baseline: str = "black",
) -> GradmaskScores:
    """Scores with only the top p percent of each image shown (insertion), and with them replaced (deletion).

    The percentages are used as given: without 0, neither the baseline alone nor the untouched image is scored. One
    departure: a percentage of less than one pixel takes none, where GradMask takes all.

    Args:
        model: classifier in eval mode, images (N, C, H, W) -> logits (N, K).
        images: (N, C, H, W), already normalised; with "random", one image at a time draws as GradMask does.
        ranks: (N, H, W), 0 = most important. GradMask enlarges a map of patches to pixels and sorts those unstably,
            which leaves open what goes first inside a patch; any ranks that fit the map are as good.
        targets: (N,) the class whose probability is wanted.
        percentages: in [0, 100]; p percent are int(p / 100 * H * W) pixels.
        baseline: a name of `BASELINES`. "random" draws for the whole insertion before the deletion.

    Raises:
        InputError: an unknown baseline, or a shape or percentage that does not fit.

    Reference:
        Traini: github.com/DavideTraini/GradMask, get_insertion_deletion and modify_image.

    >>> def brightness(images):
    ...     return torch.stack((images.sum(dim=(1, 2, 3)), torch.zeros(len(images))), dim=1)
    >>> ranks = torch.tensor([[[0, 1]]])
    >>> scores = gradmask_scores(brightness, torch.tensor([[[[2.0, 0.0]]]]), ranks, torch.tensor([0]), [50, 100])
    >>> scores.insertion.round(2), scores.deletion.round(2)
    (array([[0.88, 0.88]]), array([[0.5, 0.5]]))
    """
    number, _, height, width = checks.shapes("N C H W", images=images).values()
    checks.shapes(f"{number} {height} {width}", ranks=ranks)
    checks.shapes(f"{number}", targets=targets)
    if baseline not in BASELINES:
        raise InputError(f"baseline: {baseline!r}{nearest(baseline, BASELINES)}")
    curves = []
    with torch.no_grad():
        for inserts in (True, False):
            scores = []
            for percentage in percentages:
                top = removed(ranks, percentage / 100)[:, None]
                shown = torch.where(top == inserts, images, BASELINES[baseline](images))
                scores.append(probabilities(model(shown), kind_of(model)).gather(1, targets[:, None]))
            curves.append(torch.cat(scores, dim=1).double().cpu().numpy())
    return GradmaskScores(*curves)
