from __future__ import annotations

import re
import threading
import time

import pytest

from tests.process.conftest import subreapers
from trainer.core.stop import Stopped, StopReason
from trainer.training.supervisor import event_dispatch


def is_reading():
    return any(thread.name == "child-reader" for thread in threading.enumerate())


def test_output_flood_neither_blocks_training_nor_fills_memory(program):
    training = program("floods_stdout")
    waited = []

    def slow_disk(line):
        training.on_line(line)
        deadline = time.monotonic() + 10
        # the reader may still empty the pipes after the subreaper has ended
        while not waited and (subreapers() or is_reading()) and time.monotonic() < deadline:
            time.sleep(0.02)
        waited.append(time.monotonic() < deadline)

    training.trainer.train(training.order(), training.stop, training.on_event, slow_disk)

    assert waited[0]  # the process ended although the listener was blocked
    assert training.of("finished")
    assert len(training.lines) <= event_dispatch.MOST_LINES + 20  # a few lines contain the number of dropped lines
    assert training.lines[0] == "first line"
    assert re.fullmatch(r"… \d{5} lines were dropped, because the output came too fast …", training.lines[-1])


def test_fast_listener_gets_readable_output_to_the_end(program, monkeypatch):
    monkeypatch.setattr(event_dispatch, "MOST_LINES", 10**6)
    training = program("floods_stdout")

    training.train()

    assert training.lines.count("line 59999 of a flood") == 1
    assert training.lines[-1] == "last line"
    assert training.lines[-2] == "caf\N{REPLACEMENT CHARACTER} \N{REPLACEMENT CHARACTER}\N{REPLACEMENT CHARACTER}"
    assert training.lines[-3].startswith("xxxx")
    assert training.lines[-3].endswith("(4996000 bytes more)")
    assert max(map(len, training.lines)) < 4100
    assert (
        sum(line.startswith(" bar ") for line in training.lines) <= 30 + 4
    )  # 30 completed bars, and one unfinished bar per second


def test_only_first_and_last_state_of_redrawn_bar_become_lines(program):
    training = program("draws_bars")

    training.train()

    assert training.lines == ["  1/3 0% ━━━╸", "  1/3 100% ━━━╸", "", "Epoch done"]


def test_output_into_event_pipe_causes_one_warning(program):
    training = program("prints_to_the_event_fd")

    assert training.train().report == {"environment": {"fine": True}, "sandbox": []}
    assert [event.code for event in training.of("warning")] == ["garbled_event"]
    assert [event.epoch for event in training.of("epoch")] == [1, 2]
    assert sum("a library writes to the wrong descriptor" in line for line in training.lines) == 50


def test_line_of_10_mib_in_event_pipe_is_dropped(program):
    training = program("sends_garbage")

    assert training.train().report == {"environment": {"fine": True}, "sandbox": []}


def test_slow_listener_gets_every_durable_event_in_order(program):
    training = program("many_events")
    waited = []

    def slow(event):
        deadline = time.monotonic() + 10
        # the reader may still empty the pipes after the subreaper has ended
        while not waited and (subreapers() or is_reading()) and time.monotonic() < deadline:
            time.sleep(0.02)
        waited.append(time.monotonic() < deadline)
        training.on_event(event)

    training.trainer.train(training.order(), training.stop, slow, training.on_line)

    assert waited[0]  # the process ended although the listener was blocked
    assert [event.epoch for event in training.of("epoch")] == list(range(1, 501))
    assert training.events[-1].kind == "finished"
    # besides the batch event that the listener took first, only the newest batch event of each epoch is left
    assert {event.batch for event in training.of("batch")[1:]} <= {10}
    assert training.of("batch")[-1].batch == 10


def test_hanging_listener_does_not_delay_cancel(program):
    training = program("trains_quickly", grace=5).behave(seconds_per_epoch=0.01)
    released = threading.Event()

    def hangs(event):
        training.on_event(event)
        released.wait(5)

    def cancel():
        training.stop.set(StopReason.CANCELED)
        time.sleep(0.5)
        released.set()

    training.when(lambda t: t.events, cancel)
    with pytest.raises(Stopped):
        training.trainer.train(training.order(epochs=10_000), training.stop, hangs, training.on_line)
    assert training.of("stopped")
