"""F1, F2, F3, F24: processes are killed, and the run resumes."""

import re
import time
import uuid

import pytest

from tests.faults.cloud import BUCKET, wait_for
from tests.faults.conftest import QUICK, SLOW
from tests.faults.hosts import LEASE, gone
from tests.faults.phases import PHASES, hold_in_phase
from tests.faults.test_finished import NO_KEY
from tests.long import long_except

# phase → the behavior that keeps a run in the phase, and the last epoch before the phase
TRAINING_PHASES = {
    "starting": ({"seconds_to_start": 8}, 0),
    "first batch": ({"seconds_per_epoch": 4}, 0),
    "middle": ({"seconds_per_epoch": 0.4}, 3),
    "last epoch": ({"seconds_per_epoch": 0.4}, 5),
    "finalizing": ({"seconds_to_finish": 8}, 6),
}


@pytest.mark.parametrize("phase", long_except(TRAINING_PHASES, "first batch", "middle", "finalizing"))
def test_killed_training_resumes_from_last_epoch(cloud, host, phase):
    """F1 (I1 I5 I6 I9 I10): the training process is killed. Only the epoch in progress is repeated."""
    behavior, reported = TRAINING_PHASES[phase]
    a = host("a", behavior)
    run_id = cloud.enqueue(epochs=6)
    training = a.training()
    if reported:
        cloud.wait_epoch(run_id, reported)
    if phase == "finalizing":
        cloud.wait_phase(run_id, "finalizing")
    elif phase == "first batch":
        cloud.wait_phase(run_id, "training")
    a.behave(**QUICK)
    training.kill()

    row = cloud.wait(run_id, "completed")

    assert row["attempt"] == 2
    assert row["results"]["metrics"]["epoch"] == 6
    cloud.check_epochs(run_id, back=0)
    assert ("resumed" in cloud.warnings(run_id)) == (reported > 0)
    a.wait_idle()


@pytest.mark.parametrize("which", ["first", "second"])
def test_killed_subreaper_leaves_no_process_and_run_resumes(cloud, host, which):
    """F1 (I1 I5 I6 I9 I10): one of the two processes between the service and the training is killed."""
    a = host("a", {"seconds_per_epoch": 0.4})
    run_id = cloud.enqueue(epochs=6)
    cloud.wait_epoch(run_id, 3)
    training = a.training()
    a.behave(**QUICK)
    second = training.parent()
    (second if which == "second" else second.parent()).kill()

    row = cloud.wait(run_id, "completed")

    assert gone([training])
    assert row["attempt"] == 2
    assert row["results"]["metrics"]["epoch"] == 6
    cloud.check_epochs(run_id, back=0)
    a.wait_idle()


@pytest.mark.parametrize("phase", long_except(PHASES, "downloading", "training", "uploading"))
def test_run_of_killed_service_resumes_on_another_host(cloud, host, phase):
    """F2 (I1 I6 I8 I9 I10): the service is killed. No process is left, and another host claims the run."""
    data = cloud.store_dataset() if phase == "downloading" else None
    behavior, wait_for_phase = hold_in_phase(cloud, phase)
    a = host("a", behavior)
    run_id = cloud.enqueue(data, epochs=6)
    wait_for_phase(run_id, a)
    children = a.kill()
    killed = time.monotonic()
    cloud.gateway.faults = None
    cloud.storage.faults.clear()

    b = host("b", QUICK)
    cloud.wait_until(run_id, lambda row: row["attempt"] == 2 and row["worker_id"] == "b", seconds=20)
    took = time.monotonic() - killed
    row = cloud.wait(run_id, "completed")

    assert gone(children)
    assert took < LEASE + 0.2 + 8  # a lease, a poll, and time for a very slow machine
    assert (row["attempt"], row["worker_id"]) == (2, "b")
    cloud.check_epochs(run_id, back=6 if phase in ("uploading", "ending") else 3)
    b.wait_idle()
    a.behave(**QUICK)
    a.start()
    a.wait_idle()
    assert cloud.row(run_id) == row


def test_unreported_epochs_of_killed_service_are_reported_by_next_attempt(cloud, host):
    """F2 F4 (I6 I9): the training finished epochs while the service was suspended. The history has these epochs."""
    a = host("a", {"seconds_per_epoch": 0.3})
    run_id = cloud.enqueue(epochs=12)
    cloud.wait_epoch(run_id, 2)
    a.pause()
    reported = cloud.epochs(run_id)[1][-1]
    folder = a.run_dir(run_id) / "checkpoints"
    wait_for((folder / f"epoch-{reported + 4:05d}.json").exists)
    assert gone(a.kill())
    a.behave(**QUICK)
    a.start()

    assert cloud.wait(run_id, "completed")["attempt"] == 2

    assert cloud.epochs(run_id) == {1: list(range(1, reported + 1)), 2: list(range(reported + 1, 13))}
    resumed = next(e["data"]["message"] for e in cloud.events(run_id, "warning") if e["data"]["code"] == "resumed")
    assert int(re.search(r"\d+", resumed)[0]) >= reported + 4


def test_suspended_training_ends_with_killed_service(cloud, host):
    """F2 F5 (I10): the training hangs, as in a driver call. It ends when its service is killed."""
    a = host("a", SLOW)
    run_id = cloud.enqueue(epochs=50)
    cloud.wait_epoch(run_id, 1)
    a.training().suspend()

    assert gone(a.kill())


def test_restarted_service_takes_over_its_own_orphaned_run(cloud, host):
    """F2 F10 (I1 I6 I9): the service is killed and restarts with the same worker ID. The run has one more attempt."""
    a = host("a", SLOW)
    run_id = cloud.enqueue(epochs=8)
    cloud.wait_epoch(run_id, 3)
    children = a.kill()
    a.behave(**QUICK)
    a.start()

    row = cloud.wait(run_id, "completed")

    assert gone(children)
    assert row["attempt"] == 2
    cloud.check_epochs(run_id, back=1)
    a.wait_idle()


def test_undelivered_outcome_is_delivered_after_restart(cloud, host):
    """F2 F6 (I6 I8): the service is killed after the upload. Only the delivery of the outcome is repeated."""
    a = host("a", QUICK, LEASE_SECONDS=60)
    cloud.refuse("finish_training_run")
    run_id = cloud.enqueue(epochs=3)
    wait_for(lambda: any("finish_training_run" in path for _, path, _ in cloud.gateway.requests))
    a.kill()
    written = len(cloud.storage.writes)
    cloud.gateway.reset()
    a.start()

    row = cloud.wait(run_id, "completed")

    assert row["attempt"] == 1
    assert len(cloud.storage.writes) == written
    a.wait_idle()


def test_torn_checkpoint_is_not_used(cloud, host):
    """F3 (I8 I9): the service is killed and its newest checkpoint is cut. The run resumes from the one before."""
    a = host("a", SLOW, CHECKPOINT_INTERVAL=3600)
    run_id = cloud.enqueue(epochs=8)
    cloud.wait_epoch(run_id, 4)
    a.kill()
    checkpoints = sorted((a.run_dir(run_id) / "checkpoints").glob("epoch-*.pt"))
    newest, before = checkpoints[-1], checkpoints[-2]
    newest.write_bytes(newest.read_bytes()[:-500])
    (newest.parent / "epoch-00099.json").write_text('{"epoch": 99, "sha2')
    (newest.parent / "epoch-00098.tmp").write_bytes(b"half")
    a.behave(**QUICK)
    a.start()

    row = cloud.wait(run_id, "completed")

    assert row["attempt"] == 2
    assert cloud.epochs(run_id)[2][0] == int(before.stem.removeprefix("epoch-")) + 1
    assert "checkpoint_broken" in cloud.warnings(run_id)


@pytest.mark.long  # the worker retries the download for a minute
def test_damaged_checkpoint_in_bucket_is_not_used(cloud, host):
    """F3 (I8): another host downloads damaged bytes. The training starts from the first epoch."""
    a = host("a", SLOW)
    run_id = cloud.enqueue(epochs=6)
    cloud.wait_until(run_id, lambda row: row["checkpoint"])
    a.kill()
    key = cloud.row(run_id)["checkpoint"]["key"]
    cloud.storage.put(BUCKET, key, b"garbage".ljust(2000))
    host("b", QUICK)

    row = cloud.wait(run_id, "completed", seconds=110)

    assert row["worker_id"] == "b"
    assert {"checkpoint_broken", "no_checkpoint"} <= set(cloud.warnings(run_id))
    assert cloud.epochs(run_id)[2] == [1, 2, 3, 4, 5, 6]


@pytest.mark.long
def test_takeover_retries_checkpoint_download_during_storage_outage(cloud, host):
    """F2 F6 (I9): another host takes over during an outage of Storage. The run does not start from the first epoch."""
    a = host("a", SLOW)
    run_id = cloud.enqueue(epochs=20)
    cloud.wait_until(run_id, lambda row: (row["checkpoint"] or {}).get("epoch", 0) >= 3)
    a.kill()
    cloud.storage.fault("status", on=f"GET /object/{BUCKET}/", times=7, status=503)
    host("b", QUICK)

    cloud.wait(run_id, "completed", seconds=60)

    assert cloud.epochs(run_id)[2][0] > 3
    cloud.check_epochs(run_id, back=3)


@pytest.mark.parametrize("body", long_except([NO_KEY, b"<html>Log in</html>"], NO_KEY))
def test_takeover_retries_checkpoint_download_after_wrong_storage_answers(cloud, host, body):
    """F2 F20 (I9): another host takes over, and Storage answers "not found" or a web page for a while."""
    a = host("a", SLOW)
    run_id = cloud.enqueue(epochs=20)
    cloud.wait_until(run_id, lambda row: (row["checkpoint"] or {}).get("epoch", 0) >= 3)
    a.kill()
    status, headers = (400, {}) if body is NO_KEY else (200, {"ETag": '"page"'})
    cloud.storage.fault("status", on=f"GET /object/{BUCKET}/", times=3, status=status, body=body, headers=headers)
    host("b", QUICK)

    cloud.wait(run_id, "completed", seconds=90)

    assert cloud.epochs(run_id)[2][0] > 3
    cloud.check_epochs(run_id, back=3)


def test_crashing_run_fails_and_run_with_progress_continues(cloud, host):
    """F24 (I6 I7): the third crash without progress fails the run. Progress between crashes resets the count."""
    a = host("a", QUICK, SLOTS=2)
    crashing, progressing = str(uuid.uuid4()), str(uuid.uuid4())
    a.behave(**QUICK, runs={crashing: {"at_epoch": 1, "signal": 9}, progressing: {"seconds_per_epoch": 0.25}})
    cloud.enqueue(run_id=crashing, epochs=3)
    cloud.enqueue(run_id=progressing, epochs=10)
    for attempt in range(1, 5):
        cloud.wait_epoch(progressing, 2 * attempt, attempt)
        for training in a.trainings():
            training.kill()

    row = cloud.wait(crashing, "failed")
    assert (row["attempt"], row["failures"]) == (3, 3)
    assert "killed" in row["error_message"]
    row = cloud.wait(progressing, "completed")
    assert row["attempt"] == 5
    cloud.check_epochs(progressing, back=0)
    a.wait_idle()
