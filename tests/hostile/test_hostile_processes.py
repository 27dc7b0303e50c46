"""No process of a training outlives the training, even if the training attacks the processes that end it."""

from __future__ import annotations

import contextlib
import os

import psutil
import pytest

from tests.process import conftest as processes
from tests.process.conftest import alive
from tests.process.sandbox_host import sandbox_host
from trainer.core.errors import MachineFailed
from trainer.training.supervisor import orphans

home, program, leak_check = processes.home, processes.program, processes.leak_check


@pytest.mark.parametrize("limit", ["nofile", "as", "data", "nproc"])
def test_limited_subreapers_still_end_every_process(program, tmp_path, leak_check, limit):
    training = program("attacks_its_subreapers", str(tmp_path / "pids"), limit)

    training.train()

    assert not any(alive(int(pid)) for pid in (tmp_path / "pids").read_text().split())
    assert not training.of("warning")


def test_service_ends_processes_whose_subreapers_were_killed_together(program, tmp_path, leak_check):
    """Where Landlock does not restrict signals (before Linux 6.12), a training can kill its subreapers."""
    before = psutil.Process().children()
    training = program("attacks_its_subreapers", str(tmp_path / "pids"), "SIGKILL")

    with contextlib.suppress(
        MachineFailed
    ):  # the kernel kills the program with its subreapers, perhaps after its result
        training.train()

    assert not any(alive(int(pid)) for pid in (tmp_path / "pids").read_text().split())
    assert [event.code for event in training.of("warning")] == ["processes_left"]
    assert psutil.Process().children() == before


def test_suspended_subreapers_do_not_keep_a_process(program, tmp_path, leak_check, monkeypatch):
    monkeypatch.setattr("trainer.training.supervisor.process_tree._KILL_SECONDS", 1.5)
    training = program("attacks_its_subreapers", str(tmp_path / "pids"), "SIGSTOP", exit=0.2)

    training.train()

    assert not any(alive(int(pid)) for pid in (tmp_path / "pids").read_text().split())


def test_processes_of_other_trainings_and_of_the_service_are_not_touched(program, tmp_path):
    own = psutil.Popen(["sleep", "60"])
    other = program("trains_quickly", warm_start=True)
    other.trainer.warm()
    (prestarted,) = processes.subreapers()
    tree = prestarted.children(recursive=True)

    assert orphans.end_orphans() == 0

    assert own.is_running()
    assert all(process.is_running() for process in tree)
    own.kill()
    own.wait()


def test_every_process_of_a_training_has_the_mark(program):
    training = program("daemonizes", "/dev/null")
    training.trainer.warm_start = True
    training.trainer.warm()
    (prestarted,) = processes.subreapers()
    (waiting,) = processes.second(prestarted).children()

    assert orphans._is_of_training(waiting.pid)
    assert not orphans._is_of_training(prestarted.pid)
    assert not orphans._is_of_training(os.getpid())


RAISE_LIMIT = """
import resource
hard = resource.getrlimit(resource.RLIMIT_MSGQUEUE)[1]
try:
    resource.setrlimit(resource.RLIMIT_MSGQUEUE, (hard, hard + 1))
except ValueError:
    raise PermissionError
"""


def test_training_process_cannot_remove_the_mark(tmp_path, home):
    """Even root cannot raise the limit in the sandbox, because it loses the capability for that."""
    assert sandbox_host(tmp_path, home).results_of([RAISE_LIMIT]) == {"PermissionError"}
