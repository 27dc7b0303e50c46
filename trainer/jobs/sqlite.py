"""The queue in one SQLite file: the same columns, states and answers as the functions in supabase/migrations/."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from pathlib import Path

from trainer.core.boottime import boottime
from trainer.core.job import Interrupted, Job, JsonObject, Lease, Outcome, RunEvent, RunRequest, Status, Verdict
from trainer.core.ports import Worker
from trainer.jobs import sqlite_states as states
from trainer.jobs.row import CANCELED_BY_USER, clean, ending_of, insert_of, job_of, lease_of, offer_json
from trainer.jobs.sqlite_clock import HOST_CLOCK, HostClock
from trainer.jobs.sqlite_file import SqliteFile


class SqliteQueue:
    """`Queue` and `RunTable` over one file, for any number of threads and processes of one host.

    The queue's own time (sqlite_clock.py) is the only one that decides about leases and back-off.
    """

    def __init__(self, path: Path, *, clock: HostClock = HOST_CLOCK, busy_seconds: float = 30.0) -> None:
        self._file = SqliteFile(path, clock, busy_seconds)

    # ── Queue ──

    def claim(self, worker: Worker, claim_id: str, lease_seconds: float) -> Lease | None:
        asked_at = boottime()
        with self._file.writing() as tx:
            known = tx.row("select * from training_runs where claim_id = ?", claim_id)
            if known is not None:
                run = states.claim_again(tx, known, lease_seconds)
            else:
                states.settle(tx)
                run = states.take_next(tx, worker, claim_id, lease_seconds)
                states.see_worker(tx, worker.id, {**offer_json(worker)["hardware"], "status_message": None})
        return None if run is None else lease_of(job_of(run), worker.id, claim_id, lease_seconds, asked_at)

    def peek(self, worker: Worker) -> Job | None:
        with self._file.reading() as tx:
            run = states.next_run(tx, worker)
        return None if run is None else job_of(run)

    def beat(self, lease: Lease, progress: JsonObject | None, events: Sequence[RunEvent]) -> Verdict:
        with self._file.writing() as tx:
            run = states.held(tx, lease)
            if run is None:
                return Verdict.LOST
            states.store_events(tx, run, events)
            run["heartbeat_at"] = tx.at()
            run["lease_expires_at"] = tx.at(lease.seconds)
            run["results"] = states.merged(run["results"], clean(progress))
            states.save(tx, run)
            states.see_worker(tx, run["worker_id"])
        if states.is_canceling(run):
            return Verdict.CANCEL
        return Verdict.FINISH if run["finish_requested"] else Verdict.OK

    def finish(self, lease: Lease, outcome: Outcome, events: Sequence[RunEvent]) -> Status | None:
        with self._file.writing() as tx:
            run = states.held(tx, lease)
            if run is None:
                return states.repeated(tx, lease, outcome)
            states.store_events(tx, run, events)
            if isinstance(outcome, Interrupted):
                states.release(tx, run, outcome)
            else:
                states.end(tx, run, ending_of(outcome))
            run["lease_expires_at"] = None
            states.save(tx, run)
            states.see_worker(tx, run["worker_id"])
        return Status(run["status"])

    def report(self, worker: Worker, problem: str | None) -> None:
        with self._file.writing() as tx:
            states.see_worker(tx, worker.id, {**offer_json(worker)["hardware"], "status_message": clean(problem)})

    # ── RunTable ──

    def enqueue(self, request: RunRequest) -> str:
        run_id = str(uuid.uuid4())
        columns = insert_of(request)
        with self._file.writing() as tx:
            tx.insert("training_runs", {"id": run_id, **columns, "created_at": tx.at(), "updated_at": tx.at()})
        return run_id

    def get(self, run_id: str) -> JsonObject | None:
        with self._file.reading() as tx:
            return states.get_run(tx, run_id)

    def recent(self, limit: int) -> list[JsonObject]:
        with self._file.reading() as tx:
            return tx.rows("select * from training_runs order by created_at desc, id limit ?", max(0, limit))

    def cancel(self, run_id: str) -> JsonObject | None:
        with self._file.writing() as tx:
            run = states.get_run(tx, run_id)
            if run is not None and run["status"] == Status.QUEUED:
                run["error_message"] = CANCELED_BY_USER
                states.cancel(tx, run)
                states.save(tx, run)
            elif run is not None and run["status"] == Status.RUNNING:
                states.save(tx, run | {"status": Status.CANCELING, "cancel_requested": True})
            return states.get_run(tx, run_id)

    def request_finish(self, run_id: str) -> JsonObject | None:
        with self._file.writing() as tx:
            run = states.get_run(tx, run_id)
            if run is not None and run["status"] == Status.RUNNING:
                states.save(tx, run | {"finish_requested": True})
            return states.get_run(tx, run_id)

    def requeue(self, run_id: str) -> JsonObject | None:
        with self._file.writing() as tx:
            run = states.get_run(tx, run_id)
            if run is not None and Status(run["status"]).is_terminal:
                states.save(tx, run | {"status": Status.QUEUED})
            return states.get_run(tx, run_id)

    def workers(self) -> list[JsonObject]:
        with self._file.reading() as tx:
            return tx.rows("select * from trainer_workers order by last_seen desc, worker_id")

    def events(self, run_id: str, after: tuple[int, int] = (0, 0)) -> list[JsonObject]:
        sql = "select * from training_run_events where run_id = ? and (attempt, seq) > (?, ?) order by attempt, seq"
        with self._file.reading() as tx:
            return tx.rows(sql, clean(run_id), *after)
