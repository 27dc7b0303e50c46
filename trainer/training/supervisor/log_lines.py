"""Turns the bytes that a training process prints into the lines of its log."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator

from trainer.core.text import CONTROLS

LONGEST = 4000  # maximum number of bytes of a line in the log
_REDRAW_SECONDS = 1.0  # between two logged versions of a progress bar, which is redrawn ten times a second
_ESCAPES = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]|(?:\x1b\]|\x9d)[^\x07\x1b\x9c]*(?:\x07|\x1b\\|\x9c)|\x1b[@-Z\\-_]"
)
_SERVICE_LINE = re.compile(r"\[\d{4}-\d\d-\d\dT")  # the start of a line that the service writes into the log
_ENDS = re.compile(rb"\r?\n|\r")


class OutputLines:
    """Splits a stream of bytes into readable lines.

    A progress bar redraws a line with carriage returns. At most one version of such a line is returned per second, and
    always the last version, which ends with a newline. Colors and control characters are removed. Invalid UTF-8 is
    replaced. Lines longer than `LONGEST` are truncated. A line that looks like a line of the service is indented.
    """

    def __init__(self) -> None:
        self._pending = b""  # a carriage return that may be the first half of \r\n
        self._line = bytearray()
        self._cut = 0  # bytes of the current line beyond `LONGEST`
        self._redrawn_at = float("-inf")

    def feed(self, data: bytes) -> Iterator[str]:
        """Return the lines that `data` completes."""
        data = self._pending + data
        self._pending = data[-1:] if data.endswith(b"\r") else b""
        data = data.removesuffix(b"\r")
        start = 0
        for end in _ENDS.finditer(data):
            self._append(data[start : end.start()])
            start = end.end()
            yield from self._ended(redraw=end.group() == b"\r")
        self._append(data[start:])

    def close(self) -> Iterator[str]:
        """Return the last line if it had no line end."""
        if self._line:
            yield from self._ended(redraw=False)

    def _append(self, piece: bytes) -> None:
        free = LONGEST - len(self._line)
        self._line += piece[:free]
        self._cut += max(0, len(piece) - free)

    def _ended(self, *, redraw: bool) -> Iterator[str]:
        line, cut = self._line.decode("utf-8", "replace"), self._cut
        self._line.clear()
        self._cut = 0
        now = time.monotonic()
        if redraw and (not line or now - self._redrawn_at < _REDRAW_SECONDS):
            return
        self._redrawn_at = now if redraw else self._redrawn_at
        text = CONTROLS.sub("", _ESCAPES.sub("", line)).rstrip()
        yield ("    " if _SERVICE_LINE.match(text) else "") + text + (f" … ({cut} bytes more)" if cut else "")
