"""A process tree that does not end after SIGKILL: a driver hangs, or there are very many processes."""

import pytest

from trainer.core.errors import HostSuspected
from trainer.core.stop import StopReason
from trainer.training.supervisor import process_tree
from trainer.training.supervisor.process_tree import ProcessTree


@pytest.fixture
def not_killed(program, monkeypatch):
    """A training whose processes end too late after SIGKILL."""
    training = program("ignores_every_signal")
    with monkeypatch.context() as hurried:
        hurried.setattr(process_tree, "_KILL_SECONDS", 0.0)
        training.when(lambda seen: seen.events, lambda: training.stop.set(StopReason.LOST))
        with pytest.raises(HostSuspected, match="cannot be killed"):
            training.train()
    return training


def test_host_passes_its_test_after_the_processes_have_ended(not_killed):
    assert not_killed.trainer.test(()) is None


def test_host_fails_its_test_while_a_process_cannot_be_killed(not_killed, monkeypatch):
    left = not_killed.trainer._not_killed[0]
    left.ended.wait(30)
    left.ended.clear()  # the test sees a tree that is still running
    monkeypatch.setattr(ProcessTree, "kill", hangs)

    assert not_killed.trainer.test(()) == "The driver hangs."

    left.ended.set()
    monkeypatch.undo()
    assert not_killed.trainer.test(()) is None


def hangs(process):
    raise HostSuspected("The driver hangs.")
