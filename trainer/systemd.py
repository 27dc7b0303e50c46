"""Talking to systemd: READY, STATUS, STOPPING and the watchdog, by sd_notify(3)'s protocol; silent without systemd."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class ServiceManager:
    """`address` is $NOTIFY_SOCKET; None when nobody wants to hear."""

    def __init__(self, address: str | None) -> None:
        # a leading @ means the abstract namespace
        self._address = "\0" + address[1:] if address and address.startswith("@") else address
        self._is_ready = False

    def ready_and(self, status: str) -> None:
        """What the service is doing. The first time, that it is ready as well."""
        self._send(f"STATUS={status}" if self._is_ready else f"READY=1\nSTATUS={status}")
        self._is_ready = True

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

    def _send(self, message: str) -> None:
        if self._address is None:
            return
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
            sender.sendto(message.encode(), self._address)
