"""Keeps the training's states while the training goes on."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from trainer.core.events import CheckpointSaved, Event, Warned
from trainer.training.yolo import checkpoint_file
from trainer.training.yolo.checkpoint_file import Progress

# torch says RuntimeError for a file that it cannot write
_CANNOT_KEEP = (OSError, RuntimeError, zipfile.BadZipFile)


class Keeper:
    """Keep a state in two steps: `take` copies it at once; `settle` hashes, syncs and names it in a thread.

    The newest state that is kept is sent as an event and is in `kept`. A state that cannot be kept is a warning and
    does not stop the training, because the state before it stays; `error` says why the newest one was not kept.
    """

    def __init__(self, run_dir: Path, send: Callable[[Event], None]) -> None:
        self._run_dir = run_dir
        self._send = send
        self._taken: tuple[Path, Progress] | None = None
        self._settling: Future[None] | None = None
        self.kept: CheckpointSaved | None = None
        self.error: Exception | None = None

    def take(self, state: Path, progress: Progress, members: Mapping[str, Path]) -> None:
        """Copy a state that may be overwritten afterwards."""
        self.wait()
        with self.may_fail():
            self._taken = checkpoint_file.take(state, self._run_dir, progress, members), progress

    def settle(self) -> None:
        """Begin to keep what was taken."""
        taken, self._taken = self._taken, None
        if taken:
            executor = ThreadPoolExecutor(1, thread_name_prefix="keeper")
            self._settling = executor.submit(self._settle, *taken)
            executor.shutdown(wait=False)  # its thread ends with its task

    def wait(self) -> None:
        """Return when what was taken is kept, or cannot be."""
        settling, self._settling = self._settling, None
        if settling:
            with self.may_fail():
                settling.result()

    @contextmanager
    def may_fail(self) -> Iterator[None]:
        """Tell as a warning why a state cannot be kept, once until a state is kept again."""
        try:
            yield
        except _CANNOT_KEEP as error:
            if self.error is None:
                message = (
                    f"A checkpoint could not be kept; the training continues, and the one before it stays: {error}"
                )
                self._send(Warned(code="checkpoint_not_kept", message=message))
            self.error = error

    def _settle(self, taken: Path, progress: Progress) -> None:
        self.kept, self.error = checkpoint_file.settle(taken, progress), None
        self._send(self.kept)
