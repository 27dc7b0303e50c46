"""The fields of a response, checked when they are read.

A login page, a proxy or another server may answer with status 200 and any content. A missing or wrong field raises
`Unavailable`, because another try may reach the right server.
"""

from __future__ import annotations

from typing import Any, NoReturn, TypeVar

from trainer.core.errors import Unavailable
from trainer.core.job import JsonObject

T = TypeVar("T")

_LONGEST_NUMBER = 18  # digits of a size; Python does not parse numbers of thousands of digits


def mapping(value: Any, what: str) -> JsonObject:
    """Return the value if it is a JSON object."""
    return value if isinstance(value, dict) else _refuse(what)


def sequence(value: Any, what: str) -> list[Any]:
    """Return the value if it is a JSON array."""
    return value if isinstance(value, list) else _refuse(what)


def text(answer: Any, name: str) -> str:
    """Return the field `name`, which must be a non-empty string."""
    return _field(answer, name, str) or _refuse(name)


def flag(answer: Any, name: str) -> bool:
    """Return the field `name`, which must be true or false."""
    return _field(answer, name, bool)


def amount(answer: Any, name: str) -> int:
    """Return the field `name`, which must be a whole number of at least 0."""
    value = _field(answer, name, int)
    return value if not isinstance(value, bool) and value >= 0 else _refuse(name)


def number_in(header: str, what: str) -> int:
    """Return the number in a header."""
    usable = header.isascii() and header.isdecimal() and len(header) <= _LONGEST_NUMBER
    return int(header) if usable else _refuse(what)


def retry_after_seconds(header: str | None) -> float | None:
    """Return the seconds in a Retry-After header; None for a missing header and for a date."""
    try:
        return max(0.0, float(header)) if header else None
    except ValueError:
        return None


def _field(answer: Any, name: str, kind: type[T]) -> T:
    value = mapping(answer, name).get(name)
    return value if isinstance(value, kind) else _refuse(name)


def _refuse(what: str) -> NoReturn:
    raise Unavailable(
        f"storage answered without a valid {what!r}; look for a proxy or a login page between this host and the server"
    )
