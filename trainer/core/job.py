"""Runs in the queue: their states, their lease, and the possible outcomes of an attempt.

    queued ──▶ running ──▶ completed | failed
      ▲  │        │  ╲
      │  │        │   ▶ canceling ──▶ canceled | completed | failed
      │  ▼        ▼
      │ canceled  canceled
      └── running (retry, drain, lease expired)

A user can requeue an ended run. The database then clears the outcome (trainer.guard_ending), and the run counts as
a new run.

A cancel request after the end of the training has no effect: `canceling → completed` is allowed. A user can
easily delete an unwanted model, but a lost model cannot be restored, and its training took GPU-hours.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal, TypeAlias

Json: TypeAlias = Any  # any JSON value, not validated yet
JsonObject: TypeAlias = dict[str, Any]


class Status(StrEnum):
    """The values of the `status` column."""

    QUEUED = "queued"
    RUNNING = "running"
    CANCELING = "canceling"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELED = "canceled"

    @property
    def is_terminal(self) -> bool:
        return not TRANSITIONS[self]


# queued → completed|failed: a late outcome from a worker whose lease expired, before another worker claimed the run.
TRANSITIONS: Mapping[Status, frozenset[Status]] = {
    Status.QUEUED: frozenset({Status.RUNNING, Status.CANCELED, Status.COMPLETED, Status.FAILED}),
    Status.RUNNING: frozenset(
        {Status.QUEUED, Status.CANCELING, Status.COMPLETED, Status.FAILED, Status.CANCELED},
    ),
    Status.CANCELING: frozenset({Status.COMPLETED, Status.FAILED, Status.CANCELED}),
    Status.COMPLETED: frozenset(),
    Status.FAILED: frozenset(),
    Status.CANCELED: frozenset(),
}


ENDED = frozenset(str(status) for status in Status if status.is_terminal)


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A resumable training state.

    `epoch` counts finished epochs (1-based). `key` is the object's key in the artifacts bucket, or None while the
    checkpoint is only on the worker's disk. `sha256` and `bytes` describe the `.pt` file.
    """

    epoch: int
    sha256: str
    bytes: int
    key: str | None = None


@dataclass(frozen=True, kw_only=True)
class RunRequest:
    """An unparsed request for a run; `request.plan_of` interprets it.

    `group` and `tags` are only for lists and searches of runs. `unreadable` is the reason why the row cannot be read,
    or None; `request.plan_of` rejects the run with this reason.
    """

    data_yaml: str | None
    base_model: str | None = None
    configuration: Json = None
    name: str = "run"
    priority: int = 0
    group: str | None = None
    tags: tuple[str, ...] = ()
    unreadable: str | None = None


@dataclass(frozen=True, kw_only=True)
class Requester:
    """The author of a row. Rows without `created_by` belong to the service itself.

    The author chooses `project_id` freely; only `created_by` is checked by the database.
    """

    created_by: str | None = None
    project_id: str | None = None


@dataclass(frozen=True, kw_only=True)
class Job:
    """A run that `Queue.claim` or `Queue.peek` returned.

    `attempt` is the number of the claim of this run, from 1, and never repeats. It is part of the key of every artifact
    and event, so no attempt can overwrite the data of another attempt. The queue limits the number of lost attempts.
    """

    id: str
    request: RunRequest
    attempt: int = 0
    checkpoint: Checkpoint | None = None
    last_reported_epoch: int = 0  # last epoch in the history of the run
    last_reported_attempt: int = 0  # attempt that reported this epoch
    gpus: int = 1  # number of GPUs that the run needs at the same time
    created_by: str | None = None  # the user who created the run; None: the service itself
    created_at: str | None = None  # in UTC; with `created_by`, it tells two rows with the same ID apart
    project_id: str | None = None
    waited: float | None = None  # seconds between insert and first claim, by the clock of the queue

    @property
    def requester(self) -> Requester:
        return Requester(created_by=self.created_by, project_id=self.project_id)


@dataclass(frozen=True, kw_only=True)
class Lease:
    """The right to execute a run until the database ends the lease.

    `claim_id` is the fencing token: every later write contains it. `trusted_until` is a local time (core/boottime.py),
    computed from the time before the claim. After `trusted_until`, only the database knows the holder of the lease.
    """

    job: Job
    claim_id: str
    worker_id: str
    seconds: float
    trusted_until: float


class Verdict(StrEnum):
    """The answer of the queue to a heartbeat."""

    OK = "ok"
    CANCEL = "cancel"  # stop and end the run as canceled
    FINISH = "finish"  # end the training at the next epoch and complete the run
    LOST = "lost"  # the lease is lost: another worker claimed the run, or the run was ended or deleted


@dataclass(frozen=True, kw_only=True)
class RunEvent:
    """One event in the history of a run, identified by `(run_id, attempt, seq)` and stored once.

    `at` is an ISO 8601 time in UTC. `kind` is the kind of the event (core/events.py), and `data` contains its fields.
    """

    seq: int
    at: str
    kind: str
    data: JsonObject


Beat: TypeAlias = Callable[[Lease, JsonObject | None, Sequence[RunEvent]], Verdict]  # see `Queue.beat`


@dataclass(frozen=True, kw_only=True)
class Completed:
    """The model is trained and published."""

    results: JsonObject
    trained_model_url: str | None
    kind: Literal["completed"] = "completed"


@dataclass(frozen=True, kw_only=True)
class Failed:
    """The run failed because of its request or its training. Another attempt would fail in the same way."""

    message: str
    results: JsonObject = field(default_factory=dict)
    kind: Literal["failed"] = "failed"


@dataclass(frozen=True, kw_only=True)
class Retry:
    """The attempt failed, but another attempt may succeed. The queue requeues the run if attempts remain.

    `host_failed` says that the host of the worker caused the failure. Only the first such failure of each worker counts
    as a lost attempt.
    """

    message: str
    results: JsonObject = field(default_factory=dict)
    host_failed: bool = False
    kind: Literal["retry"] = "retry"


@dataclass(frozen=True, kw_only=True)
class Canceled:
    """The run was stopped on request. The existing files were kept."""

    message: str = "Canceled by user."
    results: JsonObject = field(default_factory=dict)
    kind: Literal["canceled"] = "canceled"


@dataclass(frozen=True, kw_only=True)
class Interrupted:
    """The worker shuts down, and any worker can resume from the checkpoint. Not counted as a lost attempt."""

    checkpoint: Checkpoint | None
    results: JsonObject = field(default_factory=dict)
    kind: Literal["interrupted"] = "interrupted"


Outcome: TypeAlias = Completed | Failed | Retry | Canceled | Interrupted
