"""Rows through a model: gradients and scores of single images, or of many variants of them in bounded batches.

A method that looks at S variants ("samples") of each of N images needs N * S rows. They run in forward batches of
`rows_per_forward` rows that may hold several samples of several images: full batches whatever N and S are, in bounded
memory. In evaluation mode no row influences another, so the result does not depend on how rows are cut.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from heatproof import checks
from heatproof.errors import InputError, ModelError
from heatproof.methods import graph
from heatproof.models.hooks import dtype_of, frozen_eval

PIXELS_PER_FORWARD = {"cpu": 16 * 224 * 224, "accelerator": 32 * 224 * 224}
"""How many pixels (H * W, over all rows) a forward batch holds by default: 16 or 32 images of 224 x 224."""

MOST_ROWS = {"cpu": 64, "accelerator": 512}
"""The default number of rows never exceeds this: on a CPU larger batches leave the cache and take longer for a row."""


@contextmanager
def explaining(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, parameters frozen, gradients on, whatever the caller's state is; put back afterwards."""
    with frozen_eval(model), torch.inference_mode(mode=False), torch.enable_grad():
        yield


def check_batch(images: Tensor, targets: Tensor) -> None:
    """Checks what each method is called with.

    Raises:
        InputError: images not (N, C, H, W) floats, or targets not (N,) integers on the same device.
    """
    checks.shapes("N C H W", images=images)
    checks.shapes(f"{len(images)}", targets=targets)
    if not images.is_floating_point():
        raise InputError(f"images: dtype {images.dtype}; expected floating point, normalised for the model")
    if targets.dtype != torch.int64:
        raise InputError(f"targets: dtype {targets.dtype}; expected int64")
    if images.device != targets.device:
        raise InputError(f"targets: on {targets.device}, but the images are on {images.device}; move one of them")


def logits_of(model: nn.Module, images: Tensor) -> Tensor:
    """The model's output, (N, K), for images that are brought to its precision: half, single or double.

    Raises:
        ModelError: where the output is something else.
    """
    # The parts of `DataParallel` would run in threads of their own, where no mode sees them.
    logits = (model.module if isinstance(model, nn.DataParallel) else model)(images.to(dtype_of(model, images)))
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(images):
        got = f"shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else f"a {type(logits).__name__}"
        raise ModelError(f"{type(model).__name__}: gives {got} for {len(images)} images; expected (N, K) logits")
    return logits


def chosen(logits: Tensor, targets: Tensor) -> Tensor:
    """The entry (N,) of each row of `logits` (N, K) that `targets` (N,) names.

    Raises:
        InputError: where a target is no class of the model.
    """
    # On a GPU this check would wait for all queued work at each batch; there, torch's own check stops the run.
    if targets.device.type == "cpu" and len(targets) and not 0 <= targets.min() <= targets.max() < logits.shape[1]:
        wrong = next(int(target) for target in targets if not 0 <= target < logits.shape[1])
        raise InputError(
            f"targets: class {wrong}, but the model has {logits.shape[1]} classes (0 to {logits.shape[1] - 1})"
        )
    return logits.gather(1, _outside_inference(targets)[:, None])[:, 0]


def leaf(images: Tensor) -> Tensor:
    """The images as a tensor of our own for which gradients can be asked; the values are shared, not copied."""
    return _outside_inference(images.detach()).requires_grad_()


def _outside_inference(tensor: Tensor) -> Tensor:
    """The tensor, or a copy where it was made in inference mode, which autograd refuses."""
    return tensor.clone() if tensor.is_inference() else tensor


EXPLAINS = "there is nothing for a gradient method to explain; use methods.perturbation"


def check_reached(model: nn.Module, scores: Tensor, inputs: Tensor, consequence: str = EXPLAINS) -> None:
    """Checks that a gradient of the scores comes to `inputs`, which are the image, or masks of it.

    Raises:
        ModelError: where none does; the line ends with the consequence.
    """
    if not graph.is_reached(scores, inputs):
        raise ModelError(
            f"{type(model).__name__}: no gradient of the logits comes to the image (torch.no_grad, detach, argmax or rounding "
            f"inside the model), so {consequence}"
        )


def logit_gradients(model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
    """Gradient (N, C, H, W) of each image's target logit; to be called inside `explaining(model)`."""
    inputs = leaf(images)
    # The model works on a copy: its first layer may be in-place, and the images are not ours.
    scores = chosen(logits_of(model, inputs.clone()), targets)
    check_reached(model, scores, inputs)
    # In evaluation mode no image influences another, so one backward pass serves the whole batch.
    return torch.autograd.grad(scores.sum(), inputs)[0]


class Piece(NamedTuple):
    """Consecutive images that take part in a forward batch with the same sample."""

    sample: int
    images: slice
    rows: slice


def rows_of(images: Tensor, rows_per_forward: int | None) -> int:
    """How many rows a forward batch has: as asked for, or as many as PIXELS_PER_FORWARD and MOST_ROWS allow.

    >>> rows_of(torch.zeros(1, 3, 224, 224), None), rows_of(torch.zeros(1, 3, 32, 32), None)
    (16, 64)
    """
    if rows_per_forward is not None:
        return rows_per_forward
    height, width = images.shape[2:]
    kind = "cpu" if images.device.type == "cpu" else "accelerator"
    return max(1, min(MOST_ROWS[kind], PIXELS_PER_FORWARD[kind] // (height * width)))


def layout_of(images: Tensor) -> torch.memory_format:
    """The memory format of images (N, C, H, W): channels last, or the usual one."""
    last = images.is_contiguous(memory_format=torch.channels_last) and not images.is_contiguous()
    return torch.channels_last if last else torch.contiguous_format


def streamed(
    images: Tensor, targets: Tensor, samples: int, rows: int, make: Callable[[int, slice, Tensor], object]
) -> Iterator[tuple[Tensor, Tensor, list[Piece]]]:
    """Forward batches of `rows` rows that hold `samples` variants of each image, sample after sample.

    Args:
        images: (N, C, H, W); the batches have its memory format.
        targets: (N,).
        samples: S.
        rows: how many rows a batch has; the last may be shorter.
        make: called as make(sample, images, out); writes this variant of images[images] into out (n, C, H, W).

    Yields:
        The batch (R, C, H, W), to be used before the next is asked for; its targets (R,); and its pieces.
    """
    total, count = len(images) * samples, len(images)
    shape = (min(rows, total), *images.shape[1:])
    buffer = torch.empty(shape, dtype=images.dtype, device=images.device, memory_format=layout_of(images))
    numbers = torch.arange(min(rows, total), device=images.device)
    for start in range(0, total, rows):
        pieces = list(_pieces(start, min(start + rows, total), count))
        for piece in pieces:
            make(piece.sample, piece.images, buffer[piece.rows])
        length = pieces[-1].rows.stop
        yield buffer[:length], targets[(numbers[:length] + start) % count], pieces


def _pieces(start: int, stop: int, images: int) -> Iterator[Piece]:
    """Cuts rows start to stop, counted sample after sample, where a new sample begins."""
    row = start
    while row < stop:
        sample, first = divmod(row, images)
        length = min(images - first, stop - row)
        yield Piece(sample, slice(first, first + length), slice(row - start, row - start + length))
        row += length
