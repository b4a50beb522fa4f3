"""Where the shared real data lie, if they do."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared_data():
    default = Path(__file__).parents[1].parent / "shared" / "data"
    root = Path(os.environ.get("HEATPROOF_SHARED_DATA", default))
    if not (root / "weights").is_dir():
        pytest.skip(f"no shared data at {root}; set HEATPROOF_SHARED_DATA")
    return root
