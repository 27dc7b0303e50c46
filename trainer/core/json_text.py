"""Parse untrusted JSON with limits. `trainer.guard_request` in supabase/migrations/ has the same limits."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping

from trainer.core.job import Json

LONGEST = 65_536  # characters; enough for a split that names 1,500 images
DEEPEST = 32  # levels of nesting; the deepest valid setting has 5
LONGEST_NUMBER = 400  # characters; enough for every double without an exponent

_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")

TOO_LONG = "send the settings only, and define the split of many images in the dataset"
TOO_DEEP = f"nested deeper than {DEEPEST} levels; send the settings only"


def json_from_text(text: str, *, longest: int = LONGEST) -> Json:
    """Return the JSON value of a text.

    Raises ValueError if the text is not JSON, is too long or is nested too deeply. Also raises ValueError for a number
    that cannot be stored (NaN, Infinity, 1e999, thousands of digits).
    """
    if len(text) > longest:
        raise ValueError(f"longer than {longest} characters; {TOO_LONG}")
    try:
        value = json.loads(text, parse_constant=_finite, parse_float=_finite, parse_int=_finite_whole)
    except RecursionError:
        raise ValueError(TOO_DEEP) from None
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON ({error})") from None
    if is_too_deep(value):
        raise ValueError(TOO_DEEP)
    return value


def storable(text: str) -> str:
    """Return the text with U+FFFD for NUL and lone surrogates, which PostgreSQL cannot store."""
    return _UNSTORABLE.sub("\ufffd", text)


def is_too_deep(value: Json) -> bool:
    """Return whether a value is nested deeper than 32 levels. Deeper levels are not read."""
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
        raise ValueError(f"{text[:20]} is not a number that can be stored; remove the setting to use its default")
    return number


def _finite_whole(text: str) -> int:
    _finite(text)  # checked first, because Python cannot parse an int with thousands of digits
    return int(text)
