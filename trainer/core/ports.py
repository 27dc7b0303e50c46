"""The interfaces between the packages of the service. Only `wiring/` imports their implementations.

All methods block, and raise the errors of core/errors.py. Any other exception is a bug.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Protocol, TypeAlias

from trainer.core.dataset import DatasetOrder, ObjectRef, PreparedDataset, Task
from trainer.core.events import Event, Finished
from trainer.core.job import Job, JsonObject, Lease, Outcome, Requester, RunEvent, RunRequest, Status, Verdict
from trainer.core.model import ModelRef
from trainer.core.plan import TrainPlan
from trainer.core.run_row import ALL_RUNS, EventRow, RunFilter, RunOrder, RunPage, RunRow, WorkerRow
from trainer.core.stop import StopSignal


@dataclass(frozen=True, kw_only=True)
class Worker:
    """A worker that claims runs.

    `capabilities` are the free resources that a run can require (`gpus`: number of GPUs, `gpu_memory_gb`: memory of the
    smallest GPU). `hardware` fills the columns of `trainer_workers` (gpu_name, gpu_memory_gb, cpu_model, ram_gb, …).
    """

    id: str
    capabilities: Mapping[str, float] = field(default_factory=dict)
    hardware: JsonObject = field(default_factory=dict)


class Queue(Protocol):
    """The interface of the queue for workers. Each call is atomic and idempotent, so a retry is safe.

    Raises `Unavailable` (retry later) or `Misconfigured` (an operator has to fix the configuration).
    """

    def claim(self, worker: Worker, claim_id: str, lease_seconds: float) -> Lease | None:
        """Requeue or end runs with expired leases. Claim the next suitable run, if any. Mark the worker as online."""

    def peek(self, worker: Worker) -> Job | None:
        """Return the run that `claim` would return now, without a claim."""

    def beat(self, lease: Lease, progress: JsonObject | None, events: Sequence[RunEvent]) -> Verdict:
        """Renew the lease, merge `progress` into the row, and store each event once. Report that the worker is busy.

        An expired lease is also renewed, unless another worker claimed the run. A `checkpoint` event with a new highest
        epoch resets the count of lost attempts. A `checkpoint` event with a key becomes the checkpoint of the row. An
        `epoch` event sets `last_reported_epoch` of the row.
        """

    def finish(self, lease: Lease, outcome: Outcome, events: Sequence[RunEvent]) -> Status | None:
        """Write the outcome once. Return the current status of the row, even if the outcome was written before.

        Return None if the lease is lost. In this case nothing was written.

        `Retry` requeues the run with backoff while attempts remain; otherwise the run fails. With `host_failed`, only
        the first failure of each worker since the last progress counts as a lost attempt. This worker can claim the run
        20 s later than other workers. `Interrupted` requeues the run immediately and is not a lost attempt.
        """

    def report(self, worker: Worker, problem: str | None) -> None:
        """Report that the worker is alive. A `problem` shows the worker as unhealthy until its next claim."""


class RunTable(Protocol):
    """The interface of the queue for users: the command line, an API, a search.

    A method that changes a run returns the changed row, or None for an unknown ID. Raises `Unavailable`,
    `Misconfigured`, and `BadRequest` for values that the table cannot store.
    """

    def enqueue(self, request: RunRequest, id: str | None = None) -> str:  # noqa: A002 the column's name
        """Insert a queued run and return its ID.

        If `id` (a UUID) is given, the call is idempotent: a second call with the same request and ID inserts no run.
        Raises `Conflict` if the ID belongs to another request.
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
        """Return a page of up to `limit` (1 to 1000) wanted runs, with the cursor of the next page.

        `after` is the cursor of the requested page. Runs that are inserted between two calls do not shift the pages.
        """

    def cancel(self, run_id: str) -> RunRow | None:
        """Cancel a queued run immediately. For a running run, store a cancel request for its worker."""

    def request_finish(self, run_id: str) -> RunRow | None:
        """Request that a running run stops after the current epoch and completes."""

    def requeue(self, run_id: str) -> RunRow | None:
        """Requeue an ended run. A run that has not ended is not changed."""

    def set_priority(self, run_id: str, priority: int) -> RunRow | None:
        """Change the priority for the next claim of the run."""

    def delete(self, run_id: str) -> bool:
        """Delete a run and its events, not its artifacts. Return whether it existed. Raises `Conflict` for a leased run."""

    def workers(self) -> Sequence[WorkerRow]:
        """Return all workers, the most recently seen worker first."""

    def events(self, run_id: str, after: tuple[int, int] = (0, 0)) -> Sequence[EventRow]:
        """Return the events of the run after the pair `after` (attempt, seq), in order."""


@dataclass(frozen=True, kw_only=True)
class ObjectInfo:
    """The description of a stored object: `ref` names the store, `etag` identifies the content, `bytes` is the size."""

    ref: ObjectRef
    bytes: int
    etag: str


@dataclass(frozen=True, kw_only=True)
class StoredObject:
    """An uploaded object: its reference with the name of the store, and its URL (public or signed)."""

    ref: ObjectRef
    bytes: int
    url: str


OnBytes: TypeAlias = Callable[[int], None]  # argument: number of bytes since the last call


class ObjectStore(Protocol):
    """The store of objects in buckets: datasets are downloaded, artifacts are uploaded.

    A reference must name this store, or no store.
    Raises ObjectMissing, BadRequest, Unavailable, Misconfigured, Stopped.
    """

    @property
    def name(self) -> str:
        """The value of `ObjectRef.store` for this store."""

    def key(self, name: str) -> str:
        """Return the key for the file name `name` (a relative path with `/`), escaped for this store.

        Different names have different keys. Keys in references are already escaped.
        """

    def list(self, folder: ObjectRef, stop: StopSignal | None = None) -> Iterator[ObjectInfo]:
        """Yield every object inside `folder`, recursively. Raises an error if the list is not complete.

        `stop` ends the wait for the store. Without `stop`, the shutdown of the service ends the wait.
        """

    def stat(self, ref: ObjectRef) -> ObjectInfo:
        """Return the size and the etag of an object."""

    def download(
        self,
        ref: ObjectRef,
        path: Path,
        stop: StopSignal,
        *,
        expected: ObjectInfo | None = None,
        on_bytes: OnBytes | None = None,
    ) -> ObjectInfo:
        """Download the object to `path` if it is complete and matches `expected`. Resumes a failed download."""

    def upload(
        self,
        path: Path,
        ref: ObjectRef,
        stop: StopSignal,
        *,
        content_type: str | None = None,
        on_bytes: OnBytes | None = None,
    ) -> StoredObject:
        """Upload a file and replace an existing object. Resumes an interrupted upload."""

    def delete(self, ref: ObjectRef) -> None:
        """Delete the object. A missing object is not an error."""

    def url(self, ref: ObjectRef) -> str:
        """Return a URL for browsers: public for a public bucket, otherwise signed for a limited time."""


class Datasets(Protocol):
    """Prepares the dataset of a row as a folder for a YOLO training."""

    def prepare(
        self, order: DatasetOrder, folder: Path, stop: StopSignal, on_event: Callable[[Event], None]
    ) -> PreparedDataset:
        """Fetch and check the dataset; create its view in the new `folder`. Raises DatasetError, Unavailable."""

    def prefetch(self, order: DatasetOrder, stop: StopSignal) -> None:
        """Download the files for `prepare` into the caches. Raises the errors of `prepare`."""

    def warm(self) -> object:
        """Prestart the process of the next `prepare` or `prefetch`, unless one waits already."""

    def discard(self, folder: Path, *, keep: bool = False) -> None:
        """Copy reusable files of an ended run into the caches. Remove `folder` unless `keep` is set."""


class Weights(Protocol):
    """Finds the file of a model for the training process."""

    def resolve(self, model: ModelRef, task: Task, stop: StopSignal, requester: Requester) -> Path:
        """Return the weights or the architecture YAML for a row of `requester`. Raises BadRequest, Unavailable."""


@dataclass(frozen=True, kw_only=True)
class TrainingOrder:
    """The training order: the complete input of a training process, without secrets."""

    plan: TrainPlan
    model: Path
    dataset: PreparedDataset
    run_dir: Path  # absolute; `save_dir` of Ultralytics; the training process writes its files there
    devices: tuple[int, ...] = ()  # GPU indices of this host; empty: CPU
    resume: Path | None = None  # a verified checkpoint to resume from
    best_of: Path | None = None  # a verified checkpoint; the training starts from its best weights instead of `model`
    setup: JsonObject | None = None  # the `Setup` that each checkpoint records (core/resumption.py)
    last_reported_epoch: int = 0  # last epoch in the history; the later epochs in `resume` are reported first
    is_test: bool = False  # test the installation and the GPUs; the model and the dataset are not opened


class Trainer(Protocol):
    """Trains in a separate process."""

    def train(
        self,
        order: TrainingOrder,
        stop: StopSignal,
        on_event: Callable[[Event], None],
        on_line: Callable[[str], None],
    ) -> Finished:
        """Train to the end. For each event and output line, `on_event` or `on_line` is called from another thread.

        Raises `Stopped` if `stop` ended the training (its checkpoints were reported before), or `RunFailed` or
        `MachineFailed` with a diagnosis. After the call, no process of the training is left.
        """

    def test(self, devices: Sequence[int]) -> str | None:
        """Start a process without a run that uses each GPU in `devices`. Return the problem of this host, or None."""

    def close(self) -> None:
        """End the prestarted processes, which have no training order."""


class Delivery(StrEnum):
    """The result of the delivery of an outcome to the queue."""

    ACCEPTED = "accepted"
    LOST = "lost"  # another worker has the lease, or the run was ended or deleted: nothing was written
    PENDING = "pending"  # no answer before the shutdown of this process; the next process delivers the outcome


@dataclass(frozen=True, kw_only=True)
class AttemptEnd:
    """The end of an attempt: its outcome and the result of the delivery.

    `outcome` is None if the lease was lost before the attempt ended. `status` is the new status of the row if the
    outcome was accepted, else None. After a `Retry`, the status can be `queued` or `failed`.
    """

    outcome: Outcome | None
    delivery: Delivery
    status: Status | None = None


class Reporter(Protocol):
    """Receives the events of runs, for example to send them to another system.

    Each reporter is called from its own thread, so a call can block. An exception does not affect the run.
    """

    def started(self, job: Job) -> None:
        """An attempt started."""

    def event(self, job: Job, event: Event) -> None:
        """An event of the attempt. Progress events can be dropped if the reporter is slow."""

    def ended(self, job: Job, end: AttemptEnd) -> None:
        """The attempt ended. This method is called once per attempt, even if the lease was lost.

        After `PENDING`, the process that delivers the outcome calls this method again, with an empty `job.request`.
        """
