"""Stop real trainings and resume them in other folders, as on another host."""

import csv
import json
import shutil
import zipfile
from types import SimpleNamespace

import pytest
from child_run import order_for, run_child, stop_at
from drawn import draw

from trainer.core.dataset import Task
from trainer.core.events import (
    BatchProgress,
    CheckpointSaved,
    ChildStopped,
    EpochFinished,
    Finished,
    Phase,
    PhaseStarted,
)
from trainer.core.results_table import epochs_after
from trainer.core.stop import StopReason

pytestmark = pytest.mark.training


def in_epoch(number):
    return lambda event: isinstance(event, BatchProgress) and event.epoch == number and event.phase is Phase.TRAINING


def epochs_in(results):
    with results.open() as file:
        return [int(row["epoch"]) for row in csv.DictReader(file)]


@pytest.fixture(scope="module")
def detect(tmp_path_factory):
    return draw(tmp_path_factory.mktemp("detect"), Task.DETECT)


@pytest.fixture(scope="module")
def drained(detect, tmp_path_factory):
    """A training of four epochs that was shut down in its third epoch."""
    home = tmp_path_factory.mktemp("drained")
    order = order_for(detect, home / "run", epochs=4, batch=1)
    return run_child(order, home, on_event=stop_at(StopReason.SHUTDOWN, in_epoch(3))), home / "run"


@pytest.fixture(scope="module")
def resumed(drained, tmp_path_factory):
    """The drained training, resumed in other folders with only the checkpoint of the first attempt.

    The second epoch of the first attempt was not reported.
    """
    run, _ = drained
    home = tmp_path_factory.mktemp("resumed")
    checkpoint = home / "checkpoint.pt"
    shutil.copyfile(run.newest, checkpoint)
    dataset = draw(home / "data", Task.DETECT)
    order = order_for(dataset, home / "run", epochs=4, batch=1, resume=checkpoint, last_reported_epoch=1)
    return run_child(order, home), home / "run"


def test_cancel_ends_training_at_next_batch_without_result(detect, tmp_path):
    when = []

    def on_event(event, process):
        ask(event, process)
        when.append(event)

    ask = stop_at(StopReason.CANCELED, in_epoch(1))
    run = run_child(order_for(detect, tmp_path / "run", epochs=50, batch=2), tmp_path, on_event=on_event)

    assert isinstance(run.last, ChildStopped)
    assert run.process.returncode == 0
    assert not run.of(Finished)
    asked_at = next(at for at, event in zip(run.at, run.events, strict=True) if in_epoch(1)(event))
    assert run.at[-1] - asked_at < 3.0
    assert len(run.of(EpochFinished)) <= 2


def test_cancel_during_start_ends_training_before_first_batch(detect, tmp_path):
    loading = stop_at(StopReason.CANCELED, lambda event: isinstance(event, PhaseStarted))
    run = run_child(order_for(detect, tmp_path / "run", epochs=5), tmp_path, on_event=loading)

    assert isinstance(run.last, ChildStopped)
    assert not run.of(BatchProgress)


def test_shutdown_saves_unfinished_epoch(drained):
    run, run_dir = drained
    checkpoints = run.of(CheckpointSaved)

    assert isinstance(run.last, ChildStopped)
    assert [c.epoch for c in checkpoints] == [1, 2, 2]
    facts = json.loads((run_dir / "checkpoints" / "epoch-00002.json").read_text())
    assert facts["sha256"] == checkpoints[-1].sha256
    assert 0 < facts["done"] < 1
    assert not (run_dir / "weights" / "unfinished.pt").exists()
    with zipfile.ZipFile(run.newest) as archive:  # the checkpoint has best.pt, because another epoch is the best
        (best,) = (info for info in archive.infolist() if info.filename.endswith("run/best.pt"))
    assert 1e6 < best.file_size < 10e6


@pytest.mark.long
def test_shutdown_during_validation_saves_trained_epoch(detect, tmp_path):
    validations = []

    def in_second_validation(event):
        if isinstance(event, PhaseStarted) and event.phase is Phase.VALIDATING:
            validations.append(event)
        return len(validations) == 2

    many = draw(tmp_path / "data", Task.DETECT, val=80)
    order = order_for(many, tmp_path / "run", epochs=3, batch=1)
    run = run_child(order, tmp_path, on_event=stop_at(StopReason.SHUTDOWN, in_second_validation))

    assert isinstance(run.last, ChildStopped), run.output
    facts = json.loads((tmp_path / "run" / "checkpoints" / "epoch-00001.json").read_text())
    assert facts["done"] == 1.0
    again = run_child(
        order_for(
            many, tmp_path / "run", epochs=3, batch=1, resume=tmp_path / "run" / "checkpoints" / "epoch-00001.pt"
        ),
        tmp_path,
    )
    assert isinstance(again.last, Finished), again.output
    ticks = [tick for tick in again.of(BatchProgress) if tick.epoch == 2 and tick.phase is Phase.TRAINING]
    assert {tick.batch for tick in ticks} <= {16}  # only the last batch is left; its event may be dropped
    assert epochs_in(tmp_path / "run" / "results.csv") == [1, 2, 3]


def test_shutdown_in_first_epoch_saves_only_checkpoints_of_finished_epochs(detect, tmp_path):
    order = order_for(detect, tmp_path / "run", epochs=50, batch=2)
    run = run_child(order, tmp_path, on_event=stop_at(StopReason.SHUTDOWN, in_epoch(1)))

    assert isinstance(run.last, ChildStopped)
    finished = {event.epoch for event in run.of(EpochFinished)}
    assert {c.epoch for c in run.of(CheckpointSaved)} == finished


def test_resumed_training_has_every_epoch_once(resumed):
    run, run_dir = resumed

    assert isinstance(run.last, Finished), run.output
    assert [event.epoch for event in run.of(EpochFinished)] == [2, 3, 4]
    assert run.last.report["epochs_completed"] == 4
    assert epochs_in(run_dir / "results.csv") == [1, 2, 3, 4]
    assert (run_dir / "weights" / "best.pt").exists()


def test_unreported_epoch_is_reported_by_next_attempt(drained, resumed):
    first, again = drained[0].of(EpochFinished)[1], resumed[0].of(EpochFinished)[0]

    assert (first.epoch, again.epoch, again.total_epochs) == (2, 2, 4)
    assert again.metrics == first.metrics
    assert again.seconds > 0
    assert resumed[0].events.index(again) < resumed[0].events.index(resumed[0].of(BatchProgress)[0])


def test_truncated_row_of_results_is_ignored():
    rows = ["epoch,time,train/box_loss,lr/pg0", "1,2.5,0.5,0.01", "2,4,0.3,0.02,4,9,0.2,0.01", "5,11,0.1,0.01", "6,1"]

    reported = list(epochs_after(1, "\n".join(rows), SimpleNamespace(args={}, epochs=9)))

    assert [(event.epoch, event.total_epochs, event.metrics) for event in reported] == [
        (5, 9, {"train/box_loss": 0.1, "lr/pg0": 0.01})
    ]


@pytest.mark.parametrize(
    "results", ["", "\n", "epo", "epoch,ti\n1,2\n", "epoch,time\n1\0,x\n", "epoch,time\ninf,1\n", "\0\ufffd"]
)
def test_damaged_results_are_ignored(results, tmp_path):
    from trainer.training.yolo.report import from_results  # imported here, because this module imports Ultralytics

    assert list(epochs_after(0, results, SimpleNamespace(args={}, epochs=9))) == []
    (tmp_path / "results.csv").write_text(results)
    for path in (tmp_path / "results.csv", tmp_path / "missing.csv"):
        assert from_results(path, 3, Task.DETECT)["mAP"] is None


def test_resumed_training_skips_trained_batches(drained, resumed):
    _, run_dir = drained
    facts = json.loads((run_dir / "checkpoints" / "epoch-00002.json").read_text())
    first = resumed[0].of(BatchProgress)[0]

    assert first.epoch == 3
    assert first.batch == round(facts["done"] * first.total_batches) + 1


def test_resumed_training_continues_elapsed_time(resumed):
    with (resumed[1] / "results.csv").open() as file:
        times = [float(row["time"]) for row in csv.DictReader(file)]

    assert times == sorted(times)
    assert resumed[0].last.report["train_seconds"] >= times[-1]


def test_resumed_training_continues_optimizer_and_schedule(drained, resumed):
    before = drained[0].of(EpochFinished)[-1].metrics["lr/pg0"]
    after = [event.metrics["lr/pg0"] for event in resumed[0].of(EpochFinished) if event.epoch > 2]

    # the warm-up ended early in the second epoch; afterwards the rate only decreases
    assert before > after[0] > after[1]


def test_finish_request_completes_run_with_fewer_epochs(detect, tmp_path):
    order = order_for(detect, tmp_path / "run", epochs=50, batch=4)
    run = run_child(order, tmp_path, on_event=stop_at(StopReason.FINISH, in_epoch(1)))

    assert isinstance(run.last, Finished)
    completed = run.last.report["epochs_completed"]
    assert completed == run.of(EpochFinished)[-1].epoch <= 3
    assert run.last.report["mAP"] is not None


def test_training_interrupted_after_last_epoch_is_only_validated(resumed, tmp_path):
    run, _ = resumed
    dataset = draw(tmp_path / "data", Task.DETECT)
    order = order_for(dataset, tmp_path / "run", epochs=4, batch=2, resume=tmp_path / "c.pt", last_reported_epoch=4)
    shutil.copyfile(run.newest, order.resume)
    again = run_child(order, tmp_path)

    assert isinstance(again.last, Finished), again.output
    assert not again.of(EpochFinished)
    assert again.last.report["metrics"] == run.last.report["metrics"]
    assert again.last.report["epochs_completed"] == 4
    assert (tmp_path / "run" / "args.yaml").read_text() == (resumed[1] / "args.yaml").read_text()
    assert (tmp_path / "run" / "weights" / "best.pt").stat().st_size < 10e6
    assert epochs_in(tmp_path / "run" / "results.csv") == [1, 2, 3, 4]
