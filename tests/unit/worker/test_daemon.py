"""The loop around the runs: claims, outages, prefetching, shutdown."""

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
    """The room's queue, with every claim id noted and `trouble` before an answer."""

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


def test_queued_runs_are_worked_on_one_after_the_other(room, queue):
    runs = [room.enqueue() for _ in range(3)]

    with in_background(lambda: daemon(room, queue).run(room.shutdown)):
        wait_for(lambda: all(room.row(run)["status"] == "completed" for run in runs))
        stopping(room)


def test_a_claim_without_an_answer_is_asked_again_under_the_same_id(room, queue):
    """The first claim was granted, but its answer got lost: the run must not wait for its lease to expire."""
    run_id = room.enqueue()
    queue.after = iter([Unavailable("the answer got lost")])

    with in_background(lambda: daemon(room, queue).run(room.shutdown)):
        wait_for(lambda: room.row(run_id)["status"] == "completed")
        stopping(room)

    assert queue.claims[0] == queue.claims[1]
    assert queue.claims[1] != queue.claims[2]
    assert room.row(run_id)["attempt"] == 1


def test_an_outage_at_the_start_is_survived(room, queue):
    run_id = room.enqueue()
    queue.before = iter([Unavailable("down")])

    with in_background(lambda: daemon(room, queue).run(room.shutdown)):
        wait_for(lambda: room.row(run_id)["status"] == "completed")
        stopping(room)


def test_nothing_is_claimed_until_the_access_is_right(room, queue):
    """A missing migration, say: the operator mends it while the service waits."""
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


def test_a_bug_in_one_run_leaves_the_daemon_working(room, queue):
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
    """A reporter that raises when it hears `what` of one run, or of any."""

    def __init__(self, what, run_id=None):
        self.what, self.run_id = what, run_id

    def __getattr__(self, name):
        def hear(job, *_):
            if name == self.what and job.id == (self.run_id or job.id):
                raise KeyError("bug")

        return hear


def test_a_model_whose_delivery_meets_a_bug_is_delivered_all_the_same(room, queue):
    """The ending is decided and in the journal: the run is not given back, and no event of it is lost."""
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


def test_a_bug_after_the_ending_was_decided_costs_no_model(room, queue):
    run_id = room.enqueue()
    execution = room.execution(queue=queue, reporter=Buggy("ended"))

    with in_background(lambda: daemon(room, queue, execution=execution).run(room.shutdown)):
        wait_for(lambda: room.row(run_id)["status"] in ("completed", "queued") and room.row(run_id)["attempt"])
        stopping(room)

    assert (room.row(run_id)["status"], room.row(run_id)["attempt"]) == ("completed", 1)
    assert room.slots.free == 1


@pytest.mark.parametrize("error", [KeyError("bug"), RecursionError(), OSError(5, "I/O error")])
def test_leftovers_of_ended_runs_that_cannot_be_removed_count_against_nobody(room, queue, error, monkeypatch):
    """Two such runs would otherwise make this host look sick, and it would claim no third one."""

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
def test_unexpected_error_of_a_claim_ends_neither_the_service_nor_the_claims(room, queue, error):
    run_id = room.enqueue()
    queue.before = iter([error])

    with in_background(lambda: daemon(room, queue).run(room.shutdown)):
        wait_for(lambda: room.row(run_id)["status"] == "completed")
        stopping(room)


def test_run_whose_claim_failed_unexpectedly_is_not_claimed_under_the_same_id_again(room, queue):
    """Its lease then runs out, and the queue counts the attempt; a repeated claim would renew the lease for ever."""
    room.enqueue()
    queue.after = iter([AttributeError("row")])

    with in_background(lambda: daemon(room, queue).run(room.shutdown)):
        wait_for(lambda: len(queue.claims) > 1)
        stopping(room)

    assert queue.claims[0] != queue.claims[1]


def test_error_around_a_claim_waits_longer_each_time(room, queue, monkeypatch):
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


def test_run_whose_thread_cannot_start_goes_back_and_its_slot_is_free(room, queue, monkeypatch):
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


def test_run_without_a_thread_is_given_back_by_the_next_start_if_the_queue_is_down(room, queue, monkeypatch):
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
        wait_for(lambda: len(queue.claims) > 1)  # it is told once, and the claims go on
        stopping(room)
    monkeypatch.undo()
    del queue.finish
    assert room.row(run_id)["status"] == "running"

    room.shutdown = StopSignal()
    with in_background(lambda: daemon(room, queue).run(room.shutdown)):
        wait_for(lambda: room.row(run_id)["failures"] == 1)
        stopping(room)

    assert "worker's log" in room.row(run_id)["error_message"]


def test_an_ending_that_is_refused_for_ever_holds_up_no_other_run(room, queue, monkeypatch):
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


def test_nothing_is_claimed_while_no_slot_is_free(room, queue):
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


def test_the_next_runs_dataset_is_prefetched_once_and_its_run_left_alone(room, queue):
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
def test_unexpected_error_of_a_prefetch_stops_no_later_one(room, queue, error, monkeypatch):
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


def test_a_shutdown_waits_for_runs_to_give_themselves_back(room, queue):
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


def test_a_shutdown_claims_nothing_more_when_a_slot_becomes_free(room, queue):
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


def test_a_run_that_does_not_end_within_the_drain_time_is_reported(room, queue):
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


def test_no_thread_is_left(room, queue):
    before = threading.active_count()
    stop = StopSignal()
    stop.set(StopReason.SHUTDOWN)

    daemon(room, queue).run(stop)

    assert threading.active_count() <= before


def test_claims_do_not_wait_for_housekeeping_that_hangs(room, queue):
    hangs = threading.Event()
    run_id = room.enqueue()

    with in_background(lambda: daemon(room, queue, housekeeping=Housekeeping([hangs.wait])).run(room.shutdown)):
        wait_for(lambda: room.row(run_id)["status"] == "completed")
        stopping(room)
    hangs.set()


def test_run_that_was_claimed_is_worked_on_when_the_status_cannot_be_told(room, queue):
    class Gone(Manager):
        def ready_and(self, status):
            raise FileNotFoundError("no such socket")

    run_id = room.enqueue()

    with in_background(lambda: daemon(room, queue, manager=Gone()).run(room.shutdown)):
        wait_for(lambda: room.row(run_id)["status"] == "completed")
        stopping(room)
    assert room.row(run_id)["attempt"] == 1


def test_leftovers_that_cannot_be_delivered_end_nothing_and_hold_up_no_claim(room, queue):
    class Broken:
        def run(self, stop):
            raise RuntimeError("bug")

    run_id = room.enqueue()

    with in_background(lambda: daemon(room, queue, orphans=Broken()).run(room.shutdown)):
        wait_for(lambda: room.row(run_id)["status"] == "completed")
        stopping(room)


def test_service_that_shuts_down_waits_for_the_recovery_of_a_killed_run(room, queue, monkeypatch):
    """What it still needs (the queue, the store, threads) is closed when the daemon returns."""
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
