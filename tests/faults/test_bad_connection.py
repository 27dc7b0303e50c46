"""F7, F8, F26: connections are bad, answers are wrong or lost, or the key is refused."""

import os
import signal
import subprocess
import time

import pytest

from tests.faults.cloud import wait_for
from tests.faults.conftest import QUICK, SLOW
from tests.faults.hosts import LEASE
from tests.faults.test_outages import OUTAGE, assert_all_epochs_once
from tests.long import long_except


def cut(wire):
    wire.cut()


def freeze(wire):
    wire.freeze()


def slow(wire):
    wire.slow(2)


def truncate(wire):
    wire.cut_answer(30)


def lose(wire):
    try:
        wire.lose(30)
    except (OSError, subprocess.CalledProcessError) as reason:
        if os.environ.get("CI"):
            raise
        pytest.skip(f"losing packets needs root and nft: {reason}")


@pytest.mark.parametrize(
    "break_connection", long_except([cut, freeze, slow, truncate, lose], cut, truncate), ids=lambda f: f.__name__
)
def test_run_completes_in_one_attempt_over_bad_connection(cloud, host, wire, break_connection):
    """F7 (I6 I8): connections are reset, half-open or slow, answers are cut, or packets are lost.

    Each test causes one of these faults during the claim, heartbeats, the upload and the delivery of the outcome.
    """
    a = host("a", SLOW, url=wire.url, LEASE_SECONDS=20 if break_connection in (slow, lose) else LEASE)
    wait_for(lambda: any("claim_training_run" in path for _, path, _ in cloud.gateway.requests))
    seconds = 4.5 if break_connection is slow else 1.0  # long enough for a slow answer to arrive
    break_connection(wire)
    run_id = cloud.enqueue(epochs=8)
    time.sleep(seconds)
    wire.restore()
    for moment in ("beats", "uploads", "ending"):
        if moment == "beats":
            cloud.wait_epoch(run_id, 1)
        else:
            cloud.wait_phase(run_id, "uploading" if moment == "uploads" else "ending")
        break_connection(wire)
        time.sleep(seconds)
        wire.restore()

    row = cloud.wait(run_id, "completed", seconds=60)

    assert row["attempt"] == 1
    assert_all_epochs_once(cloud, run_id, 8)
    a.wait_idle()


WRONG_ANSWERS = {
    429: b'{"message":"too many requests"}',
    500: b"",
    502: b"<html>502 Bad Gateway</html>",
    503: b'{"message":"unhealthy"}',
    504: b"upstream request timeout",
    200: b'[{"id": "cut',
}


@pytest.mark.parametrize("status", long_except(WRONG_ANSWERS, 200, 429, 502))
def test_run_completes_in_one_attempt_despite_wrong_answers_of_queue(cloud, host, status):
    """F7 (I6): three times, all calls to the queue get an error or a truncated document for 0.7 s."""
    a = host("a", SLOW)
    cloud.refuse("/rpc/", status, WRONG_ANSWERS[status])
    run_id = cloud.enqueue(epochs=6)
    time.sleep(0.7)
    cloud.gateway.faults = None
    cloud.wait_epoch(run_id, 2)
    cloud.refuse("/rpc/", status, WRONG_ANSWERS[status])
    time.sleep(0.7)
    cloud.gateway.faults = None
    cloud.wait_phase(run_id, "uploading")
    cloud.refuse("/rpc/", status, WRONG_ANSWERS[status])
    time.sleep(0.7)
    cloud.gateway.faults = None

    assert cloud.wait(run_id, "completed")["attempt"] == 1
    assert_all_epochs_once(cloud, run_id, 6)
    a.wait_idle()


@pytest.mark.parametrize("status", long_except(WRONG_ANSWERS, 200, 429, 502))
def test_refused_release_is_retried_within_drain_time(cloud, host, status):
    """F7 F13 (I6 I7): a stopped service releases its run, and the first calls fail. No failure is counted."""
    a = host("a", SLOW)
    run_id = cloud.enqueue(epochs=30)
    cloud.wait_epoch(run_id, 2)
    cloud.refuse("/rpc/", status, WRONG_ANSWERS[status])
    a.process.send_signal(signal.SIGTERM)
    wait_for(lambda: any("release_training_run" in path for _, path, _ in cloud.gateway.requests))
    time.sleep(0.7)
    cloud.gateway.faults = None

    assert a.process.wait(20) == 0

    row = cloud.row(run_id)
    assert (row["status"], row["failures"]) == ("queued", 0)
    assert row["checkpoint"]["epoch"] == cloud.epochs(run_id)[1][-1]


@pytest.mark.parametrize("call", ["claim", "beat", "finish", "release"])
def test_call_is_idempotent_after_lost_answer(cloud, host, call):
    """F8 (I1 I3 I8): the change was committed, and its answer was lost. The repeated call changes nothing."""
    a = host("a", SLOW)
    if call == "claim":
        lost = cloud.lose_answers("claim_training_run", 3)
        run_id, other = cloud.enqueue(epochs=4), cloud.enqueue(epochs=4)
    else:
        run_id, other = cloud.enqueue(epochs=30 if call == "release" else 8), cloud.enqueue(epochs=4)
        cloud.wait_epoch(run_id, 2)
        lost = cloud.lose_answers(f"{call}_training_run", 3)
    if call == "release":
        assert a.stop() == 0
        assert cloud.row(run_id)["status"] == "queued"
        assert cloud.row(run_id)["failures"] == 0
        a.behave(**QUICK)
        a.start()

    rows = [cloud.wait(each, "completed") for each in (run_id, other)]

    wait_for(lambda: len(lost) == 3)  # the outcome is in the row before its answer is lost
    assert [row["attempt"] for row in rows] == [2 if call == "release" else 1, 1]
    for row in rows:
        epochs = [epoch for reported in cloud.epochs(row["id"]).values() for epoch in reported]
        assert epochs == list(range(1, row["configuration"]["epochs"] + 1))
    a.wait_idle()


def test_worker_keeps_lease_while_refused_outcome_is_retried(cloud, host):
    """F6 F7 (I1 I6 I8): the queue refuses the outcome for longer than a lease. The worker renews its lease."""
    a = host("a", QUICK)
    cloud.refuse("finish_training_run", 500)
    run_id = cloud.enqueue(epochs=3)
    cloud.wait_phase(run_id, "uploading")
    time.sleep(OUTAGE)
    assert cloud.row(run_id)["status"] == "running"
    cloud.gateway.faults = None

    row = cloud.wait(run_id, "completed")

    assert (row["attempt"], row["failures"]) == (1, 0)
    a.wait_idle()


@pytest.mark.long
def test_training_continues_while_key_is_revoked(cloud, host):
    """F26 (I6): queue and Storage refuse the key during a run. The run completes when they accept the key again."""
    a = host("a", SLOW)
    run_id = cloud.enqueue(epochs=30)
    cloud.wait_epoch(run_id, 2)
    training = a.training()
    cloud.refuse("/rpc/", 401, b'{"code":"PGRST301","message":"JWT expired"}')
    cloud.storage.keys = {}
    time.sleep(OUTAGE)
    assert training.is_running()
    assert any("refuse" in line["event"] or "queue unavailable" in line["event"] for line in a.lines())
    cloud.gateway.faults = None
    cloud.storage.keys = {cloud.key: "service"}

    row = cloud.wait(run_id, "completed")

    assert row["attempt"] == 1
    assert_all_epochs_once(cloud, run_id, 30)
    assert cloud.key not in a.log.read_text()
    a.wait_idle()


def test_disconnected_host_stops_training_after_takeover(cloud, host, wire):
    """F26 F4 (I1 I5): host b takes over the run of the disconnected host a. Then a reconnects and ends its training."""
    a = host("a", SLOW, url=wire.url)
    run_id = cloud.enqueue(epochs=40)
    cloud.wait_epoch(run_id, 3)
    training = a.training()
    wire.cut()
    host("b", QUICK)
    row = cloud.wait(run_id, "completed")
    assert row["worker_id"] == "b"
    wire.restore()

    a.wait_idle()

    assert not training.is_running()
    assert cloud.row(run_id) == row
