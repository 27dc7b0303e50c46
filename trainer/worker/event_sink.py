"""Everything that happens in a run passes here once: to its progress, its journal, its log, and whoever listens."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TextIO

import structlog

from trainer.core.events import BatchProgress, Event, Phase, PhaseStarted, TransferProgress, Warned, is_durable
from trainer.core.job import Job
from trainer.core.ports import Reporter
from trainer.core.progress import Progress
from trainer.worker.journal import Journal

log = structlog.get_logger()

# a training process that is dead now may have put a link or a pipe in place of the log
_APPEND = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
LOCAL_ONLY = {"kind", "path"}  # the kind has a column of its own, a path of this host means nothing elsewhere


class RunLog:
    """The run's own log file: what happened and what the training printed, each line with its time in UTC.

    A disk that cannot be written costs lines of the log, never the run.
    """

    def __init__(self, path: Path, *, timestamps: bool) -> None:
        self.path = path
        self._timestamps = timestamps
        self._lock = threading.Lock()
        self._disk_failed = False
        self._file: TextIO | None = None
        with self._disk_may_fail():
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.fdopen(os.open(path, _APPEND, 0o666), "a", encoding="utf-8", errors="replace", buffering=1)

    def note(self, text: str) -> None:
        """A line of ours; always with its time."""
        self._write(f"[{_now()}] {text}\n")

    def output(self, line: str) -> None:
        """A line that the training printed."""
        self._write(f"[{_now()}] {line}\n" if self._timestamps else f"{line}\n")

    def close(self) -> None:
        with self._lock, self._disk_may_fail():
            if self._file:
                self._file.close()

    def _write(self, text: str) -> None:
        with self._lock, self._disk_may_fail():
            if self._file and not self._file.closed:
                self._file.write(text)

    @contextmanager
    def _disk_may_fail(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if not self._disk_failed:
                log.error(
                    "the run's log cannot be written; lines of it are lost", path=str(self.path), error=str(error)
                )
            self._disk_failed = True


class Record:
    """The history of one attempt while it is being made. `event` may be called from any thread."""

    def __init__(self, job: Job, journal: Journal, progress: Progress, log: RunLog, reporter: Reporter) -> None:
        self._job = job
        self._journal = journal
        self._progress = progress
        self._log = log
        self._reporter = reporter
        self._lock = threading.Lock()
        self._phase_began: float | None = None
        self._moved: TransferProgress | None = None  # in the present phase
        self._alternating: set[Phase] = set()
        self._warned: set[tuple[str, str]] = set()
        self.labels: dict[str, str | int] = {"run_id": job.id, "attempt": job.attempt}  # of every log line of the run

    @property
    def log_path(self) -> Path:
        return self._log.path

    def event(self, event: Event) -> None:
        with structlog.contextvars.bound_contextvars(run=self.labels):
            if isinstance(event, TransferProgress) and self.labels.get("phase") != event.phase:
                self._pass_on(PhaseStarted(phase=event.phase))
            self._pass_on(event)

    def _pass_on(self, event: Event) -> None:
        self._progress.follow(event)
        if isinstance(event, TransferProgress):
            self._moved = event
        if isinstance(event, PhaseStarted):
            self.labels["phase"] = event.phase.value
            if self._is_next_round(event.phase):
                return
            event = self._timed(event)
        if is_durable(event):
            data = {name: value for name, value in asdict(event).items() if name not in LOCAL_ONLY}
            self._journal.record(event.kind, data)
        if not isinstance(event, BatchProgress | TransferProgress):
            self._log.note(describe(event))
        self._reporter.event(self._job, event)

    def warn_once(self, code: str, message: str) -> None:
        """Record a warning, unless the attempt has this one already: what is retried for hours fails many times."""
        if (code, message) not in self._warned:
            self._warned.add((code, message))
            self.event(Warned(code=code, message=message))

    def require_disk(self) -> None:
        """Raise HostFailed when the journal could not be written from the start."""
        self._journal.require_disk()

    def output(self, line: str) -> None:
        self._log.output(line)

    def is_delivered(self, checkpoint_key: str) -> bool:
        """Whether the queue has heard of the checkpoint that was stored under this key."""
        waiting = self._journal.pending(limit=100_000)
        return not any(event.data.get("key") == checkpoint_key for event in waiting)

    def _is_next_round(self, phase: Phase) -> bool:
        """Training and validating take turns in every epoch; only the first turn is news, epochs tell the rest."""
        again = phase in self._alternating
        if phase in (Phase.TRAINING, Phase.VALIDATING):
            self._alternating.add(phase)
        return again

    def _timed(self, event: PhaseStarted) -> PhaseStarted:
        """With the length of the phase that just ended, and what it moved."""
        with self._lock:
            now = time.monotonic()
            began, self._phase_began = self._phase_began, now
            moved, self._moved = self._moved, None
        if began is None:
            return event
        seconds = round(now - began, 3)
        if moved is None:
            return replace(event, seconds=seconds)
        rate = round(moved.bytes / max(seconds, 1e-3), 1)
        return replace(event, seconds=seconds, files=moved.files, bytes=moved.bytes, rate=rate)


def describe(event: Event) -> str:
    """One line for a log: the kind, then the fields that say something short."""
    fields = {k: v for k, v in asdict(event).items() if k != "kind" and v is not None}
    short = (f"{name}={value}" for name, value in fields.items() if not isinstance(value, dict | list))
    text = " ".join(short)
    if metrics := fields.get("metrics"):
        text += " " + " ".join(f"{name}={value:.4g}" for name, value in metrics.items())
    return f"{event.kind}: {text}"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
