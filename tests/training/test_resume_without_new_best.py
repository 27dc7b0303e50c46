"""The fitness of a real training drops after an interruption, so that no epoch is a new best.

The training learns to distinguish red from green. Then it resumes on a dataset with swapped labels.
"""

import csv
import shutil
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from child_run import order_for, run_child, stop_at
from drawn import draw

from trainer.core.dataset import Task
from trainer.core.events import CheckpointSaved, ChildStopped, EpochFinished, Finished, Warned
from trainer.core.resumption import Setup
from trainer.core.stop import StopReason

pytestmark = [pytest.mark.training, pytest.mark.long]

PLAN = {"epochs": 60, "batch": 4, "args": {"optimizer": "AdamW", "lr0": 0.002, "nbs": 4}}


def accuracy(event):
    return event.metrics["metrics/accuracy_top1"]


def is_epoch(event):
    return isinstance(event, EpochFinished)


def recorded(dataset, run_dir, **changes):
    """Return a training order with its `Setup`, which each checkpoint records."""
    order = order_for(dataset, run_dir, **(PLAN | changes))
    return replace(order, setup=Setup.of(order.plan, dataset).as_json())


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    """A training that was shut down when it could distinguish the colors."""
    home = tmp_path_factory.mktemp("learned")
    when_learned = stop_at(StopReason.SHUTDOWN, lambda event: is_epoch(event) and accuracy(event) > 0.9)
    run = run_child(recorded(draw(home / "data", Task.CLASSIFY), home / "run"), home, on_event=when_learned)
    assert accuracy(run.of(EpochFinished)[-1]) > 0.9, run.output
    return run


@pytest.fixture(scope="module")
def swapped(tmp_path_factory):
    """The same images, with the labels of red and green swapped."""
    root = tmp_path_factory.mktemp("swapped") / "data"
    dataset = draw(root, Task.CLASSIFY)
    for split in ("train", "val"):
        (root / split / "red").rename(root / split / "aside")
        (root / split / "green").rename(root / split / "red")
        (root / split / "aside").rename(root / split / "green")
    return dataset


@pytest.fixture(params=["same host", "another host"])
def checkpoint(request, learned, tmp_path):
    """The newest checkpoint, in the folder of the first attempt or copied to the folder of this attempt."""
    newest = learned.newest
    if request.param == "same host":
        return newest
    copied = tmp_path / "run" / "checkpoints" / newest.name
    copied.parent.mkdir(parents=True)
    return Path(shutil.copyfile(newest, copied))


def resume(checkpoint, dataset, home, on_event, **changes):
    last_epoch = int(checkpoint.stem.removeprefix("epoch-"))
    order = order_for(dataset, home / "run", resume=checkpoint, last_reported_epoch=last_epoch, **(PLAN | changes))
    return run_child(order, home, on_event=on_event)


def weights(path):
    """Return the published parameters of the model."""
    state = torch.load(path, weights_only=False)
    return (state.get("ema") or state["model"]).half().state_dict()


def same(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


def test_resumed_training_without_new_best_completes(learned, swapped, checkpoint, tmp_path):
    best_epoch = learned.of(EpochFinished)[-1].epoch
    finish = stop_at(StopReason.FINISH, lambda event: is_epoch(event) and event.epoch == best_epoch + 2)
    run = resume(checkpoint, swapped, tmp_path, finish)

    assert isinstance(run.last, Finished), run.output
    assert max(accuracy(event) for event in run.of(EpochFinished)[:2]) < 0.9
    epochs = [event.epoch for event in run.of(EpochFinished)]
    assert [event.epoch for event in run.of(CheckpointSaved)] == epochs
    assert run.last.report["best_epoch"] == best_epoch
    assert same(weights(run.folder.best), weights(learned.newest.parents[1] / "weights/best.pt"))
    with (tmp_path / "run" / "results.csv").open() as file:
        assert [int(row["epoch"]) for row in csv.DictReader(file)] == list(range(1, epochs[-1] + 1))


def test_best_epoch_is_measured_on_edited_labels(learned, swapped, tmp_path):
    newest = learned.newest
    last_epoch = learned.of(EpochFinished)[-1].epoch
    two_more = stop_at(StopReason.FINISH, lambda event: is_epoch(event) and event.epoch == last_epoch + 2)
    order = recorded(
        replace(swapped, fingerprint="1" * 64), tmp_path / "run", resume=newest, last_reported_epoch=last_epoch
    )
    run = run_child(order, tmp_path, on_event=two_more)

    assert isinstance(run.last, Finished), run.output
    epochs = run.of(EpochFinished)
    assert max(map(accuracy, epochs)) < 0.9  # lower than before, so that an earlier epoch could stay the best
    best = max(epochs, key=lambda event: (accuracy(event), event.epoch))
    assert accuracy(epochs[run.last.report["best_epoch"] - last_epoch - 1]) == accuracy(best)
    assert not same(weights(run.folder.best), weights(newest.parents[1] / "weights/best.pt"))
    assert run.last.report["mAP"] == pytest.approx(accuracy(best), abs=0.01)


def test_shutdown_in_first_resumed_epoch_saves_checkpoint(learned, swapped, checkpoint, tmp_path):
    run = resume(checkpoint, swapped, tmp_path, stop_at(StopReason.SHUTDOWN, lambda event: event.kind == "batch"))

    assert isinstance(run.last, ChildStopped), run.output
    assert not run.of(Warned)
    (saved,) = run.of(CheckpointSaved)
    assert saved.epoch == learned.of(EpochFinished)[-1].epoch
    assert (tmp_path / "run" / "checkpoints" / f"epoch-{saved.epoch:05d}.pt").exists()


@pytest.fixture
def blocked_checkpoints_folder(tmp_path):
    """Create a file at the path of this attempt's checkpoints folder."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "checkpoints").touch()


@pytest.mark.parametrize("where", ["checkpoints/epoch-{:05d}.tmp", "weights/unfinished.pt"])
def test_shutdown_with_failed_checkpoint_warns_and_stops(learned, swapped, tmp_path, where):
    newest = learned.newest
    taken = where.format(learned.of(EpochFinished)[-1].epoch)
    (tmp_path / "run" / taken).mkdir(parents=True)  # a folder at the path of a file
    run = resume(newest, swapped, tmp_path, stop_at(StopReason.SHUTDOWN, lambda event: event.kind == "batch"))

    assert isinstance(run.last, ChildStopped), run.output
    assert [event.code for event in run.of(Warned)] == ["checkpoint_not_saved"]
    assert not run.of(CheckpointSaved)


@pytest.mark.usefixtures("blocked_checkpoints_folder")
def test_failed_checkpoints_do_not_stop_training(learned, swapped, tmp_path):
    newest = learned.newest
    finish = stop_at(
        StopReason.FINISH, lambda event: is_epoch(event) and event.epoch == learned.of(EpochFinished)[-1].epoch + 2
    )
    run = resume(newest, swapped, tmp_path, finish)

    assert isinstance(run.last, Finished), run.output
    assert [event.code for event in run.of(Warned)] == ["checkpoint_not_saved"]
    assert run.last.report["mAP"] is not None


def test_unloadable_checkpoint_is_reported_and_training_restarts(swapped, tmp_path):
    broken = tmp_path / "epoch-00007.pt"
    with zipfile.ZipFile(broken, "w") as archive:
        archive.writestr("archive/data.pkl", b"no pickle")
    run = resume(broken, swapped, tmp_path, lambda *_: None, epochs=1)

    assert isinstance(run.last, Finished), run.output
    assert [event.code for event in run.of(Warned)] == ["checkpoint_broken"]
    assert [event.epoch for event in run.of(EpochFinished)] == [1]


def test_removed_weights_do_not_stop_training(learned, swapped, tmp_path):
    """Only the newest checkpoint is left, so the best epoch is unknown."""
    newest, epoch = learned.newest, learned.of(EpochFinished)[-1].epoch
    shut_down = stop_at(StopReason.SHUTDOWN, lambda event: is_epoch(event) and event.epoch == epoch + 2)

    def remove(event, process):
        if is_epoch(event) and event.epoch == epoch + 1:
            for name in ("weights/best.pt", "checkpoints/best.pt", "results.csv"):
                (tmp_path / "a" / "run" / name).unlink()
        shut_down(event, process)

    run = resume(newest, swapped, tmp_path / "a", remove)
    assert isinstance(run.last, ChildStopped), run.output
    left = run.newest
    finish = stop_at(StopReason.FINISH, is_epoch)
    again = resume(left, swapped, tmp_path / "b", finish)

    assert isinstance(again.last, Finished), again.output
    assert not [*run.of(Warned), *again.of(Warned)]
    assert again.last.report["best_epoch"] is None or again.last.report["best_epoch"] > epoch + 2
