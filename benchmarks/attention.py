"""Attention methods of vision transformers against the published way of doing them, their bare parts, and their memory.

    python benchmarks/attention.py [--quick] [--device cuda] [--threads 1] [--cpu-time]

Rollouts: a batch of 32 images at once against one image at a time in the style of the published code: attention kernels not
fused, all matrices kept, whole matrices multiplied. GradMask: against the bare forward passes of as many masked images.
Attention flow: against its solver's own time. Memory: the peak of a gradient method above that of one forward and backward pass,
over the depth of the network, each in a process of its own. Sides of a comparison alternate; medians over the repeats.
"""

import argparse
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from alternating import Turns, parser_for, turns_of
from scipy.sparse import csgraph
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from heatproof import runtime
from heatproof.methods import attention_matrices, rows
from heatproof.methods.attention import AttentionFlow, AttentionRollout, Chefer, GradientRollout
from heatproof.methods.gradmask import GradMask
from heatproof.models.hooks import frozen_eval

BATCH = 32
SMALL = {
    "ViT 32 x 32, 65 tokens": {"img_size": 32, "patch_size": 4, "embed_dim": 96, "depth": 6, "num_heads": 3},
    "ViT 32 x 32, 17 tokens": {"img_size": 32, "patch_size": 8, "embed_dim": 64, "depth": 4, "num_heads": 2},
    "DeiT-tiny, 197 tokens": {"img_size": 224, "patch_size": 16, "embed_dim": 192, "depth": 12, "num_heads": 3},
}
DEPTHS = (2, 8, 16)


def main() -> None:
    parser = parser_for(__doc__, quick="fewer networks and repeats")
    parser.add_argument("--memory-of", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    turns = turns_of(options, quick=3, full=7)
    runtime.keep_freed_memory()  # as the stages do
    if options.memory_of:
        print(_peak_kib(*options.memory_of))
        return
    print(turns)
    for name, sizes in list(SMALL.items())[: 2 if options.quick else 3]:
        _rollouts(name, VisionTransformer(**sizes, num_classes=10).eval().to(turns.device), turns)
    _gradmask(turns, 1 if options.quick else 3)
    _flow(turns, 1 if options.quick else 3)
    if turns.device.type == "cpu" and Path("/proc/self/clear_refs").exists():
        _memory()


def _rollouts(name: str, model: nn.Module, turns: Turns) -> None:
    size = model.patch_embed.img_size  # type: ignore[union-attr]
    images = torch.randn(BATCH, 3, *size, generator=torch.Generator().manual_seed(0)).to(turns.device)
    targets = torch.zeros(BATCH, dtype=torch.int64, device=turns.device)
    for method, ours, published in (
        ("rollout", AttentionRollout(model), partial(_published_rollout, model)),
        ("gradient rollout", GradientRollout(model), partial(_published_gradient_rollout, model)),
    ):
        seconds = turns.seconds(
            {
                "ours": partial(ours.patch_maps, images, targets),
                "published": lambda published=published: [published(image[None]) for image in images],
                "bare": partial(_bare, model, images, gradients=method != "rollout"),
            }
        )
        print(
            f"{method}, {name}: {1000 * seconds['ours'] / BATCH:.2f} ms an image, "
            f"{seconds['published'] / seconds['ours']:.1f} x the published style, one by one (aim >= 10); "
            f"{seconds['bare'] / seconds['ours']:.2f} of the bare passes",
            flush=True,
        )


def _bare(model: nn.Module, images: Tensor, *, gradients: bool) -> None:
    with frozen_eval(model), torch.set_grad_enabled(gradients):
        inputs = images.clone().requires_grad_(gradients)
        logits = model(inputs)
        if gradients:
            torch.autograd.grad(logits[:, 0].sum(), inputs)


def _published_rollout(model: nn.Module, image: Tensor) -> Tensor:
    kept: list[Tensor] = []
    with _unfused(model, kept), torch.no_grad():
        model(image)
    return _product([matrices.mean(dim=1)[0] for matrices in kept])


def _published_gradient_rollout(model: nn.Module, image: Tensor) -> Tensor:
    kept: list[Tensor] = []
    with _unfused(model, kept):
        score = model(image)[0, 0]
        gradients = torch.autograd.grad(score, kept)
    return _product([(a * g).mean(dim=1)[0].clamp(min=0) for a, g in zip(kept, gradients, strict=True)])


def _product(fused: list[Tensor]) -> Tensor:
    """Whole matrices: 90 % of the entries discarded, identity added, rows scaled, all multiplied."""
    result = unit = torch.eye(len(fused[0]), device=fused[0].device)
    for matrix in fused:
        flat = matrix.detach().flatten().clone()
        flat[flat.topk(int(0.9 * flat.numel()), largest=False).indices] = 0
        mixed = (flat.reshape(matrix.shape) + unit) / 2
        result = mixed / mixed.sum(dim=-1, keepdim=True) @ result
    return result[0, 1:]


class _unfused:  # noqa: N801 - a context manager
    """Attention by single steps, whose probabilities are kept."""

    def __init__(self, model: nn.Module, kept: list[Tensor]):
        self.modules = [block.attn for block in model.blocks]  # type: ignore[union-attr]
        self.kept = kept

    def __enter__(self) -> None:
        self.handles = [m.attn_drop.register_forward_hook(lambda _, __, y: self.kept.append(y)) for m in self.modules]
        for module in self.modules:
            module.fused_attn = False

    def __exit__(self, *_: object) -> None:
        for handle, module in zip(self.handles, self.modules, strict=True):
            handle.remove()
            module.fused_attn = True


def _gradmask(turns: Turns, repeats: int) -> None:
    """ViT-B/16 with random weights, one group of channels: 33 masks an image."""
    device = turns.device
    torch.manual_seed(0)
    model = VisionTransformer(num_classes=1000).eval().to(device)
    images, targets = torch.randn(1, 3, 224, 224, device=device), torch.zeros(1, dtype=torch.int64, device=device)
    method = GradMask(model, masks_layer=1 if device.type == "cpu" else 4)
    kept, _ = method.masks(images, targets)
    count = kept.flatten(2)[0].unique(dim=0).shape[0]
    masked = images.repeat(count, 1, 1, 1)
    batch = rows.rows_of(images, None)

    def bound() -> None:
        _bare(model, images, gradients=True)
        for part in masked.split(batch):
            _bare(model, part, gradients=False)

    seconds = turns.seconds({"ours": partial(method, images, targets), "bound": bound}, repeats=repeats)
    print(
        f"GradMask, ViT-B/16, {count} masks in batches of {batch}: {seconds['ours']:.2f} s an image, "
        f"{seconds['bound'] / seconds['ours']:.2f} of the bound (aim >= 0.9)",
        flush=True,
    )


def _flow(turns: Turns, images: int) -> None:
    """The solver is timed inside our own call, so both see the same problems."""
    torch.manual_seed(0)
    model = VisionTransformer(**SMALL["DeiT-tiny, 197 tokens"], num_classes=10).eval()
    inside: list[float] = []

    def timed(*arguments: object, **named: object) -> object:
        started = turns.clock()
        found = csgraph.maximum_flow(*arguments, **named)
        inside.append(turns.clock() - started)
        return found

    attention_matrices.maximum_flow, original = timed, attention_matrices.maximum_flow
    try:
        started = turns.clock()
        flow = AttentionFlow(model).flow(torch.randn(images, 3, 224, 224), torch.zeros(images, dtype=torch.int64))
        total = turns.clock() - started
    finally:
        attention_matrices.maximum_flow = original
    print(
        f"attention flow, DeiT-tiny: {total / images:.1f} s an image, {total / sum(inside):.3f} x its solver (aim <= 1.2); "
        f"{flow.saturated.mean():.0%} of the patches saturated",
        flush=True,
    )


def _memory() -> None:
    """Peaks of processes: what a method takes above one forward and backward pass of the same batch."""
    print(f"{'blocks':>8}{'bare, MiB':>12}{'chefer':>10}{'gradient rollout':>18}{'all matrices kept':>19}")
    for depth in DEPTHS:
        peaks = {}
        for what in ("bare", "chefer", "gradient_rollout", "published"):
            command = [sys.executable, __file__, "--memory-of", what, str(depth)]
            peaks[what] = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout) / 1024
        bare = peaks["bare"]
        print(
            f"{depth:>8}{bare:>12.0f}{peaks['chefer'] - bare:>+10.0f}"
            f"{peaks['gradient_rollout'] - bare:>+18.0f}{peaks['published'] - bare:>+19.0f}",
            flush=True,
        )


def _peak_kib(what: str, depth: str) -> int:
    """257 tokens, 4 heads, 16 images: all matrices of one block take 16 MiB. What was there before does not count."""
    torch.manual_seed(0)
    sizes = {"img_size": 64, "patch_size": 4, "embed_dim": 64, "num_heads": 4, "num_classes": 10}
    model = VisionTransformer(**sizes, depth=int(depth)).eval()
    images, targets = torch.randn(16, 3, 64, 64), torch.zeros(16, dtype=torch.int64)
    runs: dict[str, Callable[[Tensor], object]] = {
        "bare": lambda images: _bare(model, images, gradients=True),
        "chefer": lambda images: Chefer(model)(images, targets[: len(images)]),
        "gradient_rollout": lambda images: GradientRollout(model)(images, targets[: len(images)]),
        "published": lambda images: _published_chefer(model, images),
    }
    runs[what](images[:1])  # loads what is loaded late
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    runs[what](images)
    return _status("VmHWM") - before


def _published_chefer(model: nn.Module, images: Tensor) -> Tensor:
    kept: list[Tensor] = []
    with _unfused(model, kept):
        gradients = torch.autograd.grad(model(images)[:, 0].sum(), kept)
    relevance = torch.eye(kept[0].shape[-1]).repeat(len(images), 1, 1)
    for probabilities, gradient in zip(kept, gradients, strict=True):
        relevance = relevance + (gradient * probabilities).clamp(min=0).mean(dim=1) @ relevance
    return relevance[:, 0, 1:]


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))


if __name__ == "__main__":
    main()
