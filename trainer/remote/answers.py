"""The fields of a JSON answer, checked where they are read.

A login page, a proxy or a server of another kind may answer anything with 200. Each function raises `Unavailable` for
what it cannot use: another try may reach the server that was meant.
"""

from __future__ import annotations

from typing import Any, NoReturn, TypeVar

from trainer.core.errors import Unavailable
from trainer.core.job import JsonObject

T = TypeVar("T")

_LONGEST_NUMBER = 18  # digits of a size; Python refuses to read numbers of thousands of digits


def mapping(value: Any, what: str) -> JsonObject:
    """The value if it is a JSON object."""
    return value if isinstance(value, dict) else _refuse(what)


def sequence(value: Any, what: str) -> list[Any]:
    """The value if it is a JSON array."""
    return value if isinstance(value, list) else _refuse(what)


def text(said: Any, name: str) -> str:
    """The field `name`, a string that is not empty."""
    return _field(said, name, str) or _refuse(name)


def flag(said: Any, name: str) -> bool:
    """The field `name`, true or false."""
    return _field(said, name, bool)


def amount(said: Any, name: str) -> int:
    """The field `name`, a whole number, not negative."""
    value = _field(said, name, int)
    return value if not isinstance(value, bool) and value >= 0 else _refuse(name)


def number_in(header: str, what: str) -> int:
    """The number that a header consists of."""
    usable = header.isascii() and header.isdecimal() and len(header) <= _LONGEST_NUMBER
    return int(header) if usable else _refuse(what)


def _field(said: Any, name: str, kind: type[T]) -> T:
    value = mapping(said, name).get(name)
    return value if isinstance(value, kind) else _refuse(name)


def _refuse(what: str) -> NoReturn:
    raise Unavailable(f"storage answered without a usable {what!r}: is a login page or a proxy in between?")
