"""File names as object keys: an escape for every byte that a store rejects. Supabase Storage accepts a subset of ASCII."""

from __future__ import annotations

import re
from urllib.parse import quote_from_bytes

# characters that Supabase Storage accepts besides letters and digits; without `=`, which starts an escape
_ACCEPTED = "!-.*'() &@;:+,?/_"
_ESCAPE = re.compile("=[0-9A-F]{2}")
KEY_ADVICE = "write the path without `.`, `..` and empty folder names, for example cats/1.jpg"


def escaped_key(name: str) -> str:
    """Return the key for a file called `name` (a relative path with `/`). Ordinary names are unchanged.

    Every byte (UTF-8) that Storage rejects becomes `=XX`. The dots of the segments `.` and `..` become `=2E`. Different
    names have different keys.
    """
    return "/".join(_segment(segment) for segment in name.split("/"))


def is_escaped(name: str) -> bool:
    """Return whether `name` looks like the result of `escaped_key`."""
    return _ESCAPE.search(name) is not None


def _segment(segment: str) -> str:
    if segment in (".", ".."):
        return "=2E" * len(segment)
    # a `=` that does not look like an escape is kept, so that names like `lr=0.01.png` are unchanged
    return "=".join(
        ("3D" if index and re.match("[0-9A-F]{2}", part) else "") + _bytes(part)
        for index, part in enumerate(segment.split("="))
    )


def _bytes(part: str) -> str:
    accepted = quote_from_bytes(part.encode("utf-8", "surrogateescape"), safe=_ACCEPTED)
    return accepted.replace("~", "%7E").replace("%", "=")
