"""HTTP whose waits for the network end when a stop is set, and when the time for a whole call is over."""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from math import inf
from typing import Any

import httpcore
import httpx

from trainer.core.stop import StopSignal

_SLICE = 0.5  # seconds between two looks at the stop
_FRESH = 0.1  # seconds for which a server that answered is believed to be there still
_current = threading.local()


@contextmanager
def stoppable(stop: StopSignal) -> Iterator[None]:
    """While this block runs, this thread's waits in a client that was made stoppable raise `Stopped`."""
    before = getattr(_current, "stop", None)
    _current.stop = stop
    try:
        yield
    finally:
        _current.stop = before


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """While this block runs, this thread's waits in a client that was made stoppable end after `seconds` all together.

    httpx's own limits are for one silence: a server that drips a byte now and then is never too late for them. Looking up
    a name is bounded by the system's resolver alone.
    """
    before = getattr(_current, "deadline", inf)
    _current.deadline = min(before, time.monotonic() + seconds)
    try:
        yield
    finally:
        _current.deadline = before


def make_stoppable(client: httpx.Client) -> httpx.Client:
    """The same client, whose connections look at the stop and the deadline of the thread that uses them."""
    # httpx has no argument for it, and giving it a transport of our own would turn the system's proxies off
    for transport in (client._transport, *client._mounts.values()):  # noqa: SLF001
        if isinstance(transport, httpx.HTTPTransport):
            transport._pool._network_backend = _Backend()  # noqa: SLF001
    return client


def exchange(client: httpx.Client, request: httpx.Request) -> httpx.Response:
    """The answer's head, like `client.send(request, stream=True)` without its cookies, redirects and logins.

    For a small object, those take a quarter of the processor time of the whole transfer.
    """
    return client._transport_for_url(request.url).handle_request(request)  # noqa: SLF001


class _Backend(httpcore.SyncBackend):
    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.NetworkStream:
        failure: Exception = httpcore.ConnectError(f"{host} has no address")
        for address in _addresses(host, port):
            try:
                stream = super().connect_tcp(address, port, _at_most(timeout), local_address, socket_options)
                return _Stream(stream)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failure = error
        raise failure


def _addresses(host: str, port: int) -> list[str]:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise httpcore.ConnectError(str(error)) from error
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


def _at_most(timeout: float | None) -> float:
    """Seconds that this thread may wait now, up to `timeout`. Raises `Stopped`, or ConnectTimeout when none are left."""
    for seconds in _waits(timeout):
        return seconds
    raise httpcore.ConnectTimeout("timed out")


class _Stream(httpcore.NetworkStream):
    """A connection that waits in slices, for as long as its thread need not stop."""

    def __init__(self, inner: httpcore.NetworkStream) -> None:
        self._inner = inner
        self._there = 0.0

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        for seconds in _slices(timeout):
            try:
                data = self._inner.read(max_bytes, seconds)
            except httpcore.ReadTimeout:
                continue
            self._there = time.monotonic()
            return data
        raise httpcore.ReadTimeout("timed out")

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        # not the inner write: it forgets how much it sent when it times out
        connection: socket.socket = self._inner.get_extra_info("socket")
        rest = memoryview(buffer)
        while rest:
            rest = rest[self._send(connection, rest, timeout) :]

    def _send(self, connection: socket.socket, rest: memoryview, timeout: float | None) -> int:
        for seconds in _slices(timeout):
            try:
                connection.settimeout(seconds)
                return connection.send(rest)
            except TimeoutError:
                continue
            except OSError as error:
                raise httpcore.WriteError(str(error)) from error
        raise httpcore.WriteTimeout("timed out")

    def close(self) -> None:
        self._inner.close()

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore.NetworkStream:
        return _Stream(self._inner.start_tls(ssl_context, server_hostname, _at_most(timeout)))

    def get_extra_info(self, info: str) -> Any:
        if info == "is_readable":
            return self._is_readable()
        return self._inner.get_extra_info(info)

    def _is_readable(self) -> bool:
        # the pool asks each of its idle connections, before and after every request, whether the server has hung up: a
        # system call each time, which is most of what a small object costs when sixteen threads share the pool
        now = time.monotonic()
        if now - self._there < _FRESH:
            return False
        readable = bool(self._inner.get_extra_info("is_readable"))
        if not readable:
            self._there = now
        return readable


def _slices(timeout: float | None) -> Iterator[float]:
    """Waits of half a second at most; see `_waits`."""
    return (min(_SLICE, seconds) for seconds in _waits(timeout))


def _waits(timeout: float | None) -> Iterator[float]:
    """What is left of `timeout` and of this thread's time, again and again until nothing is; each with a look at the stop."""
    deadline = min(time.monotonic() + (inf if timeout is None else timeout), getattr(_current, "deadline", inf))
    while (left := deadline - time.monotonic()) > 0:
        stop: StopSignal | None = getattr(_current, "stop", None)
        if stop:
            stop.raise_if_set()
        yield left
