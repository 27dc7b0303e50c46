"""The changes that a worker's call makes to a run's row in SQLite, inside the transaction of the call.

States and answers are the same as those of the functions in supabase/migrations/. A run is its row as a dict. The
functions change the dict, and `save` writes it to the table.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from trainer.core.job import Interrupted, JsonObject, Lease, Outcome, RunEvent, Status
from trainer.jobs.row import checkpoint_of, whole
from trainer.jobs.sqlite_file import Transaction
from trainer.jobs.write_row import CANCELED_BY_USER, checkpoint_json, clean, events_json, release_columns

# the queue writes events with this seq or higher, the worker writes events with a lower seq
_FIRST_QUEUE_SEQ = 1_000_000


def held(tx: Transaction, lease: Lease) -> JsonObject | None:
    """Return the row if the run is still claimed with the claim ID of `lease`, or None.

    An expired lease becomes valid again if no other worker has claimed the run.
    """
    run = get_run(tx, lease.job.id)
    if run is None or run["claim_id"] != lease.claim_id:
        return None
    if run["status"] == Status.QUEUED and run["lease_expires_at"] is not None:
        revived = {"status": Status.RUNNING, "failures": max(run["failures"] - 1, 0)}
        return run | revived | {"not_before": None, "error_message": None}
    return run if run["status"] in (Status.RUNNING, Status.CANCELING) else None


def repeated(tx: Transaction, lease: Lease, outcome: Outcome) -> Status | None:
    """Return the status of the run if the same outcome was already written, or None."""
    run = get_run(tx, lease.job.id)
    if run is None or run["claim_id"] != lease.claim_id:
        return None
    match outcome.kind:
        case "interrupted":
            shown_by = {Status.QUEUED, Status.CANCELED}
        case "retry":
            shown_by = {Status.QUEUED, Status.FAILED, Status.CANCELED}
        case ended:
            shown_by = {Status(ended)}
    return Status(run["status"]) if run["status"] in shown_by else None


def store_events(tx: Transaction, run: JsonObject, events: Sequence[RunEvent]) -> None:
    """Store each event once, and update the epochs and the checkpoint of the run from the new events."""
    for event in events_json(events):
        row = {"run_id": run["id"], "attempt": run["attempt"], **event}
        if tx.insert("training_run_events", row):
            _note_progress(run, event["kind"], event["data"])


def _note_progress(run: JsonObject, kind: str, data: JsonObject) -> None:
    epoch = whole(data.get("epoch"), low=0, high=999_999_999) or 0
    if kind == "epoch":
        # may decrease: a training that starts over reports epoch 1 again
        run["last_reported_epoch"] = epoch or run["last_reported_epoch"]
        run["last_reported_attempt"] = run["attempt"]
    if kind == "checkpoint":
        run["checkpoint"] = checkpoint_json(checkpoint_of(data)) or run["checkpoint"]
        if epoch > run["progress_epoch"]:
            run["progress_epoch"], run["failures"], run["host_failures"] = epoch, 0, {}


def end(tx: Transaction, run: JsonObject, outcome: JsonObject) -> None:
    run["results"] = merged(run["results"], outcome["results"])
    run["trained_model_url"] = outcome["trained_model_url"] or run["trained_model_url"]
    if outcome["status"] is Status.CANCELED or (outcome["status"] is Status.QUEUED and is_canceling(run)):
        run["error_message"] = outcome["error_message"] if outcome["status"] is Status.CANCELED else None
        cancel(tx, run)
        return
    run["error_message"] = outcome["error_message"]
    run["status"] = outcome["status"]
    if outcome["status"] is Status.QUEUED:
        _lose(run, host_failed=outcome["host_failed"])
        # repeated host failures of the same worker increase the backoff
        uncounted = sum(times - 1 for times in run["host_failures"].values())
        run["not_before"] = tx.at(back_off(run["failures"] + uncounted))
        if run["failures"] >= run["max_attempts"]:
            run["status"], run["not_before"] = Status.FAILED, None
    if run["status"] is not Status.QUEUED:
        run["completed_at"] = tx.at()


def _lose(run: JsonObject, *, host_failed: bool) -> None:
    """Count a lost attempt. Repeated host failures of the same worker count once."""
    by_host, worker = run["host_failures"], run["worker_id"] or ""
    if not host_failed or worker not in by_host:
        run["failures"] += 1
    if host_failed:
        by_host[worker] = by_host.get(worker, 0) + 1


def release(tx: Transaction, run: JsonObject, outcome: Interrupted) -> None:
    columns = release_columns(outcome)
    run["checkpoint"] = columns["checkpoint"] or run["checkpoint"]
    run["results"] = merged(run["results"], columns["results"])
    if is_canceling(run):
        cancel(tx, run)
    else:
        run["status"], run["not_before"] = Status.QUEUED, None


def get_run(tx: Transaction, run_id: str) -> JsonObject | None:
    return tx.row("select * from training_runs where id = ?", clean(run_id))


def save(tx: Transaction, run: JsonObject) -> None:
    ended: JsonObject = {"host_failures": {}} if Status(run["status"]).is_terminal else {}
    if run["status"] in (Status.COMPLETED, Status.CANCELED):
        ended["checkpoint"] = None  # no attempt will resume from the checkpoint, and the worker deletes its object
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


def back_off(failures: int) -> float:
    """Return the seconds before the next attempt: 10, 20, 40 … 600."""
    return float(min(10 * 2 ** min(max(failures - 1, 0), 10), 600))


def record(tx: Transaction, run: JsonObject, kind: str, reason: str) -> None:
    """Add an event for a change that the queue itself made to a run."""
    last = tx.row(
        "select max(seq) as seq from training_run_events where run_id = ? and attempt = ?",
        run["id"],
        run["attempt"],
    )
    seq = max(_FIRST_QUEUE_SEQ, ((last and last["seq"]) or 0) + 1)
    data = {"reason": reason, "worker_id": run["worker_id"]}
    key = {"run_id": run["id"], "attempt": run["attempt"], "seq": seq}
    tx.insert("training_run_events", {**key, "at": tx.at(), "kind": kind, "data": data})


def see_worker(tx: Transaction, worker_id: str | None, reported: Mapping[str, object] | None = None) -> None:
    """Record that the worker is alive. `reported` has the columns that the worker sets; other columns are unchanged."""
    if worker_id is None:  # an app can clear worker_id while a worker holds the lease
        return
    counted = tx.row(
        "select count(*) as n from training_runs where status in ('running', 'canceling') and worker_id = ?",
        worker_id,
    )
    busy = counted["n"] if counted else 0
    before = tx.row("select status_message from trainer_workers where worker_id = ?", worker_id) or {}
    columns = {**before, **(reported or {})}
    seen = {
        "worker_id": worker_id,
        "status": "unhealthy" if columns.get("status_message") else "busy" if busy else "online",
        "last_seen": tx.at(),
        "updated_at": tx.at(),
        "current_runs": busy,
        **columns,
    }
    if not tx.insert("trainer_workers", seen | {"created_at": tx.at()}):
        tx.update("trainer_workers", "worker_id", seen)
