"""The contract of every queue for workers: expired leases, late calls of workers, and retries."""

import pytest
from queue_adapters import ago, checkpoint, claim, claimed, enqueue, event, expire, key_of, moment

from trainer.core.job import Completed, Failed, Interrupted, Retry, Verdict

DONE = Completed(results={"mAP": 0.5}, trained_model_url="https://x/best.pt")
RETRY = Retry(message="The training process was killed.", results={"log": "tail"})


def end_backoff(lab, run_id):
    lab.edit(run_id, not_before=None)


def delay(row):
    """Return the seconds of backoff after the last update of the row."""
    return (moment(row.not_before) - moment(row.updated_at)).total_seconds()


def lose_worker(lab, run_id):
    """Let the lease of `run_id` expire. The claim of another run then requeues or ends `run_id`."""
    expire(lab, run_id)
    lab.edit(run_id, priority=-1)
    blocker = lab.insert(priority=100)  # the next claim gets this run
    assert claim(lab, "w9").job.id == blocker
    lab.delete(blocker)


def events_of_queue(lab, run_id):
    return [(row.attempt, row.kind) for row in lab.queue.events(run_id) if row.seq >= 1_000_000]


# ── expired leases ──


def test_run_with_valid_lease_is_not_claimed_again(queue_lab):
    claimed(queue_lab)
    assert claim(queue_lab, "w2") is None


def test_run_of_lost_worker_is_claimed_immediately(queue_lab):
    lease = claimed(queue_lab, "w1")
    key = key_of(lease, 3)
    queue_lab.queue.beat(lease, {"progress": {"epoch": 3}}, [checkpoint(3, key)])
    expire(queue_lab, lease.job.id)
    taken = claim(queue_lab, "w2")
    assert (taken.job.id, taken.job.attempt, taken.job.checkpoint.key) == (lease.job.id, 2, key)
    row = queue_lab.queue.get(lease.job.id)
    assert (row.worker_id, row.failures, row.results) == ("w2", 1, {"progress": {"epoch": 3}})


def test_expired_lease_is_recorded_as_event(queue_lab):
    lease = claimed(queue_lab, "gpu-7")
    queue_lab.queue.beat(lease, None, [event()])
    lose_worker(queue_lab, lease.job.id)
    last = queue_lab.queue.events(lease.job.id)[-1]
    assert (last.attempt, last.kind, last.data["worker_id"]) == (1, "lease_expired", "gpu-7")
    assert last.seq >= 1_000_000
    assert last.data["reason"]


def test_every_expiry_of_one_lease_is_recorded_as_event(queue_lab):
    lease = claimed(queue_lab)
    for _ in range(2):
        lose_worker(queue_lab, lease.job.id)
        assert queue_lab.queue.beat(lease, None, []) is Verdict.OK
    assert events_of_queue(queue_lab, lease.job.id) == [(1, "lease_expired"), (1, "lease_expired")]


def test_requeued_run_keeps_its_claim_id_until_the_next_claim(queue_lab):
    lease = claimed(queue_lab)
    lose_worker(queue_lab, lease.job.id)
    row = queue_lab.queue.get(lease.job.id)
    assert (row.status, row.failures) == ("queued", 1)
    assert queue_lab.rows()[lease.job.id]["claim_id"] == lease.claim_id
    assert row.lease_expires_at is not None


def test_run_fails_when_expired_leases_reach_max_attempts(queue_lab):
    run_id = enqueue(queue_lab)
    for attempt in range(1, 4):
        end_backoff(queue_lab, run_id)
        lease = claim(queue_lab, f"gpu-{attempt}")
        assert (lease.job.id, lease.job.attempt) == (run_id, attempt)
        lose_worker(queue_lab, run_id)
    assert claim(queue_lab) is None
    row = queue_lab.queue.get(run_id)
    assert (row.status, row.failures, row.lease_expires_at) == ("failed", 3, None)
    assert row.completed_at is not None
    assert "stopped 3 times" in row.error_message
    assert "gpu-3" in row.error_message
    assert events_of_queue(queue_lab, run_id) == [(1, "lease_expired"), (2, "lease_expired"), (3, "lease_expired")]
    assert queue_lab.queue.finish(lease, DONE, []) is None


def test_max_attempts_of_row_limits_attempts(queue_lab):
    run_id = queue_lab.insert(max_attempts=1)
    claim(queue_lab)
    expire(queue_lab, run_id)
    assert claim(queue_lab) is None
    assert queue_lab.queue.get(run_id).status == "failed"


@pytest.mark.parametrize("by", ["cancel", "flag"])
def test_run_of_lost_worker_is_canceled_after_cancel_request(queue_lab, by):
    lease = claimed(queue_lab, "w1")
    if by == "cancel":
        queue_lab.queue.cancel(lease.job.id)
    else:
        queue_lab.edit(lease.job.id, cancel_requested=True)
    expire(queue_lab, lease.job.id)
    assert claim(queue_lab) is None
    row = queue_lab.queue.get(lease.job.id)
    assert (row.status, row.error_message, row.lease_expires_at) == ("canceled", "Canceled by user.", None)
    assert row.canceled_at is not None
    assert row.completed_at is not None
    assert events_of_queue(queue_lab, lease.job.id) == [(1, "canceled")]
    assert queue_lab.queue.beat(lease, None, []) is Verdict.LOST


def test_run_with_status_canceling_keeps_its_valid_lease(queue_lab):
    lease = claimed(queue_lab)
    queue_lab.queue.cancel(lease.job.id)
    claim(queue_lab, "w2")
    assert queue_lab.queue.get(lease.job.id).status == "canceling"
    assert queue_lab.queue.beat(lease, None, []) is Verdict.CANCEL


def test_run_with_status_canceling_and_without_lease_is_canceled(queue_lab):
    run_id = queue_lab.insert(status="canceling", cancel_requested=True, worker_id="old-service", started_at=ago(5))
    claim(queue_lab)
    assert queue_lab.queue.get(run_id).status == "canceled"


def test_running_row_without_lease_is_requeued_after_60_s(queue_lab):
    silent = queue_lab.insert(status="running", worker_id="old-service", started_at=ago(61))
    fresh = queue_lab.insert(status="running", worker_id="old-service", started_at=ago(30))
    beaten = queue_lab.insert(status="running", worker_id="old", started_at=ago(900), heartbeat_at=ago(30))
    taken = claim(queue_lab)
    assert (taken.job.id, taken.job.attempt) == (silent, 1)
    assert claim(queue_lab) is None
    assert queue_lab.queue.get(fresh).status == queue_lab.queue.get(beaten).status == "running"


# ── late workers ──


def test_late_heartbeat_extends_lease_of_unclaimed_run(queue_lab):
    lease = claimed(queue_lab)
    lose_worker(queue_lab, lease.job.id)
    assert queue_lab.queue.beat(lease, {"progress": {"epoch": 4}}, [event()]) is Verdict.OK
    row = queue_lab.queue.get(lease.job.id)
    assert (row.status, row.failures, row.not_before, row.attempt) == ("running", 0, None, 1)
    assert row.results == {"progress": {"epoch": 4}}
    assert moment(row.lease_expires_at) > moment(row.heartbeat_at)
    assert claim(queue_lab, "w2") is None


def test_late_heartbeat_extends_lease_during_backoff(queue_lab):
    lease = claimed(queue_lab)
    queue_lab.edit(lease.job.id, failures=1)
    lose_worker(queue_lab, lease.job.id)
    assert claim(queue_lab, "w2") is None
    assert queue_lab.queue.beat(lease, None, []) is Verdict.OK
    assert queue_lab.queue.get(lease.job.id).failures == 1


@pytest.mark.parametrize(
    ("outcome", "status"),
    [(DONE, "completed"), (Failed(message="Diverged."), "failed"), (Interrupted(checkpoint=None), "queued")],
)
def test_late_outcome_of_unclaimed_run_is_accepted(queue_lab, outcome, status):
    lease = claimed(queue_lab)
    lose_worker(queue_lab, lease.job.id)
    assert queue_lab.queue.finish(lease, outcome, [event("finished")]) is not None
    row = queue_lab.queue.get(lease.job.id)
    assert (row.status, row.lease_expires_at, row.failures) == (status, None, 0)
    assert "finished" in [line.kind for line in queue_lab.queue.events(lease.job.id)]


def test_attempt_of_late_retry_is_counted_once(queue_lab):
    lease = claimed(queue_lab)
    lose_worker(queue_lab, lease.job.id)
    assert queue_lab.queue.finish(lease, RETRY, []) is not None
    assert queue_lab.queue.get(lease.job.id).failures == 1


def test_late_heartbeat_for_canceled_run_reports_lost_lease(queue_lab):
    lease = claimed(queue_lab)
    lose_worker(queue_lab, lease.job.id)
    queue_lab.queue.cancel(lease.job.id)
    assert queue_lab.queue.beat(lease, {"progress": {}}, []) is Verdict.LOST
    assert queue_lab.queue.finish(lease, DONE, []) is None
    assert queue_lab.queue.get(lease.job.id).status == "canceled"


@pytest.mark.parametrize("outcome", [DONE, RETRY, Interrupted(checkpoint=None)])
def test_outcome_of_next_worker_is_not_attributed_to_late_worker(queue_lab, outcome):
    late = claimed(queue_lab, "w1")
    lose_worker(queue_lab, late.job.id)
    assert queue_lab.queue.finish(claim(queue_lab, "w2"), outcome, []) is not None
    assert queue_lab.queue.finish(late, outcome, []) is None


# ── retries ──


def test_retry_requeues_run_with_backoff_and_reason(queue_lab):
    lease = claimed(queue_lab)
    assert queue_lab.queue.finish(lease, RETRY, [event()]) is not None
    row = queue_lab.queue.get(lease.job.id)
    assert (row.status, row.failures, row.error_message) == ("queued", 1, RETRY.message)
    assert (row.lease_expires_at, row.completed_at) == (None, None)
    assert row.results == {"log": "tail"}
    assert delay(row) == pytest.approx(10, abs=0.5)
    assert claim(queue_lab) is None
    end_backoff(queue_lab, lease.job.id)
    assert claim(queue_lab).job.attempt == 2
    assert queue_lab.queue.get(lease.job.id).error_message is None


@pytest.mark.parametrize(
    ("failures", "seconds"), [(0, 10), (1, 20), (2, 40), (5, 320), (6, 600), (40, 600), (3000, 600)]
)
def test_backoff_doubles_up_to_600_s(queue_lab, failures, seconds):
    lease = claimed(queue_lab)
    queue_lab.edit(lease.job.id, failures=failures, max_attempts=9999)
    queue_lab.queue.finish(lease, RETRY, [])
    assert delay(queue_lab.queue.get(lease.job.id)) == pytest.approx(seconds, abs=0.5)


@pytest.mark.parametrize(("failures", "seconds"), [(0, 0), (1, 20), (2, 40), (3000, 600)])
def test_first_retry_after_lost_worker_has_no_backoff(queue_lab, failures, seconds):
    lease = claimed(queue_lab)
    queue_lab.edit(lease.job.id, failures=failures, max_attempts=9999)
    lose_worker(queue_lab, lease.job.id)
    assert delay(queue_lab.queue.get(lease.job.id)) == pytest.approx(seconds, abs=0.5)


def test_run_fails_with_last_reason_when_retries_reach_max_attempts(queue_lab):
    run_id = enqueue(queue_lab)
    for _ in range(3):
        end_backoff(queue_lab, run_id)
        lease = claim(queue_lab)
        assert queue_lab.queue.finish(lease, RETRY, []) is not None
    row = queue_lab.queue.get(run_id)
    assert (row.status, row.failures, row.error_message) == ("failed", 3, RETRY.message)
    assert row.completed_at is not None
    assert row.lease_expires_at is None
    assert queue_lab.queue.finish(lease, RETRY, []) is not None, "a repeated call is accepted"
    assert claim(queue_lab) is None


def test_progress_resets_lost_attempts(queue_lab):
    run_id = enqueue(queue_lab)
    for epoch in range(1, 8):
        end_backoff(queue_lab, run_id)
        lease = claim(queue_lab)
        assert lease.job.attempt == epoch
        assert queue_lab.queue.beat(lease, None, [checkpoint(epoch)]) is Verdict.OK
        assert queue_lab.queue.get(run_id).failures == 0
        expire(queue_lab, run_id)


def test_repeated_epoch_is_not_progress(queue_lab):
    run_id = enqueue(queue_lab)
    for lost in range(3):
        end_backoff(queue_lab, run_id)
        lease = claim(queue_lab)
        queue_lab.queue.beat(lease, None, [checkpoint(5)])
        assert queue_lab.queue.get(run_id).failures == lost
        lose_worker(queue_lab, run_id)
    assert queue_lab.queue.get(run_id).status == "failed"


def test_progress_in_retry_call_resets_lost_attempts(queue_lab):
    lease = claimed(queue_lab)
    queue_lab.edit(lease.job.id, failures=2)
    assert queue_lab.queue.finish(lease, RETRY, [checkpoint(4, "k4")]) is not None
    row = queue_lab.queue.get(lease.job.id)
    assert (row.status, row.failures, row.checkpoint["key"]) == ("queued", 1, "k4")


def test_release_keeps_count_of_lost_attempts(queue_lab):
    lease = claimed(queue_lab)
    queue_lab.edit(lease.job.id, failures=2)
    queue_lab.queue.finish(lease, Interrupted(checkpoint=None), [])
    assert queue_lab.queue.get(lease.job.id).failures == 2


def test_repeated_retry_is_counted_once(queue_lab):
    lease = claimed(queue_lab)
    for _ in range(3):
        assert queue_lab.queue.finish(lease, RETRY, []) is not None
    assert queue_lab.queue.get(lease.job.id).failures == 1
