"""What may depend on the processor's kernels, and what must not."""

import itertools
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
FAMILIES = r"(OPENBLAS|OMP|MKL|GOMP)_\w+|ATEN_CPU_CAPABILITY|ONEDNN_MAX_CPU_ISA"

# One line for each result: its name, and a digest of its bytes. The first is a product that BLAS computes.
RESULTS = """
import hashlib
import numpy as np
import torch
from heatproof.metrics import agreement, faithfulness, statistics
from heatproof.removal import NoisyLinear

rng = np.random.default_rng(0)
rows, values = rng.random((7, 333)), rng.random((60, 4))
some_missing = np.where(rng.random(rows.shape) < 0.1, np.nan, rows)
maps, subsets = rng.random((3, 12, 10)), rng.random((3, 20, 12, 10)) < 0.3
pixels, removed = torch.from_numpy(rng.random((8, 3, 24, 20))), torch.from_numpy(rng.random((8, 24, 20)) < 0.7)
index = statistics.bootstrap_index(rng, 333, resamples=200)
results = {
    "product": rng.random((40, 300)) @ rng.random((300, 50)),
    "seeded bootstrap": statistics.seeded_bootstrap(rows, 0, resamples=200),
    "bootstrap with missing scores": statistics.bootstrap_interval(some_missing, index),
    "resampled sums": statistics.resampled(values, lambda sums: sums[:, 0] / sums[:, 1], 0, resamples=200),
    "sums in subsets": faithfulness.sum_in_subsets(maps, subsets),
    "rank correlations": agreement.spearman_matrix(maps[None]),
    "imputed pixels": NoisyLinear((0.5, 0.5, 0.5))(pixels, removed, np.arange(8)),
}
for name, result in results.items():
    print(name, hashlib.sha256(np.ascontiguousarray(result).tobytes()).hexdigest(), sep=": ")
"""


def digests(core):
    """What `RESULTS` prints where OpenBLAS is told to take the kernels of this processor, or its own choice."""
    kept = {name: value for name, value in os.environ.items() if name != "OPENBLAS_CORETYPE"}
    chosen = {"OPENBLAS_CORETYPE": core} if core else {}
    printed = subprocess.run(
        [sys.executable, "-c", RESULTS], env=kept | chosen, check=True, capture_output=True, text=True
    ).stdout
    return dict(line.split(": ") for line in printed.splitlines())


def test_results_do_not_depend_on_the_kernels_of_blas():
    own, oldest = digests(None), digests("Prescott")  # SSE3, which every x86-64 processor of today has
    assert len(own) == 7
    if own.pop("product") == oldest.pop("product"):
        pytest.skip("NumPy's BLAS has no other kernels here, so nothing is compared")
    assert own == oldest


def passed_on(**variables):
    """Names of the variables that docker/run.sh passes on where only these are set."""
    environment = {name: value for name, value in os.environ.items() if not re.fullmatch(FAMILIES, name)}
    printed = subprocess.run(
        ["docker/run.sh", "true"],
        cwd=ROOT,
        env=environment | variables | {"DRY_RUN": "1", "DEVICE": "cpu"},
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    words = shlex.split(printed)
    return {word for flag, word in itertools.pairwise(words) if flag == "--env" and "=" not in word}


def test_the_image_gets_the_variables_that_choose_kernels_and_threads():
    compose = yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text("utf-8"))
    listed = {name for name in compose["x-stage"]["environment"] if re.fullmatch(FAMILIES, name)}
    assert listed >= {"OPENBLAS_CORETYPE", "OMP_NUM_THREADS", "MKL_CBWR", "GOMP_SPINCOUNT", "ATEN_CPU_CAPABILITY"}
    assert listed >= {"ONEDNN_MAX_CPU_ISA", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"}
    assert passed_on(**dict.fromkeys(listed, "1")) == listed
    assert passed_on(OPENBLAS_MAIN_FREE="1", MY_OMP_NUM_THREADS="1", HOMPAGE="1") == {"OPENBLAS_MAIN_FREE"}
    assert passed_on() == set()
