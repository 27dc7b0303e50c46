"""The main loop of the worker (`Daemon`): queued runs, errors of the service, shutdown."""

import threading
import time

import pytest

from tests.unit.worker.daemon_harness import Manager, daemon, serving
from tests.unit.worker.fakes import raising
from tests.unit.worker.harness import in_background, wait_for
from trainer.core.errors import Unavailable
from trainer.core.job import Retry
from trainer.core.stop import StopReason, StopSignal
from trainer.worker import daemon as daemon_module
from trainer.worker.journal import Journal


def test_all_queued_runs_are_executed(worker, queue):
    runs = [worker.enqueue() for _ in range(3)]

    with serving(worker, queue):
        wait_for(lambda: all(worker.row(run)["status"] == "completed" for run in runs))


def test_bug_in_one_run_does_not_stop_other_runs(worker, queue):
    first = worker.enqueue()
    second = worker.enqueue()
    execution = worker.execution(reporter=Buggy("started", first))

    with serving(worker, queue, execution=execution):
        wait_for(lambda: worker.row(second)["status"] == "completed")

    assert (worker.row(first)["status"], worker.row(first)["failures"]) == ("queued", 1)
    assert "worker's log" in worker.row(first)["error_message"]
    assert worker.slots.free == 1
    assert not list(worker.folders.journals.iterdir())


class Buggy:
    """A reporter whose method `method` raises an error, for one run or for all runs."""

    def __init__(self, method, run_id=None):
        self.method, self.run_id = method, run_id

    def __getattr__(self, name):
        def report(job, *_):
            if name == self.method and job.id == (self.run_id or job.id):
                raise KeyError("bug")

        return report


def test_outcome_is_delivered_after_bug_in_delivery(worker, queue):
    """The outcome is in the journal, so the run is not requeued and no event is lost."""
    run_id = worker.enqueue()
    fail = raising(KeyError("bug"), Unavailable("down"))

    def finish(*arguments):
        fail()
        return worker.queue.finish(*arguments)

    queue.finish = finish
    with serving(worker, queue):
        wait_for(lambda: worker.row(run_id)["status"] == "completed")

    row = worker.row(run_id)
    assert (row["attempt"], row["failures"]) == (1, 0)
    assert row["trained_model_url"]
    assert worker.kinds(run_id).count("epoch") == 3
    assert not list(worker.folders.journals.iterdir())


def test_bug_in_reporter_does_not_change_delivered_outcome(worker, queue):
    run_id = worker.enqueue()
    execution = worker.execution(queue=queue, reporter=Buggy("ended"))

    with serving(worker, queue, execution=execution):
        wait_for(lambda: (row := worker.row(run_id))["attempt"] and row["status"] != "running")

    assert (worker.row(run_id)["status"], worker.row(run_id)["attempt"]) == ("completed", 1)
    assert worker.slots.free == 1


@pytest.mark.parametrize("error", [KeyError("bug"), RecursionError(), OSError(5, "I/O error")])
def test_cleanup_error_after_run_is_not_counted_as_host_failure(worker, queue, error, monkeypatch):
    """Otherwise, two of these errors would make the host unhealthy, and it would not claim a third run."""

    def fail(*_):
        raise error

    monkeypatch.setattr(type(worker.folders), "remove_checkpoints", fail)
    runs = [worker.enqueue() for _ in range(3)]

    with serving(worker, queue):
        wait_for(lambda: all(worker.row(run)["status"] == "completed" for run in runs))

    assert worker.health.problem is None


def test_run_whose_thread_cannot_start_is_requeued_and_frees_its_slot(worker, queue, monkeypatch):
    run_id = worker.enqueue()
    start = threading.Thread.start
    fail = raising(RuntimeError("can't start new thread"))

    def fail_once(thread):
        if thread.name.startswith("run-"):
            fail()
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", fail_once)
    with serving(worker, queue):
        wait_for(lambda: worker.row(run_id)["failures"] == 1)
        wait_for(lambda: worker.slots.free == 1)

    assert worker.row(run_id)["status"] == "queued"
    assert not list(worker.folders.journals.iterdir())


def test_run_whose_thread_cannot_start_during_outage_is_requeued_by_next_process(worker, queue, monkeypatch):
    run_id = worker.enqueue()
    start = threading.Thread.start

    def fail(thread):
        if thread.name.startswith("run-"):
            raise RuntimeError("can't start new thread")
        start(thread)

    def down(*_):
        raise Unavailable("down")

    monkeypatch.setattr(threading.Thread, "start", fail)
    queue.finish = down
    with serving(worker, queue):
        wait_for(lambda: len(queue.claims) > 1)  # claims continue after one error
    monkeypatch.undo()
    del queue.finish
    assert worker.row(run_id)["status"] == "running"

    worker.shutdown = StopSignal()
    with serving(worker, queue):
        wait_for(lambda: worker.row(run_id)["failures"] == 1)

    assert "worker's log" in worker.row(run_id)["error_message"]


def test_shutdown_waits_until_runs_are_released(worker, queue):
    run_id = worker.enqueue()

    worker.shut_down_in(epoch=2)

    assert daemon(worker, queue).run(worker.shutdown)

    assert worker.row(run_id)["status"] == "queued"
    assert worker.row(run_id)["failures"] == 0


def test_no_run_is_claimed_during_shutdown_when_slot_becomes_free(worker, queue):
    first, waiting = worker.enqueue(), worker.enqueue()

    worker.shut_down_in(epoch=2)

    daemon(worker, queue).run(worker.shutdown)

    assert worker.row(first)["status"] == "queued"
    assert worker.row(waiting)["attempt"] == 0


def test_daemon_returns_false_if_a_run_exceeds_drain_time(worker, queue):
    worker.enqueue()
    holding = threading.Event()

    def hang(epoch):
        worker.shutdown.set(StopReason.SHUTDOWN)
        holding.wait(30)

    worker.trainer.during = hang
    ended = []
    with in_background(lambda: ended.append(daemon(worker, queue, drain_seconds=0.2).run(worker.shutdown))):
        wait_for(lambda: ended)
        holding.set()
    for thread in threading.enumerate():
        if thread.name.startswith("run-"):
            thread.join(30)

    assert ended == [False]


def test_drain_time_counts_from_shutdown_request(worker, queue, monkeypatch):
    """The claim loop can end late, for example because the queue answers a claim slowly."""
    monkeypatch.setattr(daemon_module, "POLL", 0.05)
    monkeypatch.setattr(daemon_module, "LAST_DELIVERY", 0.0)
    worker.enqueue()
    released, requested, ended = threading.Event(), [], []

    class Late(Manager):
        def stopping(self):
            time.sleep(1.0)

    def hang(epoch):
        worker.shutdown.set(StopReason.SHUTDOWN)
        requested.append(time.monotonic())
        released.wait(30)

    def serve():
        daemon(worker, queue, manager=Late(), drain_seconds=1.0).run(worker.shutdown)
        ended.append(time.monotonic())

    worker.trainer.during = hang
    with in_background(serve):
        wait_for(lambda: ended)
        released.set()
    for thread in threading.enumerate():
        if thread.name.startswith("run-"):
            thread.join(30)

    assert ended[0] - requested[0] < 1.9


def test_daemon_leaves_no_thread(worker, queue):
    before = set(threading.enumerate())
    worker.shutdown.set(StopReason.SHUTDOWN)

    daemon(worker, queue).run(worker.shutdown)

    assert set(threading.enumerate()) - before == set()


def test_shutdown_waits_for_recovery(worker, queue, monkeypatch):
    """The recovery needs the queue and the store, which are closed when the daemon returns."""
    monkeypatch.setattr(daemon_module, "ORPHAN_WAIT_SECONDS", 0.1)
    run_id = worker.enqueue()
    Journal.create(worker.folders.journals, worker.claim()).close()

    def slow(journal, stop):
        worker.shutdown.set(StopReason.SHUTDOWN)
        time.sleep(0.3)
        return Retry(message="The worker is gone.")

    recovery = worker.recovery(queue=queue)
    recovery.recover = slow
    daemon(worker, queue, recovery=recovery).run(worker.shutdown)

    assert worker.row(run_id)["failures"] == 1
    assert not list(worker.folders.journals.iterdir())
