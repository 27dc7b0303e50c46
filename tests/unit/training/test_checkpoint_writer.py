"""States are kept beside the training: copied at once, settled meanwhile, waited for where it matters."""

import hashlib
import threading
import zipfile
from pathlib import Path

import pytest

from trainer.disk import durable
from trainer.training.yolo import checkpoint_file
from trainer.training.yolo.checkpoint_file import Progress
from trainer.training.yolo.checkpoint_writer import Keeper


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


@pytest.fixture
def full_disk(monkeypatch):
    """No sync succeeds before the list is emptied."""
    full = [True]
    sync = durable.os.fsync

    def refuse(fd):
        if full:
            raise OSError(28, "No space left on device")
        sync(fd)

    monkeypatch.setattr(durable.os, "fsync", refuse)
    return full


@pytest.mark.parametrize("when", ["wait", "next"])
def test_a_state_that_cannot_be_kept_is_a_warning_and_leaves_nothing(tmp_path, state, full_disk, when):
    told = []
    keeper = Keeper(tmp_path, told.append)
    keeper.take(state, Progress(epoch=1), {})
    keeper.settle()
    keeper.wait() if when == "wait" else keeper.take(state, Progress(epoch=2), {})

    [warning] = told
    assert warning.code == "checkpoint_not_kept"
    assert "No space left" in warning.message
    assert keeper.kept is None
    assert isinstance(keeper.error, OSError)
    assert [path.name for path in (tmp_path / checkpoint_file.FOLDER).iterdir()] == ["epoch-00002.tmp"][
        : when == "next"
    ]


def test_the_state_before_stays_and_later_ones_are_kept_again(tmp_path, state, full_disk):
    told = []
    keeper = Keeper(tmp_path, told.append)
    for epoch in (1, 2, 3, 4, 5):
        full_disk[:] = [True] if epoch in (2, 3, 5) else []
        keeper.take(state, Progress(epoch=epoch), {})
        keeper.settle()
        keeper.wait()

    assert [event.code if event.kind == "warning" else event.epoch for event in told] == [
        1, "checkpoint_not_kept", 4, "checkpoint_not_kept",
    ]  # fmt: skip
    assert keeper.kept.epoch == 4
    assert kept_content(keeper.kept) == "first"


def test_a_state_that_cannot_even_be_copied_is_a_warning(tmp_path, state):
    (tmp_path / checkpoint_file.FOLDER).write_text("a file where the folder should be")
    told = []
    keeper = Keeper(tmp_path, told.append)
    keeper.take(state, Progress(epoch=1), {})
    keeper.settle()
    keeper.wait()

    assert [event.code for event in told] == ["checkpoint_not_kept"]


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
