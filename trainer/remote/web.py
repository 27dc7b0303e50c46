"""Downloads from URLs that strangers chose: only over http(s), only from public hosts or those that were allowed.

A name is resolved once, every address is checked, and the connection goes to a checked address, so an answer that
changes between check and use (DNS rebinding) reaches nothing. Redirects start over. Proxies of the environment are
not used: a proxy would resolve names for us.
"""

from __future__ import annotations

import hashlib
import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias
from urllib.parse import quote, urljoin, urlsplit

import httpcore

from trainer.core.errors import DatasetError, ObjectMissing, Unavailable
from trainer.core.stop import StopSignal
from trainer.remote.retry import RetryPolicy, retrying

Resolve: TypeAlias = Callable[[str, int], Sequence[str]]
CHUNK = 1 << 16
REDIRECTS = 5
LONGEST_URL = 8192
CONNECT_SECONDS = 5.0
READ_SECONDS = 30.0
SLICE_SECONDS = 0.25  # how long a read may keep a stop waiting
_REDIRECT_CODES = {301, 302, 303, 307, 308}
_MEND = {
    401: "it needs a login; use a signed URL, or upload the dataset to the storage bucket",
    403: "access is refused; use a signed URL that is still valid, or upload the dataset to the storage bucket",
    404: "nothing is there; check the URL",
    410: "it was removed; check the URL",
}
_HIDDEN_V4 = (  # IPv6 ranges that carry an IPv4 address: network, bits to the right of that address
    (ipaddress.IPv6Network("::ffff:0:0/96"), 0),
    (ipaddress.IPv6Network("::/96"), 0),
    (ipaddress.IPv6Network("64:ff9b::/96"), 0),
    (ipaddress.IPv6Network("2002::/16"), 80),
)
_SPECIAL = tuple(  # not public, and not in every Python's list of such ranges
    ipaddress.ip_network(text)
    for text in (
        "192.0.0.0/24",  # a cloud's metadata is at 192.0.0.192
        "192.31.196.0/24", "192.52.193.0/24", "192.88.99.0/24", "192.175.48.0/24",
        "64:ff9b:1::/48", "100::/64", "2001::/23", "3fff::/20", "5f00::/16", "fec0::/10",
    )
)


@dataclass(frozen=True, kw_only=True)
class Downloaded:
    """A complete body on disk. `url` is where the redirects ended, `etag` a strong ETag or empty."""

    url: str
    bytes: int
    sha256: str
    etag: str
    content_type: str


class GuardedClient:
    """One connection pool for all threads.

    `allowed_hosts` are `host` (all ports, public addresses) or `host:port` (may also be private or loopback); empty
    allows every public host. `own_hosts` are `host:port` that are always allowed, such as the Supabase host.
    Link-local addresses, where clouds keep their metadata, are never contacted.
    """

    def __init__(
        self,
        *,
        allowed_hosts: Iterable[str] = (),
        own_hosts: Iterable[str] = (),
        max_bytes: int = 1 << 40,
        max_seconds: float = 6 * 3600.0,
        policy: RetryPolicy | None = None,
        connections: int = 32,
        resolve: Resolve | None = None,
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        self._gate = _Gate(
            tuple(h.lower() for h in allowed_hosts), tuple(h.lower() for h in own_hosts), resolve or resolve_by_system,
        )
        self._max_bytes = max_bytes
        self._max_seconds = max_seconds
        self._policy = policy or RetryPolicy(total_seconds=120.0)
        self._network = _PinnedNetwork(self._gate)
        self._pool = httpcore.ConnectionPool(
            ssl_context=ssl_context, max_connections=connections, keepalive_expiry=10.0, network_backend=self._network,
        )

    def download(
        self,
        url: str,
        path: Path,
        stop: StopSignal,
        *,
        max_bytes: int | None = None,
        on_bytes: Callable[[int], None] | None = None,
        on_length: Callable[[int], None] | None = None,
        is_known: Callable[[str, str, int], bool] | None = None,
    ) -> Downloaded:
        """Stream the body to `path`, a new file. A failed try is begun anew; `on_bytes` then gets the loss as minus.

        `on_length` hears the stated length before anything is written.
        `is_known(final_url, strong_etag, length)` may say that the content is there already: nothing is then written
        and `sha256` is empty. Raises `ObjectMissing` when nothing is there, `DatasetError` when the URL may not or cannot
        be had, `Unavailable` when the host does not answer now, `Stopped`.
        """
        limit = min(max_bytes or self._max_bytes, self._max_bytes)
        deadline = time.monotonic() + self._max_seconds

        def once() -> Downloaded:
            moved = 0

            def count(n: int) -> None:
                nonlocal moved
                moved += n
                if on_bytes is not None:
                    on_bytes(n)

            try:
                return self._once(url, path, _Call(stop, deadline, limit, count, on_length, is_known))
            except BaseException:
                path.unlink(missing_ok=True)
                if on_bytes is not None and moved:
                    on_bytes(-moved)
                raise

        return retrying(once, self._policy, stop)

    def close(self) -> None:
        self._pool.close()

    def _once(self, url: str, path: Path, call: _Call) -> Downloaded:
        self._network.use(call.stop, call.deadline)
        for _ in range(REDIRECTS + 1):
            url = self._gate.check_url(url)
            call.stop.raise_if_set()
            with self._answer(url) as answer:
                if answer.status in _REDIRECT_CODES:
                    url = urljoin(url, _header(answer, "location") or _no_target(url))
                    continue
                _require_ok(url, answer)
                return call.receive(url, answer, path)
        raise DatasetError(f"{_shown(url)} redirects more than {REDIRECTS} times; give the final URL.")

    @contextmanager
    def _answer(self, url: str) -> Iterator[httpcore.Response]:
        headers: dict[bytes | str, bytes | str] = {
            "Host": urlsplit(url).netloc,
            "Accept-Encoding": "identity",
            "User-Agent": "yolo-trainer",
        }
        timeout = {"connect": CONNECT_SECONDS, "read": READ_SECONDS, "write": READ_SECONDS, "pool": 60.0}
        try:
            with self._pool.stream("GET", url, headers=headers, extensions={"timeout": timeout}) as answer:
                yield answer
        except (httpcore.NetworkError, httpcore.TimeoutException, httpcore.ProtocolError) as error:
            if isinstance(error.__cause__, ssl.SSLCertVerificationError):
                raise DatasetError(f"{_shown(url)} has no valid certificate; use a host that has one.") from None
            reason = str(error) or type(error).__name__
            raise Unavailable(f"{_shown(url)} does not answer properly: {reason}") from None
        except (httpcore.UnsupportedProtocol, UnicodeError, ValueError) as error:
            raise DatasetError(f"{_shown(url)} is not a URL that can be fetched ({type(error).__name__}).") from None


@dataclass(frozen=True)
class _Call:
    stop: StopSignal
    deadline: float
    max_bytes: int
    on_bytes: Callable[[int], None]
    on_length: Callable[[int], None] | None
    is_known: Callable[[str, str, int], bool] | None

    def receive(self, url: str, answer: httpcore.Response, path: Path) -> Downloaded:
        if _header(answer, "content-encoding").lower() not in {"", "identity"}:
            raise DatasetError(f"{_shown(url)} is sent compressed although that was not asked for; serve it plainly.")
        length = _length(url, answer)
        if length is not None and length > self.max_bytes:
            self._too_big(url)
        etag = _header(answer, "etag")
        etag = "" if etag.startswith("W/") else etag
        kind = _header(answer, "content-type")
        if etag and length is not None and self.is_known is not None and self.is_known(url, etag, length):
            return Downloaded(url=url, bytes=length, sha256="", etag=etag, content_type=kind)
        if length is not None and self.on_length is not None:
            self.on_length(length)
        size, sha256 = self._stream(url, answer, path)
        if length is not None and size != length:
            raise Unavailable(f"{_shown(url)} ended after {size} of {length} bytes")
        return Downloaded(url=url, bytes=size, sha256=sha256, etag=etag, content_type=kind)

    def _stream(self, url: str, answer: httpcore.Response, path: Path) -> tuple[int, str]:
        size, digest = 0, hashlib.sha256()
        with path.open("xb") as out:
            for chunk in answer.iter_stream():
                self.stop.raise_if_set()
                size += len(chunk)
                if size > self.max_bytes:
                    self._too_big(url)
                if time.monotonic() > self.deadline:
                    raise DatasetError(f"{_shown(url)} is too slow: it did not end in the time allowed; use a nearer copy.")
                digest.update(chunk)
                out.write(chunk)
                self.on_bytes(len(chunk))
        return size, digest.hexdigest()

    def _too_big(self, url: str) -> None:
        raise DatasetError(f"{_shown(url)} is larger than {self.max_bytes:,} bytes, the limit for it here.")


@dataclass(frozen=True)
class _Gate:
    """Which hosts and addresses may be contacted."""

    allowed: tuple[str, ...]
    own: tuple[str, ...]
    resolve: Resolve

    def check_url(self, url: str) -> str:
        """The URL as it can be sent, without user, password and fragment. `DatasetError` when it may not be fetched."""
        if len(url) > LONGEST_URL:
            raise DatasetError(f"{_shown(url)[:100]}… is longer than {LONGEST_URL} characters.")
        try:
            parts = urlsplit(url)
            port = parts.port or (443 if parts.scheme == "https" else 80)
        except ValueError:
            raise DatasetError(f"{_shown(url)} is not a valid URL.") from None
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise DatasetError(f"{_shown(url)} is not an http or https URL, and no other kind is fetched.")
        if parts.username is not None or parts.password is not None:
            raise DatasetError(f"{_shown(url)} contains a user or a password; use a signed URL instead.")
        self.check_host(parts.hostname, port)
        host = _ascii(parts.hostname, url)
        netloc = f"[{host}]" if ":" in host else host
        if parts.port:
            netloc += f":{port}"
        safe = "%/:=&?~#+!$,;'@()*[]"
        query = f"?{quote(parts.query, safe=safe)}" if parts.query else ""
        return f"{parts.scheme}://{netloc}{quote(parts.path or '/', safe=safe)}{query}"

    def check_host(self, host: str, port: int) -> None:
        known = {host.rstrip(".").lower(), f"{host.rstrip('.').lower()}:{port}"}
        if self.allowed and not known & {*self.allowed, *self.own}:
            raise DatasetError(
                f"Host {_short(host)} may not be contacted; upload the dataset to the storage bucket, or let the "
                "operator add the host to ALLOWED_DATASET_HOSTS.",
            )

    def addresses(self, host: str, port: int) -> list[str]:
        """The addresses of `host`, all of them checked."""
        self.check_host(host, port)
        may_be_private = f"{host.rstrip('.').lower()}:{port}" in {*self.allowed, *self.own}
        try:
            found = list(dict.fromkeys(self.resolve(host, port)))
        except socket.gaierror as error:
            if error.errno == socket.EAI_AGAIN:
                raise Unavailable(f"the name of host {_short(host)} cannot be resolved now") from None
            raise DatasetError(f"Host {_short(host)} does not exist; check the URL.") from None
        except (UnicodeError, OSError):
            raise DatasetError(f"Host {_short(host)} is not a name that can be resolved; check the URL.") from None
        if not found or not all(_may_contact(address, may_be_private=may_be_private) for address in found):
            raise DatasetError(
                f"Host {_short(host)} is at an address inside a private network, which a dataset may not reach; "
                "upload the dataset to the storage bucket instead.",
            )
        return found


def resolve_by_system(host: str, port: int) -> list[str]:
    return [str(info[4][0]) for info in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]


def _may_contact(text: str, *, may_be_private: bool) -> bool:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    return all(_is_open(a, may_be_private=may_be_private) for a in (address, *_hidden(address)))


def _is_open(a: ipaddress.IPv4Address | ipaddress.IPv6Address, *, may_be_private: bool) -> bool:
    if a.is_loopback:
        return may_be_private
    if a.is_link_local or a.is_multicast or a.is_unspecified:
        return False
    if any(a in network for network, _ in _HIDDEN_V4):
        return True  # judged by the IPv4 address inside
    is_public = a.is_global and not a.is_private and not a.is_reserved and not any(a in n for n in _SPECIAL)
    return is_public or may_be_private


def _hidden(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> list[ipaddress.IPv4Address]:
    """The IPv4 addresses inside an IPv6 address, which a gateway would contact."""
    if not isinstance(address, ipaddress.IPv6Address) or address.is_loopback or address.is_unspecified:
        return []
    value = int(address)
    return [ipaddress.IPv4Address(value >> right & 0xFFFFFFFF) for network, right in _HIDDEN_V4 if address in network]


class _PinnedNetwork(httpcore.NetworkBackend):
    """Connects to checked addresses only. TLS still sees the name: httpcore takes it from the URL."""

    def __init__(self, gate: _Gate) -> None:
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
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None,
    ) -> httpcore.NetworkStream:
        return _StoppableStream(self._inner.start_tls(ssl_context, server_hostname, timeout), self._seconds_left)

    def get_extra_info(self, info: str) -> object:
        return self._inner.get_extra_info(info)


def _require_ok(url: str, answer: httpcore.Response) -> None:
    status = answer.status
    if status == 200:
        return
    if status == 429 or status >= 500:
        wait = _header(answer, "retry-after")
        raise Unavailable(f"{_shown(url)} answers {status}", retry_after=float(wait) if wait.isdecimal() else None)
    mend = _MEND.get(status, "it is not there to be fetched; check the URL")
    kind = ObjectMissing if status in {404, 410} else DatasetError
    raise kind(f"{_shown(url)} answers {status}: {mend}.")


def _length(url: str, answer: httpcore.Response) -> int | None:
    text = _header(answer, "content-length")
    if not text:
        return None
    if not text.isdecimal() or len(text) > 18:
        raise DatasetError(f"{_shown(url)} states a length that is no number.")
    return int(text)


def _no_target(url: str) -> str:
    raise DatasetError(f"{_shown(url)} redirects to nowhere; give the final URL.")


def _header(answer: httpcore.Response, name: str) -> str:
    return next((v.decode("latin-1") for k, v in answer.headers if k.lower() == name.encode()), "")


def _ascii(host: str, url: str) -> str:
    if host.isascii():
        return host
    try:
        return host.encode("idna").decode()
    except UnicodeError:
        raise DatasetError(f"{_shown(url)} names a host that cannot exist.") from None


def _short(host: str) -> str:
    return repr(host[:100])


def _shown(url: str) -> str:
    """For messages: no user, password, query or fragment, which may be secrets, and nothing unprintable."""
    head, _, rest = url.partition("://")
    authority, slash, path = rest.split("?", 1)[0].split("#", 1)[0].partition("/")
    text = f"{head}://{authority.rpartition('@')[2]}{slash}{path}"
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)[:200]


