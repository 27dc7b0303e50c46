"""The dataset of the next queued run is prefetched while no slot is free."""

import threading
import time

import pytest

from tests.unit.worker.daemon_harness import serving
from tests.unit.worker.fakes import raising
from tests.unit.worker.harness import wait_for
from trainer.core.ports import Worker
from trainer.core.stop import StopSignal
from trainer.request.parse import plan_of
from trainer.worker import prefetch as prefetch_module
from trainer.worker.prefetch import Prefetcher


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    monkeypatch.setattr(prefetch_module, "AFTER_START", 0.02)


def prefetcher_of(worker):
    return Prefetcher(
        queue=worker.queue, datasets=worker.datasets, parse=plan_of, slots=worker.slots,
        describe_worker=lambda free: Worker(id="w", capabilities={"gpus": free}), interval=0.01,
    )  # fmt: skip


def test_next_dataset_is_prefetched_once_without_claim(worker, queue):
    holding = threading.Event()
    asked = []
    worker.datasets.prefetch = lambda order, stop: asked.append(order.imgsz)
    worker.trainer.during = lambda epoch: holding.wait(30)
    worker.enqueue()
    waiting = worker.enqueue({"imgsz": 96})

    with serving(worker, queue):
        wait_for(lambda: asked)
        time.sleep(0.3)
        assert asked == [96]
        assert worker.row(waiting)["attempt"] == 0
        holding.set()


@pytest.mark.parametrize("error", [AttributeError("row"), RecursionError(), ValueError("date")])
def test_unexpected_error_of_prefetch_does_not_stop_prefetching(worker, queue, error, monkeypatch):
    monkeypatch.setattr(prefetch_module, "AFTER_ERROR", 0.02)
    holding, fail, asked = threading.Event(), raising(error), []

    def peek(description):
        fail()
        return worker.queue.peek(description)

    queue.peek = peek
    worker.datasets.prefetch = lambda order, stop: asked.append(order.imgsz)
    worker.trainer.during = lambda epoch: holding.wait(30)
    worker.enqueue()
    worker.enqueue({"imgsz": 96})

    with serving(worker, queue):
        wait_for(lambda: asked == [96])
        holding.set()


def test_nothing_is_prefetched_while_a_slot_is_free(worker):
    worker.enqueue()
    prefetched = threading.Event()
    worker.datasets.prefetch = lambda order, stop: prefetched.set()

    with prefetcher_of(worker).running(StopSignal()):
        assert not prefetched.wait(0.3)
        worker.slots.acquire(1)
        assert prefetched.wait(15)


def test_nothing_is_prefetched_or_prestarted_while_a_run_starts(worker, monkeypatch):
    monkeypatch.setattr(prefetch_module, "AFTER_START", 0.4)
    worker.enqueue()
    prestarted, prefetched = threading.Event(), threading.Event()
    worker.datasets.warm = prestarted.set
    worker.datasets.prefetch = lambda order, stop: prefetched.set()
    started = time.monotonic()
    worker.slots.acquire(1)

    with prefetcher_of(worker).running(StopSignal()):
        assert prestarted.wait(15)
        assert time.monotonic() - started > 0.4
        assert prefetched.wait(15)


def test_process_for_next_dataset_is_prestarted_while_no_run_waits(worker):
    prestarted = threading.Event()
    worker.datasets.warm = prestarted.set

    with prefetcher_of(worker).running(StopSignal()):
        assert prestarted.wait(15)


def test_hanging_prefetch_does_not_block_shutdown(worker, monkeypatch):
    monkeypatch.setattr(prefetch_module, "LAST_PREFETCH", 0.1)
    started, released, ended = threading.Event(), threading.Event(), threading.Event()

    def hang(order, stop):
        started.set()
        released.wait(15)
        ended.set()

    worker.enqueue()
    worker.slots.acquire(1)
    worker.datasets.prefetch = hang

    with prefetcher_of(worker).running(StopSignal()):
        assert started.wait(15)

    assert not ended.is_set()
    released.set()
    assert ended.wait(15)
