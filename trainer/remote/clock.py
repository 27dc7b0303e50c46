"""The difference between the clocks of this host and of a server."""

from __future__ import annotations

import time
from email.utils import parsedate_to_datetime

import httpx

from trainer.core.errors import Unavailable
from trainer.remote.stoppable import stoppable_client, within

SECONDS = 10.0  # time limit of the whole request


def clock_skew(url: str) -> float:
    """Return the seconds by which this host's clock is ahead of the server's Date header (whole seconds).

    Raises Unavailable when the server does not answer or sends no date.
    """
    host = httpx.URL(url).host
    try:
        with within(SECONDS), stoppable_client(timeout=SECONDS) as client:
            answer = client.head(url)
    except httpx.HTTPError as error:
        raise Unavailable(f"{host} does not answer ({type(error).__name__})") from error
    try:
        date = parsedate_to_datetime(answer.headers.get("date", ""))
    except ValueError:
        raise Unavailable(f"{host} sends no valid Date header") from None
    return time.time() - date.timestamp()
