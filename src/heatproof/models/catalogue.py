"""Classifiers by short names: torchvision's as torchvision spells them, and those of the package by the names of their classes."""

import inspect

from torch import nn

from heatproof.errors import ModelError, nearest
from heatproof.models import resnet_cifar, vit


def path_of(name: str) -> str:
    """The dotted path of a classifier; dotted paths, `timm:NAME` and `hf:NAME` stay.

    Capitals count: `resnet18` is torchvision's network for photographs, `ResNet18` the package's for pictures of 32 x 32.

    Raises:
        ModelError: where there is none of this name; it names the nearest.

    >>> path_of("resnet50"), path_of("ResNet8")
    ('torchvision.models.resnet50', 'heatproof.models.resnet_cifar.ResNet8')
    """
    if "." in name or ":" in name:
        return name
    own = {
        kind.__name__: f"{module.__name__}.{kind.__name__}"
        for module in (resnet_cifar, vit)
        for kind in vars(module).values()
        if isinstance(kind, type) and issubclass(kind, nn.Module) and _is_classifier(kind)
    }
    if name in own:
        return own[name]
    from torchvision import models  # slow to import

    libraries = models.list_models(module=models)
    if name not in libraries:
        raise ModelError(
            f"there is no classifier {name!r}{nearest(name, [*own, *libraries])}; or give a dotted path, timm:NAME or hf:NAME"
        )
    return f"torchvision.models.{name}"


def _is_classifier(kind: type) -> bool:
    """Whether a network can be built for a number of classes, and nothing else must be said."""
    parameters = inspect.signature(kind).parameters
    return "num_classes" in parameters and all(p.default is not p.empty for p in parameters.values())
