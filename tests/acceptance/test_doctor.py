"""`doctor` finds each injected fault of a host and suggests a fix in the same line."""

import email.utils
import errno
import json
import os
import sqlite3
import time
from contextlib import closing

import pytest

from tests import supabase_gateway
from tests.acceptance.service import Service
from tests.integration.whole_supabase import settings_for, storage_for
from tests.supabase_stack import PostgREST
from trainer import doctor, host
from trainer.core.ports import Worker
from trainer.jobs.sqlite import SqliteQueue
from trainer.jobs.supabase import SCHEMA_VERSION

TORCH = """
class version:
    cuda = "13.0"
class cuda:
    device_count = staticmethod(lambda: {gpus})
    get_device_name = staticmethod(lambda index: "NVIDIA H200")
    get_device_properties = staticmethod(lambda index: type("Properties", (), dict(total_memory=139 * 2**30)))
__version__ = "2.15.0"
"""
GPU = host.Gpu(index=0, name="NVIDIA H200", memory=139 * 2**30, driver="580.1")


class HostUnderTest:
    """A healthy host, with a fake torch, that a test can change."""

    def __init__(self, home, monkeypatch):
        self.home = home
        self.monkeypatch = monkeypatch
        self.set(BACKEND="local", TRAINER_HOME=home, PYTHONPATH=home.parent / "packages")
        (home.parent / "packages").mkdir()
        self.torch(TORCH.format(gpus=0))
        monkeypatch.setattr(host, "gpus", lambda: ())

    def set(self, **environment):
        for name, value in environment.items():
            self.monkeypatch.setenv(name, str(value))

    def torch(self, source):
        (self.home.parent / "packages" / "torch.py").write_text(source)

    def findings(self, state="fault"):
        return [check for check in doctor.examine() if check.state == state]

    def fault(self):
        """Return the only fault."""
        (found,) = self.findings()
        return found


@pytest.fixture
def a_host(tmp_path, monkeypatch):
    return HostUnderTest(tmp_path / "home", monkeypatch)


@pytest.fixture
def project(supabase, a_host):
    """The same host, with a complete Supabase project."""
    with storage_for(supabase) as storage:
        a_host.set(**settings_for(supabase))
        a_host.stack, a_host.storage = supabase, storage
        yield a_host


# ── no fault ──


def test_healthy_host_without_server_has_no_fault(a_host):
    assert a_host.findings() == []
    assert [check.name for check in a_host.findings("warning") if check.name != "shared memory"] == ["gpu"]


def test_healthy_host_with_project_has_no_fault(project):
    checks = {check.name: check for check in doctor.examine()}

    assert not [check for check in checks.values() if check.state == "fault"]
    assert "role service_role" in checks["queue"].message
    assert f"schema version {SCHEMA_VERSION}" in checks["queue"].message
    assert checks["bucket datasets"].state == checks["bucket training-artifacts"].state == checks["clock"].state == "ok"
    assert not project.storage.objects["training-artifacts"], "it leaves nothing behind"


def test_gpus_are_listed_with_their_memory(a_host):
    a_host.torch(TORCH.format(gpus=2))
    a_host.monkeypatch.setattr(host, "gpus", lambda: (GPU, GPU))

    assert [check.message for check in doctor.examine() if check.name == "gpu"] == ["NVIDIA H200, 139 GiB"] * 2


# ── settings ──


def test_every_wrong_setting_is_reported_at_once(a_host):
    a_host.set(POLL_INTERVAL="soon", SLOTS="-1", LOG_LEVEL="LOUD")

    messages = [check.message for check in a_host.findings()]

    assert [message.partition("=")[0] for message in messages] == ["POLL_INTERVAL", "SLOTS", "LOG_LEVEL"]
    assert all(check.name == "settings" for check in a_host.findings())


def test_missing_key_is_a_fault(a_host):
    a_host.set(BACKEND="supabase", SUPABASE_URL="https://abc.supabase.co")

    assert "SUPABASE_SERVICE_ROLE_KEY; set it, or BACKEND=local" in a_host.fault().message


# ── the project ──


def test_invalid_url_is_a_fault(project):
    project.set(SUPABASE_URL="abc.supabase.co")

    assert "must be the project's URL, such as https://" in project.fault().message


def test_unreachable_project_is_one_fault(project):
    project.set(SUPABASE_URL="http://127.0.0.1:9")

    fault = project.fault()

    assert fault.name == "queue"
    assert "127.0.0.1:9 does not answer" in fault.message


def test_wrong_key_is_a_fault(project):
    key = project.stack.service_key[:-8] + "AAAAAAAA"
    project.set(SUPABASE_SERVICE_ROLE_KEY=key)

    faults = {check.name: check.message for check in project.findings()}

    assert "set SUPABASE_SERVICE_ROLE_KEY to" in faults["queue"]
    assert "check the key" in faults["bucket training-artifacts"]
    assert key not in str(faults)


def test_anonymous_key_is_a_fault(project):
    project.set(SUPABASE_SERVICE_ROLE_KEY=project.stack.anon_key)

    assert "is a public one (anon): set SUPABASE_SERVICE_ROLE_KEY" in project.findings()[0].message


@pytest.fixture
def another_database(project, tmp_path):
    """Put another database behind the URL of the project."""
    servers = []

    def serve(*, migrated, then=""):
        project.stack.postgres.create_database("another", migrated=migrated)
        project.stack.sql(then, database="another")
        servers.append(PostgREST(tmp_path, project.stack.postgres.port, "another"))
        servers[0].start()
        project.monkeypatch.setitem(
            project.stack.gateway.routes, "/rest/v1", f"http://127.0.0.1:{servers[0].port}",
        )  # fmt: skip

    yield serve
    for server in servers:
        server.stop()
    project.stack.sql("drop database if exists another with (force);", database="postgres")


def test_missing_migrations_are_a_fault(project, another_database):
    another_database(migrated=False)

    assert "apply the migrations in supabase/migrations/" in project.fault().message


def test_outdated_migrations_are_a_fault(project, another_database):
    older = "create or replace function trainer_schema_version() returns integer language sql as 'select 0';"
    another_database(migrated=True, then=older)

    assert "has version 0 of the trainer's schema" in project.fault().message
    assert "apply the migrations" in project.fault().message


def test_missing_datasets_bucket_is_a_fault(project):
    project.set(SUPABASE_DATASETS_BUCKET="pictures")

    assert "bucket 'pictures' does not exist" in project.fault().message


def test_missing_artifacts_bucket_is_a_fault(project):
    project.set(SUPABASE_ARTIFACTS_BUCKET="models")

    assert "bucket 'models' does not exist: create it, or apply the migrations" in project.fault().message


def test_read_only_artifacts_bucket_is_a_fault(project):
    refusal = b'{"statusCode":"403","error":"Unauthorized","message":"new row violates row-level security policy"}'
    project.storage.fault("status", on="POST /object/training-artifacts", status=400, body=refusal, times=9)

    fault = project.fault()

    assert fault.name == "bucket training-artifacts"
    assert "its role may not do this: check the key" in fault.message


def test_bucket_that_refuses_the_file_type_is_a_fault(project):
    project.storage.buckets["training-artifacts"].mime_types = ["image/png"]

    assert "extend its allowed MIME types" in project.fault().message


@pytest.mark.parametrize(("seconds", "says"), [(300, "behind the server"), (-300, "ahead of the server")])
def test_wrong_clock_is_a_fault(project, seconds, says):
    project.monkeypatch.setattr(
        supabase_gateway._GatewayHandler,
        "date_time_string",
        lambda *_: email.utils.formatdate(time.time() + seconds, usegmt=True),
    )

    fault = project.fault()

    assert (fault.name, says in fault.message, "timedatectl set-ntp true" in fault.message) == ("clock", True, True)


def test_server_without_date_header_is_a_fault(project):
    project.monkeypatch.setattr(supabase_gateway._GatewayHandler, "date_time_string", lambda *_: "noon")

    assert project.fault().message == "127.0.0.1 sends no valid Date header"


# ── the host ──


def test_too_little_disk_is_a_fault(a_host):
    a_host.monkeypatch.setattr(doctor, "LEAST_FREE", 10**18)

    faults = a_host.findings()

    assert [check.name for check in faults] == ["TRAINER_HOME", "DATASET_ROOT", "RUNS_DIR", "MODELS_DIR"]
    assert "GiB free; free some space, or set MODELS_DIR to a folder on another disk" in faults[-1].message


@pytest.mark.parametrize("name", ["DATASET_ROOT", "RUNS_DIR", "MODELS_DIR"])
def test_read_only_folder_is_a_fault(a_host, name):
    place = a_host.home.parent / "a-file"
    place.write_text("")
    a_host.set(**{name: place / "below"})

    fault = a_host.fault()

    assert fault.name == name
    assert f"cannot be written (Not a directory): give this user (uid {os.getuid()}) write access" in fault.message


@pytest.mark.parametrize(
    ("number", "says"),
    [
        (errno.ENOSPC, "has no space left (No space left on device): free some, or set RUNS_DIR to another disk"),
        (errno.EDQUOT, "has no space left (Disk quota exceeded): free some, or set RUNS_DIR to another disk"),
        (
            errno.EROFS,
            "cannot be written (Read-only file system): check dmesg and the mount, or set RUNS_DIR to another folder",
        ),
    ],
)
def test_full_or_read_only_disk_is_not_reported_as_missing_permission(a_host, number, says):
    runs, works = a_host.home / "runs", doctor.write_and_read

    def fails_there(folder):
        works(folder)
        if folder == runs:
            raise OSError(number, os.strerror(number))

    a_host.monkeypatch.setattr(doctor, "write_and_read", fails_there)

    fault = a_host.fault()

    assert (fault.name, fault.message) == ("RUNS_DIR", f"{runs} {says}")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_folder_without_permission_is_a_fault(a_host):
    place = a_host.home.parent / "closed"
    place.mkdir(mode=0o500)
    a_host.set(RUNS_DIR=place)

    assert "Permission denied" in a_host.fault().message


def test_read_only_home_is_reported_for_each_folder_in_it(a_host):
    place = a_host.home.parent / "a-file"
    place.write_text("")
    a_host.set(TRAINER_HOME=place)

    assert {"TRAINER_HOME", "RUNS_DIR", "queue"} <= {check.name for check in a_host.findings()}


def test_missing_extra_dataset_root_is_a_fault(a_host):
    a_host.set(EXTRA_DATASET_ROOTS=f"{a_host.home.parent},{a_host.home.parent}/gone")

    assert a_host.fault().name == "EXTRA_DATASET_ROOTS"
    assert "/gone does not exist, or this user may not read it" in a_host.fault().message


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

    assert "look for messages of the driver in dmesg" in a_host.fault().message


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
    queue.report(Worker(id="gpu-8"), "another host's trouble")

    fault = a_host.fault()

    assert fault.name == "worker"
    assert fault.message.startswith("gpu-7 claims no runs: RUNS_DIR: /runs has no space left. (last seen 20")
    queue.claim(Worker(id="gpu-7"), "8d1a3a52-5f3a-4f1c-9a3d-000000000001", 60)
    assert a_host.findings() == []


def test_old_report_of_a_stopped_worker_is_no_fault(a_host):
    a_host.set(WORKER_ID="gpu-7")
    SqliteQueue(a_host.home / "queue.db").report(Worker(id="gpu-7"), "RUNS_DIR is full.")
    with closing(sqlite3.connect(a_host.home / "queue.db")) as file, file:
        file.execute("update trainer_workers set last_seen = '2020-01-01T00:00:00+00:00'")

    assert a_host.findings() == []


def test_several_faults_are_all_found(a_host):
    a_host.torch("raise ImportError('gone')")
    a_host.set(EXTRA_DATASET_ROOTS="/nowhere", RUNS_DIR="/proc/nobody/writes/here")

    assert {check.name for check in a_host.findings()} == {"RUNS_DIR", "EXTRA_DATASET_ROOTS", "torch"}


# ── the command ──


def test_command_exits_0_without_fault(tmp_path):
    service = Service(tmp_path / "home")

    found = service.run("doctor")  # with the torch that is installed

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
