"""Files of maskers: ours, and the published ones."""

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from heatproof.errors import HeatproofError, MissingInputError, ModelError
from heatproof.models.masker import CLASS_CHANNELS, Masker, MaskerForm
from heatproof.models.weights import State, put_weights, read_plain

logger = logging.getLogger(__name__)

FORMAT = "heatproof/masker"


@dataclass(frozen=True)
class SavedMasker:
    """A masker in a file.

    Args:
        form: what it is built from.
        state: its weights.
        started_from: SHA-256 of the classifier's weights that its training began with; "" where it is not known.
        classifier_sha256: SHA-256 of the classifier's weights whose activations it reads: with FIX the same.
        classifier: those weights, where the training changed them (CA) or they came with the masker.
    """

    form: MaskerForm
    state: State
    started_from: str
    classifier_sha256: str
    classifier: State | None = None

    def content(self) -> dict[str, Any]:
        """What the file holds: tensors and plain values."""
        return {
            "format": FORMAT,
            "form": {name: list(v) if isinstance(v, tuple) else v for name, v in dataclasses.asdict(self.form).items()},
            "masker": self.state,
            "started_from": self.started_from,
            "classifier_sha256": self.classifier_sha256,
            "classifier": self.classifier,
        }

    def build(self, where: str) -> Masker:
        """The network, in eval mode.

        Raises:
            ModelError: the weights do not fit, or are not finite.
        """
        masker = Masker(self.form)
        put_weights(masker, self.state, where=where, arch="the masker")
        return masker.eval()


def read_masker(path: Path) -> SavedMasker:
    """A masker from a file that train-masker or import-masker wrote.

    Raises:
        MissingInputError: there is no such file.
        ModelError: it is damaged, or something else.
    """
    if not path.is_file():
        raise MissingInputError(
            f"checkpoint: {path}: no such masker; correct the path, train one (train-masker), or make it of a published "
            "checkpoint (heatproof import-masker)"
        )
    content = read_plain(path)
    if not isinstance(content, Mapping) or content.get("format") != FORMAT:
        published = isinstance(content, Mapping) and bool({"state_dict_masker", "state_dict_decoder"} & content.keys())
        advice = (
            "a published checkpoint: make a masker of it with heatproof import-masker"
            if published
            else "no masker; name the masker.pth that train-masker or import-masker made"
        )
        raise ModelError(f"{path}: is {advice}")
    try:
        form = MaskerForm(**content["form"])
        return SavedMasker(
            form,
            _weights(content["masker"]),
            str(content["started_from"]),
            str(content["classifier_sha256"]),
            None if content["classifier"] is None else _weights(content["classifier"]),
        )
    except (KeyError, TypeError, HeatproofError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:120]
        raise ModelError(f"{path}: is a damaged masker ({reason}); make it again") from error


def _weights(found: Any) -> State:
    """A state dict that a file holds among other things."""
    if not isinstance(found, Mapping) or not all(isinstance(value, Tensor) for value in found.values()):
        raise TypeError("weights that are no dict of tensors")
    return dict(found)


PUBLISHED_TAPS = ("maxpool", "layer1", "layer2", "layer3", "layer4")


PUBLISHED_HINT = "the published ones, fix.chk and ca.chk, are named in the README of github.com/zphang/saliency_investigation (BSD-3-Clause)"


def read_published(path: Path, taps: Sequence[str] = PUBLISHED_TAPS) -> tuple[SavedMasker, State]:
    """A masker and its classifier's weights, from a checkpoint of the published code; nothing that it says is run.

    Args:
        path: a dict with `state_dict_masker` (in old files `state_dict_decoder`), `state_dict_classifier` and `args`.
        taps: the classifier's layers that the published indices 0 to 4 stand for.

    Raises:
        ModelError: there is no such file, it is of another kind, or its weights do not fit (naming the first key).
    """
    if not path.is_file():
        raise ModelError(f"{path}: no such checkpoint; {PUBLISHED_HINT}")
    content = read_plain(path)
    key = next(
        (k for k in ("state_dict_masker", "state_dict_decoder") if isinstance(content, Mapping) and k in content), None
    )
    if key is None or "state_dict_classifier" not in content:
        found = ", ".join(map(str, list(content)[:5])) if isinstance(content, Mapping) else type(content).__name__
        raise ModelError(
            f"{path}: is no checkpoint of a masker: state_dict_masker and state_dict_classifier are not in it ({found})"
        )
    try:
        state, classifier = (_unwrapped(_weights(content[name])) for name in (key, "state_dict_classifier"))
        options = content.get("args") or {}
        form = _published_form(path, state, dict(options if isinstance(options, Mapping) else vars(options)), taps)
    except HeatproofError:
        raise
    except (LookupError, TypeError, ValueError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:120]
        raise ModelError(f"{path}: is a damaged checkpoint of a masker, or of another form ({reason})") from error
    saved = SavedMasker(form, state, started_from="", classifier_sha256="", classifier=classifier)
    saved.build(str(path))
    return saved, classifier


def _published_form(path: Path, state: State, args: Mapping[str, Any], taps: Sequence[str]) -> MaskerForm:
    """The form that the options of a published run and the shapes of its weights say."""
    branches = sorted(
        int(name[8:].partition(".")[0]) for name in state if name.startswith("conv1x1_") and name.endswith(".0.weight")
    )
    asked = args.get("masker_use_layers")
    indices = [int(part) for part in str(asked).split(",")] if asked else branches
    final = next((state[name] for name in ("final.0.weight", "final.conv.weight") if name in state), None)
    if final is None or not branches or not {*indices} <= {*range(len(taps))} or {*branches} - {*indices}:
        raise ModelError(
            f"{path}: its keys are not those of a masker of layers {asked or branches}; it begins with {next(iter(state), 'nothing')}"
        )
    width = len(state[f"conv1x1_{branches[0]}.0.weight"])
    classes = len(state["class_module.embedding.weight"]) if "class_module.embedding.weight" in state else None
    takes_area = bool(args.get("add_prob_layers", False))
    told = takes_area + (CLASS_CHANNELS if classes is not None else 0)
    raw = final.shape[1] - width * len(branches) - told
    weights = {i: state[f"conv1x1_{i}.0.weight"].shape[1] - told for i in branches}
    is_drawn = "final.conv.weight" in state
    shaping = {"upsample": "nearest"} | ({"gumbel_output_mode": "hard", "apply_gumbel_tau": 0.1} if is_drawn else {})
    for option, default in shaping.items():
        if not args.get(option):
            logger.warning("%s: args does not hold %s; the published default, %s, is assumed", path, option, default)
    return MaskerForm(
        taps=tuple(taps[i] for i in indices),
        channels=tuple(weights.get(i, raw) for i in indices),
        indices=tuple(indices),
        width=width,
        upsample=args.get("upsample") or "nearest",
        takes_area=takes_area,
        classes=classes,
        gumbel=(args.get("gumbel_output_mode") or "hard") if "final.conv.weight" in state else None,
        temperature=float(args.get("apply_gumbel_tau") or 0.1),
    )  # fmt: skip


def _unwrapped(state: Mapping[str, Tensor]) -> State:
    """Without the prefix that DataParallel gives to all names."""
    if state and all(name.startswith("module.") for name in state):
        return _unwrapped({name.removeprefix("module."): value for name, value in state.items()})
    return dict(state)
