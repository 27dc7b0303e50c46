"""Turns batches into progress: phases, epochs, speed and remaining time. This module does not use Ultralytics."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from trainer.core.events import BatchProgress, EpochFinished, Event, Phase, PhaseStarted

INTERVAL_SECONDS = 0.5  # minimum time between two batch events


@dataclass(kw_only=True)
class Pace:
    """A mean time: `count` items took `seconds`."""

    count: int = 0
    seconds: float = 0.0

    def add(self, seconds: float, count: int = 1) -> None:
        self.count += count
        self.seconds += seconds


class ProgressMeter:
    """Turns the steps of the training loop into events. Every method is cheap enough to be called for each batch.

    An epoch may start again (out of memory, NaN). Then `epoch_started` resets the counts of the interrupted try.
    """

    def __init__(self, send: Callable[[Event], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._send = send
        self._clock = clock
        self.phase = Phase.STARTING
        self._phase_started_at: float | None = None  # None for STARTING, because the supervisor starts this phase
        self._sent_at = float("-inf")
        self.epoch = 0
        self._total_epochs = 0
        self._batches = 0
        self._batch = 0
        self._val_batches = 0
        self._val_batch = 0
        self._epoch_started_at = self._mark = clock()
        self._deadline: float | None = None
        self._train = Pace()  # batches of this epoch, without the first batch, which waits for the loaders
        self._train_before = Pace()
        self._overhead = Pace()  # validation and saving of each epoch
        self._images = 0  # images of this epoch, trained in `_train.seconds`
        self._started = False  # whether this epoch's first batch is done
        self.trained = Pace()  # images of this attempt

    def enter(self, phase: Phase) -> None:
        """Enter `phase`. Send an event if it is a new phase."""
        if phase is self.phase:
            return
        now = self._clock()
        seconds = None if self._phase_started_at is None else round(now - self._phase_started_at, 3)
        self._send(PhaseStarted(phase=phase, seconds=seconds))
        self.phase, self._phase_started_at = phase, now

    def budget(self, seconds: float) -> None:
        """Set the time budget: the training ends `seconds` from now, even if epochs are left."""
        self._deadline = self._clock() + seconds

    def epoch_started(self, epoch: int, total_epochs: int, batches: int, skipped: int = 0) -> None:
        """Start an epoch (1-based) of `batches` batches. An earlier attempt trained the first `skipped` batches."""
        self.enter(Phase.TRAINING)
        self.epoch, self._total_epochs = epoch, total_epochs
        self._batches, self._batch, self._val_batch = batches, skipped, 0
        self._train_before = self._train if self._train.count else self._train_before
        self._train = Pace()
        self._images, self._started = 0, False
        self._epoch_started_at = self._mark = self._clock()

    def batch_done(self, images: int, losses: Callable[[], Mapping[str, float]], memory: Callable[[], int]) -> None:
        """Count a trained batch. `losses` and `memory` are called only when an event is due."""
        now = self._clock()
        self._batch += 1
        if self._started:
            self._train.add(now - self._mark)
            self.trained.add(now - self._mark, images)
            self._images += images
        self._started = True
        self._mark = now
        self._send_batch(now, self._batch, self._batches, losses, memory)

    def validation_started(self, batches: int) -> None:
        """Start the validation of an epoch, or the final validation in phase FINALIZING."""
        self._val_batches, self._val_batch = batches, 0
        if self.phase is not Phase.FINALIZING:
            self.enter(Phase.VALIDATING)

    def validation_batch_done(self, memory: Callable[[], int]) -> None:
        """Count a validated batch."""
        self._val_batch += 1
        self._send_batch(self._clock(), self._val_batch, self._val_batches, dict, memory)

    def epoch_finished(self, total_epochs: int, metrics: Mapping[str, float]) -> None:
        """Send the event of a validated and saved epoch. With a time budget, `total_epochs` may have changed."""
        now = self._clock()
        self._total_epochs = total_epochs
        self._overhead.add(now - self._mark)
        self._val_batches = self._val_batch = 1  # this epoch is complete
        self._batch = self._batches
        self._send(
            EpochFinished(
                epoch=self.epoch,
                total_epochs=total_epochs,
                metrics=metrics,
                seconds=round(now - self._epoch_started_at, 3),
                eta_seconds=self._eta(now),
            ),
        )

    @property
    def share_of_epoch(self) -> float:
        """Share of the epoch's batches that are trained, 0…1."""
        return self._batch / self._batches if self._batches else 0.0

    @property
    def images_per_second(self) -> float | None:
        """Speed over all batches of this attempt, without validation."""
        return round(self.trained.count / self.trained.seconds, 2) if self.trained.seconds else None

    def _send_batch(
        self, now: float, batch: int, total: int, losses: Callable[[], Mapping[str, float]], memory: Callable[[], int]
    ) -> None:
        if now - self._sent_at < INTERVAL_SECONDS:
            return
        self._sent_at = now
        training = self.phase is Phase.TRAINING and self._train.seconds > 0
        self._send(
            BatchProgress(
                phase=self.phase,
                epoch=self.epoch,
                total_epochs=self._total_epochs,
                batch=batch,
                total_batches=total,
                losses=losses(),
                images_per_second=round(self._images / self._train.seconds, 2) if training else None,
                gpu_memory=memory() or None,
                eta_seconds=None if self.phase is Phase.FINALIZING else self._eta(now),
            ),
        )

    def _eta(self, now: float) -> float | None:
        """Return the seconds until the end of the last epoch, or None without a measurement."""
        measured = self._train.count + self._train_before.count
        if not measured:
            return None
        batch = (self._train.seconds + self._train_before.seconds) / measured
        # before the first validation, assume that a validation takes a tenth of the training time of an epoch
        overhead = (
            self._overhead.seconds / self._overhead.count if self._overhead.count else 0.1 * batch * self._batches
        )
        to_validate = 1.0 - self._val_batch / self._val_batches if self._val_batch else 1.0
        epochs = max(0, self._total_epochs - self.epoch)
        left = (
            (self._batches - self._batch) * batch + to_validate * overhead + epochs * (self._batches * batch + overhead)
        )
        if self._deadline is not None:
            left = min(left, max(0.0, self._deadline - now))
        return round(left, 1)
