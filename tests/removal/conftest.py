"""The network of the golden vectors, and where they lie."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

GOLDEN = Path(__file__).parents[1] / "golden" / "metrics"


class TinyCnn(nn.Module):
    """The classifier behind most golden vectors; README of the golden folder."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1)
        self.conv2 = nn.Conv2d(8, 16, 3, padding=1)
        self.conv3 = nn.Conv2d(16, 16, 3, padding=1)
        self.fc = nn.Linear(16, 5)

    def forward(self, images):
        features = nn.functional.max_pool2d(self.conv1(images).relu(), 2)
        features = nn.functional.max_pool2d(self.conv2(features).relu(), 2)
        return self.fc(self.conv3(features).relu().mean(dim=(2, 3)))


@pytest.fixture(scope="session")
def golden():
    """Loads an npz file of golden vectors by name."""
    return lambda name: dict(np.load(GOLDEN / f"{name}.npz"))


@pytest.fixture(scope="session")
def tinycnn(golden):
    """The golden network in eval mode, and its file."""
    data = golden("tinycnn")
    model = TinyCnn().eval()
    model.load_state_dict({name[2:]: torch.from_numpy(data[name]) for name in data if name.startswith("w.")})
    return model, data
