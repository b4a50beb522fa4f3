"""Fills by networks that were trained to fill holes. Their weights come from the user's file; none are bundled.

Beside the call that all fills have, each has `generate(pixels, holes)`: whole pictures, in [0, 1], for holes that may
be soft (values between 0 and 1), with gradients left on. `NormalisedInfill` gives that to whoever works on images.

Filling what a mask keeps out is filling the mask's holes; filling what lies around it ("mask-in") is the same with the
other mask. Published code treats the two differently, by mistake; `compat` keeps that where it must be compared with.
"""

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, TypeVar, runtime_checkable

import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn
from torch.nn import functional

from heatproof.errors import InputError, MissingInputError, ModelError
from heatproof.models import Normalization
from heatproof.models.inpainting import CaGanGenerator, CnnInfiller, DfNetGenerator, GatedUNet, PartialConvUNet
from heatproof.models.inpainting.attention import NormGuard
from heatproof.models.weights import State, put_weights, read_weights
from heatproof.removal.pixels import as_float, by_channel

RESULTS_VERSION = 1

IMAGENET = Normalization((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
Compat = Literal["mask_out", "mask_in"]
Network = TypeVar("Network", bound=nn.Module)


@runtime_checkable
class Generating(Protocol):
    """A fill by a network."""

    def generate(self, pixels: Tensor, holes: Tensor) -> Tensor:
        """Pictures (N, C, H, W) in [0, 1] from pixels of that shape and holes (N, 1, H, W), 1 in a hole."""
        ...


def _fill_holes(self: Generating, pixels: Tensor, removed: Tensor, indices: ArrayLike | None = None) -> Tensor:
    """Replaces the removed pixels; the others stay as they are."""
    pixels = as_float(pixels)
    holes = by_channel(removed, pixels)
    with torch.no_grad():
        generated = self.generate(pixels, holes.any(dim=1, keepdim=True).to(pixels.dtype))
    return torch.where(holes, generated.clamp(0, 1), pixels)


@dataclass(frozen=True)
class CaGan:
    """Contextual attention: a network that also pastes patches from the surroundings.

    Sides that are no multiples of 8 are padded by their edge, and the padding is cut off again.

    Args:
        weights: `gen_<number>.pt` of generative-inpainting-pytorch, or `torch_model.p`.
        guard: what keeps norms from 0: "sum" as since July 2020, "floor" as before.
        compat: treat a batch as the masking-based saliency code does: one attention mask for all images, and for
            "mask_in" the network is told that what is kept was the hole. None does neither.

    Reference:
        Yu et al., CVPR 2018, arXiv:1801.07892.
    """

    weights: str
    guard: NormGuard = "sum"
    compat: Compat | None = None

    def __post_init__(self) -> None:
        _ = self.network  # a wrong file is told before any work

    @functools.cached_property
    def network(self) -> CaGanGenerator:
        """The generator with its weights."""
        source = "get gen_*.pt or torch_model.p from github.com/daa233/generative-inpainting-pytorch (MIT)"
        return _with_weights(CaGanGenerator(self.guard, compat=self.compat is not None), self.weights, source)

    def generate(self, pixels: Tensor, holes: Tensor) -> Tensor:
        """Pictures (N, 3, H, W) in [0, 1] from pixels of that shape and holes (N, 1, H, W), 1 in a hole."""
        network = _ready(self.network, pixels)
        padded, padded_holes = _padded(pixels, network.multiple), _padded(holes, network.multiple)
        told = 1 - padded_holes if self.compat == "mask_in" else padded_holes
        fine = network((2 * padded - 1) * (1 - padded_holes), told)[1]
        return (_cropped(fine, pixels) + 1) / 2

    __call__ = _fill_holes


@dataclass(frozen=True)
class DfNet:
    """Deep fusion network: an answer that passes softly into what is known.

    Args:
        weights: the authors' file for Places2 or CelebA, under CC BY-NC 4.0: not for commercial use.
        fit: what to do with sides that are no multiples of 256: "pad" them by their edge and cut the padding off again, or
            "resize" the image to 256 x 256 and the answer back, as the masking-based saliency code does.
        compat: "mask_in": as that code treats images of which a mask is kept: it blends the answer into what is
            known, and leaves the hole black. None or "mask_out" do not.

    Reference:
        Hong et al., ACM MM 2019, arXiv:1904.08060.
    """

    weights: str
    fit: Literal["pad", "resize"] = "pad"
    compat: Compat | None = None

    def __post_init__(self) -> None:
        _ = self.network

    @functools.cached_property
    def network(self) -> DfNetGenerator:
        """The generator with its weights."""
        source = "get it from github.com/hughplay/DFNet (CC BY-NC 4.0: not for commercial use)"
        return _with_weights(DfNetGenerator(), self.weights, source)

    def generate(self, pixels: Tensor, holes: Tensor) -> Tensor:
        """Pictures (N, 3, H, W) in [0, 1] from pixels of that shape and holes (N, 1, H, W), 1 in a hole."""
        network = _ready(self.network, pixels)
        # Resizing would carry what stands in a hole into its surroundings; the published code gives it the mean colour.
        pixels = torch.where(holes == 1, IMAGENET.pixels(torch.zeros_like(pixels)), pixels)
        if self.fit == "resize":
            size = (network.multiple, network.multiple)
            return _resized(self._blended(_resized(pixels, size), _resized(holes, size)), pixels.shape[2:])
        return _cropped(self._blended(_padded(pixels, network.multiple), _padded(holes, network.multiple)), pixels)

    def _blended(self, pixels: Tensor, holes: Tensor) -> Tensor:
        known = 1 - holes
        kept = pixels * known
        answer: Tensor = self.network(kept, known)[0][0]
        return kept + answer * (known if self.compat == "mask_in" else holes)

    __call__ = _fill_holes


@dataclass(frozen=True)
class PartialConv:
    """A U-Net of partial convolutions, which look at known pixels only.

    Sides that are no multiples of 2 to the number of levels are padded by their edge, and the padding is cut off again.

    Args:
        weights: a state dict of the network.
        levels: its halvings; 7 as published.

    Reference:
        Liu et al., ECCV 2018, arXiv:1804.07723.
    """

    weights: str
    levels: int = 7

    def __post_init__(self) -> None:
        _ = self.network

    @functools.cached_property
    def network(self) -> PartialConvUNet:
        """The generator with its weights."""
        source = "get it from github.com/naoto0804/pytorch-inpainting-with-partial-conv (MIT)"
        network = _with_weights(PartialConvUNet(self.levels), self.weights, source)
        for name, value in network.state_dict().items():
            if name.endswith("mask_conv.weight") and not bool((value == 1).all()):
                raise ModelError(
                    f"{self.weights}: {name} is not all ones; these are no weights of partial convolutions"
                )
        return network

    def generate(self, pixels: Tensor, holes: Tensor) -> Tensor:
        """Pictures (N, 3, H, W) from pixels of that shape and holes (N, 1, H, W), 1 in a hole."""
        network = _ready(self.network, pixels)
        known = 1 - _padded(holes, network.multiple).expand(-1, 3, -1, -1)
        images = IMAGENET(_padded(pixels, network.multiple)) * known
        return IMAGENET.pixels(_cropped(network(images, known)[0], pixels))

    __call__ = _fill_holes


@dataclass(frozen=True)
class Cnn:
    """The plain U-Net of the masking-based saliency code, with weights of the user's: the code's own are random.

    Sides that are no multiples of 16 are padded by their edge, and the padding is cut off again.

    Args:
        weights: a state dict of the network.
        compat: "mask_in": the network is told that what is kept was the hole, as that code does with images of which a
            mask is kept. None or "mask_out" do not.

    Reference:
        Phang, Park, Geras, arXiv:2010.09750: the authors' `cnn` infiller.
    """

    weights: str
    compat: Compat | None = None

    def __post_init__(self) -> None:
        _ = self.network

    @functools.cached_property
    def network(self) -> CnnInfiller:
        """The generator with its weights."""
        return _with_weights(CnnInfiller(), self.weights, "there is none to download; train it, or use train-infiller")

    def generate(self, pixels: Tensor, holes: Tensor) -> Tensor:
        """Pictures (N, 3, H, W) from pixels of that shape and holes (N, 1, H, W), 1 in a hole."""
        network = _ready(self.network, pixels)
        padded_holes = _padded(holes, network.multiple)
        images = IMAGENET(_padded(pixels, network.multiple)) * (1 - padded_holes)
        told = 1 - padded_holes if self.compat == "mask_in" else padded_holes
        return IMAGENET.pixels(_cropped(network(images, told), pixels))

    __call__ = _fill_holes


@dataclass(frozen=True)
class LearnedInfill:
    """What train-infiller learnt of the data at hand, for small images of any size and number of channels.

    Args:
        checkpoint: train_infiller/best_model.pth of a run.
    """

    checkpoint: str

    def __post_init__(self) -> None:
        _ = self.network

    @functools.cached_property
    def network(self) -> GatedUNet:
        """The network with its weights."""
        path = _present("checkpoint", self.checkpoint, "make it with train-infiller")
        state = read_weights(path)
        return _filled(GatedUNet.like(state), state, path)

    def generate(self, pixels: Tensor, holes: Tensor) -> Tensor:
        """Pictures (N, C, H, W) from pixels of that shape and holes (N, 1, H, W), 1 in a hole."""
        network = _ready(self.network, pixels, network_channels=self.network.answer.out_channels)
        filled: Tensor = network(pixels, holes)
        return filled

    __call__ = _fill_holes


@dataclass(frozen=True)
class NormalisedInfill:
    """A fill by a network, for whoever works on normalised images and soft masks.

    `train_masker.infiller` takes the fill itself: the training of a masker undoes the normalisation on its own.

    Args:
        infill: the fill.
        normalization: of the images.
    """

    infill: Generating
    normalization: Normalization

    def generate(self, images: Tensor, hole: Tensor) -> Tensor:
        """Pictures (N, C, H, W) from images of that shape and a hole (N, 1, H, W) each, values in [0, 1], 1 = removed."""
        return self.normalization(self.infill.generate(self.normalization.pixels(images), hole))


def _with_weights(network: Network, weights: str, source: str) -> Network:
    path = _present("weights", weights, source)
    return _filled(network, read_weights(path), path)


def _present(option: str, path: str, source: str) -> Path:
    if not Path(path).is_file():
        raise MissingInputError(f"{option}: {path}: no such file of weights; correct the path, or {source}")
    return Path(path)


def _filled(network: Network, state: State, path: Path) -> Network:
    put_weights(network, state, where=str(path), arch=type(network).__name__)
    return network.eval().requires_grad_(False)


def _ready(network: Network, pixels: Tensor, network_channels: int = 3) -> Network:
    if pixels.shape[1] != network_channels:
        raise InputError(f"pixels: {pixels.shape[1]} channels; {type(network).__name__} takes {network_channels}")
    return network.to(pixels.device)


def _padded(images: Tensor, multiple: int) -> Tensor:
    """Both sides grown to the next multiple, half of it at each end, by repeating the edge."""
    down, along = (-size % multiple for size in images.shape[2:])
    if not down and not along:
        return images
    return functional.pad(images, (along // 2, along - along // 2, down // 2, down - down // 2), mode="replicate")


def _cropped(images: Tensor, like: Tensor) -> Tensor:
    """The middle of padded images, of the size that they had."""
    height, width = like.shape[2:]
    top, left = (images.shape[2] - height) // 2, (images.shape[3] - width) // 2
    return images[:, :, top : top + height, left : left + width]


def _resized(images: Tensor, size: tuple[int, ...]) -> Tensor:
    return functional.interpolate(images, size=size, mode="bilinear", align_corners=True)
