"""Log lines have three formats (console, JSON, systemd journal) and contain no secrets."""

import contextlib
import io
import json
from pathlib import Path

import pytest
import structlog

from trainer.core.text import CONTROLS
from trainer.logs import configure_logging

TOKEN = "eyJhbGciOiJIUzI1NiJ9.eyJyb2xlIjoic2VydmljZV9yb2xlIn0.c2lnbmF0dXJl"


@pytest.fixture
def lines():
    stream = io.StringIO()

    def configured(form, level="INFO", secrets=()):
        configure_logging(form, level, secrets, stream)
        return structlog.get_logger(), stream

    yield configured
    structlog.reset_defaults()


def test_json_lines_contain_their_fields(lines):
    log, stream = lines("json")

    log.info("phase", phase="training", run_id="r1")

    line = json.loads(stream.getvalue())
    assert (line["event"], line["phase"], line["run_id"], line["level"]) == ("phase", "training", "r1", "info")
    assert line["timestamp"].endswith("Z")


@pytest.mark.parametrize(("level", "priority"), [("info", 6), ("warning", 4), ("error", 3)])
def test_systemd_journal_lines_have_priority_and_no_time(lines, level, priority):
    log, stream = lines("journal")

    getattr(log, level)("hello", a=1)

    assert stream.getvalue() == f"<{priority}>hello a=1\n"


@pytest.mark.parametrize(
    ("value", "written"),
    [
        ("cats", "cats"),
        (7.5, "7.5"),
        ("my cats", '"my cats"'),
        ("größe", "größe"),
        ("", '""'),
        ("a\n<3>host is unhealthy", '"a\\n<3>host is unhealthy"'),
        ("a\u2028b", '"a\\u2028b"'),
        ("\x1b[2J", '"\\u001b[2J"'),
        ("cats status=completed", '"cats status=completed"'),
        ("one\ntwo", '"one\\ntwo"'),
    ],
)
def test_systemd_journal_value_cannot_look_like_another_field_or_line(lines, value, written):
    log, stream = lines("journal")

    log.info("run claimed", name=value, attempt=1)

    assert stream.getvalue() == f"<6>run claimed name={written} attempt=1\n"


def test_console_line_contains_no_control_characters_of_a_row(lines):
    log, stream = lines("console")

    log.info("run claimed", name="\x1b[2J", group="a\nb")

    assert stream.getvalue().rstrip("\n").isprintable()
    assert "u001b[2J" in stream.getvalue()


def test_every_traceback_line_has_priority_of_error(lines):
    log, stream = lines("journal")

    try:
        raise ValueError("oops")
    except ValueError:
        log.exception("it broke")

    assert len(stream.getvalue().splitlines()) > 3
    assert all(line.startswith("<3>") for line in stream.getvalue().splitlines())


@pytest.mark.parametrize("form", ["console", "json", "journal"])
def test_secrets_are_replaced(lines, form):
    log, stream = lines(form, secrets=["plain-secret"])

    log.info(
        "key plain-secret", url=f"https://x/o?token={TOKEN}", deep={"a": ["sb_secret_abc123", {"b": "plain-secret"}]}
    )
    try:
        raise ValueError(f"refused {TOKEN}")
    except ValueError:
        log.exception("plain-secret")

    text = stream.getvalue()
    assert "plain-secret" not in text
    assert "sb_secret_abc123" not in text
    assert TOKEN not in text
    assert text.count("***") >= 5


@pytest.mark.parametrize("form", ["console", "json", "journal"])
def test_log_contains_no_control_characters_of_values_names_and_exceptions(lines, form):
    log, stream = lines(form)
    odd = "a\x1b[2J\x9b2J\x7f\u2028\u202e\u2066b"

    log.info("epoch finished", name=odd, deep={odd: [odd]}, **{odd: 1})
    try:
        raise ValueError(f"{odd}\n2026-01-01T00:00:00Z [info     ] run ended")
    except ValueError:
        log.exception("it broke")

    assert not CONTROLS.search(stream.getvalue())
    assert not any(line.startswith("2026-01-01") for line in stream.getvalue().splitlines())


def test_lines_below_log_level_are_not_written(lines):
    log, stream = lines("json", level="WARNING")

    log.info("quiet")
    log.warning("loud")

    assert "quiet" not in stream.getvalue()
    assert "loud" in stream.getvalue()


def test_log_write_error_is_ignored():
    """/dev/full behaves like a full disk."""
    with contextlib.suppress(OSError), Path("/dev/full").open("w") as full:
        configure_logging("json", "INFO", stream=full)

        structlog.get_logger().warning("cannot be written")
        structlog.get_logger().warning("cannot be written either")
    structlog.reset_defaults()
