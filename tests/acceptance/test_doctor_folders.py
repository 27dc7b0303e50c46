"""`doctor` finds folders that are missing, full or not writable."""

import errno
import os

import pytest

from trainer import doctor


def test_too_little_free_disk_space_is_a_fault(a_host):
    a_host.monkeypatch.setattr(doctor, "LEAST_FREE", 10**18)

    faults = a_host.findings()

    assert [check.name for check in faults] == ["TRAINER_HOME", "DATASET_ROOT", "RUNS_DIR", "MODELS_DIR"]
    assert "GiB free; free some space, or set MODELS_DIR to a folder on another disk" in faults[-1].message


@pytest.mark.parametrize("name", ["DATASET_ROOT", "RUNS_DIR", "MODELS_DIR"])
def test_folder_that_cannot_be_created_is_a_fault(a_host, name):
    place = a_host.home.parent / "a-file"
    place.write_text("")
    a_host.set(**{name: place / "below"})

    fault = a_host.fault()

    assert fault.name == name
    assert f"cannot be written (Not a directory): give this user (uid {os.getuid()}) write access" in fault.message


@pytest.mark.parametrize(
    ("number", "says"),
    [
        (errno.ENOSPC, "has no space left (No space left on device): free some space, or set RUNS_DIR to another disk"),
        (errno.EDQUOT, "has no space left (Disk quota exceeded): free some space, or set RUNS_DIR to another disk"),
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


@pytest.mark.skipif(os.geteuid() == 0, reason="root can write anywhere")
def test_folder_without_permission_is_a_fault(a_host):
    place = a_host.home.parent / "closed"
    place.mkdir(mode=0o500)
    a_host.set(RUNS_DIR=place)

    assert "Permission denied" in a_host.fault().message


def test_home_that_is_a_file_is_reported_for_each_folder_in_it(a_host):
    place = a_host.home.parent / "a-file"
    place.write_text("")
    a_host.set(TRAINER_HOME=place)

    assert {"TRAINER_HOME", "RUNS_DIR", "queue"} <= {check.name for check in a_host.findings()}


def test_missing_extra_dataset_root_is_a_fault(a_host):
    a_host.set(EXTRA_DATASET_ROOTS=f"{a_host.home.parent},{a_host.home.parent}/gone")

    assert a_host.fault().name == "EXTRA_DATASET_ROOTS"
    assert "/gone does not exist, or this user cannot read it" in a_host.fault().message


def test_all_faults_of_a_host_are_reported(a_host):
    a_host.torch("raise ImportError('gone')")
    a_host.set(EXTRA_DATASET_ROOTS="/nowhere", RUNS_DIR="/proc/nobody/writes/here")

    assert {check.name for check in a_host.findings()} == {"RUNS_DIR", "EXTRA_DATASET_ROOTS", "torch"}
