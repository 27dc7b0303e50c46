"""Checkpoints on their way to the bucket: sent on a timer while a run trains."""

from __future__ import annotations

import contextvars
import os
import re
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import structlog

from trainer.core.artifact_keys import checkpoint_key
from trainer.core.dataset import ObjectRef
from trainer.core.errors import TrainerError
from trainer.core.events import CheckpointSaved, Event
from trainer.core.job import Checkpoint, Job
from trainer.core.ports import ObjectStore
from trainer.core.run_folder import RunFolder
from trainer.core.stop import Stopped, StopSignal
from trainer.worker.uploaded_checkpoints import UploadedCheckpoints

log = structlog.get_logger()

KEPT_IN_BUCKET = 2
_SHA256 = re.compile("[0-9a-f]{64}")


class CheckpointUploads:
    """Sends the newest checkpoint of a training to the bucket every `interval` seconds, and once more on demand."""

    def __init__(
        self,
        job: Job,
        run_dir: Path,
        store: ObjectStore,
        bucket: str,
        uploaded: UploadedCheckpoints,
        interval: float,
        on_event: Callable[[Event], None],
        confirm: Callable[[StopSignal], None],
        is_delivered: Callable[[str], bool],
    ) -> None:
        self._run_id = job.id
        self._attempt = job.attempt
        self._folder = RunFolder(run_dir).checkpoints
        self._store = store
        self._bucket = bucket
        self._noted = uploaded
        self._interval = interval
        self._on_event = on_event
        self._confirm = confirm
        self._is_delivered = is_delivered
        self._newest: CheckpointSaved | None = None
        self._uploaded: list[Checkpoint] = []
        self._over = threading.Event()
        self._sending = threading.Lock()

    def saw(self, event: Event) -> None:
        """Remember a checkpoint that the training announced. What it announces becomes names, so it has to look like one."""
        if isinstance(event, CheckpointSaved) and _SHA256.fullmatch(event.sha256) and event.epoch >= 0:
            self._newest = event

    def send_newest(self, stop: StopSignal) -> Checkpoint | None:
        """Upload the newest checkpoint if it is not there yet; what the bucket has then, or None.

        Raises Unavailable, Misconfigured, OSError or Stopped.
        """
        with self._sending:
            newest = self._newest
            last = self._uploaded[-1] if self._uploaded else None
            if newest is None or (last and last.epoch == newest.epoch and last.sha256 == newest.sha256):
                return last
            self._confirm(stop)
            key = checkpoint_key(self._run_id, self._attempt, newest.epoch, newest.sha256)
            with self._held(Path(newest.path).name) as kept:
                self._noted.note(self._run_id, key)
                self._store.upload(kept, ObjectRef(bucket=self._bucket, key=key), stop)
            sent = Checkpoint(epoch=newest.epoch, sha256=newest.sha256, bytes=newest.bytes, key=key)
            self._on_event(
                CheckpointSaved(epoch=sent.epoch, sha256=sent.sha256, bytes=sent.bytes, path=newest.path, key=key),
            )
            self._uploaded.append(sent)
            self._drop_old()
            return sent

    @contextmanager
    def _held(self, name: str) -> Iterator[Path]:
        """A second name of a checkpoint of this run, whole while the block runs: the training replaces old generations."""
        kept = self._folder / "newest.uploading"
        kept.unlink(missing_ok=True)
        try:
            os.link(self._folder / name, kept, follow_symlinks=False)
            if not stat.S_ISREG(kept.lstat().st_mode):
                raise OSError(f"the checkpoint {kept.name} is not a regular file")
            yield kept
        finally:
            kept.unlink(missing_ok=True)

    def _drop_old(self) -> None:
        # the row points to the newest one that the queue has heard of: while it is out of reach, nothing may go
        while len(self._uploaded) > KEPT_IN_BUCKET and self._is_delivered(self._uploaded[1].key or ""):
            self._noted.delete(self._run_id, self._uploaded.pop(0).key or "")

    @contextmanager
    def on_a_timer(self, stop: StopSignal) -> Iterator[None]:
        """Upload in a thread of its own while the block runs."""
        uploads = stop.child()
        in_context = contextvars.copy_context().run  # the log's labels
        thread = threading.Thread(
            target=in_context, args=(self._keep_sending, uploads), name="checkpoints", daemon=True,
        )  # fmt: skip
        thread.start()
        try:
            yield
        finally:
            self._over.set()
            thread.join()

    def _keep_sending(self, stop: StopSignal) -> None:
        while not self._over.wait(self._interval):
            try:
                self.send_newest(stop)
            except Stopped:
                return
            except (TrainerError, OSError) as error:
                log.warning("a checkpoint could not be uploaded; the next one will be", error=str(error))
