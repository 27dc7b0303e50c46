"""I10 for the bucket: checkpoints go when nothing resumes from them, whoever ended the run and whatever was killed."""

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


def two_checkpoints(cloud, run_id):
    """Once the row names one and the one before it is still there."""
    cloud.wait_until(run_id, lambda row: row["checkpoint"] and len(checkpoints(cloud, run_id)) == 2)


def nothing_is_left(cloud, run_id, *hosts):
    wait_for(lambda: not checkpoints(cloud, run_id), 20, lambda: (checkpoints(cloud, run_id), cloud.story(run_id)))
    for host in hosts:
        wait_for(lambda host=host: not list((host.home / "uploaded").glob("*")))
        wait_for(lambda host=host: not list(host.run_dir(run_id).parent.glob(f"train_{run_id}*/checkpoints")))


def test_checkpoints_of_a_run_that_completed_are_removed(cloud, host):
    a = host("a", SLOW, **OFTEN)
    run_id = cloud.enqueue(epochs=4)
    two_checkpoints(cloud, run_id)

    assert cloud.wait(run_id, "completed")["checkpoint"] is None

    nothing_is_left(cloud, run_id, a)


def test_checkpoints_of_a_run_whose_ending_the_next_process_delivers_are_removed(cloud, host):
    """F2 F6: killed between the last byte and the last word."""
    a = host("a", SLOW, LEASE_SECONDS=60, **OFTEN)
    cloud.refuse("finish_training_run")
    run_id = cloud.enqueue(epochs=4)
    wait_for(lambda: any("finish_training_run" in path for _, path, _ in cloud.gateway.requests))
    assert checkpoints(cloud, run_id)
    a.kill()
    cloud.gateway.reset()
    a.start()

    assert cloud.wait(run_id, "completed")["attempt"] == 1

    nothing_is_left(cloud, run_id, a)


def test_checkpoints_of_a_deleted_run_are_removed(cloud, host):
    """F12: the row goes in the middle of the training."""
    a = host("a", SLOW, **OFTEN)
    run_id = cloud.enqueue(epochs=100)
    two_checkpoints(cloud, run_id)

    cloud.delete(run_id)

    nothing_is_left_of_deleted(cloud, run_id, a)


def test_checkpoints_of_a_run_that_was_deleted_while_its_service_was_dead_are_removed(cloud, host):
    a = host("a", SLOW, **OFTEN)
    run_id = cloud.enqueue(epochs=100)
    two_checkpoints(cloud, run_id)
    children = a.kill()
    cloud.delete(run_id)
    assert gone(children)
    assert checkpoints(cloud, run_id)

    a.start()

    nothing_is_left_of_deleted(cloud, run_id, a)


def nothing_is_left_of_deleted(cloud, run_id, a):
    wait_for(lambda: not checkpoints(cloud, run_id), 20, lambda: (checkpoints(cloud, run_id), a.tail()))
    wait_for(lambda: not list((a.home / "uploaded").glob("*")))


def test_checkpoints_of_a_run_that_another_host_took_over_are_removed(cloud, host):
    """F2: what it resumes from stays until it has one of its own; the killed host cleans up when it is back."""
    a = host("a", SLOW, SWEEP_SECONDS=0.5, **OFTEN)
    run_id = cloud.enqueue(epochs=12)
    two_checkpoints(cloud, run_id)
    a.kill()
    b = host("b", SLOW, **OFTEN)
    cloud.wait_until(run_id, lambda row: row["attempt"] == 2)
    a.start()
    row = cloud.wait(run_id, "completed")

    assert cloud.epochs(run_id)[2][0] > 1
    assert (row["attempt"], row["worker_id"]) == (2, "b")
    nothing_is_left(cloud, run_id, a, b)


def test_failed_run_keeps_the_checkpoint_that_its_row_names_until_it_has_ended_well(cloud, host):
    """The user edits it and queues it again: it resumes, on another host as well."""
    crash = {"at_epoch": 6, "crash": {"error": "RuntimeError", "message": "shape mismatch"}}
    a = host("a", SLOW | crash, **OFTEN)
    run_id = cloud.enqueue(epochs=8)
    row = cloud.wait(run_id, "failed")
    wait_for(lambda: checkpoints(cloud, run_id) == {row["checkpoint"]["key"]}, told=lambda: checkpoints(cloud, run_id))
    a.kill()
    b = host("b", SLOW, **OFTEN)
    cloud.edit(run_id, status="queued")
    # an ended run begins again by the user's will, which no worker may do
    cloud.sql("delete from faults.changes where was ->> 'status' = 'failed' and became ->> 'status' = 'queued'")

    cloud.wait(run_id, "completed")

    assert cloud.epochs(run_id)[2][0] > 1
    a.start()
    nothing_is_left(cloud, run_id, a, b)


@pytest.mark.parametrize(
    "named", long_except(["training_runs/{other}/1/best.pt", "somebody/else.pt"], "somebody/else.pt")
)
def test_object_that_only_the_row_names_is_not_deleted(cloud, host, named):
    """A row may be written by others: its checkpoint is resumed from, and never a reason to delete."""
    other = "00000000-0000-4000-8000-000000000000"
    key = named.format(other=other)
    cloud.storage.put(BUCKET, key, b"of somebody else")
    run_id = cloud.enqueue(epochs=2)
    cloud.edit(run_id, checkpoint={"epoch": 1, "sha256": "0" * 64, "bytes": 16, "key": key})
    a = host("a", QUICK)

    cloud.wait(run_id, "completed")

    a.wait_idle()
    assert cloud.storage.get(BUCKET, key) == b"of somebody else"
    assert a.stop() == 0
