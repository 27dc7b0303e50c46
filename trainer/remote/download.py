"""Download a file from a trusted URL. For URLs that come from a request, use web.py."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import httpx

from trainer.core.errors import BadRequest, ObjectMissing, Unavailable
from trainer.core.stop import StopSignal
from trainer.remote.stoppable import stoppable, stoppable_client, within

_TIMEOUT = httpx.Timeout(30.0, connect=10.0)
_PLAIN = {"Accept-Encoding": "identity"}  # so that Content-Length is the size of the file
_BLOCK = 1 << 20
HEAD_SECONDS = 60.0  # time limit until the first byte of the body, including redirects
BODY_SECONDS = 6 * 3600.0


def download(url: str, path: Path, stop: StopSignal, *, largest: int) -> None:
    """Stream the file to `path`. The file must have the size that the server states, and at most `largest` bytes.

    Raises ObjectMissing, BadRequest (too large), Unavailable (no connection, interrupted, rejected), Stopped.
    """
    name = url.rpartition("/")[2]
    try:
        with stoppable(stop), _client() as client:
            with within(HEAD_SECONDS):
                response = client.send(client.build_request("GET", url), stream=True)
            with closing(response), within(BODY_SECONDS):
                _require_ok(response, name)
                with path.open("wb") as out:
                    for block in response.iter_bytes(_BLOCK):
                        stop.raise_if_set()
                        out.write(block)
                        if out.tell() > largest:
                            raise BadRequest(f"{name} cannot be downloaded: it is larger than {largest} bytes")
            length = response.headers.get("content-length")
    except (httpx.ConnectError, httpx.ConnectTimeout, httpx.ProxyError) as error:
        raise Unavailable(f"there is no connection to {httpx.URL(url).host}") from error
    except httpx.HTTPError as error:
        raise Unavailable(f"the download of {name} was interrupted ({type(error).__name__})") from error
    if length and path.stat().st_size != int(length):
        raise Unavailable(f"the download of {name} is incomplete")


def _client() -> httpx.Client:
    return stoppable_client(headers=_PLAIN, follow_redirects=True, timeout=_TIMEOUT)


def _require_ok(response: httpx.Response, name: str) -> None:
    if response.is_success:
        return
    if response.status_code in {404, 410}:
        raise ObjectMissing(f"{name} cannot be downloaded: the server answers {response.status_code}")
    # the URL is trusted, so any other error status comes from a limit, a proxy or a server error, and is temporary
    raise Unavailable(f"the server of {name} answers {response.status_code}")
