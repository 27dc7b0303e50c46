"""F28: an unhealthy host together with a healthy host. Settings that could hide a fault have their defaults."""

import json
import re
import shutil
from pathlib import Path

import pytest

from tests.acceptance.service import Service
from tests.faults.cloud import wait_for
from tests.faults.conftest import QUICK
from tests.faults.disks import KINDS, MESSAGES
from tests.faults.hosts import Host
from tests.faults.outage import SHORTENED
from tests.faults.test_real_training import CONFIGURATION
from tests.long import long_except


@pytest.fixture
def host(cloud, tmp_path):
    """Start hosts by name, with the defaults of WARM_START and of the settings in SHORTENED."""
    hosts = []

    def start(name, behavior=QUICK, **settings):
        host = Host(cloud, tmp_path / name, behavior, **settings)
        for changed in (*SHORTENED, "WARM_START"):
            host.environment.pop(changed)
        hosts.append(host.start())
        wait_for(lambda: worker(cloud, name), seconds=60, describe=host.tail)
        return host

    yield start
    for each in hosts:
        each.end()


def worker(cloud, name):
    rows = cloud._read("/trainer_workers", worker_id=f"eq.{name}")
    return rows[0] if rows else None


def wait_unhealthy(cloud, name, pattern, host):
    """Wait until the worker is unhealthy with a message that matches `pattern`, and return its row."""
    wait_for(lambda: worker(cloud, name)["status"] == "unhealthy", seconds=60, describe=host.tail)
    wait_for(lambda: not host.journals(), describe=host.tail)  # until the outcome is delivered
    row = worker(cloud, name)
    assert re.search(pattern, row["status_message"]), row["status_message"]
    return row


def claims(cloud, name):
    """Return the number of runs that the worker claimed."""
    return cloud.stack.rows(f"select count(*) as n from faults.changes where became ->> 'worker_id' = '{name}'"
                            " and was ->> 'attempt' <> became ->> 'attempt'")[0]["n"]  # fmt: skip


def wait_completed(cloud, runs, seconds=150):
    wait_for(
        lambda: all(cloud.row(run)["status"] == "completed" for run in runs), seconds, lambda: cloud.history(runs[0])
    )


DISKS = [(setting, kind) for setting in ("RUNS_DIR", "DATASET_ROOT", "MODELS_DIR") for kind in KINDS]


@pytest.mark.parametrize(("setting", "kind"), long_except(DISKS))
def test_unhealthy_host_stops_claiming_until_its_disk_recovers(cloud, disk, host, kind, setting):
    place = disk("place", kind)
    unhealthy = host("unhealthy", **{setting: place.place})
    # slow epochs, so that the unhealthy host has time to claim runs
    healthy = host("healthy", {"seconds_per_epoch": 1})
    place.fail()

    runs = [cloud.enqueue(epochs=2) for _ in range(10)]
    wait_completed(cloud, runs)

    assert all(cloud.row(run)["failures"] <= 1 for run in runs)
    assert 1 <= claims(cloud, "unhealthy") <= 2
    seen = wait_unhealthy(cloud, "unhealthy", f"{setting}.*({MESSAGES[kind]})", unhealthy)["last_seen"]
    wait_for(lambda: worker(cloud, "unhealthy")["last_seen"] > seen, seconds=30)
    healthy.stop()
    place.restore()
    wait_completed(cloud, [cloud.enqueue(epochs=2) for _ in range(3)])
    assert worker(cloud, "unhealthy")["status_message"] is None


@pytest.mark.long
def test_runs_stay_queued_while_the_only_host_is_unhealthy(cloud, disk, host):
    runs_dir = disk("runs")
    unhealthy = host("unhealthy", RUNS_DIR=runs_dir.place)
    runs_dir.fail()

    runs = [cloud.enqueue(epochs=2) for _ in range(10)]
    wait_unhealthy(cloud, "unhealthy", "RUNS_DIR.*no space left", unhealthy)

    assert {cloud.row(run)["status"] for run in runs} == {"queued"}
    assert claims(cloud, "unhealthy") == 1
    (tried,) = [row for row in cloud.rows() if row["attempt"]]
    assert (tried["failures"], tried["host_failures"]) == (1, {"unhealthy": 1})
    assert "RUNS_DIR" in tried["error_message"], "the error in the row must say why the run is still queued"
    runs_dir.restore()
    wait_completed(cloud, runs)


@pytest.mark.parametrize("setting", long_except(["RUNS_DIR", "TRAINER_HOME"], "TRAINER_HOME"))
@pytest.mark.long
def test_host_started_with_full_disk_claims_nothing_until_space_is_free(cloud, disk, host, setting):
    place = disk("place")
    (place.place / "behavior.json").write_text(json.dumps(QUICK))  # the fake training reads this file from TRAINER_HOME
    place.fail()
    run_id = cloud.enqueue(epochs=2)
    unhealthy = host("unhealthy", **{setting: place.place})

    wait_unhealthy(cloud, "unhealthy", f"{setting}.*no space left", unhealthy)

    assert cloud.row(run_id)["attempt"] == 0
    (line,) = [line for line in unhealthy.lines() if line["event"] == "host is unhealthy, claiming no runs"]
    assert setting in line["reason"]
    place.restore()
    wait_completed(cloud, [run_id])


@pytest.mark.long
def test_host_with_broken_libraries_stops_claiming(cloud, host):
    """The libraries of one host are broken. Only a training process without a run can detect this."""
    broken = host("broken", QUICK | {"at_epoch": 0, "exit": 1, "print": "ImportError: libcudart.so.13"}, WARM_START="0")

    runs = [cloud.enqueue(epochs=2) for _ in range(10)]
    wait_unhealthy(cloud, "broken", "libcudart.*install requirements.txt again", broken)

    assert claims(cloud, "broken") == 1
    assert {cloud.row(run)["status"] for run in runs} == {"queued"}
    host("healthy")
    wait_completed(cloud, runs)
    assert all(cloud.row(run)["failures"] <= 1 for run in runs)


@pytest.mark.training
@pytest.mark.parametrize("kind", long_except(["full", "read-only"], "read-only"))
@pytest.mark.long
def test_real_training_on_failed_disk_resumes_on_healthy_host(cloud, disk, host, kind):
    place = disk("place", kind)
    unhealthy = host("unhealthy", None, RUNS_DIR=place.place)
    run_id = cloud.enqueue(**CONFIGURATION | {"epochs": 30})
    table = place.place / f"train_{run_id}" / "output" / "results.csv"  # the queue gets the epochs some seconds later
    wait_for(lambda: table.exists() and table.read_text().count("\n") > 2, seconds=100, describe=unhealthy.tail)
    place.fail()

    wait_unhealthy(cloud, "unhealthy", f"RUNS_DIR.*({MESSAGES[kind]}|MiB free)", unhealthy)
    row = cloud.row(run_id)
    assert (row["status"], row["host_failures"]) == ("queued", {"unhealthy": 1})
    host("healthy", None)

    wait_completed(cloud, [run_id])
    assert cloud.row(run_id)["worker_id"] == "healthy"


@pytest.mark.long
def test_run_too_large_for_one_host_completes_on_another_host(cloud, disk, host, drawn, tmp_path):
    """The host without enough space passes its self-test and still trains smaller runs."""
    archive = Path(shutil.make_archive(str(tmp_path / "set"), "zip", drawn.parent))
    cloud.storage.put("datasets", "set.zip", archive.read_bytes())
    data = disk("data", mebibytes=500)  # a dataset needs 1 GiB of free space
    small = host("small", DATASET_ROOT=data.place)

    large = [cloud.enqueue("storage:datasets/set.zip", epochs=2) for _ in range(2)]
    wait_completed(cloud, [cloud.enqueue(epochs=2)])
    cloud.wait_until(large[0], lambda row: row["host_failures"].get("small", 0) > 3, seconds=60)

    cloud.wait_until(large[0], lambda row: "is too full: the dataset needs" in (row["error_message"] or ""))
    assert [cloud.row(run)["failures"] for run in large] == [1, 1]
    assert worker(cloud, "small")["status_message"] is None, small.tail()
    host("healthy")
    wait_completed(cloud, large)


@pytest.mark.long
def test_read_only_home_counts_as_host_failure(cloud, disk, host):
    home = disk("unhealthy", "read-only")
    unhealthy = host("unhealthy", RUNS_DIR=home.place.parent / "runs", DATASET_ROOT=home.place.parent / "sets")
    home.fail()

    run_id = cloud.enqueue(epochs=2)
    wait_unhealthy(cloud, "unhealthy", "TRAINER_HOME.*Read-only file system", unhealthy)

    # without a journal, which this host cannot write, only the row shows that the outcome was delivered
    row = cloud.wait_until(run_id, lambda row: (row["status"], row["failures"]) == ("queued", 1), seconds=60)
    assert "Read-only file system" in row["error_message"]


# ── a service that cannot work does not start ──


SETTINGS = ["RUNS_DIR", "DATASET_ROOT", "MODELS_DIR", "TRAINER_HOME"]


@pytest.mark.parametrize("setting", SETTINGS)
def test_service_with_read_only_folder_refuses_to_start(disk, tmp_path, setting):
    place = disk("place", "read-only")
    place.fail()
    pattern = rf"{place.place}\S* cannot be written \(Read-only file system\): check dmesg and the mount"

    check_refused(tmp_path / "home", pattern, **{setting: place.place})


@pytest.mark.parametrize("setting", SETTINGS)
def test_service_whose_folder_cannot_be_created_refuses_to_start(tmp_path, setting):
    (tmp_path / "a-file").write_text("")
    pattern = r"\S*a-file/folder\S* cannot be written \(Not a directory\): give this user \(uid \d+\) write access"

    check_refused(tmp_path / "home", pattern, **{setting: tmp_path / "a-file" / "folder"})


def check_refused(home, pattern, **settings):
    (setting,) = settings
    ended = Service(home, **settings).run(check=False)
    assert ended.returncode == 2
    (line,) = ended.stderr.splitlines()
    assert re.fullmatch(rf"error: {setting}: {pattern}.*, or set {setting} to another (folder|disk)\.", line), line
