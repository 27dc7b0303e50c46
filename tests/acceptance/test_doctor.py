"""`doctor` finds each injected fault of a host and suggests a fix on the same line."""

import json
import sqlite3
from contextlib import closing

from tests.acceptance.host_under_test import GPU, TORCH
from tests.acceptance.service import Service
from trainer import doctor, host
from trainer.core.ports import Worker
from trainer.jobs.sqlite import SqliteQueue
from trainer.settings import Settings

NEED_NOT_BE_OK = ("shared memory", "sandbox")  # a host for tests can have little shared memory and an old kernel


def test_healthy_host_without_server_has_no_fault(a_host):
    assert a_host.findings() == []
    assert [check.name for check in a_host.findings("warning") if check.name not in NEED_NOT_BE_OK] == ["gpu"]


def test_gpus_are_listed_with_their_memory(a_host):
    a_host.torch(TORCH.format(gpus=2))
    a_host.monkeypatch.setattr(host, "gpus", lambda: (GPU, GPU))

    assert [check.message for check in doctor.examine() if check.name == "gpu"] == ["NVIDIA H200, 139 GiB"] * 2


def test_every_wrong_setting_is_reported_at_once(a_host):
    a_host.set(POLL_INTERVAL="soon", SLOTS="-1", LOG_LEVEL="LOUD")

    messages = [check.message for check in a_host.findings()]

    assert [message.partition("=")[0] for message in messages] == ["POLL_INTERVAL", "SLOTS", "LOG_LEVEL"]
    assert all(check.name == "settings" for check in a_host.findings())


def test_misspelled_settings_are_warnings(a_host, tmp_path, monkeypatch):
    monkeypatch.setitem(Settings.model_config, "env_file", tmp_path / ".env")
    (tmp_path / ".env").write_text("# POLL_INTERVALS=1\nexport POLL_INTERVALL=3\nDATABASE_URL=x\nSLOTS=1\n")
    a_host.set(METRIC_PORT="9100", LANGUAGE="en")

    messages = [check.message for check in a_host.findings("warning") if check.name == "settings"]

    assert messages == [
        "METRIC_PORT is not a setting; did you mean METRICS_PORT?",
        "POLL_INTERVALL is not a setting; did you mean POLL_INTERVAL?",
    ]


def test_missing_key_is_a_fault(a_host):
    a_host.set(BACKEND="supabase", SUPABASE_URL="https://abc.supabase.co")

    assert "SUPABASE_SERVICE_ROLE_KEY; set it, or set BACKEND=local" in a_host.fault().message


def test_torch_import_error_is_a_fault(a_host):
    a_host.torch("raise ImportError('libcudart.so.13: cannot open shared object file')")

    assert "libcudart.so.13" in a_host.fault().message
    assert "install requirements.txt again" in a_host.fault().message


def test_torch_crash_is_a_fault(a_host):
    a_host.torch("import os; os.kill(os.getpid(), 11)")

    assert "exit code -11" in a_host.fault().message


def test_torch_hang_is_a_fault(a_host):
    a_host.torch("import time; time.sleep(60)")
    a_host.monkeypatch.setattr(doctor, "TORCH_SECONDS", 0.3)

    assert "look for messages of the GPU driver in dmesg" in a_host.fault().message


def test_driver_that_torch_cannot_use_is_a_fault(a_host):
    a_host.monkeypatch.setattr(host, "gpus", lambda: (GPU,))

    fault = a_host.fault()

    assert fault.name == "gpu"
    assert (
        "the driver (580.1) shows NVIDIA H200, but torch for CUDA 13.0 cannot use it: update the driver"
        in fault.message
    )


def test_little_shared_memory_is_a_warning_with_the_docker_option(a_host):
    a_host.monkeypatch.setattr(doctor, "LEAST_SHARED_MEMORY", 2**60)

    (warning,) = [check for check in a_host.findings("warning") if check.name == "shared memory"]
    assert "--shm-size" in warning.message


def test_unhealthy_worker_is_reported_with_its_reason(a_host):
    a_host.set(WORKER_ID="gpu-7")
    queue = SqliteQueue(a_host.home / "queue.db")
    queue.report(Worker(id="gpu-7"), "RUNS_DIR: /runs has no space left.")
    queue.report(Worker(id="gpu-8"), "RUNS_DIR of another host is full.")

    fault = a_host.fault()

    assert fault.name == "worker"
    assert fault.message.startswith("gpu-7 claims no runs: RUNS_DIR: /runs has no space left. (last seen 20")
    queue.claim(Worker(id="gpu-7"), "8d1a3a52-5f3a-4f1c-9a3d-000000000001", 60)
    assert a_host.findings() == []


def test_old_report_of_stopped_worker_is_ignored(a_host):
    a_host.set(WORKER_ID="gpu-7")
    SqliteQueue(a_host.home / "queue.db").report(Worker(id="gpu-7"), "RUNS_DIR is full.")
    with closing(sqlite3.connect(a_host.home / "queue.db")) as file, file:
        file.execute("update trainer_workers set last_seen = '2020-01-01T00:00:00+00:00'")

    assert a_host.findings() == []


def test_command_exits_0_without_fault(tmp_path):
    service = Service(tmp_path / "home")

    found = service.run("doctor")  # uses the installed torch, not the fake torch

    assert "fault" not in found.stdout
    assert found.stdout.splitlines()[0].split() == ["ok", "settings", "backend", "local"]


def test_command_exits_1_for_fault_and_prints_json(tmp_path, a_host):
    service = Service(tmp_path / "service", EXTRA_DATASET_ROOTS="/nowhere", PYTHONPATH=tmp_path / "packages")

    text, as_json = service.run("doctor", check=False), service.run("doctor", "--json", check=False)

    assert text.returncode == as_json.returncode == 1
    (line,) = [line for line in text.stdout.splitlines() if line.startswith("fault")]
    checks = json.loads(as_json.stdout)["checks"]
    (fault,) = [check for check in checks if check["state"] == "fault"]
    assert fault["message"] in line


def test_command_exits_1_for_wrong_settings(tmp_path):
    found = Service(tmp_path / "home", SLOTS="many", METRICS_PORT="-1").run("doctor", check=False)

    assert found.returncode == 1
    assert found.stdout.count("fault") == 2
