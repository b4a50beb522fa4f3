"""All randomness of a run, derived from one root seed.

`generator(seed, "retrain", run)` names what is drawn. What is drawn for an image depends on its index, never on batch
size, worker count or what ran before, so that a continued run equals an uninterrupted one.
"""

import hashlib
import json

import numpy as np


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


def of_split(seed: int, split: str) -> int:
    """The root seed of what is drawn for the images of a split: the seed itself for `test`, another one elsewhere.

    Images of two splits with the same index must not share their draws (orders of tied pixels, random maps, noise): a
    network retrained on the one split would know the other's images, and their labels, by what was drawn for them.

    >>> of_split(3, "test"), of_split(3, "train") == of_split(3, "validation")
    (3, False)
    """
    return seed if split == "test" else derive(seed, "split", split)
