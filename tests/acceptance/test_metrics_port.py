"""The Prometheus endpoint of the real command."""

import re
import socket
import time

import httpx
import psutil

from tests.acceptance.service import Service, running
from tests.postgres_server import free_port


def value(text, metric):
    return float(re.search(rf"^{re.escape(metric)} (\S+)$", text, re.MULTILINE)[1])


def test_run_is_counted_and_its_phases_are_timed(tmp_path, data):
    port = free_port()
    with running(tmp_path / "home", {"seconds_per_epoch": 0.3}, METRICS_PORT=port) as service:
        run_id = service.enqueue(data, epochs=3)
        service.wait_until(run_id, lambda row: row["progress_epoch"] >= 1)
        during = httpx.get(f"http://127.0.0.1:{port}/metrics").text
        service.wait(run_id, "completed")
        deadline = time.monotonic() + 15  # the metrics have their own thread, so they change after the row
        while "yolo_trainer_runs_total{" not in (after := httpx.get(f"http://127.0.0.1:{port}/metrics").text):
            assert time.monotonic() < deadline
            time.sleep(0.05)

    assert value(during, "yolo_trainer_runs_active") == 1
    assert value(during, f'yolo_trainer_epoch{{run_id="{run_id}"}}') >= 1
    assert value(after, 'yolo_trainer_runs_total{outcome="completed"}') == 1
    assert value(after, "yolo_trainer_runs_active") == 0
    assert value(after, "yolo_trainer_beats_total") >= 1
    assert value(after, "yolo_trainer_queue_wait_seconds_count") == 1
    for phase in ("preparing", "checking", "starting", "loading", "training", "finalizing", "uploading"):
        assert value(after, f'yolo_trainer_phase_seconds_count{{phase="{phase}"}}') == 1, phase
    assert value(after, 'yolo_trainer_transferred_bytes_total{direction="upload"}') > 0


def test_metrics_port_listens_on_localhost_only(tmp_path):
    port = free_port()
    with running(tmp_path / "home", {}, METRICS_PORT=port) as service:
        process, deadline = psutil.Process(service.process.pid), time.monotonic() + 15
        while not (listening := [c for c in process.net_connections() if c.status == "LISTEN"]):
            assert time.monotonic() < deadline
            time.sleep(0.1)

    assert [(c.laddr.ip, c.laddr.port) for c in listening] == [("127.0.0.1", port)]


def test_no_port_is_opened_by_default(tmp_path):
    with running(tmp_path / "home", {}) as service:
        deadline = time.monotonic() + 15
        while not service.lines() and time.monotonic() < deadline:
            time.sleep(0.05)

        assert not [c for c in psutil.Process(service.process.pid).net_connections() if c.status == "LISTEN"]


def test_invalid_project_url_ends_service_with_error_that_names_setting(tmp_path):
    url = {"SUPABASE_URL": "abc.supabase.co", "SUPABASE_SERVICE_ROLE_KEY": "sb_secret_x", "BACKEND": "supabase"}
    service = Service(tmp_path / "home", {}, **url)
    service.start()

    assert service.process.wait(30) == 2
    assert "SUPABASE_URL must be the project's URL" in service.log.read_text()
    assert "Traceback" not in service.log.read_text()


def test_port_in_use_ends_service_with_error_that_names_setting(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        service = Service(tmp_path / "home", {}, METRICS_PORT=taken.getsockname()[1])
        service.start()
        code = service.process.wait(30)

    log = service.log.read_text()
    assert code == 2
    assert "METRICS_PORT" in log
    assert "Traceback" not in log
