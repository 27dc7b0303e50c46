"""Old folders go, used ones stay, and a full disk is noticed before a training."""

import os
import time

import pytest

from trainer.core.errors import MachineFailed
from trainer.worker import housekeeping
from trainer.worker.housekeeping import Housekeeping, require_space


def made(path, days_old):
    path.mkdir(parents=True)
    (path / "results.csv").write_text("x")
    for each in (path / "results.csv", path):
        os.utime(each, (time.time() - days_old * 86_400,) * 2)
    return path


@pytest.fixture
def keeper(tmp_path):
    (tmp_path / "journal").mkdir()
    return Housekeeping(
        runs=tmp_path / "runs", views=tmp_path / "views", journals=tmp_path / "journal", keep_days=14,
    )  # fmt: skip


def test_only_what_is_old_goes(keeper, tmp_path):
    old, young = made(tmp_path / "runs" / "train_a", 15), made(tmp_path / "runs" / "train_b", 13)
    view = made(tmp_path / "views" / "run_c", 15)

    keeper.sweep()

    assert (old.exists(), young.exists(), view.exists()) == (False, True, False)


def test_a_run_with_a_journal_is_in_use(keeper, tmp_path):
    old = made(tmp_path / "runs" / "train_a-2", 100)
    (tmp_path / "journal" / "a.2.jsonl").touch()

    keeper.sweep()

    assert old.exists()


def test_a_folder_with_a_fresh_file_is_not_old(keeper, tmp_path):
    folder = made(tmp_path / "runs" / "train_a", 100)
    (folder / "results.csv").write_text("new")

    keeper.sweep()

    assert folder.exists()


def test_nothing_else_is_touched(keeper, tmp_path):
    other = made(tmp_path / "runs" / "my_notes", 100)

    keeper.sweep()

    assert other.exists()


def test_a_sweep_that_is_due_is_made(keeper, tmp_path):
    old = made(tmp_path / "runs" / "train_a", 15)

    keeper.sweep_if_due()

    assert not old.exists()


def test_sweeps_are_an_hour_apart(keeper, tmp_path):
    keeper.sweep_if_due()
    old = made(tmp_path / "runs" / "train_a", 15)

    keeper.sweep_if_due()

    assert old.exists()


def test_too_little_space_is_named_with_the_need(tmp_path, monkeypatch):
    monkeypatch.setattr(housekeeping, "LEAST", 2**60)

    with pytest.raises(MachineFailed, match=r"MiB free and this training needs about \d+ MiB"):
        require_space(tmp_path / "runs" / "train_a", tmp_path / "yolo11n.pt")


def test_enough_space_is_no_event(tmp_path):
    require_space(tmp_path / "runs" / "train_a", tmp_path / "yolo11n.yaml")
