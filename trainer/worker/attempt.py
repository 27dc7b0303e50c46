"""One attempt at one run: its steps, and how each way of leaving them becomes an outcome."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import structlog

from trainer.core.dataset import DatasetOrder, PreparedDataset
from trainer.core.errors import BadRequest, MachineFailed, Misconfigured, RunFailed, Unavailable, disk_failed
from trainer.core.events import CheckpointSaved, Event, Finished, Phase, PhaseStarted, Warned
from trainer.core.job import (
    Canceled,
    Checkpoint,
    Completed,
    Failed,
    Interrupted,
    Job,
    JsonObject,
    Outcome,
    Retry,
    RunRequest,
)
from trainer.core.plan import TrainPlan
from trainer.core.ports import Datasets, ObjectStore, Trainer, TrainingOrder, Weights
from trainer.core.progress import Progress
from trainer.core.results import Artifact
from trainer.core.stop import Stopped, StopReason, StopSignal
from trainer.disk.removal import remove_tree
from trainer.remote.retry import RetryPolicy, retrying
from trainer.worker import finished as finished_note
from trainer.worker.checkpoint_uploads import CheckpointUploads
from trainer.worker.health import Health
from trainer.worker.housekeeping import require_space
from trainer.worker.lease import Heartbeat
from trainer.worker.places import Places
from trainer.worker.publish import Publisher
from trainer.worker.record import Record
from trainer.worker.resume import checkpoint_to_resume
from trainer.worker.slots import SlotLoan
from trainer.worker.uploaded_checkpoints import UploadedCheckpoints

log = structlog.get_logger()

T = TypeVar("T")

# A finished model is worth waiting for: a day of a dead or misconfigured store, before the run goes back to the queue.
PUBLISH_PATIENCE = RetryPolicy(tries=100_000, first_wait=1.0, longest_wait=60.0, total_seconds=86_400)
# Before the training there is less to lose, and the slot is idle; an outage of minutes still costs no attempt.
FETCH_PATIENCE = RetryPolicy(tries=100_000, first_wait=1.0, longest_wait=15.0, total_seconds=300)


@dataclass(frozen=True, kw_only=True)
class RunTimes:
    """Seconds: how often checkpoints leave the host, and what a run may still take once it was stopped.

    Of `drain` the training has the first 40 % to keep its state, uploads end at 80 %, and the rest is the queue's.
    """

    checkpoint: float
    drain: float

    @property
    def keep_state(self) -> float:
        return 0.4 * self.drain

    @property
    def upload(self) -> float:
        return 0.8 * self.drain


@dataclass(frozen=True, kw_only=True)
class Workshop:
    """What every run of this service is made with."""

    datasets: Datasets
    weights: Weights
    trainer: Trainer
    store: ObjectStore
    artifacts_bucket: str
    parse: Callable[[RunRequest], TrainPlan]
    places: Places
    uploaded: UploadedCheckpoints
    times: RunTimes
    health: Health


class Attempt:
    """The steps of one attempt, in the order in which they are taken."""

    def __init__(
        self,
        workshop: Workshop,
        job: Job,
        slot: SlotLoan,
        stop: StopSignal,
        record: Record,
        progress: Progress,
        heartbeat: Heartbeat,
    ) -> None:
        self._do = workshop
        self._job = job
        self._slot = slot
        self._stop = stop
        self._record = record
        self._progress = progress
        self._heartbeat = heartbeat
        self._run_dir = workshop.places.run_dir(job)
        self._view = workshop.places.view(job)
        self._publisher = Publisher(workshop.store, workshop.artifacts_bucket)
        self._checkpoints = CheckpointUploads(
            job,
            self._run_dir,
            workshop.store,
            workshop.artifacts_bucket,
            workshop.uploaded,
            workshop.times.checkpoint,
            record.event,
            heartbeat.confirm,
            record.is_delivered,
        )

    def outcome(self) -> Outcome | None:
        """Do the work; None when the lease was lost."""
        try:
            finished = self._already_trained() or self._trained()
            self._slot.give_back()  # the next run trains while this one uploads
            return self._completed(finished)
        except Stopped as stopped:
            return self._stopped(stopped.reason)
        except BadRequest as error:
            return self._failed(error)
        except (RunFailed, MachineFailed) as error:
            return self._judged(error)
        except (Unavailable, Misconfigured) as error:
            return Retry(message=str(error))
        except OSError as error:
            return self._judged(disk_failed(error, f"This machine failed the run: {error}."))
        finally:
            self._slot.give_back()

    # ── the steps ──

    def _trained(self) -> Finished:
        self._record.event(PhaseStarted(phase=Phase.PREPARING))
        plan = self._do.parse(self._job.request)
        self._progress.expect(plan.epochs)
        for warning in plan.warnings:
            self._record.event(Warned(code="configuration", message=warning))
        dataset = self._fetched(lambda: self._prepared(plan))
        model = self._fetched(lambda: self._do.weights.resolve(plan.model, dataset.task, self._stop))
        require_space(self._run_dir, model)
        order = TrainingOrder(
            plan=plan,
            model=model,
            dataset=dataset,
            run_dir=self._run_dir,
            devices=self._devices(plan),
            resume=self._fetched(lambda: self._resume(plan)),
            told_epoch=self._job.told_epoch,
        )
        self._record.event(PhaseStarted(phase=Phase.STARTING))
        with self._checkpoints.on_a_timer(self._stop):
            finished = self._do.trainer.train(order, self._stop, self._child_event, self._record.output)
        return self._remember(finished, plan, dataset)

    def _prepared(self, plan: TrainPlan) -> PreparedDataset:
        order = dataset_order(self._job.id, plan)
        with contextlib.suppress(OSError):  # what is left is told by `prepare`
            remove_tree(self._view)
        dataset = self._do.datasets.prepare(order, self._view, self._stop, self._record.event)
        if replaced := plan.model_warning(dataset.task):
            self._record.event(Warned(code="model_replaced", message=replaced))
        return dataset

    def _devices(self, plan: TrainPlan) -> tuple[int, ...]:
        asked, given = len(plan.device or ()), len(self._slot.gpus)
        if given < asked:
            where = f"on {given} that this worker had free" if given else "on the CPU: this host has none"
            message = f"The run asks for GPU {list(plan.device or ())}; it trains {where}."
            self._record.event(Warned(code="fewer_gpus" if given else "no_gpu", message=message))
        return () if plan.device == () else self._slot.gpus

    def _resume(self, plan: TrainPlan) -> Path | None:
        found = checkpoint_to_resume(
            self._job,
            self._do.places.run_dirs(self._job),
            self._run_dir,
            self._do.store,
            self._do.artifacts_bucket,
            self._stop,
            self._record.event,
        )
        if found is None:
            return None
        path, epoch = found
        self._progress.expect(plan.epochs, epoch)
        self._record.event(Warned(code="resumed", message=f"Goes on after epoch {epoch}, from its checkpoint."))
        return path

    def _child_event(self, event: Event) -> None:
        if isinstance(event, CheckpointSaved):
            event = replace(event, key=None)  # what is in the bucket is for us to say
        self._checkpoints.saw(event)
        self._record.event(event)

    def _remember(self, finished: Finished, plan: TrainPlan, dataset: PreparedDataset) -> Finished:
        report: JsonObject = {**finished.report, "plan": plan.recorded(), "dataset": dataset.summary}
        report["metrics"] = {**report.get("metrics", {}), "epoch": report.get("epochs_completed", plan.epochs)}
        done = replace(finished, report=report)
        finished_note.remember(self._run_dir, done)
        return done

    def _already_trained(self) -> Finished | None:
        for run_dir in self._do.places.run_dirs(self._job):
            if finished := finished_note.recall(run_dir):
                self._run_dir = run_dir
                return finished
        return None

    def _completed(self, finished: Finished) -> Outcome:
        artifacts = self._published(PUBLISH_PATIENCE)
        best = Path(finished.best.path).name
        url = next((artifact.url for artifact in artifacts if artifact.name == best), None)
        results = {**finished.report, **self._listed(artifacts), "progress": self._progress.finished()}
        if self._stop.reason is StopReason.CANCELED:
            return Canceled(results=results)
        return Completed(results=results, trained_model_url=url)

    def _published(self, policy: RetryPolicy) -> list[Artifact]:
        self._record.event(PhaseStarted(phase=Phase.UPLOADING))
        told: set[str] = set()

        def publish() -> list[Artifact]:
            self._heartbeat.confirm(patience)
            try:
                return self._publisher.publish(
                    self._job,
                    self._run_dir,
                    self._record.log_path,
                    patience,
                    self._record.event,
                )
            except (Unavailable, Misconfigured) as error:
                self._tell_once(told, "upload_waits", f"The upload waits: {error}")
                raise Unavailable(str(error)) from error

        with self._stop.borrowed_time(self._do.times.upload) as patience:
            artifacts = retrying(publish, policy, patience)
        self._record.event(PhaseStarted(phase=Phase.ENDING))
        return artifacts

    def _fetched(self, fetch: Callable[[], T]) -> T:
        """What `fetch` returns, once whom it asks is there to answer."""
        told: set[str] = set()

        def ask() -> T:
            try:
                return fetch()
            except Unavailable as error:
                self._tell_once(told, "fetch_waits", f"The run waits: {error}")
                raise

        return retrying(ask, FETCH_PATIENCE, self._stop)

    def _tell_once(self, told: set[str], code: str, message: str) -> None:
        if message not in told:
            told.add(message)
            self._record.event(Warned(code=code, message=message))

    def _listed(self, artifacts: list[Artifact]) -> JsonObject:
        return {"artifacts": [artifact.as_json() for artifact in artifacts], "run_dir": str(self._run_dir)}

    # ── leaving early ──

    def _failed(self, error: Exception) -> Failed:
        return Failed(message=str(error), results=self._leave_behind())

    def _judged(self, error: RunFailed | MachineFailed) -> Outcome:
        """Whose fault it is. Asked while the slot is held, so that a sick host takes no other run meanwhile."""
        is_hosts = self._do.health.blames_host(self._job.id, error)
        if isinstance(error, RunFailed) and not is_hosts:
            return self._failed(error)
        return Retry(message=str(error), host_failed=is_hosts)

    def _stopped(self, reason: StopReason) -> Outcome | None:
        if reason is StopReason.LOST:
            return None
        if reason is StopReason.SHUTDOWN:
            return Interrupted(checkpoint=self._last_checkpoint())
        if reason is StopReason.CANCELED:
            return Canceled(results=self._leave_behind())
        return Retry(message="The run made no progress and was stopped.")

    def _last_checkpoint(self) -> Checkpoint | None:
        try:
            with self._stop.borrowed_time(self._do.times.upload) as patience:
                return self._checkpoints.send_newest(patience)
        except (Unavailable, Misconfigured, Stopped, OSError) as error:
            log.warning("the last checkpoint stays on this host", run_id=self._job.id, error=str(error))
            return None

    def _leave_behind(self) -> JsonObject:
        """Publish what exists of a run that will not complete; what cannot be sent soon stays on this host."""
        self._slot.give_back()
        try:
            policy = RetryPolicy(total_seconds=self._do.times.upload)
            return {**self._listed(self._published(policy)), **self._progress.as_json()}
        except (Unavailable, Stopped, MachineFailed, OSError) as error:
            log.warning("the artifacts of the run stay on this host", run_id=self._job.id, error=str(error))
            return {"run_dir": str(self._run_dir), **self._progress.as_json()}

    def clean_up(self) -> None:
        self._do.datasets.discard(self._view, keep=self._do.places.keep_views)


def dataset_order(run_id: str, plan: TrainPlan) -> DatasetOrder:
    """What the plan needs of its dataset."""
    return DatasetOrder(run_id=run_id, sources=plan.sources, task=plan.task, split=plan.split, imgsz=plan.imgsz)
