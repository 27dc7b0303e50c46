"""The contract of every queue for its users: requeue of ended runs."""

import pytest
from queue_adapters import ago, checkpoint, claim, claimed, enqueue, event, expire, key_of

from trainer.core.job import Canceled, Completed, Failed, Interrupted, Retry, Status, Verdict

DONE = Completed(results={"mAP": 0.5}, trained_model_url="https://x/best.pt")
OUTCOMES = {
    "completed": DONE,
    "failed": Failed(message="No labels.", results={"mAP": 0.5}),
    "canceled": Canceled(results={"mAP": 0.5}),
}


def ended(lab, outcome, configuration=None):
    """Return the lease of an ended run with a lost attempt, a checkpoint of epoch 40 and both request flags."""
    lease = claimed(lab, configuration=configuration)
    lab.queue.finish(lease, Retry(message="The disk was full."), [event("epoch", epoch=1)])
    lab.edit(lease.job.id, not_before=None)
    lease = claim(lab)
    lab.queue.beat(lease, None, [event("epoch", epoch=40), checkpoint(40, key_of(lease, 40))])
    lab.edit(lease.job.id, finish_requested=True, cancel_requested=True)
    assert lab.queue.finish(lease, outcome, []) is not None
    return lease


@pytest.mark.parametrize("status", OUTCOMES)
def test_requeued_run_is_reset_and_its_attempt_number_continues(queue_lab, status):
    lease = ended(queue_lab, OUTCOMES[status])
    queue_lab.edit(lease.job.id, not_before=ago(-3600), failures=3)
    queue_lab.edit(lease.job.id, status="queued")

    row = queue_lab.queue.get(lease.job.id)
    assert (row.finish_requested, row.cancel_requested) == (False, False)
    assert (row.failures, row.host_failures, row.progress_epoch) == (0, {}, 0)
    assert [
        getattr(row, name)
        for name in ("not_before", "error_message", "completed_at", "canceled_at", "lease_expires_at")
    ] == [None] * 5
    assert row.results == {"mAP": 0.5}, "the results still describe the artifacts"
    again = claim(queue_lab)
    assert (again.job.id, again.job.attempt) == (lease.job.id, 3)
    assert queue_lab.queue.beat(again, None, []) is Verdict.OK


@pytest.mark.parametrize("status", ["failed", "running"])
def test_attempt_numbers_continue_when_app_sets_attempt_to_zero(queue_lab, status):
    """Folders, objects and events contain the attempt number. The data of earlier attempts must not be overwritten."""
    lease = claimed(queue_lab) if status == "running" else ended(queue_lab, OUTCOMES[status])
    queue_lab.edit(lease.job.id, status="queued", attempt=0, lease_expires_at=None, claim_id=None)

    again = claim(queue_lab)
    assert (again.job.id, again.job.attempt) == (lease.job.id, lease.job.attempt + 1)


def test_requeued_failed_run_keeps_checkpoint_and_last_reported_epoch(queue_lab):
    lease = ended(queue_lab, OUTCOMES["failed"])
    queue_lab.edit(lease.job.id, status="queued", configuration={"batch": 4})

    job = claim(queue_lab).job
    assert (job.checkpoint.epoch, job.checkpoint.key, job.last_reported_epoch) == (40, key_of(lease, 40), 40)
    assert job.request.configuration == {"batch": 4}


@pytest.mark.parametrize("status", ["completed", "canceled"])
def test_requeued_completed_or_canceled_run_has_no_checkpoint(queue_lab, status):
    lease = ended(queue_lab, OUTCOMES[status])
    queue_lab.edit(lease.job.id, status="queued")

    job = claim(queue_lab).job
    assert (job.checkpoint, job.last_reported_epoch) == (None, 0)


def test_progress_after_restart_from_scratch_resets_lost_attempts(queue_lab):
    lease = ended(queue_lab, OUTCOMES["failed"])
    queue_lab.edit(lease.job.id, status="queued")
    queue_lab.queue.finish(claim(queue_lab), Retry(message="The disk was full."), [])
    queue_lab.edit(lease.job.id, not_before=None)
    again = claim(queue_lab)
    assert queue_lab.queue.get(lease.job.id).failures == 1
    queue_lab.queue.beat(again, None, [event("epoch", epoch=1), checkpoint(1)])

    row = queue_lab.queue.get(lease.job.id)
    assert (row.failures, row.progress_epoch, row.last_reported_epoch) == (0, 1, 1)


def test_late_worker_cannot_change_requeued_run(queue_lab):
    lease = ended(queue_lab, OUTCOMES["failed"])
    queue_lab.edit(lease.job.id, status="queued")
    before = queue_lab.queue.get(lease.job.id)

    assert queue_lab.queue.beat(lease, {"progress": {"epoch": 9}}, [event()]) is Verdict.LOST
    assert queue_lab.queue.finish(lease, DONE, [event()]) is None
    assert queue_lab.queue.get(lease.job.id) == before


@pytest.mark.parametrize("status", OUTCOMES)
def test_requeue_resets_and_queues_ended_run(queue_lab, status):
    lease = ended(queue_lab, OUTCOMES[status])

    row = queue_lab.queue.requeue(lease.job.id)

    assert (row.status, row.attempt, row.failures, row.cancel_requested) == ("queued", 2, 0, False)
    assert (row.error_message, row.completed_at) == (None, None)
    assert row.results == {"mAP": 0.5}
    assert queue_lab.queue.get(lease.job.id) == row
    assert claim(queue_lab).job.attempt == 3


def test_requeue_ignores_run_that_has_not_ended(queue_lab):
    assert queue_lab.queue.requeue("00000000-0000-4000-8000-000000000000") is None
    assert queue_lab.queue.requeue("no-uuid") is None
    run_id = enqueue(queue_lab)
    before = queue_lab.queue.get(run_id)
    assert queue_lab.queue.requeue(run_id) == before
    lease = claim(queue_lab)
    assert queue_lab.queue.requeue(run_id).status == "running"
    queue_lab.queue.cancel(run_id)
    assert queue_lab.queue.requeue(run_id).status == "canceling"
    assert queue_lab.queue.beat(lease, None, []) is Verdict.CANCEL


@pytest.mark.parametrize("status", ["running", "canceling"])
def test_run_with_valid_lease_cannot_be_requeued(queue_lab, status):
    lease = claimed(queue_lab)
    if status == "canceling":
        queue_lab.queue.cancel(lease.job.id)
    before = queue_lab.queue.get(lease.job.id)

    with pytest.raises(Exception, match="The run is running: cancel it or wait until it has ended, then requeue it"):
        queue_lab.edit(lease.job.id, status="queued", configuration={"epochs": 2})

    assert queue_lab.queue.get(lease.job.id) == before
    assert claim(queue_lab, "w2") is None
    assert queue_lab.queue.beat(lease, None, []) is not Verdict.LOST


@pytest.mark.parametrize(
    ("outcome", "answer"),
    [
        (None, Verdict.OK),
        (Completed(results={}, trained_model_url="u"), Status.COMPLETED),
        (Interrupted(checkpoint=None), Status.QUEUED),
    ],
)
def test_worker_keeps_its_lease_after_app_clears_worker_columns(queue_lab, outcome, answer):
    """The app clears the columns of the worker just after the lease expired."""
    lease = claimed(queue_lab)
    expire(queue_lab, lease.job.id)
    queue_lab.edit(lease.job.id, worker_id=None, started_at=None)

    answered = queue_lab.queue.finish(lease, outcome, []) if outcome else queue_lab.queue.beat(lease, None, [])

    assert answered is answer
    assert {worker.worker_id for worker in queue_lab.queue.workers()} == {"w1"}


@pytest.mark.parametrize("how", ["drain", "retry", "lease"])
def test_requeue_by_the_queue_keeps_finish_request(queue_lab, how):
    lease = claimed(queue_lab)
    queue_lab.queue.beat(lease, None, [event("epoch", epoch=3), checkpoint(3, key_of(lease, 3))])
    queue_lab.queue.request_finish(lease.job.id)
    if how == "lease":
        expire(queue_lab, lease.job.id)
    else:
        outcome = Interrupted(checkpoint=None) if how == "drain" else Retry(message="The disk was full.")
        queue_lab.queue.finish(lease, outcome, [])
        queue_lab.edit(lease.job.id, not_before=None)

    again = claim(queue_lab)
    assert (again.job.attempt, again.job.checkpoint.key, again.job.last_reported_epoch) == (2, key_of(lease, 3), 3)
    assert queue_lab.queue.get(lease.job.id).progress_epoch == 3
    assert queue_lab.queue.beat(again, None, []) is Verdict.FINISH
