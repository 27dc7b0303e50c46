"""Events, checkpoints and outcome of an attempt after errors of the service, the disk or the store."""

import time

import pytest

from tests.unit.worker.fakes import Down, Replaced, raising
from tests.unit.worker.harness import interrupted_upload, output_of
from trainer.core.errors import MachineFailed, ObjectMissing
from trainer.core.job import Retry

# ── bugs of the service ──


def test_bug_in_attempt_requeues_run_and_keeps_events_and_artifacts(worker):
    run_id = worker.enqueue()
    worker.fail_in(3, KeyError("bug"))

    worker.work()

    row = worker.row(run_id)
    assert (row["status"], row["failures"]) == ("queued", 1)
    assert "worker's log" in row["error_message"]
    assert worker.kinds(run_id).count("epoch") == 2
    assert isinstance(worker.reporter.calls[-1], Retry)
    assert not list(worker.folders.journals.iterdir())
    assert worker.slots.free == 1
    assert worker.artifacts(run_id).keys() >= TRAINED
    checkpoints = output_of(worker, run_id) / "checkpoints"
    assert (checkpoints / "epoch-00002.pt").exists()


def test_run_is_requeued_after_bug_in_training_and_bug_in_publishing(worker):
    run_id = worker.enqueue()
    worker.fail_in(3, KeyError("bug"))

    worker.work(store=Down(worker, error=KeyError("another bug")))

    assert (worker.row(run_id)["status"], worker.row(run_id)["failures"]) == ("queued", 1)
    assert worker.kinds(run_id).count("epoch") == 2
    assert not list(worker.folders.journals.iterdir())


TRAINED = {"last.pt", "run.log", "manifest.json"}


@pytest.mark.parametrize("error", [OSError(30, "Read-only file system"), KeyError("bug"), MachineFailed("disk full")])
def test_run_completes_if_its_view_cannot_be_removed(worker, error):
    run_id = worker.enqueue()

    def fail(view, *, keep=False):
        raise error

    worker.datasets.discard = fail
    worker.work()

    assert worker.row(run_id)["status"] == "completed"
    assert not list(worker.folders.journals.iterdir())


def test_run_stays_completed_when_checkpoints_cannot_be_removed(worker):
    worker.checkpoint_seconds = 0.01
    run_id = worker.enqueue()
    worker.trainer = type(worker.trainer)(epochs=2)  # the first checkpoint is removed after the training
    worker.trainer.during = lambda epoch: time.sleep(0.1)

    worker.work(store=Replaced(worker.store, delete=raising(*[KeyError("bug")] * 100)))

    assert worker.row(run_id)["status"] == "completed"
    assert not list(worker.folders.journals.iterdir())


@pytest.mark.parametrize("error", [ObjectMissing("bucket gone"), MachineFailed("disk full"), OSError(5, "I/O error")])
def test_shutdown_requeues_run_when_checkpoint_cannot_be_uploaded(worker, error):
    run_id = worker.enqueue()
    worker.shut_down_in(epoch=3)

    worker.work(store=Down(worker, error=error))

    row = worker.row(run_id)
    assert (row["status"], row["failures"]) == ("queued", 0)
    assert not list(worker.folders.journals.iterdir())


# ── attempts without a journal ──


def test_run_without_journal_is_requeued_with_reason_and_not_trained(worker):
    run_id = worker.enqueue()
    worker.folders.journals.write_text("in the way")

    worker.work()

    row = worker.row(run_id)
    assert (row["status"], row["failures"]) == ("queued", 1)
    assert "journal" in row["error_message"]
    assert str(worker.folders.journals) in row["error_message"]
    assert worker.trainer.orders == []
    outcome = worker.reporter.calls[-1]
    assert isinstance(outcome, Retry)
    assert outcome.host_failed
    assert "phase" in worker.kinds(run_id)


def test_run_without_folder_is_requeued_with_reason(worker):
    run_id = worker.enqueue()
    worker.folders.runs.write_text("in the way")

    worker.work()

    row = worker.row(run_id)
    assert row["status"] == "queued"
    assert str(worker.folders.runs) in row["error_message"]
    assert not list(worker.folders.journals.iterdir())


def test_finished_model_is_published_without_journal(worker):
    run_id, _ = interrupted_upload(worker)
    worker.folders.journals.rename(worker.home / "elsewhere")
    worker.folders.journals.write_text("in the way")

    worker.work_again()

    assert worker.row(run_id)["status"] == "completed"
    assert len(worker.trainer.orders) == 1


# ── missing objects ──


def test_download_of_missing_object_is_retried_once(worker):
    run_id, other = worker.enqueue(), worker.enqueue()
    prepare = worker.datasets.prepare
    miss = raising(ObjectMissing("no such object"))

    def prepare_or_miss(*arguments):
        miss()
        return prepare(*arguments)

    worker.datasets.prepare = prepare_or_miss
    worker.work()
    miss = raising(*[ObjectMissing("no such object")] * 2)
    worker.work_again()

    assert worker.row(run_id)["status"] == "completed"
    assert (worker.row(other)["status"], worker.row(other)["error_message"]) == ("failed", "no such object")
