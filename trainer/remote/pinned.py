"""Connections to checked addresses only, with reads that a stop interrupts."""

from __future__ import annotations

import ssl
import threading
import time
from collections.abc import Callable, Iterable

import httpcore

from trainer.core.errors import DatasetError
from trainer.core.stop import StopSignal
from trainer.remote.gate import Gate

READ_SECONDS = 30.0
SLICE_SECONDS = 0.25  # how long a read may keep a stop waiting


class PinnedNetwork(httpcore.NetworkBackend):
    """Connects to checked addresses only. TLS still sees the name: httpcore takes it from the URL."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate
        self._inner = httpcore.SyncBackend()
        self._thread = threading.local()

    def use(self, stop: StopSignal, deadline: float) -> None:
        """What bounds this thread's reads from now on."""
        self._thread.bounds = (stop, deadline)

    def seconds_left(self) -> float:
        """Until this thread's deadline. Raises `Stopped` once its stop is set."""
        stop, deadline = self._thread.bounds
        stop.raise_if_set()
        return float(deadline - time.monotonic())

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.NetworkStream:
        failure: httpcore.NetworkError | httpcore.TimeoutException | None = None
        for address in self._gate.addresses(host, port)[:4]:
            self.seconds_left()
            try:
                stream = self._inner.connect_tcp(address, port, timeout, local_address, socket_options)
                return _StoppableStream(stream, self.seconds_left)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failure = error
        raise failure or httpcore.ConnectError("no address")

    def connect_unix_socket(
        self,
        path: str,
        timeout: float | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.NetworkStream:
        raise httpcore.ConnectError("sockets of this machine are not contacted")


class _StoppableStream(httpcore.NetworkStream):
    """Waits for data in slices, so that a stop does not wait for a silent server."""

    def __init__(self, inner: httpcore.NetworkStream, seconds_left: Callable[[], float]) -> None:
        self._inner = inner
        self._seconds_left = seconds_left

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        silent_until = time.monotonic() + (timeout if timeout is not None else READ_SECONDS)
        while True:
            if self._seconds_left() <= 0:
                raise httpcore.ReadTimeout("the time allowed is over")
            try:
                return self._inner.read(max_bytes, SLICE_SECONDS)
            except httpcore.ReadTimeout:
                if time.monotonic() > silent_until:
                    raise

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._inner.write(buffer, timeout)

    def close(self) -> None:
        self._inner.close()

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore.NetworkStream:
        try:
            stream = self._inner.start_tls(ssl_context, server_hostname, timeout)
        except httpcore.ConnectError as error:
            if isinstance(error.__cause__, ssl.SSLCertVerificationError):  # waiting would not mend it
                raise DatasetError(f"Host {server_hostname!r} has no valid certificate; use one that has.") from None
            raise
        return _StoppableStream(stream, self._seconds_left)

    def get_extra_info(self, info: str) -> object:
        return self._inner.get_extra_info(info)
