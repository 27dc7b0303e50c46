"""How an attempt ends, as its caller and its reporters receive it."""

import sqlite3
import threading
import time

import pytest

from tests.unit.worker.worker_room import BUCKET, Room, in_background
from trainer.core.dataset import ObjectRef
from trainer.core.errors import MachineFailed, RunFailed, Unavailable
from trainer.core.events import BatchProgress, EpochFinished, Phase
from trainer.core.job import Completed, Retry, Status
from trainer.core.ports import Delivery
from trainer.core.stop import StopReason


@pytest.fixture
def room(tmp_path):
    return Room(tmp_path)


class Wrapped:
    """A store or queue with one method replaced."""

    def __init__(self, wrapped, **methods):
        self.wrapped = wrapped
        self.__dict__.update(methods)

    def __getattr__(self, name):
        return getattr(self.wrapped, name)


def edit(room, run_id, **columns):
    assignments = ", ".join(f"{name} = ?" for name in columns)
    with sqlite3.connect(room.home / "queue.db") as connection:
        connection.execute(f"update training_runs set {assignments} where id = ?", [*columns.values(), run_id])
    connection.close()


def fail(epoch):
    raise MachineFailed("The disk is full.")


def test_execution_returns_what_its_reporter_receives(room):
    room.enqueue()

    end = room.work()

    assert (end.outcome.kind, end.delivery, end.status) == ("completed", Delivery.ACCEPTED, Status.COMPLETED)
    assert room.listener.ends == [end]


@pytest.mark.parametrize(("max_attempts", "status"), [(3, Status.QUEUED), (1, Status.FAILED)])
def test_end_of_retry_says_whether_the_run_is_queued_again(room, max_attempts, status):
    run_id = room.enqueue()
    edit(room, run_id, max_attempts=max_attempts)
    room.trainer.during = fail

    end = room.work()

    assert isinstance(end.outcome, Retry)
    assert (end.delivery, end.status) == (Delivery.ACCEPTED, status)
    assert room.row(run_id)["status"] == status


def test_lease_lost_during_training_ends_the_attempt_for_reporters(room):
    run_id = room.enqueue()

    def take_over(epoch):
        edit(room, run_id, claim_id="other")
        time.sleep(0.5)

    room.trainer.during = take_over

    end = room.work()

    assert (end.outcome, end.delivery, end.status) == (None, Delivery.LOST, None)
    assert room.listener.heard[0] == "started"
    assert room.listener.ends == [end]


def test_outcome_that_the_queue_rejects_is_reported_as_lost(room):
    room.enqueue()
    queue = Wrapped(room.queue, finish=lambda *_: None)

    end = room.work(queue=queue)

    assert isinstance(end.outcome, Completed)
    assert (end.delivery, end.status) == (Delivery.LOST, None)
    assert room.listener.ends == [end]


def test_end_is_reported_after_the_queue_has_answered(room):
    room.enqueue()
    answered = []

    def finish(*arguments):
        answered.append(len(room.listener.ends))
        return room.queue.finish(*arguments)

    room.work(queue=Wrapped(room.queue, finish=finish))

    assert answered == [0]
    assert len(room.listener.ends) == 1


def test_outcome_that_is_not_delivered_before_shutdown_is_pending(room):
    room.drain_seconds = 0.2
    room.enqueue()

    def finish(*_):
        room.shutdown.set(StopReason.SHUTDOWN)
        raise Unavailable("down")

    room.work(queue=Wrapped(room.queue, finish=finish))
    room.deliver_orphans()

    assert [end.delivery for end in room.listener.ends] == [Delivery.PENDING, Delivery.ACCEPTED]
    assert [end.status for end in room.listener.ends] == [None, Status.COMPLETED]


def test_error_of_the_service_is_reported_as_an_end(room):
    room.enqueue()

    class Fails(type(room.listener)):
        def started(self, job):
            raise KeyError("bug")

    reporter = Fails()
    end = room.work(reporter=reporter)

    assert (end.outcome.kind, end.status) == ("retry", Status.QUEUED)
    assert reporter.ends == [end]


# ── slots ──


def slow_uploads(room, seconds, seen):
    """A store whose uploads of checkpoints take `seconds`; `seen` gets the times at which they start and end."""

    def upload(path, ref, stop, **more):
        if "checkpoints" in ref.key:
            seen["started"] = time.monotonic()
            time.sleep(seconds)
            seen["ended"] = time.monotonic()
        return room.store.upload(path, ref, stop, **more)

    return Wrapped(room.store, upload=upload)


@pytest.mark.parametrize("error", [None, RunFailed("The training diverged.")])
def test_running_checkpoint_upload_does_not_hold_the_slot(room, error):
    room.checkpoint_seconds = 0.05
    room.enqueue()
    seen = {}

    def during(epoch):
        if epoch == 2:
            time.sleep(0.5)  # the upload starts
            if error:
                raise error

    room.trainer.during = during
    with in_background(lambda: room.work(store=slow_uploads(room, 3, seen))):
        deadline = time.monotonic() + 15
        while "started" not in seen:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert room.slots.wait_for_free(15)
        released = time.monotonic()

    assert released < seen["ended"] - 1
    assert list(room.store.list(ObjectRef(bucket=BUCKET, key=""))), "the upload is complete before the run ends"


# ── what proves that the host works ──


def test_only_saved_checkpoint_and_completed_run_are_successes_of_the_host(room, monkeypatch):
    """What a resumed training reports before it trains proves nothing."""
    room.enqueue()
    successes = []
    monkeypatch.setattr(room.health, "record_success", successes.append)
    train = room.trainer.train

    def replay(order, stop, on_event, on_line):
        on_event(EpochFinished(epoch=1, total_epochs=3, metrics={}, seconds=1.0))
        on_event(BatchProgress(phase=Phase.TRAINING, epoch=1, total_epochs=3, batch=1, total_batches=9))
        assert successes == []
        return train(order, stop, on_event, on_line)

    room.trainer.train = replay
    room.work()

    assert len(successes) == 3 + 1  # three checkpoints, and the completed run


@pytest.mark.parametrize("error", [RunFailed("It diverged."), MachineFailed("It was killed.")])
def test_run_that_fails_is_no_success_of_the_host(room, monkeypatch, error):
    room.enqueue()
    successes = []
    monkeypatch.setattr(room.health, "record_success", successes.append)

    def during(epoch):
        raise error

    room.trainer.during = during
    room.work()

    assert successes == []


# ── prefetching ──


def test_nothing_is_prefetched_while_a_slot_is_free(room):
    from trainer.core.ports import Worker
    from trainer.core.stop import StopSignal
    from trainer.request.parse import plan_of
    from trainer.worker.prefetch import Prefetcher

    room.enqueue()
    prefetched = threading.Event()
    room.datasets.prefetch = lambda order, stop: prefetched.set()
    prefetcher = Prefetcher(
        queue=room.queue, datasets=room.datasets, parse=plan_of, slots=room.slots,
        describe_worker=lambda free: Worker(id="w", capabilities={"gpus": free}), interval=0.01,
    )  # fmt: skip

    with prefetcher.running(StopSignal()):
        assert not prefetched.wait(0.5)
        room.slots.acquire(1)
        assert prefetched.wait(15)
