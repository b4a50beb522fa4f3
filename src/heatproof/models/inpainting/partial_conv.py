"""Partial convolutions: only known pixels count, and what has seen one becomes known."""

import torch
from torch import Tensor, nn
from torch.nn import functional

ENCODER = ((64, 7), (128, 5), (256, 5), (512, 3))  # channels and kernel; every further level has the last one's


class PartialConv(nn.Module):
    """A convolution of the known pixels, divided by how many of them it saw.

    With the inputs x, their mask m (1 = known) and the kernel W: y = W * (x m) / s + b, where s is the sum of m under
    the kernel over all channels; 0 where s is 0. The new mask is 1 where s is above 0.

    Its parameters are named as in naoto0804/pytorch-inpainting-with-partial-conv; `mask_conv.weight` is all ones
    there, and is kept for its name only.

    Args:
        channels_in, channels_out, kernel, stride, padding: of the convolution.
        bias: whether there is a b.

    Reference:
        Liu et al., "Image Inpainting for Irregular Holes Using Partial Convolutions", ECCV 2018, arXiv:1804.07723, eq. 1.
    """

    def __init__(
        self, channels_in: int, channels_out: int, kernel: int, stride: int = 1, padding: int = 0, *, bias: bool = True
    ):
        super().__init__()
        self.stride, self.padding = stride, padding
        self.input_conv = nn.Conv2d(channels_in, channels_out, kernel, stride, padding, bias=bias)
        self.mask_conv = _Ones(self.input_conv.weight.shape)

    def forward(self, features: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
        """Features and new mask (N, C', H', W'), from features and mask (N, C, H, W)."""
        weight, bias = self.input_conv.weight, self.input_conv.bias
        answer = functional.conv2d(features * known, weight, None, self.stride, self.padding)
        # All filters of ones give the same sum: one of them is enough.
        taps = known.new_ones(1, 1, *weight.shape[2:])
        seen = functional.conv2d(known.sum(dim=1, keepdim=True), taps, None, self.stride, self.padding)
        answer = answer / seen.clamp(min=1e-8)
        if bias is not None:
            answer = answer + bias[:, None, None]
        has_seen = seen > 0
        return answer * has_seen, has_seen.to(known.dtype).expand_as(answer)


class PartialConvUNet(nn.Module):
    """A U-Net of partial convolutions; images as ImageNet normalises them.

    Sides are multiples of 2 to the number of levels: 128 as published.

    Args:
        levels: halvings, at least 4; 7 as published.

    Reference:
        Liu et al., ECCV 2018, arXiv:1804.07723.
    """

    def __init__(self, levels: int = 7):
        super().__init__()
        self.levels, self.multiple = levels, 2**levels
        encoder = [ENCODER[min(level, len(ENCODER) - 1)] for level in range(levels)]
        widths = [3, *(width for width, _ in encoder)]
        for level, (width, kernel) in enumerate(encoder, 1):
            normalised = level > 1
            self.add_module(
                f"enc_{level}", _Block(widths[level - 1], width, kernel, 2, nn.ReLU(), normalised=normalised)
            )
        for level in range(levels, 0, -1):
            inside, outside = widths[level] + widths[level - 1], widths[level - 1]
            last = level == 1
            activation: nn.Module = nn.Identity() if last else nn.LeakyReLU(0.2)
            self.add_module(
                f"dec_{level}", _Block(inside, outside, 3, 1, activation, normalised=not last, bias=last)
            )  # fmt: skip

    def forward(self, images: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
        """The picture and its mask, (N, 3, H, W) each.

        Args:
            images: (N, 3, H, W), 0 in the holes.
            known: (N, 3, H, W), 1 where the image is known.
        """
        skips = []
        for level in range(1, self.levels + 1):
            skips.append((images, known))
            images, known = self.get_submodule(f"enc_{level}")(images, known)
        for level in range(self.levels, 0, -1):
            skip, skip_known = skips.pop()
            images, known = (functional.interpolate(part, scale_factor=2, mode="nearest") for part in (images, known))
            images, known = self.get_submodule(f"dec_{level}")(
                torch.cat((images, skip), dim=1), torch.cat((known, skip_known), dim=1)
            )
        return images, known


class _Block(nn.Module):
    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        kernel: int,
        stride: int,
        activation: nn.Module,
        *,
        normalised: bool,
        bias: bool = False,
    ):
        super().__init__()
        self.conv = PartialConv(channels_in, channels_out, kernel, stride, kernel // 2, bias=bias)
        self.bn = nn.BatchNorm2d(channels_out) if normalised else nn.Identity()
        self.activation = activation

    def forward(self, features: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
        features, known = self.conv(features, known)
        return self.activation(self.bn(features)), known


class _Ones(nn.Module):
    """Holds a weight of ones under its published name."""

    weight: Tensor

    def __init__(self, shape: torch.Size):
        super().__init__()
        self.register_buffer("weight", torch.ones(shape))
