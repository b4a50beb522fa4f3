"""Weights by a closed formula of the golden set (tests/golden/README.md), so that no file of them is needed."""

import math
import zlib

import numpy as np
import torch


def uniform(name, count):
    """(count,) float64 in [0, 1), from a hash of the name and each position."""
    with np.errstate(over="ignore"):
        x = np.arange(count, dtype=np.uint32) * np.uint32(0x9E3779B1) + np.uint32(zlib.crc32(f"dev1:{name}".encode()))
        x ^= x >> np.uint32(16)
        x *= np.uint32(0x85EBCA6B)
        x ^= x >> np.uint32(13)
        x *= np.uint32(0xC2B2AE35)
        x ^= x >> np.uint32(16)
    return x / 2.0**32


def of_shape(key, shape, gain=1.0):
    """The tensor of a key, by the formula."""
    leaf = key.rpartition(".")[2]
    if leaf == "num_batches_tracked":
        return torch.zeros(shape, dtype=torch.int64)
    if "mask_conv.weight" in key:
        return torch.ones(shape)
    u = uniform(key, math.prod(shape)).reshape(shape)
    fan = math.prod(shape[1:])
    if "input_conv.weight" in key:
        values = gain * math.sqrt(3 * fan) * (2 * u - 1)
    elif len(shape) >= 2:
        values = gain * math.sqrt(3 / fan) * (2 * u - 1)
    elif leaf == "running_var":
        values = 0.5 + u
    elif leaf == "running_mean":
        values = 0.1 * (2 * u - 1)
    elif leaf == "weight":
        values = 0.75 + 0.5 * u
    else:
        values = 0.1 * (2 * u - 1)
    return torch.from_numpy(values.astype(np.float32))


def state(module, gain):
    """The state dict of a module, by the formula."""
    return {key: of_shape(key, tuple(value.shape), gain) for key, value in module.state_dict().items()}


def filled(module, gain):
    """The module in eval mode, its weights by the formula."""
    module.load_state_dict(state(module, gain))
    return module.eval()
