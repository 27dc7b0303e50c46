"""The mounts of tests."""

import os
import signal
import subprocess
import sys
import time

import pytest

HOLDS_A_MOUNT = """
import subprocess, sys, time
from pathlib import Path
from tests.mounts import unmounted_afterwards

with unmounted_afterwards(Path(sys.argv[1])):
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", sys.argv[1]], check=True)
    print("mounted", flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("is_killed", [False, True])
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to mount a disk")
def test_mount_does_not_outlive_its_test_process(tmp_path, is_killed):
    command = [sys.executable, "-c", HOLDS_A_MOUNT, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        if process.stdout.readline() != b"mounted\n":
            pytest.skip("this host allows no mounts")
        assert os.path.ismount(tmp_path)
        if is_killed:
            process.send_signal(signal.SIGKILL)

    deadline = time.monotonic() + 30
    while os.path.ismount(tmp_path):
        assert time.monotonic() < deadline
        time.sleep(0.05)
