import numpy as np
import pytest
import torch

from heatproof import removal

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
MEAN = (0.2, 0.5, 0.7)


@pytest.mark.parametrize("how", removal.FILLS)
def test_fills_and_masks_on_the_gpu_are_those_of_the_cpu(how):
    rng = np.random.default_rng(0)
    pixels = torch.from_numpy(rng.random((4, 3, 70, 90), dtype=np.float32))
    ranks = removal.rank_tensor(removal.ranks(removal.orders(rng.normal(size=(4, 70, 90))), (70, 90)))
    fill = removal.build_fill(how, mean=MEAN, normalization_mean=MEAN, seed=1)
    for fraction in (0.1, 0.9, 1.0):
        on_cpu = fill(pixels, removal.removed(ranks, fraction), np.arange(4))
        on_gpu = fill(pixels.cuda(), removal.removed(ranks.cuda(), fraction), np.arange(4))
        assert on_gpu.is_cuda
        torch.testing.assert_close(on_gpu.cpu(), on_cpu, rtol=0, atol=1e-5)


def test_scores_on_the_gpu_are_those_of_the_cpu(tinycnn):
    model, data = tinycnn
    pixels = torch.from_numpy(data["x_uint8"])
    ranks = removal.ranks(removal.orders(np.random.default_rng(0).normal(size=(6, 32, 32))), (32, 32))
    options = {"normalize": lambda p: (p - 0.5) / 0.25, "fractions": (0.1, 0.5), "fill": removal.Mean(MEAN)}
    on_cpu = removal.degraded_scores(model, pixels, ranks, data["pred"], **options)
    try:
        on_gpu = removal.degraded_scores(model.cuda(), pixels.cuda(), ranks, data["pred"], **options)
    finally:
        model.cpu()
    np.testing.assert_allclose(on_gpu.probability, on_cpu.probability, atol=1e-3)
