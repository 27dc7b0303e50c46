"""The Retry-After header."""

from __future__ import annotations


def retry_after_seconds(header: str | None) -> float | None:
    """Return the wait that a server asked for, in seconds; None for a missing header and for a date."""
    try:
        return max(0.0, float(header)) if header else None
    except ValueError:
        return None
