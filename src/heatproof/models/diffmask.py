"""Vision DiffMask: a small network that reads a frozen classifier's hidden states and says which patches it needs.

For each patch there are G hidden states h_0, ..., h_{G-1}, from the image to the head. Gate i is a network of one hidden layer
that takes [h_0; h_i] of a patch and gives the logit of a `HardConcrete` variable z_i. Votes multiply: up to depth m, a patch is
kept as far as z_0 z_1 ... z_m is open, and what is not kept is replaced by a placeholder:

    masked h_0 = z h_0 + (1 - z) placeholder,    z = z_0 ... z_m,    ln P(kept) = ln P(z_0 > 0) + ... + ln P(z_m > 0)

Only state 0 is ever replaced; `models.masking` does it.

Reference:
    Nalmpantis et al.: "Vision DiffMask: Faithful interpretation of vision transformers with differentiable patch masking",
    CVPR Workshops 2023, arXiv:2304.06391; De Cao et al.: "How do decisions emerge across layers in neural models?
    Interpretation with differentiable masking", EMNLP 2020, arXiv:2004.14992.
"""

import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from heatproof.errors import ModelError
from heatproof.models.hard_concrete import HardConcrete
from heatproof.models.masking import FORMS, Form, Masking
from heatproof.models.weights import State, below, put_weights, read_plain, read_weights

logger = logging.getLogger(__name__)


class DiffMaskNetwork(nn.Module):
    """The gates and the placeholder; its state dict holds all that a map depends on, tensors only.

    Weights are weight-normalised rows, W = g V / ||V||, under the published names (`gate.g_hat.{i}.f.0.weight_g` and so on).

    Args:
        form: "tokens" or "pixels".
        states: G, how many hidden states there are.
        width: D, of a state.
        hidden: H, of the gates' hidden layer; None: D // 4.
        mul_activation: factor of what the network gives.
        add_activation: start of the logit that is added to it, learned for each gate.
        colours: length of the placeholder where pixels are masked.
        patch: side of a patch where pixels are masked.
        no_placeholder: zeros instead of a learned placeholder.
        every_layer: the masks of the first gates alone are learnt too; says so in the state dict, no more.
        compat: as published: the output goes through a tanh, so that logits stay within `mul_activation` of what is added, and
            keeps torch's initial spread, so that gates start anywhere. By default there is no tanh, and the output starts
            near zero: gates start open.
    """

    mul_activation: Tensor
    compat: Tensor
    every_layer: Tensor
    form: Tensor
    patch: Tensor
    spread: Tensor
    classifier: Tensor

    def __init__(
        self,
        form: Form,
        states: int,
        width: int,
        *,
        hidden: int | None = None,
        mul_activation: float,
        add_activation: float,
        colours: int | None = None,
        patch: int = 0,
        no_placeholder: bool = False,
        every_layer: bool = False,
        compat: bool = False,
    ):
        super().__init__()
        self.gate = _Gates(states, width, max(1, width // 4) if hidden is None else hidden, add_activation)
        self.gate.placeholder = nn.Parameter(torch.zeros(1, 1, width if form == "tokens" else colours or 3))
        if form == "tokens" and not no_placeholder:
            nn.init.xavier_normal_(self.gate.placeholder)
        self.gate.placeholder.requires_grad = not no_placeholder
        if not compat:
            for output in self.gate.layers("2"):
                output.weight_g.data.mul_(OPEN_START)
                output.bias.data.zero_()
        # Settings travel with the weights: a file of tensors is all that is needed to read them.
        self.register_buffer("mul_activation", torch.tensor(float(mul_activation)))
        self.register_buffer("compat", torch.tensor(compat))
        self.register_buffer("every_layer", torch.tensor(every_layer))
        self.register_buffer("form", torch.tensor(FORMS.index(form)))
        self.register_buffer("patch", torch.tensor(patch))
        self.register_buffer("spread", torch.tensor(1.0))
        self.register_buffer("classifier", torch.zeros(32, dtype=torch.uint8))

    @property
    def placeholder(self) -> Tensor:
        """What stands for a patch that is not kept: an embedding (1, 1, D), or a colour (1, 1, C)."""
        return self.gate.placeholder

    def votes(self, hidden: Sequence[Tensor]) -> HardConcrete:
        """The gates' distributions (B, T, g) for the first g states (B, T, D)."""
        outputs = self.gate.outputs(hidden)
        if self.compat:
            outputs = outputs.tanh()
        return HardConcrete(self.mul_activation * outputs + self.gate.added(len(hidden)), compat=bool(self.compat))

    def log_kept(self, hidden: Sequence[Tensor], *, aggregated: bool = True) -> Tensor:
        """Ln P(kept) (B, T, g): entry k is the sum over gates 0 to k, or gate k alone where not `aggregated`."""
        each = self.votes(hidden).log_probability_open()
        return each.cumsum(dim=2) if aggregated else each

    @property
    def classifier_sha256(self) -> str | None:
        """Of the weights of the classifier that it was trained for; None where it does not say."""
        return bytes(self.classifier.tolist()).hex() if self.classifier.any() else None

    def put_classifier(self, weights_sha256: str) -> None:
        """Says for which classifier it is trained."""
        self.classifier.copy_(torch.tensor(list(bytes.fromhex(weights_sha256))))

    def check_fits(self, hidden: Sequence[Tensor]) -> None:
        """Checks that it has a gate for each state, as wide as that.

        Raises:
            ModelError: it was trained for another classifier.
        """
        states, width = len(self.gate.g_hat), self.gate.layers("0")[0].weight_v.shape[1] // 2
        if (states, width) != (len(hidden), hidden[0].shape[2]):
            raise ModelError(
                f"has gates for {states} states of {width} values, but the classifier has {len(hidden)} of "
                f"{hidden[0].shape[2]}: it was trained for another one"
            )


def explainer_for(
    masking: Masking,
    images: Tensor,
    *,
    hidden: int | None,
    mul_activation: float,
    add_activation: float,
    no_placeholder: bool = False,
    every_layer: bool = False,
    compat: bool = False,
) -> DiffMaskNetwork:
    """An explainer that fits a classifier's states, with weights drawn from torch's global generator: the caller seeds it.

    Args:
        masking: of the classifier.
        images: (B, C, H, W), normalised; a few, which also tell the spread of state 0 (root mean square), the unit in
            which the placeholder learns.
        hidden: as for `DiffMaskNetwork`, and so are the others.
        mul_activation: see there.
        add_activation: see there.
        no_placeholder: see there.
        every_layer: see there.
        compat: see there.
    """
    passed = masking.intact(images)
    explainer = DiffMaskNetwork(
        masking.form,
        len(passed.hidden),
        passed.hidden[0].shape[2],
        hidden=hidden,
        mul_activation=mul_activation,
        add_activation=add_activation,
        colours=images.shape[1],
        patch=images.shape[2] // passed.grid[0] if masking.form == "pixels" else 0,
        no_placeholder=no_placeholder,
        every_layer=every_layer,
        compat=compat,
    )
    if masking.form == "tokens":  # images are normalised, so that colours have their unit already
        explainer.spread.copy_(passed.hidden[0].square().mean().sqrt())
    return explainer.to(images.device)


OPEN_START = 0.02
"""The outputs' weights start with this share of torch's initial spread."""


PUBLISHED_FACTOR = 15.0
"""`mul_activation` of the published command line."""


def read_explainer(path: Path, mul_activation: float | None = None) -> DiffMaskNetwork:
    """An explainer from the file that train-diffmask made, or from a checkpoint of the published code; see `explainer_from`.

    Raises:
        ModelError: it is no explainer's file, or says another `mul_activation`.
    """
    content = read_plain(path)
    options = content.get("hyper_parameters") if isinstance(content, Mapping) else None
    stored = options.get("mul_activation") if isinstance(options, Mapping) else None
    state = read_weights(path)
    if isinstance(stored, int | float):
        state = {"mul_activation": torch.tensor(float(stored)), **state}
    return explainer_from(state, where=str(path), mul_activation=mul_activation)


def explainer_from(state: State, *, where: str, mul_activation: float | None = None) -> DiffMaskNetwork:
    """An explainer with the weights and settings of its state dict, in evaluation mode.

    Where the settings are missing and the names are the published ones, the published form is meant. `mul_activation`, which
    scales all logits, was a choice of whoever trained it, and the published files of weights do not hold it.

    Args:
        state: names and tensors.
        where: the file, for messages.
        mul_activation: of a published file. None: as the state says, else the published default, with a warning.

    Raises:
        ModelError: it is no explainer's, lacks some settings, or says another `mul_activation`.
    """
    state = below(state, "gate.placeholder", where)
    weights = {name: value for name, value in state.items() if not name.startswith(("alpha.", "running_"))}
    first = weights.get("gate.g_hat.0.f.0.weight_v")
    if first is None or first.ndim != 2 or "gate.placeholder" not in weights:
        raise ModelError(f"{where}: holds no weights of DiffMask; name the file that train-diffmask made")
    published = {
        "mul_activation": torch.tensor(PUBLISHED_FACTOR if mul_activation is None else float(mul_activation)), "compat": torch.tensor(data=True), "every_layer": torch.tensor(data=True),
        "form": torch.tensor(0), "patch": torch.tensor(0), "spread": torch.tensor(1.0), "classifier": torch.zeros(32, dtype=torch.uint8),
    }  # fmt: skip
    missing = [name for name in published if name not in weights]
    if missing not in ([], ["mul_activation"]) and {*missing, "mul_activation"} != {*published}:
        raise ModelError(f"{where}: lacks {missing[0]}, but has other settings of train-diffmask; train again")
    if mul_activation is None and "mul_activation" in missing:
        logger.warning(
            "%s: does not hold mul_activation, the scale of its logits; the published default, %g, is assumed; if it was trained "
            "with another value, set the option mul_activation of DiffMask", where, PUBLISHED_FACTOR,
        )  # fmt: skip
    if mul_activation is not None and "mul_activation" not in missing:
        own = weights["mul_activation"].item() if weights["mul_activation"].numel() == 1 else math.nan
        if not math.isclose(own, mul_activation, rel_tol=1e-6):
            raise ModelError(f"{where}: was trained with mul_activation {own:g}, not {mul_activation:g}; leave it out")
    if "classifier" in missing:
        logger.info("%s: does not hold the hash of the classifier it was trained for, so this is not checked", where)
    weights = published | weights
    form = weights["form"]
    if form.numel() != 1 or int(form) not in range(len(FORMS)) or weights["gate.placeholder"].ndim != 3:
        raise ModelError(f"{where}: is damaged, or no file that train-diffmask made; train again, or name another file")
    states = len([name for name in weights if name.endswith("f.0.weight_v")])
    explainer = DiffMaskNetwork(
        FORMS[int(form)], states, first.shape[1] // 2, hidden=first.shape[0],
        mul_activation=0.0, add_activation=0.0, colours=weights["gate.placeholder"].shape[-1],
    )  # fmt: skip
    put_weights(explainer, weights, where=where, arch="DiffMask")
    return explainer.eval().requires_grad_(requires_grad=False)


class _Linear(nn.Module):
    """A weight-normalised linear layer's parameters, as torch draws them; they are applied for all gates at once."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        drawn = nn.Linear(inputs, outputs)
        self.weight_g = nn.Parameter(drawn.weight.detach().norm(dim=1, keepdim=True))
        self.weight_v = nn.Parameter(drawn.weight.detach().clone())
        self.bias = nn.Parameter(drawn.bias.detach().clone())


class _Gate(nn.Module):
    def __init__(self, width: int, hidden: int, add_activation: float):
        super().__init__()
        self.f = nn.ModuleDict({"0": _Linear(2 * width, hidden), "2": _Linear(hidden, 1)})
        self.add_activation = nn.Parameter(torch.tensor(float(add_activation)))


class _Gates(nn.Module):
    placeholder: nn.Parameter

    def __init__(self, states: int, width: int, hidden: int, add_activation: float):
        super().__init__()
        self.g_hat = nn.ModuleList(_Gate(width, hidden, add_activation) for _ in range(states))

    def layers(self, key: str) -> list[Any]:
        """The first ("0") or second ("2") layer of each gate."""
        gates: Any = self.g_hat
        return [gate.f[key] for gate in gates]

    def added(self, count: int) -> Tensor:
        """What is added to the logits of the first gates, (g,)."""
        gates: Any = self.g_hat
        return torch.stack([gate.add_activation for gate in gates[:count]])

    def outputs(self, states: Sequence[Tensor]) -> Tensor:
        """What the networks of the first g gates give for g states (B, T, D): (B, T, g)."""
        weights, biases = _stacked(self.layers("0")[: len(states)])  # (g, H, 2D), (g, H)
        for_first, for_own = weights.chunk(2, dim=2)
        B, T, D = states[0].shape
        # All gates see h_0: one product of the rows with all their weights. Then one batched product, a gate each.
        shared = functional.linear(states[0].reshape(B * T, D), for_first.flatten(0, 1), biases.flatten())
        own = torch.stack([state.reshape(B * T, D) for state in states])
        shared = shared.unflatten(1, (len(states), -1)).transpose(0, 1)
        active = torch.baddbmm(shared, own, for_own.transpose(1, 2)).tanh()  # (g, B T, H)
        weights, biases = _stacked(self.layers("2")[: len(states)])
        outputs: Tensor = torch.baddbmm(biases[:, None], active, weights.transpose(1, 2))  # (g, B T, 1)
        return outputs[:, :, 0].T.reshape(B, T, -1)


def _stacked(layers: Sequence[Any]) -> tuple[Tensor, Tensor]:
    """Weights (g, outputs, inputs) and biases (g, outputs) of g layers."""
    directions = torch.stack([layer.weight_v for layer in layers])
    lengths = torch.stack([layer.weight_g for layer in layers])
    return directions * (lengths / directions.norm(dim=2, keepdim=True)), torch.stack([layer.bias for layer in layers])
