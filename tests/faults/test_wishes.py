"""F12, F13: people cancel, finish and delete, and operators stop services, in every phase."""

import signal
import subprocess
import time

import pytest

from tests.faults.cloud import wait_for
from tests.faults.conftest import QUICK, SLOW
from tests.faults.hosts import gone
from tests.faults.test_killed import PHASES, stay_in, stored_dataset
from tests.long import long_except


def started(cloud, host, phase, **settings):
    """A host whose run stays in the phase."""
    data = stored_dataset(cloud) if phase == "downloading" else None
    knobs, is_there = stay_in(cloud, phase)
    a = host("a", knobs, **settings)
    run_id = cloud.enqueue(data, epochs=6)
    is_there(run_id, a)
    return a, run_id


@pytest.mark.parametrize("phase", PHASES)
def test_a_cancel_frees_the_host_in_any_phase(cloud, host, phase):
    """F12 (I3 I4 I10): canceled within a bound; what exists is kept, and the row points to no model."""
    a, run_id = started(cloud, host, phase)
    processes = a.trainings()
    asked = time.monotonic()
    cloud.cancel(run_id)
    assert gone(processes)
    took = time.monotonic() - asked
    a.behave(**QUICK)
    time.sleep(0.5 if phase == "ending" else 0)
    cloud.gateway.faults = None

    row = cloud.wait(run_id, "canceled", "completed")

    assert took < 2 + 2 + 6  # the grace, SIGTERM's, and a very slow machine
    # a model that was finished before anybody heard of the cancel is kept: it can be deleted, but not trained in a second
    assert row["status"] == ("completed" if phase == "ending" else "canceled")
    if phase != "ending":
        assert (row["error_message"], row["trained_model_url"]) == ("Canceled by user.", None)
    if phase in ("training", "finalizing"):
        assert {"last.pt", "results.csv", "run.log"} <= {each["name"] for each in row["results"]["artifacts"]}
        cloud.check_published(row)
    cloud.storage.faults.clear()
    a.wait_idle()
    cloud.wait(cloud.enqueue(epochs=1), "completed")


@pytest.mark.parametrize("phase", PHASES)
def test_a_deleted_row_frees_the_host_in_any_phase(cloud, host, phase):
    """F12 (I3 I5 I10): the run is nobody's any more: stopped at once, nothing written."""
    a, run_id = started(cloud, host, phase)
    processes = a.trainings()
    cloud.delete(run_id)
    cloud.gateway.faults = None
    cloud.storage.faults.clear()
    a.behave(**QUICK)

    a.wait_idle()

    assert gone(processes)
    assert cloud.row(run_id) is None
    cloud.wait(cloud.enqueue(epochs=1), "completed")


def test_an_app_that_sets_canceled_itself_is_obeyed_and_not_overwritten(cloud, host):
    """F12 (I3 I4): the app ends the row with words of its own; the training stops, the words stay."""
    a = host("a", {"seconds_per_epoch": 1})
    run_id = cloud.enqueue(epochs=50)
    cloud.wait_epoch(run_id, 1)
    cloud.edit(run_id, status="canceled", error_message="Canceled in the app.", cancel_requested=True)
    row = cloud.row(run_id)

    a.wait_idle()

    assert cloud.row(run_id) == row
    assert row["error_message"] == "Canceled in the app."


def test_a_canceled_run_whose_host_died_is_canceled_by_whoever_looks(cloud, host):
    """F12 F2 (I4 I6): cancel and takeover; it is not trained once more."""
    a = host("a", SLOW)
    run_id = cloud.enqueue(epochs=50)
    cloud.wait_epoch(run_id, 1)
    a.pause()
    cloud.cancel(run_id)
    a.kill()
    host("b", QUICK)

    row = cloud.wait(run_id, "canceled")

    assert row["attempt"] == 1


def test_a_cancel_that_meets_the_claim_never_leaves_a_run_between(cloud, host):
    """F12 (I4 I6): cancel and claim, twenty times: each run ends canceled or completed."""
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


def test_finish_and_cancel_at_once(cloud, host):
    """F12 (I3 I4): whoever asked for an early end and then for none gets one of the two, whole."""
    a = host("a", {"seconds_per_epoch": 0.4})
    run_id = cloud.enqueue(epochs=50)
    cloud.wait_epoch(run_id, 1)
    cloud.edit(run_id, finish_requested=True)
    cloud.cancel(run_id)

    row = cloud.wait(run_id, "canceled", "completed")

    cloud.check_published(row)
    assert row["results"]["metrics"]["epoch"] < 50
    a.wait_idle()


# what machines give a service between SIGTERM and SIGKILL; it is told so by DRAIN_SECONDS
GRACES = [
    *[(grace, phase) for grace in (0, 5) for phase in PHASES],
    *[(grace, phase) for grace in (0.5, 30, 120) for phase in ("training", "uploading")],
]


@pytest.mark.parametrize(("grace", "phase"), GRACES)
def test_a_stopped_service_leaves_its_run_to_the_next(cloud, host, record_property, grace, phase):
    """F13 (I6 I9 I10): SIGTERM, then SIGKILL after what the machine's shutdown gives; the run goes on elsewhere."""
    a, run_id = started(cloud, host, phase, DRAIN_SECONDS=max(grace, 1))
    processes = a.children()
    a.process.send_signal(signal.SIGTERM)
    began = time.monotonic()
    if phase != "ending":
        cloud.storage.faults.clear()
    else:
        cloud.gateway.faults = None
    try:
        code = a.process.wait(grace)
    except subprocess.TimeoutExpired:
        a.kill()
        code = -signal.SIGKILL
    record_property("exit_seconds", round(time.monotonic() - began, 2))
    if grace >= 5:  # as long as the slowest of these takes, CANCEL_GRACE and all
        assert code == 0
        row = cloud.row(run_id)
        assert (row["status"], row["failures"]) in [("queued", 0), ("completed", 0)]
        if phase == "training":
            assert row["checkpoint"]["epoch"] == cloud.epochs(run_id)[1][-1]
    assert gone(processes)
    host("b", QUICK)

    row = cloud.wait(run_id, "completed")

    assert row["attempt"] <= 2
    if phase == "training":
        cloud.check_epochs(run_id, back=0 if grace >= 5 else 2)


@pytest.mark.parametrize(
    ("grace", "in_time"), long_except([(5, False), (30, True), (120, True)], (5, False), (30, True))
)
def test_a_training_that_takes_long_to_stop_has_the_drain_time_for_it(cloud, host, record_property, grace, in_time):
    """F13 (I6 I7 I9 I10): it needs 6 s to stop. Given less, it is killed, and its run goes back all the same."""
    a = host("a", SLOW | {"seconds_to_stop": 6}, DRAIN_SECONDS=grace)
    run_id = cloud.enqueue(epochs=20)
    cloud.wait_epoch(run_id, 3)
    processes = a.children()
    began = time.monotonic()
    code = a.stop(seconds=grace + 10)
    took = time.monotonic() - began
    record_property("exit_seconds", round(took, 2))

    assert code == 0
    assert took < min(grace, 10)  # 10: the six, and a slow machine
    assert gone(processes)
    row = cloud.row(run_id)
    assert (row["status"], row["failures"]) == ("queued", 0)
    assert row["checkpoint"]["epoch"] == cloud.epochs(run_id)[1][-1]
    host("b", QUICK)
    assert cloud.wait(run_id, "completed")["attempt"] == 2
    cloud.check_epochs(run_id, back=0)


@pytest.mark.parametrize(
    ("grace", "status"),
    long_except([(5, "queued"), (30, "completed"), (120, "completed")], (5, "queued"), (30, "completed")),
)
def test_an_upload_is_finished_if_the_drain_time_allows(cloud, host, record_property, grace, status):
    """F13 (I6 I7 I8): an upload that takes 6 s has four fifths of DRAIN_SECONDS; given less, only it is repeated."""
    a = host("a", QUICK, DRAIN_SECONDS=grace)
    cloud.storage.fault("delay", on="/1/args.yaml", times=1, seconds=6)
    run_id = cloud.enqueue(epochs=3)
    cloud.wait_phase(run_id, "uploading")
    began = time.monotonic()
    assert a.stop(seconds=grace + 10) == 0
    record_property("exit_seconds", round(time.monotonic() - began, 2))

    row = cloud.row(run_id)
    assert (row["status"], row["failures"]) == (status, 0)
    a.start()
    assert cloud.wait(run_id, "completed")["failures"] == 0
    assert [epoch for told in cloud.epochs(run_id).values() for epoch in told] == [1, 2, 3]


def test_a_second_sigterm_exits_at_once_and_loses_nothing(cloud, host, record_property):
    """F13 (I6 I9 I10): the operator means it; the run is resumed from its last checkpoint."""
    a = host("a", SLOW | {"deaf": True, "immortal": True}, CANCEL_GRACE=20)
    run_id = cloud.enqueue(epochs=10)
    cloud.wait_epoch(run_id, 3)
    processes = a.children()
    a.process.send_signal(signal.SIGTERM)
    wait_for(lambda: any(line["event"] == "service starts" for line in a.lines()))
    time.sleep(0.3)

    began = time.monotonic()

    assert a.stop(signal.SIGTERM, seconds=8) == 128 + signal.SIGTERM
    record_property("exit_seconds", round(time.monotonic() - began, 2))

    assert gone(processes)
    a.behave(**QUICK)
    a.start()
    assert cloud.wait(run_id, "completed")["attempt"] == 2
    cloud.check_epochs(run_id, back=1)
    a.wait_idle()


@pytest.mark.long
def test_deploy_after_deploy_counts_no_attempt(cloud, host):
    """F13 (I7 I9): five deploys in the life of one run; each epoch is trained once, and any host could go on."""
    a = host("a", {"seconds_per_epoch": 0.25}, CHECKPOINT_INTERVAL=3600)
    run_id = cloud.enqueue(epochs=30)
    for attempt in range(1, 6):
        cloud.wait_epoch(run_id, 2 * attempt, attempt)
        assert a.stop() == 0
        assert cloud.row(run_id)["checkpoint"]["epoch"] == cloud.epochs(run_id)[attempt][-1]
        a.start()
    a.behave(**QUICK)

    row = cloud.wait(run_id, "completed")

    assert (row["attempt"], row["failures"]) == (6, 0)
    assert [e for told in cloud.epochs(run_id).values() for e in told] == list(range(1, 31))


def test_a_cancel_between_two_attempts_keeps_what_the_first_one_trained(cloud, host):
    """F12 F13 (I8): the service is stopped, nobody has the run yet, the user cancels; its weights and log are there."""
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


def test_a_cancel_after_a_killed_training_keeps_what_it_trained(cloud, host):
    """F1 F12 (I8): no worker has what the next attempt asks for; what the killed one trained is listed."""
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
def test_a_cancel_after_a_killed_service_keeps_what_it_trained(cloud, host, asked):
    """F2 F12 (I8): service and training are killed, and the run is canceled before or after the next start."""
    a = host("a", SLOW, LEASE_SECONDS=60)
    run_id = cloud.enqueue(epochs=20)
    cloud.wait_epoch(run_id, 3)
    cloud.edit(run_id, configuration={"epochs": 20, "requires": {"gpus": 4}})  # no worker takes it a second time
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


def test_a_run_that_was_canceled_while_its_host_was_dead_is_left_alone(cloud, host):
    """F2 F12 (I3 I8): another worker ended it; the host comes back with its files, and writes nothing anywhere."""
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
