"""What time a server thinks it is."""

from __future__ import annotations

import time
from email.utils import parsedate_to_datetime

import httpx

from trainer.core.errors import Unavailable


def clock_skew(url: str) -> float:
    """Seconds by which this host's clock is ahead of the server's, from its Date header (whole seconds).

    Raises Unavailable when the server does not answer or sends no date.
    """
    host = httpx.URL(url).host
    try:
        answer = httpx.head(url, timeout=10)
    except httpx.HTTPError as error:
        raise Unavailable(f"{host} does not answer ({type(error).__name__})") from error
    try:
        date = parsedate_to_datetime(answer.headers.get("date", ""))
    except ValueError:
        raise Unavailable(f"{host} does not say what time it is") from None
    return time.time() - date.timestamp()
