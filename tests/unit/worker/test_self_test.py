"""The self-test of a host: writable folders, free space, GPUs that answer."""

import errno
import os
import re
from typing import NamedTuple

import pytest

from trainer import host
from trainer.core.errors import Misconfigured
from trainer.worker import self_test as module
from trainer.worker.self_test import MIB, Place, SelfTest


class Statvfs(NamedTuple):
    f_bavail: int
    f_frsize: int
    f_files: int
    f_favail: int


@pytest.fixture
def place(tmp_path):
    return Place(setting="RUNS_DIR", folder=tmp_path / "a" / "runs", needs=200 * MIB)


def fail_with(monkeypatch, number):
    def fsync(_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(module.os, "fsync", fsync)


def disk(monkeypatch, *, free=10**12, files=10**6, inodes=10**6):
    monkeypatch.setattr(module.os, "statvfs", lambda _: Statvfs(free // 4096, 4096, files, inodes))


def test_missing_folder_is_created_and_left_empty(place):
    assert SelfTest([place])() is None
    assert list(place.folder.iterdir()) == []


def test_killed_self_test_leaves_no_file(place, monkeypatch):
    found = []
    sync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda descriptor: (sync(descriptor), found.append(list(place.folder.iterdir()))))
    assert SelfTest([place])() is None
    assert found == [[]]


def test_full_disk_is_reported_and_does_not_prevent_start(place, monkeypatch):
    fail_with(monkeypatch, errno.ENOSPC)
    SelfTest([place]).require_folders()
    problem = SelfTest([place])()
    assert problem.startswith(f"RUNS_DIR: {place.folder} has no space left (No space left on device): free some")
    assert list(place.folder.iterdir()) == []


@pytest.mark.parametrize(
    ("number", "fix"),
    [(errno.EROFS, "check dmesg and the mount"), (errno.EIO, "dmesg"), (errno.EACCES, "write access")],
)
def test_folder_that_cannot_be_written_prevents_start(place, monkeypatch, number, fix):
    fail_with(monkeypatch, number)
    told = f"RUNS_DIR: {place.folder} cannot be written ({os.strerror(number)})"
    with pytest.raises(Misconfigured) as refused:
        SelfTest([place]).require_folders()
    for said in (SelfTest([place])(), str(refused.value)):
        assert said.startswith(told)
        assert fix in said
        assert said.endswith("or set RUNS_DIR to another folder.")


def test_folder_that_cannot_be_created_prevents_start(place):
    place.folder.parent.write_text("a file")
    with pytest.raises(Misconfigured, match=r"RUNS_DIR: .*/a/runs cannot be written \(Not a directory\)"):
        SelfTest([place]).require_folders()


def test_too_little_space_is_reported_with_free_and_required_space(place, monkeypatch):
    disk(monkeypatch, free=199 * MIB)
    assert "has 199 MiB free, and the smallest run needs 200 MiB" in SelfTest([place])()
    disk(monkeypatch, free=201 * MIB)
    assert SelfTest([place])() is None


def test_too_few_inodes_are_reported(place, monkeypatch):
    disk(monkeypatch, inodes=3)
    assert "has 3 inodes left" in SelfTest([place])()
    disk(monkeypatch, files=0, inodes=0)  # btrfs does not report inodes
    assert SelfTest([place])() is None


def test_disk_that_returns_other_content_is_reported(place, monkeypatch):
    monkeypatch.setattr(module.os, "pread", lambda *_: b"zeros")
    assert "the disk returned different data than was written" in SelfTest([place])()


def test_first_problem_is_reported_and_gpus_are_tested_last(tmp_path, monkeypatch):
    places = [Place(setting=name, folder=tmp_path / name) for name in ("TRAINER_HOME", "RUNS_DIR")]
    assert SelfTest(places, lambda: "The GPU is gone.")() == "The GPU is gone."
    (tmp_path / "RUNS_DIR").rmdir()
    (tmp_path / "RUNS_DIR").write_text("")
    assert SelfTest(places, lambda: "The GPU is gone.")().startswith("RUNS_DIR: ")


# ── GPUs ──


@pytest.fixture
def two_gpus(monkeypatch):
    gpu = host.Gpu(index=0, name="H200", memory=1, driver="580.1")
    monkeypatch.setattr(host, "gpus", lambda: (gpu, gpu.__class__(index=1, name="H200", memory=1, driver="580.1")))


@pytest.mark.parametrize(
    ("ask", "says"),
    [
        ("print(2)", None),
        ("print('a warning'); print(1)", None),
        ("print(0)", "0 of 1 GPUs answer"),
        ("print('CUDA error 999')", r"the GPU driver fails \(CUDA error 999\)"),
        ("import ctypes; ctypes.CDLL('libgone.so.1')", "the GPU driver fails .*libgone"),
        ("import os; os.kill(os.getpid(), 11)", "the GPU driver fails"),
    ],
)
def test_broken_driver_is_reported(two_gpus, ask, says):
    problem = host.GpuCheck({"PATH": os.environ["PATH"]}, ask=ask)()
    assert (problem is None) if says is None else re.search(f"GPU: {says}.*nvidia-smi", problem)


def test_hanging_driver_is_reported(two_gpus):
    assert "no answer within 0 s" in host.GpuCheck({}, ask="import time; time.sleep(20)", seconds=0.2)()


def test_gpu_present_at_start_must_answer(two_gpus, tmp_path):
    (tmp_path / "gpus").write_text("2")
    check = host.GpuCheck({}, ask=f"print(open({str(tmp_path / 'gpus')!r}).read())")
    assert check() is None
    (tmp_path / "gpus").write_text("1")
    assert "1 of 2 GPUs answer" in check()
    (tmp_path / "gpus").write_text("2")
    assert check() is None


@pytest.mark.skipif(bool(host.gpus()), reason="this host has a GPU")
def test_gpu_check_is_skipped_on_host_without_gpus():
    assert host.GpuCheck({}, ask="raise SystemExit('never run')")() is None


@pytest.mark.skipif(bool(host.gpus()), reason="this host has a GPU")
def test_real_gpu_check_reports_missing_driver(two_gpus):
    assert "the GPU driver fails" in host.GpuCheck({"PATH": os.environ["PATH"]})()
