"""Talking to systemd: READY, STATUS, STOPPING and the watchdog, by sd_notify(3)'s protocol; silent without systemd.

A socket that cannot be reached is a warning in the log and never an error: the service works without systemd, too.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import structlog

log = structlog.get_logger()

SEND_SECONDS = 1.0  # a manager that reads nothing may not hold up the caller


class ServiceManager:
    """Tells systemd how the service is doing. `address` is $NOTIFY_SOCKET; None without systemd."""

    def __init__(self, address: str | None) -> None:
        # a leading @ means the abstract namespace
        self._address = "\0" + address[1:] if address and address.startswith("@") else address
        self._is_ready = False  # whether systemd knows
        self._is_warned = False

    def ready_and(self, status: str) -> None:
        """What the service is doing; until systemd has heard it once, that it is ready as well."""
        told = self._send(f"STATUS={status}" if self._is_ready else f"READY=1\nSTATUS={status}")
        self._is_ready = self._is_ready or told

    def stopping(self) -> None:
        self._send("STOPPING=1\nSTATUS=stopping")

    @contextmanager
    def watchdog(self, seconds: float | None, is_alive: Callable[[float], bool]) -> Iterator[None]:
        """Feed the watchdog, which bites after `seconds`, for as long as `is_alive(seconds)`."""
        if seconds is None:
            yield
            return
        over = threading.Event()

        def feed() -> None:
            while not over.wait(seconds / 4):
                if is_alive(seconds):
                    self._send("WATCHDOG=1")

        thread = threading.Thread(target=feed, name="watchdog", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def _send(self, message: str) -> bool:
        """Whether systemd took the message."""
        if self._address is None:
            return False
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
                sender.settimeout(SEND_SECONDS)
                sender.sendto(message.encode(), self._address)
        except OSError as error:
            if not self._is_warned:
                log.warning("systemd cannot be told, going on without", socket=self._address, error=str(error))
            self._is_warned = True
            return False
        return True
