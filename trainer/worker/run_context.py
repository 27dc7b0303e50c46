"""The context of one attempt, for all of its steps."""

from __future__ import annotations

from dataclasses import dataclass

from trainer.core.events import Phase, PhaseStarted, Warned
from trainer.core.job import Job
from trainer.core.run_folder import RunFolder
from trainer.core.stop import StopSignal
from trainer.worker.event_sink import EventSink
from trainer.worker.lease import Heartbeat


@dataclass(frozen=True, kw_only=True)
class RunContext:
    """One attempt: its job, its folder, its stop signal, its event sink, and the heartbeat of its lease."""

    job: Job
    folder: RunFolder
    stop: StopSignal
    events: EventSink
    heartbeat: Heartbeat

    def enter(self, phase: Phase) -> None:
        """Record that a phase started."""
        self.events.record(PhaseStarted(phase=phase))

    def warn(self, code: str, message: str) -> None:
        """Record a warning for the user. `code` is for programs."""
        self.events.record(Warned(code=code, message=message))
