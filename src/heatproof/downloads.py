"""Fetching over the network: bounded waiting, so that a machine without one hears so soon."""

import contextlib
import importlib
import socket
import urllib.parse
import urllib.request
from collections.abc import Iterator
from typing import Any

_NO_ANSWER_S = 30.0  # after which a silent server counts as no network
_NO_CONNECTION_S = 10.0


@contextlib.contextmanager
def bounded_wait() -> Iterator[None]:
    """Connections opened inside the block give up after 30 s of silence; libraries that download set no limit."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_NO_ANSWER_S)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


@contextlib.contextmanager
def hub_or_its_cache() -> Iterator[str | None]:
    """Inside the block, libraries ask the Hugging Face hub, or only its cache where the hub cannot be reached.

    Left alone they would try for minutes, file by file. Behind a proxy they are left alone.

    Yields:
        Why the hub cannot be reached; None where it can.
    """
    constants: Any = importlib.import_module("huggingface_hub.constants")
    before = constants.HF_HUB_OFFLINE
    reason = None if before or urllib.request.getproxies() else _unreachable(constants.ENDPOINT)
    constants.HF_HUB_OFFLINE = before or reason is not None
    try:
        yield reason
    finally:
        constants.HF_HUB_OFFLINE = before


def _unreachable(address: str) -> str | None:
    url = urllib.parse.urlsplit(address)
    try:
        socket.create_connection((url.hostname or "", url.port or 443), timeout=_NO_CONNECTION_S).close()
    except OSError as error:
        return f"{url.hostname} cannot be reached: {error}"
    return None
