"""File names as object keys: the object store takes a subset of ASCII, a file system takes nearly anything."""

from __future__ import annotations

import re
from urllib.parse import quote_from_bytes

# what Supabase Storage takes besides letters, digits, `_` and `/`; `=` is left out because it starts an escape
_TAKEN = "!-.*'() &@;:+,?/_"
_ESCAPE = re.compile(r"=([0-9A-F]{2})")


def storage_key(name: str) -> str:
    """The key under which a file called `name` (a relative path with `/`) is stored; ordinary names stay as they are.

    Every byte (UTF-8) that Storage refuses becomes `=XX`. `.` and `..` segments lose their meaning. Reversible:
    `local_name(storage_key(name)) == name`.
    """
    return "/".join(_segment(segment) for segment in name.split("/"))


def local_name(key: str) -> str:
    """The file name that `storage_key` turned into `key`."""
    raw = _ESCAPE.sub(lambda match: chr(int(match[1], 16)), key)
    return raw.encode("latin-1").decode("utf-8", "surrogateescape")


def _segment(segment: str) -> str:
    if segment in (".", ".."):
        return "=2E" * len(segment)
    # a `=` that cannot be taken for an escape stays, so that names like `lr=0.01.png` are stored as they are
    return "=".join(
        ("3D" if index and re.match("[0-9A-F]{2}", part) else "") + _bytes(part)
        for index, part in enumerate(segment.split("="))
    )


def _bytes(part: str) -> str:
    return quote_from_bytes(part.encode("utf-8", "surrogateescape"), safe=_TAKEN).replace("~", "%7E").replace("%", "=")
