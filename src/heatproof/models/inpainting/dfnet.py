"""DFNet: a U-Net that blends its answer into the image at several resolutions."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

WIDTH, WIDEST = 64, 512


class DfNetGenerator(nn.Module):
    """Deep fusion network: each level says what belongs into the hole and how softly it passes into the image.

    Its parameters are named as in hughplay/DFNet. Sides are multiples of 2 to the number of levels: 256 as published.

    Args:
        encoder_kernels: side of each level's kernel on the way down.
        decoder_kernels: the same on the way up, level 0 first.
        blend_levels: levels that give a picture.

    Reference:
        Hong et al., "Deep Fusion Network for Image Completion", ACM MM 2019, arXiv:1904.08060.
    """

    def __init__(
        self,
        encoder_kernels: Sequence[int] = (7, 5, 5, 3, 3, 3, 3, 3),
        decoder_kernels: Sequence[int] = (3, 3, 3, 3, 3, 3, 3, 3),
        blend_levels: Sequence[int] = (0, 1, 2, 3, 4, 5),
    ):
        super().__init__()
        self.levels, self.blend_levels = len(encoder_kernels), tuple(blend_levels)
        self.multiple = 2**self.levels
        widths = [4, *(min(WIDTH * 2**level, WIDEST) for level in range(self.levels))]
        for level, kernel in enumerate(encoder_kernels):
            self.add_module(f"en_{level}", _Encoding(widths[level], widths[level + 1], kernel, is_first=level == 0))
        for level, kernel in enumerate(decoder_kernels):
            self.add_module(f"de_{level}", _Decoding(widths[level + 1] + widths[level], widths[level], kernel))
        for level in self.blend_levels:
            self.add_module(f"fuse_{level}", _Fusion(widths[level]))

    def forward(self, images: Tensor, known: Tensor) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Results, alphas and raw answers of the levels that blend, each (N, 3, h, w) in [0, 1]; level 0 is full size.

        Args:
            images: (N, 3, H, W) in [0, 1], 0 in the holes.
            known: (N, 1, H, W), 1 where the image is known.
        """
        features = torch.cat((images, known), dim=1)
        skips = []
        for level in range(self.levels):
            skips.append(features)
            features = self.get_submodule(f"en_{level}")(features)
        blended = {}
        for level in reversed(range(self.levels)):
            features = self.get_submodule(f"de_{level}")(features, skips.pop())
            if level in self.blend_levels:
                blended[level] = self.get_submodule(f"fuse_{level}")(images, features)
        results, alphas, raws = zip(*(blended[level] for level in self.blend_levels), strict=True)
        return list(results), list(alphas), list(raws)


class _Convolution(nn.Module):
    """A convolution under the name that the published weights give it."""

    def __init__(self, channels_in: int, channels_out: int, kernel: int, padding: int = 0):
        super().__init__()
        self.conv = nn.Conv2d(channels_in, channels_out, kernel, padding=padding)

    def forward(self, features: Tensor) -> Tensor:
        convolved: Tensor = self.conv(features)
        return convolved


class _Halving(nn.Module):
    """A convolution of stride 2, padded by one more to the right and below."""

    def __init__(self, channels_in: int, channels_out: int, kernel: int):
        super().__init__()
        before = (kernel - 2) // 2
        padding = nn.ZeroPad2d((before, before + 1, before, before + 1))
        self.conv = nn.Sequential(padding, nn.Conv2d(channels_in, channels_out, kernel, stride=2))

    def forward(self, features: Tensor) -> Tensor:
        halved: Tensor = self.conv(features)
        return halved


class _Encoding(nn.Module):
    def __init__(self, channels_in: int, channels_out: int, kernel: int, *, is_first: bool):
        super().__init__()
        layers: list[nn.Module] = [_Halving(channels_in, channels_out, kernel)]
        if not is_first:
            layers += [nn.BatchNorm2d(channels_out), nn.ReLU(inplace=True)]
        self.encode = nn.Sequential(*layers)

    def forward(self, features: Tensor) -> Tensor:
        encoded: Tensor = self.encode(features)
        return encoded


class _Decoding(nn.Module):
    def __init__(self, channels_in: int, channels_out: int, kernel: int):
        super().__init__()
        convolution = _Convolution(channels_in, channels_out, kernel, padding=kernel // 2)
        self.decode = nn.Sequential(convolution, nn.BatchNorm2d(channels_out), nn.LeakyReLU(0.2, inplace=True))

    def forward(self, features: Tensor, skip: Tensor) -> Tensor:
        doubled = functional.interpolate(features, scale_factor=2, mode="nearest")
        decoded: Tensor = self.decode(torch.cat((doubled, skip), dim=1))
        return decoded


class _Fusion(nn.Module):
    """The level's answer, and how much of it shows at each pixel and channel."""

    def __init__(self, channels: int):
        super().__init__()
        self.map2img = nn.Sequential(_Convolution(channels, 3, 1), nn.Sigmoid())
        self.blend = _Blend()

    def forward(self, images: Tensor, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        scaled = functional.interpolate(images, size=features.shape[2:], mode="bilinear", align_corners=False)
        raw = self.map2img(features)
        alpha = self.blend(torch.cat((scaled, raw), dim=1))
        return alpha * raw + (1 - alpha) * scaled, alpha, raw


class _Blend(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blend = nn.Sequential(
            _Convolution(6, 32, 1),
            nn.BatchNorm2d(32),
            nn.LeakyReLU(0.2, inplace=True),
            _Convolution(32, 3, 3, padding=1),
            nn.BatchNorm2d(3),
            nn.LeakyReLU(0.2, inplace=True),
            _Convolution(3, 3, 1),
            nn.Sigmoid(),
        )

    def forward(self, pictures: Tensor) -> Tensor:
        alpha: Tensor = self.blend(pictures)
        return alpha
