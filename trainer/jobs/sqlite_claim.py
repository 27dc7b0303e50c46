"""A claim in SQLite: settle runs whose lease has expired, then claim the next run that the worker can serve."""

from __future__ import annotations

from trainer.core.job import JsonObject, Status
from trainer.core.ports import Worker
from trainer.jobs.requirements import requirements
from trainer.jobs.row import is_run_id
from trainer.jobs.sqlite_file import Transaction, loaded
from trainer.jobs.sqlite_states import back_off, cancel, is_canceling, record, save

HEAD_START = 20.0  # seconds (two polls): a worker whose host failed a run can claim the run this much later
_LAST_ATTEMPT = 2**31 - 2  # the next attempt is the largest number in PostgreSQL's `integer` column
_LEGACY_SILENCE = 60.0  # seconds after which a running row without a lease counts as abandoned

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
# fails every run whose id cannot name a folder or an object; the same rule as `is_run_id`
REFUSE_IDS = """
  update training_runs set status = 'failed', completed_at = ?, updated_at = ?, lease_expires_at = null,
    error_message = 'The id of the run is not valid: insert the run with a UUID as its id.'
  where status in ('queued', 'running', 'canceling') and (id is null or typeof(id) <> 'text' or id glob '*[^0-9A-Za-z_-]*'
    or length(id) not between 1 and 64 or length(cast(id as blob)) <> length(id))
"""


def claim_again(tx: Transaction, run: JsonObject, lease_seconds: float) -> JsonObject | None:
    """Return the run of a repeated claim, or None if it no longer runs. The lease starts again at this request."""
    if run["status"] not in (Status.RUNNING, Status.CANCELING):
        return None
    run["lease_expires_at"] = tx.at(lease_seconds)
    save(tx, run)
    return run


def settle(tx: Transaction) -> None:
    """Requeue or fail runs whose lease has expired, and cancel queued runs that have a cancel request."""
    for run in tx.rows(EXPIRED, tx.at(), tx.at(-_LEGACY_SILENCE)) + tx.rows(CANCELED_IN_QUEUE):
        if not is_run_id(run["id"]):
            _refuse_ids(tx)
            continue
        if run["status"] == Status.QUEUED:
            record(tx, run, "canceled", "The run was canceled before a worker claimed it.")
            cancel(tx, run)
        elif is_canceling(run):
            record(tx, run, "canceled", "The run was being canceled when its worker stopped renewing the lease.")
            cancel(tx, run)
        else:
            record(tx, run, "lease_expired", "The worker stopped renewing its lease.")
            _requeue_or_fail(tx, run)
        save(tx, run)


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
    run["not_before"] = tx.at(0.0 if run["failures"] == 1 else back_off(run["failures"]))


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
    save(tx, run)
    return run
