"""Loader workers that give their tensors to the training process over inherited sockets, without socket files."""

from __future__ import annotations

import contextlib
import errno
import multiprocessing
import multiprocessing.reduction
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest

from trainer.training.child import inherited_descriptors

PROJECT = Path(__file__).parents[2]
FORK = multiprocessing.get_context("fork")


@pytest.fixture(autouse=True)
def _installed(monkeypatch):
    monkeypatch.setattr(multiprocessing.popen_fork, "Popen", inherited_descriptors._Popen)
    monkeypatch.setattr(multiprocessing.resource_sharer, "DupFd", inherited_descriptors.InheritedDescriptor)


def share(queue, texts):
    """Put descriptors of files with these texts into the queue, and wait until they are taken."""
    for text in texts:
        fd = os.memfd_create("shared")
        os.write(fd, text)
        queue.put(multiprocessing.reduction.DupFd(fd))
        os.close(fd)
    queue.close()
    queue.join_thread()
    threading.Event().wait()


@contextlib.contextmanager
def worker_with(*texts):
    queue = FORK.Queue()
    worker = FORK.Process(target=share, args=(queue, texts), daemon=True)
    worker.start()
    try:
        yield worker, queue
    finally:
        worker.kill()
        worker.join()
        worker.close()
        queue._reader.close()
        queue._writer.close()


def read(fd):
    try:
        return os.pread(fd, 100, 0)
    finally:
        os.close(fd)


def test_parent_takes_descriptors_of_several_workers_in_any_order():
    with worker_with(b"first 1", b"first 2") as (_, first), worker_with(b"second 1", b"second 2") as (_, second):
        shared = [queue.get(timeout=10) for queue in (first, first, second, second)]

        assert [read(each.detach()) for each in reversed(shared)] == [b"second 2", b"second 1", b"first 2", b"first 1"]
        with pytest.raises(EOFError, match="already taken"):
            shared[0].detach()


def test_descriptors_are_taken_although_another_training_has_used_up_the_limit_of_the_user(monkeypatch):
    def fail(*_):
        raise OSError(errno.ETOOMANYREFS, os.strerror(errno.ETOOMANYREFS))

    monkeypatch.setattr(socket, "send_fds", fail)
    with worker_with(b"first", b"second") as (worker, queue):
        before = psutil.Process(worker.pid).num_fds()
        first, second = (queue.get(timeout=10) for _ in range(2))

        assert [read(second.detach()), read(first.detach())] == [b"second", b"first"]
        with pytest.raises(EOFError, match="already taken"):
            first.detach()
        assert psutil.Process(worker.pid).num_fds() <= before


def test_descriptor_of_killed_worker_is_an_end_of_file():
    with worker_with(b"lost") as (worker, queue):
        shared = queue.get(timeout=10)
        worker.kill()
        worker.join()

        with pytest.raises(EOFError):
            shared.detach()


def test_own_descriptor_can_be_taken():
    with open(__file__) as file:
        shared = multiprocessing.reduction.DupFd(file.fileno())

        assert read(shared.detach()).startswith(b'"""Loader')


def test_ended_workers_leave_no_descriptor():
    me = psutil.Process()
    before = me.num_fds()
    for _ in range(3):
        with worker_with(b"text") as (_, queue):
            os.close(queue.get(timeout=10).detach())

    assert me.num_fds() == before
    assert inherited_descriptors._channels == {}


LOADERS = """
import gc, torch
from torch.utils.data import DataLoader
from trainer.sandbox.seccomp import Sockets, restrict_system_calls
from trainer.training.child import inherited_descriptors

class Images:
    def __len__(self): return 64
    def __getitem__(self, index): return {"image": torch.full((3, 32, 32), index), "index": index}

def epoch():
    loader = DataLoader(Images(), batch_size=4, num_workers=2)
    batches = list(loader)
    assert all(bool((batch["image"][:, 0, 0, 0] == batch["index"]).all()) for batch in batches), "wrong tensors"
    return len(batches)

restrict_system_calls(Sockets())
inherited_descriptors.install()
print(epoch(), epoch())
gc.collect()
assert not inherited_descriptors._channels, "the sockets of ended workers are open"
"""


@pytest.mark.training
@pytest.mark.long
def test_two_loader_workers_without_socket_files():
    done = subprocess.run(
        [sys.executable, "-c", LOADERS], cwd=PROJECT, capture_output=True, text=True, timeout=120, check=False
    )

    assert (done.stdout, done.returncode) == ("16 16\n", 0), done.stderr[-1000:]
