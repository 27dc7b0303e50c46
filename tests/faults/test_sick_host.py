"""F28: a host that cannot work beside one that can. Every setting that could hide something is at its default."""

import json
import re
import shutil
from pathlib import Path

import pytest

from tests.acceptance.service import Service
from tests.faults.cloud import wait_for
from tests.faults.conftest import QUICK
from tests.faults.disks import KINDS, SAYS
from tests.faults.hosts import Host
from tests.faults.outage import SHORTENED
from tests.faults.test_real_training import CONFIGURATION
from tests.long import long_except


@pytest.fixture
def host(cloud, tmp_path):
    """Starts hosts by name, with every setting at its default."""
    hosts = []

    def start(name, behavior=QUICK, **settings):
        host = Host(cloud, tmp_path / name, behavior, **settings)
        for changed in (*SHORTENED, "WARM_START"):
            host.environment.pop(changed)
        hosts.append(host.start())
        wait_for(lambda: worker(cloud, name), seconds=60, told=host.tail)
        return host

    yield start
    for each in hosts:
        each.end()


def worker(cloud, name):
    rows = cloud._read("/trainer_workers", worker_id=f"eq.{name}")
    return rows[0] if rows else None


def unhealthy(cloud, name, says, host):
    """The row of a worker, once it says why it claims nothing."""
    wait_for(lambda: worker(cloud, name)["status"] == "unhealthy", seconds=60, told=host.tail)
    wait_for(lambda: not host.journals(), told=host.tail)  # what failed is told
    row = worker(cloud, name)
    assert re.search(says, row["status_message"]), row["status_message"]
    return row


def claims(cloud, name):
    """How often the worker claimed a run."""
    return cloud.stack.rows(f"select count(*) as n from faults.changes where became ->> 'worker_id' = '{name}'"
                            " and was ->> 'attempt' <> became ->> 'attempt'")[0]["n"]  # fmt: skip


def all_completed(cloud, runs, seconds=150):
    wait_for(
        lambda: all(cloud.row(run)["status"] == "completed" for run in runs), seconds, lambda: cloud.story(runs[0])
    )


DISKS = [(setting, kind) for setting in ("RUNS_DIR", "DATASET_ROOT", "MODELS_DIR") for kind in KINDS]


@pytest.mark.parametrize(("setting", "kind"), long_except(DISKS))
def test_a_sick_host_leaves_the_queue_to_the_healthy_one_and_comes_back(cloud, disk, host, kind, setting):
    place = disk("place", kind)
    sick = host("sick", **{setting: place.place})
    well = host("well", {"seconds_per_epoch": 1})  # it leaves the other one time to claim some
    place.strike()

    runs = [cloud.enqueue(epochs=2) for _ in range(10)]
    all_completed(cloud, runs)

    assert all(cloud.row(run)["failures"] <= 1 for run in runs)
    assert 1 <= claims(cloud, "sick") <= 2
    seen = unhealthy(cloud, "sick", f"{setting}.*({SAYS[kind]})", sick)["last_seen"]
    wait_for(lambda: worker(cloud, "sick")["last_seen"] > seen, seconds=30)
    well.stop()
    place.mend()
    all_completed(cloud, [cloud.enqueue(epochs=2) for _ in range(3)])
    assert worker(cloud, "sick")["status_message"] is None


@pytest.mark.long
def test_runs_wait_for_a_lone_sick_host_and_none_fails(cloud, disk, host):
    runs_dir = disk("runs")
    sick = host("sick", RUNS_DIR=runs_dir.place)
    runs_dir.strike()

    runs = [cloud.enqueue(epochs=2) for _ in range(10)]
    unhealthy(cloud, "sick", "RUNS_DIR.*no space left", sick)

    assert {cloud.row(run)["status"] for run in runs} == {"queued"}
    assert claims(cloud, "sick") == 1
    (tried,) = [row for row in cloud.rows() if row["attempt"]]
    assert (tried["failures"], tried["host_failures"]) == (1, {"sick": 1})
    assert "RUNS_DIR" in tried["error_message"], "it says why it waits"
    runs_dir.mend()
    all_completed(cloud, runs)


@pytest.mark.parametrize("setting", long_except(["RUNS_DIR", "TRAINER_HOME"], "TRAINER_HOME"))
@pytest.mark.long
def test_a_host_that_starts_with_a_full_disk_claims_nothing_until_there_is_space(cloud, disk, host, setting):
    place = disk("place")
    (place.place / "behavior.json").write_text(json.dumps(QUICK))  # the stand-in reads it in TRAINER_HOME
    place.strike()
    run_id = cloud.enqueue(epochs=2)
    sick = host("sick", **{setting: place.place})

    unhealthy(cloud, "sick", f"{setting}.*no space left", sick)

    assert cloud.row(run_id)["attempt"] == 0
    (line,) = [line for line in sick.lines() if line["event"] == "host is unhealthy, claiming no runs"]
    assert setting in line["reason"]
    place.mend()
    all_completed(cloud, [run_id])


@pytest.mark.long
def test_a_host_whose_trainings_cannot_start_stops_claiming(cloud, host):
    """The libraries of one host are broken: nothing that a self-test of disks could find."""
    broken = host("broken", QUICK | {"at_epoch": 0, "exit": 1, "print": "ImportError: libcudart.so.13"}, WARM_START="0")

    runs = [cloud.enqueue(epochs=2) for _ in range(10)]
    unhealthy(cloud, "broken", "libcudart.*install requirements.txt again", broken)

    assert claims(cloud, "broken") == 2
    assert {cloud.row(run)["status"] for run in runs} == {"queued"}
    host("well")
    all_completed(cloud, runs)
    assert all(cloud.row(run)["failures"] <= 1 for run in runs)


@pytest.mark.training
@pytest.mark.parametrize("kind", long_except(["full", "read-only"], "read-only"))
@pytest.mark.long
def test_a_real_training_on_a_disk_that_fails_goes_on_at_a_healthy_host(cloud, disk, host, kind):
    place = disk("place", kind)
    sick = host("sick", None, RUNS_DIR=place.place)
    run_id = cloud.enqueue(**CONFIGURATION | {"epochs": 30})
    table = place.place / f"train_{run_id}" / "results.csv"  # the queue hears of an epoch seconds later
    wait_for(lambda: table.exists() and table.read_text().count("\n") > 2, seconds=100, told=sick.tail)
    place.strike()

    unhealthy(cloud, "sick", f"RUNS_DIR.*({SAYS[kind]}|MiB free)", sick)
    row = cloud.row(run_id)
    assert (row["status"], row["host_failures"]) == ("queued", {"sick": 1})
    host("well", None)

    all_completed(cloud, [run_id])
    assert cloud.row(run_id)["worker_id"] == "well"


@pytest.mark.long
def test_a_run_that_one_host_has_no_room_for_waits_for_another_host(cloud, disk, host, drawn, tmp_path):
    """The self-test passes, and runs that need less are worked on."""
    archive = Path(shutil.make_archive(str(tmp_path / "set"), "zip", drawn.parent))
    cloud.storage.put("datasets", "set.zip", archive.read_bytes())
    data = disk("data", mebibytes=500)  # of which a dataset leaves 1 GiB free
    small = host("small", DATASET_ROOT=data.place)

    large = [cloud.enqueue("storage:datasets/set.zip", epochs=2) for _ in range(2)]
    all_completed(cloud, [cloud.enqueue(epochs=2)])
    cloud.wait_until(large[0], lambda row: row["host_failures"].get("small", 0) > 3, seconds=60)

    cloud.wait_until(large[0], lambda row: "is too full: the dataset needs" in (row["error_message"] or ""))
    assert [cloud.row(run)["failures"] for run in large] == [1, 1]
    assert worker(cloud, "small")["status_message"] is None, small.tail()
    host("well")
    all_completed(cloud, large)


@pytest.mark.long
def test_a_home_that_was_lost_while_the_service_idled_is_the_hosts_failure(cloud, disk, host):
    home = disk("sick", "read-only")
    sick = host("sick", RUNS_DIR=home.place.parent / "runs", DATASET_ROOT=home.place.parent / "sets")
    home.strike()

    run_id = cloud.enqueue(epochs=2)
    unhealthy(cloud, "sick", "TRAINER_HOME.*Read-only file system", sick)

    row = cloud.row(run_id)
    assert (row["status"], row["failures"]) == ("queued", 1)
    assert "Read-only file system" in row["error_message"]


# ── a start that makes no sense is refused ──


SETTINGS = ["RUNS_DIR", "DATASET_ROOT", "MODELS_DIR", "TRAINER_HOME"]


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_service_with_a_read_only_folder_refuses_to_start(disk, tmp_path, setting):
    place = disk("place", "read-only")
    place.strike()
    says = rf"{place.place}\S* cannot be written \(Read-only file system\): check dmesg and the mount"

    refused(tmp_path / "home", says, **{setting: place.place})


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_service_whose_folder_cannot_be_made_refuses_to_start(tmp_path, setting):
    (tmp_path / "a-file").write_text("")
    says = r"\S*a-file/below\S* cannot be written \(Not a directory\): give this user \(uid \d+\) write access"

    refused(tmp_path / "home", says, **{setting: tmp_path / "a-file" / "below"})


def refused(home, says, **settings):
    (setting,) = settings
    ended = Service(home, **settings).run(check=False)
    assert ended.returncode == 2
    (line,) = ended.stderr.splitlines()
    assert re.fullmatch(rf"error: {setting}: {says}.*, or set {setting} to another (folder|disk)\.", line), line
