from __future__ import annotations

import threading
import time

import pytest

from trainer.core.errors import MachineFailed
from trainer.core.stop import Stopped, StopReason


def in_training(training):
    return any(event.kind == "phase" and event.phase == "training" for event in training.events)


def stop_with(training, reason):
    """Request a stop as soon as the process trains. Return the seconds from the request to the end."""
    asked = []

    def ask():
        asked.append(time.monotonic())
        training.stop.set(reason)

    training.when(in_training, ask)
    with pytest.raises(Stopped) as stopped:
        training.train(epochs=100)
    assert stopped.value.reason is reason
    return time.monotonic() - asked[0]


@pytest.mark.parametrize("reason", [StopReason.CANCELED, StopReason.SHUTDOWN])
def test_stop_request_ends_training_at_next_batch(program, reason):
    training = program("trains_quickly", grace=5).behave(seconds_per_epoch=0.2)

    assert stop_with(training, reason) < 3
    assert training.events[-1].kind == "stopped"


def test_training_that_stops_slowly_within_grace_is_not_killed(program):
    training = program("slow_to_stop", grace=3)

    assert 0.5 < stop_with(training, StopReason.SHUTDOWN) < 2.5
    assert '"shutdown"' in training.of("warning")[0].message


def test_ignored_stop_request_is_followed_by_sigterm(program):
    training = program("trains_quickly", grace=0.3).behave(ignores_stop=True, seconds_per_epoch=30)

    assert 0.25 < stop_with(training, StopReason.CANCELED) < 5


def test_ignored_sigterm_is_followed_by_sigkill(program, monkeypatch):
    monkeypatch.setattr("trainer.training.supervisor.training_watch._TERM_SECONDS", 0.3)
    training = program("ignores_every_signal", grace=0.3)

    assert 0.5 < stop_with(training, StopReason.CANCELED) < 5


def test_full_stdin_does_not_prevent_stop(program):
    training = program("never_reads_stdin", grace=0.2)
    training.when(in_training, lambda: training.stop.set(StopReason.CANCELED))

    with pytest.raises(Stopped):
        training.train(names=tuple(f"class {number}" for number in range(20_000)))


def test_lost_lease_kills_training_at_once(program):
    training = program("ignores_every_signal", grace=60)

    assert stop_with(training, StopReason.LOST) < 5


def test_lost_lease_after_stop_request_kills_training_at_once(program):
    training = program("ignores_every_signal", grace=60)

    def ask():
        training.stop.set(StopReason.SHUTDOWN)
        time.sleep(0.2)
        training.stop.set(StopReason.LOST)

    training.when(in_training, ask)
    began = time.monotonic()
    with pytest.raises(Stopped) as stopped:
        training.train()
    assert stopped.value.reason is StopReason.LOST
    assert time.monotonic() - began < 20


def test_cancel_shortens_time_limit_of_shutdown(program):
    training = program("trains_quickly", grace=0.3, shutdown=60).behave(ignores_stop=True, seconds_per_epoch=30)
    asked = []

    def ask():
        asked.append(time.monotonic())
        training.stop.set(StopReason.SHUTDOWN)
        time.sleep(0.6)
        training.stop.set(StopReason.CANCELED)

    training.when(in_training, ask)
    with pytest.raises(Stopped):
        training.train()
    assert 0.9 <= time.monotonic() - asked[0] < 20


def test_cancel_after_shutdown_request_does_not_extend_time_limit(program):
    training = program("trains_quickly", grace=4).behave(ignores_stop=True, seconds_per_epoch=60)
    asked = []

    def ask():
        asked.append(time.monotonic())
        training.stop.set(StopReason.SHUTDOWN)
        time.sleep(3)
        training.stop.set(StopReason.CANCELED)

    training.when(in_training, ask)
    with pytest.raises(Stopped) as stopped:
        training.train()
    assert stopped.value.reason is StopReason.CANCELED
    assert 3.9 < time.monotonic() - asked[0] < 6.9


def test_finish_request_completes_training_early(program):
    training = program("trains_quickly", grace=0.1).behave(seconds_per_epoch=0.4)
    training.when(in_training, lambda: training.stop.set(StopReason.FINISH))

    assert training.train(epochs=100).report["epochs_completed"] == 1


def test_training_is_not_killed_after_grace_of_finish_request(program):
    training = program("slow_to_stop", grace=0.1)
    training.when(in_training, lambda: training.stop.set(StopReason.FINISH))

    with pytest.raises(MachineFailed):  # the process exited by itself 0.6 s after the request, without a result
        training.train()

    assert '"finish"' in training.of("warning")[0].message


def test_cancel_after_finish_request_stops_training(program):
    training = program("trains_quickly", grace=60).behave(seconds_per_epoch=60)

    def ask():
        training.stop.set(StopReason.FINISH)
        time.sleep(0.3)
        training.stop.set(StopReason.CANCELED)

    training.when(in_training, ask)
    began = time.monotonic()
    with pytest.raises(Stopped):
        training.train()
    assert time.monotonic() - began < 20


def test_cancel_after_final_event_is_ignored(program):
    training = program("hangs_after_finishing", exit=0.6)
    training.when(lambda t: t.of("finished"), lambda: training.stop.set(StopReason.CANCELED))

    assert training.train().report == {"environment": {"fine": True}, "sandbox": []}


def test_lost_lease_after_final_event_raises_stopped(program):
    training = program("hangs_after_finishing", exit=5)
    training.when(lambda t: t.of("finished"), lambda: training.stop.set(StopReason.LOST))

    with pytest.raises(Stopped):
        training.train()


def test_crash_during_stop_counts_as_stop(program):
    stop_with(program("crashes_while_stopping"), StopReason.CANCELED)


def test_stop_during_start_ends_process_before_it_is_ready(program):
    training = program("never_starts", grace=0.2)
    began = time.monotonic()

    threading.Timer(0.2, training.stop.set, [StopReason.CANCELED]).start()
    with pytest.raises(Stopped):
        training.train()

    assert time.monotonic() - began < 20
