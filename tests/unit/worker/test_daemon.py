"""The daemon: claims, outages, prefetching, shutdown."""

import threading
import time
from functools import partial

import pytest

from tests.unit.worker.worker_room import Room, in_background
from trainer.core.errors import Misconfigured, Unavailable
from trainer.core.job import Completed, Retry
from trainer.core.ports import Worker
from trainer.core.stop import StopReason, StopSignal
from trainer.request.parse import plan_of
from trainer.worker import claiming as claiming_module
from trainer.worker import daemon as daemon_module
from trainer.worker import prefetch as prefetch_module
from trainer.worker.claiming import Claimer
from trainer.worker.daemon import Daemon
from trainer.worker.housekeeping import Housekeeping
from trainer.worker.journal import Journal
from trainer.worker.liveness import Liveness
from trainer.worker.orphaned_journals import orphaned_journals
from trainer.worker.outcome_delivery import OrphanDelivery
from trainer.worker.prefetch import Prefetcher


class Watched:
    """The queue of the fixture. It records claim ids and raises the errors in `before` and `after`."""

    def __init__(self, room):
        self.room = room
        self.claims = []
        self.before = iter(())
        self.after = iter(())

    def __getattr__(self, name):
        return getattr(self.room.queue, name)

    def claim(self, worker, claim_id, lease_seconds):
        self.claims.append(claim_id)
        for error in self.before:
            raise error
        lease = self.room.queue.claim(worker, claim_id, lease_seconds)
        for error in self.after:
            raise error
        return lease


@pytest.fixture
def room(tmp_path):
    return Room(tmp_path)


@pytest.fixture
def queue(room):
    return Watched(room)


def daemon(room, queue, execution=None, recovery=None, manager=None, check=lambda: (), **parts):
    def describe(free):
        return Worker(id="w", capabilities={"gpus": free})

    claimer = Claimer(
        queue, room.health, describe_worker=describe, check=check, poll_seconds=0.05, lease_seconds=60,
    )  # fmt: skip
    prefetcher = Prefetcher(
        queue=queue, datasets=room.datasets, parse=plan_of, slots=room.slots, describe_worker=describe,
        interval=0.05,
    )  # fmt: skip
    orphans = partial(orphaned_journals, room.folders.journals, "w", 60)
    defaults = {
        "claimer": claimer,
        "execution": execution or room.execution(queue=queue),
        "orphans": OrphanDelivery(queue, orphans, recovery or room.recovery(queue=queue)),
        "slots": room.slots,
        "prefetcher": prefetcher,
        "health": room.health,
        "housekeeping": Housekeeping([]),
        "drain_seconds": 5,
        "manager": manager or Manager(),
        "liveness": Liveness(),
    }  # fmt: skip
    return Daemon(**(defaults | parts))


class Manager:
    """A service manager that remembers the status."""

    def __init__(self):
        self.statuses = []

    def ready_and(self, status):
        self.statuses.append(status)

    def stopping(self):
        pass


def wait_for(holds, seconds=15):
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def stopping(room):
    return room.shutdown.set(StopReason.SHUTDOWN)


def test_queued_runs_are_executed_in_turn(room, queue):
    runs = [room.enqueue() for _ in range(3)]

    with in_background(lambda: daemon(room, queue).run(room.shutdown)):
        wait_for(lambda: all(room.row(run)["status"] == "completed" for run in runs))
        stopping(room)


def test_unanswered_claim_is_repeated_with_same_claim_id(room, queue):
    """The claim was granted and the answer lost: the run must not wait until the lease expires."""
    run_id = room.enqueue()
    queue.after = iter([Unavailable("the answer got lost")])

    with in_background(lambda: daemon(room, queue).run(room.shutdown)):
        wait_for(lambda: room.row(run_id)["status"] == "completed")
        stopping(room)

    assert queue.claims[0] == queue.claims[1]
    assert queue.claims[1] != queue.claims[2]
    assert room.row(run_id)["attempt"] == 1


def test_service_survives_outage_at_start(room, queue):
    run_id = room.enqueue()
    queue.before = iter([Unavailable("down")])

    with in_background(lambda: daemon(room, queue).run(room.shutdown)):
        wait_for(lambda: room.row(run_id)["status"] == "completed")
        stopping(room)


def test_nothing_is_claimed_until_access_is_correct(room, queue):
    """For example a missing migration, which the operator applies while the service waits."""
    room.enqueue()
    troubles = iter([Misconfigured("apply the migrations"), Misconfigured("apply the migrations")])
    asked = []

    def check():
        asked.append(list(queue.claims))
        for trouble in troubles:
            raise trouble
        return ["anonymous users may write"]

    with in_background(lambda: daemon(room, queue, check=check).run(room.shutdown)):
        wait_for(lambda: queue.claims, seconds=30)
        stopping(room)

    assert asked == [[], [], []]


def test_bug_in_one_run_does_not_stop_daemon(room, queue):
    first = room.enqueue()
    second = room.enqueue()
    execution = room.execution(reporter=Buggy("started", first))

    with in_background(lambda: daemon(room, queue, execution=execution).run(room.shutdown)):
        wait_for(lambda: room.row(second)["status"] == "completed")
        stopping(room)

    assert (room.row(first)["status"], room.row(first)["failures"]) == ("queued", 1)
    assert "worker's log" in room.row(first)["error_message"]
    assert room.slots.free == 1
    assert not list(room.folders.journals.iterdir())


class Buggy:
    """A reporter whose method `what` raises for one run, or for all."""

    def __init__(self, what, run_id=None):
        self.what, self.run_id = what, run_id

    def __getattr__(self, name):
        def hear(job, *_):
            if name == self.what and job.id == (self.run_id or job.id):
                raise KeyError("bug")

        return hear


def test_model_is_delivered_after_bug_in_delivery(room, queue):
    """The outcome is in the journal, so the run is not requeued and no event is lost."""
    run_id = room.enqueue()
    errors = iter([KeyError("bug"), Unavailable("down")])

    def finish(*told):
        for error in errors:
            raise error
        return room.queue.finish(*told)

    queue.finish = finish
    with in_background(lambda: daemon(room, queue).run(room.shutdown)):
        wait_for(lambda: room.row(run_id)["status"] == "completed")
        stopping(room)

    row = room.row(run_id)
    assert (row["attempt"], row["failures"]) == (1, 0)
    assert row["trained_model_url"]
    assert room.kinds(run_id).count("epoch") == 3
    assert not list(room.folders.journals.iterdir())


def test_bug_after_outcome_loses_no_model(room, queue):
    run_id = room.enqueue()
    execution = room.execution(queue=queue, reporter=Buggy("ended"))

    with in_background(lambda: daemon(room, queue, execution=execution).run(room.shutdown)):
        wait_for(lambda: room.row(run_id)["status"] in ("completed", "queued") and room.row(run_id)["attempt"])
        stopping(room)

    assert (room.row(run_id)["status"], room.row(run_id)["attempt"]) == ("completed", 1)
    assert room.slots.free == 1


@pytest.mark.parametrize("error", [KeyError("bug"), RecursionError(), OSError(5, "I/O error")])
def test_files_of_ended_run_that_cannot_be_removed_count_as_no_failure(room, queue, error, monkeypatch):
    """Two such runs would make the host unhealthy, and it would not claim a third one."""

    def fail(*_):
        raise error

    monkeypatch.setattr(type(room.folders), "remove_checkpoints", fail)
    runs = [room.enqueue() for _ in range(3)]

    with in_background(lambda: daemon(room, queue).run(room.shutdown)):
        wait_for(lambda: all(room.row(run)["status"] == "completed" for run in runs))
        stopping(room)

    assert room.health.problem is None


@pytest.mark.parametrize(
    "error", [AttributeError("row"), RecursionError(), OverflowError(), TypeError(), KeyError("id")]
)
def test_unexpected_error_of_claim_does_not_stop_claims(room, queue, error):
    run_id = room.enqueue()
    queue.before = iter([error])

    with in_background(lambda: daemon(room, queue).run(room.shutdown)):
        wait_for(lambda: room.row(run_id)["status"] == "completed")
        stopping(room)


def test_unexpected_error_of_claim_starts_new_claim_id(room, queue):
    """Its lease must expire, so that the attempt counts as lost. A repeated claim would renew it again and again."""
    room.enqueue()
    queue.after = iter([AttributeError("row")])

    with in_background(lambda: daemon(room, queue).run(room.shutdown)):
        wait_for(lambda: len(queue.claims) > 1)
        stopping(room)

    assert queue.claims[0] != queue.claims[1]


def test_unexpected_errors_of_claims_back_off(room, queue, monkeypatch):
    monkeypatch.setattr(claiming_module, "LONGEST_WAIT", 0.01)
    asked = []

    def broken(_):
        asked.append(1)
        raise OSError("stale handle")

    service = daemon(room, queue)
    monkeypatch.setattr(room.slots, "wait_for_free", broken)
    service._claimer._unanswered = 5000  # a weekend of an outage
    with in_background(lambda: service.run(room.shutdown)):
        wait_for(lambda: len(asked) > 3)
        stopping(room)


def test_run_without_thread_is_requeued_and_frees_its_slot(room, queue, monkeypatch):
    run_id = room.enqueue()
    start = threading.Thread.start
    failures = iter([RuntimeError("can't start new thread")])

    def fail_once(thread):
        if thread.name.startswith("run-"):
            for error in failures:
                raise error
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", fail_once)
    with in_background(lambda: daemon(room, queue).run(room.shutdown)):
        wait_for(lambda: room.row(run_id)["failures"] == 1)
        wait_for(lambda: room.slots.free == 1)
        stopping(room)

    assert room.row(run_id)["status"] == "queued"
    assert not list(room.folders.journals.iterdir())


def test_run_without_thread_is_requeued_by_next_process_during_outage(room, queue, monkeypatch):
    run_id = room.enqueue()
    start = threading.Thread.start

    def fail(thread):
        if thread.name.startswith("run-"):
            raise RuntimeError("can't start new thread")
        start(thread)

    def down(*_):
        raise Unavailable("down")

    monkeypatch.setattr(threading.Thread, "start", fail)
    queue.finish = down
    with in_background(lambda: daemon(room, queue).run(room.shutdown)):
        wait_for(lambda: len(queue.claims) > 1)  # one error, and the claims continue
        stopping(room)
    monkeypatch.undo()
    del queue.finish
    assert room.row(run_id)["status"] == "running"

    room.shutdown = StopSignal()
    with in_background(lambda: daemon(room, queue).run(room.shutdown)):
        wait_for(lambda: room.row(run_id)["failures"] == 1)
        stopping(room)

    assert "worker's log" in room.row(run_id)["error_message"]


def test_outcome_that_is_always_rejected_delays_no_other_run(room, queue, monkeypatch):
    monkeypatch.setattr(daemon_module, "ORPHANS_FIRST", 0.2)
    refused, run_id = room.enqueue(), room.enqueue()
    journal = Journal.create(room.folders.journals, room.claim())
    journal.end(Completed(results={}, trained_model_url=None))
    journal.close()
    finish = room.queue.finish

    def refuse_one(lease, outcome, events):
        if lease.job.id == refused:
            raise Misconfigured("the results are too large")
        return finish(lease, outcome, events)

    queue.finish = refuse_one
    with in_background(lambda: daemon(room, queue).run(room.shutdown)):
        wait_for(lambda: room.row(run_id)["status"] == "completed")
        stopping(room)

    assert list(room.folders.journals.iterdir()) == [journal.path]


def test_nothing_is_claimed_without_free_slot(room, queue):
    holding = threading.Event()
    room.trainer.during = lambda epoch: holding.wait(10)
    room.enqueue()
    waiting = room.enqueue()

    with in_background(lambda: daemon(room, queue).run(room.shutdown)):
        wait_for(lambda: queue.claims)
        time.sleep(0.3)
        assert room.row(waiting)["status"] == "queued"
        holding.set()
        wait_for(lambda: room.row(waiting)["status"] == "completed")
        stopping(room)


def test_next_dataset_is_prefetched_once_without_claim(room, queue):
    holding = threading.Event()
    asked = []
    room.datasets.prefetch = lambda order, stop: asked.append(order.run_id)
    room.trainer.during = lambda epoch: holding.wait(10)
    room.enqueue()
    waiting = room.enqueue()

    with in_background(lambda: daemon(room, queue).run(room.shutdown)):
        wait_for(lambda: asked)
        time.sleep(0.3)
        assert asked == [waiting]
        assert room.row(waiting)["attempt"] == 0
        holding.set()
        stopping(room)


@pytest.mark.parametrize("error", [AttributeError("row"), RecursionError(), ValueError("date")])
def test_unexpected_error_of_prefetch_does_not_stop_prefetching(room, queue, error, monkeypatch):
    monkeypatch.setattr(prefetch_module, "AFTER_ERROR", 0.1)
    holding, errors, asked = threading.Event(), iter([error]), []

    def peek(worker):
        for raised in errors:
            raise raised
        return room.queue.peek(worker)

    queue.peek = peek
    room.datasets.prefetch = lambda order, stop: asked.append(order.run_id)
    room.trainer.during = lambda epoch: holding.wait(10)
    room.enqueue()
    waiting = room.enqueue()

    with in_background(lambda: daemon(room, queue).run(room.shutdown)):
        wait_for(lambda: asked == [waiting])
        holding.set()
        stopping(room)


def test_shutdown_waits_until_runs_are_released(room, queue):
    run_id = room.enqueue()

    def slow(epoch):
        if epoch == 2:
            stopping(room)
            time.sleep(0.3)

    room.trainer.during = slow
    ended = []
    with in_background(lambda: ended.append(daemon(room, queue).run(room.shutdown))):
        pass

    assert ended == [True]
    assert room.row(run_id)["status"] == "queued"
    assert room.row(run_id)["failures"] == 0


def test_shutdown_claims_nothing_when_slot_becomes_free(room, queue):
    first, waiting = room.enqueue(), room.enqueue()

    def end(epoch):
        if epoch == 2:
            stopping(room)
            time.sleep(0.2)

    room.trainer.during = end
    with in_background(lambda: daemon(room, queue).run(room.shutdown)):
        pass

    assert room.row(first)["status"] == "queued"
    assert room.row(waiting)["attempt"] == 0


def test_run_that_exceeds_drain_time_is_reported(room, queue):
    room.enqueue()
    holding = threading.Event()

    def hang(epoch):
        stopping(room)
        holding.wait(10)

    room.trainer.during = hang
    ended = []
    with in_background(lambda: ended.append(daemon(room, queue, drain_seconds=0.2).run(room.shutdown))):
        wait_for(lambda: ended)
        holding.set()

    assert ended == [False]


def test_daemon_leaves_no_thread(room, queue):
    before = threading.active_count()
    stop = StopSignal()
    stop.set(StopReason.SHUTDOWN)

    daemon(room, queue).run(stop)

    assert threading.active_count() <= before


def test_hanging_housekeeping_does_not_delay_claims(room, queue):
    hangs = threading.Event()
    run_id = room.enqueue()

    with in_background(lambda: daemon(room, queue, housekeeping=Housekeeping([hangs.wait])).run(room.shutdown)):
        wait_for(lambda: room.row(run_id)["status"] == "completed")
        stopping(room)
    hangs.set()


def test_claimed_run_is_executed_when_status_cannot_be_reported(room, queue):
    class Gone(Manager):
        def ready_and(self, status):
            raise FileNotFoundError("no such socket")

    run_id = room.enqueue()

    with in_background(lambda: daemon(room, queue, manager=Gone()).run(room.shutdown)):
        wait_for(lambda: room.row(run_id)["status"] == "completed")
        stopping(room)
    assert room.row(run_id)["attempt"] == 1


def test_failing_orphan_delivery_does_not_stop_claims(room, queue):
    class Broken:
        def run(self, stop):
            raise RuntimeError("bug")

    run_id = room.enqueue()

    with in_background(lambda: daemon(room, queue, orphans=Broken()).run(room.shutdown)):
        wait_for(lambda: room.row(run_id)["status"] == "completed")
        stopping(room)


def test_shutdown_waits_for_recovery(room, queue, monkeypatch):
    """The recovery needs the queue and the store, which are closed when the daemon returns."""
    monkeypatch.setattr(daemon_module, "ORPHANS_FIRST", 0.1)
    run_id = room.enqueue()
    Journal.create(room.folders.journals, room.claim()).close()

    def slow(journal, stop):
        stopping(room)
        time.sleep(1)
        return Retry(message="The worker is gone.")

    recovery = room.recovery(queue=queue)
    recovery.recover = slow
    daemon(room, queue, recovery=recovery).run(room.shutdown)

    assert room.row(run_id)["failures"] == 1
    assert not list(room.folders.journals.iterdir())
