"""Makes docs/compatibility.md: `python -m tests.compatibility.page` runs all networks and writes the file anew."""

import re
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from heatproof.datasets.pictures import SUFFIXES
from heatproof.errors import HeatproofError
from heatproof.models import load
from tests.compatibility import checks
from tests.compatibility.explained import Case, explained
from tests.compatibility.networks import LARGE, NETWORKS, Network
from tests.datasets import test_folders, test_orientation, test_trees
from tests.models import test_weights

PAGE = Path(__file__).parents[2] / "docs" / "compatibility.md"

TEXT = """\
# Networks, checkpoints, pictures and annotations that work

`tests/compatibility` makes this page from what it runs: `.venv/bin/python -m tests.compatibility.page` runs everything, says which maps
are wrong and writes the page anew, in some minutes. `./taskw test` repeats the networks without a star and fails where a result is no
longer that of the page.

## Networks

{count} networks of torchvision and timm, made small where the constructor lets them be (`tests/compatibility/networks.py` has the
arguments), with drawn weights. Each is saved as `train-cls` saves it, and `heatproof explain` runs on one picture (in the test's
process) with every method of the table. The maps that it writes are compared with maps that the test computes without
Heatproof's methods, of the same network built by its library:

| column | methods | compared with |
|---|---|---|
| gradient | `gradient`, `input-x-gradient`, `smooth-grad` (without noise) | autograd |
| integrated gradients | `integrated-gradients`, {steps} steps | autograd at the points of the quadrature |
| DeepLift | `deep-lift` | the map's sum is the logit's difference from the baseline's logit (within 1e-4 of the sum of absolute values) |
| guided backprop, deconvolution | `guided-backprop`, `deconvolution` | autograd, with an own backward pass of each ReLU |
| LRP | `lrp`, composite `epsilon` | image times gradient, with output / input in place of each activation's derivative |
| CAM | `grad-cam`, `grad-cam-plus-plus`, `layer-cam`, `eigen-cam` at the layer of the table | the papers' formulas on autograd's gradients, in the layer's own layout |
| occlusion | `occlusion`, four windows | differences of logits |
| attention | `attention-rollout`, `gradient-rollout`, `chefer` | the papers' formulas on attention matrices of attention that is not fused |
| stop-gradient | `stop-gradient` | autograd, with attention, deviations of layer norms and output / input of activations as constants |

The distance from the true map is at most {distance:.0%} of its length ({rough:.0%} for {methods}, which magnify rounding).
"yes": each method of the column passes. "not compared": the map
is finite (LRP hands relevance through a batch norm that follows no convolution, of which the formula above says nothing). Other entries are the
reason for which a method refuses the network, in one line and with exit status 2. Other methods, such as `rise`, `lime`, `kernel-shap`
and `score-cam`, need logits only, so they fit wherever occlusion does; whether their estimates are right is tested elsewhere.

{networks}

## Checkpoints

Forms of a file of weights that `pretrained_weights` and `explain --weights` read, for a network of the same names
(`tests/models/test_weights.py`). "name.": each tensor's name begins so.

{read}

Refused in one line:

{refused}

## Pictures

Formats are those of Pillow with the endings {suffixes}; of several pictures in a file, the first is taken. Pictures of these modes
become RGB: {modes}; 16 bits for each pixel are scaled. A picture of floating-point numbers is refused. The EXIF orientation (all
eight values, checked in {oriented}) is followed, or ignored with `exif: ignore`. Folders named {litter} are no classes, and what
is in them is not read.

## Annotations

Boxes and masks lie on the object, within a pixel, where a camera's orientation turns the picture:

{annotations}
"""

ANNOTATED = {
    "coco": "COCO (`Coco`)", "wsol": "wsolevaluation's boxes (`Wsol`)", "wsol_masks": "wsolevaluation's masks (`Wsol`)",
    "pets": "Oxford-IIIT Pets' trimaps (`OxfordPets`)", "imagenet": "ImageNet's XML files (`ImageNet`)",
    "prepared": "lists of `prepare-data` (`Prepared`)",
}  # fmt: skip


def run(network: Network) -> Case:
    """The network explained by every method."""
    with tempfile.TemporaryDirectory() as folder:
        return explained(network, checks.options(network), Path(folder))


def row(case: Case) -> str:
    """A network's line of the table."""
    cells = [_cell(case, methods) for methods in checks.FAMILIES.values()]
    network = case.network
    star = " *" if network.name in LARGE else ""
    return _line(f"{network.family}: `{network.name}`{star}", f"{network.side}", f"`{network.layer}`", *cells)


def _cell(case: Case, methods: tuple[str, ...]) -> str:
    reasons = {_reason(case.refusals[method]) for method in methods if method in case.refusals}
    if not reasons:
        return "not compared" if checks.unknown(case) & set(methods) else "yes"
    refused = [method for method in methods if method in case.refusals]
    reason = "; ".join(sorted(reasons))
    return reason if len(refused) == len(methods) else f"{reason} ({', '.join(refused)})"


REASONS = {
    r"is no vision transformer": "not a ViT that is known",
    r"calls no attention": "no attention",
    r"called no ReLU": "no ReLU",
    r"a map sums to": "misses the difference of the logits",
    r"has no rule for ([^,(]*?) ?[,(]": r"no rule for \1",
    r"no rule for (multi-head attention with a mask)": r"no rule for \1",
}


def _reason(message: str) -> str:
    """The refusal in a few words."""
    for pattern, words in REASONS.items():
        if match := re.search(pattern, message):
            return match.expand(words)
    return message


def networks(rows: Mapping[str, str]) -> str:
    head = _line("network", "side", "layer", *checks.FAMILIES)
    return "\n".join([head, "|---" * (3 + len(checks.FAMILIES)) + "|", *rows.values()])


def document(rows: Mapping[str, str]) -> str:
    """The page with these lines of networks, by their names."""
    return TEXT.format(
        count=len(rows),
        steps=checks.truths.STEPS,
        distance=checks.DISTANCE,
        rough=checks.ROUGH_DISTANCE,
        methods=", ".join(f"`{method}`" for method in checks.ROUGH),
        networks=networks(rows),
        read="\n".join(f"- {name}" for name in [*test_weights.FORMS, "safetensors"]),
        refused="\n".join(f"- {name}: `{message}`" for name, message in refusals()),
        suffixes=" ".join(f"`{suffix}`" for suffix in SUFFIXES),
        modes=", ".join(_cases(test_folders.test_every_mode_becomes_rgb, "mode")),
        oriented=", ".join(
            name.partition(".")[2]
            for name, _ in _cases(test_orientation.test_pictures_are_turned_in_all_eight_ways, "name")
        ),
        litter=", ".join(f"`{name}`" for name in test_trees.LITTER),
        annotations=annotations(),
    )


def refusals() -> Iterator[tuple[str, str]]:
    """What is said of each form of checkpoint that is refused."""
    for name, (change, _) in test_weights.REFUSED.items():
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "w.pt"
            torch.save(change(dict(test_weights.Net().state_dict())), path)
            try:
                load(test_weights.arch(), num_classes=4, pretrained_weights=path, normalization=test_weights.HALF)
            except HeatproofError as error:
                yield name, str(error).replace(f"{folder}/", "")


def annotations() -> str:
    def names(test: Callable[..., Any]) -> set[str]:
        return {make.__name__ for make in _cases(test, "make")}

    turned = names(test_orientation.test_annotations_of_the_stored_and_of_the_seen_picture_lie_on_the_turned_one)
    unsized = names(test_orientation.test_a_size_that_is_not_listed_is_that_of_the_picture_as_it_is_seen)
    stored = names(test_orientation.test_orientation_can_be_ignored_and_then_annotations_are_of_the_stored_rows)
    rows = [
        _line(ANNOTATED[name], *("yes" if name in tested else "" for tested in (turned, turned, unsized, stored)))
        for name in sorted(turned)
    ]
    head = _line(
        "form", "of the picture as stored", "of the picture as seen", "without the picture's size", "`exif: ignore`"
    )
    return "\n".join([head, "|---" * 5 + "|", *rows])


def _cases(test: Callable[..., Any], argument: str) -> list[Any]:
    """The values with which a test is parametrised."""
    for mark in test.pytestmark:  # type: ignore[attr-defined]
        if argument in mark.args[0]:
            return list(mark.args[1])
    raise KeyError(argument)


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Runs every network and writes the page, or says which maps are wrong."""
    cases = [run(network) for network in NETWORKS]
    lines = [f"{case.network.name}: {line}" for case in cases for line in checks.wrong(case)]
    PAGE.write_text(document({case.network.name: row(case) for case in cases}))
    sys.exit("\n".join(lines) or None)


if __name__ == "__main__":
    main()
