"""The contract of every queue for workers: heartbeats extend the lease and store progress and events."""

from dataclasses import asdict

import pytest
from queue_adapters import ago, checkpoint, claim, claimed, event, expire, moment
from queue_outcomes import DONE, kinds

from trainer.core.job import Interrupted, Verdict


def test_heartbeat_extends_lease(queue_lab):
    lease = claimed(queue_lab)
    expire(queue_lab, lease.job.id)
    assert queue_lab.queue.beat(lease, None, []) is Verdict.OK
    row = queue_lab.queue.get(lease.job.id)
    assert (moment(row.lease_expires_at) - moment(row.heartbeat_at)).total_seconds() == pytest.approx(60)
    assert row.results is None


def test_heartbeat_keeps_worker_busy_and_updates_last_seen(queue_lab):
    lease = claimed(queue_lab, "w7")
    assert queue_lab.worker("w7")["status"] == "busy"
    seen = moment(queue_lab.worker("w7")["last_seen"])
    queue_lab.queue.beat(lease, None, [])
    assert queue_lab.worker("w7")["status"] == "busy"
    assert moment(queue_lab.worker("w7")["last_seen"]) > seen


def test_progress_is_merged_into_results(queue_lab):
    lease = claimed(queue_lab)
    queue_lab.queue.beat(lease, {"progress": {"epoch": 1, "eta": "0:10"}, "metrics": {"epoch": 1}}, [])
    queue_lab.queue.beat(lease, {"progress": {"epoch": 2}}, [])
    assert queue_lab.queue.get(lease.job.id).results == {"progress": {"epoch": 2}, "metrics": {"epoch": 1}}


@pytest.mark.parametrize("nonsense", [[1, 2], "text", 7, None])
def test_progress_replaces_results_that_are_not_an_object(queue_lab, nonsense):
    lease = claimed(queue_lab)
    queue_lab.edit(lease.job.id, results=nonsense)
    assert queue_lab.queue.beat(lease, {"progress": {"epoch": 2}}, []) is Verdict.OK
    assert queue_lab.queue.get(lease.job.id).results == {"progress": {"epoch": 2}}


def test_events_are_stored_once_in_order_with_attempt(queue_lab):
    lease = claimed(queue_lab)
    first, second = event("phase", phase="training"), event("warning", code="x", message="ü")
    queue_lab.queue.beat(lease, None, [first])
    queue_lab.queue.beat(lease, None, [first, second])
    rows = queue_lab.queue.events(lease.job.id)
    assert [(row.attempt, row.seq, row.kind) for row in rows] == [
        (1, first.seq, "phase"),
        (1, second.seq, "warning"),
    ]
    assert rows[1].data == {"code": "x", "message": "ü"}
    assert rows[1].run_id == lease.job.id
    assert moment(rows[1].at) == moment(second.at)


def test_repeated_heartbeat_only_extends_lease(queue_lab):
    lease = claimed(queue_lab)
    sent = ({"progress": {"epoch": 3}}, [checkpoint(3, "k3")])
    queue_lab.queue.beat(lease, *sent)
    before = queue_lab.queue.get(lease.job.id)
    assert queue_lab.queue.beat(lease, *sent) is Verdict.OK
    assert without_times(queue_lab.queue.get(lease.job.id)) == without_times(before)
    assert kinds(queue_lab, lease.job.id) == ["checkpoint"]


def without_times(row):
    """Return the row without the times that every call changes."""
    return {k: v for k, v in asdict(row).items() if k not in ("updated_at", "heartbeat_at", "lease_expires_at")}


def test_repeated_heartbeat_does_not_restore_older_checkpoint(queue_lab):
    lease = claimed(queue_lab)
    old = checkpoint(3, "k3")
    queue_lab.queue.beat(lease, None, [old])
    queue_lab.queue.beat(lease, None, [checkpoint(5, "k5")])
    queue_lab.queue.beat(lease, None, [old])
    row = queue_lab.queue.get(lease.job.id)
    assert (row.checkpoint["epoch"], row.progress_epoch) == (5, 5)


def test_only_checkpoint_with_key_is_stored_in_row(queue_lab):
    lease = claimed(queue_lab)
    queue_lab.queue.beat(lease, None, [checkpoint(2, "k2"), checkpoint(3)])
    row = queue_lab.queue.get(lease.job.id)
    assert row.checkpoint == {"epoch": 2, "sha256": "ab" * 32, "bytes": 1002, "key": "k2"}
    assert row.progress_epoch == 3


def test_next_attempt_gets_last_reported_epoch(queue_lab):
    lease = claimed(queue_lab)
    assert lease.job.last_reported_epoch == 0
    queue_lab.queue.beat(lease, None, [event("epoch", epoch=1), second := event("epoch", epoch=2), checkpoint(5)])
    queue_lab.queue.beat(lease, None, [second])  # a repeated event has no effect
    queue_lab.edit(lease.job.id, lease_expires_at=ago(1))
    taken = claim(queue_lab)
    assert (taken.job.last_reported_epoch, taken.job.last_reported_attempt) == (2, 1)
    queue_lab.queue.beat(lease, None, [event("epoch", epoch=3)])  # the lease is lost, so this epoch is not stored
    queue_lab.queue.finish(taken, Interrupted(checkpoint=None), [event("epoch", epoch=4)])
    again = claim(queue_lab)
    assert (again.job.last_reported_epoch, again.job.last_reported_attempt) == (4, 2)
    queue_lab.queue.finish(again, Interrupted(checkpoint=None), [event("epoch", epoch=1)])  # the training starts over
    assert claim(queue_lab).job.last_reported_epoch == 1


def test_finish_request_is_returned_by_every_heartbeat(queue_lab):
    lease = claimed(queue_lab)
    queue_lab.queue.request_finish(lease.job.id)
    assert queue_lab.queue.beat(lease, None, []) is Verdict.FINISH
    assert queue_lab.queue.beat(lease, None, []) is Verdict.FINISH
    assert queue_lab.queue.finish(lease, DONE, []) is not None


def test_cancel_has_priority_over_finish_request(queue_lab):
    lease = claimed(queue_lab)
    queue_lab.queue.request_finish(lease.job.id)
    queue_lab.queue.cancel(lease.job.id)
    assert queue_lab.queue.beat(lease, None, []) is Verdict.CANCEL
