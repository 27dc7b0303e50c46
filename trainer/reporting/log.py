"""The operator's view: one log line for what matters in a run."""

from __future__ import annotations

from dataclasses import asdict

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
from trainer.core.job import Failed, Job, Outcome, Retry

log = structlog.get_logger()


class LogReporter:
    """Phases, epochs, checkpoints and warnings; ticks are left to the row."""

    def started(self, job: Job) -> None:
        log.info("run started", run_id=job.id, attempt=job.attempt, name=job.request.name)

    def event(self, job: Job, event: Event) -> None:
        to = log.bind(run_id=job.id, attempt=job.attempt)
        match event:
            case PhaseStarted():
                moved = {
                    name: value for name in ("files", "bytes", "rate") if (value := getattr(event, name)) is not None
                }
                to.info("phase", phase=event.phase.value, after_seconds=event.seconds, **moved)
            case EpochFinished():
                metrics = {
                    name: round(value, 4) for name, value in event.metrics.items() if name.startswith("metrics/")
                }
                to.info(
                    "epoch finished",
                    epoch=event.epoch,
                    of=event.total_epochs,
                    seconds=round(event.seconds, 2),
                    **metrics,
                )
            case Warned():
                to.warning(event.message, code=event.code)
            case CheckpointSaved():
                to.debug("checkpoint saved", epoch=event.epoch, bytes=event.bytes, key=event.key)
            case BatchProgress() | TransferProgress():
                pass
            case Finished():
                to.info("training finished", best=event.best.path)
            case _:
                to.info(event.kind, **{k: v for k, v in asdict(event).items() if k not in ("kind", "traceback")})

    def ended(self, job: Job, outcome: Outcome) -> None:
        to = log.bind(run_id=job.id, attempt=job.attempt, outcome=outcome.kind)
        if isinstance(outcome, Failed | Retry):
            to.error("run ended", error=outcome.message)
        else:
            to.info("run ended")
