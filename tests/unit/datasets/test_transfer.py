"""Parallel jobs are limited in number, run once, and stop after the first failure.

A file can be linked even if another process replaces the file at the same time.
"""

from __future__ import annotations

import subprocess
import sys
import threading
from functools import partial

import pytest

from trainer.core.stop import Stopped, StopReason, StopSignal
from trainer.datasets.source.transfer import in_parallel, link_tree


def test_jobs_run_once_with_bounded_concurrency():
    done, running, most, lock = [], set(), [], threading.Lock()

    def job(number, stop):
        with lock:
            running.add(number)
            most.append(len(running))
        stop.wait(0.001)
        with lock:
            running.remove(number)
            done.append(number)

    in_parallel([partial(job, number) for number in range(100)], 4, StopSignal())

    assert sorted(done) == list(range(100))
    assert max(most) <= 4


def test_first_failure_is_raised_and_stops_other_jobs():
    begun = []

    def waits(stop):
        begun.append(1)
        assert stop.wait(20)
        stop.raise_if_set()

    def fails(_):
        raise ValueError("first")

    with pytest.raises(ValueError, match="first"):
        in_parallel([waits, waits, fails, *[waits] * 50], 3, StopSignal())

    assert len(begun) == 2


def test_stop_ends_all_jobs():
    stop = StopSignal()

    def stops(inner):
        stop.set(StopReason.SHUTDOWN)
        inner.raise_if_set()

    with pytest.raises(Stopped) as caught:
        in_parallel([stops] * 50, 2, stop)

    assert caught.value.reason is StopReason.SHUTDOWN


def test_in_parallel_returns_immediately_without_jobs():
    in_parallel([], 4, StopSignal())


REPLACES = """
import os, sys
target = sys.argv[1]
print("ready", flush=True)
while True:
    os.close(os.open(target + ".other", os.O_CREAT | os.O_WRONLY))
    os.rename(target + ".other", target)
"""


def test_file_that_is_replaced_during_linking_is_linked(tmp_path):
    target = tmp_path / "object"
    target.touch()
    with subprocess.Popen([sys.executable, "-c", REPLACES, str(target)], stdout=subprocess.PIPE) as replacing:
        replacing.stdout.readline()
        try:
            link_tree(((f"x{number}", target) for number in range(20_000)), tmp_path / "view")
        finally:
            replacing.kill()
    assert len(list((tmp_path / "view").iterdir())) == 20_000


def test_missing_file_cannot_be_linked(tmp_path):
    with pytest.raises(FileNotFoundError):
        link_tree([("x", tmp_path / "object")], tmp_path / "view")
