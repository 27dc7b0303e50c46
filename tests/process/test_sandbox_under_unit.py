"""The systemd units allow every system call with which a training process enters its sandbox."""

import ctypes.util
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.process.other_user import OTHER_USER, PYTHON, as_user, needs_other_user, readable_folder
from tests.process.sandbox_host import PROJECT, needs_landlock
from trainer.sandbox import private_network

UNITS = [path.name for path in (PROJECT / "systemd").glob("*.service")]
UNDER_UNIT = Path(__file__).parent / "programs" / "runs_under_unit.py"

pytestmark = [
    pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze"),
    pytest.mark.skipif(ctypes.util.find_library("seccomp") is None, reason="needs libseccomp"),
]


@pytest.fixture
def readable_copy():
    """Return a function that copies a file to a folder that other users can read."""
    with readable_folder() as folder:
        yield lambda path: shutil.copy(path, folder)


@needs_landlock
@pytest.mark.parametrize("unit", UNITS)
def test_training_enters_its_sandbox_under_the_unit(host, unit):
    host.before = (sys.executable, str(UNDER_UNIT), str(PROJECT / "systemd" / unit))

    assert host.results_of(["import os; os.mkdir('/created_in_sandbox')"]) == {"PermissionError"}


@needs_other_user
@pytest.mark.parametrize("unit", UNITS)
def test_training_on_several_gpus_has_its_own_network_under_the_unit(readable_copy, unit):
    network = [PYTHON, "-I", "-S", readable_copy(private_network.__file__)]
    program = [PYTHON, "-c", "import os, socket; print(os.getuid(), socket.if_nameindex())"]
    under_unit = [PYTHON, readable_copy(UNDER_UNIT), readable_copy(PROJECT / "systemd" / unit)]
    done = subprocess.run(
        [*as_user(OTHER_USER), *under_unit, *network, *program], stdout=subprocess.PIPE, text=True, check=True
    )

    assert done.stdout.strip() == f"{OTHER_USER} [(1, 'lo')]"
