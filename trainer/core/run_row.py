"""What users of the queue read: runs, workers and events as typed rows.

A row never contains the fencing token (`claim_id`): anyone who knows it can write in the name of the worker.
Times are ISO 8601 text in UTC. A column may hold anything that another program wrote, so `results`, `configuration`
and `checkpoint` are unchecked JSON.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from enum import StrEnum

from trainer.core.job import Json, JsonObject, Status


class _Row:
    """A row that can be printed as JSON."""

    def as_json(self) -> JsonObject:
        """Return the row as a JSON object: one key per field."""
        return {column.name: getattr(self, column.name) for column in fields(self)}  # type: ignore[arg-type]


@dataclass(frozen=True, kw_only=True)
class RunRow(_Row):
    """One run. `attempt` counts claims; `failures` counts lost attempts since the last progress."""

    id: str
    status: str
    run_name: str = "run"
    project_id: str | None = None
    step_id: str | None = None
    group: str | None = None  # runs that belong together, such as the trials of one search
    tags: tuple[str, ...] = ()
    data_yaml: str | None = None
    base_model: str | None = None
    configuration: Json = None
    priority: int = 0
    results: Json = None
    trained_model_url: str | None = None
    error_message: str | None = None
    created_by: str | None = None
    created_at: str | None = None
    updated_at: str | None = None
    started_at: str | None = None
    completed_at: str | None = None
    canceled_at: str | None = None
    worker_id: str | None = None
    heartbeat_at: str | None = None
    lease_expires_at: str | None = None
    not_before: str | None = None
    cancel_requested: bool = False
    finish_requested: bool = False
    attempt: int = 0
    max_attempts: int = 3
    failures: int = 0
    host_failures: Mapping[str, int] = field(default_factory=dict)  # worker id → failures of that worker's host
    checkpoint: Json = None
    progress_epoch: int = 0
    last_reported_epoch: int = 0
    last_reported_attempt: int = 0
    is_deployed: bool = False
    deployment_status: str | None = None
    deployment_date: str | None = None
    deployment_url: str | None = None

    @property
    def has_ended(self) -> bool:
        return self.status in (Status.COMPLETED, Status.FAILED, Status.CANCELED)


@dataclass(frozen=True, kw_only=True)
class WorkerRow(_Row):
    """One worker. `status_message` says why it is unhealthy; `hardware` holds the columns that describe its host."""

    worker_id: str
    status: str
    status_message: str | None = None
    last_seen: str | None = None
    created_at: str | None = None
    updated_at: str | None = None
    current_runs: int = 0
    version: str | None = None
    slots: int | None = None
    hardware: JsonObject = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class EventRow(_Row):
    """One event of a run's history; see `RunEvent`. From `seq` 1,000,000 on, the queue itself wrote it."""

    run_id: str
    attempt: int
    seq: int
    at: str
    kind: str
    data: Json


class RunOrder(StrEnum):
    """The order of a list of runs."""

    NEWEST = "newest"
    OLDEST = "oldest"
    CLAIM = "claim"  # the order in which queued runs are claimed: highest priority, then oldest


@dataclass(frozen=True, kw_only=True)
class RunFilter:
    """Which runs to list. An empty field selects every run; of `tags`, a run must have all."""

    status: tuple[Status, ...] = ()
    project_id: str | None = None
    group: str | None = None
    tags: tuple[str, ...] = ()
    worker_id: str | None = None
    created_by: str | None = None


ALL_RUNS = RunFilter()


@dataclass(frozen=True, kw_only=True)
class RunPage:
    """Part of a list of runs. `next` is the cursor of the following part, None after the last one."""

    runs: tuple[RunRow, ...]
    next: str | None = None
