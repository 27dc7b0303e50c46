"""HTTP connections that stop waiting when the stop signal is set or the time limit of the whole call is exceeded."""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from math import inf
from typing import Any

import httpcore
import httpx

from trainer.core.stop import StopSignal
from trainer.remote.gate import resolve_by_system

_SLICE = 0.5  # seconds between two checks of the stop signal
_FRESH = 0.1  # seconds; after an answer, a connection is assumed to be open for this time
_current = threading.local()


@contextmanager
def stoppable(stop: StopSignal) -> Iterator[None]:
    """While the block runs, every wait of a stoppable client in this thread raises `Stopped` if `stop` is set."""
    before = getattr(_current, "stop", None)
    _current.stop = stop
    try:
        yield
    finally:
        _current.stop = before


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """While the block runs, all waits of a stoppable client in this thread take at most `seconds` in total.

    httpx's own limits apply to each wait separately, so a server that slowly sends single bytes never exceeds them.
    Name resolution is limited only by the system's resolver.
    """
    before = getattr(_current, "deadline", inf)
    _current.deadline = min(before, time.monotonic() + seconds)
    try:
        yield
    finally:
        _current.deadline = before


@cache
def tls_context() -> ssl.SSLContext:
    """Return the TLS settings that all clients share: reading the root certificates takes 30 ms of processor time."""
    return httpx.create_ssl_context()


def stoppable_client(**options: Any) -> httpx.Client:
    """Return an `httpx.Client` whose connections check the stop signal and the deadline of the calling thread."""
    client = httpx.Client(verify=tls_context(), **options)
    # httpx has no argument for the network backend, and a custom transport would disable the system's proxies
    for transport in (client._transport, *client._mounts.values()):  # noqa: SLF001
        if isinstance(transport, httpx.HTTPTransport):
            transport._pool._network_backend = StoppableNetwork(_all_addresses)  # noqa: SLF001
    return client


def exchange(client: httpx.Client, request: httpx.Request) -> httpx.Response:
    """Return the head of the response, like `client.send(request, stream=True)` without cookies, redirects and logins.

    For a small object, these three steps take a quarter of the processor time of the transfer.
    """
    return client._transport_for_url(request.url).handle_request(request)  # noqa: SLF001


class StoppableNetwork(httpcore.SyncBackend):
    """Connections that check the stop signal and the deadline of the calling thread.

    `addresses` returns the allowed IP addresses of a host, which are tried in this order. TLS still verifies the host
    name, which httpcore takes from the URL.
    """

    def __init__(self, addresses: Callable[[str, int], Sequence[str]]) -> None:
        self._addresses = addresses

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.NetworkStream:
        failure: Exception = httpcore.ConnectError(f"{host} has no address")
        for address in self._addresses(host, port):
            try:
                stream = super().connect_tcp(address, port, _at_most(timeout), local_address, socket_options)
                return StoppableStream(stream)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failure = error
        raise failure


def _all_addresses(host: str, port: int) -> list[str]:
    try:
        return list(dict.fromkeys(resolve_by_system(host, port)))
    except OSError as error:
        raise httpcore.ConnectError(str(error)) from error


def _at_most(timeout: float | None) -> float:
    """Return the seconds that this thread can wait now. Raises `Stopped`, or ConnectTimeout if no time is left."""
    for seconds in _waits(timeout):
        return seconds
    raise httpcore.ConnectTimeout(_why_over())


class StoppableStream(httpcore.NetworkStream):
    """A connection that waits in short slices, and checks the thread's stop signal and deadline between them."""

    def __init__(self, inner: httpcore.NetworkStream) -> None:
        self._inner = inner
        self._known_open = 0.0  # last monotonic time at which the connection was open

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        for seconds in _slices(timeout):
            try:
                data = self._inner.read(max_bytes, seconds)
            except httpcore.ReadTimeout:
                continue
            self._known_open = time.monotonic()
            return data
        raise httpcore.ReadTimeout(_why_over())

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        # the inner write does not return how many bytes it sent before a timeout
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
        raise httpcore.WriteTimeout(_why_over())

    def close(self) -> None:
        self._inner.close()

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore.NetworkStream:
        return StoppableStream(self._inner.start_tls(ssl_context, server_hostname, _at_most(timeout)))

    def get_extra_info(self, info: str) -> Any:
        if info == "is_readable":
            return self._is_readable()
        return self._inner.get_extra_info(info)

    def _is_readable(self) -> bool:
        # Before and after every request, the pool checks whether the server has closed an idle connection. Each check
        # is a system call. If sixteen threads share the pool, these calls are most of the cost of a small object.
        now = time.monotonic()
        if now - self._known_open < _FRESH:
            return False
        readable = bool(self._inner.get_extra_info("is_readable"))
        if not readable:
            self._known_open = now
        return readable


def _slices(timeout: float | None) -> Iterator[float]:
    """Yield waits of at most half a second; see `_waits`."""
    return (min(_SLICE, seconds) for seconds in _waits(timeout))


def _waits(timeout: float | None) -> Iterator[float]:
    """Yield the seconds until `timeout` or the thread's deadline, while time is left.

    Check the stop signal before each value.
    """
    deadline = min(time.monotonic() + (inf if timeout is None else timeout), getattr(_current, "deadline", inf))
    while (left := deadline - time.monotonic()) > 0:
        stop: StopSignal | None = getattr(_current, "stop", None)
        if stop:
            stop.raise_if_set()
        yield left


def _why_over() -> str:
    is_late = time.monotonic() >= getattr(_current, "deadline", inf)
    return "the time limit of the call is exceeded" if is_late else "timed out"
