"""Trainings with NaN losses, a time budget, early stopping, no validation, or another model family."""

import csv
import shutil
from pathlib import Path

import pytest
from child_run import order_for, run_child
from drawn import draw

from trainer.core.dataset import Task
from trainer.core.events import (
    BatchProgress,
    CheckpointSaved,
    Crashed,
    EpochFinished,
    Finished,
    Phase,
    PhaseStarted,
    Warned,
)

pytestmark = [pytest.mark.training, pytest.mark.long]


@pytest.fixture(scope="module")
def detect(tmp_path_factory):
    return draw(tmp_path_factory.mktemp("detect"), Task.DETECT)


@pytest.fixture(scope="module")
def classify(tmp_path_factory):
    return draw(tmp_path_factory.mktemp("classify"), Task.CLASSIFY)


def epochs_of(run):
    return [event.epoch for event in run.of(EpochFinished)]


def test_diverged_epoch_is_repeated_and_reported_once(detect, tmp_path):
    order = order_for(detect, tmp_path / "run", epochs=3)
    run = run_child(order, tmp_path, program="diverges.py", env={"NAN_IN": "4"})

    assert isinstance(run.last, Finished), run.output
    assert [event.code for event in run.of(Warned)] == ["nan_recovery"]
    assert epochs_of(run) == [1, 2, 3]


def test_persistent_nan_loss_is_a_crash(detect, tmp_path):
    order = order_for(detect, tmp_path / "run", epochs=3)
    run = run_child(order, tmp_path, program="diverges.py", env={"NAN_IN": ",".join(map(str, range(3, 40)))})

    assert isinstance(run.last, Crashed)
    assert "NaN persisted" in run.last.message


@pytest.fixture(scope="module")
def budgeted(classify, tmp_path_factory):
    """A training of 100 epochs with a time budget of 2.5 seconds."""
    home = tmp_path_factory.mktemp("budgeted")
    return run_child(order_for(classify, home / "run", epochs=100, args={"time": 2.5 / 3600}), home)


def test_time_budget_ends_training(budgeted):
    assert isinstance(budgeted.last, Finished), budgeted.output
    assert 1 <= budgeted.last.report["epochs_completed"] < 60
    assert budgeted.last.report["train_seconds"] < 8
    assert all(tick.eta_seconds is None or tick.eta_seconds < 60 for tick in budgeted.of(BatchProgress)[1:])


def test_time_budget_of_resumed_training_includes_earlier_attempts(budgeted, classify, tmp_path):
    """The first attempt used most of the time budget, so the resumed training ends after at most three epochs."""
    checkpoints = budgeted.of(CheckpointSaved)
    before = shutil.copyfile(budgeted.folder.checkpoint(checkpoints[-2].epoch), tmp_path / "before.pt")
    changes = {
        "epochs": 100,
        "args": {"time": 2.5 / 3600},
        "resume": Path(before),
        "last_reported_epoch": checkpoints[-2].epoch,
    }
    order = order_for(classify, tmp_path / "run", **changes)
    run = run_child(order, tmp_path)

    assert isinstance(run.last, Finished), run.output
    assert len(epochs_of(run)) <= 3
    with (tmp_path / "run" / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["epoch"]) for row in rows] == list(range(1, len(rows) + 1))
    assert float(rows[-1]["time"]) > float(rows[checkpoints[-2].epoch - 1]["time"])


def test_early_stopping_reports_no_extra_epoch(classify, tmp_path):
    run = run_child(order_for(classify, tmp_path / "run", epochs=60, args={"patience": 2, "lr0": 1e-9}), tmp_path)

    assert isinstance(run.last, Finished), run.output
    epochs = epochs_of(run)
    assert epochs == list(range(1, len(epochs) + 1))
    assert len(epochs) < 60
    assert run.last.report["epochs_completed"] == len(epochs)
    assert run.last.report["best_epoch"] in epochs


def test_without_validation_only_last_epoch_has_metrics(detect, tmp_path):
    run = run_child(order_for(detect, tmp_path / "run", epochs=2, args={"val": False}), tmp_path)

    first, last = run.of(EpochFinished)
    assert not [name for name in first.metrics if name.startswith(("val/", "metrics/"))]
    assert [name for name in last.metrics if name.startswith("metrics/")]
    assert [e.phase for e in run.of(PhaseStarted)].count(Phase.VALIDATING) == 1
    assert run.last.report["mAP"] is not None


@pytest.mark.parametrize(
    ("stem", "losses"),
    [("yolov8n", {"box", "cls", "dfl"}), ("yolo26n", {"box", "cls", "l1"}), ("rtdetr-l", {"giou", "cls", "l1"})],
)
def test_other_model_families_report_their_losses(detect, tmp_path, stem, losses):
    run = run_child(order_for(detect, tmp_path / "run", model=Path(f"{stem}.yaml")), tmp_path)

    assert isinstance(run.last, Finished), run.output
    (epoch,) = run.of(EpochFinished)
    assert {f"train/{name}_loss" for name in losses} == {name for name in epoch.metrics if name.startswith("train/")}


def test_trained_model_can_be_fine_tuned(detect, tmp_path):
    first = run_child(order_for(detect, tmp_path / "a" / "run"), tmp_path / "a")
    order = order_for(detect, tmp_path / "b" / "run", model=first.folder.best)
    second = run_child(order, tmp_path / "b")

    assert isinstance(second.last, Finished), second.output
    assert "Transferred 499/499 items" in second.output
