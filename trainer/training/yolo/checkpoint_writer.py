"""Saves checkpoints in a thread while the training continues."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from trainer.core.events import CheckpointSaved, Event, Warned
from trainer.training.yolo import checkpoint_file
from trainer.training.yolo.checkpoint_file import Progress

# torch raises RuntimeError for a file that it cannot write
_SAVE_ERRORS = (OSError, RuntimeError, zipfile.BadZipFile)


class CheckpointWriter:
    """Saves a checkpoint in two steps: `copy` copies it at once; `save` hashes, syncs and names it in a thread.

    `saved` is the newest saved checkpoint, which is sent as an event. A failed save causes a warning and does not stop
    the training: the previous checkpoint is kept. `error` is the error of the newest save, or None.
    """

    def __init__(self, run_dir: Path, send: Callable[[Event], None]) -> None:
        self._run_dir = run_dir
        self._send = send
        self._copied: tuple[Path, Progress] | None = None
        self._saving: Future[None] | None = None
        self.saved: CheckpointSaved | None = None
        self.error: Exception | None = None

    def copy(self, state: Path, progress: Progress, members: Mapping[str, Path]) -> None:
        """Copy a checkpoint of Ultralytics. The original may be overwritten afterwards."""
        self.wait()
        with self.warning_on_failure():
            self._copied = checkpoint_file.prepare(state, self._run_dir, progress, members), progress

    def save(self) -> None:
        """Start saving the copied checkpoint."""
        copied, self._copied = self._copied, None
        if copied:
            executor = ThreadPoolExecutor(1, thread_name_prefix="checkpoint-writer")
            self._saving = executor.submit(self._save, *copied)
            executor.shutdown(wait=False)  # the thread ends with its task

    def wait(self) -> None:
        """Wait until the running save has succeeded or failed."""
        saving, self._saving = self._saving, None
        if saving:
            with self.warning_on_failure():
                saving.result()

    @contextmanager
    def warning_on_failure(self) -> Iterator[None]:
        """Send a warning for a failed save, but no second warning until a save succeeds."""
        try:
            yield
        except _SAVE_ERRORS as error:
            if self.error is None:
                message = (
                    f"A checkpoint could not be saved; the training continues with the previous checkpoint: {error}"
                )
                self._send(Warned(code="checkpoint_not_saved", message=message))
            self.error = error

    def _save(self, copied: Path, progress: Progress) -> None:
        self.saved, self.error = checkpoint_file.commit(copied, progress), None
        self._send(self.saved)
