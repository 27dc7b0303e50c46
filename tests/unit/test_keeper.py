"""States are kept beside the training: copied at once, settled meanwhile, waited for where it matters."""

import hashlib
import threading
import zipfile
from pathlib import Path

import pytest

from trainer import durable
from trainer.training import checkpoints
from trainer.training.checkpoints import Progress
from trainer.training.keeper import Keeper


@pytest.fixture
def state(tmp_path):
    path = tmp_path / "last.pt"
    write(path, "first")
    return path


@pytest.fixture
def slow_disk(monkeypatch):
    """Nothing is synced before the event is set."""
    ready = threading.Event()
    sync = durable.os.fsync

    def wait_and_sync(fd):
        assert ready.wait(10)
        sync(fd)

    monkeypatch.setattr(durable.os, "fsync", wait_and_sync)
    yield ready
    ready.set()


def write(path, content):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", content)


def kept_content(kept):
    with zipfile.ZipFile(kept.path) as archive:
        return archive.read("archive/data.pkl").decode()


def test_what_is_kept_is_told_once_it_is_whole_and_durable(tmp_path, state):
    told = []

    def hear(event):
        told.append((event, Path(event.path).read_bytes(), Path(event.path).with_suffix(".json").exists()))

    keeper = Keeper(tmp_path, hear)
    keeper.take(state, Progress(epoch=1), {})
    keeper.settle()
    keeper.wait()

    [(event, content, has_sidecar)] = told
    assert event == keeper.kept
    assert event.sha256 == hashlib.sha256(content).hexdigest()
    assert has_sidecar


def test_the_training_goes_on_and_overwrites_its_state_while_the_disk_is_slow(tmp_path, state, slow_disk):
    told = []
    keeper = Keeper(tmp_path, told.append)
    keeper.take(state, Progress(epoch=1), {})
    keeper.settle()
    write(state, "second")

    assert told == []
    assert keeper.kept is None
    slow_disk.set()
    keeper.wait()

    assert kept_content(keeper.kept) == "first"


def test_the_next_state_waits_for_the_one_before_it(tmp_path, state, slow_disk):
    told = []
    keeper = Keeper(tmp_path, told.append)
    keeper.take(state, Progress(epoch=1), {})
    keeper.settle()
    threading.Timer(0.1, slow_disk.set).start()
    keeper.take(state, Progress(epoch=1, done=0.5), {})  # the same epoch: the same name on disk

    assert [event.epoch for event in told] == [1]
    keeper.settle()
    keeper.wait()
    assert len(told) == 2


@pytest.mark.parametrize("when", ["wait", "next"])
def test_a_disk_that_is_full_is_told_to_the_training(tmp_path, state, monkeypatch, when):
    def full(_fd):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(durable.os, "fsync", full)
    keeper = Keeper(tmp_path, pytest.fail)
    keeper.take(state, Progress(epoch=1), {})
    keeper.settle()

    with pytest.raises(OSError, match="No space"):
        keeper.wait() if when == "wait" else keeper.take(state, Progress(epoch=2), {})
    assert keeper.kept is None
    assert not list((tmp_path / checkpoints.FOLDER).iterdir())


def test_no_thread_stays(tmp_path, state):
    keeper = Keeper(tmp_path, lambda _: None)
    for epoch in (1, 2):
        keeper.take(state, Progress(epoch=epoch), {})
        keeper.settle()
    keeper.wait()

    for thread in threading.enumerate():
        if thread.name.startswith("keeper"):
            thread.join(10)
            assert not thread.is_alive()
