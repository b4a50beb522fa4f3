"""How a picture becomes what a classifier expects, where its library says so: size, cut, interpolation, names of classes."""

import importlib
import importlib.util
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from heatproof import plugins
from heatproof.models.loading import fetching
from heatproof.models.normalization import Normalization


@dataclass(frozen=True)
class Preparation:
    """What a model's library does with a picture before the model sees it.

    Args:
        images: from an RGB picture to a normalised image (3, H, W).
        normalization: the one inside `images`.
        class_names: of the library's own weights; empty where it has none.
    """

    images: Callable[[Image.Image], Tensor]
    normalization: Normalization
    class_names: tuple[str, ...] = ()

    def pixels(self, picture: Image.Image) -> Tensor:
        """The part of the picture that the model sees, in [0, 1]: (3, H, W)."""
        mean, std = (torch.tensor(v)[:, None, None] for v in (self.normalization.mean, self.normalization.std))
        return (self.images(picture) * std + mean).clamp(0, 1)


def library_preparation(arch: str) -> Preparation | None:
    """What torchvision, timm or Hugging Face say of a model by name; None where it is none of theirs.

    Nothing but Hugging Face's image processor is fetched.

    Raises:
        ModelError: the processor could not be had.
    """
    if arch.startswith("timm:"):
        return _timm(arch.removeprefix("timm:"))
    if arch.startswith("hf:"):
        return _hugging_face(arch)
    if arch.startswith("torchvision."):
        return _torchvision(plugins.resolve(arch))
    return None


def resized(picture: Image.Image, size: tuple[int, int], channels: int = 3) -> Tensor:
    """Both sides scaled to a size (H, W), bilinear and antialiased, whatever the picture's shape: (channels, H, W) in [0, 1].

    >>> resized(Image.new("RGB", (4, 2), "white"), (1, 2), channels=1)
    tensor([[[1., 1.]]])
    """
    scaled = picture.convert("L" if channels == 1 else "RGB").resize(size[::-1], Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(scaled, dtype=np.float32) / 255).reshape(*size, channels).permute(2, 0, 1)


def input_size(module: nn.Module) -> tuple[int, int] | None:
    """Height and width that a model was built for, where it is one that fixes them.

    >>> from heatproof.models.vit import ViTTiny
    >>> input_size(ViTTiny(depth=1))
    (32, 32)
    """
    for part in module.modules():
        for name in ("img_size", "image_size"):
            size = getattr(part, name, None)
            if isinstance(size, int):
                return size, size
            if isinstance(size, tuple | list) and len(size) == 2:
                return int(size[0]), int(size[1])
    return None


def _timm(name: str) -> Preparation | None:
    if importlib.util.find_spec("timm") is None:
        return None  # `load` says how to install it
    timm, data = importlib.import_module("timm"), importlib.import_module("timm.data")
    if not timm.is_model(name):
        return None  # `load` names the nearest
    known = timm.get_pretrained_cfg(name)
    settings = data.resolve_data_config(pretrained_cfg=known.to_dict())
    transform = data.create_transform(**settings, is_training=False)
    names: tuple[str, ...] = ()
    if known.num_classes == 1000:
        info = data.ImageNetInfo()
        names = tuple(info.index_to_description(index) for index in range(1000))
    return Preparation(transform, Normalization(settings["mean"], settings["std"]), names)


def _torchvision(builder: Any) -> Preparation | None:
    from torchvision.models import get_model_weights

    if not inspect.isfunction(builder):
        return None
    try:
        weights = get_model_weights(builder).DEFAULT
    except (ValueError, AttributeError):
        return None
    transform = weights.transforms()
    names = tuple(weights.meta.get("categories", ()))
    return Preparation(transform, Normalization(tuple(transform.mean), tuple(transform.std)), names)


def _hugging_face(arch: str) -> Preparation | None:
    if importlib.util.find_spec("transformers") is None:
        return None
    transformers = importlib.import_module("transformers")
    name = arch.removeprefix("hf:")
    with fetching(arch, "give a folder that has one as hf:FOLDER", what="image processor"):
        processor = transformers.AutoImageProcessor.from_pretrained(name)
        labels = transformers.AutoConfig.from_pretrained(name).id2label

    def images(picture: Image.Image) -> Tensor:
        found: Tensor = processor(images=picture, return_tensors="pt")["pixel_values"][0]
        return found

    normalization = Normalization(tuple(processor.image_mean), tuple(processor.image_std))
    return Preparation(images, normalization, tuple(str(labels[index]) for index in sorted(labels)))
