"""Claim, execute, finish, repeat: the loop that keeps the slots of this host busy."""

from __future__ import annotations

import random
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path

import structlog

from trainer.core.errors import Misconfigured, Unavailable
from trainer.core.job import Lease
from trainer.core.ports import Queue, Worker
from trainer.core.stop import StopSignal
from trainer.worker.bulkhead import bulkhead
from trainer.worker.execution import Execution
from trainer.worker.health import Health
from trainer.worker.housekeeping import Housekeeping
from trainer.worker.liveness import Pulse
from trainer.worker.outcome_delivery import deliver_leftovers
from trainer.worker.prefetch import Prefetcher
from trainer.worker.slots import SlotLoan, Slots

log = structlog.get_logger()

LEFTOVERS_FIRST = 30.0  # seconds for which claims wait for the endings of earlier processes
LONGEST_WAIT = 60.0  # seconds between tries while the queue does not answer
TELL_AGAIN = 600.0  # seconds between log lines about it


class Daemon:
    """Runs until it is told to shut down. Each run has a thread of its own and a stop signal below the shutdown's."""

    def __init__(
        self,
        *,
        queue: Queue,
        check: Callable[[], Sequence[str]],
        execution: Execution,
        slots: Slots,
        describe_worker: Callable[[int], Worker],
        prefetcher: Prefetcher,
        health: Health,
        housekeeping: Housekeeping,
        pulse: Pulse,
        journals: Path,
        poll_seconds: float,
        lease_seconds: float,
        drain_seconds: float,
        on_status: Callable[[str], None],
        on_stopping: Callable[[], None],
    ) -> None:
        self._queue = queue
        self._check = check
        self._is_checked = False
        self._execution = execution
        self._slots = slots
        self._describe_worker = describe_worker
        self._prefetcher = prefetcher
        self._health = health
        self._housekeeping = housekeeping
        self._pulse = pulse
        self._journals = journals
        self._poll_seconds = poll_seconds
        self._lease_seconds = lease_seconds
        self._drain_seconds = drain_seconds
        self._on_status = on_status
        self._on_stopping = on_stopping
        self._claim_id = str(uuid.uuid4())
        self._unanswered = 0  # claims in a row that the queue did not answer
        self._told_at = 0.0
        self._runs: list[threading.Thread] = []  # and the one that ends those of earlier processes

    def run(self, shutdown: StopSignal) -> bool:
        """Serve the queue until `shutdown`. True if every run came to its end within the drain time.

        On the way out: claim nothing more, let each run stop its training and give itself back while its lease is
        still renewed, and only then leave.
        """
        with self._housekeeping.running(shutdown), self._health.watched():
            self._deliver_leftovers(shutdown)
            with self._prefetcher.running(shutdown), self._pulse.following("claims"):
                while not shutdown.must_stop:
                    self._pulse.mark("claims")
                    with bulkhead("claim loop failed, retrying", lambda: self._back_off(shutdown)):
                        self._step(shutdown)
            with bulkhead("service manager not told of the shutdown"):
                self._on_stopping()
            return self._drain()

    def _deliver_leftovers(self, shutdown: StopSignal) -> None:
        """What earlier processes left behind goes first, but an ending that is refused again and again holds up nobody."""

        def deliver_all() -> None:
            with bulkhead("leftovers not delivered"):
                worker = self._describe_worker(self._slots.free_gpus)
                deliver_leftovers(
                    self._queue,
                    self._journals,
                    worker.id,
                    self._lease_seconds,
                    self._execution.recover,
                    shutdown,
                )
            self._housekeeping.soon()  # of a run that is over now, nothing is needed any more

        thread = threading.Thread(target=deliver_all, name="leftovers", daemon=True)
        thread.start()
        self._runs.append(thread)  # a shutdown waits for it, too
        thread.join(LEFTOVERS_FIRST)

    def _step(self, shutdown: StopSignal) -> None:
        self._runs = [thread for thread in self._runs if thread.is_alive()]
        # a slot that is given back by a run that shuts down is no invitation to take the next one
        if not self._slots.wait_for_free(1.0) or shutdown.must_stop:
            return
        if self._health.awaits_proof:
            shutdown.wait(1.0)
            return
        lease = self._claim()
        if lease is not None:
            self._start(lease, shutdown)
        else:
            shutdown.wait(self._pause())

    def _claim(self) -> Lease | None:
        """Ask for a run, or say why none is wanted.

        A claim that got no answer is asked again under the same id: it may have been granted.
        """
        problem, lease = self._health.problem, None
        try:
            self._check_once()
            worker = self._describe_worker(self._slots.free_gpus)
            if problem:
                self._queue.report(worker, problem)
            else:
                lease = self._queue.claim(worker, self._claim_id, self._lease_seconds)
        except (Unavailable, Misconfigured) as error:
            self._note_outage(error)
            return None
        if self._unanswered:
            log.info("the queue answers again", tries=self._unanswered)
        self._unanswered = 0
        if not problem:
            self._claim_id = str(uuid.uuid4())
        busy = self._slots.total - self._slots.free + (1 if lease else 0)
        status = f"{busy} of {self._slots.total} slots busy"
        with bulkhead("status not reported"):  # a run that was claimed is worked on, whoever knows of it
            self._on_status(f"{status}; claims no runs: {problem}" if problem else status)
        return lease

    def _check_once(self) -> None:
        if not self._is_checked:
            for doubt in self._check():
                log.warning(doubt)
            self._is_checked = True

    def _note_outage(self, error: Exception) -> None:
        """Said once, and then rarely: whoever mends it needs no line per try."""
        now = time.monotonic()
        if self._unanswered == 0 or now - self._told_at > TELL_AGAIN:
            log.error("no runs can be claimed; trying again", error=str(error), tries=self._unanswered + 1)
            self._told_at = now
        self._unanswered += 1

    def _back_off(self, shutdown: StopSignal) -> None:
        """After an error that nobody expected. A new claim id: a run that this claim got is free when its lease ends."""
        self._claim_id = str(uuid.uuid4())
        self._unanswered += 1
        shutdown.wait(self._pause())

    def _pause(self) -> float:
        """Seconds until the next claim; the jitter keeps a fleet from asking in step."""
        wait = self._poll_seconds
        if self._unanswered:
            wait = min(max(wait, 1.0) * 2.0 ** min(self._unanswered - 1, 10), LONGEST_WAIT)
        return wait * random.uniform(0.8, 1.2)  # noqa: S311

    def _start(self, lease: Lease, shutdown: StopSignal) -> None:
        self._health.claimed(lease.job.id)
        slot = self._slots.take(lease.job.gpus)
        name = f"run-{lease.job.id[:8]}"
        thread = threading.Thread(target=self._execute, args=(lease, slot, shutdown.child()), name=name, daemon=True)
        try:
            thread.start()
        except RuntimeError:  # this process may have no more threads
            self._health.released(lease.job.id)
            slot.give_back()
            self._execution.give_back(lease, shutdown)
            raise
        self._runs.append(thread)

    def _execute(self, lease: Lease, slot: SlotLoan, stop: StopSignal) -> None:
        labels = {"run_id": lease.job.id, "attempt": lease.job.attempt}
        with structlog.contextvars.bound_contextvars(run=labels):
            log.info("run claimed", name=lease.job.request.name)
            try:
                # a bug in giving the run back; the others and the daemon go on
                with bulkhead("the run could not be ended; the next start ends it"):
                    self._execution.run(lease, slot, stop)
            finally:
                self._health.released(lease.job.id)
                slot.give_back()

    def _drain(self) -> bool:
        deadline = time.monotonic() + self._drain_seconds
        for thread in self._runs:
            thread.join(max(0.0, deadline - time.monotonic()))
        return not any(thread.is_alive() for thread in self._runs)
