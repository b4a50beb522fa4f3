"""Golden vectors and their network."""

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.methods.networks import TinyCnn

GOLDEN = Path(__file__).parents[1] / "golden" / "metrics"


@pytest.fixture(scope="session")
def golden():
    """Loads an npz file of golden vectors by name, as torch tensors."""
    return lambda name: {key: torch.from_numpy(value) for key, value in np.load(GOLDEN / f"{name}.npz").items()}


@pytest.fixture(scope="session")
def weights(golden):
    """State dict of the golden network."""
    return {name[2:]: value for name, value in golden("tinycnn").items() if name.startswith("w.")}


@pytest.fixture
def tinycnn(weights):
    """The golden network in eval mode."""
    model = TinyCnn().eval()
    model.load_state_dict(weights)
    return model


@pytest.fixture(scope="session")
def images(golden):
    """Its images (6, 3, 32, 32), normalised."""
    return golden("tinycnn")["x"]


@pytest.fixture(scope="session")
def targets(golden):
    """The classes it predicts for them."""
    return golden("attributions")["target"]
