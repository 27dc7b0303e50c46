"""Progress, speed and remaining time, with a fake clock."""

import pytest

from trainer.core.events import BatchProgress, EpochFinished, Phase, PhaseStarted
from trainer.training.yolo.progress_meter import ProgressMeter


class SimulatedTraining:
    """A simulated training in which each step takes a given time."""

    def __init__(self):
        self.now = 100.0
        self.events = []
        self.loss_reads = 0
        self.meter = ProgressMeter(self.events.append, clock=lambda: self.now)

    def batch(self, seconds, images=8):
        self.now += seconds
        self.meter.batch_done(images, self._losses, lambda: 2048)

    def _losses(self):
        self.loss_reads += 1
        return {"box_loss": 1.5}

    def validate(self, batches, seconds):
        self.meter.validation_started(batches)
        for _ in range(batches):
            self.now += seconds / batches
            self.meter.validation_batch_done(lambda: 2048)

    def epoch(self, number, total, batches, seconds=1.0, validation=4.0):
        self.meter.epoch_started(number, total, batches)
        for _ in range(batches):
            self.batch(seconds)
        self.validate(2, validation)
        self.meter.epoch_finished(total, {"lr": 0.1})

    @property
    def last(self):
        return self.events[-1]

    def batch_events(self):
        return [event for event in self.events if isinstance(event, BatchProgress)]


@pytest.fixture
def training():
    return SimulatedTraining()


def test_batch_events_are_limited_to_two_per_second(training):
    training.meter.epoch_started(1, 1, 1000)
    for _ in range(1000):
        training.batch(0.01)

    assert 18 <= len(training.batch_events()) <= 21
    assert training.loss_reads == len(training.batch_events())


def test_batch_event_has_position_in_training(training):
    training.meter.epoch_started(2, 5, 10)
    training.batch(3.0)
    training.batch(1.0)

    event = training.last
    assert (event.phase, event.epoch, event.total_epochs, event.batch, event.total_batches) == (
        Phase.TRAINING,
        2,
        5,
        2,
        10,
    )
    assert event.losses == {"box_loss": 1.5}
    assert event.gpu_memory == 2048


def test_speed_excludes_first_batch(training):
    training.meter.epoch_started(1, 1, 4)
    training.batch(30.0, images=8)
    training.batch(1.0, images=8)
    training.batch(1.0, images=8)

    assert training.last.images_per_second == 8.0
    assert training.meter.images_per_second == 8.0


def test_eta_is_missing_before_second_batch(training):
    training.meter.epoch_started(1, 3, 10)
    training.batch(5.0)

    assert training.last.eta_seconds is None


def test_eta_in_first_epoch_estimates_validation_time(training):
    training.meter.epoch_started(1, 3, 10)
    for _ in range(5):
        training.batch(1.0)

    # 25 batches of 1 s and 3 validations remain; the estimate for a validation is 1 s, a tenth of an epoch of 10 s
    assert training.last.eta_seconds == pytest.approx(25 + 3 * 1.0)


def test_eta_uses_measured_validation_time(training):
    training.epoch(1, 3, batches=10, validation=4.0)

    assert training.last.eta_seconds == pytest.approx(2 * (10 + 4.0))


def test_eta_decreases_during_validation(training):
    training.epoch(1, 2, batches=10, validation=4.0)
    training.meter.epoch_started(2, 2, 10)
    for _ in range(10):
        training.batch(1.0)
    training.validate(4, 4.0)

    etas = [
        event.eta_seconds for event in training.batch_events() if event.phase is Phase.VALIDATING and event.epoch == 2
    ]
    assert etas == pytest.approx([3.0, 2.0, 1.0, 0.0])


def test_eta_does_not_exceed_time_budget(training):
    training.meter.budget(20.0)
    training.meter.epoch_started(1, 100, 10)
    for _ in range(5):
        training.batch(1.0)

    assert training.last.eta_seconds == 15.0


def test_restarted_epoch_resets_counts(training):
    training.meter.epoch_started(1, 2, 10)
    for _ in range(7):
        training.batch(1.0)
    training.meter.epoch_started(1, 2, 20)
    training.batch(1.0)

    assert (training.last.epoch, training.last.batch, training.last.total_batches) == (1, 1, 20)


def test_resumed_epoch_counts_skipped_batches(training):
    training.meter.epoch_started(3, 4, 8, skipped=5)
    assert training.meter.share_of_epoch == 5 / 8
    training.batch(1.0)

    assert (training.last.batch, training.last.total_batches) == (6, 8)


def test_phase_event_has_seconds_of_previous_phase(training):
    training.meter.enter(Phase.LOADING)
    training.now += 2.5
    training.meter.enter(Phase.LOADING)
    training.meter.enter(Phase.SCANNING)

    assert training.events == [
        PhaseStarted(phase=Phase.LOADING, seconds=None),
        PhaseStarted(phase=Phase.SCANNING, seconds=2.5),
    ]


def test_phase_stays_finalizing_during_final_validation(training):
    training.epoch(1, 1, batches=2)
    training.meter.enter(Phase.FINALIZING)
    training.validate(2, 4.0)

    assert training.last.phase is Phase.FINALIZING
    assert training.last.eta_seconds is None


def test_epoch_event_has_metrics_seconds_and_total(training):
    training.meter.epoch_started(1, 9, 2)
    training.batch(1.0)
    training.batch(1.0)
    training.validate(1, 3.0)
    training.meter.epoch_finished(4, {"metrics/mAP50(B)": 0.5})

    assert training.last == EpochFinished(
        epoch=1,
        total_epochs=4,
        metrics={"metrics/mAP50(B)": 0.5},
        seconds=5.0,
        eta_seconds=pytest.approx(3 * (2 + 3)),
    )
