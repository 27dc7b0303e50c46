"""Whether this worker claims runs: a sick host must not take runs from the queue only to lose them.

    healthy ── a host failure, and the self-test fails; or two host failures in a row ──▶ sick
    sick ── the self-test passes, after a pause ──▶ on trial: one run at a time
    on trial ── a training keeps its first state, or a run completes ──▶ healthy
             ── a host failure ──▶ sick, for a longer pause

A failure is the host's when the service knows that no run can cause it (`HostFailed`), or when the host fails its
self-test right after it. What a training process says of itself is never enough. Trainings on other slots go on.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import structlog

from trainer.core.errors import HostFailed
from trainer.core.events import CheckpointSaved, Event
from trainer.core.job import Completed, Job, Outcome

log = structlog.get_logger()

FIRST_PAUSE, LONGEST_PAUSE = 10.0, 600.0  # seconds before a self-test
LAST_TEST = 5.0  # seconds that a shutdown waits for a self-test


class Health:
    """The health of this worker's host. A `Reporter`: it hears what trainings achieve. Safe between threads.

    `self_test` returns what is wrong with the host, or None. `clock` gives seconds.
    """

    def __init__(self, self_test: Callable[[], str | None], clock: Callable[[], float] = time.monotonic) -> None:
        self._self_test = self_test
        self._clock = clock
        self._lock = threading.Lock()
        self._problem: str | None = None
        self._on_trial = False
        self._tried: set[str] = set()  # runs that were claimed on trial and have not ended
        self._failed_runs: set[str] = set()  # by the host or the service, since a training proved that both work
        self._setbacks = 0  # failed self-tests and trials since then
        self._next_test = 0.0
        self._wake = threading.Event()  # while the host is sick, and at the end

    @property
    def problem(self) -> str | None:
        """Why no run is claimed, in one sentence; None while runs are."""
        return self._problem

    @property
    def awaits_proof(self) -> bool:
        """Whether a run on trial is under way, beside which no other is claimed."""
        return self._on_trial and bool(self._tried)

    # ── what happens to runs ──

    def claimed(self, run_id: str) -> None:
        """This worker took the run."""
        with self._lock:
            if self._on_trial:
                self._tried.add(run_id)

    def released(self, run_id: str) -> None:
        """This worker is done with the run, however it ended."""
        with self._lock:
            self._tried.discard(run_id)

    def blame(self, run_id: str, error: Exception) -> str | None:
        """What is wrong with the host that failed the run, or None if the host did not; it is counted.

        Tests the host, so the run's slot should be held meanwhile.
        """
        found = self._self_test()
        if found is None and not isinstance(error, HostFailed):
            return None
        problem = found or str(error)
        with self._lock:
            self._count(run_id, problem, at_once=found is not None or bool(self._failed_runs))
        return problem

    def suspect(self, run_id: str, problem: str) -> None:
        """The service itself failed on the run: by a bug that the run met, or because this host has no more threads.

        That may be the run, so one run that does it again and again stops nothing.
        """
        with self._lock:
            self._count(run_id, problem, at_once=False)

    def _count(self, run_id: str, problem: str, *, at_once: bool) -> None:
        self._failed_runs.add(run_id)
        if self._problem is None and (at_once or self._on_trial or len(self._failed_runs) > 1):
            self._fall_sick(problem)

    def started(self, job: Job) -> None:
        """Nothing is proved yet."""

    def event(self, job: Job, event: Event) -> None:
        """A training that kept its state after an epoch proves that the host works."""
        if isinstance(event, CheckpointSaved):
            self._prove(job.id)

    def ended(self, job: Job, outcome: Outcome) -> None:
        """So does a run that completed."""
        if isinstance(outcome, Completed):
            self._prove(job.id)

    def _prove(self, run_id: str) -> None:
        with self._lock:
            if self._problem is not None or (self._on_trial and run_id not in self._tried):
                return  # it may work with what is still well
            if self._on_trial:
                log.info("host is healthy again", setbacks=self._setbacks)
            self._on_trial, self._setbacks = False, 0
            self._failed_runs.clear()

    # ── self-tests ──

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Test the host now, and in a thread of its own while it is sick: a disk that hangs must hang nothing else."""
        found = self._self_test()
        if found:
            with self._lock:
                self._fall_sick(found)
        over = threading.Event()
        thread = threading.Thread(target=self._watch, args=(over,), name="self-test", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            self._wake.set()
            thread.join(LAST_TEST)

    def _watch(self, over: threading.Event) -> None:
        while self._wake.wait() and not over.wait(self.seconds_to_test()):
            self.test_again()

    def seconds_to_test(self) -> float:
        """Seconds until the next self-test."""
        return max(0.0, self._next_test - self._clock())

    def test_again(self) -> None:
        """Test a sick host; when it passes, one run is claimed on trial."""
        found = self._self_test()
        with self._lock:
            if found:
                self._fall_sick(found)
                return
            self._problem, self._on_trial = None, True
            self._wake.clear()
        log.info("self-test passed, claiming one run")

    def _fall_sick(self, problem: str) -> None:
        pause = min(FIRST_PAUSE * 2.0 ** min(self._setbacks, 10), LONGEST_PAUSE) * random.uniform(0.8, 1.2)  # noqa: S311
        self._problem, self._on_trial = problem, False
        self._setbacks += 1
        self._next_test = self._clock() + pause
        log.error("host is sick, claiming no runs", reason=problem, next_test_seconds=round(pause))
        self._wake.set()
