"""F6, F7, F8, F26: the servers are down, slow, half there, talk nonsense, or refuse the key."""

import os
import signal
import subprocess
import time

import pytest

from tests.faults.cloud import BUCKET, wait_for
from tests.faults.conftest import QUICK, SLOW
from tests.faults.hosts import LEASE
from tests.faults.outage import Outage
from tests.long import long_except

OUTAGE = LEASE + 1.5  # seconds: longer than the lease, so that the run has to be taken back


def database_down(cloud):
    cloud.stack.postgres.stop()
    return cloud.stack.postgres.start


def rest_down(cloud):
    cloud.stack.postgrest.stop()
    return cloud.stack.postgrest.start


DOWN = {"Postgres": database_down, "PostgREST": rest_down}


@pytest.fixture(params=long_except(DOWN, "PostgREST"))
def outage(cloud, request):
    """`down()` stops a server, `up()` starts it; both are fresh at the end."""
    ups = []

    class Outage:
        def down(self):
            ups.append(DOWN[request.param](cloud))

        def up(self):
            ups.pop()()

    yield Outage()
    cloud.stack.restart()


def assert_all_epochs_once(cloud, run_id, epochs):
    """No metric was lost, none was told twice: (run, attempt, seq) is the events' identity, and nothing is missing."""
    assert cloud.epochs(run_id) == {1: list(range(1, epochs + 1))}
    seqs = [event["seq"] for event in cloud.events(run_id) if event["seq"] < 1_000_000]
    assert seqs == list(range(1, len(seqs) + 1))


def test_an_outage_longer_than_the_lease_costs_a_training_nothing(cloud, host, outage):
    """F6 (I5 I6): training goes on, every epoch's metrics arrive once and in order, and no attempt is lost."""
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
def test_a_short_outage_in_any_phase_costs_nothing(cloud, host, phase, seconds):
    """F6 (I6 I8): PostgREST away while there is nothing to do, during the upload, and at the last word."""
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


def test_a_second_without_the_database_is_not_felt_with_the_settings_that_people_have(cloud, tmp_path):
    """F6 (I5 I6 I8): as `python -m tests.faults.outage` does for as long as wanted; one run trains on, one ends."""
    outage = Outage(cloud, tmp_path / "a", 1).happen()

    assert outage.lost == []
    assert outage.told_while_away > 0
    assert outage.longest_gap < 5 * 0.25  # an epoch, on a very slow machine


def test_a_service_that_is_restarted_in_an_outage_delivers_what_the_last_one_could_not(cloud, host):
    """F6 (I6 I8): the model is finished, the queue is away, the service is restarted: delivered by the next one, once."""
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
def test_an_outage_of_storage_in_every_phase_costs_no_attempt(cloud, host):
    """F6 F7 (I6 I8 I11): 503 for the dataset, the checkpoints and the artifacts, each longer than one call's patience."""
    for path in cloud.data.parent.rglob("*"):
        if path.is_file():
            cloud.storage.put("datasets", f"set/{path.relative_to(cloud.data.parent)}", path.read_bytes())
    a = host("a", SLOW)
    cloud.storage.fault("status", on="/datasets", times=8)
    run_id = cloud.enqueue("storage:datasets/set/data.yaml", epochs=6)
    cloud.storage.fault("status", on="/checkpoints/", times=3)
    cloud.storage.fault("status", on="/1/best.pt", times=8)

    row = cloud.wait(run_id, "completed", seconds=90)

    assert row["attempt"] == 1
    assert {"fetch_waits", "upload_waits"} <= set(cloud.warnings(run_id))
    assert row["results"]["dataset"]["images"] == {"train": 4, "val": 2}
    a.wait_idle()


def cut(wire):
    wire.cut()


def freeze(wire):
    wire.freeze()


def slow(wire):
    wire.slow(2)


def garble(wire):
    wire.mutter(30)


def lose(wire):
    try:
        wire.lose(30)
    except (OSError, subprocess.CalledProcessError) as reason:
        if os.environ.get("CI"):
            raise
        pytest.skip(f"losing packets needs root and nft: {reason}")


@pytest.mark.parametrize(
    "trouble", long_except([cut, freeze, slow, garble, lose], cut, garble), ids=lambda f: f.__name__
)
def test_a_bad_line_costs_no_attempt(cloud, host, wire, trouble):
    """F7 (I6 I8): connections reset, half-open, 2 s late, answers that stop in the middle, lost packets; at the claim,
    the beats, the uploads and the ending.
    """
    a = host("a", SLOW, url=wire.url, LEASE_SECONDS=20 if trouble in (slow, lose) else LEASE)
    wait_for(lambda: any("claim_training_run" in path for _, path, _ in cloud.gateway.requests))
    seconds = 4.5 if trouble is slow else 1.0  # an answer has to come through, or to be waited for in vain
    trouble(wire)
    run_id = cloud.enqueue(epochs=8)
    time.sleep(seconds)
    wire.mend()
    for moment in ("beats", "uploads", "ending"):
        if moment == "beats":
            cloud.wait_epoch(run_id, 1)
        else:
            cloud.wait_phase(run_id, "uploading" if moment == "uploads" else "ending")
        trouble(wire)
        time.sleep(seconds)
        wire.mend()

    row = cloud.wait(run_id, "completed", seconds=60)

    assert row["attempt"] == 1
    assert_all_epochs_once(cloud, run_id, 8)
    a.wait_idle()


NONSENSE = {
    429: b'{"message":"too many requests"}',
    500: b"",
    502: b"<html>502 Bad Gateway</html>",
    503: b'{"message":"unhealthy"}',
    504: b"upstream request timeout",
    200: b'[{"id": "cut',
}


@pytest.mark.parametrize("status", long_except(NONSENSE, 200, 429, 502))
def test_answers_that_are_none_cost_no_attempt(cloud, host, status):
    """F7 (I6): every call of the queue is answered with an error or with half a document, for a while, several times."""
    a = host("a", SLOW)
    cloud.refuse("/rpc/", status, NONSENSE[status])
    run_id = cloud.enqueue(epochs=6)
    time.sleep(0.7)
    cloud.gateway.faults = None
    cloud.wait_epoch(run_id, 2)
    cloud.refuse("/rpc/", status, NONSENSE[status])
    time.sleep(0.7)
    cloud.gateway.faults = None
    cloud.wait_phase(run_id, "uploading")
    cloud.refuse("/rpc/", status, NONSENSE[status])
    time.sleep(0.7)
    cloud.gateway.faults = None

    assert cloud.wait(run_id, "completed")["attempt"] == 1
    assert_all_epochs_once(cloud, run_id, 6)
    a.wait_idle()


@pytest.mark.parametrize("status", long_except(NONSENSE, 200, 429, 502))
def test_a_release_that_is_not_answered_is_repeated_in_the_drain_time(cloud, host, status):
    """F7 F13 (I6 I7): the last call of a service that is stopped; its run is given back and no attempt is counted."""
    a = host("a", SLOW)
    run_id = cloud.enqueue(epochs=30)
    cloud.wait_epoch(run_id, 2)
    cloud.refuse("/rpc/", status, NONSENSE[status])
    a.process.send_signal(signal.SIGTERM)
    wait_for(lambda: any("release_training_run" in path for _, path, _ in cloud.gateway.requests))
    time.sleep(0.7)
    cloud.gateway.faults = None

    assert a.process.wait(20) == 0

    row = cloud.row(run_id)
    assert (row["status"], row["failures"]) == ("queued", 0)
    assert row["checkpoint"]["epoch"] == cloud.epochs(run_id)[1][-1]


@pytest.mark.parametrize("call", ["claim", "beat", "finish", "release"])
def test_a_call_that_was_obeyed_and_whose_answer_was_lost_is_harmless(cloud, host, call):
    """F8 (I1 I3 I8): the commit happened, the answer did not arrive; what is sent again changes nothing."""
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

    wait_for(lambda: len(lost) == 3)  # an ending is in the row before its answer is lost
    assert [row["attempt"] for row in rows] == [2 if call == "release" else 1, 1]
    for row in rows:
        epochs = [epoch for told in cloud.epochs(row["id"]).values() for epoch in told]
        assert epochs == list(range(1, row["configuration"]["epochs"] + 1))
    a.wait_idle()


def test_an_ending_that_the_database_refuses_for_long_keeps_its_run(cloud, host):
    """F6 F7 (I1 I6 I8): only the last call fails, for longer than a lease; the run stays with who finished it."""
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
def test_a_revoked_key_stops_no_training_and_a_new_one_is_used_where_it_was_left(cloud, host):
    """F26 (I6): the key is refused by the queue and by storage mid-run; the training goes on, says so, and recovers."""
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


def test_a_host_whose_key_was_revoked_stands_down_for_another(cloud, host, wire):
    """F26 F4 (I1 I5): a host that the queue refuses for ever loses its run to another; hearing so, it stops."""
    a = host("a", SLOW, url=wire.url)
    run_id = cloud.enqueue(epochs=40)
    cloud.wait_epoch(run_id, 3)
    training = a.training()
    wire.cut()
    host("b", QUICK)
    row = cloud.wait(run_id, "completed")
    assert row["worker_id"] == "b"
    wire.mend()

    a.wait_idle()

    assert not training.is_running()
    assert cloud.row(run_id) == row


@pytest.mark.long
def test_a_partitioned_host_takes_no_checkpoint_away_that_the_row_points_to(cloud, host):
    """F6 (I5 I9): the queue is out of reach of one host, storage is not; it trains and uploads on. The host that takes
    over still finds the checkpoint that the row names.
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
