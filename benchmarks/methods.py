"""What a map costs: images a second of each method on the same batch of a vision transformer, and in forward passes of it.

    python benchmarks/methods.py [--quick] [--device cuda] [--threads 1] [--cpu-time] [--network tiny|base]

Networks with random weights: a small one for pictures of 32 x 32 (batches of 32) and ViT-B/16 at 224 x 224 (batches of 4; 32 on a
GPU). All methods see the same batch and alternate; medians over the repeats. DiffMask is marked: its network was trained once
before, which `train_diffmask/timing.csv` of a run tells, and costs nothing again; the others need no training.
"""

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from alternating import Turns, parser_for, turns_of
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from heatproof import runtime
from heatproof.methods.attention import AttentionRollout, Chefer, GradientRollout, LeGrad, StopGradient
from heatproof.methods.cam import GradCam
from heatproof.methods.diffmask import DiffMask
from heatproof.methods.gradient import Gradient, IntegratedGradients
from heatproof.methods.gradmask import GradMask
from heatproof.methods.perturbation import Rise
from heatproof.methods.transformer_lrp import TransformerAttribution
from heatproof.models.diffmask import explainer_for
from heatproof.models.hooks import frozen_eval
from heatproof.models.masking import masking_of
from heatproof.models.vit import ViTTiny
from heatproof.training.checkpoints import save_tensors

Explain = Callable[[Tensor, Tensor], Tensor]


def main() -> None:
    parser = parser_for(__doc__, quick="one repeat, and one image for the large network")
    parser.add_argument("--network", choices=("tiny", "base"), help="one of them only")
    options = parser.parse_args()
    turns = turns_of(options, quick=1, full=3)
    runtime.keep_freed_memory()  # as the stages do
    networks: dict[str, tuple[Callable[[], nn.Module], int, int]] = {
        "tiny": (ViTTiny, 32, 32),
        "base": (partial(VisionTransformer, num_classes=1000), 224, 4 if turns.device.type == "cpu" else 32),
    }
    for name in [options.network] if options.network else networks:
        build, size, batch = networks[name]
        torch.manual_seed(0)
        count = 1 if options.quick and name == "base" else batch
        _compare(name, build().eval().to(turns.device), size, count, turns)


def _compare(name: str, model: nn.Module, size: int, batch: int, turns: Turns) -> None:
    images = torch.randn(batch, 3, size, size, device=turns.device)
    targets = torch.zeros(batch, dtype=torch.int64, device=turns.device)
    with tempfile.TemporaryDirectory() as folder:
        methods = _methods(model, images, Path(folder), cheap_only=name == "base")
        seconds = turns.seconds({method: partial(explain, images, targets) for method, explain in methods.items()})
    print(f"\n{name}, {size} x {size}, batch of {batch}, {turns}")
    print(f"{'method':<34}{'images/s':>10}{'forward passes':>16}")
    for method, each in sorted(seconds.items(), key=lambda item: item[1]):
        print(f"{method:<34}{batch / each:>10.2f}{each / seconds['forward pass']:>16.2f}", flush=True)


def _methods(model: nn.Module, images: Tensor, folder: Path, *, cheap_only: bool) -> dict[str, Explain]:
    def forward(images: Tensor, targets: Tensor) -> Tensor:
        with torch.inference_mode():
            logits: Tensor = model(images)
        return logits

    methods: dict[str, Explain] = {
        "forward pass": forward,
        "rollout": AttentionRollout(model),
        "gradient rollout": GradientRollout(model),
        "Chefer": Chefer(model),
        "transformer attribution": TransformerAttribution(model),
        "transformer attribution, compat": TransformerAttribution(model, compat=True),
        "LeGrad": LeGrad(model),
        "stop-gradient": StopGradient(model),
        "Grad-CAM": GradCam(model, layer=f"blocks.{len(model.blocks) - 2}.norm2"),  # type: ignore[arg-type]
        "gradient": Gradient(model),
        "DiffMask (trained once)": _diffmask(model, images, folder / "diffmask.pth"),
    }
    if not cheap_only:
        methods |= {
            "GradMask, 3 groups": GradMask(model, masks_layer=3),
            "integrated gradients, 50 steps": IntegratedGradients(model, steps=50),
            "RISE, 500 masks": Rise(model, masks=500),
        }
    return methods


def _diffmask(model: nn.Module, images: Tensor, path: Path) -> Explain:
    masking = masking_of(model)
    with frozen_eval(model):
        explainer = explainer_for(masking, images[:1], hidden=64, mul_activation=5.0, add_activation=5.0)
    save_tensors(path, {name: value.cpu() for name, value in explainer.state_dict().items()})
    return DiffMask(model, checkpoint=str(path))


if __name__ == "__main__":
    main()
