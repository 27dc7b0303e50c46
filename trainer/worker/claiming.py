"""Claiming of runs: one claim at a time, with backoff while the queue is unavailable."""

from __future__ import annotations

import random
import time
import uuid
from collections.abc import Callable, Sequence

import structlog

from trainer.core.errors import Misconfigured, Unavailable
from trainer.core.job import Lease
from trainer.core.ports import Queue, Worker
from trainer.worker.health import Health

log = structlog.get_logger()

FIRST_WAIT, LONGEST_WAIT = 1.0, 60.0  # seconds between tries while the queue is unavailable
LOG_AGAIN = 600.0  # seconds between log lines about an outage


class Claimer:
    """Claims runs for one worker.

    `check` runs once, before the first claim. It raises an error if the queue is not accessible, and returns warnings.
    `describe_worker` returns this worker with the given number of free GPUs.
    """

    def __init__(
        self,
        queue: Queue,
        health: Health,
        *,
        describe_worker: Callable[[int], Worker],
        check: Callable[[], Sequence[str]],
        poll_seconds: float,
        lease_seconds: float,
    ) -> None:
        self._queue = queue
        self._health = health
        self._describe_worker = describe_worker
        self._check = check
        self._is_checked = False
        self._poll_seconds = poll_seconds
        self._lease_seconds = lease_seconds
        self._claim_id = str(uuid.uuid4())
        self._unanswered = 0  # consecutive claims without an answer
        self._logged_at = 0.0

    def claim(self, free_gpus: int) -> Lease | None:
        """Claim the next run, or return None. An unhealthy worker reports its problem instead.

        A claim without an answer is repeated with the same fencing token, because it may have been granted.
        """
        problem, lease = self._health.problem, None
        try:
            self._check_once()
            worker = self._describe_worker(free_gpus)
            if problem:
                self._queue.report(worker, problem)
            else:
                lease = self._queue.claim(worker, self._claim_id, self._lease_seconds)
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
        """Start a new claim after an unexpected error. A run of the old claim is requeued when its lease expires."""
        self._claim_id = str(uuid.uuid4())
        self._unanswered += 1

    def pause(self) -> float:
        """Return the seconds until the next claim, with jitter, so that many workers do not claim at the same time."""
        wait = self._poll_seconds
        if self._unanswered:
            wait = min(max(wait, FIRST_WAIT) * 2.0 ** min(self._unanswered - 1, 10), LONGEST_WAIT)
        return wait * random.uniform(0.8, 1.2)  # noqa: S311

    def _check_once(self) -> None:
        if not self._is_checked:
            for warning in self._check():
                log.warning("queue access is not as recommended", reason=warning)
            self._is_checked = True

    def _note_outage(self, error: Exception) -> None:
        """Log the first unanswered claim, then log again every `LOG_AGAIN` seconds."""
        now = time.monotonic()
        if self._unanswered == 0 or now - self._logged_at > LOG_AGAIN:
            log.error("no runs can be claimed, retrying", error=str(error), tries=self._unanswered + 1)
            self._logged_at = now
        self._unanswered += 1
