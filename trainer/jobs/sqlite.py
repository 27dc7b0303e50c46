"""The queue in one SQLite file. Columns, states and answers are the same as in supabase/migrations/."""

from __future__ import annotations

from collections.abc import Sequence

from trainer.core.boottime import boottime
from trainer.core.job import Interrupted, Job, JsonObject, Lease, Outcome, RunEvent, Status, Verdict
from trainer.core.ports import Worker
from trainer.jobs import sqlite_states as states
from trainer.jobs.row import is_run_id, job_of, lease_of, requirements
from trainer.jobs.sqlite_file import Transaction, loaded
from trainer.jobs.sqlite_table import SqliteRunTable
from trainer.jobs.write_row import clean, offer_json, outcome_columns

HEAD_START = 20.0  # seconds (two poll intervals) in which only other workers can claim a run after a host failure
_LAST_ATTEMPT = 2**31 - 2  # plus 1, this is the largest value of PostgreSQL's integer type
_LEGACY_SILENCE = 60.0  # seconds without a heartbeat after which a running row without a lease counts as abandoned

# cast to blob, because SQLite passes only valid UTF-8 text to a Python function
NEXT = """
  select * from training_runs
  where status = 'queued' and not cancel_requested
    and can_begin(cast(not_before as blob), cast(host_failures as blob)) and can_serve(cast(configuration as blob))
  order by priority desc, created_at, id limit 1
"""
EXPIRED = """
  select * from training_runs
  where status in ('running', 'canceling') and case
    when lease_expires_at is not null then lease_expires_at < ?
    when status = 'canceling' then 1
    else coalesce(heartbeat_at, started_at, updated_at) < ?
  end
"""
CANCELED_IN_QUEUE = "select * from training_runs where status = 'queued' and cancel_requested"
# fails every run with an id that cannot be part of a folder name or an object key; the same rule as `is_run_id`
REFUSE_IDS = """
  update training_runs set status = 'failed', completed_at = ?, updated_at = ?, lease_expires_at = null,
    error_message = 'The id of the run is not valid: insert the run with a UUID as its id.'
  where status in ('queued', 'running', 'canceling') and (id is null or typeof(id) <> 'text' or id glob '*[^0-9A-Za-z_-]*'
    or length(id) not between 1 and 64 or length(cast(id as blob)) <> length(id))
"""


class SqliteQueue(SqliteRunTable):
    """`Queue` and `RunTable` over one file, for any number of threads and processes of one host.

    Leases and backoff use only the queue's own clock (sqlite_clock.py).
    """

    def claim(self, worker: Worker, claim_id: str, lease_seconds: float) -> Lease | None:
        asked_at = boottime()
        with self._file.writing() as tx:
            known = tx.row("select * from training_runs where claim_id = ?", claim_id)
            if known is not None:
                run = claim_again(tx, known, lease_seconds)
            else:
                settle(tx)
                run = take_next(tx, worker, claim_id, lease_seconds)
                states.see_worker(tx, worker.id, {**offer_json(worker)["hardware"], "status_message": None})
        return None if run is None else lease_of(job_of(run), worker.id, claim_id, lease_seconds, asked_at)

    def peek(self, worker: Worker) -> Job | None:
        with self._file.reading() as tx:
            run = next_run(tx, worker)
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


def claim_again(tx: Transaction, run: JsonObject, lease_seconds: float) -> JsonObject | None:
    """Renew the lease of a repeated claim and return its run. Return None if the run is no longer running."""
    if run["status"] not in (Status.RUNNING, Status.CANCELING):
        return None
    run["lease_expires_at"] = tx.at(lease_seconds)
    states.save(tx, run)
    return run


def settle(tx: Transaction) -> None:
    """Requeue or fail runs whose lease has expired, and cancel queued runs that have a cancel request."""
    for run in tx.rows(EXPIRED, tx.at(), tx.at(-_LEGACY_SILENCE)) + tx.rows(CANCELED_IN_QUEUE):
        if not is_run_id(run["id"]):
            _refuse_ids(tx)
            continue
        if run["status"] == Status.QUEUED:
            states.record(tx, run, "canceled", "The run was canceled before a worker claimed it.")
            states.cancel(tx, run)
        elif states.is_canceling(run):
            states.record(tx, run, "canceled", "The run was being canceled when its worker stopped renewing the lease.")
            states.cancel(tx, run)
        else:
            states.record(tx, run, "lease_expired", "The worker stopped renewing its lease.")
            _requeue_or_fail(tx, run)
        states.save(tx, run)


def _refuse_ids(tx: Transaction) -> None:
    tx.connection.execute(REFUSE_IDS, (tx.at(), tx.at()))


def _requeue_or_fail(tx: Transaction, run: JsonObject) -> None:
    run["failures"] += 1
    if run["failures"] >= run["max_attempts"]:
        run["status"], run["completed_at"], run["lease_expires_at"] = Status.FAILED, tx.at(), None
        run["error_message"] = (
            f"The worker stopped {run['failures']} times without progress (last: {run['worker_id'] or 'unknown'}). Check "
            "its log and its host (process killed, out of memory, power), then requeue the run."
        )
        return
    # claim_id and lease_expires_at are kept: the worker can continue if it returns before another worker claims the run
    run["status"] = Status.QUEUED
    run["not_before"] = tx.at(0.0 if run["failures"] == 1 else states.back_off(run["failures"]))


def next_run(tx: Transaction, worker: Worker) -> JsonObject | None:
    def can_serve(configuration: bytes | None) -> bool:
        return requirements(loaded("configuration", configuration)).served_by(worker.capabilities)

    def can_begin(not_before: bytes | None, host_failures: bytes) -> bool:
        head_start = HEAD_START if worker.id in loaded("host_failures", host_failures) else 0.0
        return not_before is None or not_before <= tx.at(-head_start).encode()

    tx.connection.create_function("can_serve", 1, can_serve)
    tx.connection.create_function("can_begin", 2, can_begin)
    return tx.row(NEXT)


def take_next(tx: Transaction, worker: Worker, claim_id: str, lease_seconds: float) -> JsonObject | None:
    run = next_run(tx, worker)
    if run is not None and not is_run_id(run["id"]):
        _refuse_ids(tx)
        run = next_run(tx, worker)
    if run is None:
        return None
    run |= {
        "status": Status.RUNNING,
        "worker_id": worker.id,
        "claim_id": claim_id,
        "attempt": min(run["attempt"], _LAST_ATTEMPT) + 1,
        "started_at": run["started_at"] or tx.at(),
        "heartbeat_at": tx.at(),
        "lease_expires_at": tx.at(lease_seconds),
        "not_before": None,
        "error_message": None,
        "completed_at": None,
    }
    states.save(tx, run)
    return run
