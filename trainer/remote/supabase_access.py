"""The URL and the keys of a Supabase project as an operator entered them."""

from __future__ import annotations

import base64
import json
from urllib.parse import urlsplit

from trainer.core.errors import Misconfigured

USE_KEY = (
    "set SUPABASE_SERVICE_ROLE_KEY to the project's secret or service_role key, or to a JWT of the role trainer_worker"
)


def checked_url(url: str) -> str:
    """Return the project's base URL without a trailing slash. Raises `Misconfigured`."""
    text = url.strip().rstrip("/").removesuffix("/rest/v1")
    try:
        parts = urlsplit(text)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        usable = False
    if not usable or any(character.isspace() for character in text):
        raise Misconfigured("SUPABASE_URL must be the project's URL, such as https://abcdefgh.supabase.co.")
    return text


def checked_key(key: str) -> str:
    """Return the key if it can be sent in a header. Raises `Misconfigured` without quoting the key."""
    text = key.strip()
    if not text or not all("!" <= character <= "~" for character in text):
        raise Misconfigured(f"The Supabase key is empty or contains invalid characters: {USE_KEY}.")
    return text


def role_of(key: str) -> str | None:
    """Return the database role in a key, without verifying the key; None for an unknown role."""
    if key.startswith("sb_secret_"):
        return "service_role"
    if key.startswith("sb_publishable_"):
        return "anon"
    return _claim(key, "role")


def worker_of(key: str) -> str | None:
    """Return the `worker_id` in a key, without verifying the key; None if the key serves all workers."""
    return _claim(key, "worker_id")


def _claim(key: str, name: str) -> str | None:
    try:
        payload = key.split(".")[1]
        claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    except (IndexError, ValueError):
        return None
    value = claims.get(name) if isinstance(claims, dict) else None
    return value if isinstance(value, str) else None
