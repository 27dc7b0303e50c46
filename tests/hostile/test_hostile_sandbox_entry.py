"""A training process that cannot enter its sandbox does not train, unless the kernel has no such sandbox."""

from __future__ import annotations

import errno
import os
import subprocess
import sys

import pytest

from tests.mounts import unmounted_afterwards
from tests.process import conftest as processes
from tests.process.sandbox_host import needs_landlock
from trainer.core.errors import HostUnfit

pytestmark = needs_landlock
home, program, leak_check = processes.home, processes.program, processes.leak_check

LANDLOCK_CREATE, LANDLOCK_RESTRICT, PRCTL = 444, 446, {"x86_64": 157, "aarch64": 167}[os.uname().machine]
SECCOMP = {"x86_64": 317, "aarch64": 277}[os.uname().machine]


@pytest.fixture
def training(program):
    """Return a function that makes a training which enters the real sandbox, with the setting SANDBOX."""

    def make(setting, **behavior):
        made = program("enters_sandbox").behave(**behavior)
        made.trainer.sandbox = setting
        return made

    return make


@pytest.mark.parametrize("setting", ["auto", "required"])
def test_complete_sandbox_is_reported_as_complete(training, setting):
    made = training(setting)

    assert made.train().report["sandbox"] == []
    assert not made.of("warning")


@pytest.mark.parametrize("error", [errno.ENOSYS, errno.EOPNOTSUPP])
def test_kernel_without_landlock_trains_with_warning_or_not_at_all(training, error):
    made = training("auto", refuse={LANDLOCK_CREATE: error})
    (missing,) = made.train().report["sandbox"]

    assert missing.startswith("files (Landlock")
    assert [(event.code, missing in event.message) for event in made.of("warning")] == [("unconfined", True)]

    made = training("required", refuse={LANDLOCK_CREATE: error})
    with pytest.raises(HostUnfit, match="SANDBOX=required"):
        made.train()
    assert not made.of("phase")


def test_kernel_without_seccomp_trains_with_warning_or_not_at_all(training):
    made = training("auto", refuse={SECCOMP: errno.ENOSYS})
    assert "seccomp" in made.train().report["sandbox"][0]
    assert [event.code for event in made.of("warning")] == ["unconfined"]

    with pytest.raises(HostUnfit, match="seccomp"):
        training("required", refuse={SECCOMP: errno.ENOSYS}).train()


@pytest.mark.parametrize("call", [LANDLOCK_CREATE, LANDLOCK_RESTRICT, SECCOMP, PRCTL])
@pytest.mark.parametrize("error", [errno.EPERM, errno.ENOMEM, errno.EMFILE, errno.EINVAL, errno.E2BIG])
def test_no_other_error_continues_without_sandbox(training, leak_check, call, error):
    made = training("auto", refuse={call: error})

    with pytest.raises(HostUnfit, match="cannot enter its sandbox"):
        made.train()

    assert not made.of("phase")


@pytest.fixture
def full_disk(tmp_path):
    """Mount a disk for the run folder that has no inode left."""
    disk = tmp_path / "run"
    disk.mkdir()
    with unmounted_afterwards(disk):
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", "nr_inodes=5,size=1m", "tmpfs", disk], check=False)
        if done.returncode:
            pytest.skip("needs root, to mount a small disk")
        yield disk


def test_disk_without_inodes_does_not_disable_the_sandbox(training, full_disk):
    for number in range(4):
        (full_disk / str(number)).touch()
    made = training("auto")

    with pytest.raises(HostUnfit, match="No space left"):
        made.train()

    assert not made.of("phase")


SENDS_RESULT = """
import json, os, sys
weights = {"path": "/x.pt", "sha256": "0" * 64, "bytes": 1}
event = {"kind": "finished", "best": weights, "last": weights, "report": {}}
os.write(int(sys.argv[-1]), json.dumps(event).encode() + bytes([10]))
"""


def test_process_without_report_is_not_believed(training):
    made = training("auto")
    made.trainer.program = (sys.executable, "-c", SENDS_RESULT)

    with pytest.raises(HostUnfit, match="no report on the sandbox"):
        made.train()

    assert made.events == []


def test_disabled_sandbox_is_reported(training):
    made = training("0")

    assert made.train().report["sandbox"] == ["everything (SANDBOX=0)"]
    assert [event.code for event in made.of("warning")] == ["unconfined"]
