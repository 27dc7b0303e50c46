"""The reporter for the operator: one log line for each important event of a run."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import structlog

from trainer.core.events import (
    BatchProgress,
    CheckpointSaved,
    EpochFinished,
    Event,
    Finished,
    PhaseStarted,
    TransferProgress,
    Warned,
)
from trainer.core.job import Failed, Job, Retry
from trainer.core.ports import AttemptEnd, Delivery

log = structlog.get_logger()


class LogReporter:
    """Logs phases, epochs, warnings and the end of a run. Progress within an epoch is not logged."""

    def __init__(self) -> None:
        self._phases: dict[str, str] = {}  # id of an active run → its phase

    def started(self, job: Job) -> None:
        self._log(job).info("run started", name=job.request.name)

    def event(self, job: Job, event: Event) -> None:
        if isinstance(event, PhaseStarted):
            self._phases[job.id] = event.phase.value
        to = self._log(job)
        match event:
            case PhaseStarted():
                moved = {name: getattr(event, name) for name in ("files", "bytes", "rate")}
                to.info("phase", after_seconds=event.seconds, **{k: v for k, v in moved.items() if v is not None})
            case EpochFinished():
                named = ((name, value) for name, value in event.metrics.items() if name.startswith("metrics/"))
                metrics = {name: round(value, 4) for name, value in named}
                seconds = round(event.seconds, 2)
                to.info("epoch finished", epoch=event.epoch, of=event.total_epochs, seconds=seconds, **metrics)
            case Warned():
                to.warning("run warning", code=event.code, message=event.message)
            case CheckpointSaved() | BatchProgress() | TransferProgress():
                pass
            case Finished():
                to.info("training finished", best=event.best and event.best.sha256)
            case _:
                to.info(event.kind, **{k: v for k, v in asdict(event).items() if k not in ("kind", "traceback")})

    def ended(self, job: Job, end: AttemptEnd) -> None:
        """Log the outcome, its delivery, and the new status of the row."""
        outcome = end.outcome
        to = self._log(job).bind(
            outcome=outcome.kind if outcome else None,
            delivery=end.delivery.value,
            status=end.status.value if end.status else None,
        )
        self._phases.pop(job.id, None)
        if isinstance(outcome, Failed | Retry):
            to.error("run ended", error=outcome.message)
        elif end.delivery is Delivery.LOST:
            to.warning("run ended")
        else:
            to.info("run ended")

    def _log(self, job: Job) -> Any:
        phase = self._phases.get(job.id)
        labels = {"run_id": job.id, "attempt": job.attempt}
        return log.bind(**labels, phase=phase) if phase else log.bind(**labels)
