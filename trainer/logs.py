"""Format the log lines of the service: colored for a terminal, with priorities for journald, or as JSON objects.

Secrets are removed from every line, because messages of libraries and servers can contain secrets.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Iterable, MutableMapping
from contextlib import suppress
from typing import Any, TextIO, cast

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from trainer.core.text import escaped, one_line, safe_json

# sd-daemon(3): a line that starts with <N> has syslog priority N
PRIORITIES = {"debug": 7, "info": 6, "warning": 4, "error": 3, "exception": 3, "critical": 2}

# JSON web tokens (also inside signed URLs) and keys in the format of Supabase
SECRET = re.compile(r"eyJ[\w-]{6,}\.[\w-]+\.[\w-]*|sb_secret_[\w-]+")


def configure_logging(form: str, level: str, secrets: Iterable[str] = (), stream: Any = None) -> None:
    """Configure structlog for this process. `form` is console (or auto), json or journal.

    `secrets` are removed from all lines.
    """
    stream = stream or sys.stderr
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            _run_labels,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            Censor(secrets),
            _escape_names_and_exceptions,
            *_renderers(form, colors=stream.isatty()),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelName(level)),
        logger_factory=structlog.PrintLoggerFactory(cast("TextIO", Unfailing(stream))),
        cache_logger_on_first_use=False,
    )


def _run_labels(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    """Add the labels in `run` (ID, attempt and phase), which change while a logger is bound."""
    return {**event.pop("run", {}), **event}


def _renderers(form: str, *, colors: bool) -> list[Processor]:
    if form == "json":
        return [structlog.processors.JSONRenderer(serializer=safe_json, default=str)]
    if form == "journal":
        return [_plain_line]
    return [_escape_control_characters, structlog.dev.ConsoleRenderer(colors=colors, pad_event_to=0)]


def _escape_names_and_exceptions(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    """Escape control characters in the names of fields and in exceptions, which can contain text of a row or a dataset.

    An exception is indented, so that no line of it looks like another log line.
    """
    event = {one_line(name): value for name, value in event.items()}
    if isinstance(trace := event.get("exception"), str):
        event["exception"] = "\n".join(f"    {line}" for line in escaped(trace).split("\n"))
    return event


def _escape_control_characters(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    """Escape control characters in fields: a row can contain any name, and a terminal interprets control characters."""
    is_raw = {name for name, value in event.items() if isinstance(value, str) and not value.isprintable()}
    return {name: safe_json(value) if name in is_raw - {"exception"} else value for name, value in event.items()}


def _plain_line(_: WrappedLogger, method: str, event: EventDict) -> str:
    """Return the line with its priority, but without the time, because journald adds the time."""
    event.pop("timestamp", None)
    level = event.pop("level", method)
    text = event.pop("event", "")
    fields = " ".join(f"{name}={_quoted(value)}" for name, value in event.items() if name != "exception")
    trace = "\n" + event["exception"] if "exception" in event else ""
    prefix = f"<{PRIORITIES.get(level, 6)}>"
    return "\n".join(prefix + line for line in f"{text} {fields}{trace}".rstrip().splitlines())


def _quoted(value: object) -> str:
    """Return the value as text, in quotes if it could look like another field or line: a row can contain any name."""
    text = str(value)
    is_plain = text.isprintable() and text and not any(mark in text for mark in ' "=')
    return text if is_plain else safe_json(text, ensure_ascii=not text.isprintable())


class Unfailing:
    """A stream that ignores errors: a full disk or a broken pipe must not end a run or the service."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> None:
        with suppress(OSError):
            self._stream.write(text)

    def flush(self) -> None:
        with suppress(OSError):
            self._stream.flush()


class Censor:
    """Replaces secrets in every string of a log line, also in nested values."""

    def __init__(self, secrets: Iterable[str]) -> None:
        self._known = [secret for secret in secrets if secret]

    def __call__(self, _: WrappedLogger, __: str, event: EventDict) -> EventDict:
        return {name: self.clean(value) for name, value in event.items()}

    def clean(self, value: Any) -> Any:
        if isinstance(value, str):
            for secret in self._known:
                value = value.replace(secret, "***")
            return SECRET.sub("***", value)
        if isinstance(value, MutableMapping):
            return {name: self.clean(item) for name, item in value.items()}
        if isinstance(value, list | tuple):
            return [self.clean(item) for item in value]
        return value
