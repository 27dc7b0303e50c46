"""The contract of every queue for its users: the command line, the web app, and programs that write invalid JSON."""

import math

import pytest
from queue_adapters import ago, checkpoint, claim, claimed, enqueue, event, expire, key_of, moment

from trainer.core.errors import BadRequest
from trainer.core.job import Canceled, Completed, Failed, Interrupted, Retry, RunRequest, Status, Verdict

DONE = Completed(results={"mAP": 0.5}, trained_model_url="https://x/best.pt")
COLUMNS = {
    "id", "run_name", "project_id", "step_id", "status", "base_model", "configuration", "data_yaml", "results",
    "trained_model_url", "created_by", "is_deployed", "deployment_status", "deployment_date", "deployment_url",
    "started_at", "completed_at", "canceled_at", "cancel_requested", "worker_id", "error_message", "created_at",
    "updated_at", "attempt", "max_attempts", "failures", "claim_id", "lease_expires_at", "heartbeat_at", "priority",
    "not_before", "run_group", "run_tags", "checkpoint", "progress_epoch", "last_reported_epoch", "last_reported_attempt", "finish_requested", "host_failures",
}  # fmt: skip


# ── the table ──


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
def test_unknown_run_is_none(queue_lab, run_id):
    enqueue(queue_lab)
    assert queue_lab.queue.get(run_id) is None
    assert queue_lab.queue.cancel(run_id) is None
    assert queue_lab.queue.request_finish(run_id) is None
    assert queue_lab.queue.events(run_id) == []


def test_events_are_read_after_the_last_seen_event(queue_lab):
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


# ── cancel and finish requests ──


def test_queued_run_is_canceled_at_once_and_never_claimed(queue_lab):
    run_id = enqueue(queue_lab)
    row = queue_lab.queue.cancel(run_id)
    assert (row.status, row.cancel_requested, row.error_message) == ("canceled", True, "Canceled by user.")
    assert row.canceled_at is not None
    assert row.completed_at is not None
    assert queue_lab.queue.get(run_id) == row
    assert claim(queue_lab) is None


def test_running_run_is_asked_to_stop(queue_lab):
    lease = claimed(queue_lab)
    row = queue_lab.queue.cancel(lease.job.id)
    assert (row.status, row.cancel_requested, row.canceled_at) == ("canceling", True, None)
    assert queue_lab.queue.beat(lease, None, []) is Verdict.CANCEL
    assert queue_lab.queue.cancel(lease.job.id).status == "canceling"


@pytest.mark.parametrize("outcome", [DONE, Failed(message="No labels."), Canceled(message="Stopped.")])
def test_canceling_or_finishing_ended_run_changes_nothing(queue_lab, outcome):
    lease = claimed(queue_lab)
    queue_lab.queue.finish(lease, outcome, [])
    before = queue_lab.queue.get(lease.job.id)
    assert queue_lab.queue.cancel(lease.job.id) == before
    assert queue_lab.queue.request_finish(lease.job.id) == before


def test_finish_request_is_stored_for_running_runs_only(queue_lab):
    run_id = enqueue(queue_lab)
    assert queue_lab.queue.request_finish(run_id).finish_requested is False
    lease = claim(queue_lab)
    assert queue_lab.queue.request_finish(run_id).finish_requested is True
    assert queue_lab.queue.beat(lease, None, []) is Verdict.FINISH


# ── the web app's own edits ──


def test_cancel_flag_alone_cancels_queued_run_at_next_claim(queue_lab):
    run_id = enqueue(queue_lab)
    queue_lab.edit(run_id, cancel_requested=True)
    assert claim(queue_lab) is None
    row = queue_lab.queue.get(run_id)
    assert (row.status, row.error_message) == ("canceled", "Canceled by user.")
    assert [line.kind for line in queue_lab.queue.events(run_id)] == ["canceled"]


def test_cancel_flag_alone_cancels_running_run(queue_lab):
    lease = claimed(queue_lab)
    queue_lab.edit(lease.job.id, cancel_requested=True)
    assert queue_lab.queue.beat(lease, {"progress": {"epoch": 1}}, []) is Verdict.CANCEL
    assert queue_lab.queue.get(lease.job.id).status == "running"
    assert queue_lab.queue.finish(lease, Canceled(), []) is not None
    assert queue_lab.queue.get(lease.job.id).status == "canceled"


def test_status_canceling_alone_cancels_running_run(queue_lab):
    lease = claimed(queue_lab)
    queue_lab.edit(lease.job.id, status="canceling")
    assert queue_lab.queue.beat(lease, None, []) is Verdict.CANCEL


def test_run_ended_by_the_app_is_lost_and_keeps_its_message(queue_lab):
    lease = claimed(queue_lab)
    queue_lab.edit(
        lease.job.id, status="canceled", cancel_requested=True, canceled_at=ago(0), completed_at=ago(0),
        error_message="Project deleted.",
    )  # fmt: skip
    before = queue_lab.queue.get(lease.job.id)
    assert before.lease_expires_at is None
    assert queue_lab.queue.beat(lease, {"progress": {"epoch": 9}}, [event()]) is Verdict.LOST
    assert queue_lab.queue.finish(lease, DONE, [event()]) is None
    assert queue_lab.queue.finish(lease, Canceled(results={"a": 1}), [event()]) is not None, "that is what it is"
    assert queue_lab.queue.get(lease.job.id) == before


@pytest.mark.parametrize("stale", ["canceling", "canceled"])
def test_late_cancel_does_not_change_ended_run(queue_lab, stale):
    lease = claimed(queue_lab)
    queue_lab.queue.finish(lease, DONE, [])
    queue_lab.edit(lease.job.id, status=stale, cancel_requested=True)
    assert queue_lab.queue.get(lease.job.id).status == "completed"


# ── requeue ──

ENDINGS = {
    "completed": DONE,
    "failed": Failed(message="No labels.", results={"mAP": 0.5}),
    "canceled": Canceled(results={"mAP": 0.5}),
}


def ended(lab, outcome, configuration=None):
    """Return the lease of an ended run that lost an attempt, made progress and has every request flag set."""
    lease = claimed(lab, configuration=configuration)
    lab.queue.finish(lease, Retry(message="The disk was full."), [event("epoch", epoch=1)])
    lab.edit(lease.job.id, not_before=None)
    lease = claim(lab)
    lab.queue.beat(lease, None, [event("epoch", epoch=40), checkpoint(40, key_of(lease, 40))])
    lab.edit(lease.job.id, finish_requested=True, cancel_requested=True)
    assert lab.queue.finish(lease, outcome, []) is not None
    return lease


@pytest.mark.parametrize("status", ENDINGS)
def test_requeued_run_is_reset_and_its_attempt_number_continues(queue_lab, status):
    lease = ended(queue_lab, ENDINGS[status])
    queue_lab.edit(lease.job.id, not_before=ago(-3600), failures=3)
    queue_lab.edit(lease.job.id, status="queued")

    row = queue_lab.queue.get(lease.job.id)
    assert (row.finish_requested, row.cancel_requested) == (False, False)
    assert (row.failures, row.host_failures, row.progress_epoch) == (0, {}, 0)
    assert [
        getattr(row, name)
        for name in ("not_before", "error_message", "completed_at", "canceled_at", "lease_expires_at")
    ] == [None] * 5
    assert row.results == {"mAP": 0.5}, "what it had before is still true of its artifacts"
    again = claim(queue_lab)
    assert (again.job.id, again.job.attempt) == (lease.job.id, 3)
    assert queue_lab.queue.beat(again, None, []) is Verdict.OK


@pytest.mark.parametrize("status", ["failed", "running"])
def test_attempts_are_counted_on_when_app_sets_attempt_to_zero(queue_lab, status):
    """The number of an attempt names its folder, its objects and its events, and those of the first one are there."""
    lease = claimed(queue_lab) if status == "running" else ended(queue_lab, ENDINGS[status])
    queue_lab.edit(lease.job.id, status="queued", attempt=0, lease_expires_at=None, claim_id=None)

    again = claim(queue_lab)
    assert (again.job.id, again.job.attempt) == (lease.job.id, lease.job.attempt + 1)


def test_requeued_failed_run_keeps_checkpoint_and_history(queue_lab):
    lease = ended(queue_lab, ENDINGS["failed"])
    queue_lab.edit(lease.job.id, status="queued", configuration={"batch": 4})

    job = claim(queue_lab).job
    assert (job.checkpoint.epoch, job.checkpoint.key, job.last_reported_epoch) == (40, key_of(lease, 40), 40)
    assert job.request.configuration == {"batch": 4}


@pytest.mark.parametrize("status", ["completed", "canceled"])
def test_requeued_completed_or_canceled_run_has_no_checkpoint(queue_lab, status):
    lease = ended(queue_lab, ENDINGS[status])
    queue_lab.edit(lease.job.id, status="queued")

    job = claim(queue_lab).job
    assert (job.checkpoint, job.last_reported_epoch) == (None, 0)


def test_progress_after_a_fresh_start_resets_lost_attempts(queue_lab):
    lease = ended(queue_lab, ENDINGS["failed"])
    queue_lab.edit(lease.job.id, status="queued")
    queue_lab.queue.finish(claim(queue_lab), Retry(message="The disk was full."), [])
    queue_lab.edit(lease.job.id, not_before=None)
    again = claim(queue_lab)
    assert queue_lab.queue.get(lease.job.id).failures == 1
    queue_lab.queue.beat(again, None, [event("epoch", epoch=1), checkpoint(1)])

    row = queue_lab.queue.get(lease.job.id)
    assert (row.failures, row.progress_epoch, row.last_reported_epoch) == (0, 1, 1)


def test_late_worker_cannot_change_requeued_run(queue_lab):
    lease = ended(queue_lab, ENDINGS["failed"])
    queue_lab.edit(lease.job.id, status="queued")
    before = queue_lab.queue.get(lease.job.id)

    assert queue_lab.queue.beat(lease, {"progress": {"epoch": 9}}, [event()]) is Verdict.LOST
    assert queue_lab.queue.finish(lease, DONE, [event()]) is None
    assert queue_lab.queue.get(lease.job.id) == before


@pytest.mark.parametrize("status", ENDINGS)
def test_requeue_queues_ended_run_again(queue_lab, status):
    lease = ended(queue_lab, ENDINGS[status])

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
def test_held_run_cannot_be_requeued(queue_lab, status):
    lease = claimed(queue_lab)
    if status == "canceling":
        queue_lab.queue.cancel(lease.job.id)
    before = queue_lab.queue.get(lease.job.id)

    with pytest.raises(
        Exception, match="The run is running: cancel it or wait until it has ended, then queue it again"
    ):
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
def test_worker_that_an_app_cleared_from_the_row_keeps_its_run(queue_lab, outcome, answer):
    """An app requeues a run just after its lease expired, and clears the columns of the worker."""
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


# ── unusual values ──

ODD = [
    "nonsense",
    "{",
    "",
    0,
    1.5,
    True,
    [],
    [1],
    {},
    {"epochs": None},
    {"requires": "x", "device": {}},
    '{"epochs": 3}',
]


@pytest.mark.parametrize("configuration", ODD)
def test_configuration_reaches_worker_unparsed(queue_lab, configuration):
    run_id = enqueue(queue_lab, configuration=configuration)
    lease = claim(queue_lab)
    assert lease.job.id == run_id
    assert lease.job.request.configuration == configuration
    assert type(lease.job.request.configuration) is type(configuration)


@pytest.mark.parametrize("nonsense", ["x", 3, [], {}, {"epoch": "x"}, {"epoch": 1, "sha256": 5, "bytes": 1}])
def test_invalid_checkpoint_column_is_ignored(queue_lab, nonsense):
    run_id = queue_lab.insert(checkpoint=nonsense)
    lease = claim(queue_lab)
    assert (lease.job.id, lease.job.checkpoint) == (run_id, None)


def test_text_of_every_kind_is_stored_unchanged(queue_lab):
    text = "Ω 漢字 🐕 \u202e \ufeff \u200b a\u0301 \"'\\ \n\t \x7f"
    run_id = enqueue(queue_lab, name=text, data_yaml=text, configuration={text: [text]})
    lease = claim(queue_lab)
    assert (lease.job.request.name, lease.job.request.data_yaml) == (text, text)
    assert lease.job.request.configuration == {text: [text]}
    queue_lab.queue.beat(lease, {text: text}, [event("warning", message=text)])
    queue_lab.queue.finish(lease, Failed(message=text), [])
    row = queue_lab.queue.get(run_id)
    assert (row.results, row.error_message) == ({text: text}, text)
    assert queue_lab.queue.events(run_id)[0].data == {"message": text}


def test_nul_characters_and_lone_surrogates_are_replaced_everywhere(queue_lab):
    bad, good = "a\x00b\ud800c", "a\ufffdb\ufffdc"
    run_id = enqueue(queue_lab, name=bad, data_yaml=bad, base_model=bad, configuration={bad: bad})
    lease = claim(queue_lab)
    assert (lease.job.request.name, lease.job.request.configuration) == (good, {good: good})
    queue_lab.queue.beat(lease, {bad: {"deep": [bad]}}, [event("warning", message=bad)])
    queue_lab.queue.finish(lease, Failed(message=bad, results={"log": bad}), [])
    row = queue_lab.queue.get(run_id)
    assert row.results == {good: {"deep": [good]}, "log": good}
    assert row.error_message == good
    assert queue_lab.queue.events(run_id)[0].data == {"message": good}


def test_nan_and_infinity_become_null(queue_lab):
    lease = claimed(queue_lab, configuration={"lr": math.inf})
    assert lease.job.request.configuration == {"lr": None}
    queue_lab.queue.beat(lease, {"metrics": {"loss": math.nan, "mAP": 0.5}}, [event("epoch", loss=-math.inf)])
    queue_lab.queue.finish(lease, Completed(results={"mAP": math.nan}, trained_model_url=None), [])
    row = queue_lab.queue.get(lease.job.id)
    assert row.results == {"metrics": {"loss": None, "mAP": 0.5}, "mAP": None}
    assert queue_lab.queue.events(lease.job.id)[0].data == {"loss": None}


def test_large_results_and_many_events_are_stored(queue_lab):
    lease = claimed(queue_lab)
    results = {"curves": [[i / 7 for i in range(1000)] for _ in range(20)], "text": "x" * 100_000}
    events = [event("epoch", n=n) for n in range(1000)]
    assert queue_lab.queue.beat(lease, None, events) is Verdict.OK
    assert queue_lab.queue.finish(lease, Completed(results=results, trained_model_url=None), []) is not None
    assert queue_lab.queue.get(lease.job.id).results == results
    assert len(queue_lab.queue.events(lease.job.id)) == 1000


@pytest.mark.parametrize("priority", [2**31, -(2**31), 2**80])
def test_priority_out_of_range_is_rejected(queue_lab, priority):
    with pytest.raises(BadRequest, match=r"priority .*must be a whole number"):
        queue_lab.queue.enqueue(RunRequest(data_yaml="x", priority=priority))


def test_request_without_dataset_is_enqueued(queue_lab):
    run_id = queue_lab.queue.enqueue(RunRequest(data_yaml=None, name=""))
    assert claim(queue_lab).job.request.data_yaml is None
    assert queue_lab.queue.get(run_id).run_name == "run"


def test_invalid_checkpoint_events_do_not_fail_heartbeat(queue_lab):
    lease = claimed(queue_lab)
    queue_lab.queue.beat(lease, None, [checkpoint(3, key_of(lease, 3))])
    odd = [event("checkpoint"), event("checkpoint", epoch=None, key=None)]
    odd += [
        event(kind, epoch=epoch, key=None)
        for kind in ("epoch", "checkpoint")
        for epoch in (10**15, 10**30, 1e300, -1, "x", [1])
    ]
    assert queue_lab.queue.beat(lease, None, odd) is Verdict.OK
    row = queue_lab.queue.get(lease.job.id)
    assert (row.checkpoint["key"], row.progress_epoch) == (key_of(lease, 3), 3)
