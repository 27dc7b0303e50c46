"""One training with Ultralytics, from an order to weights and a report. Only the child imports this file."""

from __future__ import annotations

import gc
import hashlib
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
from trainer.core.stop import StopSignal
from trainer.training import train_arguments
from trainer.training.yolo import checkpoint_file, report
from trainer.training.yolo.callbacks import Callbacks
from trainer.training.yolo.checkpoint_file import Progress
from trainer.training.yolo.ddp import Ranks, shared_order
from trainer.training.yolo.post_training import Finishing, Step
from trainer.training.yolo.progress_meter import ProgressMeter

HALVINGS = 3  # how often a training that ran out of memory goes on with half the batch

_MEMORY_ERRORS = (
    "out of memory",
    "can't allocate memory",
    "cublas_status_alloc_failed",
    "cudnn_status_internal_error",
    "unable to find an engine",
)
_UNLOADABLE = (
    *(TypeError, ValueError, KeyError, AttributeError, ImportError, EOFError, RuntimeError),
    *(pickle.UnpicklingError, zipfile.BadZipFile),
)
_VALIDATION_ARGS = ("conf", "iou", "max_det", "single_cls", "agnostic_nms", "augment", "plots", "workers", "seed")


class Training:
    """One order, carried out: `train`, then each of `finishing_steps`, then `finished`."""

    def __init__(self, order: TrainingOrder, stop: StopSignal, send: Callable[[Event], None]) -> None:
        self._order = order
        self._stop = stop
        self._send = send
        self._meter = ProgressMeter(send)
        self._batch: float | None = None  # of a resumed training, or once memory ran out
        self._images_per_second: float | None = None  # of the ranks
        self._kept_by_ranks: CheckpointSaved | None = None
        self._state = order.resume if RANK != -1 else None
        self._model = order.model
        if RANK != -1:
            self._batch = int(order.plan.batch)  # also when it goes on from another batch
        self._callbacks = self._new_callbacks(None)
        self._metrics: Any = None  # Ultralytics' metrics of the final validation; None when it failed
        self._report: JsonObject = {}
        self._best = order.run_dir / "weights" / "best.pt"
        self._last = order.run_dir / "weights" / "last.pt"

    @property
    def phase(self) -> Phase:
        return self._meter.phase

    @property
    def is_trained(self) -> bool:
        """Whether the last epoch is done and its state kept, so that there is a model whatever happens now."""
        return self._callbacks.is_trained

    def train(self) -> None:
        """Train to the end and validate best.pt. Raises `Stopped`, and whatever goes wrong."""
        if RANK == -1:
            self._begin_from_checkpoint()
        for halvings in range(HALVINGS + 1):
            try:
                return self._train_once()
            except RuntimeError as error:
                if RANK != -1 or not is_out_of_memory(error):  # a smaller batch is for all ranks to begin with
                    raise
                self._halve_batch(error, halvings)
            # outside of the handler, whose traceback holds the tensors that have to go
            self._callbacks.let_go()
            gc.collect()
            torch.cuda.empty_cache()
        raise AssertionError("the last halving raises")

    def rescue(self) -> None:
        """Make sure that the weights of a training whose ending failed can be published. Raises OSError if not."""
        state = self._newest_state()
        if state and not (checkpoint_file.is_whole(self._best) and checkpoint_file.is_whole(self._last)):
            checkpoint_file.restore(state, self._order.run_dir)
        self._strip()

    def finishing_steps(self) -> tuple[Step, ...]:
        """What is left to do with the trained model; any of them may fail without harm to the others."""
        return Finishing(self._order, self._best_or_last(), self._validate, self._stop).steps()

    def add_to_report(self, part: JsonObject) -> None:
        self._report |= part

    def finished(self) -> Finished:
        """The last word."""
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
            validated = report.from_results(order.run_dir / "results.csv", callbacks.best_epoch, order.dataset.task)
        return Finished(
            best=weights_file(self._best_or_last()),
            last=weights_file(self._last),
            report=report.bounded({**validated, **self._report, **facts}),
        )

    def trained(self) -> Finished:
        """The last word of a rank. Its files have no digest: the child changes them before it names them."""
        best, last = (WeightsFile(path=str(path), sha256="", bytes=0) for path in (self._best, self._last))
        return Finished(best=best, last=last, report={"images_per_second": self._meter.images_per_second})

    def _begin_from_checkpoint(self) -> None:
        """Take from the checkpoint, if it can be loaded, what the order wants of it: its state or its best weights."""
        order = self._order
        if order.best_of and self._is_loadable(best := checkpoint_file.best_of(order.best_of, order.run_dir)):
            self._model = best
        if order.resume and self._is_loadable(order.resume):
            self._state = order.resume
            # the epochs that the supervisor had not heard of before it died
            for event in epochs_after(order.last_reported_epoch, checkpoint_file.results_of(order.resume), order.plan):
                self._send(event)

    def _is_loadable(self, checkpoint: Path) -> bool:
        """Whether it can be loaded; if not, for example because another version of the library made it, that is told."""
        try:
            load_checkpoint(checkpoint)
        except _UNLOADABLE as error:
            if is_out_of_memory(error):
                raise
            message = f"The checkpoint cannot be loaded; the training starts without it ({error!r:.300})."
            self._send(Warned(code="checkpoint_broken", message=message))
            return False
        return True

    # ── one try ──

    def _train_once(self) -> None:
        order = self._order
        progress = checkpoint_file.progress_of(self._state) if self._state else None
        self._batch = self._batch or train_arguments.batch_to_resume(order, progress)
        if len(order.devices) > 1 and RANK == -1 and not (progress and progress.complete):
            self._train_in_ranks()
            progress = checkpoint_file.progress_of(self._state) if self._state else None
        else:
            self._meter.enter(Phase.LOADING)
        if self._state and RANK < 1:  # what is in the run folder is rank 0's business
            checkpoint_file.restore(self._state, order.run_dir)
            for weights in (self._best, self._last):
                load_checkpoint(weights)  # restricted, unlike the loading that strip_optimizer does later
        elif RANK < 1:
            checkpoint_file.forget(order.run_dir)
        self._callbacks = self._new_callbacks(progress)
        if progress and progress.complete:
            self._callbacks.is_trained = True
            return self._evaluate()
        model = _model(self._state or self._model)
        self._check_task(model)
        self._callbacks.attach(model)
        if self._state and progress:
            trainer = train_arguments.taking_changes(model._smart_load("trainer"), order, progress)  # noqa: SLF001
            model.train(trainer, **train_arguments.to_resume(order, self._state, self._batch))
        else:
            model.train(**train_arguments.to_begin(order, self._batch or order.plan.batch))
        self._metrics = model.trainer.validator.metrics
        return None

    def _train_in_ranks(self) -> None:
        """Train on several GPUs up to the last epoch; the state after it becomes ours."""
        order = shared_order(self._order, self._batch or self._order.plan.batch, self._send)
        self._batch = int(order.plan.batch)
        ranks = Ranks(replace(order, resume=self._state, model=self._model), self._stop, self._heard)
        ranks.train()
        self._state = self._newest_state()
        if ranks.finished:
            self._images_per_second = ranks.finished.report["images_per_second"]

    def _heard(self, event: Event) -> None:
        """What rank 0 reports is our own."""
        if isinstance(event, PhaseStarted):
            self._meter.phase = event.phase
        if isinstance(event, CheckpointSaved):
            self._kept_by_ranks, self._callbacks.epochs_completed = event, event.epoch
        self._send(event)

    def _newest_state(self) -> Path | None:
        kept = self._kept_by_ranks or self._callbacks.kept
        return Path(kept.path) if kept else self._state

    def _check_task(self, model: Any) -> None:
        wanted = self._order.dataset.task.value
        if model.task != wanted:
            raise BadRequest(
                f"The model {self._order.model.name} is for {model.task}, but the dataset is for {wanted}; "
                f"choose a {wanted} model or another dataset.",
            )

    def _new_callbacks(self, progress: Progress | None) -> Callbacks:
        order = self._order
        return Callbacks(order.run_dir, order.dataset, self._meter, self._stop, self._send, progress, order.setup)

    def _halve_batch(self, error: RuntimeError, halvings: int) -> None:
        """Arrange for another try with half the batch. Raises when there is none left, with the facts."""
        trainer = self._callbacks.trainer
        batch = int(trainer.batch_size) if trainer else self._batch or self._order.plan.batch
        reason = str(error).splitlines()[0]
        if batch <= 1 or halvings == HALVINGS:
            size = f"batch {batch}, image size {self._order.plan.imgsz}, batch halved {halvings} times"
            raise torch.OutOfMemoryError(f"{reason} ({size})") from error
        self._batch = int(batch) // 2
        self._state = self._newest_state()
        goes_on = f"goes on after epoch {self._callbacks.epochs_completed}" if self._state else "begins again"
        message = f"Out of memory with batch {batch}: the training {goes_on} with batch {self._batch}. ({reason})"
        self._send(Warned(code="out_of_memory", message=message))

    # ── after the last epoch ──

    def _evaluate(self) -> None:
        """What is missing of a training that was interrupted after its last epoch."""
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
            **arguments | train_arguments.surroundings(self._order) | {"save_dir": str(save_dir)},
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


def _model(path: Path) -> Any:
    # weights say what they are, an architecture does so only by its name
    kind = RTDETR if path.suffix == ".yaml" and path.stem.startswith("rtdetr") else YOLO
    return kind(str(path))


def weights_file(path: Path) -> WeightsFile:
    """The file with its size and digest, by which the supervisor knows it again. Raises OSError."""
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return WeightsFile(path=str(path), sha256=sha256, bytes=path.stat().st_size)


def is_out_of_memory(error: Exception) -> bool:
    """Whether an accelerator or the host had no memory left, however the library puts it."""
    text = str(error).lower()
    return isinstance(error, torch.OutOfMemoryError) or any(words in text for words in _MEMORY_ERRORS)
