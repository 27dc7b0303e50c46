"""The event sink of a run: it passes events to the progress, the journal, the log and the reporters."""

from __future__ import annotations

import threading
import time
from dataclasses import asdict, replace

import structlog

from trainer.core.events import BatchProgress, Event, Phase, PhaseStarted, TransferProgress, Warned, is_durable
from trainer.core.job import Job
from trainer.core.ports import Reporter
from trainer.core.progress import Progress
from trainer.core.text import escaped
from trainer.worker.journal import Journal
from trainer.worker.run_log import RunLog

LOCAL_FIELDS = {"kind"}  # it has its own column


class EventSink:
    """The events of one attempt. `record` can be called from any thread."""

    def __init__(self, job: Job, journal: Journal, progress: Progress, log: RunLog, reporter: Reporter) -> None:
        self._job = job
        self.journal = journal
        self.log = log
        self._reporter = reporter
        self._lock = threading.Lock()
        self._phase_started: float | None = None
        self._transfer: TransferProgress | None = None  # newest transfer of the current phase
        self._epoch_phases: set[Phase] = set()  # TRAINING and VALIDATING, after their first start
        self._warned: set[tuple[str, str]] = set()
        self.progress = progress
        self.labels: dict[str, str | int] = {"run_id": job.id, "attempt": job.attempt}  # in every log line of the run

    def record(self, event: Event) -> None:
        """Record an event. The first transfer of a phase also starts that phase."""
        if isinstance(event, Warned):  # a warning can quote a row, a dataset or a server
            event = replace(event, message=escaped(event.message))
        with structlog.contextvars.bound_contextvars(run=self.labels):
            if isinstance(event, TransferProgress) and self.labels.get("phase") != event.phase:
                self._record(PhaseStarted(phase=event.phase))
            self._record(event)

    def warn_once(self, code: str, message: str) -> None:
        """Record a warning, but only once per attempt, because a retried call can fail many times."""
        if (code, message) not in self._warned:
            self._warned.add((code, message))
            self.record(Warned(code=code, message=message))

    def is_delivered(self, checkpoint_key: str) -> bool:
        """Return whether the queue has received the event of the checkpoint with this key."""
        missing = [*self.journal.pending(limit=100_000), *self.journal.dropped]
        return not any(event.data.get("key") == checkpoint_key for event in missing)

    def _record(self, event: Event) -> None:
        self.progress.follow(event)
        if isinstance(event, TransferProgress):
            self._transfer = event
        if isinstance(event, PhaseStarted):
            self.labels["phase"] = event.phase.value
            if self._is_repeated(event.phase):
                return
            event = self._with_duration(event)
        if is_durable(event):
            data = {name: value for name, value in asdict(event).items() if name not in LOCAL_FIELDS}
            self.journal.record(event.kind, data)
        if not isinstance(event, BatchProgress | TransferProgress):
            self.log.note(describe(event))
        self._reporter.event(self._job, event)

    def _is_repeated(self, phase: Phase) -> bool:
        """Return True for TRAINING and VALIDATING after the first time, because only the first of each is recorded."""
        is_repeated = phase in self._epoch_phases
        if phase in (Phase.TRAINING, Phase.VALIDATING):
            self._epoch_phases.add(phase)
        return is_repeated

    def _with_duration(self, event: PhaseStarted) -> PhaseStarted:
        """Return the event with the duration and the transferred bytes of the previous phase."""
        with self._lock:
            now = time.monotonic()
            started, self._phase_started = self._phase_started, now
            moved, self._transfer = self._transfer, None
        if started is None:
            return event
        seconds = round(now - started, 3)
        if moved is None:
            return replace(event, seconds=seconds)
        rate = round(moved.bytes / max(seconds, 1e-3), 1)
        return replace(event, seconds=seconds, files=moved.files, bytes=moved.bytes, rate=rate)


def describe(event: Event) -> str:
    """Return one log line: the kind of the event, then its fields except lists and dicts, then its metrics."""
    fields = {k: v for k, v in asdict(event).items() if k != "kind" and v is not None}
    short = (f"{name}={value}" for name, value in fields.items() if not isinstance(value, dict | list))
    text = " ".join(short)
    if metrics := fields.get("metrics"):
        text += " " + " ".join(f"{name}={value:.4g}" for name, value in metrics.items())
    # a text of the training process must not look like another line of the log
    return f"{event.kind}: {escaped(text)}".replace("\n", "\n    ")
