"""F6: PostgreSQL, PostgREST or Storage is down."""

import time

import pytest

from tests.faults.cloud import BUCKET, wait_for
from tests.faults.conftest import QUICK, SLOW
from tests.faults.hosts import LEASE
from tests.faults.outage import Outage
from tests.long import long_except

OUTAGE = LEASE + 1.5  # seconds: longer than a lease, so that the lease expires during the outage


def database_down(cloud):
    cloud.stack.postgres.stop()
    return cloud.stack.postgres.start


def rest_down(cloud):
    cloud.stack.postgrest.stop()
    return cloud.stack.postgrest.start


DOWN = {"Postgres": database_down, "PostgREST": rest_down}


@pytest.fixture(params=long_except(DOWN, "PostgREST"))
def outage(cloud, request):
    """`down()` stops a server, `up()` starts it. Both servers are restarted after the test."""
    ups = []

    class Outage:
        def down(self):
            ups.append(DOWN[request.param](cloud))

        def up(self):
            ups.pop()()

    yield Outage()
    cloud.stack.restart()


def assert_all_epochs_once(cloud, run_id, epochs):
    """Check that each epoch is reported once and that the events have consecutive numbers."""
    assert cloud.epochs(run_id) == {1: list(range(1, epochs + 1))}
    seqs = [event["seq"] for event in cloud.events(run_id) if event["seq"] < 1_000_000]
    assert seqs == list(range(1, len(seqs) + 1))


def test_outage_longer_than_lease_loses_no_epoch_and_no_attempt(cloud, host, outage):
    """F6 (I5 I6): the training continues, each epoch is reported once and in order, and no attempt is lost."""
    a = host("a", SLOW)
    run_id = cloud.enqueue(epochs=30)
    cloud.wait_epoch(run_id, 2)
    training = a.training()
    outage.down()
    time.sleep(OUTAGE)
    assert training.is_running()
    outage.up()

    row = cloud.wait(run_id, "completed")

    assert (row["attempt"], row["failures"]) == (1, 0)
    assert_all_epochs_once(cloud, run_id, 30)
    a.wait_idle()


@pytest.mark.parametrize("seconds", long_except([0.2, 1.5], 1.5))
@pytest.mark.parametrize("phase", ["idle", "uploading", "ending"])
def test_short_outage_outside_training_loses_no_epoch_and_no_attempt(cloud, host, phase, seconds):
    """F6 (I6 I8): PostgREST is down while the worker is idle, uploads, or delivers the outcome."""
    a = host("a", QUICK)
    run_id = None
    if phase == "uploading":
        cloud.storage.fault("delay", on="/1/args.yaml", times=1, seconds=seconds)
    if phase == "ending":
        cloud.refuse("finish_training_run")
    if phase != "idle":
        run_id = cloud.enqueue(epochs=4)
        cloud.wait_phase(run_id, "uploading")
    up = rest_down(cloud)
    time.sleep(seconds)
    cloud.gateway.faults = None
    up()

    run_id = run_id or cloud.enqueue(epochs=4)
    assert cloud.wait(run_id, "completed")["attempt"] == 1
    assert_all_epochs_once(cloud, run_id, 4)
    a.wait_idle()


def test_outage_of_1_s_delays_no_epoch_with_default_settings(cloud, tmp_path):
    """F6 (I5 I6 I8): one run trains, and another run finishes during the outage.

    `python -m tests.faults.outage` tests longer outages.
    """
    outage = Outage(cloud, tmp_path / "a", 1).happen()

    assert outage.lost == []
    assert outage.epochs_during_outage > 0
    assert outage.longest_gap < 5 * 0.25  # five times the duration of an epoch, for a very slow machine


def test_service_restarted_during_outage_delivers_outcome(cloud, host):
    """F6 (I6 I8): a service restarts with a finished run while the queue is down. The outcome is delivered once."""
    a = host("a", QUICK, DRAIN_SECONDS=1)
    cloud.storage.fault("delay", on="/1/args.yaml", times=1, seconds=1)
    run_id = cloud.enqueue(epochs=4)
    cloud.wait_phase(run_id, "uploading")
    up = rest_down(cloud)
    wait_for(lambda: any('"outcome"' in path.read_text() for path in a.journals()))
    assert a.stop() == 0
    a.start()
    time.sleep(1)
    up()

    assert cloud.wait(run_id, "completed")["attempt"] == 1
    assert_all_epochs_once(cloud, run_id, 4)
    a.wait_idle()


@pytest.mark.long
def test_run_completes_in_one_attempt_despite_storage_outages(cloud, host):
    """F6 F7 (I6 I8 I11): Storage answers 503 to requests for dataset, checkpoints and artifacts, and to retries."""
    reference = cloud.store_dataset()
    a = host("a", SLOW)
    cloud.storage.fault("status", on="/datasets", times=8)
    run_id = cloud.enqueue(reference, epochs=6)
    cloud.storage.fault("status", on="/checkpoints/", times=3)
    cloud.storage.fault("status", on="/1/best.pt", times=8)

    row = cloud.wait(run_id, "completed", seconds=90)

    assert row["attempt"] == 1
    assert {"fetch_waits", "upload_waits"} <= set(cloud.warnings(run_id))
    assert row["results"]["dataset"]["images"] == {"train": 4, "val": 2}
    a.wait_idle()


@pytest.mark.long
def test_partitioned_host_keeps_checkpoint_of_row(cloud, host):
    """F6 (I5 I9): the heartbeats of a host fail, but it still uploads checkpoints. The next host resumes from the
    checkpoint that the row names.
    """
    a = host("a", SLOW, LEASE_SECONDS=4)
    run_id = cloud.enqueue(epochs=100)
    cloud.wait_until(run_id, lambda row: (row["checkpoint"] or {}).get("epoch", 0) >= 3)
    cloud.gateway.faults = lambda _, path: (503, {}, b"") if "beat_training_run" in path else None
    known = cloud.row(run_id)["checkpoint"]

    def newer_ones():
        keys = [key for _, _, key in cloud.storage.writes if "/checkpoints/" in key]
        return keys[keys.index(known["key"]) + 1 :]

    wait_for(lambda: len(newer_ones()) >= 4)
    assert known["key"] in cloud.storage.objects[BUCKET]
    wait_for(lambda: cloud.sql("select count(*) from training_runs where lease_expires_at < now()") == "1")
    a.pause()
    cloud.gateway.faults = None
    host("b", QUICK)

    cloud.wait(run_id, "completed", seconds=60)

    assert cloud.epochs(run_id)[2][0] == known["epoch"] + 1
