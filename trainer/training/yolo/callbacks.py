"""Ultralytics' callbacks: they report progress, obey stop requests and save checkpoints.

The trainer object belongs to Ultralytics and is untyped. tests/unit/training/test_ultralytics_facts.py and the real
trainings in tests/training check the attributes that are used here.
"""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ultralytics.utils import RANK
from ultralytics.utils.torch_utils import strip_optimizer

from trainer.core.dataset import PreparedDataset
from trainer.core.events import CheckpointSaved, Event, Phase, Warned
from trainer.core.job import JsonObject
from trainer.core.results_table import numbers
from trainer.core.run_folder import BEST, RESULTS
from trainer.core.stop import StopReason, StopSignal
from trainer.training.speedups import pixels
from trainer.training.yolo import checkpoint_file
from trainer.training.yolo.checkpoint_file import Progress
from trainer.training.yolo.checkpoint_writer import CheckpointWriter
from trainer.training.yolo.progress_meter import ProgressMeter


@dataclass(eq=False)
class Callbacks:
    """The callbacks of one try. After a training runs out of memory, it starts another try with a smaller batch size.

    `resumed` is the progress of the checkpoint from which the try resumes, or None.
    """

    run_dir: Path
    dataset: PreparedDataset
    meter: ProgressMeter
    stop: StopSignal
    send: Callable[[Event], None]
    resumed: Progress | None
    setup: JsonObject | None = None
    _skip: int = field(default=0, init=False)
    _in_first_epoch: bool = field(default=True, init=False)
    _validated: bool = field(default=False, init=False)
    _nan_recoveries: int = field(default=0, init=False)
    # the epoch of the stripped best.pt in the folder of the checkpoints
    _stripped_best: int | None = field(default=0, init=False)
    trainer: Any = field(default=None, init=False)
    # True if the last epoch is trained and its checkpoint is saved
    is_trained: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        before = self.resumed or Progress()
        self._writer = CheckpointWriter(self.run_dir, self.send)
        self.best_epoch = before.best_epoch
        self.epochs_completed = before.epoch
        self.train_seconds = before.train_seconds  # sum over all attempts
        self.batch = before.batch  # the last batch size

    def attach(self, model: Any) -> None:
        """Register the methods `on_…` with a model before its training. Only rank 0 reports and saves."""
        every_rank = ("on_train_start", "on_train_epoch_start")
        for event in dir(self):
            if event in every_rank or (event.startswith("on_") and RANK < 1):
                model.add_callback(event, getattr(self, event))

    def release(self) -> None:
        """Close the data loaders and drop the trainer, so that its memory can be freed."""
        for name in ("train_loader", "test_loader"):
            loader: Any = getattr(self.trainer, name, None)
            if hasattr(loader, "close"):
                loader.close()
        self.trainer = None

    @property
    def saved(self) -> CheckpointSaved | None:
        """The newest saved checkpoint, after a running save has ended."""
        self._writer.wait()
        return self._writer.saved

    def on_pretrain_routine_start(self, trainer: Any) -> None:
        self.trainer = trainer
        self.stop.raise_if_set()
        _call_before(trainer, "_build_train_pipeline", lambda: self.meter.enter(Phase.SCANNING))
        _call_before(trainer, "final_eval", self._on_training_end)

    def on_pretrain_routine_end(self, trainer: Any) -> None:
        self.stop.raise_if_set()
        for split, loader in {"train": trainer.train_loader, "val": trainer.test_loader}.items():
            expected, found = self.dataset.images.get(split), len(loader.dataset)
            if expected and found < expected and trainer.args.fraction == 1.0:
                lost = f"{expected - found} of {expected} {split} images were left out"
                self.send(Warned(code="images_left_out", message=f"{lost}: they or their labels cannot be read."))
        # one processor is for the training, and one for each of its loader workers
        idle = len(os.sched_getaffinity(0)) - 1 - int(trainer.train_loader.num_workers)
        pixels.work_ahead([trainer.test_loader.dataset, trainer.train_loader.dataset], max(1, idle))

    def on_train_start(self, trainer: Any) -> None:
        if RANK != -1:
            # the training process validates once, after the ranks have ended
            trainer.final_eval = self._on_training_end
        if trainer.args.time:
            used = self.resumed.train_seconds if self.resumed else 0.0
            self.meter.budget(max(0.0, trainer.args.time * 3600 - used))
        if self.resumed:
            trainer.train_time_start -= self.resumed.train_seconds  # results.csv counts the seconds of all attempts
            batches = len(trainer.train_loader)
            self._skip = min(round(self.resumed.done * batches), batches - 1)
            _skip_once(trainer.train_loader, self._skip)

    def on_train_epoch_start(self, trainer: Any) -> None:
        trainer._oom_retries = 3  # noqa: SLF001 - otherwise Ultralytics itself halves the batch size
        if self.resumed:
            # train_time_start counts all attempts, so the mean time per epoch must count all epochs
            trainer.start_epoch = 0
        if trainer.nan_recovery_attempts > self._nan_recoveries:
            message = f"Epoch {trainer.epoch + 1} diverged (NaN) and is repeated from the weights before this epoch."
            self.send(Warned(code="nan_recovery", message=message))
        self._nan_recoveries = trainer.nan_recovery_attempts
        self._validated = False
        skipped = self._skip if self._in_first_epoch else 0
        self._in_first_epoch = False
        self.meter.epoch_started(trainer.epoch + 1, trainer.epochs, len(trainer.train_loader), skipped)

    def on_train_batch_end(self, trainer: Any) -> None:
        self.meter.batch_done(trainer.batch_size, lambda: numbers(trainer.tloss), lambda: _gpu_memory(trainer))
        self._stop_in_epoch()

    def on_val_start(self, validator: Any) -> None:
        self._validated = True
        self.meter.validation_started(len(validator.dataloader))

    def on_val_batch_end(self, validator: Any) -> None:
        self.meter.validation_batch_done(lambda: _gpu_memory(self.trainer))
        self._stop_in_epoch()

    def on_fit_epoch_end(self, trainer: Any) -> None:
        if self.meter.phase is Phase.FINALIZING:
            return  # Ultralytics also calls this after the final validation, which is not an epoch
        trainer.stop |= self.stop.reason is StopReason.FINISH
        self.epochs_completed = trainer.epoch + 1
        if trainer.best_fitness == trainer.fitness:
            self.best_epoch = trainer.epoch + 1
        self._copy(trainer, trainer.last, done=0.0)
        metrics = {**trainer.label_loss_items(trainer.tloss), **trainer.metrics, **trainer.lr}
        if not self._validated:
            metrics = {key: value for key, value in metrics.items() if key.startswith(("train/", "lr/"))}
        self.meter.epoch_finished(trainer.epochs, numbers(metrics))
        self._writer.save()
        self._stop_if_asked()

    def _on_training_end(self) -> None:
        self._writer.wait()
        if RANK != -1 and self._writer.error:
            # the training process needs this checkpoint for everything after the last epoch
            raise OSError(f"the checkpoint of the last epoch could not be saved: {self._writer.error}")
        self.is_trained = True
        self.meter.enter(Phase.FINALIZING)

    def _stop_in_epoch(self) -> None:
        """Stop the training if a stop is requested. At a shutdown, first save a checkpoint of the unfinished epoch."""
        if self.stop.reason is StopReason.SHUTDOWN and self.meter.phase in (Phase.TRAINING, Phase.VALIDATING):
            self._save_mid_epoch(self.trainer)
        self._stop_if_asked()

    def _stop_if_asked(self) -> None:
        if self.stop.reason is StopReason.SHUTDOWN:
            self._writer.wait()  # the next attempt resumes from this checkpoint
        self.stop.raise_if_set()

    def _save_mid_epoch(self, trainer: Any) -> None:
        """Save a checkpoint at this batch, if at least one epoch is finished."""
        if trainer.epoch < 1:
            return  # Ultralytics cannot resume if no epoch is finished
        last, fitness = trainer.last, trainer.fitness
        done = self.meter.share_of_epoch
        trainer.last = trainer.wdir / "unfinished.pt"
        trainer.epoch -= 1
        trainer.fitness = math.nan  # NaN does not equal the best fitness, so Ultralytics does not write best.pt
        try:
            with self._writer.warning_on_failure():
                trainer.save_model()
                self._copy(trainer, trainer.last, done)
                self._writer.save()
        finally:
            with contextlib.suppress(OSError):
                trainer.last.unlink(missing_ok=True)
            trainer.epoch += 1
            trainer.last, trainer.fitness = last, fitness

    def _copy(self, trainer: Any, state: Path, done: float) -> None:
        self.train_seconds = round(time.time() - trainer.train_time_start, 3)
        self.batch = trainer.batch_size
        with self._writer.warning_on_failure():
            is_best = not done and self.best_epoch == trainer.epoch + 1
            members = self._members(trainer, is_best=is_best)
            progress = Progress(
                epoch=trainer.epoch + 1,
                done=done,
                complete=bool(trainer.stop),
                best_epoch=self.best_epoch if is_best or BEST in members else None,
                train_seconds=self.train_seconds,
                batch=self.batch,
                setup=self.setup,
            )
            self._writer.copy(state, progress, members)

    def _members(self, trainer: Any, *, is_best: bool) -> dict[str, Path]:
        """Return the existing files that belong to the checkpoint. If it is the best checkpoint, best.pt is omitted."""
        files = {name: trainer.save_dir / name for name in (RESULTS, "args.yaml")}
        if not is_best:
            files[BEST] = self._best_stripped(trainer)
        return {name: path for name, path in files.items() if path.exists()}

    def _best_stripped(self, trainer: Any) -> Path:
        stripped: Path = checkpoint_file.checkpoints_folder(self.run_dir) / BEST
        if trainer.best.exists() and (self._stripped_best != self.best_epoch or not stripped.exists()):
            strip_optimizer(trainer.best, s=str(stripped))
            self._stripped_best = self.best_epoch
        return stripped


def _gpu_memory(trainer: Any) -> int:
    return int(trainer._get_memory() * 2**30) if trainer else 0  # noqa: SLF001 - the only method that knows the device


def _call_before(trainer: Any, method: str, call: Callable[[], None]) -> None:
    """Call `call` before each call of the trainer's `method`, for which Ultralytics has no callback."""
    original = getattr(trainer, method)

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        call()
        return original(*args, **kwargs)

    setattr(trainer, method, wrapped)


def _skip_once(loader: Any, batches: int) -> None:
    """Shorten the loader's next epoch by `batches`, which were trained before the checkpoint was saved."""
    if batches < 1:
        return
    plain = type(loader)

    def shortened(self: Any) -> Any:
        object.__setattr__(self, "__class__", plain)
        whole = iter(self)
        for _ in range(len(self) - batches):
            yield next(whole)

    object.__setattr__(loader, "__class__", type("ShortenedLoader", (plain,), {"__iter__": shortened}))
