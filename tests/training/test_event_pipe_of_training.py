"""A training whose supervisor does not read events or has exited."""

import fcntl
import os
import subprocess
import sys
import time

import pytest
from child_run import order_for
from drawn import draw

from trainer.core.dataset import Task
from trainer.core.events import EpochFinished, Finished
from trainer.training.supervisor.environment import child_environment, private_folder
from trainer.training.wire import decode_event, decode_sandbox, encode_order

pytestmark = pytest.mark.training

EPOCHS = 12


@pytest.fixture
def training(tmp_path):
    """A running training with the smallest possible event pipe, and its results.csv."""
    folder = private_folder(tmp_path, tmp_path / "weights")
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4096)
    dataset = draw(tmp_path / "data", Task.CLASSIFY)
    with (tmp_path / "log").open("wb") as log, os.fdopen(reading, "rb") as events:
        process = subprocess.Popen(
            [sys.executable, "-m", "trainer.training.child.main", "--events-fd", str(writing)],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            pass_fds=[writing],
            env=child_environment(dict(os.environ), folder, devices=None),
        )
        os.close(writing)
        process.stdin.write(encode_order(order_for(dataset, tmp_path / "run", epochs=EPOCHS)))
        process.stdin.flush()
        yield process, events, tmp_path / "run" / "results.csv"
        process.kill()
        process.wait()
        process.stdin.close()


def wait_for_rows(results, rows, seconds=240.0):
    deadline = time.monotonic() + seconds
    while not results.exists() or len(results.read_text().splitlines()) < rows + 1:
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.long
def test_training_without_reader_keeps_every_epoch_event(training):
    process, events, results = training
    wait_for_rows(results, EPOCHS)

    decode_sandbox(next(events))
    received = [decode_event(line) for line in events]
    assert [event.epoch for event in received if isinstance(event, EpochFinished)] == list(range(1, EPOCHS + 1))
    assert isinstance(received[-1], Finished)
    assert process.wait(30) == 0


def test_training_ends_with_its_supervisor(training):
    process, _, results = training
    wait_for_rows(results, 1)

    process.stdin.close()

    assert process.wait(5) == 0
    assert len(results.read_text().splitlines()) < EPOCHS + 1
