"""What a run is to its queue: its states, who holds it, and how an attempt at it can end.

    queued ──▶ running ──▶ completed | failed
      ▲  │        │  ╲
      │  │        │   ▶ canceling ──▶ canceled | completed | failed
      │  ▼        ▼
      │ canceled  canceled
      └── running (retry, drain, lease expired)

A user may queue an ended run again. The database then clears what is left of its end (trainer.guard_ending), and the
run counts as a new one.

A cancel that arrives when the model is already finished loses: `canceling → completed` is legal, because a
finished model cost GPU-hours and can be deleted in a second, while the reverse cannot be undone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal, TypeAlias

Json: TypeAlias = Any  # any JSON value, not looked at yet
JsonObject: TypeAlias = dict[str, Any]


class Status(StrEnum):
    """The words that the row's `status` column may hold."""

    QUEUED = "queued"
    RUNNING = "running"
    CANCELING = "canceling"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELED = "canceled"

    @property
    def is_terminal(self) -> bool:
        return not TRANSITIONS[self]


# queued → completed|failed is the late ending of a worker whose lease expired and whom nobody replaced.
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

    `epoch` counts finished epochs (1-based); `key` is its place in the artifacts bucket, None while it is only on
    the disk of the worker that wrote it. `sha256` and `bytes` are those of the `.pt` file.
    """

    epoch: int
    sha256: str
    bytes: int
    key: str | None = None


@dataclass(frozen=True, kw_only=True)
class RunRequest:
    """What somebody asked for, unparsed: see `request.plan_of` for what it means.

    `unreadable` says why its row cannot be served at all; the plan is then refused with that sentence.
    """

    data_yaml: str | None
    base_model: str | None = None
    configuration: Json = None
    name: str = "run"
    priority: int = 0
    unreadable: str | None = None


@dataclass(frozen=True, kw_only=True)
class Job:
    """A claimed or peeked run.

    `attempt` numbers the claims of this run from 1 and never repeats: it names the run's folder in the bucket and
    its events, so no two claims can write over each other. How many attempts may be *lost* is the queue's business.
    """

    id: str
    request: RunRequest
    attempt: int = 0
    checkpoint: Checkpoint | None = None
    last_reported_epoch: int = 0  # the epoch that the run's history told last
    last_reported_attempt: int = 0  # the attempt that told it
    gpus: int = 1  # accelerators that the run needs at once
    waited: float | None = None  # seconds between insert and first claim, by the queue's clock


@dataclass(frozen=True, kw_only=True)
class Lease:
    """The right to work on a run, for as long as the database says so.

    `claim_id` is the fence: every later write carries it. `trusted_until` is a local time (core/boottime.py), taken
    before the claim was sent; after it, only the database knows who owns the run.
    """

    job: Job
    claim_id: str
    worker_id: str
    seconds: float
    trusted_until: float


class Verdict(StrEnum):
    """The queue's answer to a beat, an ending or a release."""

    OK = "ok"
    CANCEL = "cancel"  # stop and end the run as canceled
    FINISH = "finish"  # end the training at the next epoch and complete the run
    LOST = "lost"  # the run is not ours any more (taken over, ended or deleted by somebody else)


@dataclass(frozen=True, kw_only=True)
class RunEvent:
    """One line of a run's history, stored once: `(run_id, attempt, seq)` is its identity.

    `at` is ISO 8601 in UTC; `kind` is an event's kind (core/events.py), `data` its fields.
    """

    seq: int
    at: str
    kind: str
    data: JsonObject


# ── how an attempt ends ──


@dataclass(frozen=True, kw_only=True)
class Completed:
    """The model is trained and published."""

    results: JsonObject
    trained_model_url: str | None
    kind: Literal["completed"] = "completed"


@dataclass(frozen=True, kw_only=True)
class Failed:
    """The request or the training is at fault; another attempt would fail the same way."""

    message: str
    results: JsonObject = field(default_factory=dict)
    kind: Literal["failed"] = "failed"


@dataclass(frozen=True, kw_only=True)
class Retry:
    """The machine is at fault; the queue decides whether an attempt is left.

    `host_failed` says that the worker's host is sick. The first such failure of each worker is a lost attempt, later
    ones of the same worker are not.
    """

    message: str
    results: JsonObject = field(default_factory=dict)
    host_failed: bool = False
    kind: Literal["retry"] = "retry"


@dataclass(frozen=True, kw_only=True)
class Canceled:
    """Stopped on request; what exists was kept."""

    message: str = "Canceled by user."
    results: JsonObject = field(default_factory=dict)
    kind: Literal["canceled"] = "canceled"


@dataclass(frozen=True, kw_only=True)
class Interrupted:
    """This worker is going away; any worker may go on from the checkpoint. Not counted as an attempt lost."""

    checkpoint: Checkpoint | None
    results: JsonObject = field(default_factory=dict)
    kind: Literal["interrupted"] = "interrupted"


Outcome: TypeAlias = Completed | Failed | Retry | Canceled | Interrupted
