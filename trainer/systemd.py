"""Notify systemd (READY, STATUS, STOPPING and the watchdog) with the protocol of sd_notify(3).

Without systemd, no message is sent. If the socket cannot be reached, the service logs a warning and continues, because
the service also works without systemd.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import structlog

log = structlog.get_logger()

SEND_SECONDS = 1.0  # time limit, so that a hanging systemd does not block the caller


class ServiceManager:
    """Sends the state of the service to systemd. `address` is $NOTIFY_SOCKET, or None without systemd."""

    def __init__(self, address: str | None) -> None:
        # a leading @ means a socket in the abstract namespace
        self._address = "\0" + address[1:] if address and address.startswith("@") else address
        self._is_ready = False  # True after systemd has received READY
        self._is_warned = False

    def ready_and(self, status: str) -> None:
        """Send the status, and READY if systemd has not received READY yet."""
        sent = self._send(f"STATUS={status}" if self._is_ready else f"READY=1\nSTATUS={status}")
        self._is_ready = self._is_ready or sent

    def stopping(self) -> None:
        self._send("STOPPING=1\nSTATUS=stopping")

    @contextmanager
    def watchdog(self, seconds: float | None, is_alive: Callable[[float], bool]) -> Iterator[None]:
        """Notify the watchdog while `is_alive(seconds)` is true. `seconds` is the timeout of the watchdog."""
        if seconds is None:
            yield
            return
        stopped = threading.Event()

        def feed() -> None:
            while not stopped.wait(seconds / 4):
                if is_alive(seconds):
                    self._send("WATCHDOG=1")

        thread = threading.Thread(target=feed, name="watchdog", daemon=True)
        thread.start()
        try:
            yield
        finally:
            stopped.set()
            thread.join()

    def _send(self, message: str) -> bool:
        """Return whether systemd received the message."""
        if self._address is None:
            return False
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
                sender.settimeout(SEND_SECONDS)
                sender.sendto(message.encode(), self._address)
        except OSError as error:
            if not self._is_warned:
                log.warning(
                    "systemd cannot be notified, continuing without notifications",
                    socket=self._address,
                    error=str(error),
                )
            self._is_warned = True
            return False
        return True
