"""`copy` copies a checkpoint at once, and a thread saves the copy. The next `copy` starts after this save has ended."""

import hashlib
import threading
import zipfile

import pytest

from trainer.core.run_folder import CHECKPOINTS, OutputFolder
from trainer.disk import durable
from trainer.training.yolo.checkpoint_file import Progress
from trainer.training.yolo.checkpoint_writer import CheckpointWriter


@pytest.fixture
def state(tmp_path):
    path = tmp_path / "last.pt"
    write(path, "first")
    return path


@pytest.fixture
def slow_disk(monkeypatch):
    """Block every sync until the returned event is set."""
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


def content_of(run_dir, saved):
    with zipfile.ZipFile(OutputFolder(run_dir).checkpoint(saved.epoch)) as archive:
        return archive.read("archive/data.pkl").decode()


def test_event_is_sent_after_checkpoint_is_durable(tmp_path, state):
    events = []

    def on_event(event):
        path = OutputFolder(tmp_path).checkpoint(event.epoch)
        events.append((event, path.read_bytes(), path.with_suffix(".json").exists()))

    writer = CheckpointWriter(tmp_path, on_event)
    writer.copy(state, Progress(epoch=1), {})
    writer.save()
    writer.wait()

    [(event, content, has_sidecar)] = events
    assert event == writer.saved
    assert event.sha256 == hashlib.sha256(content).hexdigest()
    assert has_sidecar


def test_save_on_slow_disk_does_not_block_caller(tmp_path, state, slow_disk):
    events = []
    writer = CheckpointWriter(tmp_path, events.append)
    writer.copy(state, Progress(epoch=1), {})
    writer.save()
    write(state, "second")

    assert events == []
    assert writer.saved is None
    slow_disk.set()
    writer.wait()

    assert content_of(tmp_path, writer.saved) == "first"


def test_next_copy_starts_after_previous_save_has_ended(tmp_path, state, slow_disk):
    events = []
    writer = CheckpointWriter(tmp_path, events.append)
    writer.copy(state, Progress(epoch=1), {})
    writer.save()
    threading.Timer(0.1, slow_disk.set).start()
    writer.copy(state, Progress(epoch=1, done=0.5), {})  # the file name is the same, because the epoch is the same

    assert [event.epoch for event in events] == [1]
    writer.save()
    writer.wait()
    assert len(events) == 2


@pytest.fixture
def full_disk(monkeypatch):
    """Return a list. Every sync fails until the test empties the list."""
    full = [True]
    sync = durable.os.fsync

    def refuse(fd):
        if full:
            raise OSError(28, "No space left on device")
        sync(fd)

    monkeypatch.setattr(durable.os, "fsync", refuse)
    return full


@pytest.mark.parametrize("when", ["wait", "next"])
def test_failed_save_is_warning_and_leaves_no_file(tmp_path, state, full_disk, when):
    events = []
    writer = CheckpointWriter(tmp_path, events.append)
    writer.copy(state, Progress(epoch=1), {})
    writer.save()
    writer.wait() if when == "wait" else writer.copy(state, Progress(epoch=2), {})

    [warning] = events
    assert warning.code == "checkpoint_not_saved"
    assert "No space left" in warning.message
    assert writer.saved is None
    assert isinstance(writer.error, OSError)
    assert [path.name for path in (tmp_path / CHECKPOINTS).iterdir()] == ["epoch-00002.tmp"][: when == "next"]


def test_previous_checkpoint_stays_after_failed_save(tmp_path, state, full_disk):
    events = []
    writer = CheckpointWriter(tmp_path, events.append)
    for epoch in (1, 2, 3, 4, 5):
        full_disk[:] = [True] if epoch in (2, 3, 5) else []
        writer.copy(state, Progress(epoch=epoch), {})
        writer.save()
        writer.wait()

    assert [event.code if event.kind == "warning" else event.epoch for event in events] == [
        1, "checkpoint_not_saved", 4, "checkpoint_not_saved",
    ]  # fmt: skip
    assert writer.saved.epoch == 4
    assert content_of(tmp_path, writer.saved) == "first"


def test_failed_copy_is_warning(tmp_path, state):
    (tmp_path / CHECKPOINTS).write_text("a file where the folder should be")
    events = []
    writer = CheckpointWriter(tmp_path, events.append)
    writer.copy(state, Progress(epoch=1), {})
    writer.save()
    writer.wait()

    assert [event.code for event in events] == ["checkpoint_not_saved"]


def test_no_thread_remains_after_wait(tmp_path, state):
    writer = CheckpointWriter(tmp_path, lambda _: None)
    for epoch in (1, 2):
        writer.copy(state, Progress(epoch=epoch), {})
        writer.save()
    writer.wait()

    for thread in threading.enumerate():
        if thread.name.startswith("checkpoint-writer"):
            thread.join(10)
            assert not thread.is_alive()
