"""What a worker and its runs do when the host is unhealthy."""

import sqlite3
import threading
import time
from contextlib import closing, contextmanager

import pytest

from tests.unit.worker.test_daemon import Manager, Watched, daemon, stopping, wait_for
from tests.unit.worker.worker_room import Room, in_background
from trainer.core.errors import DatasetError, HostFailed, HostUnfit, MachineFailed, RunFailed
from trainer.worker import health as health_module
from trainer.worker.health import Health
from trainer.worker.slots import CPU, Slots


@pytest.fixture
def room(tmp_path):
    return Room(tmp_path)


@pytest.fixture
def queue(room):
    return Watched(room)


@contextmanager
def serving(room, queue, **parts):
    """Run a daemon during the block and stop it at the end, also when the test fails."""
    with in_background(lambda: daemon(room, queue, **parts).run(room.shutdown)):
        try:
            yield
        finally:
            stopping(room)


# ── the run ──


def test_repeated_host_failures_of_one_worker_count_once(room):
    run_id = room.enqueue()
    room.datasets.error = HostFailed("The disk of DATASET_ROOT is broken.")

    for number in range(1, 5):
        edit_row(room, run_id, not_before=None)
        room.work(room.claim(f"{number}1111111-1111-4111-8111-111111111111"))
        row = room.row(run_id)
        assert (row["status"], row["failures"], row["host_failures"]) == ("queued", 1, {"w": number})
        assert row["error_message"] == "The disk of DATASET_ROOT is broken."


def test_run_that_needs_more_space_waits_and_worker_claims_others(room):
    run_id = room.enqueue()
    room.datasets.error = HostUnfit("The disk of DATASET_ROOT is too full.")

    for number in range(1, 5):
        edit_row(room, run_id, not_before=None)
        room.work(room.claim(f"{number}1111111-1111-4111-8111-111111111111"))
        row = room.row(run_id)
        assert (row["status"], row["failures"], row["host_failures"]) == ("queued", 1, {"w": number})
        assert row["error_message"] == "The disk of DATASET_ROOT is too full."
    assert room.health.problem is None


def test_lack_of_space_is_reported_once(room):
    run_id = room.enqueue()
    room.host_problem = "RUNS_DIR: /runs has 39 MiB free, and the smallest run needs 200 MiB."
    lacks = (
        "The disk of /runs has 39 MiB free and this training needs about 200 MiB: free some space, or move RUNS_DIR."
    )
    room.datasets.error = HostUnfit(lacks)

    room.work()

    row = room.row(run_id)
    assert (row["status"], row["host_failures"], row["error_message"]) == ("queued", {"w": 1}, lacks)
    assert room.health.problem == room.host_problem


@pytest.mark.parametrize(
    "error", [MachineFailed("killed"), RunFailed("odd"), OSError(28, "No space left on device", "/runs/x")],
)  # fmt: skip
def test_failure_on_unhealthy_host_is_of_host(room, error):
    run_id = room.enqueue()

    def fail(epoch):
        room.host_problem = "RUNS_DIR is full."
        raise error

    room.trainer.during = fail
    room.work()

    row = room.row(run_id)
    assert (row["status"], row["host_failures"]) == ("queued", {"w": 1})
    assert row["error_message"].endswith(". RUNS_DIR is full.")
    assert room.health.problem == "RUNS_DIR is full."


def test_slot_is_held_during_self_test(room):
    """Otherwise the next run would be claimed before the self-test shows that the host is unhealthy."""
    room.enqueue()
    free = []

    def test():
        free.append(room.slots.free)

    room.health = Health(test)
    room.datasets.error = MachineFailed("killed")
    room.work()

    assert free == [0]


def test_invalid_request_fails_on_unhealthy_host(room):
    run_id = room.enqueue()
    room.datasets.error = DatasetError("No labels.")
    room.host_problem = "RUNS_DIR is full."

    room.work()

    assert room.row(run_id)["status"] == "failed"


def edit_row(room, run_id, **columns):
    changes = ", ".join(f"{name} = ?" for name in columns)
    with closing(sqlite3.connect(room.home / "queue.db")) as db, db:
        db.execute(f"update training_runs set {changes} where id = ?", [*columns.values(), run_id])


# ── the worker ──


@pytest.fixture
def brisk(monkeypatch):
    """Shorten the pauses between self-tests."""
    monkeypatch.setattr(health_module, "FIRST_PAUSE", 0.1)
    monkeypatch.setattr(health_module, "LONGEST_PAUSE", 0.1)


def worker_row(room):
    return next((row.as_json() for row in room.queue.workers() if row.worker_id == "w"), {})


def test_unhealthy_host_claims_one_run_and_reports_why(room, queue, brisk):
    runs = [room.enqueue() for _ in range(5)]

    def fail(epoch):
        room.host_problem = "RUNS_DIR is full."
        raise MachineFailed("no room")

    room.trainer.during = fail
    manager = Manager()
    with serving(room, queue, manager=manager):
        wait_for(lambda: worker_row(room).get("status") == "unhealthy")
        seen = worker_row(room)["last_seen"]
        wait_for(lambda: worker_row(room)["last_seen"] > seen)
        assert worker_row(room)["status_message"] == "RUNS_DIR is full."
        assert "0 of 1 slots busy; claims no runs: RUNS_DIR is full." in manager.statuses
        assert sum(room.row(run)["attempt"] for run in runs) == 1
        room.host_problem, room.trainer.during = None, lambda epoch: None
        wait_for(lambda: sum(room.row(run)["status"] == "completed" for run in runs) == 4)
        assert worker_row(room)["status_message"] is None


def test_host_unhealthy_at_start_claims_nothing_until_healthy(room, queue, brisk):
    room.host_problem = "RUNS_DIR is full."
    run_id = room.enqueue()

    with serving(room, queue):
        wait_for(lambda: worker_row(room).get("status") == "unhealthy")
        assert queue.claims == []
        room.host_problem = None
        wait_for(lambda: room.row(run_id)["status"] == "completed")


def test_run_on_trial_is_alone_until_success(room, queue, brisk):
    room.slots = Slots([CPU, CPU])
    room.host_problem = "RUNS_DIR is full."
    proving = threading.Event()
    room.trainer.during = lambda epoch: proving.wait(10)
    runs = [room.enqueue() for _ in range(3)]

    with serving(room, queue):
        wait_for(lambda: worker_row(room).get("status") == "unhealthy")
        room.host_problem = None
        wait_for(lambda: room.trainer.orders)
        time.sleep(0.3)
        assert sum(room.row(run)["attempt"] for run in runs) == 1
        proving.set()
        wait_for(lambda: all(room.row(run)["status"] == "completed" for run in runs))


def test_training_on_other_slot_continues_while_host_is_unhealthy(room, queue, brisk):
    room.slots = Slots([CPU, CPU])
    started, going, failing = threading.Event(), threading.Event(), threading.Event()

    def train(epoch):
        if not started.is_set():
            started.set()
            going.wait(60)
        elif not going.is_set() and not failing.is_set():
            failing.set()
            room.host_problem = "RUNS_DIR is full."
            raise MachineFailed("no room")

    room.trainer.during = train
    first = room.enqueue()

    with serving(room, queue):
        wait_for(started.is_set)
        second = room.enqueue()
        wait_for(failing.is_set)
        wait_for(lambda: worker_row(room).get("status") == "unhealthy")
        assert room.row(first)["status"] == "running"
        going.set()
        wait_for(lambda: room.row(first)["status"] == "completed")
        assert (room.row(second)["status"], room.row(second)["failures"]) == ("queued", 1)
