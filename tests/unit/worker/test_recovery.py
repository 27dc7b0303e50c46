"""Crash recovery: the next process publishes the artifacts of a crashed process under the same lease."""

import threading
import time
from contextlib import closing
from dataclasses import replace

import pytest

from tests.unit.worker.fakes import RecordingReporter, Replaced, raising
from tests.unit.worker.harness import CLAIM, wait_for
from tests.unit.worker.recovery_harness import TRAINED, Watched, killed, recover
from trainer.core.errors import MachineFailed, Unavailable
from trainer.core.events import Phase
from trainer.core.job import Failed, Verdict
from trainer.core.stop import StopReason, StopSignal
from trainer.worker.journal import Journal
from trainer.worker.orphaned_journals import orphaned_journals
from trainer.worker.recovery import Recovery


def test_artifacts_of_killed_process_are_published_and_run_is_requeued(worker):
    run_id, run_dir = killed(worker)

    recover(worker)

    row = worker.row(run_id)
    assert (row["status"], row["failures"]) == ("queued", 1)
    assert "crash" in row["error_message"]
    assert worker.artifacts(run_id).keys() == TRAINED
    assert row["results"]["run_dir"] == str(run_dir)
    assert worker.kinds(run_id) == ["epoch", "phase", "phase"]
    assert (run_dir.parent / "run.log").read_text().startswith("training started\n[")
    assert not list(worker.folders.journals.iterdir())


def test_recovered_run_has_one_reporter(worker):
    """A reporter for one run has a thread that ends after `ended`. The thread of a second reporter would never end."""
    killed(worker)
    made = []

    def reporter_for(job):
        made.append(RecordingReporter())
        return made[-1]

    worker.deliver_orphans(Recovery(replace(worker.run_host(), reporter_for=reporter_for)))

    (reporter,) = made
    *events, outcome = reporter.calls
    assert Phase.UPLOADING in {event.phase for event in events}
    assert [end.outcome for end in reporter.ends] == [outcome]


def test_canceled_run_of_killed_process_keeps_artifacts_and_progress(worker):
    run_id, _ = killed(worker)
    lease = worker.claim(CLAIM)
    worker.queue.beat(lease, {"progress": {"epoch": 2, "percent": 40.0}}, [])
    worker.queue.cancel(run_id)

    recover(worker)

    row = worker.row(run_id)
    assert (row["status"], row["error_message"]) == ("canceled", "Canceled by user.")
    assert worker.artifacts(run_id).keys() == TRAINED
    assert row["results"]["progress"] == {"epoch": 2, "percent": 40.0}


def test_run_canceled_during_recovery_is_canceled(worker):
    run_id, _ = killed(worker)

    def cancel(*_):
        worker.queue.cancel(run_id)
        wait_for(lambda: Verdict.CANCEL in verdicts)

    def beat(*arguments):
        verdicts.append(worker.queue.beat(*arguments))
        return verdicts[-1]

    queue, verdicts = Replaced(worker.queue, beat=beat), []
    recover(worker, queue, store=Watched(worker.store, cancel, "upload"))

    assert worker.row(run_id)["status"] == "canceled"
    assert worker.artifacts(run_id).keys() == TRAINED


def renewed_leases_of(worker, runs):
    """Recover `runs`. Return the expiry times of their leases before each of two renewals.

    The first upload of last.pt does not continue until the lease of every run is renewed twice.
    """

    def leases():
        return [worker.row(run_id)["lease_expires_at"] for run_id in runs]

    def wait_for_renewal(path, ref, *_):
        if ref.key.endswith("/last.pt"):
            with lock:  # uploads of other runs wait for this upload
                while len(renewed) < 2:
                    renewed.append(leases())
                    wait_for(lambda: all(now > then for now, then in zip(leases(), renewed[-1], strict=True)))

    renewed, lock = [], threading.Lock()
    recover(worker, store=Watched(worker.store, wait_for_renewal, "upload"))
    return renewed


def test_lease_is_renewed_during_upload_of_recovery(worker):
    worker.drain_seconds = 60.0
    run_id, _ = killed(worker)
    assert renewed_leases_of(worker, [run_id])
    assert worker.row(run_id)["status"] == "queued"


def test_recovery_publishes_nothing_for_run_that_has_ended(worker):
    run_id, _ = killed(worker)
    worker.queue.finish(worker.claim(CLAIM), Failed(message="the web app ended it"), [])

    recover(worker)

    assert worker.row(run_id)["error_message"] == "the web app ended it"
    assert not (worker.home / "storage").exists()
    assert not list(worker.folders.journals.iterdir())


def test_recovery_uploads_nothing_until_queue_answers_and_then_each_file_once(worker):
    run_id, _ = killed(worker)
    errors, uploads = raising(Unavailable("down"), Unavailable("down")), []

    def fail(*_):
        try:
            errors()
        except Unavailable:
            assert not uploads
            raise

    queue = Watched(worker.queue, fail, "beat")
    recover(
        worker,
        queue,
        store=Watched(worker.store, lambda _, ref, *__: uploads.append(ref.key.rpartition("/")[2]), "upload"),
    )

    assert worker.row(run_id)["status"] == "queued"
    assert len(uploads) == len(set(uploads)) == len(TRAINED)


def test_retried_delivery_does_not_repeat_upload(worker):
    run_id, _ = killed(worker)
    uploads = []
    queue = Watched(worker.queue, raising(Unavailable("down"), Unavailable("down")), "finish")
    recover(
        worker,
        queue,
        store=Watched(worker.store, lambda _, ref, *__: uploads.append(ref.key.rpartition("/")[2]), "upload"),
    )

    assert worker.artifacts(run_id).keys() == TRAINED
    assert len(uploads) == len(TRAINED)


@pytest.mark.parametrize(
    "error", [Unavailable("down"), MachineFailed("disk"), KeyError("bug"), OSError(5, "I/O error")]
)
@pytest.mark.parametrize("canceled", [False, True])
def test_run_of_killed_process_is_requeued_or_canceled_while_store_fails(worker, error, canceled):
    worker.drain_seconds = 1.0
    run_id, _ = killed(worker)
    if canceled:
        worker.queue.cancel(run_id)

    recover(worker, store=Watched(worker.store, raising(*[error] * 1000), "upload"))

    assert worker.row(run_id)["status"] == ("canceled" if canceled else "queued")
    assert not list(worker.folders.journals.iterdir())


def test_outcomes_in_journals_are_delivered_before_recovery_uploads_files(worker):
    worker.enqueue(), worker.enqueue()
    leases = [worker.claim(CLAIM), worker.claim("33333333-3333-4333-8333-333333333333")]
    # the journal of `orphan` is read first, because its file name sorts first
    orphan, decided = sorted(leases, key=lambda lease: lease.job.id)
    first, second = orphan.job.id, decided.job.id
    killed(worker, orphan)
    journal = Journal.create(worker.folders.journals, decided)
    journal.end(Failed(message="no labels"))
    journal.close()
    seen = []

    recover(worker, store=Watched(worker.store, lambda *_: seen.append(worker.row(second)["status"]), "upload"))

    assert set(seen) == {"failed"}
    assert worker.row(first)["status"] == "queued"


def test_missing_run_folder_is_not_created(worker):
    run_id, run_dir = killed(worker)
    run_dir.rename(worker.home / "elsewhere")

    recover(worker)

    assert (worker.row(run_id)["status"], worker.artifacts(run_id)) == ("queued", {})
    assert not run_dir.exists()


def test_shutdown_ends_recovery(worker):
    worker.drain_seconds = 0.5
    killed(worker)
    stop = StopSignal()

    def hang(*_):
        stop.set(StopReason.SHUTDOWN)
        time.sleep(0.1)

    began = time.monotonic()
    recover(worker, stop=stop, store=Watched(worker.store, hang, "upload"))

    assert time.monotonic() - began < 15


# ── several runs ──


def claimed_and_killed(worker, count):
    """Return runs of a killed process, each with its own claim."""
    runs = [worker.enqueue() for _ in range(count)]
    for number in range(count):
        killed(worker, worker.claim(f"{number}2222222-2222-4222-8222-222222222222"))
    return runs


def test_leases_of_all_runs_are_renewed_while_one_run_uploads(worker):
    worker.drain_seconds = 60.0
    runs = claimed_and_killed(worker, 3)
    assert renewed_leases_of(worker, runs)
    assert [worker.artifacts(run_id).keys() for run_id in runs] == [TRAINED] * 3


def test_delivery_of_outcome_is_retried_while_other_run_uploads(worker):
    runs = claimed_and_killed(worker, 2)
    journal = next(orphaned_journals(worker.folders.journals, "w", 60))
    decided = journal.lease.job.id
    journal.end(Failed(message="no labels"))
    journal.close()
    errors, seen = raising(Unavailable("down")), []

    def fail(lease, *_):
        if lease.job.id == decided:
            errors()

    def slow(path, ref, *_):
        if ref.key.endswith("/last.pt"):
            wait_for(lambda: worker.row(decided)["status"] == "failed")
            seen.append("failed")

    recover(worker, Watched(worker.queue, fail, "finish"), store=Watched(worker.store, slow, "upload"))

    assert seen == ["failed"]
    assert {worker.row(run_id)["status"] for run_id in runs} == {"failed", "queued"}


# ── recoveries that end the service ──


def test_recovery_that_kills_service_is_tried_three_times(worker):
    """Each try of the recovery renews the lease. Without a limit, the queue would never count the attempt as lost."""
    run_id, _ = killed(worker)

    recovery = worker.recovery(store=Watched(worker.store, raising(*[SystemExit()] * 9), "upload"))
    for _ in range(3):
        with closing(next(orphaned_journals(worker.folders.journals, "w", 60))) as journal, pytest.raises(SystemExit):
            recovery.recover(journal, StopSignal())
    worker.deliver_orphans(recovery)

    assert (worker.row(run_id)["status"], worker.artifacts(run_id)) == ("queued", {})
