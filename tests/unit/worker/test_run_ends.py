"""The end of an attempt: the return value of the execution, and the report to reporters."""

import threading

import pytest

from tests.unit.worker.fakes import Replaced
from trainer.core.errors import MachineFailed, RunFailed, Unavailable
from trainer.core.events import BatchProgress, EpochFinished, Phase
from trainer.core.job import Completed, Retry, Status
from trainer.core.ports import Delivery
from trainer.core.stop import StopReason


def fail(epoch):
    raise MachineFailed("The disk is full.")


def test_execution_returns_the_end_that_its_reporter_receives(worker):
    worker.enqueue()

    end = worker.work()

    assert (end.outcome.kind, end.delivery, end.status) == ("completed", Delivery.ACCEPTED, Status.COMPLETED)
    assert worker.reporter.ends == [end]


@pytest.mark.parametrize(("max_attempts", "status"), [(3, Status.QUEUED), (1, Status.FAILED)])
def test_end_with_outcome_retry_has_status_of_row(worker, max_attempts, status):
    run_id = worker.enqueue()
    worker.update_row(run_id, max_attempts=max_attempts)
    worker.trainer.during = fail

    end = worker.work()

    assert isinstance(end.outcome, Retry)
    assert (end.delivery, end.status) == (Delivery.ACCEPTED, status)
    assert worker.row(run_id)["status"] == status


def test_lease_lost_during_training_ends_the_attempt_for_reporters(worker):
    run_id = worker.enqueue()

    def take_over(epoch):
        worker.update_row(run_id, claim_id="other")
        worker.trainer.stop.wait(30)

    worker.trainer.during = take_over

    end = worker.work()

    assert (end.outcome, end.delivery, end.status) == (None, Delivery.LOST, None)
    assert worker.reporter.calls[0] == "started"
    assert worker.reporter.ends == [end]


def test_rejected_outcome_is_reported_as_lost(worker):
    worker.enqueue()
    queue = Replaced(worker.queue, finish=lambda *_: None)

    end = worker.work(queue=queue)

    assert isinstance(end.outcome, Completed)
    assert (end.delivery, end.status) == (Delivery.LOST, None)
    assert worker.reporter.ends == [end]


def test_end_is_reported_after_the_queue_has_answered(worker):
    worker.enqueue()
    answered = []

    def finish(*arguments):
        answered.append(len(worker.reporter.ends))
        return worker.queue.finish(*arguments)

    worker.work(queue=Replaced(worker.queue, finish=finish))

    assert answered == [0]
    assert len(worker.reporter.ends) == 1


def test_outcome_not_delivered_before_shutdown_is_pending(worker):
    worker.drain_seconds = 0.2
    worker.enqueue()

    def finish(*_):
        worker.shutdown.set(StopReason.SHUTDOWN)
        raise Unavailable("down")

    worker.work(queue=Replaced(worker.queue, finish=finish))
    worker.deliver_orphans()

    assert [end.delivery for end in worker.reporter.ends] == [Delivery.PENDING, Delivery.ACCEPTED]
    assert [end.status for end in worker.reporter.ends] == [None, Status.COMPLETED]


def test_reporter_error_requeues_run_and_end_is_reported(worker):
    worker.enqueue()

    class Fails(type(worker.reporter)):
        def started(self, job):
            raise KeyError("bug")

    reporter = Fails()
    end = worker.work(reporter=reporter)

    assert (end.outcome.kind, end.status) == ("retry", Status.QUEUED)
    assert reporter.ends == [end]


# ── slots ──


@pytest.mark.parametrize("error", [None, RunFailed("The training diverged.")])
def test_running_checkpoint_upload_does_not_hold_the_slot(worker, error):
    worker.checkpoint_seconds = 0.01
    worker.enqueue()
    started, is_free, uploaded = threading.Event(), [], []

    def upload(path, ref, stop, **more):
        if "checkpoints" in ref.key and not started.is_set():
            started.set()
            is_free.append(worker.slots.wait_for_free(15))  # during this upload
        uploaded.append(ref.key)
        return worker.store.upload(path, ref, stop, **more)

    def during(epoch):
        if epoch == 2:
            assert started.wait(30)
            if error:
                raise error

    worker.trainer.during = during
    worker.work(store=Replaced(worker.store, upload=upload))

    assert is_free == [True]
    assert any("checkpoints" in key for key in uploaded), "the upload is complete before the run ends"


def test_finished_marker_is_written_before_checkpoint_upload_ends(worker):
    """If the process is killed during the upload, the finished model is not lost."""
    worker.checkpoint_seconds = 0.01
    worker.enqueue()
    lease, started, is_marked = worker.claim(), threading.Event(), []

    def upload(path, ref, stop, **more):
        if "checkpoints" in ref.key and not started.is_set():
            started.set()
            assert worker.slots.wait_for_free(15)  # after the training
            is_marked.append(worker.folders.folder(lease.job).finished_marker.exists())
        return worker.store.upload(path, ref, stop, **more)

    worker.trainer.during = lambda epoch: epoch != 2 or started.wait(30)
    worker.work(lease, store=Replaced(worker.store, upload=upload))

    assert is_marked == [True]


# ── proof that the host works ──


def test_saved_checkpoint_and_completed_run_prove_that_host_works(worker, monkeypatch):
    """Events that a resumed training reports before its first new epoch do not count."""
    worker.enqueue()
    successes = []
    monkeypatch.setattr(worker.health, "record_success", successes.append)
    train = worker.trainer.train

    def replay(order, stop, on_event, on_line):
        on_event(EpochFinished(epoch=1, total_epochs=3, metrics={}, seconds=1.0))
        on_event(BatchProgress(phase=Phase.TRAINING, epoch=1, total_epochs=3, batch=1, total_batches=9))
        assert successes == []
        return train(order, stop, on_event, on_line)

    worker.trainer.train = replay
    worker.work()

    assert len(successes) == 3 + 1  # three checkpoints, and the completed run


@pytest.mark.parametrize("error", [RunFailed("It diverged."), MachineFailed("It was killed.")])
def test_failed_run_does_not_prove_that_host_works(worker, monkeypatch, error):
    worker.enqueue()
    successes = []
    monkeypatch.setattr(worker.health, "record_success", successes.append)

    def during(epoch):
        raise error

    worker.trainer.during = during
    worker.work()

    assert successes == []


def test_message_of_failed_run_contains_no_control_characters(worker):
    run_id = worker.enqueue()
    worker.fail_in(1, RunFailed("a\x1b[2J\nb\u202e"))

    worker.work()

    assert worker.row(run_id)["error_message"] == "a\\x1b[2J\nb\\u202e"
