"""Rows of runs, workers and events for users of the queue.

A row never contains the fencing token (`claim_id`), because the fencing token allows writes in the name of the worker.
Times are ISO 8601 text in UTC. Other programs can write any value into a column, so `results`, `configuration` and
`checkpoint` are not validated.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from trainer.core.job import ENDED, Json, JsonObject, Status


@dataclass(frozen=True, kw_only=True)
class RunRow:
    """One run. `attempt` is the number of claims. `failures` is the number of lost attempts since the last progress."""

    id: str
    status: str
    run_name: str = "run"
    project_id: str | None = None
    step_id: str | None = None
    group: str | None = None  # name that several runs share, for example the runs of one search
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
    host_failures: Mapping[str, int] = field(default_factory=dict)  # worker ID → number of failures of its host
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
        return self.status in ENDED


@dataclass(frozen=True, kw_only=True)
class WorkerRow:
    """One worker. `status_message` is the reason if the worker is unhealthy. `hardware` describes its host."""

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
class EventRow:
    """One event in the history of a run; see `RunEvent`. Events from the queue have a `seq` of 1,000,000 or more."""

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
    CLAIM = "claim"  # claim order of queued runs: highest priority first, then oldest first


@dataclass(frozen=True, kw_only=True)
class RunFilter:
    """The filter of a list of runs. An empty field selects every run. Only runs with all `tags` match."""

    status: tuple[Status, ...] = ()
    project_id: str | None = None
    group: str | None = None
    tags: tuple[str, ...] = ()
    worker_id: str | None = None
    created_by: str | None = None


ALL_RUNS = RunFilter()


@dataclass(frozen=True, kw_only=True)
class RunPage:
    """A page of a list of runs. `next` is the cursor of the next page, or None for the last page."""

    runs: tuple[RunRow, ...]
    next: str | None = None
