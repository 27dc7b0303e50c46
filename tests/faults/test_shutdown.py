"""F13: operators stop services in every phase."""

import signal
import subprocess
import time

import pytest

from tests.faults.cloud import wait_for
from tests.faults.conftest import QUICK, SLOW
from tests.faults.hosts import gone
from tests.faults.phases import PHASES, start_in_phase
from tests.long import long_except

# DRAIN_SECONDS and the phase of the run at SIGTERM
GRACES = [
    *[(grace, phase) for grace in (0, 5) for phase in PHASES],
    *[(grace, phase) for grace in (0.5, 30, 120) for phase in ("training", "uploading")],
]
OFTEN = [*[(5, phase) for phase in PHASES], (0, "training"), (0, "uploading")]


@pytest.mark.parametrize(("grace", "phase"), long_except(GRACES, *OFTEN))
def test_run_of_stopped_service_resumes_on_another_host(cloud, host, record_property, grace, phase):
    """F13 (I6 I9 I10): the service gets SIGTERM, and SIGKILL if it is too slow. The run resumes on another host."""
    a, run_id = start_in_phase(cloud, host, phase, DRAIN_SECONDS=max(grace, 1))
    processes = a.children()
    a.process.send_signal(signal.SIGTERM)
    began = time.monotonic()
    if phase != "ending":
        cloud.storage.faults.clear()
    else:
        cloud.gateway.faults = None
    try:
        # the training is ended after 40 % of DRAIN_SECONDS, an upload after 80 %, the last delivery after 100 %. Then
        # the service stops its threads and processes, which takes 23 s at most. The systemd units allow 30 s for this,
        # a third of the default of DRAIN_SECONDS
        code = a.process.wait(grace * 4 / 3)
    except subprocess.TimeoutExpired:
        a.kill()
        code = -signal.SIGKILL
    record_property("exit_seconds", round(time.monotonic() - began, 2))
    if grace >= 5:  # enough for the slowest phase, including CANCEL_GRACE
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
def test_run_of_slowly_stopping_training_is_requeued_within_drain_time(cloud, host, record_property, grace, in_time):
    """F13 (I6 I7 I9 I10): the training needs 6 s to stop and is killed if this is too long. The run is requeued."""
    a = host("a", SLOW | {"seconds_to_stop": 6}, DRAIN_SECONDS=grace)
    run_id = cloud.enqueue(epochs=20)
    cloud.wait_epoch(run_id, 3)
    processes = a.children()
    began = time.monotonic()
    code = a.stop(seconds=grace + 10)
    took = time.monotonic() - began
    record_property("exit_seconds", round(took, 2))

    assert code == 0
    assert took < min(grace, 10)  # 6 s, and time for a slow machine
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
def test_upload_is_finished_if_drain_time_is_long_enough(cloud, host, record_property, grace, status):
    """F13 (I6 I7 I8): an upload of 6 s may use 80 % of DRAIN_SECONDS. With less time, only the upload is repeated."""
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
    assert [epoch for epochs in cloud.epochs(run_id).values() for epoch in epochs] == [1, 2, 3]


def test_second_sigterm_ends_service_at_once_and_run_resumes(cloud, host, record_property):
    """F13 (I6 I9 I10): the service exits without waiting. The run resumes from its last checkpoint."""
    a = host("a", SLOW | {"ignores_stop": True, "ignores_signals": True}, CANCEL_GRACE=20)
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
def test_repeated_deploys_count_no_failure(cloud, host):
    """F13 (I7 I9): the service is restarted five times during one run. Each epoch is trained once."""
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
    assert [epoch for epochs in cloud.epochs(run_id).values() for epoch in epochs] == list(range(1, 31))
