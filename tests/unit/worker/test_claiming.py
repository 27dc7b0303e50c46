"""Claims of the worker during outages, errors and slow tasks of the service."""

import threading
import time

import pytest

from tests.unit.worker.daemon_harness import Manager, daemon, serving
from tests.unit.worker.fakes import raising
from tests.unit.worker.harness import in_background, wait_for
from trainer.core.errors import Misconfigured, Unavailable
from trainer.core.job import Completed
from trainer.core.stop import StopReason
from trainer.worker import claiming as claiming_module
from trainer.worker import daemon as daemon_module
from trainer.worker import housekeeping as housekeeping_module
from trainer.worker.housekeeping import Housekeeping
from trainer.worker.journal import Journal


def test_unanswered_claim_is_repeated_with_same_claim_id(worker, queue):
    """The answer of the queue was lost. With a new claim ID, the run would be idle until its lease expires."""
    run_id = worker.enqueue()
    queue.after = raising(Unavailable("the answer was lost"))

    with serving(worker, queue):
        wait_for(lambda: worker.row(run_id)["status"] == "completed")

    assert queue.claims[0] == queue.claims[1]
    assert queue.claims[1] != queue.claims[2]
    assert worker.row(run_id)["attempt"] == 1


def test_run_is_claimed_after_outage_at_start(worker, queue):
    run_id = worker.enqueue()
    queue.before = raising(Unavailable("down"))

    with serving(worker, queue):
        wait_for(lambda: worker.row(run_id)["status"] == "completed")


def test_no_run_is_claimed_until_the_queue_check_passes(worker, queue):
    """Example: a migration is missing until the operator applies it."""
    worker.enqueue()
    fail = raising(Misconfigured("apply the migrations"), Misconfigured("apply the migrations"))
    asked = []

    def check():
        asked.append(list(queue.claims))
        fail()
        return ["anonymous users may write"]

    with serving(worker, queue, check=check):
        wait_for(lambda: queue.claims)

    assert asked == [[], [], []]


@pytest.mark.parametrize(
    "error", [AttributeError("row"), RecursionError(), OverflowError(), TypeError(), KeyError("id")]
)
def test_unexpected_error_of_claim_does_not_stop_claims(worker, queue, error):
    run_id = worker.enqueue()
    queue.before = raising(error)

    with serving(worker, queue):
        wait_for(lambda: worker.row(run_id)["status"] == "completed")


def test_claim_after_unexpected_error_has_new_claim_id(worker, queue):
    """The same claim ID would renew the lease. The lease must expire, so that the attempt counts as lost."""
    worker.enqueue()
    queue.after = raising(AttributeError("row"))

    with serving(worker, queue):
        wait_for(lambda: len(queue.claims) > 1)

    assert queue.claims[0] != queue.claims[1]


def test_claim_loop_continues_after_5000_failed_claims(worker, queue, monkeypatch):
    monkeypatch.setattr(claiming_module, "LONGEST_WAIT", 0.01)
    asked = []

    def broken(_):
        asked.append(1)
        raise OSError("stale handle")

    service = daemon(worker, queue)
    monkeypatch.setattr(worker.slots, "wait_for_free", broken)
    service.claimer._unanswered = 5000  # number of failed claims, as after a long outage
    with in_background(lambda: service.run(worker.shutdown)):
        wait_for(lambda: len(asked) > 3)
        worker.shutdown.set(StopReason.SHUTDOWN)


def test_rejected_outcome_does_not_delay_other_runs(worker, queue, monkeypatch):
    monkeypatch.setattr(daemon_module, "ORPHAN_WAIT_SECONDS", 0.05)
    refused, run_id = worker.enqueue(), worker.enqueue()
    journal = Journal.create(worker.folders.journals, worker.claim())
    journal.end(Completed(results={}, trained_model_url=None))
    journal.close()
    finish = worker.queue.finish

    def refuse_one(lease, outcome, events):
        if lease.job.id == refused:
            raise Misconfigured("the results are too large")
        return finish(lease, outcome, events)

    queue.finish = refuse_one
    with serving(worker, queue):
        wait_for(lambda: worker.row(run_id)["status"] == "completed")

    assert list(worker.folders.journals.iterdir()) == [journal.path]


def test_no_run_is_claimed_without_free_slot(worker, queue):
    holding = threading.Event()
    worker.trainer.during = lambda epoch: holding.wait(30)
    worker.enqueue()
    waiting = worker.enqueue()

    with serving(worker, queue):
        wait_for(lambda: queue.claims)
        time.sleep(0.3)
        assert worker.row(waiting)["status"] == "queued"
        holding.set()
        wait_for(lambda: worker.row(waiting)["status"] == "completed")


def test_hanging_housekeeping_does_not_delay_claims(worker, queue, monkeypatch):
    monkeypatch.setattr(housekeeping_module, "LAST_CHORE", 0.1)
    hangs = threading.Event()
    run_id = worker.enqueue()

    with serving(worker, queue, housekeeping=Housekeeping([hangs.wait])):
        wait_for(lambda: worker.row(run_id)["status"] == "completed")
    hangs.set()


def test_claimed_run_is_executed_if_service_manager_is_unreachable(worker, queue):
    class Gone(Manager):
        def ready_and(self, status):
            raise FileNotFoundError("no such socket")

    run_id = worker.enqueue()

    with serving(worker, queue, manager=Gone()):
        wait_for(lambda: worker.row(run_id)["status"] == "completed")
    assert worker.row(run_id)["attempt"] == 1


def test_failing_crash_recovery_does_not_stop_claims(worker, queue):
    class Broken:
        def run(self, stop):
            raise RuntimeError("bug")

    run_id = worker.enqueue()

    with serving(worker, queue, orphans=Broken()):
        wait_for(lambda: worker.row(run_id)["status"] == "completed")
