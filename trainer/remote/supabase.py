"""Tables and functions of a Supabase project through supabase-py, with time limits and our own errors.

Only this module uses the `supabase` package. The package is imported when a project is opened, because its import takes
half a second. The client gets its own HTTP/1.1 connection pool: the default pool loses calls when several threads use it.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import urlsplit

import httpx

from trainer.core.errors import Misconfigured, Refused, TrainerError, Unavailable
from trainer.core.job import Json, JsonObject
from trainer.remote.answers import retry_after_seconds
from trainer.remote.stoppable import stoppable_client, within
from trainer.remote.supabase_access import USE_KEY, checked_key, checked_url, role_of

if TYPE_CHECKING:
    from supabase import Client

MIGRATE = "apply the migrations in supabase/migrations/ to this project"

# codes of PostgREST and SQLSTATEs; a class is the first two characters of a SQLSTATE
_SCHEMA_CODES = frozenset({"PGRST202", "PGRST204", "PGRST205", "42883", "42P01", "42703"})
_KEY_CODES = frozenset({"PGRST300", "PGRST301", "PGRST302", "PGRST303", "42501", "22023"})
_TRANSIENT_CODES = frozenset({"", "PGRST000", "PGRST001", "PGRST002", "PGRST003", "PGRSTX00"})
_TRANSIENT_CLASSES = frozenset({"08", "40", "53", "55", "57", "58"})
_TRANSIENT_STATUSES = frozenset({408, 425, 429})
# a value is out of range; a constraint is violated; a limit is exceeded; a trigger raised an exception
_REFUSAL_CLASSES = frozenset({"22", "23", "54", "P0"})
_TOO_LARGE_STATUS = 413
# the key has an unknown role. Other errors with this code come from a value; PTxxx: a rule of the app chose the status xxx
_MISSING_ROLE = re.compile('role "[^"]*" does not exist')


@dataclass(frozen=True, kw_only=True)
class CallLimits:
    """Time limits of one call in seconds: to connect, between two bytes, and in total."""

    connect: float = 5.0
    read: float = 15.0
    total: float = 30.0


LARGEST_ANSWER = 4 * 2**20  # bytes; a configuration has at most 1 MB, or 2 MB when quoted


class Unreadable(Unavailable):
    """The server processed the call, but its response cannot be read: too large, or not the API's JSON."""


class TooLarge(Unreadable):
    """The response exceeds the size limit."""


class Project:
    """One Supabase project, accessed with one key; thread-safe. Close it, or use it in a `with` statement.

    `apikey` is the anon key for the gateway when `key` is the token of a restricted role.
    """

    def __init__(self, url: str, key: str, limits: CallLimits = CallLimits(), *, apikey: str | None = None) -> None:
        self.url = checked_url(url)
        self.host = urlsplit(self.url).netloc.rpartition("@")[2]
        self.role = role_of(key)
        self._key = checked_key(key)
        self._apikey = checked_key(apikey or key)
        self._limits = limits
        self._call = threading.local()  # .response and .largest of the current call of each thread
        self._http = stoppable_client(
            headers={"Accept-Encoding": "identity"},  # so that the size limit applies to the unpacked response
            follow_redirects=True,
            timeout=httpx.Timeout(limits.read, connect=limits.connect, pool=limits.total),
            limits=httpx.Limits(max_connections=64, max_keepalive_connections=16, keepalive_expiry=60.0),
            event_hooks={"response": [self._bound]},
        )
        self._client = self._open()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    def call(self, function: str, arguments: JsonObject | None = None, *, select: str | None = None) -> Json:
        """Return the answer of a database function. Raises `Unavailable` or `Misconfigured`."""
        return self.execute(self.function(function, arguments or {}, select=select))

    def function(self, name: str, arguments: JsonObject, *, select: str | None = None) -> Any:
        """Return a call of a database function for `execute` or `rows`. `select` names the returned columns."""
        query = self._client.rpc(name, arguments)
        return query if select is None else query.select(select)

    def table(self, name: str) -> Any:
        """Return a query on a table for `execute` or `rows`."""
        return self._client.table(name)

    def rows(self, query: Any, largest: int = LARGEST_ANSWER) -> list[JsonObject]:
        """Return the rows of a query."""
        data = self.execute(query, largest)
        if not isinstance(data, list) or not all(isinstance(row, dict) for row in data):
            raise self.not_json()
        return data

    def execute(self, query: Any, largest: int = LARGEST_ANSWER) -> Json:
        """Send a query once and return its answer of at most `largest` bytes. Every failure becomes one of our errors."""
        from postgrest.exceptions import APIError

        self._call.response, self._call.largest = None, largest
        try:
            with within(self._limits.total):
                data = query.execute().data
        except _Overflow:
            raise TooLarge(f"{self.host} answered with more than {largest >> 20} MiB") from None
        except (APIError, *HTTP_ERRORS, ValueError, RecursionError) as error:
            if self._is_success() and not isinstance(error, httpx.HTTPError):
                raise self.not_json() from None
            raise self._translated(error) from None  # the cause may quote the header with the key
        if self._is_success() and not self._call.response.content and self._call.response.status_code != 204:
            raise self.not_json()  # the library would return an empty list
        return data

    def _is_success(self) -> bool:
        response: httpx.Response | None = self._call.response
        return response is not None and response.is_success

    def not_json(self) -> Unreadable:
        """Return the error for a response that is not from a Supabase project."""
        return Unreadable(
            f"{self.host} did not answer with the JSON of the Supabase API: check SUPABASE_URL, "
            "and look for a proxy or a login page between this host and the server.",
        )

    def _open(self) -> Client:
        from supabase.lib.client_options import SyncClientOptions

        from supabase import create_client

        options = SyncClientOptions(
            httpx_client=self._http,
            auto_refresh_token=False,
            persist_session=False,
            headers={"Authorization": f"Bearer {self._key}"},
            postgrest_client_retry=False,  # the library would sleep 7 s during a heartbeat
        )
        client = create_client(self.url, self._apikey, options)
        _ = client.postgrest  # created now: the property is not thread-safe
        return client

    def _bound(self, response: httpx.Response) -> None:
        self._call.response = response
        assert isinstance(response.stream, httpx.SyncByteStream)
        response.stream = _Bounded(response.stream, self._call.largest)

    def _translated(self, error: Exception) -> TrainerError:
        found = translated(error, self.host, self.role, self._call.response)
        if self._key in str(found):  # a proxy may echo the request
            return type(found)(f"{self.host} rejected a call and quoted the key in its answer.")
        return found


class _Overflow(ValueError):
    pass


class _Bounded(httpx.SyncByteStream):
    """A response body of at most `largest` bytes."""

    def __init__(self, stream: httpx.SyncByteStream, largest: int) -> None:
        self._stream = stream
        self._largest = largest

    def __iter__(self) -> Iterator[bytes]:
        size = 0
        for chunk in self._stream:
            size += len(chunk)
            if size > self._largest:
                raise _Overflow
            yield chunk

    def close(self) -> None:
        self._stream.close()


HTTP_ERRORS = (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError, httpx.CookieConflict)


def translated(
    error: Exception, host: str, role: str | None = None, response: httpx.Response | None = None
) -> TrainerError:
    """Return our error for an error of supabase-py or httpx; `Unavailable` for an unknown error."""
    from postgrest.exceptions import APIError

    status = response.status_code if response else 0
    retry_after = retry_after_seconds(response.headers.get("Retry-After")) if response else None
    if isinstance(error, APIError):
        return _refusal(error.code, error.message or "", host, role, status, retry_after)
    if isinstance(error, httpx.UnsupportedProtocol | httpx.InvalidURL | httpx.TooManyRedirects):
        return Misconfigured(f"{host} cannot be contacted ({_words(error)}): check SUPABASE_URL.")
    return Unavailable(f"Supabase at {host} does not answer: {_reason(error)}.", retry_after=retry_after)


def _refusal(
    code: str | None, message: str, host: str, role: str | None, status: int, retry_after: float | None
) -> TrainerError:
    """Return the error for a response. If the response is not JSON, the library puts the HTTP status into `code`."""
    if code is not None and code.isdecimal() and len(code) == 3:
        status, code = status or int(code), None
    sqlstate_class = code[:2] if code is not None and len(code) == 5 else None
    said = " ".join(part for part in (str(status or ""), code or "", message.strip()[:300]) if part) or "an empty error"
    # PostgREST answers 400 with an empty code when the database has just closed the connection
    if code in _TRANSIENT_CODES or sqlstate_class in _TRANSIENT_CLASSES:
        return Unavailable(f"Supabase at {host} is not available now ({said}).", retry_after=retry_after)
    if code in _SCHEMA_CODES:
        return Misconfigured(f"The database at {host} lacks parts of the trainer's schema ({said}): {MIGRATE}.")
    is_of_rule = sqlstate_class == "PT" or (code == "22023" and not _MISSING_ROLE.fullmatch(message))
    if not is_of_rule and (code in _KEY_CODES or status in (401, 403)):
        kind = f"; its role is {role}" if role else ""
        return Misconfigured(f"Supabase at {host} rejects the key ({said}{kind}): {USE_KEY}.")
    is_invalid = code is not None and code.startswith("PGRST1")  # PostgREST cannot read the request
    if is_of_rule or sqlstate_class in _REFUSAL_CLASSES or is_invalid or status == _TOO_LARGE_STATUS:
        return Refused(f"Supabase at {host} refuses a value of the call ({said}): check the rules of the table.")
    if status in _TRANSIENT_STATUSES or status >= 500:
        return Unavailable(f"Supabase at {host} is not available now ({said}).", retry_after=retry_after)
    if code is None:
        return Misconfigured(f"{host} does not answer like a Supabase project ({said}): check SUPABASE_URL.")
    return Misconfigured(f"Supabase at {host} rejects the call ({said}): {MIGRATE}, and check the trainer's version.")


def _reason(error: Exception) -> str:
    if isinstance(error, httpx.ConnectTimeout):
        return "no connection within the time limit"
    if isinstance(error, httpx.TimeoutException):
        return "no answer within the time limit"
    if isinstance(error, httpx.ConnectError):
        return _words(error)
    if isinstance(error, ValueError):
        return (
            "its answer cannot be read; check SUPABASE_URL, and look for a proxy or a login page between this host and "
            "the server"
        )
    return f"the connection failed ({type(error).__name__})"


def _words(error: Exception) -> str:
    text = str(error).strip().rstrip(".") or type(error).__name__
    if "getaddrinfo" in text or "not known" in text or "name resolution" in text:
        return f"its name cannot be resolved ({text}); check SUPABASE_URL and the DNS"
    return text
