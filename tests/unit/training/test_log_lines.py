from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.training.supervisor import log_lines
from trainer.training.supervisor.log_lines import LONGEST, OutputLines


def lines_of(*pieces):
    lines = OutputLines()
    return [line for piece in pieces for line in lines.feed(piece)] + list(lines.close())


@pytest.fixture
def clock(monkeypatch):
    """Return a list with one number, the time of a fake clock."""
    now = [100.0]
    monkeypatch.setattr(log_lines.time, "monotonic", lambda: now[0])
    return now


def test_newlines_end_lines():
    assert lines_of(b"one\ntwo\n\nthree") == ["one", "two", "", "three"]


def test_pieces_of_a_line_are_joined():
    assert lines_of(b"on", b"e", b"\ntw", b"o\n") == ["one", "two"]


def test_windows_line_end_in_two_pieces_is_one_line_end():
    assert lines_of(b"one\r\ntwo\r", b"\nthree\r\n") == ["one", "two", "three"]


def test_redrawn_progress_bar_is_one_line_per_second(clock):
    lines = OutputLines()
    drawn = []
    for tenth in range(35):
        clock[0] = 100 + tenth / 10
        drawn += lines.feed(b"\r\x1b[K %d%%" % tenth)

    assert drawn == [" 0%", " 10%", " 20%", " 30%"]
    assert list(lines.feed(b"\r\x1b[K 100%\n")) == [" 100%"]


def test_last_version_of_progress_bar_is_never_dropped(clock):
    assert lines_of(b"\r 1%", b"\r 50%", b"\r 99%", b"\r 100%\n") == [" 1%", " 100%"]


def test_last_version_of_unfinished_progress_bar_is_logged():
    assert lines_of(b"\r 1%\r 2%")[-1] == " 2%"


def test_colors_links_and_control_characters_are_removed():
    colored = b"\x1b[34m\x1b[1mtrain:\x1b[0m ok\x07 \x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\ \x00\x08end\tof it"

    assert lines_of(colored) == ["train: ok link end\tof it"]


def test_invalid_utf8_is_replaced_and_split_utf8_is_joined():
    text = "━━━ é\n".encode()

    assert lines_of(text[:4], text[4:]) == ["━━━ é"]
    assert lines_of(b"caf\xe9\n") == ["caf\N{REPLACEMENT CHARACTER}"]


def test_long_line_is_truncated_with_number_of_omitted_bytes():
    (line,) = lines_of(b"x" * 3 * LONGEST, b"y" * 10)

    assert line == "x" * LONGEST + f" … ({2 * LONGEST + 10} bytes more)"


def test_line_after_long_line_is_complete():
    assert lines_of(b"x" * 2 * LONGEST + b"\nshort\n")[1] == "short"


@given(st.lists(st.binary(max_size=20), max_size=20))
def test_lines_do_not_depend_on_splitting_of_bytes(pieces):
    without_redraws = [piece.replace(b"\r", b"") for piece in pieces]

    assert lines_of(*without_redraws) == lines_of(b"".join(without_redraws))


@given(st.lists(st.binary(max_size=200), max_size=30))
def test_arbitrary_bytes_become_printable_lines(pieces):
    for line in lines_of(*pieces):
        line.encode()
        assert line.isprintable() or "\t" in line or not line.isascii()
        assert "\n" not in line
        assert len(line) < LONGEST + 50


def test_control_characters_of_unicode_are_removed():
    assert lines_of("a\x9b31mb\x85c\u2028d\u202ee\u2066f\u200dg\n".encode()) == ["abcdef\u200dg"]


def test_line_that_looks_like_a_line_of_the_service_is_indented():
    forged = "[2026-01-01T00:00:00.000Z] outcome: completed"

    assert lines_of(forged.encode()) == [f"    {forged}"]
    assert lines_of(b"\x1b[1m" + forged.encode()) == [f"    {forged}"]
