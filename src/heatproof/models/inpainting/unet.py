"""The plain U-Net that the masking-based saliency code calls `cnn`."""

import torch
from torch import Tensor, nn
from torch.nn import functional


class CnnInfiller(nn.Module):
    """A small U-Net of four levels; sides are multiples of 16.

    Its published weights are random and were never trained: useful with a user's own only.

    Reference:
        Phang, Park, Geras, arXiv:2010.09750: the authors' `cnn` infiller.
    """

    multiple = 16

    def __init__(self) -> None:
        super().__init__()
        self.down_ls = nn.ModuleList(
            nn.Conv2d(i, o, 3, padding=1) for i, o in ((4, 32), (32, 64), (64, 128), (128, 256))
        )
        self.up_ls = nn.ModuleList(
            nn.Conv2d(i, o, 3, padding=1) for i, o in ((256, 128), (256, 128), (192, 64), (96, 3))
        )

    def forward(self, images: Tensor, holes: Tensor) -> Tensor:
        """Normalised pictures (N, 3, H, W), from normalised images that are 0 in the holes, and holes (N, 1, H, W)."""
        features = torch.cat((images, holes), dim=1)
        skips = []
        for convolution in self.down_ls:
            features = functional.max_pool2d(functional.relu(convolution(features)), 2)
            skips.append(features)
        features = skips.pop()
        for convolution in self.up_ls:
            features = convolution(features)
            if skips:
                features = torch.cat((_doubled(functional.relu(features)), skips.pop()), dim=1)
        return _doubled(features)


def _doubled(features: Tensor) -> Tensor:
    return functional.interpolate(features, scale_factor=2, mode="bilinear", align_corners=False)
