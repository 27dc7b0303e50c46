"""The queue in one SQLite file. Columns, states and answers are the same as in supabase/migrations/."""

from __future__ import annotations

from collections.abc import Sequence

from trainer.core.boottime import boottime
from trainer.core.job import Interrupted, Job, JsonObject, Lease, Outcome, RunEvent, Status, Verdict
from trainer.core.ports import Worker
from trainer.jobs import sqlite_claim as claims
from trainer.jobs import sqlite_states as states
from trainer.jobs.row import job_of, lease_of
from trainer.jobs.sqlite_table import SqliteRunTable
from trainer.jobs.write_row import clean, offer_json, outcome_columns


class SqliteQueue(SqliteRunTable):
    """`Queue` and `RunTable` over one file, for any number of threads and processes of one host.

    Leases and backoff use only the queue's own clock (sqlite_clock.py).
    """

    def claim(self, worker: Worker, claim_id: str, lease_seconds: float) -> Lease | None:
        asked_at = boottime()
        with self._file.writing() as tx:
            known = tx.row("select * from training_runs where claim_id = ?", claim_id)
            if known is not None:
                run = claims.claim_again(tx, known, lease_seconds)
            else:
                claims.settle(tx)
                run = claims.take_next(tx, worker, claim_id, lease_seconds)
                states.see_worker(tx, worker.id, {**offer_json(worker)["hardware"], "status_message": None})
        return None if run is None else lease_of(job_of(run), worker.id, claim_id, lease_seconds, asked_at)

    def peek(self, worker: Worker) -> Job | None:
        with self._file.reading() as tx:
            run = claims.next_run(tx, worker)
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
                states.end(tx, run, outcome_columns(outcome))
            run["lease_expires_at"] = None
            states.save(tx, run)
            states.see_worker(tx, run["worker_id"])
        return Status(run["status"])

    def report(self, worker: Worker, problem: str | None) -> None:
        with self._file.writing() as tx:
            states.see_worker(tx, worker.id, {**offer_json(worker)["hardware"], "status_message": clean(problem)})
