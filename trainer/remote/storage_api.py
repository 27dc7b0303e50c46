"""HTTP calls to the Supabase Storage API; error responses become the errors of core/errors.py.

This module uses httpx instead of the supabase package. The package reads a whole object into memory and cannot
resume with Range or TUS. Its default HTTP/2 client loses calls when several threads use it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeAlias
from urllib.parse import quote, urlsplit

import httpx

from trainer.core.errors import BadRequest, Misconfigured, ObjectMissing, TrainerError, Unavailable
from trainer.remote.answers import retry_after_seconds
from trainer.remote.stoppable import exchange, stoppable_client, within
from trainer.remote.supabase_access import checked_key, checked_url

Content: TypeAlias = bytes | Iterator[bytes]
SLOWEST = 10_000  # bytes per second: a slower transfer is aborted and tried again
TRANSIENT = {408, 409, 416, 423, 425, 429}  # temporary error statuses, in addition to 5xx
_STATUS = re.compile("[45][0-9]{2}")  # the status in the body of an error response
_TOKEN = re.compile(r"(token=|Bearer )[^\s&\"']+")


@dataclass(frozen=True, kw_only=True)
class HttpTimes:
    """Time limits in seconds.

    `read` and `write` limit one wait, `total` limits a whole call. The transfer of an object gets one more second per
    10 KB. `stored` limits the wait after the last byte of an upload, because the server then assembles a large object.
    """

    connect: float = 10.0
    read: float = 30.0
    write: float = 30.0
    total: float = 60.0
    stored: float = 180.0


@dataclass(frozen=True, kw_only=True)
class Target:
    """The bucket or object of a request, for error messages; `bytes` is the size of an object being written."""

    bucket: str
    key: str = ""
    writing: bool = False
    bytes: int = 0


@dataclass(frozen=True, kw_only=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        try:
            return json.loads(self.body)
        except (ValueError, RecursionError):
            raise Unavailable(
                "storage did not answer with JSON; look for a proxy or a login page between this host and the server"
            ) from None


class TooLarge(Misconfigured):
    """The object exceeds the size limit of its bucket or project."""


class NoSuchRoute(Misconfigured):
    """The HTTP server does not know the route."""


class StorageApi:
    """One pool of HTTP/1.1 connections for all threads. Raises only the errors of core/errors.py.

    `apikey` is the project key for the gateway when `key` is the token of a restricted role.
    """

    def __init__(
        self,
        base_url: str,
        key: str,
        *,
        apikey: str | None = None,
        connections: int = 32,
        times: HttpTimes | None = None,
    ) -> None:
        self._times = times or HttpTimes()
        self._secrets = [secret for secret in (key, apikey) if secret]
        self.base = f"{checked_url(base_url)}/storage/v1"
        self.host = urlsplit(self.base).hostname or ""
        key, apikey = checked_key(key), checked_key(apikey or key)
        self._client = stoppable_client(
            headers={"apikey": apikey, "Authorization": f"Bearer {key}", "Accept-Encoding": "identity"},
            limits=httpx.Limits(max_connections=connections, max_keepalive_connections=connections),
        )

    def close(self) -> None:
        self._client.close()

    @contextmanager
    def stream(
        self,
        method: str,
        path: str,
        *,
        headers: Mapping[str, str] | None = None,
        content: Content | None = None,
        read: float | None = None,
    ) -> Iterator[httpx.Response]:
        """Yield the response before its body is read. Network errors become the errors of core/errors.py."""
        times, all_headers = self._times, self._client.headers
        if headers:
            all_headers = httpx.Headers(all_headers)
            all_headers.update(headers)
        limits = {"connect": times.connect, "read": read or times.read, "write": times.write, "pool": times.total}
        with self._translated():
            url = self.base + path
            request = httpx.Request(method, url, headers=all_headers, content=content, extensions={"timeout": limits})
            with within(times.total + (read or 0.0) + _length(request.headers) / SLOWEST):
                response = exchange(self._client, request)
            with closing(response), within(times.total + _length(response.headers) / SLOWEST):
                yield response

    def call(
        self,
        method: str,
        path: str,
        target: Target,
        *,
        body: Any = None,
        headers: Mapping[str, str] | None = None,
        content: Content | None = None,
        accept: Collection[int] = (),
    ) -> Answer:
        """Send one request and return the whole response.

        Raises an error for every error status that is not in `accept`.
        """
        if body is not None:
            headers, content = {**(headers or {}), "Content-Type": "application/json"}, json.dumps(body).encode()
        moves = content is not None and body is None
        with (
            nullcontext() if moves else within(self._times.total),
            self.stream(
                method, path, headers=headers, content=content, read=self._times.stored if moves else None
            ) as response,
        ):
            answer = self.read(response)
        if answer.status in accept or response.is_success:
            return answer
        raise self.refused(answer, target)

    def read(self, response: httpx.Response) -> Answer:
        return Answer(status=response.status_code, headers=response.headers, body=b"".join(response.iter_raw()))

    def refused(self, answer: Answer, target: Target) -> TrainerError:
        """Return the error for an error response. Most responses have status 400 and the real status in the body."""
        status, code, message = _reading(answer)
        said = f"storage at {self.host} answered {status}: {self._clean(message) or 'no reason given'}"
        if status >= 500 or status < 400 or status in TRANSIENT:
            return Unavailable(said, retry_after=retry_after_seconds(answer.headers.get("Retry-After")))
        if status in (401, 403) or code in ("InvalidJWT", "AccessDenied", "Unauthorized", "InvalidSignature"):
            return Misconfigured(
                f"{said}; the Supabase key is wrong, or its role has no permission for this: check the key"
            )
        where = f"bucket {target.bucket!r}"
        if status == 404:
            return _not_found(code, message, target, said)
        if status == 413:
            return TooLarge(f"{target.key!r} ({target.bytes / 1e6:.1f} MB) is larger than {where} allows")
        if status == 415:
            return Misconfigured(f"{where} rejects the type of {target.key!r}: extend its allowed MIME types ({said})")
        if code == "InvalidKey" or message.startswith("Invalid key"):
            return BadRequest(f"storage rejects the object name {target.key!r}: rename it")
        return Misconfigured(f"{said} (about {target.key!r} in {where})")

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except (httpx.InvalidURL, httpx.UnsupportedProtocol):
            raise Misconfigured(f"{self.host!r} is not a valid host: check the Supabase URL") from None
        except httpx.HTTPError as error:
            reason = self._clean(str(error)) or "no answer"
            # not chained: an error about a header quotes the header, and one header contains the key
            raise Unavailable(f"storage at {self.host} failed: {type(error).__name__}, {reason}") from None

    def _clean(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, "…")
        return _TOKEN.sub(r"\1…", " ".join(text.split()))[:200]


def object_path(route: str, bucket: str, key: str) -> str:
    """Return the URL path of an object. The key must not have `.` or `..` segments, which clients would resolve."""
    return f"/{route}/{quote(bucket, safe='')}/{quote(key)}"


def _reading(answer: Answer) -> tuple[int, str, str]:
    """Return status, code and message of an error response: JSON in any form, plain text, or a web page."""
    try:
        body = json.loads(answer.body)
    except (ValueError, RecursionError):
        text = answer.body[:1000].decode("utf-8", "replace").strip()
        return answer.status, "Page" if text.startswith("<") else "", "a web page" if text.startswith("<") else text
    if not isinstance(body, dict):
        return answer.status, "", ""
    inner = str(body.get("statusCode", ""))
    status = int(inner) if _STATUS.fullmatch(inner) else answer.status
    code = str(body.get("code") or body.get("error") or "")
    if "statusCode" not in body and "error" not in body and "code" not in body:
        code = "Gateway"
    return status, code, str(body.get("message") or body.get("msg") or body.get("error") or "")


def _not_found(code: str, message: str, target: Target, said: str) -> TrainerError:
    if code in ("Page", "Gateway", "Not Found") or message.startswith("Route "):
        return NoSuchRoute(f"{said}; there is no Storage API: check the Supabase URL")
    if code == "NoSuchBucket" or "bucket" in message.lower():
        if target.writing:
            return Misconfigured(f"bucket {target.bucket!r} does not exist: create it, or apply the migrations")
        return ObjectMissing(f"bucket {target.bucket!r} does not exist, or this key cannot access it")
    return ObjectMissing(
        f"object {target.key!r} does not exist in bucket {target.bucket!r}, or this key cannot access it",
    )


def _length(headers: Mapping[str, str]) -> int:
    """Return the Content-Length, or 0."""
    length = headers.get("Content-Length", "")
    return int(length) if length.isdecimal() and len(length) < 20 else 0
