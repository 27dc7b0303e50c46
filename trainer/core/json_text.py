"""JSON that somebody else wrote, read within bounds. `trainer.guard_request` in supabase/migrations/ has the same bounds."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping

from trainer.core.job import Json

LONGEST = 1_000_000  # characters; a split that names each of 20,000 images fits
DEEPEST = 32  # levels of nesting; the deepest setting that is understood has 5
LONGEST_NUMBER = 400  # characters; every double that a database prints without an exponent fits

TOO_DEEP = f"nested deeper than {DEEPEST} levels; send the settings only"


def json_from_text(text: str, *, longest: int = LONGEST) -> Json:
    """The JSON value in a text.

    Raises ValueError with a sentence for what is not JSON, for numbers that JSON or a database cannot hold (NaN, Infinity,
    1e999, thousands of digits), and for text that is too long or nested too deep.
    """
    if len(text) > longest:
        raise ValueError(f"longer than {longest} characters; send the settings only")
    try:
        value = json.loads(text, parse_constant=_finite, parse_float=_finite, parse_int=_finite_whole)
    except RecursionError:
        raise ValueError(TOO_DEEP) from None
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON ({error})") from None
    if is_too_deep(value):
        raise ValueError(TOO_DEEP)
    return value


def is_too_deep(value: Json) -> bool:
    """Whether a value is nested deeper than 32 levels; looks no deeper than that."""
    level = [value]
    for _ in range(DEEPEST):
        inner = [item.values() if isinstance(item, Mapping) else item for item in level if _is_container(item)]
        level = [item for items in inner for item in items]
    return any(map(_is_container, level))


def _is_container(value: Json) -> bool:
    return isinstance(value, Mapping | list | tuple)


def _finite(text: str) -> float:
    if len(text) > LONGEST_NUMBER:
        raise ValueError(f"{text[:20]} is not a number that can be stored; it has more than {LONGEST_NUMBER} digits")
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:20]} is not a number that can be stored; leave the setting out for its default")
    return number


def _finite_whole(text: str) -> int:
    _finite(text)  # first: Python refuses to read an int of thousands of digits
    return int(text)
