"""The training process never blocks on the event pipe, and loses no durable event."""

import os
import threading
import time

import pytest

from trainer.core.events import BatchProgress, ChildStopped, EpochFinished, Phase
from trainer.training.child.event_pipe import EventWriter
from trainer.training.wire import decode_event


def batch_event(batch):
    return BatchProgress(phase=Phase.TRAINING, epoch=1, total_epochs=1, batch=batch, total_batches=10**6)


def epoch(number):
    return EpochFinished(epoch=number, total_epochs=9, metrics={"m": 1.0}, seconds=1.0)


@pytest.fixture
def pipe():
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb") as reader:
        yield reader, writing


def test_durable_events_arrive_in_order_without_blocking_sender(pipe):
    reader, writing = pipe
    writer = EventWriter(writing, on_broken=pytest.fail)
    began = time.monotonic()
    for number in range(2000):
        writer.send(epoch(number))
        writer.send(batch_event(number))
    assert time.monotonic() - began < 30

    received = []
    listener = threading.Thread(target=lambda: received.extend(decode_event(line) for line in reader))
    listener.start()
    assert writer.close(10.0)
    os.close(writing)
    listener.join()
    assert [event.epoch for event in received if isinstance(event, EpochFinished)] == list(range(2000))
    assert len([event for event in received if isinstance(event, BatchProgress)]) < 2000


def test_only_newest_queued_batch_event_is_written(pipe):
    reader, writing = pipe
    writer = EventWriter(writing, on_broken=pytest.fail)
    for number in range(5000):
        writer.send(epoch(number))  # these events fill the pipe
    for number in range(1000):
        writer.send(batch_event(number))

    received = []
    listener = threading.Thread(target=lambda: received.extend(decode_event(line) for line in reader))
    listener.start()
    assert writer.close(10.0)
    os.close(writing)
    listener.join()
    assert received[-1] == batch_event(999)
    assert len([event for event in received if isinstance(event, BatchProgress)]) < 10


def test_close_returns_after_timeout_if_reader_is_blocked(pipe):
    _, writing = pipe
    writer = EventWriter(writing, on_broken=lambda: None)
    for number in range(5000):
        writer.send(epoch(number))
    began = time.monotonic()

    assert not writer.close(0.2)
    assert time.monotonic() - began < 20


def test_closed_pipe_is_reported():
    reading, writing = os.pipe()
    os.close(reading)
    gone = threading.Event()
    writer = EventWriter(writing, on_broken=gone.set)
    writer.send(ChildStopped())

    assert gone.wait(5.0)
    writer.close(1.0)
    os.close(writing)
