"""DiffMask against its bare parts: a step of its training, and a map.

    python benchmarks/diffmask.py [--quick] [--device cuda] [--threads 2] [--cpu-time]

A step: against one forward pass without gradients, and one forward and backward pass down to the patch embeddings, of the same
batch. A map: against one plain forward pass. All sides run the same model on the same images, alternating, so that what else the
machine does hits all; medians over the repeats.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from alternating import Turns, parser_for, turns_of
from torch import Tensor, nn
from torchvision.models import vit_b_16

from heatproof.methods.diffmask import DiffMask
from heatproof.models.diffmask import explainer_for
from heatproof.models.hooks import frozen_eval
from heatproof.models.masking import masking_of
from heatproof.models.vit import ViTTiny
from heatproof.training.checkpoints import save_tensors
from heatproof.training.diffmask_steps import DiffMaskRecipe, DiffMaskTraining, drawn

CASES: dict[str, tuple[Callable[[], nn.Module], int, int]] = {
    "ViTTiny, 32 x 32": (lambda: ViTTiny(depth=6), 32, 64),
    "ViT-B/16, 224 x 224": (vit_b_16, 224, 4),
}


def main() -> None:
    options = parser_for(__doc__, quick="the small model, fewer repeats").parse_args()
    turns = turns_of(options, quick=3, full=15)
    print(turns)
    print(f"{'case':<22}{'batch':>6}{'step ms':>10}{'of its parts':>14}{'map ms':>10}{'of a forward':>14}")
    for name, (build, side, batch) in list(CASES.items())[: 1 if options.quick else None]:
        batch *= 16 if turns.device.type == "cuda" else 1
        taken = _seconds(build, side, batch, turns)
        print(
            f"{name:<22}{batch:>6}{1000 * taken['step']:>10.1f}{taken['step'] / taken['parts']:>14.2f}"
            f"{1000 * taken['map']:>10.1f}{taken['map'] / taken['forward']:>14.2f}",
            flush=True,
        )


def _seconds(build: Callable[[], nn.Module], side: int, batch: int, turns: Turns) -> dict[str, float]:
    torch.manual_seed(0)
    model = build().eval().to(turns.device)
    images = torch.randn(batch, 3, side, side, device=turns.device)
    targets = torch.zeros(batch, dtype=torch.int64, device=turns.device)
    masking = masking_of(model)
    explainer = explainer_for(masking, images[:1], hidden=64, mul_activation=5.0, add_activation=5.0)
    recipe = DiffMaskRecipe(
        epochs=1, batch_size=batch, eps=0.1, alpha=2.0, lr=1e-3, lr_placeholder=0.02, lr_alpha=0.01, warmup_steps=100
    )
    trainer = DiffMaskTraining(explainer, masking, recipe)
    patches = masking.intact(images[:1]).hidden[0].shape[1]
    states = len(explainer.gate.g_hat)
    shape = (batch, patches, states)
    with tempfile.TemporaryDirectory() as folder, frozen_eval(model):
        checkpoint = Path(folder) / "explainer.pth"
        save_tensors(checkpoint, explainer.state_dict())
        method = DiffMask(model, str(checkpoint))
        sides = {
            "step": lambda: trainer.step(
                images, lambda _: drawn(0, ("bench",), trainer.step_number, shape, torch.ones(states), shared=False)
            ),
            "parts": lambda: _parts(model, masking.architecture.projection, images),
            "map": lambda: method(images, targets),
            "forward": lambda: _forward(model, images),
        }
        return turns.seconds(sides)


def _parts(model: nn.Module, projection: nn.Module, images: Tensor) -> None:
    """A forward pass, and one forward and backward, which ends at the patch embeddings as in training."""
    target = _forward(model, images).softmax(dim=1)
    embedded: list[Tensor] = []

    def begin(module: nn.Module, arguments: object, output: Tensor) -> Tensor:
        embedded[:] = [output.detach().requires_grad_()]
        return embedded[0]

    handle = projection.register_forward_hook(begin)
    loss = nn.functional.cross_entropy(model(images), target)
    handle.remove()
    torch.autograd.grad(loss, embedded)


@torch.no_grad()
def _forward(model: nn.Module, images: Tensor) -> Tensor:
    return model(images)


if __name__ == "__main__":
    main()
