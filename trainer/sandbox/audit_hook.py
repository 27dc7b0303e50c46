"""Refuses network access in the training process, so that a connection fails at once instead of after a timeout."""

from __future__ import annotations

import sys
from typing import Any

# audit event → index of the argument that names the peer
_EVENTS = {"socket.connect": 1, "socket.sendto": 1, "socket.getaddrinfo": 0, "socket.gethostbyname": 0}
_LOOPBACK = ("127.", "::1", "localhost")


def refuse_network() -> None:
    """From now on, raise ConnectionError for each connection to another host and for each lookup of its name."""
    sys.addaudithook(_refuse)


def _refuse(event: str, args: tuple[Any, ...]) -> None:
    if event not in _EVENTS:
        return
    peer = args[_EVENTS[event]]
    is_socket_file = event in ("socket.connect", "socket.sendto") and not isinstance(peer, tuple)
    host = peer[0] if isinstance(peer, tuple) else peer
    name = host.decode(errors="replace") if isinstance(host, bytes) else str(host)
    if host is not None and not is_socket_file and not name.startswith(_LOOPBACK):
        raise ConnectionError(f"the training process has no network access (attempted: {name})")
