"""Upload of checkpoints during a training, so that a worker on another host can resume the run."""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import structlog

from trainer.core.artifact_keys import checkpoint_key
from trainer.core.dataset import ObjectRef
from trainer.core.errors import MachineFailed, TrainerError
from trainer.core.events import CheckpointSaved, Event
from trainer.core.job import Checkpoint
from trainer.core.run_folder import CHECKPOINTS, checkpoint_name
from trainer.core.stop import Stopped, StopSignal
from trainer.disk.untrusted_folder import UntrustedFolder
from trainer.worker.checkpoint_files import is_intact, is_valid
from trainer.worker.run_context import RunContext
from trainer.worker.run_services import RunServices

log = structlog.get_logger()

KEPT_IN_BUCKET = 2


class CheckpointUploads:
    """Uploads the newest checkpoint of a training at an interval, and on demand."""

    def __init__(self, services: RunServices, run: RunContext) -> None:
        self._store = services.store
        self._bucket = services.artifacts_bucket
        self._index = services.uploaded
        self._interval = services.times.checkpoint
        self._run = run
        self._newest: CheckpointSaved | None = None
        self._uploaded: list[Checkpoint] = []
        self._has_ended = threading.Event()
        self._thread: threading.Thread | None = None
        self._sending = threading.Lock()

    def note(self, event: Event) -> None:
        """Remember the checkpoint of a valid `CheckpointSaved`."""
        if isinstance(event, CheckpointSaved) and is_valid(event.epoch, event.sha256, event.bytes):
            self._newest = event

    def send_newest(self, stop: StopSignal) -> Checkpoint | None:
        """Upload the newest checkpoint if it is new. Return the newest checkpoint in the bucket, or None.

        Raises Unavailable, Misconfigured, OSError or Stopped.
        """
        with self._sending:
            newest = self._newest
            last = self._uploaded[-1] if self._uploaded else None
            if newest is None or (last and last.epoch == newest.epoch and last.sha256 == newest.sha256):
                return last
            self._run.heartbeat.confirm(stop)
            job = self._run.job
            key = checkpoint_key(job.id, job.attempt, newest.epoch, newest.sha256)
            # the training removes old checkpoints during the upload, but the open file stays readable
            name = f"{CHECKPOINTS}/{checkpoint_name(newest.epoch)}"
            with UntrustedFolder(self._run.folder.output.path) as output, output.file(name) as file:
                sent = _Sent(newest)
                sent.require(is_intact(file, newest.sha256, newest.bytes, stop.raise_if_set))
                self._index.note(job.id, key)
                stored = self._store.upload(
                    file.path, ObjectRef(bucket=self._bucket, key=key), stop, on_bytes=sent.count
                )
                sent.require(stored.bytes == newest.bytes)
            uploaded = Checkpoint(epoch=newest.epoch, sha256=newest.sha256, bytes=newest.bytes, key=key)
            self._run.events.record(replace(newest, key=key))
            self._uploaded.append(uploaded)
            self._delete_old()
            return uploaded

    @contextmanager
    def during_training(self, stop: StopSignal) -> Iterator[None]:
        """Upload checkpoints in a thread while the block runs. An upload can continue after the block: see `wait`."""
        in_context = contextvars.copy_context().run  # keeps the labels of the log lines
        thread = threading.Thread(
            target=in_context, args=(self._send_at_intervals, stop), name="checkpoints", daemon=True
        )
        thread.start()
        self._thread = thread  # set after the start, because `wait` can only join a started thread
        try:
            yield
        finally:
            self._has_ended.set()

    def wait(self) -> None:
        """Wait until no upload is running. Release the slots of the run before this call."""
        if self._thread:
            self._thread.join()

    def _delete_old(self) -> None:
        # the row may point to a checkpoint until the queue has the event of the next checkpoint, so keep it until then
        while len(self._uploaded) > KEPT_IN_BUCKET and self._run.events.is_delivered(self._uploaded[1].key or ""):
            self._index.delete(self._run.job.id, self._uploaded.pop(0).key or "")

    def _send_at_intervals(self, stop: StopSignal) -> None:
        while not self._has_ended.wait(self._interval):
            try:
                self.send_newest(stop)
            except Stopped:
                return
            except (TrainerError, OSError) as error:
                log.warning("checkpoint upload failed, retrying", error=str(error))


class _Sent:
    """Counts the sent bytes of a checkpoint, because the training process can make the file larger at any time."""

    def __init__(self, checkpoint: CheckpointSaved) -> None:
        self._checkpoint = checkpoint
        self._left = checkpoint.bytes

    def count(self, sent: int) -> None:
        self._left -= sent
        self.require(self._left >= 0)

    def require(self, is_unchanged: bool) -> None:
        if not is_unchanged:
            raise MachineFailed(f"The checkpoint of epoch {self._checkpoint.epoch} has changed since it was reported.")
