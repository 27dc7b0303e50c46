"""F1, F2, F3, F24: processes are killed, one or all, and the run goes on."""

import re
import time
import uuid

import pytest

from tests.faults.cloud import BUCKET, wait_for
from tests.faults.conftest import QUICK, SLOW
from tests.faults.hosts import LEASE, gone
from tests.faults.test_finished import NO_KEY
from tests.long import long_except

# what to do so that a run stays in a phase for long, and when it is there
TRAINING_PHASES = {
    "starting": ({"seconds_to_start": 8}, 0),
    "first batch": ({"seconds_per_epoch": 4}, 0),
    "middle": ({"seconds_per_epoch": 0.4}, 3),
    "last epoch": ({"seconds_per_epoch": 0.4}, 5),
    "finalizing": ({"seconds_to_finish": 8}, 6),
}


@pytest.mark.parametrize("phase", long_except(TRAINING_PHASES, "first batch", "middle", "finalizing"))
def test_a_killed_training_goes_on_from_its_last_epoch(cloud, host, phase):
    """F1 (I1 I5 I6 I9 I10): SIGKILL to the training process; nothing but the epoch in progress is trained again."""
    knobs, told = TRAINING_PHASES[phase]
    a = host("a", knobs)
    run_id = cloud.enqueue(epochs=6)
    training = a.training()
    if told:
        cloud.wait_epoch(run_id, told)
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
    assert ("resumed" in cloud.warnings(run_id)) == (told > 0)
    a.wait_idle()


@pytest.mark.parametrize("which", ["first", "second"])
def test_a_run_whose_guardian_is_killed_goes_on_and_leaves_no_process(cloud, host, which):
    """F1 (I1 I5 I6 I9 I10): SIGKILL to one of the two processes between the service and the training, alone."""
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


def stay_in(cloud, phase):
    """Faults and knobs that keep attempt 1 in a phase, and how to tell that it is there."""
    if phase == "downloading":
        cloud.storage.fault("delay", on="GET /object/", times=1000, seconds=3)
        return {}, lambda run_id, a: wait_for(lambda: any("GET /object/" in r for r in cloud.storage.requests))
    if phase == "starting":
        return {"seconds_to_start": 60}, lambda run_id, a: a.training()
    if phase == "training":
        return {"seconds_per_epoch": 0.4}, lambda run_id, a: cloud.wait_epoch(run_id, 3)
    if phase == "finalizing":
        return {"seconds_per_epoch": 0.3, "seconds_to_finish": 60}, lambda run_id, a: cloud.wait_phase(
            run_id, "finalizing"
        )
    if phase == "uploading":
        cloud.storage.fault("delay", on="/1/args.yaml", times=1, seconds=6)
        return {}, lambda run_id, a: cloud.wait_phase(run_id, "uploading")
    assert phase == "ending"
    cloud.refuse("finish_training_run")
    return {}, lambda run_id, a: wait_for(lambda: any("finish_training_run" in r[1] for r in cloud.gateway.requests))


PHASES = ["downloading", "starting", "training", "finalizing", "uploading", "ending"]


def stored_dataset(cloud):
    for path in cloud.data.parent.rglob("*"):
        if path.is_file():
            cloud.storage.put("datasets", f"set/{path.relative_to(cloud.data.parent)}", path.read_bytes())
    return "storage:datasets/set/data.yaml"


@pytest.mark.parametrize("phase", long_except(PHASES, "downloading", "training", "uploading"))
def test_the_run_of_a_killed_service_goes_on_elsewhere(cloud, host, phase):
    """F2 (I1 I6 I8 I9 I10): SIGKILL to the service; no process is left, another host has the run within a lease."""
    data = stored_dataset(cloud) if phase == "downloading" else None
    knobs, is_there = stay_in(cloud, phase)
    a = host("a", knobs)
    run_id = cloud.enqueue(data, epochs=6)
    is_there(run_id, a)
    children = a.kill()
    killed = time.monotonic()
    cloud.gateway.faults = None
    cloud.storage.faults.clear()

    b = host("b", QUICK)
    cloud.wait_until(run_id, lambda row: row["attempt"] == 2 and row["worker_id"] == "b", seconds=20)
    took = time.monotonic() - killed
    row = cloud.wait(run_id, "completed")

    assert gone(children)
    assert took < LEASE + 0.2 + 8  # a lease, a poll, and a very slow machine
    assert (row["attempt"], row["worker_id"]) == (2, "b")
    cloud.check_epochs(run_id, back=6 if phase in ("uploading", "ending") else 3)
    b.wait_idle()
    a.behave(**QUICK)
    a.start()
    a.wait_idle()
    assert cloud.row(run_id) == row


def test_epochs_of_which_the_killed_service_never_heard_are_told_by_the_next(cloud, host):
    """F2 F4 (I6 I9): its training finished epochs while it stood still; they stay trained, and come into the history."""
    a = host("a", {"seconds_per_epoch": 0.3})
    run_id = cloud.enqueue(epochs=12)
    cloud.wait_epoch(run_id, 2)
    a.pause()
    told = cloud.epochs(run_id)[1][-1]
    kept = a.run_dir(run_id) / "checkpoints"
    wait_for((kept / f"epoch-{told + 4:05d}.json").exists)
    assert gone(a.kill())
    a.behave(**QUICK)
    a.start()

    assert cloud.wait(run_id, "completed")["attempt"] == 2

    assert cloud.epochs(run_id) == {1: list(range(1, told + 1)), 2: list(range(told + 1, 13))}
    resumed = next(e["data"]["message"] for e in cloud.events(run_id, "warning") if e["data"]["code"] == "resumed")
    assert int(re.search(r"\d+", resumed)[0]) >= told + 4


def test_a_training_that_cannot_even_end_itself_does_not_outlive_its_service(cloud, host):
    """F2 F5 (I10): it hangs, as in a driver, and hears nothing; it is gone all the same when its service is killed."""
    a = host("a", SLOW)
    run_id = cloud.enqueue(epochs=50)
    cloud.wait_epoch(run_id, 1)
    a.training().suspend()

    assert gone(a.kill())


def test_a_service_that_is_killed_and_restarted_finds_its_own_orphan(cloud, host):
    """F2 F10 (I1 I6 I9): a restart under the same worker id does not hide the run of before."""
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


def test_an_ending_that_was_not_delivered_is_delivered_by_the_next_process(cloud, host):
    """F2 F6 (I6 I8): killed between the last byte and the last word; nothing is trained or uploaded again."""
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


def test_a_torn_checkpoint_is_never_used(cloud, host):
    """F3 (I8 I9): everything dies during a checkpoint write; the newest generation is broken, the one before is used."""
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


@pytest.mark.long  # the bucket is given a minute to have another answer
def test_a_checkpoint_that_the_bucket_garbled_is_not_used(cloud, host):
    """F3 (I8): another host gets other bytes than were stored; the training starts over rather than on garbage."""
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
def test_a_checkpoint_is_waited_for_while_storage_is_down(cloud, host):
    """F2 F6 (I9): another host takes over during an outage of storage; it does not start over from the first epoch."""
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
def test_a_checkpoint_is_waited_for_while_storage_talks_nonsense(cloud, host, body):
    """F2 F20 (I9): another host takes over, and storage denies the checkpoint or hands out a page in its place for a while."""
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


def test_a_poison_run_fails_after_its_attempts_and_one_with_progress_goes_on(cloud, host):
    """F24 (I6 I7): crashes without progress are counted and bounded; progress between crashes resets the count."""
    a = host("a", QUICK, SLOTS=2)
    poison, diligent = str(uuid.uuid4()), str(uuid.uuid4())
    a.behave(**QUICK, runs={poison: {"at_epoch": 1, "signal": 9}, diligent: {"seconds_per_epoch": 0.25}})
    cloud.enqueue(run_id=poison, epochs=3)
    cloud.enqueue(run_id=diligent, epochs=10)
    for attempt in range(1, 5):
        cloud.wait_epoch(diligent, 2 * attempt, attempt)
        for training in a.trainings():
            training.kill()

    row = cloud.wait(poison, "failed")
    assert (row["attempt"], row["failures"]) == (3, 3)
    assert "killed" in row["error_message"]
    row = cloud.wait(diligent, "completed")
    assert row["attempt"] == 5
    cloud.check_epochs(diligent, back=0)
    a.wait_idle()
