"""Downloads from URLs that come from a request: only http(s), only from public or explicitly allowed hosts.

A host name is resolved once, every address is checked, and the connection goes to a checked address. So a DNS answer
that changes between check and connection (DNS rebinding) has no effect. The target of each redirect is checked in the
same way. Proxy environment variables (`HTTPS_PROXY`) are ignored, because a proxy resolves host names itself, without
this check.
"""

from __future__ import annotations

import hashlib
import ssl
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urljoin, urlsplit

import httpcore

from trainer.core.errors import DatasetError, ObjectMissing, Unavailable
from trainer.core.retry import RetryPolicy, retrying
from trainer.core.stop import StopSignal
from trainer.core.text import printable
from trainer.remote.answers import retry_after_seconds
from trainer.remote.gate import Gate, Resolve, resolve_by_system
from trainer.remote.stoppable import StoppableNetwork, stoppable, within

CHUNK = 1 << 16
REDIRECTS = 5
MOST_ADDRESSES = 4  # addresses of a host, tried one after the other
CONNECT_SECONDS = 5.0
READ_SECONDS = 30.0
HEAD_SECONDS = 60.0  # time limit until the end of the response headers
_REDIRECT_CODES = {301, 302, 303, 307, 308}
_ADVICE = {
    401: "the URL needs a login; use a signed URL, or upload the dataset to the storage bucket",
    403: "access is denied; use a signed URL that is still valid, or upload the dataset to the storage bucket",
    404: "the file does not exist; check the URL",
    410: "the file was removed; check the URL",
}


@dataclass(frozen=True, kw_only=True)
class Downloaded:
    """A complete file on disk. `url` is the final URL after redirects, `etag` a strong ETag or empty."""

    url: str
    bytes: int
    sha256: str
    etag: str
    content_type: str


class GuardedClient:
    """One connection pool for all threads.

    `allowed_hosts` contains `host` (all ports, public addresses only) or `host:port` (also private and loopback
    addresses); if it is empty, every public host is allowed. `own_hosts`, such as the Supabase host, are always allowed;
    an own host without a port means its ports 80 and 443. On a host that only `own_hosts` contains, only paths for which
    `is_own_path` returns True are requested. Link-local addresses, where clouds serve metadata, are never
    contacted.
    """

    def __init__(
        self,
        *,
        allowed_hosts: Iterable[str] = (),
        own_hosts: Iterable[str] = (),
        is_own_path: Callable[[str], bool] = lambda _: True,
        max_bytes: int = 1 << 40,
        max_seconds: float = 6 * 3600.0,
        policy: RetryPolicy | None = None,
        connections: int = 32,
        resolve: Resolve | None = None,
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        self._gate = Gate(
            allowed=tuple(_host(host) for host in allowed_hosts),
            own=tuple(own for host in own_hosts for own in _with_ports(_host(host))),
            resolve=resolve or resolve_by_system,
            is_own_path=is_own_path,
        )
        self._max_bytes = max_bytes
        self._max_seconds = max_seconds
        self._policy = policy or RetryPolicy(total_seconds=120.0)
        self._pool = httpcore.ConnectionPool(
            ssl_context=ssl_context,
            max_connections=connections,
            keepalive_expiry=10.0,
            network_backend=StoppableNetwork(lambda host, port: self._gate.addresses(host, port)[:MOST_ADDRESSES]),
        )

    def download(
        self,
        url: str,
        path: Path,
        stop: StopSignal,
        *,
        max_bytes: int | None = None,
        max_seconds: float | None = None,
        on_bytes: Callable[[int], None] | None = None,
        on_length: Callable[[int], None] | None = None,
        is_known: Callable[[str, str, int], bool] | None = None,
    ) -> Downloaded:
        """Stream the body to `path`, a new file.

        After a failed try, `on_bytes` gets the bytes of this try as a negative number.
        `on_length` gets the Content-Length before anything is written. If `is_known(final_url, strong_etag, length)`
        returns True, the content is not downloaded and `sha256` is empty.
        Raises `ObjectMissing` for a missing file, `DatasetError` for a URL that is invalid or not allowed, `Stopped`.
        Raises `Unavailable` for a temporary failure of the host or the network.
        """
        limit = min(max_bytes or self._max_bytes, self._max_bytes)
        seconds = min(max_seconds or self._max_seconds, self._max_seconds)
        deadline = time.monotonic() + seconds

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

        with stoppable(stop), within(seconds):
            return retrying(once, self._policy, stop)

    def close(self) -> None:
        self._pool.close()

    def _once(self, url: str, path: Path, call: _Call) -> Downloaded:
        for _ in range(REDIRECTS + 1):
            url = self._gate.check_url(url)
            call.stop.raise_if_set()
            with self._answer(url) as answer:
                if answer.status in _REDIRECT_CODES:
                    target = _header(answer, "location")
                    if not target:
                        raise DatasetError(f"{printable(url, 200)} redirects without a target. Use the final URL.")
                    url = urljoin(url, target)
                    continue
                _require_ok(url, answer)
                return call.receive(url, answer, path)
        raise DatasetError(f"{printable(url, 200)} redirects more than {REDIRECTS} times. Use the final URL.")

    @contextmanager
    def _answer(self, url: str) -> Iterator[httpcore.Response]:
        headers: dict[bytes | str, bytes | str] = {
            "Host": urlsplit(url).netloc,
            "Accept-Encoding": "identity",
            "User-Agent": "yolo-trainer",
        }
        timeout = {"connect": CONNECT_SECONDS, "read": READ_SECONDS, "write": READ_SECONDS, "pool": 60.0}
        try:
            with within(HEAD_SECONDS):
                answer = self._pool.handle_request(
                    httpcore.Request("GET", url, headers=headers, extensions={"timeout": timeout})
                )
            with closing(answer):
                yield answer
        except httpcore.ConnectError as error:
            if isinstance(error.__context__, ssl.SSLCertVerificationError):  # another try would fail as well
                raise DatasetError(
                    f"{printable(url, 200)}: the host has no valid certificate. Use a host that has one."
                ) from None
            raise Unavailable(f"{printable(url, 200)} does not answer: {error}") from None
        except (httpcore.NetworkError, httpcore.TimeoutException, httpcore.ProtocolError) as error:
            reason = str(error) or type(error).__name__
            raise Unavailable(f"{printable(url, 200)} cannot be downloaded now: {reason}") from None
        except (httpcore.UnsupportedProtocol, UnicodeError, ValueError) as error:
            raise DatasetError(
                f"{printable(url, 200)} is not a URL that can be downloaded ({type(error).__name__})."
            ) from None


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
            raise DatasetError(
                f"{printable(url, 200)} is sent compressed although the request forbids it. Serve it uncompressed."
            )
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
            raise Unavailable(f"{printable(url, 200)} ended after {size} of {length} bytes")
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
                    raise DatasetError(
                        f"{printable(url, 200)} is too slow: the download exceeded its time limit. Use a faster host."
                    )
                digest.update(chunk)
                out.write(chunk)
                self.on_bytes(len(chunk))
        return size, digest.hexdigest()

    def _too_big(self, url: str) -> None:
        raise DatasetError(f"{printable(url, 200)} is larger than {self.max_bytes:,} bytes, the limit of this service.")


def _require_ok(url: str, answer: httpcore.Response) -> None:
    status = answer.status
    if status == 200:
        return
    if status == 429 or status >= 500:
        wait = retry_after_seconds(_header(answer, "retry-after"))
        raise Unavailable(f"{printable(url, 200)} answers {status}", retry_after=wait)
    advice = _ADVICE.get(status, "the file cannot be downloaded; check the URL")
    kind = ObjectMissing if status in {404, 410} else DatasetError
    raise kind(f"{printable(url, 200)} answers {status}: {advice}.")


def _length(url: str, answer: httpcore.Response) -> int | None:
    text = _header(answer, "content-length")
    if not text:
        return None
    if not text.isdecimal() or len(text) > 18:
        raise DatasetError(f"{printable(url, 200)} sends an invalid Content-Length.")
    return int(text)


def _header(answer: httpcore.Response, name: str) -> str:
    return next((v.decode("latin-1") for k, v in answer.headers if k.lower() == name.encode()), "")


def _host(entry: str) -> str:
    return entry.strip().lower().replace("[", "").replace("]", "")


def _with_ports(host: str) -> tuple[str, ...]:
    return (host,) if host.rpartition(":")[2].isdecimal() else (f"{host}:443", f"{host}:80")
