"""Files and links in place of run folders do not fail an attempt, and links are not followed."""

import os
from contextlib import closing

import pytest

from tests.unit.worker.fakes import save_checkpoint
from tests.unit.worker.harness import WorkerFixture
from trainer.settings import Settings
from trainer.wiring.host import run_logs
from trainer.worker.journal import Journal


@pytest.fixture
def worker(tmp_path):
    return WorkerFixture(tmp_path / "home")


@pytest.fixture
def outside(tmp_path):
    """Return a folder outside of RUNS_DIR that looks like a run folder with a checkpoint of epoch 2."""
    folder = tmp_path / "outside"
    save_checkpoint(folder, 2)
    (folder / "run.log").write_text("not a log of the run\n")
    return folder


def content(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


IN_THE_WAY = {
    "dangling link": lambda path, outside: path.symlink_to("nowhere"),
    "link to itself": lambda path, outside: path.symlink_to(path.name),
    "link to a folder": lambda path, outside: path.symlink_to(outside),
    "file": lambda path, outside: path.write_text("a file"),
    "pipe": lambda path, outside: os.mkfifo(path),
}


@pytest.mark.parametrize("what", IN_THE_WAY)
@pytest.mark.parametrize("place", ["run", "view"])
def test_file_in_place_of_folder_of_attempt_is_removed(worker, outside, what, place):
    run_id, before = worker.enqueue(), content(outside)
    lease = worker.claim()
    path = worker.folders.view(lease.job) if place == "view" else worker.folders.folder(lease.job).path
    path.parent.mkdir(parents=True, exist_ok=True)
    IN_THE_WAY[what](path, outside)

    worker.work(lease)

    row = worker.row(run_id)
    assert (row["status"], row["failures"], row["error_message"]) == ("completed", 0, None)
    assert not path.is_symlink()
    assert content(outside) == before
    assert "training started" in (worker.folders.folder(lease.job).path / "run.log").read_text()


@pytest.mark.parametrize("what", IN_THE_WAY)
def test_file_in_place_of_folder_of_earlier_attempt_is_ignored(worker, outside, what):
    run_id, before = worker.enqueue(), content(outside)
    worker.folders.runs.mkdir(parents=True)
    IN_THE_WAY[what](worker.folders.runs / f"train_{run_id}-9", outside)

    worker.work()

    assert worker.row(run_id)["status"] == "completed"
    assert "resumed" not in worker.kinds(run_id)
    assert not worker.trainer.orders[0].resume
    assert content(outside) == before


def test_recovery_publishes_nothing_through_link(worker, outside):
    worker.enqueue()
    lease = worker.claim()
    (outside / "weights").mkdir()
    (outside / "weights" / "last.pt").write_bytes(b"of another program")
    path = worker.folders.folder(lease.job).path
    path.parent.mkdir(parents=True)
    path.symlink_to(outside)
    before = content(outside)

    with closing(Journal.create(worker.folders.journals, lease)) as journal:
        outcome = worker.recovery().recover(journal, worker.shutdown)

    assert outcome.results == {}
    assert content(outside) == before
    assert not [file for file in (worker.home / "storage").rglob("*") if file.is_file()]


def test_logs_are_not_read_through_links(tmp_path, outside):
    settings = Settings(trainer_home=tmp_path)
    runs = settings.runs_folder
    (runs / "train_a").mkdir(parents=True)
    (runs / "train_a" / "run.log").write_text("a log\n")
    (runs / "train_a-2").symlink_to(outside)
    (runs / "train_a-3").mkdir()
    (runs / "train_a-3" / "run.log").symlink_to(outside / "run.log")

    assert run_logs(settings, "a") == [runs / "train_a" / "run.log"]
