"""Stop signals have a reason and can have child signals."""

import threading
import time

import pytest

from trainer.core.stop import Stopped, StopReason, StopSignal


def test_stop_of_child_does_not_reach_parent():
    shutdown = StopSignal()
    run = shutdown.child()

    run.set(StopReason.CANCELED)

    assert run.reason is StopReason.CANCELED
    assert shutdown.reason is None


def test_stop_of_parent_reaches_children():
    shutdown = StopSignal()
    run = shutdown.child().child()

    shutdown.set(StopReason.SHUTDOWN)

    assert run.reason is StopReason.SHUTDOWN


@pytest.mark.parametrize(
    ("first", "second", "left"),
    [
        (StopReason.FINISH, StopReason.CANCELED, StopReason.CANCELED),
        (StopReason.CANCELED, StopReason.FINISH, StopReason.CANCELED),
        (StopReason.LOST, StopReason.CANCELED, StopReason.LOST),
        (StopReason.SHUTDOWN, StopReason.LOST, StopReason.LOST),
    ],
)
def test_stronger_reason_has_priority_in_any_order(first, second, left):
    stop = StopSignal()

    stop.set(first)
    stop.set(second)

    assert stop.reason is left


def test_finish_request_does_not_stop_the_run():
    stop = StopSignal()
    stop.set(StopReason.FINISH)

    stop.raise_if_set()

    assert not stop.must_stop
    assert not stop.wait(0.01)


def test_stop_of_parent_ends_wait_on_child():
    shutdown = StopSignal()
    run = shutdown.child()
    threading.Timer(0.05, shutdown.set, [StopReason.SHUTDOWN]).start()
    began = time.monotonic()

    assert run.wait(10)
    assert time.monotonic() - began < 5


def test_raise_if_set_raises_error_with_reason():
    stop = StopSignal()
    stop.set(StopReason.CANCELED)

    with pytest.raises(Stopped) as stopped:
        stop.raise_if_set()

    assert stopped.value.reason is StopReason.CANCELED


def test_extra_time_delays_cancel_but_not_lost_lease():
    canceled, lost = StopSignal(), StopSignal()
    canceled.set(StopReason.CANCELED)
    lost.set(StopReason.LOST)

    with canceled.extra_time(0.3) as later:
        assert not later.wait(0.1)
        assert later.wait(5)
        assert later.reason is StopReason.CANCELED
    with lost.extra_time(60) as later:
        assert later.wait(5)


def test_extra_time_counts_from_shutdown_request():
    shutdown = StopSignal()
    shutdown.set(StopReason.SHUTDOWN)
    run = shutdown.child()
    run.set(StopReason.CANCELED)
    shutdown._shutdown_at -= 60  # the shutdown was requested a minute ago

    began = time.monotonic()
    with run.extra_time(60.2) as later:
        assert later.wait(30)

    assert time.monotonic() - began < 30


def test_thread_of_extra_time_ends_with_its_block():
    before = threading.active_count()

    with StopSignal().extra_time(60):
        pass

    assert threading.active_count() == before


def test_expired_extra_time_ends_immediately():
    shutdown = StopSignal()
    shutdown.set(StopReason.SHUTDOWN)
    time.sleep(0.05)

    with shutdown.extra_time(0.01) as later:
        assert later.reason is StopReason.SHUTDOWN


def test_limited_extra_time_ends_without_stop():
    began = time.monotonic()

    with StopSignal().extra_time(0.2, at_most=True) as later:
        assert later.wait(5)

    assert 0.2 <= time.monotonic() - began < 2
    assert later.reason is StopReason.STUCK


def test_shutdown_shortens_limited_extra_time():
    shutdown = StopSignal()
    shutdown.set(StopReason.SHUTDOWN)
    shutdown._shutdown_at -= 60  # the shutdown was requested a minute ago
    began = time.monotonic()

    with shutdown.child().extra_time(60.2, at_most=True) as later:
        assert later.wait(30)

    assert time.monotonic() - began < 30
