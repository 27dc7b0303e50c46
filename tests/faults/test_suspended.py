"""F4, F5, F10, F11: suspended services, stuck trainings, worker IDs used twice, and wrong clocks."""

import signal
import time

import pytest

from tests.faults.cloud import BUCKET, wait_for
from tests.faults.conftest import QUICK, SLOW
from tests.faults.hosts import gone
from tests.long import long_except


def published(cloud, run_id, attempt):
    """Return the artifacts of an attempt with their checksums, without its checkpoints."""
    prefix = f"training_runs/{run_id}/{attempt}/"
    objects = cloud.storage.objects[BUCKET].items()
    return {key: stored.md5 for key, stored in objects if key.startswith(prefix) and "/checkpoints/" not in key}


def reach(cloud, a, run_id, phase):
    if phase == "train":
        cloud.wait_epoch(run_id, 3)
    elif phase == "upload":
        cloud.wait_phase(run_id, "uploading")
    else:
        wait_for(lambda: any("finish_training_run" in path for _, path, _ in cloud.gateway.requests))


@pytest.mark.parametrize("phase", ["train", "upload", "finish"])
def test_service_suspended_past_takeover_and_completion_changes_nothing(cloud, host, phase):
    """F4 (I3 I5 I8 I10): the service is suspended until another host has completed the run. No stale write succeeds."""
    a = host("a", SLOW if phase == "train" else QUICK)
    if phase == "upload":
        cloud.storage.fault("delay", on="/1/args.yaml", times=1, seconds=1.5)
    if phase == "finish":
        cloud.refuse("finish_training_run")
    run_id = cloud.enqueue(epochs=12)
    reach(cloud, a, run_id, phase)
    children = a.children()
    a.pause()
    cloud.gateway.faults = None
    b = host("b", QUICK)
    row = cloud.wait(run_id, "completed")
    assert (row["worker_id"], row["attempt"]) == ("b", 2)
    events, model = cloud.events(run_id), published(cloud, run_id, 2)
    before = published(cloud, run_id, 1)

    a.resume()
    a.wait_idle()

    assert gone(children)
    assert cloud.row(run_id) == row
    assert cloud.events(run_id) == events
    assert published(cloud, run_id, 2) == model
    if phase == "train":
        assert published(cloud, run_id, 1) == before
    b.wait_idle()
    next_run = cloud.enqueue(epochs=1)
    cloud.wait(next_run, "completed")


@pytest.mark.parametrize("phase", long_except(["train", "upload", "finish"]))
def test_service_resumed_during_takeover_changes_nothing(cloud, host, phase):
    """F4 (I1 I3 I5): the suspended service continues while the other host works on the run."""
    a = host("a", SLOW if phase == "train" else QUICK)
    if phase == "upload":
        cloud.storage.fault("delay", on="/1/args.yaml", times=1, seconds=1.5)
    if phase == "finish":
        cloud.refuse("finish_training_run")
    run_id = cloud.enqueue(epochs=12)
    reach(cloud, a, run_id, phase)
    a.pause()
    cloud.gateway.faults = None
    host("b", {"seconds_per_epoch": 0.2, "seconds_to_finish": 3})
    cloud.wait_phase(run_id, "training", attempt=2)

    a.resume()
    a.wait_idle()

    row = cloud.row(run_id)
    assert (row["status"], row["worker_id"], row["attempt"]) == ("running", "b", 2)
    assert row["trained_model_url"] is None
    row = cloud.wait(run_id, "completed")
    assert (row["worker_id"], row["attempt"]) == ("b", 2)
    cloud.check_epochs(run_id, back=12)


def test_delayed_outcome_after_takeover_changes_nothing(cloud, host, wire):
    """F4 F7 (I3 I5): the outcome of an attempt arrives after another host took over the run."""
    a = host("a", QUICK, url=wire.url)
    cloud.storage.fault("delay", on="/1/args.yaml", times=1, seconds=2)
    run_id = cloud.enqueue(epochs=3)
    cloud.wait_phase(run_id, "uploading")
    wire.freeze()
    host("b", QUICK)
    row = cloud.wait(run_id, "completed")
    assert row["worker_id"] == "b"

    wire.restore()
    a.wait_idle(40)

    assert cloud.row(run_id) == row


def test_service_suspended_past_its_lease_reclaims_its_run(cloud, host):
    """F4 (I1 I9): without another host, a suspension past the lease needs no new attempt and loses no epoch."""
    a = host("a", SLOW)
    run_id = cloud.enqueue(epochs=8)
    cloud.wait_epoch(run_id, 2)
    a.pause()
    wait_for(lambda: cloud.sql("select count(*) from training_runs where lease_expires_at < now()") == "1")
    assert cloud.sql("select settle_training_runs()") == "1"
    assert cloud.row(run_id)["status"] == "queued"
    a.resume()

    row = cloud.wait(run_id, "completed")

    assert (row["attempt"], row["failures"]) == (1, 0)
    assert cloud.epochs(run_id) == {1: [1, 2, 3, 4, 5, 6, 7, 8]}
    a.wait_idle()


@pytest.mark.parametrize("how", ["suspended", "in an endless loop"])
def test_training_without_progress_is_killed_and_retried(cloud, host, how):
    """F5 (I6 I9 I10): the training is suspended or in an endless loop. This is detected after STALL_SECONDS."""
    a = host("a", SLOW if how == "suspended" else QUICK | {"hang": True, "at_epoch": 3}, STALL_SECONDS=3)
    run_id = cloud.enqueue(epochs=8)
    training = a.training()
    cloud.wait_epoch(run_id, 2)
    a.behave(**QUICK)
    began = time.monotonic()
    if how == "suspended":
        training.send_signal(signal.SIGSTOP)

    cloud.wait_until(run_id, lambda row: row["attempt"] == 2)
    noticed = time.monotonic() - began
    row = cloud.wait(run_id, "completed")

    assert noticed < 3 + 0.3 + 8  # STALL_SECONDS, the backoff, and time for a very slow machine
    assert row["attempt"] == 2
    cloud.check_epochs(run_id, back=0)
    assert gone([training])
    a.wait_idle()


@pytest.mark.parametrize("where", long_except([1, "finalizing"], 1))
def test_training_that_is_always_stuck_fails_with_reason(cloud, host, where):
    """F5 (I6 I7): the training is stuck in an epoch or the last validation. The error in the row names the reason."""
    host("a", QUICK | {"hang": True, "at_epoch": where}, STALL_SECONDS=0.5)

    row = cloud.wait(cloud.enqueue(epochs=4, max_attempts=2), "failed")

    assert row["attempt"] == 2
    assert "stuck" in row["error_message"]
    assert "STALL_SECONDS" in row["error_message"]


def test_two_services_with_same_worker_id_do_not_share_a_run(cloud, host, tmp_path):
    """F10 (I1 I6): a cloned host has the same worker ID. The claim ID distinguishes the two services."""
    a = host("a", QUICK, WORKER_ID="same")
    b = host("b", QUICK, WORKER_ID="same")
    runs = [cloud.enqueue(epochs=3) for _ in range(6)]

    rows = [cloud.wait(run_id, "completed") for run_id in runs]

    assert {(row["worker_id"], row["attempt"]) for row in rows} == {("same", 1)}
    worked = [{path.name for path in (each.home / "runs").glob("train_*")} for each in (a, b)]
    assert len(worked[0]) + len(worked[1]) == 6
    assert not worked[0] & worked[1]


def test_orphaned_run_is_requeued_despite_second_service_with_same_worker_id(cloud, host):
    """F10 (I1 I6): one of two services is killed, and the other sends heartbeats with the same worker ID."""
    a = host("a", {"seconds_per_epoch": 60}, WORKER_ID="same")
    orphan = cloud.enqueue(epochs=3)
    a.training()
    host("b", SLOW, WORKER_ID="same", SLOTS=2)
    busy = cloud.enqueue(epochs=25)
    cloud.wait_epoch(busy, 1)
    a.kill()

    assert cloud.wait(orphan, "completed")["attempt"] == 2
    assert cloud.wait(busy, "completed")["attempt"] == 1


@pytest.mark.parametrize("hours", long_except([1, -1], 1))
@pytest.mark.long
def test_wrong_clock_does_not_move_run_to_another_host(cloud, host, tmp_path, hours):
    """F11 (I1): the clock of a host is one hour wrong, then one hour wrong in the other direction."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "clock.txt").write_text(str(3600 * hours))
    a = host("a", SLOW)
    run_id = cloud.enqueue(epochs=400)
    cloud.wait_epoch(run_id, 2)
    (tmp_path / "b" / "clock.txt").write_text(str(-3600 * hours))
    host("b", QUICK)
    (tmp_path / "a" / "clock.txt").write_text(str(-3600 * hours))
    other = cloud.enqueue(epochs=2)
    assert cloud.wait(other, "completed")["worker_id"] == "b"
    cloud.wait_epoch(run_id, cloud.epochs(run_id)[1][-1] + 15)  # 15 epochs take longer than a lease
    cloud.edit(run_id, finish_requested=True)

    row = cloud.wait(run_id, "completed")

    assert (row["attempt"], row["worker_id"]) == (1, "a")
    assert (
        abs(cloud.stack.rows("select extract(epoch from now() - completed_at) as ago from training_runs")[0]["ago"])
        < 60
    )
    assert any("T" in line["timestamp"] for line in a.lines())
