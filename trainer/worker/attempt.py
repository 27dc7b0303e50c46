"""One attempt at one run: its steps, and how each way of leaving them becomes an outcome."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path

import structlog

from trainer.core.dataset import PreparedDataset
from trainer.core.errors import (
    BadRequest,
    HostUnfit,
    MachineFailed,
    RunFailed,
    TrainerError,
    disk_failed,
)
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
)
from trainer.core.plan import TrainPlan
from trainer.core.ports import TrainingOrder
from trainer.core.progress import Progress
from trainer.core.resumption import Setup
from trainer.core.stop import Stopped, StopReason, StopSignal
from trainer.disk.removal import remove_tree
from trainer.worker import finished as finished_marker
from trainer.worker.artifacts import Artifacts, listed
from trainer.worker.checkpoint_uploads import CheckpointUploads
from trainer.worker.fetching import dataset_order, fetched
from trainer.worker.housekeeping import require_space
from trainer.worker.lease import Heartbeat
from trainer.worker.places import attempt_of
from trainer.worker.publish import Publisher, artifact_name
from trainer.worker.record import Record
from trainer.worker.resume import Checkpoints, continued
from trainer.worker.slots import SlotLoan
from trainer.worker.workshop import Workshop

log = structlog.get_logger()


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
        publisher = Publisher(workshop.store, workshop.artifacts_bucket, job)
        self._artifacts = Artifacts(publisher, record, heartbeat, stop, workshop.times.upload)
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
        except TrainerError as error:
            return Retry(message=str(error), results=self.salvage())
        except OSError as error:
            return self._judged(disk_failed(error, f"This machine failed the run: {error}."))
        finally:
            self._slot.give_back()

    # ── the steps ──

    def _trained(self) -> Finished:
        self._record.event(PhaseStarted(phase=Phase.PREPARING))
        self._record.require_disk()
        plan = self._do.parse(self._job.request)
        self._progress.expect(plan.epochs)
        for warning in plan.warnings:
            self._record.event(Warned(code="configuration", message=warning))
        dataset = fetched(lambda: self._prepared(plan), self._record, self._stop)
        model = fetched(lambda: self._do.weights.resolve(plan.model, dataset.task, self._stop), self._record, self._stop)
        require_space(self._run_dir, model)
        setup = Setup.of(plan, dataset)
        order = TrainingOrder(
            plan=plan,
            model=model,
            dataset=dataset,
            run_dir=self._run_dir,
            devices=self._devices(plan),
            setup=setup.as_json(),
            told_epoch=self._job.told_epoch,
        )
        order = fetched(lambda: self._from_checkpoint(order, setup), self._record, self._stop)
        self._record.event(PhaseStarted(phase=Phase.STARTING))
        with self._checkpoints.on_a_timer(self._stop):
            finished = self._do.trainer.train(order, self._stop, self._child_event, self._record.output)
        return self._remember(finished, order)

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

    def _from_checkpoint(self, order: TrainingOrder, setup: Setup) -> TrainingOrder:
        """The order as it begins from the newest checkpoint that is of use to it, if there is one."""
        places, store, bucket = self._do.places, self._do.store, self._do.artifacts_bucket
        checkpoints = Checkpoints(self._job, places.run_dirs(self._job), self._run_dir, store, bucket, self._record.event)
        found = checkpoints.best_for(setup, self._stop)
        if found is None:
            return order
        order, events = continued(order, setup, found)
        order = replace(order, told_epoch=self._told_epoch(found.attempt))
        for event in events:
            self._record.event(event)
        if order.resume:
            self._progress.expect(order.plan.epochs, found.epoch)
        return order

    def _told_epoch(self, attempt: int) -> int:
        """The last epoch of `attempt` that the history has. 0 when another one told it, perhaps of another course."""
        return self._job.told_epoch if attempt == self._job.told_attempt else 0

    def _child_event(self, event: Event) -> None:
        if isinstance(event, CheckpointSaved):
            event = replace(event, key=None)  # what is in the bucket is for us to say
        self._checkpoints.saw(event)
        self._record.event(event)

    def _remember(self, finished: Finished, order: TrainingOrder) -> Finished:
        for weights in (finished.best, finished.last):
            if not finished_marker.is_inside(Path(weights.path), self._run_dir):
                raise RunFailed(f"The training names a model outside of the run's folder: {weights.path}.")
        report: JsonObject = {**finished.report, "plan": finished_marker.trained_plan(order, finished), "dataset": order.dataset.summary}
        report.pop("batch", None)
        report["metrics"] = {**report.get("metrics", {}), "epoch": report.get("epochs_completed", order.plan.epochs)}
        done = replace(finished, report=report)
        try:
            finished_marker.remember(self._run_dir, done)
        except OSError as error:  # the model is published all the same
            log.warning("a finished training could not be marked; a crash now would repeat its end", error=str(error))
        return done

    def _already_trained(self) -> Finished | None:
        """Return what an attempt on this host finished before, if its weights are still the ones that it trained."""
        for run_dir in self._do.places.run_dirs(self._job):
            finished = finished_marker.recall(run_dir)
            if finished is None or not self._is_asked_for(finished):
                continue
            damage = finished_marker.damage(run_dir, finished)
            if damage is None:
                self._run_dir = run_dir
                for event in finished_marker.epochs_after(self._told_epoch(attempt_of(run_dir)), run_dir, finished):
                    self._record.event(event)
                return finished
            finished_marker.forget(run_dir)
            message = f"The finished model cannot be published ({damage}): the training resumes from its checkpoint."
            self._record.event(Warned(code="model_damaged", message=message))
        return None

    def _is_asked_for(self, finished: Finished) -> bool:
        """Whether the row still asks for this training; one that nobody can read any more takes no model away."""
        try:
            plan = self._do.parse(self._job.request)
        except BadRequest:
            return True
        is_asked_for = finished_marker.is_asked_for(finished, plan)
        if not is_asked_for:
            message = "A training of this run is finished, but the row asks for another one now."
            self._record.event(Warned(code="settings_changed", message=message))
        return is_asked_for

    def _completed(self, finished: Finished) -> Outcome:
        try:
            artifacts = self._artifacts.of_finished(self._run_dir, finished)
        except TrainerError as error:
            # marker and checkpoints stay: the next attempt only uploads, or resumes if the model is damaged
            return Retry(message=str(error))
        best = artifact_name(Path(finished.best.path), self._run_dir)
        url = next(artifact.url for artifact in artifacts if artifact.name == best)
        results = {**finished.report, **listed(artifacts, self._run_dir), "progress": self._progress.finished()}
        if self._stop.reason is StopReason.CANCELED:
            return Canceled(results=results)
        return Completed(results=results, trained_model_url=url)

    # ── leaving early ──

    def _failed(self, error: Exception) -> Failed:
        return Failed(message=str(error), results=self._leave_behind())

    def _judged(self, error: RunFailed | MachineFailed) -> Outcome:
        """Whose fault it is. Asked while the slot is held, so that a sick host takes no other run meanwhile."""
        problem = self._do.health.blame(self._job.id, error)
        if problem is None and isinstance(error, RunFailed):
            return self._failed(error)
        # what this host lacks for a run is a whole sentence already; the self-test would say it again in other words
        is_unfit = isinstance(error, HostUnfit)
        message = str(error) if is_unfit or problem in (None, str(error)) else f"{str(error).rstrip('.')}. {problem}"
        is_hosts = problem is not None or is_unfit
        return Retry(message=message, results=self.salvage(), host_failed=is_hosts)

    def _stopped(self, reason: StopReason) -> Outcome | None:
        if reason is StopReason.LOST:
            return None
        if reason is StopReason.SHUTDOWN:
            return Interrupted(checkpoint=self._last_checkpoint(), results=self.salvage())
        if reason is StopReason.CANCELED:
            return Canceled(results=self._leave_behind())
        return Retry(message="The run made no progress and was stopped.", results=self.salvage())

    def _last_checkpoint(self) -> Checkpoint | None:
        try:
            with self._stop.borrowed_time(self._do.times.upload) as patience:
                return self._checkpoints.send_newest(patience)
        except (TrainerError, Stopped, OSError) as error:
            log.warning("the last checkpoint stays on this host", run_id=self._job.id, error=str(error))
            return None

    def _leave_behind(self) -> JsonObject:
        """Publish what exists of a run that ends without a model: its results."""
        return {"run_dir": str(self._run_dir), **self._progress.as_json(), **self._left_behind(is_last=True)}

    def salvage(self) -> JsonObject:
        """Publish what exists of an attempt that another one follows: the results that the row keeps until then."""
        return self._left_behind(is_last=False)

    def _left_behind(self, *, is_last: bool) -> JsonObject:
        self._slot.give_back()
        return self._artifacts.left_behind(self._run_dir, self._job.attempt, is_last=is_last)

    def clean_up(self) -> None:
        self._do.datasets.discard(self._view, keep=self._do.places.keep_views)
