"""The generator of generative inpainting with contextual attention (CA-GAN)."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from heatproof.models.inpainting.attention import NormGuard, contextual_attention

# Name, channels in and out, kernel, stride, dilation.
Row = tuple[str, int, int, int, int, int]

_ATROUS: tuple[Row, ...] = (
    ("conv7_atrous", 128, 128, 3, 1, 2),
    ("conv8_atrous", 128, 128, 3, 1, 4),
    ("conv9_atrous", 128, 128, 3, 1, 8),
    ("conv10_atrous", 128, 128, 3, 1, 16),
)
COARSE_ENCODER: tuple[Row, ...] = (
    ("conv1", 5, 32, 5, 1, 1),
    ("conv2_downsample", 32, 64, 3, 2, 1),
    ("conv3", 64, 64, 3, 1, 1),
    ("conv4_downsample", 64, 128, 3, 2, 1),
    ("conv5", 128, 128, 3, 1, 1),
    ("conv6", 128, 128, 3, 1, 1),
    *_ATROUS,
)
FINE_ENCODER: tuple[Row, ...] = (
    ("conv1", 5, 32, 5, 1, 1),
    ("conv2_downsample", 32, 32, 3, 2, 1),
    ("conv3", 32, 64, 3, 1, 1),
    ("conv4_downsample", 64, 64, 3, 2, 1),
    ("conv5", 64, 128, 3, 1, 1),
    ("conv6", 128, 128, 3, 1, 1),
    *_ATROUS,
)
ATTENDING: tuple[Row, ...] = (
    ("pmconv1", 5, 32, 5, 1, 1),
    ("pmconv2_downsample", 32, 32, 3, 2, 1),
    ("pmconv3", 32, 64, 3, 1, 1),
    ("pmconv4_downsample", 64, 128, 3, 2, 1),
    ("pmconv5", 128, 128, 3, 1, 1),
)
ATTENDED: tuple[Row, ...] = (("pmconv9", 128, 128, 3, 1, 1), ("pmconv10", 128, 128, 3, 1, 1))


class CaGanGenerator(nn.Module):
    """Two stages: a coarse picture from dilated convolutions, then a fine one that also borrows from the surroundings.

    Its parameters are named as in generative-inpainting-pytorch. Sides are multiples of 8; it was trained at 256.

    Args:
        guard: see `contextual_attention`.
        compat: the published fault: the first image's hole serves the whole batch in the attention.

    Reference:
        Yu et al., CVPR 2018, arXiv:1801.07892.
    """

    multiple = 8

    def __init__(self, guard: NormGuard = "sum", *, compat: bool = False):
        super().__init__()
        self.coarse_generator = _Coarse()
        self.fine_generator = _Fine(guard, shared_mask=compat)

    def forward(self, images: Tensor, holes: Tensor) -> tuple[Tensor, Tensor]:
        """Both stages' pictures, (N, 3, H, W) in [-1, 1].

        Args:
            images: (N, 3, H, W) in [-1, 1], 0 in the holes.
            holes: (N, 1, H, W), 1 in a hole.
        """
        coarse = self.coarse_generator(_with_masks(images, holes))
        known = coarse * holes + images * (1 - holes)
        return coarse, self.fine_generator(_with_masks(known, holes), holes)


class _Convolution(nn.Module):
    """A convolution that keeps the size, divided by the stride, and its activation."""

    def __init__(self, row: Row, activation: nn.Module):
        super().__init__()
        _, channels_in, channels_out, kernel, stride, dilation = row
        padding = dilation * (kernel // 2)
        self.conv = nn.Conv2d(channels_in, channels_out, kernel, stride, padding, dilation)
        self.activation = activation

    def forward(self, features: Tensor) -> Tensor:
        activated: Tensor = self.activation(self.conv(features))
        return activated


class _Stage(nn.Module):
    """Named convolutions, run in the order in which they are asked for."""

    def add(self, rows: tuple[Row, ...], last: nn.Module | None = None) -> list[str]:
        """Adds convolutions, each with an ELU, the last one perhaps with another activation; returns their names."""
        for row in rows:
            is_last = row == rows[-1] and last is not None
            self.add_module(row[0], _Convolution(row, last if is_last and last is not None else nn.ELU(inplace=True)))
        return [row[0] for row in rows]

    def through(self, names: list[str], features: Tensor) -> Tensor:
        """Runs some of the convolutions one after the other."""
        for name in names:
            features = self.get_submodule(name)(features)
        return features

    def decoded(self, names: list[str], features: Tensor) -> Tensor:
        """Runs seven convolutions, enlarging twice after the second and the fourth; clamped to [-1, 1]."""
        features = _doubled(self.through(names[:2], features))
        features = _doubled(self.through(names[2:4], features))
        return self.through(names[4:], features).clamp(-1, 1)


class _Coarse(_Stage):
    def __init__(self) -> None:
        super().__init__()
        self._encoder = self.add(COARSE_ENCODER)
        self._decoder = self.add(_decoder("conv", 128), nn.Identity())

    def forward(self, inputs: Tensor) -> Tensor:
        return self.decoded(self._decoder, self.through(self._encoder, inputs))


class _Fine(_Stage):
    def __init__(self, guard: NormGuard, *, shared_mask: bool):
        super().__init__()
        self._guard, self._shared_mask = guard, shared_mask
        self._encoder = self.add(FINE_ENCODER)
        self._attending = self.add(ATTENDING)
        self._attending += self.add((("pmconv6", 128, 128, 3, 1, 1),), nn.ReLU(inplace=True))
        self._attended = self.add(ATTENDED)
        self._decoder = self.add(_decoder("allconv", 256), nn.Identity())

    def forward(self, inputs: Tensor, holes: Tensor) -> Tensor:
        convolved = self.through(self._encoder, inputs)
        places = self.through(self._attending, inputs)
        borrowed = contextual_attention(places, places, holes, guard=self._guard, shared_mask=self._shared_mask)
        borrowed = self.through(self._attended, borrowed)
        return self.decoded(self._decoder, torch.cat((convolved, borrowed), dim=1))


def _decoder(name: str, channels: int) -> tuple[Row, ...]:
    widths = (channels, 128, 128, 64, 64, 32, 16, 3)
    return tuple((f"{name}{11 + i}", widths[i], widths[i + 1], 3, 1, 1) for i in range(7))


def _with_masks(images: Tensor, holes: Tensor) -> Tensor:
    """Image, ones and holes: the ones let the network see where padding begins."""
    return torch.cat((images, torch.ones_like(holes), holes), dim=1)


def _doubled(features: Tensor) -> Tensor:
    return functional.interpolate(features, scale_factor=2, mode="nearest")
