"""The main loop of the worker: claim a run for each free slot and execute it."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from typing import Protocol

import structlog

from trainer.core.job import Lease
from trainer.core.stop import StopSignal
from trainer.core.text import one_line
from trainer.worker.claiming import Claimer
from trainer.worker.error_boundary import error_boundary
from trainer.worker.execution import Execution
from trainer.worker.health import Health
from trainer.worker.housekeeping import Housekeeping
from trainer.worker.liveness import Liveness
from trainer.worker.prefetch import Prefetcher
from trainer.worker.recovery import OrphanDelivery
from trainer.worker.slots import AcquiredSlots, Slots

log = structlog.get_logger()

POLL = 1.0  # seconds between checks for a free slot, and between checks whether the trial run has ended
LAST_DELIVERY = 1.0  # seconds for threads with an undelivered outcome, after the drain time of a shutdown
ORPHAN_WAIT_SECONDS = 30.0  # maximum seconds for the delivery of outcomes of crashed processes before the first claim


class Manager(Protocol):
    """The service manager that started this process, for example systemd."""

    def ready_and(self, status: str) -> None: ...

    def stopping(self) -> None: ...


@dataclass(eq=False, kw_only=True)
class Daemon:
    """Claims and executes runs until a shutdown. Each run has its own thread and its own stop signal."""

    claimer: Claimer
    execution: Execution
    orphans: OrphanDelivery
    slots: Slots
    health: Health
    prefetcher: Prefetcher
    housekeeping: Housekeeping
    liveness: Liveness
    manager: Manager
    drain_seconds: float
    # threads of runs, and the thread of `_deliver_orphans`
    _threads: list[threading.Thread] = field(default_factory=list, init=False)

    def run(self, shutdown: StopSignal) -> bool:
        """Claim and execute runs until `shutdown`. Return True if every run ended within the drain time.

        After a shutdown, no run is claimed. Each run stops its training and is requeued. The worker keeps the lease
        until the run is requeued.
        """
        with self.housekeeping.running(shutdown), self.health.watched():
            self._deliver_orphans(shutdown)
            with self.prefetcher.running(shutdown), self.liveness.watching("claims"):
                while not shutdown.must_stop:
                    self.liveness.mark("claims")
                    with error_boundary("claim loop failed, retrying", lambda: self._pause_after_error(shutdown)):
                        self._step(shutdown)
            with error_boundary("service manager not notified of the shutdown"):
                self.manager.stopping()
            return self._drain(shutdown)

    def _deliver_orphans(self, shutdown: StopSignal) -> None:
        """Deliver the outcomes of crashed processes before the first claim. Wait at most `ORPHAN_WAIT_SECONDS`."""

        def deliver() -> None:
            with error_boundary("orphaned outcomes not delivered"):
                self.orphans.run(shutdown)
            self.housekeeping.soon()  # the files of these runs are no longer needed

        thread = threading.Thread(target=deliver, name="orphans", daemon=True)
        thread.start()
        self._threads.append(thread)  # a shutdown also waits for this thread
        thread.join(ORPHAN_WAIT_SECONDS)

    def _step(self, shutdown: StopSignal) -> None:
        self._threads = [thread for thread in self._threads if thread.is_alive()]
        # a run that is requeued at a shutdown frees its slot, but no other run is claimed
        if not self.slots.wait_for_free(POLL) or shutdown.must_stop:
            return
        if self.health.awaits_trial:
            shutdown.wait(POLL)
            return
        lease = self.claimer.claim(self.slots.free_gpus)
        if self.claimer.is_answered:
            self._report_status(is_claimed=lease is not None)
        if lease is not None:
            self._start(lease, shutdown)
        else:
            shutdown.wait(self.claimer.pause())

    def _report_status(self, *, is_claimed: bool) -> None:
        busy = self.slots.total - self.slots.free + is_claimed
        status = f"{busy} of {self.slots.total} slots busy"
        if self.health.problem:
            status += f"; claims no runs: {self.health.problem}"
        with error_boundary("status not reported"):  # an error here must not prevent the execution of a claimed run
            # the problem can quote a training, and a line break would start another message to the service manager
            self.manager.ready_and(one_line(status))

    def _pause_after_error(self, shutdown: StopSignal) -> None:
        self.claimer.reset()
        shutdown.wait(self.claimer.pause())

    def _start(self, lease: Lease, shutdown: StopSignal) -> None:
        self.health.claimed(lease.job.id)
        slots = self.slots.acquire(lease.job.gpus)
        name = f"run-{lease.job.id[:8]}"
        thread = threading.Thread(target=self._execute, args=(lease, slots, shutdown.child()), name=name, daemon=True)
        try:
            thread.start()
        except RuntimeError:  # the thread limit of this process is reached
            self.health.released(lease.job.id)
            slots.release()
            self.execution.requeue(lease, shutdown)
            raise
        self._threads.append(thread)

    def _execute(self, lease: Lease, slots: AcquiredSlots, stop: StopSignal) -> None:
        labels = {"run_id": lease.job.id, "attempt": lease.job.attempt}
        with structlog.contextvars.bound_contextvars(run=labels):
            log.info("run claimed", name=lease.job.request.name)
            try:
                with error_boundary("run could not be ended, the next start of the service ends it"):
                    self.execution.run(lease, slots, stop)
            finally:
                self.health.released(lease.job.id)
                slots.release()

    def _drain(self, shutdown: StopSignal) -> bool:
        # The drain time starts at the shutdown request, because a claim or a prefetch may have delayed this call.
        deadline = (shutdown.shutdown_at or time.monotonic()) + self.drain_seconds + LAST_DELIVERY
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)
