"""The contract of every queue for its users: the command line and the web app."""

import pytest
from queue_adapters import ago, claim, claimed, enqueue, event, moment

from trainer.core.job import Canceled, Completed, Failed, Verdict

DONE = Completed(results={"mAP": 0.5}, trained_model_url="https://x/best.pt")
COLUMNS = {
    "id", "run_name", "project_id", "step_id", "status", "base_model", "configuration", "data_yaml", "results",
    "trained_model_url", "created_by", "is_deployed", "deployment_status", "deployment_date", "deployment_url",
    "started_at", "completed_at", "canceled_at", "cancel_requested", "worker_id", "error_message", "created_at",
    "updated_at", "attempt", "max_attempts", "failures", "claim_id", "lease_expires_at", "heartbeat_at", "priority",
    "not_before", "run_group", "run_tags", "checkpoint", "progress_epoch", "last_reported_epoch", "last_reported_attempt", "finish_requested", "host_failures",
}  # fmt: skip


def test_new_run_has_every_documented_column(queue_lab):
    run_id = enqueue(queue_lab, configuration={"epochs": 3, "augmentation": {"hsv_h": 0.1}}, name="nuts")
    assert set(queue_lab.rows()[run_id]) >= COLUMNS
    row = queue_lab.queue.get(run_id)
    assert (row.id, row.run_name, row.status, row.data_yaml) == (run_id, "nuts", "queued", "set/data.yaml")
    assert row.configuration == {"epochs": 3, "augmentation": {"hsv_h": 0.1}}
    assert (row.attempt, row.max_attempts, row.failures, row.progress_epoch) == (0, 3, 0, 0)
    assert row.last_reported_epoch == 0
    assert (row.cancel_requested, row.finish_requested, row.is_deployed) == (False, False, False)
    assert all(getattr(row, name) is None for name in ("lease_expires_at", "checkpoint", "results", "started_at"))
    assert moment(row.created_at).utcoffset().total_seconds() == 0


@pytest.mark.parametrize(
    "run_id", ["00000000-0000-4000-8000-000000000000", "no-uuid", "", "a\x00b", "'; drop table training_runs"]
)
def test_calls_for_unknown_run_return_nothing(queue_lab, run_id):
    enqueue(queue_lab)
    assert queue_lab.queue.get(run_id) is None
    assert queue_lab.queue.cancel(run_id) is None
    assert queue_lab.queue.request_finish(run_id) is None
    assert queue_lab.queue.events(run_id) == []


def test_events_after_the_given_event_are_returned(queue_lab):
    lease = claimed(queue_lab)
    events = [event(n=n) for n in range(3)]
    queue_lab.queue.beat(lease, None, events)
    queue_lab.edit(lease.job.id, lease_expires_at=ago(1))
    second = claim(queue_lab)
    queue_lab.queue.beat(second, None, [newest := event()])
    seen = queue_lab.queue.events(lease.job.id, after=(1, events[1].seq))
    assert [(row.attempt, row.kind) for row in seen] == [(1, "phase"), (1, "lease_expired"), (2, "phase")]
    assert queue_lab.queue.events(lease.job.id, after=(2, newest.seq)) == []


def test_events_of_other_runs_are_not_listed(queue_lab):
    one, other = claimed(queue_lab), claimed(queue_lab)
    queue_lab.queue.beat(one, None, [event()])
    queue_lab.queue.beat(other, None, [event()])
    assert len(queue_lab.queue.events(one.job.id)) == 1


def test_queued_run_is_canceled_immediately_and_never_claimed(queue_lab):
    run_id = enqueue(queue_lab)
    row = queue_lab.queue.cancel(run_id)
    assert (row.status, row.cancel_requested, row.error_message) == ("canceled", True, "Canceled by user.")
    assert row.canceled_at is not None
    assert row.completed_at is not None
    assert queue_lab.queue.get(run_id) == row
    assert claim(queue_lab) is None


def test_cancel_of_running_run_sets_canceling_and_heartbeat_returns_cancel(queue_lab):
    lease = claimed(queue_lab)
    row = queue_lab.queue.cancel(lease.job.id)
    assert (row.status, row.cancel_requested, row.canceled_at) == ("canceling", True, None)
    assert queue_lab.queue.beat(lease, None, []) is Verdict.CANCEL
    assert queue_lab.queue.cancel(lease.job.id).status == "canceling"


@pytest.mark.parametrize("outcome", [DONE, Failed(message="No labels."), Canceled(message="Stopped.")])
def test_cancel_and_finish_request_of_ended_run_change_nothing(queue_lab, outcome):
    lease = claimed(queue_lab)
    queue_lab.queue.finish(lease, outcome, [])
    before = queue_lab.queue.get(lease.job.id)
    assert queue_lab.queue.cancel(lease.job.id) == before
    assert queue_lab.queue.request_finish(lease.job.id) == before


def test_finish_request_is_stored_only_for_running_run(queue_lab):
    run_id = enqueue(queue_lab)
    assert queue_lab.queue.request_finish(run_id).finish_requested is False
    lease = claim(queue_lab)
    assert queue_lab.queue.request_finish(run_id).finish_requested is True
    assert queue_lab.queue.beat(lease, None, []) is Verdict.FINISH


def test_cancel_flag_without_status_cancels_queued_run_at_next_claim(queue_lab):
    run_id = enqueue(queue_lab)
    queue_lab.edit(run_id, cancel_requested=True)
    assert claim(queue_lab) is None
    row = queue_lab.queue.get(run_id)
    assert (row.status, row.error_message) == ("canceled", "Canceled by user.")
    assert [line.kind for line in queue_lab.queue.events(run_id)] == ["canceled"]


def test_cancel_flag_without_status_cancels_running_run(queue_lab):
    lease = claimed(queue_lab)
    queue_lab.edit(lease.job.id, cancel_requested=True)
    assert queue_lab.queue.beat(lease, {"progress": {"epoch": 1}}, []) is Verdict.CANCEL
    assert queue_lab.queue.get(lease.job.id).status == "running"
    assert queue_lab.queue.finish(lease, Canceled(), []) is not None
    assert queue_lab.queue.get(lease.job.id).status == "canceled"


def test_status_canceling_without_flag_cancels_running_run(queue_lab):
    lease = claimed(queue_lab)
    queue_lab.edit(lease.job.id, status="canceling")
    assert queue_lab.queue.beat(lease, None, []) is Verdict.CANCEL


def test_run_ended_by_the_app_loses_its_lease_and_keeps_its_message(queue_lab):
    lease = claimed(queue_lab)
    queue_lab.edit(
        lease.job.id, status="canceled", cancel_requested=True, canceled_at=ago(0), completed_at=ago(0),
        error_message="Project deleted.",
    )  # fmt: skip
    before = queue_lab.queue.get(lease.job.id)
    assert before.lease_expires_at is None
    assert queue_lab.queue.beat(lease, {"progress": {"epoch": 9}}, [event()]) is Verdict.LOST
    assert queue_lab.queue.finish(lease, DONE, [event()]) is None
    assert queue_lab.queue.finish(lease, Canceled(results={"a": 1}), [event()]) is not None, (
        "the row already has this status"
    )
    assert queue_lab.queue.get(lease.job.id) == before


@pytest.mark.parametrize("stale", ["canceling", "canceled"])
def test_late_cancel_does_not_change_ended_run(queue_lab, stale):
    lease = claimed(queue_lab)
    queue_lab.queue.finish(lease, DONE, [])
    queue_lab.edit(lease.job.id, status=stale, cancel_requested=True)
    assert queue_lab.queue.get(lease.job.id).status == "completed"
