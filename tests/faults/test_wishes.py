"""F12, F13: people cancel, finish and delete, and operators stop services, in every phase."""

import signal
import time

import pytest

from tests.faults.cloud import wait_for
from tests.faults.conftest import QUICK, SLOW
from tests.faults.hosts import gone
from tests.faults.test_killed import PHASES, stay_in, stored_dataset


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
    if phase in ("training", "finalising"):
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


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("grace", [0, 0.5, None], ids=["killed at once", "killed after 0.5 s", "in peace"])
def test_a_stopped_service_leaves_its_run_to_the_next(cloud, host, phase, grace):
    """F13 (I6 I9 I10): SIGTERM, then SIGKILL after what the machine's shutdown gives; the run goes on elsewhere."""
    a, run_id = started(cloud, host, phase)
    processes = a.children()
    a.process.send_signal(signal.SIGTERM)
    if phase != "ending":
        cloud.storage.faults.clear()
    else:
        cloud.gateway.faults = None
    if grace is None:
        began = time.monotonic()
        assert a.process.wait(30) == 0
        assert time.monotonic() - began < 10 + 5  # DRAIN_SECONDS, and a slow machine
        row = cloud.row(run_id)
        assert (row["status"], row["failures"]) in [("queued", 0), ("completed", 0)]
        if phase == "training":
            assert row["checkpoint"]["epoch"] == cloud.epochs(run_id)[1][-1]
    else:
        time.sleep(grace)
        a.kill()
    assert gone(processes)
    host("b", QUICK)

    row = cloud.wait(run_id, "completed")

    assert row["attempt"] <= 2
    if phase == "training":
        cloud.check_epochs(run_id, back=0 if grace is None else 2)


def test_a_second_sigterm_exits_at_once_and_loses_nothing(cloud, host):
    """F13 (I6 I9 I10): the operator means it; the run is resumed from its last checkpoint."""
    a = host("a", SLOW | {"deaf": True, "immortal": True}, CANCEL_GRACE=20)
    run_id = cloud.enqueue(epochs=10)
    cloud.wait_epoch(run_id, 3)
    processes = a.children()
    a.process.send_signal(signal.SIGTERM)
    wait_for(lambda: any(line["event"] == "service starts" for line in a.lines()))
    time.sleep(0.3)

    assert a.stop(signal.SIGTERM, seconds=8) == 128 + signal.SIGTERM

    assert gone(processes)
    a.behave(**QUICK)
    a.start()
    assert cloud.wait(run_id, "completed")["attempt"] == 2
    cloud.check_epochs(run_id, back=1)
    a.wait_idle()


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
