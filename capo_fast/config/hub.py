"""Reads the Hugging Face cache if the hub can't be reached; its client would try each file for half a minute."""

from __future__ import annotations

import os
import socket
from functools import cache, partial
from typing import NoReturn
from urllib.parse import urlsplit
from urllib.request import getproxies_environment

from capo_fast.errors import ConfigError
from capo_fast.terminal import print_line

CONNECT_S = 5.0


def hub_id(name: str, key: str) -> str:
    """The same id. If the hub can't be reached, its client reads only its cache from now on.

    key: the setting that names it. Raises ConfigError if the cache does not have the model either.
    """
    from huggingface_hub import try_to_load_from_cache  # takes a second; a local folder needs none of it

    if (cause := reach_hub()) is None:
        return name
    if not isinstance(try_to_load_from_cache(name, "config.json"), str):
        raise ConfigError(f"{key}: {name}: no such folder, nor in the cache of the Hugging Face hub, and {cause}")
    _warn(f"{name} comes from the cache of the Hugging Face hub: {cause}")
    return name


@cache
def _warn(text: str) -> None:
    """Print a warning once per run: a name is resolved several times, and on every rank."""
    if os.environ.get("RANK", "0") == "0":
        print_line("warning", text)


@cache
def reach_hub() -> str | None:
    """The cause if the hub can't be reached; its client then reads only its cache. None if it can be reached, or if a
    proxy or HF_HUB_OFFLINE is set."""
    from huggingface_hub import constants, get_session, set_client_factory

    address = urlsplit(constants.ENDPOINT)
    if constants.is_offline_mode() or {address.scheme, "all"} & getproxies_environment().keys():
        return None
    try:
        port = address.port or (80 if address.scheme == "http" else 443)
        socket.create_connection((address.hostname or "", port), CONNECT_S).close()
    except OSError as error:
        set_client_factory(partial(type(get_session()), event_hooks={"request": [_refuse]}))
        return f"{address.hostname} can't be reached ({error.strerror or error})"
    return None


def _refuse(request: object) -> NoReturn:
    """Raises like the client's own hook for HF_HUB_OFFLINE, which is read only when the package is imported."""
    from huggingface_hub.errors import OfflineModeIsEnabled

    raise OfflineModeIsEnabled("the hub can't be reached")
