"""A worker and its runs on an unhealthy host."""

import threading
import time
from dataclasses import asdict

import pytest

from tests.unit.worker.daemon_harness import Manager, serving
from tests.unit.worker.harness import wait_for
from trainer.core.errors import DatasetError, HostFailed, HostUnfit, MachineFailed, RunFailed
from trainer.worker import health as health_module
from trainer.worker.health import Health
from trainer.worker.slots import CPU, Slots

# ── runs ──


def test_repeated_host_failures_of_one_worker_count_as_one_failure(worker):
    run_id = worker.enqueue()
    worker.datasets.error = HostFailed("The disk of DATASET_ROOT is broken.")

    for number in range(1, 5):
        worker.update_row(run_id, not_before=None)
        worker.work(worker.claim(f"{number}1111111-1111-4111-8111-111111111111"))
        row = worker.row(run_id)
        assert (row["status"], row["failures"], row["host_failures"]) == ("queued", 1, {"w": number})
        assert row["error_message"] == "The disk of DATASET_ROOT is broken."


def test_run_that_needs_more_space_is_requeued_and_host_stays_healthy(worker):
    run_id = worker.enqueue()
    worker.datasets.error = HostUnfit("The disk of DATASET_ROOT is too full.")

    for number in range(1, 5):
        worker.update_row(run_id, not_before=None)
        worker.work(worker.claim(f"{number}1111111-1111-4111-8111-111111111111"))
        row = worker.row(run_id)
        assert (row["status"], row["failures"], row["host_failures"]) == ("queued", 1, {"w": number})
        assert row["error_message"] == "The disk of DATASET_ROOT is too full."
    assert worker.health.problem is None


def test_lack_of_space_is_reported_once(worker):
    run_id = worker.enqueue()
    worker.host_problem = "RUNS_DIR: /runs has 39 MiB free, and the smallest run needs 200 MiB."
    lacks = (
        "The disk of /runs has 39 MiB free and this training needs about 200 MiB: free some space, or move RUNS_DIR."
    )
    worker.datasets.error = HostUnfit(lacks)

    worker.work()

    row = worker.row(run_id)
    assert (row["status"], row["host_failures"], row["error_message"]) == ("queued", {"w": 1}, lacks)
    assert worker.health.problem == worker.host_problem


@pytest.mark.parametrize(
    "error", [MachineFailed("killed"), RunFailed("odd"), OSError(28, "No space left on device", "/runs/x")],
)  # fmt: skip
def test_failure_on_unhealthy_host_is_attributed_to_host(worker, error):
    run_id = worker.enqueue()

    def fail(epoch):
        worker.host_problem = "RUNS_DIR is full."
        raise error

    worker.trainer.during = fail
    worker.work()

    row = worker.row(run_id)
    assert (row["status"], row["host_failures"]) == ("queued", {"w": 1})
    assert row["error_message"].endswith(". RUNS_DIR is full.")
    assert worker.health.problem == "RUNS_DIR is full."


def test_slot_is_not_released_during_self_test(worker):
    """Otherwise, the next run would be claimed before the self-test reports the unhealthy host."""
    worker.enqueue()
    free = []
    worker.health = Health(lambda: free.append(worker.slots.free))
    worker.datasets.error = MachineFailed("killed")
    worker.work()

    assert free == [0]


def test_invalid_request_fails_on_unhealthy_host(worker):
    run_id = worker.enqueue()
    worker.datasets.error = DatasetError("No labels.")
    worker.host_problem = "RUNS_DIR is full."

    worker.work()

    assert worker.row(run_id)["status"] == "failed"


# ── the worker's claims ──


@pytest.fixture
def short_pauses(monkeypatch):
    """Shorten the pauses between self-tests."""
    monkeypatch.setattr(health_module, "FIRST_PAUSE", 0.02)
    monkeypatch.setattr(health_module, "LONGEST_PAUSE", 0.02)


def worker_row(worker):
    return next((asdict(row) for row in worker.queue.workers() if row.worker_id == "w"), {})


def test_unhealthy_host_stops_claiming_and_reports_its_problem(worker, queue, short_pauses):
    runs = [worker.enqueue() for _ in range(5)]

    def fail(epoch):
        worker.host_problem = "RUNS_DIR is full."
        raise MachineFailed("disk full")

    worker.trainer.during = fail
    manager = Manager()
    with serving(worker, queue, manager=manager):
        wait_for(lambda: worker_row(worker).get("status") == "unhealthy")
        seen = worker_row(worker)["last_seen"]
        wait_for(lambda: worker_row(worker)["last_seen"] > seen)
        assert worker_row(worker)["status_message"] == "RUNS_DIR is full."
        assert "0 of 1 slots busy; claims no runs: RUNS_DIR is full." in manager.statuses
        assert sum(worker.row(run)["attempt"] for run in runs) == 1
        worker.host_problem, worker.trainer.during = None, lambda epoch: None
        wait_for(lambda: sum(worker.row(run)["status"] == "completed" for run in runs) == 4)
        assert worker_row(worker)["status_message"] is None


def test_host_unhealthy_at_start_claims_nothing_until_healthy(worker, queue, short_pauses):
    worker.host_problem = "RUNS_DIR is full."
    run_id = worker.enqueue()

    with serving(worker, queue):
        wait_for(lambda: worker_row(worker).get("status") == "unhealthy")
        assert queue.claims == []
        worker.host_problem = None
        wait_for(lambda: worker.row(run_id)["status"] == "completed")


def test_no_other_run_is_claimed_until_trial_run_succeeds(worker, queue, short_pauses):
    worker.slots = Slots([CPU, CPU])
    worker.host_problem = "RUNS_DIR is full."
    proving = threading.Event()
    worker.trainer.during = lambda epoch: proving.wait(30)
    runs = [worker.enqueue() for _ in range(3)]

    with serving(worker, queue):
        wait_for(lambda: worker_row(worker).get("status") == "unhealthy")
        worker.host_problem = None
        wait_for(lambda: worker.trainer.orders)
        time.sleep(0.3)
        assert sum(worker.row(run)["attempt"] for run in runs) == 1
        proving.set()
        wait_for(lambda: all(worker.row(run)["status"] == "completed" for run in runs))


def test_training_on_other_slot_continues_while_host_is_unhealthy(worker, queue, short_pauses):
    worker.slots = Slots([CPU, CPU])
    started, going, failing = threading.Event(), threading.Event(), threading.Event()

    def train(epoch):
        if not started.is_set():
            started.set()
            going.wait(60)
        elif not going.is_set() and not failing.is_set():
            failing.set()
            worker.host_problem = "RUNS_DIR is full."
            raise MachineFailed("disk full")

    worker.trainer.during = train
    first = worker.enqueue()

    with serving(worker, queue):
        wait_for(started.is_set)
        second = worker.enqueue()
        wait_for(failing.is_set)
        wait_for(lambda: worker_row(worker).get("status") == "unhealthy")
        assert worker.row(first)["status"] == "running"
        going.set()
        wait_for(lambda: worker.row(first)["status"] == "completed")
        assert (worker.row(second)["status"], worker.row(second)["failures"]) == ("queued", 1)


def test_problem_with_line_breaks_is_one_line_of_the_status(worker, queue, short_pauses):
    """A second line would be a message to systemd, for example MAINPID=1."""
    run_id = worker.enqueue()

    def fail(epoch):
        worker.host_problem = "full\nMAINPID=1\x1b[2J"
        raise MachineFailed("disk full")

    worker.trainer.during = fail
    manager = Manager()
    with serving(worker, queue, manager=manager):
        wait_for(lambda: worker.row(run_id)["failures"] and "0 of 1 slots busy; claims" in "".join(manager.statuses))

    assert "0 of 1 slots busy; claims no runs: full\\nMAINPID=1\\x1b[2J" in manager.statuses
