"""Checkpoints on their way to the bucket: sent on a timer while a run trains, and removed once it has ended."""

from __future__ import annotations

import contextvars
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import structlog

from trainer.core.dataset import ObjectRef
from trainer.core.errors import TrainerError
from trainer.core.events import CheckpointSaved, Event
from trainer.core.job import Checkpoint
from trainer.core.ports import ObjectStore
from trainer.core.stop import Stopped, StopSignal

log = structlog.get_logger()

KEPT_IN_BUCKET = 2


class CheckpointUploads:
    """Sends the newest checkpoint of a training to the bucket every `interval` seconds, and once more on demand."""

    def __init__(
        self,
        prefix: str,
        store: ObjectStore,
        bucket: str,
        interval: float,
        on_event: Callable[[Event], None],
        confirm: Callable[[StopSignal], None],
        is_delivered: Callable[[str], bool],
    ) -> None:
        self._prefix = prefix
        self._store = store
        self._bucket = bucket
        self._interval = interval
        self._on_event = on_event
        self._confirm = confirm
        self._is_delivered = is_delivered
        self._newest: CheckpointSaved | None = None
        self._uploaded: list[Checkpoint] = []
        self._over = threading.Event()
        self._sending = threading.Lock()

    def saw(self, event: Event) -> None:
        """Remember a checkpoint that the training announced."""
        if isinstance(event, CheckpointSaved) and event.key is None:
            self._newest = event

    def send_newest(self, stop: StopSignal) -> Checkpoint | None:
        """Upload the newest checkpoint if it is not there yet; what the bucket has then, or None.

        Raises Unavailable, Misconfigured or Stopped.
        """
        with self._sending:
            newest = self._newest
            last = self._uploaded[-1] if self._uploaded else None
            if newest is None or (last and last.epoch == newest.epoch and last.sha256 == newest.sha256):
                return last
            self._confirm(stop)
            key = f"{self._prefix}/checkpoints/epoch-{newest.epoch:05d}-{newest.sha256[:8]}.pt"
            kept = Path(newest.path).with_suffix(".uploading")
            kept.unlink(missing_ok=True)
            # the training replaces old generations while we send: a second name keeps this one, whole
            os.link(newest.path, kept)
            try:
                self._store.upload(kept, ObjectRef(bucket=self._bucket, key=key), stop)
            finally:
                kept.unlink(missing_ok=True)
            sent = Checkpoint(epoch=newest.epoch, sha256=newest.sha256, bytes=newest.bytes, key=key)
            self._on_event(
                CheckpointSaved(epoch=sent.epoch, sha256=sent.sha256, bytes=sent.bytes, path=newest.path, key=key),
            )
            self._uploaded.append(sent)
            self._drop_old()
            return sent

    def _drop_old(self) -> None:
        # the row points to the newest one that the queue has heard of: while it is out of reach, nothing may go
        while len(self._uploaded) > KEPT_IN_BUCKET and self._is_delivered(self._uploaded[1].key or ""):
            self._delete(self._uploaded.pop(0))

    def forget(self, inherited: Checkpoint | None) -> None:
        """Remove this attempt's checkpoints from the bucket, and the one that it went on from."""
        try:
            for checkpoint in [*self._uploaded, *([inherited] if inherited else [])]:
                self._delete(checkpoint)
        except TrainerError as error:
            log.warning("checkpoints of an ended run stay in the bucket", error=str(error))

    def _delete(self, checkpoint: Checkpoint) -> None:
        if checkpoint.key is not None:
            self._store.delete(ObjectRef(bucket=self._bucket, key=checkpoint.key))

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
