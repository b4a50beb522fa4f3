"""Residual networks for small pictures.

Three families: the wide one that ROAR's research code trains on 32 x 32 pictures (`ResNet8` to `ResNet152`), the original
narrow one for CIFAR-10 (`ResNet20` to `ResNet56`), and `NarrowResNet8`, which a CPU trains in seconds.

All take (N, in_channels, H, W) and return logits (N, num_classes). Every ReLU is a module of its own, so that hooks see
each call once and DeepLift can tell them apart; the last one of a block is named `relu`, as in `layer3.0.relu`.
"""

from collections.abc import Sequence
from typing import Protocol

import torch.nn.functional as F  # noqa: N812 - the customary name
from torch import Tensor, nn

RESULTS_VERSION = 1


class Block(Protocol):
    """Makes a residual block that takes `inputs` channels and returns `expansion * width`."""

    expansion: int

    def __call__(self, inputs: int, width: int, stride: int) -> nn.Module:
        """Builds it."""
        ...


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions, batch norm after each; the shortcut is a 1 x 1 convolution where the shape changes.

    Reference:
        He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, figure 5 left.
    """

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int):
        super().__init__()
        self.conv1 = _conv3x3(inputs, width, stride)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu1 = nn.ReLU()
        self.conv2 = _conv3x3(width, width, 1)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut = self._make_shortcut(inputs, width, stride)
        self.relu = nn.ReLU()

    @staticmethod
    def _make_shortcut(inputs: int, width: int, stride: int) -> nn.Module:
        return _projection(inputs, width, stride)

    def forward(self, features: Tensor) -> Tensor:
        """Features (N, width, H / stride, W / stride)."""
        out = self.relu1(self.bn1(self.conv1(features)))
        out = self.bn2(self.conv2(out))
        return self.relu(out + self.shortcut(features))  # type: ignore[no-any-return]


class PaddedBlock(BasicBlock):
    """A basic block without weights in the shortcut ("option A"): every second pixel, missing channels zero."""

    @staticmethod
    def _make_shortcut(inputs: int, width: int, stride: int) -> nn.Module:
        return nn.Identity() if stride == 1 and inputs == width else PaddedShortcut(inputs, width, stride)


class PaddedShortcut(nn.Module):
    """Every `stride`-th row and column from the first; zero channels on both sides, to `width` channels in all."""

    def __init__(self, inputs: int, width: int, stride: int):
        super().__init__()
        self.stride = stride
        self.before = (width - inputs) // 2
        self.after = width - inputs - self.before

    def forward(self, features: Tensor) -> Tensor:
        """Features (N, width, H / stride, W / stride)."""
        return F.pad(features[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.before, self.after))


class PreactivatedBlock(nn.Module):
    """A basic block with batch norm and ReLU before each convolution.

    Reference:
        He et al., "Identity Mappings in Deep Residual Networks", ECCV 2016, figure 4 (e).
    """

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.relu1 = nn.ReLU()
        self.conv1 = _conv3x3(inputs, width, stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        self.conv2 = _conv3x3(width, width, 1)
        same = stride == 1 and inputs == width
        self.shortcut = nn.Identity() if same else nn.Conv2d(inputs, width, 1, stride, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        """Features (N, width, H / stride, W / stride)."""
        active = self.relu1(self.bn1(features))
        # Where the shape changes, the shortcut branches off after the first activation, as in the paper.
        shortcut = features if isinstance(self.shortcut, nn.Identity) else self.shortcut(active)
        out = self.conv2(self.relu(self.bn2(self.conv1(active))))
        return out + shortcut  # type: ignore[no-any-return]


class Bottleneck(nn.Module):
    """1 x 1, 3 x 3 and 1 x 1 convolutions, batch norm after each; four times `width` channels come out.

    Reference:
        He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, figure 5 right; the stride sits in the
        3 x 3 convolution.
    """

    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu1 = nn.ReLU()
        self.conv2 = _conv3x3(width, width, stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu2 = nn.ReLU()
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.shortcut = _projection(inputs, 4 * width, stride)
        self.relu = nn.ReLU()

    def forward(self, features: Tensor) -> Tensor:
        """Features (N, 4 * width, H / stride, W / stride)."""
        out = self.relu1(self.bn1(self.conv1(features)))
        out = self.relu2(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        return self.relu(out + self.shortcut(features))  # type: ignore[no-any-return]


class ResNet(nn.Module):
    """Stem, stages of residual blocks (`layer1`, ...), mean over the picture, linear head.

    Args:
        block: kind of block.
        depths: number of blocks of each stage.
        widths: channels of each stage; every stage but the first halves the picture.
        num_classes: length of the logits.
        in_channels: 3 for RGB, 1 for grey pictures.
    """

    def __init__(self, block: Block, depths: Sequence[int], widths: Sequence[int], num_classes: int, in_channels: int):
        super().__init__()
        self.conv1 = _conv3x3(in_channels, widths[0], 1)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.relu = nn.ReLU()
        channels = widths[0]
        self._stages: list[str] = []
        for position, (depth, width) in enumerate(zip(depths, widths, strict=True)):
            self._stages.append(f"layer{position + 1}")
            self.add_module(self._stages[-1], _stage(block, channels, width, depth, stride=1 if position == 0 else 2))
            channels = width * block.expansion
        self.linear = nn.Linear(channels, num_classes)
        _initialise(self)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, num_classes)."""
        features: Tensor = self.relu(self.bn1(self.conv1(images)))
        for stage in self._stages:
            features = self.get_submodule(stage)(features)
        return self.linear(features.mean(dim=(2, 3)))  # type: ignore[no-any-return]


class ResNet8(ResNet):
    """ROAR's network: basic blocks 1-1-1 of 64, 128 and 256 channels; 1,227,594 parameters for 10 classes."""

    def __init__(self, num_classes: int = 10, in_channels: int = 3):
        super().__init__(BasicBlock, (1, 1, 1), (64, 128, 256), num_classes, in_channels)


class ResNet8v2(nn.Module):
    """`ResNet8` with batch norm and ReLU before each convolution, and once more before the mean."""

    def __init__(self, num_classes: int = 10, in_channels: int = 3):
        super().__init__()
        self.conv1 = _conv3x3(in_channels, 64, 1)
        self.layer1 = _stage(PreactivatedBlock, 64, 64, 1, stride=1)
        self.layer2 = _stage(PreactivatedBlock, 64, 128, 1, stride=2)
        self.layer3 = _stage(PreactivatedBlock, 128, 256, 1, stride=2)
        self.bn1 = nn.BatchNorm2d(256)
        self.relu = nn.ReLU()
        self.linear = nn.Linear(256, num_classes)
        _initialise(self)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, num_classes)."""
        features = self.layer3(self.layer2(self.layer1(self.conv1(images))))
        return self.linear(self.relu(self.bn1(features)).mean(dim=(2, 3)))  # type: ignore[no-any-return]


class ResNet10(ResNet):
    """Basic blocks 1-1-1-1 of 64 to 512 channels."""

    def __init__(self, num_classes: int = 10, in_channels: int = 3):
        super().__init__(BasicBlock, (1, 1, 1, 1), _WIDTHS, num_classes, in_channels)


class ResNet18(ResNet):
    """Basic blocks 2-2-2-2 of 64 to 512 channels."""

    def __init__(self, num_classes: int = 10, in_channels: int = 3):
        super().__init__(BasicBlock, (2, 2, 2, 2), _WIDTHS, num_classes, in_channels)


class ResNet34(ResNet):
    """Basic blocks 3-4-6-3 of 64 to 512 channels."""

    def __init__(self, num_classes: int = 10, in_channels: int = 3):
        super().__init__(BasicBlock, (3, 4, 6, 3), _WIDTHS, num_classes, in_channels)


class ResNet50(ResNet):
    """Bottlenecks 3-4-6-3 of 256 to 2,048 channels."""

    def __init__(self, num_classes: int = 10, in_channels: int = 3):
        super().__init__(Bottleneck, (3, 4, 6, 3), _WIDTHS, num_classes, in_channels)


class ResNet101(ResNet):
    """Bottlenecks 3-4-23-3 of 256 to 2,048 channels."""

    def __init__(self, num_classes: int = 10, in_channels: int = 3):
        super().__init__(Bottleneck, (3, 4, 23, 3), _WIDTHS, num_classes, in_channels)


class ResNet152(ResNet):
    """Bottlenecks 3-8-36-3 of 256 to 2,048 channels."""

    def __init__(self, num_classes: int = 10, in_channels: int = 3):
        super().__init__(Bottleneck, (3, 8, 36, 3), _WIDTHS, num_classes, in_channels)


class NarrowResNet8(nn.Module):
    """A `ResNet8` that one CPU core trains in seconds: few channels throughout, at half and then a quarter of the size.

    The maximum over the picture replaces the mean, so that a small object is not outvoted by what is around it. For
    Grad-CAM `layer3.0.relu` gives 8 x 8 values of a 32 x 32 picture. 14,904 parameters for 8 classes.
    """

    def __init__(self, num_classes: int = 10, in_channels: int = 3, width: int = 16):
        super().__init__()
        self.conv1 = _conv3x3(in_channels, width, 2)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        self.layer1 = _stage(BasicBlock, width, width, 1, stride=2)
        self.layer2 = _stage(BasicBlock, width, width, 1, stride=1)
        self.layer3 = _stage(BasicBlock, width, width, 1, stride=1)
        self.linear = nn.Linear(width, num_classes)
        _initialise(self)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, num_classes)."""
        features = self.relu(self.bn1(self.conv1(images)))
        features = self.layer3(self.layer2(self.layer1(features)))
        return self.linear(features.amax(dim=(2, 3)))  # type: ignore[no-any-return]


class ResNet20(ResNet):
    """The CIFAR network of depth 6n + 2 with n = 3: 16, 32 and 64 channels; 269,722 parameters for 10 classes.

    Key names of its weights are those of the widely used public ones (`conv1`, `bn1`, `layer1.0.conv1`, ..., `linear`).

    Reference:
        He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, section 4.2, shortcuts of option A.
    """

    def __init__(self, num_classes: int = 10, in_channels: int = 3):
        super().__init__(PaddedBlock, (3, 3, 3), (16, 32, 64), num_classes, in_channels)


class ResNet32(ResNet):
    """`ResNet20` with n = 5."""

    def __init__(self, num_classes: int = 10, in_channels: int = 3):
        super().__init__(PaddedBlock, (5, 5, 5), (16, 32, 64), num_classes, in_channels)


class ResNet44(ResNet):
    """`ResNet20` with n = 7."""

    def __init__(self, num_classes: int = 10, in_channels: int = 3):
        super().__init__(PaddedBlock, (7, 7, 7), (16, 32, 64), num_classes, in_channels)


class ResNet56(ResNet):
    """`ResNet20` with n = 9."""

    def __init__(self, num_classes: int = 10, in_channels: int = 3):
        super().__init__(PaddedBlock, (9, 9, 9), (16, 32, 64), num_classes, in_channels)


_WIDTHS = (64, 128, 256, 512)


def _stage(block: Block, inputs: int, width: int, depth: int, stride: int) -> nn.Sequential:
    first = block(inputs, width, stride)
    return nn.Sequential(first, *(block(width * block.expansion, width, 1) for _ in range(depth - 1)))


def _projection(inputs: int, outputs: int, stride: int) -> nn.Module:
    """The identity where the shape stays, else a 1 x 1 convolution with batch norm ("option B")."""
    if stride == 1 and inputs == outputs:
        return nn.Identity()
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))


def _conv3x3(inputs: int, outputs: int, stride: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)


def _initialise(network: nn.Module) -> None:
    """Draws convolutions as He et al. (2015) do for ReLU networks."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
