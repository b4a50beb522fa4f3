"""Any attribution method named in a configuration, behind one call: images, targets and indices in, maps out.

A dotted path names a *factory* `(model, **kwargs)` that returns a callable `(images, targets) -> maps`, or a *function*
`(model, preprocessed_image, label, **kwargs) -> map` that explains one image, the form of the ROAR code. In place of a callable, a
factory may return an object with `attribute(inputs, target=..., **kwargs)`, the form of Captum: then `captum.attr.Occlusion` is such
a factory, and the options of its constructor and of `attribute` are given side by side.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from heatproof import plugins, seeding
from heatproof.errors import MapError, PluginError
from heatproof.methods.protocol import attribute_of
from heatproof.methods.reduction import reduce_channels
from heatproof.models import frozen_eval
from heatproof.models.hooks import module_named

# Parameters that a factory may name to be given by us; users never set them. `classifier_sha256` names the weights of the
# classifier, for methods that were trained for one; it is not given where maps of other weights are wanted on purpose.
PROVIDED = ("seed", "regions", "normalization", "classifier_sha256")


@dataclass(frozen=True)
class Explained:
    """Maps of a batch (N, H, W) float32, and which of them hold NaN or infinity (N,)."""

    maps: Tensor
    invalid: Tensor


@dataclass(frozen=True)
class Explainer:
    """One configured method.

    Args:
        name: for messages.
        path: dotted path of a factory or function.
        options: its keyword arguments.
        channel_reduction: how (N, C, H, W) becomes (N, H, W); see `reduce_channels`.
        on_invalid: "error", or "skip" to report maps with NaN or infinity as invalid.
    """

    name: str
    path: str
    options: Mapping[str, Any]
    channel_reduction: str = "signed_max"
    on_invalid: str = "error"

    def check(self) -> None:
        """Checks path and options, before a model is loaded.

        Raises:
            PluginError: naming what does not fit.
        """
        target = plugins.resolve(self.path)
        factory, attribute = self._options_of(target)
        plugins.check_options(
            self.path, target, factory, positional=3 if self._is_function(target) else 1, provided=PROVIDED
        )
        if (function := attribute_of(target)) is not None:
            # The class's own function: its first argument is the object, its second the images.
            plugins.check_options(f"{self.path}.attribute", function, attribute, positional=2, provided=("target",))

    def code_version(self) -> str:
        """Version of the code that makes the maps, for their origin."""
        return plugins.code_version(plugins.resolve(self.path))

    def bind(self, model: nn.Module, provided: Mapping[str, Any]) -> Callable[[Tensor, Tensor, Tensor], Explained]:
        """The method at work on a model, which is frozen in eval mode during each call and put back afterwards.

        Code that draws from torch's global generator finds it seeded by (seed, image index) in a function, and by
        (seed, first index of the batch) in a factory's callable.

        Args:
            model: classifier, images (N, C, H, W) -> logits (N, K).
            provided: values for those of PROVIDED that a factory names.

        Returns:
            A function of images (N, C, H, W), targets (N,) and indices (N,) in the split.
        """
        target = plugins.resolve(self.path)
        seed = int(provided.get("seed", 0))
        if self._is_function(target):
            explain = self._one_by_one(target, model, seed)
        else:
            factory, attribute = self._options_of(target)
            if attribute_of(target) is not None and isinstance(factory.get("layer"), str):
                factory["layer"] = module_named(model, factory["layer"])
            made = plugins.build(self.path, target, factory, model, provided=provided)
            if not callable(made) and attribute_of(made) is None:
                raise PluginError(
                    f"{self.path}: made {type(made).__name__}, which cannot be called with (images, targets) and has no attribute()"
                )
            explain = _with_indices(made, attribute)

        def call(images: Tensor, targets: Tensor, indices: Tensor) -> Explained:
            torch.manual_seed(seeding.derive(seed, "explain", int(indices[0])))
            with frozen_eval(model):
                maps = explain(images, targets, indices)
            return self._checked(maps, images, indices)

        return call

    def _options_of(self, target: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """The options of a factory, and those of its `attribute` where it is a class in Captum's form."""
        if attribute_of(target) is None:
            return dict(self.options), {}
        factory = {name: value for name, value in self.options.items() if plugins.wants(target, name)}
        # A configuration has lists only; Captum asks for tuples.
        return factory, {name: _as_tuple(value) for name, value in self.options.items() if name not in factory}

    def _is_function(self, target: Any) -> bool:
        if isinstance(target, type) or not callable(target):
            return False
        named = [
            p
            for p in inspect.signature(target).parameters.values()
            if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
        ]
        return len(named) >= 3 and all(p.default is p.empty and p.name not in self.options for p in named[1:3])

    def _one_by_one(self, function: Any, model: nn.Module, seed: int) -> Callable[[Tensor, Tensor, Tensor], Any]:
        def explain(images: Tensor, targets: Tensor, indices: Tensor) -> Tensor:
            maps = []
            for image, label, index in zip(images, targets, indices.tolist(), strict=True):
                torch.manual_seed(seeding.derive(seed, "explain", index))
                found = function(model, image[None], label[None], **self.options)
                array = self._tensor(found, index)
                maps.append(array[0] if array.ndim == 4 else array)
            if len({tuple(array.shape) for array in maps}) > 1:
                raise MapError(f"{self.name}: maps of different shapes in one batch")
            return torch.stack(maps)

        return explain

    def _tensor(self, maps: Any, index: int) -> Tensor:
        """What a method has returned, as a tensor of real numbers.

        Raises:
            MapError: it is none.
        """
        kind = type(maps).__name__
        try:
            if isinstance(maps, list | tuple) and maps and all(isinstance(one, Tensor) for one in maps):
                maps = torch.stack([one.detach() for one in maps])
            tensor = maps if isinstance(maps, Tensor) else torch.as_tensor(np.asarray(maps))
        except (TypeError, ValueError, RuntimeError):
            tensor = None
        if tensor is None or tensor.is_complex() or tensor.layout != torch.strided:
            what = kind if tensor is None else f"{kind} of {str(tensor.dtype).removeprefix('torch.')}, {tensor.layout}"
            raise MapError(
                f"{self.name} ({self.path}): image {index}: returned {what}; expected maps (N, H, W) or (N, C, H, W), one for each "
                "image, as a tensor or array of real numbers"
            )
        return tensor.detach()

    def _checked(self, maps: Any, images: Tensor, indices: Tensor) -> Explained:
        where = f"{self.name} ({self.path})"
        maps = self._tensor(maps, int(indices[0]))
        expected = (len(images), *images.shape[2:])
        shape = (maps.shape[0], *maps.shape[2:]) if maps.ndim == 4 else tuple(maps.shape)
        if shape != expected:
            raise MapError(
                f"{where}: image {int(indices[0])}: maps of shape {tuple(maps.shape)}; expected (N, H, W) or (N, C, H, W) "
                f"with N, H, W = {expected}"
            )
        maps = maps.detach().to(torch.float32)
        reduced = reduce_channels(maps, self.channel_reduction) if maps.ndim == 4 else maps
        invalid = ~torch.isfinite(reduced).all(dim=2).all(dim=1)
        if bool(invalid.any()) and self.on_invalid == "error":
            first = int(indices[int(invalid.nonzero()[0])])
            raise MapError(
                f"{where}: the map of image {first} holds NaN or infinity; mend the method, or set on_invalid: skip"
            )
        return Explained(reduced, invalid)


def _with_indices(explain: Any, options: Mapping[str, Any]) -> Callable[[Tensor, Tensor, Tensor], Any]:
    attribute = attribute_of(explain)
    if attribute is not None:

        def call(images: Tensor, targets: Tensor, indices: Tensor) -> Any:
            with torch.inference_mode(mode=False), torch.enable_grad():
                return attribute(images.detach().clone().requires_grad_(), target=targets.clone(), **options)

        return call
    return lambda images, targets, indices: explain(images, targets, **plugins.given(explain, {"indices": indices}))


def _as_tuple(value: Any) -> Any:
    return tuple(map(_as_tuple, value)) if isinstance(value, list) else value
