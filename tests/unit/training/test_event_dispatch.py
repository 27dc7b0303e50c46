from __future__ import annotations

import threading
from dataclasses import replace

import pytest

from trainer.core.events import BatchProgress, EpochFinished, Phase, Warned
from trainer.core.model import Architecture
from trainer.core.plan import TrainPlan
from trainer.training.supervisor.event_dispatch import MOST_LINES, EventDispatcher, EventLimits
from trainer.training.wire import encode_event

PLAN = TrainPlan(
    sources=("/d",), model=Architecture(stem="yolo11n"), task=None, epochs=3, batch=4, imgsz=64, device=None
)


def batch_event(number):
    return BatchProgress(phase=Phase.TRAINING, epoch=1, total_epochs=1, batch=number, total_batches=9)


def epoch(number):
    return EpochFinished(epoch=number, total_epochs=9, metrics={}, seconds=1.0)


class Listener:
    def __init__(self):
        self.received = []
        self.go_on = threading.Event()

    def __call__(self, item):
        self.go_on.wait(5)
        self.received.append(item)


def delivered(*items):
    """Return the items that a listener receives if all items were queued before the listener started."""
    dispatcher, received = EventDispatcher(), []
    for item in items:
        (dispatcher.line if isinstance(item, str) else dispatcher.event)(item)
    dispatcher.start(received.append, received.append)
    dispatcher.close()
    return received


def test_events_arrive_in_order_before_lines():
    assert delivered("a line", epoch(1), "another", epoch(2)) == [epoch(1), epoch(2), "a line", "another"]


def test_only_newest_of_consecutive_queued_batch_events_arrives():
    assert delivered(batch_event(1), batch_event(2), epoch(1), batch_event(3), batch_event(4)) == [
        batch_event(2),
        epoch(1),
        batch_event(4),
    ]


def test_fast_listener_gets_every_batch_event():
    dispatcher, received = EventDispatcher(), []
    arrived = threading.Semaphore(0)
    dispatcher.start(lambda event: (received.append(event), arrived.release()), str)
    for number in range(3):
        dispatcher.event(batch_event(number))
        assert arrived.acquire(timeout=5)
    dispatcher.close()

    assert received == [batch_event(0), batch_event(1), batch_event(2)]


def test_no_durable_event_is_dropped():
    events = [Warned(code="x", message=str(number)) for number in range(9_000)]

    assert delivered(*events) == events


def test_lines_above_limit_are_counted_and_dropped():
    received = delivered(*(str(number) for number in range(MOST_LINES + 500)))

    assert received[:MOST_LINES] == [str(number) for number in range(MOST_LINES)]
    assert received[MOST_LINES:] == ["… 500 lines were dropped, because the output came too fast …"]


def test_notice_about_dropped_lines_precedes_later_lines():
    dispatcher, listener = EventDispatcher(), Listener()
    for number in range(MOST_LINES + 7):
        dispatcher.line(str(number))
    one_taken = threading.Event()

    def take(line):
        listener.received.append(line)
        one_taken.set()
        listener.go_on.wait(5)

    dispatcher.start(listener, take)
    assert one_taken.wait(5)
    dispatcher.line("afterwards")
    listener.go_on.set()
    dispatcher.close()

    assert listener.received[-2:] == ["… 7 lines were dropped, because the output came too fast …", "afterwards"]


def test_events_are_queued_while_listener_is_blocked():
    dispatcher, received = EventDispatcher(), Listener()
    dispatcher.start(received, received)
    for number in range(1000):
        dispatcher.event(epoch(number))  # this call returns, although the listener takes no event
    assert received.received == []

    received.go_on.set()
    dispatcher.close()
    assert len(received.received) == 1000


def test_exception_of_listener_is_raised_by_close():
    dispatcher = EventDispatcher()
    broken = threading.Event()

    def raises(event):
        broken.set()
        raise OSError("the journal's disk is full")

    dispatcher.start(raises, str)
    assert not dispatcher.failed
    dispatcher.event(epoch(1))
    assert broken.wait(5)

    with pytest.raises(OSError, match="journal's disk"):
        dispatcher.close()
    assert dispatcher.failed


def test_dispatcher_without_listener_can_be_closed():
    dispatcher = EventDispatcher()
    dispatcher.event(epoch(1))

    dispatcher.close()


def test_training_of_100000_epochs_stays_within_limits():
    plan = replace(PLAN, epochs=100_000)
    limits = EventLimits.of(plan)
    metrics = {f"metrics/a name of usual length {n}": 0.123456 for n in range(40)}
    size = len(encode_event(EpochFinished(epoch=99_999, total_epochs=100_000, metrics=metrics, seconds=1.0)))

    assert limits.events >= 5 * plan.epochs
    assert limits.bytes >= (size + 1000) * plan.epochs


def test_time_limit_allows_more_epochs_than_the_plan():
    assert EventLimits.of(replace(PLAN, args={"time": 1.0})).events >= 500_000
