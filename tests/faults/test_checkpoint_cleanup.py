"""I10 for the bucket: however a run ends, its checkpoints are removed when it cannot resume from them any more."""

import pytest

from tests.faults.cloud import BUCKET, wait_for
from tests.faults.conftest import QUICK, SLOW
from tests.faults.hosts import gone
from tests.long import long_except

OFTEN = {"CHECKPOINT_INTERVAL": 0.05}


def checkpoints(cloud, run_id):
    return {
        key
        for key in cloud.storage.stored(BUCKET)
        if key.startswith(f"training_runs/{run_id}/") and "/checkpoints/" in key
    }


def wait_for_two_checkpoints(cloud, run_id):
    """Wait until the row names a checkpoint and the previous checkpoint still exists."""
    cloud.wait_until(run_id, lambda row: row["checkpoint"] and len(checkpoints(cloud, run_id)) == 2)


def wait_for_cleanup(cloud, run_id, *hosts):
    wait_for(lambda: not checkpoints(cloud, run_id), 20, lambda: (checkpoints(cloud, run_id), cloud.history(run_id)))
    for host in hosts:
        wait_for(lambda host=host: not list((host.home / "uploaded").glob("*")))
        wait_for(lambda host=host: not list((host.home / "runs").glob(f"train_{run_id}*/*/checkpoints")))


def test_checkpoints_of_completed_run_are_removed(cloud, host):
    a = host("a", SLOW, **OFTEN)
    run_id = cloud.enqueue(epochs=4)
    wait_for_two_checkpoints(cloud, run_id)

    assert cloud.wait(run_id, "completed")["checkpoint"] is None

    wait_for_cleanup(cloud, run_id, a)


def test_checkpoints_are_removed_when_next_process_delivers_outcome(cloud, host):
    """F2 F6: the service is killed after the upload, before it delivers the outcome."""
    a = host("a", SLOW, LEASE_SECONDS=60, **OFTEN)
    cloud.refuse("finish_training_run")
    run_id = cloud.enqueue(epochs=4)
    wait_for(lambda: any("finish_training_run" in path for _, path, _ in cloud.gateway.requests))
    assert checkpoints(cloud, run_id)
    a.kill()
    cloud.gateway.reset()
    a.start()

    assert cloud.wait(run_id, "completed")["attempt"] == 1

    wait_for_cleanup(cloud, run_id, a)


def test_checkpoints_of_deleted_run_are_removed(cloud, host):
    """F12: the row is deleted during the training."""
    a = host("a", SLOW, **OFTEN)
    run_id = cloud.enqueue(epochs=100)
    wait_for_two_checkpoints(cloud, run_id)

    cloud.delete(run_id)

    wait_for_cleanup_of_deleted(cloud, run_id, a)


def test_checkpoints_of_run_deleted_while_service_is_down_are_removed(cloud, host):
    a = host("a", SLOW, **OFTEN)
    run_id = cloud.enqueue(epochs=100)
    wait_for_two_checkpoints(cloud, run_id)
    children = a.kill()
    cloud.delete(run_id)
    assert gone(children)
    assert checkpoints(cloud, run_id)

    a.start()

    wait_for_cleanup_of_deleted(cloud, run_id, a)


def wait_for_cleanup_of_deleted(cloud, run_id, a):
    wait_for(lambda: not checkpoints(cloud, run_id), 20, lambda: (checkpoints(cloud, run_id), a.tail()))
    wait_for(lambda: not list((a.home / "uploaded").glob("*")))


def test_checkpoints_of_killed_host_are_removed_after_takeover(cloud, host):
    """F2: the run resumes from a checkpoint of the killed host. Host a removes the checkpoint after its restart."""
    a = host("a", SLOW, SWEEP_SECONDS=0.5, **OFTEN)
    run_id = cloud.enqueue(epochs=12)
    wait_for_two_checkpoints(cloud, run_id)
    a.kill()
    b = host("b", SLOW, **OFTEN)
    cloud.wait_until(run_id, lambda row: row["attempt"] == 2)
    a.start()
    row = cloud.wait(run_id, "completed")

    assert cloud.epochs(run_id)[2][0] > 1
    assert (row["attempt"], row["worker_id"]) == (2, "b")
    wait_for_cleanup(cloud, run_id, a, b)


def test_checkpoint_of_failed_run_is_kept_until_requeued_run_completes(cloud, host):
    """A user requeues the failed run, and it resumes on another host."""
    crash = {"at_epoch": 6, "crash": {"error": "RuntimeError", "message": "shape mismatch"}}
    a = host("a", SLOW | crash, **OFTEN)
    run_id = cloud.enqueue(epochs=8)
    row = cloud.wait(run_id, "failed")
    wait_for(
        lambda: checkpoints(cloud, run_id) == {row["checkpoint"]["key"]}, describe=lambda: checkpoints(cloud, run_id)
    )
    a.kill()
    b = host("b", SLOW, **OFTEN)
    cloud.edit(run_id, status="queued")

    cloud.wait(run_id, "completed")

    assert cloud.epochs(run_id)[2][0] > 1
    a.start()
    wait_for_cleanup(cloud, run_id, a, b)


@pytest.mark.parametrize("named", long_except(["training_runs/{other}/1/best.pt", "other/model.pt"], "other/model.pt"))
def test_object_named_only_by_row_is_not_deleted(cloud, host, named):
    """Other clients can write the row, so a worker must not delete an object only because a row names it."""
    other = "00000000-0000-4000-8000-000000000000"
    key = named.format(other=other)
    cloud.storage.put(BUCKET, key, b"of another run")
    run_id = cloud.enqueue(epochs=2)
    cloud.edit(run_id, checkpoint={"epoch": 1, "sha256": "0" * 64, "bytes": 16, "key": key})
    a = host("a", QUICK)

    cloud.wait(run_id, "completed")

    a.wait_idle()
    assert cloud.storage.get(BUCKET, key) == b"of another run"
    assert a.stop() == 0
