"""All randomness of a run, derived from one root seed.

`generator(seed, "retrain", run)` names what is drawn. What is drawn for an image depends on its index, never on batch
size, worker count or what ran before, so that a continued run equals an uninterrupted one.
"""

import hashlib
import json

import numpy as np
from numpy.typing import NDArray


def derive(seed: int, *purpose: str | int) -> int:
    """A 63-bit seed for one purpose: the first bytes of SHA-256 over the root seed and the purpose's names.

    >>> derive(0, "ties", 7) == derive(0, "ties", 7) != derive(0, "ties", 8)
    True
    """
    digest = hashlib.sha256(json.dumps([seed, *purpose]).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator(seed: int, *purpose: str | int) -> np.random.Generator:
    """A NumPy generator (Philox: same stream on every machine) for one purpose."""
    return np.random.Generator(np.random.Philox(key=derive(seed, *purpose)))


def words(count: int, indices: NDArray[np.int64], seed: int, *purpose: str | int) -> NDArray[np.uint64]:
    """The first 64-bit words (B, count) of the streams of some images; the raw stream is the same in every NumPy."""
    drawn = np.empty((len(indices), count), dtype=np.uint64)
    for row, index in zip(drawn, indices.tolist(), strict=True):
        row[:] = generator(seed, *purpose, index).bit_generator.random_raw(count)
    return drawn


def below(limit: int, drawn: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Integers in [0, limit), all equally likely, one from each word.

    >>> below(6, np.array([0, 2**63, 2**64 - 1], dtype=np.uint64))
    array([0, 3, 5])
    """
    return (((drawn >> np.uint64(32)) * np.uint64(limit)) >> np.uint64(32)).astype(np.int64)


def of_split(seed: int, split: str) -> int:
    """The root seed of what is drawn for the images of a split: the seed itself for `test`, another one elsewhere.

    Images of two splits with the same index must not share their draws (orders of tied pixels, random maps, noise): a
    network retrained on the one split would know the other's images, and their labels, by what was drawn for them.

    >>> of_split(3, "test"), of_split(3, "train") == of_split(3, "validation")
    (3, False)
    """
    return seed if split == "test" else derive(seed, "split", split)
