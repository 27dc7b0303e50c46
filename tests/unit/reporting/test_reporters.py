"""Reporters have their own threads. A slow, failing or blocked reporter does not delay a run or another reporter."""

import threading
import time

import pytest

from trainer.core.events import BatchProgress, EpochFinished, Phase
from trainer.core.job import Completed, Job, RunRequest, Status
from trainer.core.ports import AttemptEnd, Delivery
from trainer.reporting.background import BackgroundReporter
from trainer.reporting.reporters import Reporters

JOB = Job(id="r", request=RunRequest(data_yaml="d"), attempt=1)
END = AttemptEnd(
    outcome=Completed(results={}, trained_model_url=None), delivery=Delivery.ACCEPTED, status=Status.COMPLETED
)


def epoch(number):
    return EpochFinished(epoch=number, total_epochs=9, metrics={}, seconds=1.0)


def batch(number):
    return BatchProgress(phase=Phase.TRAINING, epoch=1, total_epochs=9, batch=number, total_batches=99)


class Recorder:
    """A reporter that records its calls. `before` is called first and can sleep, raise or block."""

    def __init__(self, before=lambda call: None):
        self.before = before
        self.calls = []

    def started(self, job):
        self.record("started")

    def event(self, job, event):
        self.record(event)

    def ended(self, job, end):
        self.record(end)

    def record(self, call):
        self.before(call)
        self.calls.append(call)


@pytest.fixture
def gate():
    """Return a `threading.Event` that blocks a reporter until the event is set. It is set at the end of the test."""
    gate = threading.Event()
    yield gate
    gate.set()


def report(reporter, *events):
    reporter.started(JOB)
    for event in events:
        reporter.event(JOB, event)
    reporter.ended(JOB, END)


def test_calls_arrive_in_order():
    recorder = Recorder()
    reporter = BackgroundReporter(recorder)

    report(reporter, epoch(1), batch(1), epoch(2))

    assert reporter.close(10) == 0
    assert recorder.calls == ["started", epoch(1), batch(1), epoch(2), END]


def test_slow_reporter_does_not_delay_the_run():
    recorder = Recorder(lambda call: time.sleep(0.05))
    reporters = Reporters([recorder])
    started = time.monotonic()

    report(reporters.for_run(JOB), *(epoch(number) for number in range(1, 10)))

    assert time.monotonic() - started < 0.3
    reporters.close(30)
    assert recorder.calls == ["started", *(epoch(number) for number in range(1, 10)), END]


def test_blocked_reporter_does_not_delay_other_reporters(gate):
    blocked, other = Recorder(lambda call: gate.wait()), Recorder()
    reporters = Reporters([blocked, other])

    report(reporters.for_run(JOB), epoch(1))
    reporters.close(0.3)

    assert other.calls == ["started", epoch(1), END]
    assert blocked.calls == []


def test_close_returns_at_its_deadline_with_number_of_lost_calls(gate):
    reporter = BackgroundReporter(Recorder(lambda call: gate.wait()))
    report(reporter, epoch(1))
    started = time.monotonic()

    assert reporter.close(0.2) == 3
    assert time.monotonic() - started < 10


def test_failing_reporter_receives_later_calls():
    def fail(call):
        if call == epoch(1):
            raise KeyError("bug")

    recorder = Recorder(fail)
    reporter = BackgroundReporter(recorder)

    report(reporter, epoch(1), epoch(2))

    assert reporter.close(10) == 0
    assert recorder.calls == ["started", epoch(2), END]


def test_queue_of_reporter_keeps_only_newest_progress(gate):
    dropped = []
    recorder = Recorder(lambda call: gate.wait())
    reporter = BackgroundReporter(recorder, on_dropped=lambda *drop: dropped.append(drop))

    report(reporter, *(batch(number) for number in range(1, 50)), epoch(1))
    gate.set()

    assert reporter.close(10) == 0
    assert recorder.calls == ["started", batch(49), epoch(1), END]
    assert dropped == [("Recorder", "batch")] * 48


def test_full_queue_drops_events_but_not_end_of_run(gate):
    dropped = []
    recorder = Recorder(lambda call: gate.wait())
    reporter = BackgroundReporter(recorder, capacity=5, on_dropped=lambda *drop: dropped.append(drop))

    report(reporter, *(epoch(number) for number in range(1, 100)))
    gate.set()

    assert reporter.close(10) == 0
    assert recorder.calls[0] == "started"
    assert recorder.calls[-1] == END
    assert len(recorder.calls) + len(dropped) == 101
    assert len(dropped) > 90


# ── reporters for one run ──


def test_run_has_its_own_reporters():
    asked, own = [], Recorder()

    def factory(job):
        asked.append(job)
        return own

    reporters = Reporters([], [factory])
    report(reporters.for_run(JOB), epoch(1))
    reporters.close(10)

    assert asked == [JOB]
    assert own.calls == ["started", epoch(1), END]


def test_thread_of_a_run_reporter_ends_with_its_run():
    reporters = Reporters([], [lambda job: Recorder()])

    report(reporters.for_run(JOB))

    (own,) = reporters._of_runs
    deadline = time.monotonic() + 10
    while own.is_running:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_run_without_its_own_reporter_uses_shared_reporters():
    shared = Recorder()
    reporters = Reporters([shared], [lambda job: None])

    report(reporters.for_run(JOB))
    reporters.close(10)

    assert shared.calls == ["started", END]


def test_reporter_that_raises_system_exit_receives_later_calls():
    def exits(call):
        if call == "started":
            raise SystemExit("a library gives up")

    recorder = Recorder(exits)
    reporter = BackgroundReporter(recorder)

    report(reporter, epoch(1))

    assert reporter.close(10) == 0
    assert recorder.calls == [epoch(1), END]


def test_thread_limit_of_the_process_does_not_fail_the_run(monkeypatch):
    shared = Recorder()
    reporters = Reporters([shared], [lambda job: Recorder()])

    def refuse(thread):
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        reporter = reporters.for_run(JOB)
    report(reporter)
    reporters.close(10)

    assert shared.calls == ["started", END]


def test_factory_that_fails_does_not_fail_the_run():
    def fail(job):
        raise ValueError("not a URL")

    shared = Recorder()
    reporters = Reporters([shared], [fail])

    report(reporters.for_run(JOB))
    reporters.close(10)

    assert shared.calls == ["started", END]
