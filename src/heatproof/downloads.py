"""Fetching over the network: bounded waiting, so that a machine without one hears so soon."""

import contextlib
import socket
from collections.abc import Iterator

_NO_ANSWER_S = 30.0  # after which a silent server counts as no network


@contextlib.contextmanager
def bounded_wait() -> Iterator[None]:
    """Connections opened inside the block give up after 30 s of silence; libraries that download set no limit."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_NO_ANSWER_S)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
