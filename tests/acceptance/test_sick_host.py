"""What an operator sees of a worker that claims no runs, or that does not start."""

import json

import pytest

from tests.acceptance.service import Service
from tests.acceptance.test_systemd import UNITS
from trainer.core.ports import Worker
from trainer.jobs.sqlite import SqliteQueue


def test_a_folder_that_cannot_be_made_is_one_line_and_exit_code_2(tmp_path):
    (tmp_path / "a-file").write_text("")
    service = Service(tmp_path / "home", {}, RUNS_DIR=tmp_path / "a-file" / "runs")
    service.start()

    assert service.process.wait(30) == 2
    (line,) = service.log.read_text().splitlines()
    assert line.startswith(f"error: RUNS_DIR: {tmp_path}/a-file/runs cannot be written (Not a directory): give this user")


@pytest.mark.parametrize("unit", ["yolo-trainer.service", "yolo-trainer@.service"])
def test_systemd_does_not_restart_what_a_person_has_to_mend(unit):
    assert "RestartPreventExitStatus=2" in (UNITS / unit).read_text().splitlines()


def test_no_unhealthy_worker_is_no_line(tmp_path):
    service = Service(tmp_path / "home")
    SqliteQueue(service.home / "queue.db").report(Worker(id="w"), None)

    assert "claims no runs" not in service.run("status").stdout
    assert json.loads(service.run("status", "--json").stdout)["workers"][0]["status"] == "online"
