"""The progress of a run, computed from events."""

import pytest

from trainer.core.events import BatchProgress, EpochFinished, Phase, PhaseStarted, TransferProgress
from trainer.core.progress import Progress, clock


def batch(epoch, number, of=10, phase=Phase.TRAINING, **more):
    return BatchProgress(phase=phase, epoch=epoch, total_epochs=4, batch=number, total_batches=of, **more)


def epoch(number, **metrics):
    return EpochFinished(epoch=number, total_epochs=4, metrics=metrics, seconds=1.0, eta_seconds=75.4)


@pytest.fixture
def progress():
    progress = Progress()
    progress.expect(4)
    return progress


def shown(progress):
    return progress.as_json()["progress"]


def test_batches_increase_percent_within_epoch(progress):
    progress.follow(batch(2, 5))

    assert shown(progress)["percent"] == 37.5
    assert shown(progress)["epoch"] == 2


def test_epoch_event_sets_metrics_percent_and_eta(progress):
    progress.follow(epoch(3, **{"metrics/mAP50(B)": 0.5}))

    assert progress.as_json()["metrics"] == {"metrics/mAP50(B)": 0.5, "epoch": 3}
    assert shown(progress)["percent"] == 75.0
    assert (shown(progress)["eta_seconds"], shown(progress)["eta"]) == (75, "00:01:15")


def test_metrics_are_missing_until_first_epoch_ends(progress):
    progress.follow(batch(1, 1))

    assert "metrics" not in progress.as_json()


def test_repeated_epoch_does_not_decrease_percent(progress):
    progress.follow(epoch(2))
    progress.follow(batch(2, 1))

    assert shown(progress)["percent"] == 50.0


def test_validation_batches_do_not_increase_percent(progress):
    progress.follow(epoch(1))
    progress.follow(batch(1, 10, phase=Phase.VALIDATING))

    assert shown(progress)["percent"] == 25.0


def test_epoch_above_total_is_shown_as_total(progress):
    progress.follow(epoch(5))

    assert shown(progress)["epoch"] == 4
    assert shown(progress)["percent"] == 100.0


def test_resumed_run_starts_at_checkpoint(progress):
    progress.expect(4, 3)
    progress.follow(PhaseStarted(phase=Phase.LOADING))

    assert (shown(progress)["epoch"], shown(progress)["percent"]) == (3, 75.0)


def test_download_is_shown_until_next_phase(progress):
    tick = TransferProgress(
        phase=Phase.DOWNLOADING, files=1, total_files=4, bytes=10, total_bytes=40, rate=5.0, eta_seconds=6.0,
    )  # fmt: skip
    progress.follow(tick)

    assert shown(progress)["transfer"]["bytes"] == 10
    assert shown(progress)["eta_seconds"] == 6

    progress.follow(PhaseStarted(phase=Phase.LOADING))

    assert "transfer" not in shown(progress)


def test_losses_and_speed_are_shown_until_upload_starts(progress):
    progress.follow(batch(1, 2, losses={"box_loss": 1.5}, images_per_second=99.0))

    assert shown(progress)["losses"] == {"box_loss": 1.5}
    assert shown(progress)["images_per_second"] == 99.0

    progress.follow(PhaseStarted(phase=Phase.UPLOADING))

    assert "losses" not in shown(progress)


def test_losses_are_shown_during_validation(progress):
    progress.follow(batch(1, 10, losses={"box_loss": 1.5}))
    progress.follow(PhaseStarted(phase=Phase.VALIDATING))
    progress.follow(batch(1, 1, phase=Phase.VALIDATING))

    assert shown(progress)["losses"] == {"box_loss": 1.5}
    assert shown(progress)["batch"] == 1


def test_completed_run_has_100_percent(progress):
    progress.follow(epoch(4))

    done = progress.finished()

    assert (done["phase"], done["percent"], done["eta"]) == ("completed", 100.0, "00:00:00")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, None), (0, "00:00:00"), (59.6, "00:01:00"), (3661, "01:01:01"), (400_000, "111:06:40")],
)
def test_seconds_are_shown_as_hours_minutes_and_seconds(seconds, text):
    assert clock(seconds) == text
