"""A compact network that is trained to fill holes of small images."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

NARROWEST = 0.7  # sigma in pixels of the first guess's narrowest Gaussian
TRUST = 0.01  # share of known neighbours below which the next wider Gaussian counts more


class GatedUNet(nn.Module):
    """A U-Net of gated convolutions that corrects a first guess.

    The first guess is `smooth_fill`, which needs no training; the network sees it beside the holes and adds what it has
    learnt. A gated convolution multiplies its answer by a learnt weight in (0, 1) at each place and channel, so that
    known and guessed pixels can count differently. Sides that are no multiples of 4 are padded by their edge.

    Args:
        channels: of the images.
        width: channels at full size; twice and four times as many at half and a quarter of it.

    Reference:
        Yu et al., "Free-Form Image Inpainting with Gated Convolution", ICCV 2019, arXiv:1806.03589, for the gates.
    """

    def __init__(self, channels: int = 3, width: int = 12):
        super().__init__()
        self.at_full = _Gated(channels + 1, width)
        self.at_half = _Gated(width, 2 * width, stride=2)
        self.at_quarter = _Gated(2 * width, 4 * width, stride=2)
        self.around = nn.Sequential(_Gated(4 * width, 4 * width, dilation=2), _Gated(4 * width, 4 * width, dilation=4))
        self.to_half = _Gated(6 * width, 2 * width)
        self.to_full = _Gated(3 * width, width)
        self.answer = nn.Conv2d(width, channels, 3, padding=1, bias=False)
        # The untrained network is its first guess.
        nn.init.zeros_(self.answer.weight)

    @classmethod
    def like(cls, state: dict[str, Tensor]) -> "GatedUNet":
        """A network of the size that a state dict is of; one that does not fit where it is of another network."""
        answer = state.get("answer.weight", torch.empty(3, 16, 3, 3))
        return cls(*answer.shape[:2])

    def forward(self, pixels: Tensor, holes: Tensor) -> Tensor:
        """Pixels (N, C, H, W), in [0, 1] but for what the network overshoots.

        Args:
            pixels: (N, C, H, W) in [0, 1]; what stands in the holes is not used.
            holes: (N, 1, H, W), 1 in a hole.
        """
        guess = smooth_fill(pixels, holes)
        height, width = pixels.shape[2:]
        seen = torch.cat((guess - 0.5, holes), dim=1)
        full = self.at_full(functional.pad(seen, (0, -width % 4, 0, -height % 4), mode="replicate"))
        half = self.at_half(full)
        deep = self.around(self.at_quarter(half))
        half = self.to_half(torch.cat((_doubled(deep), half), dim=1))
        full = self.to_full(torch.cat((_doubled(half), full), dim=1))
        corrected: Tensor = guess + self.answer(full)[:, :, :height, :width]
        return corrected


class _Gated(nn.Module):
    """ELU of one half of a convolution's channels, times the sigmoid of the other half."""

    def __init__(self, channels_in: int, channels_out: int, *, stride: int = 1, dilation: int = 1):
        super().__init__()
        self.conv = nn.Conv2d(channels_in, 2 * channels_out, 3, stride, dilation, dilation)

    def forward(self, features: Tensor) -> Tensor:
        answer, gate = self.conv(features).chunk(2, dim=1)
        return functional.elu(answer) * torch.sigmoid(gate)


def smooth_fill(pixels: Tensor, holes: Tensor) -> Tensor:
    """Fills holes with a Gaussian mean of what is known around them, as narrow a one as knows something.

    For sigma = 0.7, 1.4, 2.8, ... pixels, up to a third of the longer side, g(sigma) = (G x k + e g(2 sigma)) / (G k + e):
    G the Gaussian, k 1 where a pixel x is known, e = 0.01. The widest falls back on the mean of all known pixels, and an
    image without any becomes grey (0.5). All pixels are smoothed, the known ones too.

    Args:
        pixels: (N, C, H, W); what stands in the holes is not used.
        holes: (N, 1, H, W), 1 in a hole; values between count as partly known.

    >>> pixels, holes = torch.tensor([[[[0.2, 9.0, 0.2]]]]), torch.tensor([[[[0.0, 1.0, 0.0]]]])
    >>> round(smooth_fill(pixels, holes)[0, 0, 0, 1].item(), 6)
    0.2
    """
    known = 1 - holes
    seen = pixels * known
    total = known.sum(dim=(2, 3), keepdim=True)
    filled = torch.where(total > 0, seen.sum(dim=(2, 3), keepdim=True) / total.clamp(min=1e-6), 0.5)
    for sigma in reversed(_sigmas(max(pixels.shape[2:]))):
        rows, columns = (_gaussians(size, sigma, pixels) for size in pixels.shape[2:])
        filled = (rows @ seen @ columns + TRUST * filled) / (rows @ known @ columns + TRUST)
    return filled


def _sigmas(side: int) -> list[float]:
    return [NARROWEST * 2**step for step in range(1 + max(0, math.ceil(math.log2(side / 3 / NARROWEST))))]


def _gaussians(size: int, sigma: float, like: Tensor) -> Tensor:
    """(size, size), a Gaussian around each position; its sum over all positions is 1."""
    places = torch.arange(size, dtype=like.dtype, device=like.device)
    distances = places[:, None] - places
    return torch.exp(-distances.square() / (2 * sigma**2)) / (sigma * math.sqrt(2 * math.pi))


def _doubled(features: Tensor) -> Tensor:
    return functional.interpolate(features, scale_factor=2, mode="nearest")
