"""Claiming of runs: one claim at a time, with backoff while the queue is unavailable."""

from __future__ import annotations

import random
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass, field

import structlog

from trainer.core.errors import Misconfigured, Unavailable
from trainer.core.job import Lease
from trainer.core.ports import Queue, Worker
from trainer.worker.health import Health

log = structlog.get_logger()

FIRST_WAIT, LONGEST_WAIT = 1.0, 60.0  # seconds between tries while the queue is unavailable
LOG_AGAIN = 600.0  # seconds between log lines about an outage


@dataclass(eq=False)
class Claimer:
    """Claims runs for one worker.

    `check` is called before the first claim, until it succeeds. It returns warnings, or raises an error if the queue is
    not accessible.
    `describe_worker` returns this worker with the given number of free GPUs.
    """

    queue: Queue
    health: Health
    _: KW_ONLY
    describe_worker: Callable[[int], Worker]
    check: Callable[[], Sequence[str]]
    poll_seconds: float
    lease_seconds: float
    _is_checked: bool = field(default=False, init=False)
    _claim_id: str = field(default_factory=lambda: str(uuid.uuid4()), init=False)
    _unanswered: int = field(default=0, init=False)  # consecutive claims without an answer
    _logged_at: float = field(default=0.0, init=False)

    def claim(self, free_gpus: int) -> Lease | None:
        """Claim the next run, or return None. An unhealthy worker reports its problem instead.

        A claim without an answer is repeated with the same fencing token, because the queue may have granted it.
        """
        problem, lease = self.health.problem, None
        try:
            if not self._is_checked:
                for warning in self.check():
                    log.warning("queue access is not as recommended", reason=warning)
                self._is_checked = True
            worker = self.describe_worker(free_gpus)
            if problem:
                self.queue.report(worker, problem)
            else:
                lease = self.queue.claim(worker, self._claim_id, self.lease_seconds)
        except (Unavailable, Misconfigured) as error:
            self._note_outage(error)
            return None
        if self._unanswered:
            log.info("queue available again", tries=self._unanswered)
        self._unanswered = 0
        if not problem:
            self._claim_id = str(uuid.uuid4())
        return lease

    @property
    def is_answered(self) -> bool:
        """True if the queue answered the last claim."""
        return self._unanswered == 0

    def reset(self) -> None:
        """Use a new claim ID after an unexpected error. A run with the old ID is requeued when its lease expires."""
        self._claim_id = str(uuid.uuid4())
        self._unanswered += 1

    def pause(self) -> float:
        """Return the seconds until the next claim, with jitter, so that workers do not claim at the same time."""
        wait = self.poll_seconds
        if self._unanswered:
            wait = min(max(wait, FIRST_WAIT) * 2.0 ** min(self._unanswered - 1, 10), LONGEST_WAIT)
        return wait * random.uniform(0.8, 1.2)  # noqa: S311

    def _note_outage(self, error: Exception) -> None:
        """Count an unanswered claim. Log the first one, and later ones at most every `LOG_AGAIN` seconds."""
        now = time.monotonic()
        if self._unanswered == 0 or now - self._logged_at > LOG_AGAIN:
            log.error("no runs can be claimed, retrying", error=str(error), tries=self._unanswered + 1)
            self._logged_at = now
        self._unanswered += 1
