"""Keeps the training's states while the training goes on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from trainer.core.events import CheckpointSaved, Event
from trainer.training import checkpoints
from trainer.training.checkpoints import Progress


class Keeper:
    """A state is copied at once, by `take`, and hashed, synced and named meanwhile, by `settle`: the disk's time is
    not the training's. What is kept is sent as an event, and the newest of it is `kept`.
    """

    def __init__(self, run_dir: Path, send: Callable[[Event], None]) -> None:
        self._run_dir = run_dir
        self._send = send
        self._taken: tuple[Path, Progress] | None = None
        self._settling: Future[None] | None = None
        self.kept: CheckpointSaved | None = None

    def take(self, state: Path, progress: Progress, members: Mapping[str, Path]) -> None:
        """Copy a state that may be overwritten afterwards. Raises OSError, also when the one before could not be kept."""
        self.wait()
        self._taken = checkpoints.take(state, self._run_dir, progress, members), progress

    def settle(self) -> None:
        """Begin to keep what was taken."""
        assert self._taken
        with_nobody_waiting = ThreadPoolExecutor(1, thread_name_prefix="keeper")
        self._settling = with_nobody_waiting.submit(self._settle, *self._taken)
        with_nobody_waiting.shutdown(wait=False)  # its thread ends with its task

    def wait(self) -> None:
        """Return when what was taken is kept. Raises OSError when it cannot be."""
        settling, self._settling = self._settling, None
        if settling:
            settling.result()

    def _settle(self, taken: Path, progress: Progress) -> None:
        self.kept = checkpoints.settle(taken, progress)
        self._send(self.kept)
