"""The real command is stopped or killed, and its run resumes."""

import json
import signal
import time
from contextlib import suppress

import psutil
import pytest

from tests.acceptance.service import Service, running


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP], ids=["SIGTERM", "Ctrl-C", "SIGHUP"],
)  # fmt: skip
def test_stopped_service_requeues_run_and_exits_0(home, data, number):
    with running(home, {"seconds_per_epoch": 0.5}) as service:
        run_id = service.enqueue(data, epochs=8)
        service.wait_until(run_id, lambda row: row["progress_epoch"] >= 1)

        assert service.stop(number) == 0

        row = service.row(run_id)
        assert (row["status"], row["failures"]) == ("queued", 0)
        assert row["checkpoint"]["epoch"] >= 1

        service.behave()
        service.start()
        row = service.wait(run_id, "completed")
        assert row["attempt"] == 2
        events = [line for line in service.lines() if line.get("code") == "resumed"]
        assert events


@pytest.mark.long
def test_second_signal_ends_service_at_once_and_run_resumes_later(home, data):
    with running(
        home, {"seconds_per_epoch": 0.5, "ignores_stop": True, "ignores_signals": True}, CANCEL_GRACE=20
    ) as service:
        run_id = service.enqueue(data, epochs=8)
        service.wait_until(run_id, lambda row: row["progress_epoch"] >= 1)
        children = service.children()
        service.process.send_signal(signal.SIGTERM)
        time.sleep(0.5)

        assert service.stop(signal.SIGTERM, seconds=5) == 128 + signal.SIGTERM

        assert gone(children)
        service.behave()
        service.start()
        assert service.wait(run_id, "completed")["attempt"] == 2


@pytest.mark.parametrize("first", [signal.SIGTERM, signal.SIGHUP], ids=["SIGTERM", "SIGHUP"])
def test_second_sighup_does_not_end_the_drain(home, data, first):
    """A closing terminal sends several SIGHUPs, and systemd can send one right after SIGTERM."""
    with running(home, {"seconds_per_epoch": 0.5}) as service:
        run_id = service.enqueue(data, epochs=8)
        service.wait_until(run_id, lambda row: row["progress_epoch"] >= 1)
        service.process.send_signal(first)
        for _ in range(3):
            time.sleep(0.02)
            service.process.send_signal(signal.SIGHUP)

        assert service.process.wait(30) == 0
        row = service.row(run_id)
        assert (row["status"], row["failures"]) == ("queued", 0)
        assert row["checkpoint"]["epoch"] >= 1


def test_sighup_stays_ignored_under_nohup(home):
    service = Service(home, {})
    service.command = ["nohup", *service.command]
    service.start()
    try:
        deadline = time.monotonic() + 10
        while not (service.lines() and (home / "queue.db").exists()) and time.monotonic() < deadline:
            time.sleep(0.05)
        service.process.send_signal(signal.SIGHUP)
        time.sleep(0.5)
        assert service.process.poll() is None
        assert service.stop(signal.SIGTERM) == 0
    finally:
        service.process.kill()


def gone(processes, seconds=5):
    _, alive = psutil.wait_procs(processes, seconds)
    return not alive


@pytest.mark.long
def test_killed_training_is_retried_and_service_continues(home, data):
    with running(home, {"seconds_per_epoch": 0.5}) as service:
        run_id = service.enqueue(data, epochs=6)
        service.wait_until(run_id, lambda row: row["progress_epoch"] >= 2)
        for child in service.children():
            with suppress(psutil.NoSuchProcess):  # killing the subreaper also ends the other processes
                child.kill()

        row = service.wait_until(run_id, lambda row: row["status"] == "queued" or row["attempt"] > 1)

        assert "kill" in json.dumps(row["error_message"] or "") or row["attempt"] > 1
        assert service.process.poll() is None
        assert service.wait(run_id, "completed")["attempt"] == 2


def test_killed_service_leaves_no_process_and_its_run_resumes(home, data):
    with running(home, {"seconds_per_epoch": 0.5}) as service:
        run_id = service.enqueue(data, epochs=6)
        service.wait_until(run_id, lambda row: row["progress_epoch"] >= 2)
        children = service.children()
        service.stop(signal.SIGKILL)

        assert gone(children)

        service.behave()
        service.start()
        row = service.wait(run_id, "completed")
        assert row["attempt"] == 2
        assert row["results"]["metrics"]["epoch"] == 6
