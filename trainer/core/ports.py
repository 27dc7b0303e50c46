"""The interfaces between the rooms of the service. Only `wiring/` knows their implementations.

All methods block. They raise the errors of core/errors.py; any other exception is a programming error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Protocol, TypeAlias

from trainer.core.dataset import DatasetOrder, ObjectRef, PreparedDataset, Task
from trainer.core.events import Event, Finished
from trainer.core.job import Job, JsonObject, Lease, Outcome, RunEvent, RunRequest, Status, Verdict
from trainer.core.model import ModelRef
from trainer.core.plan import TrainPlan
from trainer.core.run_row import ALL_RUNS, EventRow, RunFilter, RunOrder, RunPage, RunRow, WorkerRow
from trainer.core.stop import StopSignal


@dataclass(frozen=True, kw_only=True)
class Worker:
    """A worker that asks for runs.

    `capabilities` is what a run may require and is free now (`gpus`: number of accelerators, `gpu_memory_gb`: memory of the
    smallest). `hardware` fills the columns of `trainer_workers` (gpu_name, gpu_memory_gb, cpu_model, ram_gb, …).
    """

    id: str
    capabilities: Mapping[str, float] = field(default_factory=dict)
    hardware: JsonObject = field(default_factory=dict)


class Queue(Protocol):
    """The queue as the worker sees it. Each call is atomic and idempotent: it may be repeated after a lost response.

    Raises `Unavailable` (retry later) or `Misconfigured` (an operator has to fix the configuration).
    """

    def claim(self, worker: Worker, claim_id: str, lease_seconds: float) -> Lease | None:
        """Settle expired runs, then claim the next run that `worker` can serve, or None. Reports the worker online."""

    def peek(self, worker: Worker) -> Job | None:
        """Return the run that `claim` would return now, without claiming it."""

    def beat(self, lease: Lease, progress: JsonObject | None, events: Sequence[RunEvent]) -> Verdict:
        """Extend the lease, merge `progress` into the row's results, store each event once. Reports the worker busy.

        Also extends an expired lease if no other worker claimed the run. A `checkpoint` event with a new highest epoch
        resets the count of lost attempts; one with a key becomes the row's checkpoint. An `epoch` event sets the row's
        `last_reported_epoch`.
        """

    def finish(self, lease: Lease, outcome: Outcome, events: Sequence[RunEvent]) -> Status | None:
        """Write the outcome once. Return the current status of the row, also when the outcome was written before.

        Return None when the lease was lost: then nothing was written.

        `Retry` requeues the run with backoff while attempts remain, and fails it otherwise. With `host_failed`, only the
        first failure of each worker since the last progress counts as a lost attempt. This worker gets the run 20 s later
        than others. `Interrupted` requeues the run at once and counts no attempt.
        """

    def report(self, worker: Worker, problem: str | None) -> None:
        """Report that the worker is alive. With `problem`, the worker is shown as unhealthy until its next claim."""


class RunTable(Protocol):
    """The same table as its users see it: the command line, an API, a search.

    A method that changes a run returns the row after the change, or None for an unknown id. Raises `Unavailable`,
    `Misconfigured`, and `BadRequest` for values that the table cannot hold.
    """

    def enqueue(self, request: RunRequest, id: str | None = None) -> str:  # noqa: A002 the column's name
        """Insert a queued run and return its id.

        With `id` (a UUID) the call is idempotent: the same request under the same id inserts nothing. Raises `Conflict`
        when the id belongs to another request.
        """

    def get(self, run_id: str) -> RunRow | None:
        """Return the run, or None."""

    def list(
        self,
        wanted: RunFilter = ALL_RUNS,
        *,
        order: RunOrder = RunOrder.NEWEST,
        limit: int = 100,
        after: str | None = None,
    ) -> RunPage:
        """Return up to `limit` (1 to 1000) of the wanted runs, and the cursor of the next page.

        `after` is the cursor of the page before. Runs inserted since do not shift the pages.
        """

    def cancel(self, run_id: str) -> RunRow | None:
        """Cancel a queued run at once, and ask a running one to stop, as the web app does."""

    def request_finish(self, run_id: str) -> RunRow | None:
        """Ask a running run to stop after the current epoch and complete."""

    def requeue(self, run_id: str) -> RunRow | None:
        """Queue an ended run again; any other run stays as it is."""

    def set_priority(self, run_id: str, priority: int) -> RunRow | None:
        """Change the priority; it decides when the run is claimed the next time."""

    def delete(self, run_id: str) -> bool:
        """Delete a run and its events, and return whether it existed. Its artifacts stay in the bucket.

        Raises `Conflict` while a worker holds a lease on the run.
        """

    def workers(self) -> Sequence[WorkerRow]:
        """Return all workers, the last seen first."""

    def events(self, run_id: str, after: tuple[int, int] = (0, 0)) -> Sequence[EventRow]:
        """Return the run's events in order, starting after the given (attempt, seq)."""


@dataclass(frozen=True, kw_only=True)
class ObjectInfo:
    """An object as its store describes it: `ref` names the store, `etag` identifies the content, `bytes` is its size."""

    ref: ObjectRef
    bytes: int
    etag: str


@dataclass(frozen=True, kw_only=True)
class StoredObject:
    """An uploaded object: its reference, with the store's name, and a URL (public or signed, depending on the bucket)."""

    ref: ObjectRef
    bytes: int
    url: str


OnBytes: TypeAlias = Callable[[int], None]  # called with the number of bytes moved since the last call


class ObjectStore(Protocol):
    """Objects in buckets: datasets are downloaded, artifacts uploaded.

    A reference must name this store, or no store. Raises ObjectMissing, BadRequest, Unavailable, Misconfigured, Stopped.
    """

    @property
    def name(self) -> str:
        """The name of this store in references."""

    def key(self, name: str) -> str:
        """Return the key for a file called `name` (a relative path with `/`), escaped as this store needs it.

        Different names have different keys. Keys in references are never escaped again.
        """

    def list(self, folder: ObjectRef, stop: StopSignal | None = None) -> Iterator[ObjectInfo]:
        """Yield every object inside `folder`, recursively. Raises rather than leaving out a part.

        `stop` ends the wait for the store; without it, the shutdown of the service does.
        """

    def stat(self, ref: ObjectRef) -> ObjectInfo:
        """Return the size and the identity of an object."""

    def download(
        self,
        ref: ObjectRef,
        path: Path,
        stop: StopSignal,
        *,
        expected: ObjectInfo | None = None,
        on_bytes: OnBytes | None = None,
    ) -> ObjectInfo:
        """Stream the object to `path`, which appears only when complete and as `expected`. Resumes an interrupted download."""

    def upload(
        self,
        path: Path,
        ref: ObjectRef,
        stop: StopSignal,
        *,
        content_type: str | None = None,
        on_bytes: OnBytes | None = None,
    ) -> StoredObject:
        """Stream a file into the object and replace what was there. Resumes an interrupted upload."""

    def delete(self, ref: ObjectRef) -> None:
        """Delete the object; a missing object is not an error."""

    def url(self, ref: ObjectRef) -> str:
        """Return a URL that a browser can open: public if the bucket is, otherwise signed for a limited time."""


class Datasets(Protocol):
    """From the strings in a row to a folder that YOLO can train on."""

    def prepare(
        self,
        order: DatasetOrder,
        view: Path,
        stop: StopSignal,
        on_event: Callable[[Event], None],
    ) -> PreparedDataset:
        """Fetch, recognize, convert, validate and link into the new folder `view`. Raises DatasetError, Unavailable."""

    def prefetch(self, order: DatasetOrder, stop: StopSignal) -> None:
        """Bring what `prepare` would need into the caches; nothing else is changed. Raises what `prepare` raises."""

    def discard(self, view: Path, *, keep: bool = False) -> None:
        """Move what later runs can use from a finished run's view to the caches. Remove the view unless `keep`."""


class Weights(Protocol):
    """From a model's name to a file that the child may load."""

    def resolve(self, model: ModelRef, task: Task, stop: StopSignal) -> Path:
        """The file (weights or architecture YAML) for `model`, fetched if need be. Raises BadRequest, Unavailable."""


@dataclass(frozen=True, kw_only=True)
class TrainingOrder:
    """Everything that the training process needs. It contains no secrets."""

    plan: TrainPlan
    model: Path
    dataset: PreparedDataset
    run_dir: Path  # absolute; Ultralytics' save_dir
    devices: tuple[int, ...] = ()  # GPU indices of this host; empty: CPU
    resume: Path | None = None  # a verified checkpoint to resume from
    best_of: Path | None = None  # a verified checkpoint whose best weights are trained instead of `model`
    setup: JsonObject | None = None  # what each checkpoint records of its training (core/resumption.py)
    last_reported_epoch: int = 0  # the last epoch in the run's history; the child reports those between it and `resume`


class Trainer(Protocol):
    """Trains in a process of its own."""

    def train(
        self,
        order: TrainingOrder,
        stop: StopSignal,
        on_event: Callable[[Event], None],
        on_line: Callable[[str], None],
    ) -> Finished:
        """Train to the end. `on_event` and `on_line` are called from other threads, as events and lines arrive.

        Raises `Stopped` when `stop` ended the training (its checkpoints were reported before), else `RunFailed` or
        `MachineFailed` with a diagnosis. No process of the training is left when it returns or raises.
        """

    def close(self) -> None:
        """End prepared processes that have no order yet."""


class Delivery(StrEnum):
    """What the queue answered to an outcome."""

    ACCEPTED = "accepted"
    LOST = "lost"  # another worker has the lease, or the run was ended or deleted meanwhile: nothing was written
    PENDING = "pending"  # no answer before this process shut down; the next process delivers the outcome


@dataclass(frozen=True, kw_only=True)
class AttemptEnd:
    """How an attempt ended, once the queue has answered.

    `outcome` is None when the lease was lost before there was an outcome. `status` is the row's status after it was
    written, None unless it was accepted: a `Retry` may be `queued` or `failed`.
    """

    outcome: Outcome | None
    delivery: Delivery
    status: Status | None = None


class Reporter(Protocol):
    """Receives what happens in runs, for example to send it to another system.

    Each reporter is called from a thread of its own, so it may block. It may raise; the run is not affected.
    """

    def started(self, job: Job) -> None:
        """An attempt started."""

    def event(self, job: Job, event: Event) -> None:
        """An event of the attempt. Progress events may be left out when the reporter is slow."""

    def ended(self, job: Job, end: AttemptEnd) -> None:
        """The attempt ended, and the queue has answered. It is called once, also for a lost lease.

        With `PENDING` it is called again by the process that delivers the outcome; `job.request` is empty there.
        """
