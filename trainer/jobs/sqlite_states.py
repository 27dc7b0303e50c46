"""What each call does to a run's row in SQLite, inside the call's transaction: the state machine in small steps.

The same states and answers as the functions in supabase/migrations/. A run is its row as a dict; a step changes the
dict, and `save` writes it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from trainer.core.job import Interrupted, JsonObject, Lease, Outcome, RunEvent, Status, Verdict
from trainer.core.ports import Worker
from trainer.jobs.requirements import requirements
from trainer.jobs.row import (
    CANCELED_BY_USER,
    Ending,
    checkpoint_json,
    checkpoint_of,
    clean,
    events_json,
    is_run_id,
    whole,
)
from trainer.jobs.sqlite_file import Transaction, loaded

_QUEUE_SPEAKS = 1_000_000  # events from this seq on are the queue's own, the smaller ones the worker's
HEAD_START = 20.0  # seconds for which a worker whose host failed a run leaves it to others: two polls
_LAST_ATTEMPT = 2**31 - 2  # its successor is the last that the column of the other queue can hold
_LEGACY_SILENCE = 60.0  # seconds after which a running row without a lease counts as left behind

# as bytes, because text that is no UTF-8 reaches no Python function
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
# ends every run whose id no folder and no object could be named after; the same rule as `is_run_id`
REFUSE_IDS = """
  update training_runs set status = 'failed', completed_at = ?, updated_at = ?, lease_expires_at = null,
    error_message = 'The id of the run is not valid: insert the run with a UUID as its id.'
  where status in ('queued', 'running', 'canceling') and (id is null or typeof(id) <> 'text' or id glob '*[^0-9A-Za-z_-]*'
    or length(id) not between 1 and 64 or length(cast(id as blob)) <> length(id))
"""


# ── what a claim does ──


def claim_again(tx: Transaction, run: JsonObject, lease_seconds: float) -> JsonObject | None:
    """The answer to a repeated claim. The worker trusts it from this request on, so the lease starts again too."""
    if run["status"] not in (Status.RUNNING, Status.CANCELING):
        return None
    run["lease_expires_at"] = tx.at(lease_seconds)
    save(tx, run)
    return run


def settle(tx: Transaction) -> None:
    """End or queue again what nobody works on any more."""
    expired, canceled = tx.rows(EXPIRED, tx.at(), tx.at(-_LEGACY_SILENCE)), tx.rows(CANCELED_IN_QUEUE)
    for run in expired:
        if not is_run_id(run["id"]):
            _refuse_ids(tx)
        elif is_canceling(run):
            _record(tx, run, "canceled", "The run was to be canceled, and its worker is gone.")
            cancel(tx, run)
            save(tx, run)
        else:
            _record(tx, run, "lease_expired", "The worker stopped renewing its lease.")
            _give_up_on_worker(tx, run)
            save(tx, run)
    for run in canceled:
        if not is_run_id(run["id"]):
            _refuse_ids(tx)
            continue
        _record(tx, run, "canceled", "The run was canceled before a worker took it.")
        cancel(tx, run)
        save(tx, run)


def _refuse_ids(tx: Transaction) -> None:
    tx.connection.execute(REFUSE_IDS, (tx.at(), tx.at()))


def _give_up_on_worker(tx: Transaction, run: JsonObject) -> None:
    run["failures"] += 1
    if run["failures"] >= run["max_attempts"]:
        run["status"], run["completed_at"], run["lease_expires_at"] = Status.FAILED, tx.at(), None
        run["error_message"] = (
            f"The worker vanished {run['failures']} times without progress (last: {run['worker_id'] or 'unknown'}); see "
            "its log and that of its host (killed, out of memory, power), then queue the run again."
        )
        return
    # claim and lease stay, so that the worker may come back before another takes over
    run["status"] = Status.QUEUED
    run["not_before"] = tx.at(0.0 if run["failures"] == 1 else _back_off(run["failures"]))


def next_run(tx: Transaction, worker: Worker) -> JsonObject | None:
    def can_serve(configuration: bytes | None) -> bool:
        return requirements(loaded("configuration", configuration)).served_by(worker.capabilities)

    def can_begin(not_before: bytes | None, host_failures: bytes) -> bool:
        # others are offered it earlier
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


# ── what a worker does with a run that it holds ──


def held(tx: Transaction, lease: Lease) -> JsonObject | None:
    """The row if this claim still holds it; a run that expired and that nobody took is held again."""
    run = get_run(tx, lease.job.id)
    if run is None or run["claim_id"] != lease.claim_id:
        return None
    if run["status"] == Status.QUEUED and run["lease_expires_at"] is not None:
        revived = {"status": Status.RUNNING, "failures": max(run["failures"] - 1, 0)}
        return run | revived | {"not_before": None, "error_message": None}
    return run if run["status"] in (Status.RUNNING, Status.CANCELING) else None


def repeated(tx: Transaction, lease: Lease, outcome: Outcome) -> Verdict:
    """The answer to an ending that may have been written before: `OK` if the row shows that it was."""
    run = get_run(tx, lease.job.id)
    if run is None or run["claim_id"] != lease.claim_id:
        return Verdict.LOST
    match outcome.kind:
        case "interrupted":
            shown_by = {Status.QUEUED, Status.CANCELED}
        case "retry":
            shown_by = {Status.QUEUED, Status.FAILED, Status.CANCELED}
        case ended:
            shown_by = {Status(ended)}
    return Verdict.OK if run["status"] in shown_by else Verdict.LOST


def store_events(tx: Transaction, run: JsonObject, events: Sequence[RunEvent]) -> None:
    """Store each event once, and what the new ones among them say about epochs and checkpoints."""
    for event in events_json(events):
        row = {"run_id": run["id"], "attempt": run["attempt"], **event}
        if tx.insert("training_run_events", row, or_ignore=True):
            _note_progress(run, event["kind"], event["data"])


def _note_progress(run: JsonObject, kind: str, data: JsonObject) -> None:
    epoch = whole(data.get("epoch"), low=0, high=999_999_999) or 0
    if kind == "epoch":
        run["told_epoch"] = epoch or run["told_epoch"]  # a training that starts over begins at 1 again
        run["told_attempt"] = run["attempt"]
    if kind == "checkpoint":
        run["checkpoint"] = checkpoint_json(checkpoint_of(data)) or run["checkpoint"]
        if epoch > run["progress_epoch"]:
            run["progress_epoch"], run["failures"], run["host_failures"] = epoch, 0, {}


def end(tx: Transaction, run: JsonObject, ending: Ending) -> None:
    run["results"] = merged(run["results"], ending.results)
    run["trained_model_url"] = ending.trained_model_url or run["trained_model_url"]
    if ending.status is Status.CANCELED or (ending.status is Status.QUEUED and is_canceling(run)):
        run["error_message"] = ending.error_message if ending.status is Status.CANCELED else None
        cancel(tx, run)
        return
    run["error_message"] = ending.error_message
    run["status"] = ending.status
    if ending.status is Status.QUEUED:
        _lose(run, host_failed=ending.host_failed)
        run["not_before"] = tx.at(_pause_after(run))
        if run["failures"] >= run["max_attempts"]:
            run["status"], run["not_before"] = Status.FAILED, None
    if run["status"] is not Status.QUEUED:
        run["completed_at"] = tx.at()


def _lose(run: JsonObject, *, host_failed: bool) -> None:
    """Count a lost attempt. Of the failures of a worker's own host only the first counts."""
    by_host, worker = run["host_failures"], run["worker_id"] or ""
    if not host_failed or worker not in by_host:
        run["failures"] += 1
    if host_failed:
        by_host[worker] = by_host.get(worker, 0) + 1


def _pause_after(run: JsonObject) -> float:
    """Seconds before the next attempt; they grow also with the attempts that do not count."""
    return _back_off(run["failures"] + sum(times - 1 for times in run["host_failures"].values()))


def release(tx: Transaction, run: JsonObject, outcome: Interrupted) -> None:
    run["checkpoint"] = checkpoint_json(outcome.checkpoint) or run["checkpoint"]
    run["results"] = merged(run["results"], clean(outcome.results) or None)
    if is_canceling(run):
        cancel(tx, run)
    else:
        run["status"], run["not_before"] = Status.QUEUED, None


# ── the row ──


def get_run(tx: Transaction, run_id: str) -> JsonObject | None:
    return tx.row("select * from training_runs where id = ?", clean(run_id))


def save(tx: Transaction, run: JsonObject) -> None:
    ended: JsonObject = {"host_failures": {}} if Status(run["status"]).is_terminal else {}
    if run["status"] in (Status.COMPLETED, Status.CANCELED):
        ended["checkpoint"] = None  # nothing resumes from it any more, and the worker removes its object
    tx.update("training_runs", "id", run | ended | {"updated_at": tx.at()})


def cancel(tx: Transaction, run: JsonObject) -> None:
    run["status"], run["cancel_requested"], run["lease_expires_at"] = Status.CANCELED, True, None
    run["canceled_at"] = run["canceled_at"] or tx.at()
    run["completed_at"] = run["completed_at"] or tx.at()
    run["error_message"] = run["error_message"] or CANCELED_BY_USER


def is_canceling(run: JsonObject) -> bool:
    return run["status"] == Status.CANCELING or bool(run["cancel_requested"])


def merged(results: object, addition: JsonObject | None) -> object:
    if addition is None:
        return results
    return results | addition if isinstance(results, dict) else addition


def _back_off(failures: int) -> float:
    """Seconds before the next attempt: 10, 20, 40 … 600."""
    return float(min(10 * 2 ** min(max(failures - 1, 0), 10), 600))


def _record(tx: Transaction, run: JsonObject, kind: str, reason: str) -> None:
    """Write into the history what the queue itself did to a run."""
    last = tx.row(
        "select max(seq) as seq from training_run_events where run_id = ? and attempt = ?", run["id"], run["attempt"],
    )
    seq = max(_QUEUE_SPEAKS, ((last and last["seq"]) or 0) + 1)
    data = {"reason": reason, "worker_id": run["worker_id"]}
    key = {"run_id": run["id"], "attempt": run["attempt"], "seq": seq}
    tx.insert("training_run_events", {**key, "at": tx.at(), "kind": kind, "data": data})


def see_worker(tx: Transaction, worker_id: str | None, said: Mapping[str, object] | None = None) -> None:
    """Report the worker alive. `said` are columns that it fills itself; what it does not mention stays."""
    if worker_id is None:  # an app can clear the worker of a run that is still held
        return
    counted = tx.row(
        "select count(*) as n from training_runs where status in ('running', 'canceling') and worker_id = ?", worker_id,
    )
    busy = counted["n"] if counted else 0
    before = tx.row("select status_message from trainer_workers where worker_id = ?", worker_id) or {}
    columns = {**before, **(said or {})}
    seen = {
        "worker_id": worker_id,
        "status": "unhealthy" if columns.get("status_message") else "busy" if busy else "online",
        "last_seen": tx.at(),
        "updated_at": tx.at(),
        "current_runs": busy,
        **columns,
    }
    if not tx.insert("trainer_workers", seen | {"created_at": tx.at()}, or_ignore=True):
        tx.update("trainer_workers", "worker_id", seen)
