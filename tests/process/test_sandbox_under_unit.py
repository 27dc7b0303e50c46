"""The systemd units allow every system call with which a training process enters its sandbox."""

import ctypes.util
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.process.sandbox_host import PROJECT, needs_landlock
from trainer.sandbox import private_network

UNITS = [path.name for path in (PROJECT / "systemd").glob("*.service")]
UNDER_UNIT = Path(__file__).parent / "programs" / "runs_under_unit.py"
PYTHON = shutil.which("python3", path="/usr/bin")  # other users can execute this program
OTHER_USER = 65534

pytestmark = [
    pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze"),
    pytest.mark.skipif(ctypes.util.find_library("seccomp") is None, reason="needs libseccomp"),
]


@pytest.fixture
def readable_copy():
    """Return a function that copies a file to a folder that other users can read."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        os.chmod(folder, 0o755)
        yield lambda path: shutil.copy(path, folder)


@needs_landlock
@pytest.mark.parametrize("unit", UNITS)
def test_training_enters_its_sandbox_under_the_unit(host, unit):
    host.before = (sys.executable, str(UNDER_UNIT), str(PROJECT / "systemd" / unit))

    assert host.results_of(["import os; os.mkdir('/created_in_sandbox')"]) == {"PermissionError"}


@pytest.mark.skipif(os.getuid() != 0 or not PYTHON, reason="only root can become another user")
@pytest.mark.parametrize("unit", UNITS)
def test_training_on_several_gpus_has_its_own_network_under_the_unit(readable_copy, unit):
    user = ["setpriv", f"--reuid={OTHER_USER}", f"--regid={OTHER_USER}", "--clear-groups"]
    network = [PYTHON, "-I", "-S", readable_copy(private_network.__file__)]
    program = [PYTHON, "-c", "import os, socket; print(os.getuid(), socket.if_nameindex())"]
    under_unit = [PYTHON, readable_copy(UNDER_UNIT), readable_copy(PROJECT / "systemd" / unit)]
    done = subprocess.run([*user, *under_unit, *network, *program], stdout=subprocess.PIPE, text=True, check=True)

    assert done.stdout.strip() == f"{OTHER_USER} [(1, 'lo')]"
