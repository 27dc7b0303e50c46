"""From batches to progress: phases, epochs, speed, and the time that is left. Knows no library, only a clock."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from trainer.core.events import BatchProgress, EpochFinished, Event, Phase, PhaseStarted

TICK_SECONDS = 0.5  # at most one batch event in this time


@dataclass(kw_only=True)
class Pace:
    """How long things of one kind take: `count` of them took `seconds`."""

    count: int = 0
    seconds: float = 0.0

    def add(self, seconds: float, count: int = 1) -> None:
        self.count += count
        self.seconds += seconds

    @property
    def each(self) -> float | None:
        return self.seconds / self.count if self.count else None


class ProgressMeter:
    """Turns what the training loop passes by into events; every method is cheap enough to be called for each batch.

    An epoch may begin again (memory, NaN): `epoch_started` forgets what the interrupted try had counted.
    """

    def __init__(self, send: Callable[[Event], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._send = send
        self._clock = clock
        self.phase = Phase.STARTING
        self._phase_began: float | None = None  # what was before the first is the supervisor's to know
        self._last_tick = float("-inf")
        self.epoch = 0
        self._total_epochs = 0
        self._batches = 0
        self._batch = 0
        self._val_batches = 0
        self._val_batch = 0
        self._epoch_began = self._mark = clock()
        self._deadline: float | None = None
        self._train = Pace()  # of this epoch, without its first batch, which waits for the loaders to start
        self._train_before = Pace()
        self._overhead = Pace()  # validation and saving, per epoch
        self._images = Pace()  # of this epoch
        self._started = False  # whether this epoch's first batch is through
        self.trained = Pace()  # images of the whole session

    def enter(self, phase: Phase) -> None:
        """Tell that a phase begins, if it is another one."""
        if phase is self.phase:
            return
        now = self._clock()
        seconds = None if self._phase_began is None else round(now - self._phase_began, 3)
        self._send(PhaseStarted(phase=phase, seconds=seconds))
        self.phase, self._phase_began = phase, now

    def budget(self, seconds: float) -> None:
        """The training will be ended after so many seconds from now, whatever its epochs."""
        self._deadline = self._clock() + seconds

    def epoch_started(self, epoch: int, total_epochs: int, batches: int, skipped: int = 0) -> None:
        """Begin epoch `epoch` (1-based) with `batches` batches, of which the first `skipped` were trained before."""
        self.enter(Phase.TRAINING)
        self.epoch, self._total_epochs = epoch, total_epochs
        self._batches, self._batch, self._val_batch = batches, skipped, 0
        self._train_before = self._train if self._train.count else self._train_before
        self._train = Pace()
        self._images, self._started = Pace(), False
        self._epoch_began = self._mark = self._clock()

    def batch_done(self, images: int, losses: Callable[[], Mapping[str, float]], memory: Callable[[], int]) -> None:
        """A batch was trained. `losses` and `memory` are asked only when an event is due."""
        now = self._clock()
        self._batch += 1
        if self._started:
            for pace, count in (self._train, 1), (self._images, images), (self.trained, images):
                pace.add(now - self._mark, count)
        self._started = True
        self._mark = now
        if self._is_due(now):
            self._tick(now, self._batch, self._batches, losses(), memory)

    def validation_started(self, batches: int) -> None:
        """Validation begins: that of an epoch, or the final one when the phase is FINALIZING."""
        self._val_batches, self._val_batch = batches, 0
        if self.phase is not Phase.FINALIZING:
            self.enter(Phase.VALIDATING)

    def validation_batch_done(self, memory: Callable[[], int]) -> None:
        """A batch was validated."""
        self._val_batch += 1
        now = self._clock()
        if self._is_due(now):
            self._tick(now, self._val_batch, self._val_batches, {}, memory)

    def epoch_finished(self, total_epochs: int, metrics: Mapping[str, float]) -> None:
        """The epoch is validated and saved. `total_epochs` may have changed meanwhile (time budget)."""
        now = self._clock()
        self._total_epochs = total_epochs
        self._overhead.add(now - self._mark)
        self._val_batches = self._val_batch = 0
        self._batch = self._batches
        self._send(
            EpochFinished(
                epoch=self.epoch,
                total_epochs=total_epochs,
                metrics=metrics,
                seconds=round(now - self._epoch_began, 3),
                eta_seconds=self._eta(now, whole_epochs=max(0, total_epochs - self.epoch), batches=0, validations=0.0),
            ),
        )

    @property
    def share_of_epoch(self) -> float:
        """How much of the epoch's batches is trained, 0…1."""
        return self._batch / self._batches if self._batches else 0.0

    @property
    def images_per_second(self) -> float | None:
        """Over all batches of this session, validation not counted."""
        return round(self.trained.count / self.trained.seconds, 2) if self.trained.seconds else None

    def _is_due(self, now: float) -> bool:
        return now - self._last_tick >= TICK_SECONDS

    def _tick(
        self,
        now: float,
        batch: int,
        total: int,
        losses: Mapping[str, float],
        memory: Callable[[], int],
    ) -> None:
        self._last_tick = now
        training = self.phase is Phase.TRAINING and self._images.seconds > 0
        self._send(
            BatchProgress(
                phase=self.phase,
                epoch=self.epoch,
                total_epochs=self._total_epochs,
                batch=batch,
                total_batches=total,
                losses=losses,
                images_per_second=round(self._images.count / self._images.seconds, 2) if training else None,
                gpu_memory=memory() or None,
                eta_seconds=self._time_left(now),
            ),
        )

    def _time_left(self, now: float) -> float | None:
        if self.phase is Phase.FINALIZING:
            return None
        whole = max(0, self._total_epochs - self.epoch)
        left = 1.0 - self._val_batch / self._val_batches if self._val_batches and self._val_batch else 1.0
        return self._eta(now, whole_epochs=whole, batches=self._batches - self._batch, validations=left)

    def _eta(self, now: float, whole_epochs: int, batches: int, validations: float) -> float | None:
        """Seconds for `batches` more batches, `validations` of this epoch and `whole_epochs` after it."""
        pace = self._pace()
        if pace is None:
            return None
        # before the first validation was seen, say that it takes a tenth of the training before it
        overhead = self._overhead.each if self._overhead.count else 0.1 * pace * self._batches
        assert overhead is not None
        left = batches * pace + validations * overhead + whole_epochs * (self._batches * pace + overhead)
        if self._deadline is not None:
            left = min(left, max(0.0, self._deadline - now))
        return round(left, 1)

    def _pace(self) -> float | None:
        """Seconds per batch, over this epoch and the one before it."""
        recent = Pace(
            count=self._train.count + self._train_before.count,
            seconds=self._train.seconds + self._train_before.seconds,
        )
        return recent.each
