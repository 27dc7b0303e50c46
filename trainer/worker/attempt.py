"""One attempt of a run: its steps and its possible outcomes."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from functools import partial

import structlog

from trainer.core.dataset import PreparedDataset
from trainer.core.errors import (
    BadRequest,
    HostSuspected,
    HostUnfit,
    MachineFailed,
    RunFailed,
    TrainerError,
    disk_failed,
)
from trainer.core.events import CheckpointSaved, Event, Finished, Phase
from trainer.core.job import Canceled, Checkpoint, Completed, Failed, Interrupted, JsonObject, Outcome, Retry
from trainer.core.plan import TrainPlan
from trainer.core.ports import TrainingOrder
from trainer.core.resumption import Setup
from trainer.core.stop import Stopped, StopReason
from trainer.disk.removal import remove_tree
from trainer.worker import finished_marker
from trainer.worker.checkpoint_uploads import CheckpointUploads
from trainer.worker.fetching import dataset_order, fetch_with_retries
from trainer.worker.housekeeping import require_space
from trainer.worker.publish import Publisher, listed
from trainer.worker.resume import CheckpointFinder, resumed_order
from trainer.worker.run_context import RunContext
from trainer.worker.run_services import RunServices
from trainer.worker.slots import AcquiredSlots

log = structlog.get_logger()

NOT_CONFIRMED = "The worker tested this host and found no problem."


class Attempt:
    """The steps of one attempt, in order: prepare, train, publish."""

    def __init__(self, services: RunServices, run: RunContext, slots: AcquiredSlots) -> None:
        self._services = services
        self._run = run
        self._job = run.job
        self._slots = slots
        self._folder = run.folder  # replaced by the folder of an earlier attempt that finished the training
        self._view = services.folders.view(run.job)
        self._publisher = Publisher(services, run)
        self._checkpoints = CheckpointUploads(services, run)

    def outcome(self) -> Outcome | None:
        """Run the steps and return the outcome, or None if the lease is lost."""
        try:
            finished = self._find_finished() or self._train()
            self._release_slots()  # the next run can train during the upload of this run
            return self._complete(finished)
        except Stopped as stopped:
            return self._stopped(stopped.reason)
        except BadRequest as error:
            return self._fail(error)
        except (RunFailed, MachineFailed) as error:
            return self._retry_or_fail(error)
        except TrainerError as error:
            return Retry(message=str(error), results=self.publish_unfinished())
        except OSError as error:
            return self._retry_or_fail(disk_failed(error, f"The run failed on this host: {error}."))
        finally:
            self._release_slots()

    def clean_up(self) -> None:
        """Remove the folder of the dataset, unless `keep_views` is set."""
        self._services.datasets.discard(self._view, keep=self._services.folders.keep_views)

    def _train(self) -> Finished:
        self._run.enter(Phase.PREPARING)
        self._run.events.journal.require_disk()
        plan = self._services.parse(self._job.request)
        self._run.events.progress.expect(plan.epochs)
        for warning in plan.warnings:
            self._run.warn("configuration", warning)
        order = self._order(plan)
        self._run.enter(Phase.STARTING)
        with self._checkpoints.during_training(self._run.stop):
            finished = self._services.trainer.train(order, self._run.stop, self._on_event, self._run.events.log.output)
        # the marker is written before the wait for a running upload: this wait can take minutes, and a crash during the
        # wait would repeat epochs
        return self._write_marker(finished, order)

    def _order(self, plan: TrainPlan) -> TrainingOrder:
        """Fetch the dataset, the model and the checkpoint. Return the training order."""
        run, services = self._run, self._services
        dataset = fetch_with_retries(lambda: self._prepare(plan), run)
        resolve = services.weights.resolve
        model = fetch_with_retries(lambda: resolve(plan.model, dataset.task, run.stop, self._job.requester), run)
        self._folder.output.path.mkdir(parents=True, exist_ok=True)
        require_space(self._folder.path.parent, model)
        setup = Setup.of(plan, dataset)
        order = TrainingOrder(
            plan=plan,
            model=model,
            dataset=dataset,
            run_dir=self._folder.output.path,
            devices=self._devices(plan),
            setup=setup.as_json(),
            last_reported_epoch=self._job.last_reported_epoch,
        )
        return fetch_with_retries(lambda: self._from_checkpoint(order, setup), run)

    def _prepare(self, plan: TrainPlan) -> PreparedDataset:
        order = dataset_order(plan, self._job)
        with contextlib.suppress(OSError):  # `prepare` reports a view that cannot be removed
            remove_tree(self._view)
        dataset = self._services.datasets.prepare(order, self._view, self._run.stop, self._run.events.record)
        if warning := plan.model_warning(dataset.task):
            self._run.warn("model_replaced", warning)
        return dataset

    def _devices(self, plan: TrainPlan) -> tuple[int, ...]:
        requested, acquired = len(plan.device or ()), len(self._slots.gpus)
        if acquired < requested:
            where = f"on {acquired} free GPU(s) of this worker" if acquired else "on the CPU: this host has no GPU"
            message = f"The run requests GPU {list(plan.device or ())}, but is trained {where}."
            self._run.warn("fewer_gpus" if acquired else "no_gpu", message)
        return () if plan.device == () else self._slots.gpus

    def _from_checkpoint(self, order: TrainingOrder, setup: Setup) -> TrainingOrder:
        """Return `order` with the checkpoint to start from, or unchanged if there is no usable checkpoint."""
        services = self._services
        attempts = services.folders.own_attempts(self._job)
        found = CheckpointFinder(self._run, attempts, services.store, services.artifacts_bucket).best_for(setup)
        if found is None:
            return order
        order, events = resumed_order(order, setup, found)
        order = replace(order, last_reported_epoch=self._last_reported_epoch(found.attempt))
        for event in events:
            self._run.events.record(event)
        if order.resume:
            self._run.events.progress.expect(order.plan.epochs, found.epoch)
        return order

    def _last_reported_epoch(self, attempt: int) -> int:
        """Return the last epoch of `attempt` in the history, or 0 if another attempt reported the last epoch."""
        return self._job.last_reported_epoch if attempt == self._job.last_reported_attempt else 0

    def _on_event(self, event: Event) -> None:
        if isinstance(event, CheckpointSaved):
            event = replace(event, key=None)  # only the worker knows the keys of uploaded checkpoints
            self._services.health.record_success(self._job.id)
        self._checkpoints.note(event)
        self._run.events.record(event)

    def _write_marker(self, finished: Finished, order: TrainingOrder) -> Finished:
        report: JsonObject = {
            **finished.report,
            "plan": finished_marker.trained_plan(order, finished),
            "dataset": order.dataset.summary,
        }
        report.pop("batch", None)
        report["metrics"] = {**report.get("metrics", {}), "epoch": report.get("epochs_completed", order.plan.epochs)}
        finished = replace(finished, report=report)
        try:
            finished_marker.write(self._folder, finished)
        except OSError as error:  # the model is published without the marker
            log.warning("finished marker cannot be written, a crash now would repeat the last epochs", error=str(error))
        return finished

    def _find_finished(self) -> Finished | None:
        """Return the finished training of an earlier attempt on this host if its weights are unchanged, else None."""
        for folder in self._services.folders.own_attempts(self._job):
            finished = finished_marker.read(folder)
            if finished is None or not self._is_requested(finished):
                continue
            damage = finished_marker.find_damage(folder, finished, self._run.stop.raise_if_set)
            if damage is None:
                self._folder = folder
                reported = self._last_reported_epoch(folder.attempt)
                for event in finished_marker.epochs_after(reported, folder, finished):
                    self._run.events.record(event)
                return finished
            finished_marker.remove(folder)
            message = f"The finished model cannot be published ({damage}): the training resumes from its checkpoint."
            self._run.warn("model_damaged", message)
        return None

    def _is_requested(self, finished: Finished) -> bool:
        """Return whether the settings of the row match this training. Return True if the row cannot be parsed."""
        try:
            plan = self._services.parse(self._job.request)
        except BadRequest:
            return True
        is_requested = finished_marker.is_requested(finished, plan)
        if not is_requested:
            message = "A training of this run has finished, but the row has new settings: the run is trained again."
            self._run.warn("settings_changed", message)
        return is_requested

    def _complete(self, finished: Finished) -> Outcome:
        try:
            artifacts = self._publisher.publish_finished(self._folder, finished)
        except TrainerError as error:
            # marker and checkpoints are kept: the next attempt publishes the model, or resumes if the model is damaged
            return Retry(message=str(error))
        model = next(iter(finished.weights))
        url = next(artifact.url for artifact in artifacts if artifact.name == model)
        progress = self._run.events.progress.finished()
        results = {**finished.report, **listed(artifacts, self._folder), "progress": progress}
        if self._run.stop.reason is StopReason.CANCELED:
            return Canceled(results=results)
        self._services.health.record_success(self._job.id)
        return Completed(results=results, trained_model_url=url)

    def _fail(self, error: Exception) -> Failed:
        return Failed(message=str(error), results=self._publish_last())

    def _retry_or_fail(self, error: RunFailed | MachineFailed) -> Outcome:
        """Return the outcome after an error of the host or the run. The slots stay acquired during the self-test."""
        health, test = self._services.health, partial(self._services.trainer.test, self._slots.gpus)
        problem = health.record_failure(self._job.id, error, test)
        if problem is None and isinstance(error, RunFailed):
            return self._fail(error)
        is_unfit = isinstance(error, HostUnfit)  # the message of the error already contains the problem
        is_hosts, message = problem is not None or is_unfit, str(error)
        if isinstance(error, HostSuspected) and problem is None:
            problem = NOT_CONFIRMED
            is_hosts = health.is_first_suspicion(self._job.id)
        if not is_unfit and problem not in (None, message):
            message = f"{message.rstrip('.')}. {problem}"
        return Retry(message=message, results=self.publish_unfinished(), host_failed=is_hosts)

    def _stopped(self, reason: StopReason) -> Outcome | None:
        if reason is StopReason.LOST:
            return None
        if reason is StopReason.SHUTDOWN:
            return Interrupted(checkpoint=self._upload_last_checkpoint(), results=self.publish_unfinished())
        if reason is StopReason.CANCELED:
            return Canceled(results=self._publish_last())
        return Retry(message="The run made no progress and was stopped.", results=self.publish_unfinished())

    def _upload_last_checkpoint(self) -> Checkpoint | None:
        try:
            with self._run.stop.extra_time(self._services.times.upload) as time_limit:
                return self._checkpoints.send_newest(time_limit)
        except (TrainerError, Stopped, OSError) as error:
            log.warning("last checkpoint not uploaded, it stays on this host", run_id=self._job.id, error=str(error))
            return None

    def _publish_last(self) -> JsonObject:
        """Publish the existing artifacts of a run that ends without a model. Return the results for the row."""
        progress = self._run.events.progress.as_json()
        return {"run_dir": str(self._folder.output.path), **progress, **self.publish_unfinished(is_last=True)}

    def publish_unfinished(self, *, is_last: bool = False) -> JsonObject:
        """Publish the existing artifacts. Return the results for the row. `is_last` is True if no attempt follows."""
        self._release_slots()
        return self._publisher.publish_unfinished(self._folder, is_last=is_last)

    def _release_slots(self) -> None:
        """Release the slots for the next run, then wait until no checkpoint upload is running."""
        self._slots.release()
        self._checkpoints.wait()
