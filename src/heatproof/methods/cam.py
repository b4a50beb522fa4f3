"""Attribution from the activations of one layer: class activation maps (CAM).

The layer gives (N, C, h, w) as convolutions do, (N, h, w, C) as Swin's blocks do, or tokens (N, T, C). `models.layout` finds the
layout and brings all of them into the form (N, C, h, w); class, distillation and register tokens are left out. Where it cannot
find the layout, the error message asks for the option `layout`: "channels_first", "channels_last", "tokens" (patches only, on the
grid that has the proportions of the picture) or "tokens:HxW" (the last H x W tokens, such as "tokens:14x14"). Where a head reads
the class token only, take a layer before the last attention: behind it the patches make no difference.

Each class is a factory: built with a model, the name of a layer and options, called with `(images, targets)`. Maps are
(N, H, W), enlarged from the layer's own size. A map that is zero everywhere (nothing speaks for the target) is a
legal map. What is explained is the target's logit.
"""

import itertools
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from heatproof.errors import InputError, ModelError
from heatproof.methods import options, rows
from heatproof.methods.gradient import GuidedBackprop
from heatproof.methods.graph import is_reached
from heatproof.methods.variants import scores_of_variants
from heatproof.models.hooks import frozen_eval, recorded, recorded_output
from heatproof.models.layout import Layouts

RESULTS_VERSION = 2  # to be raised when numbers change, also by a change in rows, rules, folding or variants

INTERPOLATIONS = ("bilinear", "nearest")


class Activations(NamedTuple):
    """A layer's output and the gradient of the target's logit with respect to it, both (N, C, h, w)."""

    values: Tensor
    gradients: Tensor


def activations(
    model: nn.Module, layer: str, images: Tensor, targets: Tensor, layouts: Layouts | None = None
) -> Activations:
    """Runs the model forwards, and backwards down to a layer; of a layer called several times, the last call counts.

    Args:
        model: classifier, (N, C, H, W) -> (N, K) logits.
        layer: name of a submodule whose output is a grid of activations, in any layout.
        images: (N, C, H, W).
        targets: (N,).
        layouts: the layer's layout, where it is known from an earlier call.

    Raises:
        ModelError: where the layer is not called, does not lead to the logits, or has an output of another shape.
    """
    rows.check_batch(images, targets)
    layout = (layouts or Layouts(model, {layer: None}))(images)[layer]
    with recorded(model, layer) as outputs, rows.explaining(model):
        # A copy: the first layer may be in-place. No gradient is asked for the images, so the graph begins at the layer.
        scores = rows.chosen(rows.logits_of(model, images.detach().clone()), targets)
        values = recorded_output(layer, outputs)
        if not is_reached(scores, values):
            raise ModelError(
                f"layer {layer!r}: the logits do not depend on its last output, or no gradient comes to it (torch.no_grad, "
                "detach, argmax or rounding behind it); choose another layer"
            )
        (gradients,) = torch.autograd.grad(scores.sum(), values)
    return Activations(layout(values.detach()), layout(gradients))


def to_image_size(maps: Tensor, images: Tensor, interpolation: str = "bilinear") -> Tensor:
    """Maps (N, h, w), enlarged to (N, H, W) of `images`; bilinear has half-pixel centres (align_corners=False).

    >>> to_image_size(torch.tensor([[[0.0, 4.0]]]), torch.zeros(1, 3, 1, 4)).tolist()
    [[[0.0, 1.0, 3.0, 4.0]]]
    """
    corners = False if interpolation == "bilinear" else None
    size = images.shape[2:]
    return functional.interpolate(maps[:, None], size=size, mode=interpolation, align_corners=corners)[:, 0].float()


def layer_grad_cam(
    model: nn.Module,
    layer: str,
    images: Tensor,
    targets: Tensor,
    *,
    eigen_smooth: bool = False,
    layouts: Layouts | None = None,
) -> Tensor:
    """Grad-CAM at the layer's own size and before the ReLU: each channel weighted by its mean gradient; (N, h, w).

    With `eigen_smooth`, in place of the sum of the weighted channels, their first principal component (see `GradCam`).
    """
    values, gradients = activations(model, layer, images, targets, layouts)
    weighted = gradients.mean(dim=(2, 3), keepdim=True) * values  # (N, C, h, w)
    plain = weighted.sum(dim=1)
    if not eigen_smooth:
        return plain
    matrices = options.in_double(weighted.flatten(2).transpose(1, 2))  # (N, h * w, C)
    projections = _first_projection(matrices - matrices.mean(dim=1, keepdim=True))
    # Their mean is 0, so the sum of products has the sign of the correlation.
    agreement = (projections * plain.flatten(1).to(projections)).sum(dim=1, keepdim=True)
    maps: Tensor = torch.where(agreement >= 0, projections, -projections).to(plain)
    return maps.reshape(plain.shape)


def _first_projection(matrices: Tensor) -> Tensor:
    """Matrices (N, M, C), projected on their first right singular vector: (N, M); the sign is left open."""
    left, singular, _ = torch.linalg.svd(matrices, full_matrices=False)
    projections: Tensor = left[:, :, 0] * singular[:, :1]
    return projections


@dataclass(frozen=True)
class GradCam:
    """Grad-CAM: each channel weighted by its mean gradient; the sum clipped at zero.

    Args:
        model: classifier, (N, C, H, W) -> (N, K) logits.
        layer: name of a submodule (see the module's text), as in `model.named_modules()`.
        relu: clip at zero, as in the paper; False keeps what speaks against the target.
        interpolation: "bilinear" or "nearest", from the layer's size to the image's.
        eigen_smooth: in place of the sum of the weighted channels, their first principal component: as a matrix (h * w, C)
            with centred columns, projected on the first right singular vector. Its sign, which the decomposition leaves
            open, is that of the correlation with the sum.
        aug_smooth: the mean over the image and its mirror image, each times 0.9, 1 and 1.1 (of the normalised image), mirrored
            back; each of the six maps is brought to [0, 1] by its minimum and maximum before and after it is enlarged. Six
            times the time.
        layout: of the layer's output, for where it is not found (see the module's text).

    Raises:
        InputError: where an option is out of range, or `aug_smooth` comes without `relu`.
        ModelError: where there is no such layer (naming the nearest), or its output is no grid (see the module's text).

    Reference:
        Selvaraju et al., ICCV 2017, arXiv:1610.02391, equations 1 and 2; smoothing: https://github.com/jacobgil/pytorch-grad-cam.

    >>> model = nn.Sequential(nn.Identity(), nn.AdaptiveAvgPool2d(1), nn.Flatten())  # logit k: mean of channel k
    >>> image = torch.tensor([[[[8.0, 0.0]], [[0.0, 4.0]]]])
    >>> GradCam(model, layer="0")(image, torch.tensor([0])).tolist()
    [[[4.0, 0.0]]]
    """

    model: nn.Module
    layer: str
    relu: bool = True
    interpolation: str = "bilinear"
    eigen_smooth: bool = False
    aug_smooth: bool = False
    layout: str | None = None
    _layouts: Layouts = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_layouts", Layouts(self.model, {self.layer: self.layout}))
        options.one_of(self, "interpolation", self.interpolation, INTERPOLATIONS)
        if self.aug_smooth and not self.relu:
            raise InputError("GradCam: aug_smooth brings each map to [0, 1], which leaves no sign to keep; set relu")

    def __call__(self, images: Tensor, targets: Tensor) -> Tensor:
        """Explains the logits of `targets` (N,) for `images` (N, C, H, W): maps (N, H, W), float32; >= 0 with relu."""
        if not self.aug_smooth:
            return to_image_size(self._of_layer(images, targets), images, self.interpolation)
        rows.check_batch(images, targets)
        maps: list[Tensor] = []
        for flipped, brightness in itertools.product((False, True), (0.9, 1.0, 1.1)):
            seen = brightness * (images.detach().flip(3) if flipped else images.detach())
            found = _to_unit(to_image_size(_to_unit(self._of_layer(seen, targets)), images, self.interpolation))
            maps.append(found.flip(2) if flipped else found)
        return torch.stack(maps).mean(dim=0)

    def _of_layer(self, images: Tensor, targets: Tensor) -> Tensor:
        maps = layer_grad_cam(
            self.model, self.layer, images, targets, eigen_smooth=self.eigen_smooth, layouts=self._layouts
        )
        return maps.relu() if self.relu else maps


def _to_unit(maps: Tensor) -> Tensor:
    """Maps (N, h, w), each brought to [0, 1] by its minimum and maximum; a constant map becomes 0."""
    risen = maps - maps.amin(dim=(1, 2), keepdim=True)
    return risen / (risen.amax(dim=(1, 2), keepdim=True) + 1e-7)  # the published guard; it shows where maps are small


@dataclass(frozen=True)
class GradCamPlusPlus:
    """Grad-CAM++: each channel weighted by its positive gradients, each place by how much it matters alone.

    For a channel A with gradient g of the logit: alpha = g^2 / (2 g^2 + g^3 sum(A)), 0 where g is 0; the
    channel's weight is the sum of alpha * max(g, 0); the weighted sum of the channels is clipped at zero. (The paper
    explains exp(logit), whose gradient differs by a factor that is the same all over the map; it is left out.)

    Args:
        model: classifier, (N, C, H, W) -> (N, K) logits.
        layer: name of a submodule (see the module's text), as in `model.named_modules()`.
        layout: of the layer's output, for where it is not found (see the module's text).

    Raises:
        ModelError: where there is no such layer (naming the nearest), or its output is no grid (see the module's text).

    Reference:
        Chattopadhay, Sarkar, Howlader, Balasubramanian: "Grad-CAM++", WACV 2018, arXiv:1710.11063, equations 10, 19.
    """

    model: nn.Module
    layer: str
    layout: str | None = None
    _layouts: Layouts = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_layouts", Layouts(self.model, {self.layer: self.layout}))

    def __call__(self, images: Tensor, targets: Tensor) -> Tensor:
        """Explains the logits of `targets` (N,) for `images` (N, C, H, W): maps (N, H, W), float32, >= 0."""
        values, gradients = activations(self.model, self.layer, images, targets, self._layouts)
        total = values.sum(dim=(2, 3), keepdim=True)  # (N, C, 1, 1)
        # Numerator and denominator divided by g^2, which may underflow.
        denominators = 2 + gradients * total
        alphas = torch.where((gradients != 0) & (denominators != 0), 1 / denominators, 0.0)
        weights = (alphas * gradients.relu()).sum(dim=(2, 3), keepdim=True)
        return to_image_size((weights * values).sum(dim=1).relu(), images)


@dataclass(frozen=True)
class LayerCam:
    """LayerCAM: each activation weighted by its own positive gradient; the sum over channels clipped at zero.

    Args:
        model: classifier, (N, C, H, W) -> (N, K) logits.
        layer: name of a submodule (see the module's text), as in `model.named_modules()`.
        layout: of the layer's output, for where it is not found (see the module's text).

    Raises:
        ModelError: where there is no such layer (naming the nearest), or its output is no grid (see the module's text).

    Reference:
        Jiang, Zhang, Hou, Cheng, Wei: "LayerCAM", IEEE Transactions on Image Processing 30 (2021), equations 5 to 7.
    """

    model: nn.Module
    layer: str
    layout: str | None = None
    _layouts: Layouts = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_layouts", Layouts(self.model, {self.layer: self.layout}))

    def __call__(self, images: Tensor, targets: Tensor) -> Tensor:
        """Explains the logits of `targets` (N,) for `images` (N, C, H, W): maps (N, H, W), float32, >= 0."""
        values, gradients = activations(self.model, self.layer, images, targets, self._layouts)
        return to_image_size((gradients.relu() * values).sum(dim=1).relu(), images)


@dataclass(frozen=True)
class EigenCam:
    """Eigen-CAM: the layer's activations, projected on their first principal direction. It knows no class.

    For the activations of an image as a matrix A (h * w, C) with singular vectors A = U S V^T: the map is A V_1,
    signed. The sign, which the decomposition leaves open, is such that the map's sum is not negative; for
    activations behind a ReLU the map then has no negative value.

    Args:
        model: classifier.
        layer: name of a submodule (see the module's text), as in `model.named_modules()`.
        layout: of the layer's output, for where it is not found (see the module's text).

    Raises:
        ModelError: where there is no such layer (naming the nearest), or its output is no grid (see the module's text).

    Reference:
        Muhammad, Yeasin: "Eigen-CAM", IJCNN 2020, arXiv:2008.00299.
    """

    model: nn.Module
    layer: str
    layout: str | None = None
    _layouts: Layouts = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_layouts", Layouts(self.model, {self.layer: self.layout}))

    def __call__(self, images: Tensor, targets: Tensor) -> Tensor:
        """Maps (N, H, W), float32, for `images` (N, C, H, W); `targets` (N,) are checked and make no difference."""
        rows.check_batch(images, targets)
        values = _activations_only(self._layouts, images)
        matrices = options.in_double(values.flatten(2).transpose(1, 2))  # (N, h * w, C)
        projections = _first_projection(matrices)
        signs = torch.where(projections.sum(dim=1, keepdim=True) < 0, -1.0, 1.0)
        maps = (projections * signs).to(values).reshape(len(values), *values.shape[2:])
        return to_image_size(maps, images)


@dataclass(frozen=True)
class ScoreCam:
    """Score-CAM: each channel weighted by the logit that is left when the channel masks the image.

    Each channel is enlarged to the image's size and brought to [0, 1] by its minimum and maximum; the image
    times this mask is scored; the softmax of the target's logits over the channels gives the weights; the weighted sum
    of the channels is clipped at zero. A constant channel masks nothing and has weight 0. Costs one forward pass
    for each channel.

    Args:
        model: classifier, (N, C, H, W) -> (N, K) logits.
        layer: name of a submodule (see the module's text), as in `model.named_modules()`.
        rows_per_forward: masked images in one forward pass; the memory knob.
        layout: of the layer's output, for where it is not found (see the module's text).

    Raises:
        ModelError: where there is no such layer (naming the nearest), or its output is no grid (see the module's text).

    Reference:
        Wang et al.: "Score-CAM", CVPR workshops 2020, arXiv:1910.01279, algorithm 1.
    """

    model: nn.Module
    layer: str
    rows_per_forward: int | None = None
    layout: str | None = None
    _layouts: Layouts = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_layouts", Layouts(self.model, {self.layer: self.layout}))
        options.at_least(self, 1, rows_per_forward=self.rows_per_forward)

    def __call__(self, images: Tensor, targets: Tensor) -> Tensor:
        """Explains the logits of `targets` (N,) for `images` (N, C, H, W): maps (N, H, W), float32, >= 0."""
        rows.check_batch(images, targets)
        images = images.detach()
        values = _activations_only(self._layouts, images)
        low, high = values.amin(dim=(2, 3)), values.amax(dim=(2, 3))  # (N, C)

        def make(channel: int, chosen: slice, out: Tensor) -> None:
            enlarged = to_image_size(values[chosen, channel], out).to(out)
            least, most = enlarged.amin(dim=(1, 2), keepdim=True), enlarged.amax(dim=(1, 2), keepdim=True)
            masks = (enlarged - least) / torch.where(most > least, most - least, 1.0)
            torch.mul(images[chosen], masks[:, None], out=out)

        scores = scores_of_variants(self.model, images, targets, values.shape[1], make, self.rows_per_forward)  # (N, C)
        varies = high > low
        weights = torch.where(varies, scores, -torch.inf).softmax(dim=1)
        weights = torch.where(varies, weights, 0.0)  # where no channel varies, the softmax is NaN
        return to_image_size((weights[:, :, None, None] * values).sum(dim=1).relu(), images)


@dataclass(frozen=True)
class GuidedGradCam:
    """Guided Grad-CAM: guided backprop times Grad-CAM (clipped at zero, enlarged).

    Args:
        model: classifier with ReLUs, (N, C, H, W) -> (N, K) logits.
        layer: name of a submodule (see the module's text), as in `model.named_modules()`.
        interpolation: "nearest" (as Captum) or "bilinear", from the layer's size to the image's.
        layout: of the layer's output, for where it is not found (see the module's text).

    Raises:
        ModelError: where there is no such layer (naming the nearest), or its output is no grid (see the module's text); on the
            call, where the model calls no ReLU.

    Reference:
        Selvaraju et al., ICCV 2017, arXiv:1610.02391, section 3.2.
    """

    model: nn.Module
    layer: str
    interpolation: str = "nearest"
    layout: str | None = None
    _cam: GradCam = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        options.one_of(self, "interpolation", self.interpolation, INTERPOLATIONS)
        cam = GradCam(self.model, self.layer, interpolation=self.interpolation, layout=self.layout)
        object.__setattr__(self, "_cam", cam)

    def __call__(self, images: Tensor, targets: Tensor) -> Tensor:
        """Explains the logits of `targets` (N,) for `images` (N, C, H, W): maps (N, C, H, W), float32, signed."""
        return GuidedBackprop(self.model)(images, targets) * self._cam(images, targets)[:, None]


def _activations_only(layouts: Layouts, images: Tensor) -> Tensor:
    """The output, (N, C, h, w), of the one layer, without gradients."""
    ((layer, layout),) = layouts(images).items()
    with recorded(layouts.model, layer) as outputs, frozen_eval(layouts.model), torch.no_grad():
        rows.logits_of(layouts.model, images.detach().clone())
    return layout(recorded_output(layer, outputs))
