"""F12: users cancel, delete and finish runs in every phase."""

import time

import pytest

from tests.faults.cloud import wait_for
from tests.faults.conftest import QUICK, SLOW
from tests.faults.hosts import gone
from tests.faults.phases import PHASES, start_in_phase
from tests.long import long_except


@pytest.mark.parametrize("phase", PHASES)
def test_cancel_frees_host_in_any_phase(cloud, host, phase):
    """F12 (I3 I4 I10): the training process ends within a time limit. Its artifacts are kept."""
    a, run_id = start_in_phase(cloud, host, phase)
    processes = a.trainings()
    asked = time.monotonic()
    cloud.cancel(run_id)
    assert gone(processes)
    took = time.monotonic() - asked
    a.behave(**QUICK)
    time.sleep(0.5 if phase == "ending" else 0)
    cloud.gateway.faults = None

    row = cloud.wait(run_id, "canceled", "completed")

    assert took < 2 + 2 + 6  # CANCEL_GRACE, the time after SIGTERM, and time for a very slow machine
    # a model that was finished before the cancel is kept: deleting it is easy, training it again is slow
    assert row["status"] == ("completed" if phase == "ending" else "canceled")
    if phase != "ending":
        assert (row["error_message"], row["trained_model_url"]) == ("Canceled by user.", None)
    if phase in ("training", "finalizing"):
        assert {"last.pt", "results.csv", "run.log"} <= {each["name"] for each in row["results"]["artifacts"]}
        cloud.check_published(row)
    cloud.storage.faults.clear()
    a.wait_idle()
    cloud.wait(cloud.enqueue(epochs=1), "completed")


@pytest.mark.parametrize("phase", long_except(PHASES, "downloading", "training", "uploading"))
def test_deleted_row_frees_host_in_any_phase(cloud, host, phase):
    """F12 (I3 I5 I10): the training stops at once, and the row is not written again."""
    a, run_id = start_in_phase(cloud, host, phase)
    processes = a.trainings()
    cloud.delete(run_id)
    cloud.gateway.faults = None
    cloud.storage.faults.clear()
    a.behave(**QUICK)

    a.wait_idle()

    assert gone(processes)
    assert cloud.row(run_id) is None
    cloud.wait(cloud.enqueue(epochs=1), "completed")


def test_status_set_by_app_stops_training_and_is_not_overwritten(cloud, host):
    """F12 (I3 I4): the app ends the run with its own message, which stays in the row."""
    a = host("a", {"seconds_per_epoch": 1})
    run_id = cloud.enqueue(epochs=50)
    cloud.wait_epoch(run_id, 1)
    cloud.edit(run_id, status="canceled", error_message="Canceled in the app.", cancel_requested=True)
    row = cloud.row(run_id)

    a.wait_idle()

    assert cloud.row(run_id) == row
    assert row["error_message"] == "Canceled in the app."


def test_canceled_run_of_killed_host_is_canceled_by_another_host(cloud, host):
    """F12 F2 (I4 I6): the run is canceled during the takeover and not trained again."""
    a = host("a", SLOW)
    run_id = cloud.enqueue(epochs=50)
    cloud.wait_epoch(run_id, 1)
    a.pause()
    cloud.cancel(run_id)
    a.kill()
    host("b", QUICK)

    row = cloud.wait(run_id, "canceled")

    assert row["attempt"] == 1


def test_cancel_during_claim_ends_every_run(cloud, host):
    """F12 (I4 I6): twenty runs are canceled at about the time of their claim. Each ends as canceled or completed."""
    a = host("a", QUICK | {"seconds_per_epoch": 0.05}, SLOTS=4)
    wait_for(lambda: any("claim_training_run" in path for _, path, _ in cloud.gateway.requests))
    runs = []
    for number in range(20):
        runs.append(cloud.enqueue(epochs=2))
        time.sleep(0.02 * (number % 7))
        cloud.cancel(runs[-1])

    for run_id in runs:
        row = cloud.wait(run_id, "canceled", "completed")
        assert (row["trained_model_url"] is not None) == (row["status"] == "completed")
    a.wait_idle()


def test_concurrent_finish_and_cancel_give_one_complete_outcome(cloud, host):
    """F12 (I3 I4): the run ends as canceled or as completed, with the artifacts of that outcome."""
    a = host("a", {"seconds_per_epoch": 0.4})
    run_id = cloud.enqueue(epochs=50)
    cloud.wait_epoch(run_id, 1)
    cloud.edit(run_id, finish_requested=True)
    cloud.cancel(run_id)

    row = cloud.wait(run_id, "canceled", "completed")

    cloud.check_published(row)
    assert row["results"]["metrics"]["epoch"] < 50
    a.wait_idle()


def test_cancel_between_attempts_keeps_artifacts(cloud, host):
    """F12 F13 (I8): the run is canceled after its service was stopped. The weights and the log are published."""
    a = host("a", SLOW)
    run_id = cloud.enqueue(epochs=20)
    cloud.wait_epoch(run_id, 3)
    assert a.stop() == 0
    assert cloud.row(run_id)["status"] == "queued"

    cloud.cancel(run_id)

    row = cloud.wait(run_id, "canceled")
    assert {"last.pt", "results.csv", "run.log"} <= {artifact["name"] for artifact in row["results"]["artifacts"]}
    assert all(f"/{run_id}/1/" in artifact["path"] for artifact in row["results"]["artifacts"])
    cloud.check_published(row)


def test_cancel_after_killed_training_keeps_artifacts(cloud, host):
    """F1 F12 (I8): no worker has the 4 GPUs for the next attempt. The artifacts of the killed attempt are listed."""
    a = host("a", SLOW)
    run_id = cloud.enqueue(epochs=20)
    cloud.wait_epoch(run_id, 3)
    cloud.edit(run_id, configuration={"epochs": 20, "requires": {"gpus": 4}})
    a.training().kill()

    row = cloud.wait_until(run_id, lambda row: row["status"] == "queued" and row["failures"] == 1)
    assert {"last.pt", "results.csv", "run.log"} <= {artifact["name"] for artifact in row["results"]["artifacts"]}
    cloud.check_published(row)
    cloud.cancel(run_id)
    assert cloud.wait(run_id, "canceled")["results"]["artifacts"] == row["results"]["artifacts"]


@pytest.mark.parametrize("asked", long_except(["before the restart", "after the restart"], "before the restart"))
def test_cancel_after_killed_service_keeps_artifacts(cloud, host, asked):
    """F2 F12 (I8): service and training are killed, and the run is canceled before or after the restart."""
    a = host("a", SLOW, LEASE_SECONDS=60)
    run_id = cloud.enqueue(epochs=20)
    cloud.wait_epoch(run_id, 3)
    cloud.edit(run_id, configuration={"epochs": 20, "requires": {"gpus": 4}})  # no worker has 4 GPUs
    a.kill_all()
    if asked == "before the restart":
        cloud.cancel(run_id)
    a.start()
    if asked == "after the restart":
        cloud.wait_until(run_id, lambda row: row["status"] == "queued" and row["failures"] == 1)
        cloud.cancel(run_id)

    row = cloud.wait(run_id, "canceled")

    assert (row["attempt"], row["error_message"], row["trained_model_url"]) == (1, "Canceled by user.", None)
    assert {"last.pt", "results.csv", "run.log"} <= {artifact["name"] for artifact in row["results"]["artifacts"]}
    assert row["results"]["metrics"]["epoch"] >= 3
    cloud.check_published(row)
    a.wait_idle()


def test_restarted_host_leaves_canceled_run_unchanged(cloud, host):
    """F2 F12 (I3 I8): another worker canceled the run. The restarted host has files of the run, but writes nothing."""
    a = host("a", SLOW)
    run_id = cloud.enqueue(epochs=20)
    cloud.wait_epoch(run_id, 3)
    a.kill_all()
    cloud.cancel(run_id)
    b = host("b", QUICK)
    row = cloud.wait(run_id, "canceled")
    written = len(cloud.storage.writes)

    a.start()
    a.wait_idle()

    assert cloud.row(run_id) == row
    assert len(cloud.storage.writes) == written
    b.wait_idle()
