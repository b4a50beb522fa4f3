"""Arithmetic on matrices of attention: small entries discarded, the identity mixed in, maximum flows."""

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_flow
from torch import Tensor


def discarded(matrices: Tensor, ratio: float, *, keep_first: bool) -> Tensor:
    """Sets the smallest entries of each matrix to 0: int(T * T * ratio) of them; of equal ones, the first in reading order.

    Args:
        matrices: (B, T, T).
        ratio: in [0, 1).
        keep_first: whether the entry (0, 0), the class token's for itself, stays even where it is among the smallest.

    >>> discarded(torch.tensor([[[1.0, 3.0], [2.0, 2.0]]]), 0.5, keep_first=True).tolist()
    [[[1.0, 3.0], [0.0, 2.0]]]
    """
    flat = matrices.flatten(1)
    count = int(flat.shape[1] * ratio)
    if count == 0:
        return matrices
    threshold = _smallest(flat, count)
    drop = flat <= threshold
    if bool((drop.sum(dim=1) > count).any()):
        below, equal = flat < threshold, flat == threshold
        drop = below | (equal & (equal.cumsum(dim=1) <= count - below.sum(dim=1, keepdim=True)))
    if keep_first:
        drop[:, 0] = False
    return flat.masked_fill(drop, 0.0).reshape(matrices.shape)


def _smallest(flat: Tensor, count: int) -> Tensor:
    """The value (B, 1) of rank `count`, from 1, in each row of (B, n)."""
    if flat.device.type == "cpu":  # many times as fast there as torch's
        return torch.from_numpy(np.partition(flat.numpy(), count - 1, axis=1)[:, count - 1 : count])
    return flat.kthvalue(count, dim=1, keepdim=True).values


def mixed(matrices: Tensor, *, by_column: bool = False) -> Tensor:
    """(F + I) / 2 with each row divided by its sum: attention (B, T, T), with the skip connection beside it.

    With `by_column`, entry (i, j) is divided by the sum of row j in place of row i, as vit-explain does.

    >>> mixed(torch.tensor([[[0.0, 2.0], [0.0, 1.0]]])).tolist()
    [[[0.3333333432674408, 0.6666666865348816], [0.0, 1.0]]]
    """
    both = (matrices + torch.eye(matrices.shape[-1], dtype=matrices.dtype, device=matrices.device)) / 2
    sums = both.sum(dim=-1)
    return both / (sums[:, None, :] if by_column else sums[:, :, None])


def maximum_flows(capacities: NDArray[np.float64], source: NDArray[np.float64], sinks: range) -> NDArray[np.float64]:
    """The largest flow to each sink, alone, through layers of attention.

    Capacities are rounded down to multiples of 2^-30, since the solver wants integers.

    Args:
        capacities: (L, T, T), from a token above (row) to one below (column); the first matrix is next to the image.
        source: (T,) how much may enter at each token of the top layer; at most 1 together.
        sinks: tokens of the bottom layer.

    Returns:
        One value in [0, 1] for each sink.

    >>> maximum_flows(np.array([[[0.25, 0.75], [0.5, 0.5]]]), np.array([1.0, 0.0]), range(2))
    array([0.25, 0.75])
    """
    depth, tokens, _ = capacities.shape
    unit, entry = 2.0**30, (depth + 1) * tokens  # node l * T + i is token i above l blocks; the entry comes last
    above, below, level = np.arange(tokens)[None, :, None], np.arange(tokens), np.arange(depth)[:, None, None]
    upper = np.broadcast_to((level + 1) * tokens + above, capacities.shape)
    lower = np.broadcast_to(level * tokens + below, capacities.shape)
    values = np.concatenate([capacities.ravel(), source])
    starts = np.concatenate([upper.ravel(), np.full(tokens, entry)])
    ends = np.concatenate([lower.ravel(), depth * tokens + np.arange(tokens)])
    units = np.floor(values * unit).astype(np.int32)
    graph = csr_array((units, (starts, ends)), shape=(entry + 1, entry + 1))
    graph.eliminate_zeros()
    return np.array([maximum_flow(graph, entry, sink, method="dinic").flow_value for sink in sinks]) / unit
