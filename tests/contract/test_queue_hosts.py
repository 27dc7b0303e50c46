"""Failures of a worker's host: a run loses one attempt per worker, and a reported problem makes a worker unhealthy."""

import uuid

import pytest
from queue_adapters import ago, checkpoint, claim, claimed, enqueue, expire, moment

from trainer.core.job import Failed, Interrupted, Retry
from trainer.core.ports import Worker

UNHEALTHY = Retry(message="RUNS_DIR cannot be written.", host_failed=True)
KILLED = Retry(message="The training process was killed.")


def fail(lab, run_id, worker, outcome=UNHEALTHY):
    """End the backoff of the run, let `worker` claim the run and report `outcome`. Return the row."""
    lab.edit(run_id, not_before=None)
    lease = claim(lab, worker)
    assert lease.job.id == run_id
    assert lab.queue.finish(lease, outcome, []) is not None
    return lab.queue.get(run_id)


def delay(row):
    return (moment(row.not_before) - moment(row.updated_at)).total_seconds()


# ── attempts of the run ──


def test_host_failures_of_one_worker_cost_one_attempt(queue_lab):
    run_id = enqueue(queue_lab)
    for times in range(1, 7):
        row = fail(queue_lab, run_id, "w1")
        assert (row.status, row.failures, row.error_message) == ("queued", 1, UNHEALTHY.message)
        assert row.host_failures == {"w1": times}


def test_host_failures_of_two_workers_cost_two_attempts(queue_lab):
    run_id = enqueue(queue_lab)
    for worker in ("a", "b", "a", "b"):
        row = fail(queue_lab, run_id, worker)
    assert (row.status, row.failures, row.host_failures) == ("queued", 2, {"a": 2, "b": 2})
    row = fail(queue_lab, run_id, "c")
    assert (row.status, row.failures, row.error_message) == ("failed", 3, UNHEALTHY.message)
    assert row.not_before is None


def test_repeated_host_failures_of_one_worker_increase_backoff(queue_lab):
    run_id = enqueue(queue_lab)
    assert [delay(fail(queue_lab, run_id, "w1")) for _ in range(8)] == pytest.approx(
        [10, 20, 40, 80, 160, 320, 600, 600], abs=0.5
    )


def test_other_failures_count_in_addition_to_host_failures(queue_lab):
    run_id = enqueue(queue_lab)
    fail(queue_lab, run_id, "w1")
    row = fail(queue_lab, run_id, "w1", KILLED)
    assert (row.status, row.failures) == ("queued", 2)
    row = fail(queue_lab, run_id, "w1", KILLED)
    assert (row.status, row.error_message) == ("failed", KILLED.message)


def test_repeated_host_failure_is_counted_once(queue_lab):
    lease = claimed(queue_lab, "w1")
    for _ in range(3):
        assert queue_lab.queue.finish(lease, UNHEALTHY, []) is not None
    assert queue_lab.queue.get(lease.job.id).host_failures == {"w1": 1}


def test_progress_resets_host_failures(queue_lab):
    run_id = enqueue(queue_lab)
    fail(queue_lab, run_id, "w1")
    queue_lab.edit(run_id, not_before=None)
    lease = claim(queue_lab, "w2")
    queue_lab.queue.beat(lease, None, [checkpoint(3)])
    row = queue_lab.queue.get(run_id)
    assert (row.failures, row.host_failures) == (0, {})
    queue_lab.queue.finish(lease, Interrupted(checkpoint=None), [])
    assert fail(queue_lab, run_id, "w1").failures == 1


def test_host_failures_are_cleared_when_run_fails(queue_lab):
    run_id = enqueue(queue_lab)
    fail(queue_lab, run_id, "w1")
    assert fail(queue_lab, run_id, "w1", Failed(message="Diverged.")).host_failures == {}


def test_host_failures_are_cleared_when_run_is_canceled(queue_lab):
    run_id = enqueue(queue_lab)
    fail(queue_lab, run_id, "w1")
    assert queue_lab.queue.cancel(run_id).host_failures == {}


def test_cancel_has_priority_over_host_failure(queue_lab):
    lease = claimed(queue_lab)
    queue_lab.queue.cancel(lease.job.id)
    queue_lab.queue.finish(lease, UNHEALTHY, [])
    row = queue_lab.queue.get(lease.job.id)
    assert (row.status, row.failures, row.host_failures) == ("canceled", 0, {})


def test_worker_on_failed_host_gets_run_later_than_other_workers(queue_lab):
    run_id = enqueue(queue_lab)
    fail(queue_lab, run_id, "w1")
    queue_lab.edit(run_id, not_before=ago(1))
    assert claim(queue_lab, "w1") is None
    assert claim(queue_lab, "w2").job.id == run_id


def test_single_worker_gets_its_failed_run_21_s_after_backoff(queue_lab):
    run_id = enqueue(queue_lab)
    fail(queue_lab, run_id, "w1")
    queue_lab.edit(run_id, not_before=ago(21))
    assert claim(queue_lab, "w1").job.id == run_id


def test_expired_lease_after_host_failure_costs_another_attempt(queue_lab):
    run_id = enqueue(queue_lab)
    fail(queue_lab, run_id, "w1")
    queue_lab.edit(run_id, not_before=None)
    claim(queue_lab, "w1")
    expire(queue_lab, run_id)
    assert claim(queue_lab, "w1") is None
    assert queue_lab.queue.get(run_id).failures == 2


# ── health of the worker ──


def test_reported_problem_makes_worker_unhealthy_and_updates_last_seen(queue_lab):
    worker = Worker(id="w1", hardware={"gpu_name": "H200"})
    queue_lab.queue.report(worker, "RUNS_DIR is full.")
    row = queue_lab.worker("w1")
    assert (row["status"], row["status_message"], row["gpu_name"]) == ("unhealthy", "RUNS_DIR is full.", "H200")
    assert abs((moment(row["last_seen"]) - moment(ago(0))).total_seconds()) < 60


def test_problem_is_replaced_by_next_report(queue_lab):
    for problem in ("RUNS_DIR is full.", "The GPU is gone."):
        queue_lab.queue.report(Worker(id="w1"), problem)
    assert queue_lab.worker("w1")["status_message"] == "The GPU is gone."
    queue_lab.queue.report(Worker(id="w1"), None)
    assert (queue_lab.worker("w1")["status"], queue_lab.worker("w1")["status_message"]) == ("online", None)


def test_heartbeats_and_outcomes_keep_worker_unhealthy(queue_lab):
    lease = claimed(queue_lab, "w1")
    queue_lab.queue.report(Worker(id="w1"), "RUNS_DIR is full.")
    queue_lab.queue.beat(lease, None, [])
    row = queue_lab.worker("w1")
    assert (row["status"], row["status_message"], row["current_runs"]) == ("unhealthy", "RUNS_DIR is full.", 1)
    queue_lab.queue.finish(lease, Failed(message="Diverged."), [])
    assert queue_lab.worker("w1")["status"] == "unhealthy"


def test_claim_makes_worker_healthy(queue_lab):
    queue_lab.queue.report(Worker(id="w1"), "RUNS_DIR is full.")
    claim(queue_lab, "w1")
    assert (queue_lab.worker("w1")["status"], queue_lab.worker("w1")["status_message"]) == ("online", None)
    queue_lab.queue.report(Worker(id="w1"), "RUNS_DIR is full.")
    enqueue(queue_lab)
    queue_lab.queue.claim(Worker(id="w1"), str(uuid.uuid4()), 60)
    assert (queue_lab.worker("w1")["status"], queue_lab.worker("w1")["status_message"]) == ("busy", None)


def test_workers_are_listed_by_last_seen_newest_first(queue_lab):
    claim(queue_lab, "w1")
    queue_lab.queue.report(Worker(id="w2"), "RUNS_DIR is full.")
    assert [(row.worker_id, row.status_message) for row in queue_lab.queue.workers()][:2] == [
        ("w2", "RUNS_DIR is full."), ("w1", None),
    ]  # fmt: skip
