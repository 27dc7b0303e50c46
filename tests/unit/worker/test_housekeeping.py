"""Chores remove old files of a host. Before a training, the free space is checked."""

import threading
import time

import pytest

from trainer.core.errors import HostUnfit
from trainer.core.job import Job, RunRequest
from trainer.core.stop import StopReason, StopSignal
from trainer.worker import housekeeping
from trainer.worker.housekeeping import Housekeeping, old_folders, remove_unreadable, require_space
from trainer.worker.run_folders import RunFolders


@pytest.fixture
def folders(tmp_path):
    (tmp_path / "journal").mkdir()
    return RunFolders(runs=tmp_path / "runs", views=tmp_path / "views", journals=tmp_path / "journal")


def sweep(folders, keep_days):
    for old in old_folders(folders, keep_days):
        old.sweep()


def job(run_id="a", attempt=1):
    return Job(id=run_id, request=RunRequest(data_yaml=None), attempt=attempt)


def test_old_run_folders_and_views_are_removed(folders):
    run, view = folders.folder(job()).path, folders.view(job(attempt=2))
    for folder in (run, view):
        folder.mkdir(parents=True)

    sweep(folders, 1)
    assert run.exists()
    assert view.exists()

    sweep(folders, 0)
    assert not run.exists()
    assert not view.exists()


@pytest.mark.parametrize("journal", ["a.1.jsonl", "a.2.jsonl"])
def test_folder_of_run_with_journal_is_kept(folders, journal):
    run = folders.folder(job(attempt=2)).path
    run.mkdir(parents=True)
    (folders.journals / journal).touch()

    sweep(folders, 0)

    assert run.exists()


def test_journal_of_another_run_does_not_keep_run_folder(folders):
    run = folders.folder(job("ab")).path
    run.mkdir(parents=True)
    (folders.journals / "a.1.jsonl").touch()
    (folders.journals / "ab.1.unreadable").touch()

    sweep(folders, 0)

    assert not run.exists()


def test_run_folders_of_all_attempts_are_kept_during_run(folders):
    used = [folders.folder(job()).path, folders.folder(job(attempt=3)).path, folders.view(job(attempt=3))]
    dead = folders.view(job())
    for folder in [*used, dead]:
        folder.mkdir(parents=True)

    with folders.in_use(job(attempt=3)):
        sweep(RunFolders(runs=folders.runs, views=folders.views, journals=folders.journals), 0)
        assert all(folder.exists() for folder in used)
        assert not dead.exists()

    sweep(folders, 0)
    assert not any(folder.exists() for folder in used)
    assert not list(folders.runs.iterdir())
    assert not list(folders.views.iterdir())


def test_sweep_of_missing_folders_is_not_an_error(folders):
    sweep(folders, 0)


def test_only_unreadable_journals_are_removed_after_keep_days(folders):
    names = {"a.1.unreadable", "b.1.jsonl", "c.unreadable.jsonl"}
    for name in names:
        (folders.journals / name).touch()
    (folders.journals / "dangling.unreadable").symlink_to("nowhere")
    (folders.journals / "folder.unreadable").mkdir()
    others = {"dangling.unreadable", "folder.unreadable"}

    remove_unreadable(folders.journals, 1)
    assert {path.name for path in folders.journals.iterdir()} == names | others

    remove_unreadable(folders.journals, 0)
    assert {path.name for path in folders.journals.iterdir()} == {"b.1.jsonl", "c.unreadable.jsonl"} | others
    remove_unreadable(folders.journals / "missing", 0)


class Chores:
    def __init__(self, monkeypatch, *chores, every=3600.0):
        monkeypatch.setattr(housekeeping, "EVERY", every)
        monkeypatch.setattr(housekeeping, "POLL", 0.05)
        self.shutdown = StopSignal()
        self.done = threading.Semaphore(0)
        self.keeper = Housekeeping([*chores, self.done.release])

    def __enter__(self):
        self.running = self.keeper.running(self.shutdown)
        self.running.__enter__()
        return self

    def __exit__(self, *_):
        self.shutdown.set(StopReason.SHUTDOWN)
        self.running.__exit__(None, None, None)

    def did(self, seconds=15.0):
        return self.done.acquire(timeout=seconds)


def fails():
    raise ZeroDivisionError


def test_failing_chore_does_not_stop_other_chores(monkeypatch):
    with Chores(monkeypatch, fails, every=0.0) as chores:
        assert chores.did()
        assert chores.did()


def test_chores_run_at_start_and_on_request(monkeypatch):
    with Chores(monkeypatch) as chores:
        assert chores.did()
        assert not chores.did(0.3)
        chores.keeper.soon()
        assert chores.did()


def test_hanging_chore_does_not_delay_shutdown(monkeypatch):
    monkeypatch.setattr(housekeeping, "LAST_CHORE", 0.1)
    hangs = threading.Event()
    began = time.monotonic()
    with Chores(monkeypatch, hangs.wait):
        pass
    assert time.monotonic() - began < 15
    hangs.set()


def test_too_little_space_is_reported_with_required_space(tmp_path, monkeypatch):
    monkeypatch.setattr(housekeeping, "LEAST", 2**60)

    with pytest.raises(HostUnfit, match=r"MiB free and this training needs about \d+ MiB"):
        require_space(tmp_path, tmp_path / "yolo11n.pt")


def test_enough_space_raises_no_error(tmp_path):
    require_space(tmp_path, tmp_path / "yolo11n.yaml")
