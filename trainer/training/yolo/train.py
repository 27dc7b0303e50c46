"""One training with Ultralytics, from a training order to weights and a report.

Only training processes import this module.
"""

from __future__ import annotations

import gc
import pickle
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from ultralytics import RTDETR, YOLO
from ultralytics.nn.tasks import load_checkpoint
from ultralytics.utils import RANK
from ultralytics.utils.torch_utils import strip_optimizer

from trainer.core.errors import BadRequest
from trainer.core.events import CheckpointSaved, Event, Finished, Phase, PhaseStarted, Warned, WeightsFile
from trainer.core.job import JsonObject
from trainer.core.ports import TrainingOrder
from trainer.core.results_table import epochs_after
from trainer.core.run_folder import OutputFolder
from trainer.core.stop import StopSignal
from trainer.disk.checksum import sha256_of
from trainer.training.yolo import checkpoint_file, report, train_arguments
from trainer.training.yolo.callbacks import Callbacks
from trainer.training.yolo.checkpoint_file import Progress
from trainer.training.yolo.ddp import Ranks, shared_order
from trainer.training.yolo.post_training import PostTraining, Step
from trainer.training.yolo.progress_meter import ProgressMeter

_LOAD_ERRORS = (
    *(TypeError, ValueError, KeyError, AttributeError, ImportError, EOFError, RuntimeError),
    *(pickle.UnpicklingError, zipfile.BadZipFile),
)
_MEMORY_ERRORS = (
    "out of memory",
    "can't allocate memory",
    "cublas_status_alloc_failed",
    "cudnn_status_internal_error",
    "unable to find an engine",
)
HALVINGS = 3  # maximum number of times that the batch size is halved after memory ran out

_VALIDATION_ARGS = ("conf", "iou", "max_det", "single_cls", "agnostic_nms", "augment", "plots", "workers", "seed")


class Training:
    """Executes one training order: `train`, then each of `post_training_steps`, then `finished`."""

    def __init__(self, order: TrainingOrder, stop: StopSignal, send: Callable[[Event], None]) -> None:
        self._order = order
        self._stop = stop
        self._send = send
        self._meter = ProgressMeter(send)
        self._batch: float | None = None  # set for a resumed training, and after memory ran out
        self._images_per_second: float | None = None  # speed of all ranks together
        self._saved_by_ranks: CheckpointSaved | None = None
        self._checkpoint = order.resume if RANK != -1 else None  # the checkpoint to resume from
        self._model = order.model
        if RANK != -1:
            self._batch = int(order.plan.batch)  # this batch size applies even if the checkpoint has another batch size
        self._callbacks = self._new_callbacks(None)
        self._metrics: Any = None  # Ultralytics' metrics of the final validation; None if it failed
        self.report: JsonObject = {}  # results of the steps after the training
        self._folder = OutputFolder(order.run_dir)
        self._best, self._last = self._folder.best, self._folder.last

    @property
    def phase(self) -> Phase:
        return self._meter.phase

    @property
    def is_trained(self) -> bool:
        """True if the last epoch is trained and its checkpoint is saved. A later failure then cannot lose the model."""
        return self._callbacks.is_trained

    def train(self) -> None:
        """Train to the last epoch and validate best.pt. Raises `Stopped`, or any exception of the training."""
        if RANK == -1:
            self._load_checkpoint()
        for halvings in range(HALVINGS + 1):
            try:
                return self._train_once()
            except RuntimeError as error:
                # the training process restarts all ranks with a smaller batch size
                if RANK != -1 or not is_out_of_memory(error):
                    raise
                self._halve_batch(error, halvings)
            # this is not in the handler, because the traceback there references the tensors to free
            self._callbacks.release()
            gc.collect()
            torch.cuda.empty_cache()
        raise AssertionError("the last halving raises")

    def recover_weights(self) -> None:
        """Restore the weights from the newest checkpoint if a failed final validation damaged them. Raises OSError."""
        newest = self._newest_checkpoint()
        if newest and not (zipfile.is_zipfile(self._best) and zipfile.is_zipfile(self._last)):
            checkpoint_file.restore(newest, self._order.run_dir)
        self._strip()

    def post_training_steps(self) -> list[Step]:
        """Return the steps after the training. A step can fail without an effect on other steps."""
        return PostTraining(self._order, self._best_or_last(), self._validate, self._stop).steps()

    def finished(self) -> Finished:
        """Return the final event."""
        order, callbacks = self._order, self._callbacks
        facts = {
            "epochs_completed": callbacks.epochs_completed,
            "best_epoch": callbacks.best_epoch,
            "train_seconds": callbacks.train_seconds,
            "batch": callbacks.batch,
            "images_per_second": self._images_per_second or self._meter.images_per_second,
            "environment": report.environment(order.plan.args, order.dataset.fingerprint),
        }
        validated = report.validation(self._metrics, order.dataset.task) if self._metrics is not None else {}
        if not validated:
            validated = report.from_results(self._folder.results, callbacks.best_epoch, order.dataset.task)
        return Finished(
            best=_described(self._best) if self._best.exists() else None,
            last=_described(self._last),
            report=report.bounded({**validated, **self.report, **facts}),
        )

    def trained(self) -> Finished:
        """Return the final event of a rank, without checksums: the training process still changes the files."""
        last = WeightsFile(sha256="", bytes=0)
        return Finished(best=None, last=last, report={"images_per_second": self._meter.images_per_second})

    def _load_checkpoint(self) -> None:
        """If the checkpoint of the training order can be loaded, resume from it or start from its best weights."""
        order = self._order
        if order.best_of:
            best = checkpoint_file.checkpoints_folder(order.run_dir) / "start.pt"
            if self._is_loadable(checkpoint_file.extract_best(order.best_of, best)):
                self._model = best
        if order.resume and self._is_loadable(order.resume):
            self._checkpoint = order.resume
            # send the epochs that the supervisor did not receive before the last attempt ended
            results = checkpoint_file.read_results(order.resume)
            for event in epochs_after(order.last_reported_epoch, results, order.plan):
                self._send(event)

    def _is_loadable(self, checkpoint: Path) -> bool:
        """Return whether the checkpoint can be loaded; if not, send a warning. Raises the error if memory ran out."""
        try:
            load_checkpoint(checkpoint)
        except _LOAD_ERRORS as error:  # for example, another version of Ultralytics saved it
            if is_out_of_memory(error):
                raise
            message = f"The checkpoint cannot be loaded; the training starts without it ({error!r:.300})."
            self._send(Warned(code="checkpoint_broken", message=message))
            return False
        return True

    def _train_once(self) -> None:
        order = self._order
        progress = checkpoint_file.read_progress(self._checkpoint) if self._checkpoint else None
        self._batch = self._batch or train_arguments.batch_to_resume(order, progress)
        if len(order.devices) > 1 and RANK == -1 and not (progress and progress.complete):
            self._train_in_ranks()
            progress = checkpoint_file.read_progress(self._checkpoint) if self._checkpoint else None
        else:
            self._meter.enter(Phase.LOADING)
        if self._checkpoint and RANK < 1:  # only rank 0 writes to the run folder
            checkpoint_file.restore(self._checkpoint, order.run_dir)
            for weights in (self._best, self._last):
                load_checkpoint(weights)  # unlike strip_optimizer, this function checks and loads the file safely
        elif RANK < 1:
            checkpoint_file.remove_stale(order.run_dir)
        self._callbacks = self._new_callbacks(progress)
        if progress and progress.complete:
            self._callbacks.is_trained = True
            self._finalize()
            return
        weights = self._checkpoint or self._model
        # a .pt file contains its model family; an architecture shows its family only in its name
        is_rtdetr = weights.suffix == ".yaml" and weights.stem.startswith("rtdetr")
        model: Any = (RTDETR if is_rtdetr else YOLO)(str(weights))
        self._check_task(model)
        self._callbacks.attach(model)
        if self._checkpoint and progress:
            trainer = train_arguments.with_changes(model._smart_load("trainer"), order, progress)  # noqa: SLF001
            model.train(trainer, **train_arguments.for_resume(order, self._checkpoint, self._batch))
        else:
            model.train(**train_arguments.for_start(order, self._batch or order.plan.batch))
        self._metrics = model.trainer.validator.metrics

    def _train_in_ranks(self) -> None:
        """Train on several GPUs to the last epoch. The final checkpoint is used for all later steps."""
        order = shared_order(self._order, self._batch or self._order.plan.batch, self._send)
        self._batch = int(order.plan.batch)
        ranks = Ranks(replace(order, resume=self._checkpoint, model=self._model), self._stop, self._on_rank_event)
        ranks.train()
        self._checkpoint = self._newest_checkpoint()
        if ranks.finished:
            self._images_per_second = ranks.finished.report["images_per_second"]

    def _on_rank_event(self, event: Event) -> None:
        """Forward an event of rank 0, and record its phase or its checkpoint."""
        if isinstance(event, PhaseStarted):
            self._meter.phase = event.phase
        if isinstance(event, CheckpointSaved):
            self._saved_by_ranks, self._callbacks.epochs_completed = event, event.epoch
        self._send(event)

    def _newest_checkpoint(self) -> Path | None:
        saved = self._saved_by_ranks or self._callbacks.saved
        return self._folder.checkpoint(saved.epoch) if saved else self._checkpoint

    def _check_task(self, model: Any) -> None:
        wanted = self._order.dataset.task.value
        if model.task != wanted:
            raise BadRequest(
                f"The model {self._order.model.name} is for the task {model.task}, but the dataset is for the task "
                f"{wanted}; choose another model or another dataset.",
            )

    def _new_callbacks(self, progress: Progress | None) -> Callbacks:
        order = self._order
        return Callbacks(order.run_dir, order.dataset, self._meter, self._stop, self._send, progress, order.setup)

    def _halve_batch(self, error: RuntimeError, halvings: int) -> None:
        """Prepare another try with half the batch size. Raises OutOfMemoryError if no try is left."""
        trainer = self._callbacks.trainer
        batch = int(trainer.batch_size) if trainer else self._batch or self._order.plan.batch
        reason = str(error).splitlines()[0]
        if batch <= 1 or halvings == HALVINGS:
            size = f"batch {batch}, image size {self._order.plan.imgsz}, batch halved {halvings} times"
            raise torch.OutOfMemoryError(f"{reason} ({size})") from error
        self._batch = int(batch) // 2
        self._checkpoint = self._newest_checkpoint()
        continues = f"continues after epoch {self._callbacks.epochs_completed}" if self._checkpoint else "starts again"
        message = f"Out of memory with batch {batch}: the training {continues} with batch {self._batch}. ({reason})"
        self._send(Warned(code="out_of_memory", message=message))

    def _finalize(self) -> None:
        """Strip and validate the weights of a training whose last epoch is already trained."""
        self._meter.enter(Phase.FINALIZING)
        self._strip()
        self._metrics = self._validate("val", self._order.run_dir)

    def _validate(self, split: str, save_dir: Path) -> Any:
        plan = self._order.plan
        model = YOLO(str(self._best_or_last()))
        model.add_callback("on_val_start", self._callbacks.on_val_start)
        model.add_callback("on_val_batch_end", self._callbacks.on_val_batch_end)
        batch = self._callbacks.batch or (plan.batch if plan.batch >= 1 else 16)
        arguments = {name: plan.args[name] for name in _VALIDATION_ARGS if name in plan.args}
        return model.val(
            **arguments | train_arguments.paths_and_device(self._order) | {"save_dir": str(save_dir)},
            split=split,
            imgsz=plan.imgsz,
            batch=batch,
            exist_ok=True,
        )

    def _strip(self) -> None:
        for weights in (self._last, self._best):
            if weights.exists():
                strip_optimizer(weights)

    def _best_or_last(self) -> Path:
        return self._best if self._best.exists() else self._last


def is_out_of_memory(error: Exception) -> bool:
    """Return whether a GPU or the host ran out of memory, by the type of the error or the messages of libraries."""
    text = str(error).lower()
    return isinstance(error, torch.OutOfMemoryError) or any(message in text for message in _MEMORY_ERRORS)


def _described(weights: Path) -> WeightsFile:
    """Return the file with its size and checksum, which are compared before the file is published. Raises OSError."""
    return WeightsFile(sha256=sha256_of(weights), bytes=weights.stat().st_size)
