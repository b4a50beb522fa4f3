"""Networks of torchvision and timm through `explain`: true maps, and refusals as docs/compatibility.md has them."""

import dataclasses
import re

import numpy as np
import pytest

from tests.compatibility import checks, page
from tests.compatibility.networks import LARGE, NETWORKS

NAMES = [network.name for network in NETWORKS]
SMALL = [network for network in NETWORKS if network.name not in LARGE]


def committed() -> dict[str, str]:
    """The line of each network in the page."""
    lines = page.PAGE.read_text().splitlines()
    return {
        name: line for name in NAMES for line in lines if re.match(rf"\| [^|]*: `{re.escape(name)}`( \*)? \|", line)
    }


@pytest.mark.parametrize("network", SMALL, ids=[network.name for network in SMALL])
def test_each_network_is_explained_rightly_or_refused_as_the_page_says(network):
    case = page.run(network)
    assert checks.wrong(case) == []
    assert page.row(case) == committed()[network.name]
    assert not any("\n" in message for message in case.refusals.values())
    assert len(case.maps) >= 7


def test_the_page_is_what_the_tests_find():
    rows = committed()
    assert list(rows) == NAMES
    assert set(LARGE) < set(NAMES)
    assert len(SMALL) >= 28
    assert page.document(rows) == page.PAGE.read_text(), "python -m tests.compatibility.page writes it anew"


@pytest.fixture(scope="module")
def deit():
    return page.run(next(network for network in NETWORKS if network.family == "DeiT"))


@pytest.mark.parametrize(
    "change",
    [
        lambda found: found.T,
        lambda found: 2 * found,
        lambda found: -found,
        lambda found: np.zeros_like(found),
        lambda found: np.full_like(found, np.nan),
    ],
    ids=["axes exchanged", "factor", "sign", "nothing", "NaN"],
)
def test_wrong_maps_are_noticed(deit, change):
    maps = {method: change(found) for method, found in deit.maps.items() if found.any()}
    wrong = {line.partition(":")[0] for line in checks.wrong(dataclasses.replace(deit, maps=maps))}
    blind = {"deep-lift"} if np.array_equal(maps["deep-lift"], deit.maps["deep-lift"].T) else set()  # its sum stays
    assert wrong == set(maps) - blind
    assert len(maps) > 8


def test_the_maps_of_another_class_are_noticed(deit):
    other = dataclasses.replace(deit, target=(deit.target + 1) % 5)
    wrong = {line.partition(":")[0] for line in checks.wrong(other)}
    classless = {"eigen-cam", "attention-rollout"}
    assert wrong >= {method for method, found in deit.maps.items() if found.any()} - classless
