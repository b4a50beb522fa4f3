"""Damage as disks and kills do it: flipped bits, cut ends, changed digits."""

import os
import re

import numpy as np


def damaged(content, number):
    """A file's bytes with one fault, drawn by `number`; never the same bytes."""
    rng = np.random.default_rng(number)
    kind = number % 3
    digits = [match.start() for match in re.finditer(rb"\d", content)]
    if kind == 0 and len(content) > 1:
        return content[: int(rng.integers(0, len(content)))]
    found = bytearray(content)
    if kind == 1 and digits:
        place = digits[int(rng.integers(len(digits)))]
        found[place] = ord("0") + (found[place] - ord("0") + int(rng.integers(1, 10))) % 10
    else:
        found[int(rng.integers(len(found)))] ^= 1 << int(rng.integers(8))
    return bytes(found)


def put(path, content, number):
    """Writes bytes with a time of their own: a file system's clock is coarser than a test."""
    path.write_bytes(content)
    os.utime(path, ns=(number, 10**18 + 1000 * number))
