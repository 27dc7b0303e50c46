"""The queue in a Supabase project: every change of a run is one call of a function in `supabase/migrations/`.

Repeating a call is harmless there, so a lost answer is asked for again. How long, differs: a beat must be over before
the next one is due, while an ending may take its time.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from typing import Any

from trainer.core.boottime import boottime
from trainer.core.errors import Misconfigured
from trainer.core.job import (
    ENDED,
    Interrupted,
    Job,
    Json,
    JsonObject,
    Lease,
    Outcome,
    RunEvent,
    RunRequest,
    Status,
    Verdict,
)
from trainer.core.ports import Worker
from trainer.core.retry import RetryPolicy, retrying
from trainer.core.stop import StopSignal
from trainer.jobs import row
from trainer.remote.supabase import MIGRATE, Project, TooLarge, Unreadable
from trainer.remote.supabase_access import USE_KEY

SCHEMA_VERSION = 3
PAGE = 1000  # PostgREST returns no more rows at once, and does not say so
LARGEST_PAGE = 256 * 2**20  # bytes

# Whoever claims, beats or ends a run comes back by itself; these only bridge a hiccup.
CLAIM = RetryPolicy(tries=2, first_wait=0.5, total_seconds=5.0)
BEAT = RetryPolicy(tries=3, first_wait=0.5, longest_wait=2.0, total_seconds=8.0)
FINISH = RetryPolicy(tries=4, first_wait=0.5, longest_wait=4.0, total_seconds=20.0)
READ = RetryPolicy(tries=4, first_wait=0.5, longest_wait=4.0, total_seconds=20.0)


def selection(columns: Sequence[str]) -> str:
    """PostgREST's `select` for these columns. JSON comes as text: what a stranger wrote is not for the client to parse."""
    return ",".join(f"{name}::text" if name in row.JSON_COLUMNS else name for name in columns)


JOB = selection(row.JOB_COLUMNS)
ROW = selection(row.COLUMNS)
EVENT = selection(("run_id", "attempt", "seq", "at", "kind", "data"))


class SupabaseQueue:
    """`Queue` and `RunTable` over one project, for any number of threads.

    The policies say how long each kind of call is repeated; `beat` has to be over before the next beat is due.
    """

    def __init__(
        self,
        project: Project,
        *,
        claim: RetryPolicy = CLAIM,
        beat: RetryPolicy = BEAT,
        finish: RetryPolicy = FINISH,
        read: RetryPolicy = READ,
    ) -> None:
        self._project = project
        self._claim = claim
        self._beat = beat
        self._finish = finish
        self._read = read

    def check(self) -> list[str]:
        """Whether this key and this database will do; what an app's own policies leave open, one sentence each.

        Raises `Misconfigured` with the mend, or `Unavailable`.
        """
        host = self._project.host
        if self._project.role in ("anon", "authenticated"):
            raise Misconfigured(f"The Supabase key for {host} is a public one ({self._project.role}): {USE_KEY}.")
        version = self.schema_version()
        if version < SCHEMA_VERSION:
            raise Misconfigured(
                f"The database at {host} has version {version} of the trainer's schema, and this service needs "
                f"{SCHEMA_VERSION}: {MIGRATE}.",
            )
        return [str(warning) for warning in self._list(self._read, "trainer_access_warnings")]

    def schema_version(self) -> int:
        """The version of the trainer's schema in this database."""
        version = self._ask(self._read, "trainer_schema_version")
        if not isinstance(version, int):
            raise self._project.not_json()
        return version

    def claim(self, worker: Worker, claim_id: str, lease_seconds: float) -> Lease | None:
        asked_at = boottime()  # before the first try: an answer that was lost may have begun the lease
        offer: JsonObject = {"worker_id": worker.id, "claim_id": claim_id, "lease_seconds": lease_seconds}
        offer["capabilities"] = row.offer_json(worker)
        try:
            job = self._job(self._claim, "claim_training_run", JOB, **offer)
        except Unreadable as error:
            job = self._unreadable_claim(error, offer)
        return None if job is None else row.lease_of(job, worker.id, claim_id, lease_seconds, asked_at)

    def _unreadable_claim(self, error: Unreadable, offer: JsonObject) -> Job | None:
        """The run of a claim whose answer could not be read. Repeated, it gives the same run, and an id is enough to end it."""
        why = str(error).rstrip(".")
        reason = f"The row cannot be read ({why}): shorten run_name, data_yaml, base_model and configuration."
        job = self._job(self._claim, "claim_training_run", "id,attempt", reason, **offer)
        if job is None or isinstance(error, TooLarge):
            return job
        try:  # a proxy may have had a bad moment, and the run nothing to do with it
            return self._job(self._read, "claim_training_run", JOB, **offer)
        except Unreadable:
            return job

    def peek(self, worker: Worker) -> Job | None:
        return self._job(self._claim, "peek_training_run", JOB, capabilities=row.offer_json(worker))

    def beat(self, lease: Lease, progress: JsonObject | None, events: Sequence[RunEvent]) -> Verdict:
        return self._verdict(
            self._beat,
            "beat_training_run",
            lease,
            lease_seconds=lease.seconds,
            progress=row.clean(progress),
            events=row.events_json(events),
        )

    def finish(self, lease: Lease, outcome: Outcome, events: Sequence[RunEvent]) -> Status | None:
        if isinstance(outcome, Interrupted):
            return self._release(lease, outcome, events)
        ending = row.ending_of(outcome)
        return self._status(
            self._finish,
            "finish_training_run",
            lease,
            status=ending.status.value,
            results=ending.results,
            trained_model_url=ending.trained_model_url,
            error_message=ending.error_message,
            events=row.events_json(events),
            host_failed=ending.host_failed,
        )

    def _release(self, lease: Lease, outcome: Interrupted, events: Sequence[RunEvent]) -> Status | None:
        return self._status(
            self._finish,
            "release_training_run",
            lease,
            checkpoint=row.checkpoint_json(outcome.checkpoint),
            events=row.events_json(events),
            results=row.clean(outcome.results) or None,
        )

    def report(self, worker: Worker, problem: str | None) -> None:
        hardware = row.offer_json(worker)["hardware"]
        self._ask(
            self._claim, "report_trainer_worker", worker_id=worker.id, problem=row.clean(problem), hardware=hardware
        )

    # ── RunTable: reading one run works with a worker's key, the rest needs the service's ──

    def enqueue(self, request: RunRequest) -> str:
        run_id = str(uuid.uuid4())  # ours, so that inserting again after a lost answer inserts nothing
        columns = {"id": run_id, **row.insert_of(request)}
        self._rows(lambda: self._runs().upsert(columns, on_conflict="id", ignore_duplicates=True).select("id"))
        return run_id

    def get(self, run_id: str) -> JsonObject | None:
        return self._one("read_training_run", run_id)

    def recent(self, limit: int) -> list[JsonObject]:
        return self._pages(
            lambda: self._runs().select(ROW).order("created_at", desc=True).order("id"),
            limit,
        )

    def cancel(self, run_id: str) -> JsonObject | None:
        return self._one("cancel_training_run", run_id) or self.get(run_id)

    def request_finish(self, run_id: str) -> JsonObject | None:
        if not _is_id(run_id):
            return None
        self._rows(
            lambda: (
                self._runs().update({"finish_requested": True}).eq("id", run_id).eq("status", "running").select("id")
            ),
        )
        return self.get(run_id)

    def requeue(self, run_id: str) -> JsonObject | None:
        if not _is_id(run_id):
            return None
        queued = {"status": Status.QUEUED.value}
        rows = self._rows(lambda: self._runs().update(queued).eq("id", run_id).in_("status", sorted(ENDED)).select(ROW))
        return rows[0] if rows else self.get(run_id)

    def workers(self) -> list[JsonObject]:
        return self._pages(
            lambda: self._project.table("trainer_workers").select("*").order("last_seen", desc=True).order("worker_id"),
        )

    def events(self, run_id: str, after: tuple[int, int] = (0, 0)) -> list[JsonObject]:
        if not _is_id(run_id):
            return []
        attempt, seq = after
        later = f"attempt.gt.{int(attempt)},and(attempt.eq.{int(attempt)},seq.gt.{int(seq)})"
        return self._pages(
            lambda: self._project.table("training_run_events").select(EVENT).eq("run_id", run_id).or_(later)
            .order("attempt").order("seq"),
        )  # fmt: skip

    # ── calls and queries, repeated while there is no answer ──

    def _verdict(self, policy: RetryPolicy, function: str, lease: Lease, **arguments: Json) -> Verdict:
        answer = self._ask(policy, function, None, run_id=lease.job.id, claim_id=lease.claim_id, **arguments)
        if answer not in [verdict.value for verdict in Verdict]:
            raise self._project.not_json()
        return Verdict(answer)

    def _status(self, policy: RetryPolicy, function: str, lease: Lease, **arguments: Json) -> Status | None:
        answer = self._ask(policy, function, None, run_id=lease.job.id, claim_id=lease.claim_id, **arguments)
        if answer == Verdict.LOST:
            return None
        if answer not in [status.value for status in Status]:
            raise self._project.not_json()
        return Status(answer)

    def _job(
        self,
        policy: RetryPolicy,
        function: str,
        select: str,
        unreadable: str | None = None,
        **arguments: Json,
    ) -> Job | None:
        """The run that a function returns, or None. Raises Unreadable for an answer that is no row with a run's id."""
        rows = self._list(policy, function, select, **arguments)
        if not rows:
            return None
        if not isinstance(rows[0], dict) or not row.is_run_id(rows[0].get("id")):
            raise self._project.not_json()
        return row.job_of(_parsed(rows[0]), unreadable)

    def _list(self, policy: RetryPolicy, function: str, select: str | None = None, **arguments: Json) -> list[Any]:
        answer = self._ask(policy, function, select, **arguments)
        if not isinstance(answer, list):
            raise self._project.not_json()
        return answer

    def _ask(self, policy: RetryPolicy, function: str, select: str | None = None, **arguments: Json) -> Json:
        return retrying(lambda: self._project.call(function, arguments, select=select), policy, StopSignal())

    def _runs(self) -> Any:
        return self._project.table("training_runs")

    def _one(self, function: str, run_id: str) -> JsonObject | None:
        if not _is_id(run_id):
            return None
        rows = self._rows(lambda: self._project.function(function, {"run_id": run_id}, select=ROW))
        return rows[0] if rows else None

    def _pages(self, query: Callable[[], Any], limit: int | None = None) -> list[JsonObject]:
        """All rows of an ordered query, or the first `limit`, however few the server returns at once."""
        found: list[JsonObject] = []
        while limit is None or len(found) < limit:
            size = PAGE if limit is None else min(PAGE, limit - len(found))
            start = len(found)
            page = self._rows(lambda: query().range(start, start + size - 1))  # noqa: B023 called before the next turn
            found += page
            if len(page) < size:
                break
        return found

    def _rows(self, query: Callable[[], Any]) -> list[JsonObject]:
        rows = retrying(lambda: self._project.rows(query(), LARGEST_PAGE), self._read, StopSignal())
        return [_parsed(found) for found in rows]


def _parsed(columns: JsonObject) -> JsonObject:
    return {
        name: row.json_column(name, value) if name in row.JSON_COLUMNS else value for name, value in columns.items()
    }


def _is_id(run_id: str) -> bool:
    try:
        uuid.UUID(run_id)
    except ValueError:
        return False
    return True
