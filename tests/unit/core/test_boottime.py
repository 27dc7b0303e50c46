"""The clock of leases includes the time during which the host is suspended."""

import threading
import time
import uuid

import pytest

from tests.unit.worker.harness import WorkerFixture
from trainer.core import boottime as module
from trainer.core.boottime import boottime
from trainer.core.stop import Stopped, StopReason, StopSignal
from trainer.worker import lease as lease_module
from trainer.worker.journal import Journal
from trainer.worker.lease import Heartbeat, LeaseTimes
from trainer.worker.liveness import Liveness


def test_boottime_counts_suspended_time(monkeypatch):
    asked = []
    monkeypatch.setattr(module.time, "clock_gettime", lambda clock: asked.append(clock) or 7.0)
    assert (boottime(), asked) == (7.0, [time.CLOCK_BOOTTIME])


def test_lease_expired_during_suspend_is_not_trusted_until_heartbeat_is_answered(tmp_path, monkeypatch):
    """The monotonic clock excludes suspended time. Only the time since boot shows that the lease has expired."""
    worker = WorkerFixture(tmp_path)
    worker.enqueue()
    lease, stop = worker.claim(), StopSignal()
    journal = Journal.create(tmp_path / uuid.uuid4().hex, lease)
    times = LeaseTimes(beat=60, progress=60, lease=60)
    heartbeat = Heartbeat(worker.queue.beat, journal, stop, times, dict, Liveness())
    heartbeat.confirm(stop)

    asleep = boottime() + 3600
    monkeypatch.setattr(lease_module, "boottime", lambda: asleep)
    timer = threading.Timer(0.3, stop.set, [StopReason.LOST])
    timer.start()
    began = time.monotonic()
    with pytest.raises(Stopped):
        heartbeat.confirm(stop)
    assert time.monotonic() - began > 0.2
    timer.join()
    journal.discard()
