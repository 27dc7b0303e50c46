"""Ultralytics' callbacks: where a running training is watched, asked to stop, and its state kept.

The trainer object is Ultralytics' own and untyped; what is read from it here is what tests/unit/training/test_ultralytics_facts.py
and the real trainings of the tests hold on to.
"""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ultralytics.utils import RANK
from ultralytics.utils.torch_utils import strip_optimizer

from trainer.core.dataset import PreparedDataset
from trainer.core.events import CheckpointSaved, Event, Phase, Warned
from trainer.core.job import JsonObject
from trainer.core.results_table import numbers
from trainer.core.stop import StopReason, StopSignal
from trainer.training.speedups import pixels
from trainer.training.yolo import checkpoint_file
from trainer.training.yolo.checkpoint_file import Progress
from trainer.training.yolo.checkpoint_writer import Keeper
from trainer.training.yolo.progress_meter import ProgressMeter


class Callbacks:
    """What happens during one try at a training. `resumed` is how far the state it starts from had come."""

    def __init__(
        self,
        run_dir: Path,
        dataset: PreparedDataset,
        meter: ProgressMeter,
        stop: StopSignal,
        send: Callable[[Event], None],
        resumed: Progress | None,
        setup: JsonObject | None = None,
    ) -> None:
        self._run_dir = run_dir
        self._dataset = dataset
        self._meter = meter
        self._stop = stop
        self._send = send
        self._resumed = resumed
        self._setup = setup
        self._keeper = Keeper(run_dir, send)
        self._skip = 0
        self._in_first_epoch = True
        self._validated = False
        self._nan_recoveries = 0
        self._stripped_best: int | None = 0  # the epoch whose best.pt lies stripped among the checkpoints
        self.trainer: Any = None
        self.best_epoch = resumed.best_epoch if resumed else None
        self.epochs_completed = resumed.epoch if resumed else 0
        self.train_seconds = resumed.train_seconds if resumed else 0.0  # over all attempts
        self.batch = resumed.batch if resumed else None  # with which it was trained last
        self.is_trained = False  # the last epoch is done and saved

    def attach(self, model: Any) -> None:
        """Register with a model that is about to be trained. Ranks after the first only keep step; they keep nothing."""
        every_rank = ("on_train_start", "on_train_epoch_start")
        first_rank = (
            "on_pretrain_routine_start",
            "on_pretrain_routine_end",
            "on_train_batch_end",
            "on_val_start",
            "on_val_batch_end",
            "on_fit_epoch_end",
        )
        for event in (*every_rank, *(first_rank if RANK < 1 else ())):
            model.add_callback(event, getattr(self, event))

    def let_go(self) -> None:
        """Close the loaders and forget the trainer, so that its memory can be freed."""
        for name in ("train_loader", "test_loader"):
            loader: Any = getattr(self.trainer, name, None)
            if hasattr(loader, "close"):
                loader.close()
        self.trainer = None

    @property
    def kept(self) -> CheckpointSaved | None:
        """The newest state that is kept."""
        self._keeper.wait()
        return self._keeper.kept

    # ── before the first batch ──

    def on_pretrain_routine_start(self, trainer: Any) -> None:
        self.trainer = trainer
        self._stop.raise_if_set()
        _before(trainer, "_build_train_pipeline", lambda: self._meter.enter(Phase.SCANNING))
        _before(trainer, "final_eval", self._training_is_over)

    def on_pretrain_routine_end(self, trainer: Any) -> None:
        self._stop.raise_if_set()
        for split, loader in {"train": trainer.train_loader, "val": trainer.test_loader}.items():
            expected, found = self._dataset.images.get(split), len(loader.dataset)
            if expected and found < expected and trainer.args.fraction == 1.0:
                lost = f"{expected - found} of {expected} {split} images were left out"
                self._send(Warned(code="images_left_out", message=f"{lost}: they or their labels cannot be read."))
        pixels.work_ahead(
            [loader.dataset for loader in (trainer.test_loader, trainer.train_loader)],
            _idle_processors(trainer),
        )

    def on_train_start(self, trainer: Any) -> None:
        if RANK != -1:
            trainer.final_eval = self._training_is_over  # it is done once, when the ranks are gone
        if trainer.args.time:
            used = self._resumed.train_seconds if self._resumed else 0.0
            self._meter.budget(max(0.0, trainer.args.time * 3600 - used))
        if self._resumed:
            trainer.train_time_start -= self._resumed.train_seconds  # one clock over all attempts, as in results.csv
            batches = len(trainer.train_loader)
            self._skip = min(round(self._resumed.done * batches), batches - 1)
            _skip_once(trainer.train_loader, self._skip)

    # ── an epoch ──

    def on_train_epoch_start(self, trainer: Any) -> None:
        trainer._oom_retries = 3  # noqa: SLF001 - memory is our business in every epoch, not only in the first
        if self._resumed:
            trainer.start_epoch = 0  # its mean over all epochs then goes with the clock of all epochs
        if trainer.nan_recovery_attempts > self._nan_recoveries:
            message = f"Epoch {trainer.epoch + 1} diverged (NaN) and is repeated from the weights before it."
            self._send(Warned(code="nan_recovery", message=message))
        self._nan_recoveries = trainer.nan_recovery_attempts
        self._validated = False
        skipped = self._skip if self._in_first_epoch else 0
        self._in_first_epoch = False
        self._meter.epoch_started(trainer.epoch + 1, trainer.epochs, len(trainer.train_loader), skipped)

    def on_train_batch_end(self, trainer: Any) -> None:
        self._meter.batch_done(trainer.batch_size, lambda: numbers(trainer.tloss), lambda: _gpu_memory(trainer))
        self._stop_in_epoch()

    def on_val_start(self, validator: Any) -> None:
        self._validated = True
        self._meter.validation_started(len(validator.dataloader))

    def on_val_batch_end(self, validator: Any) -> None:
        self._meter.validation_batch_done(lambda: _gpu_memory(self.trainer))
        self._stop_in_epoch()

    def on_fit_epoch_end(self, trainer: Any) -> None:
        if self._meter.phase is Phase.FINALIZING:
            return  # called once more for the final validation, which is not an epoch
        trainer.stop |= self._stop.reason is StopReason.FINISH
        self.epochs_completed = trainer.epoch + 1
        if trainer.best_fitness == trainer.fitness:
            self.best_epoch = trainer.epoch + 1
        self._take(trainer, trainer.last, done=0.0)
        metrics = {**trainer.label_loss_items(trainer.tloss), **trainer.metrics, **trainer.lr}
        if not self._validated:
            metrics = {key: value for key, value in metrics.items() if key.startswith(("train/", "lr/"))}
        self._meter.epoch_finished(trainer.epochs, numbers(metrics))
        self._keeper.settle()
        self._stop_if_asked()

    def _training_is_over(self) -> None:
        self._keeper.wait()
        if RANK != -1 and self._keeper.error:
            # what follows is done from the kept state, by a process that has no other
            raise OSError(f"the state after the last epoch could not be kept: {self._keeper.error}")
        self.is_trained = True
        self._meter.enter(Phase.FINALIZING)

    # ── keeping the state ──

    def _stop_in_epoch(self) -> None:
        """Give up if that is asked for, at a shutdown with the state as it is now."""
        if self._stop.reason is StopReason.SHUTDOWN and self._meter.phase in (Phase.TRAINING, Phase.VALIDATING):
            self._keep_mid_epoch(self.trainer)
        self._stop_if_asked()

    def _stop_if_asked(self) -> None:
        if self._stop.reason is StopReason.SHUTDOWN:
            self._keeper.wait()  # somebody will go on from there
        self._stop.raise_if_set()

    def _keep_mid_epoch(self, trainer: Any) -> None:
        """Keep the state as of this batch, unless no epoch is finished yet."""
        if trainer.epoch < 1:
            return  # Ultralytics would not go on from there
        last, fitness = trainer.last, trainer.fitness
        done = self._meter.share_of_epoch
        trainer.last = trainer.wdir / "unfinished.pt"
        trainer.epoch -= 1
        trainer.fitness = math.nan  # equals nothing, so best.pt is left alone
        try:
            with self._keeper.may_fail():
                trainer.save_model()
                self._take(trainer, trainer.last, done)
                self._keeper.settle()
        finally:
            with contextlib.suppress(OSError):
                trainer.last.unlink(missing_ok=True)
            trainer.epoch += 1
            trainer.last, trainer.fitness = last, fitness

    def _take(self, trainer: Any, state: Path, done: float) -> None:
        self.train_seconds = round(time.time() - trainer.train_time_start, 3)
        self.batch = trainer.batch_size
        with self._keeper.may_fail():
            is_best = not done and self.best_epoch == trainer.epoch + 1
            members = self._members(trainer, is_best=is_best)
            progress = Progress(
                epoch=trainer.epoch + 1,
                done=done,
                complete=bool(trainer.stop),
                best_epoch=self.best_epoch if is_best or "best.pt" in members else None,
                train_seconds=self.train_seconds,
                batch=self.batch,
                setup=self._setup,
            )
            self._keeper.take(state, progress, members)

    def _members(self, trainer: Any, *, is_best: bool) -> dict[str, Path]:
        """The files that belong to the state, as far as they exist. A state that is the best itself needs no other."""
        files = {name: trainer.save_dir / name for name in ("results.csv", "args.yaml")}
        if not is_best:
            files["best.pt"] = self._best_stripped(trainer)
        return {name: path for name, path in files.items() if path.exists()}

    def _best_stripped(self, trainer: Any) -> Path:
        stripped: Path = checkpoint_file.folder_of(self._run_dir) / "best.pt"
        if trainer.best.exists() and (self._stripped_best != self.best_epoch or not stripped.exists()):
            strip_optimizer(trainer.best, s=str(stripped))
            self._stripped_best = self.best_epoch
        return stripped


def _idle_processors(trainer: Any) -> int:
    """How many processors the training leaves alone: it has itself and its loaders' workers."""
    return max(1, len(os.sched_getaffinity(0)) - 1 - int(trainer.train_loader.num_workers))


def _gpu_memory(trainer: Any) -> int:
    return int(trainer._get_memory() * 2**30) if trainer else 0  # noqa: SLF001 - the only place that knows the device


def _before(trainer: Any, method: str, call: Callable[[], None]) -> None:
    """Have `call` called whenever the trainer's `method` begins, for which there is no callback."""
    original = getattr(trainer, method)

    def announced(*args: Any, **kwargs: Any) -> Any:
        call()
        return original(*args, **kwargs)

    setattr(trainer, method, announced)


def _skip_once(loader: Any, batches: int) -> None:
    """Make the loader's next epoch shorter by `batches`: they were trained before the state was kept."""
    if batches < 1:
        return
    plain = type(loader)

    def shortened(self: Any) -> Any:
        object.__setattr__(self, "__class__", plain)
        whole = iter(self)
        for _ in range(len(self) - batches):
            yield next(whole)

    object.__setattr__(loader, "__class__", type("ShortenedLoader", (plain,), {"__iter__": shortened}))
