"""The contract of every queue for workers: an outcome is accepted only with the current lease.

The outcome `Interrupted` releases a run: the run is requeued without backoff and loses no attempt.
"""

import pytest
from queue_adapters import checkpoint, claim, claimed, enqueue, event, expire, key_of
from queue_outcomes import DONE, OUTCOMES, TERMINAL, kinds, stored_for

from trainer.core.job import Canceled, Checkpoint, Failed, Interrupted, Retry, Verdict


@pytest.mark.parametrize("outcome", OUTCOMES)
def test_worker_with_lost_lease_changes_nothing(queue_lab, outcome):
    stale = claimed(queue_lab, "w1")
    expire(queue_lab, stale.job.id)
    held = claim(queue_lab, "w1")  # both leases have the same worker ID, so only the claim ID distinguishes the leases
    assert (held.job.id, held.job.attempt) == (stale.job.id, 2)
    before, stored = queue_lab.queue.get(stale.job.id), queue_lab.queue.events(stale.job.id)
    assert queue_lab.queue.beat(stale, {"progress": {"epoch": 99}}, [checkpoint(99, "stale")]) is Verdict.LOST
    assert queue_lab.queue.finish(stale, OUTCOMES[outcome], [event()]) is None
    assert queue_lab.queue.get(stale.job.id) == before
    assert queue_lab.queue.events(stale.job.id) == stored
    assert queue_lab.queue.beat(held, None, []) is Verdict.OK


@pytest.mark.parametrize("outcome", TERMINAL)
@pytest.mark.parametrize("late", OUTCOMES)
def test_late_call_does_not_change_ended_run(queue_lab, outcome, late):
    lease = claimed(queue_lab)
    assert queue_lab.queue.finish(lease, OUTCOMES[outcome], []) is not None
    before = queue_lab.queue.get(lease.job.id)
    assert queue_lab.queue.beat(lease, {"progress": {"epoch": 99}}, [event()]) is Verdict.LOST
    queue_lab.queue.finish(lease, OUTCOMES[late], [event()])
    assert queue_lab.queue.get(lease.job.id) == before
    assert (before.status, before.lease_expires_at) == (outcome, None)
    assert kinds(queue_lab, lease.job.id) == []


@pytest.mark.parametrize("outcome", TERMINAL)
def test_different_second_outcome_is_rejected(queue_lab, outcome):
    lease = claimed(queue_lab)
    queue_lab.queue.finish(lease, OUTCOMES[outcome], [])
    for other in TERMINAL:
        assert queue_lab.queue.finish(lease, OUTCOMES[other], []) == (outcome if other == outcome else None)


@pytest.mark.parametrize("outcome", OUTCOMES)
def test_lease_of_deleted_run_is_lost(queue_lab, outcome):
    lease = claimed(queue_lab)
    queue_lab.queue.beat(lease, None, [event()])
    queue_lab.delete(lease.job.id)
    assert queue_lab.queue.beat(lease, {"progress": {}}, [event()]) is Verdict.LOST
    assert queue_lab.queue.finish(lease, OUTCOMES[outcome], [event()]) is None
    assert queue_lab.queue.get(lease.job.id) is None
    assert queue_lab.queue.events(lease.job.id) == []


def test_completed_run_has_merged_results_and_model_url(queue_lab):
    lease = claimed(queue_lab)
    queue_lab.queue.beat(lease, {"progress": {"epoch": 3}, "mAP": None}, [])
    assert queue_lab.queue.finish(lease, DONE, [event("finished")]) is not None
    row = queue_lab.queue.get(lease.job.id)
    assert row.results == {"progress": {"epoch": 3}, "mAP": 0.5}
    assert (row.status, row.trained_model_url, row.error_message) == ("completed", "https://x/best.pt", None)
    assert row.completed_at is not None
    assert (row.canceled_at, row.lease_expires_at) == (None, None)
    assert kinds(queue_lab, lease.job.id) == ["finished"]
    assert queue_lab.worker("w1")["status"] == "online"


def test_failed_run_has_reason_and_keeps_results(queue_lab):
    lease = claimed(queue_lab)
    queue_lab.queue.beat(lease, {"progress": {"epoch": 3}}, [])
    assert queue_lab.queue.finish(lease, Failed(message="No labels.", results={"artifacts": []}), []) is not None
    row = queue_lab.queue.get(lease.job.id)
    assert (row.status, row.error_message) == ("failed", "No labels.")
    assert row.completed_at is not None
    assert (row.trained_model_url, row.results) == (None, {"progress": {"epoch": 3}, "artifacts": []})


def test_canceled_run_keeps_results_without_model(queue_lab):
    lease = claimed(queue_lab)
    queue_lab.queue.cancel(lease.job.id)
    assert queue_lab.queue.finish(lease, Canceled(results={"artifacts": [{"name": "last.pt"}]}), []) is not None
    row = queue_lab.queue.get(lease.job.id)
    assert (row.status, row.error_message) == ("canceled", "Canceled by user.")
    assert row.canceled_at is not None
    assert row.completed_at is not None
    assert (row.results, row.trained_model_url) == ({"artifacts": [{"name": "last.pt"}]}, None)


@pytest.mark.parametrize("name", ["completed", "canceled", "failed", "retry", "interrupted"])
def test_checkpoint_is_cleared_only_for_completed_and_canceled_runs(queue_lab, name):
    lease = claimed(queue_lab)
    assert queue_lab.queue.finish(lease, OUTCOMES[name], [checkpoint(3, "k3")]) is not None

    named = queue_lab.queue.get(lease.job.id).checkpoint

    assert named is None if name in ("completed", "canceled") else named["key"] == "k3"


def test_canceled_queued_run_has_no_checkpoint(queue_lab):
    lease = claimed(queue_lab)
    queue_lab.queue.finish(lease, OUTCOMES["interrupted"], [checkpoint(3, "k3")])

    queue_lab.queue.cancel(lease.job.id)

    assert queue_lab.queue.get(lease.job.id).checkpoint is None


def test_repeated_outcome_is_accepted_and_changes_nothing(queue_lab):
    for name, outcome in OUTCOMES.items():
        lease = claimed(queue_lab)
        sent = [event("phase", n=name)]
        assert queue_lab.queue.finish(lease, outcome, sent) is not None
        before = queue_lab.queue.get(lease.job.id)
        assert queue_lab.queue.finish(lease, outcome, sent) is not None
        assert queue_lab.queue.get(lease.job.id) == before
        assert kinds(queue_lab, lease.job.id) == ["phase"]
        queue_lab.delete(lease.job.id)


def test_completed_outcome_has_priority_over_late_cancel(queue_lab):
    lease = claimed(queue_lab)
    queue_lab.queue.cancel(lease.job.id)
    assert queue_lab.queue.get(lease.job.id).status == "canceling"
    assert queue_lab.queue.finish(lease, DONE, []) is not None
    row = queue_lab.queue.get(lease.job.id)
    assert (row.status, row.trained_model_url, row.error_message) == ("completed", "https://x/best.pt", None)


def test_run_with_failed_outcome_after_cancel_is_failed(queue_lab):
    lease = claimed(queue_lab)
    queue_lab.queue.cancel(lease.job.id)
    assert queue_lab.queue.finish(lease, Failed(message="Diverged."), []) is not None
    assert queue_lab.queue.get(lease.job.id).status == "failed"


@pytest.mark.parametrize("outcome", ["retry", "interrupted"])
def test_run_is_not_requeued_after_cancel(queue_lab, outcome):
    lease = claimed(queue_lab)
    queue_lab.queue.cancel(lease.job.id)
    assert queue_lab.queue.finish(lease, OUTCOMES[outcome], []) is not None
    row = queue_lab.queue.get(lease.job.id)
    assert (row.status, row.error_message, row.lease_expires_at) == ("canceled", "Canceled by user.", None)
    assert queue_lab.queue.finish(lease, OUTCOMES[outcome], []) is not None
    assert claim(queue_lab) is None


@pytest.mark.parametrize(
    ("outcome", "max_attempts", "status"),
    [
        ("completed", 3, "completed"),
        ("failed", 3, "failed"),
        ("canceled", 3, "canceled"),
        ("retry", 3, "queued"),
        ("retry", 1, "failed"),
        ("interrupted", 3, "queued"),
    ],
)
def test_finish_returns_status_of_row(queue_lab, outcome, max_attempts, status):
    lease = claimed(queue_lab)
    queue_lab.edit(lease.job.id, max_attempts=max_attempts)
    assert queue_lab.queue.finish(lease, OUTCOMES[outcome], []) == status
    assert queue_lab.queue.get(lease.job.id).status == status
    assert queue_lab.queue.finish(lease, OUTCOMES[outcome], []) == status, "a repeated call gets the same answer"


@pytest.mark.parametrize("outcome", ["retry", "interrupted"])
def test_finish_returns_canceled_instead_of_queued_after_cancel(queue_lab, outcome):
    lease = claimed(queue_lab)
    queue_lab.queue.cancel(lease.job.id)
    assert queue_lab.queue.finish(lease, OUTCOMES[outcome], []) == "canceled"


def test_released_run_is_claimed_immediately_and_loses_no_attempt(queue_lab):
    lease = claimed(queue_lab)
    queue_lab.queue.beat(lease, {"progress": {"epoch": 7}}, [])
    assert queue_lab.queue.finish(lease, Interrupted(checkpoint=stored_for(lease)), [event()]) is not None
    row = queue_lab.queue.get(lease.job.id)
    assert (row.status, row.failures, row.not_before, row.lease_expires_at) == ("queued", 0, None, None)
    assert row.results == {"progress": {"epoch": 7}}
    assert row.started_at is not None
    taken = claim(queue_lab, "w2")
    assert (taken.job.id, taken.job.attempt, taken.job.checkpoint) == (lease.job.id, 2, stored_for(lease))
    assert queue_lab.queue.get(lease.job.id).started_at == row.started_at


def test_release_without_uploaded_checkpoint_keeps_stored_checkpoint(queue_lab):
    lease = claimed(queue_lab)
    queue_lab.queue.beat(lease, None, [checkpoint(2, key_of(lease, 2))])
    queue_lab.queue.finish(lease, Interrupted(checkpoint=Checkpoint(epoch=9, sha256="ef", bytes=9)), [])
    assert claim(queue_lab, "w2").job.checkpoint.key == key_of(lease, 2)


def test_results_of_released_run_are_kept_after_cancel(queue_lab):
    lease = claimed(queue_lab)
    queue_lab.queue.beat(lease, {"progress": {"epoch": 7}}, [])
    listed = {"artifacts": [{"name": "last.pt"}]}
    assert queue_lab.queue.finish(lease, Interrupted(checkpoint=stored_for(lease), results=listed), []) is not None
    assert queue_lab.queue.get(lease.job.id).results == {"progress": {"epoch": 7}, **listed}
    row = queue_lab.queue.cancel(lease.job.id)
    assert (row.status, row.results) == ("canceled", {"progress": {"epoch": 7}, **listed})


def test_results_of_retried_run_are_kept_after_cancel(queue_lab):
    lease = claimed(queue_lab)
    queue_lab.queue.beat(lease, {"progress": {"epoch": 7}}, [])
    listed = {"artifacts": [{"name": "last.pt"}]}
    assert queue_lab.queue.finish(lease, Retry(message="killed", results=listed), []) is not None
    assert queue_lab.queue.get(lease.job.id).results == {"progress": {"epoch": 7}, **listed}
    row = queue_lab.queue.cancel(lease.job.id)
    assert (row.status, row.results) == ("canceled", {"progress": {"epoch": 7}, **listed})


def test_retry_after_cancel_keeps_results(queue_lab):
    lease = claimed(queue_lab)
    queue_lab.queue.cancel(lease.job.id)
    listed = {"artifacts": [{"name": "last.pt"}]}
    assert queue_lab.queue.finish(lease, Retry(message="killed", results=listed), []) is not None
    row = queue_lab.queue.get(lease.job.id)
    assert (row.status, row.results) == ("canceled", listed)


def test_release_ends_the_lease(queue_lab):
    lease = claimed(queue_lab)
    queue_lab.queue.finish(lease, Interrupted(checkpoint=stored_for(lease)), [])
    before = queue_lab.queue.get(lease.job.id)
    assert queue_lab.queue.beat(lease, {"progress": {"epoch": 9}}, [event()]) is Verdict.LOST
    assert queue_lab.queue.finish(lease, DONE, [event()]) is None
    assert queue_lab.queue.get(lease.job.id) == before


def test_run_can_be_released_any_number_of_times(queue_lab):
    run_id = enqueue(queue_lab)
    for attempt in range(1, 7):
        lease = claim(queue_lab)
        assert (lease.job.id, lease.job.attempt) == (run_id, attempt)
        assert queue_lab.queue.finish(lease, Interrupted(checkpoint=None), []) is not None
    assert queue_lab.queue.get(run_id).failures == 0
