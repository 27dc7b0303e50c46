"""Checkpoints that are uploaded, kept and deleted during a training."""

import os
import threading
from dataclasses import replace
from types import SimpleNamespace

import pytest

from tests.unit.worker.fakes import FakeTrainer, Replaced, save_checkpoint
from tests.unit.worker.harness import wait_for
from trainer.core.errors import MachineFailed, Unavailable
from trainer.core.job import Job, RunRequest
from trainer.core.run_folder import RunFolder
from trainer.core.stop import Stopped, StopReason, StopSignal
from trainer.worker.checkpoint_uploads import CheckpointUploads
from trainer.worker.run_context import RunContext


def test_checkpoints_are_uploaded_at_intervals_and_two_are_kept(worker):
    worker.checkpoint_seconds = 0.01
    run_id = worker.enqueue()
    worker.trainer = FakeTrainer(epochs=6)
    seen = set()

    def wait_for_upload(epoch):
        if epoch == 6:
            worker.shutdown.set(StopReason.SHUTDOWN)
        elif epoch > 1:
            wait_for(lambda: (worker.row(run_id)["checkpoint"] or {}).get("epoch") == epoch - 1)
            seen.update(worker.stored_keys(f"training_runs/{run_id}/1/checkpoints"))

    worker.trainer.during = wait_for_upload
    worker.work()

    keys = worker.stored_keys(f"training_runs/{run_id}/1/checkpoints")
    assert len(keys) == 2
    assert len(seen) >= 4
    assert worker.row(run_id)["checkpoint"]["key"] in keys


def uploads_of(run_dir, worker, store, confirm=lambda stop: None):
    job = Job(id="r", request=RunRequest(data_yaml=None), attempt=1)
    events = SimpleNamespace(record=print, is_delivered=lambda key: True)
    heartbeat = SimpleNamespace(confirm=confirm)
    run = RunContext(job=job, folder=RunFolder(run_dir), stop=StopSignal(), events=events, heartbeat=heartbeat)
    return CheckpointUploads(worker.run_host(store=store).services, run)


@pytest.mark.parametrize("digest", ["../../../other/1", "", "A" * 64, "a" * 64 + "\n", "a" * 63])
def test_checkpoint_with_invalid_sha256_is_not_uploaded(tmp_path, worker, digest):
    uploads = uploads_of(tmp_path, worker, worker.store)

    uploads.note(replace(save_checkpoint(tmp_path / "output", 1), sha256=digest))

    assert uploads.send_newest(StopSignal()) is None


def test_wait_for_uploads_returns_if_upload_thread_cannot_start(tmp_path, worker, monkeypatch):
    uploads = uploads_of(tmp_path, worker, worker.store)

    def refuse(thread):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(RuntimeError), uploads.during_training(StopSignal()):
        pass

    uploads.wait()


IN_PLACE_OF_CHECKPOINT = {
    "a link": lambda path, secret: path.symlink_to(secret),
    "a folder": lambda path, secret: path.mkdir(),
    "a pipe": lambda path, secret: os.mkfifo(path),
    "nothing": lambda path, secret: None,
    "another file": lambda path, secret: path.write_bytes(secret.read_bytes()),
}


@pytest.mark.parametrize("what", IN_PLACE_OF_CHECKPOINT)
def test_only_the_reported_checkpoint_file_is_uploaded(tmp_path, worker, what):
    """The training process can replace the file. The file could then name a file of the host or of another user."""
    secret = tmp_path / "secret.pt"
    secret.write_text("a key of the service")
    uploads = uploads_of(tmp_path / "run", worker, worker.store)
    saved = save_checkpoint(tmp_path / "run" / "output", 1)
    path = tmp_path / "run" / "output" / "checkpoints" / "epoch-00001.pt"
    content = path.read_bytes()
    path.unlink()
    IN_PLACE_OF_CHECKPOINT[what](path, secret)
    uploads.note(saved)

    with pytest.raises((OSError, MachineFailed)):
        uploads.send_newest(StopSignal())
    assert not (worker.home / "storage").exists()

    path.rmdir() if path.is_dir() else path.unlink(missing_ok=True)
    path.write_bytes(content)
    assert uploads.send_newest(StopSignal()).epoch == 1
    assert worker.stored_keys() == {f"training_runs/r/1/checkpoints/epoch-00001-{saved.sha256[:8]}.pt"}


def test_training_process_cannot_choose_checkpoint_of_row(worker):
    """Another host resumes only from a checkpoint that the service itself uploaded."""
    real = worker.trainer.train

    def train(order, stop, on_event, on_line):
        def add_key(event):
            on_event(replace(event, key="training_runs/other/1/best.pt") if event.kind == "checkpoint" else event)

        return real(order, stop, add_key, on_line)

    worker.trainer.train = train
    worker.shut_down_in(epoch=3)
    run_id = worker.enqueue()
    worker.work()

    assert worker.row(run_id)["checkpoint"]["key"].startswith(f"training_runs/{run_id}/1/checkpoints/")
    assert {event.data.get("key") for event in worker.queue.events(run_id) if event.kind == "checkpoint"} == {
        None, worker.row(run_id)["checkpoint"]["key"],
    }  # fmt: skip


def test_checkpoint_is_not_uploaded_after_lease_is_lost(tmp_path, worker):
    """F4: before the upload, the queue answers a heartbeat with LOST."""

    def confirm(stop):
        raise Stopped(StopReason.LOST)

    sent = []
    store = SimpleNamespace(upload=lambda *arguments, **more: sent.append(arguments))
    uploads = uploads_of(tmp_path, worker, store, confirm)
    uploads.note(save_checkpoint(tmp_path, 1))

    with pytest.raises(Stopped):
        uploads.send_newest(StopSignal())

    assert sent == []


def test_checkpoints_of_completed_run_are_removed(worker):
    """The checkpoints of all attempts are removed, so that a requeued run starts from scratch."""
    run_id = worker.enqueue()
    worker.shut_down_in(epoch=3)
    worker.work()
    assert worker.stored_keys(f"training_runs/{run_id}/1/checkpoints")
    worker.train_normally()

    worker.work_again()

    assert worker.row(run_id)["status"] == "completed"
    assert not [key for key in worker.stored_keys(f"training_runs/{run_id}") if "checkpoints" in key]
    for folder in worker.folders.attempts(run_id):
        assert not folder.output.checkpoints.exists()
        assert not folder.finished_marker.exists()


def test_newest_delivered_checkpoint_is_not_deleted(worker):
    """If this host fails during an outage of the queue, another host resumes from the checkpoint in the row."""
    worker.checkpoint_seconds = 0.01
    run_id = worker.enqueue()
    worker.trainer = FakeTrainer(epochs=6)
    known, keys = [], set()

    def beat(*arguments):
        if known:
            raise Unavailable("down")
        verdict = worker.queue.beat(*arguments)
        known.extend([checkpoint] if (checkpoint := worker.row(run_id)["checkpoint"]) else [])
        return verdict

    def wait_for_upload(epoch):
        if epoch > 1:
            wait_for(lambda: known and f"epoch-{epoch - 1:05d}" in str(worker.stored_keys(f"training_runs/{run_id}")))
            keys.update(worker.stored_keys(f"training_runs/{run_id}/1/checkpoints"))
        if epoch == 6:
            assert known[0]["key"] in keys == worker.stored_keys(f"training_runs/{run_id}/1/checkpoints")

    worker.trainer.during = wait_for_upload
    worker.work(queue=Replaced(worker.queue, beat=beat))

    assert worker.row(run_id)["status"] == "completed"
    assert len(keys) == 5
