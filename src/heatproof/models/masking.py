"""Replacing patches of an image within a frozen classifier, for Vision DiffMask (`models.diffmask`).

`TokenMasking` does this in a vision transformer (`models.transformers` says which are known): the states are the patch projection's
output, the tokens before each block, and those behind the last. `PixelMasking` does it in any convolutional network, which the
published method does not: an extension of ours, in which state 0 is the pixels of a patch, the further states are the network's
stages averaged over the patch, and the placeholder is a colour.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from heatproof.errors import InputError, ModelError
from heatproof.models.hooks import recorded, recorded_output
from heatproof.models.layout import Grid, grid_of, traced
from heatproof.models.targets import Retargeted
from heatproof.models.transformers import Architecture, architecture_of

Form = Literal["tokens", "pixels"]
FORMS: tuple[Form, ...] = ("tokens", "pixels")


class Pass(NamedTuple):
    """A classifier's pass over intact images: states (B, T, D) each, logits (B, K), and the grid (h, w) of patches.

    There are T = h w rows, patch by patch, and one more in front, the class token's, where it was asked for.
    """

    hidden: list[Tensor]
    logits: Tensor
    grid: tuple[int, int]


class Masking(Protocol):
    """How the patches of a classifier's images are read and replaced."""

    form: Form
    model: nn.Module

    def intact(self, images: Tensor) -> Pass:
        """Runs the classifier on `images` (B, C, H, W), without gradients."""
        ...

    def masked(self, images: Tensor, passed: Pass, keep: Tensor, placeholder: Tensor) -> Tensor:
        """The logits (B, K) when each patch is kept as far as `keep` (B, T) says, with gradients for it and the placeholder."""
        ...


def masking_of(
    model: nn.Module, form: Form | None = None, *, patch: int | None = None, compat: bool = False
) -> Masking:
    """How a classifier is masked: by its tokens where it is a vision transformer that is known, else by pixels.

    Args:
        model: classifier, (N, C, H, W) -> (N, K) logits, frozen in evaluation mode while it is masked.
        form: "tokens" or "pixels" to ask for one of them.
        patch: side of a patch in pixels, where pixels are masked; None: about an eighth of the image's shorter side.
        compat: as published: the class token has a row of its own in front of the patches.

    Raises:
        ModelError: tokens are asked for, and the model has none that are known.
    """
    if form is None:
        try:
            architecture_of(model)
            form = "tokens"
        except ModelError:
            form = "pixels"
    if form == "tokens":
        return TokenMasking(model, with_class_token=compat)
    return PixelMasking(model, patch)


class TokenMasking:
    """Masks the patch embeddings of a vision transformer; positions and the tokens in front are never masked.

    Args:
        model: one that `models.attention.architecture_of` knows.
        with_class_token: give the class token a row in front of the patches, as published; its value there has no effect.
    """

    form: Form = "tokens"

    def __init__(self, model: nn.Module, *, with_class_token: bool = False):
        self.model = model
        self.architecture = architecture_of(model)
        self.class_token = _class_token(model) if with_class_token else None

    def intact(self, images: Tensor) -> Pass:
        """Runs the classifier: states 0 (embeddings without positions), 1 to L (before each block), L + 1 (behind the last)."""
        with torch.no_grad(), hidden_states(self.architecture) as states:
            logits = self.model(images)
        patches, *tokens = (state.to(images.dtype) for state in states)
        grid = patches.shape[2], patches.shape[3]
        count = grid[0] * grid[1]
        if tokens[0].shape[1] < count:
            raise ModelError(
                f"DiffMask: {tokens[0].shape[1]} tokens for {grid[0]} x {grid[1]} patches; "
                "a model that drops or merges tokens has no map"
            )
        first = patches.flatten(2).transpose(1, 2)
        if self.class_token is not None:
            count += 1
            first = torch.cat([self.class_token.detach().expand(len(first), 1, -1), first], dim=1)
        return Pass([first, *(state[:, state.shape[1] - count :] for state in tokens)], logits, grid)

    def masked(self, images: Tensor, passed: Pass, keep: Tensor, placeholder: Tensor) -> Tensor:
        """The logits (B, K) with state 0 blended with the placeholder (1, 1, D)."""
        keep = keep[:, :, None]
        blended = keep * passed.hidden[0] + (1 - keep) * placeholder
        with replaced_state(self.architecture, 0, blended):
            logits: Tensor = self.model(images)
        return logits


class PixelMasking:
    """Masks square patches of the input of a convolutional network: an extension, not in the published method.

    State 0 is a patch's pixels, the others are the last output at each spatial size that the network goes through, averaged to
    the grid of patches. All are filled up with zeros to the widest.

    Args:
        model: any classifier with stages (N, C, h, w), in any layout (`models.layout`).
        patch: side of a patch in pixels, which divides the image's sides; None: about an eighth of the shorter side.
    """

    form: Form = "pixels"

    def __init__(self, model: nn.Module, patch: int | None = None):
        self.model = model
        self.patch = patch
        self._stages: dict[tuple[int, ...], dict[str, Grid]] = {}

    def intact(self, images: Tensor) -> Pass:
        """Runs the classifier: states 0 (pixels) and one for each stage, from the image to the head."""
        side, grid = self._grid(images)
        size = tuple(images.shape[2:])
        if size not in self._stages:
            self._stages[size] = stages_of(self.model, images)
        with torch.no_grad(), ExitStack() as stack:
            outputs = {name: stack.enter_context(recorded(self.model, name)) for name in self._stages[size]}
            logits = self.model(images.clone())  # the first layer may work in place
        stages = [layout(recorded_output(name, outputs[name])) for name, layout in self._stages[size].items()]
        # A half network's states are brought to the images' precision, in which the gates compute.
        states = [functional.adaptive_avg_pool2d(s.to(images.dtype), grid).flatten(2).transpose(1, 2) for s in stages]
        pixels = functional.unfold(images, side, stride=side).transpose(1, 2)
        width = max(state.shape[2] for state in (pixels, *states))
        return Pass([functional.pad(state, (0, width - state.shape[2])) for state in (pixels, *states)], logits, grid)

    def masked(self, images: Tensor, passed: Pass, keep: Tensor, placeholder: Tensor) -> Tensor:
        """The logits (B, K) with patches blended with the placeholder, a colour (1, 1, C)."""
        side, grid = self._grid(images)
        shares = keep.reshape(-1, 1, *grid).repeat_interleave(side, dim=2).repeat_interleave(side, dim=3)
        logits: Tensor = self.model(shares * images + (1 - shares) * placeholder.reshape(1, -1, 1, 1))
        return logits

    def _grid(self, images: Tensor) -> tuple[int, tuple[int, int]]:
        height, width = images.shape[2:]
        fitting = [side for side in range(1, min(height, width) + 1) if height % side == 0 and width % side == 0]
        eighth = min(height, width) / 8
        side = self.patch or min(fitting, key=lambda side: (side != int(eighth), abs(side - eighth)))
        if side not in fitting:
            known = ", ".join(map(str, fitting))
            raise InputError(
                f"DiffMask: patch {side} does not divide images of {height} x {width} pixels; these do: {known}"
            )
        return side, (height // side, width // side)


@contextmanager
def hidden_states(architecture: Architecture) -> Iterator[list[Tensor]]:
    """Records the states of a vision transformer that runs inside the block.

    Yields:
        A list that holds, after a forward pass: the patch projection's output (B, D, h, w), the tokens (B, T, D) before
        each block, and those behind the last block, before the final norm.
    """
    states: list[Tensor] = []
    first, last = architecture.projection, architecture.blocks[-1]

    def begin(module: nn.Module, arguments: Any, output: Tensor) -> None:
        states[:] = [output]

    def before(module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        states.append(next(iter((*arguments, *named.values()))))

    def behind(module: nn.Module, arguments: Any, output: Any) -> None:
        states.append(output[0] if isinstance(output, tuple) else output)

    with ExitStack() as hooks:
        hooks.callback(first.register_forward_hook(begin).remove)
        for block in architecture.blocks:
            hooks.callback(block.register_forward_pre_hook(before, with_kwargs=True).remove)
        hooks.callback(last.register_forward_hook(behind).remove)
        yield states


@contextmanager
def replaced_state(architecture: Architecture, index: int, new: Tensor) -> Iterator[None]:
    """Gives a vision transformer that runs inside the block another state of this index.

    Args:
        architecture: where the model keeps its states.
        index: 0 to L + 1, as in `Pass.hidden`.
        new: (B, T, D); of state 0 the last h w rows count, the patches', and the model adds positions and class token itself.
    """
    blocks = architecture.blocks

    def embed(module: nn.Module, arguments: Any, output: Tensor) -> Tensor:
        height, width = output.shape[2:]
        dtype = next((weight.dtype for weight in module.parameters()), new.dtype)  # of a network of half precision
        patches: Tensor = new[:, new.shape[1] - height * width :].transpose(1, 2).unflatten(2, (height, width))
        return patches.to(dtype)

    def enter(module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        return (new, *arguments[1:])

    def leave(module: nn.Module, arguments: Any, output: Any) -> Any:
        return (new, *output[1:]) if isinstance(output, tuple) else new

    if index == 0:
        handle = architecture.projection.register_forward_hook(embed)
    elif index <= len(blocks):
        handle = blocks[index - 1].register_forward_pre_hook(enter)
    else:
        handle = blocks[-1].register_forward_hook(leave)
    try:
        yield
    finally:
        handle.remove()


def stages_of(model: nn.Module, images: Tensor) -> dict[str, Grid]:
    """The modules that give the last output at each spatial size, in the order of their calls, and the layouts of the outputs.

    Outputs of a single pixel are no stage: they are pooled.

    Raises:
        ModelError: where there is none.

    >>> convolutions = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Conv2d(2, 2, 3), nn.Flatten())
    >>> list(stages_of(convolutions, torch.zeros(1, 1, 8, 8)))
    ['1', '2']
    """
    while isinstance(model, Retargeted):  # layers are named as inside
        model = model.model
    last: dict[tuple[int, int], tuple[str, Grid]] = {}
    for name, trace in traced(model, images, [name for name, _ in model.named_modules() if name]).items():
        grid = grid_of(trace)
        if grid is not None and max(grid.size) > 1:
            last.pop(grid.size, None)
            last[grid.size] = name, grid
    if not last:
        raise ModelError(f"{type(model).__name__}: has neither tokens nor stages (N, C, h, w); DiffMask needs either")
    return dict(last.values())


def _class_token(model: nn.Module) -> Tensor:
    """The learned class token of a model, (1, 1, D)."""
    for name, parameter in model.named_parameters():
        if name.rpartition(".")[2] in ("cls_token", "class_token"):
            return parameter
    raise ModelError(
        f"{type(model).__name__}: has no class token, which DiffMask's published form reads; set compat: false"
    )
