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
    """A clock that stands still until it is set."""
    now = [100.0]
    monkeypatch.setattr(log_lines.time, "monotonic", lambda: now[0])
    return now


def test_lines_are_lines():
    assert lines_of(b"one\ntwo\n\nthree") == ["one", "two", "", "three"]


def test_a_line_may_arrive_in_pieces():
    assert lines_of(b"on", b"e", b"\ntw", b"o\n") == ["one", "two"]


def test_windows_line_ends_are_line_ends_even_when_cut_apart():
    assert lines_of(b"one\r\ntwo\r", b"\nthree\r\n") == ["one", "two", "three"]


def test_a_bar_that_draws_itself_again_and_again_is_one_line_a_second(clock):
    lines = OutputLines()
    drawn = []
    for tenth in range(35):
        clock[0] = 100 + tenth / 10
        drawn += lines.feed(b"\r\x1b[K %d%%" % tenth)

    assert drawn == [" 0%", " 10%", " 20%", " 30%"]
    assert list(lines.feed(b"\r\x1b[K 100%\n")) == [" 100%"]


def test_the_end_of_a_bar_is_never_left_out(clock):
    assert lines_of(b"\r 1%", b"\r 50%", b"\r 99%", b"\r 100%\n") == [" 1%", " 100%"]


def test_a_bar_that_was_never_ended_shows_its_last_state():
    assert lines_of(b"\r 1%\r 2%")[-1] == " 2%"


def test_colors_links_and_control_characters_are_removed():
    colored = b"\x1b[34m\x1b[1mtrain:\x1b[0m ok\x07 \x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\ \x00\x08end\tof it"

    assert lines_of(colored) == ["train: ok link end\tof it"]


def test_wrong_utf8_is_replaced_and_right_utf8_survives_being_cut_apart():
    text = "━━━ é\n".encode()

    assert lines_of(text[:4], text[4:]) == ["━━━ é"]
    assert lines_of(b"caf\xe9\n") == ["caf\N{REPLACEMENT CHARACTER}"]


def test_a_long_line_is_cut_and_says_so():
    (line,) = lines_of(b"x" * 3 * LONGEST, b"y" * 10)

    assert line == "x" * LONGEST + f" … ({2 * LONGEST + 10} bytes more)"


def test_a_line_after_a_long_one_is_whole():
    assert lines_of(b"x" * 2 * LONGEST + b"\nshort\n")[1] == "short"


@given(st.lists(st.binary(max_size=20), max_size=20))
def test_how_the_bytes_are_cut_does_not_matter(pieces):
    without_redraws = [piece.replace(b"\r", b"") for piece in pieces]

    assert lines_of(*without_redraws) == lines_of(b"".join(without_redraws))


@given(st.lists(st.binary(max_size=200), max_size=30))
def test_no_output_can_break_a_log(pieces):
    for line in lines_of(*pieces):
        line.encode()
        assert line.isprintable() or "\t" in line or not line.isascii()
        assert "\n" not in line
        assert len(line) < LONGEST + 50
