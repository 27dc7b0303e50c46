"""The lease of a run: renewal by heartbeats, and loss of the lease."""

import threading
from contextlib import closing

import pytest

from tests.unit.worker.fakes import Replaced, raising
from tests.unit.worker.harness import NEXT_CLAIM, wait_for
from trainer.core.errors import Unavailable
from trainer.core.job import Verdict
from trainer.core.stop import Stopped, StopSignal
from trainer.worker import lease as lease_module
from trainer.worker.journal import Journal
from trainer.worker.lease import Heartbeat, LeaseTimes
from trainer.worker.liveness import Liveness


def test_run_taken_over_by_other_worker_is_not_changed(worker):
    """If another worker has claimed the run, the first worker publishes nothing and does not change the row."""
    worker.lease_seconds = 0.1
    run_id = worker.enqueue()
    lease, claimed = worker.claim(), []

    def beat_too_late(*arguments):
        wait_for(lambda: claimed.append(worker.claim(NEXT_CLAIM, worker="other")) or claimed[-1])
        return worker.queue.beat(*arguments)

    worker.trainer.during = lambda epoch: worker.trainer.stop.wait(30)
    worker.work(lease, queue=Replaced(worker.queue, beat=beat_too_late))

    assert claimed[-1].job.attempt == 2
    row = worker.row(run_id)
    assert (row["status"], row["worker_id"]) == ("running", "other")
    assert "trained_model_url" not in row or row["trained_model_url"] is None


def test_lease_starts_when_heartbeat_is_sent(worker, tmp_path, monkeypatch):
    """F4 F7: the answer is slow. The worker counts the lease from the time at which it sent the heartbeat."""
    now, heartbeats, confirming = 1000.0, [], threading.Event()
    monkeypatch.setattr(lease_module, "boottime", lambda: now)

    class Stop(StopSignal):
        def wait(self, seconds=None):
            confirming.set()
            return super().wait(seconds)

    def beat(*_):
        nonlocal now
        heartbeats.append(now)
        if len(heartbeats) == 1:
            now += 40  # the answer takes 40 s
            return Verdict.OK
        confirming.wait(30)
        return Verdict.LOST

    worker.enqueue()
    stop, times = Stop(), LeaseTimes(beat=0, progress=1e9, lease=50)
    journal = Journal.create(tmp_path / "journal", worker.claim())
    heartbeat = Heartbeat(beat, journal, stop, times, dict, Liveness())
    with closing(journal), heartbeat.running():
        wait_for(lambda: len(heartbeats) == 2)
        now += 20  # 60 s after the first heartbeat was sent, 20 s after its answer
        with pytest.raises(Stopped):
            heartbeat.confirm(stop)


def test_lease_is_renewed_until_outcome_is_delivered(worker):
    """The delivery can fail for longer than a lease lasts. Meanwhile, other workers must not claim the run."""
    expires_first = []
    run_id = worker.enqueue()

    def expires():
        return worker.row(run_id)["lease_expires_at"]

    def finish(*arguments):
        if len(expires_first) < 2:  # each try waits until a heartbeat has renewed the lease
            expires_first.append(expires())
            wait_for(lambda: expires() > expires_first[-1])
            raise Unavailable("the results are too large")
        return worker.queue.finish(*arguments)

    worker.work(queue=Replaced(worker.queue, finish=finish))

    assert len(expires_first) == 2
    assert (worker.row(run_id)["status"], worker.row(run_id)["attempt"]) == ("completed", 1)
    assert not list(worker.folders.journals.iterdir())


def test_failed_heartbeat_thread_stops_run(worker, monkeypatch):
    worker.enqueue()
    worker.trainer.during = lambda epoch: worker.trainer.stop.wait(30)
    monkeypatch.setattr(threading, "excepthook", lambda arguments: None)

    end = worker.work(queue=Replaced(worker.queue, beat=raising(ZeroDivisionError())))

    assert end.outcome is None
    assert len(worker.reporter.calls) < 10
    assert not (worker.home / "storage").exists()


def test_heartbeat_after_outcome_is_rejected(worker):
    worker.enqueue()
    lease = worker.claim()

    worker.work(lease)

    assert worker.queue.beat(lease, None, []) is Verdict.LOST
