"""After an out-of-memory error in any step, the training resumes from the last checkpoint with half the batch size."""

import csv

import pytest
from child_run import order_for, run_child
from drawn import draw

from trainer.core.dataset import Task
from trainer.core.events import BatchProgress, Crashed, EpochFinished, Finished, Warned
from trainer.core.stop import StopReason
from trainer.training.wire import encode_stop

pytestmark = pytest.mark.training


@pytest.fixture(scope="module")
def detect(tmp_path_factory):
    return draw(tmp_path_factory.mktemp("detect"), Task.DETECT)


def train(detect, home, when, **changes):
    order = order_for(detect, home / "run", **{"epochs": 3, "batch": 8, **changes})
    return run_child(order, home, program="out_of_memory.py", env={"OOM_WHEN": when})


def halvings(run):
    return [event for event in run.of(Warned) if event.code == "out_of_memory"]


@pytest.mark.long
def test_training_resumes_from_last_checkpoint_with_half_batch(detect, tmp_path):
    run = train(detect, tmp_path, "train:5")  # two batches per epoch

    assert isinstance(run.last, Finished), run.output
    assert [event.epoch for event in run.of(EpochFinished)] == [1, 2, 3]
    (warning,) = halvings(run)
    assert "batch 8" in warning.message
    assert "batch 4" in warning.message
    assert "after epoch 2" in warning.message
    assert "train 6 batch 4" in run.output
    with (tmp_path / "run" / "results.csv").open() as file:
        assert [row["epoch"] for row in csv.DictReader(file)] == ["1", "2", "3"]


@pytest.mark.long
def test_training_restarts_with_half_batch_after_failed_first_epoch(detect, tmp_path):
    run = train(detect, tmp_path, "train:1,2", epochs=1)

    assert isinstance(run.last, Finished), run.output
    assert len(halvings(run)) == 2
    assert "train 3 batch 2" in run.output
    assert "held" not in run.output  # the memory of earlier models was freed


@pytest.mark.long
def test_out_of_memory_in_validation_halves_batch_once(detect, tmp_path):
    run = train(detect, tmp_path, "val:2", epochs=2)

    assert isinstance(run.last, Finished), run.output
    assert len(halvings(run)) == 1
    assert [event.epoch for event in run.of(EpochFinished)] == [1, 2]


@pytest.mark.long
def test_error_after_three_halvings_names_batch_and_image_size(detect, tmp_path):
    run = train(detect, tmp_path, "train:1,2,3,4", epochs=1)

    assert isinstance(run.last, Crashed)
    assert len(halvings(run)) == 3
    assert run.last.error == "OutOfMemoryError"
    for fact in ("out of memory", "batch 1", "image size 64", "halved 3 times"):
        assert fact in run.last.message


@pytest.mark.long
def test_batch_of_one_is_not_halved(detect, tmp_path):
    run = train(detect, tmp_path, "train:1", epochs=1, batch=1)

    assert isinstance(run.last, Crashed)
    assert not halvings(run)
    assert "halved 0 times" in run.last.message


@pytest.mark.long
def test_resumed_training_keeps_halved_batch(detect, tmp_path):
    """The next attempt does not start with the original batch size."""
    stopped = []

    def in_third_epoch(event, process):
        if isinstance(event, BatchProgress) and event.epoch == 3 and not stopped:
            stopped.append(event)
            process.stdin.write(encode_stop(StopReason.SHUTDOWN))
            process.stdin.flush()

    order = order_for(detect, tmp_path / "run", epochs=4, batch=8)
    run = run_child(order, tmp_path, program="out_of_memory.py", env={"OOM_WHEN": "train:3"}, on_event=in_third_epoch)
    assert len(halvings(run)) == 1, run.output
    checkpoint = run.newest
    order = order_for(detect, tmp_path / "again", epochs=4, batch=8, resume=checkpoint, last_reported_epoch=2)
    again = run_child(order, tmp_path, program="out_of_memory.py", env={"OOM_WHEN": "train:99"})

    assert isinstance(again.last, Finished), again.output
    assert "train 1 batch 4" in again.output
    assert not halvings(again)
