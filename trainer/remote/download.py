"""A file from an address that we chose ourselves; addresses that strangers chose go through web.py."""

from __future__ import annotations

from pathlib import Path

import httpx

from trainer.core.errors import BadRequest, Unavailable
from trainer.core.stop import StopSignal
from trainer.remote.stoppable import make_stoppable, stoppable

_TIMEOUT = httpx.Timeout(30.0, connect=10.0)
_PLAIN = {"Accept-Encoding": "identity"}  # so that the length is that of the file
_BLOCK = 1 << 20


class NoConnection(Unavailable):
    """No connection at all: the host may have no way out, and then trying longer will not open one."""


def download(url: str, path: Path, stop: StopSignal, *, largest: int) -> None:
    """Stream the file to `path`, as long as the server said and at most `largest` bytes.

    Raises BadRequest (refused, too large), Unavailable (broke off, overloaded), NoConnection, Stopped.
    """
    name = url.rpartition("/")[2]
    try:
        with stoppable(stop), _client() as client, client.stream("GET", url) as response:
            _require_ok(response, name)
            with path.open("wb") as out:
                for block in response.iter_bytes(_BLOCK):
                    stop.raise_if_set()
                    out.write(block)
                    if out.tell() > largest:
                        raise BadRequest(f"{name} cannot be downloaded: it is larger than {largest} bytes")
            length = response.headers.get("content-length")
    except (httpx.ConnectError, httpx.ConnectTimeout, httpx.ProxyError) as error:
        raise NoConnection(f"no connection to {httpx.URL(url).host}") from error
    except httpx.HTTPError as error:
        raise Unavailable(f"the download of {name} broke off ({type(error).__name__})") from error
    if length and path.stat().st_size != int(length):
        raise Unavailable(f"the download of {name} arrived incomplete")


def _client() -> httpx.Client:
    return make_stoppable(httpx.Client(headers=_PLAIN, follow_redirects=True, timeout=_TIMEOUT))


def _require_ok(response: httpx.Response, name: str) -> None:
    if response.is_success:
        return
    if response.status_code in {408, 429} or response.status_code >= 500:
        raise Unavailable(f"the server of {name} answers {response.status_code}")
    raise BadRequest(f"{name} cannot be downloaded: the server answers {response.status_code}")
