"""Untrusted text for messages: one line, printable, short, without secrets."""

from __future__ import annotations

import json
import re
from typing import Any

# Characters that move the cursor, change the color or the direction of the text, or start another line: control
# characters (C0 except tab and newline, DEL, C1), line separators, bidirectional overrides and isolates, surrogates.
CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_MOST_READ = 1000  # characters of a value that are processed; the others are omitted
_URL = re.compile(r"[^/\s?#@]{1,40}://")


def escaped(text: str) -> str:
    """Return the text with visible escapes instead of `CONTROLS`. Tabs and newlines are kept."""
    return CONTROLS.sub(_escape, text)


def one_line(text: str) -> str:
    """Return the text with visible escapes instead of newlines and `CONTROLS`, so that it stays one line."""
    return escaped(text).replace("\n", "\\n")


def safe_json(value: object, **options: Any) -> str:
    """Return the value as JSON for a terminal: `CONTROLS` are escaped as in JSON. `options` are those of json.dumps."""
    return CONTROLS.sub(lambda found: f"\\u{ord(found.group()):04x}", json.dumps(value, **options))


def _escape(found: re.Match[str]) -> str:
    code = ord(found.group())
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def shown(value: object, longest: int = 100) -> str:
    """Return a value for a message, without the secrets of URLs. Text is quoted."""
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > 200:
        return "a number of more than 60 digits"
    if isinstance(value, list | tuple | dict):
        text = json.dumps(value, default=str)[:_MOST_READ] if _is_small(value) else f"a {type(value).__name__}"
    else:
        text = repr(shown_url(value)[:_MOST_READ] if isinstance(value, str) else value)
    text = re.sub(r"//[^/@\s]{1,1000}@", "//…@", text)
    text = re.sub(r"(\w{1,12}://[^\s?]{0,1000})\?[^'\"\s]{0,1000}", r"\1?…", text)
    return _shortened(text, longest)


def printable(text: str, longest: int = 120) -> str:
    """Return text for a message, without quotes and without the secrets of a URL."""
    clean = "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in shown_url(text)[:_MOST_READ])
    return _shortened(clean, longest)


def shown_url(text: str) -> str:
    """Return a URL without user, password, query and fragment, which may be secrets. Other text is not changed."""
    if not _URL.match(text):
        return text
    scheme, _, rest = text.partition("://")
    authority, slash, path = rest.split("?", 1)[0].split("#", 1)[0].partition("/")
    return f"{scheme}://{authority.rpartition('@')[2]}{slash}{path}"


def _shortened(text: str, longest: int) -> str:
    return text if len(text) <= longest else f"{text[: longest - 21]}…{text[-20:]}"


def _is_small(value: object, depth: int = 4) -> bool:
    """Return whether the value is small enough for a message."""
    if isinstance(value, dict):
        value = [*value, *value.values()]
    if isinstance(value, list | tuple):
        return depth > 0 and len(value) <= 100 and all(_is_small(item, depth - 1) for item in value)
    return not (isinstance(value, int) and value.bit_length() > 200)
