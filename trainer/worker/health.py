"""The health of this worker's host. A worker on an unhealthy host claims no runs, because the runs would fail.

    healthy ── a host failure and a failed self-test; or two host failures in a row ──▶ unhealthy
    unhealthy ── the self-test passes, after a pause ──▶ on trial: one run at a time, the trial run
    on trial ── a training saves a checkpoint, or a run completes ──▶ healthy
             ── a host failure ──▶ unhealthy, for a longer pause

An error is a host failure if no run can cause it (`HostFailed`), or if the self-test fails right after it. After an error
that a run can report falsely (`HostSuspected`), the self-test includes a training process without a run.
Trainings on other slots continue on an unhealthy host.
"""

from __future__ import annotations

import random
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import structlog

from trainer.core.errors import HostFailed, HostSuspected
from trainer.core.threads import thread_running

log = structlog.get_logger()

FIRST_PAUSE, LONGEST_PAUSE = 10.0, 600.0  # seconds before a self-test
MOST_SUSPICIONS = 1000  # runs whose unconfirmed suspicions are remembered
LAST_TEST = 5.0  # seconds that a shutdown waits for a self-test


class Health:
    """The health of this host. Thread-safe.

    `self_test` returns the problem of the host, or None. `clock` returns seconds.
    """

    def __init__(self, self_test: Callable[[], str | None], clock: Callable[[], float] = time.monotonic) -> None:
        self._self_test = self_test
        self._clock = clock
        self._lock = threading.Lock()
        self._problem: str | None = None
        self._on_trial = False
        self._trial_runs: set[str] = set()  # runs that this worker claimed while on trial, and has not released
        self._failed_runs: set[str] = set()  # runs that failed because of the host or the service
        self._suspicions: deque[str] = deque(maxlen=MOST_SUSPICIONS)  # runs
        self._setbacks = 0  # failed self-tests and failed trial runs since the last success
        self._next_test = 0.0
        self._training_test: Callable[[], str | None] | None = None  # set if this test found the problem
        self._wake = threading.Event()  # set while the host is unhealthy, and to end `_watch`

    @property
    def problem(self) -> str | None:
        """The reason why no run is claimed, in one sentence; None while runs are claimed."""
        return self._problem

    @property
    def awaits_trial(self) -> bool:
        """True while the trial run is active. Then no other run is claimed."""
        return self._on_trial and bool(self._trial_runs)

    def claimed(self, run_id: str) -> None:
        """Record that this worker claimed the run."""
        with self._lock:
            if self._on_trial:
                self._trial_runs.add(run_id)

    def released(self, run_id: str) -> None:
        """Record that this worker released the run, with any outcome."""
        with self._lock:
            self._trial_runs.discard(run_id)

    def record_failure(
        self, run_id: str, error: Exception, training_test: Callable[[], str | None] = lambda: None
    ) -> str | None:
        """Count a failure if the host caused it. Return the problem of the host, or None if the run caused the failure.

        `training_test` tests the host with a training process without a run. It returns the problem of the host, or None.
        This method tests the host, so call it before the slots of the run are released.
        """
        found, in_training_test = self._self_test(), False
        if found is None and isinstance(error, HostSuspected):
            found = training_test()
            in_training_test = found is not None
        if found is None and not isinstance(error, HostFailed):
            return None
        problem = found or str(error)
        with self._lock:
            if in_training_test:
                self._training_test = training_test
            self._count(run_id, problem, at_once=found is not None or bool(self._failed_runs))
        return problem

    def is_first_suspicion(self, run_id: str) -> bool:
        """Return whether the run suspects this host for the first time. Then another worker can claim the run first.

        From the second time on, each attempt counts, because the tests of this host did not confirm the suspicion.
        """
        with self._lock:
            is_first = run_id not in self._suspicions
            self._suspicions.append(run_id)
        return is_first

    def record_service_failure(self, run_id: str, problem: str) -> str | None:
        """Count an internal error of the service: a bug, or a limit of the host. Return the problem of the host, or None.

        If the self-test passes, repeated errors of a single run do not make the host unhealthy, because the run may have
        triggered the errors. While the host is on trial, one error makes the host unhealthy.
        """
        found = self._self_test()
        with self._lock:
            self._count(run_id, found or problem, at_once=found is not None)
        return found

    def record_success(self, run_id: str) -> None:
        """Record that a training saved a checkpoint or completed, which proves that the host works."""
        with self._lock:
            if self._problem is not None or (self._on_trial and run_id not in self._trial_runs):
                return  # this success does not prove that the host works again
            if self._on_trial:
                log.info("host is healthy again", setbacks=self._setbacks)
            self._on_trial, self._setbacks = False, 0
            self._failed_runs.clear()

    def _count(self, run_id: str, problem: str, *, at_once: bool) -> None:
        self._failed_runs.add(run_id)
        if self._problem is None and (at_once or self._on_trial or len(self._failed_runs) > 1):
            self._set_unhealthy(problem)

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Test the host now. While the block runs, test it again after each pause if it is unhealthy.

        These tests run in a thread, because a test of a broken disk can hang.
        """
        found = self._self_test()
        if found:
            with self._lock:
                self._set_unhealthy(found)
        over = threading.Event()

        def end() -> None:
            over.set()
            self._wake.set()

        with thread_running("self-test", lambda: self._watch(over), end, LAST_TEST):
            yield

    def _watch(self, over: threading.Event) -> None:
        while self._wake.wait() and not over.wait(self.seconds_to_test()):
            self.test_again()

    def seconds_to_test(self) -> float:
        """Return the seconds until the next self-test."""
        return max(0.0, self._next_test - self._clock())

    def test_again(self) -> None:
        """Test an unhealthy host. If the test passes, the worker claims a trial run."""
        found = self._self_test() or (self._training_test and self._training_test())
        with self._lock:
            if found:
                self._set_unhealthy(found)
                return
            self._problem, self._on_trial, self._training_test = None, True, None
            self._wake.clear()
        log.info("self-test passed, claiming one run")

    def _set_unhealthy(self, problem: str) -> None:
        pause = min(FIRST_PAUSE * 2.0 ** min(self._setbacks, 10), LONGEST_PAUSE) * random.uniform(0.8, 1.2)  # noqa: S311
        self._problem, self._on_trial = problem, False
        self._setbacks += 1
        self._next_test = self._clock() + pause
        log.error("host is unhealthy, claiming no runs", reason=problem, next_test_seconds=round(pause))
        self._wake.set()
