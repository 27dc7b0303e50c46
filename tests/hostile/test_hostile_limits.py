"""A training process uses up what the kernel limits for each user or host: threads, entries of epoll, files to remove."""

from __future__ import annotations

import errno
import os
import resource
import select
import selectors
import socket
import subprocess
import sys
import threading

import psutil
import pytest

from tests.process import conftest as processes
from tests.unit.worker.harness import NEXT_CLAIM, WorkerFixture
from trainer.core.stop import StopSignal
from trainer.disk.removal import remove_tree
from trainer.training.supervisor import process_tree, subreaper
from trainer.worker.self_test import SelfTest

home, program, leak_check = processes.home, processes.program, processes.leak_check


def test_run_is_read_although_another_training_has_used_up_the_entries_of_epoll(program, monkeypatch):
    class UsedUp(selectors.EpollSelector):
        def register(self, *_):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(selectors, "DefaultSelector", UsedUp)
    training = program("trains_quickly")

    training.train(epochs=2)

    assert [event.epoch for event in training.of("epoch")] == [1, 2]


@pytest.mark.parametrize("is_alive", [True, False], ids=["supervisor runs", "supervisor has ended"])
def test_end_of_a_training_does_not_wait_for_the_removal_of_its_files(tmp_path, is_alive):
    """The supervisor would report a process that cannot be killed, which is a failure of the host."""
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "file").touch()
    ours, lifeline = socket.socketpair()
    command = [sys.executable, "-I", "-S", subreaper.__file__, str(lifeline.fileno()), str(folder), "sleep", "60"]
    with ours, subprocess.Popen(command, pass_fds=[lifeline.fileno()], start_new_session=True) as process:
        lifeline.close()
        if is_alive:
            ours.shutdown(socket.SHUT_WR)
            assert select.select([ours], [], [], 30)[0]
        else:
            ours.close()
        process.wait(30)

        assert folder.exists() == is_alive


def test_host_without_free_threads_fails_its_self_test(monkeypatch):
    start = threading.Thread.start

    def fail_after_20(thread):
        if threading.active_count() > 20:
            raise RuntimeError("can't start new thread")
        start(thread)

    assert SelfTest([])() is None
    threads = threading.active_count()
    monkeypatch.setattr(threading.Thread, "start", fail_after_20)

    assert SelfTest([])().startswith("This host cannot start 32 more threads: raise the limits")
    assert threading.active_count() == threads


def test_run_loses_one_attempt_at_most_while_another_training_uses_all_threads(tmp_path):
    worker = WorkerFixture(tmp_path)
    worker.host_problem = "This host cannot start 32 more threads."
    run_id = worker.enqueue()

    for claim in ("11111111-1111-4111-8111-111111111111", NEXT_CLAIM):
        worker.execution().requeue(worker.claim(claim), StopSignal())
        worker.update_row(run_id, not_before=None)

    row = worker.row(run_id)
    assert (row["status"], row["failures"]) == ("queued", 1)
    assert row["error_message"].endswith(worker.host_problem)
    assert worker.health.problem == worker.host_problem


def test_training_cannot_raise_its_priority(program):
    training = program("trains_quickly", warm_start=True)
    training.trainer.warm()
    (prestarted,) = processes.subreapers()
    (waiting,) = processes.second(prestarted).children()
    limits = [psutil.Process(waiting.pid).rlimit(limit) for limit in (resource.RLIMIT_NICE, resource.RLIMIT_RTPRIO)]

    assert limits == [(0, 0), (0, 0)]


def test_end_of_a_run_does_not_wait_for_the_removal_of_millions_of_files(program, home, monkeypatch):
    is_released = threading.Event()
    removed = []

    def remove(folder):
        is_released.wait(60)
        remove_tree(folder)
        removed.append(folder)

    monkeypatch.setattr(process_tree, "_REMOVE_SECONDS", 0.1)
    monkeypatch.setattr(process_tree, "remove_tree", remove)
    training = program("trains_quickly")

    training.train(epochs=1)

    assert not removed
    training.trainer.tidy()  # the folder is in use, so no sweep removes it
    assert list(home.glob("child-*"))
    is_released.set()
    processes.wait_until(lambda: not list(home.glob("child-*")))
