"""One training on two devices: the launcher of torch and two ranks on the CPU over gloo, with the real supervisor."""

import csv
import os
import sys
import threading
import time
from dataclasses import replace

import psutil
import pytest
import yaml
from child_run import PROGRAMS, order_for
from drawn import draw

from trainer.core.dataset import Task
from trainer.core.errors import MachineFailed, RunFailed
from trainer.core.events import BatchProgress, CheckpointSaved, EpochFinished, Phase, PhaseStarted, Warned
from trainer.core.run_folder import OutputFolder
from trainer.core.stop import Stopped, StopReason, StopSignal
from trainer.training.supervisor.process import ChildTrainer
from trainer.training.supervisor.training_watch import TimeLimits
from trainer.training.yolo import ddp
from trainer.training.yolo.ddp import shared_order

pytestmark = [pytest.mark.training, pytest.mark.long]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return draw(tmp_path_factory.mktemp("detect"), Task.DETECT, test=4)


class TwoDevices:
    """A training on two devices; `events` and `lines` are its events and output."""

    def __init__(self, home, dataset):
        self.home, self.dataset = home, dataset
        self.run_dir = home / "run"
        self.events, self.lines = [], []
        self.stop = StopSignal()
        self.stop_when = lambda event: None  # returns the reason to stop, if any
        self.trainer = ChildTrainer(
            environment=os.environ, home=home / "children", weights=home / "weights", limits=TimeLimits(grace=20),
            program=(sys.executable, str(PROGRAMS / "ranks_on_cpu.py")),
        )  # fmt: skip

    def train(self, fault=None, **changes):
        order = replace(order_for(self.dataset, self.run_dir, **{"epochs": 2, "batch": 4} | changes), devices=(0, 1))
        if fault:
            self.run_dir.mkdir()
            (self.run_dir / "fault").write_text(fault)
        return self.trainer.train(order, self.stop, self.on_event, self.lines.append)

    def on_event(self, event):
        self.events.append(event)
        if reason := self.stop_when(event):
            self.stop.set(reason)

    def of(self, kind):
        return [event for event in self.events if isinstance(event, kind)]

    @property
    def folder(self):
        return OutputFolder(self.run_dir)

    @property
    def newest(self):
        return self.folder.checkpoint(self.of(CheckpointSaved)[-1].epoch)

    def epochs(self):
        with (self.run_dir / "results.csv").open() as file:
            return [int(row["epoch"]) for row in csv.DictReader(file)]


@pytest.fixture
def two(tmp_path, dataset):
    before = set(psutil.Process().children(recursive=True))
    yield TwoDevices(tmp_path, dataset)
    _, alive = psutil.wait_procs(set(psutil.Process().children(recursive=True)) - before, timeout=5)
    assert not alive


def in_epoch(number, reason):
    def when(event):
        return reason if isinstance(event, BatchProgress) and event.epoch == number else None

    return when


def test_two_ranks_train_one_model(two):
    finished = two.train()

    assert {line for line in two.lines if "trains" in line} == {
        "rank 0 of 2 trains", "rank 1 of 2 trains",
    }  # fmt: skip
    assert [event.epoch for event in two.of(EpochFinished)] == [1, 2] == two.epochs()
    assert [event.epoch for event in two.of(CheckpointSaved)] == [1, 2]
    phases = list(dict.fromkeys(event.phase for event in two.of(PhaseStarted)))
    order = [Phase.LOADING, Phase.SCANNING, Phase.TRAINING, Phase.VALIDATING, Phase.FINALIZING]
    assert phases == order
    assert finished.report["epochs_completed"] == 2
    assert finished.report["sandbox"] == []
    assert finished.report["images_per_second"] > 0
    assert {"mAP", "per_class", "test"} <= finished.report.keys()
    assert two.folder.best.stat().st_size < 8e6, "the optimizer state was not removed"
    assert "metrics/mAP50(B)" in two.of(EpochFinished)[0].metrics


def test_cancel_ends_every_rank(two):
    two.stop_when = in_epoch(2, StopReason.CANCELED)
    stopped_at = []

    def on_event(event):
        two.on_event(event)
        if two.stop.must_stop and not stopped_at:
            stopped_at.append(time.monotonic())

    with pytest.raises(Stopped) as stopped:
        two.trainer.train(
            replace(order_for(two.dataset, two.run_dir, epochs=50, batch=4), devices=(0, 1)), two.stop, on_event, two.lines.append,
        )  # fmt: skip

    assert stopped.value.reason is StopReason.CANCELED
    assert time.monotonic() - stopped_at[0] < 10
    assert two.of(CheckpointSaved)[0].epoch == 1


def test_cancel_before_ranks_start_ends_training(two):
    threading.Timer(2.0, two.stop.set, [StopReason.CANCELED]).start()

    with pytest.raises(Stopped):
        two.train(epochs=50)

    assert two.of(EpochFinished) == []


def test_finish_request_ends_every_rank_with_model(two):
    two.stop_when = in_epoch(2, StopReason.FINISH)

    finished = two.train(epochs=50)

    assert finished.report["epochs_completed"] == 2 == two.epochs()[-1]


def test_shutdown_saves_checkpoint_and_ranks_resume(two, tmp_path):
    # with 48 images, the second epoch is still running when the training stops
    two.dataset = draw(tmp_path / "many", Task.DETECT, train=48)
    two.stop_when = in_epoch(2, StopReason.SHUTDOWN)
    with pytest.raises(Stopped):
        two.train(epochs=3, batch=2)
    checkpoint = two.of(CheckpointSaved)[-1]
    assert checkpoint.epoch == 1

    again = TwoDevices(tmp_path / "another-host", two.dataset)
    again.home.mkdir()
    finished = again.train(epochs=3, batch=2, resume=two.newest)

    # the training order does not say that the first epoch was reported, so the epoch is reported again
    assert [event.epoch for event in again.of(EpochFinished)] == [1, 2, 3]
    first = next(event for event in again.of(BatchProgress) if event.phase is Phase.TRAINING)
    assert first.batch > 1, "a rank repeated a batch that was trained before the shutdown"
    assert again.epochs() == [1, 2, 3]
    assert finished.report["epochs_completed"] == 3


def test_crash_of_second_rank_is_reported(two):
    with pytest.raises(RunFailed, match="second rank failed on purpose"):
        two.train("1 crash")


def test_killed_rank_is_machine_failure(two):
    with pytest.raises(MachineFailed, match="SIGKILL"):
        two.train("1 9", epochs=3)

    assert two.of(CheckpointSaved)[-1].epoch == 1


def test_out_of_memory_in_one_rank_halves_batch_of_all(two):
    finished = two.train("1 memory", batch=8, epochs=2)

    (warning,) = [event for event in two.of(Warned) if event.code == "out_of_memory"]
    assert "batch 8: the training continues after epoch 1 with batch 4" in warning.message
    assert finished.report["epochs_completed"] == 2 == two.epochs()[-1]


def test_resumed_ranks_keep_halved_batch(two, tmp_path):
    two.dataset = draw(tmp_path / "many", Task.DETECT, train=48)
    two.stop_when = in_epoch(3, StopReason.SHUTDOWN)
    with pytest.raises(Stopped):
        two.train("1 memory", batch=8, epochs=4)
    assert [event.code for event in two.of(Warned)] == ["out_of_memory"]

    again = TwoDevices(tmp_path / "another-host", two.dataset)
    again.home.mkdir()
    finished = again.train(epochs=4, batch=8, resume=two.newest)

    assert not again.of(Warned)
    assert finished.report["batch"] == 4
    assert yaml.safe_load((again.run_dir / "args.yaml").read_text())["batch"] == 4
    assert again.epochs() == [1, 2, 3, 4]


def test_resume_from_complete_checkpoint_starts_no_rank(two, tmp_path):
    """Only the final validation is missing, and it needs only one process."""
    two.train()
    again = TwoDevices(tmp_path / "another-host", two.dataset)
    again.home.mkdir()
    finished = again.train(resume=two.newest, last_reported_epoch=2)

    assert [line for line in again.lines if "starts" in line] == ["the training process starts"]
    assert again.of(EpochFinished) == []
    assert again.epochs() == [1, 2]
    assert finished.report["mAP"] is not None


def test_silent_rank_failure_is_reported_with_exit_code(tmp_path, dataset, monkeypatch):
    monkeypatch.setattr(ddp, "PROGRAM", (sys.executable, "-c", "import sys; sys.exit(3)"))
    order = replace(order_for(dataset, tmp_path), devices=(0, 1))

    with pytest.raises(
        ddp.RankCrashed, match=r"rank \d ended with exit code 3 and without an error message"
    ) as crashed:
        ddp.Ranks(order, StopSignal(), lambda event: None).train()

    assert crashed.value.event.phase is Phase.STARTING


@pytest.mark.parametrize(("requested", "used"), [(4, 4), (5, 4), (1, 2), (-1, 32), (0.7, 32)])
def test_batch_is_multiple_of_number_of_ranks(tmp_path, dataset, requested, used):
    warnings = []
    order = replace(order_for(dataset, tmp_path, batch=requested), devices=(0, 1))

    shared = shared_order(order, requested, warnings.append)

    assert shared.plan.batch == used
    assert len(warnings) == (requested != used)


def test_rect_setting_causes_warning(tmp_path, dataset):
    warnings = []
    order = replace(order_for(dataset, tmp_path, args={"rect": True}), devices=(0, 1))

    assert shared_order(order, 8, warnings.append).plan.args["rect"] is False
    assert [event.code for event in warnings] == ["no_rect"]


def test_killed_subreaper_leaves_no_rank(two):
    ranks_and_launcher = []

    def kill_subreaper(event):
        if isinstance(event, BatchProgress) and event.epoch == 2 and not ranks_and_launcher:
            (subreaper,) = (
                child for child in psutil.Process().children() if "subreaper.py" in " ".join(child.cmdline())
            )
            (child,) = subreaper.children()
            ranks_and_launcher.extend(child.children(recursive=True))
            subreaper.kill()

    two.stop_when = kill_subreaper
    with pytest.raises(MachineFailed):
        two.train(epochs=50)

    assert len(ranks_and_launcher) >= 3
    assert [process for process in ranks_and_launcher if process.is_running()] == []
