"""One reporter for many: whoever listens cannot end a run, nor keep the others from hearing about it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import structlog

from trainer.core.events import Event
from trainer.core.job import Job, Outcome
from trainer.core.ports import Reporter

log = structlog.get_logger()


class Fanout:
    """Passes everything on to each reporter; one that raises is told so in the log, and asked again next time."""

    def __init__(self, reporters: Sequence[Reporter]) -> None:
        self._reporters = reporters

    def started(self, job: Job) -> None:
        self._each(lambda reporter: reporter.started(job))

    def event(self, job: Job, event: Event) -> None:
        self._each(lambda reporter: reporter.event(job, event))

    def ended(self, job: Job, outcome: Outcome) -> None:
        self._each(lambda reporter: reporter.ended(job, outcome))

    def _each(self, tell: Callable[[Reporter], None]) -> None:
        for reporter in self._reporters:
            try:
                tell(reporter)
            except Exception:
                # watching must not end a run
                log.exception("a reporter failed", reporter=type(reporter).__name__)
