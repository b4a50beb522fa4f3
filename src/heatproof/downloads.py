"""Fetching over the network: bounded waiting, so that a machine without one hears so soon; and none at all in a dry run."""

import contextlib
import importlib
import socket
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any, NoReturn

from heatproof.errors import MissingInputError

_NO_ANSWER_S = 30.0  # after which a silent server counts as no network
_NO_CONNECTION_S = 10.0
_ARE_OFF: ContextVar[bool] = ContextVar("downloads_are_off", default=False)


class NotNowError(MissingInputError):
    """Something would be fetched inside of `none`; the text says what and from where."""


@contextlib.contextmanager
def none() -> Iterator[None]:
    """Inside the block nothing is fetched: what would be raises NotNowError, also where a library or a user's code asks."""

    def refuse(host: Any, *_: Any, **__: Any) -> NoReturn:
        raise NotNowError(f"a dry run fetches nothing from {host}")

    token, resolve = _ARE_OFF.set(True), socket.getaddrinfo
    socket.getaddrinfo = refuse  # every connection by name begins with it
    try:
        yield
    finally:
        socket.getaddrinfo = resolve
        _ARE_OFF.reset(token)


def are_off() -> bool:
    """Whether this runs inside of `none`."""
    return _ARE_OFF.get()


def announce(url: str) -> None:
    """To be called before a download.

    Raises:
        NotNowError: inside of `none`.
    """
    if are_off():
        raise NotNowError(url)


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
    asks = not are_off() and not before and not urllib.request.getproxies()
    reason = "a dry run fetches nothing" if are_off() else _unreachable(constants.ENDPOINT) if asks else None
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
