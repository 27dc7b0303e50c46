"""A training process cannot execute a program that it has written, in any of its folders."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import uuid

import pytest

from tests.process import conftest as processes
from tests.process.sandbox_host import needs_landlock, sandbox_host
from trainer.training.wire import encode_order

pytestmark = needs_landlock
home = processes.home

LEAVE_PROGRAM = """
import os
os.umask(0)
for name in {0!r}:
    program = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o6755)
    os.write(program, b"program")
"""
EXECUTE = """
import os, pathlib, subprocess
content = pathlib.Path("/bin/true").read_bytes()
program = os.open({0!r}, os.O_WRONLY | os.O_CREAT, 0o755)
os.write(program, content)
os.close(program)
subprocess.run([{0!r}], check=True)
"""


def test_no_program_that_others_execute_as_user_of_the_service_is_left(tmp_path, home):
    """The kernel removes the mode "set user ID" at the first write, also for root. The sandbox refuses `chmod`."""
    host = sandbox_host(tmp_path, home)
    places = [f"/dev/shm/program-{uuid.uuid4()}", str(host.order.run_dir / "program")]

    assert host.results_of([LEAVE_PROGRAM.format(places)]) == {"done"}

    assert [stat.S_IMODE(os.stat(place).st_mode) for place in places] == [0o755, 0o755]
    os.unlink(places[0])


@pytest.mark.parametrize("variable", ["HOME", "TMPDIR"])
def test_program_in_private_folder_cannot_be_executed(tmp_path, home, variable):
    """`python -m` adds the folder in which it starts to the paths of programs, and a training starts in TMPDIR."""
    host = sandbox_host(tmp_path, home)
    program = f"{host.environment[variable]}/program"
    snippet = EXECUTE.format(program)
    done = subprocess.run(
        [sys.executable, "-m", "tests.process.programs.runs_code_in_sandbox"], cwd=host.environment["TMPDIR"],
        env=host.environment, input=encode_order(host.order) + json.dumps([snippet]).encode(), capture_output=True,
        check=True, timeout=30,
    )  # fmt: skip

    assert json.loads(done.stdout)["results"] == {snippet: "PermissionError"}
    assert os.access(program, os.X_OK)
