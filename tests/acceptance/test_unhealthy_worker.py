"""Messages for the operator about a worker that is unhealthy or cannot start."""

import json
import shutil
import time

import pytest

from tests.acceptance.service import Service, running
from tests.acceptance.test_systemd import UNITS
from trainer.core.ports import Worker
from trainer.demo import draw_dataset
from trainer.jobs.sqlite import SqliteQueue


@pytest.fixture
def lost(tmp_path):
    """A service whose RUNS_DIR is replaced by a file while the service is idle."""
    with running(tmp_path / "home", {}, RUNS_DIR=tmp_path / "runs", WORKER_ID="gpu-7") as service:
        queue, deadline = SqliteQueue(service.home / "queue.db"), time.monotonic() + 20
        while not queue.workers() and time.monotonic() < deadline:
            time.sleep(0.1)
        shutil.rmtree(tmp_path / "runs")
        (tmp_path / "runs").write_text("")
        yield service


@pytest.mark.long
def test_worker_with_lost_folder_is_unhealthy_and_its_run_is_requeued(lost, tmp_path):
    run_id = lost.enqueue(draw_dataset(tmp_path / "drawn", images=4, size=32), epochs=1)

    row = lost.wait_until(run_id, lambda row: row["failures"] > 0)

    assert (row["status"], row["host_failures"]) == ("queued", {"gpu-7": 1})
    listed = lost.json("status")
    assert listed["runs"][0]["id"] == run_id
    (worker,) = listed["workers"]
    assert worker["status"] == "unhealthy"
    assert "RUNS_DIR" in worker["status_message"]
    text = lost.run("status").stdout
    assert "worker gpu-7 claims no runs (last seen 20" in text
    assert worker["status_message"] in text
    doctor = lost.run("doctor", check=False)
    assert doctor.returncode == 1
    assert f"gpu-7 claims no runs: {worker['status_message']}" in doctor.stdout


def test_folder_that_cannot_be_created_ends_service_with_one_line_error_and_code_2(tmp_path):
    (tmp_path / "a-file").write_text("")
    service = Service(tmp_path / "home", {}, RUNS_DIR=tmp_path / "a-file" / "runs")
    service.start()

    assert service.process.wait(30) == 2
    (line,) = service.log.read_text().splitlines()
    assert line.startswith(
        f"error: RUNS_DIR: {tmp_path}/a-file/runs cannot be written (Not a directory): give this user"
    )


@pytest.mark.parametrize("unit", ["yolo-trainer.service", "yolo-trainer@.service"])
def test_systemd_does_not_restart_after_exit_code_2(unit):
    assert "RestartPreventExitStatus=2" in (UNITS / unit).read_text().splitlines()


def test_status_prints_no_line_for_healthy_workers(tmp_path):
    service = Service(tmp_path / "home")
    SqliteQueue(service.home / "queue.db").report(Worker(id="w"), None)

    assert "claims no runs" not in service.run("status").stdout
    assert json.loads(service.run("status", "--json").stdout)["workers"][0]["status"] == "online"
