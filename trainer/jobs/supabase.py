"""The queue in a Supabase project: every change of a run is one call of a function in `supabase/migrations/`.

The calls are idempotent, so a call is repeated after a lost response. Each kind of call has its own time limit: a
heartbeat must end before the next heartbeat is due, and an outcome may take longer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from trainer.core.boottime import boottime
from trainer.core.errors import Misconfigured
from trainer.core.job import Interrupted, Job, Json, JsonObject, Lease, Outcome, RunEvent, Status, Verdict
from trainer.core.ports import Worker
from trainer.core.retry import RetryPolicy
from trainer.jobs import row
from trainer.jobs import write_row as write
from trainer.jobs.supabase_table import READ, SupabaseRunTable, parsed, selection
from trainer.remote.supabase import MIGRATE, Project, TooLarge, Unreadable
from trainer.remote.supabase_access import USE_KEY

Answer = TypeVar("Answer", Status, Verdict)
SCHEMA_VERSION = 5

# The worker repeats claims, heartbeats and outcomes itself; these policies only cover a short outage.
CLAIM = RetryPolicy(tries=2, first_wait=0.5, total_seconds=5.0)
BEAT = RetryPolicy(tries=3, first_wait=0.5, longest_wait=2.0, total_seconds=8.0)
FINISH = RetryPolicy(tries=4, first_wait=0.5, longest_wait=4.0, total_seconds=20.0)
JOB = selection(row.JOB_COLUMNS)


class SupabaseQueue(SupabaseRunTable):
    """`Queue` and `RunTable` over one project, for any number of threads.

    Each policy limits the retries of one kind of call. `beat` must end before the next heartbeat is due.
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
        super().__init__(project, read=read)
        self._claim = claim
        self._beat = beat
        self._finish = finish

    def check(self) -> list[str]:
        """Check the key and the schema. Return a warning for each policy of the app that allows too much access.

        Raises `Misconfigured` with a fix, or `Unavailable`.
        """
        host = self._project.host
        if self._project.role in ("anon", "authenticated"):
            raise Misconfigured(f"The Supabase key for {host} is a public key ({self._project.role}): {USE_KEY}.")
        version = self.schema_version()
        if version < SCHEMA_VERSION:
            raise Misconfigured(
                f"The database at {host} has version {version} of the trainer's schema, and this service needs "
                f"{SCHEMA_VERSION}: {MIGRATE}.",
            )
        warnings = self._ask(self._read, "trainer_access_warnings")
        if not isinstance(warnings, list):
            raise self._project.not_json()
        return [str(warning) for warning in warnings]

    def schema_version(self) -> int:
        """Return the version of the trainer's schema in this database."""
        version = self._ask(self._read, "trainer_schema_version")
        if not isinstance(version, int):
            raise self._project.not_json()
        return version

    def claim(self, worker: Worker, claim_id: str, lease_seconds: float) -> Lease | None:
        asked_at = boottime()  # before the first try: the lease may have started at a try whose response was lost
        offer: JsonObject = {"worker_id": worker.id, "claim_id": claim_id, "lease_seconds": lease_seconds}
        offer["capabilities"] = write.offer_json(worker)
        try:
            job = self._job(self._claim, "claim_training_run", JOB, **offer)
        except Unreadable as error:
            job = self._unreadable_claim(error, offer)
        return None if job is None else row.lease_of(job, worker.id, claim_id, lease_seconds, asked_at)

    def _unreadable_claim(self, error: Unreadable, offer: JsonObject) -> Job | None:
        """Return the run of a claim whose response cannot be read. A repeated claim returns the same run.

        If the row stays unreadable, the run has only its id, its attempt and the reason, which is enough to fail it.
        """
        why = str(error).rstrip(".")
        reason = f"The row cannot be read ({why}): shorten run_name, data_yaml, base_model and configuration."
        job = self._job(self._claim, "claim_training_run", "id,attempt", reason, **offer)
        if job is None or isinstance(error, TooLarge):
            return job
        try:  # the cause may be a temporary failure of a proxy, and not the row
            return self._job(self._read, "claim_training_run", JOB, **offer)
        except Unreadable:
            return job

    def peek(self, worker: Worker) -> Job | None:
        return self._job(self._claim, "peek_training_run", JOB, capabilities=write.offer_json(worker))

    def beat(self, lease: Lease, progress: JsonObject | None, events: Sequence[RunEvent]) -> Verdict:
        verdict = self._held(
            self._beat,
            "beat_training_run",
            lease,
            Verdict,
            lease_seconds=lease.seconds,
            progress=write.clean(progress),
            events=write.events_json(events),
        )
        return verdict or Verdict.LOST

    def finish(self, lease: Lease, outcome: Outcome, events: Sequence[RunEvent]) -> Status | None:
        if isinstance(outcome, Interrupted):
            function, columns = "release_training_run", write.release_columns(outcome)
        else:
            function, columns = "finish_training_run", write.outcome_columns(outcome)
        return self._held(self._finish, function, lease, Status, events=write.events_json(events), **columns)

    def report(self, worker: Worker, problem: str | None) -> None:
        hardware = write.offer_json(worker)["hardware"]
        self._ask(
            self._claim, "report_trainer_worker", worker_id=worker.id, problem=write.clean(problem), hardware=hardware
        )

    def _held(
        self, policy: RetryPolicy, function: str, lease: Lease, kind: type[Answer], **arguments: Json
    ) -> Answer | None:
        """Call a function with the fencing token of the lease. Return its answer, or None if the lease is lost."""
        answer = self._ask(policy, function, None, run_id=lease.job.id, claim_id=lease.claim_id, **arguments)
        if answer == Verdict.LOST:
            return None
        try:
            return kind(answer)
        except ValueError:
            raise self._project.not_json() from None

    def _job(
        self,
        policy: RetryPolicy,
        function: str,
        select: str,
        unreadable: str | None = None,
        **arguments: Json,
    ) -> Job | None:
        """Return the run in a function's answer, or None for an empty answer. Raises Unreadable for an invalid id."""
        rows = self._ask(policy, function, select, **arguments)
        if rows == []:
            return None
        if not isinstance(rows, list) or not isinstance(rows[0], dict) or not row.is_run_id(rows[0].get("id")):
            raise self._project.not_json()
        return row.job_of(parsed(rows[0]), unreadable)
